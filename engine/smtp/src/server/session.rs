//! A session: its state, what the driver asks of it and tells it.

use std::mem;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use super::action::{Action, CommitFailure, ContentStep, Timeout, TimeoutKind, Verdict};
use super::replies::{Line, Replies, lines};
use super::settings::ServerSettings;
use crate::address::Path;
use crate::command::{Command, is_foreign_start};
use crate::content::{ContentScanner, ContentSink, Defect, Scanned};
use crate::envelope::{Envelope, EnvelopeView, Protocol};
use crate::line::{Line as CommandLine, LineReader, Unread};

/// With so many octets of replies unsent a session reads no further command: a client that never reads is not to fill
/// our memory.
pub const REPLIES_BYTES_MAX: usize = 8 * 1024;

/// Refusals without an accepted message, beyond which the session ends. Those of a pipelining client with unlucky recipients, so there
/// may be many: ten transactions of a thousand.
const REFUSALS_MAX: u16 = 10_000;

/// Content that is refused is read to its end, so that the client reads why, but no further than so many times `content_bytes_max` and
/// [`REFUSED_BYTES_MORE`]: then it is refused at once, and the session ends. A client that does not know of SIZE stays below that as a rule.
const REFUSED_CONTENTS_MAX: u64 = 4;
/// Octets, see [`REFUSED_CONTENTS_MAX`].
const REFUSED_BYTES_MORE: u64 = 1 << 20;

/// What the session waits for.
#[derive(Debug)]
pub(super) enum State {
    /// The banner was not said.
    Opening,
    /// Commands.
    Commands,
    /// The verdict on MAIL.
    AwaitsMail,
    /// The verdict on RCPT.
    AwaitsRecipient,
    /// Content up to CRLF.CRLF.
    Data,
    /// Content, this many octets more of the chunk.
    Chunk { left: u64, last: bool },
    /// What is made of the content that ended.
    ContentEnded { last: bool },
    /// Whether the message is durable.
    AwaitsCommit,
    /// Nothing more.
    Closed,
    // STARTTLS and AUTH have their places here: a handshake and an exchange of lines, both begun from `Commands`.
}

/// How far the transaction is. Its paths are in the envelope.
#[derive(Debug)]
pub(super) enum Transaction {
    /// No MAIL was accepted.
    None,
    /// MAIL was accepted; RCPT may come.
    Recipients,
    /// DATA or BDAT began.
    Content(ContentScanner),
    /// A chunk failed. Until the last chunk or RSET every BDAT fails (RFC 3030 2), with this: what a client pipelined behind a chunk that
    /// failed for now is not told that it failed for good.
    Failed(Line),
}

/// One SMTP session of a server. Holds nothing on the heap between transactions but the peer's name and little more.
#[derive(Debug)]
pub struct Session {
    pub(super) settings: Rc<ServerSettings>,
    pub(super) lines: LineReader,
    pub(super) envelope: Envelope,
    /// The name of HELO or EHLO; empty before.
    pub(super) helo: String,
    pub(super) transaction: Transaction,
    pub(super) state: State,
    peer: SocketAddr,
    /// Octets that came in this phase, if it is one of content.
    data_bytes: u64,
    phase: u32,
    pub(super) messages: u32,
    pub(super) bad_commands: u16,
    pub(super) junk_commands: u16,
    /// What MT-PRIORITY of the open transaction was lowered to, if it was.
    pub(super) lowered_priority: Option<i8>,
    /// Commands refused that were no bad ones, since the last accepted message.
    refusals: u16,
    pub(super) protocol: Protocol,
    /// The last MAIL was refused, so what a pipelining client sent behind it is no fault of its own.
    pub(super) mail_refused: bool,
    /// At least one RCPT of this transaction was refused.
    pub(super) recipient_refused: bool,
    /// The sink may hold content of this transaction.
    pub(super) content_open: bool,
    /// The driver is to be told to drop what the sink holds.
    abort: bool,
    /// The next thing is a delay.
    pub(super) delay: bool,
    /// The phase of time was one of an unfinished command.
    partial: bool,
    /// The session ends when the message at hand was answered.
    closing: bool,
}

