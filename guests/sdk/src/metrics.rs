//! Errors of an epoch, under the names that metatrain's log and table have.

use crate::info::DatasetInfo;

/// With respect to what a target's gradient is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Gradient {
    /// The positions: minus the forces.
    Positions,
    /// The strain: stress times volume, or minus the virial.
    Strain,
}

impl Gradient {
    /// As the data calls it.
    pub fn parameter(self) -> &'static str {
        match self {
            Gradient::Positions => "positions",
            Gradient::Strain => "strain",
        }
    }
}

/// What an error is of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Measured {
    /// The name of the target.
    pub target: String,
    /// Its block, such as `o3_lambda=0,o3_sigma=1`, where blocks are told apart.
    pub block: Option<String>,
    /// Its gradient, if not its values.
    pub gradient: Option<Gradient>,
    /// Whether errors were divided by the number of atoms.
    pub per_atom: bool,
}

/// Sums of the errors of an epoch, in physical units.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ErrorSums {
    /// Of the squares.
    pub squared: f64,
    /// Of the absolute values.
    pub absolute: f64,
    /// The number of values that are not missing.
    pub count: usize,
}

impl ErrorSums {
    /// Adds an error; a missing one (NaN) is left out.
    pub fn add(&mut self, error: f64) {
        if !error.is_nan() {
            self.squared += error * error;
            self.absolute += error.abs();
            self.count += 1;
        }
    }

    /// The root mean square error; NaN if there was no value.
    pub fn rmse(&self) -> f64 {
        (self.squared / self.count as f64).sqrt()
    }

    /// The mean absolute error; NaN if there was no value.
    pub fn mae(&self) -> f64 {
        self.absolute / self.count as f64
    }
}

/// A named number of an epoch.
#[derive(Clone, Debug, PartialEq)]
pub struct Metric {
    /// Such as `loss` or `energy RMSE (per atom)`.
    pub name: String,
    /// The unit; may be empty.
    pub unit: String,
    /// The value.
    pub value: f64,
}

impl Measured {
    /// The name that sorts the columns: gradients follow their target.
    fn internal_name(&self) -> String {
        let target = match &self.block {
            Some(block) => format!("{} ({block})", self.target),
            None => self.target.clone(),
        };
        match self.gradient {
            Some(gradient) => format!("{target}_{}_gradients", gradient.parameter()),
            None => target,
        }
    }

    /// The name that people use: gradients of an energy are its forces and its virial.
    fn external_name(&self, info: &DatasetInfo) -> String {
        let word = match self.gradient {
            Some(Gradient::Positions) => "forces",
            Some(Gradient::Strain) => "virial",
            None => return self.internal_name(),
        };
        match info.target(&self.target) {
            Some(target) if target.is_energy() && self.target == "energy" => word.to_owned(),
            Some(target) if target.is_energy() => format!("{word}[{}]", self.target),
            _ => self.internal_name(),
        }
    }

    fn unit(&self, info: &DatasetInfo) -> String {
        let unit = info.target(&self.target).map_or("", |target| target.unit.as_str());
        let length = if info.length_unit.eq_ignore_ascii_case("angstrom") { "A" } else { &info.length_unit };
        match self.gradient {
            Some(Gradient::Positions) if !unit.is_empty() && !length.is_empty() => {
                format!("{unit}/{length}")
            }
            Some(Gradient::Positions) => String::new(),
            _ => unit.to_owned(),
        }
    }
}

/// The metrics of one set of data: the loss, then for each target and its gradients the RMSE and, with `mae`, the MAE. What has no value is
/// left out.
pub fn metrics(loss: f64, errors: &[(Measured, ErrorSums)], mae: bool, info: &DatasetInfo) -> Vec<Metric> {
    let mut named = Vec::new();
    for (measured, sums) in errors.iter().filter(|(_, sums)| sums.count > 0) {
        let suffix = if measured.per_atom { " (per atom)" } else { "" };
        // metatrain sorts by the internal name, with the RMSE of a quantity before its MAE
        let mut add = |word: &str, rank: &str, value| {
            let name = format!("{} {word}{suffix}", measured.external_name(info));
            named.push((
                format!("{} {rank}", measured.internal_name()),
                Metric { name, unit: measured.unit(info), value },
            ));
        };
        add("RMSE", "1", sums.rmse());
        if mae {
            add("MAE", "2", sums.mae());
        }
    }
    named.sort_by(|(a, _), (b, _)| a.cmp(b));
    let loss = Metric { name: "loss".to_owned(), unit: String::new(), value: loss };
    std::iter::once(loss).chain(named.into_iter().map(|(_, metric)| metric)).collect()
}

