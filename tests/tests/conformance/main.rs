//! What every architecture owes: each that is built, or found on `KILNBOX_ARCHITECTURES`, runs the same tests in the sandbox, with its own default hypers
//! and in double precision.
//!
//! Nothing here knows an architecture by name. What one does not support is known from what it says: its supported outputs, its
//! [`Equivariance`], and typed refusals. A new folder in `guests/` is tested without being registered anywhere.

mod architectures;
mod structures;

use kilnbox_data::{Irrep, Labels, NamedTarget, SampleKind, TargetType};
use kilnbox_host::{
    ArchitectureErrorKind, Context, Equivariance, EvaluatedOutput, EvaluationRequest, HostError, Model, ModelOutput,
    Predictor,
};
use kilnbox_tensor::DType;

use architectures::{ELEMENTS, Fallible, Running, agree, demand, energy, every_architecture, info, output, scalar};
use structures::{Direction, IDENTITY, Matrix, Structure, dot, noise, outer, plain, plus, rotation, times};

const KINDS: [SampleKind; 2] = [SampleKind::System, SampleKind::Atom];

#[test]
fn conformance_an_architecture_describes_itself() -> Fallible {
    every_architecture(|architecture| {
        let about = &architecture.about;
        demand(!about.supported_devices.is_empty(), || "it supports no device".to_owned())?;
        demand(!about.supported_dtypes.is_empty(), || "it supports no dtype".to_owned())?;
        let floating = |dtype: &DType| matches!(dtype, DType::Float32 | DType::Float64);
        demand(about.supported_dtypes.iter().all(floating), || format!("it supports {:?}", about.supported_dtypes))?;
        let again = architecture.session(architecture.dtype())?.session.about()?;
        demand(again == *about, || format!("it describes itself as {about:?}, then as {again:?}"))
    })
}

#[test]
fn conformance_an_empty_request_gets_an_empty_answer() -> Fallible {
    every_architecture(|architecture| {
        let Some((mut session, model)) = architecture.trained()? else { return Ok(()) };
        let maps = session.forward(&model, &[Structure::chain()], &[], None)?;
        demand(maps.is_empty(), || format!("{} outputs, none was asked for", maps.len()))
    })
}

/// Scalars with one and with five numbers, of systems and of atoms, vectors and spherical tensors: what the architecture accepts has the shape that was
/// asked for. The rows' labels are checked by the door that every answer comes through.
#[test]
fn conformance_outputs_have_the_shapes_that_were_asked_for() -> Fallible {
    let with_type = |target_type: &TargetType, sample_kind, count| {
        let mut target = scalar("mtt::target", sample_kind, count);
        target.info.target_type = target_type.clone();
        target
    };
    let irreps = [0, 1, 2].map(|lambda| Irrep { lambda, sigma: 1 });
    let types: [(TargetType, &[&[usize]]); 4] = [
        (TargetType::Scalar, &[&[]]),
        (TargetType::Cartesian(1), &[&[3]]),
        (TargetType::Cartesian(2), &[&[3, 3]]),
        (TargetType::Spherical(irreps.to_vec()), &[&[1], &[3], &[5]]),
    ];
    let structures = [Structure::chain(), Structure::carbon_cube()];
    every_architecture(|architecture| {
        let mut supported = 0;
        for dtype in architecture.about.supported_dtypes.clone() {
            let mut session = architecture.session(dtype)?;
            for (target_type, components) in &types {
                for (sample_kind, rows) in [(SampleKind::System, 2), (SampleKind::Atom, 6)] {
                    for count in [1, 5] {
                        let target = with_type(target_type, sample_kind, count);
                        let Some(model) = session.new_model(&info(std::slice::from_ref(&target)))? else { continue };
                        supported += 1;
                        let case = format!("{target_type:?} of each {sample_kind} with {count} properties in {dtype}");
                        let output = output(&target, sample_kind);
                        session
                            .values(&model, &structures, &output, None)
                            .map_err(|error| format!("{case}: {error}"))?;
                        let maps = session.forward(&model, &structures, &[output], None)?;
                        let shapes: Vec<&[usize]> = maps[0].blocks.iter().map(|block| block.values.shape()).collect();
                        let expected: Vec<Vec<usize>> = components
                            .iter()
                            .map(|components| [&[rows], *components, &[count as usize]].concat())
                            .collect();
                        demand(shapes == expected, || format!("{case}: shapes {shapes:?}, expected {expected:?}"))?;
                    }
                }
            }
        }
        demand(supported > 0, || "it supports no target".to_owned())
    })
}

