//! A scripted server, and a driver that holds a whole conversation with it.

use std::collections::VecDeque;

use ringpost_smtp::client::{Action, Client, ClientSettings, CloseReason, Disconnect, Transaction, Verdict};
use ringpost_smtp::report::header_bytes;
use ringpost_smtp::stuffing::Stuffing;

pub(crate) const PIPELINED: &str = "250-mx.test\r\n250-PIPELINING\r\n250-SIZE 1000\r\n250-8BITMIME\r\n250 SMTPUTF8\r\n";
pub(crate) const PLAIN: &str = "250 mx.test\r\n";

/// A server that answers each command by a rule and keeps what it read.
pub(crate) struct Server<'a> {
    pub(crate) rule: Box<dyn FnMut(&str) -> String + 'a>,
    unread: Vec<u8>,
    in_content: bool,
    /// Each group of bytes that the client sent before it waited.
    pub(crate) groups: Vec<String>,
    pub(crate) contents: Vec<Vec<u8>>,
    pub(crate) content: Vec<u8>,
    to_client: VecDeque<u8>,
}

impl<'a> Server<'a> {
    /// `rule` maps a command to the reply; "." is the end of content, "" the connection.
    pub(crate) fn new(mut rule: impl FnMut(&str) -> String + 'a) -> Self {
        let to_client = rule("").into_bytes().into();
        Self {
            rule: Box::new(rule),
            unread: Vec::new(),
            in_content: false,
            groups: Vec::new(),
            contents: Vec::new(),
            content: Vec::new(),
            to_client,
        }
    }

    /// A server that accepts everything, but for commands that begin with one of the given words.
    pub(crate) fn with(ehlo: &'a str, replies: &'a [(&'a str, &'a str)]) -> Self {
        Self::new(move |command| {
            if let Some((_, reply)) = replies.iter().find(|(word, _)| command.starts_with(word) && !word.is_empty()) {
                return (*reply).into();
            }
            match command.split(' ').next().unwrap_or_default() {
                "" => "220 mx.test ESMTP\r\n".into(),
                "EHLO" => ehlo.into(),
                "DATA" => "354 go\r\n".into(),
                "QUIT" => "221 2.0.0 bye\r\n".into(),
                _ => "250 2.0.0 ok\r\n".into(),
            }
        })
    }

    fn receive(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        self.groups.push(String::from_utf8_lossy(bytes).into_owned());
        self.unread.extend_from_slice(bytes);
        while let Some(end) = self.unread.windows(2).position(|pair| pair == b"\r\n") {
            let line: Vec<u8> = self.unread.drain(..end + 2).collect();
            if self.in_content {
                if line == b".\r\n" {
                    self.in_content = false;
                    self.contents.push(std::mem::take(&mut self.content));
                    self.answer(".");
                } else {
                    self.content.extend_from_slice(line.strip_prefix(b".").unwrap_or(&line));
                }
            } else {
                let command = String::from_utf8_lossy(&line[..end]).into_owned();
                let reply = self.answer(&command);
                self.in_content = command == "DATA" && reply.starts_with('3');
            }
        }
    }

    fn answer(&mut self, command: &str) -> String {
        let reply = (self.rule)(command);
        self.to_client.extend(reply.bytes());
        reply
    }
}

#[derive(Clone)]
pub(crate) struct Mail {
    pub(crate) sender: &'static str,
    pub(crate) recipients: Vec<&'static str>,
    pub(crate) content: &'static [u8],
    pub(crate) eight_bit: bool,
    pub(crate) smtputf8: bool,
}

