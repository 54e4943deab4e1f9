//! What somebody writes into Valkey who has its password and not the cluster's key.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use super::{
    proxy::{Passage, runs},
    shared_mail::{CLAIM_DECIDED_MAX, ONLY_OFFERS, SHARES, mail_rig},
    *,
};

/// An owner settled what a record in Valkey said was taken over, whoever had written it: the mail was lost.
#[test]
fn a_forged_completion_loses_no_mail() {
    const MAILS: usize = 8;
    let mut rig = mail_rig(&[ONLY_OFFERS, SHARES]);
    let key = rig.folder.path().join("key");
    fs::write(&key, "the cluster's secret\n").unwrap();
    rig.nodes.iter().for_each(|node| node.set("[cluster]\n", &format!("[cluster]\nkey_file = \"{}\"\n", key.display())));
    rig.start_node(0);
    rig.send(0, MAILS);
    wait_for("the offers", || (rig.pending(0)? == MAILS as u64).then_some(()));
    for partition in 0..4 {
        let tag = format!("{{ringpost:cluster:q:email_delivery:{partition}}}");
        let forge = format!(
            "for _, id in ipairs(redis.call('HKEYS', '{tag}:meta')) do \
             redis.call('HSET', '{tag}:outcomes', id, string.char(48, 10) .. 'n1' .. string.char(10) .. 'n9 0001') \
             redis.call('ZADD', '{tag}:done', 1, id) \
             redis.call('PUBLISH', 'ringpost:cluster:done:email_delivery:n1', id .. ' n9 0001') \
             end \
             for _, name in ipairs({{'ready', 'ages', 'meta', 'body'}}) do redis.call('DEL', '{tag}:' .. name) end"
        );
        rig.raw(&format!("EVAL \"{forge}\" 0"));
    }
    wait_for("their refusal", || (rig.count("unproven") == MAILS as u64).then_some(()));
    wait_for("the word about it", || rig.nodes[0].has_logged("is not signed with this node's cluster.key_file"));
    wait_for("the new offers", || (rig.pending(0)? == MAILS as u64).then_some(()));
    rig.start_node(1);
    assert_eq!(wait_for("delivery of all", || rig.all_there(MAILS)), MAILS, "each once");
}

/// A worker that had not heard the answer to its completions was told, when it repeated them, that the items were under others' leases, by whoever had
/// written that: it dropped its copies, which were the last.
#[test]
fn a_forged_lease_loses_no_mail() {
    const MAILS: usize = 8;
    let mut rig = mail_rig(&[ONLY_OFFERS, SHARES]);
    let is_whole = Arc::new(AtomicBool::new(false));
    let seen = is_whole.clone();
    rig.by_way_of(
        1,
        move |words| {
            if runs(words, "queue_complete") && !seen.load(Ordering::SeqCst) { Passage::OneWay } else { Passage::Through }
        },
    );
    rig.start_node(0);
    rig.load("queue_complete");
    rig.start_node(1);
    rig.send(0, MAILS);
    // The worker's circuit opens with each completion that is not answered, and what it is to complete next waits for it to close.
    wait_within(CLAIM_DECIDED_MAX, "settling by the owner", || rig.messages_at(0).filter(|count| *count == 0));
    rig.nodes[1].process = None;
    let in_each_part = |rig: &Rig, script: &str| {
        (0..4).for_each(|part| {
            let tag = format!("{{ringpost:cluster:q:email_delivery:{part}}}");
            rig.raw(&format!("EVAL \"{}\" 0", script.replace("TAG", &tag)));
        });
    };
    in_each_part(
        &rig,
        "for _, id in ipairs(redis.call('HKEYS', 'TAG:outcomes')) do \
         redis.call('HSET', 'TAG:meta', id, cmsgpack.pack({'L', 4, 1, 5, 1, 0, 'n1', 'forged', 'n9', ''})) \
         redis.call('ZADD', 'TAG:timed', 9e12, id) \
         end redis.call('DEL', 'TAG:outcomes', 'TAG:done')",
    );
    is_whole.store(true, Ordering::SeqCst);
    rig.start_node(1);
    wait_for("the refusals", || (rig.count("stale") >= MAILS as u64).then_some(()));
    assert_eq!(rig.all_there(0), Some(0), "nobody knows whose they are");
    in_each_part(&rig, "redis.call('DEL', 'TAG:meta', 'TAG:timed')");
    assert_eq!(wait_within(CLAIM_DECIDED_MAX, "delivery of all", || rig.all_there(MAILS)), MAILS, "each once");
}
