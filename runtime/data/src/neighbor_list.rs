//! Neighbour lists at linear cost, for every kind of periodicity.
//!
//! Atoms are sorted into bins that are at least as large as needed to keep few atoms in each; an atom's neighbours lie in the bins around its
//! own. Along a periodic direction the bins wrap, and go around as often as the cutoff asks, so a cell may be far smaller than
//! the cutoff. Directions that are not periodic are spanned by unit vectors at right angles to the periodic ones, and their bins end where the atoms end.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use rayon::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::{DataError, NeighborListOptions};

/// The most pairs of one list, and of all structures of a batch together. A list of so many takes 1.3 GB, and a batch with it 5 GB; a million atoms
/// with 60 neighbours each have fewer.
pub(crate) const MOST_PAIRS: usize = 1 << 26;
/// The most atoms and bins that are looked at for one list: some seconds of work. Where atoms are spread evenly, a list has too many pairs before it meets
/// this bound.
const MOST_LOOKED_AT: u64 = 1 << 30;
/// Work is added up, and a stop noticed, after looking at this many atoms: less than a millisecond.
const LOOKED_AT_ONCE: u64 = 1 << 16;
/// The most bins that are looked through for one atom: a cell this much smaller than the cutoff is a mistake.
const MOST_BINS_PER_ATOM: f64 = 1e6;
/// Bins for each atom, at most. An empty bin costs as much to visit as a full one, so many more would not pay.
const BINS_PER_ATOM: f64 = 4.0;
/// Bins are higher than the cutoff by this part, so that rounding of a fractional coordinate cannot put a neighbour two bins away.
const MARGIN: f64 = 1e-6;
/// Structures with at least this many atoms are searched by several threads.
const PARALLEL_ATOMS: usize = 2048;

/// The pairs of one structure, sorted by first atom, second atom and shift.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PairList {
    /// The two atoms of each pair.
    pub atoms: Vec<[u32; 2]>,
    /// How many cell vectors are added to the second atom.
    pub shifts: Vec<[i32; 3]>,
}

impl PairList {
    /// What a pair takes in a batch, which counts in 64 bits, beside what it takes here.
    pub(crate) const BYTES_OF_PAIR: u64 = 48 + 20;

    /// The number of pairs.
    pub fn len(&self) -> usize {
        self.atoms.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.atoms.is_empty()
    }

    /// Those of `candidates` that a list with these options has, each once, whichever of its directions are given. No atom is paired with itself.
    pub(crate) fn of_candidates(
        geometry: Geometry<'_>,
        options: &NeighborListOptions,
        mut candidates: Vec<Pair>,
    ) -> Self {
        let position =
            |atom: u32| -> Vector { std::array::from_fn(|axis| geometry.positions[3 * atom as usize + axis]) };
        let rows = [0, 1, 2].map(|k| [0, 1, 2].map(|axis| geometry.cell[3 * k + axis]));
        candidates.retain_mut(|pair| {
            let ([first, second], shift) = *pair;
            if !is_listed(false, first, second, shift) {
                *pair = opposite(*pair);
            }
            options.includes(norm(vector(position(first), position(second), shift, &rows)))
        });
        if options.full_list {
            candidates.extend(candidates.clone().into_iter().map(opposite));
        }
        candidates.sort_unstable();
        candidates.dedup();
        let (atoms, shifts) = candidates.into_iter().unzip();
        Self { atoms, shifts }
    }
}

impl NeighborListOptions {
    /// Whether a list has pairs of this distance.
    fn includes(&self, distance: f64) -> bool {
        distance < self.cutoff || (!self.strict && distance == self.cutoff)
    }
}

/// A structure as the search sees it.
#[derive(Clone, Copy, Debug)]
pub struct Geometry<'a> {
    /// Three numbers for each atom.
    pub positions: &'a [f64],
    /// Rows are cell vectors.
    pub cell: &'a [f64; 9],
    /// Along which of them it repeats.
    pub periodic: [bool; 3],
}

/// All pairs closer than the cutoff: `|r_second - r_first + shift . cell| < cutoff`, or `<=` where the list is not strict. An atom and
/// its own images are pairs, an atom and itself is none. A half list has each pair once: the first atom is the smaller, or, for an atom and
/// its image, the shift's first number that is not 0 is positive.
///
/// # Errors
/// The cutoff is not positive and finite; a position is not finite; the vectors of periodic directions are not independent; there
/// would be too many pairs, or finding them would take too long.
pub fn neighbor_list(geometry: Geometry<'_>, options: &NeighborListOptions) -> Result<PairList, DataError> {
    neighbor_list_within(geometry, options, MOST_PAIRS, &AtomicBool::new(false))
}

