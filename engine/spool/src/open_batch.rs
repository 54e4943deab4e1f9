//! The batch that gathers: records are written straight into its buffer and summed as they come.

use std::time::Instant;

use crate::batch::{BATCH_HEADER_BYTES, BLOCK_BYTES, BatchHeader};
use crate::check::Generation;
use crate::op::BatchBuffer;
use crate::record::{RECORD_HEADER_BYTES, RecordHeader, record_span};

/// A record whose body is being put.
struct Building {
    header: RecordHeader,
    body_bytes_max: u32,
}

/// A batch under construction, bound to a place in a segment.
pub(crate) struct OpenBatch<B> {
    buffer: B,
    pub(crate) slot: u32,
    /// Of the batch in its segment.
    pub(crate) offset: u32,
    generation: Generation,
    capacity: usize,
    used: usize,
    records: u32,
    table_check: u32,
    building: Option<Building>,
    /// Somebody waits for it: it goes out when a flight slot is free.
    pub(crate) urgent: bool,
    /// Nothing waits for it before then.
    pub(crate) ride_until: Option<Instant>,
    /// Holds nothing but a witness.
    pub(crate) is_witness: bool,
}

/// A sealed batch: ready for the disk.
pub(crate) struct SealedBatch<B> {
    pub(crate) buffer: B,
    pub(crate) bytes: usize,
    pub(crate) check: u32,
}

impl<B: BatchBuffer> OpenBatch<B> {
    pub(crate) fn new(buffer: B, slot: u32, offset: u32, generation: Generation, capacity: usize) -> Self {
        let capacity = capacity.min(buffer.bytes().len()) / BLOCK_BYTES * BLOCK_BYTES;
        OpenBatch {
            buffer,
            slot,
            offset,
            generation,
            capacity,
            used: BATCH_HEADER_BYTES,
            records: 0,
            table_check: generation.0 as u32,
            building: None,
            urgent: false,
            ride_until: None,
            is_witness: false,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.records == 0
    }

    /// Bytes that are left for records.
    pub(crate) fn left(&self) -> usize {
        self.capacity - self.used
    }

    /// Whether a record with a body of at most `body_bytes` still fits.
    pub(crate) fn has_room(&self, body_bytes: u32) -> bool {
        self.used as u64 + record_span(body_bytes) <= self.capacity as u64
    }

    /// Opens a record; room was seen.
    pub(crate) fn begin(&mut self, header: RecordHeader, body_bytes_max: u32) {
        assert!(self.building.is_none(), "one record at a time");
        assert!(self.has_room(body_bytes_max), "the caller has seen that it fits");
        let header = RecordHeader { body_bytes: 0, body_check: self.generation.body_seed(), ..header };
        self.building = Some(Building { header, body_bytes_max });
    }

    /// Adds to the body of the open record.
    pub(crate) fn put(&mut self, bytes: &[u8]) {
        let building = self.building.as_mut().expect("a record is open");
        let total = building.header.body_bytes as usize + bytes.len();
        assert!(total <= building.body_bytes_max as usize, "a body stays within the bound that was stated");
        let at = self.used + RECORD_HEADER_BYTES + building.header.body_bytes as usize;
        self.buffer.bytes_mut()[at..at + bytes.len()].copy_from_slice(bytes);
        building.header.body_check = crc32c::crc32c_append(building.header.body_check, bytes);
        building.header.body_bytes = total as u32;
    }

    /// Body bytes of the open record so far.
    pub(crate) fn put_bytes(&self) -> u32 {
        self.building.as_ref().map_or(0, |building| building.header.body_bytes)
    }

    /// Closes the record: its header and where it stands in the batch.
    pub(crate) fn finish(&mut self) -> (RecordHeader, usize) {
        let Building { header, .. } = self.building.take().expect("a record is open");
        let (at, end) = (self.used, self.used + header.span() as usize);
        let encoded = header.encode(self.generation);
        let bytes = self.buffer.bytes_mut();
        bytes[at..at + RECORD_HEADER_BYTES].copy_from_slice(&encoded);
        bytes[at + RECORD_HEADER_BYTES + header.body_bytes as usize..end].fill(0);
        self.table_check = crc32c::crc32c_append(self.table_check, &encoded);
        self.used = end;
        self.records += 1;
        (header, at)
    }

    /// Forgets the open record; the batch is as before.
    pub(crate) fn abort(&mut self) {
        self.building = None;
    }

    /// Writes the batch header. `chained` holds number, boot, sequence, durable_upto and the check of the batch before.
    pub(crate) fn seal(mut self, chained: Chained) -> SealedBatch<B> {
        assert!(self.building.is_none(), "no record is open when a batch goes out");
        let bytes = self.used.next_multiple_of(BLOCK_BYTES);
        let header = BatchHeader {
            generation: self.generation,
            number: chained.number,
            boot: chained.boot,
            sequence: chained.sequence,
            durable_upto: chained.durable_upto,
            previous_check: chained.previous_check,
            bytes: bytes as u32,
            used_bytes: self.used as u32,
            records: self.records,
            table_check: self.table_check,
        };
        let (encoded, check) = header.encode();
        let memory = self.buffer.bytes_mut();
        memory[..BATCH_HEADER_BYTES].copy_from_slice(&encoded);
        // Padding goes to the disk too: it must not carry what the buffer held before.
        memory[self.used..bytes].fill(0);
        SealedBatch { buffer: self.buffer, bytes, check }
    }
}

/// What ties a batch to the log when it is sealed.
pub(crate) struct Chained {
    pub(crate) number: u64,
    pub(crate) boot: u64,
    pub(crate) sequence: u64,
    pub(crate) durable_upto: u64,
    pub(crate) previous_check: u32,
}
