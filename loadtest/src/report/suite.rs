//! Several results as one file.

use std::{collections::BTreeMap, path::Path};

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::{
    cli::Failure,
    run_result::{RunResult, read_text, write_whole},
};

/// Results of one go through the scenarios.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Suite {
    /// Its name.
    pub test_suite: String,
    /// When the first run began.
    #[serde(with = "time::serde::rfc3339")]
    pub timestamp: OffsetDateTime,
    /// Runs.
    pub total_tests: usize,
    /// Runs whose demands held.
    pub passed_tests: usize,
    /// Runs with a demand that did not hold.
    pub failed_tests: usize,
    /// The runs, in the order in which they ran.
    pub results: Vec<RunResult>,
    /// The server's counters before the first run.
    pub initial_metrics: BTreeMap<String, f64>,
    /// The server's counters after the last run.
    pub final_metrics: BTreeMap<String, f64>,
}

impl Suite {
    /// Puts results together; they are sorted by the time at which they began.
    pub fn new(name: &str, mut results: Vec<RunResult>) -> Self {
        results.sort_by_key(|result| result.timestamp);
        let passed_tests = results.iter().filter(|result| result.success).count();
        Suite {
            test_suite: name.to_owned(),
            timestamp: results.first().map_or(OffsetDateTime::UNIX_EPOCH, |result| result.timestamp),
            total_tests: results.len(),
            passed_tests,
            failed_tests: results.len() - passed_tests,
            initial_metrics: results.first().map(|result| result.initial_metrics.clone()).unwrap_or_default(),
            final_metrics: results.last().map(|result| result.final_metrics.clone()).unwrap_or_default(),
            results,
        }
    }

    /// Reads a suite, or a single result as a suite of one. [`Failure::Io`] when the file cannot be read, [`Failure::Data`] when
    /// it is neither.
    pub fn read(path: &Path) -> Result<Self, Failure> {
        let text = read_text(path)?;
        let data = |reason: String| Failure::Data(format!("{}: {reason}", path.display()));
        /// Tells the two apart without reading all fields.
        #[derive(Deserialize)]
        struct Kind {
            test_suite: Option<String>,
        }
        let kind: Kind = serde_json::from_str(&text).map_err(|reason| data(format!("not a result: {reason}")))?;
        if kind.test_suite.is_some() {
            let suite: Suite = serde_json::from_str(&text).map_err(|reason| data(format!("not a suite: {reason}")))?;
            suite.results.iter().try_for_each(RunResult::check_format).map_err(data)?;
            return Ok(suite);
        }
        let result = RunResult::parse(&text).map_err(data)?;
        Ok(Suite::new(&result.test_name.clone(), vec![result]))
    }

    /// Writes it, whole or not at all.
    pub fn write(&self, path: &Path) -> Result<(), Failure> {
        let mut text = serde_json::to_string_pretty(self).expect("a suite is plain data");
        text.push('\n');
        write_whole(path, text.as_bytes()).map_err(|reason| Failure::io(path.display(), reason))
    }
}

/// Reads all results of the given files and folders; of a folder every `.json` file, in order of name.
pub fn read_results(paths: &[impl AsRef<Path>]) -> Result<Vec<RunResult>, Failure> {
    let mut results = Vec::new();
    for path in paths.iter().map(AsRef::as_ref) {
        if path.is_dir() {
            let listing = std::fs::read_dir(path).map_err(|reason| Failure::io(path.display(), reason))?;
            let mut files: Vec<_> = listing.filter_map(|entry| Some(entry.ok()?.path())).collect();
            files.retain(|file| file.extension().is_some_and(|extension| extension == "json"));
            files.sort();
            if files.is_empty() {
                return Err(Failure::Data(format!("{}: no .json file in this folder", path.display())));
            }
            for file in files {
                results.extend(Suite::read(&file)?.results);
            }
        } else {
            results.extend(Suite::read(path)?.results);
        }
    }
    Ok(results)
}
