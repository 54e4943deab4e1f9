//! The server while a scenario runs: an engine of one's own, which may be killed and started again, or one that runs elsewhere.

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        mpsc::{Receiver, Sender, channel},
    },
    time::Duration,
};

use crate::{
    cli::{EXIT_IO, Failure},
    engine::{
        self, EngineOptions, Route, STOP_MAX,
        process::{EndedAtStart, EngineProcess},
    },
    leash::Folder,
    process::tree_use,
    scenario::{
        Scenario,
        runner::{Place, Server},
        running_engine::RunningEngine,
    },
};

/// The engine's exit code for a config file that is wrong.
const ENGINE_EXIT_CONFIG: i32 = 78;

/// The server while a scenario runs.
pub(super) struct UnderTest {
    pub(super) address: SocketAddr,
    pub(super) engine: Option<Arc<Mutex<EngineProcess>>>,
    foreign_pid: Option<u32>,
    /// One that runs elsewhere and is ours.
    foreign: Option<RunningEngine>,
    /// CPU of processes that were killed.
    cpu_gone: Arc<Mutex<Duration>>,
    killer: Option<Killer>,
}

/// The thread that kills the engine and starts it again.
struct Killer {
    /// Calls the kill off; dropped when the engine may end.
    cancel: Sender<()>,
    /// How long the new start took.
    done: Receiver<io::Result<Duration>>,
}

impl UnderTest {
    pub(super) fn start(scenario: &Scenario, place: &Place, folder: &Path, hops: Vec<SocketAddr>) -> Result<UnderTest, Failure> {
        let (engine, address, foreign_pid, foreign) = match &place.server {
            Server::Running { to, pid, engine, .. } => (None, *to, *pid, engine.clone()),
            Server::Own { binary, cores } => {
                let mut engine = prepare(scenario, binary, cores, folder, hops)?;
                engine::start(&mut engine).map_err(|error| match wrong_settings(&engine) {
                    Some(words) => refused_settings(scenario, &words),
                    None if is_of_the_system(&error) => Failure::io(&scenario.name, error),
                    None => Failure::Unavailable(format!("{}: {error}", scenario.name)),
                })?;
                let address = engine.address;
                (Some(Arc::new(Mutex::new(engine))), address, None, None)
            }
        };
        Ok(UnderTest { address, engine, foreign_pid, foreign, cpu_gone: Arc::default(), killer: None })
    }

    pub(super) fn pid(&self) -> Option<u32> {
        match &self.engine {
            // While it is killed and started again somebody else holds it, and it has no process to look at.
            Some(engine) => engine.try_lock().ok().and_then(|engine| engine.pid()),
            None => self.foreign_pid,
        }
    }

    pub(super) fn counters(&self) -> BTreeMap<String, f64> {
        match (&self.engine, &self.foreign) {
            (Some(engine), _) => engine::counters(&hold(engine)),
            // One that does not answer any more has none.
            (None, Some(foreign)) => foreign.counters().unwrap_or_default(),
            (None, None) => BTreeMap::new(),
        }
    }

    /// Its counters after a run, where `initial` were those before: of an engine that runs elsewhere none, where they say nothing of the run.
    pub(super) fn counters_since(&self, initial: &BTreeMap<String, f64>) -> BTreeMap<String, f64> {
        let counters = self.counters();
        if self.foreign.is_none() || are_of_one_life(initial, &counters) { counters } else { BTreeMap::new() }
    }

    /// CPU time of all processes it was.
    pub(super) fn cpu(&self) -> Option<Duration> {
        let gone = *self.cpu_gone.lock().unwrap_or_else(PoisonError::into_inner);
        let pid = match &self.engine {
            Some(engine) => hold(engine).pid(),
            None => self.foreign_pid,
        };
        Some(gone + tree_use(pid?).ok()?.cpu)
    }

    /// Kills it after so many seconds and starts it again.
    pub(super) fn kill_later(&mut self, after_s: Option<f64>) {
        let (Some(engine), Some(after_s)) = (&self.engine, after_s) else { return };
        let (engine, cpu_gone) = (engine.clone(), self.cpu_gone.clone());
        let ((cancel, cancelled), (tell, done)) = (channel::<()>(), channel());
        std::thread::spawn(move || {
            if cancelled.recv_timeout(Duration::from_secs_f64(after_s)).is_ok() {
                return;
            }
            let again = || {
                let mut engine = hold(&engine);
                if let Some(used) = engine.pid().and_then(|pid| tree_use(pid).ok()) {
                    *cpu_gone.lock().unwrap_or_else(PoisonError::into_inner) += used.cpu;
                }
                engine.kill()?;
                engine::start(&mut engine)
            };
            let _nobody_waits = tell.send(again());
            // What it started ends with this thread (see `leash`), so it stays until nobody wants the engine any more.
            while cancelled.recv().is_ok() {}
        });
        self.killer = Some(Killer { cancel, done });
    }

    /// Waits for the kill and the new start; how long the start took.
    pub(super) fn killed(&mut self) -> Result<Option<f64>, Failure> {
        let Some(killer) = &self.killer else { return Ok(None) };
        let _called_off = killer.cancel.send(());
        // It ends without a word when it was called off in time.
        let Ok(took) = killer.done.recv() else { return Ok(None) };
        let took = took.map_err(|error| Failure::Unavailable(format!("after SIGKILL: {error}")))?;
        Ok(Some(took.as_secs_f64()))
    }

