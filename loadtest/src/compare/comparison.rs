//! Two sets of runs, test by test and metric by metric.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;
use serde::Serialize;

use super::{
    change::{Change, median},
    extent, settings,
    thresholds::Thresholds,
};
use crate::{
    encoded_histogram::latency_histogram,
    interval::Interval,
    percentile::{by_name, has_enough_beyond},
    phase::Phase,
    run_result::RunResult,
};

/// Share of a threshold that one run's noise is assumed to be where there are no repeated runs: two single runs then have a band
/// of 85 % of the threshold, and a change beyond the threshold counts.
const ASSUMED_NOISE_SHARE: f64 = 0.3;
/// Parts a single run is cut into, to see how steady it was.
const BATCHES: usize = 8;

/// What became of a metric.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Better by more than threshold and noise.
    Improved,
    /// No change that counts.
    Same,
    /// Worse by more than threshold and noise.
    Regressed,
}

/// One metric of one test.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct MetricChange {
    /// Its name.
    pub metric: &'static str,
    /// Median of A's runs.
    pub a: f64,
    /// Median of B's runs.
    pub b: f64,
    /// B against A in percent (for errors: points).
    pub change_percent: f64,
    /// A change within plus and minus this can be noise.
    pub noise_percent: f64,
    /// The noise was measured from repeated runs.
    pub noise_measured: bool,
    /// From here on it counts.
    pub threshold_percent: f64,
    /// What became of it.
    pub verdict: Verdict,
    /// Beyond the threshold but within the noise: more runs would tell.
    pub unclear: bool,
}

/// A percentile that says too little on a side to be compared.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct NotCompared {
    /// Its name.
    pub metric: &'static str,
    /// Median of A's runs, where they have it.
    pub a: Option<f64>,
    /// The same of B.
    pub b: Option<f64>,
    /// Transactions of the longest run of A and of B.
    pub transactions: [u64; 2],
}

/// One test.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct TestComparison {
    /// Its name.
    pub test_name: String,
    /// Runs of A and B.
    pub runs: [usize; 2],
    /// Its metrics, those that both sides have.
    pub metrics: Vec<MetricChange>,
    /// Percentiles of which one side has no run with enough messages beyond them.
    pub not_compared: Vec<NotCompared>,
    /// What a reader should know: other machine, other load, failed runs.
    pub notes: Vec<String>,
    /// The worst of the metrics.
    pub verdict: Verdict,
}

/// All tests.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Comparison {
    /// Tests that both sides have.
    pub tests: Vec<TestComparison>,
    /// Tests that only one side has.
    pub unmatched: Vec<String>,
    /// Those of them that A has: what ran before did not come to a result any more.
    pub missing: Vec<String>,
    /// The worst of the tests; regressed where one is missing, unless that is allowed.
    pub verdict: Verdict,
}

/// Compares; runs are matched by test name.
pub fn compare(a: &[RunResult], b: &[RunResult], thresholds: &Thresholds) -> Comparison {
    let mut sides: BTreeMap<&str, (Vec<&RunResult>, Vec<&RunResult>)> = BTreeMap::new();
    a.iter().for_each(|run| sides.entry(&run.test_name).or_default().0.push(run));
    b.iter().for_each(|run| sides.entry(&run.test_name).or_default().1.push(run));
    let (mut tests, mut unmatched, mut missing) = (Vec::new(), Vec::new(), Vec::new());
    for (name, (a, b)) in sides {
        if !a.is_empty() && !b.is_empty() {
            tests.push(compare_test(name, &a, &b, thresholds));
            continue;
        }
        unmatched.push(name.to_owned());
        if b.is_empty() {
            missing.push(name.to_owned());
        }
    }
    let gone = (!missing.is_empty() && !thresholds.allow_missing).then_some(Verdict::Regressed);
    let verdicts: Vec<Verdict> = tests.iter().map(|test| test.verdict).chain(gone).collect();
    Comparison { tests, unmatched, missing, verdict: worst(verdicts.into_iter()) }
}

