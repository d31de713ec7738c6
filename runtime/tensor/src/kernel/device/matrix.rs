//! Products of matrices.

use burn_dispatch::DispatchTensor;

use super::value::Value;
use crate::Tensor;

/// All axes of an operand but the last are rows of one matrix.
fn operand((tensor, is_transposed): (&Tensor, bool)) -> Value {
    let columns = tensor.shape().last().copied().unwrap_or(1);
    let matrix = Value::of(tensor).reshaped(&[tensor.count() / columns, columns]);
    if is_transposed { matrix.transposed() } else { matrix }
}

/// `left right`, plus `bias` in every row if there is one.
pub(crate) fn product(
    left: (&Tensor, bool),
    right: (&Tensor, bool),
    bias: Option<&Tensor>,
    shape: &[usize],
) -> DispatchTensor {
    let product = operand(left).product(operand(right));
    let product = match bias {
        Some(bias) => product + Value::of(bias).reshaped(&[1, bias.count()]),
        None => product,
    };
    product.reshaped(shape).0
}

/// The products of the matrices in the last two axes; the axes before stretch to those of `shape`.
pub(crate) fn batched(left: &Tensor, right: &Tensor, shape: &[usize]) -> DispatchTensor {
    let aligned = |tensor: &Tensor| {
        let mut sizes = vec![1; shape.len() - tensor.shape().len()];
        sizes.extend_from_slice(tensor.shape());
        Value::of(tensor).reshaped(&sizes)
    };
    aligned(left).product(aligned(right)).0
}
