//! Did what was accepted leave as fast as it came?

use super::BEHIND_SHARE;
use crate::{phase::Phase, run_result::RunResult};

/// Mail that was still there when the load had ended.
pub(super) struct Backlog {
    /// What became of it, with the numbers.
    pub(super) text: String,
    /// Messages that left while the load lasted, each second.
    pub(super) left_per_second: f64,
    /// Messages by which the queue grew, each second.
    pub(super) growth_per_second: f64,
}

/// A queue that grew while the load lasted: what arrived after it or never, where the next hop is ours, and what is queued still.
pub(super) fn backlog(run: &RunResult) -> Option<Backlog> {
    let metric = |name: &str| Some(run.final_metrics.get(name)? - run.initial_metrics.get(name).copied().unwrap_or(0.0));
    let queued = metric("queue_messages").unwrap_or(0.0).max(0.0);
    // An interval that the load's end cuts is taken as before it.
    let arrivals = |late: bool| -> u64 {
        let intervals = run.intervals.iter().filter(|interval| (interval.start_s as f64 >= run.duration) == late);
        intervals.map(|interval| interval.histogram(Phase::EndToEnd).len()).sum()
    };
    let (in_time, late) = (arrivals(false), arrivals(true));
    let accepted = metric("accepted").unwrap_or(run.emails_sent as f64);
    // Messages with several recipients may arrive in several parts: shares of what arrived are shares of what was accepted.
    let late_share = late as f64 / (in_time + late).max(1) as f64;
    // Ledgers count deliveries.
    let ledgers = |name: &str| run.settings["difference"][name].as_u64().unwrap_or(0);
    let (owed, missing) = (ledgers("owed"), ledgers("lost"));
    let missing_share = (missing as f64 / owed.max(1) as f64).min(1.0);
    let gone = (missing_share * accepted).max(queued);
    let behind = late_share * (accepted - gone).max(0.0) + gone;
    if behind <= accepted * BEHIND_SHARE || accepted <= 0.0 {
        return None;
    }
    let mut parts = Vec::new();
    if late > 0 {
        parts.push(format!("{late} of {} deliveries ({:.0} %) came when the load had ended", in_time + late, late_share * 100.0));
    }
    if queued > 0.0 {
        let share = queued / accepted * 100.0;
        parts.push(format!("{queued:.0} of {accepted:.0} accepted messages ({share:.0} %) were still queued at the end"));
    }
    if missing > 0 {
        parts.push(format!("{missing} of {owed} deliveries ({:.0} %) never came while they were waited for", missing_share * 100.0));
    }
    let elsewhere = if missing > 0 { ", or the server sends elsewhere" } else { "" };
    let duration = run.duration.max(1e-9);
    Some(Backlog {
        text: format!("{}: the next hop, or delivery to it, is slower than acceptance{elsewhere}.", parts.join(", and ")),
        left_per_second: (accepted - behind) / duration,
        growth_per_second: behind / duration,
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{live::add_end_to_end, measurement::Recorder, parts::CorePart, sample_run::SampleRun, sink::seconds::Seconds};

    /// The backlog of a run of 10 s at the end of which one arrival in ten of a sink came at `last`, milliseconds after its beginning; the
    /// sink began 700 ms before it.
    fn backlog_with(last: u64) -> Option<Backlog> {
        let model = SampleRun::default();
        let mut measurement = model.measurement();
        let (seconds, began, mut recorder) = (Seconds::default(), Duration::from_millis(700), Recorder::new());
        seconds.follow(began);
        let mut parts = Vec::new();
        for at in (1..10).flat_map(|number| [number * 1000 + 50; 10]).chain([last; 10]) {
            recorder.at(seconds.of(began + Duration::from_millis(at)));
            recorder.record_ns(Phase::EndToEnd, 1_000_000);
            parts.extend(recorder.ended(0));
        }
        parts.extend(recorder.last(0));
        let parts = parts.into_iter().map(|(second, part)| CorePart { second, part });
        add_end_to_end(&mut measurement, seconds.of(began), parts);
        backlog(&RunResult::new(measurement, model.facts()))
    }

    /// What happened: only whole seconds were taken off between sink and run, so that what came in the last tenths of a load stood behind
    /// its end: the next hop was called slow, and the capacity was estimated from that.
    #[test]
    fn what_arrives_before_the_end_is_no_backlog_whenever_the_next_hop_began() {
        assert!(backlog_with(9_990).is_none());
        assert!(backlog_with(10_010).is_some_and(|backlog| backlog.text.contains("10 of 100 deliveries (10 %)")));
    }
}
