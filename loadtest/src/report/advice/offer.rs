//! What an open loop's schedule offered, and whether it was taken in time.

use crate::{phase::Phase, run_result::RunResult};

/// Share of the offered messages acknowledged at which a server has kept up.
const KEPT_UP: f64 = 0.98;

/// Messages that an open loop's schedule had due.
pub(super) fn due(run: &RunResult) -> u64 {
    run.transactions_begun + run.fates.never_begun
}

/// Was what was due acknowledged, and nothing of it much later than the schedule's end? What the last messages took by themselves is no
/// falling behind. A Poisson schedule has its own count of messages: the nominal rate is not asked.
pub(super) fn kept_up(run: &RunResult) -> bool {
    let (Some(_), due) = (run.load.offered_per_second, due(run)) else { return false };
    let longest_s = run.phases.get(&Phase::TransactionNaive).map_or(0.0, |naive| naive.max_ns as f64 / 1e9);
    let in_time = run.load.scheduled_s.is_none_or(|scheduled_s| run.duration <= (scheduled_s + longest_s).max(scheduled_s / KEPT_UP));
    run.emails_sent as f64 >= due as f64 * KEPT_UP && in_time
}
