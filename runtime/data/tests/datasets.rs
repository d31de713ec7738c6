//! Datasets from real files: the project's own fixtures.

use std::path::{Path, PathBuf};

use kilnbox_data::{
    BatchOptions, DataError, Dataset, DatasetSource, GradientSource, NeighborListOptions, SampleKind, SystemsSource,
    TargetInfo, TargetSource, TargetType,
};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures").join(name)
}

fn source(path: &Path) -> DatasetSource {
    let gradient = |key: &str| GradientSource { read_from: path.to_owned(), key: key.to_owned(), required: false };
    let energy = TargetSource {
        name: "energy".into(),
        info: TargetInfo {
            quantity: "energy".into(),
            unit: "eV".into(),
            description: String::new(),
            sample_kind: SampleKind::System,
            target_type: TargetType::Scalar,
            num_subtargets: 1,
            gradients: Vec::new(),
        },
        read_from: path.to_owned(),
        reader: None,
        key: "energy".into(),
        forces: Some(gradient("forces")),
        stress: Some(gradient("stress")),
        virial: None,
    };
    DatasetSource {
        systems: SystemsSource { read_from: path.to_owned(), reader: None, length_unit: "angstrom".into() },
        targets: vec![energy],
        extra_data: Vec::new(),
    }
}

fn options() -> NeighborListOptions {
    NeighborListOptions { cutoff: 5.0, full_list: true, strict: true }
}

#[test]
fn ethanol_has_energies_and_forces() {
    let dataset = Dataset::read(&source(&fixture("ethanol/ethanol.xyz"))).unwrap();
    assert_eq!(dataset.len(), 300);
    assert_eq!(dataset.info().atomic_types, [1, 6, 8]);
    assert_eq!(dataset.info().targets[0].info.gradients, ["positions"]);
    assert_eq!(dataset.warnings(), Vec::<String>::new());
    let map = dataset.target("energy", &[5, 0]).unwrap();
    let block = &map.blocks[0];
    assert_eq!(
        (block.shape.as_slice(), block.gradients[0].shape.as_slice()),
        ([2, 1].as_slice(), [18, 3, 1].as_slice())
    );
    assert_eq!(block.samples.values, [0, 1]);
    assert_eq!(block.gradients[0].samples.values[..6], [0, 0, 0, 0, 0, 1]);
    // The file's numbers, with the sign of a gradient.
    let frames = kilnbox_data::extended_xyz::read(&fixture("ethanol/ethanol.xyz")).unwrap();
    let Some(kilnbox_data::extended_xyz::Column::Numbers { values, .. }) = frames[5].array("forces") else { panic!() };
    assert_eq!(block.gradients[0].values[0], -values[0]);
    assert_eq!(frames[5].info("energy"), Some(&kilnbox_data::extended_xyz::Value::Numbers(vec![block.values[0]])));
}

#[test]
fn copper_has_strain_gradients_of_stress_times_volume() {
    let dataset = Dataset::read(&source(&fixture("copper/copper.xyz"))).unwrap();
    assert_eq!(dataset.info().targets[0].info.gradients, ["positions", "strain"]);
    let map = dataset.target("energy", &[0]).unwrap();
    let strain = &map.blocks[0].gradients[1];
    assert_eq!(strain.shape, [1, 3, 3, 1]);
    let view = dataset.structure(0).unwrap();
    let c = view.cell;
    let volume =
        c[0] * (c[4] * c[8] - c[5] * c[7]) - c[1] * (c[3] * c[8] - c[5] * c[6]) + c[2] * (c[3] * c[7] - c[4] * c[6]);
    // The first number of `stress` in the file, which has 17 digits.
    assert!((strain.values[0] - -0.064_538_748_478_323_86 * volume).abs() < 1e-12);
}

#[test]
fn batches_come_in_order_with_lists_that_are_kept() {
    let dataset = Dataset::read(&source(&fixture("copper/copper.xyz"))).unwrap().select(&[3, 1, 2, 0]).unwrap();
    let request =
        || BatchOptions { neighbor_lists: vec![options()], targets: vec!["energy".into()], extra_data: Vec::new() };
    let read = || {
        let mut batches = dataset.batches(vec![vec![0, 1], vec![3]], request()).unwrap();
        let mut all = Vec::new();
        while let Some(batch) = batches.next().unwrap() {
            all.push(batch);
        }
        all
    };
    let (first, second) = (read(), read());
    assert_eq!((first.len(), first[0].systems.atom_counts.len(), first[1].systems.atom_counts.len()), (2, 2, 1));
    assert_eq!(format!("{first:?}"), format!("{second:?}"));
    let systems = &first[0].systems;
    let pairs = systems.neighbors(&options()).unwrap();
    let mut alone = systems.clone();
    alone.neighbor_lists.clear();
    assert_eq!(*alone.neighbors(&options()).unwrap(), *pairs, "a list made on demand is the prepared one");
    let atoms = i64::from(systems.atom_counts[0]);
    for pair in 0..pairs.first.len() {
        assert_eq!(pairs.systems[pair], i64::from(pairs.first[pair] >= atoms));
        assert_eq!(pairs.first[pair] >= atoms, pairs.second[pair] >= atoms);
    }
    // Dropped in the middle, the other thread ends too: `drop` waits for it.
    drop(dataset.batches(vec![vec![0]; 100], request()).unwrap());
}

