//! Taking over other settings without a restart: read, checked whole, then swapped by each shard between two commands.
//!
//! They come from two places: the node's own file, which is read again when somebody asks, and the config that was pushed to all nodes,
//! whose sections lie over those of the file. Each keeps what the other said.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use ringpost_cluster::config_watch::NotApplied;
use ringpost_config::{Config, ConfigError, Difference};
use ringpost_engine::{
    control::{Answer, Command},
    request_lane::RequestLane,
};
use serde::{Deserialize, Serialize};
use tokio::{sync::MutexGuard as Turn, task::JoinError, time::timeout};
use tracing::{error, info, warn};

use crate::shard_call::{ShardGone, answer_of, ask_all};

/// Queued mail has followed its routes within this, or goes on following while the caller is answered: a shard that loads the mail of
/// earlier runs does that first.
const FOLLOW_MAX: Duration = Duration::from_secs(100);

/// What is taken over where it goes with settings that count from the next start ([`Config::may_take_content_max`]).
const CONTENT_MAX: &str = "smtp.content_max";

/// What a reload did.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Reloaded {
    /// Keys that were taken over.
    pub reloaded: Vec<String>,
    /// Keys that changed since the start and count from the next one, whichever reload read them first.
    pub restart: Vec<String>,
    /// Queued messages that lead elsewhere now.
    pub moved: u64,
    /// Queued messages that a route holds now, and none did before.
    #[serde(default)]
    pub held: u64,
    /// Not all of them have been looked at yet.
    #[serde(default)]
    pub is_moving: bool,
}

/// What is in force, as far as it can be without a restart.
struct InForce {
    /// The text of the node's own file, as it was read last.
    own: String,
    /// What was pushed to all nodes; empty: nothing.
    pushed: String,
    config: Arc<Config>,
}

/// Takes other settings over, whenever asked.
pub struct Reloader {
    path: PathBuf,
    /// The text of the node's own file at the start: what of it needs a restart is what the process runs with.
    started: String,
    in_force: Mutex<InForce>,
    /// One change at a time.
    turn: tokio::sync::Mutex<()>,
    shards: Arc<Vec<Arc<RequestLane>>>,
    when_reloaded: Mutex<Option<Box<dyn Fn() + Send>>>,
}

/// A whole config, with the text by which it is compared.
struct Whole {
    config: Config,
    text: String,
}

impl Whole {
    fn new(own: &str, path: &Path, pushed: &str) -> Result<Whole, String> {
        if pushed.is_empty() {
            let config = Config::parse(own, path).map_err(|errors| errors.to_string())?;
            return Ok(Whole { config, text: own.to_owned() });
        }
        let (config, text) = Config::overlay_text(own, path, pushed)?;
        Ok(Whole { config, text })
    }
}

impl Reloader {
    /// `config` is what is in force, `own` the text of the node's own file that it was read from (empty: there is none), `pushed` what of it
    /// was pushed to all nodes (empty: nothing). The file may have been edited since.
    pub fn new(config: Arc<Config>, own: String, pushed: String, shards: Arc<Vec<Arc<RequestLane>>>) -> Self {
        let path = config.path().to_owned();
        let started = own.clone();
        let in_force = Mutex::new(InForce { own, pushed, config });
        Reloader { path, started, in_force, turn: tokio::sync::Mutex::new(()), shards, when_reloaded: Mutex::default() }
    }

