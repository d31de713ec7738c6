//! Real solid harmonics and the matrices of their derivatives.
//!
//! Both follow from the complex functions `V_l^m = r^l P_l^m(cos theta) e^(i m phi) / (l + m)!` (without the Condon-Shortley sign), for which
//! `d/dz V_l^m = V_(l-1)^m`, `d/dx V_l^m = (V_(l-1)^(m-1) - V_(l-1)^(m+1)) / 2`, `d/dy V_l^m = i (V_(l-1)^(m+1) + V_(l-1)^(m-1)) / 2` and
//! `V_l^-m = (-1)^m conj(V_l^m)` (Helgaker, Jorgensen and Olsen, Molecular Electronic-Structure Theory, section 6.4).

use burn_dispatch::DispatchTensor;

use super::fill::in_parts;
use super::{Real, for_float};
use crate::Tensor;
use crate::tensor::from_host;

/// The factor that makes the real or imaginary part of `V_l^|m|` orthonormal on the sphere.
pub(crate) fn norm(l: usize, m: usize) -> f64 {
    let factorial = |n: usize| (1..=n).map(|k| k as f64).product::<f64>();
    let both = if m == 0 { 1.0 } else { 2.0 };
    (both * (2 * l + 1) as f64 / (4.0 * std::f64::consts::PI) * factorial(l - m) * factorial(l + m)).sqrt()
}

/// The place of `Y_lm` in a row: cosines have positive `m`, sines negative.
fn place(l: usize, m: isize) -> usize {
    l * l + l.wrapping_add_signed(m)
}

/// The vectors that are worked on together.
const LANES: usize = 8;

pub(crate) fn forward(vectors: &Tensor, max_degree: usize, shape: &[usize]) -> DispatchTensor {
    let host = vectors.host();
    let width = shape[1];
    let norms: Vec<f64> = (0..=max_degree).flat_map(|l| (0..=l).map(move |m| norm(l, m))).collect();
    for_float!(vectors.dtype(), R => {
        let all = host.values::<R>();
        let values = in_parts(shape.iter().product(), LANES * width, #[inline(always)] |k, rows: &mut [R]| {
            let vectors = &all[3 * LANES * k..][..3 * (rows.len() / width)];
            let mut lanes = [[0.0; LANES]; 3];
            for (lane, vector) in vectors.chunks_exact(3).enumerate() {
                (0..3).for_each(|axis| lanes[axis][lane] = vector[axis].to_f64());
            }
            fill(rows, width, lanes, max_degree, &norms);
        });
        from_host(values, shape, vectors.dtype())
    })
}

/// `V_m^m = V_(m-1)^(m-1) (x + i y) / (2 m)`, then `(l^2 - m^2) V_l^m = (2 l - 1) z V_(l-1)^m - r^2 V_(l-2)^m` upwards; one row for each lane that is there.
#[inline(always)]
fn fill<R: Real>(rows: &mut [R], width: usize, [x, y, z]: [[f64; LANES]; 3], max_degree: usize, norms: &[f64]) {
    let square: [f64; LANES] = std::array::from_fn(|n| x[n] * x[n] + y[n] * y[n] + z[n] * z[n]);
    let (mut cosine, mut sine) = ([1.0; LANES], [0.0; LANES]);
    for m in 0..=max_degree {
        if m > 0 {
            let half = 0.5 / m as f64;
            let next = (
                std::array::from_fn(|n| (cosine[n] * x[n] - sine[n] * y[n]) * half),
                std::array::from_fn(|n| (cosine[n] * y[n] + sine[n] * x[n]) * half),
            );
            (cosine, sine) = next;
        }
        // The common factor of both parts, relative to degree m.
        let (mut before, mut current) = ([0.0; LANES], [1.0; LANES]);
        for l in m..=max_degree {
            if l > m {
                let (up, down) = ((2 * l - 1) as f64, 1.0 / ((l - m) * (l + m)) as f64);
                let next = std::array::from_fn(|n| (up * z[n] * current[n] - square[n] * before[n]) * down);
                (before, current) = (current, next);
            }
            let norm = norms[l * (l + 1) / 2 + m];
            for (n, row) in rows.chunks_exact_mut(width).enumerate() {
                row[l * l + l + m] = R::from_f64(current[n] * norm * cosine[n]);
                if m > 0 {
                    row[l * l + l - m] = R::from_f64(current[n] * norm * sine[n]);
                }
            }
        }
    }
}

/// For x, y and z: `D` with `d Y_b = sum_a Y_a D[a, b]`, row-major `[max_degree^2, (max_degree + 1)^2]`.
pub(crate) fn derivative_matrices(max_degree: usize) -> [Vec<f64>; 3] {
    let columns = (max_degree + 1) * (max_degree + 1);
    let mut matrices = [const { Vec::new() }; 3].map(|_: Vec<f64>| vec![0.0; max_degree * max_degree * columns]);
    let mut add = |axis: usize, (l, m): (usize, isize), lower: isize, factor: f64| {
        // A function with |m| > l - 1 and the sine of m = 0 do not exist: they are 0.
        if lower.unsigned_abs() < l {
            let ratio = norm(l, m.unsigned_abs()) / norm(l - 1, lower.unsigned_abs());
            matrices[axis][place(l - 1, lower) * columns + place(l, m)] += factor * ratio;
        }
    };
    for l in 1..=max_degree {
        for m in 0..=l as isize {
            add(2, (l, m), m, 1.0);
            if m == 0 {
                add(0, (l, 0), 1, -1.0);
                add(1, (l, 0), -1, -1.0);
                continue;
            }
            add(2, (l, -m), -m, 1.0);
            // Cosines.
            add(0, (l, m), m - 1, 0.5);
            add(0, (l, m), m + 1, -0.5);
            add(1, (l, m), -(m + 1), -0.5);
            // Sines.
            add(0, (l, -m), -(m + 1), -0.5);
            add(1, (l, -m), m + 1, 0.5);
            add(1, (l, -m), m - 1, 0.5);
            if m > 1 {
                add(1, (l, m), -(m - 1), -0.5);
                add(0, (l, -m), -(m - 1), 0.5);
            }
        }
    }
    matrices
}
