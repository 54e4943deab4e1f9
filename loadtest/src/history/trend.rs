//! How a metric went over the runs: bars as text, charts as a page.

use super::{
    MetricName,
    entry::{Entry, Metric},
};
use crate::report::{
    chart::{Chart, Mark, Scale, Series},
    format::{escape, number},
    html::document,
};

/// Bars of one line of text.
const BARS_MAX: usize = 60;
const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// A line for each test: lowest, bars of the newest runs, newest.
pub fn text(entries: &[Entry], metric: Metric) -> String {
    let mut text = format!("{}, oldest to newest\n", metric.title);
    for test in tests(entries) {
        let values: Vec<f64> = entries.iter().filter(|entry| entry.test_name == test).filter_map(metric.value).collect();
        let Some(&last) = values.last() else {
            text.push_str(&format!("{test:<24} –  (not measured, or of too few messages)\n"));
            continue;
        };
        let shown = &values[values.len().saturating_sub(BARS_MAX)..];
        let (low, high) = shown.iter().fold((f64::MAX, f64::MIN), |(low, high), &value| (low.min(value), high.max(value)));
        text.push_str(&format!(
            "{test:<24} {}  {} (from {} to {})\n",
            bars(shown),
            (metric.text)(last),
            (metric.text)(low),
            (metric.text)(high)
        ));
    }
    text
}

/// Bars from the lowest to the highest value; equal values are bars of middle height.
pub fn bars(values: &[f64]) -> String {
    let (low, high) = values.iter().fold((f64::MAX, f64::MIN), |(low, high), &value| (low.min(value), high.max(value)));
    let height = |value: f64| if high > low { ((value - low) / (high - low) * 7.0).round() as usize } else { 3 };
    values.iter().map(|&value| BARS[height(value).min(7)]).collect()
}

/// The page: for each test its charts and its table.
pub fn page(entries: &[Entry]) -> String {
    let mut body = String::from("<h1>Ringpost load tests over time</h1>");
    for test in tests(entries) {
        let of_test: Vec<&Entry> = entries.iter().filter(|entry| entry.test_name == test).collect();
        let chart = |title: &str, names: &[MetricName], y_scale: Scale| {
            let metrics: Vec<Metric> = names.iter().map(|&name| Metric::of(name)).collect();
            let series = metrics.iter().map(|metric| {
                let points = of_test.iter().enumerate().filter_map(|(n, entry)| Some(((n + 1) as f64, (metric.value)(entry)?)));
                Series::new(metric.title, points.collect())
            });
            let y_label = metrics.first().map_or(number as fn(f64) -> String, |metric| metric.text);
            let series: Vec<Series> = series.filter(|series| !series.points.is_empty()).collect();
            let x_label = |n: f64| if n.fract() == 0.0 && n > 0.0 { format!("#{n:.0}") } else { String::new() };
            let (x_scale, mark) = (Scale::Linear, Mark::Lines);
            Chart { title, x_title: "", x_scale, y_scale, mark, x_label: &x_label, y_label: &y_label, series, y_at_least: 0.0 }.figure()
        };
        body.push_str(&format!("<h2>{}</h2><div class=\"charts\">", escape(test)));
        body.push_str(&chart("Messages per second", &[MetricName::MessagesPerSecond], Scale::Linear));
        body.push_str(&chart("Transactions", &[MetricName::P50, MetricName::P99, MetricName::P999], Scale::Log));
        body.push_str(&chart("Server CPU per message, us", &[MetricName::CpuPerMessage], Scale::Linear));
        body.push_str(&chart("Server memory, MiB", &[MetricName::Memory], Scale::Linear));
        body.push_str(
            "</div><div class=\"scroll\"><table><tr><th>#</th><th>when</th><th>messages/s</th><th>p50</th><th>p99</th><th>p99.9</th>",
        );
        body.push_str("<th>CPU per message</th><th>memory</th><th>errors</th><th class=\"text\">server</th><th class=\"text\">tool</th><th class=\"text\">machine</th><th class=\"text\">kernel</th>");
        body.push_str("<th class=\"text\">disk</th><th class=\"text\">command line</th></tr>");
        for (n, entry) in of_test.iter().enumerate() {
            let cell = |name| {
                let metric = Metric::of(name);
                (metric.value)(entry).map_or_else(|| "–".to_owned(), metric.text)
            };
            let names = [
                MetricName::MessagesPerSecond,
                MetricName::P50,
                MetricName::P99,
                MetricName::P999,
                MetricName::CpuPerMessage,
                MetricName::Memory,
            ];
            let figures: String = names.into_iter().map(|name| format!("<td>{}</td>", cell(name))).collect();
            let [server, tool, machine, kernel, disk, command] = entry.places();
            let place = |shown: &str, whole: &str| format!("<td class=\"text\" title=\"{}\">{}</td>", escape(whole), escape(shown));
            let places: String = [(server, &entry.server), (tool, &entry.tool), (machine, &entry.machine), (kernel, &entry.kernel)]
                .into_iter()
                .chain([(disk, &entry.disk), (command, &entry.command_line)])
                .map(|(shown, whole)| place(&shown, whole))
                .collect();
            body.push_str(&format!("<tr><td>{}</td><td>{}</td>{figures}<td>{}</td>{places}</tr>", n + 1, entry.when(), entry.errors));
        }
        body.push_str("</table></div>");
    }
    document("Ringpost load tests over time", &body)
}

/// Test names in order of first appearance.
fn tests(entries: &[Entry]) -> Vec<&str> {
    let mut names: Vec<&str> = Vec::new();
    for entry in entries {
        if !names.contains(&entry.test_name.as_str()) {
            names.push(&entry.test_name);
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample_run::SampleRun;

    #[test]
    fn bars_go_from_the_lowest_to_the_highest() {
        assert_eq!(bars(&[1.0, 8.0, 4.5]), "▁█▅");
        assert_eq!(bars(&[5.0, 5.0]), "▄▄");
        assert_eq!(bars(&[]), "");
    }

    #[test]
    fn a_trend_has_a_line_and_a_section_for_each_test() {
        let mut entries = Vec::new();
        for seed in 1..=4 {
            let mut run = SampleRun { seed, seconds: 1, slowness: 1.0 + seed as f64 / 10.0, ..SampleRun::default() }.result();
            entries.push(Entry::new(&run));
            run.test_name = "other <test>".into();
            entries.push(Entry::new(&run));
        }
        let lines = text(&entries, Metric::of(MetricName::P99));
        assert_eq!(lines.lines().count(), 3, "{lines}");
        // Four hundred messages have no p99: a test that nothing is told of was left out.
        assert_eq!(lines.matches('–').count(), 2, "{lines}");
        assert!(!text(&entries, Metric::of(MetricName::P50)).contains('–'));
        let page = page(&entries);
        assert_eq!(page.matches("<h2>").count(), 2);
        assert_eq!(page.matches("<figure").count(), 8);
        assert!(page.contains("other &lt;test&gt;") && !page.contains("NaN"));
    }

    #[test]
    fn an_empty_history_has_a_page() {
        assert!(page(&[]).contains("</html>"));
        assert_eq!(text(&[], Metric::of(MetricName::Memory)).lines().count(), 1);
    }
}
