//! Attention within segments, see [`crate::kernel::attention`].
//!
//! Here a *matrix of weights* has room for as many rows as the largest segment has in every segment. Where that would make it much larger, segments of similar
//! size form a *class*, and a matrix of weights is that of each class after another: `[segments, heads, size, size]`. The entries that belong to no pair of
//! rows are 0 in the result of every function, whatever its operands.

use burn_backend::ops::{BoolTensorOps, FloatTensorOps};
use burn_backend::{Scalar, Shape};
use burn_dispatch::{Dispatch, DispatchTensor};

#[cfg(feature = "accelerator")]
use super::compiled::attention::{self as compiled, OfRows};
use super::value::Value;
use crate::Tensor;
use crate::indices::{check_countable, on_device};
use crate::kernel::segment::Groups;
use crate::memory::{BOOKKEEPING, Reservation};
use crate::tensor::{checked_bytes, guarded};
use crate::{Misuse, memory};

/// How many times as large as it must be a matrix of weights may become, for all segments to be of one class.
const SLACK: usize = 3;
/// What a class takes beside its numbers, in what a tensor takes beside its elements.
const HANDLES: usize = 2;
/// Lower than any score that is a number, in single precision, too.
const LOWEST: f64 = -3e38;

/// Which rows attend to one another.
pub(crate) struct Classes {
    pub(super) classes: Vec<Class>,
    pub(super) heads: usize,
    /// The number of rows.
    #[cfg(feature = "accelerator")]
    pub(super) count: usize,
    entries: usize,
    pairs: usize,
    /// For each row its place among those of all classes.
    places: DispatchTensor,
    _bytes: [Reservation; 2],
}

/// Segments of similar size.
pub(super) struct Class {
    pub(super) segments: usize,
    pub(super) size: usize,
    /// Where its entries begin.
    pub(super) start: usize,
    /// For each place its row, or one past the end for zeros.
    pub(super) rows: DispatchTensor,
    /// Where there is no pair of rows: `[segments, heads, size, size]`, stretched.
    no_pair: DispatchTensor,
}

/// The size of the class that a segment belongs to, if there are several.
fn class_size(size: usize) -> usize {
    size.next_power_of_two()
}

impl Classes {
    /// The entries that a matrix of weights has, how many it needs, and the sizes of the classes; none if they cannot be counted.
    fn sizes(groups: &Groups, count: usize, heads: usize) -> Option<(usize, usize, Vec<usize>)> {
        let sizes = || (0..count).map(|segment| groups.rows(segment).len()).filter(|&size| size > 0);
        let total = |class: &dyn Fn(usize) -> usize| {
            sizes().try_fold(0_usize, |sum, size| {
                sum.checked_add(class(size).checked_mul(class(size))?.checked_mul(heads)?)
            })
        };
        let least = total(&|size| size)?;
        let largest = sizes().max()?;
        if let Some(whole) = total(&|_| largest).filter(|&whole| whole / SLACK <= least) {
            return Some((whole, least, vec![largest]));
        }
        let mut classes: Vec<usize> = sizes().map(class_size).collect();
        classes.sort_unstable();
        classes.dedup();
        Some((total(&class_size)?, least, classes))
    }

    /// For `like`'s device, which holds `like`. None if there are more entries than can be counted.
    pub(crate) fn new(
        operation: &'static str,
        segments: &Tensor,
        count: usize,
        heads: usize,
        like: &Tensor,
        tables: Reservation,
    ) -> Result<Option<Self>, Misuse> {
        let host = segments.host();
        let groups = Groups::new(host.values(), count);
        let Some((entries, needed, sizes)) = Self::sizes(&groups, count, heads) else { return Ok(None) };
        check_countable(operation, entries)?;
        // The masks of pairs, one for all heads.
        let masks = checked_bytes(operation, &[entries / heads], like.dtype())?;
        let handles = (sizes.len() + 1).saturating_mul(HANDLES * BOOKKEEPING);
        let masks = memory::reserve(operation, masks.saturating_add(handles))?;
        let device = like.device();
        guarded(&device, || {
            let rows = groups.count();
            let mut places = vec![0; rows];
            let (mut classes, mut start, mut place) = (Vec::new(), 0, 0);
            for &size in &sizes {
                let belongs = |&segment: &usize| {
                    let own = groups.rows(segment).len();
                    own > 0 && (sizes.len() == 1 || class_size(own) == size)
                };
                let mut sources = Vec::new();
                for segment in (0..count).filter(belongs) {
                    for at in groups.rows(segment) {
                        places[groups.row(at)] = place + sources.len();
                        sources.push(groups.row(at));
                    }
                    sources.resize(sources.len().div_ceil(size) * size, rows);
                }
                let segments = sources.len() / size;
                place += sources.len();
                classes.push(Class::new([segments, heads, size], start, &sources, rows, like));
                start += segments * heads * size * size;
            }
            let places = on_device(places.into_iter(), &device);
            Ok(Some(Self {
                classes,
                heads,
                #[cfg(feature = "accelerator")]
                count: rows,
                entries,
                pairs: needed / heads,
                places,
                _bytes: [tables, masks],
            }))
        })
    }

