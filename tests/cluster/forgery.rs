//! What somebody writes into Valkey who has its password and not the cluster's key.

use super::{
    shared_mail::{ONLY_OFFERS, SHARES, mail_rig},
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
