//! The radial basis: Laplacian eigenstates of a sphere, times a cut-off, divided by `r^l`.
//!
//! `R_nl(r) = N_nl j_l(z_nl r / r_c)`, with `j_l` the spherical Bessel functions, `z_nl` their positive zeros and
//! `N_nl = sqrt(2 / r_c^3) / |j_(l+1)(z_nl)|`, so that each is normalised in the sphere (Bigi et al., J. Chem. Phys. 157, 234101 (2022)).
//!
//! Solid harmonics carry the factor `r^l`. So what is tabulated is `f_c(r) R_nl(r) / r^l`, which is smooth at 0: neither a unit vector nor
//! a division by `r` is ever needed. The table holds polynomials on equal intervals; one boundary lies exactly where the cut-off begins, so
//! every interval is smooth, and there are as many as make the error vanish beside that of any sum over neighbours.

use std::f64::consts::PI;

/// The degree of the polynomials.
const DEGREE: usize = 9;
/// The relative error at which the table is fine enough: a finer one would no longer fit the processor's caches.
const TOLERANCE: f64 = 1e-12;
/// Intervals between the start of the cut-off and its end, to begin with; doubled until the table is fine enough.
const FIRST_INTERVALS: usize = 2;
/// No table is made finer that has so many intervals.
const ENOUGH_INTERVALS: usize = 4096;

/// `f_c(r) R_nl(r) / r^l` for all `l` and `n`, tabulated.
#[derive(Clone, Debug, PartialEq)]
pub struct RadialBasis {
    /// The number of functions of each `l`.
    pub counts: Vec<usize>,
    /// Where the table begins: 0, or below it by part of an interval.
    pub lower: f64,
    /// Where it ends: the cutoff radius.
    pub upper: f64,
    /// `[intervals, DEGREE + 1, functions]`, functions ordered by `l`, then `n`.
    pub coefficients: Vec<f64>,
    /// The number of intervals.
    pub intervals: usize,
}

impl RadialBasis {
    /// The basis within `cutoff`, whose last `width` is smoothed, up to the angular momentum `max_angular`, with `max_radial + 1` functions
    /// for `l = 0`.
    pub fn new(max_angular: usize, max_radial: usize, cutoff: f64, width: f64) -> RadialBasis {
        let zeros = kept_zeros(max_angular, max_radial);
        let functions: Vec<Function> = zeros
            .iter()
            .enumerate()
            .flat_map(|(l, zeros)| zeros.iter().map(move |&zero| Function::new(l, zero, cutoff)))
            .collect();
        let mut in_width = FIRST_INTERVALS;
        loop {
            let (table, error) = tabulate(&functions, cutoff, width, in_width);
            if error <= TOLERANCE || table.intervals >= ENOUGH_INTERVALS {
                return RadialBasis { counts: zeros.iter().map(Vec::len).collect(), ..table };
            }
            in_width *= 2;
        }
    }

    /// The shape of the coefficients.
    pub fn shape(&self) -> [usize; 3] {
        [self.intervals, DEGREE + 1, self.counts.iter().sum()]
    }
}

/// The cosine cut-off: 1 up to `cutoff - width`, 0 from `cutoff` on.
fn cutoff_function(r: f64, cutoff: f64, width: f64) -> f64 {
    if r < cutoff - width {
        1.0
    } else if r < cutoff {
        0.5 * (1.0 + (PI * (r - cutoff + width) / width).cos())
    } else {
        0.0
    }
}

/// For each `l` the zeros that are no larger than that of `l = 0` and `n = max_radial`; at least one.
fn kept_zeros(max_angular: usize, max_radial: usize) -> Vec<Vec<f64>> {
    // The zeros of j_l lie between those of j_(l-1), so each l has one zero less to start from.
    let mut zeros: Vec<f64> = (1..=max_radial + max_angular + 2).map(|n| n as f64 * PI).collect();
    // The comparison is of numbers that are equal for l = 0: leave room for rounding.
    let largest = (max_radial + 1) as f64 * PI * (1.0 + 1e-12);
    let mut kept = Vec::new();
    for l in 0..=max_angular {
        if l > 0 {
            zeros = zeros.windows(2).map(|pair| zero_between(l, pair[0], pair[1])).collect();
        }
        let count = zeros.iter().filter(|&&zero| zero <= largest).count().max(1);
        kept.push(zeros[..count].to_vec());
    }
    kept
}

