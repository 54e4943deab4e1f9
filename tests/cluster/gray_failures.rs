//! Nodes that fail in part: a shard hangs while the rest of the process lives, or the disk takes nothing more. Others see it and lead, and deliver
//! what was offered.

use nix::{
    sys::{
        ptrace,
        wait::{WaitPidFlag, waitpid},
    },
    unistd::Pid,
};
use rustix::process::{Resource, Rlimit, prlimit};

use super::{
    shared_mail::{ONLY_OFFERS, SHARES, mail_rig},
    *,
};

const MAILS: usize = 8;

/// One thread of a process, which does nothing while this lives: as if it hung in a call, or turned in a loop. ptrace is a matter of threads, so it
/// is dropped where it was made.
pub(super) struct HeldThread(Pid);

impl HeldThread {
    pub(super) fn of(process: &Process, name: &str) -> HeldThread {
        let mut threads = fs::read_dir(format!("/proc/{}/task", process.0.id())).unwrap().map(|thread| thread.unwrap().path());
        let has_name = |folder: &PathBuf| fs::read_to_string(folder.join("comm")).is_ok_and(|comm| comm.trim_end() == name);
        let thread = threads.find(has_name).expect("there is a thread of this name");
        let id = Pid::from_raw(thread.file_name().unwrap().to_str().unwrap().parse().unwrap());
        ptrace::seize(id, ptrace::Options::empty()).unwrap();
        ptrace::interrupt(id).unwrap();
        waitpid(id, Some(WaitPidFlag::__WALL)).unwrap();
        HeldThread(id)
    }
}

impl Drop for HeldThread {
    fn drop(&mut self) {
        ptrace::detach(self.0, None).unwrap();
    }
}

impl Rig {
    /// What one node says of another in a field of the admin API.
    fn said(&self, by: usize, of: &str, field: &str) -> Option<String> {
        let nodes = self.nodes[by].get("/api/cluster/nodes")?;
        nodes.as_array()?.iter().find(|node| node["id"] == of)?[field].as_str().map(str::to_owned)
    }

    fn epoch(&self, node: usize) -> Option<u64> {
        self.nodes[node].get("/api/cluster/stats")?["epoch"].as_u64()
    }

    fn other_leader(&self, than: usize) -> usize {
        wait_for("another leader", || Some(self.leader()).filter(|leader| *leader != than))
    }
}

impl Node {
    fn process(&self) -> &Process {
        self.process.as_ref().expect("it runs")
    }

    fn own_status(&self) -> Option<String> {
        self.get("/api/cluster/stats")?["local_node_status"].as_str().map(str::to_owned)
    }
}

/// The threads that send heartbeats live on, and must not say that the node does.
#[test]
fn a_node_whose_shard_hangs_is_offline_and_others_lead_and_deliver_what_it_offered() {
    let mut rig = mail_rig(&[ONLY_OFFERS, SHARES]);
    rig.start_node(0);
    assert_eq!(rig.leader(), 0);
    rig.send(0, MAILS);
    wait_for("its offers", || (rig.pending(0)? == MAILS as u64).then_some(()));
    let epoch = rig.epoch(0).unwrap();

    let held = HeldThread::of(rig.nodes[0].process(), "shard-0");
    rig.start_node(1);
    rig.other_leader(0);
    assert!(rig.epoch(1) > Some(epoch));
    wait_for("n1 offline to n2", || rig.said(1, "n1", "status").filter(|status| status == "offline"));
    wait_for("its own word of it", || rig.nodes[0].own_status().filter(|status| status == "offline"));
    assert!(rig.nodes[0].has_logged("shard 0 has not answered for").is_some());
    assert_eq!(wait_for("delivery by the other", || rig.all_there(MAILS)), MAILS, "each once");
    assert_eq!(rig.epoch(0), rig.epoch(1), "it follows");

    drop(held);
    wait_for("n1 healthy again", || rig.said(1, "n1", "status").filter(|status| status == "healthy"));
    // It hears, or asks within ten seconds, that others have its mail.
    wait_for("an empty spool", || rig.messages_at(0).filter(|count| *count == 0));
    rig.send(MAILS, MAILS + 1);
    assert_eq!(wait_for("delivery as before", || rig.all_there(MAILS + 1)), MAILS + 1, "each once");
}

/// What it has leased and not stored is given to others when the leases end, and it leases nothing more: one that did would use up the attempts.
#[test]
fn a_worker_whose_shard_hangs_keeps_no_mail_from_others() {
    let mut rig = mail_rig(&[ONLY_OFFERS, SHARES, SHARES]);
    rig.start_node(0);
    rig.start_node(1);
    let held = HeldThread::of(rig.nodes[1].process(), "shard-0");
    rig.send(0, MAILS);
    rig.start_node(2);
    assert_eq!(wait_for("delivery by the other", || rig.all_there(MAILS)), MAILS, "each once");
    assert_eq!(rig.count("died"), 0);
    drop(held);
    rig.send(MAILS, MAILS + 1);
    wait_for("an empty queue", || (rig.pending(0)? == 0).then_some(()));
    assert_eq!(wait_for("delivery as before", || rig.all_there(MAILS + 1)), MAILS + 1, "each once");
}

/// Whatever is written beyond so many bytes of a file is refused with EFBIG: a failing disk that needs neither root nor a file system of its own. The
/// signal that comes with it is ignored, or it would end the process first.
const FILE_BYTES_MAX: u64 = 64 * 1024;

