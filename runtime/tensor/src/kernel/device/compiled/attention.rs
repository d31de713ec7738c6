//! Attention within segments, see [`crate::kernel::device::attention`], which says what a matrix of weights is and what a class. Each function writes the entries of one class
//! into the whole, `[segments, heads, size, size]` from `start` on; entries that belong to no pair of rows become 0.

use burn_cubecl::cubecl;
use burn_cubecl::tensor::CubeTensor;
use burn_dispatch::DispatchTensor;
use cubecl::ir::ElemType;
use cubecl::prelude::*;

use super::{buffer, cubes, each, element, exponential, operands, room, value};
use crate::Tensor;
use crate::kernel::device::attention::{Class, Classes};

/// What kernels need to know of a class.
#[derive(CubeLaunch, CubeType)]
struct Extent {
    start: usize,
    heads: usize,
    size: usize,
    /// The number of rows.
    count: usize,
}

/// What each row or entry becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum OfRows {
    /// The softmax of `y`.
    Softmax,
    /// `y (g - <y, g>)`.
    Product,
    /// `u g - u <y, g> - g <y, u>`.
    Curvature,
    /// Every entry the sum of its row of `y`.
    Sum,
}

/// One entry of a matrix of weights for each unit: `sum over d of left[i, h, d] * right[j, h, d]`.
#[cube(launch)]
fn score<F: Float>(
    left: &[F],
    right: &[F],
    rows: &[i32],
    out: &mut [F],
    entries: usize,
    width: usize,
    extent: &Extent,
    #[define(F)] _dtype: ElemType,
) {
    let k = ABSOLUTE_POS;
    if k < entries {
        let size = extent.size;
        let (i, j) = (k / size % size, k % size);
        let head = k / (size * size) % extent.heads;
        let segment = k / (size * size * extent.heads);
        let i = rows[segment * size + i] as usize;
        let j = rows[segment * size + j] as usize;
        let mut sum = F::new(0.0);
        if i < extent.count && j < extent.count {
            let i = (i * extent.heads + head) * width;
            let j = (j * extent.heads + head) * width;
            for d in 0..width {
                sum += left[i + d] * right[j + d];
            }
        }
        out[extent.start + k] = sum;
    }
}

/// One entry for each unit: `values[j]`.
#[cube(launch)]
fn column<F: Float>(
    values: &[F],
    rows: &[i32],
    out: &mut [F],
    entries: usize,
    extent: &Extent,
    #[define(F)] _dtype: ElemType,
) {
    let k = ABSOLUTE_POS;
    if k < entries {
        let size = extent.size;
        let segment = k / (size * size * extent.heads);
        let i = rows[segment * size + k / size % size] as usize;
        let j = rows[segment * size + k % size] as usize;
        let mut value = F::new(0.0);
        if i < extent.count && j < extent.count {
            value = values[j];
        }
        out[extent.start + k] = value;
    }
}

/// One element of a row for each unit: `sum over j of weights[h, i, j] * rows[j, h, d]`, or over `i` of `weights[h, i, j] * rows[i, h, d]`.
#[cube(launch)]
fn mixed<F: Float>(
    weights: &[F],
    values: &[F],
    rows: &[i32],
    out: &mut [F],
    elements: usize,
    width: usize,
    extent: &Extent,
    #[comptime] transposed: bool,
    #[define(F)] _dtype: ElemType,
) {
    let k = ABSOLUTE_POS;
    if k < elements {
        let size = extent.size;
        let features = width * extent.heads;
        let column = k % features;
        let head = column / width;
        let own = k / features % size;
        let segment = k / (features * size);
        let row = rows[segment * size + own] as usize;
        if row < extent.count {
            let matrix = extent.start + (segment * extent.heads + head) * size * size;
            let mut sum = F::new(0.0);
            for other in 0..size {
                let from = rows[segment * size + other] as usize;
                if from < extent.count {
                    let mut at = matrix + own * size + other;
                    if comptime!(transposed) {
                        at = matrix + other * size + own;
                    }
                    sum += weights[at] * values[from * features + column];
                }
            }
            out[row * features + column] = sum;
        }
    }
}

