//! The bottleneck of a run, and the sentences that say why.
//!
//! Rules in order, the first that applies names the bottleneck: refusals at a limit, a server that was gone, the generator, the server's
//! cores, the whole machine, the schedule (a server that kept up has no bottleneck, unless delivery did not), sessions that waited to connect again, an open loop's
//! sessions, the disk's sync, too few sessions. A next hop that falls behind does not slow acceptance (mail waits in the queue), so it is
//! named only when nothing before it applies.

use super::{
    BUSY, Bottleneck,
    capacity::when_measured,
    delivery::backlog,
    numbers::Numbers,
    offer::{due, kept_up},
    pauses,
    presence::{gone, killed, ungreeted},
    refusals,
};
use crate::{phase::Phase, run_result::RunResult};

/// Share of a transaction between the last byte and the 250 from which the wait for the disk dominates.
const SYNC_SHARE: f64 = 0.5;

/// Names the bottleneck.
pub(super) fn verdict(run: &RunResult, numbers: &Numbers) -> (Bottleneck, Vec<String>) {
    let server = numbers.server_share.map_or_else(
        || "the server's CPU was not measured".to_owned(),
        |share| format!("the server used {:.0} % of its {}", share * 100.0, numbers.cores_text()),
    );
    if let Some(text) = ungreeted(run) {
        return (Bottleneck::Limit, vec![text]);
    }
    if let Some(text) = refusals::at_a_limit(run, &server) {
        return (Bottleneck::Limit, vec![text]);
    }
    if run.emails_sent == 0 {
        let errors: Vec<String> = run.errors.iter().take(4).map(|(kind, count)| format!("{count} times {kind}")).collect();
        let errors = if errors.is_empty() { "no error either".to_owned() } else { errors.join(", ") };
        return (
            Bottleneck::Unknown,
            vec![format!(
                "Nothing was acknowledged ({errors}): there is no pace to explain. Is the server there, and does it take this mail?"
            )],
        );
    }
    if let Some(text) = killed(run).or_else(|| gone(run)) {
        return (Bottleneck::Gone, vec![text]);
    }
    if numbers.generator_share >= BUSY && numbers.server_share.is_none_or(|share| share < BUSY) {
        return (
            Bottleneck::Generator,
            vec![format!(
                "The generator used {:.0} % of its {} thread(s) while {server}: the figures say how fast the generator is. \
                 Give it more threads or another machine.",
                numbers.generator_share * 100.0,
                numbers.generator_threads
            )],
        );
    }
    if let Some(share) = numbers.server_share.filter(|&share| share >= BUSY) {
        let mut text = format!(
            "The server used {:.0} % of its {} at {:.0} messages/s{}: its CPU set the pace",
            share * 100.0,
            numbers.cores_text(),
            run.per_second_when_measured(),
            when_measured(run)
        );
        if let Some(cost) = run.cpu_us_per_message {
            text.push_str(&format!(", {cost:.1} us for each message"));
        }
        text.push_str(". More cores, pipelining and several messages per connection bring more.");
        return (Bottleneck::EngineCpu, vec![text]);
    }
    if numbers.machine_share >= 0.95 {
        return (
            Bottleneck::Machine,
            vec![format!(
                "Server and generator together used {:.0} % of all {} core(s) ({:.0} % and {:.0} % of one): they took CPU from each \
                 other. Run the generator on a machine of its own, or pin both to cores of their own.",
                numbers.machine_share * 100.0,
                run.machine.cores_allowed,
                run.cpu_usage.unwrap_or(0.0),
                run.generator_cpu_usage
            )],
        );
    }
    if kept_up(run) {
        if let Some(backlog) = backlog(run) {
            return (
                Bottleneck::NextHop,
                vec![format!(
                    "{} of {} messages that were due were acknowledged ({:.0}/s) and {server}, but {}",
                    run.emails_sent,
                    due(run),
                    run.emails_per_second,
                    backlog.text
                )],
            );
        }
        return (
            Bottleneck::Nothing,
            vec![format!(
                "{} of {} messages that were due were acknowledged ({:.0}/s) and {server}: it kept up. Offer more to find its limit.",
                run.emails_sent,
                due(run),
                run.emails_per_second
            )],
        );
    }
    waiting(run, numbers, &server)
}

