//! Lines of the mail log keep to docs/mail-log.schema.json.

use serde_json::{Map, Value, json};

use crate::client::Client;
use crate::next_hop::NextHop;
use crate::node::{Node, Setup};
use crate::queue_steering::{deliver, say};

/// What of a schema is checked; a keyword that is not among them is not checked by this test.
const KEYWORDS: [&str; 7] = ["type", "enum", "minimum", "pattern", "format", "examples", "description"];

/// What an object does not keep to, each with its field.
fn faults(schema: &Value, line: &Map<String, Value>) -> Vec<String> {
    let properties = schema["properties"].as_object().unwrap();
    let mut faults = Vec::new();
    for (field, value) in line {
        match properties.get(field) {
            Some(property) => faults.extend(property_fault(property, value).map(|fault| format!("{field}: {fault}"))),
            None => faults.push(format!("{field} is not described")),
        }
    }
    let known = properties["event"]["examples"].as_array().unwrap();
    if !known.contains(&line["event"]) {
        faults.push(format!("event: {} is not described", line["event"]));
    }
    let of_event = schema["allOf"].as_array().unwrap().iter().filter(|rule| {
        let [(field, is)] = &rule["if"]["properties"].as_object().unwrap().iter().collect::<Vec<_>>()[..] else { panic!("{rule}") };
        line.get(*field) == Some(&is["const"])
    });
    let required = of_event.map(|rule| &rule["then"]["required"]).chain([&schema["required"]]);
    for field in required.flat_map(|fields| fields.as_array().unwrap()) {
        if !line.contains_key(field.as_str().unwrap()) {
            faults.push(format!("{field} is missing"));
        }
    }
    faults
}

fn property_fault(property: &Value, value: &Value) -> Option<String> {
    let rules = property.as_object().unwrap();
    assert!(rules.keys().all(|keyword| KEYWORDS.contains(&keyword.as_str())), "{property}");
    let is_of_type = match rules.get("type").and_then(Value::as_str) {
        Some("string") => value.is_string(),
        Some("integer") => value.is_i64() || value.is_u64(),
        None => true,
        Some(other) => panic!("{other}"),
    };
    let is_of_enum = rules.get("enum").is_none_or(|words| words.as_array().unwrap().contains(value));
    let is_enough = rules.get("minimum").is_none_or(|least| value.as_i64().is_some_and(|value| value >= least.as_i64().unwrap()));
    let text = value.as_str().unwrap_or_default();
    let matches = rules.get("pattern").is_none_or(|pattern| is_match(pattern.as_str().unwrap(), text));
    // RFC 3339, in UTC.
    let is_date =
        rules.get("format").is_none_or(|_| is_match("^[0-9]{4,4}-[0-9]{2,2}-[0-9]{2,2}T[0-9]{2,2}:[0-9]{2,2}:[0-9.]{2,12}Z$", text));
    (!(is_of_type && is_of_enum && is_enough && matches && is_date)).then(|| format!("{value} is not {property}"))
}

/// A pattern of literals, `\\` with one, and sets in brackets, each with `{least,most}` behind it or not, between `^` and `$`. What repeats takes as much
/// as it can, which is enough where the next is none of its set.
fn is_match(pattern: &str, text: &str) -> bool {
    let mut rest = pattern.strip_prefix('^').and_then(|pattern| pattern.strip_suffix('$')).expect("a pattern is of the whole");
    let mut text = text.as_bytes();
    while !rest.is_empty() {
        let (set, behind) = match rest.as_bytes()[0] {
            b'[' => rest[1..].split_once(']').expect("a set has an end"),
            b'\\' => (&rest[1..2], &rest[2..]),
            _ => rest.split_at(1),
        };
        let is_in = |byte: u8| {
            let set = set.as_bytes();
            let in_range = |at: usize| set.get(at + 1) == Some(&b'-') && at + 2 < set.len() && (set[at]..=set[at + 2]).contains(&byte);
            (0..set.len()).any(|at| set[at] == byte || in_range(at))
        };
        let (times, behind) = match behind.strip_prefix('{').and_then(|behind| behind.split_once('}')) {
            Some((times, behind)) => (times.split_once(',').expect("both bounds"), behind),
            None => (("1", "1"), behind),
        };
        let (least, most): (usize, usize) = (times.0.parse().unwrap(), times.1.parse().unwrap());
        let taken = text.iter().take(most).take_while(|&&byte| is_in(byte)).count();
        if taken < least {
            return false;
        }
        (text, rest) = (&text[taken..], behind);
    }
    text.is_empty()
}

