//! Percentile distributions as text (`.hgrm`), line by line what HdrHistogram's own tools print, so that its plotters open it.
//!
//! Values are milliseconds; five lines for each halving of the distance to 100 %.

use std::fmt::Write;

use hdrhistogram::Histogram;

/// Lines for each halving of the distance to 100 %, as the viewers' own files have.
const TICKS_PER_HALF_DISTANCE: u32 = 5;
/// Nanoseconds to milliseconds.
const SCALE: f64 = 1e6;

/// The distribution of a histogram of nanoseconds.
pub fn hgrm(histogram: &Histogram<u64>) -> String {
    let mut text = format!("{:>12} {:>14} {:>10} {:>14}\n\n", "Value", "Percentile", "TotalCount", "1/(1-Percentile)");
    let mut count = 0;
    for step in histogram.iter_quantiles(TICKS_PER_HALF_DISTANCE) {
        count += step.count_since_last_iteration();
        let (value, quantile) = (step.value_iterated_to() as f64 / SCALE, step.quantile_iterated_to());
        // The last line has no fourth column: 1/(1-1) is nothing a plot could show.
        let line = if quantile >= 1.0 {
            writeln!(text, "{value:12.3} {quantile:2.12} {count:10}")
        } else {
            writeln!(text, "{value:12.3} {quantile:2.12} {count:10} {:14.2}", 1.0 / (1.0 - quantile))
        };
        line.expect("a string takes every line");
    }
    let sub_buckets = (2 * 10_u32.pow(u32::from(histogram.sigfig()))).next_power_of_two();
    write!(
        text,
        "#[Mean    = {:12.3}, StdDeviation   = {:12.3}]\n#[Max     = {:12.3}, Total count    = {:12}]\n#[Buckets = {:12}, SubBuckets     = {:12}]\n",
        histogram.mean() / SCALE,
        histogram.stdev() / SCALE,
        histogram.max() as f64 / SCALE,
        histogram.len(),
        histogram.buckets(),
        sub_buckets
    )
    .expect("a string takes every line");
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encoded_histogram::latency_histogram;

    #[test]
    fn a_distribution_has_the_columns_and_the_footer_that_plotters_look_for() {
        let mut histogram = latency_histogram();
        (1..=10_000_u64).for_each(|n| histogram.record(n * 1000).unwrap());
        let text = hgrm(&histogram);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "       Value     Percentile TotalCount 1/(1-Percentile)");
        assert_eq!(lines[1], "");
        assert_eq!(lines[2], "       0.001 0.000000000000          1           1.00");
        assert_eq!(lines[lines.len() - 4], "      10.002 1.000000000000      10000");
        assert_eq!(lines[lines.len() - 3], "#[Mean    =        5.001, StdDeviation   =        2.887]");
        assert_eq!(lines[lines.len() - 2], "#[Max     =       10.002, Total count    =        10000]");
        assert_eq!(lines[lines.len() - 1], "#[Buckets =           32, SubBuckets     =         2048]");
        let mut last = (0.0, 0.0);
        for line in &lines[2..lines.len() - 3] {
            let numbers: Vec<f64> = line.split_ascii_whitespace().map(|field| field.parse().unwrap()).collect();
            assert!(numbers[0] >= last.0 && numbers[1] >= last.1, "{line}");
            assert!(numbers.len() == 3 || (numbers[3] - 1.0 / (1.0 - numbers[1])).abs() < 0.01, "{line}");
            last = (numbers[0], numbers[1]);
        }
    }

    #[test]
    fn an_empty_histogram_has_header_and_footer() {
        let text = hgrm(&latency_histogram());
        assert!(text.contains("Total count    =            0]"), "{text}");
        assert!(!text.contains("NaN") && !text.contains("inf"), "{text}");
    }
}
