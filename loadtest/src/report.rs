//! `ringpost-load report`: results become files for people and for the viewers of HdrHistogram.

pub mod advice;
mod background;
pub mod chart;
pub mod charts;
mod connections;
pub mod format;
pub mod hgrm;
pub mod html;
pub mod interval_log;
pub mod suite;
#[cfg(test)]
mod viewers;

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use clap::Args;
use time::OffsetDateTime;

use crate::{
    cli::{EXIT_NEGATIVE, EXIT_OK, Failure},
    content::raised_text,
    machine::Machine,
    measurement::Measurement,
    phase::Phase,
    run_result::{RunResult, write_whole},
};
use background::background_text;
use connections::connections_text;
use format::{count, number, percentile_of, printable};
use suite::{Suite, read_results};

/// `ringpost-load report …`
#[derive(Args, Clone, Debug)]
pub struct ReportArguments {
    /// Results or suites (JSON), or folders of them
    #[arg(required = true, value_name = "RESULT")]
    pub results: Vec<PathBuf>,
    /// Write a self-contained HTML page
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Write percentile distributions (.hgrm) and interval logs (.hlog) for HdrHistogram viewers into this folder
    #[arg(long, value_name = "DIR")]
    pub hgrm: Option<PathBuf>,
    /// Write all results as one suite (JSON)
    #[arg(long, value_name = "FILE")]
    pub suite: Option<PathBuf>,
    /// Say what set the pace of each run and estimate what the server could carry
    #[arg(long)]
    pub advice: bool,
    /// The suite's name
    #[arg(long, value_name = "TEXT", default_value = "Ringpost load test")]
    pub name: String,
    /// With --advice: print JSON
    #[arg(long, requires = "advice")]
    pub json: bool,
}

impl ReportArguments {
    /// Reads, writes what was asked, prints a table; the exit code is 1 when a run failed.
    pub fn run(&self) -> Result<u8, Failure> {
        let suite = Suite::new(&self.name, read_results(&self.results)?);
        if let Some(path) = &self.html {
            write_whole(path, html::page(&suite).as_bytes()).map_err(|reason| Failure::io(path.display(), reason))?;
        }
        if let Some(folder) = &self.hgrm {
            write_histograms(folder, &suite.results)?;
        }
        if let Some(path) = &self.suite {
            suite.write(path)?;
        }
        if self.json {
            let advice: Vec<_> =
                suite.results.iter().map(|run| serde_json::json!({"test_name": run.test_name, "advice": advice::advise(run)})).collect();
            crate::cli::say(&serde_json::to_string_pretty(&advice).expect("advice is plain data"))?;
        } else {
            crate::cli::say(&text(&suite.results, self.advice))?;
        }
        Ok(if suite.failed_tests == 0 { EXIT_OK } else { EXIT_NEGATIVE })
    }
}

/// A table of runs, and the advice below it.
pub fn text(results: &[RunResult], with_advice: bool) -> String {
    let mut text = format!(
        "{:<24} {:>7} {:>10} {:>10} {:>10} {:>10} {:>10} {:>10} {:>8}\n",
        "test", "verdict", "messages", "per second", "p50", "p99", "p99.9", "max", "errors"
    );
    for run in results {
        let at = |name: &str| percentile_of(run, name);
        text.push_str(&format!(
            "{:<24} {:>7} {:>10} {:>10} {:>10} {:>10} {:>10} {:>10} {:>8}\n",
            printable(&run.test_name, &[]),
            if run.success { "passed" } else { "FAILED" },
            count(run.emails_sent),
            number(run.emails_per_second),
            at("p50"),
            at("p99"),
            at("p99.9"),
            at("p100"),
            count(run.errors.total())
        ));
        run.failures.iter().for_each(|failure| text.push_str(&format!("    {}\n", printable(failure, &[]))));
        for note in raised_text(run.load.sizes_raised.unwrap_or(0), run.transactions_begun)
            .into_iter()
            .chain(background_text(run))
            .chain(connections_text(run))
        {
            text.push_str(&format!("    note: {note}\n"));
        }
    }
    if with_advice {
        for run in results {
            let advice = advice::advise(run);
            text.push_str(&format!("\n{}\n", printable(&run.test_name, &[])));
            let capacity = advice.capacity.map(|capacity| capacity.sentences).unwrap_or_default();
            advice.sentences.iter().chain(&capacity).for_each(|sentence| text.push_str(&format!("  {sentence}\n")));
        }
    }
    text
}

/// `NAME-PHASE.hgrm` for each phase and `NAME.hlog` for each run.
pub fn write_histograms(folder: &Path, results: &[RunResult]) -> Result<(), Failure> {
    fs::create_dir_all(folder).map_err(|reason| Failure::io(folder.display(), reason))?;
    let mut taken = BTreeSet::new();
    for run in results {
        let name = file_stem(&run.test_name, &mut taken);
        let write = |file: String, text: &str| {
            let path = folder.join(file);
            write_whole(&path, text.as_bytes()).map_err(|reason| Failure::io(path.display(), reason))
        };
        for (phase, summary) in &run.phases {
            let histogram = summary.histogram.decode().map_err(|reason| Failure::Data(format!("{}: {reason}", run.test_name)))?;
            write(format!("{name}-{}.hgrm", phase.name()), &hgrm::hgrm(&histogram))?;
        }
        let about = format!("{}, ringpost-load {}\n{}", run.test_name, run.machine.tool, run.machine.line());
        write(format!("{name}.hlog"), &interval_log::interval_log(&about, run.timestamp, &run.intervals))?;
    }
    Ok(())
}

