//! What a model gives other programs through wasi-nn: the numbers that it gives this one, whoever finds the pairs.

use std::error::Error;

use kilnbox_data::neighbor_list::{Geometry, neighbor_list};
use kilnbox_data::{NeighborListOptions, SampleKind, StructureView, SystemsData};
use kilnbox_host::{ElementType, EvaluationRequest, Graph, GraphTensor, ModelOutput, on_own_thread};
use kilnbox_tensor::DType;
use kilnbox_tests::untrained_predictor;
use serde_json::{Value, json};

type Fallible<T = ()> = Result<T, Box<dyn Error + Send + Sync>>;

/// Two molecules of water, one across the faces of the cell.
const POSITIONS: [f64; 18] =
    [0.1, 0.2, 0.3, 1.06, 0.2, 0.3, -0.14, 1.13, 0.3, 3.9, 3.7, 3.6, 4.5, 4.4, 3.6, 3.2, 4.2, 3.9];
const TYPES: [i32; 6] = [8, 1, 1, 8, 1, 1];
const CELL: [f64; 9] = [4.6, 0.0, 0.0, 0.4, 4.8, 0.0, -0.3, 0.2, 5.0];

fn floats(dimensions: &[u32], values: &[f64]) -> GraphTensor {
    let data = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    GraphTensor { dimensions: dimensions.to_vec(), element_type: ElementType::Float64, data }
}

fn integers(dimensions: &[u32], values: &[i32]) -> GraphTensor {
    let data = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    GraphTensor { dimensions: dimensions.to_vec(), element_type: ElementType::Int32, data }
}

fn text(text: &str) -> GraphTensor {
    GraphTensor { dimensions: vec![text.len() as u32], element_type: ElementType::UInt8, data: text.into() }
}

fn truths(dimensions: &[u32], values: &[u8]) -> GraphTensor {
    GraphTensor { dimensions: dimensions.to_vec(), element_type: ElementType::UInt8, data: values.to_vec() }
}

fn inputs(list: &[(&str, &GraphTensor)]) -> Vec<(String, GraphTensor)> {
    list.iter().map(|&(name, tensor)| (name.to_owned(), tensor.clone())).collect()
}

/// The numbers of the output of this name.
fn numbers(outputs: &[(String, GraphTensor)], name: &str) -> Fallible<(Vec<u32>, Vec<f64>)> {
    let (_, tensor) = outputs.iter().find(|(known, _)| known == name).ok_or_else(|| format!("no `{name}`"))?;
    let values = tensor.data.as_chunks().0.iter().map(|&bytes| f64::from_le_bytes(bytes)).collect();
    Ok((tensor.dimensions.clone(), values))
}

fn water(positions: &[f64], cell: &[f64]) -> Vec<(String, GraphTensor)> {
    inputs(&[
        ("positions", &floats(&[6, 3], positions)),
        ("types", &integers(&[6], &TYPES)),
        ("cell", &floats(&[3, 3], cell)),
        ("pbc", &truths(&[3], &[1, 1, 1])),
    ])
}

/// A graph in double precision, where finite differences mean something.
fn graph() -> Fallible<Graph> {
    Ok(Graph::new("water", untrained_predictor(DType::Float64)?, &json!({"digest": "sha256:0"})))
}

#[test]
fn a_graph_gives_what_the_model_gives() -> Fallible {
    on_own_thread(|| {
        let structure = StructureView { types: &TYPES, positions: &POSITIONS, cell: &CELL, periodic: [true; 3] };
        let request = EvaluationRequest {
            output: ModelOutput {
                name: "energy".into(),
                quantity: "energy".into(),
                unit: "eV".into(),
                sample_kind: SampleKind::System,
                description: String::new(),
            },
            position_gradients: true,
            strain_gradients: true,
        };
        let mut predictor = untrained_predictor(DType::Float64)?;
        let expected = predictor.predict(SystemsData::new(&[structure])?, &[request])?;
        let outputs = graph()?.compute(water(&POSITIONS, &CELL))?;
        let names: Vec<&str> = outputs.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["energy", "forces", "stress"]);
        assert_eq!(numbers(&outputs, "energy")?, (vec![1], expected[0].values.blocks[0].values.clone()));
        let gradients = expected[0].position_gradients.clone().ok_or("no gradients")?;
        assert_eq!(numbers(&outputs, "forces")?, (vec![6, 3], gradients.iter().map(|value| -value).collect()));
        assert_eq!(numbers(&outputs, "stress")?.0, [1, 3, 3]);
        assert!(gradients.iter().any(|gradient| gradient.abs() > 1e-3), "forces of nothing: {gradients:?}");
        Ok(())
    })?
}

#[test]
fn forces_and_stress_are_derivatives_of_the_energy() -> Fallible {
    on_own_thread(|| {
        let mut graph = graph()?;
        let outputs = graph.compute(water(&POSITIONS, &CELL))?;
        let (forces, stress) = (numbers(&outputs, "forces")?.1, numbers(&outputs, "stress")?.1);
        let mut energy = |positions: &[f64], cell: &[f64]| -> Fallible<f64> {
            Ok(numbers(&graph.compute(water(positions, cell))?, "energy")?.1[0])
        };
        // Central differences: the error of this step is some 1e-8 of the third derivative, and rounding 1e-11.
        let step = 1e-4;
        for coordinate in [0, 7, 17] {
            let mut moved = [POSITIONS; 2];
            moved[0][coordinate] += step;
            moved[1][coordinate] -= step;
            let difference = (energy(&moved[0], &CELL)? - energy(&moved[1], &CELL)?) / (2.0 * step);
            assert!((difference + forces[coordinate]).abs() < 1e-6, "{difference} {}", forces[coordinate]);
        }
        let volume = kilnbox_data::volume(&CELL);
        // Rows are vectors r, which a strain takes to r . (1 + strain).
        let strained = |vectors: &[f64], (row, column): (usize, usize), strain: f64| {
            let mut strained = vectors.to_vec();
            (0..vectors.len() / 3)
                .for_each(|vector| strained[3 * vector + column] += strain * vectors[3 * vector + row]);
            strained
        };
        for entry in [(0, 0), (1, 2), (2, 1)] {
            let mut of = |strain: f64| energy(&strained(&POSITIONS, entry, strain), &strained(&CELL, entry, strain));
            let difference = (of(step)? - of(-step)?) / (2.0 * step * volume);
            let found = stress[3 * entry.0 + entry.1];
            assert!((difference - found).abs() < 1e-6, "{entry:?}: {difference} {found}");
        }
        Ok(())
    })?
}