/// [`neighbor_list`] with at most `most_pairs`, which ends early, with an error that nobody will read, once `stopped` is true.
pub(crate) fn neighbor_list_within(
    geometry: Geometry<'_>,
    options: &NeighborListOptions,
    most_pairs: usize,
    stopped: &AtomicBool,
) -> Result<PairList, DataError> {
    if !(options.cutoff.is_finite() && options.cutoff > 0.0) {
        return Err(DataError::new(format!(
            "the cutoff of a neighbour list is {}, expected a positive number",
            options.cutoff
        )));
    }
    if !geometry.positions.iter().all(|value| value.is_finite()) {
        return Err(DataError::new("a position is not a finite number"));
    }
    let count = geometry.positions.len() / 3;
    if count == 0 {
        return Ok(PairList::default());
    }
    let search = Search::new(geometry, options, count)?;
    let work = Work { most_pairs, pairs: AtomicUsize::new(0), looked_at: AtomicU64::new(0), stopped };
    let neighbors = |atom| search.neighbors_of(atom, &work);
    let of_atoms: Vec<Vec<Pair>> = if count < PARALLEL_ATOMS {
        (0..count).map(neighbors).collect::<Result<_, _>>()?
    } else {
        side_by_side(|| (0..count).into_par_iter().map(neighbors).collect::<Result<_, _>>())?
    };
    let pairs = of_atoms.iter().map(Vec::len).sum();
    let mut list = PairList { atoms: Vec::with_capacity(pairs), shifts: Vec::with_capacity(pairs) };
    for (atoms, shift) in of_atoms.into_iter().flatten() {
        list.atoms.push(atoms);
        list.shifts.push(shift);
    }
    Ok(list)
}

/// [`neighbor_list`], but only the pairs with an atom for which `matters` is true. No direction repeats.
pub(crate) fn neighbor_list_around(
    geometry: Geometry<'_>,
    options: &NeighborListOptions,
    matters: &[bool],
    most_pairs: usize,
    stopped: &AtomicBool,
) -> Result<PairList, DataError> {
    let full = NeighborListOptions { full_list: true, ..*options };
    let search = Search::new(geometry, &full, matters.len())?;
    let work = Work { most_pairs, pairs: AtomicUsize::new(0), looked_at: AtomicU64::new(0), stopped };
    let atoms: Vec<usize> = (0..matters.len()).filter(|&atom| matters[atom]).collect();
    let neighbors = |&atom: &usize| search.neighbors_of(atom, &work);
    let of_atoms: Vec<Vec<Pair>> = side_by_side(|| atoms.par_iter().map(neighbors).collect::<Result<_, _>>())?;
    let mut pairs: Vec<Pair> = of_atoms.into_iter().flatten().collect();
    let others = pairs.iter().filter(|([_, second], _)| !matters[*second as usize]).copied().map(opposite);
    let others: Vec<Pair> = others.collect();
    pairs.extend(others);
    if !options.full_list {
        pairs.retain(|&([first, second], shift)| is_listed(false, first, second, shift));
    }
    pairs.sort_unstable();
    let (atoms, shifts) = pairs.into_iter().unzip();
    Ok(PairList { atoms, shifts })
}

/// Does parallel work on threads of its own, as many as kernels have. Batches are prepared on another thread while those of the kernels wait for one: with a single thread, a search
/// that needed it would wait for ever.
pub(crate) fn side_by_side<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    static THREADS: OnceLock<Option<ThreadPool>> = OnceLock::new();
    let threads = THREADS.get_or_init(|| {
        let name = |number| format!("neighbors {number}");
        ThreadPoolBuilder::new().num_threads(rayon::current_num_threads()).thread_name(name).build().ok()
    });
    match threads {
        Some(threads) => threads.install(work),
        None => work(),
    }
}

pub(crate) fn too_many(cutoff: f64) -> DataError {
    DataError::new(format!(
        "neighbour lists with the cutoff {cutoff} have too many pairs, more than {MOST_PAIRS} in one batch"
    ))
    .with_hint(
        "check that `length_unit`, the cell and the cutoff of the architecture fit together, or make batches smaller",
    )
}

