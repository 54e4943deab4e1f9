//! A domain with more hosts than are asked for at once: whose turn it is.

use ringpost_queue::{HostsTried, Lookup, Question, Resolution, Settled};

use crate::{MINUTE, START, deliver, enqueue, queue, work};

/// What DNS says of a domain with three hosts beside its first, of which each turn brings another one.
fn part_of_site(turn: u16, until: u64) -> Resolution {
    let hosts = ["192.0.2.1:25".to_owned(), format!("192.0.2.{}:25", 2 + turn % 3)].map(|host| host.parse().unwrap());
    Resolution::Site { key: "many".into(), name: "mx.test".into(), hosts: hosts.into(), is_whole: false, until }
}

fn turn_of(lookup: &Lookup) -> u16 {
    let Question::Mx { turn, .. } = &lookup.question else { panic!("of a route by mx") };
    *turn
}

/// Mail of a domain whose first hosts are dead was deferred until it expired: the others were never asked for.
#[test]
fn where_no_host_of_many_answers_others_are_asked_for_after_a_back_off() {
    let mut queue = queue();
    enqueue(&mut queue, 1, 5, &["a@one.test"], START);
    let (mut now, mut turns, mut delivered) = (START, Vec::new(), false);
    while !delivered {
        let (attempts, lookups) = work(&mut queue, now);
        for dispatch in attempts {
            let (destination, mut tried) = (dispatch.destination(), HostsTried::default());
            let mut alive = None;
            while let Some(host) = queue.next_host(destination, &mut tried, now) {
                if queue.host_address(destination, host).unwrap().name == "192.0.2.4:25" {
                    alive = Some(host);
                    break;
                }
                queue.host_failed(destination, host, "connect: refused", now);
            }
            if let Some(host) = alive {
                queue.host_reached(destination, host, now);
                deliver(&mut queue, dispatch, now);
                delivered = true;
            } else if queue.ends_round(destination, tried, now) {
                let key = dispatch.key();
                assert_eq!(queue.unreachable(dispatch, now, &mut Vec::new()), Settled::Deferral);
                queue.recorded(key);
            } else {
                assert_eq!(queue.abandon(dispatch, now), Settled::Nothing);
            }
        }
        for lookup in lookups {
            turns.push((turn_of(&lookup), now - START));
            queue.resolved(lookup.asking, &part_of_site(turn_of(&lookup), now + 600 * MINUTE), now);
        }
        now = if delivered { now } else { queue.next_due(now).unwrap().max(now + 1) };
        assert!(now < START + 10 * MINUTE, "{turns:?}");
    }
    let [(0, 0), (1, first), (2, second)] = turns[..] else { panic!("{turns:?}") };
    assert!((4000..8000).contains(&first) && (8000..30_000).contains(&(second - first)), "{turns:?}");

    // Others at this site go by what it found, and do not exchange its hosts for the first ones.
    enqueue(&mut queue, 2, 5, &["a@two.test"], now);
    let (_, lookups) = work(&mut queue, now);
    assert_eq!(turn_of(&lookups[0]), 0, "nothing is known of it");
    queue.resolved(lookups[0].asking, &part_of_site(0, now + 1000), now);
    let (attempts, _) = work(&mut queue, now);
    let hosts: Vec<_> = queue.hosts(attempts[0].destination()).map(|host| host.name.as_str()).collect();
    assert_eq!(hosts, ["192.0.2.1:25", "192.0.2.4:25"]);
    attempts.into_iter().for_each(|dispatch| deliver(&mut queue, dispatch, now));
    enqueue(&mut queue, 3, 5, &["a@two.test"], now + 1000);
    let (_, lookups) = work(&mut queue, now + 1000);
    assert_eq!(turn_of(&lookups[0]), 2);
}

#[test]
fn where_no_host_of_those_asked_for_has_an_address_the_next_question_is_about_others() {
    let mut queue = queue();
    enqueue(&mut queue, 1, 5, &["a@one.test"], START);
    let (mut now, mut turns) = (START, Vec::new());
    for in_vain in [0, 7, 3, 0] {
        let lookup = loop {
            let (attempts, mut lookups) = work(&mut queue, now);
            for dispatch in attempts {
                let key = dispatch.key();
                assert_eq!(queue.unreachable(dispatch, now, &mut Vec::new()), Settled::Deferral);
                queue.recorded(key);
            }
            if let Some(lookup) = lookups.pop() {
                break lookup;
            }
            now = queue.next_due(now).unwrap().max(now + 1);
        };
        turns.push(turn_of(&lookup));
        queue.resolved(lookup.asking, &Resolution::Unanswered { reason: "none".into(), turns: in_vain }, now);
    }
    // Seven times eight hosts, and the best eight, are sixty-four; the next time there was time for half of those.
    assert_eq!(turns, [0, 0, 7, 10]);
}
