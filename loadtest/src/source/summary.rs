//! What a run of the source came to: as lines, as JSON, and what did not go well, in sentences.

use serde_json::json;

use crate::{
    cli::{EXIT_INTERRUPTED, EXIT_IO, EXIT_NEGATIVE, EXIT_OK, EXIT_UNAVAILABLE},
    content::raised_text,
    live::{SourceRun, shown},
    percentile::told,
    phase::Phase,
    run_result::{Fates, Load},
    schedule::Schedule,
    source::{CoreReport, Reached, SourceOptions},
};

/// What kept a run from going well; empty: all that was due was acknowledged.
pub fn failures(run: &SourceRun) -> Vec<String> {
    let report = &run.report;
    let mut failures = Vec::new();
    if run.interrupted {
        failures.push(interrupted_text(run));
    }
    failures.extend(report.ledger_trouble.clone());
    if report.acknowledged == 0 {
        failures.push(match &report.last_trouble {
            Some(trouble) => format!("no message was acknowledged; the last trouble: {trouble}"),
            None => "no message was acknowledged".to_owned(),
        });
    }
    let failed = report.refused + report.unknown + report.unsent;
    if failed > 0 {
        failures.push(format!("{failed} messages were not acknowledged"));
    }
    if report.recipients_refused > 0 {
        failures.push(format!("{} recipients were refused", report.recipients_refused));
    }
    failures.extend(never_begun_text(report));
    failures.extend(ungreeted_text(report));
    failures
}

/// A sentence where the run was ended from outside.
pub fn interrupted_text(run: &SourceRun) -> String {
    format!("it was interrupted after {:.2} s", run.report.lasted.as_secs_f64())
}

/// A sentence where messages that were due found no session until the end, or the load gave up.
pub fn never_begun_text(report: &CoreReport) -> Option<String> {
    if let Some(after) = report.gave_up_after {
        let (after, left) = (after.as_secs_f64(), report.never_begun);
        let why = match (&report.last_trouble, report.gave_up_at) {
            (Some(trouble), Reached::Connection) => format!("no session was opened: {trouble}, for {after:.1} s"),
            (Some(trouble), Reached::Session) => {
                format!("connection after connection ended without an acknowledged message: {trouble}, for {after:.1} s")
            }
            _ => format!("nobody was there for {after:.1} s"),
        };
        return Some(format!("the load gave up: {why} (--timeout); {left} messages were not begun"));
    }
    (report.never_begun > 0).then(|| format!("{} messages were due and never begun: more sessions or a lower rate", report.never_begun))
}

/// The exit code of a run with these failures.
pub fn exit_code(run: &SourceRun, failures: &[String]) -> u8 {
    let reached = !run.measurement.totals().histogram(Phase::Connect).is_empty();
    match failures {
        [] => EXIT_OK,
        _ if run.report.ledger_trouble.is_some() => EXIT_IO,
        _ if run.interrupted => EXIT_INTERRUPTED,
        _ if !reached || run.report.gave_up_after.is_some() => EXIT_UNAVAILABLE,
        _ => EXIT_NEGATIVE,
    }
}

/// What became of the messages, as results keep it.
pub fn fates(report: &CoreReport) -> Fates {
    Fates {
        refused: report.refused,
        unknown: report.unknown,
        unsent: report.unsent,
        aborted: report.aborted,
        recipients_refused: report.recipients_refused,
        never_begun: report.never_begun,
        pauses: report.pauses,
        paused_s: report.paused.as_secs_f64(),
    }
}

/// What was asked for, and how it was done, as results keep it.
pub fn load_of(options: &SourceOptions, report: &CoreReport) -> Load {
    Load {
        // Of a ramp or of spikes the mean over the run; without an end in time nobody knows it, and the highest is said.
        offered_per_second: options.rate.map(|rate| match options.duration {
            Some(duration) if !duration.is_zero() => Schedule::expected(&rate, duration) / duration.as_secs_f64(),
            _ => rate.peak(),
        }),
        scheduled_s: options.rate.and(options.duration).map(|duration| duration.as_secs_f64()),
        sessions: options.sessions as u64,
        generator_threads: options.cores.len().min(options.sessions) as u32,
        server_cores: None,
        pipelined: report.pipelined > 0,
        pipelining_asked: Some(options.pipelining),
        transactions_pipelined: Some(report.pipelined),
        chunking_asked: Some(options.chunking),
        transactions_chunked: Some(report.chunked),
        sizes_raised: Some(report.sizes_raised),
    }
}

/// Nothing where nothing was acknowledged: there is no message to share the CPU.
fn cpu_us_per_message(run: &SourceRun) -> Option<f64> {
    (run.report.acknowledged > 0).then(|| run.cpu.as_secs_f64() * 1e6 / run.report.acknowledged as f64)
}

/// A sentence where the server left connections without a banner.
pub fn ungreeted_text(report: &CoreReport) -> Option<String> {
    (report.ungreeted > 0).then(|| {
        format!(
            "{} connections were taken by the server's kernel and never greeted, so that fewer sessions than asked for carried the load: \
             raise the server's limit of processes or threads (Postfix: default_process_limit), or ask for fewer sessions",
            report.ungreeted
        )
    })
}

