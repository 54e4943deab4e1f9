//! The charts of a report.

use std::collections::BTreeMap;

use super::{
    chart::{Chart, Mark, SERIES_MAX, Scale, Series},
    format::{latency, number},
};
use crate::{error_kind::ErrorKind, interval::Interval, percentile::told, phase::Phase, run_result::RunResult};

/// Points for each halving of the distance to 100 %.
const TICKS_PER_HALF_DISTANCE: u32 = 5;
/// What is shorter is drawn as this long, in nanoseconds: a reply that was there already when its clock began took no time, which a
/// logarithmic axis has no place for.
const SHORTEST_NS: f64 = 1000.0;
/// Kinds of errors with a colour of their own; the others are one.
const ERROR_KINDS_MAX: usize = 6;

/// Whole transactions, the wait for the 250, end to end, by percentile.
pub fn percentiles(run: &RunResult) -> String {
    let phases = [Phase::Transaction, Phase::TransactionNaive, Phase::DotTo250, Phase::EndToEnd];
    percentile_chart("Latency by percentile", phases.into_iter().filter_map(|phase| percentile_series(run, phase, phase.title())).collect())
}

/// The parts of connections and transactions, by percentile.
pub fn percentiles_of_commands(run: &RunResult) -> String {
    let phases = [Phase::Connect, Phase::Banner, Phase::Ehlo, Phase::Mail, Phase::Rcpt, Phase::Data];
    percentile_chart("Replies by percentile", phases.into_iter().filter_map(|phase| percentile_series(run, phase, phase.title())).collect())
}

/// Whole transactions of several runs beside each other, in as many charts as their colours need.
pub fn percentiles_of_runs(runs: &[RunResult]) -> String {
    let all: Vec<Series> = runs.iter().filter_map(|run| percentile_series(run, Phase::Transaction, &run.test_name)).collect();
    let charts = all.len().div_ceil(SERIES_MAX).max(1);
    let chart = |(at, series): (usize, &[Series])| {
        let part = if charts > 1 { format!(" ({} of {charts})", at + 1) } else { String::new() };
        percentile_chart(&format!("Transactions by percentile, all tests{part}"), series.to_vec())
    };
    all.chunks(all.len().div_ceil(charts).max(1)).enumerate().map(chart).collect()
}

fn percentile_series(run: &RunResult, phase: Phase, name: &str) -> Option<Series> {
    let histogram = run.phases.get(&phase)?.histogram.decode().ok()?;
    let last = histogram.len() as f64;
    let points = histogram
        .iter_quantiles(TICKS_PER_HALF_DISTANCE)
        // Beyond one value in all there is nothing more to tell.
        .map(|step| {
            ((1.0 / (1.0 - step.quantile_iterated_to()).max(1e-12)).min(last.max(1.0)), (step.value_iterated_to() as f64).max(SHORTEST_NS))
        })
        .collect();
    Some(Series::new(name, points))
}

fn percentile_chart(title: &str, series: Vec<Series>) -> String {
    Chart {
        title,
        x_title: "percentile",
        x_scale: Scale::Percentile,
        y_scale: Scale::Log,
        mark: Mark::Lines,
        x_label: &percentile_label,
        y_label: &latency,
        series,
        y_at_least: 0.0,
    }
    .figure()
}

/// 1/(1-p) as the percentile p: 10 is 90 %, 1000 is 99.9 %.
fn percentile_label(inverse: f64) -> String {
    let percent = 100.0 * (1.0 - 1.0 / inverse.max(1.0));
    let nines = inverse.max(1.0).log10().ceil() as usize;
    let text = format!("{percent:.*}", nines.saturating_sub(2).max(usize::from(nines > 0 && inverse.log10().fract() > 1e-9)));
    format!("{text} %")
}

