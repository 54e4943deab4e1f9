//! Which percentiles are told. One that rests on the luck of a few values says nothing under a fine name: tables show a dash for it and JSON
//! null, each beside the count of values. Whatever shows or compares a percentile asks here.

use hdrhistogram::Histogram;

/// Percentiles that summaries list, by the names they have in JSON.
pub const PERCENTILES: [(&str, f64); 9] = [
    ("p50", 50.0),
    ("p75", 75.0),
    ("p90", 90.0),
    ("p95", 95.0),
    ("p99", 99.0),
    ("p99.9", 99.9),
    ("p99.99", 99.99),
    ("p99.999", 99.999),
    ("p100", 100.0),
];

/// Values that lie beyond a percentile at least.
pub const BEYOND_MIN: f64 = 10.0;

/// Do enough of so many values lie beyond the percentile? What is compared asks this of the median, too.
pub fn has_enough_beyond(percentile: f64, values: u64) -> bool {
    values as f64 * (100.0 - percentile) / 100.0 >= BEYOND_MIN - 1e-6
}

/// Is a percentile of so many values told? The median and the longest always are, where there is a value.
pub fn is_told(percentile: f64, values: u64) -> bool {
    values > 0 && (percentile <= 50.0 || percentile >= 100.0 || has_enough_beyond(percentile, values))
}

/// A percentile where it is told.
pub fn told(histogram: &Histogram<u64>, percentile: f64) -> Option<u64> {
    is_told(percentile, histogram.len()).then(|| histogram.value_at_percentile(percentile))
}

/// The percentile of a name of [`PERCENTILES`].
pub fn by_name(name: &str) -> Option<f64> {
    PERCENTILES.iter().find(|&&(known, _)| known == name).map(|&(_, at)| at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_says_something_with_ten_values_beyond() {
        let cases = [(50.0, 1, true), (100.0, 1, true), (50.0, 0, false), (90.0, 99, false), (90.0, 100, true), (99.9, 10_000, true)];
        for (percentile, values, says) in cases {
            assert_eq!(is_told(percentile, values), says, "{percentile} {values}");
        }
        assert!(!has_enough_beyond(50.0, 19) && has_enough_beyond(50.0, 20));
    }
}
