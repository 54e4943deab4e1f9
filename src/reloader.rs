//! Taking over a changed config file without a restart: read, checked whole, then swapped by each shard between two commands.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use ringpost_config::{Config, Difference};
use ringpost_engine::{
    control::{Answer, Command},
    request_lane::RequestLane,
};
use serde::{Deserialize, Serialize};
use tracing::{error, info, warn};

use crate::control_server::ask;

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
        let mut moved = 0;
        for shard in &*self.shards {
            if let Answer::Reloaded(count) = ask(shard, Command::Reload(config.clone())).await? {
                moved += count;
            }
        }
        *self.config.lock().unwrap_or_else(PoisonError::into_inner) = config;
        *self.text.lock().unwrap_or_else(PoisonError::into_inner) = text;
        Ok(Reloaded { reloaded, restart, moved })
    }
}
