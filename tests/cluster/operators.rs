//! What operators see and ask: how nodes are, what the queue has, and every command with what it says.

use std::sync::{Arc, atomic::AtomicU64};

use super::{
    proxy::{Passage, proxy, runs},
    pushed_settings::{ask, valkey},
    *,
};

/// A node whose disk was full called itself healthy, and so did one whose spool had failed.
#[test]
fn a_node_that_turns_mail_away_says_that_it_is_degraded_and_why() {
    let folder = tempfile::tempdir().unwrap();
    let valkey_port = free_port();
    let nodes = (1..=2).map(|number| node_files(folder.path(), number, valkey_port)).collect();
    let mut rig = Rig { folder, valkey_port, valkey: None, nodes };
    let text = fs::read_to_string(&rig.nodes[0].config).unwrap();
    // More than this disk has.
    fs::write(&rig.nodes[0].config, text.replace("min_free_bytes = \"1 MiB\"", "min_free_bytes = \"1024 GiB\"")).unwrap();
    rig.start_valkey();
    (0..2).for_each(|number| rig.start_node(number));
    let shown = wait_for("its word", || {
        let nodes = rig.nodes[1].get("/api/cluster/nodes")?;
        nodes.as_array()?.iter().find(|node| node["id"] == "n1" && node["status"] == "degraded").cloned()
    });
    assert!(shown["last_error"].as_str().unwrap().contains("spool.min_free_bytes"), "{shown}");
    assert_eq!(rig.nodes[0].get("/api/cluster/stats").unwrap()["local_node_status"], "degraded");
    assert_eq!(rig.nodes[1].get("/api/cluster/stats").unwrap()["local_node_status"], "healthy");
    let (_, lines, _) = rig.nodes[1].cluster(&["nodes"]);
    assert!(lines.contains("new mail gets 452"), "{lines}");
}
