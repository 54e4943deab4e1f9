//! `[queue]`: how long Ringpost keeps trying.

use std::time::Duration;

use crate::Percent;
use crate::section::Section;

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);

/// The longest life that a config can give to mail.
pub const EXPIRY_MAX: Duration = Duration::from_secs(30 * DAY.as_secs());

/// `[queue]`: retries and expiry; a route can say otherwise.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Queue {
    /// When a deferred recipient is tried again, and until when.
    pub retry: Retry,
    /// A header field whose value is a tag of the message, by which the queue is searched.
    pub tag_header: Option<String>,
}

/// When a deferred recipient is tried again, and until when (RFC 5321 4.5.4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retry {
    /// Wait after the first failure; doubles with each further one.
    pub base: Duration,
    /// Longest wait between two attempts; at least `base`.
    pub cap: Duration,
    /// Each wait is lengthened or shortened at random by up to this share.
    pub jitter: Percent,
    /// Age at which an undelivered recipient fails for good.
    pub expiry: Duration,
    /// Age at which the sender is told of a delay; None: it is not.
    pub warn_after: Option<Duration>,
}

/// Retry settings of a route; None: as in `[queue]`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct RetryOverrides {
    pub(crate) base: Option<Duration>,
    pub(crate) cap: Option<Duration>,
    pub(crate) jitter: Option<Percent>,
    pub(crate) expiry: Option<Duration>,
    /// None inside: `off`.
    pub(crate) warn_after: Option<Option<Duration>>,
}

impl RetryOverrides {
    /// The keys are the same in `[queue]` and in a `[[route]]`.
    pub(crate) fn read(section: &mut Section<'_, '_>) -> RetryOverrides {
        RetryOverrides {
            base: section.optional_within("retry_base", Duration::from_secs(1)..=DAY),
            cap: section.optional_within("retry_cap", Duration::from_secs(1)..=DAY),
            jitter: section.optional_within("retry_jitter", Percent::new(0)..=Percent::new(50)),
            expiry: section.optional_within("expiry", MINUTE..=EXPIRY_MAX),
            warn_after: {
                let is_set = section.has("warn_after");
                let warn_after = section.word_or_within("warn_after", "off", None, Duration::from_secs(1)..=DAY * 30);
                is_set.then_some(warn_after)
            },
        }
    }

    pub(crate) fn over(&self, retry: Retry) -> Retry {
        Retry {
            base: self.base.unwrap_or(retry.base),
            cap: self.cap.unwrap_or(retry.cap),
            jitter: self.jitter.unwrap_or(retry.jitter),
            expiry: self.expiry.unwrap_or(retry.expiry),
            warn_after: self.warn_after.unwrap_or(retry.warn_after),
        }
    }
}

impl Queue {
    pub(crate) fn read(mut section: Section<'_, '_>) -> Queue {
        let retry = RetryOverrides::read(&mut section).over(Retry::default());
        let tag_header: Option<String> = section.optional("tag_header");
        let is_name = |name: &str| {
            name.len() > 2
                && name.len() <= 64
                && name[..2].eq_ignore_ascii_case("x-")
                && name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b':')
        };
        if tag_header.as_deref().is_some_and(|name| !is_name(name)) {
            section
                .refuse("tag_header", "is not the name of such a field: write for instance tag_header = \"X-Campaign\"; it begins with X-");
        }
        section.finish();
        Queue { tag_header, retry }
    }
}

impl Default for Retry {
    fn default() -> Retry {
        Retry { base: MINUTE * 5, cap: HOUR * 4, jitter: Percent::new(20), expiry: DAY * 5, warn_after: Some(HOUR * 4) }
    }
}
