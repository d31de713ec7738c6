//! The learning rate over a run: a linear warm-up, then half a cosine down to zero.

use std::f64::consts::PI;

/// A learning-rate schedule, per step.
///
/// ```
/// # use kilnbox_sdk::schedule::WarmupCosine;
/// let schedule = WarmupCosine::new(1e-3, 0.1, 100);
/// assert_eq!(schedule.rate(0), 0.0); // the first step only fills the optimizer's moments
/// assert_eq!(schedule.rate(10), 1e-3);
/// assert_eq!(schedule.rate(100), 0.0);
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct WarmupCosine {
    learning_rate: f64,
    warmup: u64,
    total: u64,
}

impl WarmupCosine {
    /// `learning_rate` is the highest rate, `total` the number of steps of the whole run, of which `warmup_fraction` (rounded down) warm up.
    pub fn new(learning_rate: f64, warmup_fraction: f64, total: u64) -> WarmupCosine {
        WarmupCosine { learning_rate, warmup: (warmup_fraction * total as f64) as u64, total }
    }

    /// The rate of a step, counted from 0. Steps beyond the total have the last rate.
    pub fn rate(&self, step: u64) -> f64 {
        if step < self.warmup {
            return self.learning_rate * step as f64 / self.warmup as f64;
        }
        let length = self.total.saturating_sub(self.warmup).max(1);
        let progress = ((step - self.warmup) as f64 / length as f64).min(1.0);
        self.learning_rate * 0.5 * (1.0 + (PI * progress).cos())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_warmup_the_first_step_has_the_full_rate() {
        // 1% of 50 steps is none
        assert_eq!(WarmupCosine::new(0.5, 0.01, 50).rate(0), 0.5);
    }

    #[test]
    fn the_rate_rises_linearly_and_falls_as_a_cosine() {
        let schedule = WarmupCosine::new(2.0, 0.1, 100);
        let rates: Vec<f64> = [0, 5, 10, 55, 100, 1000].into_iter().map(|step| schedule.rate(step)).collect();
        for (rate, expected) in rates.iter().zip([0.0, 1.0, 2.0, 1.0, 0.0, 0.0]) {
            // one cosine of a number of order 1 is rounded
            assert!((rate - expected).abs() < 1e-15, "{rates:?}");
        }
    }
}
