//! Listing by sender domain, recipient domain and tag: what is found, that no more than that is looked at, and that pages fit together
//! while the queue changes between them.

use std::collections::{BTreeMap, BTreeSet};

use ringpost_queue::{
    Asking, Cursor, CursorLost, Filter, Jitter, Mail, MessageKey, NewMessage, NewRecipient, Notify, Outcome, Queue, QueueId, QueueSettings,
    Resolution, RetryPolicy, Route, Routes, State, TermKind, Via, Work,
};

const START: u64 = 1_790_000_000_000;
const DOMAINS: [&str; 4] = ["a.test", "b.test", "c.test", "d.test"];
const TAGS: [&str; 3] = ["", "bulk", "news"];

fn queue(seed: u64) -> Queue {
    let route = Route {
        pattern: "*".into(),
        via: Via::Smarthost { hosts: vec!["192.0.2.1:25".parse().unwrap()] },
        retry: RetryPolicy::default(),
        limits: Default::default(),
    };
    Queue::new(QueueSettings::default(), Routes::new(vec![route]).unwrap(), seed, START)
}

struct Known {
    key: MessageKey,
    sender_domain: String,
    recipient_domains: BTreeSet<String>,
    tags: BTreeSet<String>,
}

fn put(queue: &mut Queue, random: &mut Jitter, sequence: u64) -> Known {
    let domain = |random: &mut Jitter| DOMAINS[random.below(4) as usize].to_owned();
    let sender_domain = domain(random);
    let sender = format!("s{sequence}@{}", sender_domain.to_uppercase());
    let recipients: Vec<String> = (0..1 + random.below(5)).map(|number| format!("r{number}@{}", domain(random))).collect();
    let tags: Vec<&[u8]> = (0..random.below(3)).map(|_| TAGS[random.below(3) as usize].as_bytes()).collect();
    let message = NewMessage {
        id: QueueId { boot: 1, shard: 0, sequence },
        accepted_at: START + sequence,
        reverse_path: sender.as_bytes(),
        tags: &tags,
        ..NewMessage::default()
    };
    let destination = queue.route(b"a.test");
    let new = recipients.iter().map(|address| NewRecipient { address: address.as_bytes(), destination, notify: Notify::UNSAID });
    Known {
        key: queue.enqueue(&message, new, START + sequence),
        sender_domain,
        recipient_domains: recipients.iter().map(|address| address.rsplit_once('@').unwrap().1.to_owned()).collect(),
        tags: tags.iter().filter(|tag| !tag.is_empty()).map(|tag| String::from_utf8(tag.to_vec()).unwrap()).collect(),
    }
}

fn all(queue: &mut Queue, filter: &Filter, limit: usize) -> Vec<u64> {
    let (mut found, mut cursor) = (Vec::new(), Some(Cursor::default()));
    while let Some(at) = cursor {
        let before = found.len();
        cursor = queue.page(filter, at, limit, |message| found.push(message.envelope().id.sequence)).unwrap();
        assert!(found.len() - before <= limit);
    }
    found
}

/// Two hundred messages of a thousand recipients each were one page: a shard did nothing else for a tenth of a second.
#[test]
fn a_page_of_messages_with_many_recipients_is_short() {
    let mut queue = queue(1);
    let addresses: Vec<String> = (0..600).map(|number| format!("r{number}@a.test")).collect();
    let destination = queue.route(b"a.test");
    for sequence in 0..20 {
        let id = QueueId { boot: 1, shard: 0, sequence };
        let message = NewMessage { id, accepted_at: START, reverse_path: b"s@b.test", ..NewMessage::default() };
        let to = addresses.iter().map(|address| NewRecipient { address: address.as_bytes(), destination, notify: Notify::UNSAID });
        queue.enqueue(&message, to, START);
    }
    for filter in [Filter::default(), Filter { sender_domain: Some("b.test".into()), ..Filter::default() }] {
        let (mut cursor, mut pages, mut found) = (Some(Cursor::default()), 0, Vec::new());
        while let Some(at) = cursor {
            let before = found.len();
            cursor = queue.page(&filter, at, 200, |message| found.push(message.envelope().id.sequence)).unwrap();
            assert!(found.len() - before <= 2, "{}", found.len() - before);
            pages += 1;
        }
        assert_eq!((found, pages >= 10), ((0..20).collect(), true));
    }
}

