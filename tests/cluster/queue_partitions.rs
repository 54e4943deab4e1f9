//! Nodes that differ in the number of the work queue's partitions.

use super::{pushed_settings::ask, shared_mail::*, *};

const MAILS: usize = 24;

impl Rig {
    fn set_partitions(&self, node: usize, from: &str, to: &str) {
        self.nodes[node].set(&format!("config_poll = \"1s\"{from}"), &format!("config_poll = \"1s\"{to}"));
    }

    fn status(&self, node: usize) -> Value {
        let (code, text, errors) = self.nodes[node].cluster(&["status", "--json"]);
        serde_json::from_str(&text).unwrap_or_else(|_| panic!("{code} {text} {errors}"))
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
    // The number is changed for all.
    rig.nodes[1].process = None;
    rig.set_partitions(1, "", "\nqueue_partitions = 8");
    rig.start_node(1);
    assert_eq!(ask(&rig, "GET {ringpost:cluster:c}:partitions"), "$1\r\n4\r\n");
    wait_for("the command", || (rig.nodes[1].cluster(&["queue", "partitions", "8"]).0 == 0).then_some(()));
    assert_eq!(wait_for("delivery of all", || rig.all_there(MAILS)), MAILS, "each once");
    assert_eq!(ask(&rig, "GET {ringpost:cluster:c}:partitions"), "$1\r\n8\r\n");
}

/// What came first stayed in force: all right nodes differed, no command named it, and to have it forgotten all nodes had to be stopped.
#[test]
fn a_wrong_number_that_came_first_is_told_and_replaced_by_one_command() {
    let mut rig = mail_rig(&[ONLY_OFFERS, SHARES, SHARES]);
    rig.set_partitions(1, "", "\nqueue_partitions = 3");
    for node in [1, 0, 2] {
        rig.start_node(node);
        wait_for("the number in force", || (rig.status(node)["queue_partitions_in_force"] == 3).then_some(()));
    }
    rig.says_it_differs(0, 4, 3);
    let number = |node: usize| rig.status(node)["queue_partitions"].clone();
    assert_eq!([0, 1, 2].map(number), [4, 3, 4].map(Value::from));
    let all = wait_for("each node's number", || {
        let (_, text, _) = rig.nodes[2].cluster(&["nodes"]);
        text.contains("3 (n2), 4 (n1, n3)").then_some(text)
    });
    assert!(all.contains("if 4 is right, set 4 on all nodes and call `ringpost cluster queue partitions 4`"), "{all}");
    // Others that take mail would not find what this one offers.
    let (code, _, errors) = rig.nodes[1].ringpost("drain", &["--to-cluster"]);
    assert!(code == 1 && errors.contains("no other node of the cluster takes mail"), "{code} {errors}");
    // A node has the wrong one, and would go on with it.
    let set = |rig: &Rig| rig.nodes[0].cluster(&["queue", "partitions", "4", "--json"]);
    let errors = wait_for("its refusal", || {
        let (code, _, errors) = set(&rig);
        assert_ne!(code, 0, "{errors}");
        (code == 1).then_some(errors)
    });
    assert!(errors.contains("n2 has 3: set cluster.queue_partitions = 4 in the file of each"), "{errors}");

    rig.nodes[1].process = None;
    rig.set_partitions(1, "\nqueue_partitions = 3", "");
    rig.start_node(1);
    rig.send(0, MAILS);
    assert_eq!(rig.messages_at(0), Some(MAILS), "it takes no part");
    let (code, answer) = wait_for("the mended node's word", || {
        let (code, answer, errors) = set(&rig);
        assert!(code == 0 || code == 69 || errors.contains("n2 has 3"), "{code} {errors}");
        (code == 0).then(|| (code, serde_json::from_str::<Value>(&answer).unwrap()))
    });
    assert_eq!((code, &answer["before"], &answer["result"]), (0, &Value::from(3), &Value::from("set")));
    wait_for("that nothing is to be changed", || (set(&rig).0 == 0).then_some(()));
    for node in 0..3 {
        wait_for("the number everywhere", || (rig.status(node)["queue_partitions_in_force"] == 4).then_some(()));
    }
    assert_eq!(wait_for("delivery of all", || rig.all_there(MAILS)), MAILS, "each once");
    assert!(!rig.nodes[0].cluster(&["nodes"]).1.contains("not the same on all nodes"));
}

/// Items are found by the number that they were put in by.
#[test]
fn a_number_is_not_replaced_over_mail_that_nobody_would_find() {
    let mut rig = mail_rig(&[ONLY_OFFERS, LOCAL]);
    rig.start_node(0);
    rig.leader();
    rig.send(0, MAILS);
    wait_for("the offers", || (rig.pending(0)? == MAILS as u64).then_some(()));
    rig.nodes[0].process = None;
    rig.set_partitions(1, "", "\nqueue_partitions = 8");
    rig.start_node(1);
    let set = |more: &[&str]| rig.nodes[1].cluster(&[&["queue", "partitions", "8"], more].concat());
    // The one that is away is there for a while.
    let errors = wait_for("that it is the items alone", || {
        let (code, _, errors) = set(&[]);
        assert_ne!(code, 0, "{errors}");
        // Valkey may have no time just then.
        (code == 1 && !errors.contains("n1 has 4")).then_some(errors)
    });
    assert!(errors.contains(&format!("{MAILS} items that were put into it over 4 partitions")), "{errors}");
    assert_eq!(ask(&rig, "GET {ringpost:cluster:c}:partitions"), "$1\r\n4\r\n");
    let text = wait_for("the command", || {
        let (code, text, _) = set(&["--force"]);
        (code == 0).then_some(text)
    });
    assert!(text.contains("the queue has 8 partitions; before: 4"), "{text}");
}
