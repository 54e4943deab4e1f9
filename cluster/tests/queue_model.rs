//! The work queue's scripts on a real Valkey, beside a model: random operations, crashed workers, stale tokens, lost data.
//!
//! `RINGPOST_OPERATIONS=1000000 cargo test --profile fast -p ringpost-cluster --test queue_model -- --nocapture` is the long run.

#[path = "work_queue/fixture.rs"]
mod fixture;
#[path = "queue_model/model.rs"]
mod model;

use std::time::Duration;

use fixture::{keyspace, on_server, target};
use model::{Fault, check};
use ringpost_cluster::{
    script::Scripts,
    valkey::Valkey,
    work_item::NewItem,
    work_queue::{Completed, Ending, Enqueued, Failed, Known, Purged, QueueBounds, Retry, Swept, WorkQueue},
};
use ringpost_valkey_server::{Durability, Server};

fn operations(default: u64) -> u64 {
    std::env::var("RINGPOST_OPERATIONS").ok().map_or(default, |text| text.parse().expect("RINGPOST_OPERATIONS is a number"))
}

fn run(durability: Durability, fault: Fault, operations: u64, scripts: &'static Scripts, seed: u64) -> Result<model::Report, String> {
    let mut server = Server::start(durability);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(check(&mut server, scripts, seed, operations, fault))
}

#[test]
fn the_queue_does_what_its_model_does() {
    let report = run(Durability::None, Fault::None, operations(20_000), Scripts::shipped(), 1).unwrap();
    println!("{report:?}");
    assert!(report.stale_refused > 100 && report.died > 10 && report.recovered > 100 && report.settled > 1000, "{report:?}");
}

#[test]
fn a_killed_server_with_a_log_loses_nothing() {
    // A sync for each operation takes some ten times as long as the operation.
    for (durability, operations) in [(Durability::EverySecond, operations(4_000)), (Durability::Always, operations(10_000) / 10)] {
        let report = run(durability, Fault::Kill, operations, Scripts::shipped(), 2).unwrap();
        println!("{durability:?}, {} kills in {} operations: {report:?}", report.faults, report.operations);
        assert!(report.operations == operations && report.faults >= (operations / 20_000).max(8), "{report:?}");
    }
}

#[test]
fn what_valkey_forgot_is_offered_again() {
    for fault in [Fault::KillForgets, Fault::Flush] {
        let report = run(Durability::None, fault, operations(5_000), Scripts::shipped(), 3).unwrap();
        println!("{fault:?}: {report:?}");
        assert!(report.faults >= (report.operations / 20_000).max(8) && report.offered_again > 0, "{report:?}");
    }
}

const BOUNDS: QueueBounds = QueueBounds { partitions: 1, capacity: 100, dead_max: 10 };

fn item(id: &str) -> NewItem {
    fixture::item(id, "n2")
}

/// After an outage an owner could not take back what a worker had leased long ago, until somebody swept that lease; the worker completed it
/// meanwhile.
#[test]
fn a_lease_that_is_over_does_not_keep_an_item_from_its_owner() {
    on_server(async |server| {
        let queue = queue(server, Scripts::shipped());
        queue.enqueue(0, &[item("over"), item("held")]).await.unwrap();
        let (_, over) = queue.lease(0, 1, 1000, 1, 1000).await.unwrap();
        let (_, held) = queue.lease(0, 1, 1000, 60_000, 1000).await.unwrap();
        assert_eq!([&*over[0].id, &*held[0].id], ["over", "held"]);
        // Its lease lasts for a millisecond of the server's clock, which is that of this machine.
        let began = std::time::Instant::now();
        let mut out = vec![false];
        while out != [true] && began.elapsed() < Duration::from_secs(5) {
            out = queue.withdraw(0, &["over"]).await.unwrap();
        }
        assert_eq!(out, [true]);
        let (_, late) = queue.complete(0, &[("over", &over[0].token, "n2")]).await.unwrap();
        assert_eq!(late, [Completed::Unproven]);
        assert_eq!(queue.recover(0, 0).await.unwrap(), Swept::default(), "nothing of the lease is left");
        assert_eq!(queue.withdraw(0, &["held"]).await.unwrap(), [false]);
        let (_, done) = queue.complete(0, &[("held", &held[0].token, "n2")]).await.unwrap();
        assert_eq!(done, [Completed::Done]);
        assert_eq!(queue.stats().await.unwrap().processing, 0);
    });
}

