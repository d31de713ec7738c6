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

/// Fewer rows than this are not worth a sum of their own.
const FEWEST_ROWS: usize = 256;
/// As many parts of results keep a large device busy: each is some thousand elements.
const PARTS: usize = 256;
/// The elements of a part.
const OF_A_PART: usize = 64 * 64;

/// `left^T right`, the gradient of weights: sums over all rows for a result that may be small. Many rows are multiplied in groups side by side, whose products are then added up: otherwise a
/// device with a hundred processors would use a few.
fn transposed_product(left: &Tensor, right: &Tensor) -> Value {
    let matrix = |tensor: &Tensor| {
        let columns = tensor.shape().last().copied().unwrap_or(1);
        Value::of(tensor).reshaped(&[tensor.count() / columns, columns])
    };
    let (left, right) = (matrix(left), matrix(right));
    let (rows, left_columns, right_columns) = (left.sizes()[0], left.sizes()[1], right.sizes()[1]);
    let parts = (left_columns * right_columns).div_ceil(OF_A_PART);
    let most = (PARTS / parts).min(rows / FEWEST_ROWS);
    if most < 2 {
        return left.transposed().product(right);
    }
    // None is left over with a number of groups that divides the rows.
    let groups = (most / 2 + 1..=most).rev().find(|groups| rows.is_multiple_of(*groups)).unwrap_or(most);
    let size = rows / groups;
    let grouped = |matrix: &Value, columns: usize| matrix.part(0, 0, groups * size).reshaped(&[groups, size, columns]);
    let products = grouped(&left, left_columns).transposed().product(grouped(&right, right_columns));
    let sum = products.sum(0).reshaped(&[left_columns, right_columns]);
    let rest = rows - groups * size;
    if rest == 0 {
        return sum;
    }
    let last = |matrix: &Value| matrix.part(0, groups * size, rest);
    sum + last(&left).transposed().product(last(&right))
}

/// `left right`, plus `bias` in every row if there is one.
pub(crate) fn product(
    left: (&Tensor, bool),
    right: (&Tensor, bool),
    bias: Option<&Tensor>,
    shape: &[usize],
) -> DispatchTensor {
    let product = match (left, right) {
        ((left, true), (right, false)) => transposed_product(left, right),
        _ => operand(left).product(operand(right)),
    };
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Elements;
    use crate::{DType, Device, Misuse};

    #[test]
    fn many_rows_are_multiplied_in_groups_as_by_plain_loops() -> Result<(), Misuse> {
        // In one group, in groups that divide the rows, and with some left over.
        for rows in [300, 1024, 1031] {
            let (left_columns, right_columns) = (3, 5);
            let matrix = |columns: usize, step: usize| -> Result<_, Misuse> {
                let numbers: Vec<f64> = (0..rows * columns).map(|k| (k * step % 11) as f64 - 5.0).collect();
                let tensor = Tensor::from_float64(&Device::portable(), &[rows, columns], &numbers, DType::Float64)?;
                Ok((numbers, tensor))
            };
            let ((left, left_tensor), (right, right_tensor)) = (matrix(left_columns, 7)?, matrix(right_columns, 4)?);
            let entry = |k: usize| -> f64 {
                let (row, column) = (k / right_columns, k % right_columns);
                (0..rows).map(|i| left[i * left_columns + row] * right[i * right_columns + column]).sum()
            };
            let expected: Vec<f64> = (0..left_columns * right_columns).map(entry).collect();
            let shape = [left_columns, right_columns];
            let found = product((&left_tensor, true), (&right_tensor, false), None, &shape);
            // Sums of small whole numbers are exact.
            assert_eq!(Elements::from(found).host().values::<f64>(), expected, "{rows} rows");
        }
        Ok(())
    }
}