/// The zero of `j_l` between two consecutive zeros of `j_(l-1)`, where it changes sign once.
fn zero_between(l: usize, low: f64, high: f64) -> f64 {
    let (mut low, mut high) = (low, high);
    let sign = bessel(l, low).signum();
    while high - low > 4.0 * f64::EPSILON * high {
        let middle = 0.5 * (low + high);
        if bessel(l, middle).signum() == sign {
            low = middle;
        } else {
            high = middle;
        }
    }
    0.5 * (low + high)
}

/// The spherical Bessel function `j_l(x)` for `x >= 0`.
fn bessel(l: usize, x: f64) -> f64 {
    bessel_over_power(l, x) * x.powi(l as i32)
}

/// `j_l(x) / x^l`, which is even and smooth at 0.
fn bessel_over_power(l: usize, x: f64) -> f64 {
    let x = x.abs();
    // Upward recurrence is stable where x > l; below, the series converges fast without cancellation.
    if x < l as f64 + 2.0 {
        // sum_k (-x^2 / 2)^k / (k! (2l + 1)!! ... (2l + 2k + 1))
        let double_factorial: f64 = (0..=l).map(|k| (2 * k + 1) as f64).product();
        let mut term = 1.0 / double_factorial;
        let mut sum = term;
        let mut k = 1.0;
        while term.abs() > 1e-18 * sum.abs() {
            term *= -0.5 * x * x / (k * (2.0 * (l as f64 + k) + 1.0));
            sum += term;
            k += 1.0;
        }
        return sum;
    }
    let mut previous = x.sin() / x;
    if l == 0 {
        return previous;
    }
    let mut current = (previous - x.cos()) / x;
    for degree in 1..l {
        (previous, current) = (current, (2 * degree + 1) as f64 / x * current - previous);
    }
    current / x.powi(l as i32)
}

struct Function {
    l: usize,
    /// `z_nl / r_c`.
    wave_number: f64,
    /// `N_nl (z_nl / r_c)^l`.
    norm: f64,
}

impl Function {
    fn new(l: usize, zero: f64, cutoff: f64) -> Function {
        let wave_number = zero / cutoff;
        let norm = (2.0 / cutoff.powi(3)).sqrt() / bessel(l + 1, zero).abs();
        Function { l, wave_number, norm: norm * wave_number.powi(l as i32) }
    }

    /// `R_nl(r) / r^l`.
    fn over_power(&self, r: f64) -> f64 {
        self.norm * bessel_over_power(self.l, self.wave_number * r)
    }
}

