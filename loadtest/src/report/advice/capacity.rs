//! What a server could carry, reckoned from what it used.

use serde::Serialize;

use super::{BUSY, Bottleneck, Numbers, delivery::backlog, resources};
use crate::run_result::RunResult;

/// Share of its cores below which the cost of a message is that of a lightly loaded server.
const LOADED: f64 = 0.6;

/// Share of what was used during the load from which on what was used behind it is told.
const BEHIND_TOLD: f64 = 0.01;

/// An estimate of what the server could carry.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Capacity {
    /// Messages per second with its cores at 85 %.
    pub messages_per_second: f64,
    /// It was reckoned from a lightly loaded server, where a message costs more than under load: it can carry this and perhaps much more. Never where
    /// messages were left behind.
    pub at_least: bool,
    /// How it was reckoned, and what runs out first.
    pub sentences: Vec<String>,
}

/// None where CPU was not measured or nothing was carried.
pub(super) fn capacity(run: &RunResult, numbers: &Numbers, bottleneck: Bottleneck) -> Option<Capacity> {
    let share = numbers.server_share?;
    let pace = run.per_second_when_measured();
    if pace <= 0.0 {
        return None;
    }
    // What waited in the queue when the load ended costs what it costs then.
    let behind = run.server_cpu_by_phase.map_or(0.0, |cpu| cpu.whole_by_load() - 1.0);
    let cpu_bound = pace * BUSY / (share * (1.0 + behind));
    let before_cores = before_its_cores(bottleneck);
    let is_known = run.server_cpu_by_phase.is_none_or(|cpu| cpu.is_drained);
    let backlog = backlog(run);
    let at_least = share < LOADED && before_cores.is_none() && is_known && backlog.is_none();
    let mut sentences = vec![format!(
        "At {pace:.0} messages/s the server used {:.0} % of its {}{}{}; if the cost per message stays, its cores are 85 % busy at about \
         {cpu_bound:.0} messages/s.",
        share * 100.0,
        numbers.cores_text(),
        when_measured(run),
        if behind >= BEHIND_TOLD {
            format!(", and {:.0} % of that again behind the load, for what was queued", behind * 100.0)
        } else {
            String::new()
        },
    )];
    if let Some(what) = before_cores {
        sentences.push(format!(
            "It does not carry that as it was set up here: {what} ended it before its cores did, at {:.0} messages/s of this load.",
            run.emails_per_second
        ));
    }
    if !is_known {
        sentences.push(
            "Not all that it accepted had been delivered at the end, and what that costs is not in it: it carries no more than that, and perhaps \
             far less."
                .to_owned(),
        );
    }
    if at_least {
        sentences.push(
            "Under more load messages share flushes and turns of the loop and cost less: read this as the least it can carry, and measure at \
             a higher rate, or in a closed loop, for the most."
                .to_owned(),
        );
    }
    sentences.extend(resources::sentences(run, backlog.as_ref(), cpu_bound));
    if let Some(backlog) = backlog {
        sentences.push(format!(
            "The queue grew by {:.0} messages/s: what leaves ({:.0} messages/s) is what it can carry for long.",
            backlog.growth_per_second, backlog.left_per_second
        ));
    }
    Some(Capacity { messages_per_second: cpu_bound, at_least, sentences })
}

/// Which part of the run a figure of the server's CPU is of, where it is not the whole.
pub(super) fn when_measured(run: &RunResult) -> String {
    let part =
        run.server_cpu_measured.map(|part| format!(" in the {:.1} of {:.1} s in which that was measured", part.seconds, run.duration));
    part.unwrap_or_default()
}

/// What ends it before its cores do, where that is not for want of load: the cores alone then say nothing of what it carries.
fn before_its_cores(bottleneck: Bottleneck) -> Option<&'static str> {
    match bottleneck {
        Bottleneck::Limit => Some("the limit"),
        Bottleneck::Gone => Some("its absence"),
        Bottleneck::DiskSync => Some("the wait for the disk"),
        Bottleneck::NextHop => Some("delivery"),
        Bottleneck::Generator | Bottleneck::EngineCpu | Bottleneck::Machine | Bottleneck::Nothing => None,
        Bottleneck::Pauses | Bottleneck::Concurrency | Bottleneck::Unknown => None,
    }
}
