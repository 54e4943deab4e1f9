//! What the agent is asked to do from outside: hand over, try a config again, leave.

use tracing::info;

use super::{Agent, Outcome};
use crate::{boot_time::BootTime, election::Step, handle::Command};

impl Agent {
    /// Also one that is just being asked for, or was not led with yet: others would wait for its time.
    async fn give_lease_back(&mut self) {
        while self.standing.is_asking() {
            match self.tasks.join_next().await {
                Some(Ok(Outcome::Elected(answer))) => self.standing.answered(BootTime::now(), answer),
                // Nothing else is begun any more.
                Some(_) => {}
                None => break,
            }
        }
        if let step @ Step::Release(_) = self.standing.next(BootTime::now(), self.masters_alive, 0) {
            self.control.elect(&self.settings.me, &step, self.settings.leader_ttl, 0).await;
        }
    }

    /// True: the agent ends.
    pub(super) async fn obey(&mut self, command: Command) -> bool {
        let now = BootTime::now();
        match command {
            Command::HandOver(done) => {
                let (control, mine) = (self.control.clone(), self.standing.leadership(now));
                if mine.is_some() {
                    self.standing.hand_over(now);
                }
                self.tasks.spawn(async move {
                    if mine.is_some() {
                        // It leads no longer in any case; while Valkey is away nobody can follow.
                        let _ = done.send(control.holder().await.map(|_| mine));
                        return Outcome::Nothing;
                    }
                    let asked = control.ask_hand_over().await;
                    let leader = asked.clone().ok().flatten();
                    let _ = done.send(asked);
                    if let Some(leader) = leader {
                        control.repeat_hand_over(&leader).await;
                    }
                    Outcome::Nothing
                });
                false
            }
            Command::RetryConfig => {
                self.config.retry();
                false
            }
            Command::Leave(done) => {
                // Leadership ends before anything else does (L11).
                self.standing.hand_over(now);
                self.publish(now);
                self.give_lease_back().await;
                if let Err(reason) = self.control.leave(&self.settings.me).await {
                    info!(%reason, "left without a word: Valkey is away");
                }
                let _ = done.send(());
                true
            }
        }
    }
}
