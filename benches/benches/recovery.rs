//! How many messages a second does a start find in the log and queue again, the disk left out? Expected: reading 1 KiB twice (CRC, copy of
//! the envelope) 300 ns, an entry in the index and one in the queue 500 ns: a million in a second or two.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::time::Instant;

use ringpost_benches::exchange::Exchange;
use ringpost_benches::mail::{ENVELOPE, TEXT_LINE, message, with_dot};
use ringpost_benches::{Run, nanoseconds};
use ringpost_engine::message_record::{TRAILER_BYTES, Trailer};
use ringpost_queue::{NewMessage, NewRecipient, Notify, Queue, QueueId, QueueSettings, RetryPolicy, Route, Routes, Via};
use ringpost_smtp::envelope::EnvelopeView;
use ringpost_spool::{AppendError, Content, Event, FoundFile, Host, Log, LogConfig, Op, OpKind, OpResult, RecordId, SegmentFile, Space};

const START: u64 = 1_790_000_000_000;

/// Memory in the place of a directory.
#[derive(Default)]
struct Disk {
    files: HashMap<(SegmentFile, bool), Vec<u8>>,
}

impl Disk {
    fn file(&mut self, file: SegmentFile, temporary: bool) -> &mut Vec<u8> {
        self.files.get_mut(&(file, temporary)).expect("the log names files that it made")
    }

    fn execute(&mut self, kind: OpKind<Vec<u8>>) -> OpResult<Vec<u8>> {
        match kind {
            OpKind::WriteSynced { file, temporary, offset, buffer, bytes, batch: _ } => {
                let at = offset as usize;
                self.file(file, temporary)[at..at + bytes].copy_from_slice(&buffer[..bytes]);
                return OpResult::WriteSynced { write: bytes as i64, sync: 0 };
            }
            OpKind::Read { file, offset, mut buffer, bytes } => {
                let at = offset as usize;
                let there = &self.file(file, false)[at..];
                let read = bytes.min(there.len());
                buffer[..read].copy_from_slice(&there[..read]);
                return OpResult::Read { buffer, result: read as i64 };
            }
            OpKind::Create { file } => drop(self.files.insert((file, true), Vec::new())),
            OpKind::Allocate { file, bytes } => self.file(file, true).resize(bytes as usize, 0),
            OpKind::Fill { file, offset, bytes } => {
                let there = self.file(file, true);
                let end = offset as usize + bytes;
                if there.len() < end {
                    there.resize(end, 0);
                }
            }
            OpKind::Publish { file } => {
                let bytes = self.files.remove(&(file, true)).expect("it was created");
                self.files.insert((file, false), bytes);
            }
            OpKind::Unlink { file, temporary } => drop(self.files.remove(&(file, temporary))),
            OpKind::Sync { .. } | OpKind::SyncDirectory => {}
        }
        OpResult::Done { result: 0 }
    }

    fn found(&self) -> Vec<FoundFile> {
        self.files.iter().map(|(&(file, temporary), bytes)| FoundFile { file, bytes: bytes.len() as u64, temporary, doubt: None }).collect()
    }
}

struct Memory {
    generations: u64,
}

impl Host for Memory {
    type Buffer = Vec<u8>;

    fn take_buffer(&mut self, bytes: usize) -> Option<Vec<u8>> {
        Some(vec![0; bytes])
    }

    fn random(&mut self) -> u64 {
        self.generations = self.generations.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(0x1405_7B7E_F767_814F);
        self.generations
    }
}

fn open(disk: &Disk, boot: u64) -> Log<Memory> {
    let config = LogConfig { prepare_bytes_per_s: u64::MAX, ..LogConfig::new(7, 0, boot) };
    let mut log = Log::open(config, Memory { generations: boot }, &disk.found(), Instant::now());
    log.set_space(Space { bytes: u64::MAX, inodes: u64::MAX });
    log
}

/// Executes all that the log asks for just now; true if there was anything.
fn turn(log: &mut Log<Memory>, disk: &mut Disk) -> bool {
    let mut any = false;
    while let Some(Op { id, kind }) = log.poll(Instant::now()) {
        any = true;
        log.completed(id, disk.execute(kind), Instant::now());
    }
    any
}