/// Nobody was busy: who was waited for?
fn waiting(run: &RunResult, numbers: &Numbers, server: &str) -> (Bottleneck, Vec<String>) {
    let whole = run.phases.get(&Phase::TransactionNaive).or_else(|| run.phases.get(&Phase::Transaction));
    let sessions = run.load.sessions as f64;
    let in_flight = whole.map_or(0.0, |whole| run.emails_per_second * whole.mean_ns / 1e9).min(sessions);
    let all_busy = sessions > 0.0 && in_flight >= sessions * 0.7;
    if let Some(text) = pauses::set_the_pace(run, server) {
        return (Bottleneck::Pauses, vec![text]);
    }
    if run.load.offered_per_second.is_some() && all_busy {
        let late = run.phases.get(&Phase::Transaction).map_or(0.0, |whole| whole.mean_ns);
        return (
            Bottleneck::Concurrency,
            vec![format!(
                "{in_flight:.1} of {sessions} sessions had a transaction open at any time ({:.2} ms each) and {server}, while messages that \
                 were due waited for one ({:.2} ms with the wait, on average): too few sessions for this rate. With more of them the server \
                 shows whether it can hold it.",
                whole.map_or(0.0, |whole| whole.mean_ns / 1e6),
                late / 1e6
            )],
        );
    }
    let share = whole.zip(run.phases.get(&Phase::DotTo250)).filter(|(whole, _)| whole.mean_ns > 0.0);
    if let Some((whole, dot)) = share.filter(|(whole, dot)| dot.mean_ns / whole.mean_ns >= SYNC_SHARE) {
        // Its cores may have been as busy as can be meanwhile.
        if numbers.server_share.is_none() && numbers.batches.is_none() {
            return (
                Bottleneck::Unknown,
                vec![format!(
                    "{:.0} % of a transaction ({:.2} of {:.2} ms on average) passed between the last byte and the 250, and {server}: whether \
                     its cores or the wait for stable storage set the pace is not known. Say --server-pid, where the server is on this machine.",
                    dot.mean_ns / whole.mean_ns * 100.0,
                    dot.mean_ns / 1e6,
                    whole.mean_ns / 1e6
                )],
            );
        }
        let mut text = format!(
            "{:.0} % of a transaction ({:.2} of {:.2} ms on average) passed between the last byte and the 250, and {server}: the wait \
             for stable storage set the pace.",
            dot.mean_ns / whole.mean_ns * 100.0,
            dot.mean_ns / 1e6,
            whole.mean_ns / 1e6
        );
        if let Some(batches) = numbers.batches {
            text.push_str(&format!(
                " The spool made {:.0} batches a second durable, {:.1} messages in each; more sessions share each sync.",
                batches / run.duration.max(1e-9),
                numbers.accepted / batches
            ));
        } else {
            text.push_str(" More sessions share each sync; a disk with a faster flush helps every one.");
        }
        return (Bottleneck::DiskSync, vec![text]);
    }
    if let Some(backlog) = backlog(run) {
        return (Bottleneck::NextHop, vec![backlog.text]);
    }
    if run.load.offered_per_second.is_none() && all_busy {
        return (
            Bottleneck::Concurrency,
            vec![format!(
                "{:.1} of {} sessions had a transaction open at any time and {server}: each waited for its replies ({:.2} ms a \
                 transaction). More sessions or pipelining would bring more.",
                in_flight,
                run.load.sessions,
                whole.map_or(0.0, |whole| whole.mean_ns / 1e6)
            )],
        );
    }
    (
        Bottleneck::Unknown,
        vec![format!(
            "The numbers name no bottleneck: {server}, the generator {:.0} % of its {} thread(s). Connections that are made anew, think \
             time or the network may have set the pace.",
            numbers.generator_share * 100.0,
            numbers.generator_threads
        )],
    )
}