    /// Called after each reload of the file: what was pushed and did not go with it may go with it now.
    pub fn when_reloaded(&self, call: impl Fn() + Send + 'static) {
        *self.when_reloaded.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(call));
    }

    /// The text that was pushed to all nodes, as it is in force here; empty: none is.
    pub fn pushed(&self) -> String {
        self.in_force().pushed.clone()
    }

    fn in_force(&self) -> MutexGuard<'_, InForce> {
        self.in_force.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the file's settings over, or says why nothing was changed. What was pushed stays over them.
    pub async fn reload(&self) -> Result<Reloaded, String> {
        let result = self.reload_file(self.turn.lock().await).await;
        match &result {
            Ok(Reloaded { reloaded, restart, moved, held, is_moving }) => {
                info!(?reloaded, moved, held, is_moving, "the config file was read again");
                if !restart.is_empty() {
                    warn!(?restart, "these settings changed and count from the next start");
                }
                if let Some(call) = &*self.when_reloaded.lock().unwrap_or_else(PoisonError::into_inner) {
                    call();
                }
            }
            Err(reason) => error!(reason, "the config file was read again and refused: the settings are as they were"),
        }
        result
    }

    /// The turn ends once the file is in force: whoever comes next need not wait until queued mail has followed.
    async fn reload_file(&self, turn: Turn<'_, ()>) -> Result<Reloaded, String> {
        if self.path.as_os_str().is_empty() {
            return Err("there is no config file: the engine runs with the defaults".to_owned());
        }
        let bytes =
            std::fs::read(&self.path).map_err(|reason| format!("{}: cannot read the config file: {reason}", self.path.display()))?;
        let own = Config::text(bytes, &self.path).map_err(|error| error.to_string())?;
        let (pushed, old, running) = {
            let in_force = self.in_force();
            (in_force.pushed.clone(), in_force.own.clone(), in_force.config.clone())
        };
        // Alone first: its errors have their lines.
        Config::parse(&own, &self.path).map_err(|errors| errors.to_string())?;
        let new = Whole::new(&own, &self.path, &pushed)
            .map_err(|reason| format!("it does not go with the config that was pushed to all nodes: {reason}"))?;
        running.may_become(&new.config).map_err(|error| error.to_string())?;
        // The earlier texts were read without an error, or there was no file then.
        let changes_since = |earlier: &str| {
            let whole = Whole::new(earlier, &self.path, &pushed).map(|whole| whole.text).unwrap_or_default();
            Difference::between(&whole, &new.text)
        };
        let (Difference { mut reloaded, .. }, Difference { mut restart, .. }) = (changes_since(&old), changes_since(&self.started));
        let config = Arc::new(running.taking_over(&new.config));
        if config.smtp.content_max != new.config.smtp.content_max {
            reloaded.retain(|key| key != CONTENT_MAX);
            if !restart.iter().any(|key| key == CONTENT_MAX) {
                restart.push(CONTENT_MAX.to_owned());
            }
        }
        self.swap(&config, &running).await.map_err(NotApplied::into_reason)?;
        self.warn_of(&config, &running);
        {
            let mut in_force = self.in_force();
            (in_force.own, in_force.config) = (own, config);
        }
        drop(turn);
        let followed = timeout(FOLLOW_MAX, self.follow_routes()).await;
        let is_moving = followed.is_err();
        let (moved, held) = followed.unwrap_or_default();
        Ok(Reloaded { reloaded, restart, moved, held, is_moving })
    }

    /// Whether [`Reloader::push`] would take it and it is for all nodes, or why not: what `ringpost check` would warn of.
    pub fn check(&self, pushed: &str) -> Result<Vec<String>, String> {
        Config::shareable(pushed)?;
        let (own, old) = {
            let in_force = self.in_force();
            (in_force.own.clone(), in_force.pushed.clone())
        };
        let config = self.pushed_over(&own, &old, pushed)?;
        let advice = config.advice();
        Ok(self.cautions(&config).into_iter().chain(advice.iter().map(ConfigError::without_place)).collect())
    }

    fn cautions(&self, config: &Config) -> Vec<String> {
        config.cautions(u32::try_from(self.shards.len()).unwrap_or(u32::MAX))
    }

    /// What a start with this config would have warned of, and what was before would not.
    fn warn_of(&self, config: &Config, before: &Config) {
        let known = self.cautions(before);
        self.cautions(config).iter().filter(|caution| !known.contains(caution)).for_each(|caution| warn!("{caution}"));
    }

    /// The whole config with `pushed` in the place of `old`, or why a running engine cannot take it over.
    fn pushed_over(&self, own: &str, old: &str, pushed: &str) -> Result<Config, String> {
        let new = Whole::new(own, &self.path, pushed)?;
        let old = Whole::new(own, &self.path, old)?;
        if old.config.taking_over(&new.config) != new.config {
            let restart = Difference::between(&old.text, &new.text).restart;
            return Err(format!("{} cannot change while the engine runs: set it in each node's own file and restart", restart.join(", ")));
        }
        Ok(new.config)
    }

    /// Runs with this pushed config from now on, or says why nothing was changed: all of it or nothing.
    pub async fn push(&self, pushed: String) -> Result<(), NotApplied> {
        let _turn = self.turn.lock().await;
        let (own, old, running) = {
            let in_force = self.in_force();
            (in_force.own.clone(), in_force.pushed.clone(), in_force.config.clone())
        };
        let new = self.pushed_over(&own, &old, &pushed).map_err(NotApplied::Unfit)?;
        let config = Arc::new(running.taking_over(&new));
        self.swap(&config, &running).await?;
        self.warn_of(&config, &running);
        if config.smtp.content_max != new.smtp.content_max {
            warn!(restart = ?[CONTENT_MAX], "these settings changed and count from the next start");
        }
        {
            let mut in_force = self.in_force();
            (in_force.pushed, in_force.config) = (pushed, config);
        }
        drop(self.follow_routes());
        Ok(())
    }

    /// All shards at once, which takes each a moment, so what this says is what is in force. Where one refuses, those that had taken the
    /// new settings get back the `running` ones; no mail has moved yet, and what came meanwhile follows.
    async fn swap(&self, config: &Arc<Config>, running: &Arc<Config>) -> Result<(), NotApplied> {
        let (mut taken, mut refused) = (Vec::new(), None);
        for (shard, asked) in self.shards.iter().zip(ask_all(&self.shards, &Command::Reload(config.clone()))) {
            match failure_of(asked.await) {
                Some(why) => refused = Some(graver(refused, why)),
                None => taken.push(shard.clone()),
            }
        }
        if let Some(why) = &refused
            && taken.is_empty()
        {
            // Nothing was changed anywhere, and what an earlier change waits for it goes on to wait for.
            return Err(why.clone());
        }
        if refused.is_some() {
            for asked in ask_all(&taken, &Command::Reload(running.clone())) {
                if let Some(reason) = failure_of(asked.await).map(NotApplied::into_reason) {
                    error!(reason, "a shard could not go back to the settings before: it runs with others than the rest");
                }
            }
            // What came to their new routes meanwhile is to leave them.
            drop(self.follow_routes());
        }
        // Also when one of them refused: others had it.
        tokio::spawn(settle_limits(self.shards.clone()));
        refused.map_or(Ok(()), Err)
    }

    /// Sends queued mail where the routes in force say. It is done whether or not what comes back is waited for: how many messages lead
    /// elsewhere, and how many are held that were not.
    fn follow_routes(&self) -> impl Future<Output = (u64, u64)> + use<> {
        let asked = ask_all(&self.shards, &Command::FollowRoutes);
        async move {
            let mut all = (0, 0);
            for answer in asked {
                match answer.await {
                    Ok(Ok(Answer::Followed { moved, held })) => all = (all.0 + moved, all.1 + held),
                    other => {
                        if let Some(reason) = failure_of(other).map(NotApplied::into_reason) {
                            warn!(reason, "queued mail does not follow the new routes");
                        }
                    }
                }
            }
            all
        }
    }
}

