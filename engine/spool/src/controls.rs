//! Mechanisms that can be left out, one at a time, to see that the disk model notices.

/// All off; without the feature `controls` there is no way to set one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(not(feature = "controls"), expect(unreachable_pub))]
pub struct Controls {
    /// Acknowledges when the write is handed out.
    pub ack_before_sync: bool,
    /// Recovery and compaction take bodies as they are.
    pub crc_unchecked: bool,
    /// The generation of a segment is its number.
    pub generation_guessable: bool,
    /// Outcomes and settled records do not keep a segment.
    pub outcomes_not_live: bool,
    /// After a start the log goes on in the segment where it ended.
    pub append_after_restart: bool,
    /// Compaction copies what was live when it read, not what is when it appends.
    pub stale_compaction: bool,
    /// Two batches in flight in two segments.
    pub in_flight_across_segments: bool,
}

/// A batch as a sender could forge it inside a message, who guesses `generation` and `number` and claims this log position.
///
/// It holds a settled record for `victim`, and states all before it as durable.
#[cfg(feature = "controls")]
pub fn forged_batch(generation: u64, number: u64, boot: u64, sequence: u64, victim: crate::RecordId) -> Vec<u8> {
    use crate::check::Generation;
    use crate::open_batch::{Chained, OpenBatch};
    use crate::record::{RecordHeader, RecordKind};

    let mut batch = OpenBatch::new(vec![0; crate::BLOCK_BYTES], 0, 0, Generation(generation), crate::BLOCK_BYTES);
    batch.begin(RecordHeader { kind: RecordKind::Settled, id: victim, index: 0, body_bytes: 0, body_check: 0 }, 0);
    batch.finish();
    let chained = Chained { number, boot, sequence, durable_upto: sequence - 1, previous_check: 0 };
    let sealed = batch.seal(chained);
    sealed.buffer
}

/// Two of them, the second one chained to the first, which claims to be `bytes` long.
#[cfg(feature = "controls")]
pub fn forged_run(generation: u64, number: u64, boot: u64, sequence: u64, victim: crate::RecordId, bytes: u32) -> [Vec<u8>; 2] {
    use crate::batch::BatchHeader;

    let mut batches = [sequence, sequence + 1].map(|sequence| forged_batch(generation, number, boot, sequence, victim));
    let [first, second] = batches.each_ref().map(|batch| BatchHeader::decode(batch).expect("it is right in itself").0);
    let (first, check) = BatchHeader { bytes, ..first }.encode();
    let (second, _) = BatchHeader { previous_check: check, ..second }.encode();
    for (batch, header) in batches.iter_mut().zip([first, second]) {
        batch[..header.len()].copy_from_slice(&header);
    }
    batches
}