/// What all atoms of a search have cost so far. It is added up while pairs are found: a cell that is far too small would fill the memory before
/// the end, and atoms in one heap, with one far away, would all be compared with each other.
struct Work<'a> {
    most_pairs: usize,
    pairs: AtomicUsize,
    looked_at: AtomicU64,
    stopped: &'a AtomicBool,
}

impl Work<'_> {
    fn add(&self, pairs: usize, looked_at: u64, cutoff: f64) -> Result<(), DataError> {
        if self.stopped.load(Ordering::Relaxed) {
            return Err(DataError::new("nobody waits for this neighbour list any more"));
        }
        if self.pairs.fetch_add(pairs, Ordering::Relaxed) + pairs > self.most_pairs {
            return Err(too_many(cutoff));
        }
        if self.looked_at.fetch_add(looked_at, Ordering::Relaxed) + looked_at > MOST_LOOKED_AT {
            return Err(DataError::new(format!(
                "a neighbour list with the cutoff {cutoff} takes too long: more than {MOST_LOOKED_AT} pairs of atoms would have to be compared"
            ))
            .with_hint("check the structure for single atoms that lie far away from all others, and for a cell that is far from a right-angled one"));
        }
        Ok(())
    }
}

type Vector = [f64; 3];

/// The two atoms, and the shift of the second.
pub(crate) type Pair = ([u32; 2], [i32; 3]);

/// The same pair, seen from its other atom.
fn opposite(([first, second], shift): Pair) -> Pair {
    ([second, first], shift.map(|shift| -shift))
}

/// Whether a list has a pair in this direction; a half list has it in one of its two.
fn is_listed(full_list: bool, first: u32, second: u32, shift: [i32; 3]) -> bool {
    if first == second {
        return if full_list { shift != [0; 3] } else { shift > [0; 3] };
    }
    full_list || first < second
}

/// From the one position to the other's image.
fn vector(first: Vector, second: Vector, shift: [i32; 3], cell: &[Vector; 3]) -> Vector {
    std::array::from_fn(|axis| {
        let offset: f64 = (0..3).map(|k| f64::from(shift[k]) * cell[k][axis]).sum();
        second[axis] - first[axis] + offset
    })
}

fn dot(a: Vector, b: Vector) -> f64 {
    a[0] * b[0] + a[1] * b[1] + a[2] * b[2]
}

fn cross(a: Vector, b: Vector) -> Vector {
    [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]]
}

fn scaled(a: Vector, factor: f64) -> Vector {
    a.map(|value| value * factor)
}

fn norm(a: Vector) -> f64 {
    dot(a, a).sqrt()
}

struct Search<'a> {
    geometry: Geometry<'a>,
    options: NeighborListOptions,
    /// Rows are cell vectors.
    cell: [Vector; 3],
    /// The number of bins along each direction.
    bins: [usize; 3],
    /// How many bins away a neighbour can be.
    reach: [i64; 3],
    /// For each atom: its bin and how many cell vectors were taken off to bring it into the cell.
    places: Vec<([i64; 3], [i32; 3])>,
    /// The atoms of bin `b` are `atoms[starts[b] .. starts[b + 1]]`, in ascending order.
    starts: Vec<u32>,
    atoms: Vec<u32>,
}