pub(crate) fn mail(recipients: &[&'static str]) -> Mail {
    Mail { sender: "s@a.test", recipients: recipients.into(), content: b"Subject: x\r\n\r\n.dot\r\n", eight_bit: false, smtputf8: false }
}

#[derive(Debug, PartialEq)]
pub(crate) struct Log {
    /// (transaction, recipient, verdict, reply)
    pub(crate) outcomes: Vec<(u32, u16, Verdict, String)>,
    pub(crate) done: Vec<u32>,
    pub(crate) close: CloseReason,
}

impl Log {
    pub(crate) fn verdicts(&self) -> Vec<Verdict> {
        self.outcomes.iter().map(|outcome| outcome.2).collect()
    }
}

/// Drives a client until it closes: `chunk` bytes per read, the connection ends after `bytes_max` bytes of the server.
pub(crate) fn converse(server: &mut Server<'_>, mails: &[Mail], chunk: usize, bytes_max: usize) -> Log {
    let mut client = Client::new(&ClientSettings { helo_name: "me.test".into(), ..ClientSettings::default() });
    let mut log = Log { outcomes: Vec::new(), done: Vec::new(), close: CloseReason::Quit };
    let mut waiting: VecDeque<&Mail> = mails.iter().collect();
    let mut begun: Vec<&Mail> = Vec::new();
    let (mut out, mut received, mut taken) = (Vec::new(), Vec::new(), 0);
    let mut begin = |client: &mut Client, out: &mut Vec<u8>| {
        if !client.can_begin() {
            return false;
        }
        let Some(mail) = waiting.pop_front() else { return false };
        let Mail { sender, recipients, content, eight_bit, smtputf8 } = mail;
        let transaction = Transaction {
            reverse_path: sender.as_bytes(),
            size: content.len() as u64,
            eight_bit: *eight_bit,
            eight_bit_header: !content[..header_bytes(content)].is_ascii(),
            smtputf8: *smtputf8,
            ..Transaction::default()
        };
        let id = client.begin(&transaction, recipients.iter().map(|path| path.as_bytes()), out);
        assert_eq!(id.0 as usize, begun.len());
        begun.push(mail);
        true
    };
    for _ in 0..100_000 {
        let mut input = &received[..];
        let action = client.next(&mut input, &mut out);
        received = input.to_vec();
        match action {
            Action::Read => {
                assert!(received.is_empty(), "input is taken before more is wanted");
                server.receive(&std::mem::take(&mut out));
                let count = chunk.min(server.to_client.len()).min(bytes_max - taken);
                taken += count;
                received.extend(server.to_client.drain(..count));
                if count == 0 {
                    client.disconnected(if taken == bytes_max { Disconnect::Closed } else { Disconnect::TimedOut });
                }
            }
            Action::Ready => {
                if !begin(&mut client, &mut out) {
                    client.quit(&mut out);
                }
            }
            Action::SendContent(id, _) => {
                let mut behind = Vec::new();
                begin(&mut client, &mut behind);
                let mut stuffing = Stuffing::new();
                let content = mails[id.0 as usize].content;
                stuffing.piece(content).expect("no bare line end").for_each(|range| out.extend_from_slice(range));
                out.extend_from_slice(stuffing.terminator().expect("no bare line end"));
                out.extend_from_slice(&behind);
                server.receive(&std::mem::take(&mut out));
                client.content_sent();
            }
            Action::Outcome(outcome) => {
                log.outcomes.push((outcome.transaction.0, outcome.recipient, outcome.verdict, outcome.reply.line().into()))
            }
            Action::Done(id) => log.done.push(id.0),
            Action::Close(reason) => {
                server.receive(&out);
                log.close = reason;
                // Whatever happened, each recipient of each transaction begun has exactly one outcome.
                let mut told: Vec<_> = log.outcomes.iter().map(|outcome| (outcome.0, outcome.1)).collect();
                told.sort_unstable();
                let all: Vec<_> = begun
                    .iter()
                    .enumerate()
                    .flat_map(|(id, mail)| (0..mail.recipients.len()).map(move |n| (id as u32, n as u16)))
                    .collect();
                assert_eq!(told, all);
                assert_eq!(log.done.len(), begun.len());
                return log;
            }
        }
    }
    panic!("the conversation does not end");
}

pub(crate) fn run(server: &mut Server<'_>, mails: &[Mail]) -> Log {
    converse(server, mails, usize::MAX, usize::MAX)
}
