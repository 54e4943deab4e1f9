//! Random operations with restarts against a model: every recipient of every accepted message is in exactly one place, is never
//! attempted twice at a time or after it was settled, survives restarts with what was recorded (attempts, times, replies, holds,
//! routes, expiry, priority), and leaves only delivered, deleted, or with its failure reported; no report is lost, and none is made
//! again that was recorded. What reached nobody is recorded later, or with what cannot wait.

mod accepted;
mod commands;
mod disk;
mod restart;
mod world;

use ringpost_queue::{Cursor, Filter, Notify, State};

use accepted::{Fate, HOUR};
use world::{World, routes};

#[test]
fn every_recipient_is_in_exactly_one_place_whatever_happens() {
    let (mut attempts, mut expired, mut reports, mut kept, mut taken) = (0, 0, 0, [0; 4], 0);
    for seed in 0..60 {
        eprintln!("seed {seed}");
        let mut world = World::new(seed);
        for step in 0..1500 {
            match world.random.below(40) {
                0..=3 => world.enqueue(),
                4..=13 => _ = world.poll(),
                14..=20 => world.finish_one(),
                21..=22 => world.finish_report(),
                23 => world.record_one_gathered(),
                24..=30 => world.acknowledge_one(),
                31..=32 => world.command(),
                33..=35 => world.now += world.random.below(60_000),
                36 => {
                    world.now = match world.random.below(8) {
                        0 => world.now + world.random.below(12 * HOUR),
                        _ => world.queue.next_due(world.now).unwrap_or(world.now),
                    }
                }
                37 if world.random.below(2) == 0 => world.answer_one(),
                37 => world.dead = world.random.below(3) == 0,
                38 => {
                    if let Some((dispatch, ..)) = world.in_flight.first()
                        && let Some(behind) = world.queue.poll_behind(dispatch, world.now)
                    {
                        world.take(behind);
                    }
                }
                _ if world.random.below(30) == 0 => {
                    let hold_is_open = world.random.below(2) == 0;
                    world.restart(routes(hold_is_open));
                }
                _ => {}
            }
            if step % 16 == 0 {
                world.check();
            }
        }
        attempts += world.attempts;
        expired += world.expired;
        reports += world.reports;
        taken += world.taken;
        kept.iter_mut().zip(world.kept).for_each(|(all, one)| *all += one);
        // All goes well from here on: waking only when told, all that is not held by a route leaves or fails.
        world.dead = false;
        for (&id, &key) in &world.keys.clone() {
            let mut record = Vec::new();
            if let Some(settled) = world.queue.release(key, world.now, &mut record) {
                world.accepted.get_mut(&id).unwrap().held = false;
                world.persist(id, settled, record);
            }
        }
        for _ in 0..200_000 {
            while world.poll() {}
            while !world.lookups.is_empty() {
                world.answer_one();
            }
            while !world.in_flight.is_empty() {
                world.finish_one();
            }
            while !world.reporting.is_empty() {
                world.finish_report();
            }
            while !world.gathered.is_empty() {
                world.record_one_gathered();
            }
            while !world.unacknowledged.is_empty() {
                world.acknowledge_one();
            }
            match world.queue.next_due(world.now) {
                Some(at) => world.now = at,
                None => break,
            }
        }
        world.check();
        let mut left = 0;
        let page = world.queue.page(&Filter::default(), Cursor::default(), usize::MAX, |message| {
            for recipient in message.recipients() {
                let is_end = matches!(recipient.state(), State::Held | State::Delivered | State::Bounced | State::Purged);
                assert!(is_end || recipient.state() == State::Failed && !world.with_reports, "{:?}", recipient.state());
                left += 1;
            }
        });
        assert_eq!(page, Ok(None));
        let counts = world.queue.counts();
        assert_eq!(left, counts.ready + counts.waiting + counts.failed + counts.delivered + counts.bounced + counts.purged);
        assert_eq!((counts.waiting, counts.attempting, world.queue.reports_waiting()), (0, 0, 0));
        for (id, accepted) in world.accepted.iter().filter(|(_, accepted)| !accepted.deleted) {
            for (number, (fate, notify)) in (0..).zip(accepted.fate.iter().zip(&accepted.notify)) {
                let is_told = *notify == Notify::UNSAID || notify.has(Notify::FAILURE);
                assert!(*fate != Fate::Bounced || !is_told || world.told.contains_key(&(*id, number, false)), "a report was lost");
            }
        }
    }
    let work = format!(
        "{attempts} attempts, {expired} expired, {reports} reports, kept over restarts: {kept:?}, deferrals taken by them: {taken}"
    );
    assert!(taken > 50, "the test does its work: {work}");
    assert!(attempts > 10_000 && expired > 100 && reports > 500 && kept.iter().all(|count| *count > 50), "the test does its work: {work}");
}