#[test]
fn what_is_asked_for_in_vain_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("data.xyz");
    let frames =
        |second: &str| format!("1\nenergy=1.0 Properties=species:S:1:pos:R:3:forces:R:3\nH 0 0 0 0 0 0\n{second}");
    let with_forces = "1\nenergy=1.0 Properties=species:S:1:pos:R:3:forces:R:3\nH 0 0 0 0 0 0\n";
    let without = "1\nenergy=1.0\nH 0 0 0\n";
    let read = |text: &str, change: fn(&mut DatasetSource)| -> Result<Dataset, DataError> {
        std::fs::write(&path, text).unwrap();
        let mut source = source(&path);
        change(&mut source);
        Dataset::read(&source)
    };
    let message = |text: &str, change: fn(&mut DatasetSource)| {
        let error = read(text, change).unwrap_err();
        format!("{error}; {}", error.hint().unwrap_or("no hint"))
    };
    let cases: &[(String, fn(&mut DatasetSource), &str)] = &[
        (frames("1\nE=1.0\nH 0 0 0\n"), |_| {}, "frame 1: there is no value `energy`; it has `E`"),
        (frames("1\nenergy=x\nH 0 0 0\n"), |_| {}, "frame 1: `energy` is not a number; no hint"),
        (frames("1\nenergy=\"1 2\"\nH 0 0 0\n"), |_| {}, "frame 1: `energy` has 2 numbers, expected 1; no hint"),
        (
            frames(without),
            |_| {},
            "frame 1: there is no column `forces`; give every frame its forces, or say `forces: false`",
        ),
        (
            without.to_owned(),
            |source| source.targets[0].forces.as_mut().unwrap().required = true,
            "frame 0: there is no column `forces`; give every frame its forces",
        ),
        (
            "1\nenergy=1.0 stress=\"1 2 3 4 5 6\"\nH 0 0 0\n".to_owned(),
            |_| {},
            "frame 0: it has a stress, but no cell that is periodic in three directions; say `stress: false`",
        ),
        (
            "1\nenergy=1.0 pbc=\"T F F\"\nH 0 0 0\n".to_owned(),
            |_| {},
            "frame 0: the cell has no volume: the vectors of its periodic directions are zero or lie in one plane; check `Lattice` and `pbc` of the structure",
        ),
        (frames("1\nenergy=-inf\nH 0 0 0\n"), |_| {}, "frame 1: `energy` is -inf, expected a finite number, or `nan`"),
        (
            "1\nenergy=1 Properties=species:S:1:pos:R:3:forces:R:3\nH 0 0 0 1 1e999 1\n".to_owned(),
            |_| {},
            "frame 0: `forces` is inf, expected a finite number, or `nan`",
        ),
        (
            "1\nenergy=1\nH 0 1.1e9 0\n".to_owned(),
            |_| {},
            "frame 0: it has a coordinate or a cell vector of 1.1e9, expected numbers of at most 1e9",
        ),
        (
            with_forces.to_owned(),
            |source| source.systems.reader = Some("metatensor".into()),
            "the reader `metatensor` of",
        ),
        (
            with_forces.to_owned(),
            |source| source.systems.read_from = "/nowhere/at/all.xyz".into(),
            "`/nowhere/at/all.xyz` cannot be read: No such file or directory (os error 2); no hint",
        ),
        (
            with_forces.to_owned(),
            |source| source.systems.read_from = "data.cif".into(),
            "has the suffix `cif`, expected",
        ),
    ];
    for (text, change, expected) in cases {
        let found = message(text, *change);
        assert!(found.contains(expected), "{found}\nexpected {expected}");
    }
    let without_forces = read(without, |_| {}).unwrap();
    assert!(without_forces.info().targets[0].info.gradients.is_empty(), "forces are taken only where they are");
    let beyond = without_forces.select(&[1]).unwrap_err().to_string();
    assert!(beyond.ends_with("but it has 1 systems, counted from 0"), "{beyond}");
}