#[test]
fn pairs_of_the_client_are_as_good_as_our_own() -> Fallible {
    on_own_thread(|| {
        let mut graph = graph()?;
        let own = graph.compute(water(&POSITIONS, &CELL))?;
        let geometry = Geometry { positions: &POSITIONS, cell: &CELL, periodic: [true; 3] };
        // Further than the cutoff of five, in one direction only, and backwards.
        let options = NeighborListOptions { cutoff: 6.5, full_list: false, strict: false };
        let mut found = neighbor_list(geometry, &options)?;
        found.atoms.reverse();
        found.shifts.reverse();
        let count = found.atoms.len() as u32;
        let atoms: Vec<i32> = found.atoms.iter().flatten().map(|&atom| atom as i32).collect();
        let pairs = inputs(&[
            ("pairs", &integers(&[count, 2], &atoms)),
            ("shifts", &integers(&[count, 3], &found.shifts.concat())),
        ]);
        let given = graph.compute([water(&POSITIONS, &CELL), pairs].concat())?;
        assert!(given == own, "other numbers with the same pairs");
        let none = inputs(&[("pairs", &integers(&[0, 2], &[])), ("shifts", &integers(&[0, 3], &[]))]);
        let alone = graph.compute([water(&POSITIONS, &CELL), none].concat())?;
        assert!(numbers(&alone, "forces")?.1.iter().all(|&force| force == 0.0), "forces without neighbours");
        Ok(())
    })?
}

#[test]
fn several_systems_are_each_as_if_alone() -> Fallible {
    on_own_thread(|| {
        let mut graph = graph()?;
        let alone = |graph: &mut Graph, atoms: std::ops::Range<usize>| {
            let count = atoms.len() as u32;
            graph.compute(inputs(&[
                ("positions", &floats(&[count, 3], &POSITIONS[3 * atoms.start..3 * atoms.end])),
                ("types", &integers(&[count], &TYPES[atoms])),
            ]))
        };
        let (first, second) = (alone(&mut graph, 0..2)?, alone(&mut graph, 2..6)?);
        let both = graph.compute(inputs(&[
            ("positions", &floats(&[6, 3], &POSITIONS)),
            ("types", &integers(&[6], &TYPES)),
            ("system", &integers(&[6], &[0, 0, 1, 1, 1, 1])),
        ]))?;
        for name in ["energy", "forces"] {
            let together = numbers(&both, name)?.1;
            let apart = [numbers(&first, name)?.1, numbers(&second, name)?.1].concat();
            // Sums over more rows are added up in another order.
            assert!(together.iter().zip(&apart).all(|(a, b)| (a - b).abs() < 1e-10 * (1.0 + a.abs())), "{name}");
        }
        assert!(!both.iter().any(|(name, _)| name == "stress"), "a stress without a volume");
        Ok(())
    })?
}

#[test]
fn a_client_chooses_precision_and_outputs() -> Fallible {
    on_own_thread(|| {
        let mut graph = graph()?;
        let positions: Vec<u8> = POSITIONS.iter().flat_map(|&value| (value as f32).to_le_bytes()).collect();
        let positions = GraphTensor { dimensions: vec![6, 3], element_type: ElementType::Float32, data: positions };
        let types = integers(&[6], &TYPES);
        let given = inputs(&[("positions", &positions), ("types", &types), ("outputs", &text(" forces\n"))]);
        let outputs = graph.compute(given)?;
        assert_eq!(outputs.len(), 1);
        let (name, forces) = &outputs[0];
        assert_eq!((name.as_str(), forces.element_type), ("forces", ElementType::Float32));
        assert_eq!(forces.data.len(), 4 * 18);
        Ok(())
    })?
}

#[test]
fn a_graph_says_what_it_takes_and_gives() -> Fallible {
    on_own_thread(|| {
        let graph = graph()?;
        let outputs = graph.describe(&[])?;
        let (name, meta) = outputs.first().ok_or("no description")?;
        let meta: Value = serde_json::from_slice(&meta.data)?;
        assert_eq!(name, "meta");
        assert_eq!(meta["interface"], "atomistic/1");
        assert_eq!(meta["digest"], "sha256:0");
        assert_eq!(meta["length_unit"], "angstrom");
        assert_eq!(meta["atomic_types"], json!([1, 6, 8]));
        assert_eq!(meta["neighbor_lists"][0]["full_list"], true);
        let energy = meta["outputs"].as_array().and_then(|outputs| outputs.iter().find(|o| o["name"] == "energy"));
        assert_eq!(energy.map(|energy| &energy["unit"]), Some(&json!("eV")));
        assert!(graph.describe(&inputs(&[("types", &integers(&[0], &[]))])).is_err());
        Ok(())
    })?
}
