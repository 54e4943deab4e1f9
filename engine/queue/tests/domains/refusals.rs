//! Domains of which DNS says for sure that they take no mail, and what a retry makes of that.

use ringpost_queue::{Filter, Outcome, Question, Resolution, Settled, State, Verdict};

use crate::{MINUTE, START, enqueue, queue, site, work};

#[test]
fn a_refusal_of_dns_fails_each_message_with_its_words() {
    let mut queue = queue();
    for sequence in 0..3 {
        enqueue(&mut queue, sequence, 5, &["a@nosuch.test", "b@nosuch.test"], START);
    }
    let (_, lookups) = work(&mut queue, START);
    assert!(!lookups[0].anew);
    let reply = "556 5.1.10 nosuch.test takes no mail (null MX)";
    queue.resolved(lookups[0].asking, &Resolution::Refused { reply: reply.into(), until: START + MINUTE }, START);
    let (attempts, _) = work(&mut queue, START);
    assert_eq!(attempts.len(), 3);
    let key = attempts[0].key();
    for dispatch in attempts {
        assert_eq!(queue.verdict(&dispatch), Some(Verdict::Refused(reply.into())));
        let outcomes: Vec<_> =
            queue.recipients(&dispatch).map(|(number, _)| (number, Outcome::Failed { reply: reply.as_bytes() })).collect();
        assert_eq!(outcomes.len(), 2);
        assert_eq!(queue.settle(dispatch, &outcomes, START, &mut Vec::new()), Settled::Outcome);
    }
    assert_eq!(queue.counts().failed, 6);
    // Who retries has mended it, or believes so: what was said before says nothing.
    assert_eq!(queue.retry(key, &Filter::default(), START, &mut Vec::new()), Some(Settled::Outcome));
    let (attempts, lookups) = work(&mut queue, START);
    assert!(attempts.is_empty() && lookups.len() == 1 && lookups[0].anew);
    queue.not_asked(lookups[0].asking, START);
    let (_, lookups) = work(&mut queue, START + 1000);
    assert!(lookups[0].anew, "nobody has answered yet");
    queue.resolved(lookups[0].asking, &Resolution::Refused { reply: reply.into(), until: START + MINUTE }, START);
    let (attempts, _) = work(&mut queue, START + MINUTE);
    attempts.into_iter().for_each(|dispatch| assert_eq!(queue.abandon(dispatch, START + MINUTE), Settled::Nothing));
}

