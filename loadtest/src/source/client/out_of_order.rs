//! Replies with which a dialogue ends, as nothing of what the server says behind them would count.

use std::time::Instant;

use super::Client;
use crate::source::{
    host::{ClientError, Host, Outcome},
    reply::shown,
    transaction::Asked,
};

impl Client {
    /// The server takes what rests on what it refused: whatever it makes of the rest of the group, nothing of this session counts any more.
    /// The message was refused, unless its content has left, which may have been taken.
    pub(super) fn out_of_order(&mut self, asked: Asked, code: u16, line: &[u8], now: Instant, host: &mut impl Host) -> ClientError {
        let transaction = self.open.front().expect("the reply is about a message");
        let first = transaction.refused.as_ref().expect("MAIL or all recipients were refused");
        let (stage, refused) = (first.stage, first.code);
        self.settle_refused(line, now, host);
        ClientError::OutOfOrder { reply: asked.reply_name(), code, text: shown(line.get(4..).unwrap_or_default()), stage, refused }
    }

    /// The reply is none that its command can have, so that it is not known to what those behind it are the answers. A message whose content
    /// has left may have been taken; one that nobody was to have was refused.
    pub(super) fn out_of_step(&mut self, asked: Asked, code: u16, line: &[u8], now: Instant, host: &mut impl Host) -> ClientError {
        if self.open.front().is_some_and(|transaction| transaction.recipients_taken == 0) {
            self.settle_refused(line, now, host);
        }
        ClientError::OutOfStep { reply: asked.reply_name(), code, text: shown(line.get(4..).unwrap_or_default()) }
    }

    /// Settles the message at the front where it was refused and its content has not left.
    fn settle_refused(&mut self, line: &[u8], now: Instant, host: &mut impl Host) {
        let Some(transaction) = self.open.front().filter(|transaction| transaction.sent.is_none()) else { return };
        let Some(first) = &transaction.refused else { return };
        let refused = Outcome::Refused { stage: first.stage, code: first.code };
        host.settle(transaction.ended(transaction.decided(line)), refused, now);
        self.open.pop_front();
    }
}
