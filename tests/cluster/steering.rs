//! Commands and expiry of mail that is offered: it leaves the cluster's queue first, and a worker that has it keeps it.

use ringpost_cluster::{
    identity::Incarnation,
    keyspace::Keyspace,
    target::Target,
    valkey::Valkey,
    work_item::ItemKey,
    work_queue::{QueueBounds, WorkQueue},
};

use super::{shared_mail::*, *};

impl Rig {
    /// Ids at a node, by subject: mails are sent one after the other, and listed in that order.
    fn ids(&self, node: usize) -> Vec<String> {
        let lines = self.nodes[node].ringpost("queue", &["ls", "--json"]).1;
        let mut mails: Vec<(String, String)> = lines
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap())
            .filter(|mail| mail["sender"] != "")
            .map(|mail| (mail["accepted_at"].as_str().unwrap().to_owned(), mail["id"].as_str().unwrap().to_owned()))
            .collect();
        mails.sort();
        mails.into_iter().map(|(_, id)| id).collect()
    }

    fn subjects(&self) -> Vec<String> {
        delivered(&self.folder.path().join("mail"))
    }

    pub(super) fn pending(&self, node: usize) -> Option<u64> {
        self.nodes[node].shared_queue()?["total"].as_u64()
    }

    /// Another node's worker, as far as Valkey can see.
    pub(super) fn worker(&self) -> WorkQueue {
        let target = Target::parse(&format!("valkey://127.0.0.1:{}", self.valkey_port), None, None).unwrap();
        let keyspace = Keyspace::new("ringpost:cluster").unwrap();
        let bounds = QueueBounds { partitions: 4, capacity: 100_000, dead_max: 100 };
        let me = Incarnation::of_this_process("n9".parse().unwrap());
        WorkQueue::new(Valkey::new(target), keyspace, "email_delivery", bounds, ItemKey::new(b"ringpost:cluster"), me).unwrap()
    }

    pub(super) fn raw(&self, command: &str) {
        let mut stream = TcpStream::connect(("127.0.0.1", self.valkey_port)).unwrap();
        write!(stream, "{command}\r\nQUIT\r\n").unwrap();
        stream.read_to_string(&mut String::new()).unwrap();
    }
}

#[test]
fn what_is_purged_bounced_or_held_is_delivered_by_nobody() {
    let mut rig = mail_rig(&[ONLY_OFFERS, SHARES]);
    rig.start_node(0);
    // Mails of one second are listed by shard.
    let mut ids: Vec<String> = Vec::new();
    for number in 0..6 {
        rig.send(number, number + 1);
        ids.push(wait_for("the mail in its queue", || rig.ids(0).into_iter().find(|id| !ids.contains(id))));
    }
    // What is offered was counted as held.
    let summary: Value = serde_json::from_str(&rig.nodes[0].ringpost("queue", &["summary", "--json"]).1).unwrap();
    assert_eq!((&summary["offered"], &summary["held"], &summary["recipients"]), (&6.into(), &0.into(), &6.into()), "{summary}");
    wait_for("six offers", || (rig.pending(0)? == 6).then_some(()));
    for (command, id) in [("purge", &ids[0]), ("bounce", &ids[1]), ("hold", &ids[2])] {
        let (code, text, errors) = rig.nodes[0].ringpost("queue", &[command, id]);
        assert_eq!(code, 0, "{command}: {text} {errors}");
    }
    let (code, _, errors) = rig.nodes[0].ringpost("queue", &["set-expiry", &ids[3], "1h"]);
    assert_eq!(code, 0, "{errors}");
    let (code, _, errors) = rig.nodes[0].ringpost("queue", &["reroute", "--to", "*", &ids[4]]);
    assert!(code == 1 && errors.contains("delivery.deliver = false"), "{errors}");
    assert!(rig.nodes[0].ringpost("queue", &["show", &ids[2]]).1.contains("held"));
    rig.start_node(1);
    // The fourth was offered again; the sender of the second hears of it.
    assert_eq!(wait_for("delivery of the rest", || rig.all_there(3).filter(|_| rig.subjects().len() == 4)), 3);
    let subjects = rig.subjects();
    assert!(["mail-0003", "mail-0004", "mail-0005"].iter().all(|left| subjects.iter().any(|subject| subject == left)), "{subjects:?}");
    assert_eq!(rig.nodes[0].ringpost("queue", &["release", &ids[2]]).0, 0);
    assert_eq!(wait_for("the released one", || rig.all_there(4)), 4);
    wait_for("an empty queue", || (rig.pending(1)? == 0).then_some(()));
    assert!(!rig.subjects().contains(&"mail-0000".to_owned()) && !rig.subjects().contains(&"mail-0001".to_owned()));
}

