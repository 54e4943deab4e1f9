//! Dead letters whose owner does not come back, on a real Valkey.

use ringpost_cluster::{
    identity::Epoch,
    script::Scripts,
    work_item::NewItem,
    work_queue::{DeadLetter, DeadPage, Retry, Revived, WorkQueue},
};

use super::{
    fixture::{keyspace, on_server, valkey},
    queue,
};

const MINUTE: u64 = 60_000;

/// One that is tried once.
fn item(id: &str, owner: &str, expires_in_ms: u64) -> NewItem {
    NewItem { max_attempts: 1, expires_in_ms, ..super::fixture::item(id, owner) }
}

async fn letters(queue: &WorkQueue) -> Vec<DeadLetter> {
    queue.dead(0, 0, 128).await.unwrap()
}

/// Its owner was gone for good, and its workers had no luck with it: mail lay among the dead letters, unseen, until it was removed as too old.
#[test]
fn mail_of_an_owner_that_is_gone_does_not_stay_dead() {
    const GONE: u64 = 300;
    on_server(async |server| {
        let queue = queue(server, "n2");
        let offered: Vec<NewItem> = (0..GONE).map(|number| item(&format!("n1:{number}"), "n1", 0)).collect();
        for items in offered.chunks(64) {
            queue.enqueue(0, items).await.unwrap();
        }
        queue.enqueue(0, &[item("n3:0", "n3", 0)]).await.unwrap();
        let mut dead = 0;
        while dead <= GONE {
            queue.lease(0, 64, 1000, 1, 1 << 20).await.unwrap();
            dead += queue.recover(0, 0).await.unwrap().died;
        }
        let died_at = letters(&queue).await[0].died_at;
        let is_there = |letter: &DeadLetter| letter.owner == "n3";
        // Their deaths are some milliseconds apart.
        let early = queue.revive(0, is_there, died_at + 5 * MINUTE - 1).await.unwrap();
        assert_eq!(early, Revived { requeued: 0, left: GONE + 1 });
        let due = queue.revive(0, is_there, died_at + 6 * MINUTE).await.unwrap();
        assert_eq!(due, Revived { requeued: GONE, left: 1 });
        assert_eq!(letters(&queue).await[0].id, "n3:0", "its owner sees to it");
        assert_eq!(queue.revive(0, is_there, died_at + 60 * MINUTE).await.unwrap(), Revived { requeued: 0, left: 1 });
        let mut leased = 0;
        loop {
            let items = queue.lease(0, 64, 1000, 60_000, 1 << 20).await.unwrap().1;
            if items.is_empty() {
                break;
            }
            leased += items.len() as u64;
            assert!(items.iter().all(|item| item.data.as_deref() == Ok(item.id.as_bytes())), "with its content");
        }
        assert_eq!(leased, GONE);
    });
}

/// What expired in the queue was tried by nobody, and its sender was told nothing.
#[test]
fn what_expired_in_the_queue_is_leased_once_more_to_be_reported() {
    on_server(async |server| {
        let queue = queue(server, "n2");
        queue.enqueue(0, &[item("n1:a", "n1", 1)]).await.unwrap();
        while letters(&queue).await.is_empty() {
            // Within a millisecond of the server's clock it may still be leased.
            for item in queue.lease(0, 1, 1000, 60_000, 1000).await.unwrap().1 {
                queue.fail(&item.id, &item.token, Retry::Free(0), "too early").await.unwrap();
            }
        }
        let letter = letters(&queue).await.remove(0);
        assert_eq!(letter.reason, "expired");
        assert_eq!(queue.revive(0, |_| false, letter.died_at + 5 * MINUTE).await.unwrap(), Revived { requeued: 1, left: 0 });
        let leased = queue.lease(0, 1, 1000, 60_000, 1000).await.unwrap().1.remove(0);
        assert_eq!((leased.data.as_deref(), leased.expires_ms), (Ok(&b"n1:a"[..]), 0));
    });
}

