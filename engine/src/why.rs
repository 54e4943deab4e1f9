//! Why a message is still here: one sentence for each situation that its recipients are in.

use std::{cell::LazyCell, fmt::Write as _};

use ringpost_queue::{DestinationId, DestinationView, MessageView, RecipientView, ReportWait, State, Wait};
use time::{OffsetDateTime, macros::format_description};

use crate::{control::Elsewhere, listing::said_by};

/// Different sentences about one message at most; further recipients are counted.
const SENTENCES_MAX: usize = 8;

/// One sentence for each situation, with the recipients that are in it. `destination` looks a destination up. `now` is unix milliseconds.
pub(crate) fn why<'q>(
    view: &MessageView<'q>,
    destination: impl Fn(DestinationId) -> Option<DestinationView<'q>>,
    elsewhere: &Elsewhere,
    now: u64,
) -> String {
    let mut situations: Vec<(String, Vec<String>)> = Vec::new();
    let mut more = 0;
    // Once for all recipients: it looks at the reports of others.
    let told = LazyCell::new(|| told(view.report_wait(now), now));
    for recipient in view.recipients().filter(|recipient| !recipient.is_settled()) {
        let Some(destination) = destination(recipient.destination()) else { continue };
        let sentence = sentence(view, &recipient, &destination, elsewhere, || told.clone(), now);
        let address = String::from_utf8_lossy(recipient.address()).into_owned();
        match situations.iter().position(|(other, _)| *other == sentence) {
            Some(at) => situations[at].1.push(address),
            None if situations.len() < SENTENCES_MAX => situations.push((sentence, vec![address])),
            None => more += 1,
        }
    }
    if let [(sentence, _)] = &*situations {
        return sentence.clone();
    }
    let mut text = String::new();
    for (sentence, addresses) in &situations {
        let others = addresses.len() - 1;
        let others = if others > 0 { format!(" and {others} more") } else { String::new() };
        let _ = write!(text, "{}<{}>{others}: {sentence}", if text.is_empty() { "" } else { "\n" }, addresses[0]);
    }
    if more > 0 {
        let _ = write!(text, "\n{more} more recipient{}.", if more == 1 { "" } else { "s" });
    }
    text
}

fn sentence(
    view: &MessageView<'_>,
    recipient: &RecipientView<'_>,
    destination: &DestinationView<'_>,
    elsewhere: &Elsewhere,
    told: impl Fn() -> String,
    now: u64,
) -> String {
    let name = destination.name;
    let after = match after_attempt(view, recipient, now) {
        Some(after) => format!("; {after}"),
        None => String::new(),
    };
    match recipient.state() {
        State::Held if view.is_held() => {
            format!("Held by command until it is released{}{}.", history(recipient, now), held_end(recipient, now))
        }
        State::Held if destination.id == DestinationId::UNROUTED => {
            let domain = String::from_utf8_lossy(recipient.domain());
            let (history, end) = (history(recipient, now), held_end(recipient, now));
            // What was tried had one.
            let what = match recipient.attempts() {
                0 => format!("no route of the config matches the domain {domain:?}"),
                _ => format!("its route is gone: none of the config matches the domain {domain:?} any more"),
            };
            format!("Held because {what}; a route for it, or `queue reroute`, sends it{history}{end}.")
        }
        State::Held => {
            let end = held_end(recipient, now);
            format!("Held by the route {name:?}, which holds all of its mail; `queue reroute` sends it another way{end}.")
        }
        State::Offered if let Some(sentence) = &elsewhere.unoffered => format!("{sentence}{}.", expiry(recipient, now)),
        State::Offered => "Offered to the nodes of the cluster: whichever takes it delivers it, and this node until then keeps it. \
             `ringpost cluster nodes` says which of them take no mail now, and why."
            .to_owned(),
        State::Attempting if elsewhere.in_turn.contains(&recipient.number()) => {
            let there = match destination.wait_there {
                Wait::Turn => String::new(),
                wait => format!("; what is there {}", wait_of_those(wait)),
            };
            let (history, expiry) = (history(recipient, now), expiry(recipient, now));
            format!("Ready, and waits for its turn at the shard that delivers to {name:?}{there}{history}{expiry}{after}.")
        }
        State::Attempting if !destination.is_home => {
            let attempt = recipient.attempts() + 1;
            let history = history(recipient, now);
            format!("Is being attempted at {name:?} by the shard that delivers there, attempt {attempt}{history}{after}.")
        }
        State::Attempting => {
            let said = elsewhere.said.iter().find(|said| said.recipients.contains(&recipient.number()));
            let said = said.map_or_else(String::new, |said| format!(", in which {}", said.text));
            let (attempt, history) = (recipient.attempts() + 1, history(recipient, now));
            format!("Is being attempted at {name:?} right now, attempt {attempt}{said}{history}{after}.")
        }
        State::Deferred => {
            let next = recipient.due_at().unwrap_or(now).max(now);
            let what = if recipient.attempts() == 0 { "its first attempt" } else { "its next attempt" };
            let paused = match destination.paused {
                Some(_) => format!(", and for the destination {name:?}, which is {}", paused(destination)),
                None => String::new(),
            };
            let (history, expiry) = (history(recipient, now), expiry(recipient, now));
            format!("Waits for {what} at {} ({}){paused}{history}{expiry}.", clock(next, now), until(next, now))
        }
        State::Ready => {
            let (waits, end) = waiting(destination, now);
            format!("{waits}{}{}{}.", end, history(recipient, now), expiry(recipient, now))
        }
        State::Failed => {
            let reply = recipient.reply();
            let at = recipient.last_attempt().map(|at| format!(" at {}", clock(at, now))).unwrap_or_default();
            let held = if view.is_held() { "; its message is held by command, so a retry comes after `queue release`" } else { "" };
            let by = match of_whom(recipient) {
                of if of.is_empty() || recipient.has_expired() => String::new(),
                of => format!(", by the word{of}"),
            };
            format!("Failed for good{at}{by}: {reply:?}; {}{held}.", told())
        }
        State::Delivered | State::Bounced | State::Purged => "Nothing is left to do.".to_owned(),
    }
}