/// Targets, features and last-layer features alike: what a model says it can compute it computes, of systems and of atoms.
#[test]
fn conformance_every_supported_output_is_computed() -> Fallible {
    let structures = [Structure::chain(), Structure::carbon_cube()];
    every_architecture(|architecture| {
        let Some((mut session, model)) = architecture.trained()? else { return Ok(()) };
        let supported = session.session.supported_outputs(&model)?;
        let named = |name: &str| supported.iter().filter(|output| output.name == name).count();
        demand(named(&energy().name) == 1, || format!("its target is not among {supported:?}"))?;
        demand(supported.iter().all(|output| named(&output.name) == 1), || format!("{supported:?} has a name twice"))?;
        let mut requests = supported.clone();
        requests.extend(
            supported
                .iter()
                .filter(|output| output.name != energy().name)
                .flat_map(|output| KINDS.map(|sample_kind| ModelOutput { sample_kind, ..output.clone() })),
        );
        for output in &requests {
            let values = session.values(&model, &structures, output, None)?;
            let rows = if output.sample_kind == SampleKind::System { 2 } else { 6 };
            demand(!values.is_empty() && values.len() % rows == 0, || {
                format!("`{}` of each {}: {} numbers", output.name, output.sample_kind, values.len())
            })?;
        }
        // All at once, in another order, they are the same: an answer belongs to its request.
        requests.reverse();
        let together = session.forward(&model, &structures, &requests, None)?;
        for (map, output) in together.iter().zip(&requests) {
            let alone = session.values(&model, &structures, output, None)?;
            let mut values = Vec::new();
            for block in &map.blocks {
                values.extend(block.values.read_float64()?);
            }
            agree(&format!("`{}` beside others", output.name), &values, &alone, architecture.rounding())?;
        }
        Ok(())
    })
}

#[test]
fn conformance_what_cannot_be_computed_is_refused_with_a_sentence() -> Fallible {
    every_architecture(|architecture| {
        let Some((mut session, model)) = architecture.trained()? else { return Ok(()) };
        let unknown = output(&scalar("mtt::of-another-model", SampleKind::System, 1), SampleKind::System);
        let outcome = session.forward(&model, &[Structure::chain()], &[unknown], None);
        refused("an output that the model does not have", outcome, None)?;
        let iron = Structure::molecule(&[26], &[[0.0; 3]]);
        let outcome = session.forward(&model, &[iron], &[output(&energy(), SampleKind::System)], None);
        refused("an element that the model does not know", outcome, None)?;
        let selected = Labels::new(&["system", "atom"], vec![0, 4]);
        let outcome =
            session.forward(&model, &[Structure::chain()], &[output(&energy(), SampleKind::System)], Some(&selected));
        demand(matches!(outcome, Err(HostError::Data(_))), || format!("an atom that does not exist: {outcome:?}"))?;
        // A refusal is no trap: the model is still there.
        session.energy(&model, &Structure::chain()).map(|_| ())
    })
}

/// An error unless it was refused, of this kind if one is given.
fn refused<T>(what: &str, outcome: Result<T, HostError>, expected: Option<ArchitectureErrorKind>) -> Fallible {
    match outcome {
        Err(HostError::Architecture { kind, message }) => {
            demand(expected.is_none_or(|expected| kind == expected), || {
                format!("{what} is refused as {kind:?}: {message}")
            })?;
            demand(message.contains(' '), || format!("{what} is refused without a sentence: `{message}`"))
        }
        Err(error) => Err(format!("{what} is not refused: {error}").into()),
        Ok(_) => Err(format!("{what} is accepted").into()),
    }
}

