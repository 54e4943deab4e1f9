//! How much a figure changed between two sets of runs, and how much of that the noise alone could be.
//!
//! All on logarithms, so that a change is a factor and both directions are alike. The change is the median of all differences
//! between a run of B and a run of A (Hodges and Lehmann): nearly as sharp as means where noise is normal, and one run out of five
//! that a neighbour disturbed does not move it. The noise of one run comes from the median difference between runs of one side,
//! which such a run does not move either; each side is taken to be as noisy as both together, or as it is itself if that is more. The band is what a change without cause stays within 99 times out of 100 (Student's t).

/// Noise that is always reckoned with: two runs that agree by chance have some.
const NOISE_MIN: f64 = 0.005;
/// The median difference of two normal values is 0.9539 standard deviations.
const MEDIAN_DIFFERENCE_TO_DEVIATION: f64 = 1.0 / 0.9539;
/// Standard errors for noise that is assumed, not measured (95 times out of 100).
const ASSUMED_ERRORS: f64 = 2.0;
/// 99.5th percentile of Student's t by degrees of freedom, from 2; beyond the last, of the normal distribution.
const T: [f64; 29] = [
    9.925, 5.841, 4.604, 4.032, 3.707, 3.499, 3.355, 3.250, 3.169, 3.106, 3.055, 3.012, 2.977, 2.947, 2.921, 2.898, 2.878, 2.861, 2.845,
    2.831, 2.819, 2.807, 2.797, 2.787, 2.779, 2.771, 2.763, 2.756, 2.750,
];
const T_NORMAL: f64 = 2.576;

/// A change on the logarithmic scale.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Change {
    /// ln(B / A).
    pub log_ratio: f64,
    /// Half the width of the noise band around 0.
    pub band: f64,
    /// The band comes from repeated runs; else from the noise assumed.
    pub measured: bool,
}

impl Change {
    /// B against A. Values must be above 0; others are left out. `assumed_noise` is the standard deviation of one run, relative, for
    /// when there are fewer than two runs beyond one on each side. None without a value on both sides.
    pub fn between(a: &[f64], b: &[f64], assumed_noise: f64) -> Option<Change> {
        let logs = |values: &[f64]| -> Vec<f64> { values.iter().filter(|v| v.is_finite() && **v > 0.0).map(|v| v.ln()).collect() };
        let (a, b) = (logs(a), logs(b));
        let log_ratio = median(a.iter().flat_map(|&a| b.iter().map(move |&b| b - a)).collect())?;
        let (runs_a, runs_b) = (a.len() as f64, b.len() as f64);
        let freedom = a.len() + b.len() - 2;
        if freedom < 2 {
            let band = ASSUMED_ERRORS * assumed_noise.max(NOISE_MIN) * (1.0 / runs_a + 1.0 / runs_b).sqrt();
            return Some(Change { log_ratio, band, measured: false });
        }
        let common = noise(&[&a, &b]).max(NOISE_MIN);
        // A side that is noisier by itself than both together counts as noisy as it is: a neighbour that came with B is no regression.
        let (of_a, of_b) = (noise(&[&a]).max(common), noise(&[&b]).max(common));
        let t = T.get(freedom - 2).copied().unwrap_or(T_NORMAL);
        Some(Change { log_ratio, band: t * (of_a * of_a / runs_a + of_b * of_b / runs_b).sqrt(), measured: true })
    }

    /// The change in percent of A.
    pub fn percent(&self) -> f64 {
        (self.log_ratio.exp() - 1.0) * 100.0
    }

    /// Half the band in percent.
    pub fn band_percent(&self) -> f64 {
        (self.band.exp() - 1.0) * 100.0
    }

    /// More than noise.
    pub fn beyond_noise(&self) -> bool {
        self.log_ratio.abs() > self.band
    }
}

/// The middle value; of an even number the mean of the two.
pub fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        n if n % 2 == 1 => Some(values[middle]),
        _ => Some((values[middle - 1] + values[middle]) / 2.0),
    }
}

/// Standard deviation of a run, from the differences within sides; 0 without two runs on one.
fn noise(sides: &[&[f64]]) -> f64 {
    let differences = sides.iter().flat_map(|side| pairs(side).map(|(x, y)| (x - y).abs())).collect();
    median(differences).unwrap_or(0.0) * MEDIAN_DIFFERENCE_TO_DEVIATION
}