/// Each filter finds what a plain map says, in the order of arrival, at any depth of messages that were not put into lists yet.
#[test]
fn every_filter_finds_what_a_map_finds() {
    for seed in 0..8 {
        let (mut queue, mut random) = (queue(seed), Jitter::new(seed));
        let mut known: BTreeMap<u64, Known> = BTreeMap::new();
        for sequence in 0..2500 {
            known.insert(sequence, put(&mut queue, &mut random, sequence));
            if random.below(3) == 0 {
                let gone = random.below(sequence + 1);
                if let Some(message) = known.remove(&gone) {
                    let _settled_record = queue.delete(message.key, START + sequence);
                    queue.recorded(message.key);
                }
            }
            if sequence % 250 != 0 {
                continue;
            }
            for domain in DOMAINS {
                for tag in [None, Some("bulk"), Some("none")] {
                    let filter = Filter { recipient_domain: Some(domain.to_uppercase()), tag: tag.map(str::to_owned), ..Filter::default() };
                    let expected: Vec<u64> = known
                        .iter()
                        .filter(|(_, message)| {
                            message.recipient_domains.contains(domain) && tag.is_none_or(|tag| message.tags.contains(tag))
                        })
                        .map(|(sequence, _)| *sequence)
                        .collect();
                    assert_eq!(all(&mut queue, &filter, 7), expected, "seed {seed}: {filter:?}");
                }
                let filter = Filter { sender_domain: Some(format!("{domain}.")), accepted_until: Some(START + 900), ..Filter::default() };
                let expected: Vec<u64> = known
                    .iter()
                    .filter(|(sequence, message)| message.sender_domain == domain && **sequence <= 900)
                    .map(|(sequence, _)| *sequence)
                    .collect();
                assert_eq!(all(&mut queue, &filter, 1000), expected, "seed {seed}: {filter:?}");
                let counted = known.values().filter(|message| message.sender_domain == domain).count();
                let term = queue.terms(TermKind::SenderDomain).find(|(name, _)| *name == domain.as_bytes());
                assert_eq!(term.map_or(0, |(_, count)| count), counted);
            }
        }
    }
}

/// The list of a destination's mail is walked while messages leave it and others are sent another way.
#[test]
fn a_destination_is_listed_while_its_mail_moves_away() {
    let route =
        |pattern: &str| Route { pattern: pattern.into(), via: Via::Hold, retry: RetryPolicy::default(), limits: Default::default() };
    let mut queue = Queue::new(QueueSettings::default(), Routes::new(vec![route("*"), route("other.test")]).unwrap(), 1, START);
    let mut random = Jitter::new(5);
    let known: Vec<Known> = (0..1000).map(|sequence| put(&mut queue, &mut random, sequence)).collect();
    let (from, to) = (queue.route(b"a.test"), queue.route(b"other.test"));
    let filter = Filter { destinations: vec![from], ..Filter::default() };
    let (mut seen, mut cursor, mut record) = (Vec::new(), Some(Cursor::default()), Vec::new());
    while let Some(at) = cursor {
        cursor = queue.page(&filter, at, 10, |message| seen.push(message.envelope().id.sequence)).unwrap();
        let last = *seen.last().unwrap();
        if let Some(next) = known.get(last as usize + 1) {
            match last % 20 < 10 {
                true => drop(queue.delete(next.key, START)),
                false => drop(queue.reroute(next.key, &Filter::default(), queue.route_named("other.test").unwrap(), START, &mut record)),
            }
            queue.recorded(next.key);
        }
        // What was seen may go, too.
        let _settled_record = queue.delete(known[last as usize].key, START);
        queue.recorded(known[last as usize].key);
    }
    assert!(seen.is_sorted() && seen.len() > 850, "{}", seen.len());
    let left = queue.destinations(START).find(|one| one.id == to).unwrap().messages;
    assert!(left > 30, "{left}");
    assert_eq!(all(&mut queue, &Filter { destinations: vec![to], ..Filter::default() }, 7).len(), left);
}

