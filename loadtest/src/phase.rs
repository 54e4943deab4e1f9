//! The parts of a mail transaction that are timed apart.

use serde::{Deserialize, Serialize};

/// What a latency belongs to. The order is the order on the wire, and the order in reports.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// `connect` until the connection stands.
    Connect,
    /// Connected until the 220. What refuses instead (421, 554) is no banner and not counted.
    Banner,
    /// EHLO until the last line of its reply.
    Ehlo,
    /// MAIL until its reply (pipelined: from the flight's departure).
    Mail,
    /// RCPT until its reply, each recipient by itself.
    Rcpt,
    /// DATA until its 354 (with CHUNKING: nothing is recorded).
    Data,
    /// The content's last byte sent until the 250: the wait for durability.
    #[serde(rename = "dot_to_250")]
    DotTo250,
    /// The whole transaction until its 250. In an open loop it begins when the schedule said, whether or not it could be sent then,
    /// so that a stalled server is seen by every message that should have met it (coordinated omission corrected).
    Transaction,
    /// The whole transaction from when it was really sent. In an open loop only, beside [`Phase::Transaction`]: the naive figure.
    TransactionNaive,
    /// Scheduled (or sent) until the next hop had the message whole.
    EndToEnd,
}

impl Phase {
    /// How many there are.
    pub const COUNT: usize = 10;

    /// All, in order.
    pub const ALL: [Phase; Phase::COUNT] = [
        Phase::Connect,
        Phase::Banner,
        Phase::Ehlo,
        Phase::Mail,
        Phase::Rcpt,
        Phase::Data,
        Phase::DotTo250,
        Phase::Transaction,
        Phase::TransactionNaive,
        Phase::EndToEnd,
    ];

    /// The name in files and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Phase::Connect => "connect",
            Phase::Banner => "banner",
            Phase::Ehlo => "ehlo",
            Phase::Mail => "mail",
            Phase::Rcpt => "rcpt",
            Phase::Data => "data",
            Phase::DotTo250 => "dot_to_250",
            Phase::Transaction => "transaction",
            Phase::TransactionNaive => "transaction_naive",
            Phase::EndToEnd => "end_to_end",
        }
    }

    /// The name for people.
    pub fn title(self) -> &'static str {
        match self {
            Phase::Connect => "connect",
            Phase::Banner => "banner",
            Phase::Ehlo => "EHLO",
            Phase::Mail => "MAIL",
            Phase::Rcpt => "RCPT",
            Phase::Data => "DATA to 354",
            Phase::DotTo250 => "dot to 250",
            Phase::Transaction => "transaction",
            Phase::TransactionNaive => "transaction (naive)",
            Phase::EndToEnd => "end to end",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_names_and_serde_agree() {
        for (index, phase) in Phase::ALL.into_iter().enumerate() {
            assert_eq!(phase as usize, index);
            assert_eq!(serde_json::to_string(&phase).unwrap(), format!("{:?}", phase.name()));
        }
    }
}
