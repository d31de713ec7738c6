//! Neighbour lists against a search that tries everything, and against lists made with vesin and ASE.

use std::path::Path;

use kilnbox_data::neighbor_list::{Geometry, PairList, neighbor_list};
use kilnbox_data::{NeighborListOptions, SystemsData};

/// A stream of numbers in `[0, 1)` that is the same in every run (Knuth's MMIX generator).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 11) as f64 / (1_u64 << 53) as f64
    }

    fn between(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.next()
    }
}

/// Tries every pair with every shift up to `images` cells away.
fn every_pair(geometry: Geometry<'_>, options: &NeighborListOptions, images: i32) -> PairList {
    let count = geometry.positions.len() / 3;
    let along = |axis: usize| {
        if geometry.periodic[axis] { -images..=images } else { 0..=0 }
    };
    let mut pairs = Vec::new();
    for first in 0..count {
        for second in 0..count {
            for a in along(0) {
                for b in along(1) {
                    for c in along(2) {
                        let shift = [a, b, c];
                        let listed = if first == second {
                            if options.full_list { shift != [0; 3] } else { shift > [0; 3] }
                        } else {
                            options.full_list || first < second
                        };
                        let squared: f64 = (0..3)
                            .map(|axis| {
                                let offset: f64 =
                                    (0..3).map(|row| f64::from(shift[row]) * geometry.cell[3 * row + axis]).sum();
                                (geometry.positions[3 * second + axis] - geometry.positions[3 * first + axis] + offset)
                                    .powi(2)
                            })
                            .sum();
                        if listed && squared.sqrt() < options.cutoff {
                            pairs.push(([first as u32, second as u32], shift));
                        }
                    }
                }
            }
        }
    }
    pairs.sort_unstable();
    let (atoms, shifts) = pairs.into_iter().unzip();
    PairList { atoms, shifts }
}

#[test]
fn every_kind_of_periodicity_agrees_with_trying_everything() {
    let mut numbers = Numbers(1);
    let mut pairs_seen = 0;
    for case in 0..240 {
        let periodic = [case & 1 != 0, case & 2 != 0, case & 4 != 0];
        // Edges from far below the cutoff to above it, skewed by up to half of them, atoms outside of the cell.
        let size = [0.8, 2.0, 6.0][case / 8 % 3];
        let mut cell = [0.0; 9];
        for (entry, value) in cell.iter_mut().enumerate() {
            *value = if entry % 4 == 0 { numbers.between(0.8, 1.3) * size } else { numbers.between(-0.4, 0.4) * size };
        }
        let count = 1 + case % 7;
        let positions: Vec<f64> = (0..3 * count).map(|_| numbers.between(-2.0 * size, 2.0 * size)).collect();
        let geometry = Geometry { positions: &positions, cell: &cell, periodic };
        let options = NeighborListOptions { cutoff: numbers.between(0.7, 2.5), full_list: case % 3 != 0, strict: true };
        // The smallest height of these cells is above a quarter of `size`, and positions span four sizes.
        let images = (4.0 * options.cutoff / size).ceil() as i32 + 17;
        let found = neighbor_list(geometry, &options).unwrap();
        assert_eq!(found, every_pair(geometry, &options, images.min(26)), "case {case}");
        pairs_seen += found.atoms.len();
    }
    assert!(pairs_seen > 5000, "the cases have too few pairs to mean anything: {pairs_seen}");
}

#[test]
fn every_pair_of_a_full_list_has_its_reverse_and_no_half_list_has_all() {
    let mut numbers = Numbers(3);
    // A molecule, an atom alone, and a small crystal whose atoms are neighbours of their own images.
    let counts = [7, 1, 2];
    let systems = SystemsData {
        atom_counts: counts.to_vec(),
        positions: (0..30).map(|_| numbers.between(0.0, 2.0)).collect(),
        cells: [[0.0; 9], [0.0; 9], [1.4, 0.0, 0.0, 0.3, 1.2, 0.0, -0.2, 0.4, 1.5]].concat(),
        periodic: [[false; 3], [false; 3], [true; 3]].concat(),
        types: vec![6; 10],
        system_indices: vec![0, 0, 0, 0, 0, 0, 0, 1, 2, 2],
        neighbor_lists: Vec::new(),
    };
    let pairs = |full_list| systems.neighbors(&NeighborListOptions { cutoff: 2.0, full_list, strict: true }).unwrap();
    let full = pairs(true);
    let reverse = full.reverse().unwrap();
    assert!(reverse.len() > 60 && full.first.contains(&8) && !full.first.contains(&7));
    for (place, &back) in reverse.iter().enumerate() {
        let back = back as usize;
        assert_eq!((full.first[place], full.second[place]), (full.second[back], full.first[back]));
        assert!((0..3).all(|axis| full.shifts[3 * place + axis] == -full.shifts[3 * back + axis]));
        assert_eq!(reverse[back], place as i64);
    }
    assert_eq!(pairs(false).reverse(), None);
}