    /// Ends it in order; what went wrong with that.
    pub(super) fn end(self) -> Option<String> {
        let mut engine = hold(self.engine.as_ref()?);
        if let Some(death) = death(&mut engine) {
            return Some(death);
        }
        let ended = engine.terminate(STOP_MAX);
        match ended {
            Ok(status) if status.success() => None,
            Ok(status) => Some(format!("the engine ended with {status}")),
            Err(error) => Some(error.to_string()),
        }
    }
}

/// Do counters after a run tell with those before what the run changed? Without those before they are of the engine's whole life, and where
/// it has accepted less than before it was started again.
fn are_of_one_life(before: &BTreeMap<String, f64>, after: &BTreeMap<String, f64>) -> bool {
    let accepted = |counters: &BTreeMap<String, f64>| counters.get("accepted").copied().unwrap_or(0.0);
    !before.is_empty() && accepted(before) <= accepted(after)
}

/// Asks the engine whether it takes the settings of a scenario, which is not started; `place` holds what that needs for a moment.
///
/// # Errors
/// [`Failure::Data`]: it does not. [`Failure::Io`]: `place` takes no file.
pub(super) fn check_settings(scenario: &Scenario, binary: &Path, cores: &[usize], place: &Path) -> Result<(), Failure> {
    if scenario.engine.settings.is_empty() {
        return Ok(());
    }
    let folder = Folder::new("ringpost-check-", place).map_err(|error| Failure::io(place.display(), error))?;
    // Nobody listens there, and nobody is asked.
    let hops = scenario.sink.iter().map(|_| SocketAddr::from(([127, 0, 0, 1], 25))).collect();
    let engine = prepare(scenario, binary, cores, folder.path(), hops)?;
    wrong_settings(&engine).map_or(Ok(()), |words| Err(refused_settings(scenario, &words)))
}

/// The engine of a scenario, with its config file in `folder`, not started.
fn prepare(scenario: &Scenario, binary: &Path, cores: &[usize], folder: &Path, hops: Vec<SocketAddr>) -> Result<EngineProcess, Failure> {
    let options = EngineOptions {
        binary: binary.to_path_buf(),
        folder: folder.join("engine"),
        cores: cores.to_vec(),
        route: if hops.is_empty() { Route::Discard } else { Route::Smarthosts { hops, domains: scenario.load.domains } },
        settings: scenario.engine.settings.clone(),
    };
    engine::prepare(&options).map_err(|error| match error.kind() {
        io::ErrorKind::InvalidData => Failure::Data(format!("{}: {error}", scenario.name)),
        _ => Failure::io(&scenario.name, error),
    })
}

fn refused_settings(scenario: &Scenario, words: &str) -> Failure {
    Failure::Data(format!("{}: [engine.settings] {words}", scenario.name))
}

/// How the engine ended, where nobody here asked it to, as one line.
pub(super) fn death(engine: &mut EngineProcess) -> Option<String> {
    let error = engine.must_run().err()?.to_string();
    Some(error.lines().map(str::trim).collect::<Vec<_>>().join("; "))
}

/// Did the disk or the system keep the engine from starting: a log that cannot be had, or what the engine says with its exit code?
fn is_of_the_system(error: &io::Error) -> bool {
    let ended = error.get_ref().and_then(|inner| inner.downcast_ref::<EndedAtStart>());
    ended.map_or(error.raw_os_error().is_some(), |ended| ended.status.code() == Some(i32::from(EXIT_IO)))
}

/// What the engine says of its config file, if that is why it did not start.
fn wrong_settings(engine: &EngineProcess) -> Option<String> {
    let checked = engine.call(&["check"]).ok().filter(|checked| checked.status.code() == Some(ENGINE_EXIT_CONFIG))?;
    Some(String::from_utf8_lossy(&checked.stderr).trim().to_owned())
}

pub(super) fn hold(engine: &Mutex<EngineProcess>) -> MutexGuard<'_, EngineProcess> {
    engine.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_say_something_of_a_run_with_those_before_it_and_where_nobody_started_the_engine_again() {
        let counters = |accepted: f64| BTreeMap::from([("accepted".to_owned(), accepted)]);
        assert!(are_of_one_life(&counters(7.0), &counters(10.0)));
        assert!(are_of_one_life(&counters(0.0), &counters(0.0)));
        assert!(!are_of_one_life(&counters(7.0), &counters(6.0)));
        assert!(!are_of_one_life(&BTreeMap::new(), &counters(10.0)));
    }

    /// What happened: the last lines of a killed engine's log were one with `\n` in it, and behind them stood that there was no such process.
    #[test]
    fn an_engine_that_died_is_told_once_and_on_one_line() {
        let folder = tempfile::tempdir().unwrap();
        let mut engine = EngineProcess::new(Path::new("/bin/sh"), folder.path(), SocketAddr::from(([127, 0, 0, 1], 1))).unwrap();
        let mut command = std::process::Command::new("/bin/sh");
        command.args(["-c", "echo one; echo two; kill -9 $$"]);
        engine.spawn(command).unwrap();
        let told = loop {
            match death(&mut engine) {
                Some(death) => break death,
                None => std::thread::yield_now(),
            }
        };
        assert!(told.contains("signal: 9") && told.ends_with("one; two"), "{told}");
        let engine = Some(Arc::new(Mutex::new(engine)));
        let under_test = UnderTest {
            address: SocketAddr::from(([127, 0, 0, 1], 1)),
            engine,
            foreign_pid: None,
            foreign: None,
            cpu_gone: Arc::default(),
            killer: None,
        };
        assert_eq!(under_test.end(), Some(told));
    }
}
