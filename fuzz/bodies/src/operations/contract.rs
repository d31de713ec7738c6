//! What the text of `wit/` says of shapes and dtypes, written from that text alone: for each function, whether a call with these arguments is misuse, and if not,
//! the shape and dtype of what it gives. Nothing here asks the engine.

use kilnbox_tensor::DType;

/// The largest rank of a tensor.
const MAX_RANK: usize = 8;
/// The most bytes that a tensor may have, were there memory for it.
const MOST_BYTES: u128 = i64::MAX as u128;

pub const FLOATS: &[DType] = &[DType::Float32, DType::Float64];
pub const NUMBERS: &[DType] = &[DType::Float32, DType::Float64, DType::Int32, DType::Int64];
pub const BOOLEAN: &[DType] = &[DType::Boolean];
pub const ALL: &[DType] = &[DType::Float32, DType::Float64, DType::Int32, DType::Int64, DType::Boolean];

/// What a tensor is, as far as a caller can tell in advance.
#[derive(Clone, Debug, PartialEq)]
pub struct Kind {
    pub dtype: DType,
    pub shape: Vec<usize>,
}

impl Kind {
    /// A tensor of this shape, if there may be one.
    pub fn new(dtype: DType, shape: &[usize]) -> Option<Self> {
        // A size of 0 takes no memory, but the others must still be ones that can be counted.
        let bytes = shape
            .iter()
            .try_fold(dtype.size() as u128, |bytes, &size| bytes.checked_mul(size.max(1) as u128))
            .filter(|&bytes| bytes <= MOST_BYTES)?;
        let _ = bytes;
        (shape.len() <= MAX_RANK).then(|| Self { dtype, shape: shape.to_vec() })
    }

    pub fn rank(&self) -> usize {
        self.shape.len()
    }

    pub fn count(&self) -> usize {
        self.shape.iter().product()
    }

    pub fn bytes(&self) -> usize {
        self.count() * self.dtype.size()
    }

    fn is(&self, allowed: &[DType]) -> Option<()> {
        allowed.contains(&self.dtype).then_some(())
    }

    fn with(&self, axis: usize, size: usize) -> Option<Self> {
        let mut shape = self.shape.clone();
        *shape.get_mut(axis)? = size;
        Self::new(self.dtype, &shape)
    }
}

fn same_dtype(operands: &[&Kind], allowed: &[DType]) -> Option<DType> {
    let first = operands.first()?;
    first.is(allowed)?;
    operands.iter().all(|operand| operand.dtype == first.dtype).then_some(first.dtype)
}

/// Numpy's rule: aligned at the last axis, an axis of size 1 stretches.
pub fn stretched(a: &[usize], b: &[usize]) -> Option<Vec<usize>> {
    let mut shape = Vec::new();
    let (mut left, mut right) = (a.iter().rev(), b.iter().rev());
    loop {
        match (left.next(), right.next()) {
            (None, None) => break,
            (Some(&size), None) | (None, Some(&size)) => shape.push(size),
            (Some(&x), Some(&y)) if x == y || y == 1 => shape.push(x),
            (Some(&1), Some(&y)) => shape.push(y),
            _ => return None,
        }
    }
    shape.reverse();
    Some(shape)
}

pub fn from_values(shape: &[usize], dtype: DType, allowed: &[DType], values: usize) -> Option<Kind> {
    let kind = Kind::new(dtype, shape)?;
    (allowed.contains(&dtype) && kind.count() == values).then_some(kind)
}

pub fn unary(a: &Kind, allowed: &[DType]) -> Option<Kind> {
    a.is(allowed)?;
    Some(a.clone())
}

pub fn binary(a: &Kind, b: &Kind, allowed: &[DType]) -> Option<Kind> {
    Kind::new(same_dtype(&[a, b], allowed)?, &stretched(&a.shape, &b.shape)?)
}

pub fn comparison(a: &Kind, b: &Kind) -> Option<Kind> {
    Kind::new(DType::Boolean, &binary(a, b, NUMBERS)?.shape)
}

pub fn is_finite(a: &Kind) -> Option<Kind> {
    a.is(FLOATS)?;
    Kind::new(DType::Boolean, &a.shape)
}

pub fn clamp(a: &Kind, low: f64, high: f64) -> Option<Kind> {
    (low <= high).then_some(())?;
    unary(a, FLOATS)
}

pub fn where_(condition: &Kind, a: &Kind, b: &Kind) -> Option<Kind> {
    condition.is(BOOLEAN)?;
    let sides = stretched(&a.shape, &b.shape)?;
    Kind::new(same_dtype(&[a, b], ALL)?, &stretched(&condition.shape, &sides)?)
}

/// A reduction over these axes, none of which is given twice.
pub fn reduced(a: &Kind, axes: &[usize], keep: bool, allowed: &[DType]) -> Option<Kind> {
    a.is(allowed)?;
    let mut gone = vec![axes.is_empty(); a.rank()];
    for &axis in axes {
        let entry = gone.get_mut(axis)?;
        (!std::mem::replace(entry, true)).then_some(())?;
    }
    let mut shape = Vec::new();
    for (&size, gone) in a.shape.iter().zip(gone) {
        match (gone, keep) {
            (true, true) => shape.push(1),
            (true, false) => {}
            (false, _) => shape.push(size),
        }
    }
    Kind::new(a.dtype, &shape)
}

