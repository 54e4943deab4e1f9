//! What an open loop's schedule offered, and whether it was taken in time.

use crate::{phase::Phase, run_result::RunResult};

/// Share of the offered messages acknowledged at which a server has kept up.
const KEPT_UP: f64 = 0.98;

/// Share of the schedule that a load may be late with its last messages where the server only stood still for a moment.
const LATE_MOST: f64 = 0.1;

/// Share of that lateness that messages waited for a session, on average over all: where a server falls behind ever further it is a half.
const WAITED_MOST: f64 = 0.1;

/// Share of that lateness that the longest transaction took by itself at least: behind a standstill a backlog is still to be worked off.
const OWN_LEAST: f64 = 0.5;

/// Messages that an open loop's schedule had due.
pub(super) fn due(run: &RunResult) -> u64 {
    run.transactions_begun + run.fates.never_begun
}

/// Was what was due acknowledged, and nothing of it much later than the schedule's end? What the last messages took by themselves is no
/// falling behind. A Poisson schedule has its own count of messages: the nominal rate is not asked.
pub(super) fn kept_up(run: &RunResult) -> bool {
    let (Some(_), due) = (run.load.offered_per_second, due(run)) else { return false };
    let longest_s = run.phases.get(&Phase::TransactionNaive).map_or(0.0, |naive| naive.max_ns as f64 / 1e9);
    let in_time = run.load.scheduled_s.is_none_or(|scheduled_s| {
        run.duration <= (scheduled_s + longest_s).max(scheduled_s / KEPT_UP) || stood_still(run, run.duration - scheduled_s, scheduled_s)
    });
    run.emails_sent as f64 >= due as f64 * KEPT_UP && in_time
}

/// Is the end so late because the server did nothing for a moment before it, behind which some messages waited for a session? Then one
/// message was as late as the end is, as where a server falls behind all the time, and few waited. One that had a session waited for the
/// server itself: where it only fell behind in the end, each waited for its session.
fn stood_still(run: &RunResult, late_s: f64, scheduled_s: f64) -> bool {
    let (Some(whole), Some(naive)) = (run.phases.get(&Phase::Transaction), run.phases.get(&Phase::TransactionNaive)) else { return false };
    let waited_s = (whole.mean_ns - naive.mean_ns) / 1e9;
    let (longest_s, own_longest_s) = (whole.max_ns as f64 / 1e9, naive.max_ns as f64 / 1e9);
    let one_was_held_up = late_s <= longest_s && late_s * OWN_LEAST <= own_longest_s;
    late_s <= scheduled_s * LATE_MOST && one_was_held_up && waited_s <= late_s * WAITED_MOST
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample_run::SampleRun;

    /// What happened: a server that stood still for 80 ms at the end of a schedule of two seconds had taken all that was due, and was said not
    /// to carry it: of the longest wait only the part that a message's own session waited was allowed.
    #[test]
    fn a_moment_at_the_end_is_no_falling_behind_and_a_backlog_that_grows_is() {
        let kept = |late_s: f64, waited_s: f64, longest_s: f64, own_s: f64| {
            let mut run = SampleRun::default().result();
            let scheduled_s = run.duration - late_s;
            (run.load.offered_per_second, run.load.scheduled_s) = (Some(run.emails_per_second * 1.1), Some(scheduled_s));
            let mut naive = run.phases[&Phase::Transaction].clone();
            naive.max_ns = naive.max_ns.max((own_s * 1e9) as u64);
            run.phases.insert(Phase::TransactionNaive, naive);
            let whole = run.phases.get_mut(&Phase::Transaction).unwrap();
            whole.mean_ns += waited_s * 1e9;
            whole.max_ns = (longest_s * 1e9) as u64;
            kept_up(&run)
        };
        let lasted = SampleRun::default().result().duration;
        let late = lasted * 0.05;
        assert!(kept(late, 0.02 * late, late * 1.1, late * 0.9), "most messages waited for nothing");
        assert!(!kept(late, 0.5 * late, late, late * 0.9), "each waited longer than the one before it");
        assert!(!kept(late, 0.02 * late, late * 0.9, late * 0.8), "no message was as late as the end was");
        assert!(!kept(lasted * 0.3, 0.0, lasted, lasted * 0.2), "what is due within a tenth of the schedule is no moment");
        // What happened: a server that fell behind in the last fifth of a schedule, when few had waited yet, had kept up.
        assert!(!kept(late, 0.09 * late, late, 0.0), "no session waited for the server for long");
    }
}
