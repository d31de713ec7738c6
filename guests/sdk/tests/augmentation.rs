//! Systems and targets turn together, and a network that cannot tell learns the same from them.

mod support;

use kilnbox_sdk::{
    Result,
    augmentation::{Augmentation, Transformations},
    data::{GradientBlock, Systems, TensorBlock, TensorMap},
    info::{
        DType, DatasetInfo, Irrep, Labels, Layout, NamedTarget, NeighborListOptions, SampleKind, TargetInfo, TargetType,
    },
    layers::{Module, Visit},
    native,
    network::Network,
    tensor::{Tensor, grad},
};
use kilnbox_tensor::Device;
use support::{Hypers, LIST, Listener, Pairs, assert_close, crystals, fixture, hypers, train};

#[test]
fn random_transformations_are_orthogonal_and_every_other_one_inverts() {
    native::enter(Device::cpu(), 3, Box::new(Listener::default()));
    let count = 4000;
    let axes = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0];
    let identities = Tensor::from_vec_f64(&[count, 3, 3], axes.repeat(count), DType::Float64);
    let info = info(TargetType::Cartesian(1), SampleKind::System);
    let turned = Transformations::random(count).target(map(&info, vec![identities.permute(&[0, 2, 1])]), &info);
    let matrices = turned.expect("vectors turn").blocks[0].values.permute(&[0, 2, 1]);
    assert_close(&matrices.matmul(&matrices.transpose()), &identities, 1e-14, "matrix times its transpose");
    // Entries of a uniform orthogonal matrix have the mean 0 and the mean square 1/3: 4000 of them miss these by a few hundredths at most.
    let (mean, square) = (matrices.mean(&[0]), matrices.square().mean(&[0]));
    assert_close(&mean, &Tensor::zeros(&[3, 3], DType::Float64), 0.04, "mean");
    assert_close(&square, &Tensor::full(&[3, 3], 1.0 / 3.0, DType::Float64), 0.04, "mean square");
    let triple = |entries: &[f64]| {
        let cross = |a: usize, b: usize| entries[3 + a] * entries[6 + b] - entries[3 + b] * entries[6 + a];
        entries[0] * cross(1, 2) + entries[1] * cross(2, 0) + entries[2] * cross(0, 1)
    };
    let inversions = matrices.to_vec_f64().chunks(9).filter(|entries| triple(entries) < 0.0).count();
    assert!((1850..2150).contains(&inversions), "{inversions} of {count} invert");
}

fn info(target_type: TargetType, sample_kind: SampleKind) -> TargetInfo {
    TargetInfo {
        quantity: String::new(),
        unit: String::new(),
        description: String::new(),
        sample_kind,
        target_type,
        num_subtargets: 1,
        gradients: Vec::new(),
    }
}

/// Values of systems as a target.
fn map(info: &TargetInfo, blocks: Vec<Tensor>) -> TensorMap {
    let layout = Layout::of("mtt::test", info);
    let block = |(values, components): (Tensor, Vec<Labels>)| TensorBlock {
        samples: Labels::range("system", values.size(0)),
        values,
        components,
        properties: layout.properties.clone(),
        gradients: Vec::new(),
    };
    TensorMap {
        keys: layout.keys.clone(),
        blocks: blocks.into_iter().zip(layout.components.clone()).map(block).collect(),
    }
}

/// Three vectors of each system that turn with it, `[systems, 3]` each: sums of positions with fixed weights.
fn vectors(systems: Systems<'_>) -> [Tensor; 3] {
    let positions = systems.positions();
    let atoms = positions.size(0);
    [1.0, 2.0, 3.0].map(|frequency| {
        let weights = (0..atoms).map(|atom| 0.3 * (frequency * atom as f64).sin()).collect();
        let weighted = &positions * Tensor::from_vec_f64(&[atoms, 1], weights, DType::Float64);
        weighted.index_add(0, &systems.system_indices(), systems.count())
    })
}