#[test]
fn an_implausible_unit_is_called_out() {
    let mut nanometers = source(&fixture("ethanol/ethanol.xyz"));
    nanometers.systems.length_unit = "nm".into();
    nanometers.targets[0].info.unit = "kcal".into();
    let warnings = Dataset::read(&nanometers).unwrap().warnings();
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    assert!(warnings[0].contains("closer than 5 angstrom if its lengths are in `nm`"), "{warnings:?}");
    assert!(warnings[1].contains("`kcal` of the target `energy` is not an energy"), "{warnings:?}");
}

/// A dataset of one structure: hydrogen atoms at these positions, in no cell.
fn heap(positions: impl Iterator<Item = [f64; 3]>) -> (tempfile::TempDir, Dataset) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("data.xyz");
    let atoms: Vec<String> = positions.map(|[x, y, z]| format!("H {x} {y} {z}\n")).collect();
    std::fs::write(&path, format!("{}\n\n{}", atoms.len(), atoms.concat())).unwrap();
    let dataset = Dataset::read(&DatasetSource { targets: Vec::new(), ..source(&path) }).unwrap();
    (folder, dataset)
}

/// A thousand atoms, all within reach of each other.
fn crowd() -> (tempfile::TempDir, Dataset) {
    heap((0..1000).map(|atom| [f64::from(atom) / 1000.0, 0.0, 0.0]))
}

#[test]
fn what_a_batch_takes_is_bounded_before_it_is_made() {
    let (_folder, dataset) = crowd();
    let open = |count: usize, requests: usize, names: usize| {
        let request = BatchOptions {
            neighbor_lists: vec![options(); requests],
            targets: vec!["energy".into(); names],
            extra_data: Vec::new(),
        };
        dataset.batches(vec![vec![0; count]], request).map(drop).map_err(|error| error.to_string())
    };
    // 79 bytes for a structure, and 36 for each of its atoms.
    let most = (2 << 30) / (79 + 36 * 1000);
    open(most, 16, 0).unwrap();
    let cases = [
        (open(most + 1, 0, 0), "batch 0 has 59522 systems, which need 2147494238 bytes with their targets"),
        (open(1, 17, 0), "17 neighbour lists were asked for in one batch, at most 16 are prepared"),
        (open(1, 0, 1001), "1001 targets were asked for in one batch, at most 1000 are read"),
    ];
    for (result, expected) in cases {
        let message = result.unwrap_err();
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn the_pairs_of_a_batch_are_counted_together() {
    let (_folder, dataset) = crowd();
    let request = || BatchOptions { neighbor_lists: vec![options()], ..BatchOptions::default() };
    // A structure has 999000 pairs, and the limit is 67108864.
    let mut batches = dataset.batches(vec![vec![0; 68], vec![0]], request()).unwrap();
    let message = batches.next().unwrap_err().to_string();
    assert!(message.contains("too many pairs, more than 67108864 in one batch"), "{message}");
    let next = batches.next().unwrap().unwrap();
    assert_eq!(next.systems.neighbors(&options()).unwrap().first.len(), 999_000, "the next batch is as good as ever");
    assert!(batches.next().unwrap().is_none() && batches.next().unwrap().is_none());
}

#[test]
fn streams_of_batches_are_bounded_and_end_at_once() {
    // A gas with one atom so far away that all others share a bin: its list takes seconds.
    let mut state = 1_u64;
    let mut number = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as f64 / (1_u64 << 31) as f64 * 1000.0
    };
    let far = std::iter::once([1e9; 3]);
    let (_folder, dataset) = heap(far.chain((1..60_000).map(|_| [number(), number(), number()])));
    let open = |batches: usize, neighbor_lists: Vec<NeighborListOptions>| {
        dataset.batches(vec![vec![0]; batches], BatchOptions { neighbor_lists, ..BatchOptions::default() })
    };
    let start = std::time::Instant::now();
    for _ in 0..20 {
        let slow = open(1_000_000, vec![options()]).unwrap();
        // Long enough for the other thread to be in the middle of the search.
        std::thread::sleep(std::time::Duration::from_millis(20));
        drop(slow);
    }
    let mut streams: Vec<_> = (0..16).map(|_| open(2, Vec::new()).unwrap()).collect();
    let message = open(1, Vec::new()).unwrap_err().to_string();
    assert!(message.ends_with("is read in 16 streams of batches at one time, and no more are opened"), "{message}");
    streams.pop();
    drop(open(1, Vec::new()).unwrap());
    // It takes about a second, most of it making the lists of indices; a single search takes several.
    assert!(start.elapsed().as_secs() < 20, "{:?}", start.elapsed());
}
