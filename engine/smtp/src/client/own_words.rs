//! What a client says of a next hop in a reply's form: words of its own, which no next hop has said.

use crate::reply::Reply;

/// Constants, and whether a text is one of them.
macro_rules! own_words {
    ($($name:ident = $line:literal;)*) => {
        $(pub(crate) const $name: &str = $line;)*

        /// Whether these are a client's own words. A next hop that says the same word for word is not told apart.
        pub(crate) fn is_own(line: &str) -> bool {
            [$($name),*].contains(&line) || OFFERS.iter().any(|lack| is_put_off(line, lack)) || is_broken_protocol(line)
        }
    };
}

own_words! {
    UNREADABLE = "451 4.3.0 the message cannot be read from the spool";
    CLOSED = "421 4.4.2 connection closed by the next hop";
    LOST = "421 4.4.2 connection to the next hop lost";
    TIMED_OUT = "421 4.4.2 the next hop did not answer in time";
    ABANDONED = "451 4.3.0 the attempt was given up";
    BARE_LINE_END = "451 4.6.0 the content has a bare CR or LF, and is not sent";
    PROTOCOL_BROKEN = "451 4.5.0 the next hop broke the protocol";
    ENDED = "421 4.4.2 session ended by the next hop";
    CONNECTION_USED_UP = "452 4.5.3 the next hop takes no further message on this connection";
    RECIPIENTS_EXCEEDED = "452 4.5.3 more recipients than the next hop takes at a time";
    RECIPIENT_UNANSWERED = "451 4.5.0 the next hop did not answer for this recipient";
    NEEDS_SMTPUTF8 = "553 5.6.7 the next hop does not offer SMTPUTF8, which this message needs";
    NEEDS_BINARYMIME = "554 5.6.3 the next hop does not offer BINARYMIME, which this message needs";
    NEEDS_8BITMIME = "554 5.6.3 the next hop does not offer 8BITMIME, which this message needs";
    TOO_LARGE = "552 5.3.4 the message is larger than the next hop takes";
    TIME_IS_OVER = "554 5.4.7 the time that the sender gave is over";
    NEEDS_DELIVERBY = "554 5.3.3 the next hop does not offer DELIVERBY, which this message needs";
    NEEDS_MORE_TIME = "554 5.4.7 the next hop needs more time than the sender gave";
    CONTROL_CHARACTER = "553 5.1.3 an address has a control character";
}

/// What a next hop does not offer.
const OFFERS: [&str; 6] = [NEEDS_SMTPUTF8, NEEDS_BINARYMIME, NEEDS_8BITMIME, TOO_LARGE, NEEDS_DELIVERBY, NEEDS_MORE_TIME];

/// Before and behind the rest of one of them while another host may offer it.
const PUT_OFF: (&str, &str) = ("451 4", "; not every host could be asked");

/// Whether a reply is a word of ours about what a next hop does not offer, final or not: another host may. A next hop that says the same word for
/// word is not told apart.
pub fn is_about_offer(reply: &Reply) -> bool {
    OFFERS.iter().any(|lack| reply.line() == *lack || is_put_off(reply.line(), lack))
}

/// What a next hop does not offer as a reason to wait, because another one may. Any other reply comes back as it is.
pub fn put_off_offer(reply: &Reply) -> Reply {
    match OFFERS.iter().find(|lack| reply.line() == **lack) {
        Some(lack) => Reply::local(&format!("{}{}{}", PUT_OFF.0, &lack[PUT_OFF.0.len()..], PUT_OFF.1)),
        None => *reply,
    }
}

/// What stands between [`PROTOCOL_BROKEN`] and what was asked.
const IN_ANSWER_TO: &str = ", in answer to ";

/// The next hop broke the protocol when it was asked for `asked` and `said` that: `451 4.5.0 the next hop broke the protocol, in answer to MAIL: 354 go on`.
pub(crate) fn protocol_broken(asked: &str, said: &str) -> Reply {
    Reply::local(&format!("{PROTOCOL_BROKEN}{IN_ANSWER_TO}{asked}: {said}"))
}

fn is_broken_protocol(line: &str) -> bool {
    line.strip_prefix(PROTOCOL_BROKEN).is_some_and(|rest| rest.starts_with(IN_ANSWER_TO))
}

/// Whether a reply is a word of ours that has what a next hop said where it makes no sense: that is not to be understood as an answer. A next hop that
/// begins with the same words is not told apart.
pub fn is_about_protocol(reply: &Reply) -> bool {
    is_broken_protocol(reply.line())
}

fn is_put_off(line: &str, lack: &str) -> bool {
    line.strip_prefix(PUT_OFF.0).and_then(|rest| rest.strip_suffix(PUT_OFF.1)) == Some(&lack[PUT_OFF.0.len()..])
}

/// Whether a reply is a word of ours about content that we do not have or do not send: no other next hop would get it either. A next hop that
/// says the same word for word is not told apart.
pub fn is_about_content(reply: &Reply) -> bool {
    [UNREADABLE, ABANDONED, BARE_LINE_END].contains(&reply.line())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_offered_is_told_as_such_whether_it_is_final_or_waits() {
        for lack in OFFERS {
            let reply = put_off_offer(&Reply::local(lack));
            assert!(reply.code() == 451 && reply.enhanced().is_some_and(|code| code.class == 4), "{}", reply.line());
            assert!(is_about_offer(&reply) && is_own(reply.line()) && is_about_offer(&Reply::local(lack)));
            assert_eq!(put_off_offer(&reply).line(), reply.line());
        }
        let waits = put_off_offer(&Reply::local(NEEDS_8BITMIME));
        let expected = "451 4.6.3 the next hop does not offer 8BITMIME, which this message needs; not every host could be asked";
        assert_eq!(waits.line(), expected);
        for other in [UNREADABLE, CONTROL_CHARACTER, "451 4.6.3 the next hop", "554 5.6.3 conversion required"] {
            let reply = Reply::local(other);
            assert!(!is_about_offer(&reply) && put_off_offer(&reply).line() == other);
        }
    }

    #[test]
    fn what_makes_no_sense_is_quoted_and_bounded_and_remains_a_word_of_ours() {
        let long = "x".repeat(400);
        for said in [
            "354 go on",
            "421 4.7.0 too many messages on this connection",
            "a line that is not a reply",
            long.as_str(),
            "250 \u{1b}[31m\"quoted\"",
        ] {
            let reply = protocol_broken("MAIL", said);
            assert!(reply.line().starts_with("451 4.5.0 the next hop broke the protocol, in answer to MAIL: "), "{}", reply.line());
            assert!(reply.line().len() <= crate::reply::REPLY_TEXT_BYTES_MAX && !reply.line().contains(char::is_control));
            assert!(is_own(reply.line()) && is_about_protocol(&reply) && reply.code() == 451, "{}", reply.line());
        }
        assert!(is_own(PROTOCOL_BROKEN) && !is_own("451 4.5.0 the next hop broke the protocols"));
    }
}