/// What comes of a recipient that is being attempted when that has ended, where commands have said so: `held by command when that has ended, unless
/// it delivers or is refused for good`. `now` is unix milliseconds.
pub(crate) fn after_attempt(view: &MessageView<'_>, recipient: &RecipientView<'_>, now: u64) -> Option<String> {
    if recipient.state() != State::Attempting {
        return None;
    }
    let (end, mut unless) = (view.end_by_command(), "unless it delivers");
    let mut comes: Vec<String> = Vec::new();
    match (recipient.is_leaving(), recipient.is_failing()) {
        (true, _) => comes.push("purged by command".to_owned()),
        (false, true) => comes.push("bounced by command".to_owned()),
        (false, false) => {
            let next_route = recipient.next_route_name();
            if next_route.is_none() {
                // What goes elsewhere is not failed by a refusal here.
                unless = "unless it delivers or is refused for good";
            }
            comes.extend(next_route.map(|route| format!("sent by the route {route:?}")));
            comes.extend(view.is_held().then(|| "held by command".to_owned()));
            // A pause of where it is now is nothing to what goes elsewhere.
            comes.extend(recipient.paused().filter(|_| next_route.is_none()).map(|by| format!("kept until `queue resume {by}`")));
            comes.extend(end.filter(|&at| at <= now).map(|_| "expired by command".to_owned()));
        }
    }
    let after = (!comes.is_empty()).then(|| format!("{} when that has ended, {unless}", comes.join(" and ")));
    match (after, end.filter(|&at| at > now)) {
        (after, None) => after,
        (None, Some(end)) => Some(format!("expires {} by command", clock(end, now))),
        (Some(after), Some(end)) => Some(format!("{after}; expires {} by command", clock(end, now))),
    }
}

/// When the sender of failed mail is told.
fn told(wait: ReportWait, now: u64) -> String {
    match wait {
        ReportWait::Off => "nobody is told (bounce.enabled = false), and it stays until somebody retries or purges it".to_owned(),
        ReportWait::Nothing => "its sender is being told".to_owned(),
        ReportWait::Until(next) => {
            format!("its sender is told at {} ({}), when it is the turn of this report", clock(next, now), until(next, now))
        }
        ReportWait::Behind { more_than, from } => {
            format!("its sender is told after more than {more_than} others, at {} ({}) at the earliest", clock(from, now), until(from, now))
        }
    }
}

