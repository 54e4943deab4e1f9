//! Settings of a log so small that a test fills it.

use ringpost_spool::LogConfig;

/// Segments of 128 KiB, batches of 16 KiB, and nothing waits for its pace. Tests change what they are about.
pub fn small_log(boot: u64) -> LogConfig {
    let mut config = LogConfig::new(7, 0, boot);
    config.segment_bytes = 128 << 10;
    config.batch_bytes = 16 << 10;
    config.read_bytes = 64 << 10;
    config.prepared_segments = 3;
    config.segments_max = 16;
    config.prepare_bytes_per_s = 1 << 40;
    config
}