/// A worker that was down for longer than an owner remembers what it has settled was told that nobody knew the item, and delivered its copy
/// although another had.
#[test]
fn a_worker_that_comes_back_late_hears_whose_the_item_is() {
    on_server(async |server| {
        let queue = queue(server, Scripts::shipped());
        let lease = async |lease_ms| queue.lease(0, 1, 1000, lease_ms, 1000).await.unwrap().1.remove(0).token;
        let complete = async |id: &str, token: &str| queue.complete(0, &[(id, token, "n3 0001")]).await.unwrap().1.remove(0);
        let sweep = async || while queue.recover(0, 0).await.unwrap().waiting == 0 {};
        queue.enqueue(0, &[item("delivered")]).await.unwrap();
        let left = lease(1).await;
        sweep().await;
        let another = lease(60_000).await;
        assert_eq!(complete("delivered", &another).await, Completed::Done);
        assert_eq!(queue.settled(0, &["delivered"]).await.unwrap(), 1);
        assert_eq!(complete("delivered", &left).await, Completed::Stale);
        assert_eq!(complete("delivered", &another).await, Completed::DoneBefore);

        // Its owner delivered the next one itself.
        queue.enqueue(0, &[item("taken-back")]).await.unwrap();
        let left = lease(1).await;
        sweep().await;
        assert_eq!(queue.withdraw(0, &["taken-back"]).await.unwrap(), [true]);
        sign(&queue, "taken-back").await;
        assert_eq!(queue.settled(0, &["taken-back"]).await.unwrap(), 1);
        assert_eq!(complete("taken-back", &left).await, Completed::Stale);
        // Offered once more, it is anybody's; and what becomes of it is remembered for the worker of before, too.
        assert_eq!(queue.enqueue(0, &[item("taken-back")]).await.unwrap().1, [Enqueued::Added]);
        assert_eq!(complete("taken-back", &left).await, Completed::Refused);
        assert_eq!(complete("taken-back", &lease(60_000).await).await, Completed::Done);
        assert_eq!(queue.settled(0, &["taken-back"]).await.unwrap(), 1);
        assert_eq!(complete("taken-back", &left).await, Completed::Stale);

        // Of what nobody was left with nothing is kept.
        queue.enqueue(0, &[item("plain")]).await.unwrap();
        let token = lease(60_000).await;
        assert_eq!(complete("plain", &token).await, Completed::Done);
        assert_eq!(queue.settled(0, &["plain"]).await.unwrap(), 1);
        assert_eq!(complete("plain", &token).await, Completed::Unknown);
    });
}

/// A dead letter was purged, or offered again by its owner, and with it went what was known of workers that it had been left by: one that came for its
/// copy was told, a minute after another had delivered it, that nobody knew it, and delivered it as well.
#[test]
fn what_was_purged_or_is_offered_again_remembers_who_may_come_for_it() {
    on_server(async |server| {
        let queue = queue(server, Scripts::shipped());
        let lease = async |lease_ms| queue.lease(0, 1, 1000, lease_ms, 1000).await.unwrap().1.remove(0).token;
        let complete = async |id: &str, token: &str| queue.complete(0, &[(id, token, "n3 0001")]).await.unwrap().1.remove(0);
        let ends = async |id: &str| {
            let token = lease(60_000).await;
            assert_eq!(complete(id, &token).await, Completed::Done);
            assert_eq!(queue.settled(0, &[id]).await.unwrap(), 1);
        };
        queue.enqueue(0, &[NewItem { max_attempts: 1, ..item("purged") }]).await.unwrap();
        let left = lease(1).await;
        while queue.recover(0, 0).await.unwrap().died == 0 {}
        assert_eq!(queue.purge(0, &["purged"]).await.unwrap(), Purged { letters: 1, unread: 0 });
        assert_eq!(complete("purged", &left).await, Completed::Unproven, "its owner may offer it again");
        assert_eq!(queue.enqueue(0, &[item("purged")]).await.unwrap().1, [Enqueued::Added]);
        ends("purged").await;
        assert_eq!(complete("purged", &left).await, Completed::Stale);

        queue.enqueue(0, &[item("again")]).await.unwrap();
        let left = lease(1).await;
        while queue.recover(0, 0).await.unwrap().waiting == 0 {}
        assert_eq!(queue.withdraw(0, &["again"]).await.unwrap(), [true]);
        assert_eq!(queue.enqueue(0, &[item("again")]).await.unwrap().1, [Enqueued::Added]);
        ends("again").await;
        assert_eq!(complete("again", &left).await, Completed::Stale);
    });
}

