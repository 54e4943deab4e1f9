//! What the seeds met, so that a green run can be seen to have tested something.

use ringpost_spool::RecoveryReport;

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Sums over lives and seeds.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Counters { $($(#[$doc])* pub $name: u64,)* }

        impl Counters {
            /// Adds another sum.
            pub fn add(&mut self, other: &Counters) {
                $(self.$name += other.$name;)*
            }

            /// (name, count) of each.
            pub fn all(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name),)*]
            }
        }
    };
}

counters! {
    /// Seeds run.
    seeds,
    /// Lives begun.
    lives,
    /// Cuts by power.
    power_cuts,
    /// Cuts by kill.
    kills,
    /// Clean stops.
    stops,
    /// Cuts before the log was open.
    cuts_in_recovery,
    /// Cuts while a segment was being made.
    cuts_in_preparation,
    /// Cuts while a freed segment's header was being written.
    cuts_in_freeing,
    /// Cuts while a segment was being emptied.
    cuts_in_compaction,
    /// Cuts before the batch with the seals was acknowledged.
    cuts_in_sealing,
    /// Cuts with two batches in flight.
    cuts_with_two_in_flight,
    /// Cuts at which a write landed in part.
    torn_writes,
    /// Writes and flushes made to fail.
    faults,
    /// Messages acknowledged.
    acknowledged,
    /// Of these, in chunks.
    acknowledged_chunked,
    /// Outcomes acknowledged.
    outcomes,
    /// Messages settled, acknowledged.
    settled,
    /// Of these, by a bounce.
    bounced,
    /// Uploads abandoned.
    abandoned,
    /// Messages with forged batches in them.
    hostile,
    /// Contents read back and compared.
    read_back,
    /// Segments freed durably.
    segments_freed,
    /// Segments made.
    segments_prepared,
    /// Uses of the most used segment, summed over seeds.
    reuses,
    /// Seeds in which some segment was used at least three times.
    seeds_with_three_uses,
    /// Adopted logs that became empty and were removed.
    retired,
    /// Records of outcomes that compaction carried forward.
    outcome_carried_forward,
    /// Other records that it carried forward.
    others_carried_forward,
    /// Times the log went into reserve mode.
    reserve,
    /// Times the disk had to grow for a start to find a segment.
    room_made,
    /// Write sides opened while older segments were still being read.
    opened_before_loaded,
    /// Recoveries completed.
    recoveries,
    /// Batches of recovery that verified.
    batches,
    /// Log ends with a torn batch before a valid one.
    torn_n_with_valid_n_plus_1,
    /// Batches of an earlier use met where one of this use was looked for.
    stale_generation_met,
    /// Segment headers that could not be read.
    header_torn,
    /// Chunks without their message.
    chunk_orphaned,
    /// Log ends whose last batch has no witness.
    tail_without_witness,
    /// Tails with traces that were dropped.
    tails_dropped,
    /// Seals obeyed.
    seals,
}

impl Counters {
    /// The ones that must be large for a run to mean something.
    pub const WANTED: [&'static str; 6] = [
        "torn_n_with_valid_n_plus_1",
        "stale_generation_met",
        "header_torn",
        "outcome_carried_forward",
        "chunk_orphaned",
        "tail_without_witness",
    ];

    /// Adds what one recovery reports.
    pub fn add_report(&mut self, report: &RecoveryReport) {
        self.recoveries += 1;
        self.batches += report.batches;
        self.torn_n_with_valid_n_plus_1 += report.torn_before_valid;
        self.stale_generation_met += report.stale_generations;
        self.header_torn += report.headers_unreadable;
        self.chunk_orphaned += report.orphaned_chunks;
        self.tail_without_witness += report.tails_without_witness;
        self.tails_dropped += report.tails_dropped;
        self.seals += report.seals;
    }
}
