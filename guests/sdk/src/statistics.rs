//! What is computed of a training set before any training, in double precision: energies by composition, and the spread that remains.
//!
//! Pure arithmetic on small arrays; [`normalization`](crate::normalization) feeds it from datasets.

/// Added to the diagonal of the normal equations, relative to its mean: enough to solve a set with a single composition, where
/// only sums over systems mean anything.
const RIDGE: f64 = 1e-14;

/// A least-squares fit of values of systems by their composition: one weight per type.
#[derive(Clone, Debug)]
pub struct CompositionFit {
    types: usize,
    columns: usize,
    /// `X^T X`, `[types, types]`, of the numbers of atoms of each type `X`.
    counts_squared: Vec<f64>,
    /// `X^T Y`, `[types, columns]`.
    counts_values: Vec<f64>,
}

impl CompositionFit {
    /// An empty fit of `columns` values of each system.
    pub fn new(types: usize, columns: usize) -> CompositionFit {
        CompositionFit {
            types,
            columns,
            counts_squared: vec![0.0; types * types],
            counts_values: vec![0.0; types * columns],
        }
    }

    /// Adds a system with so many atoms of each type and these values. A system with a missing value (NaN) is left out.
    pub fn add(&mut self, counts: &[f64], values: &[f64]) {
        if values.iter().any(|value| value.is_nan()) {
            return;
        }
        for (row, &count) in counts.iter().enumerate().filter(|&(_, &count)| count != 0.0) {
            for (column, &other) in counts.iter().enumerate() {
                self.counts_squared[row * self.types + column] += count * other;
            }
            for (column, &value) in values.iter().enumerate() {
                self.counts_values[row * self.columns + column] += count * value;
            }
        }
    }

    /// The weights, `[types, columns]`. A type that never occurs has weight 0.
    pub fn solve(mut self) -> Vec<f64> {
        let n = self.types;
        let ridge = RIDGE * (0..n).map(|i| self.counts_squared[i * n + i].abs()).sum::<f64>() / n.max(1) as f64;
        for i in 0..n {
            let diagonal = &mut self.counts_squared[i * n + i];
            // a type without atoms has an empty row; 1 gives it the weight 0
            *diagonal = if *diagonal == 0.0 { 1.0 } else { *diagonal + ridge };
        }
        solve(&mut self.counts_squared, &mut self.counts_values, n, self.columns);
        self.counts_values
    }
}

/// Solves `a x = b` in place (`b` becomes `x`) by elimination with partial pivoting. `a` is `[n, n]`, `b` `[n, columns]`.
fn solve(a: &mut [f64], b: &mut [f64], n: usize, columns: usize) {
    for pivot in 0..n {
        let best =
            (pivot..n).max_by(|&i, &j| a[i * n + pivot].abs().total_cmp(&a[j * n + pivot].abs())).unwrap_or(pivot);
        for column in 0..n {
            a.swap(pivot * n + column, best * n + column);
        }
        for column in 0..columns {
            b.swap(pivot * columns + column, best * columns + column);
        }
        for row in pivot + 1..n {
            let factor = a[row * n + pivot] / a[pivot * n + pivot];
            for column in pivot..n {
                a[row * n + column] -= factor * a[pivot * n + column];
            }
            for column in 0..columns {
                b[row * columns + column] -= factor * b[pivot * columns + column];
            }
        }
    }
    for row in (0..n).rev() {
        for column in 0..columns {
            let known: f64 = (row + 1..n).map(|k| a[row * n + k] * b[k * columns + column]).sum();
            b[row * columns + column] = (b[row * columns + column] - known) / a[row * n + row];
        }
    }
}

/// The mean of values of atoms for each type.
#[derive(Clone, Debug)]
pub struct TypeMeans {
    columns: usize,
    /// Sum and number of values, `[types, columns]`.
    sums: Vec<(f64, u64)>,
}

impl TypeMeans {
    /// No atom yet.
    pub fn new(types: usize, columns: usize) -> TypeMeans {
        TypeMeans { columns, sums: vec![(0.0, 0); types * columns] }
    }

