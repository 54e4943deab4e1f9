//! A model of one Valkey primary with an asynchronous replica, as far as the election uses it.

use ringpost_cluster::{
    election::Answer,
    identity::{Epoch, Incarnation, Leadership},
};

use crate::Mutant;

#[derive(Clone, Default)]
struct Data {
    /// The lease and when it ends, in microseconds of the server's wall clock.
    leader: Option<(Leadership, u64)>,
    epoch: u64,
}

/// What scripts would do. Time is the server's wall clock, which can be stepped.
pub struct Valkey {
    primary: Data,
    replica: Data,
    pub clock_offset_us: i64,
    pub is_replicating: bool,
    pub mutant: Mutant,
    pub violation: Option<String>,
    pub lossy_failovers: u64,
    pub effects: u64,
    pub refused: u64,
}

#[derive(Clone)]
pub enum Call {
    Acquire { me: Incarnation, floor: Epoch, ttl_us: u64 },
    Renew { mine: Leadership, ttl_us: u64 },
    Release { mine: Leadership },
    Look,
    Heartbeat { floor: Epoch },
    Effect { order: Leadership },
}

#[derive(Clone)]
pub enum Reply {
    Election(Answer),
    Heartbeat(Epoch, Option<Leadership>),
    Effect(Result<(), Epoch>),
}

impl Valkey {
    pub fn new(mutant: Mutant) -> Valkey {
        Valkey {
            primary: Data::default(),
            replica: Data::default(),
            clock_offset_us: 0,
            is_replicating: true,
            mutant,
            violation: None,
            lossy_failovers: 0,
            effects: 0,
            refused: 0,
        }
    }

    fn wall(&self, now_us: u64) -> u64 {
        now_us.saturating_add_signed(self.clock_offset_us)
    }

    pub fn replicate(&mut self) {
        if self.is_replicating {
            self.replica = self.primary.clone();
        }
    }

    /// The replica becomes the primary with what had reached it.
    pub fn fail_over(&mut self) {
        if self.replica.epoch < self.primary.epoch {
            self.lossy_failovers += 1;
        }
        self.primary = self.replica.clone();
    }

    pub fn flush(&mut self) {
        self.primary = Data::default();
    }

    pub fn run(&mut self, now_us: u64, call: Call) -> Reply {
        let wall = self.wall(now_us);
        if self.primary.leader.as_ref().is_some_and(|(_, until)| *until <= wall) {
            self.primary.leader = None;
        }
        let ignores_floor = self.mutant == Mutant::FloorIgnored;
        let data = &mut self.primary;
        match call {
            Call::Acquire { me, floor, ttl_us } => {
                if let Some((leader, until)) = &data.leader {
                    let remaining = std::time::Duration::from_micros(until - wall);
                    return Reply::Election(Answer::Held(leader.clone(), remaining));
                }
                data.epoch = if ignores_floor { data.epoch } else { data.epoch.max(floor.0) } + 1;
                let epoch = Epoch(data.epoch);
                if epoch <= floor {
                    self.violation = Some(format!("epoch {epoch} was given, which repeats: the floor is {floor}"));
                }
                data.leader = Some((Leadership { incarnation: me, epoch }, wall + ttl_us));
                Reply::Election(Answer::Acquired(epoch))
            }
            Call::Renew { mine, ttl_us } => {
                let is_mine = data.leader.as_ref().is_some_and(|(leader, _)| *leader == mine);
                if is_mine && mine.epoch.0 >= data.epoch {
                    data.leader = Some((mine, wall + ttl_us));
                    Reply::Election(Answer::Renewed)
                } else {
                    Reply::Election(Answer::Lost(Epoch(data.epoch)))
                }
            }
            Call::Release { mine } => {
                if data.leader.as_ref().is_some_and(|(leader, _)| *leader == mine) {
                    data.leader = None;
                }
                Reply::Election(Answer::Released)
            }
            Call::Look => Reply::Election(Answer::Seen(data.leader.as_ref().map(|(leader, _)| leader.clone()))),
            Call::Heartbeat { floor } => {
                if !ignores_floor {
                    data.epoch = data.epoch.max(floor.0);
                }
                Reply::Heartbeat(Epoch(data.epoch), data.leader.as_ref().map(|(leader, _)| leader.clone()))
            }
            Call::Effect { order } => {
                if order.epoch.0 < data.epoch && self.mutant != Mutant::EpochUnchecked {
                    self.refused += 1;
                    return Reply::Effect(Err(Epoch(data.epoch)));
                }
                if order.epoch.0 < data.epoch {
                    self.violation = Some(format!("an effect of epoch {} was accepted after {}", order.epoch, data.epoch));
                }
                self.effects += 1;
                data.epoch = data.epoch.max(order.epoch.0);
                Reply::Effect(Ok(()))
            }
        }
    }
}
