//! Several results as one file.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

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
            for (at, result) in suite.results.iter().enumerate() {
                result.check().map_err(|reason| data(format!("results[{at}]: {reason}")))?;
            }
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

/// Folders below a folder that are looked into: repeated runs lie in folders of their own.
const DEPTH_MAX: usize = 3;

/// Reads all results of the given files and folders; of a folder every `.json` file in it and below it, in order of name. A run that is
/// there twice, by itself and in its suite, counts once.
pub fn read_results(paths: &[impl AsRef<Path>]) -> Result<Vec<RunResult>, Failure> {
    let mut results: Vec<RunResult> = Vec::new();
    for path in paths.iter().map(AsRef::as_ref) {
        let mut files = vec![path.to_owned()];
        if path.is_dir() {
            files = json_files(path, DEPTH_MAX)?;
            if files.is_empty() {
                return Err(Failure::Data(format!("{}: no .json file in this folder", path.display())));
            }
        }
        for file in files {
            for result in Suite::read(&file)?.results {
                if !results.iter().any(|known| known.timestamp == result.timestamp && known.test_name == result.test_name) {
                    results.push(result);
                }
            }
        }
    }
    Ok(results)
}

fn json_files(folder: &Path, depth: usize) -> Result<Vec<PathBuf>, Failure> {
    let fail = |reason| Failure::io(folder.display(), reason);
    let mut entries: Vec<PathBuf> =
        fs::read_dir(folder).map_err(fail)?.map(|entry| Ok(entry?.path())).collect::<Result<_, _>>().map_err(fail)?;
    entries.sort();
    let mut files = Vec::new();
    for entry in entries {
        if entry.is_dir() && depth > 0 {
            files.extend(json_files(&entry, depth - 1)?);
        } else if entry.extension().is_some_and(|extension| extension == "json") {
            files.push(entry);
        }
    }
    Ok(files)
}
