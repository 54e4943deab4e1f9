//! Other octets in the spool of a node that does not run, with sums that are right (docs/spool-format.md): what an earlier version left.

use std::path::Path;

const BLOCK_BYTES: usize = 4096;
const HEADER_BYTES: usize = 80;
const RECORD_HEADER_BYTES: usize = 32;

/// Where a batch is.
struct Batch {
    file: usize,
    at: usize,
    boot: u64,
    sequence: u64,
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn put(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

/// Replaces octets by as many others in the records of all logs. Returns in how many records they stood.
pub(crate) fn replace_in_spool(folder: &Path, from: &[u8], to: &[u8]) -> usize {
    assert_eq!(from.len(), to.len());
    let folders = std::fs::read_dir(folder.join("spool")).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir());
    folders.map(|log| replace_in_log(&log, from, to)).sum()
}

fn replace_in_log(log: &Path, from: &[u8], to: &[u8]) -> usize {
    let is_segment = |path: &std::path::PathBuf| path.extension().is_some_and(|extension| extension == "log");
    let paths: Vec<_> = std::fs::read_dir(log).unwrap().map(|entry| entry.unwrap().path()).filter(is_segment).collect();
    let mut files: Vec<Vec<u8>> = paths.iter().map(|path| std::fs::read(path).unwrap()).collect();
    let mut batches: Vec<Batch> = Vec::new();
    for (file, bytes) in files.iter().enumerate() {
        for at in (2 * BLOCK_BYTES..bytes.len()).step_by(BLOCK_BYTES).filter(|&at| bytes[at..].starts_with(b"RPBATCH1")) {
            let header = &bytes[at..at + HEADER_BYTES];
            let seed = u64_at(header, 8) as u32;
            if crc32c::crc32c_append(seed, &header[..76]) == u32_at(header, 76) {
                batches.push(Batch { file, at, boot: u64_at(header, 24), sequence: u64_at(header, 32) });
            }
        }
    }
    batches.sort_by_key(|batch| (batch.boot, batch.sequence));
    let (mut found, mut before) = (0, None);
    for Batch { file, at, boot, .. } in batches {
        let batch = &mut files[file][at..];
        found += replace_in_batch(batch, from, to);
        if let Some((_, check)) = before.filter(|(of, _)| *of == boot) {
            put(batch, 48, check);
        }
        let check = crc32c::crc32c_append(u64_at(batch, 8) as u32, &batch[..76]);
        put(batch, 76, check);
        before = Some((boot, check));
    }
    for (path, bytes) in paths.iter().zip(files) {
        std::fs::write(path, bytes).unwrap();
    }
    found
}

/// All but the check of the header.
fn replace_in_batch(batch: &mut [u8], from: &[u8], to: &[u8]) -> usize {
    let generation = u64_at(batch, 8);
    let (mut at, mut table, mut found) = (HEADER_BYTES, generation as u32, 0);
    for _ in 0..u32_at(batch, 60) {
        let body_bytes = u32_at(batch, at) as usize;
        let (header, rest) = batch[at..].split_at_mut(RECORD_HEADER_BYTES);
        let body = &mut rest[..body_bytes];
        let places: Vec<usize> = (0..body.len()).filter(|&place| body[place..].starts_with(from)).collect();
        for &place in &places {
            body[place..place + to.len()].copy_from_slice(to);
        }
        found += usize::from(!places.is_empty());
        put(header, 24, crc32c::crc32c_append((generation >> 32) as u32, body));
        let check = crc32c::crc32c_append(generation as u32, &header[..28]);
        put(header, 28, check);
        table = crc32c::crc32c_append(table, header);
        at += RECORD_HEADER_BYTES + body_bytes.next_multiple_of(8);
    }
    put(batch, 64, table);
    found
}