/// What its owner has withdrawn it says with its signature as soon as it has read it.
async fn sign(queue: &WorkQueue, id: &str) {
    let known = queue.known(0, &[id]).await.unwrap().1.remove(0);
    let Known::Unsigned(record) = known else { panic!("{known:?}") };
    assert_eq!(queue.refuse(0, &[(id.to_owned(), record)]).await.unwrap(), [true]);
    assert_eq!(queue.known(0, &[id]).await.unwrap().1, [Known::Withdrawn]);
}

/// Whoever could write to Valkey could say that an item was its owner's, and the worker that its owner had believed dropped the last copy. So
/// could a Valkey that went back to when the owner had taken the item back, before it offered it again.
#[test]
fn an_owners_word_is_signed_and_says_nothing_of_what_it_offered_again() {
    let outcomes = keyspace().queue("mail", 0)[11].clone();
    on_server(async |server| {
        let queue = queue(server, Scripts::shipped());
        let valkey = Valkey::new(target(server));
        let complete = async |token: &str| queue.complete(0, &[("a", token, "n3 0001")]).await.unwrap().1.remove(0);
        let lease = async || queue.lease(0, 1, 1000, 60_000, 1000).await.unwrap().1.remove(0).token;
        let write = async |record: &str| drop(valkey.command(redis::cmd("HSET").arg(&outcomes).arg("a").arg(record)).await.unwrap());
        let read = async || {
            let record = valkey.command(redis::cmd("HGET").arg(&outcomes).arg("a")).await.unwrap();
            redis::from_redis_value::<String>(record).unwrap()
        };
        queue.enqueue(0, &[item("a")]).await.unwrap();
        let first = lease().await;
        queue.fail("a", &first, Retry::Free(0), "given back").await.unwrap();
        assert_eq!(queue.withdraw(0, &["a"]).await.unwrap(), [true]);
        assert_eq!(complete(&first).await, Completed::Unproven);
        sign(&queue, "a").await;
        assert_eq!(complete(&first).await, Completed::Stale);
        let word = read().await;
        // In the next millisecond of the server's clock at the earliest.
        let began = std::time::SystemTime::now();
        while began.elapsed().unwrap() < Duration::from_millis(2) {
            tokio::task::yield_now().await;
        }
        assert_eq!(queue.enqueue(0, &[item("a")]).await.unwrap().1, [Enqueued::Added]);
        let second = lease().await;
        assert_eq!(complete(&first).await, Completed::Refused, "it is in the queue");
        assert_eq!(complete(&second).await, Completed::Done);
        assert_eq!(complete(&first).await, Completed::Stale, "a worker has signed that");
        // Back to the time before it was offered again.
        write(&word).await;
        assert_eq!([complete(&first).await, complete(&second).await], [Completed::Stale, Completed::Unproven]);
        for forged in ["\nn2\nwithdrawn", "\nn2\nwithdrawn 0", "0:1\nn2\nn3 0001", "\n", "x"] {
            write(forged).await;
            assert_eq!(complete(&second).await, Completed::Unproven, "{forged:?}");
        }
        write("").await;
        assert_eq!(complete(&second).await, Completed::Unproven);
        assert!(!queue.stats().await.unwrap().counters.contains_key("unproven"), "an owner's own record is no forgery");
    });
}