/// One place of a class for each unit: the sum over `h` and `i` of `weights[h, i, j]`.
#[cube(launch)]
fn column_sum<F: Float>(
    weights: &[F],
    rows: &[i32],
    out: &mut [F],
    places: usize,
    extent: &Extent,
    #[define(F)] _dtype: ElemType,
) {
    let k = ABSOLUTE_POS;
    if k < places {
        let size = extent.size;
        let row = rows[k] as usize;
        if row < extent.count {
            let start = extent.start + k / size * extent.heads * size * size + k % size;
            let mut sum = F::new(0.0);
            for line in 0..extent.heads * size {
                sum += weights[start + line * size];
            }
            out[row] = sum;
        }
    }
}

/// `sum over j of left[j] * right[j]` for the row that begins at `start`, of entries that belong to a pair.
#[cube]
fn overlap<F: Float>(left: &[F], right: &[F], rows: &[i32], first: usize, start: usize, extent: &Extent) -> F {
    let mut sum = F::new(0.0);
    for j in 0..extent.size {
        if (rows[first + j] as usize) < extent.count {
            sum += left[start + j] * right[start + j];
        }
    }
    sum
}

/// One row of a matrix of weights for each unit.
#[cube(launch)]
fn line<F: Float>(
    y: &[F],
    g: &[F],
    u: &[F],
    rows: &[i32],
    out: &mut [F],
    lines: usize,
    extent: &Extent,
    #[comptime] which: OfRows,
    #[define(F)] _dtype: ElemType,
) {
    let k = ABSOLUTE_POS;
    if k < lines {
        let size = extent.size;
        let start = extent.start + k * size;
        // Where the rows of the segment are told.
        let first = k / (size * extent.heads) * size;
        let is_row = (rows[first + k % size] as usize) < extent.count;
        let mut largest = y[start];
        let mut with_g = F::new(0.0);
        let mut with_u = F::new(0.0);
        if is_row {
            match comptime!(which) {
                OfRows::Softmax => {
                    // The first place of a segment always has a row.
                    for j in 1..size {
                        if (rows[first + j] as usize) < extent.count {
                            largest = largest.max(y[start + j]);
                        }
                    }
                    for j in 0..size {
                        if (rows[first + j] as usize) < extent.count {
                            with_g += exponential::<F>(y[start + j] - largest);
                        }
                    }
                }
                OfRows::Product => with_g = overlap::<F>(y, g, rows, first, start, extent),
                OfRows::Curvature => {
                    with_g = overlap::<F>(y, g, rows, first, start, extent);
                    with_u = overlap::<F>(y, u, rows, first, start, extent);
                }
                OfRows::Sum => {
                    for j in 0..size {
                        if (rows[first + j] as usize) < extent.count {
                            with_g += y[start + j];
                        }
                    }
                }
            }
        }
        for j in 0..size {
            let mut value = F::new(0.0);
            if is_row && (rows[first + j] as usize) < extent.count {
                match comptime!(which) {
                    OfRows::Softmax => value = exponential::<F>(y[start + j] - largest) / with_g,
                    OfRows::Product => value = y[start + j] * (g[start + j] - with_g),
                    OfRows::Curvature => value = u[start + j] * (g[start + j] - with_g) - g[start + j] * with_u,
                    OfRows::Sum => value = with_g,
                }
            }
            out[start + j] = value;
        }
    }
}

/// What a kernel is launched with for one class.
struct Launch {
    rows: BufferArg,
    out: BufferArg,
    count: CubeCount,
    dim: CubeDim,
    units: usize,
    extent: ExtentLaunch,
}

/// For each class a launch that writes to `out`, with as many units as it takes.
fn launches(classes: &Classes, heads: usize, out: &CubeTensor, units: impl Fn(&Class) -> usize) -> Option<Vec<Launch>> {
    let launch = |class: &Class| {
        let [rows] = cubes([class.rows.clone()])?;
        let (count, dim) = each(out, units(class));
        Some(Launch {
            rows: buffer(rows),
            out: buffer(out.clone()),
            count,
            dim,
            units: units(class),
            extent: ExtentLaunch::new(class.start, heads, class.size, classes.count),
        })
    };
    classes.classes.iter().map(launch).collect()
}

