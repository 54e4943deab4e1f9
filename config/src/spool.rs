//! `[spool]`: where accepted mail is kept, and what it may take of the disk.

use std::path::PathBuf;

use crate::ByteSize;
use crate::choice::choice;
use crate::section::Section;

/// Segments are prepared in direct writes of this size, so their length is a multiple of it.
const SEGMENT_STEP: ByteSize = ByteSize::mib(1);

/// `[spool]`: the log of accepted mail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spool {
    /// The folder; a relative one starts at the config file's.
    pub path: PathBuf,
    /// Length of a segment, a multiple of 1 MiB, 1 MiB to 1 GiB.
    pub segment_bytes: ByteSize,
    /// Segments kept written and free for each shard.
    pub prepared_segments: u32,
    /// Free space of the file system below which MAIL is refused with 452.
    pub min_free_bytes: ByteSize,
    /// Free inodes of the file system below which MAIL is refused with 452.
    pub min_free_inodes: u32,
    /// Content of transactions that are still open, for each shard; beyond it 452.
    pub open_max: ByteSize,
    /// What the process does when the disk fails a write or a flush.
    pub on_disk_failure: OnDiskFailure,
    /// Whether the spool may lie where a power cut or a restart loses it (tmpfs, NFS, volatile overlays).
    pub allow_unsafe_spool: bool,
}

choice! {
    /// What the process does when the disk fails a write or a flush. In both cases nothing more is accepted.
    OnDiskFailure {
        /// Leave within 5 s, non-zero; the restart finds out what the disk has.
        Exit = "exit",
        /// Stay for inspection, accepting and delivering nothing.
        StopAccepting = "stop-accepting",
    }
}

impl Spool {
    pub(crate) fn read(mut section: Section<'_, '_>) -> Spool {
        let default = Spool::default();
        let spool = Spool {
            path: section.path("path", "spool"),
            segment_bytes: section.within("segment_bytes", default.segment_bytes, SEGMENT_STEP..=ByteSize::gib(1)),
            prepared_segments: section.within("prepared_segments", default.prepared_segments, 3..=4096),
            min_free_bytes: section.within("min_free_bytes", default.min_free_bytes, ByteSize::mib(1)..=ByteSize::gib(1024)),
            min_free_inodes: section.within("min_free_inodes", default.min_free_inodes, 0..=100_000_000),
            open_max: section.within("open_max", default.open_max, ByteSize::mib(1)..=ByteSize::gib(1024)),
            on_disk_failure: section.read("on_disk_failure", default.on_disk_failure),
            allow_unsafe_spool: section.read("allow_unsafe_spool", default.allow_unsafe_spool),
        };
        if !spool.segment_bytes.bytes().is_multiple_of(SEGMENT_STEP.bytes()) {
            section.refuse("segment_bytes", format!("is not a multiple of {SEGMENT_STEP}"));
        }
        section.finish();
        spool
    }
}

impl Default for Spool {
    fn default() -> Spool {
        Spool {
            path: PathBuf::from("spool"),
            segment_bytes: ByteSize::mib(64),
            prepared_segments: 4,
            min_free_bytes: ByteSize::mib(512),
            min_free_inodes: 1000,
            open_max: ByteSize::gib(1),
            on_disk_failure: OnDiskFailure::Exit,
            allow_unsafe_spool: false,
        }
    }
}
