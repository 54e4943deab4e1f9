//! Which destinations are paused: kept in a file, so that a restart begins nothing there either, and told to the shards.
//!
//! ```text
//! spool/paused   {"all":false,"names":["y.test","*.z.test"]}; not there: nothing is paused
//! ```

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use ringpost_cluster::durable_file::{remove, replace};
use ringpost_engine::{
    control::{Answer, Command},
    request_lane::RequestLane,
};
use ringpost_queue::{PAUSES_MAX, Pauses};
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;
use tracing::info;

use crate::{control_server::ask, shard_call::ask_each};

/// Longest name: a destination's is a pattern of the config or a domain.
pub const PAUSED_NAME_BYTES_MAX: usize = 255;

/// What the file says.
#[derive(Serialize, Deserialize, Debug, Default, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
struct Stored {
    all: bool,
    names: Vec<String>,
}

/// What is paused, as the command line tells it.
#[derive(Serialize, Deserialize, Debug, Default, PartialEq, Eq)]
pub struct Paused {
    /// Everything is.
    pub all: bool,
    /// These are, by name.
    pub paused: Vec<String>,
    /// Names that the command paused or resumed; those that a resume of everything took away.
    pub changed: Vec<String>,
    /// Names that were so already.
    pub unchanged: Vec<String>,
    /// Resumed, and paused still by what is named second.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub still: Vec<(String, String)>,
}

/// What a command does.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PauseCall {
    /// Begin no attempts there.
    Pause,
    /// Do so again.
    Resume,
}

/// Pauses and resumes, one command at a time.
pub struct Pauser {
    path: PathBuf,
    in_force: Mutex<Pauses>,
    shards: Arc<Vec<Arc<RequestLane>>>,
}

fn path_of(spool: &Path) -> PathBuf {
    spool.join("paused")
}

/// What an earlier run left paused in this spool. A file that cannot be read is an error: mail would go that was not to.
pub fn read(spool: &Path) -> Result<Pauses, String> {
    let path = path_of(spool);
    let mend = "`ringpost queue pause` wrote it; remove it to begin with nothing paused";
    let text = match fs::read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Pauses::default()),
        other => other.map_err(|reason| format!("{}: cannot read which destinations are paused: {reason}", path.display()))?,
    };
    let Stored { all, names } = serde_json::from_slice(&text)
        .map_err(|reason| format!("{}: does not say which destinations are paused: {reason}; {mend}", path.display()))?;
    let mut pauses = Pauses::default();
    pauses.set_all(all);
    for name in &names {
        pauses.insert(name);
    }
    Ok(pauses)
}

impl Pauser {
    /// `pauses` is what the shards began with, as [`read`] from this spool.
    pub fn new(spool: &Path, pauses: Pauses, shards: Arc<Vec<Arc<RequestLane>>>) -> Pauser {
        Pauser { path: path_of(spool), in_force: Mutex::new(pauses), shards }
    }

    /// What is paused.
    pub async fn paused(&self) -> Paused {
        let in_force = self.in_force.lock().await;
        told(&in_force)
    }

    /// Pauses or resumes destinations by name, or all. When it returns it is durable, and every shard goes by it. Err: nothing was changed,
    /// and why; or a shard has ended.
    pub async fn change(&self, call: PauseCall, names: Vec<String>, all: bool) -> Result<Paused, String> {
        if all != names.is_empty() {
            return Err("either names or --all say which destinations are meant".to_owned());
        }
        let mut in_force = self.in_force.lock().await;
        let mut pauses = in_force.clone();
        let (changed, unchanged) = match call {
            PauseCall::Pause => self.pause(&mut pauses, names, all).await?,
            PauseCall::Resume => resume(&mut pauses, names, all),
        };
        if pauses != *in_force {
            let (path, text) = (self.path.clone(), text_of(&pauses));
            let written = tokio::task::spawn_blocking(move || match text {
                Some(text) => replace(&path, text.as_bytes()),
                None => remove(&path),
            });
            let written = written.await.map_err(|reason| reason.to_string())?;
            written.map_err(|reason| format!("{}: nothing was changed: {reason}", self.path.display()))?;
            *in_force = pauses.clone();
            info!(?call, ?changed, all = pauses.is_all(), paused = pauses.names().len(), "destinations were paused or resumed");
        }
        // Also where nothing changed: a command before may have been cut off here.
        ask_each(&self.shards, &Command::Pause(pauses.clone())).await?;
        let still = match call {
            PauseCall::Resume if !all => self.still_paused(changed.iter().chain(&unchanged)).await?,
            PauseCall::Resume | PauseCall::Pause => Vec::new(),
        };
        Ok(Paused { changed, unchanged, still, ..told(&pauses) })
    }