impl<'a> Search<'a> {
    fn new(geometry: Geometry<'a>, options: &NeighborListOptions, count: usize) -> Result<Self, DataError> {
        let frame = spanning_frame(geometry)?;
        let Frame { cell, heights, low, width, .. } = frame;
        let volume = dot(cell[0], cross(cell[1], cell[2]));
        // Averaged over where atoms are, this is the number of pairs exactly; so a hopeless search need not be started.
        let sphere = 4.0 / 3.0 * std::f64::consts::PI * options.cutoff.powi(3);
        let expected = (count as f64).powi(2) * sphere / volume.abs();
        if geometry.periodic == [true; 3] && expected > 2.0 * MOST_PAIRS as f64 {
            return Err(too_many(options.cutoff));
        }
        let extents: Vector = std::array::from_fn(|k| heights[k] * width[k]);
        let bins = bins_along(extents, options.cutoff, count);
        let reach = [0, 1, 2].map(|k| {
            let bin_height = extents[k] / bins[k] as f64;
            let bins_away = (options.cutoff / bin_height).ceil();
            if geometry.periodic[k] { bins_away } else { bins_away.min(bins[k] as f64 - 1.0) }
        });
        if reach.iter().map(|reach| 2.0 * reach + 1.0).product::<f64>() > MOST_BINS_PER_ATOM {
            return Err(too_many(options.cutoff));
        }
        let bin_of = |place: &Vector| -> [i64; 3] {
            std::array::from_fn(|k| {
                let bin = ((place[k] - low[k]) / width[k] * bins[k] as f64).floor();
                (bin as i64).clamp(0, bins[k] as i64 - 1)
            })
        };
        let places: Vec<([i64; 3], [i32; 3])> =
            frame.places()?.iter().map(|(place, taken)| (bin_of(place), *taken)).collect();
        let index = |bin: [i64; 3]| (bin[0] as usize * bins[1] + bin[1] as usize) * bins[2] + bin[2] as usize;
        let mut starts = vec![0_u32; bins.iter().product::<usize>() + 1];
        for (bin, _) in &places {
            starts[index(*bin) + 1] += 1;
        }
        for bin in 1..starts.len() {
            starts[bin] += starts[bin - 1];
        }
        let mut next = starts.clone();
        let mut atoms = vec![0; count];
        for (atom, (bin, _)) in places.iter().enumerate() {
            let slot = &mut next[index(*bin)];
            atoms[*slot as usize] = atom as u32;
            *slot += 1;
        }
        let reach = reach.map(|reach| reach as i64);
        Ok(Self { geometry, options: *options, cell, bins, reach, places, starts, atoms })
    }

    fn position(&self, atom: usize) -> Vector {
        let r = &self.geometry.positions[3 * atom..3 * atom + 3];
        [r[0], r[1], r[2]]
    }

    /// The pairs of one atom, sorted.
    fn neighbors_of(&self, first: usize, work: &Work<'_>) -> Result<Vec<Pair>, DataError> {
        let mut pairs = Vec::new();
        let (mut counted, mut looked_at) = (0, 0);
        let (bin, taken) = self.places[first];
        for x in self.along(0, bin[0]) {
            for y in self.along(1, bin[1]) {
                for z in self.along(2, bin[2]) {
                    looked_at += self.visit(first, taken, [x, y, z], &mut pairs);
                    if looked_at >= LOOKED_AT_ONCE {
                        work.add(pairs.len() - counted, looked_at, self.options.cutoff)?;
                        (counted, looked_at) = (pairs.len(), 0);
                    }
                }
            }
        }
        work.add(pairs.len() - counted, looked_at, self.options.cutoff)?;
        pairs.sort_unstable();
        Ok(pairs)
    }

    /// The bins along one direction that may hold neighbours, each with the number of cells it lies away.
    fn along(&self, k: usize, bin: i64) -> impl Iterator<Item = (usize, i32)> {
        let (count, periodic) = (self.bins[k] as i64, self.geometry.periodic[k]);
        (bin - self.reach[k]..=bin + self.reach[k])
            .filter(move |place| periodic || (0..count).contains(place))
            .map(move |place| (place.rem_euclid(count) as usize, place.div_euclid(count) as i32))
    }

    /// Adds the pairs with atoms of one bin, and says how much there was to look at.
    fn visit(&self, first: usize, taken: [i32; 3], around: [(usize, i32); 3], found: &mut Vec<Pair>) -> u64 {
        let bin = (around[0].0 * self.bins[1] + around[1].0) * self.bins[2] + around[2].0;
        let origin = self.position(first);
        let atoms = &self.atoms[self.starts[bin] as usize..self.starts[bin + 1] as usize];
        for &second in atoms {
            let theirs = self.places[second as usize].1;
            let shift: [i32; 3] = std::array::from_fn(|k| around[k].1 - theirs[k] + taken[k]);
            if !is_listed(self.options.full_list, first as u32, second, shift) {
                continue;
            }
            let vector = vector(origin, self.position(second as usize), shift, &self.cell);
            if self.options.includes(norm(vector)) {
                found.push(([first as u32, second], shift));
            }
        }
        atoms.len() as u64 + 1
    }
}