/// Tabulates with `in_width` intervals between the start and the end of the cut-off, and says how large the relative error is.
fn tabulate(functions: &[Function], cutoff: f64, width: f64, in_width: usize) -> (RadialBasis, f64) {
    // A cut-off without width is a step at the end, which needs no boundary of its own.
    let spacing = if width > 0.0 { width / in_width as f64 } else { cutoff / (16 * in_width) as f64 };
    let intervals = (cutoff / spacing - 1e-9).ceil() as usize;
    let lower = cutoff - intervals as f64 * spacing;
    let nodes = DEGREE + 1;
    // cos(k theta_j): the Chebyshev polynomials at the nodes, of which the second one is the nodes themselves.
    let angle = |j: usize| PI * (j as f64 + 0.5) / nodes as f64;
    let cosines: Vec<Vec<f64>> =
        (0..nodes).map(|k| (0..nodes).map(|j| (k as f64 * angle(j)).cos()).collect()).collect();
    let monomials = chebyshev_monomials();
    let mut coefficients = vec![0.0; intervals * nodes * functions.len()];
    let mut error: f64 = 0.0;
    for interval in 0..intervals {
        let middle = lower + (interval as f64 + 0.5) * spacing;
        // Whether the cut-off acts is decided for the interval: at its very ends rounding could put a node on the wrong side.
        let is_smoothed = width > 0.0 && interval >= intervals - in_width;
        let samples: Vec<f64> = cosines[1].iter().map(|node| middle + 0.5 * spacing * node).collect();
        let fade = |&r: &f64| if is_smoothed { cutoff_function(r.max(cutoff - width), cutoff, width) } else { 1.0 };
        let fades: Vec<f64> = samples.iter().map(fade).collect();
        for (index, function) in functions.iter().enumerate() {
            let values: Vec<f64> = samples.iter().zip(&fades).map(|(&r, fade)| function.over_power(r) * fade).collect();
            for (k, (monomials, cosines)) in monomials.iter().zip(&cosines).enumerate() {
                let weight = if k == 0 { 1.0 } else { 2.0 } / nodes as f64;
                let coefficient =
                    weight * values.iter().zip(cosines).map(|(value, cosine)| value * cosine).sum::<f64>();
                for (power, factor) in monomials.iter().enumerate() {
                    coefficients[(interval * nodes + power) * functions.len() + index] += factor * coefficient;
                }
                if k == DEGREE {
                    // The last coefficient bounds what is left out. Times r^l it is an error of R_nl, whose size is its norm's.
                    let at = (middle + 0.5 * spacing).powi(function.l as i32);
                    error = error.max((coefficient * at).abs() / (2.0 / cutoff.powi(3)).sqrt());
                }
            }
        }
    }
    (RadialBasis { counts: Vec::new(), lower, upper: cutoff, coefficients, intervals }, error)
}

