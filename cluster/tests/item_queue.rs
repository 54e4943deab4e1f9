//! The work queue as a library: calls by id alone, over partitions, on a real Valkey.

use std::time::{Duration, Instant};

use ringpost_cluster::{
    identity::Incarnation,
    item_queue::{DEQUEUE_BYTES_MAX, ItemQueue, Unread, WORK_BYTES_MAX, Work},
    keyspace::Keyspace,
    script::Scripts,
    target::Target,
    valkey::Valkey,
    work_item::{ItemError, ItemKey},
    work_queue::{Completed, Enqueued, Failed, Known, LEASE_DATA_BYTES_MAX, QueueBounds, QueueError, Tally, WorkQueue},
};
use ringpost_valkey_server::{Durability, Server};

const LEASE: Duration = Duration::from_secs(60);

fn queue(server: &Server, node: &str) -> ItemQueue {
    queue_by(server, Scripts::shipped(), node)
}

fn queue_by(server: &Server, scripts: &'static Scripts, node: &str) -> ItemQueue {
    queue_with(server, scripts, node, b"k")
}

fn queue_with(server: &Server, scripts: &'static Scripts, node: &str, key: &[u8]) -> ItemQueue {
    let valkey = Valkey::with_scripts(Target::parse(&server.url(), None, None).unwrap(), scripts, Duration::from_secs(2));
    let bounds = QueueBounds { partitions: 8, capacity: 1000, dead_max: 100 };
    let me = Incarnation::new(node.parse().unwrap(), 7);
    ItemQueue::new(WorkQueue::new(valkey, Keyspace::new("ringpost:test").unwrap(), "report", bounds, ItemKey::new(key), me).unwrap())
}

/// A queue whose owner asks for no outcome, and for which nobody calls `recover`, took nothing more once it had completed as many items as it has places.
#[test]
fn outcomes_that_nobody_asks_for_take_half_of_a_queue_at_most() {
    let server = Server::start(Durability::None);
    let valkey = Valkey::with_scripts(Target::parse(&server.url(), None, None).unwrap(), Scripts::shipped(), Duration::from_secs(2));
    let (bounds, me) = (QueueBounds { partitions: 1, capacity: 10, dead_max: 10 }, Incarnation::new("n1".parse().unwrap(), 7));
    let queue = WorkQueue::new(valkey, Keyspace::new("ringpost:test").unwrap(), "report", bounds, ItemKey::new(b"k"), me).unwrap();
    let queue = ItemQueue::new(queue);
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
        for number in 0..40 {
            assert_eq!(queue.enqueue(&[Work::new(format!("w{number}"), "x")]).await.unwrap(), [Enqueued::Added], "{number}");
            let item = queue.dequeue(1, LEASE).await.unwrap().remove(0);
            assert_eq!(queue.complete(&item, "done").await.unwrap(), Completed::Done);
        }
        // What waits keeps its place.
        let work: Vec<Work> = (100..120).map(|number| Work::new(format!("w{number}"), "x")).collect();
        let answers = queue.enqueue(&work).await.unwrap();
        assert_eq!(answers.iter().filter(|answer| **answer == Enqueued::Added).count(), 5);
        assert_eq!(queue.enqueue(&work[..1]).await.unwrap(), [Enqueued::Present]);
    });
}

/// Where one had found no room all of its call were sent once more, and one of them that was done and forgotten meanwhile was there a second time.
#[test]
fn what_found_room_is_not_sent_again_with_what_found_none() {
    let server = Server::start(Durability::None);
    // Says how many items each call had.
    let counting = |name: &str, source: &str| match name {
        "queue_enqueue" => source.replacen("local items =", "redis.call('RPUSH', 'counts', (#ARGV - 3) / 7)\nlocal items =", 1),
        _ => source.to_owned(),
    };
    let scripts: &'static Scripts = Box::leak(Box::new(Scripts::changed(counting)));
    let valkey = Valkey::with_scripts(Target::parse(&server.url(), None, None).unwrap(), scripts, Duration::from_secs(2));
    let (bounds, me) = (QueueBounds { partitions: 1, capacity: 3, dead_max: 10 }, Incarnation::new("n1".parse().unwrap(), 7));
    let queue = WorkQueue::new(valkey, Keyspace::new("ringpost:test").unwrap(), "report", bounds, ItemKey::new(b"k"), me).unwrap();
    let queue = ItemQueue::new(queue);
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
        // Of three places outcomes that nobody asks for keep one.
        for number in 0..2 {
            assert_eq!(queue.enqueue(&[Work::new(format!("w{number}"), "x")]).await.unwrap(), [Enqueued::Added]);
            let item = queue.dequeue(1, LEASE).await.unwrap().remove(0);
            assert_eq!(queue.complete(&item, "done").await.unwrap(), Completed::Done);
        }
        let work: Vec<Work> = ["a", "w1", "b", "c"].map(|id| Work::new(id, "x")).into();
        let answers = queue.enqueue(&work).await.unwrap();
        assert_eq!(answers, [Enqueued::Added, Enqueued::Completed, Enqueued::Added, Enqueued::Full]);
        let counts = server.command("LRANGE counts 0 -1").replace("\r\n", " ");
        assert!(counts.ends_with("$1 1 $1 1 $1 4 $1 2 "), "{counts}");
    });
}

