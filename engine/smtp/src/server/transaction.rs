//! MAIL, RCPT, DATA and BDAT, and what is made of content that ended.

use super::action::Action;
use super::replies::{Line, Replies, lines};
use super::session::{Session, State, Transaction};
use crate::address::PathKind;
use crate::command::path_and_parameters;
use crate::content::{ContentScanner, Defect, Framing};
use crate::envelope::Origin;
use crate::extension::{Body, Extensions, Hold, MailParameters, ParameterError, RecipientParameters};

impl Session {
    pub(super) fn mail_command(&mut self, argument: &[u8], replies: &mut Replies<'_>) -> Option<Action> {
        if self.helo.is_empty() {
            self.bad(lines::GREET_FIRST, replies);
            return None;
        }
        if !matches!(self.transaction, Transaction::None) {
            self.bad(lines::NESTED_MAIL, replies);
            return None;
        }
        if self.messages >= self.settings.options().messages_max {
            self.leave("421 4.7.0 ", " Enough messages on this connection", replies);
            return None;
        }
        match self.take_mail(argument) {
            Ok(size) => {
                self.mail_refused = false;
                self.ask(State::AwaitsMail, Action::Mail { size })
            }
            Err(line) => {
                self.envelope.clear();
                self.bad(line, replies);
                self.mail_refused = true;
                None
            }
        }
    }

    /// Reads reverse-path and parameters into the envelope.
    fn take_mail(&mut self, argument: &[u8]) -> Result<Option<u64>, Line> {
        let origin = Origin { peer: self.peer(), protocol: self.protocol, helo: &self.helo };
        let limits = self.settings.options().paths;
        let begun = self.envelope.begin(&origin, |out| path_and_parameters(argument, PathKind::Reverse, limits, out));
        let (path, rest) = begun.map_err(|_| lines::BAD_SENDER)?;
        let options = self.settings.options();
        let mut parameters = MailParameters::parse(rest, options.extensions).map_err(parameter_line)?;
        if path.non_ascii && !parameters.smtputf8 {
            return Err(lines::NEEDS_SMTPUTF8);
        }
        // RFC 1870 6.1 (2).
        if parameters.size.is_some_and(|size| size > options.content.content_bytes_max) {
            return Err(lines::TOO_LARGE);
        }
        if matches!(parameters.hold, Some(Hold::For(seconds)) if seconds > options.hold_seconds_max) {
            return Err(lines::BAD_PARAMETER);
        }
        // RFC 6710 4.1: a server may lower what a client asks for, and says so when it takes the message.
        self.lowered_priority = parameters.priority.filter(|priority| *priority > options.priority_max).map(|_| options.priority_max);
        parameters.priority = parameters.priority.map(|priority| priority.min(options.priority_max));
        self.envelope.set_parameters(&parameters);
        Ok(parameters.size)
    }

    pub(super) fn rcpt_command(&mut self, argument: &[u8], replies: &mut Replies<'_>) -> Option<Action> {
        match &self.transaction {
            Transaction::Recipients => {}
            Transaction::None => {
                self.out_of_order(lines::MAIL_FIRST, replies);
                return None;
            }
            Transaction::Content(_) | Transaction::Failed(_) => {
                self.bad(lines::AFTER_BDAT, replies);
                return None;
            }
        }
        // RFC 5321 4.5.3.1.10: 452, so that the rest is sent in another transaction.
        if self.envelope.recipient_count() >= self.settings.options().recipients_max {
            self.refuse(lines::TOO_MANY_RECIPIENTS, replies);
            return None;
        }
        match self.take_recipient(argument) {
            Ok(()) => self.ask(State::AwaitsRecipient, Action::Recipient),
            Err(line) => {
                self.recipient_refused = true;
                self.bad(line, replies);
                None
            }
        }
    }

    /// Reads forward-path and parameters into the envelope, or leaves it as it was.
    fn take_recipient(&mut self, argument: &[u8]) -> Result<(), Line> {
        let options = self.settings.options();
        let pushed = self.envelope.push_recipient(|out| {
            let start = out.len();
            let taken = path_and_parameters(argument, PathKind::Forward, options.paths, out);
            // RFC 5321 4.5.1: a `Postmaster` without a domain is ours, wherever our mail goes.
            if let Some(postmaster) = &options.postmaster
                && taken.is_ok()
                && out[start..] == *b"postmaster"
            {
                out.truncate(start);
                out.extend_from_slice(postmaster.as_bytes());
            }
            taken
        });
        let (path, rest) = pushed.map_err(|_| lines::BAD_RECIPIENT)?;
        let smtputf8 = self.envelope.view().smtputf8();
        let parameters = RecipientParameters::parse(rest, self.settings.options().extensions, smtputf8).map_err(parameter_line);
        match parameters {
            Ok(parameters) if smtputf8 || !path.non_ascii => {
                self.envelope.set_recipient_parameters(&parameters);
                Ok(())
            }
            refused => {
                self.envelope.pop_recipient();
                Err(refused.err().unwrap_or(lines::NEEDS_SMTPUTF8))
            }
        }
    }