/// Acknowledged per second, and what was offered.
pub fn throughput(run: &RunResult) -> String {
    let rate = over_time(run, |i| Some(i.acknowledged as f64 / i.length_s.max(1) as f64));
    let mut series = vec![Series::new("acknowledged", rate)];
    if let (Some(offered), true) = (run.load.offered_per_second, run.duration > 0.0) {
        // Deliveries go on behind the load, and so do the intervals; the offer does not.
        let ends = vec![(0.0, offered), (run.duration, offered)];
        series.push(Series { dashed: true, ..Series::new("offered, on average", ends) });
    }
    time_chart("Messages per second", &number, series)
}

/// p50, p99 and the longest of each interval.
pub fn latency_over_time(run: &RunResult) -> String {
    let phase = Phase::Transaction;
    let histograms: Vec<_> = whole_intervals(run).map(|i| (middle(i), i.histogram(phase))).filter(|(_, h)| !h.is_empty()).collect();
    let at = |percentile: f64| histograms.iter().filter_map(|(x, h)| Some((*x, told(h, percentile)? as f64))).collect();
    let series = vec![Series::new("p50", at(50.0)), Series::new("p99", at(99.0)), Series::new("longest", at(100.0))];
    Chart { y_scale: Scale::Log, ..time_chart_of("Transactions over time", &latency, present(series)) }.figure()
}

/// CPU of server and generator, percent of one core.
pub fn cpu(run: &RunResult) -> String {
    let series = vec![
        Series::new("server", over_time(run, |i| Some(i.engine?.cpu_percent))),
        Series::new("generator", over_time(run, |i| Some(i.generator?.cpu_percent))),
    ];
    let chart = time_chart_of("CPU, percent of one core", &number, present(series));
    Chart { y_at_least: 100.0, ..chart }.figure()
}

/// Resident memory of server and generator.
pub fn memory(run: &RunResult) -> String {
    let mib = |bytes: u64| Some(bytes as f64 / 1048576.0);
    let series = vec![
        Series::new("server", over_time(run, |i| mib(i.engine?.memory_bytes))),
        Series::new("generator", over_time(run, |i| mib(i.generator?.memory_bytes))),
    ];
    time_chart("Resident memory, MiB", &number, present(series))
}

/// Transactions open at the end of each interval, and the most connections within it.
pub fn in_flight(run: &RunResult) -> String {
    let series = vec![
        Series::new("transactions open", over_time(run, |i| Some(i.in_flight as f64))),
        // Dashed, so that both are seen where they are the same.
        Series { dashed: true, ..Series::new("connections", over_time(run, |i| Some(i.connections as f64))) },
    ];
    time_chart("In flight", &number, series)
}

/// Errors of each interval by kind; empty without any.
pub fn errors(run: &RunResult) -> String {
    let mut totals: BTreeMap<ErrorKind, u64> = BTreeMap::new();
    run.intervals.iter().flat_map(|i| i.errors.iter()).for_each(|(kind, n)| *totals.entry(kind).or_insert(0) += n);
    if totals.is_empty() {
        return String::new();
    }
    let mut kinds: Vec<(ErrorKind, u64)> = totals.into_iter().collect();
    kinds.sort_by_key(|&(_, n)| std::cmp::Reverse(n));
    let named: Vec<ErrorKind> = kinds.iter().take(ERROR_KINDS_MAX).map(|&(kind, _)| kind).collect();
    let mut series: Vec<Series> =
        named.iter().map(|&kind| Series::new(kind.to_string(), over_time(run, |i| Some(i.errors.of(kind) as f64)))).collect();
    if kinds.len() > named.len() {
        let others = |i: &Interval| i.errors.total() - named.iter().map(|&kind| i.errors.of(kind)).sum::<u64>();
        series.push(Series::new("others", over_time(run, |i| Some(others(i) as f64))));
    }
    Chart { mark: Mark::StackedBars, ..time_chart_of("Errors", &number, series) }.figure()
}

fn present(mut series: Vec<Series>) -> Vec<Series> {
    series.retain(|series| !series.points.is_empty());
    series
}

fn middle(interval: &Interval) -> f64 {
    interval.start_s as f64 + interval.length_s as f64 / 2.0
}