/// What some target types have for systems, `[systems, .. components, 1]`.
fn values(systems: Systems<'_>, target_type: &TargetType) -> Vec<Tensor> {
    let count = systems.count();
    let [a, b, c] = vectors(systems);
    let column = |vector: &Tensor, axis: usize| vector.slice(1, axis..axis + 1);
    let cross = |axis: usize| {
        let (next, last) = ((axis + 1) % 3, (axis + 2) % 3);
        column(&b, next) * column(&c, last) - column(&b, last) * column(&c, next)
    };
    // changes its sign when the system is inverted, and only then
    let triple = column(&a, 0) * cross(0) + column(&a, 1) * cross(1) + column(&a, 2) * cross(2);
    match target_type {
        TargetType::Scalar => vec![(&a * &b).sum_keeping(&[1])],
        TargetType::Cartesian(1) => vec![a.reshape(&[count, 3, 1])],
        TargetType::Cartesian(2) => vec![(a.reshape(&[count, 3, 1, 1]) * b.reshape(&[count, 1, 3, 1]))],
        TargetType::Cartesian(_) => {
            let pairs = a.reshape(&[count, 3, 1, 1, 1]) * b.reshape(&[count, 1, 3, 1, 1]);
            vec![pairs * c.reshape(&[count, 1, 1, 3, 1])]
        }
        TargetType::Spherical(irreps) => {
            let length = a.square().sum_keeping(&[1]).sqrt();
            let harmonics = (&a / length).solid_harmonics(8);
            let size = triple.abs().maximum_along(0);
            let of_irrep = |irrep: &Irrep| {
                let (first, width) = ((irrep.lambda * irrep.lambda) as usize, 2 * irrep.lambda as usize + 1);
                let proper = harmonics.slice(1, first..first + width);
                let values = if irrep.sigma < 0 { proper * (&triple / &size) } else { proper };
                values.reshape(&[count, width, 1])
            };
            irreps.iter().map(of_irrep).collect()
        }
    }
}

#[test]
fn targets_of_every_type_turn_with_their_systems() {
    let batch = crystals(DType::Float64);
    let transformations = Transformations::random(5);
    let transformed = transformations.systems(batch.systems());
    let irreps = (0..=8).flat_map(|lambda| [1, -1].map(|sigma| Irrep { lambda, sigma })).collect();
    let types = [
        TargetType::Scalar,
        TargetType::Cartesian(1),
        TargetType::Cartesian(2),
        TargetType::Cartesian(3),
        TargetType::Spherical(irreps),
    ];
    for target_type in types {
        let info = info(target_type.clone(), SampleKind::System);
        let target = map(&info, values(batch.systems(), &target_type));
        let turned = transformations.target(target, &info).expect("it turns");
        let expected = values(transformed.systems(), &target_type);
        for (block, (found, expected)) in turned.blocks.iter().zip(&expected).enumerate() {
            // Products of up to three numbers of a few hundred, or harmonics of order 1.
            let scale = expected.abs().to_vec_f64().into_iter().fold(1.0, f64::max);
            assert_close(&found.values, expected, 1e-12 * scale, &format!("{target_type:?}, block {block}"));
        }
    }
}

#[test]
fn values_of_atoms_turn_with_the_system_of_each() {
    let batch = crystals(DType::Float64);
    let transformations = Transformations::random(5);
    let info = TargetInfo { num_subtargets: 2, ..info(TargetType::Cartesian(1), SampleKind::Atom) };
    let target = |systems: Systems<'_>| {
        let positions = systems.positions().reshape(&[systems.positions().size(0), 3, 1]);
        let counts = systems.atom_counts();
        let labels = counts
            .iter()
            .enumerate()
            .flat_map(|(system, &count)| (0..count as i32).flat_map(move |atom| [system as i32, atom]));
        let samples = Labels::new(&["system", "atom"], labels.collect());
        let mut map = map(&info, vec![Tensor::concatenate(&[&positions, &(&positions * 2.0)], 2)]);
        map.blocks[0].samples = samples;
        map
    };
    let turned = transformations.target(target(batch.systems()), &info).expect("it turns");
    let expected = target(transformations.systems(batch.systems()).systems());
    assert_close(&turned.blocks[0].values, &expected.blocks[0].values, 1e-12, "positions as a target");
}

#[test]
fn a_missing_row_stays_missing_and_touches_no_other() {
    native::enter(Device::cpu(), 3, Box::new(Listener::default()));
    let info = info(TargetType::Cartesian(1), SampleKind::System);
    let values = vec![1.0, 2.0, 3.0, f64::NAN, f64::NAN, f64::NAN, 4.0, 5.0, 6.0];
    let target = map(&info, vec![Tensor::from_vec_f64(&[3, 3, 1], values, DType::Float64)]);
    let turned = Transformations::random(3).target(target, &info).expect("it turns");
    let missing: Vec<bool> = turned.blocks[0].values.to_vec_f64().iter().map(|value| value.is_nan()).collect();
    assert_eq!(missing, [false, false, false, true, true, true, false, false, false]);
}

/// An energy that does not change when a system turns: a function of the distances.
fn energy(systems: Systems<'_>) -> Tensor {
    let pairs = systems.neighbors(LIST).expect("a list");
    let squared = pairs.vectors.square().sum(&[1]);
    let weights = pairs.first.cast(DType::Float64) * 0.1 + 1.0;
    let each = (squared * -0.2).exp() * weights;
    let of_pairs = systems.system_indices().select(0, &pairs.first);
    each.index_add(0, &of_pairs, systems.count()).reshape(&[systems.count(), 1])
}