    /// The number of entries of a matrix of weights.
    pub(crate) fn entries(&self) -> usize {
        self.entries
    }

    /// How many multiplications it takes to go through all pairs of rows of `features` elements.
    pub(crate) fn multiplications(&self, features: usize) -> f64 {
        self.pairs as f64 * features as f64
    }

    /// A matrix of weights, put together from what `of` gives for each class: `[segments, heads, size, size]`.
    fn weights(&self, of: impl Fn(&Class) -> Value) -> DispatchTensor {
        let parts = self.classes.iter().map(|class| {
            let entries = class.entries(self.heads);
            of(class).reshaped(&[entries])
        });
        Value::joined(parts.collect(), 0).0
    }

    /// Rows of so many features, from what `of` gives for each class: `[segments, heads, size, width]`.
    fn rows(&self, features: usize, of: impl Fn(&Class) -> Value) -> Value {
        let parts = self
            .classes
            .iter()
            .map(|class| of(class).permuted(&[0, 2, 1, 3]).reshaped(&[class.segments * class.size, features]));
        Value::joined(parts.collect(), 0).selected(0, &self.places)
    }
}

impl Class {
    fn new([segments, heads, size]: [usize; 3], start: usize, sources: &[usize], rows: usize, like: &Tensor) -> Self {
        let is_row: Vec<f64> = sources.iter().map(|&source| f64::from(u8::from(source < rows))).collect();
        let is_row = Value::numbers(like, &[segments, 1, 1, size], &is_row);
        let is_pair = is_row.clone().transposed() * is_row;
        let no_pair = Dispatch::float_equal_elem(is_pair.0, Scalar::Float(0.0), like.device().booleans());
        let no_pair = Dispatch::bool_expand(no_pair, Shape::from(vec![segments, heads, size, size]));
        Self { segments, size, start, rows: on_device(sources.iter().copied(), &like.device()), no_pair }
    }

    pub(super) fn entries(&self, heads: usize) -> usize {
        self.segments * heads * self.size * self.size
    }

    /// The rows of the class: `[segments, heads, size, width]`.
    fn of_rows(&self, rows: &Tensor, heads: usize, width: usize) -> Value {
        let zeros = Value::zeros(rows, &[1, heads * width]);
        let all = Value::joined(vec![Value::of(rows).reshaped(&[rows.shape()[0], heads * width]), zeros], 0);
        all.selected(0, &self.rows).reshaped(&[self.segments, self.size, heads, width]).permuted(&[0, 2, 1, 3])
    }

    /// The weights of the class: `[segments, heads, size, size]`.
    fn of_weights(&self, weights: &Tensor, heads: usize) -> Value {
        let part = Value::of(weights).part(0, self.start, self.entries(heads));
        part.reshaped(&[self.segments, heads, self.size, self.size])
    }

    /// `value` where there is no pair, even in the place of what is no number.
    fn filled(&self, weights: Value, value: f64) -> Value {
        Value(Dispatch::float_mask_fill(weights.0, self.no_pair.clone(), Scalar::Float(value)))
    }
}

/// `out[h, i, j] = sum over d of left[i, h, d] * right[j, h, d]` for rows `i` and `j` of each segment.
pub(crate) fn scores(left: &Tensor, right: &Tensor, classes: &Classes) -> DispatchTensor {
    own_kernel!(compiled::scores(left, right, classes));
    let (heads, width) = (classes.heads, left.shape()[1] / classes.heads);
    classes.weights(|class| {
        let right = class.of_rows(right, heads, width).transposed();
        class.filled(class.of_rows(left, heads, width).product(right), 0.0)
    })
}