/// What mail at another shard waits for there.
fn wait_of_those(wait: Wait) -> String {
    match wait {
        Wait::Window { window, .. } => format!("waits for one of {window} attempts at a time"),
        wait => wait.to_string(),
    }
}

/// What mail in a ready queue waits for, and when that ends.
fn waiting(destination: &DestinationView<'_>, now: u64) -> (String, String) {
    let name = destination.name;
    let reason = match destination.reason {
        "" => String::new(),
        reason => format!(": {reason:?}"),
    };
    let among = |what: &str| match destination.ready {
        0 | 1 => String::new(),
        ready => format!("{what}{ready} messages"),
    };
    let end = |what: &str| match destination.wait.until() {
        Some(at) => format!("; {what} at {} ({})", clock(at, now), until(at, now)),
        None => String::new(),
    };
    match destination.wait {
        Wait::Held => (format!("Held by the route {name:?}"), String::new()),
        Wait::Paused => (format!("Ready, but the destination {name:?} is {}", paused(destination)), String::new()),
        Wait::Asking => (format!("Ready, and DNS is being asked where mail for {name} goes"), String::new()),
        Wait::Unanswered { .. } => (format!("Ready, but DNS does not say where mail for {name} goes{reason}"), end("it is asked again")),
        Wait::BreakerOpen { .. } => (format!("Ready, but no host of {name:?} answers (breaker open){reason}"), end("it is probed next")),
        Wait::Probing => (format!("Ready, and {name:?}, which did not answer, is being probed right now{reason}"), String::new()),
        Wait::Throttled { .. } => (format!("Ready, but {name:?} asked for less mail and is left alone{reason}"), end("it is tried next")),
        Wait::Crowded { .. } => (format!("Ready, but {name:?} allows no more connections at present{reason}"), end("the next is tried")),
        Wait::Full { attempts } => {
            let turn = format!("Ready, and waits for its turn at {name:?}{}", among(" among "));
            (format!("{turn}: {attempts} attempts at a time are open, and it allows no more connections at present"), String::new())
        }
        Wait::Shortage { .. } => {
            (format!("Ready, but no connection can be made for a reason on this machine{reason}"), end("it is tried again"))
        }
        Wait::Window { attempts, window } => {
            let most = destination.limits.map_or(destination.connections_max, |limits| limits.connections_max);
            let most = if window < most { format!(", which grow with each delivery up to {most}") } else { String::new() };
            let turn = format!("Ready, and waits for its turn at {name:?}{}", among(" among "));
            (format!("{turn}: {attempts} of {window} attempts at a time are open{most}"), String::new())
        }
        Wait::Home { out } => {
            let turn = format!("Ready, and waits for its turn at {name:?}{}", among(" among "));
            (format!("{turn}: another shard delivers there, and has {out} of this one's"), String::new())
        }
        Wait::Rate { rate, .. } => {
            let rate = destination.limits.and_then(|limits| limits.rate).unwrap_or(rate);
            (
                format!("Ready, but the rate of {name:?}, {rate}, is used up{}", among(" by others, and it waits among ")),
                end("the next one goes"),
            )
        }
        Wait::SharedRate { rate, .. } => (
            format!("Ready, but the rate of {name:?} over all nodes, {rate}, is used up{}", among(" by others, and it waits among ")),
            end("this node has a part of it again"),
        ),
        Wait::SharedShut { rate, .. } => (
            format!(
                "Ready, but Valkey does not answer about the rate of {name:?} over all nodes, {rate}, and nothing goes without it \
                 (cluster_rate_without_valkey = \"closed\"){}",
                among(", among ")
            ),
            end("it is asked again"),
        ),
        Wait::Turn => (format!("Ready: its turn at {name:?} comes at once"), String::new()),
    }
}

/// What ends it, too.
fn paused(destination: &DestinationView<'_>) -> String {
    let by = destination.paused.map_or_else(String::new, |by| format!(" by `queue resume {by}`"));
    format!("paused by command until it is resumed{by}")
}

/// The last word about a recipient, and when it was said.
fn history(recipient: &RecipientView<'_>, now: u64) -> String {
    let attempts = recipient.attempts();
    let at = match recipient.last_attempt() {
        Some(at) if attempts > 0 => format!("at {} (attempt {attempts})", clock(at, now)),
        _ => return String::new(),
    };
    match &*recipient.reply() {
        "" => format!("; last tried {at}"),
        reply => format!("; the answer{} {at} was {reply:?}", of_whom(recipient)),
    }
}

