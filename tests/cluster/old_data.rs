//! A Valkey, or one part of it, that comes back with what it had some time before, or with nothing.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use super::{
    proxy::{DOWN, Passage, runs},
    pushed_settings::valkey,
    shared_mail::{ONLY_OFFERS, SHARES, mail_rig},
    *,
};

const MAILS: usize = 12;
/// What the owner says when it has found mail that it had settled.
const TAKEN_OUT: &str = "was still in the cluster's queue and is taken out";

impl Rig {
    /// One node offers, the other delivers all of it and ends; `between` them.
    fn passes_mail(&mut self, between: impl FnOnce(&Rig)) {
        self.start_node(0);
        self.offers_mail();
        between(self);
        self.start_node(1);
        assert_eq!(wait_for("delivery of all", || self.all_there(MAILS)), MAILS, "each once");
        for node in [0, 1] {
            wait_for("an empty spool", || self.messages_at(node).filter(|count| *count == 0));
        }
        self.nodes[1].process.as_ref().unwrap().signal("-TERM");
        wait_for("the worker's end", || self.nodes[1].process.as_mut().unwrap().0.try_wait().unwrap());
        self.nodes[1].process = None;
    }

    fn offers_mail(&self) {
        self.send(0, MAILS);
        wait_for("the offers", || (self.pending(0)? == MAILS as u64).then_some(()));
    }

    /// The owner takes out what it has settled, and whoever comes then finds nothing of it.
    fn finds_what_came_back(&mut self) {
        wait_for("its look", || self.nodes[0].has_logged(TAKEN_OUT));
        wait_for("an empty queue", || (self.pending(0)? == 0).then_some(()));
        self.start_node(1);
        self.send(MAILS, MAILS + 1);
        assert_eq!(wait_for("delivery as before", || self.all_there(MAILS + 1)), MAILS + 1, "each once");
    }
}

#[test]
fn what_was_settled_since_valkeys_snapshot_is_taken_out_of_the_queue() {
    let mut rig = mail_rig(&[ONLY_OFFERS, SHARES]);
    let [snapshot, kept] = ["dump.rdb", "kept.rdb"].map(|name| rig.folder.path().join(name));
    rig.passes_mail(|rig| {
        rig.raw("SAVE");
        fs::copy(&snapshot, &kept).unwrap();
    });
    rig.valkey = None;
    fs::copy(&kept, &snapshot).unwrap();
    rig.start_valkey();
    rig.finds_what_came_back();
}

/// The data went back in time and no connection was lost by it: nobody looked for what was settled since, and workers leased at once. All of it was
/// delivered twice.
#[test]
fn what_was_settled_is_taken_out_of_older_data_that_come_back_over_the_same_connections() {
    let mut rig = mail_rig(&[ONLY_OFFERS, SHARES]);
    rig.start_node(0);
    rig.offers_mail();
    rig.raw("SWAPDB 0 1");
    wait_for("the offers again", || (rig.pending(0)? == MAILS as u64).then_some(()));
    rig.start_node(1);
    assert_eq!(wait_for("delivery of all", || rig.all_there(MAILS)), MAILS, "each once");
    for node in [0, 1] {
        wait_for("an empty spool", || rig.messages_at(node).filter(|count| *count == 0));
    }
    rig.raw("SWAPDB 0 1");
    wait_for("its look", || rig.nodes[0].has_logged(TAKEN_OUT));
    wait_for("an empty queue", || (rig.pending(0)? == 0).then_some(()));
    rig.send(MAILS, MAILS + 1);
    assert_eq!(wait_for("delivery as before", || rig.all_there(MAILS + 1)), MAILS + 1, "each once");
}

/// That an owner does not have mail any more proves nothing at its next start. What does is its log, and what it has noted where the log's segments
/// were used again.
#[test]
fn what_was_settled_before_the_owners_last_start_is_taken_out_by_its_log_or_its_note() {
    for lost in ["cluster/settled", "shard-000"] {
        let mut rig = mail_rig(&[ONLY_OFFERS, SHARES]);
        let [snapshot, kept] = ["dump.rdb", "kept.rdb"].map(|name| rig.folder.path().join(name));
        rig.passes_mail(|rig| {
            rig.raw("SAVE");
            fs::copy(&snapshot, &kept).unwrap();
        });
        let spool = rig.folder.path().join("spool1");
        wait_for("its note", || {
            let text = fs::read_to_string(spool.join("cluster/settled")).ok()?;
            let numbers = text.lines().skip(1).map(|line| line.split(' ').map(|number| number.parse().unwrap()).collect::<Vec<u64>>());
            (numbers.map(|range| range[3] - range[2] + 1).sum::<u64>() == MAILS as u64).then_some(())
        });
        rig.nodes[0].process = None;
        rig.valkey = None;
        fs::copy(&kept, &snapshot).unwrap();
        rig.start_valkey();
        let path = spool.join(lost);
        if path.is_dir() {
            fs::remove_dir_all(&path).unwrap()
        } else {
            fs::remove_file(&path).unwrap()
        }
        rig.start_node(0);
        rig.finds_what_came_back();
    }
}

