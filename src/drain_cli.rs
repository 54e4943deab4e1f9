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
    queue_cli::{code, messages, say},
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
        say(&empty_text(*handed_over));
    }
    code(result.map(|_| true))
}

/// What is said at the end of a drain that has left nothing.
fn empty_text(handed_over: u64) -> String {
    let was = if handed_over == 1 { "was" } else { "were" };
    format!(
        "the node is empty: {} {was} handed over; it goes on accepting, and what comes goes to the cluster, too, until it is stopped",
        messages(handed_over)
    )
}

fn text(progress: &DrainProgress) -> String {
    let counts = progress.counts;
    if progress.shards_awaited > 0 {
        return awaiting(progress);
    }
    let mut text =
        format!("{} handed over, {} left: {} offered", progress.handed_over, counts.messages() + progress.claims, counts.offered);
    let more = [
        (counts.active, "in delivery"),
        (counts.held, "held by command"),
        (counts.too_large, "too large"),
        (progress.claims, "being taken over"),
    ];
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
    } else if counts.messages() == 0 && progress.claims > 0 {
        text.push_str(
            "; the queue is asked whose they are: for some seconds, up to 15 minutes without an answer, and as long as their items are in the queue again, \
             four hours at most",
        );
    }
    text
}

/// What is said before the shards have told what they hold.
fn awaiting(progress: &DrainProgress) -> String {
    let shards = progress.shards_awaited;
    let (which, verb) = if shards == 1 { ("shard", "does") } else { ("shards", "do") };
    let mut text = format!("{shards} {which} of this node {verb} not say yet what is there");
    if progress.awaited_s > 0 {
        text.push_str(&format!(", for {} s", progress.awaited_s));
    }
    text.push_str(": the spool is still being loaded, which takes its time where it is large (the log says \"spool loaded\"), or the node is very busy");
    if progress.valkey_away_ms > 0 {
        text.push_str("; Valkey does not answer");
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

    /// It said nothing until the last of a spool of millions was loaded.
    #[test]
    fn a_drain_that_waits_for_a_spool_says_so_and_for_how_long() {
        let mut progress = DrainProgress::default();
        progress.shards_awaited = 1;
        assert!(
            text(&progress).starts_with("1 shard of this node does not say yet what is there: the spool is still being loaded"),
            "{}",
            text(&progress)
        );
        (progress.shards_awaited, progress.awaited_s) = (4, 20);
        assert!(
            text(&progress).starts_with("4 shards of this node do not say yet what is there, for 20 s: the spool"),
            "{}",
            text(&progress)
        );
    }

    /// Of mail that was leased before the last line said how much there was of it, for up to four hours, and not what it waited for.
    #[test]
    fn a_drain_that_waits_for_a_word_about_what_was_leased_says_for_which_and_how_long() {
        let mut progress = DrainProgress::default();
        progress.claims = 3;
        let claims = text(&progress);
        assert!(claims.starts_with("0 handed over, 3 left: 0 offered, 3 being taken over; the queue is asked whose they are"), "{claims}");
        progress.counts.held = 1;
        assert_eq!(text(&progress), "0 handed over, 4 left: 0 offered, 1 held by command, 3 being taken over");
    }

    #[test]
    fn a_node_that_is_empty_accepts_on_and_says_so() {
        assert!(empty_text(1).starts_with("the node is empty: 1 message was handed over; it goes on accepting"));
        assert!(empty_text(40).starts_with("the node is empty: 40 messages were handed over; "));
    }
}