/// Why a shard did not do what it was asked for, if so.
fn failure_of(answer: Result<Result<Answer, ShardGone>, JoinError>) -> Option<NotApplied> {
    match answer {
        Ok(Ok(Answer::Failed(reason))) => Some(NotApplied::Unfit(reason)),
        Ok(Ok(Answer::NotNow(reason))) => Some(NotApplied::NotNow(reason)),
        Ok(Ok(_)) => None,
        Ok(Err(gone)) => Some(NotApplied::Unfit(gone.to_string())),
        Err(reason) => Some(NotApplied::Unfit(reason.to_string())),
    }
}

/// What one shard does not take however long it is waited for is waited for at no other.
fn graver(earlier: Option<NotApplied>, why: NotApplied) -> NotApplied {
    match earlier {
        Some(unfit @ NotApplied::Unfit(_)) => unfit,
        _ => why,
    }
}

/// After a reload: lets the shards grow into their parts of new limits once all have come down to them, so that a destination never sees
/// more connections than the old limit or the new one. That can take as long as a message under way.
async fn settle_limits(shards: Arc<Vec<Arc<RequestLane>>>) {
    let mut changes = Vec::new();
    for shard in &*shards {
        let Ok(Answer::LimitsKept(change)) = answer_of(shard, &Command::AwaitLimits).await else { return };
        changes.push(change);
    }
    for (shard, change) in shards.iter().zip(changes) {
        let _ = answer_of(shard, &Command::SettleLimits(change)).await;
    }
}

