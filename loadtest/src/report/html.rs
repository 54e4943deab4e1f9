//! The report as one HTML file: nothing is fetched, it can be mailed and archived.

use std::fmt::Write;

use time::macros::format_description;

use super::{
    advice::{Advice, advise},
    background::background_text,
    charts,
    connections::connections_text,
    format::{bytes, count, escape, latency, number, percentile, percentile_of},
    suite::Suite,
};
use crate::{content::raised_text, percentile::PERCENTILES, run_result::RunResult};

/// The whole page.
pub fn page(suite: &Suite) -> String {
    let mut body = String::new();
    let verdict = match suite.failed_tests {
        0 => format!("<span class=\"good\">all {} passed</span>", suite.total_tests),
        failed => format!("<span class=\"bad\">{failed} of {} failed</span>", suite.total_tests),
    };
    let when = suite.timestamp.format(format_description!("[year]-[month]-[day] [hour]:[minute]:[second] UTC")).unwrap_or_default();
    push(&mut body, format_args!("<h1>{}</h1><p class=\"quiet\">{} · {verdict}</p>", escape(&suite.test_suite), escape(&when)));
    if suite.results.len() > 1 {
        body.push_str(&overview(&suite.results));
        body.push_str(&format!("<div class=\"charts\">{}</div>", charts::percentiles_of_runs(&suite.results)));
    }
    if let Some(first) = suite.results.first() {
        body.push_str(&machine(first));
        other_machines(&mut body, &suite.results);
    }
    suite.results.iter().enumerate().for_each(|(index, result)| run(&mut body, index, result));
    document(&suite.test_suite, &body)
}

/// A page around a body, with the style and the script that charts need.
pub fn document(title: &str, body: &str) -> String {
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <title>{}</title><style>{}</style></head><body><main>{body}</main><script>{}</script></body></html>\n",
        escape(title),
        include_str!("page.css"),
        include_str!("page.js")
    )
}

fn push(text: &mut String, what: std::fmt::Arguments<'_>) {
    text.write_fmt(what).expect("a string takes all");
}

fn overview(results: &[RunResult]) -> String {
    let mut text = String::from(
        "<div class=\"scroll\"><table><tr><th>test</th><th>verdict</th><th>messages</th><th>messages/s</th><th>p50</th><th>p95</th><th>p99</th>\
         <th>max</th><th>errors</th><th>CPU</th><th>memory</th></tr>",
    );
    for (index, run) in results.iter().enumerate() {
        push(
            &mut text,
            format_args!(
                "<tr><td><a href=\"#run{index}\">{}</a></td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
                escape(&run.test_name),
                if run.success { "<span class=\"good\">passed</span>" } else { "<span class=\"bad\">failed</span>" },
                count(run.emails_sent),
                number(run.emails_per_second),
                percentile_of(run, "p50"),
                percentile_of(run, "p95"),
                percentile_of(run, "p99"),
                percentile_of(run, "p100"),
                count(run.errors.total()),
                measured(run.cpu_usage, "%"),
                measured(run.memory_usage_mb, "MiB"),
            ),
        );
    }
    text.push_str("</table></div>");
    text
}

/// A number with its unit; a dash where it was not measured.
fn measured(value: Option<f64>, unit: &str) -> String {
    value.map_or_else(|| "–".to_owned(), |value| format!("{} {unit}", number(value)))
}

fn machine(run: &RunResult) -> String {
    let machine = &run.machine;
    let facts = [
        ("processor", format!("{}, {} of {} cores", machine.cpu_model, machine.cores_allowed, machine.cores)),
        ("memory", format!("{} MiB", number(machine.memory_mib as f64))),
        ("kernel", machine.kernel.clone()),
        ("disk", machine.disk.clone()),
        ("server", if machine.engine.is_empty() { "not known".to_owned() } else { machine.engine.clone() }),
        ("tool", machine.tool.clone()),
        ("load average before", format!("{:.2}", machine.load_average)),
    ];
    let mut text = String::from("<h3>Measured on</h3><table>");
    for (name, value) in facts {
        push(&mut text, format_args!("<tr><td class=\"quiet\">{name}</td><td class=\"text\">{}</td></tr>", escape(&value)));
    }
    text + "</table>"
}