fn schema() -> Value {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/mail-log.schema.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

#[test]
fn a_line_that_does_not_keep_to_the_schema_is_told() {
    let line = json!({
        "time": "2026-11-24T02:19:43.279Z", "queue_id": "1NG9X0G00003", "event": "attempt", "to": "b@y.test", "relay": "127.0.0.1:2600",
        "delay_ms": 18, "dsn": "2.0.0", "outcome": "delivered", "reply": "250 2.0.0 Ok"
    });
    let with = |field: &str, value: Value| {
        let mut line = line.as_object().unwrap().clone();
        match value {
            Value::Null => drop(line.remove(field)),
            value => drop(line.insert(field.to_owned(), value)),
        }
        faults(&schema(), &line)
    };
    assert_eq!(with("event", "attempt".into()), [""; 0]);
    for (field, value) in [
        ("time", json!("yesterday")),
        ("queue_id", json!("1NG9X0G0000U")),
        ("queue_id", json!("1NG9X0G")),
        ("event", json!("tried")),
        ("delay_ms", json!("18")),
        ("delay_ms", json!(-1)),
        ("dsn", json!("3.0.0")),
        ("dsn", json!("2.0.0.0")),
        ("outcome", json!("lost")),
        ("colour", json!("red")),
        ("relay", Value::Null),
    ] {
        let told = with(field, value.clone());
        assert!(told.len() == 1 && told[0].contains(field), "{field} {value}: {told:?}");
    }
}

/// The schema was compared with the names of fields in the source alone, and not with those of the two lines that there are most of.
#[test]
fn what_a_busy_node_logs_keeps_to_the_schema() {
    let hop = NextHop::start();
    let extra = "[[route]]\ndomain = \"held.test\"\nvia = \"hold\"\n[[route]]\ndomain = \"gone.test\"\nvia = \"discard\"\n";
    let retries = "mail_format = \"json\"\n[queue]\nretry_base = \"1h\"\nretry_cap = \"1h\"\n";
    let node = Node::start(&Setup { retries, extra, ..Setup::to(hop.address) });
    deliver(&node, "a@x.test", &["b@y.test", "no-b@z.test", "c@gone.test"]);
    deliver(&node, "", &["no-c@z.test"]);
    let late = deliver(&node, "a@x.test", &["later-b@z.test"]);
    let [held, bounced, purged] = [(); 3].map(|()| deliver(&node, "\"odd one\"@x.test", &["b@held.test"]));
    // What is written for people, and what only a stranger says.
    Client::greeted(node.address).deliver("b@y.test", "Subject: \u{e9}\r\n\r\nx");
    node.wait_for_queue(|queue| {
        queue.iter().any(|message| message["id"] == late.as_str() && message["recipients"][0]["state"] == "deferred")
    });
    for words in [
        &["hold", &held][..],
        &["release", &held],
        &["retry", &late],
        &["bounce", "--reason", "no \"more\"", &bounced],
        &["purge", &purged],
        &["reroute", "--to", "gone.test", &held],
        &["set-expiry", &late, "0s"],
    ] {
        say(&node, &[&["queue"][..], words].concat());
    }
    node.wait_for_queue(<[_]>::is_empty);
    let ends = ["\"expired\"", "\"report\"", "\"bounced\"", "\"set-expiry\"", "\"reroute\"", "\"retry\"", "\"discard\""];
    let log = node.wait_for_mail_log_that("all that happened", |log| ends.iter().all(|end| log.contains(end)));
    let (schema, mut events) = (schema(), std::collections::BTreeSet::new());
    for line in log.lines() {
        let object: Map<String, Value> = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        events.insert(object["event"].as_str().unwrap_or_default().to_owned());
        assert_eq!(faults(&schema, &object), [""; 0], "{line}");
    }
    for event in ["accepted", "attempt", "expired", "bounced", "purged", "command", "report"] {
        assert!(events.contains(event), "no {event} among {events:?}");
    }
}
