//! Reports to senders, from the queue's wish to the durable message: first the report is in the spool, then its recipients are bounced.
//!
//! A crash between the two finds the report when the logs are loaded ([`Shard::note_found_report`]) and makes no second one. A report is
//! mail of its own with the null reverse-path and NOTIFY=NEVER. It says in the place of a HELO name what it reports, and its peer is the
//! unspecified address, which no client has.

use std::{borrow::Cow, cell::RefCell, rc::Rc};

use ringpost_config::Placeholder;
use ringpost_queue::{About, MessageKey, QueueId, REPORT_RECIPIENTS_MAX, Report};
use ringpost_smtp::{
    address::Path,
    envelope::{Envelope, EnvelopeView},
    extension::{Body, Return},
    header::DateText,
    report::{self, Action, RECIPIENT_BYTES_MAX, ReportedRecipient, Returned},
    stuffing::LineEndCheck,
};
use ringpost_spool::{AppendError, Content};
use tracing::{error, warn};

use crate::queueing::Stated;
use crate::{
    content::MessageContent,
    mail_log::EscapedWord,
    message_record::{TRAILER_BYTES, Trailer},
    record_id::record_id,
    report_origin::ReportOrigin,
    shard::{PAYLOAD_BYTES_MAX, Shard},
    stored_envelope::MessageRecord,
};

/// When a report is tried again that could not be made.
const POSTPONED_MS: u64 = 10_000;
/// A text of the config with its placeholders replaced, beside the recipients, and the fields of the report itself.
const REST_BYTES_MAX: usize = 12 * 1024;
/// What `bounce.return_max` may be at most.
const RETURN_BYTES_MAX: usize = 64 * 1024;
// Text and message are left out where they do not fit beside what a program reads.
const _: () = assert!(REPORT_RECIPIENTS_MAX * RECIPIENT_BYTES_MAX + REST_BYTES_MAX <= CONTENT_BYTES_MAX);

/// Content of a report at most, so that its envelope fits beside it.
const CONTENT_BYTES_MAX: usize = PAYLOAD_BYTES_MAX - 4096;

/// What the reports of a shard keep.
#[derive(Default)]
pub(crate) struct Reporting {
    /// Reports in the spool at the start.
    found: RefCell<Vec<ReportOrigin>>,
    /// Wanted while the logs are still being loaded.
    early: RefCell<Vec<MessageKey>>,
}

/// What is known of a message that is reported, taken out of the queue.
struct Facts {
    id: QueueId,
    reverse_path: String,
    smtputf8: bool,
    content_bytes: u64,
    arrival: DateText,
    until: DateText,
    recipients: Vec<RecipientFacts>,
}

struct RecipientFacts {
    number: u16,
    path: String,
    action: Action,
    reply: String,
    relay: Option<String>,
    last_attempt: Option<DateText>,
    /// Until when it is tried; none of what does not grow old while it is held.
    until: Option<DateText>,
    /// It is not tried until an operator lets it.
    is_kept: bool,
}

/// Why no report was made, and whether it is tried again.
enum NotMade {
    /// It is not to be: `why` is for the mail log.
    Dropped { why: &'static str },
    /// Not now.
    Later,
    /// The spool failed or the process ends: the next start makes it.
    Ending,
}

impl Shard {
    /// A message was found in the spool, which came from `elsewhere` or did not: what it reports, if it is a report, need not be reported
    /// again.
    pub(crate) fn note_found_report(&self, envelope: &EnvelopeView<'_>, elsewhere: bool) {
        if let Some(origin) = ReportOrigin::of_own(envelope, elsewhere)
            && self.loading.get() > 0
        {
            self.reporting.found.borrow_mut().push(origin);
        }
    }

    /// All logs are loaded: what is reported already is known, the rest may be.
    pub(crate) fn begin_reports(self: &Rc<Self>) {
        for origin in self.reporting.found.take() {
            let mut record = Vec::new();
            let mut queue = self.queue.borrow_mut();
            let Some(key) = queue.key_of(origin.message) else { continue };
            let settled = queue.was_reported(key, origin.about, &origin.recipients, self.now_ms(), &mut record);
            drop(queue);
            self.persist(key, settled);
        }
        for key in self.reporting.early.take() {
            self.start_report(key);
        }
    }