/// A sentence where sessions waited to connect again after failures.
fn paused_text(sessions: usize, report: &CoreReport) -> Option<String> {
    let all = report.lasted.as_secs_f64() * sessions as f64;
    (report.pauses > 0).then(|| {
        format!(
            "sessions waited {} times to connect again after a failure, {:.2} s in all: {:.0} % of their time",
            report.pauses,
            report.paused.as_secs_f64(),
            (report.paused.as_secs_f64() / all.max(1e-9) * 100.0).min(100.0)
        )
    })
}

/// A run as one JSON object.
pub fn summary(options: &SourceOptions, run: &SourceRun) -> serde_json::Value {
    let (report, totals) = (&run.report, run.measurement.totals());
    let lasted = report.lasted.as_secs_f64();
    let phases: serde_json::Map<String, serde_json::Value> = Phase::ALL
        .into_iter()
        .filter(|&phase| !totals.histogram(phase).is_empty())
        .map(|phase| {
            let latency = totals.histogram(phase);
            let at = |percentile: f64| told(latency, percentile).map(|ns| ns / 1000);
            let text = json!({ "count": latency.len(), "mean_us": latency.mean() / 1000.0, "p50_us": at(50.0), "p90_us": at(90.0),
                "p99_us": at(99.0), "p99.9_us": at(99.9), "p99.99_us": at(99.99), "max_us": latency.max() / 1000 });
            (phase.name().to_string(), text)
        })
        .collect();
    json!({
        "acknowledged": report.acknowledged, "refused": report.refused, "unknown": report.unknown, "unsent": report.unsent,
        "aborted": report.aborted, "recipients_refused": report.recipients_refused, "never_begun": report.never_begun,
        "gave_up_after_seconds": report.gave_up_after.map(|after| after.as_secs_f64()), "interrupted": run.interrupted, "ungreeted": report.ungreeted,
        "pauses": report.pauses, "paused_s": report.paused.as_secs_f64(), "seconds": lasted, "messages_per_second": report.acknowledged as f64 / lasted.max(1e-9),
        "own_cpu_us_per_message": cpu_us_per_message(run), "own_cpu_seconds": run.cpu.as_secs_f64(),
        "transactions_pipelined": report.pipelined, "transactions_chunked": report.chunked, "sizes_raised": report.sizes_raised,
        "errors": totals.errors, "last_trouble": report.last_trouble, "seed": options.seed,
        "run": format!("{:016x}", run.run), "phases": phases,
    })
}

/// A run as lines.
pub fn summary_text(options: &SourceOptions, run: &SourceRun) -> String {
    let (report, totals) = (&run.report, run.measurement.totals());
    let lasted = report.lasted.as_secs_f64();
    let mut lines = Vec::new();
    lines.push(format!(
        "acknowledged {} in {lasted:.2} s: {:.0} messages/s, {:.1} MiB/s{}; seed {}",
        report.acknowledged,
        report.acknowledged as f64 / lasted.max(1e-9),
        totals.acknowledged_bytes as f64 / f64::from(1 << 20) / lasted.max(1e-9),
        cpu_us_per_message(run).map_or_else(String::new, |cost| format!(", {cost:.2} us of own CPU per message")),
        options.seed,
    ));
    if run.interrupted {
        lines.push(interrupted_text(run));
    }
    lines.extend(report.gave_up_after.and_then(|_| never_begun_text(report)));
    lines.extend(ungreeted_text(report));
    if report.aborted > 0 {
        lines.push(format!("given up on purpose {}", report.aborted));
    }
    if report.recipients_refused > 0 {
        lines.push(format!("recipients refused {}", report.recipients_refused));
    }
    if report.settled > report.acknowledged + report.aborted || report.never_begun > 0 {
        lines.push(format!(
            "refused {}, unknown {} (the connection ended before the reply), unsent {}, never begun {}",
            report.refused, report.unknown, report.unsent, report.never_begun
        ));
    }
    lines.extend(paused_text(options.sessions, report));
    lines.extend(raised_text(report.sizes_raised, totals.sent));
    if Phase::ALL.into_iter().any(|phase| !totals.histogram(phase).is_empty()) {
        lines.push(format!(
            "{:<20}{:>10}{:>10}{:>10}{:>10}{:>10}{:>10}{:>10}",
            "phase", "count", "p50", "p90", "p99", "p99.9", "p99.99", "max"
        ));
    }
    for phase in Phase::ALL {
        let latency = totals.histogram(phase);
        if !latency.is_empty() {
            let at = |percentile: f64| shown(latency, percentile);
            lines.push(format!(
                "{:<20}{:>10}{:>10}{:>10}{:>10}{:>10}{:>10}{:>10}",
                phase.title(),
                latency.len(),
                at(50.0),
                at(90.0),
                at(99.0),
                at(99.9),
                at(99.99),
                at(100.0)
            ));
        }
    }
    for (kind, count) in totals.errors.iter() {
        lines.push(format!("error {kind}: {count}"));
    }
    if let Some(trouble) = &report.last_trouble {
        let overcome = if failures(run).is_empty() { ", overcome, as all was acknowledged" } else { "" };
        lines.push(format!("the last trouble{overcome}: {trouble}"));
    }
    lines.join("\n")
}