#[test]
fn many_atoms_take_the_parallel_path_and_agree() {
    let mut numbers = Numbers(2);
    let positions: Vec<f64> = (0..3 * 2100).map(|_| numbers.between(0.0, 20.0)).collect();
    let cell = [20.0, 0.0, 0.0, 3.0, 20.0, 0.0, 0.0, -2.0, 20.0];
    let geometry = Geometry { positions: &positions, cell: &cell, periodic: [true, false, true] };
    let options = NeighborListOptions { cutoff: 1.5, full_list: true, strict: false };
    assert_eq!(neighbor_list(geometry, &options).unwrap(), every_pair(geometry, &options, 2));
}

#[test]
fn long_thin_systems_agree() {
    let mut numbers = Numbers(3);
    // Far longer than wide, so that there are more places for bins than atoms; with a gap that no pair crosses.
    let mut positions: Vec<f64> =
        (0..300).map(|entry| numbers.between(0.0, if entry % 3 == 0 { 400.0 } else { 3.0 })).collect();
    positions[0] = 1e7;
    let cell = [400.0, 0.0, 0.0, 1.0, 3.0, 0.0, 0.0, 0.5, 3.0];
    for periodic in [[false; 3], [true, false, false], [false, true, false]] {
        let geometry = Geometry { positions: &positions, cell: &cell, periodic };
        let options = NeighborListOptions { cutoff: 2.5, full_list: true, strict: true };
        // Without the far atom along the periodic direction, no shift of more than 2 is within the cutoff.
        let geometry = if periodic[0] { Geometry { positions: &positions[3..], ..geometry } } else { geometry };
        assert_eq!(neighbor_list(geometry, &options).unwrap(), every_pair(geometry, &options, 2), "{periodic:?}");
    }
}

#[test]
fn atoms_on_faces_of_bins_find_each_other() {
    // A chain with the cutoff for its spacing, far outside of its cell: bins end exactly where atoms are.
    let positions: Vec<f64> = (0..12).flat_map(|atom| [1000.0 + f64::from(atom), 0.0, 0.0]).collect();
    let cell = [12.0, 0.0, 0.0, 0.0, 12.0, 0.0, 0.0, 0.0, 12.0];
    let geometry = Geometry { positions: &positions, cell: &cell, periodic: [true; 3] };
    let pairs = |strict| {
        neighbor_list(geometry, &NeighborListOptions { cutoff: 1.0, full_list: true, strict }).unwrap().atoms.len()
    };
    assert_eq!(
        (pairs(false), pairs(true)),
        (24, 0),
        "each has two neighbours at exactly the cutoff, which a strict list leaves out"
    );
}

#[test]
fn impossible_requests_are_refused() {
    let cube = [2.0, 0.0, 0.0, 0.0, 2.0, 0.0, 0.0, 0.0, 2.0];
    let skewed = [0.1, 0.1, 0.1, -0.1, 0.1, 0.0, 0.1, -0.1, 0.2];
    let flat = [2.0, 0.0, 0.0, 2.0, 0.0, 0.0, 0.0, 0.0, 2.0];
    let cases: &[(&[f64], [f64; 9], [bool; 3], f64, &str)] = &[
        (&[0.0; 3], cube, [true; 3], 0.0, "the cutoff of a neighbour list is 0"),
        (&[0.0; 3], cube, [true; 3], f64::NAN, "the cutoff of a neighbour list is NaN"),
        (&[f64::NAN, 0.0, 0.0], cube, [true; 3], 1.0, "a position is not a finite number"),
        (&[0.0; 3], flat, [true; 3], 1.0, "the cell has no volume"),
        (&[0.0; 3], [0.0; 9], [true, false, false], 1.0, "the cell has no volume"),
        (&[0.0; 3], cube, [true; 3], 1e9, "too many pairs"),
        (&[0.5; 30_000], [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0], [true; 3], 5.0, "too many pairs"),
        (&[1e300, 0.0, 0.0], cube, [true; 3], 1.0, "further from its cell"),
        // Its coordinates are sums of infinities.
        (&[1e308, 1e308, 1e308], skewed, [true, false, true], 1.0, "too large to be compared"),
    ];
    for (positions, cell, periodic, cutoff, expected) in cases {
        let geometry = Geometry { positions, cell, periodic: *periodic };
        let options = NeighborListOptions { cutoff: *cutoff, full_list: true, strict: true };
        let message = neighbor_list(geometry, &options).unwrap_err().to_string();
        assert!(message.contains(expected), "{message}");
    }
    let none = Geometry { positions: &[], cell: &cube, periodic: [true; 3] };
    let options = NeighborListOptions { cutoff: 1.0, full_list: true, strict: true };
    assert_eq!(neighbor_list(none, &options).unwrap(), PairList::default());
    // Atoms that are very far apart must not ask for as many bins.
    let apart = [0.0, 0.0, 0.0, 1e200, 0.0, 0.0];
    let far = Geometry { positions: &apart, cell: &[0.0; 9], periodic: [false; 3] };
    assert_eq!(neighbor_list(far, &options).unwrap(), PairList::default());
}