/// The queue went back in time behind a completion that its owner had settled: the owner took the item out, and the worker, which came late,
/// was told that it was not its own.
#[test]
fn a_worker_that_its_owner_may_have_believed_is_told_so() {
    on_server(async |server| {
        let queue = queue(server, Scripts::shipped());
        let complete = async |id: &str| queue.complete(0, &[(id, "of-before", "n3 0001")]).await.unwrap().1.remove(0);
        queue.enqueue(0, &[item("ended"), item("refused"), item("leased")]).await.unwrap();
        assert_eq!(complete("refused").await, Completed::Refused);
        dropped_by_a_worker_of_the_version_before(server, "refused").await;
        assert_eq!(queue.end(0, &["ended", "refused", "unknown"]).await.unwrap(), [Ending::Out, Ending::Stays, Ending::Out]);
        assert_eq!(complete("ended").await, Completed::Settled);
        assert_eq!(queue.known(0, &["ended", "refused"]).await.unwrap().1, [Known::Withdrawn, Known::Waiting]);
        assert_eq!(queue.settled(0, &["ended"]).await.unwrap(), 1);
        assert_eq!(complete("ended").await, Completed::Unknown);
        let leased = queue.lease(0, 64, 1000, 60_000, 1000).await.unwrap().1;
        assert_eq!(leased.len(), 2);
        assert_eq!(queue.end(0, &["refused", "leased"]).await.unwrap(), [Ending::Leased, Ending::Leased]);
    });
}

/// It has noted in the item that it was refused, and has dropped its copy.
async fn dropped_by_a_worker_of_the_version_before(server: &Server, id: &str) {
    let note = "local meta = cmsgpack.unpack(redis.call('HGET', KEYS[1], ARGV[1])) meta[13] = 1 \
                return redis.call('HSET', KEYS[1], ARGV[1], cmsgpack.pack(meta))";
    let meta = &keyspace().queue("mail", 0)[7];
    let valkey = Valkey::new(target(server));
    valkey.command(redis::cmd("EVAL").arg(note).arg(1).arg(meta).arg(id)).await.unwrap();
}

/// With the server's clock stepped back by an hour a lease lasted for an hour, and its mail waited.
#[test]
fn a_lease_of_a_time_to_come_is_cut_to_the_longest() {
    on_server(async |server| {
        let queue = queue(server, Scripts::shipped());
        queue.enqueue(0, &[item("a")]).await.unwrap();
        assert_eq!(queue.lease(0, 1, 1000, 60_000, 1000).await.unwrap().1.len(), 1);
        let keys = keyspace().queue("mail", 0);
        let timed = &keys[4];
        let valkey = Valkey::new(target(server));
        // What the clock of before the step had written.
        valkey.command(redis::cmd("ZADD").arg(timed).arg(9e12).arg("a")).await.unwrap();
        queue.recover(0, 0).await.unwrap();
        let ends = valkey.command(redis::cmd("ZRANGE").arg(timed).arg(0).arg(0).arg("WITHSCORES")).await.unwrap();
        let [id, ends]: [String; 2] = redis::from_redis_value::<Vec<String>>(ends).unwrap().try_into().unwrap();
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as f64;
        assert_eq!(id, "a");
        assert!((ends.parse::<f64>().unwrap() - now - 300_000.0).abs() < 5000.0, "{ends}");
    });
}

/// One value that could not be read ended each call that came across it: nothing more was leased in that partition, or swept.
#[test]
fn damaged_metadata_stops_nothing_and_leaves_the_queue() {
    on_server(async |server| {
        let queue = queue(server, Scripts::shipped());
        let keys = keyspace().queue("mail", 0);
        let [ready, ages, scheduled, _, timed, _, dead, meta, ..] = &keys[..] else { panic!("{keys:?}") };
        let valkey = Valkey::new(target(server));
        let packed = [&b"\xda"[..], b"", b"\xc0", b"\x9a\xa1R", b"\x93\xa1R\x05\x00", b"\xca\x00"];
        let mut count = 0;
        for (number, packed) in packed.iter().enumerate() {
            for set in [ready, scheduled, timed, dead] {
                let id = format!("{number}-{}", set.rsplit_once(':').unwrap().1);
                valkey.command(redis::cmd("HSET").arg(meta).arg(&id).arg(*packed)).await.unwrap();
                valkey.command(redis::cmd("ZADD").arg(set).arg(1).arg(&id)).await.unwrap();
                if set == ready {
                    valkey.command(redis::cmd("ZADD").arg(ages).arg(1).arg(&id)).await.unwrap();
                }
                count += 1;
            }
        }
        queue.enqueue(0, &[item("sound")]).await.unwrap();
        assert_eq!(queue.recover(0, 0).await.unwrap(), Swept::default());
        assert_eq!(queue.requeue(0, &[]).await.unwrap(), 0);
        assert!(queue.dead(0, 0, 128).await.unwrap().is_empty());
        let leased = queue.lease(0, 64, 1000, 60_000, 1000).await.unwrap().1;
        assert_eq!(leased.iter().map(|item| &*item.id).collect::<Vec<_>>(), ["sound"]);
        assert_eq!(queue.stats().await.unwrap().counters["damaged"], count);
        for id in ["asked", "withdrawn", "completed", "failed", "extended"] {
            valkey.command(redis::cmd("HSET").arg(meta).arg(id).arg(&b"\xda"[..])).await.unwrap();
        }
        assert_eq!(queue.known(0, &["asked"]).await.unwrap().1, [Known::Unknown]);
        assert_eq!(queue.withdraw(0, &["withdrawn"]).await.unwrap(), [true]);
        assert_eq!(queue.complete(0, &[("completed", "t", "n3")]).await.unwrap().1, [Completed::Unknown]);
        assert_eq!(queue.fail("failed", "t", Retry::Free(0), "x").await.unwrap(), Failed::Stale);
        assert!(!queue.extend("extended", "t", 1000).await.unwrap());
        assert_eq!(queue.stats().await.unwrap().counters["damaged"], count + 5);
        assert_eq!(queue.enqueue(0, &[item("asked")]).await.unwrap().1, [Enqueued::Added]);
    });
}

