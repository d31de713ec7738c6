//! A large structure in parts: blocks of its atoms, each with the atoms around that can matter to it.
//!
//! Where a model says how far away an atom can matter, the energies of a block's atoms are those of a structure of its own that does not repeat: the block, and a shell of the
//! atoms within that range, images of others among them. So a structure of any size is evaluated in the memory of a block, at a cost for each atom that does not grow.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::batch::SystemsData;
use crate::dataset::StructureView;
use crate::neighbor_list::{Geometry, MOST_PAIRS, Pairs, neighbor_list_around, spanning_frame};
use crate::{DataError, NeighborListOptions};

/// How to cut.
#[derive(Clone, Debug)]
pub struct PartOptions {
    /// How far away an atom can matter to another, in the length unit of the structure.
    pub interaction_range: f64,
    /// The neighbour lists that the model uses.
    pub neighbor_lists: Vec<NeighborListOptions>,
    /// About how many atoms a block has.
    pub atoms_of_block: usize,
}

/// A block and its shell.
#[derive(Clone, Debug)]
pub struct Part {
    /// One system that does not repeat: the atoms of the block, then those of the shell, with the neighbour lists of the options. A list has the pairs that can matter to the block:
    /// those of which an atom is closer to the block than the interaction range less the cutoff.
    pub systems: SystemsData,
    /// Which atom of the structure each of its atoms is, or is an image of.
    pub atoms: Vec<u32>,
    /// How many atoms the block has.
    pub block: usize,
}

/// The parts of a structure, made one by one. Each atom is in the block of one of them.
#[derive(Debug)]
pub struct Parts<'a> {
    structure: StructureView<'a>,
    options: PartOptions,
    /// Rows span space.
    cell: [[f64; 3]; 3],
    /// The number of blocks along each direction.
    blocks: [usize; 3],
    /// The part of a cell vector, along each direction, that the interaction range crosses.
    reach: [f64; 3],
    /// For each atom its coordinates in units of the cell, within the first cell where it repeats, and how many cells were taken off.
    places: Vec<([f64; 3], [i32; 3])>,
    /// Where blocks begin along each direction, and how wide they are.
    low: [f64; 3],
    width: [f64; 3],
    /// The atoms of block `b` are `atoms[starts[b]..starts[b + 1]]`, in ascending order.
    starts: Vec<u32>,
    atoms: Vec<u32>,
    next: usize,
}

impl<'a> Parts<'a> {
    /// Cuts a structure.
    ///
    /// # Errors
    /// The structure is one that no neighbour list can be made for; the range is not a finite number of at least 0; the shell of a block would go around the cell more often than makes
    /// sense.
    pub fn new(structure: StructureView<'a>, options: PartOptions) -> Result<Self, DataError> {
        structure.check()?;
        let range = options.interaction_range;
        if !(range >= 0.0 && range.is_finite()) {
            return Err(DataError::new(format!("a structure cannot be cut for an interaction range of {range}")));
        }
        let StructureView { positions, cell, periodic, .. } = structure;
        let frame = spanning_frame(Geometry { positions, cell, periodic })?;
        let (cell, low, width) = (frame.cell, frame.low, frame.width);
        let extents: [f64; 3] = std::array::from_fn(|k| frame.heights[k] * width[k]);
        let blocks = blocks_along(extents, structure.types.len(), options.atoms_of_block);
        // A little more, so that rounding loses nobody.
        let reach: [f64; 3] = std::array::from_fn(|k| range * (1.0 + MARGIN) / frame.heights[k]);
        let around = (0..3).filter(|&k| periodic[k]).map(|k| 2.0 * reach[k] + 1.0).product::<f64>();
        if around > MOST_AROUND {
            return Err(DataError::new(format!(
                "a structure cannot be cut for an interaction range of {range}: the cell is far smaller"
            )));
        }
        let index = |block: [usize; 3]| (block[0] * blocks[1] + block[1]) * blocks[2] + block[2];
        let block_of = |place: &[f64; 3]| {
            let along = |k: usize| ((place[k] - low[k]) / width[k] * blocks[k] as f64).floor();
            index(std::array::from_fn(|k| (along(k) as i64).clamp(0, blocks[k] as i64 - 1) as usize))
        };
        let mut starts = vec![0_u32; blocks.iter().product::<usize>() + 1];
        let places = frame.places()?;
        places.iter().for_each(|(place, _)| starts[block_of(place) + 1] += 1);
        (1..starts.len()).for_each(|block| starts[block] += starts[block - 1]);
        let mut next = starts.clone();
        let mut atoms = vec![0; places.len()];
        for (atom, (place, _)) in places.iter().enumerate() {
            let slot = &mut next[block_of(place)];
            atoms[*slot as usize] = atom as u32;
            *slot += 1;
        }
        Ok(Self { structure, options, cell, blocks, reach, places, low, width, starts, atoms, next: 0 })
    }

    /// How many atoms the structure has.
    pub fn atoms(&self) -> usize {
        self.structure.types.len()
    }

