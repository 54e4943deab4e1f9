//! What the driver is told to make durable, and when it is: at once, or with other deferrals of its message.

use ringpost_queue::{MessageKey, QueueId, Settled};

use crate::accepted::{Fate, Seen};
use crate::world::World;

/// A record that the disk has not acknowledged, and the state that it makes durable.
pub struct Unacknowledged {
    pub id: QueueId,
    pub key: MessageKey,
    pub record: Option<Vec<u8>>,
    pub fate: Vec<Fate>,
    pub held: bool,
    pub seen: Seen,
    /// What was reported by it.
    pub told: Vec<(QueueId, u16, bool)>,
}

impl World {
    /// Notes what has to be made durable.
    pub fn persist(&mut self, id: QueueId, settled: Settled, record: Vec<u8>) {
        let key = self.keys[&id];
        let record = match settled {
            Settled::Nothing => return assert!(record.is_empty()),
            Settled::Deferral => {
                assert!(!record.is_empty());
                if !self.gathered.insert(id) {
                    self.queue.recorded(key);
                }
                return;
            }
            Settled::Outcome if self.gathered.remove(&id) => {
                self.queue.recorded(key);
                Some(self.state(key))
            }
            Settled::Outcome => Some(record),
            Settled::Done => {
                assert!(record.is_empty());
                if self.gathered.remove(&id) {
                    self.queue.recorded(key);
                }
                None
            }
        };
        self.write(id, record);
    }

    /// Notes that the deferrals of one message are to be made durable now.
    pub fn record_one_gathered(&mut self) {
        let which = self.random.below(self.gathered.len().max(1) as u64) as usize;
        let Some(&id) = self.gathered.iter().nth(which) else { return };
        self.gathered.remove(&id);
        let state = self.state(self.keys[&id]);
        self.write(id, Some(state));
    }

    fn state(&self, key: MessageKey) -> Vec<u8> {
        let mut state = Vec::new();
        assert!(self.queue.state(key, &mut state));
        state
    }

    fn write(&mut self, id: QueueId, record: Option<Vec<u8>>) {
        let accepted = &self.accepted[&id];
        // The records say of what leaves that it has left.
        let recorded = |fate: &Fate| match fate {
            Fate::Leaving => Fate::Bounced,
            Fate::Failing => Fate::Failed,
            other => *other,
        };
        let fate = accepted.fate.iter().map(recorded).collect();
        let (held, seen) = (accepted.held, self.seen(id));
        self.unacknowledged.push(Unacknowledged { id, key: self.keys[&id], record, fate, held, seen, told: Vec::new() });
    }

    pub fn acknowledge_one(&mut self) {
        if self.unacknowledged.is_empty() {
            return;
        }
        let write = self.unacknowledged.remove(0);
        let accepted = self.accepted.get_mut(&write.id).unwrap();
        match write.record {
            Some(record) => {
                accepted.records.push(record);
                (accepted.durable_fate, accepted.durable_held, accepted.durable) = (write.fate, write.held, write.seen);
            }
            None => accepted.settled = true,
        }
        self.durable_told.extend(write.told);
        self.queue.recorded(write.key);
    }
}
