//! Drives a session as the engine does, with a policy made for tests, and notes all that can be seen from outside.
//!
//! Policy: `y.test` takes every local part but `nobody` and those that ask for another hop, and every recipient if the
//! sender is `trusted@z.test`; `<x@refused.test>` may not send, `<x@full.test>` finds no room, `shut@` ends the session.
//! Commits of messages from `nosync@`, `noroom@`, `busy@` and `virus@` fail.

use std::net::SocketAddr;
use std::rc::Rc;

use ringpost_smtp::content::{ContentSink, SinkError};
use ringpost_smtp::envelope::EnvelopeView;
use ringpost_smtp::line::Unread;
use ringpost_smtp::server::{
    Action, CommitFailure, ContentStep, Line, Replies, ServerOptions, ServerSettings, Session, TimeoutKind, Verdict,
};

const RELAY_DENIED: Line = Line::new("550 5.7.1 Relaying denied");
const UNKNOWN: Line = Line::new("550 5.1.1 No such mailbox");
const SENDER_REFUSED: Line = Line::new("550 5.7.1 Sender refused");
const FULL: Line = Line::new("452 4.3.1 Disk full");
const SHUT: Line = Line::new("421 4.7.0 Go away");
const VIRUS: Line = Line::new("554 5.7.1 Not this");

/// What can be seen from outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    /// One reply line.
    Reply(String),
    /// A message was asked to be made durable: its paths and its content.
    Message(String, Vec<u8>),
    Delay,
    Close,
}

/// Keeps what is put; can be full.
#[derive(Default)]
struct Sink {
    content: Vec<u8>,
    room: usize,
    /// Slices put.
    puts: usize,
    closed: bool,
}

impl ContentSink for Sink {
    fn put(&mut self, bytes: &[u8]) -> Result<(), SinkError> {
        assert!(!self.closed, "nothing is put after a refusal");
        assert!(!bytes.is_empty(), "an empty slice is a call for nothing");
        if self.content.len() + bytes.len() > self.room {
            return Err(SinkError::Full);
        }
        self.content.extend_from_slice(bytes);
        self.puts += 1;
        Ok(())
    }
}

pub(crate) struct Driver {
    pub(crate) session: Session,
    pub(crate) events: Vec<Event>,
    /// Most slices put into the sink for one message.
    pub(crate) puts_max: usize,
    replies: Vec<u8>,
    sink: Sink,
    in_content: bool,
    closed: bool,
}

impl Driver {
    pub(crate) fn new(options: ServerOptions) -> Self {
        let peer = SocketAddr::from(([192, 0, 2, 7], 40_000));
        let settings = Rc::new(ServerSettings::new(options).expect("options of a test are valid"));
        let sink = Sink { room: usize::MAX, ..Sink::default() };
        Self { session: Session::new(settings, peer), events: vec![], puts_max: 0, replies: vec![], sink, in_content: false, closed: false }
    }

    pub(crate) fn sink_room(&mut self, room: usize) {
        self.sink.room = room;
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed
    }

    pub(crate) fn banner(&mut self, waiting: &[u8]) {
        self.session.banner(&Unread::new(waiting), &mut Replies::new(&mut self.replies));
        self.note_replies();
        self.run(&mut Unread::new(b""));
    }

    /// Gives one slice of received bytes.
    pub(crate) fn receive(&mut self, bytes: &[u8]) {
        self.run(&mut Unread::new(bytes));
    }

    /// Gives one slice of received bytes that isn't the last.
    pub(crate) fn receive_with_more_behind(&mut self, bytes: &[u8]) {
        self.run(&mut Unread::new(bytes).with_more_behind(true));
    }

    pub(crate) fn time_out(&mut self, kind: TimeoutKind) {
        assert_eq!(self.session.timeout().kind, kind);
        self.session.timed_out(kind, &mut Replies::new(&mut self.replies));
        self.in_content = false;
        self.run(&mut Unread::new(b""));
    }

    pub(crate) fn shut_down(&mut self) {
        self.session.shutdown(&mut Replies::new(&mut self.replies));
        if !self.in_content {
            self.run(&mut Unread::new(b""));
        }
    }

    pub(crate) fn too_busy(&mut self) {
        self.session.too_busy(&mut Replies::new(&mut self.replies));
        self.run(&mut Unread::new(b""));
    }

