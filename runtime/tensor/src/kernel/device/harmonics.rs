//! Real solid harmonics, see [`crate::kernel::harmonics`]: the same recursions, for all `m` at once.

use burn_backend::Shape;
use burn_backend::ops::FloatTensorOps;
use burn_dispatch::{Dispatch, DispatchTensor};

use super::value::Value;
use crate::Tensor;
use crate::indices::on_device;
use crate::kernel::harmonics::norm;

pub(crate) fn forward(vectors: &Tensor, max_degree: usize, shape: &[usize]) -> DispatchTensor {
    let (rows, orders) = (shape[0], max_degree + 1);
    let all = Value::of(vectors);
    let [x, y, z] = [0, 1, 2].map(|axis| all.part(1, axis, 1));
    let square = (all.clone() * all).sum(1);
    let row = |numbers: Vec<f64>| Value::numbers(vectors, &[1, numbers.len()], &numbers);
    let column = |degree: usize, order: usize| degree * orders + order;

    // Cosines and sines of m phi, with the factors that V_m^m has.
    let one = Value(Dispatch::float_ones(
        Shape::from(vec![rows, 1]),
        &vectors.device().dispatch(),
        vectors.dtype().burn().into(),
    ));
    let mut angles = vec![(one, Value::zeros(vectors, &[rows, 1]))];
    for m in 1..orders {
        let (cosine, sine) = angles[m - 1].clone();
        let half = 0.5 / m as f64;
        let next = cosine.clone() * x.clone() - sine.clone() * y.clone();
        angles.push((next.times(half), (cosine * y.clone() + sine * x.clone()).times(half)));
    }
    let (cosines, sines): (Vec<Value>, Vec<Value>) = angles.into_iter().unzip();
    let angles = Value::joined(cosines.into_iter().chain(sines).collect(), 1);

    // The common factor of both, relative to degree m: (l^2 - m^2) V_l^m = (2 l - 1) z V_(l-1)^m - r^2 V_(l-2)^m.
    let beginning = |degree: usize| row((0..orders).map(|m| f64::from(u8::from(m == degree))).collect());
    let mut factors = vec![Value::zeros(vectors, &[rows, orders]) + beginning(0)];
    for degree in 1..orders {
        let over = |numerator: f64| {
            let factor = |m: usize| if m < degree { numerator / ((degree - m) * (degree + m)) as f64 } else { 0.0 };
            row((0..orders).map(factor).collect())
        };
        let mut next = z.clone() * factors[degree - 1].clone() * over((2 * degree - 1) as f64) + beginning(degree);
        if degree > 1 {
            next = next - square.clone() * factors[degree - 2].clone() * over(1.0);
        }
        factors.push(next);
    }
    let factors = Value::joined(factors, 1);

    let (mut factor_places, mut angle_places, mut norms) = (Vec::new(), Vec::new(), Vec::new());
    for degree in 0..orders {
        for m in -(degree as isize)..=degree as isize {
            let order = m.unsigned_abs();
            factor_places.push(column(degree, order));
            angle_places.push(if m < 0 { orders + order } else { order });
            norms.push(norm(degree, order));
        }
    }
    let device = vectors.device();
    let factors = factors.selected(1, &on_device(factor_places.into_iter(), &device));
    let angles = angles.selected(1, &on_device(angle_places.into_iter(), &device));
    (factors * angles * row(norms)).0
}
