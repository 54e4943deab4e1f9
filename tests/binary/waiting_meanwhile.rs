//! What ends, or is commanded, while mail waits for its turn at another shard, or in the pool for a connection.

use std::net::TcpListener;

use crate::client::Client;
use crate::commanded_meanwhile::Held;
use crate::next_hop::NextHop;
use crate::node::{Node, Setup};
use crate::queue_steering::{deliver, say};
use crate::shards::{on_one_core, shard_of};

/// As [`deliver`], with an end of life (RFC 2852) after so many seconds.
fn deliver_by(node: &Node, seconds: u32, recipient: &str) -> String {
    let mut client = Client::greeted(node.address);
    client.must(&format!("MAIL FROM:<a@x.test> BY={seconds};R"), "250");
    client.must(&format!("RCPT TO:<{recipient}>"), "250");
    client.must("DATA", "354");
    let reply = client.say("Subject: x\r\n\r\nx\r\n.");
    reply.trim_end().rsplit_once("id=").unwrap().1.to_owned()
}

/// Mail of one of the shards waits at the other for the one connection to slow.test: it was not ended when its life was over, and was delivered whenever
/// its turn came. So it was where a command had said how long it lives.
#[test]
fn what_waits_for_its_turn_at_another_shard_expires_at_its_time() {
    let (listener, hop) = (TcpListener::bind("127.0.0.1:0").unwrap(), NextHop::start());
    let slow = format!("[[route]]\ndomain = \"slow.test\"\nvia = \"smarthost\"\nhosts = [\"{}\"]\n", listener.local_addr().unwrap());
    let node = Node::start(&on_one_core(Setup { extra: (slow + "connections_max = 1\n").leak(), ..Setup::to(hop.address) }, 2));
    deliver(&node, "", &["first@slow.test"]);
    let busy = Held::up_to_the_dot(&listener);
    let mut of_shards = [Vec::new(), Vec::new()];
    while of_shards.iter().any(|ids| ids.len() < 4) {
        let id = deliver(&node, "a@x.test", &["b@slow.test"]);
        let by = deliver_by(&node, 3, "c@slow.test");
        for id in [id, by] {
            of_shards[shard_of(&id)].push(id);
        }
    }
    let ids: Vec<String> = of_shards.concat();
    for id in &ids {
        let is_by = node.queue().iter().any(|one| one["id"] == **id && one["recipients"][0]["address"] == "c@slow.test");
        if !is_by {
            assert!(say(&node, &["queue", "set-expiry", id, "2s"]).starts_with("1 message given another end of life"));
        }
    }
    let reports = hop.wait_for(ids.len());
    assert!(reports.iter().all(|report| report.recipients == ["a@x.test"]), "{reports:?}");
    let log = node.wait_for_mail_log_that("their ends", |log| ids.iter().all(|id| log.contains(&format!("queue_id={id} event=expired"))));
    assert_eq!(log.matches("event=expired").count(), ids.len(), "one end each: {log}");
    let queue = node.wait_for_queue(|queue| queue.len() == 1);
    assert_eq!(queue[0]["recipients"][0]["address"], "first@slow.test");
    busy.end("250 2.0.0 Ok");
    node.wait_for_queue(<[_]>::is_empty);
    assert_eq!(hop.messages().len(), ids.len(), "one report each");
}

/// As many connections as the process may have are at hosts that hang, so that mail for another destination waits in the pool.
#[test]
fn what_waits_for_a_connection_heeds_commands() {
    // Of so few descriptors eight are for connections.
    const CONNECTIONS: usize = 8;
    let (hanging, other, hop) = (TcpListener::bind("127.0.0.1:0").unwrap(), NextHop::start(), NextHop::start());
    let slow = format!("[[route]]\ndomain = \"slow.test\"\nvia = \"smarthost\"\nhosts = [\"{}\"]\n", hanging.local_addr().unwrap());
    let backup = format!("[[route]]\ndomain = \"backup.test\"\nvia = \"smarthost\"\nhosts = [\"{}\"]\n", hop.address);
    let setup = Setup {
        extra: (slow + "connections_max = 8\n" + &backup).leak(),
        retries: "[delivery]\nwindow_initial = 8\nwait_timeout = \"1h\"\n",
        open_files: Some(64),
        ..Setup::to(other.address)
    };
    let node = Node::start(&on_one_core(setup, 1));
    let mut held = Vec::new();
    for _ in 0..CONNECTIONS {
        deliver(&node, "", &["first@slow.test"]);
        held.push(Held::up_to_the_dot(&hanging));
    }
    let ids: Vec<String> = (0..6).map(|_| deliver(&node, "", &["b@y.test"])).collect();
    node.wait_for_queue(|queue| {
        ids.iter().all(|id| queue.iter().any(|one| one["id"] == **id && one["recipients"][0]["state"] == "active"))
    });
    let [kept, gone, failed, moved, ended, goes] = ids.as_slice() else { panic!("six") };
    for (words, said) in [
        (vec!["queue", "hold", kept], "1 message held"),
        (vec!["queue", "purge", gone], "1 message "),
        (vec!["queue", "bounce", failed], "1 message "),
        (vec!["queue", "reroute", moved, "--to", "backup.test"], "1 message re-routed"),
        (vec!["queue", "set-expiry", ended, "0s"], "1 message given another end of life"),
    ] {
        let told = say(&node, &words);
        assert!(told.starts_with(said), "{told}");
    }
    // They do not wait for a connection: none has become free.
    let queue =
        node.wait_for_queue(|queue| queue.iter().all(|one| ![gone, failed, ended].contains(&&one["id"].as_str().unwrap().to_owned())));
    let state = |id: &String| queue.iter().find(|one| one["id"] == **id).map(|one| one["recipients"][0]["state"].clone());
    assert_eq!(state(kept), Some("held".into()));
    held.pop().unwrap().end("250 2.0.0 Ok");
    // What nothing was commanded for goes, and nothing else with it.
    other.wait_for(1);
    held.into_iter().for_each(|held| held.end("250 2.0.0 Ok"));
    assert_eq!(hop.wait_for(1)[0].recipients, ["b@y.test"]);
    let queue = node.wait_for_queue(|queue| queue.len() == 1);
    assert_eq!(queue[0]["id"], **kept);
    assert_eq!((other.messages().len(), hop.messages().len()), (1, 1), "{goes}");
}