/// The number of bins along each direction: as many as the cutoff allows, but for all together no more than a few for each atom. The
/// direction with most gives first, so that a long thin system keeps its bins along its length.
fn bins_along(extents: Vector, cutoff: f64, count: usize) -> [usize; 3] {
    let most = (BINS_PER_ATOM * count as f64).max(1.0);
    let mut bins = extents.map(|extent| (extent / (cutoff * (1.0 + MARGIN))).floor().clamp(1.0, most));
    while bins.iter().product::<f64>() > most {
        let longest = (0..3).max_by(|&a, &b| bins[a].total_cmp(&bins[b])).unwrap_or(0);
        bins[longest] = (bins[longest] / 2.0).floor().max(1.0);
    }
    bins.map(|bins| bins as usize)
}

/// The volume of a cell, rows are its vectors; 0 if they lie in one plane.
pub fn volume(cell: &[f64; 9]) -> f64 {
    let [a, b, c] = [0, 1, 2].map(|row: usize| [0, 1, 2].map(|axis| cell[3 * row + axis]));
    dot(a, cross(b, c)).abs()
}

/// Where atoms are, in units of the cell.
pub(crate) struct Frame {
    /// The cell with the directions that are not periodic replaced, see [`spanning_cell`].
    pub(crate) cell: [Vector; 3],
    /// The distance between the faces that each direction crosses.
    pub(crate) heights: Vector,
    /// Where atoms begin along each direction, and how far they reach: 0 and 1 where it is periodic.
    pub(crate) low: Vector,
    pub(crate) width: Vector,
    /// The coordinates of each atom.
    fractional: Vec<Vector>,
    periodic: [bool; 3],
}

impl Frame {
    /// For each atom its coordinates in the first cell, and how many cell vectors were taken off to bring it there.
    ///
    /// # Errors
    /// An atom is further from the first cell than can be counted.
    pub(crate) fn places(self) -> Result<Vec<(Vector, [i32; 3])>, DataError> {
        let periodic = self.periodic;
        let wrapped = |mut place: Vector| {
            let mut taken = [0; 3];
            for k in (0..3).filter(|&k| periodic[k]) {
                let whole = place[k].floor();
                if whole.abs() > f64::from(i32::MAX / 4) {
                    return Err(DataError::new("an atom is further from its cell than can be counted"));
                }
                taken[k] = whole as i32;
                place[k] -= whole;
            }
            Ok((place, taken))
        };
        self.fractional.into_iter().map(wrapped).collect()
    }
}

/// Where atoms are, in units of the cell.
pub(crate) fn spanning_frame(geometry: Geometry<'_>) -> Result<Frame, DataError> {
    let cell = spanning_cell(geometry)?;
    let volume = dot(cell[0], cross(cell[1], cell[2]));
    // Rows of the inverse, transposed: the fractional coordinate along k is r . reciprocal[k].
    let reciprocal = [0, 1, 2].map(|k: usize| scaled(cross(cell[(k + 1) % 3], cell[(k + 2) % 3]), 1.0 / volume));
    let heights = reciprocal.map(|vector| 1.0 / norm(vector));
    let fractional: Vec<Vector> =
        geometry.positions.chunks_exact(3).map(|r| reciprocal.map(|vector| dot([r[0], r[1], r[2]], vector))).collect();
    if fractional.iter().flatten().any(|value| !value.is_finite()) {
        return Err(DataError::new("positions and cell vectors are too large to be compared"));
    }
    let mut low = [0.0; 3];
    let mut width = [1.0; 3];
    for k in (0..3).filter(|&k| !geometry.periodic[k]) {
        low[k] = fractional.iter().map(|s| s[k]).fold(f64::INFINITY, f64::min);
        let high = fractional.iter().map(|s| s[k]).fold(f64::NEG_INFINITY, f64::max);
        width[k] = (high - low[k]).max(f64::MIN_POSITIVE);
    }
    Ok(Frame { cell, heights, low, width, fractional, periodic: geometry.periodic })
}