fn worst(verdicts: impl Iterator<Item = Verdict> + Clone) -> Verdict {
    let has = |wanted| verdicts.clone().any(|verdict| verdict == wanted);
    match (has(Verdict::Regressed), has(Verdict::Improved)) {
        (true, _) => Verdict::Regressed,
        (false, true) => Verdict::Improved,
        (false, false) => Verdict::Same,
    }
}

fn compare_test(name: &str, a: &[&RunResult], b: &[&RunResult], thresholds: &Thresholds) -> TestComparison {
    let mut metrics: Vec<MetricChange> = METRICS.iter().filter_map(|metric| metric.compare(a, b, thresholds)).collect();
    metrics.push(compare_errors(a, b, thresholds));
    let mut verdict = worst(metrics.iter().map(|metric| metric.verdict));
    let mut notes = differences(a, b);
    let failed = |runs: &[&RunResult]| runs.iter().filter(|run| !run.success).count();
    for (side, runs) in [("A", a), ("B", b)] {
        if failed(runs) > 0 {
            notes.push(format!("{} of {} runs of {side} failed", failed(runs), runs.len()));
        }
    }
    if failed(b) > 0 && failed(a) == 0 {
        verdict = Verdict::Regressed;
        notes.push("no run of A failed, and of B some did: REGRESSED".to_owned());
    }
    // A rate of none is no factor of another, and so no line of the table.
    let silent = |runs: &[&RunResult]| runs.iter().all(|run| run.emails_sent == 0);
    if silent(b) && !silent(a) {
        verdict = Verdict::Regressed;
        notes.push("nothing was acknowledged in B: REGRESSED".to_owned());
    }
    if silent(a) && !silent(b) {
        notes.push("nothing was acknowledged in A: it is no measure".to_owned());
    }
    // A metric that is compared nowhere would be missed by nobody.
    let mut not_compared = Vec::new();
    for metric in &METRICS {
        let has = |runs: &[&RunResult]| !metric.values(runs).is_empty();
        match (has(a), has(b)) {
            (true, true) => {}
            _ if by_name(metric.name).is_some() => {
                let most = |runs: &[&RunResult]| runs.iter().map(|run| run.transactions()).max().unwrap_or(0);
                let (of_a, of_b) = (median(metric.values(a)), median(metric.values(b)));
                not_compared.push(NotCompared { metric: metric.name, a: of_a, b: of_b, transactions: [most(a), most(b)] });
            }
            (true, false) => notes.push(format!("{} is only in A: not compared", metric.name)),
            (false, true) => notes.push(format!("{} is only in B: not compared", metric.name)),
            _ => {}
        }
    }
    TestComparison { test_name: name.to_owned(), runs: [a.len(), b.len()], metrics, not_compared, notes, verdict }
}

/// A metric that is above 0 and whose changes are factors.
struct Metric {
    name: &'static str,
    value: fn(&RunResult) -> Option<f64>,
    /// The same from a part of a run, to see how steady the run was.
    part: Option<fn(&[Interval]) -> f64>,
    threshold: fn(&Thresholds) -> f64,
    more_is_better: bool,
}

