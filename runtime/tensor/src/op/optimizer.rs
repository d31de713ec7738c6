//! Steps of optimizers, each one operation over all parameters. Nothing is recorded.

use crate::tensor::Elements;
use crate::{Misuse, Tensor, kernel};

/// Settings of a step of Adam or AdamW.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamOptions {
    /// The learning rate of this step.
    pub learning_rate: f64,
    /// Decay of the first moment, at least 0 and below 1.
    pub beta1: f64,
    /// Decay of the second moment, at least 0 and below 1.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Weight decay; 0 for none.
    pub weight_decay: f64,
    /// Decay the weights directly (AdamW) rather than through the gradient.
    pub decoupled: bool,
    /// The number of this step, from 1.
    pub step: u64,
}

impl AdamOptions {
    /// The learning rate, and what the root of the second moment is divided by: both make up for moments that begin at zero.
    pub(crate) fn corrected(&self) -> (f64, f64) {
        let power = self.step.min(i32::MAX as u64) as i32;
        (self.learning_rate / (1.0 - self.beta1.powi(power)), (1.0 - self.beta2.powi(power)).sqrt())
    }
}

/// A parameter and what Adam remembers of it.
#[derive(Clone, Debug)]
pub struct AdamState {
    /// The parameter after the step, a tracked leaf.
    pub parameter: Tensor,
    /// The running mean of its gradients.
    pub first_moment: Tensor,
    /// The running mean of its squared gradients.
    pub second_moment: Tensor,
}

/// One step of Adam (Kingma and Ba 2015) or AdamW (Loshchilov and Hutter 2019).
///
/// # Errors
/// The lists differ in length, entries at one position in shape or dtype, or an option is out of range.
pub fn adam(
    parameters: &[&Tensor],
    gradients: &[&Tensor],
    first_moments: &[&Tensor],
    second_moments: &[&Tensor],
    options: &AdamOptions,
) -> Result<Vec<AdamState>, Misuse> {
    const NAME: &str = "optimizer.adam";
    let betas = [options.beta1, options.beta2];
    if options.step == 0 || betas.iter().any(|beta| !(0.0..1.0).contains(beta)) {
        return Err(Misuse::new(NAME, "the step counts from 1, and both betas are at least 0 and below 1"));
    }
    let lengths = [parameters.len(), gradients.len(), first_moments.len(), second_moments.len()];
    if lengths.iter().any(|&length| length != parameters.len()) {
        return Err(Misuse::new(NAME, format!("the lists have {lengths:?} entries, expected the same number")));
    }
    (0..parameters.len())
        .map(|k| {
            let four = [parameters[k], gradients[k], first_moments[k], second_moments[k]];
            super::check_dtypes(NAME, &four, super::FLOATS)?;
            if let Some(other) = four.iter().find(|tensor| tensor.shape() != four[0].shape()) {
                return Err(Misuse::new(NAME, format!("parameter {k} is {:?}, one of its tensors {other:?}", four[0])));
            }
            let options = *options;
            let run = move |four: [&Tensor; 4], _: &[usize]| match four[0].is_on_device() {
                true => kernel::device::adam(four, &options).map(Elements::from),
                false => kernel::adam(four, &options),
            };
            let [parameter, first_moment, second_moment] =
                Tensor::constants(NAME, four[0].shape(), four[0].dtype(), four, run)?;
            Ok(AdamState { parameter: crate::autodiff::track(&parameter)?, first_moment, second_moment })
        })
        .collect()
}
