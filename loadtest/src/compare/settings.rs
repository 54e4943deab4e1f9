//! What two sets of runs were told differently.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
};

use serde_json::Value;

use crate::{run_result::RunResult, schedule::Rate};

/// Settings that may differ: chance, where the server is, and words.
const MAY_DIFFER: [&str; 4] = ["seed", "to", "name", "about"];
/// Settings that a note of the load tells of already.
const TOLD_ALREADY: [&str; 2] = ["sessions", "load.sessions"];
/// Characters of a value that are shown.
const VALUE_CHARS_MAX: usize = 50;
/// Settings of one side that are named.
const NAMED_MAX: usize = 8;

/// A note for each setting that both sides have and that differs, and one for those that only one side has.
pub(super) fn differences(a: &[&RunResult], b: &[&RunResult]) -> Vec<String> {
    let (of_a, of_b) = (settings(a), settings(b));
    let mut notes = Vec::new();
    for (name, in_a) in &of_a {
        let Some(in_b) = of_b.get(name) else { continue };
        // Runs of one side may differ, too.
        if in_a.len() > 1 || in_a != in_b {
            let words = |values: &BTreeSet<String>| values.iter().map(|value| shown(value)).collect::<Vec<_>>().join(", ");
            notes.push(format!("not the same {name}: {} / {}", words(in_a), words(in_b)));
        }
    }
    notes.extend(only(&of_a, &of_b, "A"));
    notes.extend(only(&of_b, &of_a, "B"));
    notes
}

/// Older results name fewer, and so do scenarios that leave an engine's as they are.
fn only(these: &Settings, others: &Settings, side: &str) -> Option<String> {
    let missing = these.iter().filter(|(name, _)| !others.contains_key(*name));
    let mut words: Vec<String> = missing.filter_map(|(name, values)| Some(format!("{name} = {}", shown(values.iter().next()?)))).collect();
    let more = words.len().saturating_sub(NAMED_MAX);
    words.truncate(NAMED_MAX);
    if more > 0 {
        words.push(format!("{more} more"));
    }
    (!words.is_empty()).then(|| format!("only {side} says: {}", words.join(", ")))
}

/// By their path, all values that the runs of a side have.
type Settings = BTreeMap<String, BTreeSet<String>>;

fn settings(runs: &[&RunResult]) -> Settings {
    let mut all = Settings::new();
    for run in runs {
        gather(String::new(), &told(&run.settings), &mut all);
    }
    // A result without settings, or with a text in their place, has none that has a name.
    all.retain(|name, _| !name.is_empty() && !MAY_DIFFER.contains(&name.as_str()) && !TOLD_ALREADY.contains(&name.as_str()));
    all
}

/// What decided about a run. What else stands beside a scenario is what came of it, but for the seconds that it ran: results of other seconds
/// than the scenario's own, written up to commit ee70b86, have the course as it was written for those.
fn told(settings: &Value) -> Cow<'_, Value> {
    let scenario = &settings["scenario"];
    if !scenario.is_object() {
        return Cow::Borrowed(settings);
    }
    let (Some(ran), Some(own)) = (settings["seconds"].as_f64(), scenario["seconds"].as_f64()) else { return Cow::Borrowed(scenario) };
    if ran == own || own <= 0.0 {
        return Cow::Borrowed(scenario);
    }
    let (mut scenario, factor) = (scenario.clone(), ran / own);
    scenario["seconds"] = ran.into();
    for (section, key) in [("load", "rate"), ("background", "rate"), ("engine", "kill_after_s")] {
        let Some(value) = scenario.get_mut(section).and_then(|section| section.get_mut(key)) else { continue };
        let stretched = match &*value {
            Value::String(rate) => rate.parse::<Rate>().ok().map(|rate| rate.stretched(factor).to_string().into()),
            Value::Number(after) => after.as_f64().map(|after| (after * factor).into()),
            _ => None,
        };
        if let Some(stretched) = stretched {
            *value = stretched;
        }
    }
    Cow::Owned(scenario)
}

fn gather(path: String, value: &Value, all: &mut Settings) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                gather(if path.is_empty() { name.clone() } else { format!("{path}.{name}") }, value, all);
            }
        }
        Value::String(text) => drop(all.entry(path).or_default().insert(text.clone())),
        other => drop(all.entry(path).or_default().insert(other.to_string())),
    }
}

