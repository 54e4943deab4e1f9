//! Dialogues: one behaviour a file, run whole, cut in two at every octet, and octet by octet.
//!
//! ```text
//! # what it shows, and the clause
//! @ ehlo                  the banner and EHLO are done and not shown (also: helo, opened)
//! @ recipients 100        an option of the listener; see `option` below
//! @ uncut                 it is about input that waits, so cutting would change what it says
//! C: a line               sent with CRLF; \r \n \0 \t \\ \xHH as in Rust; lines without an `S:` between are one segment
//! C> octets               sent without CRLF
//! S: a reply line         `...` at the end stands for any rest
//! M: <from> <to> <to>     a message was committed; `D: text` is its whole content, escaped
//! X: close                the session ended (also: delay)
//! T: idle                 the deadline is over (also: command, data), or `shutdown`, `busy`
//! ```

use std::path::Path;
use std::time::Duration;

use ringpost_smtp::content::{BareNewline, TextLine};
use ringpost_smtp::extension::Extensions;
use ringpost_smtp::server::{ServerOptions, TimeoutKind};

use crate::driver::{Driver, Event};

/// One step of a dialogue.
enum Step {
    Send(Vec<u8>),
    Tell(String),
}

struct Dialogue {
    name: String,
    options: ServerOptions,
    sink_room: usize,
    start: String,
    uncut: bool,
    steps: Vec<Step>,
    expected: Vec<Event>,
}

#[test]
fn dialogues_go_as_written_whole_and_cut_anywhere() {
    let dialogues = all();
    assert!(dialogues.len() >= 80, "only {} dialogues", dialogues.len());
    for dialogue in &dialogues {
        check(dialogue, "whole", &run(dialogue, |bytes| vec![bytes.len()]));
        if dialogue.uncut {
            continue;
        }
        check(dialogue, "octet by octet", &run(dialogue, |bytes| vec![1; bytes.len()]));
        let longest = dialogue.steps.iter().map(|step| if let Step::Send(bytes) = step { bytes.len() } else { 0 }).max().unwrap_or(0);
        // Long ones are cut at every octet near their ends and at a stride between, which is no multiple of their lines.
        let stride = (longest / 2000).max(1);
        for at in (1..longest).filter(|at| at % stride == 0 || *at < 200 || longest - at < 200) {
            let events = run(dialogue, |bytes| if at < bytes.len() { vec![at, bytes.len() - at] } else { vec![bytes.len()] });
            check(dialogue, &format!("cut at octet {at}"), &events);
        }
    }
}

#[test]
fn every_dialogue_tells_what_it_shows() {
    for path in files() {
        let text = std::fs::read_to_string(&path).expect("a dialogue can be read");
        assert!(text.starts_with("# "), "{} begins with a comment", path.display());
        assert!(text.lines().any(|line| line.starts_with("S: ") || line.starts_with("X: ")), "{} expects something", path.display());
    }
}

fn run(dialogue: &Dialogue, cut: impl Fn(&[u8]) -> Vec<usize>) -> Vec<Event> {
    let mut driver = Driver::new(dialogue.options.clone());
    driver.sink_room(dialogue.sink_room);
    match dialogue.start.as_str() {
        "" => {}
        "opened" => driver.banner(b""),
        start => {
            driver.banner(b"");
            driver.receive(format!("{start} client.test\r\n").as_bytes());
        }
    }
    driver.events.clear();
    for step in &dialogue.steps {
        match step {
            Step::Send(bytes) if driver.events.is_empty() && dialogue.start.is_empty() => driver.banner(bytes),
            Step::Send(bytes) => {
                let mut rest = &bytes[..];
                for length in cut(bytes) {
                    let (piece, behind) = rest.split_at(length);
                    driver.receive(piece);
                    rest = behind;
                }
            }
            Step::Tell(what) => match what.as_str() {
                "banner" => driver.banner(b""),
                "idle" => driver.time_out(TimeoutKind::Idle),
                "command" => driver.time_out(TimeoutKind::Command),
                "data" => driver.time_out(TimeoutKind::Data),
                "shutdown" => driver.shut_down(),
                "busy" => driver.too_busy(),
                other => panic!("{}: unknown T: {other}", dialogue.name),
            },
        }
    }
    driver.events
}

fn check(dialogue: &Dialogue, how: &str, events: &[Event]) {
    let at = events.iter().zip(&dialogue.expected).take_while(|(event, expected)| matches(event, expected)).count();
    let same = at == events.len() && at == dialogue.expected.len();
    let (seen, expected) = (show(events.get(at)), show(dialogue.expected.get(at)));
    assert!(same, "{} ({how}): event {at}\nexpected {expected}\nseen     {seen}", dialogue.name);
}

fn show(event: Option<&Event>) -> String {
    match event {
        None => "the end".into(),
        Some(Event::Message(paths, content)) => format!("{paths} {}", content.escape_ascii()),
        Some(other) => format!("{other:?}"),
    }
}

fn matches(event: &Event, expected: &Event) -> bool {
    match (event, expected) {
        (Event::Reply(line), Event::Reply(expected)) => match expected.strip_suffix("...") {
            Some(start) => line.starts_with(start),
            None => line == expected,
        },
        _ => event == expected,
    }
}

fn files() -> Vec<std::path::PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/dialogues");
    let mut files: Vec<_> = std::fs::read_dir(folder).expect("the folder is there").map(|entry| entry.expect("an entry").path()).collect();
    // Those of the client have a folder of their own.
    files.retain(|path| path.is_file());
    files.sort();
    files
}

fn all() -> Vec<Dialogue> {
    files().iter().map(|path| parse(path)).collect()
}