    /// The next part, or nothing after the last. Blocks without atoms are left out.
    ///
    /// # Errors
    /// A neighbour list would have too many pairs.
    #[expect(clippy::should_implement_trait, reason = "an iterator of results would make `?` awkward for its callers")]
    pub fn next(&mut self) -> Result<Option<Part>, DataError> {
        let total = self.starts.len() - 1;
        while self.next < total && self.starts[self.next] == self.starts[self.next + 1] {
            self.next += 1;
        }
        if self.next == total {
            return Ok(None);
        }
        let number = self.next;
        self.next += 1;
        self.part(number).map(Some)
    }

    fn part(&self, number: usize) -> Result<Part, DataError> {
        let [_, ny, nz] = self.blocks;
        let block = [number / (ny * nz), number / nz % ny, number % nz];
        let edges: [[f64; 2]; 3] = std::array::from_fn(|k| {
            let at = |place: usize| self.low[k] + self.width[k] * place as f64 / self.blocks[k] as f64;
            [at(block[k]), at(block[k] + 1)]
        });
        let mut collected = Collected::default();
        for &atom in &self.atoms[self.starts[number] as usize..self.starts[number + 1] as usize] {
            self.collect(atom, [0; 3], &edges, &mut collected);
        }
        let count = collected.atoms.len();
        for x in self.along(0, &edges) {
            for y in self.along(1, &edges) {
                for z in self.along(2, &edges) {
                    let other = (x.0 * ny + y.0) * nz + z.0;
                    let shift = [x.1, y.1, z.1];
                    if other == number && shift == [0; 3] {
                        continue;
                    }
                    for &atom in &self.atoms[self.starts[other] as usize..self.starts[other + 1] as usize] {
                        self.collect(atom, shift, &edges, &mut collected);
                    }
                }
            }
        }
        let Collected { atoms, positions, away } = collected;
        let types: Vec<i32> = atoms.iter().map(|&atom| self.structure.types[atom as usize]).collect();
        let view = StructureView { types: &types, positions: &positions, cell: &[0.0; 9], periodic: [false; 3] };
        let mut systems = SystemsData::new(&[view])?;
        let geometry = Geometry { positions: &positions, cell: &[0.0; 9], periodic: [false; 3] };
        for options in &self.options.neighbor_lists {
            // In units of the range: how far from the block an atom's own neighbours still matter.
            let range = self.options.interaction_range;
            let matter = if range > 0.0 { (range - options.cutoff).max(0.0) / range } else { 0.0 };
            let inner: Vec<bool> =
                away.iter().enumerate().map(|(atom, &away)| atom < count || away <= matter && matter > 0.0).collect();
            let list = neighbor_list_around(geometry, options, &inner, MOST_PAIRS, &AtomicBool::new(false))?;
            let pairs = Pairs::concatenated(&[Arc::new(list)], &systems.atom_counts);
            systems.set_neighbors(*options, Arc::new(pairs));
        }
        Ok(Part { systems, atoms, block: count })
    }

    /// The blocks along one direction that may hold atoms of the shell, each with the number of cells that it lies away.
    fn along(&self, k: usize, edges: &[[f64; 2]; 3]) -> impl Iterator<Item = (usize, i32)> {
        let (count, periodic) = (self.blocks[k] as i64, self.structure.periodic[k]);
        let place = |at: f64| ((at - self.low[k]) / self.width[k] * count as f64).floor();
        let (from, to) = (place(edges[k][0] - self.reach[k]) as i64, place(edges[k][1] + self.reach[k]) as i64);
        let (from, to) = if periodic { (from, to) } else { (from.max(0), to.min(count - 1)) };
        (from..=to).map(move |place| (place.rem_euclid(count) as usize, place.div_euclid(count) as i32))
    }

    /// Takes an atom, or its image so many cells away, if it is in reach of the block.
    fn collect(&self, atom: u32, shift: [i32; 3], edges: &[[f64; 2]; 3], collected: &mut Collected) {
        let (place, taken) = self.places[atom as usize];
        let mut away = 0.0_f64;
        for k in 0..3 {
            let at = place[k] + f64::from(shift[k]);
            let outside = (edges[k][0] - at).max(at - edges[k][1]).max(0.0);
            if outside > self.reach[k] {
                return;
            }
            if outside > 0.0 {
                away = away.max(outside / self.reach[k]);
            }
        }
        collected.atoms.push(atom);
        collected.away.push(away);
        collected.positions.extend((0..3).map(|axis| {
            let offset: f64 = (0..3).map(|k| f64::from(shift[k] - taken[k]) * self.cell[k][axis]).sum();
            self.structure.positions[3 * atom as usize + axis] + offset
        }));
    }
}

/// Rounding of coordinates is far below this part of them.
const MARGIN: f64 = 1e-6;
/// The most cells that a shell may take up: a cell that is this much smaller than the range is a mistake.
const MOST_AROUND: f64 = 1e3;

/// The atoms of a part as they are found.
#[derive(Default)]
struct Collected {
    atoms: Vec<u32>,
    positions: Vec<f64>,
    /// How far each lies from the block along the direction where it is furthest, in units of the range.
    away: Vec<f64>,
}