impl Session {
    /// A session with `peer`, before its banner.
    pub fn new(settings: Rc<ServerSettings>, peer: SocketAddr) -> Self {
        Self {
            settings,
            lines: LineReader::default(),
            envelope: Envelope::new(),
            helo: String::new(),
            transaction: Transaction::None,
            state: State::Opening,
            peer,
            data_bytes: 0,
            phase: 0,
            messages: 0,
            bad_commands: 0,
            junk_commands: 0,
            lowered_priority: None,
            refusals: 0,
            protocol: Protocol::Smtp,
            mail_refused: false,
            recipient_refused: false,
            content_open: false,
            abort: false,
            delay: false,
            partial: false,
            closing: false,
        }
    }

    /// Makes this the session of a new connection, keeping the small buffers of the old one, so that a driver with spare
    /// sessions allocates nothing for a connection.
    pub fn reopen(&mut self, settings: Rc<ServerSettings>, peer: SocketAddr) {
        self.lines.forget();
        self.envelope.clear();
        self.helo.clear();
        let (lines, envelope, helo) = (mem::take(&mut self.lines), mem::take(&mut self.envelope), mem::take(&mut self.helo));
        *self = Self { lines, envelope, helo, ..Self::new(settings, peer) };
    }

    /// Says the banner; call it first, with what was received already. Then call [`next`](Self::next).
    ///
    /// A peer that speaks before the banner gets 554 5.5.0 and the end: no client does.
    pub fn banner(&mut self, input: &Unread<'_>, replies: &mut Replies<'_>) {
        assert!(matches!(self.state, State::Opening), "the banner is said once");
        if input.is_waiting() {
            return self.close(lines::OUT_OF_SYNC, replies);
        }
        replies.lines(self.settings.banner());
        self.state = State::Commands;
        self.begin_phase();
    }

    /// Reads on and says what is to be done.
    ///
    /// # Panics
    /// Before the banner, and while a verdict, content or a commit is awaited.
    pub fn next(&mut self, input: &mut Unread<'_>, replies: &mut Replies<'_>) -> Action {
        loop {
            if mem::take(&mut self.abort) && !matches!(self.state, State::Closed) {
                return Action::Abort;
            }
            match &self.state {
                State::Closed => return Action::Close,
                State::Data | State::Chunk { .. } => return Action::Content,
                State::ContentEnded { last } => {
                    let last = *last;
                    if let Some(action) = self.content_ended(last, replies) {
                        return action;
                    }
                    continue;
                }
                State::Commands if self.closing && !self.in_content() => {
                    self.leave("421 4.3.2 ", " Shutting down", replies);
                    continue;
                }
                State::Commands => {}
                state => panic!("the driver owes an answer: {state:?}"),
            }
            if mem::take(&mut self.delay) {
                return Action::Delay(self.settings.options().bad_command_delay);
            }
            if replies.len() >= REPLIES_BYTES_MAX && !input.is_empty() {
                return Action::Send;
            }
            if let Some(action) = self.command(input, replies) {
                return action;
            }
        }
    }