/// Nobody asked for a domain without mail: after a retry of a message whose refused recipient had left, other shards, and those that had
/// never heard of the domain, went on refusing mail for it by the old answer.
#[test]
fn a_retry_asks_about_a_refused_domain_at_once_though_its_mail_is_gone() {
    let mut queue = queue();
    enqueue(&mut queue, 1, 5, &["a@nosuch.test", "b@known.test"], START);
    let (_, lookups) = work(&mut queue, START);
    let (mut refused, mut key) = (None, None);
    for lookup in lookups {
        let is_known = lookup.question == Question::Mx { domain: "known.test".into(), port: 25, turn: 0 };
        let refusal = Resolution::Refused { reply: "550 5.1.2 no".into(), until: START + 60 * MINUTE };
        let resolution = if is_known { site("s", &["192.0.2.1:25"], START + 60 * MINUTE) } else { refusal };
        refused = if is_known { refused } else { Some(lookup.asking) };
        queue.resolved(lookup.asking, &resolution, START);
    }
    let refused = refused.unwrap();
    for dispatch in work(&mut queue, START).0 {
        key = Some(dispatch.key());
        let number = queue.recipients(&dispatch).next().unwrap().0;
        let outcome = match queue.verdict(&dispatch) {
            Some(_) => Outcome::Failed { reply: b"550 5.1.2 no" },
            None => Outcome::Deferred { reply: b"450 later" },
        };
        assert_eq!(queue.settle(dispatch, &[(number, outcome)], START, &mut Vec::new()), Settled::Outcome);
    }
    let key = key.unwrap();
    let failed = Filter { state: Some(State::Failed), ..Filter::default() };
    assert_eq!(queue.purge(key, &failed, START, &mut Vec::new()), Some(Settled::Outcome));
    assert_eq!(queue.retry(key, &Filter::default(), START + 1, &mut Vec::new()), Some(Settled::Outcome));
    let (attempts, lookups) = work(&mut queue, START + 1);
    attempts.into_iter().for_each(|dispatch| assert_eq!(queue.abandon(dispatch, START + 1), Settled::Nothing));
    assert_eq!(lookups.iter().map(|lookup| (lookup.asking, lookup.anew)).collect::<Vec<_>>(), [(refused, true)]);
    // Its question did not get through: it comes again soon, and nothing spins meanwhile.
    queue.not_asked(refused, START + 1);
    assert!(work(&mut queue, START + 100).1.is_empty() && queue.next_due(START + 100).is_some_and(|at| at > START + 100));
    let (_, lookups) = work(&mut queue, START + 101);
    assert_eq!(lookups.iter().map(|lookup| (lookup.asking, lookup.anew)).collect::<Vec<_>>(), [(refused, true)]);
    // Another shard hears that the refusal counts no more, and fails nobody by it.
    let mut other = self::queue();
    enqueue(&mut other, 1, 5, &["a@nosuch.test"], START);
    let asking = work(&mut other, START).1[0].asking;
    let refusal = Resolution::Refused { reply: "550 5.1.2 no".into(), until: START + 60 * MINUTE };
    other.resolved(asking, &refusal, START);
    other.resolved(asking, &Resolution::Awaited, START);
    let (attempts, lookups) = work(&mut other, START);
    assert!(attempts.is_empty() && lookups.is_empty(), "it waits");
    other.resolved(asking, &site("s", &["192.0.2.1:25"], START + MINUTE), START);
    let (attempts, _) = work(&mut other, START);
    assert!(attempts.len() == 1 && other.verdict(&attempts[0]).is_none());
    other.resolved(asking, &Resolution::Awaited, START);
    attempts.into_iter().for_each(|dispatch| assert_eq!(other.abandon(dispatch, START), Settled::Nothing));
    assert_eq!(
        work(&mut other, START).0.into_iter().map(|dispatch| assert_eq!(other.abandon(dispatch, START), Settled::Nothing)).count(),
        1,
        "hosts are no refusal"
    );
}

/// It was put off as one that mail waits for; without that mail nobody asked, and other shards went on refusing by the old answer.
#[test]
fn a_retrys_question_that_was_put_off_is_asked_though_its_mail_is_withdrawn_meanwhile() {
    let mut queue = queue();
    enqueue(&mut queue, 1, 5, &["a@nosuch.test"], START);
    let refused = work(&mut queue, START).1[0].asking;
    let refusal = Resolution::Refused { reply: "550 5.1.2 no".into(), until: START + 60 * MINUTE };
    queue.resolved(refused, &refusal, START);
    let dispatch = work(&mut queue, START).0.pop().unwrap();
    let key = dispatch.key();
    let _ = queue.settle(dispatch, &[(0, Outcome::Failed { reply: b"550 5.1.2 no" })], START, &mut Vec::new());
    assert_eq!(queue.retry(key, &Filter::default(), START + 1, &mut Vec::new()), Some(Settled::Outcome));
    assert_eq!(work(&mut queue, START + 1).1.iter().map(|lookup| lookup.anew).collect::<Vec<_>>(), [true]);
    queue.not_asked(refused, START + 1);
    assert!(queue.purge(key, &Filter::default(), START + 50, &mut Vec::new()).is_some());
    assert!(work(&mut queue, START + 100).1.is_empty());
    assert!(queue.next_due(START + 100).is_some_and(|at| at > START + 100), "a time of its own brings it back");
    let (_, lookups) = work(&mut queue, START + 101);
    assert_eq!(lookups.iter().map(|lookup| (lookup.asking, lookup.anew)).collect::<Vec<_>>(), [(refused, true)]);
    // Nobody comes back to it: it is asked once more after two minutes, and no longer when there is an answer.
    assert!(work(&mut queue, START + 101 + 2 * MINUTE - 1).1.is_empty());
    assert_eq!(work(&mut queue, START + 101 + 2 * MINUTE).1.len(), 1);
    queue.resolved(refused, &refusal, START + 3 * MINUTE);
    assert!(work(&mut queue, START + 9 * MINUTE).1.is_empty());
}
