//! Random rotations and inversions of training data, for networks that do not turn with the system by construction.
//!
//! Rows are vectors, as everywhere: an orthogonal matrix takes a position `r` to `r . matrix`. A target turns with its system by its type: scalars stay,
//! each axis of a Cartesian tensor is contracted with the matrix, and spherical components with the Wigner matrix of their degree. So do explicit
//! gradients, on their own axes: minus the forces are vectors, and the gradient by the strain is a tensor of rank 2. (An energy that does not change when
//! its system turns has `E'(strain) = E(matrix . strain . matrix^T)`, and the gradient of this is `matrix^T . G . matrix`.)

use std::f64::consts::PI;

use crate::{
    Error, Result,
    data::{GradientBlock, Systems, TensorBlock, TensorMap, TransformedSystems},
    info::{DType, Irrep, Labels, TargetInfo, TargetType},
    random,
    tensor::Tensor,
};

/// The largest degree that the contract's solid harmonics have.
const LARGEST_DEGREE: usize = 16;

/// What is done to the training data before a network sees them. Validation data are never changed, and extra data stay as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Augmentation {
    /// Nothing: for networks whose values turn with the system by construction.
    None,
    /// In every step each system is turned at random, and inverted or not, with all its targets: the network learns the symmetry from the data.
    RotationsAndInversions,
}

impl Augmentation {
    /// What to do to a batch of so many systems; drawn from the run's [`random`] stream, if anything is.
    pub fn draw(self, systems: usize) -> Option<Transformations> {
        match self {
            Augmentation::None => None,
            Augmentation::RotationsAndInversions => Some(Transformations::random(systems)),
        }
    }
}

/// One orthogonal matrix for each system of a batch.
pub struct Transformations {
    /// `[systems, 3, 3]`, `float64`.
    matrices: Tensor,
    /// 1 or -1 for each system: whether it is turned only, or inverted as well.
    determinants: Vec<f64>,
}

impl Transformations {
    /// Independent rotations, each equally likely, times the inversion for half of the systems on average.
    pub fn random(systems: usize) -> Transformations {
        // The direction of a normal vector in four dimensions is uniform, and so is the rotation of this quaternion.
        let numbers = random::normal(&[systems, 5], 0.0, 1.0, DType::Float64).to_vec_f64();
        let matrix = |numbers: &[f64]| {
            let sign = if numbers[4] < 0.0 { -1.0 } else { 1.0 };
            rotation([numbers[0], numbers[1], numbers[2], numbers[3]]).map(|row| row.map(|entry| sign * entry))
        };
        Transformations::new(&numbers.chunks_exact(5).map(matrix).collect::<Vec<_>>())
    }

    /// These matrices, one for each system. They MUST be orthogonal.
    pub fn new(matrices: &[[[f64; 3]; 3]]) -> Transformations {
        let entries = matrices.iter().flatten().flatten().copied().collect();
        Transformations {
            matrices: Tensor::from_vec_f64(&[matrices.len(), 3, 3], entries, DType::Float64),
            determinants: matrices.iter().map(|matrix| determinant(matrix).signum()).collect(),
        }
    }

    /// The systems, turned.
    pub fn systems(&self, systems: Systems<'_>) -> TransformedSystems {
        systems.transform(&self.matrices.cast(systems.cells().dtype()))
    }

    /// A target of the systems, turned as its type says, with its gradients; `float64`. A row with a missing component is missing afterwards.
    ///
    /// # Errors
    /// When it is spherical with a degree above 16.
    pub fn target(&self, target: TensorMap, info: &TargetInfo) -> Result<TensorMap> {
        let irreps = match &info.target_type {
            TargetType::Spherical(irreps) => self.of_irreps(irreps)?,
            TargetType::Scalar | TargetType::Cartesian(_) => Vec::new(),
        };
        let turned = |(position, block)| self.block(block, irreps.get(position).unwrap_or(&self.matrices));
        Ok(TensorMap { blocks: target.blocks.into_iter().enumerate().map(turned).collect(), keys: target.keys })
    }

