//! What a connection shows of itself, read anew for each: passwords and certificates are changed while the node runs.

use std::sync::{Arc, Mutex};

use tracing::{info, warn};

use super::Valkey;
use crate::target::Target;

/// Gives the target with its secrets as they are now, or says why it cannot. It may read files.
pub type TargetSource = Arc<dyn Fn() -> Result<Target, String> + Send + Sync>;

/// The target as it was read last.
pub(super) struct Secrets {
    source: Option<TargetSource>,
    held: Mutex<Held>,
}

struct Held {
    target: Arc<Target>,
    /// Why it could not be read anew, as it was told.
    told: Option<String>,
}

impl Secrets {
    pub fn new(target: Target, source: Option<TargetSource>) -> Secrets {
        Secrets { source, held: Mutex::new(Held { target: Arc::new(target), told: None }) }
    }

    fn held(&self) -> std::sync::MutexGuard<'_, Held> {
        self.held.lock().expect("no panic happens under this lock")
    }
}

impl Valkey {
    /// The target with its secrets of now. Where they cannot be read, those of before: what writes them may be under way.
    pub(super) async fn target_now(&self) -> Arc<Target> {
        let Some(source) = self.secrets.source.clone() else { return self.secrets.held().target.clone() };
        // A disk can be slow, and the coordinator has more to do.
        let read = tokio::task::spawn_blocking(move || source()).await.unwrap_or_else(|_| Err("it was given up".to_owned()));
        let mut held = self.secrets.held();
        match read {
            Ok(target) => {
                held.target = Arc::new(target);
                if held.told.take().is_some() {
                    info!(valkey = %self.target, "what Valkey is to be shown can be read again");
                }
            }
            Err(reason) if held.told.as_ref() != Some(&reason) => {
                warn!(valkey = %self.target, reason, "what Valkey is to be shown cannot be read: it is shown what was read before");
                held.told = Some(reason);
            }
            Err(_) => {}
        }
        held.target.clone()
    }
}
