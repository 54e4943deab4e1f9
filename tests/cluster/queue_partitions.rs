//! Nodes that differ in the number of the work queue's partitions.

use super::{
    pushed_settings::{ask, valkey},
    shared_mail::*,
    *,
};

const MAILS: usize = 24;

impl Rig {
    fn set_partitions(&self, node: usize, from: &str, to: &str) {
        self.nodes[node].set(&format!("config_poll = \"1s\"{from}"), &format!("config_poll = \"1s\"{to}"));
    }

    /// What a node says is wrong with it, by whom it is asked over HTTP and by its command.
    fn says_it_differs(&self, node: usize, own: u16, cluster: u16) {
        let words = [format!("cluster.queue_partitions is {own}"), format!("has {cluster}")];
        let tells = |value: &Value| {
            let error = value["local_last_error"].as_str().unwrap_or_default();
            value["local_node_status"] == "degraded" && words.iter().all(|word| error.contains(word))
        };
        for path in ["/ready", "/api/cluster/stats"] {
            wait_for("its word", || self.nodes[node].get(path).filter(tells));
        }
        let (code, text, errors) = self.nodes[node].cluster(&["status", "--json"]);
        assert!(code == 0 && tells(&serde_json::from_str(&text).unwrap()), "{code} {text} {errors}");
        let (code, _, errors) = self.nodes[node].cluster(&["queue", "stats"]);
        assert!(code != 0 && words.iter().all(|word| errors.contains(word)), "{code} {errors}");
    }
}

/// Items of one node were looked for in other partitions by the next: some mail waited for ever, some was delivered and became a dead letter all
/// the same, was offered again and delivered again after five, ten and twenty minutes, and nobody said a word.
#[test]
fn a_node_with_another_number_of_partitions_takes_no_part_and_says_so_once() {
    let mut rig = mail_rig(&[ONLY_OFFERS, SHARES, SHARES]);
    rig.set_partitions(1, "", "\nqueue_partitions = 3");
    rig.start_node(0);
    rig.start_node(2);
    rig.leader();
    rig.start_node(1);
    rig.says_it_differs(1, 3, 4);
    rig.send(0, MAILS);
    assert_eq!(wait_for("delivery of all", || rig.all_there(MAILS)), MAILS, "each once");
    wait_for("an empty queue", || (rig.pending(0)? == 0 && rig.messages_at(0)? == 0).then_some(()));
    let by_the_other = rig.folder.path().join("mail/n2");
    assert!(delivered(&by_the_other).is_empty(), "it takes nothing");
    // Its own it delivers itself.
    assert!(rig.nodes[1].accepts_mail());
    wait_for("its own mail", || (delivered(&by_the_other).len() == 1).then_some(()));
    let log = fs::read_to_string(rig.nodes[1].config.with_extension("log")).unwrap();
    assert_eq!(log.matches("cluster.queue_partitions of this node is not that of the cluster").count(), 1, "{log}");

    // As many as the others have: it is one of them.
    rig.set_partitions(1, "\nqueue_partitions = 3", "");
    rig.nodes[1].process = None;
    rig.nodes[2].process = None;
    rig.start_node(1);
    rig.send(MAILS, MAILS + 8);
    assert_eq!(wait_for("delivery by the mended node", || rig.all_there(MAILS + 8)), MAILS + 8, "each once");
}

/// A front end that differs keeps its mail, and offers it once it does not.
#[test]
fn mail_of_a_front_end_that_differs_waits_there_and_goes_when_the_number_is_changed_for_all() {
    let mut rig = mail_rig(&[ONLY_OFFERS, SHARES]);
    rig.start_node(1);
    rig.leader();
    rig.set_partitions(0, "", "\nqueue_partitions = 8");
    rig.start_node(0);
    rig.says_it_differs(0, 8, 4);
    rig.send(0, MAILS);
    assert_eq!(rig.messages_at(0), Some(MAILS));
    // The number is changed for all: nobody runs with the old one when it is forgotten.
    for node in [0, 1] {
        rig.nodes[node].process = None;
    }
    rig.set_partitions(1, "", "\nqueue_partitions = 8");
    assert_eq!(ask(&rig, "GET {ringpost:cluster:c}:partitions"), "$1\r\n4\r\n");
    valkey(&rig, "DEL {ringpost:cluster:c}:partitions");
    rig.start_node(1);
    rig.start_node(0);
    assert_eq!(wait_for("delivery of all", || rig.all_there(MAILS)), MAILS, "each once");
    assert_eq!(ask(&rig, "GET {ringpost:cluster:c}:partitions"), "$1\r\n8\r\n");
}