#[test]
fn what_a_worker_has_leased_or_nobody_can_ask_for_stays_as_it_is_and_is_said() {
    let mut rig = mail_rig(&[ONLY_OFFERS]);
    rig.start_node(0);
    rig.send(0, 3);
    wait_for("three offers", || (rig.pending(0)? == 3).then_some(()));
    let worker = rig.worker();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let leased: usize = runtime.block_on(async {
        let mut leased = 0;
        for partition in 0..4 {
            leased += worker.lease(partition, 64, 3000, 3000, 1 << 20).await.unwrap().1.len();
        }
        leased
    });
    assert_eq!(leased, 3);
    let (code, text, errors) = rig.nodes[0].ringpost("queue", &["purge", "--all", "--json"]);
    assert_eq!((code, text.trim()), (1, r#"{"changed":0,"taken":3,"unanswered":0}"#), "{errors}");
    assert!(errors.contains("another node of the cluster is taking them over"), "{errors}");
    // The lease ends without a word; then it can be purged.
    wait_for("the end of the leases", || {
        let stats = rig.nodes[0].shared_queue()?;
        (stats["processing"] == 0).then_some(())
    });
    assert_eq!(rig.nodes[0].ringpost("queue", &["purge", &rig.ids(0)[0]]).0, 0);

    rig.valkey = None;
    let (code, _, errors) = rig.nodes[0].ringpost("queue", &["purge", "--all"]);
    assert!(code == 1 && errors.contains("Valkey does not answer"), "{code} {errors}");
    assert_eq!(rig.ids(0).len(), 2);
}

#[test]
fn mail_that_expires_while_valkey_is_away_is_bounced_once_and_delivered_by_nobody() {
    let mut rig = mail_rig(&[ONLY_OFFERS, SHARES]);
    rig.start_node(0);
    rig.send(0, 5);
    wait_for("five offers", || (rig.pending(0)? == 5).then_some(()));
    assert_eq!(rig.nodes[0].ringpost("queue", &["set-expiry", "--all", "6s"]).0, 0);
    wait_for("five offers again", || (rig.pending(0)? == 5).then_some(()));
    // Valkey keeps its data, and answers nobody.
    rig.valkey.as_ref().unwrap().signal("-STOP");
    wait_for("the reports", || {
        let lines = rig.nodes[0].ringpost("queue", &["ls", "--json"]).1;
        let senders: Vec<Value> = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["sender"].clone()).collect();
        (!senders.is_empty() && senders.iter().all(|sender| sender == "")).then_some(())
    });
    // A new process knows nothing of what was in the queue: it looks.
    rig.nodes[0].process = None;
    rig.start_node(0);
    rig.valkey.as_ref().unwrap().signal("-CONT");
    rig.start_node(1);
    wait_for("the reports' delivery", || (!rig.subjects().is_empty() && rig.ids(0).is_empty() && rig.pending(1)? == 0).then_some(()));
    let subjects = rig.subjects();
    println!("{subjects:?}");
    assert!(!subjects.iter().any(|subject| subject.starts_with("mail-")), "{subjects:?}");
    // Failures of one sender that come together may share a report; none is told twice.
    assert!(subjects.len() <= 5, "{subjects:?}");
}

#[test]
fn old_dead_letters_are_removed_by_the_leader() {
    let mut rig = mail_rig(&[ONLY_OFFERS]);
    rig.start_node(0);
    rig.send(0, 1);
    wait_for("the offer", || (rig.pending(0)? == 1).then_some(()));
    let worker = rig.worker();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let dies = async || {
        for partition in 0..4 {
            if let Some(item) = worker.lease(partition, 64, 3000, 3000, 1 << 20).await.unwrap().1.pop() {
                worker.fail(&item.id, &item.token, ringpost_cluster::work_queue::Retry::Never, "for the test").await.unwrap();
                return (partition, item.id);
            }
        }
        panic!("nothing was offered");
    };
    let (partition, id) = runtime.block_on(dies());
    wait_for("the dead letter", || (rig.nodes[0].shared_queue()?["failed"] == 1).then_some(()));
    // An id that is none's was once done without a word.
    for command in ["requeue", "purge"] {
        let (code, text, errors) = rig.nodes[0].cluster(&["queue", command, "nobody"]);
        assert_eq!((code, &*text), (1, "0 done\n"), "{errors}");
        assert!(errors.contains("1 of the 1 named are no dead letters"), "{errors}");
    }
    let (code, text, errors) = rig.nodes[0].cluster(&["queue", "requeue", &id, &id]);
    assert_eq!((code, &*text, &*errors), (0, "1 done\n", ""));
    assert_eq!(runtime.block_on(dies()), (partition, id.clone()));
    // A retry said that the mail was retried, and did nothing.
    let (code, text, errors) = rig.nodes[0].ringpost("queue", &["retry", &rig.ids(0)[0]]);
    assert_eq!((code, text.trim()), (1, "0 messages retried"), "{errors}");
    assert!(errors.contains("offered to the cluster; ") && errors.contains("`ringpost cluster queue requeue`"), "{errors}");
    rig.leader();
    // As if leaders had watched it for fifteen days; the leader looks every five seconds.
    let watched_ms = 15 * 24 * 3600 * 1000_u64;
    rig.raw(&format!("HSET {{ringpost:cluster:q:email_delivery:{partition}}}:counters watched {watched_ms}"));
    wait_for("its removal", || {
        let stats = rig.nodes[0].shared_queue()?;
        (stats["counters"]["purged"] == 1).then_some(())
    });
    // The mail is where it was, and is offered again.
    assert_eq!(rig.ids(0).len(), 1);
    wait_for("the new offer", || (rig.nodes[0].shared_queue()?["pending"] == 1).then_some(()));
}

#[test]
fn mail_that_valkey_refuses_is_delivered_by_its_own_node() {
    let mut rig = mail_rig(&[SHARES]);
    // Nobody may put them aside.
    rig.raw("ACL SETUSER default -rename");
    let keys = (0..4).map(|partition| format!("{{ringpost:cluster:q:email_delivery:{partition}}}:meta"));
    keys.clone().for_each(|key| rig.raw(&format!("SET {key} damaged")));
    rig.start_node(0);
    rig.send(0, 5);
    assert_eq!(wait_for("its own delivery", || rig.all_there(5)), 5);
    assert_eq!(wait_for("Valkey's answer", || rig.pending(0)), 0);
    keys.for_each(|key| rig.raw(&format!("DEL {key}")));
    rig.send(5, 10);
    assert_eq!(wait_for("delivery as before", || rig.all_there(10)), 10);
}

/// An owner looked through the queue at its own start only: a Valkey that was killed and had a snapshot gave to workers again what was
/// completed and settled since.
#[test]
fn what_was_settled_before_valkey_went_back_in_time_is_not_delivered_again() {
    let mut rig = mail_rig(&[ONLY_OFFERS, SHARES]);
    rig.start_node(0);
    rig.send(0, 5);
    wait_for("five offers", || (rig.pending(0)? == 5).then_some(()));
    rig.raw("SAVE");
    rig.start_node(1);
    assert_eq!(wait_for("delivery", || rig.all_there(5)), 5);
    wait_for("settling", || rig.ids(0).is_empty().then_some(()));
    rig.nodes[1].process = None;
    rig.valkey = None;
    rig.start_valkey();
    let withdrawn = |rig: &Rig| rig.nodes[0].shared_queue()?["counters"]["withdrawn"].as_u64();
    wait_for("its owner to take it out", || (withdrawn(&rig)? == 5).then_some(()));
    rig.start_node(1);
    rig.send(5, 6);
    assert_eq!(wait_for("delivery of what is new", || rig.all_there(6)), 6, "each once");
}
