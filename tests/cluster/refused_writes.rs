//! A real Valkey that answers and takes no writes, for reasons that its operator mends while it runs.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use super::{
    proxy::{Passage, runs},
    shared_mail::{ONLY_OFFERS, SHARES, delivered, mail_rig},
    *,
};

const MAILS: usize = 6;
/// What was offered before is delivered here a lease and a second later, which are four.
const OWN_DELIVERY_MAX: Duration = Duration::from_secs(12);
/// What was refused is offered again every ten seconds.
const RECONCILED_MAX: Duration = Duration::from_secs(15).saturating_add(PATIENCE);

impl Rig {
    /// What a command is answered with.
    fn ask(&self, command: &str) -> String {
        let mut stream = TcpStream::connect(("127.0.0.1", self.valkey_port)).unwrap();
        write!(stream, "{command}\r\nQUIT\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    fn stats(&self) -> Option<Value> {
        self.nodes[0].get("/api/cluster/stats")
    }

    /// While writes are refused mail is accepted and delivered here, and nobody leads; once they are taken again it is shared as before.
    fn lives_through(&mut self, refusal: &str, begin: impl Fn(&Rig), end: impl Fn(&Rig)) {
        self.start_node(0);
        self.leader();
        self.send(0, MAILS);
        assert_eq!(wait_for("shared delivery", || self.all_there(MAILS)), MAILS);
        let shared = self.count("completed");
        begin(self);
        let refused = self.ask("SET {ringpost:cluster:c}:any 1");
        assert!(refused.starts_with(&format!("-{refusal}")), "{refused}");

        self.send(MAILS, 2 * MAILS);
        assert_eq!(wait_within(OWN_DELIVERY_MAX, "its own delivery", || self.all_there(2 * MAILS)), 2 * MAILS, "each once");
        // As with Valkey away, and not as with one that refuses this mail.
        wait_for("its word that it does so", || self.nodes[0].has_logged("this node delivers its mail itself"));
        wait_for("that nobody leads", || (self.stats()?["leader"].is_null()).then_some(()));
        assert_eq!(self.nodes[0].get("/health").unwrap()["status"], "ok");
        assert!(self.nodes[0].get("/ready").is_some_and(|answer| answer["ready"] == true));

        end(self);
        self.leader();
        wait_for("its own heartbeats", || (self.stats()?["healthy_nodes"] == 1).then_some(()));
        self.send(2 * MAILS, 3 * MAILS);
        assert_eq!(wait_for("delivery as before", || self.all_there(3 * MAILS)), 3 * MAILS, "each once");
        // Mail that comes as the last outage ends may be delivered here all the same.
        let mut next = 3 * MAILS;
        wait_for("mail that goes by the queue again", || {
            self.send(next, next + 1);
            next += 1;
            wait_for("its delivery", || self.all_there(next));
            (self.count("completed") > shared).then_some(())
        });
        wait_for("an empty queue", || (self.pending(0)? == 0).then_some(()));
        assert_eq!(self.all_there(next), Some(next), "each once");
    }
}

/// A failover took its role, and the node's connection stays: READONLY.
#[test]
fn with_a_valkey_that_became_a_replica_a_node_goes_on_by_itself_and_comes_back() {
    let mut rig = mail_rig(&[SHARES]);
    let nobody = free_port();
    rig.lives_through("READONLY", |rig| rig.raw(&format!("REPLICAOF 127.0.0.1 {nobody}")), |rig| rig.raw("REPLICAOF NO ONE"));
}

/// Its disk takes no snapshot, and it was told to stop then (`stop-writes-on-bgsave-error`, as it is by default): MISCONF.
#[test]
fn with_a_valkey_whose_disk_takes_no_snapshot_a_node_goes_on_by_itself_and_comes_back() {
    let mut rig = mail_rig(&[SHARES]);
    // A folder cannot be replaced by a file, which holds for root, too.
    let in_the_way = rig.folder.path().join("dump.rdb");
    let snapshot = |rig: &Rig, status: &str| {
        rig.raw("BGSAVE");
        wait_for("the snapshot's end", || {
            let persistence = rig.ask("INFO persistence");
            let has_ended = persistence.contains("rdb_bgsave_in_progress:0");
            (has_ended && persistence.contains(&format!("rdb_last_bgsave_status:{status}"))).then_some(())
        });
    };
    rig.lives_through(
        "MISCONF",
        |rig| {
            fs::create_dir(&in_the_way).unwrap();
            rig.raw("CONFIG SET save \"3600 1\"");
            snapshot(rig, "err");
        },
        |rig| {
            fs::remove_dir(&in_the_way).unwrap();
            snapshot(rig, "ok");
        },
    );
}

/// It led and did not, in turns, and was offline to all others, though its mail alone had no room.
#[test]
fn with_a_valkey_that_is_full_a_node_leads_on_and_says_why_its_mail_is_not_shared() {
    let mut rig = mail_rig(&[SHARES]);
    // A busy machine may keep the node waiting for as long as a shorter lease lasts.
    rig.nodes[0].set("leader_ttl = \"2s\"", "leader_ttl = \"6s\"");
    rig.start_node(0);
    rig.leader();
    let itself = |rig: &Rig| rig.nodes[0].get("/api/cluster/nodes").map(|nodes| nodes[0].clone());
    wait_for("its health", || (itself(&rig)?["status"] == "healthy").then_some(()));
    let elected = |rig: &Rig| rig.stats().map(|stats| stats["counters"]["elected"].clone());
    let before = elected(&rig);
    rig.raw("CONFIG SET maxmemory 1");
    let full_since = wait_for("its word about it", || {
        let node = itself(&rig).filter(|node| node["status"] == "degraded")?;
        let reason = node["last_error"].as_str()?;
        reason.starts_with("Valkey has no room, so that mail is not shared: OOM").then(|| node["last_seen"].as_u64())?
    });
    rig.send(0, 1);
    assert_eq!(wait_within(OWN_DELIVERY_MAX, "its own delivery", || rig.all_there(1)), 1);
    // By its heartbeats, which are taken.
    wait_for("longer than a lease lasts", || (itself(&rig)?["last_seen"].as_u64()? > full_since + 7000).then_some(()));
    rig.raw("CONFIG SET maxmemory 0");
    wait_for("its health again", || (itself(&rig)?["status"] == "healthy").then_some(()));
    assert_eq!((rig.leader(), elected(&rig)), (0, before), "it led all the time");
}

/// In the place of an enqueue: answered as by a partition whose data no script can be run over.
const DAMAGED: &[u8] = b"*3\r\n$4\r\nEVAL\r\n$45\r\nreturn redis.error_reply('ERR damaged queue')\r\n$1\r\n0\r\n";

/// One flag stood for all partitions, and the sound ones took it back: each mail brought an error and the word that all was well again.
#[test]
fn a_partition_that_takes_no_mail_is_told_of_once_however_many_others_do() {
    let mut rig = mail_rig(&[ONLY_OFFERS, SHARES]);
    let (is_damaged, refused) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicUsize::new(0)));
    let (seen, count) = (is_damaged.clone(), refused.clone());
    rig.by_way_of(0, move |words| {
        let is_of_part = words.iter().any(|word| word.starts_with(b"{ringpost:cluster:q:email_delivery:0}"));
        if !is_of_part || !runs(words, "queue_enqueue") || !seen.load(Ordering::SeqCst) {
            return Passage::Through;
        }
        count.fetch_add(1, Ordering::SeqCst);
        Passage::Instead(DAMAGED)
    });
    rig.start_node(0);
    rig.start_node(1);
    let mut sent = 0;
    while refused.load(Ordering::SeqCst) < 3 {
        rig.send(sent, sent + 1);
        sent += 1;
        wait_for("what becomes of it", || {
            let here = rig.messages_at(0)?;
            let there = delivered(&rig.folder.path().join("mail")).len();
            (here + there >= sent && (here == 0 || refused.load(Ordering::SeqCst) >= here)).then_some(())
        });
    }
    is_damaged.store(false, Ordering::SeqCst);
    let all = wait_within(RECONCILED_MAX, "delivery of all", || rig.all_there(sent));
    assert_eq!(all, sent, "each once");
    let log = fs::read_to_string(rig.nodes[0].config.with_extension("log")).unwrap();
    assert_eq!(log.matches("does not take this node's mail").count(), 1, "{log}");
    assert_eq!(log.matches("takes this node's mail again").count(), 1, "{log}");
}