/// A site has no mail of its own: it is listed along its domains, and a message for several of them once. Other mail is not looked at.
#[test]
fn a_site_is_listed_along_its_domains() {
    let route = Route { pattern: "*".into(), via: Via::Mx { port: 25 }, retry: RetryPolicy::default(), limits: Default::default() };
    let mut queue = Queue::new(QueueSettings::default(), Routes::new(vec![route]).unwrap(), 1, START);
    let mut put = |sequence: u64, domains: &[String]| {
        let to: Vec<_> = domains.iter().map(|domain| (format!("r@{domain}"), queue.route(domain.as_bytes()))).collect();
        let new = to.iter().map(|(address, destination)| NewRecipient {
            address: address.as_bytes(),
            destination: *destination,
            notify: Notify::UNSAID,
        });
        let message = NewMessage { id: QueueId { boot: 1, shard: 0, sequence }, reverse_path: b"s@x.test", ..NewMessage::default() };
        queue.enqueue(&message, new, START)
    };
    let twin = |number: u64| format!("twin{}.test", number % 3);
    // A hundred among many, each for two or three of the three domains of the site, or also for another domain.
    for sequence in 0..200_000 {
        put(sequence, &[format!("other{}.test", sequence % 50)]);
    }
    for sequence in 200_000..200_100 {
        let mut domains = vec![twin(sequence), "other1.test".to_owned(), twin(sequence + 1)];
        domains.extend((sequence % 2 == 0).then(|| twin(sequence + 2)));
        put(sequence, &domains);
    }
    let site = |resolved: &str| Resolution::Site {
        key: resolved.into(),
        name: format!("mx.{resolved}"),
        hosts: vec!["192.0.2.1:25".parse().unwrap()],
        is_whole: true,
        until: START + 1_000_000,
    };
    for (number, resolved) in [(0, "site"), (1, "site"), (2, "site")] {
        let domain = queue.route(twin(number).as_bytes());
        queue.resolved(Asking { destination: domain, table: 0 }, &site(resolved), START);
    }
    let named: Vec<_> = queue.destinations_named("MX.Site").collect();
    assert_eq!(named.len(), 1);
    let filter = Filter { destinations: named, ..Filter::default() };
    let pages = |queue: &mut Queue| {
        let (mut found, mut cursor, mut pages) = (Vec::new(), Some(Cursor::default()), 0);
        while let Some(at) = cursor {
            cursor = queue.page(&filter, at, 50, |message| found.push(message.envelope().id.sequence)).unwrap();
            pages += 1;
        }
        found.sort_unstable();
        (found, pages)
    };
    let (found, count) = pages(&mut queue);
    assert_eq!(found, (200_000..200_100).collect::<Vec<_>>());
    // New mail is put into lists by the first calls; a walk over all would take 49 pages more.
    assert!(count <= 15, "{count}");
    // One of the domains has moved to other hosts: its messages are found by the others that they are for.
    let moved = queue.route(twin(0).as_bytes());
    queue.resolved(Asking { destination: moved, table: 0 }, &site("elsewhere"), START);
    let (found, _) = pages(&mut queue);
    assert_eq!(found, (200_000..200_100).collect::<Vec<_>>(), "each is for two of them at least");
    let elsewhere = Filter { destinations: queue.destinations_named("mx.elsewhere").collect(), ..Filter::default() };
    let expected: Vec<u64> = (200_000..200_100).filter(|sequence| sequence % 2 == 0 || sequence % 3 != 1).collect();
    let mut found = all(&mut queue, &elsewhere, 1000);
    found.sort_unstable();
    assert_eq!(found, expected);
}

