//! How long a client waits.

use std::time::Duration;

/// Deadlines of RFC 5321 4.5.3.2, whose minima are the defaults.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Timeouts {
    /// From the connection to the greeting: 5 min.
    pub banner: Duration,
    /// EHLO and HELO: 5 min.
    pub ehlo: Duration,
    /// MAIL: 5 min.
    pub mail: Duration,
    /// RCPT: 5 min.
    pub rcpt: Duration,
    /// DATA to 354: 2 min.
    pub data: Duration,
    /// One block of content to be taken: 3 min.
    pub block: Duration,
    /// The final dot to its reply: 10 min. Shorter, and mail arrives twice (RFC 1047).
    pub dot: Duration,
    /// RSET, as a probe too: 10 s, because another connection is as good.
    pub rset: Duration,
    /// QUIT: 10 s.
    pub quit: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            banner: Duration::from_secs(300),
            ehlo: Duration::from_secs(300),
            mail: Duration::from_secs(300),
            rcpt: Duration::from_secs(300),
            data: Duration::from_secs(120),
            block: Duration::from_secs(180),
            dot: Duration::from_secs(600),
            rset: Duration::from_secs(10),
            quit: Duration::from_secs(10),
        }
    }
}