/// The energy with its gradients, as a dataset has them.
fn energy_target(systems: Systems<'_>, info: &TargetInfo) -> TensorMap {
    let tracked = systems.track(true, true);
    let energy = energy(tracked.systems());
    let leaves = [tracked.positions.as_ref().expect("positions"), tracked.strain.as_ref().expect("strain")];
    let gradients = grad(&[&energy], &leaves, false);
    let (atoms, count) = (gradients[0].size(0), systems.count());
    let of_atoms = systems.system_indices().to_vec_i64();
    let labels = of_atoms.iter().enumerate().flat_map(|(atom, &system)| [system as i32, system as i32, atom as i32]);
    let mut map = map(info, vec![energy.detach()]);
    map.blocks[0].gradients = vec![
        GradientBlock {
            parameter: "positions".to_owned(),
            values: gradients[0].reshape(&[atoms, 3, 1]),
            samples: Labels::new(&["sample", "system", "atom"], labels.collect()),
            components: vec![Labels::range("xyz", 3)],
        },
        GradientBlock {
            parameter: "strain".to_owned(),
            values: gradients[1].reshape(&[count, 3, 3, 1]),
            samples: Labels::range("sample", count),
            components: vec![Labels::range("xyz_1", 3), Labels::range("xyz_2", 3)],
        },
    ];
    map
}

#[test]
fn forces_and_stress_turn_with_their_systems() {
    let batch = crystals(DType::Float64);
    let transformations = Transformations::random(5);
    let info = info(TargetType::Scalar, SampleKind::System);
    let turned = transformations.target(energy_target(batch.systems(), &info), &info).expect("it turns");
    let expected = energy_target(transformations.systems(batch.systems()).systems(), &info);
    let (turned, expected) = (&turned.blocks[0], &expected.blocks[0]);
    // Sums of some hundred terms of order 1 to 10.
    assert_close(&turned.values, &expected.values, 1e-11, "energy");
    for (turned, expected) in turned.gradients.iter().zip(&expected.gradients) {
        assert_close(&turned.values, &expected.values, 1e-11, &turned.parameter);
    }
}

/// [`Pairs`], which cannot tell that its data are turned.
struct TurnedPairs(Pairs);

impl Module for TurnedPairs {
    fn visit(&mut self, visit: &mut Visit<'_>) {
        self.0.visit(visit);
    }
}

impl Network for TurnedPairs {
    type Hypers = Hypers;

    const AUGMENTATION: Augmentation = Augmentation::RotationsAndInversions;

    fn new(hypers: &Hypers, info: &DatasetInfo, dtype: DType) -> Result<Self> {
        Pairs::new(hypers, info, dtype).map(TurnedPairs)
    }

    fn add_targets(&mut self, hypers: &Hypers, targets: &[NamedTarget], dtype: DType) -> Result<()> {
        self.0.add_targets(hypers, targets, dtype)
    }

    fn neighbor_lists(&self) -> Vec<NeighborListOptions> {
        self.0.neighbor_lists()
    }

    fn interaction_range(&self) -> f64 {
        self.0.interaction_range()
    }

    fn forward(&self, systems: Systems<'_>, outputs: &[&str]) -> Result<Vec<Vec<Tensor>>> {
        self.0.forward(systems, outputs)
    }
}

#[test]
fn an_invariant_network_learns_the_same_from_turned_data() {
    let set = fixture("copper/copper.xyz");
    let (plain, turned) = (train::<Pairs>(&set, &hypers(1)), train::<TurnedPairs>(&set, &hypers(1)));
    let mut differences = Vec::new();
    for name in ["loss", "forces RMSE", "virial RMSE (per atom)"] {
        for of in ["training", "validation"] {
            let (plain, turned) = (plain.metric(0, of, name), turned.metric(0, of, name));
            // Six steps, each of which doubles differences of a few last digits at most.
            assert!((plain - turned).abs() < 1e-9 * plain, "{of} {name}: {plain}, from turned data {turned}");
            differences.push(plain - turned);
        }
    }
    assert!(differences.iter().any(|&difference| difference != 0.0), "nothing was turned");
}

#[test]
fn the_seed_decides_how_data_are_turned() {
    let set = fixture("ethanol/ethanol.xyz");
    let [first, second] = [(); 2].map(|()| train::<TurnedPairs>(&set, &hypers(2)));
    let bits = |listener: &Listener| support::bits(&listener.checkpoint("model"));
    assert_eq!(bits(&first), bits(&second));
}
