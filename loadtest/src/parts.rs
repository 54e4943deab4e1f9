//! The way of measured parts from the cores of a run to whoever looks at it.
//!
//! Bounded: while `UNTAKEN_MAX` parts wait, cores keep a few and go on measuring into the last of those. So a
//! run that nobody looks at keeps its sums and little memory.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
        mpsc,
    },
    time::Duration,
};

use crate::measurement::{Part, Recorder};

/// Parts that wait to be taken, of all cores of a run.
const UNTAKEN_MAX: usize = 64;

/// What a core measured in one second of the run.
#[derive(Debug)]
pub struct CorePart {
    /// Which second; the first is 0.
    pub second: u64,
    /// What it measured.
    pub part: Box<Part>,
}

/// A core's end.
#[derive(Debug, Clone)]
pub(crate) struct PartSender {
    sender: mpsc::Sender<CorePart>,
    untaken: Arc<AtomicUsize>,
}

/// The end of whoever looks.
#[derive(Debug)]
pub(crate) struct PartReceiver {
    receiver: mpsc::Receiver<CorePart>,
    untaken: Arc<AtomicUsize>,
}

/// Both ends.
pub(crate) fn channel() -> (PartSender, PartReceiver) {
    let ((sender, receiver), untaken) = (mpsc::channel(), Arc::new(AtomicUsize::new(0)));
    (PartSender { sender, untaken: untaken.clone() }, PartReceiver { receiver, untaken })
}

impl PartSender {
    /// Hands in the seconds of a recorder that are over, as far as there is room, and at the end all there is.
    pub(crate) fn hand_in(&self, recorder: &mut Recorder, in_flight: u64, over: bool) {
        while over || self.has_room() {
            let Some((second, part)) = recorder.ended(in_flight) else { break };
            self.send(CorePart { second, part });
        }
        if over && let Some((second, part)) = recorder.last(in_flight) {
            self.send(CorePart { second, part });
        }
    }

    /// May a part be handed in? At the end all may.
    fn has_room(&self) -> bool {
        self.untaken.load(Relaxed) < UNTAKEN_MAX
    }

    /// Hands one in.
    fn send(&self, part: CorePart) {
        self.untaken.fetch_add(1, Relaxed);
        // Whoever listens may have gone: then nobody wants to know.
        let _unheard = self.sender.send(part);
    }
}

impl PartReceiver {
    /// The next part, waiting for at most `limit`; `None` when there is none, for now or any more.
    pub(crate) fn next(&self, limit: Duration) -> Option<CorePart> {
        let part = self.receiver.recv_timeout(limit).ok()?;
        self.untaken.fetch_sub(1, Relaxed);
        Some(part)
    }

    /// All that are there.
    pub(crate) fn rest(&self) -> Vec<CorePart> {
        std::iter::from_fn(|| self.next(Duration::ZERO)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_that_nobody_looks_at_hands_in_so_many_parts_and_goes_on_when_they_are_taken() {
        let (sender, receiver) = channel();
        let mut second = 0;
        while sender.has_room() {
            sender.send(CorePart { second, part: Box::default() });
            second += 1;
        }
        assert_eq!(second, UNTAKEN_MAX as u64);
        assert_eq!(receiver.next(Duration::ZERO).map(|part| part.second), Some(0));
        assert!(sender.has_room());
        assert_eq!(receiver.rest().len(), UNTAKEN_MAX - 1);
    }
}