/// Runs that were measured on another machine than the first, on another server, or with another tool: what of it differs.
fn other_machines(body: &mut String, results: &[RunResult]) {
    let known = |text: &str| if text.is_empty() { "not known".to_owned() } else { text.to_owned() };
    let Some((first, others)) = results.split_first() else { return };
    for run in others {
        let facts = [
            ("measured elsewhere", first.machine.line(), run.machine.line()),
            ("measured on another server", known(&first.machine.engine), known(&run.machine.engine)),
            ("measured with another version of this tool", known(&first.machine.tool), known(&run.machine.tool)),
        ];
        for (what, of_first, of_run) in facts.into_iter().filter(|(_, of_first, of_run)| of_first != of_run) {
            push(
                body,
                format_args!(
                    "<p class=\"warn\">{} was {what}: {}, and {}: {}</p>",
                    escape(&run.test_name),
                    escape(&of_run),
                    escape(&first.test_name),
                    escape(&of_first)
                ),
            );
        }
    }
}

fn run(body: &mut String, index: usize, run: &RunResult) {
    let mark = if run.success { "<span class=\"good\">passed</span>" } else { "<span class=\"bad\">failed</span>" };
    let kind = match run.load.offered_per_second {
        Some(rate) => format!("open loop, {} messages/s offered", number(rate)),
        None => "closed loop: the server set the pace".to_owned(),
    };
    push(
        body,
        format_args!(
            "<h2 id=\"run{index}\">{}</h2><p class=\"quiet\">{mark} · {} s · {} session{}, {} · {kind}</p>",
            escape(&run.test_name),
            number(run.duration),
            run.load.sessions,
            if run.load.sessions == 1 { "" } else { "s" },
            pipelining(run) + &chunking(run),
        ),
    );
    facts(body, run);
    run.failures.iter().for_each(|failure| push(body, format_args!("<p class=\"bad\">{}</p>", escape(failure))));
    tiles(body, run);
    advice(body, &advise(run));
    body.push_str("<div class=\"charts\">");
    body.push_str(&charts::percentiles(run));
    body.push_str(&charts::percentiles_of_commands(run));
    body.push_str(&charts::throughput(run));
    body.push_str(&charts::latency_over_time(run));
    body.push_str(&charts::cpu(run));
    body.push_str(&charts::memory(run));
    body.push_str(&charts::in_flight(run));
    body.push_str(&charts::errors(run));
    body.push_str("</div>");
    if run.errors.total() == 0 {
        body.push_str("<p class=\"quiet\">No errors.</p>");
    } else {
        errors(body, run);
    }
    phases(body, run);
    let command = run.command_line.join(" ");
    let settings = serde_json::to_string_pretty(&run.settings).unwrap_or_default();
    push(
        body,
        format_args!(
            "<details><summary>Command line and settings</summary><pre>{}</pre><pre>{}</pre></details>",
            escape(&command),
            escape(&settings)
        ),
    );
    counters(body, run);
}

/// Whether commands waited for each other's replies, and why.
fn pipelining(run: &RunResult) -> String {
    let begun = run.transactions_begun;
    match (run.load.pipelining_asked, run.load.transactions_pipelined) {
        (Some(true), Some(0)) if begun > 0 => "not pipelined, as the server did not offer it".to_owned(),
        (Some(true), Some(some)) if some < begun => format!("{} of {} transactions pipelined", count(some), count(begun)),
        _ if run.load.pipelined => "pipelined".to_owned(),
        _ => "not pipelined".to_owned(),
    }
}

