//! One step of Adam.

use burn_cubecl::cubecl;
use burn_dispatch::DispatchTensor;
use cubecl::ir::ElemType;
use cubecl::prelude::*;

use super::{buffer, each, element, number, operands, room, value};

use crate::Tensor;
use crate::op::optimizer::AdamOptions;

/// What a step needs to know beside the tensors. Differences from 1 are made by the host: single precision would leave three digits of them.
#[derive(CubeLaunch, CubeType)]
struct Rates {
    keep: InputScalar,
    decay: InputScalar,
    beta1: InputScalar,
    rest1: InputScalar,
    beta2: InputScalar,
    rest2: InputScalar,
    rate: InputScalar,
    scale: InputScalar,
    epsilon: InputScalar,
}

#[cube(launch)]
fn step<F: Float>(
    parameter: &[F],
    gradient: &[F],
    first: &[F],
    second: &[F],
    new_parameter: &mut [F],
    new_first: &mut [F],
    new_second: &mut [F],
    count: usize,
    rates: &Rates,
    #[define(F)] _dtype: ElemType,
) {
    let k = ABSOLUTE_POS;
    if k < count {
        let gradient = gradient[k] + parameter[k] * rates.decay.get::<F>();
        let first = first[k] * rates.beta1.get::<F>() + gradient * rates.rest1.get::<F>();
        let second = second[k] * rates.beta2.get::<F>() + gradient * gradient * rates.rest2.get::<F>();
        let root = second.sqrt() * rates.scale.get::<F>() + rates.epsilon.get::<F>();
        new_parameter[k] = parameter[k] * rates.keep.get::<F>() - first * rates.rate.get::<F>() / root;
        new_first[k] = first;
        new_second[k] = second;
    }
}

/// The new value of a parameter and its moments.
pub(crate) fn adam(four: [&Tensor; 4], options: &AdamOptions) -> Option<[DispatchTensor; 3]> {
    let shape = four[0].shape();
    let [parameter, gradient, first, second] = operands(four)?;
    let (rate, correction) = options.corrected();
    let decay = if options.decoupled { 0.0 } else { options.weight_decay };
    let keep = if options.decoupled { 1.0 - options.learning_rate * options.weight_decay } else { 1.0 };
    let rates = [
        keep,
        decay,
        options.beta1,
        1.0 - options.beta1,
        options.beta2,
        1.0 - options.beta2,
        rate,
        1.0 / correction,
        options.epsilon,
    ];
    let [keep, decay, beta1, rest1, beta2, rest2, rate, scale, epsilon] = rates.map(|rate| number(&parameter, rate));
    let results = [(); 3].map(|()| room(&parameter, shape));
    let elements = four[0].count();
    let (cubes, dim) = each(&parameter, elements);
    let [new_parameter, new_first, new_second] = results.clone().map(buffer);
    step::launch(
        &parameter.client.clone(),
        cubes,
        dim,
        buffer(parameter.clone()),
        buffer(gradient),
        buffer(first),
        buffer(second),
        new_parameter,
        new_first,
        new_second,
        elements,
        RatesLaunch::new(keep, decay, beta1, rest1, beta2, rest2, rate, scale, epsilon),
        element(&parameter),
    );
    Some(results.map(value))
}