/// Atoms without neighbours, and elements of the model that a system lacks: batches in which something is empty.
#[test]
fn conformance_atoms_without_neighbors_have_energies_and_no_forces() -> Fallible {
    every_architecture(|architecture| {
        let Some((mut session, model)) = architecture.trained()? else { return Ok(()) };
        let atom = |element: i32| Structure::molecule(&[element], &[[0.3, -0.2, 0.1]]);
        let alone = session.energies(&model, &[atom(6), atom(8)])?;
        for (element, energy) in [(6, alone[0]), (8, alone[1])] {
            let found = session.gradients(&model, &[atom(element)])?;
            agree("the energy of one atom", &[found.energy], &[energy], architecture.rounding())?;
            agree("the gradient of one atom", &found.of.positions, &[0.0; 3], architecture.rounding())?;
        }
        let Some(distance) = far(&mut session, &model)? else { return Ok(()) };
        let pair = atom(6).with(&atom(8).translated([distance, 0.0, 0.0]));
        let found = session.gradients(&model, std::slice::from_ref(&pair))?;
        agree("two atoms far apart", &[found.energy], &[alone[0] + alone[1]], architecture.rounding())?;
        agree("the gradient of two atoms far apart", &found.of.positions, &[0.0; 6], architecture.rounding())
    })
}

/// Further away than atoms matter to each other; none where there is no such distance.
fn far(session: &mut Running<'_>, model: &Model) -> Fallible<Option<f64>> {
    let range = session.session.export_model(model)?.interaction_range;
    Ok(range.is_finite().then_some(2.0 * range + 20.0))
}

#[test]
fn conformance_selected_atoms_contribute_and_the_others_are_neighbors() -> Fallible {
    let (chain, cube) = (Structure::chain(), Structure::carbon_cube());
    let selection = |entries: &[[i32; 2]]| Labels::new(&["system", "atom"], entries.as_flattened().to_vec());
    every_architecture(|architecture| {
        let Some((mut session, model)) = architecture.trained()? else { return Ok(()) };
        let rounding = architecture.rounding();
        let energies = output(&energy(), SampleKind::System);
        if let Some(distance) = far(&mut session, &model)? {
            let dimer = chain.with(&chain.translated([0.0, distance, 0.0]));
            let monomer = session.energy(&model, &chain)?;
            let first = selection(&[[0, 0], [0, 1], [0, 2], [0, 3]]);
            let selected = session.values(&model, std::slice::from_ref(&dimer), &energies, Some(&first))?;
            agree("a selected monomer of a far dimer", &selected, &[monomer], rounding)?;
            agree("a far dimer", &[session.energy(&model, &dimer)?], &[2.0 * monomer], rounding)?;
        }
        let both = [chain.clone(), cube.clone()];
        let Some(atoms) = session.atomic_energies(&model, &both, None)? else { return Ok(()) };
        // Out of order, over two systems, and an atom twice: rows come in order, each once.
        let chosen = selection(&[[1, 0], [0, 3], [0, 1], [0, 3]]);
        let rows = session.atomic_energies(&model, &both, Some(&chosen))?.ok_or("selected atoms are refused")?;
        agree("rows of selected atoms", &rows, &[atoms[1], atoms[3], atoms[4]], rounding)?;
        let sums = session.values(&model, &both, &energies, Some(&chosen))?;
        agree("sums over selected atoms", &sums, &[atoms[1] + atoms[3], atoms[4]], rounding)?;
        // A system of which no atom is selected has no row, and still is in the batch.
        let second = session.values(&model, &both, &energies, Some(&selection(&[[1, 0], [1, 1]])))?;
        agree("the second system alone", &second, &[atoms[4] + atoms[5]], rounding)
    })
}