/// The number of blocks along each direction, so that they have about so many atoms and edges as equal as can be.
fn blocks_along(extents: [f64; 3], atoms: usize, atoms_of_block: usize) -> [usize; 3] {
    let wanted = atoms.div_ceil(atoms_of_block.max(1));
    let mut blocks = [1_usize; 3];
    while blocks.iter().product::<usize>() < wanted {
        let edge = |k: &usize| extents[*k] / blocks[*k] as f64;
        let longest = (0..3).max_by(|a, b| edge(a).total_cmp(&edge(b))).unwrap_or(0);
        blocks[longest] += 1;
    }
    blocks
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A gas of atoms at random in a cell; the numbers are those of a generator of Lehmer's kind.
    fn gas(atoms: usize, cell: [f64; 9]) -> (Vec<i32>, Vec<f64>) {
        let mut state = 1_u64;
        let mut random = || {
            state = state.wrapping_mul(48_271) % 2_147_483_647;
            state as f64 / 2_147_483_647.0
        };
        let mut positions = Vec::new();
        for _ in 0..atoms {
            // Some are outside of the cell, as simulations leave them.
            let place = [random() * 1.4 - 0.2, random(), random() * 1.2];
            positions.extend((0..3).map(|axis| (0..3).map(|k| place[k] * cell[3 * k + axis]).sum::<f64>()));
        }
        ((0..atoms).map(|atom| 1 + (atom % 3) as i32).collect(), positions)
    }

    #[test]
    fn each_atom_is_in_one_block_with_all_its_neighbours() {
        let cell = [12.0, 0.0, 0.0, 2.0, 9.0, 0.0, -1.0, 1.5, 4.0];
        let (types, positions) = gas(300, cell);
        for periodic in [[true; 3], [true, true, false], [false, true, false], [false; 3]] {
            for (full_list, range) in [(true, 2.5), (false, 2.5), (true, 5.0)] {
                let structure = StructureView { types: &types, positions: &positions, cell: &cell, periodic };
                let list = NeighborListOptions { cutoff: 2.5, full_list, strict: true };
                let options = PartOptions { interaction_range: range, neighbor_lists: vec![list], atoms_of_block: 40 };
                let whole = SystemsData::new(&[structure]).and_then(|systems| systems.neighbors(&list)).unwrap();
                let mut parts = Parts::new(structure, options).unwrap();
                let (mut seen, mut pairs) = (vec![0; 300], 0);
                while let Some(part) = parts.next().unwrap() {
                    part.atoms[..part.block].iter().for_each(|&atom| seen[atom as usize] += 1);
                    let found = part.systems.neighbors(&list).unwrap();
                    // A pair of a half list belongs to the block of its first atom and counts half for each of both otherwise.
                    let in_block = |atom: i64| (atom as usize) < part.block;
                    let halves = |(&first, &second): (&i64, &i64)| {
                        if full_list {
                            2 * usize::from(in_block(first))
                        } else {
                            usize::from(in_block(first)) + usize::from(in_block(second))
                        }
                    };
                    pairs += found.first.iter().zip(&found.second).map(halves).sum::<usize>();
                    assert!(!full_list || found.reverse().is_some(), "a full list lacks a direction");
                }
                assert!(seen.iter().all(|&seen| seen == 1), "{periodic:?}");
                assert_eq!(pairs, 2 * whole.first.len(), "{periodic:?} {full_list} {range}");
            }
        }
    }

    #[test]
    fn atoms_in_a_plane_are_cut_as_well() {
        let positions: Vec<f64> = (0..100).flat_map(|atom| [f64::from(atom % 10), f64::from(atom / 10), 5.0]).collect();
        let structure =
            StructureView { types: &[1; 100], positions: &positions, cell: &[0.0; 9], periodic: [false; 3] };
        let list = NeighborListOptions { cutoff: 1.5, full_list: true, strict: true };
        let options = PartOptions { interaction_range: 1.5, neighbor_lists: vec![list], atoms_of_block: 20 };
        let mut parts = Parts::new(structure, options).unwrap();
        let (mut atoms, mut count) = (0, 0);
        while let Some(part) = parts.next().unwrap() {
            (atoms, count) = (atoms + part.block, count + 1);
        }
        assert_eq!((atoms, count), (100, 6));
    }

    #[test]
    fn what_cannot_be_cut_is_an_error() {
        let structure = StructureView {
            types: &[1],
            positions: &[0.0; 3],
            cell: &[1e-3, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0],
            periodic: [true; 3],
        };
        let cut = |interaction_range: f64| {
            let options = PartOptions { interaction_range, neighbor_lists: Vec::new(), atoms_of_block: 10 };
            Parts::new(structure, options).map(drop).map_err(|error| error.to_string())
        };
        for range in [f64::INFINITY, f64::NAN, -1.0] {
            assert!(cut(range).is_err_and(|message| message.contains("interaction range")), "{range}");
        }
        assert!(cut(100.0).is_err_and(|message| message.contains("far smaller")));
        assert_eq!(cut(0.0), Ok(()));
    }
}