    /// Reads one command.
    fn command(&mut self, input: &mut Unread<'_>, replies: &mut Replies<'_>) -> Option<Action> {
        if self.lines.first(input).is_some_and(is_foreign_start) {
            // Judged by its first octet: such a peer may never send a line end.
            self.close(lines::NOT_SMTP, replies);
            return None;
        }
        let mut reader = mem::take(&mut self.lines);
        let action = match reader.next(input, self.settings.options().command_line_bytes_max) {
            CommandLine::Incomplete => {
                if reader.is_partial() && !mem::replace(&mut self.partial, true) {
                    self.begin_phase();
                }
                Some(Action::Read)
            }
            line => {
                self.partial = false;
                self.begin_phase();
                match line {
                    CommandLine::Complete(line) => self.execute(line, input, replies),
                    CommandLine::BareLf => {
                        self.close(lines::BARE_LF, replies);
                        None
                    }
                    // The octets of the chunk would be taken for commands.
                    CommandLine::TooLong { verb } if Command::is_chunk(&verb) => {
                        self.close(lines::BAD_CHUNK_SIZE, replies);
                        None
                    }
                    CommandLine::TooLong { .. } | CommandLine::Incomplete => {
                        self.bad(lines::LINE_TOO_LONG, replies);
                        None
                    }
                }
            }
        };
        self.lines = reader;
        action
    }

    /// Answers [`Action::Mail`].
    pub fn mail(&mut self, verdict: Verdict, replies: &mut Replies<'_>) {
        assert!(matches!(self.state, State::AwaitsMail), "no MAIL was asked about");
        self.state = State::Commands;
        match verdict {
            Verdict::Accept => {
                self.transaction = Transaction::Recipients;
                replies.line(lines::MAIL_OK);
            }
            Verdict::Refuse(line) => {
                self.envelope.clear();
                self.mail_refused = true;
                self.refuse(line, replies);
            }
            Verdict::Close(line) => self.close(line, replies),
        }
    }

    /// Answers [`Action::Recipient`].
    pub fn recipient(&mut self, verdict: Verdict, replies: &mut Replies<'_>) {
        assert!(matches!(self.state, State::AwaitsRecipient), "no RCPT was asked about");
        self.state = State::Commands;
        match verdict {
            Verdict::Accept => replies.line(lines::RCPT_OK),
            Verdict::Refuse(line) => {
                self.envelope.pop_recipient();
                self.recipient_refused = true;
                self.refuse(line, replies);
            }
            Verdict::Close(line) => self.close(line, replies),
        }
    }

    /// Reads content out of `input` and puts it, without dot-stuffing, into `sink`: slices of the input, as large as it
    /// allows.
    ///
    /// # Panics
    /// When [`Action::Content`] was not the last action.
    pub fn content(&mut self, input: &mut Unread<'_>, sink: &mut impl ContentSink) -> ContentStep {
        let before = input.consumed();
        let rules = &self.settings.options().content;
        match (&mut self.state, &mut self.transaction) {
            (State::Data, Transaction::Content(scanner)) => {
                if scanner.scan(rules, input, sink) == Scanned::End {
                    self.state = State::ContentEnded { last: true };
                }
            }
            (State::Chunk { left, last }, transaction) => {
                let (last, bytes) = (*last, input.remaining());
                let here = &bytes[..usize::try_from(*left).map_or(bytes.len(), |left| left.min(bytes.len()))];
                *left -= here.len() as u64;
                let ended = *left == 0;
                // Without a scanner the chunk is refused already, and its octets are only taken off the stream.
                if let Transaction::Content(scanner) = transaction {
                    scanner.scan(rules, &mut Unread::new(here), sink);
                    if ended && last {
                        scanner.finish(rules, sink);
                    }
                }
                input.advance(here.len());
                if ended {
                    self.state = State::ContentEnded { last };
                }
            }
            (State::ContentEnded { .. }, _) => {}
            (state, _) => panic!("no content is expected: {state:?}"),
        }
        self.data_bytes += (input.consumed() - before) as u64;
        // Without a scanner the octets of a chunk are only taken off the stream.
        let refused = !matches!(&self.transaction, Transaction::Content(scanner) if scanner.defect().is_none());
        if refused {
            if self.refused_too_long() {
                self.state = State::ContentEnded { last: true };
            }
            if mem::take(&mut self.content_open) {
                return ContentStep::Refused;
            }
        }
        if matches!(self.state, State::ContentEnded { .. }) { ContentStep::End } else { ContentStep::More }
    }