/// `out[i, h, d] = sum over j of weights[h, i, j] * rows[j, h, d]`, or with `transposed` the sum over `i` of `weights[h, i, j] * rows[i, h, d]`.
pub(crate) fn mix(weights: &Tensor, rows: &Tensor, classes: &Classes, transposed: bool) -> DispatchTensor {
    own_kernel!(compiled::mix(weights, rows, classes, transposed));
    let (heads, features) = (classes.heads, rows.shape()[1]);
    let mixed = classes.rows(features, |class| {
        let weights = class.of_weights(weights, heads);
        let weights = if transposed { weights.transposed() } else { weights };
        weights.product(class.of_rows(rows, heads, features / heads))
    });
    mixed.0
}

/// `out[h, i, j] = values[j]`.
pub(crate) fn columns(values: &Tensor, classes: &Classes) -> DispatchTensor {
    own_kernel!(compiled::columns(values, classes));
    classes.weights(|class| {
        let row = class.of_rows(values, 1, 1).reshaped(&[class.segments, 1, 1, class.size]);
        let whole = Shape::from(vec![class.segments, classes.heads, class.size, class.size]);
        class.filled(Value(Dispatch::float_expand(row.0, whole)), 0.0)
    })
}

/// The transpose of [`columns`]: `out[j]` is the sum over `h` and `i` of `weights[h, i, j]`.
pub(crate) fn column_sums(weights: &Tensor, classes: &Classes) -> DispatchTensor {
    own_kernel!(compiled::column_sums(weights, classes));
    let sums = classes.rows(1, |class| {
        let rows = class.of_weights(weights, classes.heads).reshaped(&[
            class.segments,
            classes.heads * class.size,
            class.size,
        ]);
        rows.sum(1).reshaped(&[class.segments, 1, class.size, 1])
    });
    let count = sums.sizes()[0];
    sums.reshaped(&[count]).0
}

/// Softmax of every row.
pub(crate) fn softmax(scores: &Tensor, classes: &Classes) -> DispatchTensor {
    own_kernel!(compiled::of_rows(OfRows::Softmax, [scores; 3], classes));
    classes.weights(|class| {
        let scores = class.filled(class.of_weights(scores, classes.heads), LOWEST);
        let largest = scores.largest(3);
        let exponentials = (scores - largest).exp();
        let total = exponentials.sum(3);
        class.filled(exponentials / total, 0.0)
    })
}

/// `y (g - <y, g>)` for every row.
pub(crate) fn softmax_product(y: &Tensor, g: &Tensor, classes: &Classes) -> DispatchTensor {
    own_kernel!(compiled::of_rows(OfRows::Product, [y, g, g], classes));
    classes.weights(|class| {
        let [y, g] = [y, g].map(|weights| class.of_weights(weights, classes.heads));
        let overlap = (y.clone() * g.clone()).sum(3);
        class.filled(y * (g - overlap), 0.0)
    })
}

/// `u g - u <y, g> - g <y, u>` for every row.
pub(crate) fn softmax_curvature(three: [&Tensor; 3], classes: &Classes) -> DispatchTensor {
    own_kernel!(compiled::of_rows(OfRows::Curvature, three, classes));
    classes.weights(|class| {
        let [y, g, u] = three.map(|weights| class.of_weights(weights, classes.heads));
        let (with_g, with_u) = ((y.clone() * g.clone()).sum(3), (y * u.clone()).sum(3));
        class.filled(u * (g.clone() - with_g) - g * with_u, 0.0)
    })
}

/// Every entry becomes the sum of its row.
pub(crate) fn row_sums(weights: &Tensor, classes: &Classes) -> DispatchTensor {
    own_kernel!(compiled::of_rows(OfRows::Sum, [weights; 3], classes));
    classes.weights(|class| {
        let sums = class.of_weights(weights, classes.heads).sum(3);
        let whole = Shape::from(vec![class.segments, classes.heads, class.size, class.size]);
        class.filled(Value(Dispatch::float_expand(sums.0, whole)), 0.0)
    })
}
