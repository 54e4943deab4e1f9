//! Nodes that were made from one image: one `node_id`, and what was one spool.

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