/// The same of what was measured without a result: `NAME-PHASE.hgrm` and `NAME.hlog`.
pub fn write_measured(folder: &Path, name: &str, machine: &Machine, started: OffsetDateTime, measured: Measurement) -> Result<(), Failure> {
    let write = |file: String, text: &str| {
        let path = folder.join(file);
        write_whole(&path, text.as_bytes()).map_err(|reason| Failure::io(path.display(), reason))
    };
    let (totals, intervals) = measured.finish();
    for phase in Phase::ALL.into_iter().filter(|&phase| !totals.histogram(phase).is_empty()) {
        write(format!("{name}-{}.hgrm", phase.name()), &hgrm::hgrm(totals.histogram(phase)))?;
    }
    let about = format!("{name}, ringpost-load {}\n{}", machine.tool, machine.line());
    write(format!("{name}.hlog"), &interval_log::interval_log(&about, started, &intervals))
}

/// A name that is safe as a file's and that no other run has.
fn file_stem(test_name: &str, taken: &mut BTreeSet<String>) -> String {
    let safe: String = test_name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' }).take(80).collect();
    let safe = if safe.is_empty() { "run".to_owned() } else { safe };
    let name = (1..).map(|n| if n == 1 { safe.clone() } else { format!("{safe}.{n}") }).find(|name| !taken.contains(name));
    let name = name.expect("the numbers do not end");
    taken.insert(name.clone());
    name
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample_run::SampleRun;

    #[test]
    fn a_folder_of_results_becomes_page_suite_and_histograms() {
        let folder = tempfile::tempdir().unwrap();
        let runs = folder.path().join("runs");
        fs::create_dir(&runs).unwrap();
        for seed in [1, 2] {
            let mut run = SampleRun { seed, seconds: 3, ..SampleRun::default() }.result();
            run.test_name = "../base line".into();
            run.write(&runs.join(format!("{seed}.json"))).unwrap();
        }
        let args = ReportArguments {
            results: vec![runs],
            html: Some(folder.path().join("report.html")),
            hgrm: Some(folder.path().join("hdr")),
            suite: Some(folder.path().join("suite.json")),
            advice: true,
            name: "two".into(),
            json: false,
        };
        assert_eq!(args.run().unwrap(), EXIT_OK);
        assert!(fs::read_to_string(folder.path().join("report.html")).unwrap().contains("</html>"));
        for file in ["___base_line-transaction.hgrm", "___base_line.2-dot_to_250.hgrm", "___base_line.hlog", "___base_line.2.hlog"] {
            assert!(folder.path().join("hdr").join(file).exists(), "{file}");
        }
        let suite = Suite::read(&folder.path().join("suite.json")).unwrap();
        assert_eq!((suite.test_suite.as_str(), suite.total_tests, suite.passed_tests, suite.failed_tests), ("two", 2, 2, 0));
        assert_eq!(read_results(&[folder.path().join("suite.json")]).unwrap(), suite.results);
        assert_eq!(read_results(&[folder.path()]).unwrap().len(), 2, "a run by itself and in its suite counts once");
    }

    #[test]
    fn sizes_that_were_drawn_too_small_are_a_note() {
        let mut run = SampleRun { seconds: 1, ..SampleRun::default() }.result();
        assert!(!text(std::slice::from_ref(&run), false).contains("drawn smaller"));
        run.load.sizes_raised = Some(7);
        let begun = run.transactions_begun;
        for text in [text(std::slice::from_ref(&run), false), html::page(&Suite::new("s", vec![run]))] {
            assert_eq!(text.matches(&format!("7 of {begun} messages were drawn smaller than")).count(), 1, "{text}");
        }
    }

    #[test]
    fn files_that_are_no_results_are_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.json");
        for text in ["", "{}", "[1]", r#"{"test_suite": "x"}"#, r#"{"format": 99}"#] {
            fs::write(&path, text).unwrap();
            let failure = read_results(&[&path]).unwrap_err();
            assert!(matches!(&failure, Failure::Data(reason) if reason.contains("x.json")), "{text}: {failure}");
        }
        assert!(matches!(read_results(&[folder.path().join("none.json")]), Err(Failure::Data(_))));
        assert!(matches!(read_results(&[tempfile::tempdir().unwrap().path()]), Err(Failure::Data(_))));
    }

    #[test]
    fn the_names_that_users_of_other_load_tests_know_are_in_the_json() {
        let suite = Suite::new("s", vec![SampleRun { seconds: 3, ..SampleRun::default() }.result()]);
        let json = serde_json::to_value(&suite).unwrap();
        for name in
            ["test_suite", "timestamp", "total_tests", "passed_tests", "failed_tests", "results", "initial_metrics", "final_metrics"]
        {
            assert!(!json[name].is_null(), "{name}");
        }
        for name in [
            "test_name",
            "duration",
            "success",
            "emails_sent",
            "emails_per_second",
            "avg_response_time",
            "median_response_time",
            "p95_response_time",
            "p99_response_time",
            "min_response_time",
            "max_response_time",
            "errors",
            "cpu_usage",
            "memory_usage_mb",
            "timestamp",
        ] {
            assert!(!json["results"][0][name].is_null(), "{name}");
        }
    }
}
