//! Training, validation and test sets.

use kilnbox_data::Dataset;
use kilnbox_tensor::random::Random;

use crate::convert::read_dataset;
use crate::errors::CliError;
use crate::options::{SplitOptions, TrainOptions};

/// The three sets of a run; each is a list of datasets, one for each training source.
#[derive(Clone, Debug)]
pub struct Sets {
    /// What is learned from.
    pub training: Vec<Dataset>,
    /// What the best model is chosen by.
    pub validation: Vec<Dataset>,
    /// What is kept for the end.
    pub test: Vec<Dataset>,
    /// Whether something was split, so that the indices are worth keeping.
    pub was_split: bool,
}

impl Sets {
    /// Reads and splits. Fractions are random parts of each training dataset, drawn with `seed`: validation first, then test.
    ///
    /// # Errors
    ///
    /// Data cannot be read, or a set would be empty that must not be.
    pub fn read(options: &TrainOptions, seed: u64) -> Result<Self, CliError> {
        let mut random = Random::new(seed);
        let mut sets = Self { training: Vec::new(), validation: Vec::new(), test: Vec::new(), was_split: false };
        for dataset in &options.training_set {
            let whole = read_dataset(dataset)?;
            let count = whole.len();
            let part = |split: &SplitOptions| match split {
                // A part that was asked for has one structure at least.
                SplitOptions::Fraction(fraction) if *fraction > 0.0 => ((count as f64 * fraction) as usize).max(1),
                _ => 0,
            };
            let (validation, test) = (part(&options.validation_set), part(&options.test_set));
            if validation + test == 0 {
                sets.training.push(whole);
                continue;
            }
            if validation + test >= count {
                return Err(CliError::input(format!(
                    "`{}` has {count} structures, which leaves none to train on after {validation} for validation and {test} for the test",
                    dataset.systems.read_from.display()
                )));
            }
            sets.was_split = true;
            let order: Vec<usize> = random.permutation(count as u32).into_iter().map(|index| index as usize).collect();
            // In the order of the file: sets then look alike whoever reads them.
            let pick = |range: std::ops::Range<usize>| {
                let mut indices = order[range].to_vec();
                indices.sort_unstable();
                whole.select(&indices)
            };
            if validation > 0 {
                sets.validation.push(pick(0..validation)?);
            }
            if test > 0 {
                sets.test.push(pick(validation..validation + test)?);
            }
            sets.training.push(pick(validation + test..count)?);
        }
        sets.validation.extend(separate(&options.validation_set, options, &mut sets.was_split)?);
        sets.test.extend(separate(&options.test_set, options, &mut sets.was_split)?);
        if let Some(empty) = sets.training.iter().position(Dataset::is_empty) {
            return Err(CliError::input(format!("training dataset {empty} has no structures")));
        }
        Ok(sets)
    }
}

/// The datasets of a set that is not a fraction.
fn separate(split: &SplitOptions, options: &TrainOptions, was_split: &mut bool) -> Result<Vec<Dataset>, CliError> {
    match split {
        SplitOptions::Fraction(_) => Ok(Vec::new()),
        SplitOptions::Datasets(datasets) => datasets.iter().map(read_dataset).collect(),
        SplitOptions::Indices(indices) => {
            *was_split = true;
            let mut source = options.training_set[0].clone();
            source.indices = Some(indices.clone());
            Ok(vec![read_dataset(&source)?])
        }
    }
}
