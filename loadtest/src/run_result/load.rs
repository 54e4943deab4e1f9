//! What was asked of a server, and how that was done.

use serde::{Deserialize, Serialize};

/// How the load was offered.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Load {
    /// Messages per second that the schedule asked for; absent in a closed loop, where the server sets the pace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offered_per_second: Option<f64>,
    /// Seconds of the schedule, where it has an end in time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scheduled_s: Option<f64>,
    /// Sessions at once.
    pub sessions: u64,
    /// Threads of the generator.
    pub generator_threads: u32,
    /// Cores of the server, where that is known: those it was given, or that its threads may use which do its work.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_cores: Option<u32>,
    /// MAIL, RCPT and DATA left in one flight, of one transaction at least. Results written before say so where it was asked for.
    pub pipelined: bool,
    /// It was asked for; the server may not have offered it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pipelining_asked: Option<bool>,
    /// Transactions of which they did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub transactions_pipelined: Option<u64>,
    /// BDAT was asked for; the server may not have offered CHUNKING.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chunking_asked: Option<bool>,
    /// Transactions whose content went with BDAT, or was to, where they were refused before it. Results written before do not say it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub transactions_chunked: Option<u64>,
    /// Transactions whose size was drawn smaller than the least there is ([`crate::content::text_bytes_least`]), and is that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sizes_raised: Option<u64>,
}
