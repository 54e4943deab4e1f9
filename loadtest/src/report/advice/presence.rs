//! Was the server there: did it take connections, greet them, and stay?

use super::{LIMIT_SHARE, offer::due};
use crate::{error_kind::ErrorKind, phase::Phase, run_result::RunResult};

/// A banner that takes longer is late, nanoseconds.
const LATE_NS: u64 = 1_000_000_000;

/// Connections that could not be made, broke, or were silent, too many for chance.
pub(super) fn gone(run: &RunResult) -> Option<String> {
    let kinds = [ErrorKind::ConnectRefused, ErrorKind::ConnectTimeout, ErrorKind::Reset, ErrorKind::Closed, ErrorKind::ReplyTimeout];
    let troubles: Vec<(ErrorKind, u64)> = run.errors.iter().filter(|(kind, _)| kinds.contains(kind)).collect();
    let count: u64 = troubles.iter().map(|(_, count)| count).sum();
    let lost = run.fates.never_begun + run.fates.unknown + run.fates.unsent;
    (count > 0 && lost as f64 > due(run) as f64 * LIMIT_SHARE).then(|| {
        let words: Vec<String> = troubles.iter().map(|(kind, count)| format!("{count} times {kind}")).collect();
        format!(
            "{lost} of {} messages were not sent, or sent without a reply, while connections failed ({}): the server was gone or silent for a \
             part of the run. The figures say how that looks from outside, not what it can carry.",
            due(run),
            words.join(", ")
        )
    })
}

/// Connections that the server's kernel took and its processes did not.
pub(super) fn ungreeted(run: &RunResult) -> Option<String> {
    let silent = run.errors.of(ErrorKind::NoBanner);
    let connections = run.phases.get(&Phase::Connect).map_or(silent, |phase| phase.count).max(1);
    (silent as f64 > connections as f64 * LIMIT_SHARE).then(|| {
        format!(
            "{silent} of {connections} connections never got a banner: the server's kernel took them, and no process or thread of the server \
             did, so that fewer sessions than asked for carried the load. Raise its limit of processes (Postfix: default_process_limit), or \
             ask for fewer sessions."
        )
    })
}

/// Connections that were greeted late: a server that starts its processes one by one is measured while it does.
pub(super) fn greeted_late(run: &RunResult) -> Option<String> {
    let banner = run.phases.get(&Phase::Banner).filter(|_| killed(run).is_none())?;
    let histogram = banner.histogram.decode().ok()?;
    let late = histogram.count_between(LATE_NS, histogram.high());
    (late as f64 > banner.count as f64 * LIMIT_SHARE).then(|| {
        format!(
            "{late} of {} connections waited for their banner for more than a second, the longest {:.1} s: the server makes room for sessions \
             slowly, and the load was smaller until then. Run it twice, and take the second.",
            banner.count,
            banner.max_ns as f64 / 1e9
        )
    })
}

/// A server that the scenario killed: the pause is in its figures.
pub(super) fn killed(run: &RunResult) -> Option<String> {
    let seconds = run.settings["recovery_s"].as_f64()?;
    Some(format!(
        "The scenario killed the server, and {seconds:.2} s later the next one greeted: the longest latencies are that pause, and CPU and memory \
         are those of two processes, the second with what the first left."
    ))
}