    /// Of these, what is paused all the same, and by what.
    async fn still_paused<'n>(&self, names: impl Iterator<Item = &'n String>) -> Result<Vec<(String, String)>, String> {
        let names: Vec<String> = names.cloned().collect();
        let Some(shard) = self.shards.first() else { return Ok(Vec::new()) };
        let Answer::PausedBy(by) = ask(shard, Command::WhatPauses(names.clone())).await? else { return Ok(Vec::new()) };
        Ok(names.into_iter().zip(by).filter_map(|(name, by)| Some((name, by?))).collect())
    }

    async fn pause(&self, pauses: &mut Pauses, names: Vec<String>, all: bool) -> Result<(Vec<String>, Vec<String>), String> {
        if all {
            let word = "--all".to_owned();
            return Ok(if pauses.set_all(true) { (vec![word], Vec::new()) } else { (Vec::new(), vec![word]) });
        }
        if let Some(long) = names.iter().find(|name| name.len() > PAUSED_NAME_BYTES_MAX) {
            return Err(format!("a name is at most {PAUSED_NAME_BYTES_MAX} bytes long, and this one is {}", long.len()));
        }
        // Each has the same routes.
        if let Some(shard) = self.shards.first() {
            ask(shard, Command::CanPause(names.clone())).await?;
        }
        let (changed, unchanged) = names.into_iter().partition(|name| pauses.insert(name));
        if pauses.names().len() > PAUSES_MAX {
            return Err(format!("at most {PAUSES_MAX} names can be paused: `*.example.org` stands for all below it, --all for everything"));
        }
        Ok((changed, unchanged))
    }
}

fn resume(pauses: &mut Pauses, names: Vec<String>, all: bool) -> (Vec<String>, Vec<String>) {
    if all {
        let everything = pauses.is_all().then(|| "--all".to_owned());
        let changed = everything.into_iter().chain(pauses.names().map(str::to_owned)).collect();
        *pauses = Pauses::default();
        return (changed, Vec::new());
    }
    names.into_iter().partition(|name| pauses.remove(name))
}

fn told(pauses: &Pauses) -> Paused {
    Paused { all: pauses.is_all(), paused: pauses.names().map(str::to_owned).collect(), ..Paused::default() }
}

/// `None`: no file.
fn text_of(pauses: &Pauses) -> Option<String> {
    let stored = Stored { all: pauses.is_all(), names: pauses.names().map(str::to_owned).collect() };
    (!pauses.is_empty()).then(|| format!("{}\n", serde_json::to_string(&stored).expect("it is plain data")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pauser(spool: &Path) -> Pauser {
        Pauser::new(spool, read(spool).unwrap(), Arc::default())
    }

    async fn change(pauser: &Pauser, call: PauseCall, names: &[&str]) -> Paused {
        pauser.change(call, names.iter().map(|name| (*name).to_owned()).collect(), names.is_empty()).await.unwrap()
    }

    #[tokio::test]
    async fn what_was_paused_is_read_again_and_a_resume_of_everything_leaves_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let first = pauser(folder.path());
        assert_eq!(change(&first, PauseCall::Pause, &["y.test", "*.z.test"]).await.changed, ["y.test", "*.z.test"]);
        assert_eq!(change(&first, PauseCall::Pause, &["Y.test."]).await.unchanged, ["Y.test."]);
        let again = pauser(folder.path());
        assert_eq!(again.paused().await, Paused { paused: vec!["*.z.test".into(), "y.test".into()], ..Paused::default() });
        let resumed = change(&again, PauseCall::Resume, &["a.z.test", "y.test"]).await;
        assert_eq!((resumed.changed, resumed.unchanged), (vec!["y.test".to_owned()], vec!["a.z.test".to_owned()]));
        assert!(change(&again, PauseCall::Pause, &[]).await.all);
        assert!(pauser(folder.path()).paused().await.all);
        assert_eq!(change(&again, PauseCall::Resume, &[]).await.changed, ["--all", "*.z.test"]);
        assert!(!path_of(folder.path()).exists() && pauser(folder.path()).paused().await == Paused::default());
    }

    #[tokio::test]
    async fn what_cannot_be_kept_is_not_done_and_what_cannot_be_read_stops_the_start() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(path_of(folder.path()), "{\"all\":tr").unwrap();
        let refused = read(folder.path()).unwrap_err();
        assert!(refused.contains("/paused: does not say which destinations are paused") && refused.contains("remove it"), "{refused}");
        let gone = Pauser::new(&folder.path().join("gone"), Pauses::default(), Arc::default());
        let refused = gone.change(PauseCall::Pause, vec!["y.test".into()], false).await.unwrap_err();
        assert!(refused.contains("nothing was changed") && gone.paused().await == Paused::default(), "{refused}");
        for (names, all) in [(vec![], false), (vec!["y.test".to_owned()], true), (vec!["x".repeat(256)], false)] {
            assert!(gone.change(PauseCall::Pause, names, all).await.is_err());
        }
        let many = (0..=PAUSES_MAX).map(|number| format!("{number}.test")).collect();
        assert!(gone.change(PauseCall::Pause, many, false).await.unwrap_err().starts_with("at most 1024 names"));
    }
}