#[test]
fn conformance_a_batch_gives_what_each_system_gives_alone() -> Fallible {
    let lone = Structure::molecule(&[8], &[[5.0, 0.0, 0.0]]);
    let batch = [Structure::carbon_cube(), lone, Structure::chain(), Structure::chain().transformed(&rotation())];
    every_architecture(|architecture| {
        let Some((mut session, model)) = architecture.trained()? else { return Ok(()) };
        let rounding = architecture.rounding();
        let energies = session.energies(&model, &batch)?;
        let gradients = session.gradients(&model, &batch)?;
        let atoms = session.atomic_energies(&model, &batch, None)?;
        let mut start = 0;
        for (number, structure) in batch.iter().enumerate() {
            let alone = session.gradients(&model, std::slice::from_ref(structure))?;
            let rows = start..start + structure.len();
            let what = |of: &str| format!("{of} of system {number}");
            agree(&what("the energy"), &energies[number..=number], &[alone.energy], rounding)?;
            let found = &gradients.of.positions[3 * rows.start..3 * rows.end];
            agree(&what("the position gradient"), found, &alone.of.positions, rounding)?;
            let found = &gradients.of.strain[9 * number..9 * (number + 1)];
            agree(&what("the strain gradient"), found, &alone.of.strain, rounding)?;
            if let Some(atoms) = &atoms {
                let sum: f64 = atoms[rows.clone()].iter().sum();
                agree(&what("the sum of atoms"), &[sum], &[alone.energy], rounding)?;
            }
            start = rows.end;
        }
        Ok(())
    })
}

#[test]
fn conformance_translations_permutations_and_larger_cells_change_nothing() -> Fallible {
    let (chain, cube) = (Structure::chain(), Structure::carbon_cube());
    every_architecture(|architecture| {
        let Some((mut session, model)) = architecture.trained()? else { return Ok(()) };
        let rounding = architecture.rounding();
        let range = session.session.export_model(&model)?.interaction_range;
        for structure in [&chain, &cube] {
            let expected = session.gradients(&model, std::slice::from_ref(structure))?;
            let moved = session.gradients(&model, &[structure.translated([0.7, -3.1, 12.9])])?;
            agree("the energy after a translation", &[moved.energy], &[expected.energy], rounding)?;
            agree("the gradient after a translation", &moved.of.positions, &expected.of.positions, rounding)?;
            // If nothing happened when atoms move against each other, the above would say nothing.
            let stretched = session.energy(&model, &structure.transformed(&IDENTITY.map(|entry| 1.05 * entry)))?;
            let change = (stretched - expected.energy).abs();
            demand(range == 0.0 || change > 100.0 * rounding * expected.energy.abs().max(1.0), || {
                format!("a stretched structure has the same energy, {stretched}")
            })?;
        }
        let order = [2, 0, 3, 1];
        let permuted = chain.permuted(&order);
        let (found, expected) = (session.energy(&model, &permuted)?, session.energy(&model, &chain)?);
        agree("the energy in another order", &[found], &[expected], rounding)?;
        if let Some(atoms) = session.atomic_energies(&model, std::slice::from_ref(&chain), None)? {
            let found = session.atomic_energies(&model, &[permuted], None)?.ok_or("energies of atoms are refused")?;
            agree("energies of atoms in another order", &found, &order.map(|atom| atoms[atom]), rounding)?;
        }
        let mut wrapped = cube.clone();
        wrapped.positions.iter_mut().zip(cube.cell).take(3).for_each(|(value, shift)| *value -= shift);
        let found = session.energies(&model, &[wrapped, cube.doubled()])?;
        let expected = session.energy(&model, &cube)?;
        agree("the energy with an atom in another cell", &found[..1], &[expected], rounding)?;
        if range.is_finite() {
            agree("the energy of two cells", &found[1..], &[2.0 * expected], rounding)?;
        }
        Ok(())
    })
}

/// Large structures are evaluated in parts, which rests on what an architecture says of its interaction range and does with selected atoms.
#[test]
fn conformance_a_structure_in_parts_is_the_whole() -> Fallible {
    let glass = Structure::glass();
    let cluster = Structure { periodic: false, cell: [0.0; 9], ..glass.clone() };
    every_architecture(|architecture| {
        let Some((session, model)) = architecture.trained()? else { return Ok(()) };
        let rounding = architecture.rounding();
        let mut predictor = Predictor::new(session.session, model)?;
        if !predictor.capabilities().interaction_range.is_finite() {
            return Ok(());
        }
        let request = |sample_kind, strain_gradients| EvaluationRequest {
            output: output(&energy(), sample_kind),
            position_gradients: true,
            strain_gradients,
        };
        for (structure, strain) in [(&glass, true), (&cluster, false)] {
            let requests = [request(SampleKind::System, strain), request(SampleKind::Atom, strain)];
            let whole = predictor.predict(plain(std::slice::from_ref(structure)), &requests)?;
            let parts = predictor.predict_in_blocks(&plain(std::slice::from_ref(structure)), &requests, 3)?;
            for (found, expected) in parts.iter().zip(&whole) {
                let values = |output: &EvaluatedOutput| output.values.blocks[0].values.clone();
                agree("energies in parts", &values(found), &values(expected), rounding)?;
                demand(found.values.blocks[0].samples == expected.values.blocks[0].samples, || {
                    "other rows".to_owned()
                })?;
                let positions = |output: &EvaluatedOutput| output.position_gradients.clone().unwrap_or_default();
                agree("the gradient in parts", &positions(found), &positions(expected), rounding)?;
                let strain = |output: &EvaluatedOutput| output.strain_gradients.clone().unwrap_or_default();
                agree("the strain gradient in parts", &strain(found), &strain(expected), rounding)?;
            }
        }
        Ok(())
    })
}