#[test]
fn work_is_enqueued_leased_and_ended_by_its_id() {
    let server = Server::start(Durability::None);
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
        let (owner, worker) = (queue(&server, "n1"), queue(&server, "n2"));
        let work: Vec<Work> = (0..100).map(|number| Work::new(format!("w{number}"), format!("data {number}"))).collect();
        assert_eq!(owner.enqueue(&work).await.unwrap(), [Enqueued::Added; 100]);
        assert_eq!(owner.enqueue(&work[..3]).await.unwrap(), [Enqueued::Present; 3], "twice is once");
        let items = worker.dequeue(100, LEASE).await.unwrap();
        assert_eq!(items.len(), 100);
        let stats = worker.stats().await.unwrap();
        assert_eq!((stats.pending, stats.processing, stats.failed, stats.total), (0, 100, 0, 100));
        let item = items.iter().find(|item| item.id == "w7").unwrap();
        assert_eq!((item.kind.as_str(), item.data.as_slice(), item.owner.as_str()), ("report", &b"data 7"[..], "n1"));
        assert_eq!((item.attempts, item.max_attempts, item.priority), (1, 3, 5));
        assert!(item.lease_expiry - item.created_at >= 60_000);
        owner.enqueue(&[Work::new("long", "x")]).await.unwrap();
        let long = worker.dequeue(1, Duration::from_secs(3600)).await.unwrap().remove(0);
        let leased_at = long.lease_expiry - 300_000;
        assert!((long.created_at..long.created_at + 60_000).contains(&leased_at), "five minutes at most, as it is kept");
        assert_eq!(worker.complete(&long, "done").await.unwrap(), Completed::Done);

        assert_eq!(worker.complete(item, "done").await.unwrap(), Completed::Done);
        assert_eq!(worker.complete(item, "done").await.unwrap(), Completed::DoneBefore);
        assert_eq!(owner.settle(&["w7", "w8"]).await, [Ok(Known::Completed("done".to_owned())), Ok(Known::Leased)]);
        assert_eq!(owner.settle(&["w7"]).await, [Ok(Known::Unknown)], "forgotten with the answer");

        let item = items.iter().find(|item| item.id == "w8").unwrap();
        assert!(worker.extend_lease(&item.id, &item.token, LEASE).await.unwrap());
        assert_eq!(worker.fail(item, true, Duration::ZERO, "not now").await.unwrap(), Failed::Waits);
        assert!(!worker.extend_lease(&item.id, &item.token, LEASE).await.unwrap(), "not this worker's any more");
        assert_eq!(item.scheduled_at, item.created_at, "nothing had it wait");
        let item = items.iter().find(|item| item.id == "w9").unwrap();
        assert_eq!(worker.fail(item, false, Duration::ZERO, "never").await.unwrap(), Failed::Dead);
        assert_eq!(worker.stats().await.unwrap().failed, 1);

        // A worker that is gone: what it had comes again once somebody has swept.
        let item = items.iter().find(|item| item.id == "w10").unwrap();
        assert!(worker.extend_lease(&item.id, &item.token, Duration::from_millis(1)).await.unwrap());
        let began = Instant::now();
        while owner.recover_expired_leases().await.unwrap().count == 0 {
            assert!(began.elapsed() < Duration::from_secs(20), "its lease does not end");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let mut again: Vec<String> = worker.dequeue(10, LEASE).await.unwrap().into_iter().map(|item| item.id).collect();
        again.sort_unstable();
        assert_eq!(again, ["w10", "w8"]);
    });
}