fn parse(path: &Path) -> Dialogue {
    let name = path.file_name().expect("a file").to_string_lossy().into_owned();
    let text = std::fs::read_to_string(path).expect("a dialogue can be read");
    let mut options = ServerOptions { hostname: "mx1.example.test".into(), ..ServerOptions::default() };
    let mut dialogue = Dialogue {
        name,
        options: options.clone(),
        sink_room: usize::MAX,
        start: String::new(),
        uncut: false,
        steps: vec![],
        expected: vec![],
    };
    let mut segment_open = false;
    for line in text.lines() {
        let (kind, rest) = line.split_at_checked(2).unwrap_or((line, ""));
        let rest = rest.strip_prefix(' ').unwrap_or(rest);
        let sending = matches!(kind, "C:" | "C>");
        match kind {
            "" | "# " => {}
            "@ " => match rest.split_once(' ').unwrap_or((rest, "")) {
                ("ehlo" | "helo" | "opened", _) => dialogue.start = rest.to_owned(),
                ("uncut", _) => dialogue.uncut = true,
                ("sink", room) => dialogue.sink_room = room.parse().expect("a number"),
                (key, value) => option(&mut options, key, value),
            },
            "C:" | "C>" => {
                let mut bytes = unescape(rest);
                if kind == "C:" {
                    bytes.extend_from_slice(b"\r\n");
                }
                match dialogue.steps.last_mut() {
                    Some(Step::Send(segment)) if segment_open => segment.extend_from_slice(&bytes),
                    _ => dialogue.steps.push(Step::Send(bytes)),
                }
            }
            "T:" => dialogue.steps.push(Step::Tell(rest.to_owned())),
            "S:" => dialogue.expected.push(Event::Reply(rest.to_owned())),
            "M:" => dialogue.expected.push(Event::Message(rest.to_owned(), vec![])),
            "D:" => match dialogue.expected.last_mut() {
                Some(Event::Message(_, content)) => content.extend_from_slice(&unescape(rest)),
                _ => panic!("{}: D: without M:", path.display()),
            },
            "X:" if rest == "close" => dialogue.expected.push(Event::Close),
            "X:" if rest == "delay" => dialogue.expected.push(Event::Delay),
            _ => panic!("{}: what is {line:?}?", path.display()),
        }
        segment_open = sending;
    }
    dialogue.options = options;
    dialogue
}

fn option(options: &mut ServerOptions, key: &str, value: &str) {
    let number = || value.parse::<u32>().expect("a number");
    match key {
        "command_line" => options.command_line_bytes_max = number() as usize,
        "local_part" => options.paths.local_part_bytes_max = number() as usize,
        "path" => options.paths.path_bytes_max = number() as usize,
        "size" => options.content.content_bytes_max = number().into(),
        "header_bytes" => options.content.header_bytes_max = number().into(),
        "header_lines" => options.content.header_lines_max = number(),
        "hops" => options.content.hops_max = number(),
        "postmaster" => options.postmaster = Some(value.to_owned()),
        "hold_s" => options.hold_seconds_max = number(),
        "recipients" => options.recipients_max = number() as usize,
        "messages" => options.messages_max = number(),
        "junk" => options.junk_commands_max = number() as u16,
        "soft" => options.bad_commands_soft = number() as u16,
        "hard" => options.bad_commands_hard = number() as u16,
        "delay_s" => options.bad_command_delay = Duration::from_secs(number().into()),
        "normalize" => options.content.bare_newline = BareNewline::Normalize,
        "strict" => options.content.text_line = TextLine::Strict,
        "with" => options.extensions = options.extensions.with(extension(value)),
        "without" => options.extensions = options.extensions.without(extension(value)),
        _ => panic!("unknown option {key}"),
    }
}

fn extension(name: &str) -> Extensions {
    match name {
        "DSN" => Extensions::DSN,
        "BINARYMIME" => Extensions::BINARY_MIME,
        "CHUNKING" => Extensions::CHUNKING,
        "SMTPUTF8" => Extensions::SMTPUTF8,
        "SIZE" => Extensions::SIZE,
        "DELIVERBY" => Extensions::DELIVER_BY,
        "FUTURERELEASE" => Extensions::FUTURE_RELEASE,
        "MT-PRIORITY" => Extensions::MT_PRIORITY,
        _ => panic!("unknown extension {name}"),
    }
}

/// `\r \n \0 \t \\ \xHH`, and `\{N*x}` for N times x.
fn unescape(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, behind @ ..] = rest {
        rest = behind;
        if *first != b'\\' {
            out.push(*first);
            continue;
        }
        let (escape, behind) = rest.split_first().expect("something is escaped");
        rest = behind;
        match escape {
            b'r' => out.push(b'\r'),
            b'n' => out.push(b'\n'),
            b't' => out.push(b'\t'),
            b'0' => out.push(0),
            b'\\' => out.push(b'\\'),
            b'x' => {
                let digits = std::str::from_utf8(&rest[..2]).expect("two digits");
                out.push(u8::from_str_radix(digits, 16).expect("two digits"));
                rest = &rest[2..];
            }
            b'{' => {
                let end = rest.iter().position(|&byte| byte == b'}').expect("a closing brace");
                let (count, what) = std::str::from_utf8(&rest[..end]).expect("text").split_once('*').expect("N*text");
                let what = unescape(what);
                (0..count.parse::<usize>().expect("a number")).for_each(|_| out.extend_from_slice(&what));
                rest = &rest[end + 1..];
            }
            _ => panic!("unknown escape in {text:?}"),
        }
    }
    out
}
