//! Two samples, few and skewed: is one of them shifted, and how far? Pure.
//!
//! The test is Mann and Whitney's (1947), which assumes no distribution: under "no
//! difference" every interleaving of the two samples in order of size is as likely
//! as every other. The estimate is Hodges and Lehmann's (1963), the median of all
//! pairwise differences, and the interval is made of the same differences, so that
//! it leaves out zero exactly when the test rejects.

/// Sample sizes up to which interleavings are counted; beyond, the normal
/// approximation is good to more digits than are used.
const COUNTED: usize = 60;

/// How far a second sample is shifted from the first.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Shift {
    /// Ends of the interval, and the estimate between them.
    pub(crate) low: f64,
    pub(crate) estimate: f64,
    pub(crate) high: f64,
}

impl Shift {
    /// The same on another scale, which `to` maps to in the same order.
    pub(crate) fn map(self, to: impl Fn(f64) -> f64) -> Self {
        Self { low: to(self.low), estimate: to(self.estimate), high: to(self.high) }
    }

    /// Whether "no difference" is rejected.
    pub(crate) fn is_apart_from_zero(self) -> bool {
        self.low > 0.0 || self.high < 0.0
    }
}

/// The shift from `old` to `new` with an interval that misses the true one with a
/// chance of at most `alpha`. None when the samples are too few for that (see
/// [`least_alpha`]).
pub(crate) fn shift(old: &[f64], new: &[f64], alpha: f64) -> Option<Shift> {
    if old.is_empty() || new.is_empty() || least_alpha(old.len(), new.len()) > alpha {
        return None;
    }
    let mut differences: Vec<f64> =
        new.iter().flat_map(|new| old.iter().map(move |old| new - old)).collect();
    differences.sort_by(f64::total_cmp);
    let cut = Interleavings::of(old.len(), new.len()).cut(alpha);
    let last = differences.len() - 1;
    let estimate = f64::midpoint(differences[last / 2], differences[last - last / 2]);
    // `cut` is below half of all pairs, alpha being below 1.
    Some(Shift { low: differences[cut], estimate, high: differences[last - cut] })
}

/// The estimate alone, which any number of samples has.
pub(crate) fn estimate(old: &[f64], new: &[f64]) -> Option<f64> {
    let pairs = new.iter().flat_map(|new| old.iter().map(move |old| new - old));
    crate::stats::Range::of(pairs).map(|range| range.median)
}

/// The smallest two-sided error the test can be held to with so many samples: the
/// chance that one lies wholly beyond the other when nothing differs.
pub(crate) fn least_alpha(old: usize, new: usize) -> f64 {
    if old == 0 || new == 0 {
        return 1.0;
    }
    let small = old.min(new);
    // 2 / C(old + new, small), without the overflow.
    (1..=small).fold(2.0, |chance, i| chance * i as f64 / (old + new - small + i) as f64)
}

/// Distribution of U, the number of pairs in which the second value is greater,
/// when nothing differs.
struct Interleavings {
    old: usize,
    new: usize,
}

impl Interleavings {
    fn of(old: usize, new: usize) -> Self {
        Self { old, new }
    }

    /// The critical value: the greatest `c` with P(U ≤ c) ≤ alpha / 2. That many
    /// differences are left out at either end of the interval.
    ///
    /// Values that are equal count as neither; the intervals then reach a little
    /// further than they must, never less far.
    fn cut(&self, alpha: f64) -> usize {
        let half = alpha / 2.0;
        if self.old.max(self.new) <= COUNTED {
            let mut below = 0.0;
            let within = self.chances().into_iter().take_while(|chance| {
                below += chance;
                below <= half
            });
            return within.count().saturating_sub(1);
        }
        let (old, new) = (self.old as f64, self.new as f64);
        let deviation = (old * new * (old + new + 1.0) / 12.0).sqrt();
        // Half a step for continuity, and rounded down: the careful way.
        (old * new / 2.0 - 0.5 - normal_quantile(half) * deviation).max(0.0) as usize
    }

    /// P(U = u) for u = 0, 1, …: the coefficients of the Gaussian binomial, by
    /// multiplying with (1 − qⁱ⁺ⁿ) / (1 − qⁱ) for i = 1 … old.
    fn chances(&self) -> Vec<f64> {
        let size = self.old * self.new + 1;
        let mut counts = vec![0.0; size];
        counts[0] = 1.0;
        for i in 1..=self.old {
            for u in (i + self.new..size).rev() {
                counts[u] -= counts[u - i - self.new];
            }
            for u in i..size {
                counts[u] += counts[u - i];
            }
            // Keeps the sums within f64 and leaves the proportions as they are.
            let sum: f64 = counts.iter().sum();
            counts.iter_mut().for_each(|count| *count /= sum);
        }
        counts
    }
}