/// Each lease by a worker with another key counted, and its giving back was a failure: three looks of a stranger made dead letters of work that nobody who
/// could do it had seen.
#[test]
fn work_that_a_worker_with_another_key_has_leased_has_all_its_attempts_and_its_owner_hears_of_damage() {
    let server = Server::start(Durability::None);
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
        let (owner, stranger) = (queue(&server, "n1"), queue_with(&server, Scripts::shipped(), "n2", b"another"));
        owner.enqueue(&[Work { max_attempts: 1, ..Work::new("w", "x") }]).await.unwrap();
        let keys = Keyspace::new("ringpost:test").unwrap().queue("report", owner.queue().partition("w"));
        // What waits for a minute is due at once.
        let is_due = || assert!(server.command(&format!("ZADD {} XX 1 w", keys[2])).starts_with(":0"));
        for look in 0..5 {
            let (items, unread) = stranger.dequeue_and_unread(9, LEASE).await.unwrap();
            assert_eq!((items.len(), unread.len()), (0, 1), "look {look}");
            is_due();
        }
        assert_eq!(owner.stats().await.unwrap().failed, 0);
        assert_eq!(owner.settle(&["w"]).await, [Ok(Known::Waiting)], "the key of who could not read it is another");
        let item = owner.dequeue(1, LEASE).await.unwrap().remove(0);
        assert_eq!((item.attempts, item.max_attempts), (1, 1));
        assert_eq!(owner.fail(&item, true, Duration::ZERO, "not now").await.unwrap(), Failed::Dead, "its own worker's failures count");

        // Changed in the queue it is nobody's to do: its owner hears that by its own key.
        owner.enqueue(&[Work::new("damaged", "x")]).await.unwrap();
        let keys = Keyspace::new("ringpost:test").unwrap().queue("report", owner.queue().partition("damaged"));
        let flip = "local body = redis.call('HGET', KEYS[1], 'damaged') redis.call('HSET', KEYS[1], 'damaged', string.sub(body, 1, -2) .. string.char((string.byte(body, -1) + 1) % 256))";
        assert!(server.command(&format!("EVAL \"{flip}\" 1 {}", keys[8])).starts_with('$'));
        let (items, unread) = owner.dequeue_and_unread(9, LEASE).await.unwrap();
        assert_eq!((items, unread), (Vec::new(), vec![Unread { reason: ItemError::NotOurs, first: "damaged".to_owned(), count: 1 }]));
        assert_eq!(owner.settle(&["damaged"]).await, [Ok(Known::Unreadable)]);
    });
}

/// What was signed with a key that nobody has any more, or was damaged, went round for ever: it was no dead letter, and no command took it out.
#[test]
fn work_that_nobody_could_read_for_five_days_dies_by_counted_attempts_and_its_clock_begins_anew_with_who_could() {
    let server = Server::start(Durability::None);
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
        let (owner, stranger) = (queue(&server, "n1"), queue_with(&server, Scripts::shipped(), "n2", b"another"));
        let keys = Keyspace::new("ringpost:test").unwrap().queue("report", owner.queue().partition("w"));
        owner.enqueue(&[Work { max_attempts: 2, ..Work::new("w", "x") }]).await.unwrap();
        let look = async || {
            assert_eq!(stranger.dequeue_and_unread(9, LEASE).await.unwrap().1.len(), 1);
            // What waits for a minute is due at once.
            server.command(&format!("ZADD {} XX 1 w", keys[2]));
        };
        let attempts = |metas: &str| {
            let script = "return cmsgpack.unpack(redis.call('HGET', KEYS[1], 'w'))[3]";
            server.command(&format!("EVAL \"{script}\" 1 {metas}"))
        };
        // So many days pass.
        let age = |days: f64| {
            let script = "local meta = cmsgpack.unpack(redis.call('HGET', KEYS[1], 'w')) if not meta[16] then return 0 end \
                          meta[16] = meta[16] - ARGV[1] redis.call('HSET', KEYS[1], 'w', cmsgpack.pack(meta)) return 1";
            let ms = days * 24.0 * 3600.0 * 1000.0;
            server.command(&format!("EVAL \"{script}\" 1 {} {ms:.0}", keys[7])).trim() == ":1"
        };
        assert!(!age(9.0), "of one that was never leased nobody knows who can read it");
        look().await;
        assert!(age(4.9));
        look().await;
        assert_eq!(attempts(&keys[7]).trim(), ":0", "not for so long");

        let item = owner.dequeue(1, LEASE).await.unwrap().remove(0);
        assert_eq!(owner.fail(&item, true, Duration::ZERO, "not now").await.unwrap(), Failed::Waits);
        assert!(!age(9.0), "it was read");
        look().await;
        assert!(age(4.9));
        let item = owner.dequeue(1, LEASE).await.unwrap().remove(0);
        assert!(owner.extend_lease(&item.id, &item.token, Duration::ZERO).await.unwrap());
        while owner.recover_expired_leases().await.unwrap().count == 0 {}
        assert!(!age(9.0), "whoever went away with it may have read it");
        assert_eq!(owner.queue().requeue(owner.queue().partition("w"), &["w"]).await.unwrap(), 1);

        look().await;
        assert!(age(5.0));
        look().await;
        assert_eq!((attempts(&keys[7]).trim(), owner.stats().await.unwrap().failed), (":1", 0), "the first that counts");
        look().await;
        let (letters, _) = owner.queue().dead_letters(9).await.unwrap();
        assert_eq!((letters.len(), letters[0].attempts), (1, 2));
        assert!(letters[0].reason.contains("not signed with this cluster's key"), "{}", letters[0].reason);

        // With its key back it is work as before.
        assert_eq!(owner.queue().requeue_all(&["w".to_owned()]).await.unwrap().count, 1);
        look().await;
        assert_eq!(attempts(&keys[7]).trim(), ":0", "five days anew");
        assert_eq!(owner.dequeue(1, LEASE).await.unwrap().len(), 1);
    });
}