/// The coefficients of each Chebyshev polynomial in powers of its argument.
fn chebyshev_monomials() -> Vec<Vec<f64>> {
    let mut polynomials = vec![vec![1.0], vec![0.0, 1.0]];
    for k in 2..=DEGREE {
        let mut next = vec![0.0; k + 1];
        for (power, factor) in polynomials[k - 1].iter().enumerate() {
            next[power + 1] += 2.0 * factor;
        }
        for (power, factor) in polynomials[k - 2].iter().enumerate() {
            next[power] -= factor;
        }
        polynomials.push(next);
    }
    polynomials
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the host computes: value and derivative of function `index` at `r`.
    fn evaluate(basis: &RadialBasis, index: usize, r: f64) -> (f64, f64) {
        let spacing = (basis.upper - basis.lower) / basis.intervals as f64;
        let interval = (((r - basis.lower) / spacing).floor() as usize).min(basis.intervals - 1);
        let t = 2.0 * (r - basis.lower - interval as f64 * spacing) / spacing - 1.0;
        let functions: usize = basis.counts.iter().sum();
        let coefficient = |power: usize| basis.coefficients[(interval * (DEGREE + 1) + power) * functions + index];
        let value = (0..=DEGREE).rev().fold(0.0, |sum, power| sum * t + coefficient(power));
        let slope = (1..=DEGREE).rev().fold(0.0, |sum, power| sum * t + power as f64 * coefficient(power));
        (value, slope * 2.0 / spacing)
    }

    #[test]
    fn the_number_of_functions_is_metatrains() {
        let counts = |l, n| kept_zeros(l, n).iter().map(Vec::len).collect::<Vec<_>>();
        assert_eq!(counts(6, 7), [8, 7, 7, 6, 6, 5, 5]);
        assert_eq!(counts(1, 7), [8, 7]);
        assert_eq!(counts(4, 0), [1, 1, 1, 1, 1], "an l without zeros below the limit keeps one");
    }

    #[test]
    fn bessel_functions_have_their_known_values() {
        // Abramowitz and Stegun, table 10.1, and the closed forms of l = 0 and 1.
        let cases = [
            (0, 1.0, 1.0_f64.sin()),
            (1, 3.0, 3.0_f64.sin() / 9.0 - 3.0_f64.cos() / 3.0),
            (2, 1.0, 0.062_035_052_011_373_86),
            (5, 1.0, 0.000_092_561_158_611_258_16),
            (2, 10.0, 0.077_942_193_628_562_44),
        ];
        for (l, x, expected) in cases {
            // Rounding of a few operations.
            assert!((bessel(l, x) - expected).abs() < 1e-15, "j_{l}({x}) = {}", bessel(l, x));
        }
        // Both ways of computing agree where they meet.
        for l in 0..10 {
            let x = l as f64 + 2.0;
            let (below, above) = (bessel_over_power(l, x * (1.0 - 1e-15)), bessel_over_power(l, x * (1.0 + 1e-15)));
            assert!((below / above - 1.0).abs() < 1e-11, "{l}: {below} {above}");
        }
        assert!((zero_between(1, PI, 2.0 * PI) - 4.493_409_457_909_064).abs() < 1e-14);
    }

    #[test]
    fn the_table_is_the_functions_themselves() {
        for (max_angular, max_radial, cutoff, width) in
            [(6, 7, 5.0, 0.5), (1, 3, 4.7, 0.3), (3, 5, 6.0, 6.0), (2, 2, 3.0, 0.0)]
        {
            let basis = RadialBasis::new(max_angular, max_radial, cutoff, width);
            assert!(basis.lower <= 0.0 && basis.upper == cutoff);
            let zeros = kept_zeros(max_angular, max_radial);
            let functions = zeros.iter().enumerate().flat_map(|(l, zeros)| zeros.iter().map(move |&zero| (l, zero)));
            for (index, (l, zero)) in functions.enumerate() {
                let function = Function::new(l, zero, cutoff);
                let exact = |r: f64| function.over_power(r) * cutoff_function(r, cutoff, width) * r.powi(l as i32);
                for step in 1..200 {
                    let r = cutoff * step as f64 / 200.001;
                    let (value, slope) = evaluate(&basis, index, r);
                    let power = r.powi(l as i32);
                    // The values are of order 1, and the table is made with an error of 1e-12 at most.
                    assert!(
                        (value * power - exact(r)).abs() < 1e-12,
                        "l {l} zero {zero} r {r}: {} {}",
                        value * power,
                        exact(r)
                    );
                    let whole_slope = slope * power + l as f64 * value * r.powi(l as i32 - 1);
                    let h = 1e-4;
                    let numeric = (exact(r - 2.0 * h) - 8.0 * exact(r - h) + 8.0 * exact(r + h) - exact(r + 2.0 * h))
                        / (12.0 * h);
                    let crosses = (r - (cutoff - width)).abs() < 3.0 * h;
                    // Fourth-order differences of functions with wave numbers of some 10: h^4 k^5 / 30 and rounding over h.
                    assert!(crosses || (whole_slope - numeric).abs() < 1e-9, "l {l} r {r}: {whole_slope} {numeric}");
                }
            }
        }
    }

    #[test]
    fn functions_of_one_l_are_orthonormal_in_the_sphere() {
        let cutoff = 5.0;
        for (l, zeros) in kept_zeros(4, 5).iter().enumerate() {
            for (n, &a) in zeros.iter().enumerate() {
                for (m, &b) in zeros.iter().enumerate() {
                    let (f, g) = (Function::new(l, a, cutoff), Function::new(l, b, cutoff));
                    // Simpson's rule: the error of 4000 intervals is far below the tolerance.
                    let steps = 4000;
                    let h = cutoff / f64::from(steps);
                    let integral: f64 = (0..=steps)
                        .map(|step| {
                            let r = h * f64::from(step);
                            let weight = if step == 0 || step == steps {
                                1.0
                            } else if step % 2 == 1 {
                                4.0
                            } else {
                                2.0
                            };
                            weight * r * r * f.over_power(r) * g.over_power(r) * r.powi(2 * l as i32)
                        })
                        .sum::<f64>()
                        * h
                        / 3.0;
                    assert!((integral - f64::from(u8::from(n == m))).abs() < 1e-9, "l {l}, {n} {m}: {integral}");
                }
            }
        }
    }

    #[test]
    fn the_cut_off_is_smooth_and_ends() {
        let cases = [(0.0, 1.0), (4.5, 1.0), (4.75, 0.5), (5.0, 0.0), (7.0, 0.0)];
        for (r, expected) in cases {
            assert!((cutoff_function(r, 5.0, 0.5) - expected).abs() < 1e-15);
        }
    }
}