/// `out[h, i, j] = sum over d of left[i, h, d] * right[j, h, d]` for rows `i` and `j` of each segment.
pub(crate) fn scores(left: &Tensor, right: &Tensor, classes: &Classes) -> Option<DispatchTensor> {
    let (heads, width) = (classes.heads, left.shape()[1] / classes.heads);
    let [left, right] = operands([left, right])?;
    let out = room(&left, &[classes.entries()]);
    for launch in launches(classes, heads, &out, |class| class.entries(heads))? {
        score::launch(
            &out.client,
            launch.count,
            launch.dim,
            buffer(left.clone()),
            buffer(right.clone()),
            launch.rows,
            launch.out,
            launch.units,
            width,
            launch.extent,
            element(&out),
        );
    }
    Some(value(out))
}

/// `out[i, h, d] = sum over j of weights[h, i, j] * rows[j, h, d]`, or with `transposed` the sum over `i` of `weights[h, i, j] * rows[i, h, d]`.
pub(crate) fn mix(weights: &Tensor, rows: &Tensor, classes: &Classes, transposed: bool) -> Option<DispatchTensor> {
    let &[count, features] = rows.shape() else { return None };
    let heads = classes.heads;
    let [weights, rows] = operands([weights, rows])?;
    let out = room(&rows, &[count, features]);
    for launch in launches(classes, heads, &out, |class| class.segments * class.size * features)? {
        mixed::launch(
            &out.client,
            launch.count,
            launch.dim,
            buffer(weights.clone()),
            buffer(rows.clone()),
            launch.rows,
            launch.out,
            launch.units,
            features / heads,
            launch.extent,
            transposed,
            element(&out),
        );
    }
    Some(value(out))
}

/// `out[h, i, j] = values[j]`.
pub(crate) fn columns(values: &Tensor, classes: &Classes) -> Option<DispatchTensor> {
    let heads = classes.heads;
    let [values] = operands([values])?;
    let out = room(&values, &[classes.entries()]);
    for launch in launches(classes, heads, &out, |class| class.entries(heads))? {
        column::launch(
            &out.client,
            launch.count,
            launch.dim,
            buffer(values.clone()),
            launch.rows,
            launch.out,
            launch.units,
            launch.extent,
            element(&out),
        );
    }
    Some(value(out))
}

/// The transpose of [`columns`]: `out[j]` is the sum over `h` and `i` of `weights[h, i, j]`.
pub(crate) fn column_sums(weights: &Tensor, classes: &Classes) -> Option<DispatchTensor> {
    let heads = classes.heads;
    let [weights] = operands([weights])?;
    let out = room(&weights, &[classes.count]);
    for launch in launches(classes, heads, &out, |class| class.segments * class.size)? {
        column_sum::launch(
            &out.client,
            launch.count,
            launch.dim,
            buffer(weights.clone()),
            launch.rows,
            launch.out,
            launch.units,
            launch.extent,
            element(&out),
        );
    }
    Some(value(out))
}

/// A function of every row of matrices of weights; what it does not read may be any of them.
pub(crate) fn of_rows(which: OfRows, three: [&Tensor; 3], classes: &Classes) -> Option<DispatchTensor> {
    let heads = classes.heads;
    let [y, g, u] = operands(three)?;
    let out = room(&y, &[classes.entries()]);
    for launch in launches(classes, heads, &out, |class| class.segments * heads * class.size)? {
        line::launch(
            &out.client,
            launch.count,
            launch.dim,
            buffer(y.clone()),
            buffer(g.clone()),
            buffer(u.clone()),
            launch.rows,
            launch.out,
            launch.units,
            launch.extent,
            which,
            element(&out),
        );
    }
    Some(value(out))
}
