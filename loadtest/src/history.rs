//! `ringpost-load history`: the figures of every run that was kept, one JSON object a line, and how they went over time.

pub mod entry;
mod lock;
pub mod trend;

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use clap::{Args, Subcommand, ValueEnum};

use crate::{
    cli::{EXIT_OK, Failure, say},
    permissions,
    report::suite::read_results,
    run_result::{RunResult, read_text, write_whole},
};
use entry::{Entry, Metric};
use lock::lock;

/// Runs that are kept; of more, the oldest go.
pub const ENTRIES_MAX: usize = 1000;

/// `ringpost-load history …`
#[derive(Args, Clone, Debug)]
pub struct HistoryArguments {
    /// The history's file
    #[arg(long, value_name = "FILE", default_value = "loadtest-history.jsonl", global = true)]
    pub file: PathBuf,
    /// What to do
    #[command(subcommand)]
    pub call: HistoryCall,
}

/// The calls.
#[derive(Subcommand, Clone, Debug)]
pub enum HistoryCall {
    /// Keep the figures of results; one that is there already is not added again.
    Add {
        /// Results or suites (JSON), or folders of them
        #[arg(required = true, value_name = "RESULT")]
        results: Vec<PathBuf>,
    },
    /// List what is kept, oldest first.
    List {
        /// Which runs.
        #[command(flatten)]
        filter: Filter,
        /// One JSON object a line
        #[arg(long)]
        json: bool,
    },
    /// Show the trend of a metric: a line of bars for each test, or an HTML page.
    Plot {
        /// Which runs.
        #[command(flatten)]
        filter: Filter,
        /// The metric of the text's bars (the page shows all)
        #[arg(long, value_enum, default_value_t = MetricName::MessagesPerSecond)]
        metric: MetricName,
        /// Write a self-contained HTML page
        #[arg(long, value_name = "FILE")]
        html: Option<PathBuf>,
    },
}

/// Which entries.
#[derive(Args, Clone, Debug, Default)]
pub struct Filter {
    /// Only this test
    #[arg(long, value_name = "NAME")]
    pub test: Option<String>,
    /// Only the newest so many
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,
}

/// Metrics as the command line names them.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum MetricName {
    /// Messages acknowledged per second.
    MessagesPerSecond,
    /// Median of whole transactions.
    P50,
    /// 99th percentile.
    P99,
    /// 99.9th percentile.
    P999,
    /// CPU of the server for each message.
    CpuPerMessage,
    /// Resident memory of the server.
    Memory,
}

impl HistoryArguments {
    /// Adds, lists or plots.
    pub fn run(&self) -> Result<u8, Failure> {
        match &self.call {
            HistoryCall::Add { results } => {
                let (interrupted, whole): (Vec<_>, Vec<_>) = read_results(results)?.into_iter().partition(|run| run.interrupted);
                interrupted.iter().try_for_each(|run| say(&format!("{} of {}: left out, interrupted", run.test_name, run.timestamp)))?;
                let added = add(&self.file, &whole)?;
                say(&added.text(&self.file))?;
            }
            HistoryCall::List { filter, json } => {
                let entries = filter.pick(read(&self.file)?)?;
                let lines = entries.iter().map(|entry| if *json { entry.json_line() } else { entry.to_string() });
                let head = if *json { String::new() } else { Entry::heading() + "\n" };
                say(&(head + &lines.collect::<Vec<_>>().join("\n")))?;
            }
            HistoryCall::Plot { filter, metric, html } => {
                let entries = filter.pick(read(&self.file)?)?;
                match html {
                    None => say(&trend::text(&entries, Metric::of(*metric)))?,
                    Some(path) => {
                        write_whole(path, trend::page(&entries).as_bytes()).map_err(|reason| Failure::io(path.display(), reason))?
                    }
                }
            }
        }
        Ok(EXIT_OK)
    }
}

impl Filter {
    /// What is wanted of these.
    ///
    /// # Errors
    /// A test that none of them is of, with those there are.
    fn pick(&self, entries: Vec<Entry>) -> Result<Vec<Entry>, Failure> {
        let Some(test) = &self.test else { return Ok(self.newest(entries)) };
        let names: BTreeSet<String> = entries.iter().map(|entry| entry.test_name.clone()).collect();
        if !names.contains(test) {
            let names: Vec<String> = names.into_iter().collect();
            return Err(Failure::Missing(format!("no run of {test:?} is kept; there are: {}", names.join(", "))));
        }
        Ok(self.newest(entries.into_iter().filter(|entry| entry.test_name == *test).collect()))
    }

    fn newest(&self, mut entries: Vec<Entry>) -> Vec<Entry> {
        entries.split_off(entries.len().saturating_sub(self.limit.unwrap_or(usize::MAX)))
    }
}

/// Reads a history. [`Failure::Data`] names the line that is none.
pub fn read(file: &Path) -> Result<Vec<Entry>, Failure> {
    let text = read_text(file)?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    lines
        .map(|(number, line)| {
            serde_json::from_str(line).map_err(|reason| Failure::Data(format!("{}:{}: not a run: {reason}", file.display(), number + 1)))
        })
        .collect()
}

/// What became of results and of what was kept before them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Added {
    /// Results that are kept and were not before.
    pub added: usize,
    /// Results that are not, as there are [`ENTRIES_MAX`] that are newer.
    pub too_old: usize,
    /// Runs of before that went for newer ones.
    pub dropped: usize,
    /// Runs that are kept now.
    pub kept: usize,
}