/// A domain has a destination in each route that leads to it, under the same name; one that is dropped has its name no more.
#[test]
fn destinations_are_found_by_name_as_long_as_they_are_there() {
    let route = |pattern: &str| Route {
        pattern: pattern.into(),
        via: Via::Mx { port: 25 },
        retry: RetryPolicy::default(),
        limits: Default::default(),
    };
    let mut queue = Queue::new(QueueSettings::default(), Routes::new(vec![route("*"), route("* from @x.test")]).unwrap(), 1, START);
    let mail = |reverse_path| Mail { reverse_path, domain: b"Y.test" };
    let (all, own) = (queue.route_mail(mail(b"a@q.test")), queue.route_mail(mail(b"a@x.test")));
    let named = |queue: &Queue, name: &str| {
        let mut named: Vec<_> = queue.destinations_named(name).collect();
        named.sort_unstable_by_key(|id| id.index());
        named
    };
    assert_eq!(named(&queue, "y.TEST"), [all, own]);
    assert_eq!(named(&queue, "* FROM @x.test").len(), 1);
    assert_eq!(named(&queue, "unrouted"), [ringpost_queue::DestinationId::UNROUTED]);
    assert!(named(&queue, "z.test").is_empty());
    let mut record = Vec::new();
    assert!(queue.poll(START, &mut record).is_none());
    assert!(queue.poll(START + 700_000, &mut record).is_none());
    assert!(named(&queue, "y.test").is_empty(), "nobody has used it for ten minutes");
    let again = queue.route_mail(mail(b"a@q.test"));
    assert_eq!(named(&queue, "y.test"), [again], "its old place does not count");
}

/// Before, a page went on at a slot's number; in a list the message it would go on at can be gone.
#[test]
fn pages_fit_together_although_messages_leave_between_them() {
    let (mut queue, mut random) = (queue(3), Jitter::new(3));
    let mut known: Vec<Known> = (0..3000).map(|sequence| put(&mut queue, &mut random, sequence)).collect();
    let filter = Filter { recipient_domain: Some("b.test".into()), ..Filter::default() };
    let mut expected: BTreeSet<u64> =
        (0..).zip(&known).filter(|(_, message)| message.recipient_domains.contains("b.test")).map(|(at, _)| at).collect();
    let (mut seen, mut cursor, mut removed) = (BTreeSet::new(), Some(Cursor::default()), 0);
    while let Some(at) = cursor {
        cursor = queue.page(&filter, at, 10, |message| assert!(seen.insert(message.envelope().id.sequence))).unwrap();
        // What comes next is what leaves, above all.
        let next: Vec<u64> = expected.difference(&seen).take(3).copied().collect();
        for sequence in next {
            let key = known[sequence as usize].key;
            let _settled_record = queue.delete(key, START);
            queue.recorded(key);
            expected.remove(&sequence);
            removed += 1;
        }
        known.push(put(&mut queue, &mut random, known.len() as u64));
    }
    assert!(removed > 100 && expected.is_subset(&seen));
}

#[test]
fn a_listing_that_was_given_up_says_so() {
    let (mut queue, mut random) = (queue(3), Jitter::new(3));
    (0..100).for_each(|sequence| drop(put(&mut queue, &mut random, sequence)));
    let filter = Filter { sender_domain: Some("a.test".into()), ..Filter::default() };
    let first = queue.page(&filter, Cursor::default(), 1, |_| ()).unwrap().unwrap();
    for _ in 0..32 {
        let _others = queue.page(&filter, Cursor::default(), 1, |_| ()).unwrap().unwrap();
    }
    assert_eq!(queue.page(&filter, first, 1, |_| ()), Err(CursorLost));
    assert_eq!(queue.page(&filter, Cursor::at(u64::MAX), 1, |_| ()), Err(CursorLost));
}

