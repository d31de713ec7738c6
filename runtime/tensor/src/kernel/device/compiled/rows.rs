//! Softmax and normalisation of rows, and products with their derivatives, see [`crate::kernel::softmax`] and [`crate::kernel::norm`]. A cube of units works on a row at a time.

use burn_cubecl::cubecl;
use burn_cubecl::tensor::CubeTensor;
use burn_dispatch::{DispatchDevice, DispatchTensor};
use cubecl::ir::ElemType;
use cubecl::prelude::*;
use cubecl::server::CubeCountSelection;

use super::{buffer, element, exponential, number, operands, room, value};
use crate::Tensor;

/// The units of a cube for rows of this many elements: a power of two. Only one where what units share is not to be relied on, see [`crate::device::multiplies_matrices`].
fn units(tensor: &CubeTensor, size: usize) -> usize {
    const FEWEST: usize = 32;
    const MOST: usize = 128;
    if !crate::device::multiplies_matrices(&DispatchDevice::Cube(tensor.device.clone())) {
        return 1;
    }
    size.next_power_of_two().clamp(FEWEST, MOST)
}

/// The sum over all units, which each of them gets: by halves, so in one order.
#[cube]
pub(super) fn total<F: Float>(part: F, #[comptime] units: usize) -> F {
    if comptime!(units == 1) { part } else { shared_total::<F>(part, units) }
}

#[cube]
fn shared_total<F: Float>(part: F, #[comptime] units: usize) -> F {
    let mut shared = Shared::<[F]>::new_slice(units);
    let unit = UNIT_POS as usize;
    shared[unit] = part;
    sync_cube();
    let mut half = CUBE_DIM as usize / 2;
    while half > 0 {
        if unit < half {
            let other = shared[unit + half];
            shared[unit] += other;
        }
        sync_cube();
        half /= 2;
    }
    let sum = shared[0];
    sync_cube();
    sum
}

/// As [`total`], the largest.
#[cube]
fn largest<F: Float>(part: F, #[comptime] units: usize) -> F {
    if comptime!(units == 1) { part } else { shared_largest::<F>(part, units) }
}

#[cube]
fn shared_largest<F: Float>(part: F, #[comptime] units: usize) -> F {
    let mut shared = Shared::<[F]>::new_slice(units);
    let unit = UNIT_POS as usize;
    shared[unit] = part;
    sync_cube();
    let mut half = CUBE_DIM as usize / 2;
    while half > 0 {
        if unit < half {
            let other = shared[unit + half];
            shared[unit] = shared[unit].max(other);
        }
        sync_cube();
        half /= 2;
    }
    let largest = shared[0];
    sync_cube();
    largest
}

/// The sum of `left[k] * right[k]` over the row that begins at `start`.
#[cube]
fn overlap<F: Float>(left: &[F], right: &[F], start: usize, size: usize, #[comptime] units: usize) -> F {
    let mut part = F::new(0.0);
    let mut k = UNIT_POS as usize;
    while k < size {
        part += left[start + k] * right[start + k];
        k += CUBE_DIM as usize;
    }
    total::<F>(part, units)
}

/// A launch with a cube for each row, and the units of each cube. There may be more cubes: kernels MUST look whether theirs has a row.
pub(super) fn each_row(tensor: &CubeTensor, rows: usize, size: usize) -> (CubeCount, CubeDim, usize) {
    let units = units(tensor, size);
    let cubes = CubeCountSelection::new(&tensor.client, super::size(rows));
    (cubes.cube_count(), CubeDim::new_1d(super::size(units)), units)
}

/// Which product with derivatives of the softmax.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Softmax {
    /// Of `y`, which is then no softmax yet.
    Value,
    /// `y (g - <y, g>)`.
    Product,
    /// `u g - u <y, g> - g <y, u>`.
    Curvature,
}

#[cube(launch)]
fn softmaxes<F: Float>(
    y: &[F],
    g: &[F],
    u: &[F],
    out: &mut [F],
    rows: usize,
    size: usize,
    #[comptime] units: usize,
    #[comptime] which: Softmax,
    #[define(F)] _dtype: ElemType,
) {
    let start = CUBE_POS * size;
    if CUBE_POS < rows {
        let first = UNIT_POS as usize;
        let step = CUBE_DIM as usize;
        match comptime!(which) {
            Softmax::Value => {
                let mut part = y[start];
                let mut k = first;
                while k < size {
                    part = part.max(y[start + k]);
                    k += step;
                }
                let largest = largest::<F>(part, units);
                let mut part = F::new(0.0);
                let mut k = first;
                while k < size {
                    part += exponential::<F>(y[start + k] - largest);
                    k += step;
                }
                let sum = total::<F>(part, units);
                let mut k = first;
                while k < size {
                    out[start + k] = exponential::<F>(y[start + k] - largest) / sum;
                    k += step;
                }
            }
            Softmax::Product => {
                let with_g = overlap::<F>(y, g, start, size, units);
                let mut k = first;
                while k < size {
                    out[start + k] = y[start + k] * (g[start + k] - with_g);
                    k += step;
                }
            }
            Softmax::Curvature => {
                let with_g = overlap::<F>(y, g, start, size, units);
                let with_u = overlap::<F>(y, u, start, size, units);
                let mut k = first;
                while k < size {
                    out[start + k] = u[start + k] * (g[start + k] - with_g) - g[start + k] * with_u;
                    k += step;
                }
            }
        }
    }
}

