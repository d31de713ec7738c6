//! Checkpoints on their way between an architecture and whoever keeps them.

use kilnbox_tensor::Tensor;

/// The longest name of a tensor, in bytes.
const LONGEST_TENSOR_NAME: usize = 256;
/// The longest name of a checkpoint, in bytes.
const LONGEST_NAME: usize = 64;
/// The most tensors of a checkpoint.
const MOST_TENSORS: usize = 100_000;
/// The most bytes of an architecture's own data.
const MOST_DATA: usize = 1 << 20;

/// What is kept of a model and of its training, as the architecture gave it.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    /// The version of the model's part.
    pub model_version: u32,
    /// The version of the trainer's part.
    pub trainer_version: u32,
    /// The number of epochs that are done, if it was trained.
    pub epoch: Option<u32>,
    /// What the architecture wants to find again: JSON.
    pub data: String,
    /// Weights and the state of the optimizer, each under a name of its own.
    pub tensors: Vec<(String, Tensor)>,
}

/// What a checkpoint is loaded for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Context {
    /// To continue the run.
    Restart,
    /// To start another run from the best weights.
    Finetune,
    /// To evaluate the best weights.
    Export,
}

impl Checkpoint {
    /// About how many bytes it takes to keep: those of its tensors and of its data.
    pub fn bytes(&self) -> u64 {
        let tensors = self.tensors.iter().map(|(_, tensor)| (tensor.count() * tensor.dtype().size()) as u64);
        self.data.len() as u64 + tensors.sum::<u64>()
    }

    /// Checks what an architecture hands out, before anybody keeps it.
    ///
    /// # Errors
    /// A sentence about the first thing that breaks the contract.
    pub fn check(&self) -> Result<(), String> {
        if self.data.len() > MOST_DATA {
            return Err(format!(
                "the data of the checkpoint has {} bytes, at most {MOST_DATA} are kept",
                self.data.len()
            ));
        }
        if let Err(error) = serde_json::from_str::<serde::de::IgnoredAny>(&self.data) {
            return Err(format!("the data of the checkpoint is not JSON: {error}"));
        }
        if self.tensors.len() > MOST_TENSORS {
            return Err(format!("the checkpoint has {} tensors, at most {MOST_TENSORS} are kept", self.tensors.len()));
        }
        let mut names = std::collections::HashSet::new();
        for (name, _) in &self.tensors {
            let fits = (1..=LONGEST_TENSOR_NAME).contains(&name.len())
                && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._:/-".contains(&byte));
            if !fits {
                return Err(format!(
                    "a tensor of the checkpoint is named {name:?}: a name has 1 to {LONGEST_TENSOR_NAME} letters, digits and `._:/-`"
                ));
            }
            if !names.insert(name.as_str()) {
                return Err(format!("two tensors of the checkpoint are named `{name}`"));
            }
        }
        Ok(())
    }
}

/// Checks the name that an architecture gives a checkpoint: it becomes part of a file's name.
///
/// # Errors
/// A sentence.
pub fn check_name(name: &str) -> Result<(), String> {
    let fits = (1..=LONGEST_NAME).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte));
    if fits {
        return Ok(());
    }
    Err(format!("a checkpoint is named {name:?}: a name has 1 to {LONGEST_NAME} letters, digits, `_` and `-`"))
}

#[cfg(test)]
mod tests {
    use kilnbox_tensor::{DType, Device};

    use super::*;

    #[test]
    fn a_checkpoint_is_checked_before_it_is_kept() {
        let tensor = || Tensor::full(&Device::cpu(), &[1], 0.0, DType::Float32).unwrap();
        let checkpoint = |data: &str, names: &[&str]| Checkpoint {
            model_version: 1,
            trainer_version: 1,
            epoch: None,
            data: data.to_owned(),
            tensors: names.iter().map(|&name| (name.to_owned(), tensor())).collect(),
        };
        let long = "x".repeat(257);
        let cases: &[(&str, &[&str], Option<&str>)] = &[
            ("{}", &["a", "best/layer.0:weight"], None),
            ("{", &[], Some("not JSON")),
            ("{}", &["a", "a"], Some("two tensors")),
            ("{}", &[""], Some("is named")),
            ("{}", &["../a b"], Some("is named")),
            ("{}", &[&long], Some("is named")),
        ];
        for (data, names, expected) in cases {
            match (checkpoint(data, names).check(), expected) {
                (Ok(()), None) => {}
                (Err(message), Some(part)) => assert!(message.contains(part), "{message}"),
                (result, _) => panic!("{data} {names:?}: {result:?}"),
            }
        }
        for (name, fits) in [("model_25", true), ("", false), ("../x", false), ("a.b", false), (&"x".repeat(65), false)]
        {
            assert_eq!(check_name(name).is_ok(), fits, "{name}");
        }
    }
}