/// With 128 letters in a row that nobody can read the look for those of owners that are gone ended there, as did the lists: the mail behind them
/// was tried by nobody and removed as too old.
#[test]
fn letters_that_cannot_be_read_hide_none_behind_them() {
    const UNREADABLE: u64 = 200;
    on_server(async |server| {
        let queue = queue(server, "n2");
        queue.enqueue(0, &[item("n1:a", "n1", 0)]).await.unwrap();
        let leased = queue.lease(0, 1, 1000, 60_000, 1000).await.unwrap().1.remove(0);
        queue.fail(&leased.id, &leased.token, Retry::Never, "no luck").await.unwrap();
        let died_at = letters(&queue).await[0].died_at;
        let keys = keyspace().queue("mail", 0);
        let (dead, metas) = (&keys[6], &keys[7]);
        for number in 0..UNREADABLE {
            assert!(server.command(&format!("ZADD {dead} {number} x{number}")).starts_with(":1"));
            // Half of them are in no other place.
            if number % 2 == 0 {
                assert!(server.command(&format!("HSET {metas} x{number} damaged")).starts_with(":1"));
            }
        }
        assert_eq!(queue.dead_page(0, 0, 128).await.unwrap(), DeadPage { letters: Vec::new(), places: 128 });
        let last = queue.dead_page(0, 128, 128).await.unwrap();
        assert_eq!((last.places, last.letters[0].id.as_str()), (UNREADABLE + 1 - 128, "n1:a"));
        let revived = queue.revive(0, |_| false, died_at + 6 * MINUTE).await.unwrap();
        assert_eq!(revived, Revived { requeued: 1, left: 0 });
        // By command, page after page.
        for left in [UNREADABLE - 128, 0] {
            assert_eq!(queue.requeue(0, &[]).await.unwrap(), 0);
            assert_eq!(queue.dead_page(0, 0, 128).await.unwrap().places, left);
        }
    });
}

/// With one item whose name is no text no lease of its partition was understood, nor the list of its dead letters, nor that of its names.
#[test]
fn what_is_no_name_or_no_text_hides_nothing() {
    on_server(async |server| {
        let (queue, valkey) = (queue(server, "n2"), valkey(server, Scripts::shipped()));
        let keys = keyspace().queue("mail", 0);
        let [ready, ages, _, _, _, _, dead, metas, ..] = &keys[..] else { panic!("{keys:?}") };
        queue.enqueue(0, &[item("n1:a", "n1", 0)]).await.unwrap();
        let meta = async || match valkey.command(redis::cmd("HGET").arg(metas).arg("n1:a")).await.unwrap() {
            redis::Value::BulkString(packed) => packed,
            other => panic!("{other:?}"),
        };
        let sound = meta().await;
        for (name, sets) in [(&b"n1:\xff"[..], vec![ready, ages]), (b"n1:\xfe", vec![dead])] {
            valkey.command(redis::cmd("HSET").arg(metas).arg(name).arg(&sound)).await.unwrap();
            for set in sets {
                valkey.command(redis::cmd("ZADD").arg(set).arg(0).arg(name)).await.unwrap();
            }
        }
        assert_eq!(queue.names(0, "0", "n1:").await.unwrap().1, ["n1:a"]);
        let mut leased = queue.lease(0, 64, 1000, 60_000, 1000).await.unwrap().1;
        assert_eq!((leased.len(), leased[0].id.as_str()), (1, "n1:a"));
        assert_eq!(queue.stats().await.unwrap().counters["damaged"], 1);
        assert!(letters(&queue).await.is_empty());

        let leased = leased.remove(0);
        queue.fail(&leased.id, &leased.token, Retry::Never, "no luck").await.unwrap();
        let mut packed = meta().await;
        let at = packed.windows(7).position(|part| part == b"no luck").unwrap();
        packed[at + 4] = 0xff;
        valkey.command(redis::cmd("HSET").arg(metas).arg("n1:a").arg(&packed)).await.unwrap();
        assert_eq!(letters(&queue).await[0].reason, "no l\u{fffd}ck");
    });
}

