//! A dispatch on its way to a next hop, and what is known of its recipients.

use std::{rc::Rc, time::Instant};

use ringpost_queue::{Dispatch, HostsTried, Outcome};
use ringpost_smtp::{
    client::{SuccessReport, TransactionId, Verdict},
    reply::Reply,
};

use crate::said_before::SaidBeforeNote;

/// What one recipient came to.
#[derive(Clone, Copy)]
pub struct RecipientOutcome {
    /// Its number in the message.
    pub recipient: u16,
    /// Delivered, deferred or refused.
    pub verdict: Verdict,
    /// The word of the next hop, or one of our own.
    pub reply: Reply,
    /// Who reports its success, if it was delivered and the sender wants to know.
    pub success_report: SuccessReport,
}

impl RecipientOutcome {
    /// As the queue wants it.
    pub fn outcome(&self) -> Outcome<'_> {
        let reply = self.reply.line().as_bytes();
        match self.verdict {
            Verdict::Delivered => match self.success_report {
                SuccessReport::Relayed => Outcome::Relayed { reply },
                SuccessReport::Untimed => Outcome::Untimed { reply },
                SuccessReport::Delivered => Outcome::Delivered { reply },
                SuccessReport::PassedOn => Outcome::PassedOn { reply },
            },
            Verdict::Deferred | Verdict::Unknown => Outcome::Deferred { reply },
            Verdict::Failed => Outcome::Failed { reply },
            Verdict::Untried => Outcome::Untried { reply },
        }
    }
}

/// The vectors of an attempt, kept for the next one.
#[derive(Default)]
pub struct AttemptStorage {
    /// Numbers of the recipients in the order in which the client was given them.
    pub recipients: Vec<u16>,
    /// Those that are decided.
    pub outcomes: Vec<RecipientOutcome>,
}

/// What a host said of those recipients that it neither took nor refused for good.
pub struct Words {
    /// All are deferred.
    pub storage: AttemptStorage,
    /// The host, for people.
    pub relay: String,
    /// What all of them said, for who asks meanwhile.
    pub(crate) note: Rc<SaidBeforeNote>,
}

/// One attempt.
pub struct Attempt {
    /// To be given back to the queue.
    pub dispatch: Dispatch,
    /// The client's transaction, once begun.
    pub transaction: Option<TransactionId>,
    /// Recipients and outcomes.
    pub storage: AttemptStorage,
    /// When the outcomes so far are recorded, if the attempt has not ended by then.
    pub record_at: Option<Instant>,
    /// Hosts that it has been to before this one.
    pub tried: HostsTried,
    /// Of the last of them, if it put the message off.
    pub words: Option<Words>,
}

impl Attempt {
    /// Nothing is known yet. `storage` is emptied.
    pub fn new(dispatch: Dispatch, mut storage: AttemptStorage) -> Self {
        storage.recipients.clear();
        storage.outcomes.clear();
        Attempt::decided(dispatch, storage)
    }

    /// What it comes to is in `storage`.
    pub fn decided(dispatch: Dispatch, storage: AttemptStorage) -> Self {
        Attempt { dispatch, transaction: None, storage, record_at: None, tried: HostsTried::default(), words: None }
    }

    /// All recipients come to the same, by a word of our own.
    pub fn decide_all(&mut self, verdict: Verdict, reply: Reply) {
        for position in 0..self.storage.recipients.len() {
            let position = u16::try_from(position).expect("a message has fewer recipients");
            self.decide(position, verdict, reply, SuccessReport::Delivered);
        }
    }

    /// A recipient is decided: `position` in the order given to the client.
    pub fn decide(&mut self, position: u16, verdict: Verdict, reply: Reply, success_report: SuccessReport) {
        let recipient = self.storage.recipients[usize::from(position)];
        self.storage.outcomes.push(RecipientOutcome { recipient, verdict, reply, success_report });
    }
}