/// Whether content went with BDAT where that was asked for, and why it did not; nothing of results that do not say it.
fn chunking(run: &RunResult) -> String {
    let begun = run.transactions_begun;
    match (run.load.chunking_asked, run.load.transactions_chunked) {
        (Some(true), Some(0)) if begun > 0 => ", no BDAT, as the server did not offer it".to_owned(),
        (Some(true), Some(some)) if some < begun => format!(", {} of {} transactions with BDAT", count(some), count(begun)),
        (Some(true), Some(_)) => ", with BDAT".to_owned(),
        _ => String::new(),
    }
}

/// What the scenario is for, what its messages were like, and what the ledgers of both ends say.
fn facts(body: &mut String, run: &RunResult) {
    let scenario = &run.settings["scenario"];
    if let Some(about) = scenario["about"].as_str() {
        push(body, format_args!("<p>{}</p>", escape(about)));
    }
    let mut words = Vec::new();
    words.extend(content(if scenario.is_object() { &scenario["load"] } else { &run.settings }));
    words.extend(raised_text(run.load.sizes_raised.unwrap_or(0), run.transactions_begun));
    words.extend(background_text(run));
    words.extend(connections_text(run));
    let ledgers = &run.settings["difference"];
    let of = |name: &str| ledgers[name].as_u64().map(count).unwrap_or_default();
    if ledgers.is_object() {
        words.push(format!(
            "ledgers compared: {} deliveries owed, {} arrived, {} lost, {} twice, {} damaged, {} foreign",
            of("owed"),
            of("delivered"),
            of("lost"),
            of("duplicated"),
            of("damaged"),
            of("foreign")
        ));
        if ledgers["queued"].as_u64().is_some_and(|queued| queued > 0) {
            words.push(format!("{} deliveries were still queued at the server, and are not lost", of("queued")));
        }
    }
    let seconds = |name: &str| run.settings[name].as_f64();
    if let (Some(ran), Some(planned)) = (seconds("seconds"), seconds("planned_s"))
        && ran != planned
    {
        words.push(format!("its course of {} s was fitted into {} s", number(planned), number(ran)));
    }
    if let Some(seconds) = run.settings["recovery_s"].as_f64() {
        words.push(format!("killed, and greeting again {} after the new start", latency(seconds * 1e9)));
    }
    if let Some(seconds) = run.settings["drain_s"].as_f64() {
        words.push(format!("queue empty {} after the load", latency(seconds * 1e9)));
    }
    if let Some(cpu) = run.server_cpu_by_phase.filter(|cpu| cpu.drain_s > 0.0) {
        words.push(format!("the server used {} s of CPU during the load and {} s behind it", number(cpu.load_s), number(cpu.drain_s)));
    }
    if !words.is_empty() {
        push(body, format_args!("<p class=\"quiet\">{}</p>", escape(&words.join(" · "))));
    }
}

/// What messages were made of. Sizes are of generated text only.
fn content(load: &serde_json::Value) -> Option<String> {
    for (key, what) in [("corpus", "the folder"), ("template", "the template")] {
        if let Some(path) = load[key].as_str() {
            return Some(format!("messages of {what} {path}"));
        }
    }
    let some = |key: &str| load[key].as_array().map_or(0, Vec::len);
    if some("header") + some("attach") > 0 {
        return Some(format!("messages with {} header fields and {} attachments of their own", some("header"), some("attach")));
    }
    let size = load["size"].as_str()?;
    Some(match size.parse::<f64>() {
        Ok(octets) => format!("messages of {}", bytes(octets)),
        Err(_) => format!("sizes {size} octets"),
    })
}

