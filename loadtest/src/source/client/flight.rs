//! What a client sends in one go: an envelope with all that may follow it, a content with the next envelope behind it.

use std::time::Instant;

use super::Client;
use crate::{
    content::{Body, Form},
    identity::push_decimal,
    source::{
        forward_paths::ForwardPaths,
        host::{Flow, Host, Job, Manner, Script, Sent, Stage},
        outbox::Outbox,
        transaction::{Asked, Transaction},
    },
};

impl Client {
    pub(super) fn envelope(&mut self, script: &Script, job: Job, now: Instant, host: &mut impl Host, out: &mut Outbox) {
        if let Some(left) = &mut self.left {
            *left -= 1;
        }
        host.began(Manner { pipelined: self.pipelining, chunked: self.chunking });
        self.begun = true;
        let plan = host.composer().plan(job.sequence, job.due_us, self.form());
        let content_bytes = plan.content_bytes;
        self.open.push_back(Transaction {
            job,
            plan,
            began: now,
            sent: None,
            mail_taken: false,
            forward_paths: ForwardPaths::default(),
            recipients_taken: 0,
            recipients_asked: 0,
            recipients_answered: 0,
            ends_at: None,
            delivered: 0,
            replies_left: 0,
            refused: None,
        });
        let bytes = out.bytes();
        bytes.extend_from_slice(b"MAIL FROM:<");
        bytes.extend_from_slice(&script.reverse_path);
        bytes.extend_from_slice(if self.eight_bit { b"> BODY=8BITMIME" } else { b">" });
        if self.size {
            // RFC 1870 5: the octets before stuffing. What is larger than the server takes is declared, too: it is the server's to refuse.
            bytes.extend_from_slice(b" SIZE=");
            push_decimal(content_bytes, bytes);
        }
        if script.needs_smtputf8 {
            bytes.extend_from_slice(b" SMTPUTF8");
        }
        bytes.extend_from_slice(b"\r\n");
        self.asked.push_back((Asked::Mail, now));
        let ends = self.ends(Stage::Mail, host);
        if ends || !self.pipelining {
            return;
        }
        for _ in 0..script.recipients {
            if self.next_recipient(now, host, out) {
                return;
            }
        }
        // BDAT ahead of the replies would be legal, too, but a server that refuses the recipients still has to be fed all content.
        if !self.chunking {
            self.data(now, host, out);
        } else if self.open.len() == 1 {
            self.content(script, now, host, out);
        }
    }

    fn form(&self) -> Form {
        if self.chunking { Form::Raw } else { Form::Stuffed }
    }

    /// Asks for one recipient more; true: nothing may follow.
    pub(super) fn next_recipient(&mut self, now: Instant, host: &mut impl Host, out: &mut Outbox) -> bool {
        let transaction = self.open.back_mut().expect("MAIL opened it");
        transaction.recipients_asked += 1;
        let bytes = out.bytes();
        bytes.extend_from_slice(b"RCPT TO:<");
        let path = bytes.len();
        host.push_recipient(bytes);
        transaction.forward_paths.ask(&bytes[path..]);
        bytes.extend_from_slice(b">\r\n");
        self.asked.push_back((Asked::Rcpt, now));
        self.ends(Stage::Rcpt, host)
    }

    pub(super) fn data(&mut self, now: Instant, host: &mut impl Host, out: &mut Outbox) {
        self.ask(Asked::Data, b"DATA\r\n", now, out);
        self.ends(Stage::Data, host);
    }

    /// Whether the session is given up at the reply to the command that was just put into the outbox: then nothing follows it.
    fn ends(&mut self, stage: Stage, host: &mut impl Host) -> bool {
        let transaction = self.open.back_mut().expect("MAIL opened it");
        if host.gives_up(stage) {
            transaction.ends_at = Some(stage);
        }
        transaction.ends_at.is_some()
    }

    /// Puts the content of the last open message into the outbox and, where that is allowed, the next envelope or QUIT behind it.
    pub(super) fn content(&mut self, script: &Script, now: Instant, host: &mut impl Host, out: &mut Outbox) -> Flow {
        let form = self.form();
        let transaction = self.open.back_mut().expect("MAIL opened it");
        let composer = host.composer();
        let mut plan = transaction.plan.clone();
        // Since it was planned its turn may have come.
        plan.mark.due_us = transaction.job.due_us;
        if self.chunking {
            let bytes = out.bytes();
            bytes.extend_from_slice(b"BDAT ");
            push_decimal(plan.content_bytes, bytes);
            bytes.extend_from_slice(b" LAST\r\n");
        }
        composer.write_head(&plan, out.bytes());
        let body = composer.body(&plan).cloned();
        if host.gives_up(Stage::Content) {
            if let Some(Body { item, range }) = body {
                let half = range.start + range.len() / 2;
                out.push_body(form, Body { item, range: range.start..half });
            }
            return Flow::GiveUp;
        }
        if let Some(body) = body {
            out.push_body(form, body);
        }
        host.composer().write_tail(&plan, out.bytes());
        if !self.chunking {
            out.bytes().extend_from_slice(b".\r\n");
        }
        let transaction = self.open.back_mut().expect("MAIL opened it");
        transaction.sent = Some(Sent { mark: plan.mark, content_bytes: plan.content_bytes, began: transaction.began });
        // With BDAT sent ahead the number of recipients taken isn't known yet: it is when the replies to the dot come.
        transaction.replies_left = u32::from(!script.lmtp);
        self.asked.push_back((Asked::Dot, now));
        out.content_ends();
        if host.gives_up(Stage::Dot) {
            return Flow::GiveUp;
        }
        if self.pipelining {
            if self.left == Some(0) {
                if !script.linger {
                    self.ask(Asked::Quit, b"QUIT\r\n", now, out);
                }
            } else if script.envelopes_ahead
                && !self.chunking
                && !script.lmtp
                && let Some(job) = host.take(now)
            {
                self.envelope(script, job, now, host, out);
            }
        }
        Flow::Go
    }
}
