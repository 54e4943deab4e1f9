//! Dialogues of the client: one behaviour a file in `tests/dialogues/client/`, run whole, cut in two at every octet, and octet by octet.
//!
//! ```text
//! # what it shows, and the clause
//! @ lmtp                      the peer speaks LMTP
//! @ uncut                     it is about input that is early, so cutting would change what it says
//! @ mail <s@a.test> KEY=...   a message to be sent, with what its MAIL said
//! @ rcpt <b@y.test> KEY=...   a recipient of it, with what its RCPT said
//! @ content text              its content, escaped as in Rust (otherwise "Subject: x\r\n\r\n.dot\r\n"); `@ binary` goes by RFC 3030
//! S: a reply line             what the server says; lines without others between are one segment
//! C: a line                   what the client sends, without its CRLF; `C>` for what has none
//! O: 0 1 delivered relayed 250 ok    an outcome: message, recipient, verdict, whose report, reply; without the report unless delivered
//! T: closed                   the connection ends (also: lost, timeout)
//! X: quit                     the client closes, and why
//! ```

use std::path::{Path, PathBuf};

use ringpost_smtp::client::{
    Action, Client, ClientSettings, CloseReason, ContentForm, Disconnect, Protocol, Rcpt, SuccessReport, Transaction, Verdict,
};
use ringpost_smtp::extension::{Body, Extensions, MailParameters, RecipientParameters};
use ringpost_smtp::report::header_bytes;
use ringpost_smtp::stuffing::Stuffing;

#[derive(Clone)]
struct Mail {
    path: String,
    parameters: String,
    /// Path and parameters.
    recipients: Vec<(String, String)>,
    content: Vec<u8>,
}

enum Step {
    Say(Vec<u8>),
    End(Disconnect),
}

struct Dialogue {
    name: String,
    protocol: Protocol,
    uncut: bool,
    mails: Vec<Mail>,
    steps: Vec<Step>,
    /// All lines but comments and options.
    transcript: Vec<String>,
}

#[test]
fn client_dialogues_go_as_written_whole_and_cut_anywhere() {
    let files = files();
    assert!(files.len() >= 20, "only {} dialogues", files.len());
    for dialogue in files.iter().map(|path| parse(path)) {
        check(&dialogue, "whole", |bytes| vec![bytes.len()]);
        if dialogue.uncut {
            continue;
        }
        check(&dialogue, "octet by octet", |bytes| vec![1; bytes.len()]);
        let longest = dialogue.steps.iter().map(|step| if let Step::Say(bytes) = step { bytes.len() } else { 0 }).max().unwrap_or(0);
        for at in 1..longest {
            check(
                &dialogue,
                &format!("cut at octet {at}"),
                |bytes| {
                    if at < bytes.len() { vec![at, bytes.len() - at] } else { vec![bytes.len()] }
                },
            );
        }
    }
}

fn check(dialogue: &Dialogue, how: &str, cut: impl Fn(&[u8]) -> Vec<usize>) {
    let seen = run(dialogue, cut);
    let at = seen.iter().zip(&dialogue.transcript).take_while(|(seen, expected)| seen == expected).count();
    assert!(
        at == seen.len() && at == dialogue.transcript.len(),
        "{} ({how}), line {at}:\nexpected {:?}\nseen     {:?}\nall that was seen:\n{}",
        dialogue.name,
        dialogue.transcript.get(at),
        seen.get(at),
        seen.join("\n")
    );
}

