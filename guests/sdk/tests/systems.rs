//! Systems that are turned: what follows and what stays.

mod support;

use kilnbox_sdk::{
    data::Systems,
    info::DType,
    random,
    tensor::{Tensor, grad},
};
use support::{LIST, assert_close, crystals};

/// An orthogonal matrix for each of five systems: turns around two axes, and inversions for some.
fn matrices() -> Tensor {
    let matrix = |angle: f64| {
        let (sine, cosine) = angle.sin_cos();
        let around_z = [cosine, sine, 0.0, -sine, cosine, 0.0, 0.0, 0.0, 1.0];
        let around_x = [1.0, 0.0, 0.0, 0.0, cosine, sine, 0.0, -sine, cosine];
        let tensor = |entries: [f64; 9]| Tensor::from_vec_f64(&[1, 3, 3], entries.to_vec(), DType::Float64);
        tensor(around_z).matmul(&tensor(around_x)) * angle.sin().signum()
    };
    let matrices = [1.0, 2.0, 4.0, 5.0, 7.0].map(matrix);
    Tensor::concatenate(&matrices.each_ref(), 0)
}

#[test]
fn positions_cells_and_vectors_turn_and_pairs_stay() {
    for (dtype, tolerance) in [(DType::Float64, 1e-13), (DType::Float32, 2e-6)] {
        let batch = crystals(dtype);
        let matrices = matrices().cast(dtype);
        let systems = batch.systems();
        let of_atoms = systems.system_indices();
        let before = systems.neighbors(LIST).expect("a list");
        let positions = systems.positions().contract_left(&matrices, &of_atoms);
        let vectors = before.vectors.contract_left(&matrices, &of_atoms.select(0, &before.first));
        let check = |systems: Systems<'_>, what: &str| {
            // coordinates of some ten angstroms, vectors of four
            assert_close(&systems.positions(), &positions, 10.0 * tolerance, what);
            assert_close(&systems.cells(), &batch.systems().cells().matmul(&matrices), 10.0 * tolerance, what);
            let after = systems.neighbors(LIST).expect("a list");
            assert_eq!(after.first.to_vec_i64(), before.first.to_vec_i64());
            assert_eq!(after.second.to_vec_i64(), before.second.to_vec_i64());
            assert_eq!(after.shifts.to_vec_i64(), before.shifts.to_vec_i64());
            assert_close(&after.vectors, &vectors, 10.0 * tolerance, what);
        };
        let transformed = systems.transform(&matrices);
        check(transformed.systems(), "transformed");
        check(transformed.systems().track(true, true).systems(), "transformed, then tracked");
        check(systems.track(true, true).systems().transform(&matrices).systems(), "tracked, then transformed");
        let back = transformed.systems().transform(&matrices.transpose());
        assert_close(&back.systems().positions(), &systems.positions(), 10.0 * tolerance, "there and back");
    }
}

#[test]
fn vectors_of_transformed_systems_are_rounded_once() {
    let single = crystals(DType::Float32);
    let matrices = matrices().cast(DType::Float32);
    let found = single.systems().transform(&matrices).systems().neighbors(LIST).expect("a list").vectors;
    let double = crystals(DType::Float64);
    let transformed = double.systems().transform(&matrices.cast(DType::Float64));
    let expected = transformed.systems().neighbors(LIST).expect("a list").vectors;
    // half a unit in the last place of 4, where differences of coordinates of 10 would be off by several times as much
    assert_close(&found.cast(DType::Float64), &expected, 2.4e-7, "vectors");
}

#[test]
fn gradients_flow_through_transformed_systems() {
    let batch = crystals(DType::Float64);
    let matrices = matrices();
    let tracked = batch.systems().track(true, false);
    let leaf = tracked.positions.as_ref().expect("a leaf");
    let transformed = tracked.systems().transform(&matrices);
    let weights = random::normal(&leaf.shape(), 0.0, 1.0, DType::Float64);
    let gradient = grad(&[&(transformed.systems().positions() * &weights).sum_all()], &[leaf], false);
    // of sum r . R . w by r: w . R^T
    let expected = weights.contract_right(&matrices, &batch.systems().system_indices());
    assert_close(&gradient[0], &expected, 1e-14, "gradient");
}

#[test]
#[should_panic(expected = "data.systems.transform: the matrices are float64 [4, 3, 3], expected float64 [5, 3, 3]")]
fn matrices_for_other_systems_are_a_misuse() {
    let batch = crystals(DType::Float64);
    batch.systems().transform(&Tensor::zeros(&[4, 3, 3], DType::Float64));
}

#[test]
#[should_panic(expected = "data.systems.transform: the matrices are float64 [5, 3, 3], expected float32 [5, 3, 3]")]
fn matrices_of_another_dtype_are_a_misuse() {
    let batch = crystals(DType::Float32);
    batch.systems().transform(&Tensor::zeros(&[5, 3, 3], DType::Float64));
}
