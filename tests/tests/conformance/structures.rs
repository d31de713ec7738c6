//! Structures to evaluate, and how they are moved, turned and put together.

use kilnbox_data::SystemsData;
use kilnbox_host::service::data::Systems;
use kilnbox_tensor::random::Random;
use kilnbox_tensor::{DType, Device, Misuse};

type Vector = [f64; 3];
pub type Matrix = [f64; 9];

/// Rows of a matrix are cell vectors; vectors are rows, and `vector . matrix` turns them.
#[derive(Clone, Debug)]
pub struct Structure {
    pub types: Vec<i32>,
    pub positions: Vec<f64>,
    pub cell: Matrix,
    pub periodic: bool,
}

/// A change of positions and of strain, or derivatives by these: three numbers for each atom, nine for each system.
#[derive(Clone, Debug)]
pub struct Direction {
    pub positions: Vec<f64>,
    pub strain: Vec<f64>,
}

pub const IDENTITY: Matrix = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0];

impl Structure {
    pub fn molecule(types: &[i32], positions: &[Vector]) -> Self {
        Self { types: types.to_vec(), positions: positions.as_flattened().to_vec(), cell: [0.0; 9], periodic: false }
    }

    /// One atom of each element of the models in a bent chain, so that nothing is symmetric.
    pub fn chain() -> Self {
        Self::molecule(&[1, 6, 7, 8], &[[0.0, 0.1, 0.0], [1.05, 0.0, 0.2], [1.9, 0.9, -0.1], [3.0, 0.8, 0.4]])
    }

    /// Two carbon atoms in a cube of 2 angstrom: every atom is its own neighbour many times, and two atoms are neighbours in many cells.
    pub fn carbon_cube() -> Self {
        let cell = IDENTITY.map(|entry| 2.0 * entry);
        Self { cell, periodic: true, ..Self::molecule(&[6, 6], &[[0.1, 0.2, 0.3], [1.1, 1.3, 1.0]]) }
    }

    /// Twelve atoms of all elements without any order, in a cell that is not much larger than what they see.
    pub fn glass() -> Self {
        let chain = Self::chain();
        let atoms = chain
            .with(&chain.transformed(&rotation()).translated([3.9, 4.1, 0.7]))
            .with(&chain.translated([0.4, 2.2, 4.3]));
        Self { cell: [8.0, 0.0, 0.0, 1.1, 7.0, 0.0, -0.6, 0.9, 6.5], periodic: true, ..atoms }
    }

    pub fn len(&self) -> usize {
        self.types.len()
    }

    pub fn translated(&self, by: Vector) -> Self {
        let positions = self.positions.iter().enumerate().map(|(entry, value)| value + by[entry % 3]).collect();
        Self { positions, ..self.clone() }
    }

    /// All vectors times a matrix.
    pub fn transformed(&self, matrix: &Matrix) -> Self {
        let cell = times(&self.cell, matrix).try_into().unwrap_or(self.cell);
        Self { positions: times(&self.positions, matrix), cell, ..self.clone() }
    }

    /// The atoms in another order: the new atom `k` is the old atom `order[k]`.
    pub fn permuted(&self, order: &[usize]) -> Self {
        Self {
            types: order.iter().map(|&atom| self.types[atom]).collect(),
            positions: order.iter().flat_map(|&atom| self.positions[3 * atom..3 * atom + 3].to_vec()).collect(),
            ..self.clone()
        }
    }

    /// The atoms of both.
    pub fn with(&self, other: &Self) -> Self {
        Self {
            types: [&self.types[..], &other.types].concat(),
            positions: [&self.positions[..], &other.positions].concat(),
            ..self.clone()
        }
    }

    /// Twice the cell along its first vector, with twice the atoms.
    pub fn doubled(&self) -> Self {
        let [x, y, z, ..] = self.cell;
        let mut doubled = self.with(&self.translated([x, y, z]));
        doubled.cell[..3].copy_from_slice(&[2.0 * x, 2.0 * y, 2.0 * z]);
        doubled
    }

    /// The positions moved along a direction.
    pub fn moved(&self, along: &[f64], step: f64) -> Self {
        let positions = self.positions.iter().zip(along).map(|(value, along)| value + step * along).collect();
        Self { positions, ..self.clone() }
    }
}

/// Structures as a session takes them.
pub fn systems(structures: &[Structure], dtype: DType) -> Result<Systems, Misuse> {
    Systems::new(plain(structures), Vec::new(), &Device::cpu(), dtype)
}

/// Structures as a predictor takes them.
pub fn plain(structures: &[Structure]) -> SystemsData {
    SystemsData {
        atom_counts: structures.iter().map(|structure| structure.len() as u32).collect(),
        positions: structures.iter().flat_map(|structure| structure.positions.clone()).collect(),
        cells: structures.iter().flat_map(|structure| structure.cell).collect(),
        periodic: structures.iter().flat_map(|structure| [structure.periodic; 3]).collect(),
        types: structures.iter().flat_map(|structure| structure.types.clone()).collect(),
        system_indices: (0..).zip(structures).flat_map(|(system, structure)| vec![system; structure.len()]).collect(),
        neighbor_lists: Vec::new(),
    }
}

/// Rows of vectors times a matrix.
pub fn times(rows: &[f64], matrix: &Matrix) -> Vec<f64> {
    let row = |row: &[f64]| -> Vec<f64> {
        (0..3).map(|column| (0..3).map(|k| row[k] * matrix[3 * k + column]).sum()).collect()
    };
    rows.chunks_exact(3).flat_map(row).collect()
}

/// The product of a column and a row.
pub fn outer(column: &[f64], row: &[f64]) -> Matrix {
    std::array::from_fn(|entry| column[entry / 3] * row[entry % 3])
}

/// `a + factor * b`.
pub fn plus(a: &Matrix, factor: f64, b: &Matrix) -> Matrix {
    std::array::from_fn(|entry| a[entry] + factor * b[entry])
}

pub fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// A rotation about an axis that no structure here is aligned with, by an angle that no lattice has.
pub fn rotation() -> Matrix {
    let axis = [1.0 / 3.0, 2.0 / 3.0, 2.0 / 3.0];
    let (sine, cosine) = 0.8_f64.sin_cos();
    let cross = [0.0, axis[2], -axis[1], -axis[2], 0.0, axis[0], axis[1], -axis[0], 0.0];
    let turned = plus(&IDENTITY.map(|entry| cosine * entry), 1.0 - cosine, &outer(&axis, &axis));
    plus(&turned, sine, &cross)
}

/// Numbers between -1 and 1 without a pattern, the same each time.
pub fn noise(seed: u64, count: usize) -> Result<Vec<f64>, Misuse> {
    Random::new(seed).uniform(&Device::cpu(), &[count], -1.0, 1.0, DType::Float64)?.read_float64()
}