impl Added {
    fn text(self, file: &Path) -> String {
        let mut text = format!("added {}, {} kept in {}", self.added, self.kept, file.display());
        if self.too_old > 0 {
            text.push_str(&format!("; {} not added: the {ENTRIES_MAX} that are kept are newer", self.too_old));
        }
        if self.dropped > 0 {
            text.push_str(&format!("; the {} oldest went", self.dropped));
        }
        text
    }
}

/// Adds results, keeps the newest [`ENTRIES_MAX`]. The file is replaced whole; a lock beside it lets several commands add at once.
///
/// # Errors
/// [`Failure::Data`]: a file that is no history. [`Failure::Unavailable`]: somebody else has the lock and keeps it. [`Failure::Io`]: the disk, or
/// a file that this user may not replace, with the reason.
pub fn add(file: &Path, results: &[RunResult]) -> Result<Added, Failure> {
    // Before the lock, which would lie beside a device.
    if fs::metadata(file).is_ok_and(|known| !known.is_file()) {
        return Err(Failure::Data(format!("{}: it is no regular file, and no history", file.display())));
    }
    // By whichever link it is named, its lock is one.
    let real = fs::canonicalize(file);
    let file = real.as_deref().unwrap_or(file);
    if let Some(reason) = permissions::cannot_replace(file) {
        return Err(Failure::io(file.display(), reason));
    }
    let _lock = lock(file, lock::PATIENCE)?;
    let known = if file.exists() { read(file)? } else { Vec::new() };
    let mut entries: Vec<(Entry, bool)> = known.into_iter().map(|entry| (entry, false)).collect();
    for new in results.iter().map(Entry::new) {
        if !entries.iter().any(|(known, _)| known.timestamp == new.timestamp && known.test_name == new.test_name) {
            entries.push((new, true));
        }
    }
    entries.sort_by_key(|(entry, _)| entry.timestamp);
    let kept = entries.split_off(entries.len().saturating_sub(ENTRIES_MAX));
    let text: String = kept.iter().map(|(entry, _)| entry.json_line() + "\n").collect();
    write_whole(file, text.as_bytes()).map_err(|reason| Failure::io(file.display(), reason))?;
    let new = |entries: &[(Entry, bool)]| entries.iter().filter(|(_, is_new)| *is_new).count();
    let too_old = new(&entries);
    Ok(Added { added: new(&kept), too_old, dropped: entries.len() - too_old, kept: kept.len() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample_run::SampleRun;

    fn run(seed: u64) -> RunResult {
        let mut run = SampleRun { seed, seconds: 1, ..SampleRun::default() }.result();
        run.intervals.clear();
        run
    }

    #[test]
    fn runs_are_kept_once_in_order_of_time() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("history.jsonl");
        let (first, second) = (run(5), run(9));
        assert_eq!(add(&file, &[second.clone(), first.clone()]).unwrap(), Added { added: 2, kept: 2, ..Added::default() });
        assert_eq!(add(&file, std::slice::from_ref(&first)).unwrap(), Added { kept: 2, ..Added::default() });
        let entries = read(&file).unwrap();
        assert_eq!(entries, [Entry::new(&first), Entry::new(&second)]);
        assert_eq!(Filter { test: None, limit: Some(1) }.pick(entries.clone()).unwrap(), [Entry::new(&second)]);
        let missing = Filter { test: Some("other".into()), limit: None }.pick(entries);
        assert!(matches!(missing, Err(Failure::Missing(text)) if text.contains("baseline")));
    }

    #[test]
    fn beyond_a_thousand_the_oldest_go() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("history.jsonl");
        let one = run(1);
        let at = |n| RunResult { timestamp: one.timestamp + time::Duration::seconds(n), ..one.clone() };
        let many: Vec<RunResult> = (0..ENTRIES_MAX as i64 + 7).map(at).collect();
        let full = Added { kept: ENTRIES_MAX, ..Added::default() };
        assert_eq!(add(&file, &many).unwrap(), Added { added: ENTRIES_MAX, too_old: 7, ..full });
        assert_eq!(read(&file).unwrap()[0].timestamp, one.timestamp + time::Duration::seconds(7));
        // What happened: the same again had "added 7", which were too old and went at once.
        let again = add(&file, &many).unwrap();
        assert_eq!(again, Added { too_old: 7, ..full });
        assert!(
            again.text(&file).starts_with("added 0, 1000 kept in ") && again.text(&file).contains("; 7 not added"),
            "{}",
            again.text(&file)
        );
        let newer = add(&file, &[at(2000), at(2001), at(3)]).unwrap();
        assert_eq!(newer, Added { added: 2, too_old: 1, dropped: 2, ..full });
        assert!(newer.text(&file).ends_with("; the 2 oldest went"), "{}", newer.text(&file));
    }

    #[test]
    fn several_that_add_at_once_lose_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("history.jsonl");
        std::thread::scope(|scope| {
            for seed in 1..=8 {
                let file = &file;
                scope.spawn(move || add(file, &[run(seed)]).unwrap());
            }
        });
        assert_eq!(read(&file).unwrap().len(), 8);
    }

    #[test]
    fn a_damaged_line_is_named_and_the_file_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("history.jsonl");
        add(&file, &[run(1)]).unwrap();
        let damaged = fs::read_to_string(&file).unwrap() + "{\"half\": \n";
        fs::write(&file, &damaged).unwrap();
        assert!(matches!(add(&file, &[run(2)]), Err(Failure::Data(reason)) if reason.contains("jsonl:2:")));
        assert_eq!(fs::read_to_string(&file).unwrap(), damaged);
    }
}
