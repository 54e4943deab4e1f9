//! Dead letters of mail: tried again where nobody owns them any more, and left to their owner where it is there.

use super::{
    pushed_settings::valkey,
    shared_mail::{ONLY_OFFERS, SHARES, delivered, mail_rig},
    *,
};

const MAILS: u64 = 6;
/// A node looks after a minute, and up to as long again.
const LOOK_MAX: Duration = Duration::from_secs(120).saturating_add(PATIENCE);

impl Rig {
    /// A worker leases all that is offered and goes away with it, until it is dead; and then six minutes pass, as far as Valkey can see.
    fn kill_what_is_offered(&self, count: u64) {
        let (queue, runtime) = (self.worker(), tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap());
        let lease_once = async || {
            for partition in 0..queue.bounds().partitions {
                queue.lease(partition, 64, 1000, 1, 1 << 20).await.ok()?;
                queue.recover(partition, 0).await.ok()?;
            }
            queue.stats().await.ok().filter(|stats| stats.failed == count)
        };
        wait_for("their death", || runtime.block_on(lease_once()));
        let earlier = "for _, key in ipairs(redis.call('KEYS', '*:dead')) do for _, id in ipairs(redis.call('ZRANGE', key, 0, -1)) do \
                       redis.call('ZINCRBY', key, -360000, id) end end return 1";
        valkey(self, &format!("EVAL \"{earlier}\" 0"));
    }
}

/// That takes a minute or two of waiting, and no work: nodes look no sooner.
#[test]
fn dead_letters_of_a_node_that_is_gone_are_delivered_and_those_of_one_that_is_there_are_left_to_it() {
    let mut rig = mail_rig(&[ONLY_OFFERS, ONLY_OFFERS, SHARES]);
    // Offline within the test, and not forgotten.
    rig.nodes.iter().for_each(|node| node.set("node_ttl = \"2s\"", "node_ttl = \"10s\""));
    rig.start_node(0);
    rig.send(0, MAILS as usize);
    wait_for("the offers of the one", || (rig.pending(0)? == MAILS).then_some(()));
    rig.nodes[0].process = None;
    rig.start_node(1);
    let replies = rig.nodes[1].converse(&["EHLO x", "MAIL FROM:<a@x.test>", "RCPT TO:<b@y.test>", "DATA", "Subject: kept\r\n\r\nx\r\n."]);
    assert!(replies[4].starts_with("250"), "{replies:?}");
    wait_for("the offer of the other", || (rig.pending(1)? == MAILS + 1).then_some(()));
    rig.kill_what_is_offered(MAILS + 1);

    rig.start_node(2);
    let all = wait_within(LOOK_MAX, "delivery of what nobody owns", || rig.all_there(MAILS as usize));
    assert_eq!(all, MAILS as usize, "each once");
    let dead = wait_for("the queue's account", || rig.nodes[2].shared_queue()?["failed"].as_u64());
    assert_eq!(dead, 1, "its owner offers it again in its time");
    assert!(!delivered(&rig.folder.path().join("mail")).contains(&"kept".to_owned()));
}