    /// The queue wants a report of this message.
    pub(crate) fn start_report(self: &Rc<Self>, key: MessageKey) {
        if self.loading.get() > 0 {
            return self.reporting.early.borrow_mut().push(key);
        }
        let report = self.queue.borrow().report(key);
        let Some(report) = report else { return self.end_report(key, About::Failure, &[]) };
        let Some(facts) = self.facts_of(key, &report) else { return self.end_report(key, About::Failure, &[]) };
        if facts.recipients.is_empty() {
            self.log_untold(facts.id, key, &report);
            return self.end_report(key, report.about, &report.recipients);
        }
        self.delivery.attempt_began();
        self.ring.spawn(self.clone().report(key, report, facts)).detach();
    }

    async fn report(self: Rc<Self>, key: MessageKey, report: Report, facts: Facts) {
        match self.make(&report, &facts).await {
            Ok(()) => {
                self.log_untold(facts.id, key, &report);
                self.end_report(key, report.about, &report.recipients);
            }
            Err(NotMade::Dropped { why }) => {
                self.metrics.reports_dropped.increment();
                for recipient in &facts.recipients {
                    self.log_mail(format_args!(
                        "queue_id={} event=report about={} to=<{}> outcome=dropped reason=\"{why}\"",
                        facts.id,
                        word(report.about),
                        EscapedWord(recipient.path.as_bytes())
                    ));
                }
                self.log_untold(facts.id, key, &report);
                self.end_report(key, report.about, &report.recipients);
            }
            Err(NotMade::Later) => self.queue.borrow_mut().postpone_report(key, self.now_ms() + POSTPONED_MS),
            Err(NotMade::Ending) => {}
        }
        self.delivery.attempt_ended(&self);
    }

    fn end_report(&self, key: MessageKey, about: About, recipients: &[u16]) {
        let mut record = Vec::new();
        let settled = self.queue.borrow_mut().reported(key, about, recipients, self.now_ms(), &mut record);
        self.persist(key, settled);
        self.delivery.kick();
    }

    /// Makes one report durable and queues it.
    async fn make(&self, report: &Report, facts: &Facts) -> Result<(), NotMade> {
        let Some(committer) = self.committer_of(facts.id.shard) else { return Err(NotMade::Later) };
        let record = MessageRecord::read(&committer, record_id(facts.id)).await;
        let record = record.inspect_err(|reason| warn!(queue_id = %facts.id, %reason, "a report returns nothing of its message")).ok();
        let envelope = record.as_ref().and_then(|record| record.envelope().ok());
        let view = envelope.as_ref().map(|envelope| envelope.view());
        let is_double = facts.reverse_path.is_empty();
        if let Some((record, origin)) = record.as_ref().zip(view.as_ref().and_then(ReportOrigin::of))
            && !origin.is_again
            && facts.recipients.iter().all(|recipient| report::is_for_conversion(&recipient.reply))
            && let Some(bytes) = report::to_seven_bit(&record.content()).filter(|bytes| bytes.len() <= CONTENT_BYTES_MAX)
        {
            return self.report_again(report, facts, &origin, bytes).await;
        }
        let content = MessageContent::of_log(committer.clone(), record_id(facts.id)).await.ok();
        let config = self.config();
        let to = match (&config.bounce.double_bounce_to, view.as_ref().and_then(ReportOrigin::of)) {
            _ if !is_double => facts.reverse_path.as_str(),
            (None, _) => return Err(NotMade::Dropped { why: "the reverse-path is null and there is no bounce.double_bounce_to" }),
            (Some(_), Some(origin)) if origin.is_double => {
                return Err(NotMade::Dropped { why: "this was the report of a report that failed" });
            }
            // What came from elsewhere with a null reverse-path may be such a report: of a node whose own go here, or one that has gone round.
            (Some(_), None) if report::is_double(&header_of(content.as_ref()).await) => {
                return Err(NotMade::Dropped { why: "this was the report of a report that failed" });
            }
            (Some(to), None) if facts.recipients.iter().any(|recipient| recipient.path.eq_ignore_ascii_case(to)) => {
                return Err(NotMade::Dropped { why: "it was to bounce.double_bounce_to itself" });
            }
            (Some(to), _) => to.as_str(),
        };
        let wants_whole = report.about == About::Failure
            && view.is_none_or(|view| view.ret() != Some(Return::Headers) && view.body() != Body::BinaryMime);
        let (returned, is_whole) = self.returned(content, facts.content_bytes, wants_whole).await;
        let id = self.next_id();
        let recipients = report.recipients.clone();
        let origin = ReportOrigin { message: facts.id, about: report.about, recipients, is_double, is_again: false };
        let content = self.content_of(facts, id, to, view, if is_whole { Returned::Whole(&returned) } else { Returned::Header(&returned) });
        self.send(id, &origin, to, facts, &content).await
    }