/// By what the best model of a run is chosen; less is better.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BestModelMetric {
    /// The product of all root mean square errors.
    #[default]
    RmseProd,
    /// The product of all mean absolute errors.
    MaeProd,
    /// The loss.
    Loss,
}

impl BestModelMetric {
    /// The value of the metric.
    pub fn of(self, loss: f64, errors: &[(Measured, ErrorSums)]) -> f64 {
        let sums = errors.iter().map(|(_, sums)| sums).filter(|sums| sums.count > 0);
        match self {
            BestModelMetric::RmseProd => sums.map(ErrorSums::rmse).product(),
            BestModelMetric::MaeProd => sums.map(ErrorSums::mae).product(),
            BestModelMetric::Loss => loss,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::info::{NamedTarget, SampleKind, TargetInfo, TargetType};

    fn info() -> DatasetInfo {
        let target = |name: &str, quantity: &str| NamedTarget {
            name: name.to_owned(),
            info: TargetInfo {
                quantity: quantity.to_owned(),
                unit: "eV".to_owned(),
                description: String::new(),
                sample_kind: SampleKind::System,
                target_type: TargetType::Scalar,
                num_subtargets: 1,
                gradients: Vec::new(),
            },
        };
        DatasetInfo {
            length_unit: "Angstrom".to_owned(),
            atomic_types: vec![1],
            targets: vec![target("energy", "energy"), target("energy/pbe", "energy"), target("mtt::gap", "")],
            extra_data: Vec::new(),
        }
    }

    fn measured(target: &str, gradient: Option<Gradient>, per_atom: bool) -> (Measured, ErrorSums) {
        let sums = ErrorSums { squared: 16.0, absolute: 6.0, count: 4 };
        (Measured { target: target.to_owned(), block: None, gradient, per_atom }, sums)
    }

    #[test]
    fn metrics_have_the_names_and_the_order_of_metatrain() {
        let errors = [
            measured("energy", Some(Gradient::Positions), false),
            measured("energy", None, true),
            measured("energy", Some(Gradient::Strain), true),
        ];
        let metrics = metrics(0.25, &errors, true, &info());
        let lines: Vec<String> =
            metrics.iter().map(|metric| format!("{}: {} {}", metric.name, metric.value, metric.unit)).collect();
        assert_eq!(
            lines,
            [
                "loss: 0.25 ",
                "energy RMSE (per atom): 2 eV",
                "energy MAE (per atom): 1.5 eV",
                "forces RMSE: 2 eV/A",
                "forces MAE: 1.5 eV/A",
                "virial RMSE (per atom): 2 eV",
                "virial MAE (per atom): 1.5 eV",
            ]
        );
    }

    #[test]
    fn gradients_of_other_energies_name_their_target() {
        let errors = [
            measured("energy/pbe", Some(Gradient::Positions), false),
            measured("mtt::gap", Some(Gradient::Positions), false),
        ];
        let names: Vec<String> = metrics(0.0, &errors, false, &info()).into_iter().map(|metric| metric.name).collect();
        assert_eq!(names, ["loss", "forces[energy/pbe] RMSE", "mtt::gap_positions_gradients RMSE"]);
    }

    #[test]
    fn the_best_model_has_the_smallest_product() {
        let errors = [measured("energy", None, true), measured("energy", Some(Gradient::Positions), false)];
        assert_eq!(BestModelMetric::RmseProd.of(7.0, &errors), 4.0);
        assert_eq!(BestModelMetric::MaeProd.of(7.0, &errors), 2.25);
        assert_eq!(BestModelMetric::Loss.of(7.0, &errors), 7.0);
    }

    #[test]
    fn what_has_no_value_is_not_reported() {
        let mut error = measured("energy", None, true);
        error.1.count = 0;
        assert_eq!(metrics(1.0, &[error], true, &info()).len(), 1);
    }
}