fn over_time(run: &RunResult, value: impl Fn(&Interval) -> Option<f64>) -> Vec<(f64, f64)> {
    whole_intervals(run).filter_map(|interval| Some((middle(interval), value(interval)?))).collect()
}

/// Intervals that the run filled: the last one is seldom whole, and its rates would look like a collapse.
fn whole_intervals(run: &RunResult) -> impl Iterator<Item = &Interval> + '_ {
    let only = run.intervals.len() == 1;
    run.intervals.iter().filter(move |i| only || (i.start_s + i.length_s) as f64 <= run.duration + 0.05)
}

fn time_chart_of<'a>(title: &'a str, y_label: &'a dyn Fn(f64) -> String, series: Vec<Series>) -> Chart<'a> {
    Chart {
        title,
        x_title: "",
        x_scale: Scale::Linear,
        y_scale: Scale::Linear,
        mark: Mark::Lines,
        x_label: &seconds,
        y_label,
        series,
        y_at_least: 0.0,
    }
}

fn time_chart(title: &str, y_label: &dyn Fn(f64) -> String, series: Vec<Series>) -> String {
    time_chart_of(title, y_label, series).figure()
}

fn seconds(s: f64) -> String {
    if s.fract() == 0.0 { format!("{s:.0} s") } else { format!("{s:.1} s") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample_run::SampleRun;

    #[test]
    fn the_percentile_axis_counts_nines() {
        assert_eq!([1.0, 10.0, 100.0, 1000.0, 10_000.0].map(percentile_label), ["0 %", "90 %", "99 %", "99.9 %", "99.99 %"]);
        assert_eq!(percentile_label(2.0), "50.0 %");
    }

    #[test]
    fn replies_that_were_there_already_do_not_stretch_the_axis_to_nanoseconds() {
        let mut run = SampleRun::default().result();
        let mut histogram = hdrhistogram::Histogram::<u64>::new(3).unwrap();
        (0..1000).for_each(|_| histogram.record(0).unwrap());
        histogram.record(5_000_000).unwrap();
        run.phases.insert(Phase::Mail, crate::run_result::PhaseSummary::new(&histogram));
        let text = percentiles_of_commands(&run);
        assert!(text.contains("1 us<") && !text.contains(" ns<"), "{text}");
    }

    #[test]
    fn a_suite_of_more_tests_than_colours_shows_all_of_them() {
        let runs: Vec<RunResult> = (0..12)
            .map(|n| RunResult { test_name: format!("test-{n}."), ..SampleRun { seconds: 1, ..SampleRun::default() }.result() })
            .collect();
        let text = percentiles_of_runs(&runs);
        assert!((0..12).all(|n| text.contains(&format!("</i>test-{n}.</span>"))), "{text}");
        assert_eq!(text.matches("<figure").count(), 2);
        assert_eq!(percentiles_of_runs(&runs[..8]).matches("<figure").count(), 1);
    }

    #[test]
    fn a_last_second_that_was_cut_short_is_not_drawn_as_a_collapse() {
        let mut run = SampleRun::default().result();
        run.duration = 9.02;
        assert_eq!(over_time(&run, |i| Some(i.acknowledged as f64)).len(), 9);
        run.duration = 9.99;
        assert_eq!(over_time(&run, |i| Some(i.acknowledged as f64)).len(), 10);
    }

    #[test]
    fn the_offer_ends_with_the_load_though_deliveries_go_on() {
        let mut run = SampleRun::default().result();
        (run.load.offered_per_second, run.duration) = (Some(1000.0), 6.0);
        assert!(throughput(&run).contains("6 s") && !throughput(&run).contains("10 s"), "{}", throughput(&run));
    }

    #[test]
    fn errors_of_many_kinds_are_all_counted() {
        let mut run = SampleRun::default().result();
        (0..20).for_each(|n| run.intervals[1].errors.add(ErrorKind::Reply(420 + n), u64::from(n) + 1));
        let text = errors(&run);
        assert!(text.contains("others"), "{text}");
        assert!(errors(&SampleRun::default().result()).is_empty());
    }
}