pub fn extreme(a: &Kind, axis: usize, keep: bool) -> Option<Kind> {
    (*a.shape.get(axis)? > 0).then_some(())?;
    reduced(a, &[axis], keep, FLOATS)
}

pub fn all_or_any(a: &Kind) -> Option<Kind> {
    a.is(BOOLEAN)?;
    Kind::new(DType::Boolean, &[])
}

pub fn reshape(a: &Kind, shape: &[usize]) -> Option<Kind> {
    Kind::new(a.dtype, shape).filter(|kind| kind.count() == a.count())
}

pub fn permute(a: &Kind, axes: &[usize]) -> Option<Kind> {
    let mut sorted = axes.to_vec();
    sorted.sort_unstable();
    sorted.iter().copied().eq(0..a.rank()).then_some(())?;
    Kind::new(a.dtype, &axes.iter().map(|&axis| a.shape[axis]).collect::<Vec<_>>())
}

pub fn broadcast_to(a: &Kind, shape: &[usize]) -> Option<Kind> {
    (stretched(&a.shape, shape)? == shape).then_some(())?;
    Kind::new(a.dtype, shape)
}

pub fn concatenate(tensors: &[&Kind], axis: usize) -> Option<Kind> {
    let dtype = same_dtype(tensors, ALL)?;
    let mut shape = tensors[0].shape.clone();
    *shape.get_mut(axis)? = 0;
    for tensor in tensors {
        (tensor.rank() == shape.len()).then_some(())?;
        for (k, &size) in tensor.shape.iter().enumerate() {
            if k == axis {
                shape[k] = shape[k].checked_add(size)?;
            } else if shape[k] != size {
                return None;
            }
        }
    }
    Kind::new(dtype, &shape)
}

pub fn slice(a: &Kind, axis: usize, start: usize, end: usize) -> Option<Kind> {
    (start <= end && end <= *a.shape.get(axis)?).then_some(())?;
    a.with(axis, end - start)
}

/// Indices with their values.
pub struct Indices<'a> {
    pub kind: &'a Kind,
    /// Empty unless they are integers.
    pub values: &'a [i64],
}

impl Indices<'_> {
    fn below(&self, size: usize) -> Option<()> {
        let fits = |&index: &i64| usize::try_from(index).is_ok_and(|index| index < size);
        (self.kind.dtype == DType::Int64 && self.values.iter().all(fits)).then_some(())
    }

    fn row_below(&self, size: usize) -> Option<usize> {
        self.below(size)?;
        match self.kind.shape[..] {
            [rows] => Some(rows),
            _ => None,
        }
    }
}

pub fn select(a: &Kind, axis: usize, indices: &Indices<'_>) -> Option<Kind> {
    let rows = indices.row_below(*a.shape.get(axis)?)?;
    a.with(axis, rows)
}

pub fn index_add(a: &Kind, axis: usize, indices: &Indices<'_>, size: usize) -> Option<Kind> {
    a.is(FLOATS)?;
    (indices.row_below(size)? == *a.shape.get(axis)?).then_some(())?;
    a.with(axis, size)
}

pub fn gather(a: &Kind, axis: usize, indices: &Indices<'_>) -> Option<Kind> {
    indices.below(*a.shape.get(axis)?)?;
    let size = *indices.kind.shape.get(axis)?;
    a.with(axis, size).filter(|kind| kind.shape == indices.kind.shape)
}

pub fn scatter_add(a: &Kind, axis: usize, indices: &Indices<'_>, size: usize) -> Option<Kind> {
    a.is(FLOATS)?;
    indices.below(size)?;
    (indices.kind.shape == a.shape).then_some(())?;
    a.with(axis, size)
}

pub fn outer_sum(left: &Kind, right: &Kind, segments: &Indices<'_>, count: usize) -> Option<Kind> {
    let dtype = same_dtype(&[left, right], FLOATS)?;
    let rows = segments.row_below(count)?;
    match (&left.shape[..], &right.shape[..]) {
        (&[x, m], &[y, n]) if x == rows && y == rows => Kind::new(dtype, &[count, m, n]),
        _ => None,
    }
}

/// `contract-left`, or with `right` set `contract-right`.
pub fn contract(rows: &Kind, blocks: &Kind, segments: &Indices<'_>, right: bool) -> Option<Kind> {
    let dtype = same_dtype(&[rows, blocks], FLOATS)?;
    let (&[p, inner], &[count, m, n]) = (&rows.shape[..], &blocks.shape[..]) else { return None };
    (segments.row_below(count)? == p).then_some(())?;
    match right {
        false if inner == m => Kind::new(dtype, &[p, n]),
        true if inner == n => Kind::new(dtype, &[p, m]),
        _ => None,
    }
}

