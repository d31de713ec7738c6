//! Kernels of our own for devices, in cubecl's language: compiled for whichever device there is when they are first launched, in one launch each where the same takes a dozen when it
//! is put together from burn's.
//!
//! A function gives none for operands that no accelerator holds; then the operation is put together. Its result is new, row-major and without gaps. Kernels read and write
//! within bounds by how they count, which rests on shapes and on indices that the host has checked; and they are launched with cubecl's own checks, too. They are told how much there is of
//! everything: a buffer's own length is that of the memory it lies in, which CUDA's allocator rounds up.
//! Sums have one order: that of the elements, or that of a tree whose shape depends on the sizes alone.

pub(super) mod activation;
pub(super) mod attention;
pub(super) mod elementwise;
pub(super) mod matrix;
pub(super) mod optimizer;
pub(super) mod reduce;
pub(super) mod rows;
pub(super) mod segment;

use burn_backend::cubecl::dtype_to_storage_type;
use burn_cubecl::cubecl;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use burn_dispatch::{BackendTensor, DispatchTensor, DispatchTensorKind};
use cubecl::ir::ElemType;
use cubecl::ir::dialect::math::IsNanOp;
use cubecl::prelude::*;

use crate::Tensor;
use crate::tensor::device_shape;

/// The most elements of an operand or a result: kernels count them in 32 bits.
const MOST: usize = i32::MAX as usize;

/// What is behind values on a device, row-major and without gaps; none if one is elsewhere, or has too many elements.
fn cubes<const N: usize>(values: [DispatchTensor; N]) -> Option<[CubeTensor; N]> {
    let cube = |value: DispatchTensor| match value.kind {
        DispatchTensorKind::Cube(BackendTensor::Float(tensor) | BackendTensor::Int(tensor))
            if tensor.meta.num_elements() <= MOST =>
        {
            Some(into_contiguous(tensor))
        }
        _ => None,
    };
    values.into_iter().map(cube).collect::<Option<Vec<_>>>()?.try_into().ok()
}

/// As [`cubes`], of tensors.
fn operands<const N: usize>(tensors: [&Tensor; N]) -> Option<[CubeTensor; N]> {
    cubes(tensors.map(Tensor::value))
}

/// Room for a result where `like` is, of its dtype. It has [`MOST`] elements at most, and a kernel MUST write all of it.
fn room(like: &CubeTensor, sizes: &[usize]) -> CubeTensor {
    empty_device_contiguous_dtype(like.client.clone(), like.device.clone(), device_shape(sizes), like.dtype)
}

fn value(tensor: CubeTensor) -> DispatchTensor {
    DispatchTensor { kind: DispatchTensorKind::Cube(BackendTensor::Float(tensor)), autodiff: Default::default() }
}

/// The tensor as an operand or a result of a kernel.
fn buffer(tensor: CubeTensor) -> BufferArg {
    tensor.binding().into_buffer_arg()
}

fn element(tensor: &CubeTensor) -> ElemType {
    dtype_to_storage_type(tensor.dtype)
}

fn number(tensor: &CubeTensor, value: f64) -> InputScalar {
    InputScalar::new(value, element(tensor))
}

/// A size as kernels take them; sizes of what a device holds have been checked to be countable.
fn size(size: usize) -> u32 {
    u32::try_from(size).unwrap_or(u32::MAX)
}

/// A launch with one unit for each of `count` results. There may be more units: kernels MUST look whether theirs has a result.
fn each(tensor: &CubeTensor, count: usize) -> (CubeCount, CubeDim) {
    let dim = CubeDim::new(&tensor.client, count);
    (cubecl::calculate_cube_count_elemwise(&tensor.client, count, dim), dim)
}

/// Whether it is no number: as devices say it of one element.
#[cube]
fn is_nan<F: Float>(a: F) -> bool {
    intrinsic!(|scope| {
        let operation = IsNanOp::new(scope.ctx_mut(), a.read_value(scope));
        scope.register_with_result(&operation).into()
    })
}

/// The exponential, which is none of what is no number on any device.
#[cube]
fn exponential<F: Float>(a: F) -> F {
    select(is_nan::<F>(a), a, a.exp())
}
