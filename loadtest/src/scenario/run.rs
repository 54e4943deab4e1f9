//! `ringpost-load run`: scenarios by name or file, one or the whole suite.

use std::{
    collections::BTreeSet,
    fs::{File, TryLockError},
    path::{Path, PathBuf},
};

use clap::Args;

use crate::{
    cli::{EXIT_INTERRUPTED, EXIT_NEGATIVE, EXIT_OK, Failure, say},
    engine::find_binary,
    pinning,
    report::{self, html, suite::Suite},
    run_result::{RunResult, check_place, write_whole},
    scenario::{
        BUILT_IN, Scenario,
        greeting::greeting,
        runner::{self, Place, Server, running_cannot},
        running_engine::RunningEngine,
    },
    signals::StopSignal,
    source::arguments::{Cores, MEASURED, check_server_pid, parse_core_list, parse_cores, resolve, viewer},
};

/// Results of earlier calls that are named.
const EARLIER_SHOWN: usize = 10;

/// `ringpost-load run …`
#[derive(Args, Debug, Clone)]
pub struct RunArguments {
    /// Built-in scenarios by name, or files. Paths in a file begin from its folder.
    #[arg(required_unless_present_any = ["suite", "list"], value_name = "SCENARIO")]
    pub scenarios: Vec<String>,
    /// All built-in scenarios, one after the other, into one report.
    #[arg(long, conflicts_with = "scenarios")]
    pub suite: bool,
    /// Print the built-in scenarios and what they show; with a name: its text, to begin a scenario of one's own from.
    #[arg(long, num_args = 0..=1, default_missing_value = "", value_name = "SCENARIO", conflicts_with_all = ["scenarios", "suite"])]
    pub list: Option<String>,
    /// Seconds of each run instead of the scenario's own. Its course is fitted into them: ramps, spikes and the kill keep their share of the
    /// run, steady rates stay. The result has the schedule that ran.
    #[arg(long)]
    pub seconds: Option<f64>,
    /// Content, sizes, recipients, arrivals, aborts and what next hops do follow from it. Default: one is chosen for each run; the result has it,
    /// and those that load, background and next hops have from it. With several sessions it is the replies that decide which of them sends what.
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// A server that runs: HOST:PORT, instead of an engine of one's own.
    #[arg(long, help_heading = "Server")]
    pub to: Option<String>,
    /// With --to: where that server sends what it accepts; the next hop listens there.
    #[arg(long, requires = "to", value_name = "HOST:PORT", help_heading = "Server")]
    pub next_hop: Option<String>,
    /// With --to: its process, when it is on this machine; CPU and memory are those of it and of all processes below it. Of an engine of ours
    /// the result has its version instead of its banner.
    #[arg(long, requires = "to", help_heading = "Server")]
    pub server_pid: Option<u32>,
    /// With --server-pid: its cores, 0,1 or 0-3. Default: those that the threads may use which do nine tenths of its work, and
    /// each that one may not leave.
    #[arg(long, requires = "server_pid", value_parser = parse_core_list, value_name = "CORES", help_heading = "Server")]
    pub server_cores: Option<Cores>,
    /// With --to: the control socket of an engine of ours. Its counters before and after each run are in the result, and the advice rests on
    /// them. Who asks it is its own program, known by --server-pid, or `ringpost` beside this program.
    #[arg(long, requires = "to", value_name = "SOCKET", help_heading = "Server")]
    pub control: Option<PathBuf>,
    /// The engine. Default: `ringpost` beside this program.
    #[arg(long, conflicts_with = "to", value_name = "PATH", help_heading = "Server")]
    pub engine: Option<PathBuf>,
    /// Cores of the engine: 0,1 or 0-3. Default: all but the last of those this process may use.
    #[arg(long, conflicts_with = "to", value_parser = parse_cores, help_heading = "Server")]
    pub engine_cores: Option<Cores>,
    /// Cores of generator and next hop. Default: the last of those this process may use.
    #[arg(long, value_parser = parse_cores, help_heading = "Server")]
    pub cores: Option<Cores>,
    /// A folder on the disk that is to be measured.
    #[arg(long, default_value = "/var/tmp", help_heading = "Server")]
    pub folder: PathBuf,
    /// Keep spool, logs and ledgers.
    #[arg(long, help_heading = "Server")]
    pub keep: bool,
    /// Write each result as DIR/NAME.json, and suite.json and report.html beside them, in place of files that have these names. One call at
    /// a time.
    #[arg(long, value_name = "DIR", help_heading = "Results")]
    pub output: Option<PathBuf>,
    /// No live lines.
    #[arg(long, help_heading = "Results")]
    pub quiet: bool,
    /// Live lines also where standard error is no terminal.
    #[arg(long, conflicts_with = "quiet", help_heading = "Results")]
    pub live: bool,
    /// A full-screen view: latencies by phase, rates, errors, CPU. Arrows choose the phase of the histogram, h shows it on a narrow terminal, q ends the runs.
    #[arg(long, conflicts_with_all = ["quiet", "live"], help_heading = "Results")]
    pub tui: bool,
}