#[test]
fn what_nobody_can_read_is_purged_by_its_name_and_work_that_waits_is_not() {
    let server = Server::start(Durability::None);
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
        let (owner, stranger) = (queue(&server, "n1"), queue_with(&server, Scripts::shipped(), "n2", b"another"));
        owner.enqueue(&["unread", "waits", "leased", "dead"].map(|id| Work::new(id, "x"))).await.unwrap();
        let mut items = owner.dequeue(9, LEASE).await.unwrap();
        let mut end = async |id: &str, retry: bool| {
            let item = items.remove(items.iter().position(|item| item.id == id).unwrap());
            owner.fail(&item, retry, Duration::ZERO, "x").await.unwrap()
        };
        assert_eq!((end("dead", false).await, end("unread", true).await), (Failed::Dead, Failed::Waits));
        assert_eq!(stranger.dequeue_and_unread(9, LEASE).await.unwrap().1[0].first, "unread");
        assert_eq!(end("waits", true).await, Failed::Waits);
        let named = ["unread", "waits", "leased", "dead", "none"].map(str::to_owned);
        let none = Tally { count: 0, unread: 0, unanswered: Vec::new() };
        assert_eq!(owner.queue().requeue_all(&named[..3]).await.unwrap(), none);
        let purged = owner.queue().purge_all(&named).await.unwrap();
        assert_eq!(purged, Tally { count: 2, unread: 1, ..none.clone() });
        assert_eq!(owner.queue().purge_all(&named).await.unwrap(), none);
        let known = owner.settle(&["unread", "waits", "leased", "dead"]).await;
        assert_eq!(known, [Ok(Known::Unknown), Ok(Known::Waiting), Ok(Known::Leased), Ok(Known::Unknown)]);
        let stats = owner.stats().await.unwrap();
        assert_eq!((stats.pending, stats.scheduled, stats.processing, stats.failed, stats.total), (1, 1, 1, 0, 2));
        assert_eq!(owner.enqueue(&[Work::new("unread", "x")]).await.unwrap(), [Enqueued::Added], "its place is free");
    });
}

