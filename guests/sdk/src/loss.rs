//! What a training minimises: the option `loss`, for every target and each of its gradients.
//!
//! ```yaml
//! loss: mse                       # of every target and gradient
//! loss: {energy: mae}             # gradients keep mse
//! loss:
//!   energy: {type: huber, delta: 0.5, weight: 2.0, forces: {type: mse, weight: 10.0}, stress: mae}
//!   mtt::free: {type: mse, gradients: {positions: mae}}
//! ```

use std::collections::BTreeMap;

use serde_json::Value;

use crate::{Error, Result, info::NamedTarget};

/// A function of an error that is summed up.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum LossFunction {
    /// The square.
    Mse,
    /// The absolute value.
    Mae,
    /// Half the square up to `delta`, then linear.
    Huber {
        /// Where it turns linear, in scaled units.
        delta: f64,
    },
}

/// How the errors of all values become one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reduction {
    /// Their mean.
    Mean,
    /// Their sum.
    Sum,
}

/// One term of the loss.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LossTerm {
    /// Of each error.
    pub function: LossFunction,
    /// Multiplied with the term.
    pub weight: f64,
    /// Over all values.
    pub reduction: Reduction,
}

impl LossTerm {
    /// What the sum over all errors is multiplied with.
    pub fn factor(&self, count: usize) -> f64 {
        match self.reduction {
            Reduction::Mean => self.weight / count.max(1) as f64,
            Reduction::Sum => self.weight,
        }
    }
}

const MEAN_SQUARE: LossTerm = LossTerm { function: LossFunction::Mse, weight: 1.0, reduction: Reduction::Mean };

/// The terms of one target.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TargetLoss {
    /// Of its values.
    pub values: LossTerm,
    /// Of its gradient by the positions, if the data has it.
    pub positions: LossTerm,
    /// Of its gradient by the strain, if the data has it.
    pub strain: LossTerm,
}

/// The loss of every target.
///
/// # Errors
/// When the option names an unknown target, function or key.
pub fn parse(option: &Value, targets: &[NamedTarget]) -> Result<BTreeMap<String, TargetLoss>> {
    let same = |term| TargetLoss { values: term, positions: term, strain: term };
    let mut losses: BTreeMap<String, TargetLoss> =
        targets.iter().map(|target| (target.name.clone(), same(MEAN_SQUARE))).collect();
    match option {
        Value::Null => {}
        Value::String(_) => {
            let term = parse_term("loss", option)?.0;
            losses.values_mut().for_each(|loss| *loss = same(term));
        }
        Value::Object(options) => {
            for (name, option) in options {
                let known: Vec<&str> = targets.iter().map(|target| target.name.as_str()).collect();
                let loss = losses.get_mut(name).ok_or_else(|| {
                    invalid(format!("`loss` names the target `{name}`, which is not among the targets {known:?}"))
                })?;
                *loss = parse_target(name, option)?;
            }
        }
        other => {
            return Err(invalid(format!(
                "`loss` is `{other}`, expected a function such as `mse`, or one for each target"
            )));
        }
    }
    Ok(losses)
}

fn parse_target(name: &str, option: &Value) -> Result<TargetLoss> {
    let place = format!("loss.{name}");
    let (values, rest) = parse_term(&place, option)?;
    let mut loss = TargetLoss { values, positions: MEAN_SQUARE, strain: MEAN_SQUARE };
    for (key, option) in rest {
        match (key, option) {
            ("forces", option) => loss.positions = gradient_term(&place, key, option)?,
            ("stress" | "virial", option) => loss.strain = gradient_term(&place, key, option)?,
            ("gradients", Value::Object(gradients)) => {
                for (parameter, option) in gradients {
                    let term = gradient_term(&place, parameter, option)?;
                    match parameter.as_str() {
                        "positions" => loss.positions = term,
                        "strain" => loss.strain = term,
                        _ => {
                            return Err(invalid(format!(
                                "`{place}.gradients` has `{parameter}`, expected `positions` or `strain`"
                            )));
                        }
                    }
                }
            }
            _ => {
                return Err(invalid(format!(
                    "`{place}` has `{key}`, expected `type`, `weight`, `reduction`, `delta`, `forces`, `stress`, `virial` or `gradients`"
                )));
            }
        }
    }
    Ok(loss)
}

fn gradient_term(place: &str, key: &str, option: &Value) -> Result<LossTerm> {
    let place = format!("{place}.{key}");
    match parse_term(&place, option)? {
        (term, rest) if rest.is_empty() => Ok(term),
        (_, rest) => {
            Err(invalid(format!("`{place}` has `{}`, expected `type`, `weight`, `reduction` or `delta`", rest[0].0)))
        }
    }
}

