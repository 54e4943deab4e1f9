//! What a report in the spool reports: the place of the HELO name in its envelope says it.
//!
//! ```text
//! report/failure/0G3K…/0-4,7        double/failure/0G3K…/0        again/report/failure/0G3K…/0
//! ```

use std::{
    fmt::Write,
    net::{Ipv4Addr, SocketAddr},
};

use ringpost_queue::{About, QueueId};
use ringpost_smtp::{
    envelope::{ContentFacts, Envelope, EnvelopeView, Origin, Protocol},
    extension::{Body, MailParameters, Notify, RecipientParameters},
    report::ReportNeeds,
};

/// The peer of a report: none that a client can have.
const NOBODY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);
/// In front of the text of a report that was made again.
const AGAIN: &str = "again/";
/// What an envelope keeps of the text. A report of more recipients names none of them, and is made again after a crash.
const TEXT_BYTES_MAX: usize = 255;
/// Numbers that a text can name, so that none read from a spool makes a long list.
const RECIPIENTS_MAX: usize = 60_000;

/// What a report reports.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct ReportOrigin {
    /// The message.
    pub(crate) message: QueueId,
    /// What about it.
    pub(crate) about: About,
    /// Its recipients, in order; empty where there was no room for their numbers.
    pub(crate) recipients: Vec<u16>,
    /// It reports that a report, or other mail with the null reverse-path, failed: if it fails in turn, nobody is told.
    pub(crate) is_double: bool,
    /// It is `message`, a report, without the octets that no next hop took: there is no second such.
    pub(crate) is_again: bool,
}

impl ReportOrigin {
    /// Reads it from the envelope of a message; `None` for what came from a client.
    pub(crate) fn of(envelope: &EnvelopeView<'_>) -> Option<ReportOrigin> {
        if envelope.peer() != NOBODY || !envelope.reverse_path().is_null() {
            return None;
        }
        ReportOrigin::parse(envelope.helo())
    }

    /// As [`ReportOrigin::of`], of a report that was made here: one that was taken over from `elsewhere` names a message of that node, and
    /// a message of this one may have the same id.
    pub(crate) fn of_own(envelope: &EnvelopeView<'_>, elsewhere: bool) -> Option<ReportOrigin> {
        ReportOrigin::of(envelope).filter(|_| !elsewhere)
    }

    fn parse(text: &str) -> Option<ReportOrigin> {
        let again = text.strip_prefix(AGAIN);
        let mut parts = again.unwrap_or(text).split('/');
        let is_double = match parts.next()? {
            "report" => false,
            "double" => true,
            _ => return None,
        };
        let about = match parts.next()? {
            "failure" => About::Failure,
            "delay" => About::Delay,
            "success" => About::Success,
            _ => return None,
        };
        let message = parts.next()?.parse().ok()?;
        let mut recipients = Vec::new();
        for range in parts.next()?.split(',').filter(|range| !range.is_empty()) {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            recipients.extend(first.parse::<u16>().ok()?..=last.parse::<u16>().ok()?);
            if recipients.len() > RECIPIENTS_MAX {
                return None;
            }
        }
        parts.next().is_none().then_some(ReportOrigin { message, about, recipients, is_double, is_again: again.is_some() })
    }

    fn text(&self) -> String {
        let again = if self.is_again { AGAIN } else { "" };
        let kind = if self.is_double { "double" } else { "report" };
        let about = match self.about {
            About::Failure => "failure",
            About::Delay => "delay",
            About::Success => "success",
        };
        let head = format!("{again}{kind}/{about}/{}/", self.message);
        let mut text = head.clone();
        let mut rest = self.recipients.as_slice();
        while let Some(&first) = rest.first() {
            let run = rest.iter().zip(first..).take_while(|(number, expected)| *number == expected).count();
            let separator = if text.len() > head.len() { "," } else { "" };
            match run {
                1 => write!(text, "{separator}{first}"),
                _ => write!(text, "{separator}{first}-{}", rest[run - 1]),
            }
            .expect("writing into a String cannot fail");
            rest = &rest[run..];
        }
        if text.len() > TEXT_BYTES_MAX { head } else { text }
    }

