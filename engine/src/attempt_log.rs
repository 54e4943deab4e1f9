//! What the mail log says of attempts: a line for each recipient that one decided, or that ran out of time.

use ringpost_queue::{Dispatch, MessageKey, QueueId, RecipientView, State};
use ringpost_smtp::{
    client::Verdict,
    reply::{EnhancedCode, Reply},
};

use crate::{
    attempt::{AttemptStorage, RecipientOutcome},
    mail_log::{Escaped, EscapedWord},
    shard::Shard,
};

impl Shard {
    /// Counts what recipients of an attempt came to, and says so in the mail log.
    pub(crate) fn log_outcomes(&self, dispatch: &Dispatch, outcomes: &[RecipientOutcome], relay: &str, now: u64) {
        let go_elsewhere: Vec<u16> = {
            let failed = outcomes.iter().filter(|outcome| outcome.verdict == Verdict::Failed).map(|outcome| outcome.recipient);
            failed.filter(|recipient| self.queue.borrow_mut().goes_elsewhere(dispatch, *recipient)).collect()
        };
        let queue = self.queue.borrow();
        let Some(envelope) = queue.envelope(dispatch.key()) else { return };
        for (number, address) in queue.recipients(dispatch) {
            if let Some(outcome) = outcomes.iter().find(|outcome| outcome.recipient == number) {
                // As the queue takes it in.
                let verdict = if go_elsewhere.contains(&number) { Verdict::Deferred } else { outcome.verdict };
                self.count(verdict);
                self.log_outcome(envelope.id, address, relay, now.saturating_sub(envelope.accepted_at), verdict, &outcome.reply);
            }
        }
    }

    fn count(&self, verdict: Verdict) {
        match verdict {
            Verdict::Delivered => self.metrics.delivered.increment(),
            Verdict::Deferred => self.metrics.deferred.increment(),
            Verdict::Unknown => {
                self.metrics.deferred.increment();
                self.metrics.deliveries_unknown.increment();
            }
            Verdict::Failed => self.metrics.failed.increment(),
            Verdict::Untried => {}
        }
    }

    fn log_outcome(&self, id: QueueId, address: &[u8], relay: &str, delay_ms: u64, verdict: Verdict, reply: &Reply) {
        let word = match verdict {
            Verdict::Delivered => "delivered",
            Verdict::Deferred => "deferred",
            // RFC 5321 4.2.5, 6.1: the next hop may have it.
            Verdict::Unknown => "deferred delivery=unknown",
            Verdict::Failed => "bounced",
            Verdict::Untried => return,
        };
        let line = reply.line();
        let unsaid = EnhancedCode { class: (reply.code() / 100) as u8, subject: 0, detail: 0 };
        let EnhancedCode { class, subject, detail } = reply.enhanced().unwrap_or(unsaid);
        self.write_mail_log(|out| {
            out.text("queue_id=").id(id).text(" event=attempt to=<").word(address).text("> relay=").text(relay);
            out.text(" delay_ms=").number(delay_ms).text(" dsn=").number(class.into()).text(".").number(subject.into());
            out.text(".").number(detail.into()).text(" outcome=").text(word).text(" reply=\"").quoted(line.as_bytes()).text("\"");
        });
    }

    /// What the queue made, at `now`, of recipients that an attempt did not decide: those that were not tried for so many times that they are deferred,
    /// which were attempts that came to nothing, too, and those whose time is over.
    pub(crate) fn log_undecided(&self, key: MessageKey, storage: &AttemptStorage, relay: &str, now: u64) {
        if storage.outcomes.iter().all(|outcome| outcome.verdict == Verdict::Delivered) {
            return;
        }
        let queue = self.queue.borrow();
        let Some(view) = queue.show(key) else { return };
        let (id, delay_ms) = (view.envelope().id, now.saturating_sub(view.envelope().accepted_at));
        for recipient in view.recipients() {
            let of_it = storage.outcomes.iter().find(|outcome| outcome.recipient == recipient.number());
            let Some(outcome) = of_it.filter(|outcome| outcome.verdict != Verdict::Delivered) else { continue };
            match recipient.state() {
                // It was an attempt for the queue. A hold may have come meanwhile, or its route have gone: the state does not tell.
                _ if outcome.verdict == Verdict::Untried && recipient.is_open() && recipient.last_attempt() == Some(now) => {
                    self.metrics.deferred.increment();
                    // RFC 3463 3.5: X.4.2, the connection ended.
                    let dsn = outcome.reply.enhanced().filter(|dsn| dsn.class == 4);
                    let dsn = dsn.unwrap_or(EnhancedCode { class: 4, subject: 4, detail: 2 });
                    self.log_mail(format_args!(
                        "queue_id={id} event=attempt to=<{}> relay={relay} delay_ms={delay_ms} dsn={dsn} outcome=deferred reply=\"{}\"",
                        EscapedWord(recipient.address()),
                        Escaped(recipient.reply().as_bytes())
                    ));
                }
                // What a command has ended has a line of that.
                State::Failed if recipient.has_expired() => self.log_expired(id, &recipient, delay_ms),
                _ => {}
            }
        }
    }

    /// An attempt that found no host that answers.
    pub(crate) fn log_unreachable(&self, dispatch: &Dispatch) {
        let (queue, now) = (self.queue.borrow(), self.now_ms());
        let Some(envelope) = queue.envelope(dispatch.key()) else { return };
        let (id, delay_ms) = (envelope.id, now.saturating_sub(envelope.accepted_at));
        let destination = queue.destination(dispatch.destination(), now);
        let (reason, is_short) = destination.map_or(("", false), |destination| (destination.reason, destination.is_short));
        // RFC 3463 3.5: X.4.3 is a directory server that failed, X.4.1 a host that does not answer; 3.4: X.3.0 is about the mail system itself,
        // this one.
        let dsn = match queue.verdict(dispatch) {
            Some(_) => "4.4.3",
            None if is_short => "4.3.0",
            None => "4.4.1",
        };
        for (_, address) in queue.recipients(dispatch) {
            self.log_mail(format_args!(
                "queue_id={id} event=attempt to=<{}> relay=none delay_ms={delay_ms} dsn={dsn} outcome=deferred reply=\"{}\"",
                EscapedWord(address),
                Escaped(reason.as_bytes())
            ));
        }
    }

    /// What the queue has failed just now because its time is over.
    pub(crate) fn log_expiry(&self, key: MessageKey, mut recipients: Vec<u16>) {
        recipients.sort_unstable();
        let queue = self.queue.borrow();
        let Some(view) = queue.show(key) else { return };
        let (id, age_ms) = (view.envelope().id, self.now_ms().saturating_sub(view.envelope().accepted_at));
        for recipient in view.recipients().filter(|recipient| recipients.binary_search(&recipient.number()).is_ok()) {
            self.log_expired(id, &recipient, age_ms);
        }
    }

    fn log_expired(&self, id: QueueId, recipient: &RecipientView<'_>, delay_ms: u64) {
        self.metrics.failed.increment();
        self.log_mail(format_args!(
            "queue_id={id} event=expired to=<{}> delay_ms={delay_ms} dsn=5.4.7 outcome=bounced reply=\"{}\"",
            EscapedWord(recipient.address()),
            Escaped(recipient.reply().as_bytes())
        ));
    }
}