/// With the first id that could not be asked for the answers about those before it were lost, which were forgotten in the queue by then: nobody knew what
/// had become of them.
#[test]
fn an_id_that_cannot_be_asked_for_costs_no_other_its_answer() {
    const AWAY: u16 = 2;
    let server = Server::start(Durability::None);
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
        let scripts = Scripts::changed(|name, source| if name == "queue_quarantine" { "return {}" } else { source }.to_owned());
        let queue = queue_by(&server, Box::leak(Box::new(scripts)), "n1");
        let part = |id: &String| queue.queue().partition(id);
        let mut ids: Vec<String> = (0..20).map(|number| format!("{number}-report")).collect();
        ids.sort_by_key(|id| part(id) == AWAY);
        let there = ids.iter().filter(|id| part(id) != AWAY).count();
        assert!((1..20).contains(&there));
        queue.enqueue(&ids.iter().map(|id| Work::new(id.clone(), "x")).collect::<Vec<_>>()).await.unwrap();
        for item in queue.dequeue(20, LEASE).await.unwrap() {
            assert_eq!(queue.complete(&item, "done").await.unwrap(), Completed::Done);
        }
        let outcomes = &Keyspace::new("ringpost:test").unwrap().queue("report", AWAY)[11];
        assert!(server.command(&format!("RENAME {outcomes} aside")).starts_with("+OK"));
        assert!(server.command(&format!("SET {outcomes} x")).starts_with("+OK"));
        let asked: Vec<&str> = [vec!["a b"], ids.iter().map(String::as_str).collect()].concat();
        let answers = queue.settle(&asked).await;
        assert!(matches!(&answers[0], Err(QueueError::Item(ItemError::Id(_)))), "{:?}", answers[0]);
        let done = || Ok(Known::Completed("done".to_owned()));
        assert!(answers[1..=there].iter().all(|answer| *answer == done()), "{answers:?}");
        assert!(answers[1 + there..].iter().all(|answer| matches!(answer, Err(QueueError::Valkey(_)))), "{answers:?}");
        assert!(server.command(&format!("RENAME aside {outcomes}")).starts_with("+OK"));
        let again = queue.settle(&asked[1..]).await;
        assert!(again[..there].iter().all(|answer| *answer == Ok(Known::Unknown)), "forgotten with the answer: {again:?}");
        assert!(again[there..].iter().all(|answer| *answer == done()), "{again:?}");
    });
}

/// An outcome that could not be forgotten was not told either.
#[test]
fn what_was_done_is_told_though_it_cannot_be_forgotten_and_told_again() {
    let server = Server::start(Durability::None);
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
        let refusing =
            |name: &str, source: &str| if name == "queue_settled" { "return redis.error_reply('ERR not now')" } else { source }.to_owned();
        let refused = queue_by(&server, Box::leak(Box::new(Scripts::changed(refusing))), "n1");
        refused.enqueue(&[Work::new("w", "x")]).await.unwrap();
        let item = refused.dequeue(1, LEASE).await.unwrap().remove(0);
        assert_eq!(refused.complete(&item, "done").await.unwrap(), Completed::Done);
        let done = [Ok(Known::Completed("done".to_owned()))];
        assert_eq!(refused.settle(&["w"]).await, done);
        let queue = queue(&server, "n1");
        assert_eq!(queue.settle(&["w"]).await, done);
        assert_eq!(queue.settle(&["w"]).await, [Ok(Known::Unknown)]);
    });
}

/// A worker with another key got nothing and was told nothing, as of an empty queue.
#[test]
fn what_a_worker_with_another_key_has_leased_is_told_with_its_number() {
    let server = Server::start(Durability::None);
    let (owner, stranger) = (queue(&server, "n1"), queue_with(&server, Scripts::shipped(), "n2", b"another"));
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
        let work: Vec<Work> = (0..20).map(|number| Work::new(format!("w{number}"), "x")).collect();
        owner.enqueue(&work).await.unwrap();
        let told = stranger.dequeue_and_unread(100, LEASE).await.unwrap();
        let (items, [Unread { reason: ItemError::NotOurs, first, count: 20 }]) = (told.0, &told.1[..]) else { panic!("{:?}", told.1) };
        assert!(items.is_empty() && work.iter().any(|work| work.id == *first), "{first}");
        // All wait for a minute now.
        assert_eq!(stranger.dequeue_and_unread(100, LEASE).await.unwrap(), (Vec::new(), Vec::new()));
    });
}

