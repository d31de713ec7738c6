//! The same elements in another arrangement. Kernels read rows without gaps, so each of these is one copy, made at once by all threads.

use bytemuck::Pod;

use super::fill::{Fill, copied, in_parts, joined, repeated};
use super::square::{SQUARE, registers, transposed};
use super::{around, for_elements};
use crate::tensor::{Elements, Host, Sizes};
use crate::{DType, Tensor};

/// The rows that are transposed together: of each column they are a line of a cache or two, all of which is used while it is near.
const BLOCK: usize = 16;

/// Axis `i` of the result is axis `axes[i]` of `a`.
pub(crate) fn permute(a: &Tensor, axes: &[usize], shape: &[usize]) -> Elements {
    let strides = row_major(a.shape());
    let strides: Sizes = axes.iter().map(|&axis| strides[axis]).collect();
    for_elements!(a, |values| arranged(values, shape, &strides))
}

/// `a`, of the rank of `shape`, stretched to it.
pub(crate) fn broadcast(a: &Tensor, shape: &[usize]) -> Elements {
    let strides = row_major(a.shape())
        .iter()
        .zip(a.shape())
        .map(|(&stride, &size)| if size == 1 { 0 } else { stride })
        .collect::<Sizes>();
    for_elements!(a, |values| arranged(values, shape, &strides))
}

/// How far apart the elements along each axis are.
fn row_major(shape: &[usize]) -> Sizes {
    let mut strides = Sizes::from_slice(shape);
    let mut stride = 1;
    for place in strides.iter_mut().rev() {
        (*place, stride) = (stride, stride * *place);
    }
    strides
}

/// Axes that lie one after another in both arrangements, as one; those of size 1 are left out.
fn merged(shape: &[usize], strides: &[usize]) -> Vec<(usize, usize)> {
    let mut axes: Vec<(usize, usize)> = Vec::with_capacity(shape.len());
    for (&size, &stride) in shape.iter().zip(strides).filter(|(size, _)| **size != 1) {
        match axes.last_mut() {
            Some((before, outer)) if *outer == stride * size => (*before, *outer) = (*before * size, stride),
            _ => axes.push((size, stride)),
        }
    }
    axes
}

/// The elements of the tensor of this shape whose element `i` is at the sum of `i[k] * strides[k]`.
fn arranged<T: Fill + Pod>(values: &[T], shape: &[usize], strides: &[usize]) -> Vec<T> {
    let count = shape.iter().product();
    if count == 0 {
        return Vec::new();
    }
    let axes = merged(shape, strides);
    let Some((&(width, step), outer)) = axes.split_last() else {
        return values[..count].to_vec();
    };
    // Where a row of the result begins.
    let start = |outer: &[(usize, usize)], row: usize| {
        let mut rest = row;
        outer.iter().rev().fold(0, |start, &(size, stride)| {
            let place = rest % size;
            rest /= size;
            start + place * stride
        })
    };
    if let Some((&(height, 1), outer)) = outer.split_last()
        && step > 1
    {
        // The result's columns are rows where they come from: they are turned block by block. A narrow plane is a block of its own.
        let block = if width < BLOCK { height.min(BLOCK * BLOCK / width) } else { height.min(BLOCK) };
        return in_parts(
            count,
            block * width,
            #[inline(always)]
            |k, out| {
                // A part may span two planes where their height is no multiple of a block: then row by row.
                let (first, rows) = (k * block, out.len() / width);
                if first / height == (first + rows - 1) / height {
                    let start = start(outer, first / height) + first % height;
                    turn(&values[start..], step, out, width);
                    return;
                }
                for (row, out) in out.chunks_exact_mut(width).enumerate() {
                    let start = start(outer, (first + row) / height) + (first + row) % height;
                    out.iter_mut().enumerate().for_each(|(column, out)| *out = values[start + column * step]);
                }
            },
        );
    }
    match step {
        0 => return repeated(values, count, width, |row| start(outer, row)),
        1 => return copied(values, count, width, |row| start(outer, row)),
        _ => {}
    }
    in_parts(
        count,
        width,
        #[inline(always)]
        |row, out| {
            let start = start(outer, row);
            out.iter_mut().enumerate().for_each(|(column, out)| *out = values[start + column * step]);
        },
    )
}