/// One part of the queue, of which the proxy says for a while that it is not there.
#[derive(Default)]
struct Part {
    /// How the names of its keys begin: those of the first mail.
    prefix: OnceLock<String>,
    is_down: AtomicBool,
    /// How often it was looked in vain whether it is there.
    looks: AtomicUsize,
}

impl Part {
    fn rule(&self, words: &[Vec<u8>]) -> Passage {
        let part_of = |word: &Vec<u8>| {
            let text = String::from_utf8_lossy(word);
            text.starts_with("{ringpost:cluster:q:email_delivery:").then(|| text.split_inclusive('}').next().unwrap_or_default().to_owned())
        };
        if runs(words, "queue_enqueue")
            && let Some(first) = words.iter().find_map(part_of)
        {
            self.prefix.get_or_init(|| first);
        }
        let is_of_part = words.iter().filter_map(part_of).any(|part| self.prefix.get() == Some(&part));
        if !is_of_part || !self.is_down.load(Ordering::SeqCst) {
            return Passage::Through;
        }
        if runs(words, "queue_probe") {
            self.looks.fetch_add(1, Ordering::SeqCst);
        }
        Passage::Instead(DOWN)
    }

    /// It is away for longer than any call is late, and something happens to it meanwhile. A node looks twice a second at most.
    fn is_away(&self, meanwhile: impl FnOnce(&str)) {
        self.is_down.store(true, Ordering::SeqCst);
        wait_for("four looks", || (self.looks.load(Ordering::SeqCst) >= 4).then_some(()));
        meanwhile(self.prefix.get().expect("mail was offered"));
        self.is_down.store(false, Ordering::SeqCst);
    }
}

/// A rig whose first node reaches Valkey by way of a proxy, and the part.
fn rig_with_part() -> (Rig, Arc<Part>) {
    let (rig, part) = (mail_rig(&[ONLY_OFFERS, SHARES]), Arc::new(Part::default()));
    let seen = part.clone();
    rig.by_way_of(0, move |words| seen.rule(words));
    (rig, part)
}

/// A script over all keys whose names begin so.
fn for_each_key(rig: &Rig, begin: &str, call: &str) {
    valkey(rig, &format!("EVAL \"for _, key in ipairs(redis.call('KEYS', '{begin}*')) do redis.call({call}) end return 1\" 0"));
}

/// A replica of one server of a cluster takes over, and had not heard of the last minutes: connections to the other servers are as they were.
#[test]
fn what_was_settled_is_taken_out_of_a_part_that_comes_back_with_older_data() {
    let (mut rig, part) = rig_with_part();
    let seen = part.clone();
    rig.passes_mail(|rig| for_each_key(rig, seen.prefix.get().unwrap(), "'COPY', key, 'old:' .. key"));
    part.is_away(|prefix| {
        for_each_key(&rig, prefix, "'DEL', key");
        for_each_key(&rig, &format!("old:{prefix}"), "'COPY', key, string.sub(key, 5)");
    });
    rig.finds_what_came_back();
}

#[test]
fn what_a_part_has_lost_is_offered_again() {
    let (mut rig, part) = rig_with_part();
    rig.start_node(0);
    rig.offers_mail();
    part.is_away(|prefix| for_each_key(&rig, prefix, "'DEL', key"));
    wait_for("the offers again", || (rig.pending(0)? == MAILS as u64).then_some(()));
    rig.start_node(1);
    assert_eq!(wait_for("delivery of all", || rig.all_there(MAILS)), MAILS, "each once");
    wait_for("an empty spool", || rig.messages_at(0).filter(|count| *count == 0));
}

/// The warning named neither what could not be written nor what was to be done.
#[test]
fn what_cannot_be_noted_of_settled_mail_is_told_with_its_file() {
    let mut rig = mail_rig(&[SHARES]);
    let file = rig.folder.path().join("spool1/cluster/settled");
    rig.start_node(0);
    // The new file in its place is a folder.
    wait_for("its place", || fs::create_dir(file.with_extension("new")).ok());
    rig.send(0, 1);
    let log = wait_for("the warning", || {
        let log = fs::read_to_string(rig.nodes[0].config.with_extension("log")).unwrap();
        log.lines().find(|line| line.contains("settled cannot be noted")).map(str::to_owned)
    });
    assert!(log.contains("spool1/cluster/settled") && log.contains("Let the engine's user write that file"), "{log}");
}
