//! Keys of the queue that are lost or damaged while the mail in it has no other owner that would see to it.

use super::{
    pushed_settings::valkey,
    shared_mail::{ONLY_OFFERS, SHARES, mail_rig},
    *,
};

const MAILS: u64 = 12;
/// A leader looks through the queue each five seconds.
const LOOK_MAX: Duration = Duration::from_secs(15).saturating_add(PATIENCE);

/// Its owner asked for none, so nobody put back what Valkey had lost the places of: mail lay in Valkey that nobody found.
#[test]
fn mail_of_a_node_that_is_gone_is_delivered_though_its_places_in_the_queue_are_lost() {
    let mut rig = mail_rig(&[ONLY_OFFERS, SHARES]);
    rig.start_node(0);
    rig.send(0, MAILS as usize);
    wait_for("its offers", || (rig.pending(0)? == MAILS).then_some(()));
    rig.nodes[0].process = None;
    // All is lost but the items themselves; and one of the keys is another thing by now.
    let lose = "for _, kind in ipairs({'ready', 'ages', 'scheduled', 'timed', 'held', 'workers', 'dead'}) do \
                for _, key in ipairs(redis.call('KEYS', '*:' .. kind)) do redis.call('DEL', key) \
                if kind == 'ages' then redis.call('SET', key, 'damage') end end end return 1";
    valkey(&rig, &format!("EVAL \"{lose}\" 0"));

    rig.start_node(1);
    assert_eq!(wait_within(LOOK_MAX, "delivery by the other", || rig.all_there(MAILS as usize)), MAILS as usize, "each once");
    assert!(rig.nodes[1].has_logged("a key of the work queue was damaged").is_some());
    assert!(rig.nodes[1].has_logged("items of the work queue were in none of its places").is_some());
    wait_for("the leader's account of the damage", || {
        let (_, text, _) = rig.nodes[1].cluster(&["status", "--json"]);
        let status: Value = serde_json::from_str(&text).ok()?;
        (status["queue"]["damage"]["quarantined"].as_u64()? > 0).then_some(())
    });
}
