//! How far a deposit is, for the thread that makes it and the shard that waits for it: whichever of "it is done" and "nobody waits any more" is
//! first holds, for each mailbox.

use std::{
    collections::VecDeque,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tracing::warn;

use crate::maildir::{Deposited, Mailbox};

/// Late deposits that are known of one shard. Of earlier ones the next attempt finds the file, unless its owner has moved it.
const LATE_MAX: usize = 1024;

/// Messages that came into a mailbox when nobody waited for that any more, by the names of their files: the next attempt is to know, also
/// where the owner of the mailbox has moved the file meanwhile.
#[derive(Default)]
pub struct LateDeposits(Mutex<VecDeque<String>>);

impl LateDeposits {
    /// Did this one come?
    pub fn has(&self, name: &str) -> bool {
        self.names().iter().any(|known| known == name)
    }

    /// That it came is recorded elsewhere.
    pub fn forget(&self, name: &str) {
        self.names().retain(|known| known != name);
    }

    fn add(&self, name: &str) {
        let mut names = self.names();
        if names.len() >= LATE_MAX {
            names.pop_front();
        }
        names.push_back(name.to_owned());
    }

    fn names(&self) -> MutexGuard<'_, VecDeque<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is known of one deposit.
#[derive(Clone)]
pub struct DepositProgress(Arc<Known>);

struct Known {
    /// Of each mailbox.
    folders: Vec<PathBuf>,
    late: Arc<LateDeposits>,
    state: Mutex<State>,
}

struct State {
    ends: Vec<Option<Deposited>>,
    /// The mailbox that is worked at.
    at: usize,
    /// It went on since this was asked last.
    has_moved: bool,
    is_given_up: bool,
}

impl DepositProgress {
    /// Nothing is done.
    pub fn new(mailboxes: &[Mailbox], late: Arc<LateDeposits>) -> Self {
        let state = State { ends: mailboxes.iter().map(|_| None).collect(), at: 0, has_moved: false, is_given_up: false };
        let folders = mailboxes.iter().map(|mailbox| mailbox.folder.clone()).collect();
        DepositProgress(Arc::new(Known { folders, late, state: Mutex::new(state) }))
    }

    /// The thread turns to a mailbox; false: nobody waits any more, and nothing further is to be done.
    pub fn turn_to(&self, mailbox: usize) -> bool {
        let mut state = self.state();
        (state.at, state.has_moved) = (mailbox, true);
        !state.is_given_up
    }

    /// Has the thread turned to a mailbox since this was asked last? One that goes on, however slowly, does not hang.
    pub fn has_moved(&self) -> bool {
        std::mem::take(&mut self.state().has_moved)
    }

    /// A mailbox came to this.
    pub fn ended(&self, position: usize, mailbox: &Mailbox, deposited: Deposited) {
        let mut state = self.state();
        if !state.is_given_up {
            state.ends[position] = Some(deposited);
            return;
        }
        drop(state);
        if matches!(deposited, Deposited::Written | Deposited::Found) {
            warn!(folder = %mailbox.folder.display(), "a message came into its maildir after the attempt had been given up; it is not written again");
            self.0.late.add(&mailbox.name);
        }
    }

    /// The folder of the mailbox that is worked at.
    pub fn folder(&self) -> PathBuf {
        let at = self.state().at;
        self.0.folders.get(at).cloned().unwrap_or_default()
    }

    /// Nobody waits any more: what came of each mailbox until now, and the number of the one that is worked at.
    pub fn give_up(&self) -> (Vec<Option<Deposited>>, usize) {
        let mut state = self.state();
        state.is_given_up = true;
        (std::mem::take(&mut state.ends), state.at)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
