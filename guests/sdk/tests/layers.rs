//! Layers that keep something of their weights, beside those that do not.

mod support;

use kilnbox_sdk::{
    info::DType,
    layers::{
        Activation, AfterNorm, LayerNorm, Linear, Module, Norm, RmsNorm, SpeciesLayerNorm, SpeciesLinear, SpeciesMlp,
    },
    native, random,
    tensor::Tensor,
};
use kilnbox_tensor::Device;
use support::{Listener, assert_close};

const DTYPE: DType = DType::Float64;
const INPUTS: usize = 5;
/// Sums of five products in another order.
const ROUNDING: f64 = 1e-13;

fn uniform(shape: &[usize]) -> Tensor {
    random::uniform(shape, -1.0, 1.0, DTYPE)
}

/// Gives a module other weights, which are constant or learned.
fn replace(module: &mut impl Module, is_constant: bool) {
    module.visit(&mut |_, parameter| {
        let fresh = uniform(&parameter.shape());
        *parameter = if is_constant { fresh } else { fresh.track() };
    });
}

#[test]
fn a_layer_after_a_norm_is_that_of_its_present_weights() {
    native::enter(Device::cpu(), 3, Box::new(Listener::default()));
    let norms = [Norm::Layer(LayerNorm::new(INPUTS, DTYPE)), Norm::Rms(RmsNorm::new(INPUTS, DTYPE))];
    for (mut norm, has_bias) in norms.into_iter().zip([true, false]) {
        let mut layer = Linear::new(INPUTS, 4, has_bias, DTYPE);
        let mut kept = AfterNorm::<Linear>::default();
        for (round, is_constant) in [false, true, true, false, true].into_iter().enumerate() {
            kept.forget();
            replace(&mut norm, is_constant);
            replace(&mut layer, is_constant);
            // Fewer rows than what makes scaling the weights worth it, and more.
            for rows in [1, 3, 40] {
                let x = uniform(&[rows, INPUTS]);
                let (found, expected) = (kept.forward(&layer, &norm, &x), layer.forward(&norm.forward(&x)));
                assert_close(&found, &expected, ROUNDING, &format!("{rows} rows in round {round}"));
                assert_eq!(found.is_tracked(), !is_constant);
            }
        }
    }
}

#[test]
fn layers_of_species_after_a_norm_are_those_of_their_present_weights() {
    native::enter(Device::cpu(), 4, Box::new(Listener::default()));
    for has_bias in [true, false] {
        let mut norm = SpeciesLayerNorm::new(3, INPUTS, DTYPE);
        let mut layers = SpeciesMlp::new(3, &[INPUTS, 4, 2], has_bias, Activation::Silu, DTYPE);
        let mut kept = AfterNorm::<SpeciesLinear>::default();
        for (round, is_constant) in [false, true, true, false, true].into_iter().enumerate() {
            kept.forget();
            replace(&mut norm, is_constant);
            replace(&mut layers, is_constant);
            for rows in [2, 40] {
                let x = uniform(&[rows, INPUTS]);
                let species = Tensor::from_vec_i64(&[rows], (0..rows as i64).map(|row| row * 2 % 3).collect());
                let expected = layers.forward(&norm.forward(&x, &species), &species);
                let found = kept.forward(&layers, &norm, &x, &species);
                assert_close(&found, &expected, ROUNDING, &format!("{rows} rows in round {round}"));
            }
        }
    }
}