    /// Adds an atom; missing values (NaN) are left out.
    pub fn add(&mut self, atom_type: usize, values: &[f64]) {
        for (sum, &value) in
            self.sums[atom_type * self.columns..].iter_mut().zip(values).filter(|(_, value)| !value.is_nan())
        {
            sum.0 += value;
            sum.1 += 1;
        }
    }

    /// The means, `[types, columns]`; 0 for a type that never occurs.
    pub fn means(&self) -> Vec<f64> {
        self.sums.iter().map(|&(sum, count)| if count == 0 { 0.0 } else { sum / count as f64 }).collect()
    }
}

/// The root mean square of what the baseline leaves: by group (one group for values of systems, one per type for values of atoms) and by column
/// (each property of each block).
#[derive(Clone, Debug)]
pub struct SpreadFit {
    columns: usize,
    /// Sum of squares and number of values, `[groups, columns]`.
    squares: Vec<(f64, u64)>,
}

/// The scale of a target: `groups[g] * columns[c]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Spread {
    /// By group.
    pub groups: Vec<f64>,
    /// By column, relative to the group's; 1 if there is only one.
    pub columns: Vec<f64>,
}

impl SpreadFit {
    /// No value yet.
    pub fn new(groups: usize, columns: usize) -> SpreadFit {
        SpreadFit { columns, squares: vec![(0.0, 0); groups * columns] }
    }

    /// Adds a value; a missing one (NaN) is left out.
    pub fn add(&mut self, group: usize, column: usize, value: f64) {
        if !value.is_nan() {
            let (sum, count) = &mut self.squares[group * self.columns + column];
            *sum += value * value;
            *count += 1;
        }
    }

    /// The spread; 1 where there was no value, or none but zeros.
    pub fn spread(&self) -> Spread {
        let columns = self.columns.max(1);
        let groups: Vec<f64> = self
            .squares
            .chunks(columns)
            .map(|row| root_mean_square(row.iter().map(|&(sum, count)| (sum, count))))
            .collect();
        let column = |column: usize| {
            root_mean_square(groups.iter().enumerate().map(|(group, scale)| {
                let (sum, count) = self.squares[group * columns + column];
                (sum / (scale * scale), count)
            }))
        };
        let columns = if columns == 1 { vec![1.0] } else { (0..columns).map(column).collect() };
        Spread { groups, columns }
    }
}