    pub(super) fn data_command(&mut self, replies: &mut Replies<'_>) {
        match self.transaction {
            Transaction::None => return self.out_of_order(lines::MAIL_FIRST, replies),
            Transaction::Content(_) | Transaction::Failed(_) => return self.bad(lines::AFTER_BDAT, replies),
            Transaction::Recipients => {}
        }
        if self.envelope.recipient_count() == 0 {
            // RFC 2920 3.1: a client that pipelined learns here that all its RCPTs were refused.
            return if self.recipient_refused { self.refuse(lines::NO_RECIPIENTS, replies) } else { self.bad(lines::RCPT_FIRST, replies) };
        }
        if self.envelope.view().body() == Body::BinaryMime {
            return self.bad(lines::BINARY_NEEDS_BDAT, replies);
        }
        self.content_begins(Framing::Dots);
        self.state = State::Data;
        replies.lines("354 End data with <CR><LF>.<CR><LF>\r\n");
    }

    /// RFC 3030 2. The octets follow whatever the answer will be, so they are read in any case.
    pub(super) fn bdat_command(&mut self, bytes: u64, last: bool, replies: &mut Replies<'_>) {
        if !self.settings.options().extensions.has(Extensions::CHUNKING) {
            return self.close(lines::NO_CHUNKING, replies);
        }
        if matches!(self.transaction, Transaction::Recipients) && self.envelope.recipient_count() > 0 {
            let binary = self.envelope.view().body() == Body::BinaryMime;
            self.content_begins(if binary { Framing::Binary } else { Framing::Chunks });
        }
        self.begin_phase();
        self.state = State::Chunk { left: bytes, last };
        if bytes == 0 && !last {
            // A message of endless nothing.
            self.count_junk(replies);
        }
    }

    /// At [`Action::Commit`]: the last line of the content has no end, so that it is two octets longer where it goes by DATA.
    pub fn ends_openly(&self) -> bool {
        matches!(&self.transaction, Transaction::Content(scanner) if scanner.ends_openly())
    }

    fn content_begins(&mut self, framing: Framing) {
        self.envelope.drop_repeats();
        self.begin_phase();
        self.transaction = Transaction::Content(ContentScanner::new(framing));
        self.content_open = true;
    }

    /// Answers content that ended badly, or a chunk that is not the last; asks for the commit of a whole message.
    pub(super) fn content_ended(&mut self, last: bool, replies: &mut Replies<'_>) -> Option<Action> {
        let (refusal, ends_session) = match &self.transaction {
            Transaction::None => (lines::MAIL_FIRST, false),
            Transaction::Recipients if self.recipient_refused => (lines::NO_RECIPIENTS, false),
            Transaction::Recipients => (lines::RCPT_FIRST, false),
            Transaction::Failed(line) => (*line, false),
            Transaction::Content(scanner) => match scanner.defect() {
                Some(defect) => (defect_line(defect), defect == Defect::BareNewline),
                None if last => {
                    let facts = scanner.facts();
                    self.envelope.set_content(&facts);
                    return self.ask(State::AwaitsCommit, Action::Commit);
                }
                None => {
                    self.state = State::Commands;
                    replies.line(lines::CHUNK_OK);
                    return None;
                }
            },
        };
        if ends_session || self.refused_too_long() {
            self.close(refusal, replies);
            return None;
        }
        // As for DATA: a chunk without a transaction is the client's fault, unless it could not know yet.
        let is_bad = match &self.transaction {
            Transaction::None => !self.mail_refused,
            Transaction::Recipients => !self.recipient_refused,
            Transaction::Content(_) | Transaction::Failed(_) => false,
        };
        if last {
            self.message_ended();
        } else {
            self.state = State::Commands;
            if !matches!(self.transaction, Transaction::None) {
                self.clear();
                self.transaction = Transaction::Failed(if refusal.class() == 4 { refusal } else { lines::BDAT_FAILED });
            }
            self.begin_phase();
        }
        if is_bad {
            self.bad(refusal, replies);
        } else {
            self.refuse(refusal, replies);
        }
        None
    }
}

fn parameter_line(error: ParameterError) -> Line {
    match error {
        ParameterError::Unknown => lines::UNKNOWN_PARAMETER,
        ParameterError::Value => lines::BAD_PARAMETER,
    }
}

fn defect_line(defect: Defect) -> Line {
    match defect {
        Defect::NoRoom => lines::NO_ROOM,
        Defect::NotStored => lines::NOT_STORED,
        Defect::TooLarge => lines::TOO_LARGE,
        Defect::HeaderTooLarge => lines::HEADER_TOO_LARGE,
        Defect::Loop => lines::LOOP,
        Defect::LineTooLong => lines::TEXT_LINE_TOO_LONG,
        Defect::Nul => lines::NUL,
        Defect::BareNewline => lines::BARE_NEWLINE,
    }
}
