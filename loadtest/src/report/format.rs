//! Numbers and text as people read them.

use crate::{
    phase::Phase,
    run_result::{PhaseSummary, RunResult},
};

/// A percentile by its name; a dash where it says nothing.
pub fn percentile(summary: &PhaseSummary, name: &str) -> String {
    summary.percentile_ns(name).map_or_else(|| "–".to_owned(), |ns| latency(ns as f64))
}

/// The same of a run's whole transactions.
pub fn percentile_of(run: &RunResult, name: &str) -> String {
    run.phases.get(&Phase::Transaction).map_or_else(|| "–".to_owned(), |summary| percentile(summary, name))
}

/// Escapes text for HTML and attributes.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            c => escaped.push(c),
        }
    }
    escaped
}

/// As a terminal may show it: control characters, which would move its cursor or colour it, are written out, but for those in `kept`.
pub fn printable(text: &str, kept: &[char]) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() && !kept.contains(&c) {
            shown.extend(c.escape_default());
        } else {
            shown.push(c);
        }
    }
    shown
}

/// A count: every digit of it, thousands with commas.
pub fn count(value: u64) -> String {
    let digits = value.to_string();
    digits
        .chars()
        .enumerate()
        .flat_map(|(at, digit)| [(at > 0 && (digits.len() - at).is_multiple_of(3)).then_some(','), Some(digit)])
        .flatten()
        .collect()
}

/// Three significant digits, thousands with commas: `0.125`, `12.3`, `1,234`.
pub fn number(value: f64) -> String {
    if !value.is_finite() {
        return "–".to_owned();
    }
    let size = value.abs();
    if size >= 100.0 || size == 0.0 {
        return grouped(value.round());
    }
    let digits = if size >= 10.0 {
        1
    } else if size >= 1.0 {
        2
    } else {
        3
    };
    format!("{value:.digits$}")
}

fn grouped(value: f64) -> String {
    let digits = format!("{:.0}", value.abs());
    let mut text = if value < 0.0 { "-".to_owned() } else { String::new() };
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A latency with the unit that fits: `850 ns`, `12.3 us`, `4.56 ms`, `1.20 s`. A reply that was there already when its clock began took
/// no time, which recorders keep as their shortest, 1 ns.
pub fn latency(ns: f64) -> String {
    let (value, unit) = match ns {
        ns if ns <= 1.0 => return "0 us".to_owned(),
        ns if ns < 1e3 => (ns, "ns"),
        ns if ns < 1e6 => (ns / 1e3, "us"),
        ns if ns < 1e9 => (ns / 1e6, "ms"),
        ns => (ns / 1e9, "s"),
    };
    format!("{} {unit}", number(value))
}

/// Octets with the unit that fits.
pub fn bytes(value: f64) -> String {
    let (value, unit) = match value {
        v if v < 1024.0 => (v, "B"),
        v if v < 1048576.0 => (v / 1024.0, "KiB"),
        v if v < 1073741824.0 => (v / 1048576.0, "MiB"),
        v => (v / 1073741824.0, "GiB"),
    };
    format!("{} {unit}", number(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_digits_and_units_that_fit() {
        assert_eq!(
            [number(0.0), number(0.1254), number(2.518), number(42.04), number(1_234_567.8)],
            ["0", "0.125", "2.52", "42.0", "1,234,568"]
        );
        assert_eq!([count(0), count(16), count(999), count(1_234_567)], ["0", "16", "999", "1,234,567"]);
        assert_eq!([number(f64::NAN), number(-1234.0)], ["–", "-1,234"]);
        assert_eq!([latency(850.0), latency(12_300.0), latency(4.56e6), latency(1.2e9)], ["850 ns", "12.3 us", "4.56 ms", "1.20 s"]);
        // Tables said that half of all replies took "1.00 ns".
        assert_eq!([latency(0.0), latency(1.0), latency(2.0)], ["0 us", "0 us", "2.00 ns"]);
        assert_eq!([bytes(12.0), bytes(2048.0), bytes(5.5 * 1048576.0)], ["12.0 B", "2.00 KiB", "5.50 MiB"]);
    }

    #[test]
    fn what_a_server_said_cannot_become_markup() {
        assert_eq!(escape("<script a='\"&"), "&lt;script a=&#39;&quot;&amp;");
    }

    #[test]
    fn what_a_server_said_cannot_move_the_cursor() {
        assert_eq!(printable("a\u{1b}[2J\u{9b}b\r\n\tü", &['\n', '\t']), "a\\u{1b}[2J\\u{9b}b\\r\n\tü");
        assert_eq!(printable("a\nb", &[]), "a\\nb");
    }
}