/// What a node that never came back had offered took the room of what others offered, for seven days.
#[test]
fn completions_that_nobody_settles_leave_room_for_others() {
    on_server(async |server| {
        // Its capacity is a hundred items.
        let queue = queue(server, Scripts::shipped());
        for batch in 0..2 {
            let items: Vec<NewItem> = (0..50).map(|number| item(&format!("n1:{batch}:{number}"))).collect();
            queue.enqueue(0, &items).await.unwrap();
            let leased = queue.lease(0, 50, 1000, 60_000, 1000).await.unwrap().1;
            let done: Vec<_> = leased.iter().map(|item| (item.id.as_str(), item.token.as_str(), "n3 0001")).collect();
            queue.complete(0, &done).await.unwrap();
        }
        assert_eq!(queue.enqueue(0, &[item("another")]).await.unwrap().1, [Enqueued::Full]);
        assert_eq!(queue.recover(0, 0).await.unwrap(), Swept { dropped: 50, ..Swept::default() });
        assert_eq!(queue.stats().await.unwrap().unsettled, 50);
        assert_eq!(queue.stats().await.unwrap().counters["outcomes_dropped"], 50);
        assert_eq!(queue.enqueue(0, &[item("another")]).await.unwrap().1, [Enqueued::Added]);
        assert_eq!(queue.recover(0, 0).await.unwrap(), Swept::default());
    });
}

/// At some 3,300 mails a second what owners had settled, and what is kept for late workers for a minute, pushed out the oldest: what was completed
/// of a node that was down, and that it had not heard of. On its return it delivered all of that a second time.
#[test]
fn what_an_owner_has_not_heard_of_outlasts_what_others_have() {
    on_server(async |server| {
        // At most fifty outcomes are kept.
        let queue = queue(server, Scripts::shipped());
        let complete = async |owner: &str, count: usize| {
            let names: Vec<String> = (0..count).map(|number| format!("{owner}:{number}")).collect();
            for names in names.chunks(32) {
                let items: Vec<NewItem> = names.iter().map(|name| NewItem { owner: owner.parse().unwrap(), ..item(name) }).collect();
                queue.enqueue(0, &items).await.unwrap();
                let leased = queue.lease(0, 64, 1000, 60_000, 1000).await.unwrap().1;
                let done: Vec<_> = leased.iter().map(|item| (item.id.as_str(), item.token.as_str(), "n3 0001")).collect();
                queue.complete(0, &done).await.unwrap();
            }
            names
        };
        let known = async |names: &[String]| {
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            let known = queue.known(0, &names).await.unwrap().1;
            known.iter().filter(|known| matches!(known, Known::Completed(_))).count()
        };
        let unheard = complete("down", 30).await;
        let heard = complete("up", 45).await;
        assert_eq!(known(&heard).await, 45);
        // Behind the others in the order of names, which decides where all of it happens in one millisecond.
        let withdrawn = item("withdrawn");
        queue.enqueue(0, std::slice::from_ref(&withdrawn)).await.unwrap();
        assert_eq!(queue.withdraw(0, &["withdrawn"]).await.unwrap(), [true]);
        assert_eq!(queue.recover(0, 0).await.unwrap(), Swept::default());
        assert_eq!(queue.stats().await.unwrap().unsettled, 50);
        assert_eq!([known(&heard).await, known(&unheard).await], [45 - 26, 30]);
        assert_eq!(queue.stats().await.unwrap().counters["heard_dropped"], 26);

        // All of these are heard of now, and nothing is of what comes: that goes last, and is counted.
        complete("gone", 50).await;
        assert_eq!(queue.recover(0, 0).await.unwrap(), Swept::default());
        complete("late", 10).await;
        assert_eq!(queue.recover(0, 0).await.unwrap(), Swept { dropped: 10, ..Swept::default() });
        let counters = queue.stats().await.unwrap().counters;
        assert_eq!([counters["heard_dropped"], counters["outcomes_dropped"]], [76, 10]);
    });
}

