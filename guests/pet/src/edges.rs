//! What PET sees of a batch: the edges from each atom to its neighbours.

use std::f64::consts::PI;

use kilnbox_sdk::Result;
use kilnbox_sdk::data::{Neighbors, Systems};
use kilnbox_sdk::info::NeighborListOptions;
use kilnbox_sdk::tensor::Tensor;

use crate::hypers::{CutoffFunction, Hypers};

/// Added to squared distances, so that their roots have derivatives everywhere.
const SMALLEST_SQUARE: f64 = 1e-15;
/// How close the bump function comes to its ends, where the cotangent in it is infinite.
const BUMP_MARGIN: f64 = 1e-6;
/// Steps that look for an atom's own radius.
const SOLVER_STEPS: usize = 10;
/// The least derivative of the number of neighbours that a step divides by.
const SMALLEST_SLOPE: f64 = 1e-6;
/// An atom's own radius is no smaller than this part of the cutoff.
const SMALLEST_RADIUS: f64 = 1.0 / 16.0;

/// The directed edges of a batch: both ways, sorted by their first atom.
pub struct Edges {
    /// The first atom, int64 `[edges]`.
    pub centers: Tensor,
    /// The species of the second atom, int64 `[edges]`.
    pub neighbor_species: Tensor,
    /// Where the edge in the other direction is, int64 `[edges]`.
    pub reverse: Tensor,
    /// Vector and distance, `[edges, 4]`.
    pub geometry: Tensor,
    /// How much the neighbour counts, from 1 to 0 at the cutoff; `[edges]`.
    pub cutoff: Tensor,
}

/// The neighbour list that edges are made of.
pub fn neighbor_list(hypers: &Hypers) -> NeighborListOptions {
    NeighborListOptions { cutoff: hypers.cutoff, full_list: true, strict: true }
}

impl Edges {
    /// The edges of `systems`, whose atoms are of the `species`, int64 `[atoms]`.
    ///
    /// # Errors
    /// When the host cannot make the neighbour list.
    pub fn new(systems: Systems<'_>, species: &Tensor, hypers: &Hypers) -> Result<Edges> {
        let atoms = species.size(0);
        let list = neighbor_list(hypers);
        let mut pairs = systems.neighbors(list)?;
        let mut reverse = systems.reverse_pairs(list)?;
        let mut squares = (&pairs.vectors * &pairs.vectors).sum_keeping(&[1]);
        let mut distances = squares.sqrt().reshape(&[squares.size(0)]) + SMALLEST_SQUARE;
        let mut radius = Radius::Fixed(hypers.cutoff);
        if let Some(number) = hypers.num_neighbors_adaptive {
            let own = adaptive_radii(&distances, &pairs.first, atoms, number, hypers);
            // Both directions of an edge must have the same radius, and so be kept or left out together.
            let shared = (own.select(0, &pairs.first) + own.select(0, &pairs.second)) * 0.5;
            let is_kept = distances.less_equal(&shared).to_vec_bool();
            let kept: Vec<i64> = (0..is_kept.len() as i64).filter(|&edge| is_kept[edge as usize]).collect();
            let kept = Tensor::from_vec_i64(&[kept.len()], kept);
            let places = is_kept.iter().scan(0, |next, &kept| Some(std::mem::replace(next, *next + i64::from(kept))));
            reverse = Tensor::from_vec_i64(&[is_kept.len()], places.collect()).select(0, &reverse.select(0, &kept));
            pairs = Neighbors {
                first: pairs.first.select(0, &kept),
                second: pairs.second.select(0, &kept),
                shifts: pairs.shifts.select(0, &kept),
                vectors: pairs.vectors.select(0, &kept),
            };
            squares = squares.select(0, &kept);
            distances = distances.select(0, &kept);
            radius = Radius::OfEdges(shared.select(0, &kept));
        }
        let cutoff = match hypers.cutoff_function {
            CutoffFunction::Bump => bump(&distances, &radius, hypers.cutoff_width),
            CutoffFunction::Cosine => cosine(&distances, &radius, hypers.cutoff_width),
        };
        let lengths = (squares + SMALLEST_SQUARE).sqrt();
        Ok(Edges {
            neighbor_species: species.select(0, &pairs.second),
            reverse,
            geometry: Tensor::concatenate(&[&pairs.vectors, &lengths], 1),
            centers: pairs.first,
            cutoff,
        })
    }
}

impl Edges {
    /// Sums over the edges of each atom, with the cut-off: `[edges, features]` to `[atoms, features]`.
    pub fn sums(&self, messages: &Tensor, atoms: usize) -> Tensor {
        (messages * self.cutoff.reshape(&[self.cutoff.size(0), 1])).index_add(0, &self.centers, atoms)
    }
}

/// Where neighbours end.
enum Radius {
    /// At the same distance for all edges.
    Fixed(f64),
    /// `[edges]`.
    OfEdges(Tensor),
}

/// `(distance - (radius - width)) / width`: 0 where a neighbour begins to fade out, 1 where it has.
fn faded(distances: &Tensor, radius: &Radius, width: f64) -> Tensor {
    match radius {
        Radius::Fixed(radius) => (distances - (radius - width)) / width,
        Radius::OfEdges(radius) => (distances - radius + width) / width,
    }
}

/// `(1 + tanh(cot(pi x))) / 2`.
fn bump(distances: &Tensor, radius: &Radius, width: f64) -> Tensor {
    let angle = faded(distances, radius, width).clamp(BUMP_MARGIN, 1.0 - BUMP_MARGIN) * PI;
    ((angle.cos() / angle.sin()).tanh() + 1.0) * 0.5
}

