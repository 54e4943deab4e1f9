//! Taking over a changed config file without a restart: read, checked whole, then swapped by each shard between two commands.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use ringpost_config::{Config, Difference};
use ringpost_engine::{
    control::{Answer, Command},
    request_lane::{RequestLane, RequestRefused},
};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use tracing::{error, info, warn};

use crate::control_server::ask;

/// Until a shard is asked again whose requests are full.
const FULL_PAUSE: Duration = Duration::from_millis(5);

/// What a reload did.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Reloaded {
    /// Keys that were taken over.
    pub reloaded: Vec<String>,
    /// Keys that changed and count from the next start.
    pub restart: Vec<String>,
    /// Queued messages that lead elsewhere now.
    pub moved: u64,
}

/// Reads the file again, whenever asked.
pub struct Reloader {
    path: PathBuf,
    /// The text that is in force, as far as it can be without a restart.
    text: Mutex<String>,
    /// What is in force.
    config: Mutex<Arc<Config>>,
    /// One reload at a time.
    turn: tokio::sync::Mutex<()>,
    shards: Arc<Vec<Arc<RequestLane>>>,
}

impl Reloader {
    /// `config` is what is in force. The file it came from, if any, is read now to know later what has changed.
    pub fn new(config: Arc<Config>, shards: Arc<Vec<Arc<RequestLane>>>) -> Self {
        let path = config.path().to_owned();
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        Reloader { path, text: Mutex::new(text), config: Mutex::new(config), turn: tokio::sync::Mutex::new(()), shards }
    }

    /// Takes the file's settings over, or says why nothing was changed.
    pub async fn reload(&self) -> Result<Reloaded, String> {
        let _turn = self.turn.lock().await;
        let result = self.take_over().await;
        match &result {
            Ok(Reloaded { reloaded, restart, moved }) => {
                info!(?reloaded, moved, "the config file was read again");
                if !restart.is_empty() {
                    warn!(?restart, "these settings changed and count from the next start");
                }
            }
            Err(reason) => error!(reason, "the config file was read again and refused: the settings are as they were"),
        }
        result
    }

    async fn take_over(&self) -> Result<Reloaded, String> {
        if self.path.as_os_str().is_empty() {
            return Err("there is no config file: the engine runs with the defaults".to_owned());
        }
        let text = std::fs::read_to_string(&self.path)
            .map_err(|reason| format!("{}: cannot read the config file: {reason}", self.path.display()))?;
        let new = Config::parse(&text, &self.path).map_err(|errors| errors.to_string())?;
        let config = Arc::new(self.config.lock().unwrap_or_else(PoisonError::into_inner).taking_over(&new));
        let old = self.text.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Difference { reloaded, restart } = Difference::between(&old, &text);
        let moved = self.give_to_shards(&config).await;
        // Also when one of them refused: others have it.
        tokio::spawn(settle_limits(self.shards.to_vec()));
        let moved = moved?;
        *self.config.lock().unwrap_or_else(PoisonError::into_inner) = config;
        *self.text.lock().unwrap_or_else(PoisonError::into_inner) = text;
        Ok(Reloaded { reloaded, restart, moved })
    }

    /// Messages that lead elsewhere.
    async fn give_to_shards(&self, config: &Arc<Config>) -> Result<u64, String> {
        let mut moved = 0;
        for shard in &*self.shards {
            if let Answer::Reloaded(count) = ask(shard, Command::Reload(config.clone())).await? {
                moved += count;
            }
        }
        Ok(moved)
    }
}

/// After a reload: lets the shards grow into their parts of new limits once all have come down to them, so that a destination never sees
/// more connections than the old limit or the new one. That can take as long as a message under way.
pub async fn settle_limits(shards: Vec<Arc<RequestLane>>) {
    let mut changes = Vec::new();
    for shard in &shards {
        let Some(Answer::LimitsKept(change)) = answer_of(shard, Command::AwaitLimits).await else { return };
        changes.push(change);
    }
    for (shard, change) in shards.iter().zip(changes) {
        answer_of(shard, Command::SettleLimits(change)).await;
    }
}

/// However long it takes; `None` when the shard ends.
async fn answer_of(shard: &RequestLane, command: Command) -> Option<Answer> {
    loop {
        let (sender, receiver) = oneshot::channel();
        match shard.send(command.clone(), Box::new(move |answer| drop(sender.send(answer)))) {
            Ok(()) => return receiver.await.ok(),
            // Operators' requests fill it for moments.
            Err(RequestRefused::Full) => tokio::time::sleep(FULL_PAUSE).await,
            Err(RequestRefused::Ended) => return None,
        }
    }
}