    /// A block each of whose components turns with `matrices`, `[systems, n, n]`.
    fn block(&self, block: TensorBlock, matrices: &Tensor) -> TensorBlock {
        let systems = column(&block.samples, "system");
        let gradient = |gradient: GradientBlock| {
            let own = gradient.components.len() - block.components.len();
            let systems = match column(&gradient.samples, "system") {
                systems if !systems.is_empty() => systems,
                _ => column(&gradient.samples, "sample").iter().map(|&sample| systems[sample as usize]).collect(),
            };
            let axes = 1..=gradient.components.len();
            let values = axes.fold(gradient.values, |values, axis| {
                contract_axis(&values, axis, if axis <= own { &self.matrices } else { matrices }, &systems)
            });
            GradientBlock { values, ..gradient }
        };
        let gradients = block.gradients.into_iter().map(gradient).collect();
        let axes = 1..=block.components.len();
        let values = axes.fold(block.values, |values, axis| contract_axis(&values, axis, matrices, &systems));
        TensorBlock { values, gradients, ..block }
    }

    /// How the components of each irrep turn, `[systems, 2 lambda + 1, 2 lambda + 1]`.
    ///
    /// The Wigner matrix `D` of a degree has `Y(u . matrix) = Y(u) . D` for every direction `u`. Harmonics are orthonormal, so that `D` is the integral
    /// of `Y(u)^T Y(u . matrix)` over the sphere, and a quadrature gives it to the last digits. Inversions are in the harmonics as they are in
    /// `matrix`; pseudo-tensors change their sign once more.
    fn of_irreps(&self, irreps: &[Irrep]) -> Result<Vec<Tensor>> {
        let degree = irreps.iter().map(|irrep| irrep.lambda as usize).max().unwrap_or(0);
        if degree > LARGEST_DEGREE {
            return Err(Error::UnsupportedTarget(format!(
                "a spherical target has the degree {degree}, and only those up to {LARGEST_DEGREE} can be turned at random"
            )));
        }
        let count = self.determinants.len();
        let (directions, weights) = sphere_quadrature(degree);
        let points = weights.len();
        let directions = Tensor::from_vec_f64(&[points, 3], directions.into_iter().flatten().collect(), DType::Float64);
        let weights = Tensor::from_vec_f64(&[points, 1], weights, DType::Float64);
        let here = directions.solid_harmonics(degree) * weights;
        let there = directions.reshape(&[1, points, 3]).matmul(&self.matrices);
        let there = there.reshape(&[count * points, 3]).solid_harmonics(degree);
        let determinants = Tensor::from_vec_f64(&[count, 1, 1], self.determinants.clone(), DType::Float64);
        let of_irrep = |irrep: &Irrep| {
            let degree = irrep.lambda as usize;
            let (first, size) = (degree * degree, 2 * degree + 1);
            let here = here.slice(1, first..first + size).transpose().reshape(&[1, size, points]);
            let there = there.slice(1, first..first + size).reshape(&[count, points, size]);
            let wigner = here.matmul(&there);
            if irrep.sigma < 0 { wigner * &determinants } else { wigner }
        };
        Ok(irreps.iter().map(of_irrep).collect())
    }
}

/// The numbers that labels have in one dimension; none if they do not have it.
fn column(labels: &Labels, name: &str) -> Vec<i64> {
    match labels.names.iter().position(|other| other == name) {
        Some(dimension) => labels.entries().map(|entry| i64::from(entry[dimension])).collect(),
        None => Vec::new(),
    }
}

/// `out[row, .., j, ..] = sum over i of values[row, .., i, ..] * matrices[systems[row], i, j]`, where `i` and `j` are on `axis`, which is not the first.
fn contract_axis(values: &Tensor, axis: usize, matrices: &Tensor, systems: &[i64]) -> Tensor {
    let mut order: Vec<usize> = (0..values.shape().len()).collect();
    let last = order.len() - 1;
    order.swap(axis, last);
    let exchanged = values.permute(&order);
    let shape = exchanged.shape();
    let vectors_per_row: usize = shape[1..last].iter().product();
    let systems: Vec<i64> = systems.iter().flat_map(|&system| std::iter::repeat_n(system, vectors_per_row)).collect();
    let rows = exchanged.reshape(&[systems.len(), shape[last]]);
    let turned = rows.contract_left(matrices, &Tensor::from_vec_i64(&[systems.len()], systems));
    turned.reshape(&shape).permute(&order)
}