pub fn matmul(a: &Kind, b: &Kind) -> Option<Kind> {
    let dtype = same_dtype(&[a, b], FLOATS)?;
    let ([batch_a @ .., m, k], [batch_b @ .., rows, n]) = (&a.shape[..], &b.shape[..]) else { return None };
    (k == rows).then_some(())?;
    let mut shape = stretched(batch_a, batch_b)?;
    shape.extend([*m, *n]);
    Kind::new(dtype, &shape)
}

pub fn solve(a: &Kind, b: &Kind) -> Option<Kind> {
    same_dtype(&[a, b], FLOATS)?;
    match (&a.shape[..], &b.shape[..]) {
        ([n, columns], [rows, _]) if n == columns && n == rows => Some(b.clone()),
        _ => None,
    }
}

pub fn softmax(a: &Kind, axis: usize) -> Option<Kind> {
    (axis < a.rank()).then_some(())?;
    unary(a, FLOATS)
}

pub fn norm(a: &Kind, epsilon: f64) -> Option<Kind> {
    (epsilon >= 0.0 && epsilon.is_finite() && a.shape.last().is_some_and(|&size| size > 0)).then_some(())?;
    unary(a, FLOATS)
}

pub fn linear(a: &Kind, weight: &Kind, bias: Option<&Kind>) -> Option<Kind> {
    let operands: Vec<&Kind> = [a, weight].into_iter().chain(bias).collect();
    let dtype = same_dtype(&operands, FLOATS)?;
    let (&[inputs, outputs], [leading @ .., last]) = (&weight.shape[..], &a.shape[..]) else { return None };
    (inputs == *last && bias.is_none_or(|bias| bias.shape == [outputs])).then_some(())?;
    Kind::new(dtype, &[leading, &[outputs]].concat())
}

pub fn gated_linear_unit(a: &Kind) -> Option<Kind> {
    a.is(FLOATS)?;
    let &last = a.shape.last()?;
    (last % 2 == 0).then_some(())?;
    a.with(a.rank() - 1, last / 2)
}

/// `of_rows` are queries, keys and values.
pub fn attention(
    of_rows: [&Kind; 3],
    bias: &Kind,
    segments: &Indices<'_>,
    count: usize,
    heads: usize,
    scale: f64,
) -> Option<Kind> {
    let [queries, keys, values] = of_rows;
    same_dtype(&[queries, keys, values, bias], FLOATS)?;
    let [rows, columns] = queries.shape[..] else { return None };
    let fits = keys.shape == queries.shape
        && values.shape == queries.shape
        && bias.shape == [rows]
        && segments.row_below(count)? == rows
        && heads > 0
        && columns % heads == 0
        && scale.is_finite();
    fits.then(|| queries.clone())
}

pub fn solid_harmonics(vectors: &Kind, max_degree: usize) -> Option<Kind> {
    vectors.is(FLOATS)?;
    match vectors.shape[..] {
        [rows, 3] if max_degree <= 16 => Kind::new(vectors.dtype, &[rows, (max_degree + 1).pow(2)]),
        _ => None,
    }
}

pub fn piecewise_polynomial(x: &Kind, coefficients: &Kind, is_tracked: bool, lower: f64, upper: f64) -> Option<Kind> {
    let dtype = same_dtype(&[x, coefficients], FLOATS)?;
    let bounds_fit = lower.is_finite() && upper.is_finite() && lower < upper;
    match (&x.shape[..], &coefficients.shape[..]) {
        (&[rows], &[intervals, 1..=16, functions]) if intervals > 0 && bounds_fit && !is_tracked => {
            Kind::new(dtype, &[rows, functions])
        }
        _ => None,
    }
}

pub fn grad(outputs: &[&Kind], inputs: &[&Kind], output_gradients: &[&Kind]) -> Option<Vec<Kind>> {
    outputs.iter().chain(inputs).all(|tensor| FLOATS.contains(&tensor.dtype)).then_some(())?;
    (output_gradients.is_empty() || output_gradients == outputs).then_some(())?;
    Some(inputs.iter().map(|&input| input.clone()).collect())
}

/// The lists of parameters, gradients, first and second moments.
pub fn adam(lists: [&[&Kind]; 4], betas: [f64; 2], step: u64) -> Option<Vec<Kind>> {
    let length = lists[0].len();
    (lists.iter().all(|list| list.len() == length) && step > 0).then_some(())?;
    betas.iter().all(|&beta| (0.0..1.0).contains(&beta)).then_some(())?;
    let mut kinds = Vec::new();
    for k in 0..length {
        let four = lists.map(|list| list[k]);
        four[0].is(FLOATS)?;
        four.iter().all(|&entry| entry == four[0]).then_some(())?;
        kinds.extend([four[0].clone(), four[0].clone(), four[0].clone()]);
    }
    Some(kinds)
}

pub fn random(shape: &[usize], dtype: DType, bounds_fit: bool) -> Option<Kind> {
    (bounds_fit && FLOATS.contains(&dtype)).then_some(())?;
    Kind::new(dtype, shape)
}
