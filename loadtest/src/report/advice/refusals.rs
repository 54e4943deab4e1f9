//! What the server turned away: at a limit for now, or for good.

use super::LIMIT_SHARE;
use crate::{error_kind::ErrorKind, phase::Phase, run_result::RunResult};

/// A limit that turned mail or connections away, too many of them for chance.
pub(super) fn at_a_limit(run: &RunResult, server: &str) -> Option<String> {
    let told = |code: u16| run.errors.of(ErrorKind::Reply(code));
    // A session that is told 421 begins no transaction, and the others begin thousands: it is one of the connections.
    let connections = run.phases.get(&Phase::Connect).map_or(0, |phase| phase.count).max(told(421));
    let of_connections = share(told(421), connections);
    let deferred = replies(run, |code| (400..500).contains(&code) && code != 421);
    let later: u64 = deferred.iter().map(|(_, count)| count).sum();
    let of_transactions = share(later, run.transactions_begun.max(later));
    if of_connections <= LIMIT_SHARE && of_transactions <= LIMIT_SHARE {
        return None;
    }
    let mut parts = Vec::new();
    if told(421) > 0 {
        parts.push(format!("{} of {connections} connections were told 421", told(421)));
    }
    if later > 0 {
        parts.push(format!("{} turned mail away for now, beside {} transactions begun", words(&deferred), run.transactions_begun));
    }
    Some(format!(
        "{}: a limit of the server set the pace, {server}. Raise the limit that its log names, or read the figures as what happens at that \
         limit.",
        parts.join("; ")
    ))
}

/// Mail that the server does not want, as a remark: it is no limit, and is not asked again.
pub(super) fn for_good(run: &RunResult) -> Option<String> {
    let refused = replies(run, |code| (500..600).contains(&code));
    let count: u64 = refused.iter().map(|(_, count)| count).sum();
    // Recipients that were refused are errors, too, and a message that others had was not.
    let messages = count.min(run.fates.refused);
    (share(messages, run.transactions_begun.max(messages)) > LIMIT_SHARE).then(|| {
        format!(
            "{} refused mail for good, beside {} transactions begun: the figures are those of the mail that was left.",
            words(&refused),
            run.transactions_begun
        )
    })
}

fn share(part: u64, whole: u64) -> f64 {
    part as f64 / whole.max(1) as f64
}

fn replies(run: &RunResult, wanted: impl Fn(u16) -> bool) -> Vec<(u16, u64)> {
    let codes = run.errors.iter().filter_map(|(kind, count)| match kind {
        ErrorKind::Reply(code) if wanted(code) => Some((code, count)),
        _ => None,
    });
    codes.collect()
}

fn words(replies: &[(u16, u64)]) -> String {
    let words: Vec<String> = replies.iter().take(4).map(|(code, count)| format!("{count} times {code}")).collect();
    words.join(", ")
}