    /// The envelope of the report itself, to one recipient.
    pub(crate) fn envelope(&self, to: &str, needs: &ReportNeeds, content_bytes: usize) -> Envelope {
        let body = if needs.eight_bit { Body::EightBitMime } else { Body::SevenBit };
        let parameters = MailParameters { body, smtputf8: needs.smtputf8, ..MailParameters::default() };
        // RFC 3461 5.2.5: a report is not itself reported.
        let recipient = RecipientParameters { notify: Notify::NEVER, original_recipient: None };
        let origin = Origin { peer: NOBODY, protocol: Protocol::Esmtp, helo: &self.text() };
        let mut envelope =
            Envelope::build(&origin, "", &parameters, [(to, recipient)]).expect("a path that an envelope held, or the config");
        let (bytes, eight_bit_body) = (content_bytes as u64, needs.eight_bit);
        envelope.set_content(&ContentFacts { bytes, eight_bit_header: needs.smtputf8, eight_bit_body });
        envelope
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: QueueId = QueueId { boot: 7, shard: 3, sequence: 99 };

    fn origin(recipients: Vec<u16>) -> ReportOrigin {
        ReportOrigin { message: ID, about: About::Failure, recipients, is_double: false, is_again: false }
    }

    #[test]
    fn an_origin_comes_back_from_the_envelope_of_its_report() {
        let needs = ReportNeeds { eight_bit: true, smtputf8: false };
        for recipients in [vec![0], vec![0, 1, 2], vec![3, 5, 6, 9], (0..2000).collect()] {
            for (about, is_double, is_again) in [
                (About::Failure, false, false),
                (About::Failure, true, false),
                (About::Failure, false, true),
                (About::Failure, true, true),
                (About::Delay, false, false),
                (About::Success, false, false),
            ] {
                let origin = ReportOrigin { about, is_double, is_again, ..origin(recipients.clone()) };
                let envelope = origin.envelope("s@x.test", &needs, 10);
                let view = EnvelopeView::decode(envelope.as_bytes()).unwrap();
                assert!(view.reverse_path().is_null() && view.content().eight_bit_body);
                assert_eq!(view.recipients().next().unwrap().notify, Notify::NEVER);
                assert_eq!(ReportOrigin::of(&view), Some(origin));
            }
        }
        let scattered = origin((0..200).map(|number| number * 2).collect());
        assert_eq!(ReportOrigin::parse(&scattered.text()), Some(origin(vec![])), "no room for the numbers");
    }

    /// Of two nodes that were started in the same second, one had the other's report in its spool when it was started again, and took its own
    /// message of the same id for reported: its sender was never told.
    #[test]
    fn a_report_of_another_node_says_nothing_of_mail_here() {
        let envelope = origin(vec![0]).envelope("s@x.test", &ReportNeeds { eight_bit: false, smtputf8: false }, 10);
        assert_eq!(ReportOrigin::of_own(&envelope.view(), false), Some(origin(vec![0])));
        assert_eq!(ReportOrigin::of_own(&envelope.view(), true), None);
    }

    #[test]
    fn no_client_can_pass_for_a_report() {
        let text = origin(vec![0]).text();
        let from = Origin { peer: SocketAddr::from(([192, 0, 2, 1], 25)), protocol: Protocol::Esmtp, helo: &text };
        let build = |origin: &Origin<'_>, reverse_path| {
            Envelope::build(origin, reverse_path, &MailParameters::default(), [("b@y.test", RecipientParameters::default())]).unwrap()
        };
        assert_eq!(ReportOrigin::of(&build(&from, "").view()), None);
        assert_eq!(ReportOrigin::of(&build(&Origin { peer: NOBODY, ..from }, "s@x.test").view()), None);
        assert_eq!(ReportOrigin::of(&build(&Origin { peer: NOBODY, ..from }, "").view()), Some(origin(vec![0])));
        for text in ["", "report", "report/failure", "report/x/000000A00030003/0", "report/failure/!/0", "report/failure/000000A00030003/a"]
        {
            assert_eq!(ReportOrigin::parse(text), None, "{text}");
        }
    }
}
