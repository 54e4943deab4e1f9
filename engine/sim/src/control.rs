//! The mechanisms that can be left out; each time the model must notice.

use ringpost_spool::Controls;

/// One mechanism left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    /// Flushes do nothing.
    NoSync,
    /// Acknowledged when the write is handed out.
    AckBeforeSync,
    /// The flush goes out by itself, before the write.
    ChainPushedSingly,
    /// Bodies are taken as they are.
    CrcUnchecked,
    /// A sender can guess the generation.
    GenerationGuessable,
    /// Outcomes and settled records do not keep a segment.
    OutcomesNotLive,
    /// After a start the log goes on in the segment where it ended.
    AppendAfterRestart,
    /// A message is settled before its bounce is acknowledged.
    SettledBeforeBounce,
    /// Compaction copies what was live when it read.
    StaleCompaction,
    /// Two in flight in two segments.
    InFlightAcrossSegments,
}

impl Control {
    /// All of them, by name.
    pub const ALL: [(&'static str, Control); 10] = [
        ("no-sync", Control::NoSync),
        ("ack-before-sync", Control::AckBeforeSync),
        ("chain-pushed-singly", Control::ChainPushedSingly),
        ("crc-unchecked", Control::CrcUnchecked),
        ("generation-guessable", Control::GenerationGuessable),
        ("outcomes-not-live", Control::OutcomesNotLive),
        ("append-after-restart", Control::AppendAfterRestart),
        ("settled-before-bounce", Control::SettledBeforeBounce),
        ("stale-compaction", Control::StaleCompaction),
        ("in-flight-across-segments", Control::InFlightAcrossSegments),
    ];

    /// The control of this name.
    pub fn named(name: &str) -> Option<Control> {
        Control::ALL.iter().find(|(known, _)| *known == name).map(|&(_, control)| control)
    }

    pub(crate) fn of_log(self) -> Controls {
        Controls {
            ack_before_sync: self == Control::AckBeforeSync,
            crc_unchecked: self == Control::CrcUnchecked,
            generation_guessable: self == Control::GenerationGuessable,
            outcomes_not_live: self == Control::OutcomesNotLive,
            append_after_restart: self == Control::AppendAfterRestart,
            stale_compaction: self == Control::StaleCompaction,
            in_flight_across_segments: self == Control::InFlightAcrossSegments,
        }
    }
}