const METRICS: [Metric; 6] = [
    Metric {
        name: "messages_per_second",
        value: |run| Some(run.emails_per_second),
        part: Some(|part| {
            part.iter().map(|i| i.acknowledged).sum::<u64>() as f64 / part.iter().map(|i| i.length_s).sum::<u64>().max(1) as f64
        }),
        threshold: |thresholds| thresholds.throughput,
        more_is_better: true,
    },
    Metric {
        value: |run| known(run, "p50"),
        part: Some(|part| percentile(part, 50.0)),
        ..Metric::cost("p50", |thresholds| thresholds.p50)
    },
    Metric {
        value: |run| known(run, "p95"),
        part: Some(|part| percentile(part, 95.0)),
        ..Metric::cost("p95", |thresholds| thresholds.p95)
    },
    Metric {
        value: |run| known(run, "p99"),
        part: Some(|part| percentile(part, 99.0)),
        ..Metric::cost("p99", |thresholds| thresholds.p99)
    },
    Metric { value: |run| run.memory_bytes_per_connection, ..Metric::cost("memory_per_connection", |thresholds| thresholds.memory) },
    Metric { value: |run| run.cpu_us_per_message, ..Metric::cost("cpu_us_per_message", |thresholds| thresholds.cpu) },
];

/// A percentile of a run, where enough messages lie beyond it: the median, too.
fn known(run: &RunResult, name: &str) -> Option<f64> {
    has_enough_beyond(by_name(name)?, run.transactions()).then(|| run.percentile_s(name)).flatten()
}

impl Metric {
    /// Something of which less is better, and no part of a run tells.
    const fn cost(name: &'static str, threshold: fn(&Thresholds) -> f64) -> Metric {
        Metric { name, value: |_| None, part: None, threshold, more_is_better: false }
    }

    fn values(&self, runs: &[&RunResult]) -> Vec<f64> {
        runs.iter().filter_map(|run| (self.value)(run)).filter(|value| *value > 0.0).collect()
    }

    fn compare(&self, a: &[&RunResult], b: &[&RunResult], thresholds: &Thresholds) -> Option<MetricChange> {
        let (of_a, of_b) = (self.values(a), self.values(b));
        let threshold = (self.threshold)(thresholds);
        // Better or worse, turned so that more is worse: a loss of 10 % and the gain that undoes it are one threshold.
        let (sign, limit) =
            if self.more_is_better { (-1.0, -(1.0 - threshold / 100.0).ln()) } else { (1.0, (1.0 + threshold / 100.0).ln()) };
        let assumed = match thresholds.noise {
            Some(noise) => noise / 100.0,
            None => {
                let shown = a.iter().chain(b).filter_map(|run| self.unsteadiness(run)).fold(0.0, f64::max);
                (limit * ASSUMED_NOISE_SHARE).max(shown)
            }
        };
        let change = Change::between(&of_a, &of_b, assumed)?;
        let worse = sign * change.log_ratio;
        let counts = worse.abs() >= limit;
        let verdict = match (counts && change.beyond_noise(), worse > 0.0) {
            (false, _) => Verdict::Same,
            (true, true) => Verdict::Regressed,
            (true, false) => Verdict::Improved,
        };
        Some(MetricChange {
            metric: self.name,
            a: median(of_a)?,
            b: median(of_b)?,
            change_percent: change.percent(),
            noise_percent: change.band_percent(),
            noise_measured: change.measured,
            threshold_percent: threshold,
            verdict,
            unclear: counts && verdict == Verdict::Same,
        })
    }

    /// Standard error of a single run's figure, relative, from the spread between its parts (batch means). None where a run is too
    /// short to be cut.
    fn unsteadiness(&self, run: &RunResult) -> Option<f64> {
        let part = self.part?;
        // The last interval is seldom whole.
        let whole = run.intervals.split_last()?.1;
        let size = whole.len() / BATCHES;
        if size == 0 {
            return None;
        }
        let logs: Vec<f64> = whole.chunks_exact(size).take(BATCHES).map(part).filter(|value| *value > 0.0).map(f64::ln).collect();
        let mean = logs.iter().sum::<f64>() / logs.len() as f64;
        let variance = logs.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (logs.len() as f64 - 1.0);
        (logs.len() == BATCHES).then(|| (variance / BATCHES as f64).sqrt())
    }
}

fn percentile(part: &[Interval], at: f64) -> f64 {
    let mut sum: Histogram<u64> = latency_histogram();
    part.iter().for_each(|interval| sum.add(interval.histogram(Phase::Transaction)).expect("both have this crate's bounds"));
    sum.value_at_percentile(at) as f64
}