    /// Answers [`Action::Commit`]: the queue id once envelope and content are durable, or why they are not.
    ///
    /// The id is printable ASCII, at most 255 octets.
    pub fn committed(&mut self, result: Result<&str, CommitFailure>, replies: &mut Replies<'_>) {
        assert!(matches!(self.state, State::AwaitsCommit), "no commit was asked for");
        match result {
            Ok(id) => {
                match self.lowered_priority {
                    None => replies.parts(&["250 2.0.0 Message accepted for delivery, id=", id]),
                    // RFC 6710 4.1, 9.2: X.3.6, and the text begins with the new priority.
                    Some(given) => {
                        replies.parts(&["250 2.3.6 ", &given.to_string(), " is its priority, message accepted for delivery, id=", id]);
                    }
                }
                self.messages += 1;
                self.bad_commands = 0;
                self.junk_commands = 0;
                self.refusals = 0;
            }
            Err(CommitFailure::NoRoom) => replies.line(lines::NO_ROOM),
            Err(CommitFailure::NotStored) => replies.line(lines::NOT_STORED),
            Err(CommitFailure::TooBusy) => replies.line(lines::TOO_BUSY),
            Err(CommitFailure::Refused(line)) => replies.line(line),
        }
        // The driver has the content, or has dropped it.
        self.content_open = false;
        self.message_ended();
    }

    /// The limit of time that applies while the driver waits for the peer.
    pub fn timeout(&self) -> Timeout {
        let options = self.settings.options();
        let (kind, after) = if self.in_content() {
            // Without a minimum the whole of `data_timeout` is earned at once.
            let earned = self.data_bytes.checked_div(options.data_rate_min.into()).map_or(Duration::MAX, Duration::from_secs);
            (TimeoutKind::Data, options.data_timeout.min(options.idle_timeout.saturating_add(earned)))
        } else if self.partial {
            (TimeoutKind::Command, options.command_timeout)
        } else {
            (TimeoutKind::Idle, options.idle_timeout)
        };
        Timeout { kind, phase: self.phase, after }
    }

    /// The limit of time is over: 421 4.4.2, and [`next`](Self::next) will say [`Action::Close`].
    pub fn timed_out(&mut self, kind: TimeoutKind, replies: &mut Replies<'_>) {
        self.leave(
            "421 4.4.2 ",
            match kind {
                TimeoutKind::Idle => " Nothing heard, closing",
                TimeoutKind::Command => " Command took too long, closing",
                TimeoutKind::Data => " Data took too long, closing",
            },
            replies,
        );
    }

    /// The process is to stop: 421 4.3.2 and the end, at once, or when the message that is on its way was answered.
    pub fn shutdown(&mut self, replies: &mut Replies<'_>) {
        match self.state {
            State::Closed => {}
            State::AwaitsMail | State::AwaitsRecipient | State::AwaitsCommit => self.closing = true,
            _ if self.in_content() => self.closing = true,
            _ => self.leave("421 4.3.2 ", " Shutting down", replies),
        }
    }

    /// There is no room for this session: 421 4.7.0 instead of the banner, or whenever load is shed.
    pub fn too_busy(&mut self, replies: &mut Replies<'_>) {
        self.leave("421 4.7.0 ", " Too many connections, try later", replies);
    }

    /// Ends the session with a line of the driver's choice.
    pub fn close(&mut self, line: Line, replies: &mut Replies<'_>) {
        replies.line(line);
        self.end();
    }

    /// The TCP peer.
    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// The name of HELO or EHLO; empty before.
    pub fn helo(&self) -> &str {
        &self.helo
    }

    /// The settings this session was opened with.
    pub fn settings(&self) -> &ServerSettings {
        &self.settings
    }

