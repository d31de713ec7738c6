//! Same bits whatever the number of threads, at sizes where work is split; and right values at those sizes.

use std::error::Error;

use kilnbox_tensor::op::{elementwise, index, linalg, neural, reduce, segment, shape, spherical};
use kilnbox_tensor::random::Random;
use kilnbox_tensor::{DType, Device, Misuse, Tensor, autodiff};
use support::{device, devices, on_each_device, tests_processor};

mod support;

type Fallible<T = ()> = Result<T, Box<dyn Error>>;

fn normal(shape: &[usize], seed: u64, dtype: DType) -> Result<Tensor, Misuse> {
    Random::new(seed).normal(&device(), shape, 0.0, 1.0, dtype)
}

/// Rows in no order, so that segments have to be brought together.
fn segments(rows: usize, count: usize) -> Result<Tensor, Misuse> {
    let places: Vec<i64> = (0..rows).map(|row| ((row * 7919 + row / 3) % count) as i64).collect();
    Tensor::from_int64(&device(), &[rows], &places)
}

/// Every kernel that may use several threads, on sizes above its threshold, with a gradient through each.
fn outcomes(dtype: DType) -> Fallible<Vec<(&'static str, Tensor)>> {
    let wide = autodiff::track(&normal(&[300, 700], 1, dtype)?)?;
    let narrow = autodiff::track(&normal(&[300, 40], 2, dtype)?)?;
    let weights = autodiff::track(&normal(&[700, 64], 3, dtype)?)?;
    let blocks = autodiff::track(&normal(&[5, 700, 40], 4, dtype)?)?;
    let vectors = autodiff::track(&normal(&[30_000, 3], 5, dtype)?)?;
    let places = segments(300, 5)?;
    let matrices = autodiff::track(&normal(&[20, 60, 70], 6, dtype)?)?;
    let mut results = vec![
        ("matmul", linalg::matmul(&wide, &weights)?),
        ("batched matmul", linalg::matmul(&matrices, &shape::permute(&matrices, &[0, 2, 1])?)?),
        ("outer-sum", segment::outer_sum(&wide, &narrow, &places, 5)?),
        ("outer-sum of one segment", segment::outer_sum(&wide, &narrow, &segments(300, 1)?, 1)?),
        ("contract-left", segment::contract_left(&wide, &blocks, &places)?),
        ("contract-right", segment::contract_right(&narrow, &blocks, &places)?),
        ("layer-norm", neural::layer_norm(&wide, 1e-5)?),
        ("rms-norm", neural::rms_norm(&wide, 1e-5)?),
        ("softmax", neural::softmax(&wide, 1)?),
        ("linear", neural::linear(&wide, &weights, Some(&autodiff::track(&normal(&[64], 7, dtype)?)?))?),
        ("gated-linear-unit", neural::gated_linear_unit(&wide)?),
        ("attention", {
            let bias = autodiff::track(&normal(&[300], 8, dtype)?)?;
            neural::attention(&narrow, &narrow, &narrow, &bias, &places, 5, 4, 0.3)?
        }),
        ("sum", reduce::sum(&wide, &[], false)?),
        ("sum of rows", reduce::sum(&wide, &[1], false)?),
        ("sum of columns", reduce::sum(&wide, &[0], false)?),
        ("harmonics", spherical::solid_harmonics(&vectors, 6)?),
        ("index-add", index::index_add(&wide, 0, &places, 5)?),
        ("product", elementwise::multiply(&wide, &wide)?),
        ("sigmoid", elementwise::sigmoid(&wide)?),
    ];
    let inputs = [&wide, &narrow, &weights, &blocks, &vectors, &matrices];
    for (name, output) in results.clone() {
        let energy = reduce::sum(&elementwise::multiply(&output, &output)?, &[], false)?;
        let forces = autodiff::grad(&[&energy], &inputs, &[], true)?;
        let squares = forces
            .iter()
            .map(|force| reduce::sum(&elementwise::multiply(force, force)?, &[], false))
            .collect::<Result<Vec<_>, Misuse>>()?;
        let second = autodiff::grad(&squares.iter().collect::<Vec<_>>(), &inputs, &[], false)?;
        results.extend(forces.into_iter().chain(second).map(|gradient| (name, gradient)));
    }
    Ok(results)
}

