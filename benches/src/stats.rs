//! Medians, ranges and ratios. Pure.

use crate::record::{Better, Candidate};

/// Minimum, median and maximum of some values.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Range {
    /// The least.
    pub(crate) min: f64,
    /// The one in the middle; of an even number, the mean of the two there.
    pub(crate) median: f64,
    /// The greatest.
    pub(crate) max: f64,
}

impl Range {
    /// Of values in any order; none of no values.
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = values.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let middle = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 {
            sorted[middle]
        } else {
            f64::midpoint(sorted[middle - 1], sorted[middle])
        };
        Some(Self { min, median, max })
    }

    /// Whether two ranges have no value in common.
    pub(crate) fn is_apart_from(self, other: Self) -> bool {
        self.max < other.min || other.max < self.min
    }
}

/// How many times better `value` is than `than`: 2 is twice as fast, or half the
/// time. None where that has no meaning (a zero or less).
pub(crate) fn times_better(value: f64, than: f64, better: Better) -> Option<f64> {
    let ratio = match better {
        Better::Higher => value / than,
        Better::Lower => than / value,
    };
    (value > 0.0 && than > 0.0 && ratio.is_finite()).then_some(ratio)
}

impl Candidate {
    /// Of the values; none when it has failed or was not measured.
    pub(crate) fn range(&self) -> Option<Range> {
        if self.failure.is_some() {
            return None;
        }
        Range::of(self.samples.iter().map(|sample| sample.value))
    }

    /// Of an extra figure, over the samples that have it.
    pub(crate) fn extra(&self, name: &str) -> Option<Range> {
        Range::of(self.samples.iter().filter_map(|sample| sample.extra.get(name).copied()))
    }

    /// How many times better its median is than another's.
    pub(crate) fn times_better(&self, than: &Self, better: Better) -> Option<f64> {
        times_better(self.range()?.median, than.range()?.median, better)
    }
}

/// The `percent`-th percentile of sorted values, by nearest rank; none of none.
pub(crate) fn percentile<T: Copy>(sorted: &[T], percent: f64) -> Option<T> {
    let rank = (percent / 100.0 * sorted.len() as f64).ceil().max(1.0);
    sorted.get(rank as usize - 1).copied()
}

/// Rounded to so many significant digits.
pub(crate) fn significant(value: f64, digits: i32) -> f64 {
    if value == 0.0 || !value.is_finite() {
        return value;
    }
    let magnitude = value.abs().log10().floor() as i32;
    let places = digits - 1 - magnitude;
    if places >= 0 {
        let scale = 10f64.powi(places);
        (value * scale).round() / scale
    } else {
        let scale = 10f64.powi(-places);
        (value / scale).round() * scale
    }
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn medians() {
        let range = |values: &[f64]| Range::of(values.iter().copied());
        assert_eq!(range(&[]), None);
        assert_eq!(range(&[3.0, 1.0, 2.0]), Some(Range { min: 1.0, median: 2.0, max: 3.0 }));
        assert_eq!(range(&[8.0, 4.0]), Some(Range { min: 4.0, median: 6.0, max: 8.0 }));
    }

    #[test]
    fn ranges_apart() {
        let range = |min, max| Range { min, median: min, max };
        assert!(range(1.0, 2.0).is_apart_from(range(3.0, 4.0)));
        assert!(range(3.0, 4.0).is_apart_from(range(1.0, 2.0)));
        assert!(!range(1.0, 3.0).is_apart_from(range(3.0, 4.0)));
        assert!(!range(1.0, 9.0).is_apart_from(range(3.0, 4.0)));
    }

    #[test]
    fn better_is_always_above_one() {
        assert_eq!(times_better(6.0, 3.0, Better::Higher), Some(2.0));
        assert_eq!(times_better(3.0, 6.0, Better::Lower), Some(2.0));
        assert_eq!(times_better(6.0, 3.0, Better::Lower), Some(0.5));
        assert_eq!(times_better(1.0, 0.0, Better::Higher), None);
        assert_eq!(times_better(0.0, 1.0, Better::Lower), None);
    }

    #[test]
    fn percentiles_by_nearest_rank() {
        let hundred: Vec<u32> = (1..=100).collect();
        assert_eq!(percentile(&hundred, 50.0), Some(50));
        assert_eq!(percentile(&hundred, 99.0), Some(99));
        assert_eq!(percentile(&hundred, 100.0), Some(100));
        assert_eq!(percentile(&hundred, 0.0), Some(1));
        assert_eq!(percentile(&[7], 99.9), Some(7));
        assert_eq!(percentile::<u32>(&[], 50.0), None);
    }

    #[test]
    fn significant_digits() {
        assert_eq!(significant(123_456.0, 4), 123_500.0);
        assert_eq!(significant(0.001_234_56, 4), 0.001_235);
        assert_eq!(significant(-9.999_96, 4), -10.0);
        assert_eq!(significant(0.0, 4), 0.0);
        assert_eq!(significant(12.0, 4), 12.0);
        assert!(significant(f64::NAN, 4).is_nan());
    }
}