impl RunArguments {
    /// Runs what was asked. The exit code: 0 all that the scenarios demand held, 1 something did not, 130 it was interrupted.
    ///
    /// # Errors
    /// A scenario that cannot be read, a server that cannot be reached or started, a disk that fails.
    pub fn run(&self) -> Result<u8, Failure> {
        if let Some(name) = &self.list {
            return list(name);
        }
        let names: Vec<&str> = match self.suite {
            true => BUILT_IN.iter().map(|&(name, _)| name).collect(),
            false => self.scenarios.iter().map(String::as_str).collect(),
        };
        let scenarios: Vec<Scenario> = names.into_iter().map(Scenario::find).collect::<Result<_, _>>().map_err(Failure::Data)?;
        if let Some(seconds) = self.seconds.filter(|seconds| !(0.1..=86_400.0).contains(seconds)) {
            return Err(Failure::Usage(format!("--seconds {seconds}: a run lasts from 0.1 s to a day (86400)")));
        }
        let mut names = BTreeSet::new();
        if let Some(twice) = scenarios.iter().find(|scenario| !names.insert(&scenario.name)) {
            return Err(Failure::Usage(format!("{}: twice in one call, where the second result would replace the first", twice.name)));
        }
        // clap asks for nothing that something else excludes, such as --to beside --engine.
        let lonely = [
            ("--next-hop", self.next_hop.is_some()),
            ("--server-pid", self.server_pid.is_some()),
            ("--server-cores", self.server_cores.is_some()),
            ("--control", self.control.is_some()),
        ];
        if let (None, Some((name, _))) = (&self.to, lonely.into_iter().find(|&(_, given)| given)) {
            return Err(Failure::Usage(format!("{name} is of a server that runs: say --to HOST:PORT, too")));
        }
        if !self.folder.is_dir() {
            return Err(Failure::Io(format!("--folder {}: there is no such folder", self.folder.display())));
        }
        let place = self.place(&scenarios)?;
        // Before the first folder: one that nobody listens for ends this process, and leaves it.
        let stop = StopSignal::listen().map_err(|error| Failure::io("signals", error))?;
        place.check(&scenarios)?;
        let _mine = match &self.output {
            Some(folder) => {
                std::fs::create_dir_all(folder).map_err(|error| Failure::io(folder.display(), error))?;
                check_place(&folder.join("suite.json"))?;
                claim(folder)?
            }
            None => None,
        };
        pinning::raise_open_files();
        let mut results = Vec::new();
        let mut not_run = Vec::new();
        let mut impossible = None;
        for scenario in scenarios {
            if stop.is_asked() || impossible.is_some() {
                not_run.push(scenario.name);
                continue;
            }
            if let Some(reason) = place.cannot_run(&scenario) {
                say(&format!("{}: left out, as {reason}", scenario.name))?;
                continue;
            }
            let begun = results.len();
            if let Err(failure) = self.run_one(&scenario, &place, &stop, &mut results) {
                if results.is_empty() {
                    return Err(failure);
                }
                // What ran before it keeps its report.
                impossible = Some(failure);
                if results.len() == begun {
                    not_run.push(scenario.name);
                }
            }
        }
        let mut text = report::text(&results, false);
        if !not_run.is_empty() {
            let why = if stop.is_asked() { "interrupted; " } else { "" };
            text.push_str(&format!("{why}not run: {}\n", not_run.join(", ")));
        }
        // Files first: a standard output that is gone takes no report with it.
        let written = self.write(results);
        if let Ok((_, words)) = &written {
            text.push_str(words);
        }
        let said = say(&text);
        match impossible {
            Some(failure) => Err(failure),
            None => {
                let (code, _) = written?;
                said?;
                Ok(if stop.is_asked() { EXIT_INTERRUPTED } else { code })
            }
        }
    }

