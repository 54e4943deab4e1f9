//! `ringpost-load compare`: did it become slower? With bands from repeated runs, so that noise is not taken for an answer.

pub mod change;
pub mod comparison;
mod extent;
mod settings;
pub mod thresholds;

use std::path::PathBuf;

use clap::Args;

use crate::{
    cli::{EXIT_NEGATIVE, EXIT_OK, Failure, say},
    percentile::BEYOND_MIN,
    report::{
        format::{bytes, latency, number},
        suite::read_results,
    },
};
use comparison::{Comparison, MetricChange, Verdict, compare};
use thresholds::Thresholds;

/// Percents up to which a table has numbers.
const PERCENT_SHOWN_MAX: f64 = 1000.0;

/// `ringpost-load compare …`
#[derive(Args, Clone, Debug)]
pub struct CompareArguments {
    /// Before: a result, a suite, or a folder with repeated runs in it or in folders below it
    pub a: PathBuf,
    /// After: the same
    pub b: PathBuf,
    /// Further files or folders of A
    #[arg(long, value_name = "PATH", help_heading = "Repeated runs")]
    pub also_a: Vec<PathBuf>,
    /// Further files or folders of B
    #[arg(long, value_name = "PATH", help_heading = "Repeated runs")]
    pub also_b: Vec<PathBuf>,
    /// When a change counts
    #[command(flatten, next_help_heading = "Thresholds")]
    pub thresholds: Thresholds,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

impl CompareArguments {
    /// Reads both sides, prints; the exit code is 1 when something regressed, or a test of A is not in B.
    pub fn run(&self) -> Result<u8, Failure> {
        let side = |first: &PathBuf, also: &[PathBuf]| {
            let paths: Vec<&PathBuf> = std::iter::once(first).chain(also).collect();
            let results = read_results(&paths)?;
            match results.iter().find(|run| run.interrupted) {
                Some(run) => {
                    Err(Failure::Data(format!("{} of {} was interrupted: its figures are not compared", run.test_name, run.timestamp)))
                }
                None => Ok(results),
            }
        };
        let comparison = compare(&side(&self.a, &self.also_a)?, &side(&self.b, &self.also_b)?, &self.thresholds);
        if comparison.tests.is_empty() {
            let names = comparison.unmatched.join(", ");
            return Err(Failure::Data(format!("the two sides have no test of the same name ({names}): there is nothing to compare")));
        }
        if self.json {
            say(&serde_json::to_string_pretty(&comparison).expect("a comparison is plain data"))?;
        } else {
            say(&text(&comparison, &self.thresholds))?;
        }
        Ok(if comparison.verdict == Verdict::Regressed { EXIT_NEGATIVE } else { EXIT_OK })
    }
}

/// A table for each test and a last line with the verdict.
pub fn text(comparison: &Comparison, thresholds: &Thresholds) -> String {
    let mut text = String::new();
    for test in &comparison.tests {
        text.push_str(&format!("{} ({} runs against {})\n", test.test_name, test.runs[0], test.runs[1]));
        text.push_str(&format!("  {:<22} {:>11} {:>11} {:>9} {:>9} {:>9}  verdict\n", "metric", "A", "B", "change", "noise", "counts"));
        for change in &test.metrics {
            let points = if change.metric == "errors_percent" { "pt" } else { "%" };
            text.push_str(&format!(
                "  {:<22} {:>11} {:>11} {:>7} {points:<2} {:>5} {points:<2} {:>6} {points:<2}  {}\n",
                change.metric,
                value(change.metric, change.a),
                value(change.metric, change.b),
                shown_percent(&format!("{:+.1}", change.change_percent), change.change_percent),
                shown_percent(&format!("{:.1}", change.noise_percent), change.noise_percent),
                shown_percent(&format!("{:.1}", change.threshold_percent), change.threshold_percent),
                words(change)
            ));
        }
        for missed in &test.not_compared {
            let shown = |seconds: Option<f64>| seconds.map_or_else(|| "–".to_owned(), |seconds| value(missed.metric, seconds));
            let [in_a, in_b] = missed.transactions;
            text.push_str(&format!(
                "  {:<22} {:>11} {:>11}  not compared: at most {in_a} transactions in a run of A and {in_b} of B, and {BEYOND_MIN} must lie beyond\n",
                missed.metric,
                shown(missed.a),
                shown(missed.b)
            ));
        }
        test.notes.iter().for_each(|note| text.push_str(&format!("  note: {note}\n")));
    }
    if !comparison.missing.is_empty() {
        let allowed = if thresholds.allow_missing { "which is allowed" } else { "which is a regression (--allow-missing: it is none)" };
        text.push_str(&format!("only in A, {allowed}: {}\n", comparison.missing.join(", ")));
    }
    let added: Vec<&str> = comparison.unmatched.iter().filter(|name| !comparison.missing.contains(name)).map(String::as_str).collect();
    if !added.is_empty() {
        text.push_str(&format!("only in B: {}\n", added.join(", ")));
    }
    if comparison.tests.iter().flat_map(|test| &test.metrics).any(|change| !change.noise_measured) {
        text.push_str("Without repeated runs the noise is assumed; three or more on each side measure it, five see more.\n");
    }
    text.push_str(match comparison.verdict {
        Verdict::Regressed => "REGRESSED\n",
        Verdict::Improved => "improved\n",
        Verdict::Same => "same\n",
    });
    text
}

/// Percents of a table: beyond [`PERCENT_SHOWN_MAX`] a number says no more than that, and has no place in its column.
fn shown_percent(text: &str, percent: f64) -> String {
    if percent > PERCENT_SHOWN_MAX { format!(">{PERCENT_SHOWN_MAX}") } else { text.to_owned() }
}

fn words(change: &MetricChange) -> String {
    let verdict = match change.verdict {
        Verdict::Improved => "improved",
        Verdict::Same if change.unclear => "same (beyond the threshold, within the noise: more runs would tell)",
        Verdict::Same => "same",
        Verdict::Regressed => "REGRESSED",
    };
    if change.noise_measured { verdict.to_owned() } else { format!("{verdict} (noise assumed)") }
}

fn value(metric: &str, value: f64) -> String {
    match metric {
        "p50" | "p95" | "p99" => latency(value * 1e9),
        "memory_per_connection" => bytes(value),
        "cpu_us_per_message" => format!("{} us", number(value)),
        "errors_percent" => format!("{} %", number(value)),
        _ => number(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{run_result::RunResult, sample_run::SampleRun};

    fn written(folder: &std::path::Path, name: &str, slowness: f64) -> PathBuf {
        let side = folder.join(name);
        std::fs::create_dir(&side).unwrap();
        for seed in 0..5 {
            let run = SampleRun { seed: seed + name.len() as u64 * 50, slowness, noise: 0.02, seconds: 2, ..SampleRun::default() }.result();
            run.write(&side.join(format!("{seed}.json"))).unwrap();
        }
        side
    }

    #[test]
    fn folders_of_runs_are_compared_and_the_exit_code_tells() {
        let folder = tempfile::tempdir().unwrap();
        let (before, after, again) =
            (written(folder.path(), "before", 1.0), written(folder.path(), "after", 1.2), written(folder.path(), "again!!", 1.0));
        let call = |a: &PathBuf, b: &PathBuf, json| {
            let thresholds = Thresholds::default();
            CompareArguments { a: a.clone(), b: b.clone(), also_a: vec![], also_b: vec![], thresholds, json }.run()
        };
        assert_eq!(call(&before, &after, false).unwrap(), EXIT_NEGATIVE);
        assert_eq!(call(&before, &again, true).unwrap(), EXIT_OK);
        assert_eq!(call(&before.join("0.json"), &before, false).unwrap(), EXIT_OK);
        let mut spike = RunResult::read(&before.join("0.json")).unwrap();
        spike.test_name = "spike".into();
        let both = written(folder.path(), "both", 1.0);
        spike.write(&both.join("spike.json")).unwrap();
        assert_eq!((call(&both, &before, false).unwrap(), call(&before, &both, false).unwrap()), (EXIT_NEGATIVE, EXIT_OK));
        let found = compare(&read_results(&[&both]).unwrap(), &read_results(&[&before]).unwrap(), &Thresholds::default());
        assert!(text(&found, &Thresholds::default()).contains("\nonly in A, which is a regression (--allow-missing: it is none): spike\n"));
        assert!(matches!(call(&before, &folder.path().join("nothing"), false), Err(Failure::Data(_))));
        let mut other = RunResult::read(&before.join("0.json")).unwrap();
        other.test_name = "other".into();
        other.write(&folder.path().join("other.json")).unwrap();
        assert!(matches!(call(&before, &folder.path().join("other.json"), false), Err(Failure::Data(_))));
    }

    #[test]
    fn a_percentile_of_few_messages_is_a_dash_with_their_number() {
        let run = |seconds| SampleRun { seconds, ..SampleRun::default() }.result();
        let (few, many) = (run(1), run(3));
        let thresholds = Thresholds::default();
        let text = text(&compare(std::slice::from_ref(&few), &[many], &thresholds), &thresholds);
        let line = text.lines().find(|line| line.trim_start().starts_with("p99")).unwrap_or_default();
        assert!(line.contains(" – ") && line.contains(&format!("at most {} transactions in a run of A", few.emails_sent)), "{text}");
    }

    /// What happened: noise of a few wild runs was printed as "10936291.0 %", through the columns behind it.
    #[test]
    fn a_share_that_says_no_more_than_much_is_cut() {
        let wild = |seed, pace: f64| SampleRun { seed, slowness: pace, seconds: 1, ..SampleRun::default() }.result();
        let (a, b) = ([wild(1, 1.0), wild(2, 90.0), wild(3, 8000.0)], [wild(4, 1.0), wild(5, 90.0), wild(6, 8000.0)]);
        let thresholds = Thresholds::default();
        let text = text(&compare(&a, &b, &thresholds), &thresholds);
        assert!(text.contains(" >1000 % "), "{text}");
        let rows = text.lines().filter(|line| line.starts_with("  ") && !line.contains("not compared") && !line.contains("note: "));
        let ends = ["  verdict", "  same", "  improved", "  REGRESSED"];
        let lines: Vec<_> = rows.map(|row| ends.iter().find_map(|end| row.find(end))).collect();
        assert!(lines.len() > 2 && lines.iter().all(|at| at.is_some() && *at == lines[0]), "{text}");
    }
}
