//! Optimizers: one host operation per step over all parameters.

use std::collections::BTreeMap;

use crate::{
    contract::optimizer,
    layers::Module,
    tensor::{Tensor, handles},
};

/// Adam, or AdamW with a weight decay.
#[derive(Default)]
pub struct Adam {
    /// Decoupled weight decay; 0 for plain Adam.
    pub weight_decay: f64,
    /// The number of steps done.
    steps: u64,
    /// First and second moment of each parameter, by name.
    moments: BTreeMap<String, (Tensor, Tensor)>,
}

impl Adam {
    /// Before the first step.
    pub fn new(weight_decay: f64) -> Adam {
        Adam { weight_decay, ..Adam::default() }
    }

    /// As it was when [`moments`](Adam::moments) and [`steps`](Adam::steps) were kept.
    pub fn resume(weight_decay: f64, steps: u64, moments: BTreeMap<String, (Tensor, Tensor)>) -> Adam {
        Adam { weight_decay, steps, moments }
    }

    /// The number of steps done.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// The running means of the gradients and of their squares.
    pub fn moments(&self) -> &BTreeMap<String, (Tensor, Tensor)> {
        &self.moments
    }

    /// Moves the parameters of `module`, which are as [`Module::parameters`] gave them, along their gradients. Who asked for gradients has the
    /// parameters at hand; to ask again would make a handle of each.
    pub fn step(
        &mut self,
        module: &mut impl Module,
        parameters: Vec<(String, Tensor)>,
        gradients: &[Tensor],
        learning_rate: f64,
    ) {
        self.steps += 1;
        let moments: Vec<(Tensor, Tensor)> = parameters
            .iter()
            .map(|(name, parameter)| {
                // a parameter that was not there before, as for a new target, begins without a memory
                self.moments.remove(name).unwrap_or_else(|| {
                    let zeros = Tensor::zeros(&parameter.shape(), parameter.dtype());
                    (zeros.clone(), zeros)
                })
            })
            .collect();
        let values: Vec<&Tensor> = parameters.iter().map(|(_, parameter)| parameter).collect();
        let gradients: Vec<&Tensor> = gradients.iter().collect();
        let (first, second): (Vec<&Tensor>, Vec<&Tensor>) =
            moments.iter().map(|(first, second)| (first, second)).unzip();
        let options = optimizer::AdamOptions {
            learning_rate,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            weight_decay: self.weight_decay,
            decoupled: true,
            step: self.steps,
        };
        let states =
            optimizer::adam(&handles(&values), &handles(&gradients), &handles(&first), &handles(&second), options);
        let mut moved = Vec::new();
        for ((name, _), state) in parameters.into_iter().zip(states) {
            let moments = (Tensor::from_handle(state.first_moment), Tensor::from_handle(state.second_moment));
            self.moments.insert(name, moments);
            moved.push(Tensor::from_handle(state.parameter));
        }
        let mut moved = moved.into_iter();
        module.visit(&mut |_, parameter| {
            if let Some(value) = moved.next() {
                *parameter = value;
            }
        });
    }
}

/// The gradients, scaled down together if their norm exceeds `maximum`.
pub fn clip_gradients(gradients: Vec<Tensor>, maximum: f64) -> Vec<Tensor> {
    let rows: Vec<Tensor> =
        gradients.iter().map(|gradient| gradient.reshape(&[gradient.shape().iter().product()])).collect();
    if rows.is_empty() {
        return gradients;
    }
    let norm = Tensor::concatenate(&rows.iter().collect::<Vec<_>>(), 0).square().sum_all().sqrt();
    drop(rows);
    // as torch does, so that a norm of 0 divides by something
    let factor = (maximum / (norm + 1e-6)).clamp(0.0, 1.0);
    gradients.into_iter().map(|gradient| gradient * &factor).collect()
}