/// How many standard deviations above the mean a normal value lies with chance
/// `upper`, for 0 < upper ≤ 0.5: Abramowitz and Stegun, 26.2.23, good to 4.5e-4.
fn normal_quantile(upper: f64) -> f64 {
    let t = (-2.0 * upper.ln()).sqrt();
    t - (2.515_517 + 0.802_853 * t + 0.010_328 * t * t)
        / (1.0 + 1.432_788 * t + 0.189_269 * t * t + 0.001_308 * t * t * t)
}

#[cfg(test)]
pub(crate) mod unit {
    use super::*;

    /// SplitMix64: a test has the same numbers on every machine.
    pub(crate) struct Random(pub(crate) u64);

    impl Random {
        pub(crate) fn uniform(&mut self) -> f64 {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = self.0;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
        }

        /// Times skewed as times are: most close together, some much longer.
        pub(crate) fn skewed(&mut self, spread: f64) -> f64 {
            let tail = if self.uniform() < 0.1 { 4.0 } else { 1.0 };
            (-self.uniform().max(1e-12).ln() * spread * tail).exp()
        }
    }

    #[test]
    fn chances_are_those_of_the_published_tables() {
        // n = m = 5: C(10, 5) = 252 interleavings; 1, 1, 2, 3, 5, 7 of them for
        // U = 0 … 5.
        let chances = Interleavings::of(5, 5).chances();
        let counts: Vec<f64> = chances.iter().map(|chance| (chance * 252.0).round()).collect();
        assert_eq!(counts[..6], [1.0, 1.0, 2.0, 3.0, 5.0, 7.0]);
        assert_eq!(chances.len(), 26);
        // Critical values at 5 % two-sided: U ≤ 2 for 5 and 5, ≤ 23 for 10 and 10,
        // ≤ 127 for 20 and 20.
        assert_eq!(Interleavings::of(5, 5).cut(0.05), 2);
        assert_eq!(Interleavings::of(10, 10).cut(0.05), 23);
        assert_eq!(Interleavings::of(20, 20).cut(0.05), 127);
        assert_eq!(Interleavings::of(4, 9).cut(0.05), Interleavings::of(9, 4).cut(0.05));
    }

    #[test]
    fn the_approximation_meets_the_count_where_it_takes_over() {
        for alpha in [0.05, 0.01, 0.001] {
            let counted = Interleavings::of(60, 60).cut(alpha);
            let (n, deviation) = (60.0 * 60.0 / 2.0, (3600.0f64 * 121.0 / 12.0).sqrt());
            let near = n - 0.5 - normal_quantile(alpha / 2.0) * deviation;
            assert!((near - counted as f64).abs() < 12.0, "{alpha}: {near} and {counted}");
        }
    }

    #[test]
    fn the_least_error_is_that_of_one_wholly_beyond_the_other() {
        assert!((least_alpha(5, 5) - 2.0 / 252.0).abs() < 1e-12);
        assert!((least_alpha(4, 6) - 2.0 / 210.0).abs() < 1e-12);
        assert_eq!(least_alpha(0, 5), 1.0);
        assert!(least_alpha(500, 500) < 1e-100);
        assert_eq!(shift(&[1.0, 2.0, 3.0], &[7.0, 8.0, 9.0], 0.01), None);
    }

    #[test]
    fn a_clear_shift_is_found_with_five_and_five() {
        let old = [1.0, 1.1, 1.2, 1.3, 1.4];
        let found = shift(&old, &old.map(|x| x + 5.0), 0.01).unwrap();
        assert!((found.estimate - 5.0).abs() < 1e-12, "{found:?}");
        assert!(found.is_apart_from_zero() && found.low > 4.5 && found.high < 5.5, "{found:?}");
        assert_eq!(estimate(&[1.0], &[3.0]), Some(2.0));
    }

    #[test]
    fn equal_values_are_no_difference() {
        let found = shift(&[2.0; 20], &[2.0; 20], 0.01).unwrap();
        assert!(!found.is_apart_from_zero());
        assert_eq!(found.estimate, 0.0);
    }

    /// The claim itself: of samples that do not differ, at most `alpha` are told
    /// apart, whatever the sizes and however skewed.
    #[test]
    fn false_alarms_are_as_rare_as_claimed() {
        let mut random = Random(1);
        for (old, new, alpha) in [(5, 5, 0.01), (10, 10, 0.01), (7, 30, 0.05), (80, 70, 0.05)] {
            let runs = 4000;
            let alarms = (0..runs)
                .filter(|_| {
                    let mut draw = |n| (0..n).map(|_| random.skewed(0.3)).collect::<Vec<_>>();
                    shift(&draw(old), &draw(new), alpha).unwrap().is_apart_from_zero()
                })
                .count();
            // Three standard deviations above the claim.
            let most = alpha * f64::from(runs) + 3.0 * (alpha * f64::from(runs)).sqrt();
            assert!((alarms as f64) < most, "{old}, {new}: {alarms} alarms, claimed {alpha}");
            assert!(alarms > 0, "{old}, {new}: the test never alarms; does it work?");
        }
    }
}