/// What failed was leased again at once where nothing was said of a delay, three times within moments, and was a dead letter.
#[test]
fn what_failed_waits_for_longer_with_each_attempt_and_not_together() {
    const ITEMS: usize = 40;
    let server = Server::start(Durability::None);
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
        let queue = queue(&server, "n1");
        let work: Vec<Work> = (0..ITEMS).map(|number| Work { max_attempts: 10, ..Work::new(format!("w{number}"), "x") }).collect();
        queue.enqueue(&work).await.unwrap();
        let keys = |id: &str| Keyspace::new("ringpost:test").unwrap().queue("report", queue.queue().partition(id));
        let now_ms = || {
            let time = server.command("TIME");
            let numbers: Vec<u64> = time.split("\r\n").filter_map(|line| line.parse().ok()).collect();
            numbers[0] * 1000 + numbers[1] / 1000
        };
        // 30 s, and 2^7 times as much is more than the cap.
        for (attempt, bound_ms) in
            [(1, 30_000), (2, 60_000), (3, 120_000), (4, 240_000), (5, 480_000), (6, 960_000), (7, 1_920_000), (8, 3_600_000)]
        {
            let mut longest = 0;
            let items = queue.dequeue(ITEMS, LEASE).await.unwrap();
            assert_eq!(items.len(), ITEMS, "{attempt}");
            for item in items {
                assert_eq!(item.attempts, attempt);
                let before = now_ms();
                assert_eq!(queue.back_off(&item.id, &item.token, "not now").await.unwrap(), Failed::Waits);
                let after = now_ms();
                let scheduled = &keys(&item.id)[2];
                let score = server.command(&format!("ZSCORE {scheduled} {}", item.id));
                let due: u64 = score.split("\r\n").nth(1).unwrap().parse().unwrap();
                assert!((before..=after + bound_ms).contains(&due), "attempt {attempt}: {due} is not within {bound_ms} ms of {before}");
                longest = longest.max(due - before);
                assert!(server.command(&format!("ZADD {scheduled} XX 1 {}", item.id)).starts_with(":0"));
            }
            // By chance: of 40 all below half come once in a million millions.
            assert!(longest > bound_ms / 2, "attempt {attempt}: {longest} of {bound_ms} ms at most");
        }
    });
}

/// What a worker that died had leased came to nobody, for ever, unless somebody knew that leases are to be taken back and did so.
#[test]
fn what_a_dead_worker_had_comes_to_whoever_leases_next() {
    const ITEMS: usize = 100;
    let server = Server::start(Durability::None);
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
        let (owner, dead, worker) = (queue(&server, "n1"), queue(&server, "n2"), queue(&server, "n3"));
        let work: Vec<Work> = (0..ITEMS).map(|number| Work { max_attempts: 2, ..Work::new(format!("w{number}"), "x") }).collect();
        owner.enqueue(&work).await.unwrap();
        let lost = dead.dequeue(ITEMS, LEASE).await.unwrap();
        assert_eq!(lost.len(), ITEMS);
        assert_eq!(worker.dequeue(ITEMS, LEASE).await.unwrap(), [], "what runs is nobody else's");
        for item in &lost {
            assert!(dead.extend_lease(&item.id, &item.token, Duration::ZERO).await.unwrap());
        }
        let began = Instant::now();
        let mut again = Vec::new();
        while again.len() < ITEMS {
            again.extend(worker.dequeue(ITEMS, LEASE).await.unwrap());
            assert!(began.elapsed() < Duration::from_secs(20), "{} of {ITEMS} come", again.len());
        }
        assert!(again.iter().all(|item| item.attempts == 2), "each lease counts");
        // With its attempts used up it is a dead letter, as by anybody's taking back.
        assert!(owner.extend_lease(&again[0].id, &again[0].token, Duration::ZERO).await.unwrap());
        while owner.stats().await.unwrap().failed == 0 {
            assert_eq!(worker.dequeue(1, LEASE).await.unwrap(), []);
            assert!(began.elapsed() < Duration::from_secs(20), "it does not die");
        }
    });
}

#[test]
fn what_is_no_id_or_too_much_is_refused_before_anything_is_added() {
    let server = Server::start(Durability::None);
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
        let owner = queue(&server, "n1");
        for wrong in [Work::new("a b", "x"), Work::new("", "x"), Work::new("large", vec![0; 4 * 1024 * 1024 + 1])] {
            assert!(matches!(owner.enqueue(&[wrong]).await, Err(QueueError::Item(ItemError::Id(_) | ItemError::TooLarge(_)))));
        }
        assert!(matches!(owner.complete_by("a b", "t", "").await, Err(QueueError::Item(ItemError::Id(_)))));
        assert_eq!(owner.stats().await.unwrap().total, 0);
    });
}