/// A term and the keys that do not belong to it.
fn parse_term<'a>(place: &str, option: &'a Value) -> Result<(LossTerm, Vec<(&'a str, &'a Value)>)> {
    let (function, options) = match option {
        Value::String(function) => (function.as_str(), None),
        Value::Object(options) => {
            (options.get("type").map_or(Ok("mse"), |function| text(place, "type", function))?, Some(options))
        }
        other => {
            return Err(invalid(format!("`{place}` is `{other}`, expected a function such as `mse`, or keys")));
        }
    };
    let find = |key: &str| options.and_then(|options| options.get(key));
    let delta = find("delta").map_or(Ok(1.0), |delta| number(place, "delta", delta))?;
    let function = match function {
        "mse" => LossFunction::Mse,
        "mae" => LossFunction::Mae,
        "huber" if delta > 0.0 => LossFunction::Huber { delta },
        "huber" => {
            return Err(invalid(format!("`{place}.delta` is {delta}, expected a positive number")));
        }
        other => {
            return Err(invalid(format!("`{place}` asks for the loss `{other}`, expected `mse`, `mae` or `huber`")));
        }
    };
    let weight = find("weight").map_or(Ok(1.0), |weight| number(place, "weight", weight))?;
    let reduction = match find("reduction").map(|reduction| text(place, "reduction", reduction)).transpose()? {
        None | Some("mean") => Reduction::Mean,
        Some("sum") => Reduction::Sum,
        Some(other) => {
            return Err(invalid(format!("`{place}.reduction` is `{other}`, expected `mean` or `sum`")));
        }
    };
    let own = ["type", "weight", "reduction", "delta"];
    let rest = options.into_iter().flatten().filter(|(key, _)| !own.contains(&key.as_str()));
    Ok((LossTerm { function, weight, reduction }, rest.map(|(key, value)| (key.as_str(), value)).collect()))
}

fn text<'a>(place: &str, key: &str, value: &'a Value) -> Result<&'a str> {
    value.as_str().ok_or_else(|| invalid(format!("`{place}.{key}` is `{value}`, expected a word")))
}

fn number(place: &str, key: &str, value: &Value) -> Result<f64> {
    value.as_f64().ok_or_else(|| invalid(format!("`{place}.{key}` is `{value}`, expected a number")))
}

fn invalid(message: String) -> Error {
    Error::InvalidHypers(message)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::info::{SampleKind, TargetInfo, TargetType};

    fn target(name: &str) -> NamedTarget {
        let info = TargetInfo {
            quantity: "energy".to_owned(),
            unit: "eV".to_owned(),
            description: String::new(),
            sample_kind: SampleKind::System,
            target_type: TargetType::Scalar,
            num_subtargets: 1,
            gradients: Vec::new(),
        };
        NamedTarget { name: name.to_owned(), info }
    }

    fn energy_loss(option: Value) -> TargetLoss {
        parse(&option, &[target("energy"), target("mtt::other")]).expect("a loss")["energy"]
    }

    fn term(function: LossFunction, weight: f64) -> LossTerm {
        LossTerm { function, weight, ..MEAN_SQUARE }
    }

    #[test]
    fn one_word_is_for_all_targets_and_gradients() {
        let mae = term(LossFunction::Mae, 1.0);
        assert_eq!(energy_loss(json!("mae")), TargetLoss { values: mae, positions: mae, strain: mae });
    }

    #[test]
    fn a_word_for_a_target_leaves_its_gradients_as_they_are() {
        let expected = TargetLoss { values: term(LossFunction::Mae, 1.0), positions: MEAN_SQUARE, strain: MEAN_SQUARE };
        assert_eq!(energy_loss(json!({"energy": "mae"})), expected);
    }

    #[test]
    fn forces_and_stress_have_their_own_terms() {
        let loss = energy_loss(
            json!({"energy": {"type": "huber", "delta": 0.5, "weight": 2, "forces": {"weight": 10.0}, "stress": "mae"}}),
        );
        assert_eq!(loss.values, term(LossFunction::Huber { delta: 0.5 }, 2.0));
        assert_eq!(loss.positions, term(LossFunction::Mse, 10.0));
        assert_eq!(loss.strain, term(LossFunction::Mae, 1.0));
        let explicit = json!({"energy": {"gradients": {"strain": {"weight": 3.0, "reduction": "sum"}}}});
        assert_eq!(energy_loss(explicit).strain, LossTerm { weight: 3.0, reduction: Reduction::Sum, ..MEAN_SQUARE });
    }

    #[test]
    fn mistakes_say_where_they_are() {
        for (option, expected) in [
            (json!({"enregy": "mse"}), "`loss` names the target `enregy`"),
            (json!("l2"), "`loss` asks for the loss `l2`"),
            (json!({"energy": {"wieght": 1.0}}), "`loss.energy` has `wieght`"),
            (json!({"energy": {"forces": {"weight": "big"}}}), "`loss.energy.forces.weight` is `\"big\"`"),
            (json!({"energy": {"type": "huber", "delta": 0}}), "`loss.energy.delta` is 0"),
            (json!(1), "`loss` is `1`"),
        ] {
            let error = parse(&option, &[target("energy")]).expect_err("a mistake").to_string();
            assert!(error.starts_with(expected), "{error}");
        }
    }
}
