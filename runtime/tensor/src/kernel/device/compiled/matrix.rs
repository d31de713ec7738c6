//! Products of matrices, in all digits of their dtype.
//!
//! What burn takes by itself may be matrix units that round single precision to eleven bits on the way in (TF32): forces would have three digits. This is the same library's routine for
//! units that compute as the dtype says.

use burn_backend::cubecl::dtype_to_storage_type;
use burn_cubecl::kernel::matmul::init_matmul_output;
use burn_cubecl::tensor::CubeTensor;
use burn_dispatch::{BackendTensor, DispatchTensor, DispatchTensorKind};
use cubek::matmul::definition::{MatmulElems, MatmulGlobalElems};
use cubek::matmul::launch::launch_ref;
use cubek::matmul::multi_level::Strategy;
use cubek::std::InputBinding;

use super::value;

/// The operand as it lies: the routine reads transposed matrices, too.
fn operand(value: &DispatchTensor) -> Option<CubeTensor> {
    match &value.kind {
        DispatchTensorKind::Cube(BackendTensor::Float(tensor)) => Some(tensor.clone()),
        _ => None,
    }
}

/// The products of the matrices in the last two axes, of which the axes before stretch over one another; none for operands that no accelerator holds.
pub(crate) fn product(left: &DispatchTensor, right: &DispatchTensor) -> Option<DispatchTensor> {
    let (left, right) = (operand(left)?, operand(right)?);
    let out = init_matmul_output(&left, &right, left.dtype);
    let element = dtype_to_storage_type(left.dtype);
    let mut elements = MatmulElems::from_globals(&MatmulGlobalElems { lhs: element, rhs: element, out: element });
    let strategy = Strategy::SimpleUnit(Default::default()).into();
    let [left, right] = [left, right].map(|matrix| InputBinding::new(matrix.binding(), element));
    launch_ref(&strategy, &out.client, left, right, out.clone().binding(), &mut elements).ok()?;
    Some(value(out))
}
