//! A seeded generator and the distributions a load is drawn from, so that a run can be repeated from its printed seed.

/// SplitMix64: small, fast, and good enough to choose sizes, recipients and failures.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// A generator whose whole sequence follows from `seed`.
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    /// A seed that differs from run to run (time and process id). Print it.
    pub fn fresh_seed() -> u64 {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Random((since.as_nanos() as u64) ^ (u64::from(std::process::id()) << 40)).bits()
    }

    /// An independent generator for part number `part` of a run.
    pub fn part(seed: u64, part: u64) -> Random {
        Random(Random(seed ^ part.wrapping_mul(0xD6E8_FEB8_6659_FD93)).bits())
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number in `0..limit`; 0 when `limit` is 0.
    pub fn below(&mut self, limit: u64) -> u64 {
        if limit == 0 { 0 } else { ((u128::from(self.bits()) * u128::from(limit)) >> 64) as u64 }
    }

    /// A number in `low..=high`.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }

    /// True once in `n` on average; never when `n` is 0.
    pub fn one_in(&mut self, n: u64) -> bool {
        n != 0 && self.below(n) == 0
    }

    /// A number in `[0, 1)`.
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// True with `probability` (0 to 1). Costs nothing at 0.
    pub fn happens(&mut self, probability: f64) -> bool {
        probability > 0.0 && self.unit() < probability
    }

    /// Exponentially distributed with mean 1: the gaps of a Poisson process.
    pub fn exponential(&mut self) -> f64 {
        -(1.0 - self.unit()).ln()
    }

    /// Standard normal (Box and Muller; the second value is thrown away, which keeps the state one number).
    pub fn normal(&mut self) -> f64 {
        (-2.0 * (1.0 - self.unit()).ln()).sqrt() * (std::f64::consts::TAU * self.unit()).cos()
    }
}

/// Numbers `0..count` whose weights are `1 / (rank + 1)^exponent`: few large destinations and many small ones.
#[derive(Debug, Clone)]
pub struct Zipf {
    /// Cumulated shares, the last one 1.
    cumulated: Vec<f64>,
}

impl Zipf {
    /// `count` at least 1; exponent 0 is uniform, about 1 what mail looks like.
    pub fn new(count: usize, exponent: f64) -> Zipf {
        let mut cumulated = Vec::with_capacity(count.max(1));
        let mut sum = 0.0;
        for rank in 0..count.max(1) {
            sum += ((rank + 1) as f64).powf(-exponent);
            cumulated.push(sum);
        }
        cumulated.iter_mut().for_each(|share| *share /= sum);
        Zipf { cumulated }
    }

    /// The next number.
    pub fn draw(&self, random: &mut Random) -> usize {
        let unit = random.unit();
        self.cumulated.partition_point(|&share| share <= unit).min(self.cumulated.len() - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_seeds_give_equal_sequences_and_parts_differ() {
        let (mut a, mut b) = (Random::new(7), Random::new(7));
        assert!((0..100).all(|_| a.bits() == b.bits()));
        assert_ne!(Random::part(7, 0).bits(), Random::part(7, 1).bits());
    }

    #[test]
    fn the_distributions_have_their_means() {
        let mut random = Random::new(1);
        let n = 100_000;
        let mean = |sum: f64| sum / f64::from(n);
        assert!((mean((0..n).map(|_| random.exponential()).sum()) - 1.0).abs() < 0.02);
        assert!(mean((0..n).map(|_| random.normal()).sum()).abs() < 0.02);
        assert!((mean((0..n).map(|_| f64::from(u8::from(random.happens(0.25)))).sum()) - 0.25).abs() < 0.01);
        let below: Vec<u64> = (0..n).map(|_| random.below(10)).collect();
        assert!((0..10).all(|wanted| below.iter().filter(|&&got| got == wanted).count() > 9_000));
    }

    #[test]
    fn between_stays_inside_and_reaches_both_ends() {
        let mut random = Random::new(1);
        let seen: Vec<u64> = (0..200).map(|_| random.between(3, 5)).collect();
        assert!(seen.iter().all(|n| (3..=5).contains(n)) && seen.contains(&3) && seen.contains(&5));
        assert!((0..100).all(|_| !random.one_in(0) && random.one_in(1)));
    }

    #[test]
    fn zipf_prefers_the_first_and_reaches_the_last() {
        let (zipf, mut random) = (Zipf::new(10, 1.0), Random::new(3));
        let mut counts = [0u32; 10];
        (0..50_000).for_each(|_| counts[zipf.draw(&mut random)] += 1);
        assert!(counts[0] > 4 * counts[9] && counts[9] > 0);
        assert!(Zipf::new(1, 2.0).draw(&mut random) == 0);
    }
}