fn pairs(values: &[f64]) -> impl Iterator<Item = (f64, f64)> + '_ {
    values.iter().enumerate().flat_map(move |(index, &x)| values[index + 1..].iter().map(move |&y| (x, y)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    fn runs(random: &mut Random, count: usize, mean: f64, noise: f64, disturbed: bool) -> Vec<f64> {
        let mut values: Vec<f64> = (0..count).map(|_| mean * (random.normal() * noise).exp()).collect();
        if disturbed {
            values[0] *= 0.6;
        }
        values
    }

    /// How many of 500 comparisons call the change more than noise.
    fn called(seed: u64, count: usize, factor: f64, noise: f64, disturbed: bool) -> usize {
        let mut random = Random::new(seed);
        let mut found = 0;
        for _ in 0..500 {
            let a = runs(&mut random, count, 1000.0, noise, disturbed);
            let b = runs(&mut random, count, 1000.0 * factor, noise, false);
            found += usize::from(Change::between(&a, &b, 0.03).unwrap().beyond_noise());
        }
        found
    }

    #[test]
    fn equal_runs_are_called_changed_about_once_in_a_hundred_times() {
        for (seed, count) in [(1, 3), (2, 5), (3, 10)] {
            for noise in [0.01, 0.05, 0.2] {
                assert!(
                    called(seed, count, 1.0, noise, false) <= 20,
                    "{count} runs, noise {noise}: {}",
                    called(seed, count, 1.0, noise, false)
                );
            }
        }
    }

    #[test]
    fn five_runs_a_side_see_fifteen_percent_through_three_percent_of_noise() {
        assert!(called(4, 5, 1.0 / 1.15, 0.03, false) >= 460, "{}", called(4, 5, 1.0 / 1.15, 0.03, false));
        assert!(called(5, 5, 1.0 / 1.15, 0.03, true) >= 300, "{}", called(5, 5, 1.0 / 1.15, 0.03, true));
    }

    #[test]
    fn a_noisy_side_beside_a_quiet_one_is_not_a_change() {
        // Seen: five runs of B of which three met a busy neighbour, p95 +58 % within a band of 46 % that the quiet side had narrowed.
        let mut random = Random::new(7);
        let mut found = 0;
        for _ in 0..500 {
            let (a, b) = (runs(&mut random, 5, 1000.0, 0.03, false), runs(&mut random, 5, 1000.0, 0.2, false));
            found += usize::from(Change::between(&a, &b, 0.03).unwrap().beyond_noise());
        }
        assert!(found <= 20, "{found} of 500");
    }

    #[test]
    fn swapped_sides_are_the_opposite_change_within_the_same_band() {
        let mut random = Random::new(6);
        for count in 1..8 {
            let (a, b) = (runs(&mut random, count, 10.0, 0.1, false), runs(&mut random, 5, 12.0, 0.1, false));
            let (there, back) = (Change::between(&a, &b, 0.03).unwrap(), Change::between(&b, &a, 0.03).unwrap());
            assert!((there.log_ratio + back.log_ratio).abs() < 1e-12 && (there.band - back.band).abs() < 1e-12);
        }
    }

    #[test]
    fn single_runs_are_judged_by_the_noise_assumed() {
        let change = Change::between(&[100.0], &[80.0], 0.03).unwrap();
        assert!(!change.measured && change.beyond_noise());
        assert!((change.percent() + 20.0).abs() < 1e-9);
        assert!((change.band - 2.0 * 0.03 * 2.0_f64.sqrt()).abs() < 1e-12);
        assert!(!Change::between(&[100.0], &[95.0], 0.03).unwrap().beyond_noise());
    }

    #[test]
    fn values_without_a_logarithm_are_left_out() {
        assert_eq!(Change::between(&[0.0, f64::NAN], &[1.0], 0.03), None);
        assert_eq!(Change::between(&[], &[], 0.03), None);
        assert!(!Change::between(&[0.0, 1.0], &[1.0, f64::INFINITY], 0.03).unwrap().measured);
    }
}