fn tiles(body: &mut String, run: &RunResult) {
    let at = |name: &str| percentile_of(run, name);
    let mut tiles = vec![
        (number(run.emails_per_second), "messages/s acknowledged"),
        (count(run.emails_sent), "messages"),
        (at("p50"), "p50"),
        (at("p99"), "p99"),
        (at("p99.9"), "p99.9"),
        (at("p100"), "longest"),
        (count(run.errors.total()), "errors"),
    ];
    if let Some(cost) = run.cpu_us_per_message {
        tiles.push((format!("{} us", number(cost)), "server CPU per message"));
    }
    if let Some(part) = run.server_cpu_measured {
        tiles.push((format!("{} s", number(part.seconds)), "server's CPU measured"));
    }
    if let Some(cost) = run.memory_bytes_per_connection {
        tiles.push((bytes(cost), "server memory per connection"));
    }
    body.push_str("<div class=\"tiles\">");
    for (value, name) in tiles {
        push(body, format_args!("<div class=\"tile\"><b>{value}</b><span>{name}</span></div>"));
    }
    body.push_str("</div>");
}

fn advice(body: &mut String, advice: &Advice) {
    body.push_str("<h3>What set the pace</h3>");
    advice.sentences.iter().for_each(|text| push(body, format_args!("<p>{}</p>", escape(text))));
    if let Some(capacity) = &advice.capacity {
        capacity.sentences.iter().for_each(|text| push(body, format_args!("<p>{}</p>", escape(text))));
    }
}

fn errors(body: &mut String, run: &RunResult) {
    body.push_str("<h3>Errors</h3><table><tr><th>kind</th><th>count</th></tr>");
    for (kind, number) in run.errors.iter() {
        push(body, format_args!("<tr><td>{kind}</td><td>{}</td></tr>", count(number)));
    }
    body.push_str("</table>");
}

fn phases(body: &mut String, run: &RunResult) {
    body.push_str("<h3>Latency by phase</h3><div class=\"scroll\"><table><tr><th>phase</th><th>count</th><th>min</th><th>mean</th>");
    PERCENTILES.iter().for_each(|(name, _)| push(body, format_args!("<th>{}</th>", if *name == "p100" { "max" } else { name })));
    body.push_str("</tr>");
    for (phase, summary) in &run.phases {
        push(
            body,
            format_args!(
                "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td>",
                phase.title(),
                count(summary.count),
                latency(summary.min_ns as f64),
                latency(summary.mean_ns)
            ),
        );
        for (name, _) in PERCENTILES {
            let text = percentile(summary, name);
            push(body, format_args!("<td>{text}</td>"));
        }
        body.push_str("</tr>");
    }
    body.push_str("</table></div>");
}