    /// The reverse-path of the transaction: at [`Action::Mail`] the one asked about.
    ///
    /// # Panics
    /// Without a transaction.
    pub fn reverse_path(&self) -> Path<'_> {
        self.envelope().reverse_path()
    }

    /// The forward-path asked about at [`Action::Recipient`]; afterwards the last one accepted.
    ///
    /// # Panics
    /// Without a recipient.
    pub fn recipient_path(&self) -> Path<'_> {
        assert!(self.envelope.recipient_count() > 0, "no recipient yet");
        self.envelope.last_recipient()
    }

    /// The envelope, complete at [`Action::Commit`].
    ///
    /// # Panics
    /// Without a transaction.
    pub fn envelope(&self) -> EnvelopeView<'_> {
        assert!(!self.envelope.is_empty(), "no transaction");
        self.envelope.view()
    }

    /// Messages accepted on this connection.
    pub fn messages(&self) -> u32 {
        self.messages
    }

    /// Whether content is on its way that ends at CRLF.CRLF, not one that is counted.
    pub fn in_dot_content(&self) -> bool {
        matches!(self.state, State::Data)
    }

    /// Whether content of a message is on its way, or its commit.
    pub fn in_content(&self) -> bool {
        matches!(self.state, State::Data | State::Chunk { .. } | State::ContentEnded { .. } | State::AwaitsCommit)
            || matches!(self.transaction, Transaction::Content(_))
    }

    /// What is wrong with the content so far.
    pub fn defect(&self) -> Option<Defect> {
        match &self.transaction {
            Transaction::Content(scanner) => scanner.defect(),
            _ => None,
        }
    }

    /// Octets of heap that the envelope holds. It grows with recipients, and becomes small again when the transaction ends.
    pub fn envelope_heap_bytes(&self) -> usize {
        self.envelope.heap_bytes()
    }

    /// Octets of heap held.
    pub fn heap_bytes(&self) -> usize {
        self.lines.heap_bytes() + self.envelope.heap_bytes() + self.helo.capacity()
    }

    /// Time counts from the start again, except while content is on its way: that is one phase with all its chunks.
    pub(super) fn begin_phase(&mut self) {
        if !self.in_content() {
            self.phase = self.phase.wrapping_add(1);
            self.data_bytes = 0;
        }
    }

    /// Forgets the transaction. RFC 5321 4.1.4, 4.1.1.4: RSET, EHLO and each end of a message, good or bad, clear the buffers.
    pub(super) fn clear(&mut self) {
        self.envelope.clear();
        self.transaction = Transaction::None;
        self.recipient_refused = false;
        self.mail_refused = false;
        self.abort |= mem::take(&mut self.content_open);
    }

    /// RSET, EHLO and HELO: without a transaction the time between its chunks is over.
    pub(super) fn give_up(&mut self) {
        self.clear();
        self.begin_phase();
    }

    /// Whether so much was read of content, or of one chunk to nobody, that will be refused that the session ends with the refusal.
    pub(super) fn refused_too_long(&self) -> bool {
        let content_bytes_max = self.settings.options().content.content_bytes_max;
        self.data_bytes > content_bytes_max.saturating_mul(REFUSED_CONTENTS_MAX).saturating_add(REFUSED_BYTES_MORE)
    }

    /// Refuses what a client may ask for in good faith, but not for ever.
    pub(super) fn refuse(&mut self, line: Line, replies: &mut Replies<'_>) {
        self.refusals += 1;
        if self.refusals > REFUSALS_MAX {
            self.leave("421 4.7.0 ", " Too many errors", replies);
        } else {
            replies.line(line);
        }
    }

    /// A message has ended, well or badly: nothing of it stays.
    pub(super) fn message_ended(&mut self) {
        self.clear();
        self.state = State::Commands;
        self.begin_phase();
    }

    /// Ends the session with 421 and our name. RFC 5321 3.8.
    pub(super) fn leave(&mut self, code: &str, text: &str, replies: &mut Replies<'_>) {
        replies.parts(&[code, self.settings.hostname(), text]);
        self.end();
    }

    pub(super) fn end(&mut self) {
        self.clear();
        self.state = State::Closed;
    }
}