/// What an architecture claims of rotations and reflections holds, for energies, their gradients, and vectors if it predicts them.
#[test]
fn conformance_predictions_turn_as_claimed() -> Fallible {
    let mut vector = scalar("mtt::vector", SampleKind::System, 2);
    vector.info.target_type = TargetType::Cartesian(1);
    let reflection = plus(&IDENTITY, -2.0, &outer(&[0.6, 0.0, 0.8], &[0.6, 0.0, 0.8]));
    every_architecture(|architecture| {
        let claimed = architecture.about.equivariance;
        let transformations: &[(Equivariance, Matrix)] =
            &[(Equivariance::Rotations, rotation()), (Equivariance::RotationsAndReflections, reflection)];
        for (needed, matrix) in transformations.iter().filter(|(needed, _)| claimed >= *needed) {
            if let Some((mut session, model)) = architecture.trained()? {
                for structure in [Structure::chain(), Structure::carbon_cube()] {
                    let turned = session.gradients(&model, &[structure.transformed(matrix)])?;
                    let expected = session.gradients(&model, &[structure])?;
                    let rounding = architecture.rounding();
                    agree(&format!("{needed:?}: the energy"), &[turned.energy], &[expected.energy], rounding)?;
                    let expected = times(&expected.of.positions, matrix);
                    agree(&format!("{needed:?}: the gradient"), &turned.of.positions, &expected, rounding)?;
                }
            }
            let mut session = architecture.session(architecture.dtype())?;
            let Some(model) = session.new_model(&info(std::slice::from_ref(&vector)))? else { continue };
            let output = output(&vector, SampleKind::System);
            let turned = session.values(&model, &[Structure::chain().transformed(matrix)], &output, None)?;
            let expected = session.values(&model, &[Structure::chain()], &output, None)?;
            // Two vectors as columns: `[3, 2]`.
            let turn = |vector: usize| times(&[0, 2, 4].map(|entry| expected[entry + vector]), matrix);
            let expected: Vec<f64> =
                turn(0).into_iter().zip(turn(1)).flat_map(|(first, second)| [first, second]).collect();
            agree(&format!("{needed:?}: vectors"), &turned, &expected, architecture.rounding())?;
        }
        Ok(())
    })
}

