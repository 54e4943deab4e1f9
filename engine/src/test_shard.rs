//! For tests of what needs a whole shard: one that delivers nothing unless it is told how, with a spool in a folder of its own whose log can be filled.
//!
//! Its log may have so few segments that it is full as on a full disk: then nothing but settled records finds room, until others are freed.

use std::{rc::Rc, sync::Arc};

use glommio::{LocalExecutorBuilder, Placement};
use ringpost_config::{ByteSize, Config};
use ringpost_queue::{MessageKey, Pauses, QueueId};
use ringpost_ring::PREEMPT_TIMER;
use ringpost_smtp::{
    envelope::{Envelope, Origin, Protocol},
    extension::{MailParameters, RecipientParameters},
};
use ringpost_spool::{AppendError, Content};

use crate::{
    load::Loads,
    mail_log::MailLogChannel,
    mesh::mesh_of,
    message_record::{TRAILER_BYTES, Trailer},
    queueing::Stated,
    record_id::record_id,
    request_lane::request_lane,
    shard::{Shard, ShardPlan, start},
    spool_home::SpoolHome,
};

/// Segments of 1 MiB: one that is written to and three that are kept ready.
const SEGMENTS_MAX: u32 = 4;
/// Messages that the log is filled with, more than there are outcomes of them in it.
const FILLERS: usize = 100;
/// Turns of the other tasks after which what can happen without the disk has happened.
const TURNS: usize = 64;

/// Runs `test` on such a shard.
pub(crate) fn run(test: impl AsyncFnOnce(Rc<Shard>)) {
    run_with(undelivering(), SEGMENTS_MAX, 0, test);
}

/// The same on a shard whose log may have so many segments of 1 MiB.
pub(crate) fn run_with_segments(segments_max: u32, test: impl AsyncFnOnce(Rc<Shard>)) {
    run_with(undelivering(), segments_max, 0, test);
}

/// The same on one that does with its mail what this config says.
pub(crate) fn run_with_config(config: Config, test: impl AsyncFnOnce(Rc<Shard>)) {
    run_with(config, SEGMENTS_MAX, 0, test);
}

/// The same on one beside which there are so many others, which do nothing at all.
pub(crate) fn run_beside(others: u16, test: impl AsyncFnOnce(Rc<Shard>)) {
    run_with(undelivering(), SEGMENTS_MAX, others, test);
}

fn undelivering() -> Config {
    let mut config = Config::default();
    (config.delivery.deliver, config.cluster.enabled) = (false, true);
    config
}

fn run_with(mut config: Config, segments_max: u32, others: u16, test: impl AsyncFnOnce(Rc<Shard>)) {
    let mut ends = mesh_of(1 + others);
    let own_end = ends.remove(0);
    let folder = tempfile::tempdir().unwrap();
    (config.spool.segment_bytes, config.spool.min_free_bytes) = (ByteSize::mib(1), ByteSize::mib(1));
    (config.spool.prepared_segments, config.spool.min_free_inodes) = (3, 0);
    let (_lane, requests) = request_lane();
    let plan = ShardPlan {
        id: 0,
        shards: 1 + others,
        core: 0,
        io_wq_core: None,
        listeners: Vec::new(),
        config: Arc::new(config),
        hostname: "mx1.example.test".to_owned(),
        home: Arc::new(SpoolHome::open(folder.path(), 1, true).unwrap()),
        segments_max,
        adopted: Vec::new(),
        pauses: Pauses::default(),
        retracts: false,
        was_drained: false,
        requests,
        mesh: own_end,
        loads: Arc::new(Loads::new(1 + others)),
        mail_log: MailLogChannel::new(Box::new(|| ())),
        ask_dns: Box::new(|_| false),
        ask_limits: Box::new(|_| false),
        spool_failed: Arc::default(),
        on_event: Box::new(|_| ()),
    };
    let executor = LocalExecutorBuilder::new(Placement::Unbound).preempt_timer(PREEMPT_TIMER).ring_depth(64).io_memory(64 << 10).make();
    executor.expect("io_uring is here").run(async move {
        let (shard, listeners, requests) = start(plan).map_err(|(_, reason)| reason).unwrap();
        let test = async {
            shard.ring.spawn(shard.clone().live(listeners, requests)).detach();
            shard.loaded().await;
            test(shard.clone()).await;
        };
        shard.ring.watch(test).await;
        shard.ring.shutdown();
    });
}

