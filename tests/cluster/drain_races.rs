//! What a node takes over while it is emptied.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use super::{
    proxy::{Passage, runs},
    shared_mail::*,
    *,
};

/// In the place of a command: no server knows it. That is an answer, but none about the lease.
const REFUSED: &[u8] = b"*1\r\n$7\r\nREFUSED\r\n";

/// The number of claims was of now, and that of messages of up to a second ago: a claim that was decided between the two counted as neither, the drain
/// ended with 0, and the only copy of that mail was on the node that was to be retired.
#[test]
fn a_claim_that_is_decided_while_a_node_is_emptied_keeps_it_from_being_empty() {
    let mut rig = mail_rig(&[ONLY_OFFERS, SHARES, SHARES]);
    rig.hold_at(1);
    rig.load("queue_complete");
    let (was_asked, is_open) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let opens = is_open.clone();
    rig.by_way_of(1, move |words| match runs(words, "queue_complete") {
        // The owner hears that the worker has it, and settles; the worker hears nothing.
        true if !was_asked.swap(true, Ordering::SeqCst) => Passage::OneWay,
        true if !is_open.load(Ordering::SeqCst) => Passage::Instead(REFUSED),
        _ => Passage::Through,
    });
    rig.start_node(0);
    rig.start_node(1);
    rig.send(0, 1);
    wait_for("its owner to settle", || (rig.messages_at(0)? == 0).then_some(()));
    rig.start_node(2);
    let is_taker = |node: &Value| node["id"] == "n3" && node["metadata"]["takes_mail"] == "yes";
    wait_for("somebody to empty it into", || rig.nodes[1].get("/api/cluster/nodes")?.as_array()?.iter().any(is_taker).then_some(()));
    let mut program = Command::new(env!("CARGO_BIN_EXE_ringpost"));
    program.args(["drain", "--to-cluster", "--json", "-c"]).arg(&rig.nodes[1].config).stdout(Stdio::piped());
    let mut drain = Process(program.spawn().unwrap());
    let mut steps =
        BufReader::new(drain.0.stdout.take().unwrap()).lines().map(|line| serde_json::from_str::<Value>(&line.unwrap()).unwrap());
    // A look has just been, and the next is a second away.
    assert_eq!(steps.next().expect("a first step")["claims"], 1);
    opens.store(true, Ordering::SeqCst);
    let last = steps.by_ref().last().unwrap();
    assert_eq!(last["done"], true, "{last}");
    assert_eq!(drain.0.wait().unwrap().code(), Some(0));
    assert_eq!(rig.messages_at(1), Some(0), "it said that it is empty");
    assert_eq!(wait_for("delivery by the third", || rig.all_there(1)), 1);
}