/// Data that is much the same all through has hardly any length in Valkey: a lease of many such items took as much memory as they have unpacked.
#[test]
fn a_lease_of_large_items_has_a_bound() {
    const ITEMS: usize = 40;
    let server = Server::start(Durability::None);
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
        let (owner, worker) = (queue(&server, "n1"), queue(&server, "n2"));
        for number in 0..ITEMS {
            let data = vec![0; if number == 7 { WORK_BYTES_MAX } else { 1024 * 1024 }];
            assert_eq!(owner.enqueue(&[Work::new(format!("large{number}"), data)]).await.unwrap(), [Enqueued::Added]);
        }
        let (mut leased, mut calls) = (0, 0);
        while leased < ITEMS {
            let items = worker.dequeue(ITEMS, LEASE).await.unwrap();
            let bytes: usize = items.iter().map(|item| item.data.len()).sum();
            assert!((1..=2 * DEQUEUE_BYTES_MAX).contains(&bytes), "{bytes} bytes in one call");
            (leased, calls) = (leased + items.len(), calls + 1);
        }
        assert!(calls > 2);

        // Of one partition as well.
        let one = worker.queue().clone();
        let ids = (0..).map(|number| format!("{number}-one")).filter(|id| one.partition(id) == 0).take(20);
        let work: Vec<Work> = ids.map(|id| Work::new(id, vec![0; 1024 * 1024])).collect();
        owner.enqueue(&work).await.unwrap();
        let counts = [one.lease(0, 64, 1000, 60_000, 1 << 20), one.lease(0, 64, 1000, 60_000, 1 << 20)];
        for lease in counts {
            assert_eq!(lease.await.unwrap().1.len() * 1024 * 1024, LEASE_DATA_BYTES_MAX);
        }
    });
}

/// An item did not say when it was due.
#[test]
fn an_item_says_when_it_was_due_last() {
    let server = Server::start(Durability::None);
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
        let queue = queue(&server, "n1");
        let next = async || {
            let began = Instant::now();
            loop {
                if let Some(item) = queue.dequeue(1, LEASE).await.unwrap().pop() {
                    return item;
                }
                assert!(began.elapsed() < Duration::from_secs(20), "it does not come");
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        let delay = Duration::from_millis(20);
        queue.enqueue(&[Work { delay, ..Work::new("w", "x") }]).await.unwrap();
        let first = next().await;
        assert_eq!(first.scheduled_at, first.created_at + 20);
        let leased_at = first.lease_expiry - 60_000;
        queue.fail(&first, true, delay, "not now").await.unwrap();
        let again = next().await;
        assert!((leased_at + 20..=again.lease_expiry - 60_000).contains(&again.scheduled_at), "{again:?}");
        assert!(queue.extend_lease(&again.id, &again.token, Duration::ZERO).await.unwrap());
        while queue.recover_expired_leases().await.unwrap().count == 0 {}
        let last = next().await;
        assert!((again.scheduled_at..=last.lease_expiry - 60_000).contains(&last.scheduled_at), "{last:?}");
        queue.fail(&last, false, delay, "never").await.unwrap();
        assert_eq!(queue.queue().requeue(queue.queue().partition("w"), &["w"]).await.unwrap(), 1);
        assert!(next().await.scheduled_at >= last.scheduled_at);
    });
}

/// One that was to live for longer than numbers go was in the way of all others: no lease of its partition was answered.
#[test]
fn a_time_that_is_longer_than_numbers_go_is_a_long_one() {
    let server = Server::start(Durability::None);
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
        let queue = queue(&server, "n1");
        queue.enqueue(&[Work { expires_in: Duration::MAX, ..Work::new("w", "x") }]).await.unwrap();
        let item = queue.dequeue(1, LEASE).await.unwrap().remove(0);
        assert_eq!(queue.fail(&item, true, Duration::MAX, "never").await.unwrap(), Failed::Waits);
        assert_eq!(queue.stats().await.unwrap().scheduled, 1);
    });
}

/// The counts went no further than the first partition that failed: with one damaged, or its server away, there were none.
#[test]
fn a_partition_that_does_not_answer_is_named_and_hides_no_other() {
    let server = Server::start(Durability::None);
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
        // A key that is damaged is put aside, unless Valkey's rights forbid it.
        let scripts = Scripts::changed(|name, source| if name == "queue_quarantine" { "return {}" } else { source }.to_owned());
        let owner = queue_by(&server, Box::leak(Box::new(scripts)), "n1");
        let work: Vec<Work> = (0..100).map(|number| Work::new(format!("{number}-report"), "x")).collect();
        owner.enqueue(&work).await.unwrap();
        let damage = |partition: u16| {
            let ready = &Keyspace::new("ringpost:test").unwrap().queue("report", partition)[0];
            assert!(server.command(&format!("SET {ready} x")).starts_with("+OK"));
        };
        damage(2);
        let hidden = work.iter().filter(|work| owner.queue().partition(&work.id) == 2).count() as u64;
        assert!(hidden > 0);
        let stats = owner.stats().await.unwrap();
        assert_eq!((stats.unanswered, stats.pending, stats.total), (vec![2], 100 - hidden, 100 - hidden));
        assert_eq!(stats.counters["enqueued"], 100 - hidden, "nothing of half a partition");
        (0..8).for_each(damage);
        assert!(matches!(owner.stats().await, Err(QueueError::Valkey(_))));
    });
}