/// First and second derivatives of energies by positions and strain, against finite differences along directions without a pattern.
#[test]
fn conformance_derivatives_are_those_of_finite_differences() -> Fallible {
    /// In angstrom, or of strain. Central differences of fourth order err by `step^4 / 30` times the fifth derivative, which is largest where a pair of
    /// the crystal is 0.03 angstrom from the end of a cut-off: 4e-10 then (and 3e-8 with three times the step). Rounding of energies of 100 eV adds 4e-11.
    const STEP: f64 = 1e-4;
    /// Two hundred times that: other architectures may be steeper. A derivative that is wrong is off by its own size, a hundredth and more.
    const TOLERANCE: f64 = 1e-7;
    every_architecture(|architecture| {
        if architecture.dtype() != DType::Float64 {
            return Ok(());
        }
        let Some((mut session, model)) = architecture.trained()? else { return Ok(()) };
        let range = session.session.export_model(&model)?.interaction_range;
        for (name, structure) in [("a molecule", Structure::chain()), ("a crystal", Structure::carbon_cube())] {
            let count = 3 * structure.len();
            let by = [
                Direction { positions: noise(1, count)?, strain: vec![0.0; 9] },
                Direction { positions: vec![0.0; count], strain: noise(2, 9)? },
            ];
            let (gradients, curvatures) = session.differentiate(&model, std::slice::from_ref(&structure), &by)?;
            let size = dot(&gradients.of.positions, &gradients.of.positions).sqrt();
            demand(range == 0.0 || size > 1e-3, || {
                format!("{name}: the gradient, {size}, is too small to be compared")
            })?;
            let total = |axis: usize| gradients.of.positions.iter().skip(axis).step_by(3).sum();
            agree(&format!("{name}: the sum of forces"), &[0, 1, 2].map(total), &[0.0; 3], architecture.rounding())?;

            // Energy and slopes by positions and by strain, at positions moved by a step, and in a cell strained by it. A strain of rank one has a simple inverse.
            let (along, column, row) = (noise(3, count)?, noise(4, 3)?, noise(5, 3)?);
            let strain = outer(&column, &row);
            let mut moved = |step: f64| -> Fallible<[f64; 3]> {
                let there = session.gradients(&model, &[structure.moved(&along, step)])?;
                let of_positions = dot(&by[0].positions, &there.of.positions);
                Ok([there.energy, of_positions, dot(&by[1].strain, &there.of.strain)])
            };
            let found = derivative(STEP, &mut moved)?;
            let of = |direction: &Direction| dot(&direction.positions, &along);
            let expected = [of(&gradients.of), of(&curvatures[0]), of(&curvatures[1])];
            agree(
                &format!("{name}: energy, gradient and strain gradient along positions"),
                &expected,
                &found,
                TOLERANCE,
            )?;

            let mut strained = |step: f64| -> Fallible<[f64; 3]> {
                let deformation = plus(&IDENTITY, step, &strain);
                let inverse = plus(&IDENTITY, -step / (1.0 + step * dot(&column, &row)), &strain);
                let there = session.gradients(&model, &[structure.transformed(&deformation)])?;
                // The leaves are those of the structure as it was: `r . (1 + strain)`, whose derivatives follow from those there by the chain rule.
                let of_positions = dot(&times(&by[0].positions, &deformation), &there.of.positions);
                let by_strain: Matrix = by[1].strain.clone().try_into().unwrap_or(IDENTITY);
                Ok([there.energy, of_positions, dot(&times(&inverse, &by_strain), &there.of.strain)])
            };
            let found = derivative(STEP, &mut strained)?;
            let of = |direction: &Direction| dot(&direction.strain, &strain);
            let expected = [of(&gradients.of), of(&curvatures[0]), of(&curvatures[1])];
            agree(&format!("{name}: energy, gradient and strain gradient along strain"), &expected, &found, TOLERANCE)?;
        }
        Ok(())
    })
}

/// Central differences of fourth order.
fn derivative(step: f64, function: &mut dyn FnMut(f64) -> Fallible<[f64; 3]>) -> Fallible<[f64; 3]> {
    let [far_below, below, above, far_above] =
        [function(-2.0 * step)?, function(-step)?, function(step)?, function(2.0 * step)?];
    Ok(std::array::from_fn(|k| (far_below[k] - far_above[k] + 8.0 * (above[k] - below[k])) / (12.0 * step)))
}

#[test]
fn conformance_an_exported_model_says_what_it_can_do() -> Fallible {
    every_architecture(|architecture| {
        let Some((mut session, model)) = architecture.trained()? else { return Ok(()) };
        let capabilities = session.session.export_model(&model)?;
        let supported = session.session.supported_outputs(&model)?;
        demand(capabilities.outputs == supported, || {
            format!("{:?}, and it supports {supported:?}", capabilities.outputs)
        })?;
        demand(capabilities.atomic_types == ELEMENTS, || format!("atomic types {:?}", capabilities.atomic_types))?;
        demand(capabilities.length_unit == "angstrom", || format!("length unit `{}`", capabilities.length_unit))?;
        demand(capabilities.dtype == architecture.dtype(), || format!("dtype {}", capabilities.dtype))?;
        demand(capabilities.interaction_range >= 0.0, || format!("range {}", capabilities.interaction_range))
    })
}

