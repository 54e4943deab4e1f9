//! `ringpost drain`: asks the running engine to empty itself, and shows how far it is.

use std::{
    io::{self, IsTerminal},
    path::Path,
    process::ExitCode,
};

use crate::{
    cli::Output,
    control_client::ask,
    control_wire::WireRequest,
    handover::DrainProgress,
    queue_cli::{code, say},
};

/// Drains the engine that listens at `socket` and waits until it is empty. With JSON each step is a line, the last of which says whether
/// the node is `done`.
pub fn drain(socket: &Path, output: Output) -> ExitCode {
    let on_terminal = !output.json && io::stderr().is_terminal();
    let mut last = None;
    let result = ask(socket, &WireRequest::DrainToCluster {}, |line| {
        let Ok(progress) = serde_json::from_str::<DrainProgress>(line) else { return };
        if last == Some(progress) {
            return;
        }
        last = Some(progress);
        if output.json {
            let mut line = serde_json::to_value(progress).expect("plain data");
            line["done"] = progress.is_done().into();
            say(&line.to_string());
        } else if on_terminal {
            eprint!("\r\x1b[K{}", text(&progress));
        } else {
            eprintln!("{}", text(&progress));
        }
    });
    if on_terminal && last.is_some() {
        eprintln!();
    }
    if let (Ok(handed_over), false) = (&result, output.json) {
        say(&format!("the node is empty: {handed_over} messages were handed over"));
    }
    code(result.map(|_| true))
}

fn text(progress: &DrainProgress) -> String {
    let counts = progress.counts;
    let mut text =
        format!("{} handed over, {} left: {} offered", progress.handed_over, counts.messages() + progress.claims, counts.offered);
    let more =
        [(counts.active, "in delivery"), (counts.held, "held"), (counts.too_large, "too large"), (progress.claims, "being taken over")];
    more.into_iter().filter(|(count, _)| *count > 0).for_each(|(count, what)| text.push_str(&format!(", {count} {what}")));
    if progress.valkey_away_ms > 0 {
        text.push_str("; Valkey does not answer");
    } else if progress.partitions_away > 0 {
        text.push_str(&format!(
            "; partitions of the queue that do not answer: {}, and what is offered there waits for them",
            progress.partitions_away
        ));
    } else if progress.not_taken_s > 0 {
        text.push_str(&format!(
            "; no node has taken any of them for {} s: the nodes that deliver are down or have enough to deliver, which their logs say",
            progress.not_taken_s
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use ringpost_engine::control::DrainCounts;

    use super::*;

    #[test]
    fn a_drain_that_stands_still_says_that_nobody_takes_what_is_left() {
        let counts = DrainCounts { offered: 463, ..Default::default() };
        let mut progress = DrainProgress::default();
        (progress.counts, progress.handed_over) = (counts, 287);
        assert_eq!(text(&progress), "287 handed over, 463 left: 463 offered");
        progress.not_taken_s = 10;
        let still = text(&progress);
        assert!(still.starts_with("287 handed over, 463 left: 463 offered; no node has taken any of them for 10 s"), "{still}");
        // One that does not answer is no Valkey that is away, and says why nobody takes them.
        progress.partitions_away = 1;
        assert!(text(&progress).contains("463 offered; partitions of the queue that do not answer: 1, and"), "{}", text(&progress));
        progress.valkey_away_ms = 1;
        assert!(text(&progress).ends_with("; Valkey does not answer"));
    }
}