/// The cell with the directions that are not periodic replaced by unit vectors at right angles to the others.
pub(crate) fn spanning_cell(geometry: Geometry<'_>) -> Result<[Vector; 3], DataError> {
    let rows: [Vector; 3] = std::array::from_fn(|k| std::array::from_fn(|axis| geometry.cell[3 * k + axis]));
    if !rows.iter().flatten().all(|value| value.is_finite()) {
        return Err(DataError::new("a cell vector is not finite"));
    }
    let mut cell = rows;
    let periodic: Vec<usize> = (0..3).filter(|&k| geometry.periodic[k]).collect();
    let free: Vec<usize> = (0..3).filter(|&k| !geometry.periodic[k]).collect();
    match (periodic.as_slice(), free.as_slice()) {
        ([], _) => cell = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]],
        ([one], [first, second]) => {
            let along = scaled(rows[*one], 1.0 / norm(rows[*one]));
            // The axis that is least parallel to it gives the best-conditioned frame.
            let least = (0..3).min_by(|&a, &b| along[a].abs().total_cmp(&along[b].abs())).unwrap_or(0);
            let mut axis = [0.0; 3];
            axis[least] = 1.0;
            let across = cross(along, axis);
            let across = scaled(across, 1.0 / norm(across));
            cell[*first] = across;
            cell[*second] = cross(along, across);
        }
        ([one, two], [third]) => {
            let normal = cross(rows[*one], rows[*two]);
            cell[*third] = scaled(normal, 1.0 / norm(normal));
        }
        _ => {}
    }
    let volume = dot(cell[0], cross(cell[1], cell[2])).abs();
    let edges: f64 = cell.iter().map(|&row| norm(row)).product();
    // Flatter than this, the rounding of fractional coordinates would lose atoms.
    if volume.is_nan() || volume <= 1e-10 * edges {
        return Err(DataError::new(
            "the cell has no volume: the vectors of its periodic directions are zero or lie in one plane",
        )
        .with_hint("check `Lattice` and `pbc` of the structure"));
    }
    Ok(cell)
}

/// The first of `count` numbers for which `before` does not hold, as [`slice::partition_point`] finds it.
fn partition_point(count: usize, before: impl Fn(usize) -> bool) -> usize {
    let (mut low, mut high) = (0, count);
    while low < high {
        let middle = low + (high - low) / 2;
        if before(middle) { low = middle + 1 } else { high = middle }
    }
    low
}

/// The pairs of all systems of a batch, atoms numbered through the batch.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Pairs {
    /// The first atom of each pair.
    pub first: Vec<i64>,
    /// The second atom.
    pub second: Vec<i64>,
    /// Three numbers for each pair.
    pub shifts: Vec<i64>,
    /// The system of each pair.
    pub systems: Vec<i64>,
}

impl Pairs {
    /// For each pair `(i, j, shift)` the place of `(j, i, -shift)`; none if the list lacks one, as a half list does. Pairs are sorted.
    pub fn reverse(&self) -> Option<Vec<i64>> {
        let pair = |place: usize| (self.first[place], self.second[place], &self.shifts[3 * place..3 * place + 3]);
        let atoms = self.first.last().map_or(0, |&last| last as usize + 1);
        let mut starts = vec![0; atoms + 1];
        self.first.iter().for_each(|&atom| starts[atom as usize + 1] += 1);
        (0..atoms).for_each(|atom| starts[atom + 1] += starts[atom]);
        (0..self.first.len())
            .map(|place| {
                let (first, second, shift) = pair(place);
                let shift = [-shift[0], -shift[1], -shift[2]];
                let back = (second, first, &shift[..]);
                let (low, high) = (*starts.get(second as usize)?, *starts.get(second as usize + 1)?);
                let found = low + partition_point(high - low, |k| pair(low + k) < back);
                (found < high && pair(found) == back).then_some(found as i64)
            })
            .collect()
    }

    /// The lists of several structures with these numbers of atoms, one after the other.
    pub(crate) fn concatenated(lists: &[Arc<PairList>], atom_counts: &[u32]) -> Self {
        let total = lists.iter().map(|list| list.atoms.len()).sum();
        let mut pairs = Self {
            first: Vec::with_capacity(total),
            second: Vec::with_capacity(total),
            shifts: Vec::with_capacity(3 * total),
            systems: Vec::with_capacity(total),
        };
        let mut offset = 0;
        for (system, (list, &atoms)) in lists.iter().zip(atom_counts).enumerate() {
            pairs.first.extend(list.atoms.iter().map(|pair| i64::from(pair[0]) + offset));
            pairs.second.extend(list.atoms.iter().map(|pair| i64::from(pair[1]) + offset));
            pairs.shifts.extend(list.shifts.iter().flatten().map(|&shift| i64::from(shift)));
            pairs.systems.resize(pairs.first.len(), system as i64);
            offset += i64::from(atoms);
        }
        pairs
    }
}