/// A log of so many messages.
fn filled(messages: u64, payload: &[u8]) -> Disk {
    let mut disk = Disk::default();
    let mut log = open(&disk, 1);
    let mut sequence = 0;
    while sequence < messages {
        let id = RecordId { boot: 1, shard: 0, sequence };
        let begun = log.begin(Content::Message, id, payload.len() as u32, Instant::now()).map(|mut record| {
            record.put(payload);
            record.finish()
        });
        match begun {
            Ok(_) => sequence += 1,
            Err(AppendError::Full | AppendError::NotOpen) => drop(turn(&mut log, &mut disk)),
            Err(error) => panic!("{error}"),
        }
        while log.event().is_some() {}
    }
    while turn(&mut log, &mut disk) || log.event().is_some() {}
    disk
}

fn main() {
    let mut run = Run::begin("recovery", include_str!("recovery.rs"));
    let content = message(TEXT_LINE, 1 << 10);
    let mut exchange = Exchange::default();
    exchange.transaction(ENVELOPE, &with_dot(content.clone()));
    let envelope = exchange.envelope();
    let trailer =
        Trailer { envelope_bytes: envelope.len() as u32, accepted_at_ms: START, content_bytes: content.len() as u64, ..Trailer::default() };
    let payload = [&content[..], envelope, &trailer.encode()].concat();
    assert_eq!(payload.len(), content.len() + envelope.len() + TRAILER_BYTES);
    let messages = run.of(500_000, 500);
    let mut disk = filled(messages, &payload);
    let route = Route { pattern: "*".into(), via: Via::Hold, retry: RetryPolicy::default(), limits: Default::default() };
    for round in 0..run.of(3, 1) {
        let mut queue = Queue::new(QueueSettings::default(), Routes::new(vec![route.clone()]).expect("the table is valid"), 1, START);
        let mut histogram = nanoseconds();
        let begun = Instant::now();
        let mut log = open(&disk, 2 + round);
        let (mut found, mut sum, mut loaded) = (0, 0u64, false);
        while !loaded {
            let turn_begun = Instant::now();
            let before = found;
            turn(&mut log, &mut disk);
            while let Some(event) = log.event() {
                match event {
                    Event::Found { id, payload, .. } => {
                        let trailer = Trailer::decode(payload).expect("as it was written");
                        let view = EnvelopeView::decode(&payload[trailer.envelope(payload.len())]).expect("as it was written");
                        sum = sum.rotate_left(1) ^ id.sequence;
                        found += 1;
                        recover(&mut queue, id, &view, trailer.content_bytes);
                    }
                    Event::Loaded(_) => loaded = true,
                    Event::Refused(_) | Event::Damaged(_) | Event::Poisoned(_) => panic!("{event:?}"),
                    _ => {}
                }
            }
            if found > before {
                histogram.saturating_record(turn_begun.elapsed().as_nanos() as u64 / (found - before));
            }
        }
        assert_eq!((found, queue.len() as u64), (messages, messages), "every message is found");
        run.report(&format!("{messages} messages of 1 KiB ({round})"), None, &histogram, messages, begun.elapsed(), sum);
    }
    run.end();
}

fn recover(queue: &mut Queue, id: RecordId, view: &EnvelopeView<'_>, size: u64) {
    let message = NewMessage {
        id: QueueId { boot: id.boot as u32, shard: id.shard, sequence: id.sequence },
        size,
        accepted_at: START,
        expires_at: None,
        priority: 5,
        eight_bit: false,
        smtputf8: false,
        reverse_path: view.reverse_path().as_str().as_bytes(),
        ..NewMessage::default()
    };
    let destination = queue.route(b"mail.example.com");
    let recipients = view.recipients().map(|recipient| NewRecipient {
        address: recipient.path.as_str().as_bytes(),
        destination,
        notify: Notify::UNSAID,
    });
    let done = queue.recover(&message, recipients, std::iter::empty(), START).expect("there is no record of outcomes").done;
    assert!(!done, "nothing was delivered");
}