fn bits(tensor: &Tensor) -> Fallible<Vec<u64>> {
    Ok(tensor.read_float64()?.into_iter().map(f64::to_bits).collect())
}

#[test]
fn the_number_of_threads_changes_no_bit() -> Fallible {
    if !tests_processor() {
        return Ok(());
    }
    for dtype in [DType::Float32, DType::Float64] {
        let with = |threads: usize| -> Fallible<Vec<(&'static str, Vec<u64>)>> {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
            // Errors of tests cannot cross threads, their words can.
            let outcomes = pool.install(|| {
                let outcomes = outcomes(dtype).map_err(|error| error.to_string())?;
                outcomes
                    .iter()
                    .map(|(name, tensor)| Ok((*name, bits(tensor).map_err(|error| error.to_string())?)))
                    .collect::<Result<Vec<_>, String>>()
            });
            Ok(outcomes?)
        };
        let expected = with(1)?;
        for threads in [2, 3, 8] {
            for ((name, found), (_, expected)) in with(threads)?.iter().zip(&expected) {
                assert!(found == expected, "{name} in {dtype} differs with {threads} threads");
            }
        }
    }
    Ok(())
}

/// No order of a sum is left to chance on any device.
#[test]
fn a_device_gives_the_same_bits_again() -> Fallible {
    if devices() == [Device::cpu()] {
        return Ok(());
    }
    on_each_device(|| {
        let (first, again) = (outcomes(DType::Float32)?, outcomes(DType::Float32)?);
        for ((name, first), (_, again)) in first.iter().zip(&again) {
            assert!(bits(first)? == bits(again)?, "{name} differs from one time to the next");
        }
        Ok(())
    })
}

/// The paths taken only at size, against sums written out.
#[test]
fn large_sums_equal_plain_loops() -> Fallible {
    on_each_device(check_large_sums)
}

fn check_large_sums() -> Fallible {
    // Sums of up to 21000 numbers of size 1, in another order.
    let (dtype, tolerance) =
        if device().computes(DType::Float64) { (DType::Float64, 1e-10) } else { (DType::Float32, 1e-2) };
    // The last segment has no rows.
    let (rows, m, n, count) = (300, 70, 40, 6);
    let left = normal(&[rows, m], 1, dtype)?;
    let right = normal(&[rows, n], 2, dtype)?;
    let blocks = normal(&[count, m, n], 3, dtype)?;
    let places = segments(rows, count - 1)?;
    let (l, r, b) = (left.read_float64()?, right.read_float64()?, blocks.read_float64()?);
    let places_read = places.read_int64()?;
    let mut outer = vec![0.0; count * m * n];
    let (mut through_left, mut through_right) = (vec![0.0; rows * n], vec![0.0; rows * m]);
    let mut product = vec![0.0; m * n];
    for (row, &segment) in places_read.iter().enumerate() {
        for i in 0..m {
            for j in 0..n {
                let block = (segment as usize * m + i) * n + j;
                outer[block] += l[row * m + i] * r[row * n + j];
                product[i * n + j] += l[row * m + i] * r[row * n + j];
                through_left[row * n + j] += l[row * m + i] * b[block];
                through_right[row * m + i] += r[row * n + j] * b[block];
            }
        }
    }
    let pairs = [
        ("outer-sum", segment::outer_sum(&left, &right, &places, count)?, outer),
        ("contract-left", segment::contract_left(&left, &blocks, &places)?, through_left),
        ("contract-right", segment::contract_right(&right, &blocks, &places)?, through_right),
        ("matmul", linalg::matmul(&shape::permute(&left, &[1, 0])?, &right)?, product),
        ("sum", reduce::sum(&left, &[], false)?, vec![l.iter().sum()]),
    ];
    for (name, found, expected) in pairs {
        for (found, expected) in found.read_float64()?.into_iter().zip(expected) {
            assert!((found - expected).abs() < tolerance, "{name}: {found}, expected {expected}");
        }
    }
    Ok(())
}