fn root_mean_square(squares: impl Iterator<Item = (f64, u64)>) -> f64 {
    let (sum, count) = squares.fold((0.0, 0), |(sum, count), (more, number)| (sum + more, count + number));
    if count == 0 || sum == 0.0 { 1.0 } else { (sum / count as f64).sqrt() }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, path::PathBuf};

    use serde_json::Value;

    use super::*;

    #[test]
    fn a_type_that_never_occurs_has_no_weight() {
        let mut fit = CompositionFit::new(3, 1);
        fit.add(&[2.0, 0.0, 1.0], &[7.0]);
        fit.add(&[1.0, 0.0, 1.0], &[5.0]);
        fit.add(&[9.0, 9.0, 9.0], &[f64::NAN]);
        let weights = fit.solve();
        // the ridge of 1e-14 shifts the solution of this well-conditioned system by about as much
        for (weight, expected) in weights.iter().zip([2.0, 0.0, 3.0]) {
            assert!((weight - expected).abs() < 1e-12, "{weights:?}");
        }
    }

    #[test]
    fn a_spread_of_one_column_is_the_root_mean_square() {
        let mut fit = SpreadFit::new(1, 1);
        [3.0, -4.0, f64::NAN].into_iter().for_each(|value| fit.add(0, 0, value));
        assert_eq!(fit.spread(), Spread { groups: vec![12.5_f64.sqrt()], columns: vec![1.0] });
        assert_eq!(SpreadFit::new(2, 1).spread(), Spread { groups: vec![1.0, 1.0], columns: vec![1.0] });
    }

    #[test]
    fn the_scale_of_each_column_is_its_own_root_mean_square() {
        let mut fit = SpreadFit::new(1, 2);
        [(0, 6.0), (0, -6.0), (1, 2.0), (1, 2.0)].into_iter().for_each(|(column, value)| fit.add(0, column, value));
        let spread = fit.spread();
        for (column, expected) in spread.columns.iter().zip([6.0, 2.0]) {
            // a root, a division and a product are rounded
            assert!((spread.groups[0] * column - expected).abs() < 1e-14, "{spread:?}");
        }
    }

    #[test]
    fn means_of_types_leave_missing_values_out() {
        let mut means = TypeMeans::new(2, 1);
        [2.0, 4.0, f64::NAN].into_iter().for_each(|value| means.add(1, &[value]));
        assert_eq!(means.means(), [0.0, 3.0]);
    }

    /// The systems of a reference file: how many atoms of each element, and the energy.
    fn frames(path: &PathBuf, key: &str) -> Vec<(BTreeMap<i32, f64>, f64)> {
        let text = std::fs::read_to_string(path).expect("the reference file is readable");
        let mut lines = text.lines();
        let mut frames = Vec::new();
        while let Some(count) = lines.next().and_then(|line| line.trim().parse::<usize>().ok()) {
            let comment = lines.next().expect("a comment line");
            let energy =
                comment.split_whitespace().find_map(|word| word.strip_prefix(&format!("{key}="))).expect("an energy");
            let mut counts = BTreeMap::new();
            for line in lines.by_ref().take(count) {
                let number = match line.split_whitespace().next() {
                    Some("H") => 1,
                    Some("C") => 6,
                    Some("N") => 7,
                    Some("O") => 8,
                    other => panic!("element {other:?}"),
                };
                *counts.entry(number).or_insert(0.0) += 1.0;
            }
            frames.push((counts, energy.trim_matches('"').parse().expect("a number")));
        }
        frames
    }

    #[test]
    fn parity_composition_and_scale_are_those_of_metatrain() {
        let data = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data");
        let Ok(reference) = std::fs::read_to_string(data.join("reference/composition_scaler.json")) else {
            eprintln!("skipped: reference data not present");
            return;
        };
        let reference: Value = serde_json::from_str(&reference).expect("the reference is JSON");
        for set in reference["datasets"].as_object().expect("datasets").values() {
            let types: Vec<i32> = set["atomic_types"]
                .as_array()
                .expect("types")
                .iter()
                .map(|t| t.as_i64().expect("a type") as i32)
                .collect();
            let frames =
                frames(&data.join(set["file"].as_str().expect("a file")), set["energy_key"].as_str().expect("a key"));
            let counts = |frame: &BTreeMap<i32, f64>| {
                types.iter().map(|t| frame.get(t).copied().unwrap_or(0.0)).collect::<Vec<f64>>()
            };

            let mut fit = CompositionFit::new(types.len(), 1);
            frames.iter().for_each(|(frame, energy)| fit.add(&counts(frame), &[*energy]));
            let weights = fit.solve();
            let baseline =
                |frame| counts(frame).iter().zip(&weights).map(|(count, weight)| count * weight).sum::<f64>();

            let mut spread = SpreadFit::new(1, 1);
            for (frame, energy) in &frames {
                spread.add(0, 0, (energy - baseline(frame)) / frame.values().sum::<f64>());
            }
            // the reference's own tolerances, relative: two solvers of the same ill-conditioned equations
            let check = |value: f64, expected: &Value, tolerance: f64, what: &str| {
                let expected = expected.as_f64().expect("a number");
                let difference = (value - expected).abs() / expected.abs();
                assert!(
                    difference < tolerance,
                    "{what} of {}: {value}, expected {expected}, off by {difference:e} > {tolerance:e}",
                    set["file"]
                );
            };
            for (frame, expected) in frames.iter().zip(set["baseline_of_frames_0_to_4"].as_array().expect("baselines"))
            {
                check(baseline(&frame.0), expected, 1e-9, "baseline");
            }
            if set["weights_are_unique"] == true {
                for (t, weight) in types.iter().zip(&weights) {
                    check(*weight, &set["weights"][t.to_string()], 1e-8, "weight");
                }
            }
            check(spread.spread().groups[0], &set["scale"], 1e-7, "scale");
        }
    }
}
