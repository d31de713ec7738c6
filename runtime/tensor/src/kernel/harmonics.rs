//! Real solid harmonics and their derivatives.
//!
//! Both follow from the complex functions `V_l^m = r^l P_l^m(cos theta) e^(i m phi) / (l + m)!` (without the Condon-Shortley sign), for which
//! `d/dz V_l^m = V_(l-1)^m`, `d/dx V_l^m = (V_(l-1)^(m-1) - V_(l-1)^(m+1)) / 2`, `d/dy V_l^m = i (V_(l-1)^(m+1) + V_(l-1)^(m-1)) / 2` and
//! `V_l^-m = (-1)^m conj(V_l^m)` (Helgaker, Jorgensen and Olsen, Molecular Electronic-Structure Theory, section 6.4).

use std::ops::Range;

use super::fill::{in_parts, in_uneven_parts};
use super::{MULTIPLICATIONS, Real, for_float};
use crate::Tensor;
use crate::tensor::Elements;

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

pub(crate) fn forward(vectors: &Tensor, max_degree: usize, shape: &[usize]) -> Elements {
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
        Elements::new(values)
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

/// One summand of the derivative of a harmonic, see [`derivatives`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Term {
    /// Along which axis, which harmonic one degree lower it is made of, and the derivative of which harmonic it belongs to: columns of vectors, of harmonics up to one degree
    /// less, and of all.
    pub(crate) columns: [usize; 3],
    pub(crate) factor: f64,
}

/// The derivatives of all harmonics: `d Y_b / d x_axis` is the sum of `factor * Y_a` over the terms of `axis` and `b`.
pub(crate) fn derivatives(max_degree: usize) -> Vec<Term> {
    let mut terms = Vec::new();
    let mut add = |axis: usize, (l, m): (usize, isize), lower: isize, factor: f64| {
        // A function with |m| > l - 1 and the sine of m = 0 do not exist: they are 0.
        if lower.unsigned_abs() < l {
            let ratio = norm(l, m.unsigned_abs()) / norm(l - 1, lower.unsigned_abs());
            terms.push(Term { columns: [axis, place(l - 1, lower), place(l, m)], factor: factor * ratio });
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
    terms
}

/// The rows that one task of [`partial`] computes.
const BLOCK: usize = 8 * LANES;

/// What [`partial`] multiplies and where it adds: a column of the first operand, one of the second, one of the result, and a factor.
type Product<R> = (usize, usize, usize, R);

/// In each row `out[columns[c]] += factor * a[columns[roles[0]]] * b[columns[roles[1]]]` for all terms, where `c` is the role that neither operand has: 0 is that of vectors, 1 of
/// lower harmonics and 2 of harmonics.
pub(crate) fn partial(a: &Tensor, b: &Tensor, roles: [usize; 2], terms: &[Term], shape: &[usize]) -> Elements {
    let (a_host, b_host) = (a.host(), b.host());
    let ([a_width, b_width], width) = ([a.shape()[1], b.shape()[1]], shape[1]);
    let role = 3 - roles[0] - roles[1];
    for_float!(a.dtype(), R => {
        let (a_values, b_values) = (a_host.values::<R>(), b_host.values::<R>());
        let products = terms.iter().map(|term| {
            let [first, second] = roles.map(|role| term.columns[role]);
            (first, second, term.columns[role], R::from_f64(term.factor))
        });
        let products: Vec<Product<R>> = products.collect();
        let sizes = (0..shape[0]).step_by(BLOCK).map(|start| BLOCK.min(shape[0] - start) * width);
        let work = shape[0] * products.len() / MULTIPLICATIONS;
        let values = in_uneven_parts(sizes, work, #[inline(always)] |_, k, out: &mut [R]| {
            let mut sums = vec![[R::default(); LANES]; width];
            for (start, rows) in (k * BLOCK..).step_by(LANES).zip(out.chunks_mut(LANES * width)) {
                let range = start..start + rows.len() / width;
                let (a, b) = (lanes(a_values, a_width, range.clone()), lanes(b_values, b_width, range));
                sums.fill([R::default(); LANES]);
                for &(first, second, column, factor) in &products {
                    let (a, b, sum) = (a[first], b[second], sums[column]);
                    sums[column] = std::array::from_fn(|n| (a[n] * b[n]).mul_add(factor, sum[n]));
                }
                for (lane, row) in rows.chunks_exact_mut(width).enumerate() {
                    row.iter_mut().zip(&sums).for_each(|(value, sum)| *value = sum[lane]);
                }
            }
        });
        Elements::new(values)
    })
}

/// The columns of these rows, no more than there are lanes.
#[inline(always)]
fn lanes<R: Real>(values: &[R], width: usize, rows: Range<usize>) -> Vec<[R; LANES]> {
    let mut columns = vec![[R::default(); LANES]; width];
    for (lane, row) in values[rows.start * width..rows.end * width].chunks_exact(width).enumerate() {
        columns.iter_mut().zip(row).for_each(|(column, value)| column[lane] = *value);
    }
    columns
}
