//! Spools that are copies: of nodes that were made from one image, with one `node_id`, and one that is put back from a snapshot.

use std::path::Path;

use super::{
    shared_mail::{ONLY_OFFERS, SHARES, mail_rig},
    *,
};

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let (path, to) = (entry.path(), to.join(entry.file_name()));
        if path.is_dir() {
            copy(&path, &to);
        } else {
            fs::copy(&path, &to).unwrap();
        }
    }
}

/// As `spool/boot` has it.
fn boot_file(boot: u64) -> Vec<u8> {
    let digits = boot.to_string();
    let crc = digits.bytes().fold(!0_u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 })
    });
    let mut file = format!("{digits} {:08x}\n", !crc).into_bytes();
    file.resize(1024, 0);
    file
}

/// Two nodes from one image, started in one second, gave the same ids to different mail, and had one name for both in the cluster's queue: only the
/// one's was offered, and on its completion both gave theirs up. Half of what they had accepted was lost.
#[test]
fn two_nodes_with_copies_of_one_spool_lose_no_mail() {
    const MAILS: usize = 20;
    let mut rig = mail_rig(&[ONLY_OFFERS, ONLY_OFFERS, SHARES]);
    rig.start_node(0);
    rig.nodes[0].process = None;
    // A day ahead: that start counts on from it, and so does its copy, in whatever second.
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
    let spool = rig.folder.path().join("spool1");
    fs::write(spool.join("boot"), boot_file(now + 86_400)).unwrap();
    copy(&spool, &rig.folder.path().join("spool2"));
    rig.nodes[1].set("node_id = \"n2\"", "node_id = \"n1\"");
    rig.start_node(0);
    rig.start_node(1);
    for number in 0..MAILS {
        let content = format!("Subject: mail-{number:04}\r\n\r\nx\r\n.");
        let replies = rig.nodes[number % 2].converse(&["EHLO x", "MAIL FROM:<a@x.test>", "RCPT TO:<b@y.test>", "DATA", &content]);
        assert!(replies[4].starts_with("250"), "{replies:?}");
    }
    let ids = |number: usize| rig.nodes[number].ringpost("queue", &["ls"]).1;
    let id = |text: String| text.lines().skip(1).find_map(|line| line.split(' ').next().map(str::to_owned));
    println!("{:?} and {:?}", id(ids(0)), id(ids(1)));
    rig.start_node(2);
    let all = wait_for("delivery of all", || rig.all_there(MAILS));
    assert_eq!(all, MAILS, "each once");
}

/// A node's disk died and a snapshot that was taken while it ran was put back. What it had accepted since, in that same start, was in the cluster's
/// queue by its names, and not in its spool: that was taken for settled, and the last copies were removed. 30 of 50 accepted mails were lost. What
/// is settled is known by itself now, never by a message that is not there.
#[test]
fn what_came_in_after_the_snapshot_that_was_put_back_is_delivered_by_others_and_by_the_node_itself() {
    const BEFORE: usize = 5;
    const ALL: usize = 12;
    for delivers_itself in [false, true] {
        let mut rig = mail_rig(&[ONLY_OFFERS, SHARES]);
        let [spool, snapshot] = ["spool1", "snapshot"].map(|name| rig.folder.path().join(name));
        rig.start_node(0);
        rig.send(0, BEFORE);
        wait_for("the offers", || (rig.pending(0)? == BEFORE as u64).then_some(()));
        let process = rig.nodes[0].process.as_ref().unwrap();
        process.signal("-STOP");
        copy(&spool, &snapshot);
        process.signal("-CONT");
        rig.send(BEFORE, ALL);
        wait_for("all offers", || (rig.pending(0)? == ALL as u64).then_some(()));
        rig.nodes[0].process = None;
        fs::remove_dir_all(&spool).unwrap();
        fs::rename(&snapshot, &spool).unwrap();
        if delivers_itself {
            rig.nodes[0].set("deliver = false", "deliver = true");
        }
        rig.start_node(0);
        // One that delivers may have leased all before it looks.
        if !delivers_itself {
            wait_for("its look through the queue", || {
                let said = ["its spool neither has it nor knows that it was settled", "was still in the cluster's queue and is taken out"];
                said.into_iter().find_map(|words| rig.nodes[0].has_logged(words))
            });
            rig.start_node(1);
        }
        assert_eq!(wait_for("delivery of all", || rig.all_there(ALL)), ALL, "each once");
    }
}

/// Blocks of a spool had rotted. The start said so, and took the sound copies of just that mail out of the cluster's queue, as settled.
#[test]
fn what_a_damaged_spool_has_lost_is_delivered_from_the_queue() {
    const ALL: usize = 12;
    let mut rig = mail_rig(&[ONLY_OFFERS, SHARES]);
    rig.start_node(0);
    rig.send(0, ALL);
    wait_for("the offers", || (rig.pending(0)? == ALL as u64).then_some(()));
    rig.nodes[0].process = None;
    let mut damaged = 0;
    for entry in fs::read_dir(rig.folder.path().join("spool1/shard-000")).unwrap() {
        let path = entry.unwrap().path();
        let mut bytes = fs::read(&path).unwrap();
        // Behind the headers; a batch with one mail has one block.
        let batches = bytes.chunks_mut(4096).skip(2).filter(|block| block.iter().any(|octet| *octet != 0));
        for block in batches.skip(1).step_by(2) {
            block[100..140].fill(b'!');
            damaged += 1;
        }
        fs::write(&path, bytes).unwrap();
    }
    assert!(damaged > 2, "{damaged}");
    rig.start_node(0);
    wait_for("its look through the queue", || rig.nodes[0].has_logged("its spool neither has it nor knows that it was settled"));
    rig.start_node(1);
    assert_eq!(wait_for("delivery of all", || rig.all_there(ALL)), ALL, "each once");
}