/// Transactions that failed are a share, often 0: compared as points, with the noise that counting has.
fn compare_errors(a: &[&RunResult], b: &[&RunResult], thresholds: &Thresholds) -> MetricChange {
    let counted = |runs: &[&RunResult]| -> (f64, f64) {
        let errors: u64 = runs.iter().map(|run| run.transactions_failed()).sum();
        let begun: u64 = runs.iter().map(|run| run.transactions_begun.max(run.transactions_failed())).sum();
        (errors as f64, begun.max(1) as f64)
    };
    let ((errors_a, all_a), (errors_b, all_b)) = (counted(a), counted(b));
    let (share_a, share_b) = (errors_a / all_a, errors_b / all_b);
    let both = (errors_a + errors_b) / (all_a + all_b);
    let noise = 3.0 * (both * (1.0 - both) * (1.0 / all_a + 1.0 / all_b)).sqrt();
    let change = share_b - share_a;
    let counts = change.abs() * 100.0 >= thresholds.errors;
    let verdict = match (counts && change.abs() > noise, change > 0.0) {
        (false, _) => Verdict::Same,
        (true, true) => Verdict::Regressed,
        (true, false) => Verdict::Improved,
    };
    MetricChange {
        metric: "errors_percent",
        a: share_a * 100.0,
        b: share_b * 100.0,
        change_percent: change * 100.0,
        noise_percent: noise * 100.0,
        noise_measured: true,
        threshold_percent: thresholds.errors,
        verdict,
        unclear: counts && verdict == Verdict::Same,
    }
}