    /// Runs a scenario, adds its result, and leaves that in the folder of `--output`.
    fn run_one(&self, scenario: &Scenario, place: &Place, stop: &StopSignal, results: &mut Vec<RunResult>) -> Result<(), Failure> {
        say(&format!("{}: {}", scenario.name, scenario.about))?;
        let mut viewer = viewer(&scenario.name, self.tui, self.live, self.quiet)?;
        let result = runner::run(scenario, place, stop, &mut *viewer)?;
        if !viewer.goes_on() {
            stop.ask();
        }
        drop(viewer);
        let path = self.output.as_ref().map(|folder| folder.join(format!("{}.json", result.test_name)));
        let written = path.map_or(Ok(()), |path| result.write(&path));
        results.push(result);
        written
    }

    fn place(&self, scenarios: &[Scenario]) -> Result<Place, Failure> {
        let allowed = pinning::cores().map_err(|error| Failure::io("the cores of this machine", error))?;
        let last = *allowed.last().ok_or_else(|| Failure::Io("no core is allowed to this process".into()))?;
        let cores = self.cores.clone().unwrap_or(Cores(vec![last]));
        let server = match &self.to {
            Some(to) => {
                let next_hop = self.next_hop.as_deref().map(resolve).transpose()?;
                let reasons = scenarios.iter().filter_map(|one| Some(format!("{}: {}", one.name, running_cannot(one, next_hop)?)));
                if let Some(reason) = { reasons }.next().filter(|_| !self.suite) {
                    return Err(Failure::Usage(reason));
                }
                check_server_pid(self.server_pid, MEASURED)?;
                let to = resolve(to)?;
                if next_hop == Some(to) {
                    return Err(Failure::Usage(format!("--next-hop {to} is the server itself: the next hop is where it sends mail to")));
                }
                let cores = self.server_cores.as_ref().map(|cores| cores.0.len() as u32);
                let engine = self.running_engine()?;
                Server::Running { to, next_hop, pid: self.server_pid, cores, banner: greeting(to)?, engine }
            }
            None => Server::Own {
                binary: find_binary(self.engine.as_deref()).map_err(|reason| match &self.engine {
                    Some(_) => Failure::Usage(format!("--engine: {reason}")),
                    None => Failure::Unavailable(reason),
                })?,
                cores: match &self.engine_cores {
                    Some(cores) => cores.0.clone(),
                    None => engine_cores(&allowed, &cores.0),
                },
            },
        };
        Ok(Place { server, cores, folder: self.folder.clone(), keep: self.keep, seconds: self.seconds, seed: self.seed })
    }

    /// What is known of the server where it is an engine of ours. With a control socket it has to answer.
    fn running_engine(&self) -> Result<Option<RunningEngine>, Failure> {
        let engine = RunningEngine::find(self.server_pid, self.control.as_deref());
        let engine = engine.map_err(|reason| Failure::Unavailable(format!("--control: {reason}")))?;
        if let (Some(engine), Some(socket)) = (&engine, &self.control) {
            engine.counters().map_err(|error| Failure::Unavailable(format!("--control {}: {error}", socket.display())))?;
        }
        Ok(engine)
    }

    /// Writes all results as one file and one page; the exit code, and what is to be said of it.
    fn write(&self, results: Vec<RunResult>) -> Result<(u8, String), Failure> {
        let suite = Suite::new(if self.suite { "Ringpost load test" } else { "Ringpost scenarios" }, results);
        let code = if suite.failed_tests == 0 { EXIT_OK } else { EXIT_NEGATIVE };
        let Some(folder) = &self.output else { return Ok((code, String::new())) };
        let earlier = earlier_text(folder, &suite.results.iter().map(|result| format!("{}.json", result.test_name)).collect());
        suite.write(&folder.join("suite.json"))?;
        let page = folder.join("report.html");
        write_whole(&page, html::page(&suite).as_bytes()).map_err(|error| Failure::io(page.display(), error))?;
        Ok((code, format!("{} of {} held; {}\n{earlier}", suite.passed_tests, suite.total_tests, page.display())))
    }
}

