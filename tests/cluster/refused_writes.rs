//! A real Valkey that answers and takes no writes, for reasons that its operator mends while it runs.

use super::{
    shared_mail::{SHARES, mail_rig},
    *,
};

const MAILS: usize = 6;
/// What was offered before is delivered here a lease and a second later, which are four.
const OWN_DELIVERY_MAX: Duration = Duration::from_secs(12);

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
    rig.start_node(0);
    rig.leader();
    let itself = |rig: &Rig| rig.nodes[0].get("/api/cluster/nodes").map(|nodes| nodes[0].clone());
    wait_for("its health", || (itself(&rig)?["status"] == "healthy").then_some(()));
    let elected = |rig: &Rig| rig.stats().map(|stats| stats["counters"]["elected"].clone());
    let before = elected(&rig);
    rig.raw("CONFIG SET maxmemory 1");
    let reason = wait_for("its word about it", || {
        let node = itself(&rig).filter(|node| node["status"] == "degraded")?;
        node["last_error"].as_str().map(str::to_owned)
    });
    assert!(reason.starts_with("Valkey has no room, so that mail is not shared: OOM"), "{reason}");
    rig.send(0, 1);
    assert_eq!(wait_within(OWN_DELIVERY_MAX, "its own delivery", || rig.all_there(1)), 1, "longer than a lease lasts");
    rig.raw("CONFIG SET maxmemory 0");
    wait_for("its health again", || (itself(&rig)?["status"] == "healthy").then_some(()));
    assert_eq!((rig.leader(), elected(&rig)), (0, before), "it led all the time");
}