    /// The report of a report that no next hop takes because of its octets beyond ASCII: the same without them, to the same sender, once.
    /// What fails as such would leave without a word to whom it was for.
    async fn report_again(&self, report: &Report, facts: &Facts, origin: &ReportOrigin, bytes: Vec<u8>) -> Result<(), NotMade> {
        let Some(to) = facts.recipients.first().map(|recipient| &*recipient.path) else { return Ok(()) };
        let recipients = report.recipients.clone();
        let again = ReportOrigin { message: facts.id, about: report.about, recipients, is_double: origin.is_double, is_again: true };
        let needs = report::ReportNeeds { eight_bit: false, smtputf8: false };
        self.send(self.next_id(), &again, to, facts, &ReportContent { bytes, needs }).await
    }

    /// Makes a report durable, queues it and says so.
    async fn send(&self, id: QueueId, origin: &ReportOrigin, to: &str, facts: &Facts, content: &ReportContent) -> Result<(), NotMade> {
        let envelope = origin.envelope(to, &content.needs, content.bytes.len());
        self.store(id, &content.bytes, &envelope).await?;
        self.metrics.reports.increment();
        for recipient in &facts.recipients {
            self.log_mail(format_args!(
                "queue_id={} event=report about={} to=<{}> outcome=sent report={id} report_to=<{}>",
                facts.id,
                word(origin.about),
                EscapedWord(recipient.path.as_bytes()),
                EscapedWord(to.as_bytes())
            ));
        }
        self.log_mail(format_args!(
            "queue_id={id} event=accepted listener=report client=none helo=none from=<> size={} recipients=1 reports={}",
            content.bytes.len(),
            facts.id
        ));
        Ok(())
    }

    /// Appends the report, waits until it is durable, and queues it.
    async fn store(&self, id: QueueId, content: &[u8], envelope: &Envelope) -> Result<(), NotMade> {
        let mut check = LineEndCheck::default();
        if let Err(bare) = check.piece(content).and_then(|()| check.finish()) {
            // A report holds words of strangers and leaves by DATA. Whoever made this one is at fault, and the sender waits.
            error!(queue_id = %id, %bare, "a report must not be sent; it is tried again");
            return Err(NotMade::Later);
        }
        let accepted_at_ms = self.now_ms();
        let envelope_bytes = u32::try_from(envelope.as_bytes().len()).expect("one recipient");
        let content_bytes = content.len() as u64;
        let trailer = Trailer { envelope_bytes, accepted_at_ms, content_bytes, ..Trailer::default() };
        let bound = u32::try_from(content.len() + envelope.as_bytes().len() + TRAILER_BYTES).expect("bounded where it is declared");
        let mut turn = self.own.turn();
        let ticket = loop {
            let appended = turn.append(Content::Message, record_id(id), bound, |record| {
                record.put(content);
                record.put(envelope.as_bytes());
                record.put(&trailer.encode());
                (true, ())
            });
            match appended {
                Ok((Some(appended), ())) => break appended.ticket,
                Ok((None, ())) => unreachable!("the record was kept"),
                Err(AppendError::Full | AppendError::NotOpen) if !self.is_ending() => turn.room().await,
                Err(AppendError::Closed | AppendError::Full | AppendError::NotOpen) => return Err(NotMade::Ending),
                Err(reason) => {
                    warn!(queue_id = %id, %reason, "a report cannot be stored now; it is tried again");
                    return Err(NotMade::Later);
                }
            }
        };
        self.own.durable(ticket).await.map_err(|_| NotMade::Ending)?;
        self.enqueue(id, &envelope.view(), content_bytes, accepted_at_ms, Stated::default());
        Ok(())
    }