/// The rotation of a quaternion of any length but 0.
fn rotation(quaternion: [f64; 4]) -> [[f64; 3]; 3] {
    let length = quaternion.iter().map(|part| part * part).sum::<f64>().sqrt();
    let [w, x, y, z] = quaternion.map(|part| part / length);
    [
        [1.0 - 2.0 * (y * y + z * z), 2.0 * (x * y - w * z), 2.0 * (x * z + w * y)],
        [2.0 * (x * y + w * z), 1.0 - 2.0 * (x * x + z * z), 2.0 * (y * z - w * x)],
        [2.0 * (x * z - w * y), 2.0 * (y * z + w * x), 1.0 - 2.0 * (x * x + y * y)],
    ]
}

fn determinant(matrix: &[[f64; 3]; 3]) -> f64 {
    let [a, b, c] = matrix;
    a[0] * (b[1] * c[2] - b[2] * c[1]) + a[1] * (b[2] * c[0] - b[0] * c[2]) + a[2] * (b[0] * c[1] - b[1] * c[0])
}

/// Directions and weights that integrate products of two harmonics up to `degree` over the unit sphere: Gauss and Legendre's heights, and equal steps
/// around the axis.
fn sphere_quadrature(degree: usize) -> (Vec<[f64; 3]>, Vec<f64>) {
    let steps = 2 * degree + 1;
    let (mut directions, mut weights) = (Vec::new(), Vec::new());
    for (height, weight) in gauss_legendre(degree + 1) {
        let radius = (1.0 - height * height).sqrt();
        for step in 0..steps {
            let angle = 2.0 * PI * step as f64 / steps as f64;
            directions.push([radius * angle.cos(), radius * angle.sin(), height]);
            weights.push(weight * 2.0 * PI / steps as f64);
        }
    }
    (directions, weights)
}

/// The zeros of the Legendre polynomial of degree `count` and the weights with which they integrate polynomials up to degree `2 count - 1` over `[-1, 1]`.
fn gauss_legendre(count: usize) -> Vec<(f64, f64)> {
    let node = |position: usize| {
        // Close enough to the zero for Newton's method, which doubles the digits: five times are more than there are.
        let mut x = (PI * (position as f64 + 0.75) / (count as f64 + 0.5)).cos();
        let mut slope = 1.0;
        for _ in 0..5 {
            let (mut before, mut value) = (0.0, 1.0);
            for degree in 0..count {
                let degree = degree as f64;
                (before, value) = (value, ((2.0 * degree + 1.0) * x * value - degree * before) / (degree + 1.0));
            }
            slope = count as f64 * (x * value - before) / (x * x - 1.0);
            x -= value / slope;
        }
        (x, 2.0 / ((1.0 - x * x) * slope * slope))
    };
    (0..count).map(node).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quadrature_integrates_powers() {
        for count in 1..=17 {
            for power in 0..2 * count {
                let sum: f64 = gauss_legendre(count).iter().map(|(x, weight)| weight * x.powi(power as i32)).sum();
                let expected = if power % 2 == 0 { 2.0 / (power as f64 + 1.0) } else { 0.0 };
                // a few tens of terms of order 1 are rounded
                assert!((sum - expected).abs() < 1e-14, "x^{power} with {count} points: {sum}, expected {expected}");
            }
        }
    }

    #[test]
    fn quaternions_are_rotations() {
        let matrix = rotation([0.3, -1.2, 0.7, 2.0]);
        assert!((determinant(&matrix) - 1.0).abs() < 1e-15);
        // a quarter turn around z takes x to y: rows are the images of the axes when vectors are columns
        let quarter = rotation([1.0, 0.0, 0.0, 1.0]);
        let expected = [[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]];
        for (entry, expected) in quarter.iter().flatten().zip(expected.iter().flatten()) {
            assert!((entry - expected).abs() < 1e-15, "{quarter:?}");
        }
    }
}