/// With one partition away a lease failed as a whole, and what it had of the others was dropped with its attempt: three such calls, and work that nobody had
/// seen was a dead letter. What took leases back, or saw to dead letters, stopped there, and did not say what it had done.
#[test]
fn with_a_partition_that_does_not_answer_the_others_are_leased_recovered_and_seen_to() {
    const AWAY: u16 = 2;
    let server = Server::start(Durability::None);
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
        let scripts = Scripts::changed(|name, source| if name == "queue_quarantine" { "return {}" } else { source }.to_owned());
        let scripts: &'static Scripts = Box::leak(Box::new(scripts));
        let owner = queue_by(&server, scripts, "n1");
        let work: Vec<Work> = (0..100).map(|number| Work { max_attempts: 1, ..Work::new(format!("{number}-report"), "x") }).collect();
        owner.enqueue(&work).await.unwrap();
        let damage = |partition: u16| {
            let keys = Keyspace::new("ringpost:test").unwrap().queue("report", partition);
            // What is ready, and the dead.
            [0, 6].iter().for_each(|key| assert!(server.command(&format!("SET {} x", keys[*key])).starts_with("+OK")));
        };
        damage(AWAY);
        let there = work.iter().filter(|work| owner.queue().partition(&work.id) != AWAY).count();
        assert!(there < 100);
        // As the command does: a queue of its own for each call.
        let mut leased = Vec::new();
        while leased.len() < there {
            match queue_by(&server, scripts, "n2").dequeue(1, LEASE).await {
                Ok(items) if !items.is_empty() => leased.extend(items),
                other => panic!("{} of {there} are leased: {other:?}", leased.len()),
            }
        }
        let first = owner.queue().partition(&leased[0].id);
        assert!(leased[..12].iter().any(|item| owner.queue().partition(&item.id) != first), "each has its turn");
        assert!(leased.iter().all(|item| item.attempts == 1), "none was leased for nothing");
        assert!(matches!(owner.dequeue(1, LEASE).await, Err(QueueError::Valkey(_))), "what is there nobody knows");

        for item in &leased {
            assert!(owner.extend_lease(&item.id, &item.token, Duration::ZERO).await.unwrap());
        }
        let (began, mut recovered) = (Instant::now(), 0);
        while recovered < there as u64 {
            let swept = owner.recover_expired_leases().await.unwrap();
            assert_eq!(swept.unanswered, [AWAY]);
            recovered += swept.count;
            assert!(began.elapsed() < Duration::from_secs(20), "{recovered} of {there} are recovered");
        }
        // Each had one attempt.
        let queue = owner.queue();
        let (letters, unanswered) = queue.dead_letters(1000).await.unwrap();
        assert_eq!((letters.len(), unanswered), (there, vec![AWAY]));
        assert_eq!(queue.dead_letters(3).await.unwrap().0.len(), 3);
        let named: Vec<String> = work[..10].iter().map(|work| work.id.clone()).collect();
        let named_there = named.iter().filter(|id| queue.partition(id) != AWAY).count();
        assert_eq!(queue.requeue_all(&named).await.unwrap().count, named_there as u64);
        let rest = Tally { count: (there - named_there) as u64, unread: 0, unanswered: vec![AWAY] };
        assert_eq!(queue.purge_all(&[]).await.unwrap(), rest);
        (0..8).for_each(damage);
        assert!(queue.requeue_all(&[]).await.is_err() && queue.purge_all(&named).await.is_err());
        assert!(queue.dead_letters(9).await.is_err() && owner.recover_expired_leases().await.is_err());
    });
}

/// In another partition than its id's nobody would find it: neither the owner that asks for it nor the worker that completes it.
#[test]
#[should_panic(expected = "an item is of its id's partition")]
fn an_item_goes_to_no_other_partition_than_its_ids() {
    let server = Server::start(Durability::None);
    let queue = queue(&server, "n1").queue().clone();
    let item = ringpost_cluster::work_item::NewItem {
        id: "w1".to_owned(),
        owner: "n1".parse().unwrap(),
        priority: 5,
        max_attempts: 3,
        delay_ms: 0,
        expires_in_ms: 0,
        data: Vec::new(),
    };
    let other = (queue.partition("w1") + 1) % 8;
    let _ = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(queue.enqueue(other, &[item]));
}
