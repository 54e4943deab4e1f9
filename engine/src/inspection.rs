//! Reads a log without changing it: of a stopped engine, or beside a running one. The same recovery code as at a start.

use std::{
    collections::HashMap,
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    time::Instant,
};

use ringpost_smtp::envelope::EnvelopeView;
use ringpost_spool::{Damage, Event, FoundFile, Host, Log, LogConfig, Op, OpKind, OpResult, RecordId, RecoveryReport, SegmentFile};

use crate::{message_record::Trailer, record_id::queue_id, spool_home};

/// Boot number of a reader: above every writer's.
const READER_BOOT: u64 = (1 << 48) - 1;

struct ReaderHost;

impl Host for ReaderHost {
    type Buffer = Vec<u8>;

    fn take_buffer(&mut self, bytes: usize) -> Option<Vec<u8>> {
        Some(vec![0; bytes])
    }

    fn random(&mut self) -> u64 {
        0
    }
}

/// A message found in a log.
#[derive(Clone, Debug)]
pub struct SpooledMessage {
    /// Its name in the spool.
    pub record: RecordId,
    /// Its name for users.
    pub id: String,
    /// Reverse-path without brackets.
    pub sender: String,
    /// Forward-paths without brackets.
    pub recipients: Vec<String>,
    /// Content bytes.
    pub size: u64,
    /// Unix milliseconds.
    pub accepted_at_ms: u64,
    /// Chunk records its content is made of, beside the message record.
    pub chunks: u32,
}

/// One log, read.
pub struct Inspection {
    directory: PathBuf,
    log: Log<ReaderHost>,
    /// Unsettled messages, in order of their ids.
    pub messages: Vec<SpooledMessage>,
    /// What did not verify.
    pub damages: Vec<Damage>,
    /// Messages that lack a part of their content.
    pub incomplete: Vec<RecordId>,
    /// Numbers.
    pub report: RecoveryReport,
}

/// The logs of a spool: number and directory.
pub fn logs(spool: &Path) -> io::Result<Vec<(u16, PathBuf)>> {
    let mut logs = Vec::new();
    for entry in fs::read_dir(spool)? {
        let entry = entry?;
        if let Some(number) = entry.file_name().to_str().and_then(|name| name.strip_prefix("shard-")?.parse().ok()) {
            logs.push((number, entry.path()));
        }
    }
    logs.sort_unstable();
    Ok(logs)
}

impl Inspection {
    /// Reads the log `number` in `directory` of the spool `spool`. Fails with a sentence that names the file.
    pub fn read(spool: &Path, number: u16, directory: &Path) -> Result<Inspection, String> {
        let node = spool_home::read_identity(spool).map_err(|reason| reason.to_string())?;
        let mut config = LogConfig::new(node, number, READER_BOOT);
        config.segments_max = 1 << 20;
        let mut files = Vec::new();
        for entry in fs::read_dir(directory).map_err(|reason| format!("{}: {reason}", directory.display()))? {
            let entry = entry.map_err(|reason| format!("{}: {reason}", directory.display()))?;
            // What is being prepared is none of a reader's business.
            if let Some((file, false)) = entry.file_name().to_str().and_then(SegmentFile::parse) {
                let bytes = entry.metadata().map_err(|reason| format!("{}: {reason}", entry.path().display()))?.len();
                files.push(FoundFile { file, bytes, temporary: false, doubt: None });
            }
        }
        let log = Log::open(config, ReaderHost, &files, Instant::now());
        let mut inspection = Inspection {
            directory: directory.to_owned(),
            log,
            messages: Vec::new(),
            damages: Vec::new(),
            incomplete: Vec::new(),
            report: RecoveryReport::default(),
        };
        if !files.is_empty() {
            inspection.load()?;
        }
        Ok(inspection)
    }

