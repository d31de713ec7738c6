//! The errors of an epoch, from those of its batches.

use crate::{
    metrics::{ErrorSums, Measured},
    tensor::Tensor,
};

/// Errors of one batch in one quantity, summed on the device.
pub(super) struct Term {
    pub(super) measured: Measured,
    pub(super) squared: Tensor,
    pub(super) absolute: Option<Tensor>,
    pub(super) count: usize,
    /// Scaled errors times this are physical.
    pub(super) scale: f64,
}

/// Scalars that are added up on the host, though not one by one: reading each at once would make the device wait.
#[derive(Default)]
struct Sum {
    pending: Vec<Tensor>,
    sum: f64,
}

impl Sum {
    /// So many scalars are read together.
    const PENDING: usize = 256;

    fn add(&mut self, scalar: Tensor) {
        self.pending.push(scalar.reshape(&[1]));
        if self.pending.len() == Self::PENDING {
            self.read();
        }
    }

    fn read(&mut self) {
        if !self.pending.is_empty() {
            let pending = std::mem::take(&mut self.pending);
            self.sum += Tensor::concatenate(&pending.iter().collect::<Vec<_>>(), 0).to_vec_f64().iter().sum::<f64>();
        }
    }

    fn total(mut self) -> f64 {
        self.read();
        self.sum
    }
}

/// The errors of an epoch.
#[derive(Default)]
pub(super) struct Totals {
    loss: Sum,
    batches: usize,
    quantities: Vec<Quantity>,
}

struct Quantity {
    measured: Measured,
    squared: Sum,
    absolute: Sum,
    count: usize,
    scale: f64,
}

impl Totals {
    pub(super) fn add(&mut self, loss: &Tensor, terms: Vec<Term>) {
        self.loss.add(loss.detach());
        self.batches += 1;
        for term in terms {
            let position =
                self.quantities.iter().position(|quantity| quantity.measured == term.measured).unwrap_or_else(|| {
                    let (squared, absolute) = <(Sum, Sum)>::default();
                    self.quantities.push(Quantity {
                        measured: term.measured,
                        squared,
                        absolute,
                        count: 0,
                        scale: term.scale,
                    });
                    self.quantities.len() - 1
                });
            let quantity = &mut self.quantities[position];
            quantity.squared.add(term.squared);
            if let Some(absolute) = term.absolute {
                quantity.absolute.add(absolute);
            }
            quantity.count += term.count;
        }
    }

    /// The mean loss of a batch, and the errors in physical units.
    pub(super) fn finish(self) -> (f64, Vec<(Measured, ErrorSums)>) {
        let loss = self.loss.total() / self.batches as f64;
        let errors = self.quantities.into_iter().map(|quantity| {
            let Quantity { measured, squared, absolute, count, scale } = quantity;
            (
                measured,
                ErrorSums { squared: squared.total() * scale * scale, absolute: absolute.total() * scale, count },
            )
        });
        (loss, errors.collect())
    }
}