/// Energies and forces that tell two models apart.
fn predictions(session: &mut Running<'_>, model: &Model) -> Fallible<Vec<f64>> {
    let structures = [Structure::chain(), Structure::carbon_cube()];
    let mut predictions = session.energies(model, &structures)?;
    let gradients = session.gradients(model, &structures)?;
    predictions.extend(gradients.of.positions);
    predictions.extend(gradients.of.strain);
    Ok(predictions)
}

#[test]
fn conformance_a_run_continues_where_it_stopped_and_fine_tuning_begins_anew() -> Fallible {
    every_architecture(|architecture| {
        let counts = architecture.has_epochs()?;
        let data = info(&[energy()]);
        let mut session = architecture.session(architecture.dtype())?;
        let Some(model) = session.new_model(&data)? else { return Ok(()) };
        let trainer = session.train(&model, 2)?;
        let checkpoint = session.session.save_checkpoint(&trainer, &model)?;
        let expected = predictions(&mut session, &model)?;
        let check = |what: &str, done: Option<u32>, reported: Vec<u32>, epochs: std::ops::Range<u32>| {
            demand(done.is_some(), || format!("{what}: the checkpoint does not say that it was trained"))?;
            demand(!counts || done == Some(epochs.end), || {
                format!("{what}: {done:?} epochs, expected {}", epochs.end)
            })?;
            demand(!counts || reported == epochs.clone().collect::<Vec<_>>(), || {
                format!("{what}: the epochs {reported:?} were reported, expected {epochs:?}")
            })
        };
        check("a fresh run", checkpoint.epoch, session.reports.take(), 0..2)?;
        for (context, epochs, total) in [(Context::Restart, 2..4, 4), (Context::Finetune, 0..1, 1)] {
            let mut session = architecture.other_session()?;
            let model = session.session.load_model(&checkpoint, context)?;
            session.session.restart_model(&model, &data)?;
            if context == Context::Restart {
                let found = predictions(&mut session, &model)?;
                demand(found == expected, || "predictions differ after a restart".to_owned())?;
            }
            let hypers = architecture.hypers_of(total)?["training"].to_string();
            let trainer = session.session.load_trainer(&checkpoint, &hypers, context)?;
            session.train_with(&trainer, &model, &data)?;
            let done = session.session.save_checkpoint(&trainer, &model)?.epoch;
            check(&format!("{context:?}"), done, session.reports.take(), epochs)?;
            // It has learned from the same data as before, so that what has no epochs has nothing new to learn.
            let found = predictions(&mut session, &model)?;
            demand(!counts || found != expected, || format!("{context:?}: training changed nothing"))?;
        }
        Ok(())
    })
}

#[test]
fn conformance_a_training_of_no_epochs_leaves_a_model() -> Fallible {
    every_architecture(|architecture| {
        let mut session = architecture.session(architecture.dtype())?;
        let Some(model) = session.new_model(&info(&[energy()]))? else { return Ok(()) };
        let trainer = session.train(&model, 0)?;
        let checkpoint = session.session.save_checkpoint(&trainer, &model)?;
        let exported = session.session.load_model(&checkpoint, Context::Export)?;
        let (found, expected) = (predictions(&mut session, &exported)?, predictions(&mut session, &model)?);
        agree("predictions of the exported model", &found, &expected, architecture.rounding())
    })
}

/// A model is the same after its checkpoint was loaded, for whatever purpose, whether it was trained or not.
#[test]
fn conformance_checkpoints_hold_the_whole_model() -> Fallible {
    every_architecture(|architecture| {
        let mut session = architecture.session(architecture.dtype())?;
        let Some(model) = session.new_model(&info(&[energy()]))? else { return Ok(()) };
        for trained in [false, true] {
            let mut checkpoint = session.session.model_checkpoint(&model)?;
            if trained {
                let trainer = session.train(&model, 1)?;
                checkpoint = session.session.save_checkpoint(&trainer, &model)?;
            }
            checkpoint.check()?;
            // One epoch is the best of one: the latest weights are the best ones.
            let expected = predictions(&mut session, &model)?;
            for context in [Context::Restart, Context::Finetune, Context::Export] {
                let case = format!("{context:?}, {}", if trained { "trained" } else { "fresh" });
                let mut other = architecture.other_session()?;
                let loaded = other.session.load_model(&checkpoint, context)?;
                agree(&case, &predictions(&mut other, &loaded)?, &expected, architecture.rounding())?;
                let again = other.session.model_checkpoint(&loaded)?;
                let reloaded = other.session.load_model(&again, Context::Export)?;
                let found = predictions(&mut other, &reloaded)?;
                agree(&format!("{case}, saved again"), &found, &expected, architecture.rounding())?;
            }
        }
        Ok(())
    })
}