/// `(1 + cos(pi x)) / 2`.
fn cosine(distances: &Tensor, radius: &Radius, width: f64) -> Tensor {
    ((faded(distances, radius, width).clamp(0.0, 1.0) * PI).cos() + 1.0) * 0.5
}

/// For each atom the radius `r` at which `sum over j of bump(d_ij; r) + number (r / cutoff)^3 = number`, `[atoms]`. The sum counts the neighbours; the other
/// term, which is all of it at the cutoff where there are none, makes the solution unique.
fn adaptive_radii(distances: &Tensor, centers: &Tensor, atoms: usize, number: f64, hypers: &Hypers) -> Tensor {
    let (cutoff, width) = (hypers.cutoff, hypers.cutoff_width_adaptive);
    let dtype = distances.dtype();
    let (radii, slopes) = solve_radii(&distances.to_vec_f64(), &centers.to_vec_i64(), atoms, number, cutoff, width);
    let uniform: Vec<f64> = radii.iter().map(|radius| number * ((radius / cutoff).powi(3) - 1.0)).collect();
    let inverse_slopes: Vec<f64> = slopes.iter().map(|slope| 1.0 / slope.max(SMALLEST_SLOPE)).collect();
    let [radii, uniform, inverse_slopes] =
        [radii, uniform, inverse_slopes].map(|values| Tensor::from_vec_f64(&[atoms], values, dtype));
    // The solution does not move when this step is taken, and its derivatives are those of the solution, by the theorem of implicit functions.
    let counted = bump(distances, &Radius::OfEdges(radii.select(0, centers)), width).index_add(0, centers, atoms);
    (radii - (counted + uniform) * inverse_slopes).clamp(cutoff * SMALLEST_RADIUS, cutoff)
}

/// The radii, and the derivatives of the equation's left side there: Newton's steps, and halving where one would leave the bracket.
fn solve_radii(
    distances: &[f64],
    centers: &[i64],
    atoms: usize,
    number: f64,
    cutoff: f64,
    width: f64,
) -> (Vec<f64>, Vec<f64>) {
    let mut rest = centers.iter().zip(distances).peekable();
    (0..atoms as i64)
        .map(|atom| {
            let mut own = Vec::new();
            while let Some((_, &distance)) = rest.next_if(|&(&center, _)| center == atom) {
                own.push(distance);
            }
            let excess = |radius: f64| excess_and_slope(&own, radius, number, cutoff, width);
            let (mut low, mut high, mut radius) = (0.0, cutoff, cutoff / 2.0);
            for _ in 0..SOLVER_STEPS {
                let (value, slope) = excess(radius);
                if value <= 0.0 {
                    low = radius
                } else {
                    high = radius
                }
                let next = radius - value / slope.max(SMALLEST_SLOPE);
                radius = if (low..=high).contains(&next) { next } else { (low + high) / 2.0 };
            }
            (radius, excess(radius).1)
        })
        .unzip()
}

/// `sum over j of bump(d_j; r) + number (r / cutoff)^3 - number`, and its derivative by `r`.
fn excess_and_slope(distances: &[f64], radius: f64, number: f64, cutoff: f64, width: f64) -> (f64, f64) {
    let x = radius / cutoff;
    let start = (number * (x.powi(3) - 1.0), 3.0 * number * x * x / cutoff);
    distances.iter().fold(start, |(value, slope), distance| {
        let faded = (distance - (radius - width)) / width;
        if faded <= 0.0 {
            return (value + 1.0, slope);
        }
        if faded >= 1.0 {
            return (value, slope);
        }
        let (sine, cosine) = (faded.clamp(BUMP_MARGIN, 1.0 - BUMP_MARGIN) * PI).sin_cos();
        let tangent = (cosine / sine).tanh();
        let bend = 0.5 * PI / width * (1.0 - tangent * tangent) / (sine * sine);
        (value + 0.5 * (1.0 + tangent), slope + bend)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_atom_with_few_neighbours_sees_as_far_as_the_cutoff_and_one_with_many_less_far() {
        let (number, cutoff, width) = (4.0, 5.0, 1.0);
        let many: Vec<f64> = (0..200).map(|k| 0.5 + 0.0225 * f64::from(k)).collect();
        let distances: Vec<f64> = many.iter().copied().chain([1.0]).collect();
        let centers: Vec<i64> = std::iter::repeat_n(1, many.len()).chain([2]).collect();
        let (radii, slopes) = solve_radii(&distances, &centers, 3, number, cutoff, width);
        for ((own, expected), (&radius, &slope)) in
            [(&[][..], 5.0..=5.0), (&many, 0.5..=1.5), (&[1.0], 4.0..=4.99)].into_iter().zip(radii.iter().zip(&slopes))
        {
            let (value, found) = excess_and_slope(own, radius, number, cutoff, width);
            // The last step, which the network takes so that it can be differentiated.
            let last = (radius - value / slope).clamp(cutoff * SMALLEST_RADIUS, cutoff);
            let (value, _) = excess_and_slope(own, last, number, cutoff, width);
            // Once they are close, steps double the digits.
            assert!(value.abs() < 1e-9 && expected.contains(&last), "{last}: {value}");
            let h = 1e-6;
            let excess = |radius: f64| excess_and_slope(own, radius, number, cutoff, width).0;
            let numeric = (excess(radius + h) - excess(radius - h)) / (2.0 * h);
            // The error of a central difference of a function whose third derivative is some 1e3.
            assert!((slope - numeric).abs() < 1e-6 * (1.0 + slope) && found == slope, "{slope} {numeric}");
        }
    }
}
