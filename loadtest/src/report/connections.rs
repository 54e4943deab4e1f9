//! What a result of connections without mail is about, as a sentence.

use super::format::{count, number};
use crate::run_result::RunResult;

/// None of a result of mail.
pub fn connections_text(run: &RunResult) -> Option<String> {
    let seen = &run.settings["connections"];
    let of = |name: &str| seen[name].as_u64().unwrap_or(0);
    seen.is_object().then(|| {
        format!(
            "connections without mail: each that was greeted counts as a message, and its opening as the response; {} greeted ({} per second while \
             they came), {} failed, at most {} at once, {} open at the end, {} closed by the server",
            count(of("greeted")),
            number(seen["greeted_per_second"].as_f64().unwrap_or(0.0)),
            count(of("failed")),
            count(of("open_max")),
            count(of("open_at_end")),
            count(of("closed_by_server"))
        )
    })
}