fn counters(body: &mut String, run: &RunResult) {
    if run.final_metrics.is_empty() {
        return;
    }
    body.push_str(
        "<details><summary>Counters of the server</summary><table><tr><th>counter</th><th>before</th><th>after</th><th>change</th></tr>",
    );
    for (name, after) in &run.final_metrics {
        let before = run.initial_metrics.get(name).copied().unwrap_or(0.0);
        push(
            body,
            format_args!(
                "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
                escape(name),
                number(before),
                number(*after),
                number(after - before)
            ),
        );
    }
    body.push_str("</table></details>");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{error_kind::ErrorKind, sample_run::SampleRun};

    #[test]
    fn what_was_not_pipelined_is_told_with_its_reason() {
        let mut run = SampleRun::default().result();
        let mut told = |asked, of| {
            let pipelined = of != Some(0);
            run.load = crate::run_result::Load { pipelined, pipelining_asked: asked, transactions_pipelined: of, ..run.load.clone() };
            pipelining(&run)
        };
        // Of results written before nothing else is known.
        assert_eq!(told(None, None), "pipelined");
        assert_eq!(told(Some(true), Some(0)), "not pipelined, as the server did not offer it");
        assert_eq!(told(Some(false), Some(0)), "not pipelined");
        assert!(told(Some(true), Some(3)).starts_with("3 of "));
        assert_eq!(told(Some(true), Some(u64::MAX)), "pipelined");
    }

    #[test]
    fn what_went_without_bdat_is_told_with_its_reason() {
        let mut run = SampleRun::default().result();
        let mut told = |asked, of| {
            (run.load.chunking_asked, run.load.transactions_chunked) = (asked, of);
            chunking(&run)
        };
        assert_eq!((told(None, None), told(Some(false), Some(0))), (String::new(), String::new()));
        assert_eq!(told(Some(true), Some(0)), ", no BDAT, as the server did not offer it");
        assert!(told(Some(true), Some(3)).starts_with(", 3 of "));
        assert_eq!(told(Some(true), Some(u64::MAX)), ", with BDAT");
    }

    #[test]
    fn a_report_needs_no_network_and_shows_what_was_measured() {
        let mut run = SampleRun::default().result();
        run.test_name = "<b>baseline</b>".into();
        run.errors.add(ErrorKind::Reply(451), 3);
        run.intervals[2].errors.add(ErrorKind::Reply(451), 3);
        let text = page(&Suite::new("suite", vec![run.clone(), run]));
        // The summary's table had a p99 of any number of messages.
        let few = SampleRun { seconds: 1, ..SampleRun::default() }.result();
        let table = overview(&[few.clone(), few]);
        assert_eq!(table.matches("<td>–</td>").count(), 2, "{table}");
        for forbidden in ["http://", "https://", "<link", "src=", "@import", "<b>baseline", "NaN", "inf ms"] {
            assert!(!text.contains(forbidden), "{forbidden}");
        }
        for wanted in ["dot to 250", "messages/s acknowledged", "p99.9", "Measured on", "<td>451</td>", "What set the pace"] {
            assert!(text.contains(wanted), "{wanted}");
        }
        assert!(!text.contains("measured elsewhere"));
        assert_eq!(text.matches("<figure").count(), text.matches("</figure>").count());
    }

    /// What happened: of a run with a corpus the page said "messages of 4.00 KiB", the size of text that was not sent.
    #[test]
    fn messages_of_a_corpus_have_no_size_of_text() {
        let text = |load| content(&load).unwrap_or_default();
        assert_eq!(text(serde_json::json!({"size": "4096", "corpus": null, "header": []})), "messages of 4.00 KiB");
        assert_eq!(text(serde_json::json!({"size": "4096", "corpus": "/mail"})), "messages of the folder /mail");
        assert_eq!(text(serde_json::json!({"size": "4096", "template": "t.eml"})), "messages of the template t.eml");
        let attached = serde_json::json!({"size": "4096", "header": [], "attach": ["a.pdf"]});
        assert_eq!(text(attached), "messages with 0 header fields and 1 attachments of their own");
        assert_eq!(content(&serde_json::json!({})), None);
    }

    #[test]
    fn a_run_that_measured_nothing_has_a_page_too() {
        let mut run = SampleRun { seconds: 1, ..SampleRun::default() }.result();
        let mut other = run.clone();
        other.machine.kernel = "Linux 7".into();
        let text = page(&Suite::new("two", vec![run.clone(), other]));
        assert!(text.contains("measured elsewhere") && !text.contains("another server"), "{text}");
        // A run on the same machine was measured elsewhere, with nothing behind "server".
        let mut other = run.clone();
        other.machine.engine = "ringpost 0.1".into();
        (other.cpu_usage, other.memory_usage_mb) = (None, None);
        let text = page(&Suite::new("two", vec![run.clone(), other]));
        assert!(text.contains("was measured on another server: ringpost 0.1, and baseline: not known"), "{text}");
        assert!(!text.contains("measured elsewhere") && text.contains("<td>–</td><td>–</td></tr>") && !text.contains("<td>0 %"), "{text}");
        run.phases.clear();
        run.intervals.clear();
        run.emails_sent = 0;
        run.emails_per_second = 0.0;
        let text = page(&Suite::new("empty", vec![run]));
        assert!(text.contains("</html>") && !text.contains("NaN"));
        assert!(page(&Suite::new("none", vec![])).contains("</html>"));
    }
}
