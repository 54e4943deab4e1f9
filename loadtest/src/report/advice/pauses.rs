//! Sessions that waited to connect again: a load that sleeps asks less of the server than it seems to.

use crate::run_result::RunResult;

/// Share of the sessions' time from which the pauses set the pace, where nobody was busy.
const PACE_SHARE: f64 = 0.3;
/// Share of it from which they are worth a remark.
const TOLD_SHARE: f64 = 0.05;

/// The sentence for a run whose pace they set.
pub(super) fn set_the_pace(run: &RunResult, server: &str) -> Option<String> {
    let share = share(run).filter(|&share| share >= PACE_SHARE)?;
    Some(format!(
        "{}, and {server}: these pauses set the pace. The figures say how fast connections break, and not what the server can carry.",
        words(run, share)
    ))
}

/// A remark beside what set the pace.
pub(super) fn remark(run: &RunResult) -> Option<String> {
    let share = share(run).filter(|&share| share >= TOLD_SHARE)?;
    Some(format!("{}: the load was smaller by that.", words(run, share)))
}

/// Of the time of all sessions; none where nobody waited.
fn share(run: &RunResult) -> Option<f64> {
    let all = run.load.sessions as f64 * run.duration;
    (run.fates.paused_s > 0.0 && all > 0.0).then(|| (run.fates.paused_s / all).min(1.0))
}

fn words(run: &RunResult, share: f64) -> String {
    format!("Sessions waited {} times to connect again after a failure, {:.0} % of their time", run.fates.pauses, share * 100.0)
}