fn queue(server: &Server, scripts: &'static Scripts) -> WorkQueue {
    fixture::queue(server, scripts, "n2", BOUNDS)
}

/// The node that had named the data named it the same after its loss if it came first, and no owner saw that anything was lost until it
/// asked after each of its items.
#[test]
fn a_loss_of_data_is_seen_by_the_node_that_named_it() {
    let named = on_server(async |server| {
        let (valkey, queue) = (Valkey::new(target(server)), queue(server, Scripts::shipped()));
        let mut named = Vec::new();
        for _ in 0..3 {
            let (generation, _) = queue.known(0, &[]).await.unwrap();
            assert_eq!(queue.renew(0, 1000).await.unwrap(), generation, "the data is the same");
            named.push(generation);
            valkey.command(redis::cmd("FLUSHALL").arg("SYNC")).await.unwrap();
        }
        named
    });
    assert!(named[0] != named[1] && named[1] != named[2] && named[0] != named[2], "{named:?}");
}

/// Of two items, the first of which a worker leased and left to its fate, the one that is leased next.
fn next_after_a_dead_workers_item(scripts: &'static Scripts) -> String {
    on_server(async |server| {
        let queue = queue(server, scripts);
        queue.enqueue(0, &[item("early"), item("late")]).await.unwrap();
        let (_, leased) = queue.lease(0, 1, 1000, 1, 1000).await.unwrap();
        assert_eq!(leased[0].id, "early");
        // Its lease ends within a millisecond.
        while queue.recover(0, 0).await.unwrap().waiting == 0 {}
        queue.lease(0, 1, 1000, 60_000, 1000).await.unwrap().1.remove(0).id
    })
}

#[test]
fn what_a_dead_worker_held_comes_before_what_came_later() {
    assert_eq!(next_after_a_dead_workers_item(Scripts::shipped()), "early");
    assert_eq!(next_after_a_dead_workers_item(mutant("queue_lease", "meta[11] and 0 or ", "")), "late", "the control notices");
}

/// The scripts with one text replaced in one of them.
fn mutant(script: &'static str, text: &'static str, by: &'static str) -> &'static Scripts {
    let changed = Scripts::changed(|name, source| {
        if name != script {
            return source.to_owned();
        }
        assert!(source.contains(text), "{script} has {text}");
        source.replace(text, by)
    });
    Box::leak(Box::new(changed))
}

#[test]
fn an_unchecked_token_is_noticed() {
    let scripts = mutant("queue_complete", "meta[8] == token", "true");
    let found = run(Durability::None, Fault::None, 5_000, scripts, 4).unwrap_err();
    assert!(found.contains("complete"), "{found}");
}

#[test]
fn a_lease_that_is_never_recovered_is_noticed() {
    let scripts = mutant("queue_recover", "local ids = ", "if true then return {0, 0, 0} end\nlocal ids = ");
    let found = run(Durability::None, Fault::None, 5_000, scripts, 5).unwrap_err();
    assert!(found.contains("recover"), "{found}");
}

#[test]
fn attempts_that_do_not_count_are_noticed() {
    let scripts = mutant("queue_lease", "meta[3] + 1", "meta[3]");
    assert!(run(Durability::None, Fault::None, 5_000, scripts, 6).unwrap_err().contains("attempts"));
}

#[test]
fn an_item_in_two_places_is_noticed() {
    let scripts = mutant("queue_lease", "redis.call('ZREM', AGES, id)", "redis.call('EXISTS', AGES)");
    assert!(run(Durability::None, Fault::None, 5_000, scripts, 7).is_err());
}
