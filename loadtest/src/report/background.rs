//! How the background of a scenario fared, as a sentence.

use super::format::count;
use crate::{error_kind::ErrorCounts, run_result::RunResult};

/// None where there was none, or the result was written before that was asked.
pub fn background_text(run: &RunResult) -> Option<String> {
    let background = &run.settings["background"];
    let acknowledged = background["acknowledged"].as_u64()?;
    let begun = background["transactions_begun"].as_u64().unwrap_or(acknowledged);
    let errors: ErrorCounts = serde_json::from_value(background["errors"].clone()).unwrap_or_default();
    let kinds: Vec<String> = errors.iter().map(|(kind, number)| format!("{kind}: {}", count(number))).collect();
    Some(format!(
        "the background beside it, which is not in these figures: {} of {} messages begun were acknowledged, {}",
        count(acknowledged),
        count(begun),
        if kinds.is_empty() { "no errors".to_owned() } else { format!("errors {}", kinds.join(", ")) }
    ))
}