/// All of one shape; what is not read may be any tensor of it.
pub(crate) fn softmax(which: Softmax, y: &Tensor, g: &Tensor, u: &Tensor) -> Option<DispatchTensor> {
    let shape = y.shape();
    let &size = shape.last()?;
    let rows = y.count() / size;
    let [y, g, u] = operands([y, g, u])?;
    let out = room(&y, shape);
    let (count, dim, units) = each_row(&out, rows, size);
    softmaxes::launch(
        &out.client,
        count,
        dim,
        buffer(y),
        buffer(g),
        buffer(u),
        buffer(out.clone()),
        rows,
        size,
        units,
        which,
        element(&out),
    );
    Some(value(out))
}

/// Which product with derivatives of the normalisation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Norm {
    /// `y`, the normalised row.
    Value,
    /// The Jacobian, which is symmetric, times `g`: `(g - mean(g) - y mean(y g)) / s`, without the mean if not centred.
    Product,
    /// The gradient of `u . J(a) g` by `a`: `-(y (u . J g) + J u (y . g) + J g (y . u)) / (n s)`.
    Curvature,
}

/// The mean of a row.
#[cube]
fn mean<F: Float>(row: &[F], start: usize, size: usize, #[comptime] units: usize) -> F {
    let mut part = F::new(0.0);
    let mut k = UNIT_POS as usize;
    while k < size {
        part += row[start + k];
        k += CUBE_DIM as usize;
    }
    total::<F>(part, units) / F::cast_from(size)
}

/// The mean of `y[k] * b[k]`, where `y` is the normalised row.
#[cube]
fn mean_with_y<F: Float>(
    a: &[F],
    b: &[F],
    centre: F,
    root: F,
    start: usize,
    size: usize,
    #[comptime] units: usize,
) -> F {
    let mut part = F::new(0.0);
    let mut k = UNIT_POS as usize;
    while k < size {
        part += (a[start + k] - centre) / root * b[start + k];
        k += CUBE_DIM as usize;
    }
    total::<F>(part, units) / F::cast_from(size)
}

#[cube(launch)]
fn norms<F: Float>(
    a: &[F],
    g: &[F],
    u: &[F],
    out: &mut [F],
    rows: usize,
    size: usize,
    epsilon: InputScalar,
    #[comptime] units: usize,
    #[comptime] centred: bool,
    #[comptime] which: Norm,
    #[define(F)] _dtype: ElemType,
) {
    let start = CUBE_POS * size;
    if CUBE_POS < rows {
        let first = UNIT_POS as usize;
        let step = CUBE_DIM as usize;
        let mut centre = F::new(0.0);
        if comptime!(centred) {
            centre = mean::<F>(a, start, size, units);
        }
        let mut part = F::new(0.0);
        let mut k = first;
        while k < size {
            let deviation = a[start + k] - centre;
            part += deviation * deviation;
            k += step;
        }
        let variance = total::<F>(part, units) / F::cast_from(size);
        let root = (variance + epsilon.get::<F>()).sqrt();
        match comptime!(which) {
            Norm::Value => {
                let mut k = first;
                while k < size {
                    out[start + k] = (a[start + k] - centre) / root;
                    k += step;
                }
            }
            Norm::Product => {
                let mut mean_g = F::new(0.0);
                if comptime!(centred) {
                    mean_g = mean::<F>(g, start, size, units);
                }
                let with_g = mean_with_y::<F>(a, g, centre, root, start, size, units);
                let mut k = first;
                while k < size {
                    let y = (a[start + k] - centre) / root;
                    out[start + k] = (g[start + k] - mean_g - y * with_g) / root;
                    k += step;
                }
            }
            Norm::Curvature => {
                let mut mean_g = F::new(0.0);
                let mut mean_u = F::new(0.0);
                if comptime!(centred) {
                    mean_g = mean::<F>(g, start, size, units);
                    mean_u = mean::<F>(u, start, size, units);
                }
                let with_g = mean_with_y::<F>(a, g, centre, root, start, size, units);
                let with_u = mean_with_y::<F>(a, u, centre, root, start, size, units);
                let mut part = F::new(0.0);
                let mut k = first;
                while k < size {
                    let y = (a[start + k] - centre) / root;
                    part += u[start + k] * (g[start + k] - mean_g - y * with_g) / root;
                    k += step;
                }
                let mixed = total::<F>(part, units) / F::cast_from(size);
                let mut k = first;
                while k < size {
                    let y = (a[start + k] - centre) / root;
                    let through_g = (g[start + k] - mean_g - y * with_g) / root;
                    let through_u = (u[start + k] - mean_u - y * with_u) / root;
                    out[start + k] = -(y * mixed + through_u * with_g + through_g * with_u) / root;
                    k += step;
                }
            }
        }
    }
}

/// All of one shape; what is not read may be any tensor of it.
pub(crate) fn norm(
    which: Norm,
    a: &Tensor,
    g: &Tensor,
    u: &Tensor,
    epsilon: f64,
    centred: bool,
) -> Option<DispatchTensor> {
    let shape = a.shape();
    let &size = shape.last()?;
    let rows = a.count() / size;
    let [a, g, u] = operands([a, g, u])?;
    let out = room(&a, shape);
    let (count, dim, units) = each_row(&out, rows, size);
    norms::launch(
        &out.client,
        count,
        dim,
        buffer(a),
        buffer(g),
        buffer(u),
        buffer(out.clone()),
        rows,
        size,
        number(&out, epsilon),
        units,
        centred,
        which,
        element(&out),
    );
    Some(value(out))
}
