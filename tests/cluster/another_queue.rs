//! A node whose mail is in one queue, and that is started with the settings of another.

use super::{
    shared_mail::{LOCAL, ONLY_OFFERS, mail_rig},
    *,
};

/// The note of what was offered held neither keyspace nor database: all of it was delivered a second time, and nothing said so.
#[test]
fn a_start_with_another_keyspace_or_database_says_what_it_leaves_behind() {
    const LEFT: &str = "is neither taken back nor settled from here";
    let mut rig = mail_rig(&[ONLY_OFFERS]);
    let url = format!("valkey://127.0.0.1:{}", rig.valkey_port);
    let by_name = url.replace("127.0.0.1", "localhost");
    let restart = |rig: &mut Rig, from: &str, to: &str| {
        rig.nodes[0].process = None;
        rig.nodes[0].set(from, to);
        rig.start_node(0);
    };
    rig.start_node(0);
    rig.send(0, 3);
    wait_for("three offers", || (rig.pending(0)? == 3).then_some(()));
    restart(&mut rig, "heartbeat_interval", "valkey_keyspace = \"ringpost:other\"\nheartbeat_interval");
    wait_for("a warning of the keyspace", || rig.nodes[0].has_logged(LEFT));
    restart(&mut rig, "ringpost:other", "ringpost:other");
    wait_for("three offers there", || (rig.pending(0)? == 3).then_some(()));
    assert_eq!(rig.nodes[0].has_logged(LEFT), None, "said once");
    restart(&mut rig, &url, &format!("{url}/1"));
    wait_for("a warning of the database", || rig.nodes[0].has_logged(LEFT));
    restart(&mut rig, &format!("{url}/1"), &format!("{by_name}/1"));
    wait_for("a warning of the server", || rig.nodes[0].has_logged("by way of another cluster.valkey_url"));
    restart(&mut rig, "valkey_keyspace = \"ringpost:other\"", "");
    wait_for("a warning of the keyspace", || rig.nodes[0].has_logged(LEFT));
    rig.nodes[0].set("valkey://localhost", "valkey://127.0.0.1");
    // Back to local: what is not found from here is not taken back.
    rig.nodes[0].set(&format!("{url}/1"), &url);
    restart(&mut rig, ONLY_OFFERS, LOCAL);
    wait_for("a warning of what is left", || rig.nodes[0].has_logged(LEFT));
    assert_eq!(wait_for("its own delivery", || rig.all_there(3)), 3);
}