/// Lets the other tasks run.
pub(crate) async fn take_turns(shard: &Shard) {
    for _ in 0..TURNS {
        shard.ring.yield_now().await;
    }
}

/// Stores a message of a@x.test to these recipients, and queues it: where nothing is delivered it is offered.
pub(crate) async fn accept(shard: &Shard, recipients: &[&str]) -> (QueueId, MessageKey) {
    let origin = Origin { peer: "192.0.2.7:25".parse().unwrap(), protocol: Protocol::Esmtp, helo: "x" };
    let recipients = recipients.iter().map(|recipient| (*recipient, RecipientParameters::default()));
    let envelope = Envelope::build(&origin, "a@x.test", &MailParameters::default(), recipients).unwrap();
    let content = b"Subject: x\r\n\r\nx\r\n";
    let (id, now) = (shard.next_id(), shard.now_ms());
    let trailer = Trailer {
        envelope_bytes: envelope.as_bytes().len() as u32,
        accepted_at_ms: now,
        content_bytes: content.len() as u64,
        ..Trailer::default()
    };
    append(shard, id, &[content, envelope.as_bytes(), &trailer.encode()]).await.unwrap();
    shard.enqueue(id, &envelope.view(), content.len() as u64, now, Stated::default());
    (id, shard.queue.borrow().key_of(id).unwrap())
}

async fn append(shard: &Shard, id: QueueId, parts: &[&[u8]]) -> Result<(), AppendError> {
    let bytes = parts.iter().map(|part| part.len()).sum::<usize>().max(TRAILER_BYTES) as u32;
    let mut turn = shard.own.turn();
    loop {
        let appended = turn.append(Content::Message, record_id(id), bytes, |record| {
            parts.iter().for_each(|part| record.put(part));
            (true, ())
        });
        match appended {
            Ok((appended, ())) => {
                shard.own.durable(appended.expect("it was kept").ticket).await.unwrap();
                return Ok(());
            }
            Err(AppendError::Full | AppendError::NotOpen) => turn.room().await,
            Err(reason) => return Err(reason),
        }
    }
}

/// Fills the log, until not even the shortest outcome has room. Returns what it is filled with: when that is settled there is room again.
pub(crate) async fn fill(shard: &Shard) -> Vec<QueueId> {
    let fillers: Vec<QueueId> = (0..FILLERS).map(|_| shard.next_id()).collect();
    for &id in &fillers {
        append(shard, id, &[b"x"]).await.unwrap();
    }
    let mut next = fillers.iter().copied();
    for bytes in [400_000, 40_000, 4_000, 40] {
        let state = vec![0; bytes];
        for id in next.by_ref() {
            if !record(shard, id, &state).await {
                break;
            }
        }
    }
    assert!(next.next().is_some(), "the log is full, and not the fillers used up");
    fillers
}

/// Appends an outcome; false if there is no room for it.
async fn record(shard: &Shard, id: QueueId, state: &[u8]) -> bool {
    loop {
        match shard.own.outcome(record_id(id), state) {
            Ok(ticket) => {
                shard.own.durable(ticket).await.unwrap();
                return true;
            }
            Err(AppendError::Full) => shard.own.room().await,
            Err(reason) => {
                assert_eq!(reason, AppendError::NoSpace);
                return false;
            }
        }
    }
}

/// Makes room in the log again.
pub(crate) async fn empty(shard: &Shard, fillers: &[QueueId]) {
    for &id in fillers {
        while shard.own.settle(record_id(id)) == Err(AppendError::Full) {
            shard.own.room().await;
        }
    }
}