/// Keeps other calls out of the folder of results until what this returns is dropped: of two at once each would replace files of the other, so
/// that those there would be of neither. None: the file system knows no locks.
fn claim(folder: &Path) -> Result<Option<File>, Failure> {
    let held = File::open(folder).map_err(|error| Failure::io(folder.display(), error))?;
    match held.try_lock() {
        Ok(()) => Ok(Some(held)),
        Err(TryLockError::WouldBlock) => Err(Failure::Usage(format!(
            "--output {}: another call of run writes its results there: name another folder, or wait for its end",
            folder.display()
        ))),
        Err(TryLockError::Error(_)) => Ok(None),
    }
}

/// What is said of results that stood in the folder before, where there are some: `written` are the files of this call, and `suite.json` has
/// nothing of the others.
fn earlier_text(folder: &Path, written: &BTreeSet<String>) -> String {
    let names = std::fs::read_dir(folder).into_iter().flatten().filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let others: BTreeSet<String> =
        names.filter(|name| name.ends_with(".json") && name != "suite.json" && !written.contains(name)).collect();
    if others.is_empty() {
        return String::new();
    }
    let mut shown: Vec<&str> = others.iter().take(EARLIER_SHOWN).map(String::as_str).collect();
    let more = format!("{} more", others.len().saturating_sub(EARLIER_SHOWN));
    if others.len() > EARLIER_SHOWN {
        shown.push(&more);
    }
    format!("of earlier calls there, and neither in suite.json nor in report.html: {}\n", shown.join(", "))
}

/// All cores but the generator's, or where none is left, the generator's too.
fn engine_cores(allowed: &[usize], generator: &[usize]) -> Vec<usize> {
    let others: Vec<usize> = allowed.iter().copied().filter(|core| !generator.contains(core)).collect();
    if others.is_empty() { allowed[..1].to_vec() } else { others }
}

fn list(name: &str) -> Result<u8, Failure> {
    if name.is_empty() {
        for (name, _) in BUILT_IN {
            let scenario = Scenario::find(name).map_err(Failure::Data)?;
            say(&format!("{name:<20} {:>4} s  {}", scenario.seconds, scenario.about))?;
        }
        return Ok(EXIT_OK);
    }
    let text = BUILT_IN.iter().find(|(built_in, _)| *built_in == name).map(|&(_, text)| text);
    let known = || BUILT_IN.iter().map(|&(name, _)| name).collect::<Vec<_>>().join(", ");
    say(text.ok_or_else(|| Failure::Data(format!("{name} is no built-in scenario; there are {}", known())))?.trim_end())?;
    Ok(EXIT_OK)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_engine_gets_what_the_generator_leaves() {
        assert_eq!(engine_cores(&[0, 1, 2], &[2]), [0, 1]);
        assert_eq!(engine_cores(&[3], &[3]), [3]);
    }

    /// What happened: results of an earlier call stood beside those of the last one as if they were of it.
    #[test]
    fn what_earlier_calls_left_in_the_folder_is_told_from_what_this_one_wrote() {
        let folder = tempfile::tempdir().unwrap();
        let written = BTreeSet::from(["relay.json".to_owned()]);
        ["suite.json", "report.html", "relay.json"].iter().for_each(|name| std::fs::write(folder.path().join(name), "").unwrap());
        assert_eq!(earlier_text(folder.path(), &written), "");
        (0..12).for_each(|number| std::fs::write(folder.path().join(format!("{number:02}.json")), "").unwrap());
        let text = earlier_text(folder.path(), &written);
        assert!(text.contains(": 00.json, ") && text.ends_with("09.json, 2 more\n"), "{text}");
    }

    #[test]
    fn a_folder_of_results_is_one_calls_until_it_ends() {
        let folder = tempfile::tempdir().unwrap();
        let mine = claim(folder.path()).unwrap();
        assert!(mine.is_some() && matches!(claim(folder.path()), Err(Failure::Usage(told)) if told.contains("another call")));
        drop(mine);
        assert!(claim(folder.path()).unwrap().is_some());
    }
}