/// What was not the same between the sides although it should have been.
fn differences(a: &[&RunResult], b: &[&RunResult]) -> Vec<String> {
    type Fact = (&'static str, fn(&RunResult) -> String);
    let facts: [Fact; 7] = [
        ("processor", |run| run.machine.cpu_model.clone()),
        ("cores", |run| run.machine.cores_allowed.to_string()),
        ("kernel", |run| run.machine.kernel.clone()),
        ("disk", |run| run.machine.disk.clone()),
        ("tool", |run| run.machine.tool.clone()),
        ("sessions", |run| run.load.sessions.to_string()),
        ("offered rate", |run| run.load.offered_per_second.map_or_else(|| "closed loop".to_owned(), |rate| rate.to_string())),
    ];
    let mut notes = Vec::new();
    for (name, fact) in facts {
        let mut values: Vec<String> = a.iter().chain(b).map(|run| fact(run)).collect();
        values.sort();
        values.dedup();
        if let [first, .., last] = values.as_slice() {
            let short = first.len() + last.len() < 120;
            notes.push(if short { format!("not the same {name}: {first} / {last}") } else { format!("not the same {name}") });
        }
    }
    let mut told = settings::differences(a, b);
    // The schedule says more than its mean.
    if told.iter().any(|note| is_of(note, &["rate", "load.rate"])) {
        notes.retain(|note| !is_of(note, &["offered rate"]));
    }
    // What was done says more than what was asked for.
    let done = extent::differences(a, b);
    for (name, in_scenario) in [("pipelining", "load.pipelining"), ("chunking", "load.chunking")] {
        if done.iter().any(|note| is_of(note, &[name])) {
            told.retain(|note| !is_of(note, &[name, in_scenario]));
        }
    }
    notes.extend(done);
    notes.extend(told);
    notes
}

/// Is it the note of one of these?
fn is_of(note: &str, names: &[&str]) -> bool {
    let name = note.strip_prefix("not the same ").and_then(|rest| rest.split_once(':'));
    name.is_some_and(|(name, _)| names.contains(&name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{error_kind::ErrorKind, sample_run::SampleRun};

    fn runs(seed: u64, count: u64, slowness: f64, noise: f64) -> Vec<RunResult> {
        (0..count).map(|n| SampleRun { seed: seed * 1000 + n, slowness, noise, seconds: 3, ..SampleRun::default() }.result()).collect()
    }

    #[test]
    fn a_planted_slowdown_of_fifteen_percent_is_found_in_each_of_ten_tries() {
        for attempt in 0..10 {
            let (a, b) = (runs(attempt, 5, 1.0, 0.03), runs(100 + attempt, 5, 1.15, 0.03));
            let found = compare(&a, &b, &Thresholds::default());
            assert_eq!(found.verdict, Verdict::Regressed, "try {attempt}: {found:#?}");
            assert_eq!(compare(&b, &a, &Thresholds::default()).verdict, Verdict::Improved, "try {attempt}, swapped");
        }
    }

    #[test]
    fn two_equal_sets_of_noisy_runs_are_the_same_in_each_of_ten_tries() {
        for attempt in 0..10 {
            let (a, b) = (runs(200 + attempt, 5, 1.0, 0.05), runs(300 + attempt, 5, 1.0, 0.05));
            let found = compare(&a, &b, &Thresholds::default());
            assert_eq!(found.verdict, Verdict::Same, "try {attempt}: {found:#?}");
        }
    }

    /// What happened: no threshold could be 100 % or more, though a p99 can become three times as long.
    #[test]
    fn what_can_become_worse_without_end_may_have_a_threshold_of_several_hundred_percent() {
        // With single runs, whose noise is assumed by the threshold.
        for (p50, slowness, verdict) in [(250.0, 4.0, Verdict::Regressed), (250.0, 3.0, Verdict::Same), (1000.0, 12.0, Verdict::Regressed)]
        {
            let thresholds = Thresholds { p50, ..Thresholds::default() };
            let compared = compare(&runs(1, 1, 1.0, 0.0), &runs(2, 1, slowness, 0.0), &thresholds);
            let found = compared.tests[0].metrics.iter().find(|change| change.metric == "p50").unwrap();
            assert_eq!(found.verdict, verdict, "{found:?}");
        }
    }

    #[test]
    fn single_runs_show_a_large_change_and_hide_a_small_one() {
        let (a, small, large) = (runs(1, 1, 1.0, 0.0), runs(2, 1, 1.04, 0.0), runs(3, 1, 1.3, 0.0));
        assert_eq!(compare(&a, &small, &Thresholds::default()).verdict, Verdict::Same);
        let found = compare(&a, &large, &Thresholds::default());
        assert_eq!(found.verdict, Verdict::Regressed);
        assert!(found.tests[0].metrics.iter().filter(|m| m.metric == "p50").all(|m| !m.noise_measured));
    }

    #[test]
    fn a_single_run_that_was_unsteady_has_a_wider_band() {
        let steady = SampleRun { seconds: 17, ..SampleRun::default() }.result();
        let mut unsteady = steady.clone();
        unsteady.intervals.iter_mut().for_each(|i| i.acknowledged = if i.start_s < 8 { i.acknowledged } else { i.acknowledged / 3 });
        let band = |run: &RunResult| {
            let found = compare(std::slice::from_ref(run), std::slice::from_ref(run), &Thresholds::default());
            found.tests[0].metrics[0].noise_percent
        };
        assert!(band(&unsteady) > band(&steady) * 2.0, "{} {}", band(&unsteady), band(&steady));
    }

    #[test]
    fn errors_count_in_points_and_a_failed_run_is_a_regression() {
        let a = runs(1, 3, 1.0, 0.01);
        let mut b = a.clone();
        // What happened: each refused recipient was an error of a transaction, though others had all of the mail.
        b.iter_mut().for_each(|run| run.errors.add(ErrorKind::Reply(451), run.transactions_begun / 20));
        assert_eq!(compare(&a, &b, &Thresholds::default()).verdict, Verdict::Regressed, "of results without fates nothing else is known");
        b.iter_mut().for_each(|run| run.fates.recipients_refused = run.transactions_begun / 20);
        assert_eq!(compare(&a, &b, &Thresholds::default()).verdict, Verdict::Same);
        b.iter_mut().for_each(|run| run.fates.refused = run.transactions_begun / 20);
        assert_eq!(compare(&a, &b, &Thresholds::default()).verdict, Verdict::Regressed);
        assert_eq!(compare(&a, &b, &Thresholds { errors: 10.0, ..Thresholds::default() }).verdict, Verdict::Same);
        let mut failed = a.clone();
        failed[0].success = false;
        assert_eq!(compare(&a, &failed, &Thresholds::default()).verdict, Verdict::Regressed);
        assert_eq!(compare(&failed, &failed, &Thresholds::default()).verdict, Verdict::Same);
        // Nobody was told that A was no measure.
        let notes = compare(&failed, &a, &Thresholds::default()).tests.remove(0).notes;
        assert_eq!(notes, ["1 of 3 runs of A failed"]);
    }

    /// What happened: runs against a server that nobody answered at were REGRESSED, and no line said what had: a rate of 0 is no factor of
    /// another, so that it was left out. Where a run of A had failed, too, they were the same.
    #[test]
    fn a_side_in_which_nothing_was_acknowledged_is_named() {
        let a = runs(1, 2, 1.0, 0.0);
        let mut b = a.clone();
        for run in &mut b {
            (run.emails_sent, run.emails_per_second, run.success) = (0, 0.0, false);
            run.phases.clear();
        }
        let found = |a: &[RunResult], b: &[RunResult]| compare(a, b, &Thresholds::default()).tests.remove(0);
        let said = |test: &TestComparison, words: &str| test.notes.iter().any(|note| note.contains(words));
        let test = found(&a, &b);
        assert_eq!(test.verdict, Verdict::Regressed);
        assert!(said(&test, "no run of A failed, and of B some did: REGRESSED"), "{:?}", test.notes);
        assert!(said(&test, "nothing was acknowledged in B: REGRESSED"), "{:?}", test.notes);
        let mut flawed = a.clone();
        flawed[0].success = false;
        assert_eq!(found(&flawed, &b).verdict, Verdict::Regressed);
        assert!(said(&found(&b, &a), "nothing was acknowledged in A"), "{:?}", found(&b, &a).notes);
        assert_ne!(found(&b, &b).verdict, Verdict::Regressed);
    }

    /// What happened: a run without figures for its CPU, or with too few messages for p99, was compared by the rest and called the same.
    #[test]
    fn a_metric_that_one_side_lacks_is_said() {
        let a = runs(1, 3, 1.0, 0.0);
        let mut b = a.clone();
        b.iter_mut().for_each(|run| run.cpu_us_per_message = None);
        let notes = |a: &[RunResult], b: &[RunResult]| compare(a, b, &Thresholds::default()).tests.remove(0).notes;
        assert_eq!(notes(&a, &b), ["cpu_us_per_message is only in A: not compared"]);
        assert_eq!(notes(&b, &a), ["cpu_us_per_message is only in B: not compared"]);
        assert_eq!(notes(&b, &b), [""; 0]);
    }

    #[test]
    fn memory_for_each_connection_has_its_threshold_and_tests_are_matched_by_name() {
        let mut a = runs(1, 3, 1.0, 0.0);
        a.iter_mut().for_each(|run| run.memory_bytes_per_connection = Some(1000.0));
        let mut b = a.clone();
        b.iter_mut().for_each(|run| run.memory_bytes_per_connection = Some(1250.0));
        assert_eq!(compare(&a, &b, &Thresholds::default()).verdict, Verdict::Regressed);
        b.iter_mut().for_each(|run| run.test_name = "other".into());
        let apart = compare(&a, &b, &Thresholds::default());
        assert_eq!((apart.tests.len(), apart.unmatched.len(), apart.missing), (0, 2, vec!["baseline".to_owned()]));
    }

    /// What happened: a suite that broke off in the middle, or of which a test came to no result any more, was the same as one that was whole.
    #[test]
    fn a_test_that_only_a_has_is_a_regression_unless_that_is_allowed() {
        let one = runs(1, 3, 1.0, 0.0);
        let mut both = one.clone();
        both.extend(runs(2, 3, 1.0, 0.0).into_iter().map(|run| RunResult { test_name: "spike".into(), ..run }));
        let allowed = Thresholds { allow_missing: true, ..Thresholds::default() };
        let found = compare(&both, &one, &Thresholds::default());
        assert_eq!((found.missing, found.verdict), (vec!["spike".to_owned()], Verdict::Regressed));
        assert_eq!(compare(&both, &one, &allowed).verdict, Verdict::Same);
        let more = compare(&one, &both, &Thresholds::default());
        assert_eq!((more.unmatched, more.missing, more.verdict), (vec!["spike".to_owned()], vec![], Verdict::Same));
    }

    #[test]
    fn a_percentile_that_few_messages_lie_beyond_is_not_compared() {
        let run = |seconds| SampleRun { seconds, ..SampleRun::default() }.result();
        let (few, many) = ([run(1)], [run(3)]);
        let test = compare(&few, &many, &Thresholds::default()).tests.remove(0);
        let names: Vec<&str> = test.metrics.iter().map(|m| m.metric).collect();
        assert_eq!(names, ["messages_per_second", "p50", "p95", "cpu_us_per_message", "errors_percent"]);
        // That it was left out was not said where both sides lacked it.
        let [missed] = test.not_compared.as_slice() else { panic!("{:?}", test.not_compared) };
        assert_eq!((missed.metric, missed.a, missed.transactions), ("p99", None, [few[0].emails_sent, many[0].emails_sent]));
        assert!(missed.b.is_some_and(|p99| p99 > 0.0));
        let test = compare(&few, &few, &Thresholds::default()).tests.remove(0);
        assert_eq!((test.not_compared[0].a, test.not_compared[0].b, test.notes.len()), (None, None, 0));
    }

    #[test]
    fn another_kernel_or_load_is_said() {
        let a = runs(1, 1, 1.0, 0.0);
        let mut b = a.clone();
        b[0].machine.kernel = "Linux 7.0".into();
        b[0].load.sessions = 99;
        b[0].settings["seed"] = 7.into();
        let notes = compare(&a, &b, &Thresholds::default()).tests.remove(0).notes;
        assert_eq!(notes, ["not the same kernel: Linux 6.1 / Linux 7.0", "not the same sessions: 8 / 99"]);
    }

    /// What happened: that chunking was asked for was compared, and not whether the server offered it; of pipelining it was the other way round.
    #[test]
    fn what_was_done_and_else_what_was_asked_for_is_said() {
        let run = |asked: bool, done: u64| {
            let mut run = runs(1, 1, 1.0, 0.0).remove(0);
            (run.load.transactions_pipelined, run.load.transactions_chunked) = (Some(done), Some(done));
            run.settings = serde_json::json!({"pipelining": asked, "chunking": asked});
            run
        };
        let notes = |a: RunResult, b: RunResult| compare(&[a], &[b], &Thresholds::default()).tests.remove(0).notes;
        let done = |name: &str| format!("not the same {name}: of their transactions none / all");
        assert_eq!(notes(run(false, 0), run(true, u64::MAX)), ["pipelining", "chunking"].map(done));
        assert_eq!(notes(run(true, 0), run(true, u64::MAX)), ["pipelining", "chunking"].map(done));
        // The server did not offer it.
        assert_eq!(notes(run(false, 0), run(true, 0)), ["not the same chunking: false / true", "not the same pipelining: false / true"]);
    }
}
