//! Commands outside of transactions, and what is said about bad ones.

use super::action::Action;
use super::replies::{Line, Replies, lines};
use super::session::{Session, State};
use crate::command::{Command, CommandError};
use crate::envelope::Protocol;
use crate::line::Unread;

impl Session {
    /// Does what a command line says. Gives an action back when the driver is asked.
    pub(super) fn execute(&mut self, line: &[u8], input: &Unread<'_>, replies: &mut Replies<'_>) -> Option<Action> {
        // RFC 2920 3.1: what these commands answer decides what comes next, so nothing may stand behind them. Whoever
        // sends more has not waited, or is not who is speaking.
        if input.is_waiting() && Command::ends_group(line) {
            self.close(lines::OUT_OF_SYNC, replies);
            return None;
        }
        match Command::parse(line) {
            Ok(Command::Mail(argument)) => return self.mail_command(argument, replies),
            Ok(Command::Rcpt(argument)) => return self.rcpt_command(argument, replies),
            Ok(Command::Data) => self.data_command(replies),
            Ok(Command::Bdat { bytes, last }) => self.bdat_command(bytes, last, replies),
            Ok(Command::Ehlo(name)) => self.greeted(Protocol::Esmtp, name, replies),
            Ok(Command::Helo(name)) => self.greeted(Protocol::Smtp, name, replies),
            Ok(Command::Rset) => {
                self.give_up();
                self.junk(lines::RSET_OK, replies);
            }
            Ok(Command::Noop) => self.junk(lines::NOOP_OK, replies),
            Ok(Command::Vrfy) => self.junk(lines::VRFY, replies),
            Ok(Command::Help) => self.junk(lines::HELP, replies),
            Ok(Command::Quit) => self.close(lines::QUIT, replies),
            // RFC 3207 and RFC 4954 come with TLS; until then they are not announced.
            Ok(Command::StartTls | Command::Auth(_) | Command::NotImplemented) => self.bad(lines::NOT_IMPLEMENTED, replies),
            Err(CommandError::Malformed) => self.bad(lines::NOT_UNDERSTOOD, replies),
            Err(CommandError::Unknown) => self.bad(lines::UNKNOWN_COMMAND, replies),
            Err(CommandError::Argument) => self.bad(lines::BAD_ARGUMENT, replies),
            // The octets of the chunk would be taken for commands.
            Err(CommandError::ChunkSize) => self.close(lines::BAD_CHUNK_SIZE, replies),
            Err(CommandError::Foreign) => self.close(lines::NOT_SMTP, replies),
        }
        None
    }

    /// RFC 5321 4.1.1.1 and 4.1.4: in mid-session it also clears the transaction.
    fn greeted(&mut self, protocol: Protocol, name: &[u8], replies: &mut Replies<'_>) {
        self.give_up();
        if !self.count_junk(replies) {
            return;
        }
        self.protocol = protocol;
        self.helo.clear();
        self.helo.reserve_exact(name.len());
        self.helo.push_str(std::str::from_utf8(name).expect("the parser took ASCII only"));
        match protocol {
            Protocol::Esmtp => replies.lines(&self.settings.ehlo()),
            Protocol::Smtp => replies.parts(&["250 ", self.settings.hostname()]),
        }
    }

    /// Answers a command that does nothing, unless there were too many.
    pub(super) fn junk(&mut self, line: Line, replies: &mut Replies<'_>) {
        if self.count_junk(replies) {
            replies.line(line);
        }
    }

    /// False when the limit is reached and the session has ended.
    pub(super) fn count_junk(&mut self, replies: &mut Replies<'_>) -> bool {
        let within = self.junk_commands < self.settings.options().junk_commands_max;
        if within {
            self.junk_commands += 1;
        } else {
            self.leave("421 4.7.0 ", " Too many commands without a message", replies);
        }
        within
    }

    /// Answers a bad command: at once, then with a delay, then with the end.
    pub(super) fn bad(&mut self, line: Line, replies: &mut Replies<'_>) {
        let options = self.settings.options();
        self.bad_commands += 1;
        if self.bad_commands >= options.bad_commands_hard {
            self.leave("421 4.7.0 ", " Too many errors", replies);
            return;
        }
        self.delay = self.bad_commands > options.bad_commands_soft;
        replies.line(line);
    }

    /// Refuses a command that only fails because the MAIL before it did: a pipelining client could not know.
    pub(super) fn out_of_order(&mut self, line: Line, replies: &mut Replies<'_>) {
        if self.mail_refused { self.refuse(line, replies) } else { self.bad(line, replies) }
    }

    /// Waits for the driver's word.
    pub(super) fn ask(&mut self, state: State, action: Action) -> Option<Action> {
        self.state = state;
        Some(action)
    }
}