    /// What goes back of a message, and whether that is all of it.
    async fn returned(&self, content: Option<MessageContent>, content_bytes: u64, wants_whole: bool) -> (Vec<u8>, bool) {
        let bytes_max = usize::try_from(self.config().bounce.return_max.bytes()).unwrap_or(RETURN_BYTES_MAX).min(RETURN_BYTES_MAX);
        let is_whole = wants_whole && content_bytes <= bytes_max as u64;
        let mut returned = Vec::new();
        let Some(content) = content else { return (returned, false) };
        for index in 0..content.pieces() {
            let Ok(piece) = content.piece(index).await else {
                returned.truncate(report::header_bytes(&returned));
                return (returned, false);
            };
            returned.extend_from_slice(&piece[..piece.len().min(bytes_max + 1 - returned.len().min(bytes_max))]);
            if returned.len() > bytes_max || !is_whole && report::header_bytes(&returned) < returned.len() {
                break;
            }
        }
        if is_whole {
            return (returned, true);
        }
        returned.truncate(report::header_bytes(&returned).min(bytes_max));
        // A cut ends with a whole line.
        let end = returned.windows(2).rposition(|pair| pair == b"\r\n").map_or(0, |at| at + 2);
        returned.truncate(end);
        (returned, false)
    }

    fn content_of(&self, facts: &Facts, id: QueueId, to: &str, view: Option<EnvelopeView<'_>>, returned: Returned<'_>) -> ReportContent {
        let originals: Vec<Option<&str>> = view.iter().flat_map(|view| view.recipients()).map(|recipient| recipient.original).collect();
        let recipients: Vec<_> = facts
            .recipients
            .iter()
            .map(|recipient| ReportedRecipient {
                path: Path::new(&recipient.path),
                original: originals.get(usize::from(recipient.number)).copied().flatten(),
                action: recipient.action,
                reply: &recipient.reply,
                relay: recipient.relay.as_deref(),
                last_attempt: recipient.last_attempt,
                will_retry_until: recipient.until.filter(|_| recipient.action == Action::Delayed),
            })
            .collect();
        let mut list = String::new();
        report::write_list(&recipients, &mut list);
        let config = self.config();
        let bounce = &config.bounce;
        let is_kept = facts.recipients.first().is_some_and(|recipient| recipient.is_kept);
        let template = match recipients.first().map(|recipient| recipient.action) {
            Some(Action::Delayed) if is_kept => &bounce.held_text,
            Some(Action::Delayed) => &bounce.delayed_text,
            Some(Action::Delivered | Action::Relayed) => &bounce.success_text,
            Some(Action::Failed) | None => &bounce.failed_text,
        };
        let (message, text_of) = (facts.id.to_string(), |date: &DateText| String::from_utf8_lossy(date.as_bytes()).into_owned());
        let (arrival, until) = (text_of(&facts.arrival), text_of(&facts.until));
        let text = template.render(|placeholder| match placeholder {
            Placeholder::Hostname => &self.hostname,
            Placeholder::Id => &message,
            Placeholder::Sender => &facts.reverse_path,
            Placeholder::Recipients => &list,
            Placeholder::Arrival => &arrival,
            Placeholder::Until => &until,
        });
        let mut seed = [0; 16];
        getrandom::fill(&mut seed).expect("the kernel gives random bytes");
        let (id, date) = (id.to_string(), date_of(self.clock.unix_ms()));
        let report = report::Report {
            hostname: &self.hostname,
            id: &id,
            date: &date,
            to: Path::new(to),
            text: &text,
            envelope_id: view.and_then(|view| view.envelope_id()),
            arrival: &facts.arrival,
            recipients: &recipients,
            is_kept,
            smtputf8: facts.smtputf8,
            is_double: facts.reverse_path.is_empty(),
            returned,
            seed: u128::from_ne_bytes(seed),
        };
        let mut bytes = Vec::new();
        let mut needs = report::write_report(&report, &mut bytes);
        if bytes.len() > CONTENT_BYTES_MAX {
            // A text of the config can repeat its placeholders without end. What a program reads always fits.
            warn!(queue_id = %facts.id, bytes = bytes.len(), "a report is too large for one record: its text and its message are left out");
            bytes.clear();
            needs = report::write_report(&report::Report { text: "", returned: Returned::Nothing, ..report }, &mut bytes);
        }
        ReportContent { bytes, needs }
    }