#[test]
fn conformance_a_checkpoint_of_a_newer_version_is_refused() -> Fallible {
    every_architecture(|architecture| {
        let mut session = architecture.session(architecture.dtype())?;
        let Some(model) = session.new_model(&info(&[energy()]))? else { return Ok(()) };
        let trainer = session.train(&model, 1)?;
        let hypers = architecture.hypers_of(1)?["training"].to_string();
        let mut newer = session.session.save_checkpoint(&trainer, &model)?;
        (newer.model_version, newer.trainer_version) = (u32::MAX, u32::MAX);
        for context in [Context::Restart, Context::Finetune, Context::Export] {
            let kind = Some(ArchitectureErrorKind::IncompatibleCheckpoint);
            refused(&format!("a newer model, {context:?}"), session.session.load_model(&newer, context), kind)?;
            refused(
                &format!("a newer trainer, {context:?}"),
                session.session.load_trainer(&newer, &hypers, context),
                kind,
            )?;
        }
        Ok(())
    })
}

#[test]
fn conformance_a_loaded_model_takes_up_new_targets_or_refuses_them() -> Fallible {
    let other = NamedTarget { name: "mtt::other".to_owned(), ..energy() };
    every_architecture(|architecture| {
        let Some((mut session, model)) = architecture.trained()? else { return Ok(()) };
        let expected = session.energy(&model, &Structure::chain())?;
        let mut strange = info(&[energy()]);
        strange.atomic_types.push(26);
        refused("data with an element that it does not know", session.session.restart_model(&model, &strange), None)?;
        match session.session.restart_model(&model, &info(&[energy(), other.clone()])) {
            Err(HostError::Architecture { kind: ArchitectureErrorKind::UnsupportedTarget, .. }) => return Ok(()),
            outcome => outcome?,
        }
        let kept = session.energy(&model, &Structure::chain())?;
        agree("the energy beside a new target", &[kept], &[expected], architecture.rounding())?;
        let new = output(&other, SampleKind::System);
        let supported = session.session.supported_outputs(&model)?;
        demand(supported.iter().any(|output| output.name == new.name), || format!("it supports only {supported:?}"))?;
        session.values(&model, &[Structure::chain()], &new, None).map(|_| ())
    })
}

#[test]
fn conformance_a_baseline_of_atoms_is_given_by_atomic_numbers() -> Fallible {
    every_architecture(|architecture| {
        if architecture.hypers("{}")?["training"].get("atomic_baseline").is_none() {
            return Ok(());
        }
        let mut session = architecture.session(architecture.dtype())?;
        for accepted in ["{energy: {1: -13.6, 6: -1029.0, 7: 0.0, 8: -2042.0}}", "{energy: -5.0}", "{}"] {
            let hypers = architecture.hypers(&format!("training: {{atomic_baseline: {accepted}}}"))?;
            session.session.new_trainer(&hypers["training"].to_string())?;
        }
        match architecture.hypers("training: {atomic_baseline: {energy: {H: 300.0}}}") {
            // An architecture may leave it to its trainer to refuse what its schema does not rule out.
            Ok(hypers) => {
                let outcome = session.session.new_trainer(&hypers["training"].to_string());
                refused("a baseline for `H`", outcome, Some(ArchitectureErrorKind::InvalidHypers))
            }
            Err(error) => {
                let words = error.to_string();
                demand(words.contains("options:1") && words.contains("atomic_baseline.energy"), || {
                    format!("a baseline for `H` is refused without its place: {words}")
                })
            }
        }
    })
}