/// ` of mx1.example.org[192.0.2.7]:25`, if a next hop gave the last word about a recipient.
fn of_whom(recipient: &RecipientView<'_>) -> String {
    said_by(recipient).map_or_else(String::new, |relay| format!(" of {relay}"))
}

fn held_end(recipient: &RecipientView<'_>, now: u64) -> String {
    match recipient.fails_at() {
        Some(at) => format!("; expires {} all the same", clock(at, now)),
        None => "; it does not expire meanwhile".to_owned(),
    }
}

fn expiry(recipient: &RecipientView<'_>, now: u64) -> String {
    match recipient.fails_at() {
        Some(at) => format!("; expires {}", clock(at, now)),
        None => "; it does not expire meanwhile".to_owned(),
    }
}

/// A time for people, in UTC; the date only on another day.
pub(crate) fn clock(at: u64, now: u64) -> String {
    let date =
        |ms: u64| OffsetDateTime::from_unix_timestamp(i64::try_from(ms / 1000).unwrap_or(i64::MAX)).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    let (time, today) = (date(at), date(now));
    let text = if time.date() == today.date() {
        time.format(format_description!("[hour]:[minute]:[second] UTC"))
    } else {
        time.format(format_description!("[year]-[month]-[day] [hour]:[minute] UTC"))
    };
    text.unwrap_or_else(|_| at.to_string())
}

/// How long until then, in the largest unit of which there are two.
pub(crate) fn until(at: u64, now: u64) -> String {
    let seconds = at.saturating_sub(now).div_ceil(1000);
    match seconds {
        0 => "now".to_owned(),
        1..120 => format!("in {seconds} s"),
        120..7200 => format!("in {} min", seconds / 60),
        7200..172_800 => format!("in {} h", seconds / 3600),
        _ => format!("in {} days", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use ringpost_queue::{
        DestinationLimits, NewMessage, NewRecipient, Notify, Queue, QueueId, QueueSettings, RetryPolicy, Route, Routes, Via,
    };

    use super::*;

    /// Mail that was past its lifetime and has a time of grace was once said to expire in the past, beside the right time in `queue show`.
    #[test]
    fn mail_past_its_lifetime_expires_when_its_grace_ends() {
        const ACCEPTED: u64 = 1_764_374_710_000;
        const DAY_MS: u64 = 86_400_000;
        let route = Route { pattern: "*".into(), via: Via::Discard, retry: RetryPolicy::default(), limits: DestinationLimits::default() };
        let now = ACCEPTED + 30 * DAY_MS;
        let mut queue = Queue::new(QueueSettings::default(), Routes::new(vec![route]).unwrap(), 1, now);
        let destination = queue.route(b"y.test");
        queue.pause(destination, true, now);
        let message = NewMessage { id: QueueId { boot: 1, shard: 0, sequence: 1 }, accepted_at: ACCEPTED, ..NewMessage::default() };
        let recipient = NewRecipient { address: b"b@y.test", destination, notify: Notify::UNSAID };
        let key = queue.recover(&message, [recipient].into_iter(), std::iter::empty(), now).unwrap().key;
        let _ = queue.poll(now, &mut Vec::new());
        let view = queue.show(key).unwrap();
        let fails_at = view.recipients().next().unwrap().fails_at().expect("it is not held");
        assert!(fails_at > now);
        let text = why(&view, |id| queue.destination(id, now), &Elsewhere::default(), now);
        assert!(text.contains("paused by command") && text.ends_with(&format!("; expires {}.", clock(fails_at, now))), "{text}");
    }

    #[test]
    fn times_are_short_and_in_utc() {
        const NOW: u64 = 1_764_374_710_000;
        assert_eq!(clock(NOW, NOW), "00:05:10 UTC");
        assert_eq!(clock(NOW + 5 * 86_400_000, NOW), "2025-12-04 00:05 UTC");
        for (ms, expected) in
            [(0, "now"), (1, "in 1 s"), (119_000, "in 119 s"), (180_000, "in 3 min"), (8_000_000, "in 2 h"), (500_000_000, "in 5 days")]
        {
            assert_eq!(until(NOW + ms, NOW), expected);
        }
    }
}