/// Looking for a few among many goes along a list: a scan would take a page for each few thousand messages.
#[test]
fn few_among_many_are_found_on_a_few_pages() {
    let mut queue = queue(1);
    let destination = queue.route(b"a.test");
    for sequence in 0..200_000 {
        let rare = sequence % 50_000 == 49_999;
        let tags: &[&[u8]] = if rare { &[b"rare"] } else { &[] };
        let message = NewMessage {
            id: QueueId { boot: 1, shard: 0, sequence },
            reverse_path: if rare { b"s@rare.test" } else { b"s@x.test" },
            tags,
            ..NewMessage::default()
        };
        let address: &[u8] = if rare { b"r@few.test" } else { b"r@many.test" };
        queue.enqueue(&message, [NewRecipient { address, destination, notify: Notify::UNSAID }].into_iter(), START);
    }
    let by = [
        Filter { tag: Some("rare".into()), ..Filter::default() },
        Filter { sender_domain: Some("rare.test".into()), recipient_domain: Some("few.test".into()), ..Filter::default() },
        Filter { sender: Some("S@Rare.test".into()), state: Some(State::Ready), ..Filter::default() },
    ];
    for filter in by {
        let (mut found, mut cursor) = (Vec::new(), Cursor::default());
        // New messages are put into lists first, a bounded number for each call.
        let pages = (1..).find(|_| match queue.page(&filter, cursor, 10, |message| found.push(message.envelope().id.sequence)).unwrap() {
            Some(next) => {
                cursor = next;
                false
            }
            None => true,
        });
        assert_eq!(found, [49_999, 99_999, 149_999, 199_999], "{filter:?}");
        assert!(pages.unwrap() <= 9, "{pages:?}");
    }
}

/// A delivered message leaves its lists, and a queue that is empty again has no terms.
#[test]
fn what_is_delivered_is_in_no_list() {
    let (mut queue, mut random) = (queue(9), Jitter::new(9));
    let mut record = Vec::new();
    (0..500).for_each(|sequence| drop(put(&mut queue, &mut random, sequence)));
    assert!(!all(&mut queue, &Filter { sender_domain: Some("a.test".into()), ..Filter::default() }, 100).is_empty());
    while let Some(Work::Attempt(dispatch)) = queue.poll(START + 1000, &mut record) {
        let key = dispatch.key();
        let outcomes: Vec<_> = queue.recipients(&dispatch).map(|(number, _)| (number, Outcome::Delivered { reply: b"250 ok" })).collect();
        let _all_are_delivered = queue.settle(dispatch, &outcomes, START + 1000, &mut record);
        queue.recorded(key);
    }
    assert!(queue.is_empty());
    for kind in [TermKind::SenderDomain, TermKind::RecipientDomain, TermKind::Tag] {
        assert_eq!(queue.terms(kind).count(), 0, "{kind:?}");
    }
}

/// A command for a whole queue went along what came meanwhile, and ended when mail came more slowly than it was changed.
#[test]
fn a_walk_is_not_prolonged_by_what_comes_behind_its_beginning() {
    const BEFORE: u64 = 1000;
    for sender_domain in [None, Some("a.test".to_owned())] {
        let (mut queue, mut random) = (queue(5), Jitter::new(5));
        let known: Vec<Known> = (1..=BEFORE).map(|sequence| put(&mut queue, &mut random, sequence)).collect();
        let older_than = Some(QueueId { boot: 1, shard: 0, sequence: BEFORE + 1 });
        let filter = Filter { sender_domain: sender_domain.clone(), older_than, ..Filter::default() };
        let (mut found, mut cursor, mut pages, mut sequence) = (Vec::new(), Some(Cursor::default()), 0, BEFORE);
        while let Some(at) = cursor {
            cursor = queue.page(&filter, at, 100, |message| found.push(message.envelope().id.sequence)).unwrap();
            // Of each domain more than a page.
            for _ in 0..500 {
                sequence += 1;
                put(&mut queue, &mut random, sequence);
            }
            pages += 1;
            assert!(pages < 30, "{} found, of {BEFORE}", found.len());
        }
        found.sort_unstable();
        let is_meant = |(_, known): &(u64, &Known)| sender_domain.as_ref().is_none_or(|domain| *domain == known.sender_domain);
        let meant: Vec<u64> = (1..).zip(&known).filter(is_meant).map(|(sequence, _)| sequence).collect();
        assert_eq!(found, meant);
    }
}