    fn run(&mut self, input: &mut Unread<'_>) {
        while !self.closed {
            if self.in_content {
                match self.session.content(input, &mut self.sink) {
                    ContentStep::More => {
                        assert!(input.is_empty(), "more is asked for when all is read");
                        self.note_replies();
                        return;
                    }
                    ContentStep::Refused => {
                        assert!(self.session.defect().is_some());
                        self.sink.closed = true;
                        continue;
                    }
                    ContentStep::End => self.in_content = false,
                }
            }
            let action = self.session.next(input, &mut Replies::new(&mut self.replies));
            match action {
                Action::Read => {
                    assert!(input.is_empty(), "more is asked for when all is read");
                    self.note_replies();
                    return;
                }
                Action::Send => self.note_replies(),
                Action::Mail { .. } => {
                    assert!(self.sink.content.is_empty() || self.sink.closed, "content of another transaction was to be dropped");
                    self.drop_content();
                    let verdict = sender_verdict(self.session.reverse_path().as_str());
                    self.session.mail(verdict, &mut Replies::new(&mut self.replies));
                }
                Action::Recipient => {
                    let verdict = recipient_verdict(&self.session);
                    self.session.recipient(verdict, &mut Replies::new(&mut self.replies));
                }
                Action::Content => {
                    self.note_replies();
                    self.in_content = true;
                }
                Action::Abort => self.drop_content(),
                Action::Commit => self.commit(),
                Action::Delay(pause) => {
                    assert_eq!(pause, self.session.settings().options().bad_command_delay);
                    self.note_replies();
                    self.events.push(Event::Delay);
                }
                Action::Close => {
                    self.note_replies();
                    self.events.push(Event::Close);
                    self.closed = true;
                    self.drop_content();
                }
            }
            // What policy said may close the session at once; the reply must not be lost either way.
            if self.closed {
                self.note_replies();
            }
        }
        let rest = input.remaining().len();
        input.advance(rest);
    }

    fn commit(&mut self) {
        self.note_replies();
        let envelope = self.session.envelope();
        let again = EnvelopeView::decode(envelope.as_bytes()).expect("what is persisted can be read");
        let mut text = format!("<{}>", again.reverse_path().as_str());
        again.recipients().for_each(|recipient| text.push_str(&format!(" <{}>", recipient.path.as_str())));
        assert!(!self.sink.closed, "no refused message is committed");
        assert_eq!(again.content().bytes, self.sink.content.len() as u64);
        let result = match envelope.reverse_path().local_part() {
            "nosync" => Err(CommitFailure::NotStored),
            "noroom" => Err(CommitFailure::NoRoom),
            "busy" => Err(CommitFailure::TooBusy),
            "virus" => Err(CommitFailure::Refused(VIRUS)),
            _ => Ok("7F3A"),
        };
        self.events.push(Event::Message(text, std::mem::take(&mut self.sink.content)));
        self.session.committed(result, &mut Replies::new(&mut self.replies));
        self.drop_content();
    }

    fn drop_content(&mut self) {
        self.puts_max = self.puts_max.max(self.sink.puts);
        self.sink = Sink { room: self.sink.room, ..Sink::default() };
    }

    fn note_replies(&mut self) {
        let text = String::from_utf8(std::mem::take(&mut self.replies)).expect("replies are ASCII");
        assert!(text.is_empty() || text.ends_with("\r\n"));
        for line in text.split_terminator("\r\n") {
            assert!(line.len() <= 510 && line.bytes().all(|byte| (b' '..=b'~').contains(&byte)), "{line:?}");
            self.events.push(Event::Reply(line.to_owned()));
        }
    }
}

fn sender_verdict(path: &str) -> Verdict {
    match path {
        "x@refused.test" => Verdict::Refuse(SENDER_REFUSED),
        "x@full.test" => Verdict::Refuse(FULL),
        path if path.starts_with("shut@") => Verdict::Close(SHUT),
        _ => Verdict::Accept,
    }
}

fn recipient_verdict(session: &Session) -> Verdict {
    let path = session.recipient_path();
    match (path.local_part(), path.domain()) {
        ("shut", _) => Verdict::Close(SHUT),
        _ if session.reverse_path().as_str() == "trusted@z.test" => Verdict::Accept,
        (_, None) => Verdict::Accept,
        ("nobody", Some("y.test")) => Verdict::Refuse(UNKNOWN),
        (_, Some("y.test")) if !path.has_route_in_local_part() => Verdict::Accept,
        _ => Verdict::Refuse(RELAY_DENIED),
    }
}