#[test]
fn a_search_that_would_take_hours_is_given_up() {
    // 36000 atoms of a gas, and one that is so far away that all others share a bin: 1.3e9 pairs to compare, of which few are close.
    let mut numbers = Numbers(5);
    let mut heap: Vec<f64> = (0..3 * 36_000).map(|_| numbers.between(0.0, 1000.0)).collect();
    heap[..3].fill(1e9);
    // A cell so skewed that millions of its images would have to be looked through for each atom.
    let skewed = [1.0, 0.0, 0.0, 5e5, 1.0, 0.0, 0.0, 0.0, 1e6];
    let crowd: Vec<f64> = (0..3 * 3000).map(|_| numbers.between(0.0, 1e6)).collect();
    let cases: [(&[f64], [f64; 9], [bool; 3], &str); 2] = [
        (&heap, [0.0; 9], [false; 3], "takes too long: more than 1073741824 pairs of atoms would have to be compared"),
        (&crowd, skewed, [true, true, false], "too many pairs"),
    ];
    for (positions, cell, periodic, expected) in cases {
        let geometry = Geometry { positions, cell: &cell, periodic };
        let options = NeighborListOptions { cutoff: 2.0, full_list: true, strict: true };
        let message = neighbor_list(geometry, &options).unwrap_err().to_string();
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn parity_neighbor_lists_with_vesin_and_ase() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data/reference/neighbor_lists.json");
    let Ok(text) = std::fs::read_to_string(&file) else {
        eprintln!("skipped: reference data not present");
        return;
    };
    let reference: serde_json::Value = serde_json::from_str(&text).unwrap();
    let numbers = |value: &serde_json::Value| -> Vec<f64> {
        value
            .as_array()
            .unwrap()
            .iter()
            .flat_map(|row| row.as_array().unwrap())
            .map(|entry| entry.as_f64().unwrap())
            .collect()
    };
    let cases = reference["cases"].as_array().unwrap();
    assert!(!cases.is_empty());
    for case in cases {
        let (positions, cell) = (numbers(&case["positions"]), numbers(&case["cell"]));
        let periodic: Vec<bool> = case["pbc"].as_array().unwrap().iter().map(|flag| flag.as_bool().unwrap()).collect();
        let geometry = Geometry {
            positions: &positions,
            cell: cell.as_slice().try_into().unwrap(),
            periodic: periodic.try_into().unwrap(),
        };
        let options = NeighborListOptions { cutoff: case["cutoff"].as_f64().unwrap(), full_list: true, strict: true };
        let found = neighbor_list(geometry, &options).unwrap();
        let expected = numbers(&case["pairs"]);
        let flat: Vec<f64> = found
            .atoms
            .iter()
            .zip(&found.shifts)
            .flat_map(|(pair, shift)| {
                [pair[0].into(), pair[1].into(), shift[0].into(), shift[1].into(), shift[2].into()]
            })
            .collect();
        assert_eq!(flat, expected, "{} at {}", case["name"], case["cutoff"]);
        for (pair, distance) in case["distances"].as_array().unwrap().iter().enumerate() {
            let squared: f64 = (0..3)
                .map(|axis| {
                    let ([first, second], shift) = (found.atoms[pair], found.shifts[pair]);
                    let offset: f64 = (0..3).map(|row| f64::from(shift[row]) * cell[3 * row + axis]).sum();
                    (positions[3 * second as usize + axis] - positions[3 * first as usize + axis] + offset).powi(2)
                })
                .sum();
            // The tolerance stated with the reference: rounding of coordinates of some 10.
            assert!((squared.sqrt() - distance.as_f64().unwrap()).abs() < 1e-10);
        }
    }
}