    fn load(&mut self) -> Result<(), String> {
        let mut found: HashMap<RecordId, SpooledMessage> = HashMap::new();
        loop {
            let mut loaded = false;
            while let Some(event) = self.log.event() {
                match event {
                    Event::Found { id, chunks, payload } => {
                        if let Some(message) = message_of(id, chunks, payload) {
                            found.insert(id, message);
                        }
                    }
                    Event::FoundSettled { id } => drop(found.remove(&id)),
                    Event::Damaged(damage) => self.damages.push(damage),
                    Event::Incomplete { id } => self.incomplete.push(id),
                    Event::Loaded(report) => {
                        self.report = report;
                        loaded = true;
                    }
                    Event::Refused(reason) => return Err(format!("{}: {reason}", self.directory.display())),
                    _ => {}
                }
            }
            if loaded {
                break;
            }
            let Some(Op { id, kind }) = self.log.poll(Instant::now()) else {
                return Err(format!("{}: the log could not be read to its end", self.directory.display()));
            };
            let result = match kind {
                OpKind::Read { file, offset, mut buffer, bytes } => {
                    let result = self.read_at(file, offset, &mut buffer[..bytes]);
                    OpResult::Read { buffer, result: result.map_or_else(|error| errno(&error), |read| read as i64) }
                }
                // A reader changes nothing: what the log wants to prepare for a writer is said to be done.
                OpKind::WriteSynced { bytes, .. } => OpResult::WriteSynced { write: bytes as i64, sync: 0 },
                _ => OpResult::Done { result: 0 },
            };
            self.log.completed(id, result, Instant::now());
        }
        self.messages = found.into_values().filter(|message| self.log.message(message.record).is_some()).collect();
        self.messages.sort_by_key(|message| message.record);
        Ok(())
    }

    fn read_at(&self, file: SegmentFile, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let open = File::open(self.directory.join(file.to_string()))?;
        let mut done = 0;
        while done < buffer.len() {
            match open.read_at(&mut buffer[done..], offset + done as u64)? {
                0 => break,
                read => done += read,
            }
        }
        Ok(done)
    }

    /// Hands the content of a message to `each`, piece by piece, verified. Fails with a sentence.
    pub fn content(&self, record: RecordId, mut each: impl FnMut(&[u8]) -> io::Result<()>) -> Result<(), String> {
        let queued = self.log.message(record).ok_or("the message is not in the spool any more")?;
        let chunks = (0..queued.chunks).map(|index| self.log.chunk(record, index));
        for (at, location) in std::iter::once(Some(queued.location)).chain(chunks).enumerate() {
            let location = location.ok_or("a part of the message is missing")?;
            let (offset, bytes) = location.blocks();
            let mut blocks = vec![0; bytes];
            let read = self.read_at(location.file, offset, &mut blocks).map_err(|reason| format!("{}: {reason}", location.file))?;
            let payload = self.log.check(record, &location, &blocks[..read]).map_err(|reason| format!("{}: {reason}", location.file))?;
            let piece = if at == 0 {
                let trailer = Trailer::decode(payload).map_err(|reason| reason.to_string())?;
                &payload[trailer.content(payload.len())]
            } else {
                payload
            };
            each(piece).map_err(|reason| reason.to_string())?;
        }
        Ok(())
    }
}

fn message_of(record: RecordId, chunks: u32, payload: &[u8]) -> Option<SpooledMessage> {
    let trailer = Trailer::decode(payload).ok()?;
    let envelope = EnvelopeView::decode(&payload[trailer.envelope(payload.len())]).ok()?;
    Some(SpooledMessage {
        record,
        id: queue_id(record)?.to_string(),
        sender: envelope.reverse_path().as_str().to_owned(),
        recipients: envelope.recipients().map(|recipient| recipient.path.as_str().to_owned()).collect(),
        size: trailer.content_bytes,
        accepted_at_ms: trailer.accepted_at_ms,
        chunks,
    })
}

fn errno(error: &io::Error) -> i64 {
    const EIO: i64 = -5;
    error.raw_os_error().map_or(EIO, |errno| -i64::from(errno))
}