fn shown(value: &str) -> String {
    match value.char_indices().nth(VALUE_CHARS_MAX) {
        Some((at, _)) => format!("{}…", &value[..at]),
        None => match value {
            "" => "empty".to_owned(),
            "null" => "none".to_owned(),
            value => value.to_owned(),
        },
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::sample_run::SampleRun;

    fn notes(a: Value, b: Value) -> Vec<String> {
        let [a, b] = [a, b].map(|settings| RunResult { settings, ..SampleRun { seconds: 1, ..SampleRun::default() }.result() });
        differences(&[&a], &[&b])
    }

    /// What happened: of all that a load is told only size, sessions, rate and pipelining were looked at, and a side with connections for five
    /// messages each was compared with one that kept them.
    #[test]
    fn each_setting_that_differs_is_named_with_both_values() {
        let base = json!({"to": "a:1", "seed": 1, "per_connection": 0, "abort": [], "sender": "a@x", "rate": null});
        let other = json!({"to": "b:1", "seed": 2, "per_connection": 5, "abort": ["mail:0.1"], "sender": "", "rate": "500"});
        let wanted = [
            "not the same abort: [] / [\"mail:0.1\"]",
            "not the same per_connection: 0 / 5",
            "not the same rate: none / 500",
            "not the same sender: a@x / empty",
        ];
        assert_eq!(notes(base.clone(), other), wanted);
        assert_eq!(notes(base.clone(), base), [""; 0]);
    }

    #[test]
    fn of_scenarios_the_keys_that_differ_are_named_and_not_what_came_of_them() {
        let scenario = |seconds, settings: Value| json!({"drain_s": seconds, "scenario": {"about": "x", "seconds": seconds, "load": {"size": "4096"}, "engine": settings}});
        let found = notes(scenario(3, json!({})), scenario(5, json!({"smtp": {"sessions_max": 10}})));
        assert_eq!(found, ["not the same seconds: 3 / 5", "only B says: engine.smtp.sessions_max = 10"]);
    }

    /// What happened: a result of other seconds than the scenario's own, as they were written before, differed in them from a new one of the
    /// same course, and in its ramp and its kill.
    #[test]
    fn a_course_that_was_fitted_into_other_seconds_is_compared_as_it_ran() {
        let scenario = |seconds: f64, rate, kill: f64| json!({"name": "x", "seconds": seconds, "load": {"rate": rate, "size": "4096"}, "background": {"rate": "70"}, "engine": {"kill_after_s": kill}});
        let older = |seconds: f64| json!({"scenario": scenario(10.0, "100..900/10", 5.0), "seconds": seconds, "seed": 1});
        let newer = json!({"scenario": scenario(4.0, "100..900/4", 2.0), "seconds": 4.0, "planned_s": 10.0, "seed": 2});
        assert_eq!(notes(older(4.0), newer.clone()), [""; 0]);
        let wanted = [
            "not the same engine.kill_after_s: 2.5 / 2.0",
            "not the same load.rate: 100..900/5 / 100..900/4",
            "not the same seconds: 5.0 / 4.0",
        ];
        assert_eq!(notes(older(5.0), newer), wanted);
        // One in a closed loop, without a kill.
        let plain = |own: f64| json!({"scenario": {"seconds": own, "load": {"rate": null}, "background": null}, "seconds": 3.0});
        assert_eq!(notes(plain(20.0), plain(3.0)), [""; 0]);
    }

    #[test]
    fn what_only_one_side_says_is_one_note_and_a_long_value_is_cut() {
        let many = Value::Object((0..12).map(|n| (format!("k{n:02}"), n.into())).collect());
        let found = notes(many, json!({"header": "x".repeat(80)}));
        let k7 = "only A says: k00 = 0, k01 = 1, k02 = 2, k03 = 3, k04 = 4, k05 = 5, k06 = 6, k07 = 7, 4 more";
        assert_eq!(found, [k7.to_owned(), format!("only B says: header = {}…", "x".repeat(50))]);
    }

    /// What happened: a result without settings had one without a name, "only A says:  = none".
    #[test]
    fn a_result_without_settings_has_none_without_a_name() {
        let settings = json!({"size": "4096"});
        assert_eq!(notes(Value::Null, settings.clone()), ["only B says: size = 4096"]);
        assert_eq!(notes(json!("text"), settings), ["only B says: size = 4096"]);
        assert_eq!(notes(Value::Null, Value::Null), [""; 0]);
    }
}