    /// `None` if the message has left the queue. Only recipients whose sender is to be told are in it.
    fn facts_of(&self, key: MessageKey, report: &Report) -> Option<Facts> {
        let (queue, now) = (self.queue.borrow(), self.now_ms());
        let view = queue.show(key)?;
        let envelope = view.envelope();
        let mut all: Vec<_> = Vec::new();
        for recipient in view.recipients().filter(|recipient| report.recipients.contains(&recipient.number())) {
            let Some(notice) = recipient.notice().filter(|_| recipient.is_told()) else { continue };
            let action = match notice {
                ringpost_queue::Notice::Failed => Action::Failed,
                ringpost_queue::Notice::Delayed => Action::Delayed,
                ringpost_queue::Notice::Delivered => Action::Delivered,
                ringpost_queue::Notice::Relayed => Action::Relayed,
            };
            let (reply, relay) = match action {
                Action::Delayed => recipient.word(now),
                _ => (recipient.reply(), recipient.relay()),
            };
            all.push(RecipientFacts {
                number: recipient.number(),
                path: String::from_utf8_lossy(recipient.address()).into_owned(),
                action,
                reply: reply.into_owned(),
                relay: relay.map(Cow::into_owned),
                last_attempt: recipient.last_attempt().map(date_of),
                until: recipient.fails_at().map(date_of),
                is_kept: recipient.is_kept(),
            });
        }
        let until = view.recipients().map(|recipient| recipient.expires_at()).max().unwrap_or(now);
        Some(Facts {
            id: envelope.id,
            reverse_path: String::from_utf8_lossy(envelope.reverse_path).into_owned(),
            smtputf8: envelope.smtputf8,
            content_bytes: envelope.size,
            arrival: date_of(envelope.accepted_at),
            until: date_of(until),
            recipients: all,
        })
    }

    /// Recipients that leave without a report, because their sender said so.
    fn log_untold(&self, id: QueueId, key: MessageKey, report: &Report) {
        let queue = self.queue.borrow();
        let Some(view) = queue.show(key) else { return };
        for recipient in view.recipients().filter(|recipient| report.recipients.contains(&recipient.number()) && !recipient.is_told()) {
            self.log_mail(format_args!(
                "queue_id={id} event=report about={} to=<{}> outcome=none reason=\"NOTIFY does not ask for it\"",
                word(report.about),
                EscapedWord(recipient.address())
            ));
        }
    }
}

/// The header of a message that can be read, and maybe more of it; what fills the first [`RETURN_BYTES_MAX`] says enough.
async fn header_of(content: Option<&MessageContent>) -> Vec<u8> {
    let mut header = Vec::new();
    let Some(content) = content else { return header };
    for index in 0..content.pieces() {
        let Ok(piece) = content.piece(index).await else { break };
        header.extend_from_slice(&piece[..piece.len().min(RETURN_BYTES_MAX - header.len())]);
        if header.len() == RETURN_BYTES_MAX || report::header_bytes(&header) < header.len() {
            break;
        }
    }
    header
}

struct ReportContent {
    bytes: Vec<u8>,
    needs: report::ReportNeeds,
}

/// The word in the mail log.
fn word(about: About) -> &'static str {
    match about {
        About::Failure => "failure",
        About::Delay => "delay",
        About::Success => "success",
    }
}

fn date_of(unix_ms: u64) -> DateText {
    DateText::new(i64::try_from(unix_ms / 1000).unwrap_or(i64::MAX))
}
