//! Nodes that are replaced one after another, as in an upgrade: mail passes between old and new ones, and either leads.
//!
//! `RINGPOST_EARLIER=/path/to/ringpost cargo test -p ringpost --test cluster replacement` begins with that program; without it each node is replaced by
//! its like.

use super::{
    shared_mail::{SHARES, mail_rig},
    *,
};

/// Mails to each node in each state of the cluster.
const MAILS: usize = 5;

impl Rig {
    /// To all nodes that run; whoever takes them over delivers them.
    fn send_to_all(&self, sent: &mut usize) {
        for node in self.nodes.iter().filter(|node| node.process.is_some()) {
            for _ in 0..MAILS {
                let content = format!("Subject: mail-{sent:04}\r\n\r\nx\r\n.");
                let replies = node.converse(&["EHLO x", "MAIL FROM:<a@x.test>", "RCPT TO:<b@y.test>", "DATA", &content]);
                assert!(replies[4].starts_with("250"), "{replies:?}");
                *sent += 1;
            }
        }
    }

    /// Stopped in order, with mail under way, and started as this version.
    fn replace(&mut self, number: usize) {
        self.nodes[number].process.as_ref().unwrap().signal("-TERM");
        let status = wait_within(PATIENCE * 2, "its end", || self.nodes[number].process.as_mut().unwrap().0.try_wait().unwrap());
        assert!(status.success(), "{status}");
        self.nodes[number].process = None;
        self.start_node(number);
    }
}

#[test]
fn nodes_are_replaced_one_after_another_and_no_mail_is_lost() {
    let mut rig = mail_rig(&[SHARES, SHARES, SHARES]);
    let key = rig.folder.path().join("key");
    fs::write(&key, "one key for all nodes of this cluster\n").unwrap();
    for node in &rig.nodes {
        node.set("[cluster]\n", &format!("[cluster]\nkey_file = \"{}\"\n", key.display()));
    }
    for number in 0..rig.nodes.len() {
        let earlier = std::env::var_os("RINGPOST_EARLIER").map_or_else(|| Command::new(env!("CARGO_BIN_EXE_ringpost")), Command::new);
        rig.start_node_by(number, earlier);
    }
    let (mut sent, file) = (0, rig.folder.path().join("push.toml"));
    rig.leader();
    rig.send_to_all(&mut sent);
    for number in 0..rig.nodes.len() {
        rig.send_to_all(&mut sent);
        rig.replace(number);
        wait_for("three healthy nodes", || (rig.nodes[number].get("/api/cluster/stats")?["healthy_nodes"] == 3).then_some(()));
        rig.send_to_all(&mut sent);
        // There and back: of the two masters either leads, and is followed by all.
        for _ in 0..2 {
            let leader = rig.leader();
            let (code, _, errors) = rig.nodes[number].cluster(&["handover"]);
            assert_eq!(code, 0, "{errors}");
            wait_for("another leader", || Some(rig.leader()).filter(|next| *next != leader));
            rig.send_to_all(&mut sent);
        }
        // A config that the new ones push the others run.
        fs::write(&file, format!("[smtp]\nrecipients_max = {}\n", 100 + number)).unwrap();
        let (code, _, errors) = rig.nodes[number].cluster(&["config", "push", file.to_str().unwrap(), "--author", "ann"]);
        assert_eq!(code, 0, "{errors}");
        let version = number as u64 + 1;
        wait_for("the config everywhere", || rig.nodes.iter().all(|node| node.config_version() == version).then_some(()));
        let all = wait_within(PATIENCE * 2, "delivery of all", || rig.all_there(sent));
        println!("{} of 3 replaced: {all} deliveries of {sent} mails", number + 1);
        assert_eq!(all, sent, "each once");
    }
    for node in 0..rig.nodes.len() {
        wait_for("an empty spool", || rig.messages_at(node).filter(|count| *count == 0));
    }
    wait_for("an empty queue", || (rig.pending(0)? == 0).then_some(()));
}