/// Ends an item's only lease without success.
async fn kill(queue: &WorkQueue, id: &str) {
    queue.enqueue(0, &[item(id, "n1", 0)]).await.unwrap();
    let leased = queue.lease(0, 1, 1000, 60_000, 1000).await.unwrap().1.remove(0);
    assert_eq!(leased.id, id);
    queue.fail(id, &leased.token, Retry::Never, "no luck").await.unwrap();
}

/// With a step of the clock beyond `cluster.dead_letters_kept` all dead letters were too old at once, and the leader removed what was the last copy of
/// some.
#[test]
fn a_clock_that_jumps_removes_no_dead_letter_and_time_that_was_watched_does() {
    const KEPT: u64 = 5 * MINUTE;
    on_server(async |server| {
        let queue = queue(server, "n1");
        let keys = keyspace().queue("mail", 0);
        let (dead, counters) = (&keys[6], &keys[9]);
        let look = async || queue.retire(0, Epoch(3), KEPT, 0).await.unwrap();
        assert_eq!(look().await, Ok((0, 0)));
        kill(&queue, "n1:early").await;
        // As far as anybody can see from Valkey a year passes, and another; and the second is taken back.
        let jump = |by: i64| {
            let year_ms = by * 365 * 24 * 60 * MINUTE as i64;
            let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_millis() as i64;
            for letter in ["n1:early", "n1:late"] {
                server.command(&format!("ZADD {dead} XX {} {letter}", now - year_ms));
            }
            assert!(server.command(&format!("HSET {counters} watched_at {}", now - year_ms)).starts_with(':'));
        };
        for by in [1, 2, -1] {
            jump(by);
            assert_eq!(look().await, Ok((0, 0)), "{by}");
        }
        kill(&queue, "n1:late").await;
        // Of each look a minute counts at most: two of them passed before, while the one was dead.
        let mut looks = 2;
        while look().await == Ok((0, 0)) {
            jump(1);
            looks += 1;
            assert!(looks <= 6, "it is never removed");
        }
        assert!(looks >= 5, "{looks}");
        assert_eq!(letters(&queue).await.iter().map(|letter| &*letter.id).collect::<Vec<_>>(), ["n1:late"]);
        assert_eq!(queue.retire(0, Epoch(2), 0, 0).await.unwrap(), Err(Epoch(3)), "another leads");
        // An account that is damaged begins anew, and so does the time.
        server.command(&format!("HSET {counters} watched damage"));
        assert_eq!(look().await, Ok((0, 0)));
        assert_eq!(queue.purge(0, &["n1:late"]).await.unwrap().letters, 1, "an operator's word needs no time");
    });
}

/// A page of letters is looked at in each round.
#[test]
fn dead_letters_that_are_old_are_removed_page_by_page() {
    const OLD: u64 = 300;
    on_server(async |server| {
        let queue = queue(server, "n1");
        for number in 0..OLD {
            kill(&queue, &format!("n1:{number}")).await;
        }
        assert_eq!(queue.retire(0, Epoch(1), 60_000, 0).await.unwrap(), Ok((0, 128)));
        assert_eq!(queue.retire(0, Epoch(1), 60_000, 128).await.unwrap(), Ok((0, 256)));
        assert_eq!(queue.retire(0, Epoch(1), 60_000, 256).await.unwrap(), Ok((0, 0)));
        for removed in [128, 128, 44] {
            assert_eq!(queue.retire(0, Epoch(1), 0, 0).await.unwrap(), Ok((removed, 0)));
        }
        assert_eq!(queue.stats().await.unwrap().counters["purged"], OLD);
    });
}
