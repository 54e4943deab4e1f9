//! Pushed configs: what was fetched is kept and applied, and what Valkey lost is given back.

use std::{io, sync::Arc};

use tracing::{debug, error, info, warn};

use super::{Agent, Outcome};
use crate::{
    boot_time::BootTime,
    config_watch::{ConfigName, NotApplied},
    control_plane::{ConfigVersion, Fetched, Published, Pulse, VERSION_JUMP_MAX},
    pushed_config::PushedConfig,
    surroundings::Surroundings,
    valkey::random_u64,
    valkey_error::ValkeyError,
};

impl Agent {
    /// What asking came to; an answer that cannot be used is none.
    pub(super) fn config_fetched(&mut self, fetched: Result<Fetched, ValkeyError>) {
        let fetched = match fetched {
            Ok(Fetched::Unchanged(version) | Fetched::Config(ConfigVersion { version, .. }, _))
                if version > self.config.running().saturating_add(VERSION_JUMP_MAX) =>
            {
                self.refuse_config("its version is far above the one that runs here: it is damaged or forged");
                Fetched::Nothing
            }
            Ok(fetched) => {
                self.has_refused_config = false;
                self.handle.known().config_unusable = None;
                fetched
            }
            Err(ValkeyError::Malformed(why)) => {
                self.refuse_config(why);
                Fetched::Nothing
            }
            Err(_) => Fetched::Nothing,
        };
        let is_wanted = self.config.answered(match &fetched {
            Fetched::Nothing => None,
            Fetched::Unchanged(version) => Some(ConfigName::new(*version, self.config.running_hash())),
            Fetched::Config(config, _) => Some(ConfigName::new(config.version, config.hash.as_str())),
        });
        self.handle.known().config_version = self.config.running();
        if let (true, Some((config, text))) = (is_wanted, fetched.config()) {
            let (former, surroundings) = (self.pushed.clone(), self.surroundings.clone());
            self.tasks.spawn(take_over(former, ConfigName::new(config.version, config.hash), text, surroundings));
        }
    }

    /// What is current is not to be run: told once, until something else is. If it is what runs here, and only not signed, it is signed.
    fn refuse_config(&mut self, why: &str) {
        self.count("configs_not_ours");
        self.handle.known().config_unusable = Some(format!("it does not run the config that was pushed to all nodes: {why}"));
        if !std::mem::replace(&mut self.has_refused_config, true) {
            error!(why, "what Valkey has as the pushed config is not taken: restore the key configs, or push again");
        }
        if self.config.running() > 0 {
            self.restore_config();
        }
    }

    /// How it went with a version that was to be taken over, and what the disk says now.
    pub(super) fn applied(&mut self, name: ConfigName, pushed: PushedConfig, result: Result<(), NotApplied>) {
        let version = name.version;
        self.pushed = pushed;
        let waited = self.config.refused().is_some_and(|refused| refused.waits && refused.version == version);
        match &result {
            Err(NotApplied::NotNow(reason)) if waited => debug!(version, reason, "the pushed config is still not taken over"),
            Err(NotApplied::NotNow(reason)) => {
                warn!(
                    version,
                    reason, "the pushed config cannot be taken over now: it is tried again until it is, and the former one goes on"
                );
            }
            Ok(()) => info!(version, "the pushed config runs"),
            Err(NotApplied::Unfit(reason)) => warn!(version, reason, "the pushed config is refused: the former one goes on"),
            Err(NotApplied::NotKept(reason)) => warn!(version, reason, "the pushed config is tried again later: the former one goes on"),
        }
        self.count(match &result {
            Ok(()) => "configs_applied",
            Err(NotApplied::NotNow(_)) => "configs_put_off",
            Err(NotApplied::Unfit(_) | NotApplied::NotKept(_)) => "configs_refused",
        });
        self.config.applied(name, result, BootTime::now(), random_u64());
        self.handle.known().config_version = self.config.running();
        // The others hear of it with the next heartbeat, which is now.
        self.next_heartbeat = BootTime::default();
    }

    /// How often to ask, by a heartbeat's answer. What was set from outside and is gone with Valkey's data is given back like the config.
    pub(super) fn poll_heard(&mut self, now: BootTime, pulse: &Pulse) {
        match (pulse.poll, self.poll_set) {
            (Some(poll), _) => self.poll_set = Some(poll),
            // Nobody takes it away: it was lost.
            (None, Some(poll)) => {
                let control = self.control.clone();
                self.tasks.spawn(async move {
                    // Unheard, it is given back with the next heartbeat.
                    let _unheard = control.restore_config_poll(poll).await;
                    Outcome::Nothing
                });
            }
            (None, None) => {}
        }
        self.config.set_poll(now, self.poll_set.unwrap_or(self.settings.config_poll));
    }

    /// Valkey knows an earlier version than the one that runs here, or has that one without what signs it.
    pub(super) fn restore_config(&mut self) {
        let (control, version) = (self.control.clone(), self.config.running());
        let Some(text) = self.pushed.text() else { return };
        self.tasks.spawn(async move {
            if let Ok(Published::Version(_) | Published::Untold(_)) = control.restore_config(version, &text).await {
                info!(version, "Valkey lost the pushed config, or what signs it, and was given it back");
            }
            Outcome::Nothing
        });
    }
}

/// On disk first, then in force: what runs is what the next start begins with. Where it does not run, the file says the `former` one again.
async fn take_over(former: PushedConfig, name: ConfigName, text: String, surroundings: Arc<dyn Surroundings>) -> Outcome {
    let next = former.followed_by(name.version, text.clone());
    let result = match on_disk(&next, PushedConfig::write).await {
        Ok(()) => surroundings.apply(name.version, text).await,
        Err(reason) => Err(NotApplied::NotKept(format!("it could not be kept: {reason}"))),
    };
    if result.is_ok() {
        return Outcome::Applied(name, next, result);
    }
    if let Err(reason) = on_disk(&former, PushedConfig::restore).await {
        error!(%reason, version = name.version, "what runs could not be kept again: the next start may begin with the version that does not run");
    }
    Outcome::Applied(name, former, result)
}

/// A sync can take long; the coordinator's thread does not wait for it.
async fn on_disk(pushed: &PushedConfig, call: fn(&PushedConfig) -> io::Result<()>) -> io::Result<()> {
    let pushed = pushed.clone();
    tokio::task::spawn_blocking(move || call(&pushed)).await.unwrap_or_else(|_| Err(io::Error::other("given up")))
}