/// What was said and seen, in the form of the file.
fn run(dialogue: &Dialogue, cut: impl Fn(&[u8]) -> Vec<usize>) -> Vec<String> {
    let settings = ClientSettings { helo_name: "me.test".into(), protocol: dialogue.protocol, ..ClientSettings::default() };
    let mut client = Client::new(&settings);
    let mut seen = Vec::new();
    let mut mails = dialogue.mails.iter();
    let mut steps = dialogue.steps.iter();
    let (mut out, mut input) = (Vec::new(), Vec::new());
    let mut pieces = std::collections::VecDeque::new();
    for _ in 0..100_000 {
        let mut unread = &input[..];
        let action = client.next(&mut unread, &mut out);
        input = unread.to_vec();
        match action {
            Action::Read => {
                tell_sent(&mut out, &mut seen);
                assert!(input.is_empty(), "input is taken before more is wanted");
                if pieces.is_empty() {
                    match steps.next() {
                        None => {
                            seen.push("the client waits for more than the dialogue has".into());
                            return seen;
                        }
                        Some(Step::End(why)) => {
                            seen.push(format!("T: {}", word_of(*why)));
                            client.disconnected(*why);
                            continue;
                        }
                        Some(Step::Say(bytes)) => {
                            let text = String::from_utf8_lossy(bytes).into_owned();
                            seen.extend(text.split_terminator("\r\n").map(|line| format!("S: {line}")));
                            let mut rest = &bytes[..];
                            for length in cut(bytes) {
                                let (piece, behind) = rest.split_at(length);
                                pieces.push_back(piece.to_vec());
                                rest = behind;
                            }
                        }
                    }
                }
                input = pieces.pop_front().expect("a segment is not empty");
            }
            Action::Ready => match mails.next() {
                Some(mail) => begin(&mut client, mail, &mut out),
                None => client.quit(&mut out),
            },
            Action::SendContent(id, form) => {
                let mut behind = Vec::new();
                if client.offer().pipelining
                    && client.can_begin()
                    && let Some(mail) = mails.next()
                {
                    begin(&mut client, mail, &mut behind);
                }
                let content = &dialogue.mails[id.0 as usize].content;
                match form {
                    ContentForm::Dots => {
                        let mut stuffing = Stuffing::new();
                        stuffing.piece(content).expect("no bare line end").for_each(|range| out.extend_from_slice(range));
                        out.extend_from_slice(stuffing.terminator().expect("no bare line end"));
                    }
                    ContentForm::Chunk => out.extend_from_slice(content),
                }
                out.extend_from_slice(&behind);
                tell_sent(&mut out, &mut seen);
                client.content_sent();
            }
            Action::Outcome(outcome) => {
                let word = match (outcome.verdict, outcome.success_report) {
                    (Verdict::Delivered, SuccessReport::Relayed) => "delivered relayed",
                    (Verdict::Delivered, SuccessReport::Delivered) => "delivered final",
                    (Verdict::Delivered, SuccessReport::PassedOn) => "delivered passed-on",
                    (Verdict::Delivered, SuccessReport::Untimed) => "delivered untimed",
                    (Verdict::Deferred, _) => "deferred",
                    (Verdict::Failed, _) => "failed",
                    (Verdict::Unknown, _) => "unknown",
                    (Verdict::Untried, _) => "untried",
                };
                // What was to be sent goes out before anything is waited for, not before an outcome is told.
                seen.push(format!("O: {} {} {word} {}", outcome.transaction.0, outcome.recipient, outcome.reply));
            }
            Action::Done(_) => {}
            Action::Close(reason) => {
                tell_sent(&mut out, &mut seen);
                seen.push(format!(
                    "X: {}",
                    match reason {
                        CloseReason::Quit => "quit".into(),
                        CloseReason::Refused(reply) => format!("refused {reply}"),
                        CloseReason::ServiceClosing(reply) => format!("closing {reply}"),
                        CloseReason::AnsweredEarly(reply) => format!("answered early {reply}"),
                        CloseReason::Protocol(error) => error.to_string(),
                        CloseReason::Disconnected(why) => word_of(why).into(),
                    }
                ));
                return seen;
            }
        }
    }
    panic!("{}: the conversation does not end", dialogue.name);
}

fn tell_sent(out: &mut Vec<u8>, seen: &mut Vec<String>) {
    let text: String = out.drain(..).map(|byte| if byte.is_ascii() { char::from(byte) } else { '?' }).collect();
    let mut lines: Vec<&str> = text.split("\r\n").collect();
    let rest = lines.pop().unwrap_or_default();
    let escape = |line: &str| line.escape_default().to_string().replace("\\\"", "\"").replace("\\'", "'");
    seen.extend(lines.into_iter().map(|line| format!("C: {}", escape(line)).trim_end().to_owned()));
    if !rest.is_empty() {
        seen.push(format!("C> {}", escape(rest)));
    }
}