#[cfg(test)]
mod tests {
    use ringpost_engine::{
        control::Request,
        request_lane::{RequestReceiver, request_lane},
    };

    use super::*;

    const BEFORE: &str = "[[route]]\ndomain = \"*\"\nvia = \"hold\"\n";
    const AFTER: &str = "[[route]]\ndomain = \"*\"\nvia = \"discard\"\n";
    const PUSHED: &str = "[relay]\nnetworks = [\"192.0.2.0/24\"]\n";

    /// A node's reloader, whose file has changed since the start, and the shards' ends of its lanes.
    fn node(shards: usize) -> (tempfile::TempDir, Arc<Reloader>, Vec<RequestReceiver>) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ringpost.toml");
        std::fs::write(&path, BEFORE).unwrap();
        let config = Arc::new(Config::parse(BEFORE, &path).unwrap());
        let (lanes, receivers): (Vec<_>, Vec<_>) = (0..shards).map(|_| request_lane()).map(|(lane, end)| (Arc::new(lane), end)).unzip();
        let reloader = Arc::new(Reloader::new(config, BEFORE.to_owned(), String::new(), Arc::new(lanes)));
        std::fs::write(&path, AFTER).unwrap();
        (folder, reloader, receivers)
    }

    async fn asked(shard: &mut RequestReceiver) -> Request {
        for _ in 0..10_000 {
            match shard.take() {
                // Of no concern here: it comes after each change, at any time.
                Some(Request { command: Command::AwaitLimits, .. }) => {}
                Some(request) => return request,
                None => tokio::task::yield_now().await,
            }
        }
        panic!("the shard is asked nothing");
    }

    async fn asked_to_reload(shard: &mut RequestReceiver) -> (Arc<Config>, Box<dyn FnOnce(Answer) + Send>) {
        let Request { command: Command::Reload(config), answer } = asked(shard).await else { panic!("something else") };
        (config, answer)
    }

    /// A shard that loaded a large spool answered late: by then it was said that nothing had changed, though every shard ran with the new
    /// file, and the next push took the routes of the old one back into force.
    #[tokio::test]
    async fn what_is_pushed_lies_over_what_the_shards_run_while_mail_still_follows() {
        let (_folder, reloader, mut shards) = node(1);
        let reload = tokio::spawn({
            let reloader = reloader.clone();
            async move { reloader.reload().await }
        });
        asked_to_reload(&mut shards[0]).await.1(Answer::Done);
        let following = asked(&mut shards[0]).await;
        assert!(matches!(following.command, Command::FollowRoutes));
        // The caller's patience ends here.
        reload.abort();
        assert!(reload.await.is_err());
        let push = tokio::spawn({
            let reloader = reloader.clone();
            async move { reloader.push(PUSHED.to_owned()).await }
        });
        let (config, answer) = asked_to_reload(&mut shards[0]).await;
        assert_eq!(config.routes, Config::parse(AFTER, Path::new("")).unwrap().routes, "those of the file that was read again");
        answer(Answer::Done);
        assert_eq!(push.await.unwrap(), Ok(()));
        (following.answer)(Answer::Followed { moved: 1, held: 0 });
    }

    /// Pushes of `[log]` and the like were published, and each node refused them: the operator was told that all was well.
    #[test]
    fn what_no_running_node_takes_is_refused_before_it_is_published() {
        let (_folder, reloader, _shards) = node(1);
        let cases = [
            ("[log]\nlevel = \"debug\"\n[memory]\nmax_memory = \"900 MiB\"\n", "log.level, memory.max_memory"),
            ("[smtp]\nsessions_max = 50\nrecipients_max = 101\n", "smtp.sessions_max"),
        ];
        for (pushed, keys) in cases {
            let refused = reloader.check(pushed).unwrap_err();
            assert!(
                refused.starts_with(&format!("{keys} cannot change while the engine runs: set it in each node's own file")),
                "{refused}"
            );
        }
        // What a node says itself it takes, and others say something else.
        assert!(reloader.check("[delivery]\nmode = \"local\"\n").unwrap_err().starts_with("delivery.mode belongs to one node"));
        reloader.check(PUSHED).unwrap();
        reloader.check("[log]\nlevel = \"info\"\n").unwrap();
    }

    /// EHLO announced a size that nothing on the node could hold, and each message above the old one was read whole and put off.
    #[tokio::test]
    async fn a_size_that_does_not_go_with_what_needs_a_restart_waits_for_it() {
        let sized = |size: &str| format!("[spool]\nopen_max = \"{size}\"\n[smtp]\ncontent_max = \"{size}\"\n{BEFORE}");
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ringpost.toml");
        let before = sized("1 MiB");
        std::fs::write(&path, sized("2 MiB")).unwrap();
        let (lane, mut shard) = request_lane();
        let config = Arc::new(Config::parse(&before, &path).unwrap());
        let reloader = Arc::new(Reloader::new(config.clone(), before, String::new(), Arc::new(vec![Arc::new(lane)])));
        let reload = tokio::spawn({
            let reloader = reloader.clone();
            async move { reloader.reload().await }
        });
        let (taken, answer) = asked_to_reload(&mut shard).await;
        assert_eq!((taken.smtp.content_max, taken.spool.open_max), (config.smtp.content_max, config.spool.open_max));
        answer(Answer::Done);
        let following = asked(&mut shard).await;
        (following.answer)(Answer::Followed { moved: 0, held: 0 });
        let done = reload.await.unwrap().unwrap();
        assert_eq!(done.reloaded, Vec::<String>::new());
        assert_eq!(done.restart, ["spool.open_max", CONTENT_MAX]);
    }

    /// A call that came while a shard still loaded a large spool was told that the engine hangs.
    #[tokio::test]
    async fn the_next_reload_does_not_wait_until_mail_has_followed() {
        let (_folder, reloader, mut shards) = node(1);
        for _ in 0..2 {
            let reloader = reloader.clone();
            tokio::spawn(async move { reloader.reload().await });
            asked_to_reload(&mut shards[0]).await.1(Answer::Done);
            // It has begun, and goes on while the next one comes.
            assert!(matches!(asked(&mut shards[0]).await.command, Command::FollowRoutes));
        }
    }

    /// It was taken for a version that does not go with the node, which is not tried again.
    #[tokio::test]
    async fn what_shards_cannot_take_now_is_told_from_what_they_never_take() {
        let (not_now, never) = (|| Answer::NotNow("not now".to_owned()), || Answer::Failed("never".to_owned()));
        let told = async |answers: [Answer; 2]| {
            let (_folder, reloader, mut shards) = node(2);
            let push = tokio::spawn(async move { reloader.push(PUSHED.to_owned()).await });
            for (shard, answer) in shards.iter_mut().zip(answers) {
                asked_to_reload(shard).await.1(answer);
            }
            (push.await.unwrap().unwrap_err(), shards)
        };
        for answers in [[not_now(), never()], [never(), not_now()]] {
            assert_eq!(told(answers).await.0, NotApplied::Unfit("never".to_owned()));
        }
        let (why, mut shards) = told([not_now(), not_now()]).await;
        assert_eq!(why, NotApplied::NotNow("not now".to_owned()));
        // Where it is tried again and again each try left a call behind that waits for connections to end.
        assert!(shards.iter_mut().all(|shard| shard.take().is_none()), "nothing was changed, and nothing is to be settled");
    }

    #[tokio::test]
    async fn what_one_shard_refuses_none_keeps() {
        let (_folder, reloader, mut shards) = node(2);
        let reload = tokio::spawn({
            let reloader = reloader.clone();
            async move { reloader.reload().await }
        });
        let before = reloader.in_force().config.routes.clone();
        let (config, taken) = asked_to_reload(&mut shards[0]).await;
        assert_ne!(config.routes, before);
        taken(Answer::Done);
        asked_to_reload(&mut shards[1]).await.1(Answer::Failed("not now".to_owned()));
        let (config, taken) = asked_to_reload(&mut shards[0]).await;
        assert_eq!(config.routes, before);
        taken(Answer::Done);
        for shard in &mut shards {
            assert!(matches!(asked(shard).await.command, Command::FollowRoutes), "mail came to the new routes meanwhile");
        }
        assert_eq!(reload.await.unwrap().map(|done| done.moved), Err("not now".to_owned()));
        assert_eq!(reloader.in_force().config.routes, before);
    }
}