pub(super) fn ignoring_full_files() -> Command {
    let mut shell = Command::new("sh");
    shell.args(["-c", "trap '' XFSZ; exec \"$0\" \"$@\""]).arg(env!("CARGO_BIN_EXE_ringpost"));
    shell
}

impl Rig {
    /// A leader that only offers, whose disk fails then, with this setting of `spool.on_disk_failure`. How many mails it has acknowledged, and how
    /// many of them it has offered: one may be left, which waits for the next start.
    fn lose_disk(&mut self, on_disk_failure: &str) -> (usize, usize) {
        self.nodes[0].set("[spool]\n", &format!("[spool]\non_disk_failure = \"{on_disk_failure}\"\n"));
        self.start_node_by(0, ignoring_full_files());
        assert_eq!(self.leader(), 0);
        let acknowledged = self.fail_disk();
        let (queue, runtime) = (self.worker(), tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap());
        // What was on its way comes in within moments, or not at all.
        let offered = wait_for("offers", || {
            let total = runtime.block_on(queue.stats()).ok()?.total as usize;
            (total > 0 && total + 1 >= acknowledged).then_some(total)
        });
        (acknowledged, offered)
    }

    /// The disk of the first node, which ignores full files, takes nothing more, and the node has noticed. How many mails it has acknowledged meanwhile.
    pub(super) fn fail_disk(&self) -> usize {
        // The one that is written, and those that are prepared: the disk is to fail mail, and not what is done ahead.
        let log = self.folder.path().join("spool1/shard-000");
        let segments =
            || fs::read_dir(&log).unwrap().flatten().filter(|file| file.path().extension().is_some_and(|end| end == "log")).count();
        wait_for("segments ahead", || (segments() == 4).then_some(()));
        let pid = rustix::process::Pid::from_raw(self.nodes[0].process().0.id().cast_signed());
        let limit = Rlimit { current: Some(FILE_BYTES_MAX), maximum: Some(FILE_BYTES_MAX) };
        prlimit(pid, Resource::Fsize, limit).unwrap();
        let (text, mut acknowledged) = ("x".repeat(70) + "\r\n", 0);
        loop {
            let content = format!("Subject: mail-{acknowledged:04}\r\n\r\n{}.", text.repeat(200));
            let replies = self.nodes[0].try_converse(&["EHLO x", "MAIL FROM:<a@x.test>", "RCPT TO:<b@y.test>", "DATA", &content]);
            if !replies.is_ok_and(|replies| replies[4].starts_with("250")) {
                break;
            }
            acknowledged += 1;
        }
        wait_for("its word of it", || self.nodes[0].has_logged("the spool failed: nothing more is promised"));
        acknowledged
    }

    /// Another delivers what was offered; with its disk mended the node settles that and offers the rest, and nothing comes twice.
    fn live_without_disk(&mut self, (acknowledged, offered): (usize, usize)) {
        wait_for("delivery by the other", || self.all_there(acknowledged).or_else(|| self.all_there(offered)));
        self.nodes[0].process = None;
        self.start_node(0);
        assert_eq!(wait_for("delivery of all", || self.all_there(acknowledged)), acknowledged, "each once");
        wait_for("an empty spool", || self.messages_at(0).filter(|count| *count == 0));
        self.send(acknowledged, acknowledged + 1);
        assert_eq!(wait_for("delivery as before", || self.all_there(acknowledged + 1)), acknowledged + 1, "each once");
    }
}

#[test]
fn a_node_whose_disk_failed_and_that_is_kept_says_so_and_leads_no_longer() {
    let mut rig = mail_rig(&[ONLY_OFFERS, SHARES]);
    // It would not stand beside a master that may lead.
    rig.nodes[1].set("role = \"master\"", "role = \"standby\"");
    let mails = rig.lose_disk("stop-accepting");
    rig.start_node(1);
    assert_eq!(rig.other_leader(0), 1);
    // On a busy machine another word may come before, and a heartbeat may be missed.
    wait_for("its word", || rig.said(1, "n1", "last_error").filter(|why| why.contains("its spool failed")));
    wait_for("its status", || rig.said(1, "n1", "status").filter(|status| status == "degraded"));
    wait_for("its own word of it", || rig.nodes[0].own_status().filter(|status| status == "degraded"));
    assert!(rig.nodes[0].get("/ready").is_none_or(|answer| answer["ready"] != true));
    // A drain went on for ever, and said that the others had enough to deliver.
    let (code, _, refusal) = rig.nodes[0].ringpost("drain", &["--to-cluster"]);
    assert!(code == 1 && refusal.contains("this node's spool failed"), "{code} {refusal}");
    rig.live_without_disk(mails);
}

#[test]
fn a_node_whose_disk_failed_and_that_left_for_it_is_offline_and_others_lead() {
    let mut rig = mail_rig(&[ONLY_OFFERS, SHARES]);
    let mails = rig.lose_disk("exit");
    let status = wait_for("its end", || rig.nodes[0].process.as_mut().unwrap().0.try_wait().unwrap());
    assert!(!status.success());
    rig.nodes[0].process = None;
    rig.start_node(1);
    assert_eq!(rig.leader(), 1);
    wait_for("n1 offline to n2", || rig.said(1, "n1", "status").filter(|status| status == "offline"));
    rig.live_without_disk(mails);
}