/// Rows of `width` elements, whose columns are rows that lie `step` apart where they come from.
#[inline(always)]
fn turn<T: Fill + Pod>(values: &[T], step: usize, out: &mut [T], width: usize) {
    let (rows, registers) = (out.len() / width, registers());
    let mut column = 0;
    while column < width {
        let squares = if width - column < SQUARE { 0 } else { rows / SQUARE * SQUARE };
        let wide = if squares > 0 { SQUARE } else { 1 };
        for row in (0..squares).step_by(SQUARE) {
            let square = std::array::from_fn(
                #[inline(always)]
                |k| *values[(column + k) * step + row..].first_chunk().expect("a row goes on to where squares end"),
            );
            for (k, elements) in transposed(square, registers).into_iter().enumerate() {
                out[(row + k) * width + column..][..SQUARE].copy_from_slice(&elements);
            }
        }
        for row in squares..rows {
            for column in column..column + wide {
                out[row * width + column] = values[row + column * step];
            }
        }
        column += wide;
    }
}

/// The tensors one after another along `axis`.
pub(crate) fn concatenate(tensors: &[&Tensor], axis: usize, shape: &[usize]) -> Elements {
    let (outer, _, inner) = around(shape, axis);
    let hosts: Vec<Host> = tensors.iter().map(|tensor| tensor.host()).collect();
    let widths: Vec<usize> = tensors.iter().map(|tensor| tensor.shape()[axis] * inner).collect();
    let dtype = tensors[0].dtype();
    macro_rules! joined {
        ($type:ty) => {{
            let parts: Vec<&[$type]> = hosts.iter().map(Host::values::<$type>).collect();
            Elements::new(joined(&parts, &widths, outer))
        }};
    }
    match dtype {
        DType::Float32 => joined!(f32),
        DType::Float64 => joined!(f64),
        DType::Int32 => joined!(i32),
        DType::Int64 => joined!(i64),
        DType::Boolean => {
            let parts: Vec<&[u8]> = hosts.iter().map(Host::bytes).collect();
            Elements::new(joined(&parts, &widths, outer))
        }
    }
}

/// The elements from `start` on along `axis`.
pub(crate) fn slice(a: &Tensor, axis: usize, start: usize, shape: &[usize]) -> Elements {
    let (_, size, inner) = around(a.shape(), axis);
    let count = shape.iter().product();
    let (row, width, start) = (size * inner, shape[axis] * inner, start * inner);
    for_elements!(a, |values| copied(values, count, width, |k| k * row + start))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_are_arranged_as_strides_say() {
        // Planes that are narrow, wide, higher than a block, and without elements.
        for shape in [[2, 3, 5], [4, 65, 3], [3, 300, 2], [2, 40, 33], [1, 1, 7], [3, 3, 0], [0, 4, 2], [2, 0, 9]] {
            let values: Vec<usize> = (0..shape.iter().product()).collect();
            // The last two axes are exchanged where the values lie.
            let [planes, height, width] = shape;
            let expected: Vec<usize> = (0..planes * height * width)
                .map(|at| at / (height * width) * height * width + at % width * height + at / width % height)
                .collect();
            assert_eq!(arranged(&values, &shape, &[height * width, 1, height]), expected, "{shape:?}");
        }
    }

    #[test]
    fn elements_are_stretched_along_any_axes() {
        let values: Vec<usize> = (1..100).collect();
        // Rows that are shorter than what a thread writes at a time, and longer.
        for [rows, columns] in [[90, 3], [3, 90], [70, 1000], [2, 10_000], [1, 1], [0, 3]] {
            for strides in [[0, 0], [1, 0], [0, 1]] {
                let expected = (0..rows * columns).map(|at| [at / columns, at % columns]);
                if strides[1] == 1 && columns > values.len() {
                    continue;
                }
                let expected: Vec<usize> = expected.map(|[i, j]| values[i * strides[0] + j * strides[1]]).collect();
                assert_eq!(arranged(&values, &[rows, columns], &strides), expected, "{rows} {columns} {strides:?}");
            }
        }
    }
}