fn begin(client: &mut Client, mail: &Mail, out: &mut Vec<u8>) {
    let all =
        Extensions::DEFAULT.with(Extensions::DSN).with(Extensions::BINARY_MIME).with(Extensions::DELIVER_BY).with(Extensions::MT_PRIORITY);
    let parameters = MailParameters::parse(mail.parameters.as_bytes(), all).expect("parameters of MAIL");
    let transaction = Transaction {
        reverse_path: mail.path.as_bytes(),
        size: mail.content.len() as u64,
        eight_bit: !mail.content.is_ascii(),
        eight_bit_header: !mail.content[..header_bytes(&mail.content)].is_ascii(),
        smtputf8: parameters.smtputf8,
        binary: parameters.body == Body::BinaryMime,
        ret: parameters.ret,
        envelope_id: parameters.envelope_id.map(|id| std::str::from_utf8(id).expect("xtext")),
        deliver_by: parameters.deliver_by,
        priority: parameters.priority,
    };
    let recipients = mail.recipients.iter().map(|(path, text)| {
        let parameters = RecipientParameters::parse(text.as_bytes(), all, transaction.smtputf8).expect("parameters of RCPT");
        let original = parameters.original_recipient.map(|text| std::str::from_utf8(text).expect("text"));
        Rcpt { path: path.as_bytes(), notify: parameters.notify, original }
    });
    client.begin(&transaction, recipients, out);
}

fn word_of(why: Disconnect) -> &'static str {
    match why {
        Disconnect::Closed => "closed",
        Disconnect::Lost => "lost",
        Disconnect::TimedOut => "timeout",
        Disconnect::Abandoned => "abandoned",
        Disconnect::Unclean => "unclean",
    }
}

fn files() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/dialogues/client");
    let mut files: Vec<_> = std::fs::read_dir(folder).expect("the folder is there").map(|entry| entry.expect("an entry").path()).collect();
    files.sort();
    files
}

fn parse(path: &Path) -> Dialogue {
    let name = path.file_name().expect("a file").to_string_lossy().into_owned();
    let text = std::fs::read_to_string(path).expect("a dialogue can be read");
    assert!(text.starts_with("# "), "{name} begins with a comment");
    let mut dialogue = Dialogue {
        name: name.clone(),
        protocol: Protocol::Smtp,
        uncut: false,
        mails: Vec::new(),
        steps: Vec::new(),
        transcript: Vec::new(),
    };
    let mut segment_open = false;
    for line in text.lines() {
        let (kind, rest) = line.split_at_checked(2).unwrap_or((line, ""));
        let rest = rest.strip_prefix(' ').unwrap_or(rest);
        match kind {
            "" | "# " => continue,
            "@ " => match rest.split_once(' ').unwrap_or((rest, "")) {
                ("uncut", _) => dialogue.uncut = true,
                ("lmtp", _) => dialogue.protocol = Protocol::Lmtp,
                ("mail", text) => {
                    let (path, parameters) = path_of(text);
                    dialogue.mails.push(Mail { path, parameters, recipients: Vec::new(), content: b"Subject: x\r\n\r\n.dot\r\n".into() });
                }
                ("rcpt", text) => dialogue.mails.last_mut().expect("a mail before its recipients").recipients.push(path_of(text)),
                ("content", text) => dialogue.mails.last_mut().expect("a mail before its content").content = unescape(text),
                _ => panic!("{name}: what is {line:?}?"),
            },
            "S:" => {
                let bytes = [rest.as_bytes(), b"\r\n"].concat();
                match dialogue.steps.last_mut() {
                    Some(Step::Say(segment)) if segment_open => segment.extend_from_slice(&bytes),
                    _ => dialogue.steps.push(Step::Say(bytes)),
                }
            }
            "T:" => dialogue.steps.push(Step::End(match rest {
                "closed" => Disconnect::Closed,
                "lost" => Disconnect::Lost,
                "timeout" => Disconnect::TimedOut,
                _ => panic!("{name}: what is {line:?}?"),
            })),
            "C:" | "C>" | "O:" | "X:" => {}
            _ => panic!("{name}: what is {line:?}?"),
        }
        segment_open = kind == "S:";
        if kind != "@ " {
            dialogue.transcript.push(line.trim_end().to_owned());
        }
    }
    dialogue
}

/// `<path> parameters`.
fn path_of(text: &str) -> (String, String) {
    let (path, parameters) = text.strip_prefix('<').and_then(|text| text.split_once('>')).expect("a path in brackets");
    (path.into(), parameters.trim().into())
}

fn unescape(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'\\' {
            out.push(byte);
            continue;
        }
        out.push(match bytes.next() {
            Some(b'r') => b'\r',
            Some(b'n') => b'\n',
            Some(b'0') => 0,
            Some(b'x') => {
                let digits = [bytes.next().expect("two digits"), bytes.next().expect("two digits")];
                u8::from_str_radix(std::str::from_utf8(&digits).expect("digits"), 16).expect("digits")
            }
            other => panic!("unknown escape {other:?}"),
        });
    }
    out
}
