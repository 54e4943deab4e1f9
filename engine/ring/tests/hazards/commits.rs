//! A write and its fdatasync: whole, in order, or an error. RELIABILITY S1, S3 and S8 as far as the ring can keep them.

use std::{
    fs,
    io::Read,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    process::Stdio,
};

use ringpost_ring::{Conn, File, PagesMut, Ring, RingConfig, WriteError, local};

use crate::fixture::*;

fn filled(mut pages: PagesMut, with: u8) -> PagesMut {
    pages.fill(with);
    pages
}

/// A pipe that holds one page, with `taken` bytes of it taken.
fn pipe(flags: i32, taken: usize) -> (fs::File, OwnedFd) {
    let mut ends = [0; 2];
    // SAFETY: room for two descriptors, which are ours then.
    let (reader, writer) = unsafe {
        assert_eq!(libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC | flags), 0);
        (fs::File::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1]))
    };
    // SAFETY: system calls without memory, and a write from a valid slice.
    unsafe {
        assert_eq!(libc::fcntl(writer.as_raw_fd(), libc::F_SETPIPE_SZ, 4096), 4096);
        assert_eq!(libc::write(writer.as_raw_fd(), vec![0u8; taken].as_ptr().cast(), taken), taken as isize);
    }
    (reader, writer)
}

/// Fills `offset` places of the submission queue: closes go there at once.
fn push_closes(ring: &Ring, count: usize) {
    let conns: Vec<Conn> = (0..count).map(|_| ring.adopt(std::os::unix::net::UnixStream::pair().unwrap().0.into())).collect();
    drop(conns);
}

const FOUR: RingConfig = RingConfig {
    entries: 4,
    buffers: 8,
    buffer_bytes: 4096,
    window_bytes: 16 << 10,
    heap_bytes_max: 0,
    iowq_core: None,
    one_shot_receives: false,
};

#[test]
fn a_synced_write_is_on_the_file_and_its_pages_come_back() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("segment");
    fs::write(&path, vec![0; 64 << 10]).unwrap();
    local::run(RingConfig::default(), |ring, _| async move {
        let file = File::from(fs::OpenOptions::new().read(true).write(true).open(&path).unwrap());
        for round in 0..20u8 {
            let (first, second) = (filled(ring.take_pages(8192), round), filled(ring.take_pages(4096), round + 1));
            let both = (ring.write_synced(&file, first.freeze(), 8192, 4096), ring.write_synced(&file, second.freeze(), 100, 40_000));
            both.0.await.unwrap();
            both.1.await.unwrap();
            let (pages, read) = ring.read_at(&file, ring.take_pages(64 << 10), 64 << 10, 0).await;
            assert_eq!(read.unwrap(), 64 << 10);
            assert!(pages[4096..][..8192].iter().all(|b| *b == round) && pages[40_000..][..100].iter().all(|b| *b == round + 1));
            assert_eq!((pages[4095], pages[12_288], pages[40_100]), (0, 0, 0));
        }
        assert_eq!(ring.pages_bytes(), (64 << 10) + 8192 + 4096, "the same blocks each round");
        ring.fsync(&file, true).await.unwrap();
        assert_eq!(ring.write_at(&file, ring.take_pages(10).freeze(), 10, 0).await.unwrap(), 10);
    })
    .unwrap();
}

/// The write blocks on a full pipe; a sync that was parted from it would end first. Under `mutant-chain-pushed-singly` this goes red.
#[test]
fn the_sync_never_runs_before_its_write_wherever_the_queue_is_full() {
    let _alone = alone();
    for offset in 0..=8 {
        let (mut reader, writer) = pipe(0, 4096);
        local::run(FOUR, |ring, _| async move {
            let file = File::new(writer);
            turns(&ring).await;
            push_closes(&ring, offset);
            let mut commit = ring.write_synced(&file, filled(ring.take_pages(4096), 9).freeze(), 4096, 0);
            for _ in 0..5 {
                turns(&ring).await;
                assert!(pending(&mut commit), "offset {offset}: the pipe is full");
            }
            let mut drained = vec![0; 8192];
            reader.read_exact(&mut drained[..4096]).unwrap();
            // A pipe cannot be synced, which is how we know that the sync was tried, and after its write.
            match commit.await {
                Err(WriteError::Sync(e)) => assert_eq!(e.raw_os_error(), Some(libc::EINVAL), "offset {offset}"),
                other => panic!("offset {offset}: {other:?}"),
            }
            reader.read_exact(&mut drained[4096..]).unwrap();
            assert!(drained[4096..].iter().all(|b| *b == 9));
        })
        .unwrap();
    }
}

#[test]
fn commits_and_closes_at_every_offset_of_a_queue_of_four_all_succeed() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("segment");
    local::run(FOUR, |ring, _| async move {
        let file = File::from(fs::File::create(&path).unwrap());
        for offset in 0..12 {
            push_closes(&ring, offset % 5);
            let commits: Vec<_> =
                (0..offset).map(|i| ring.write_synced(&file, ring.take_pages(4096).freeze(), 4096, i as u64 * 4096)).collect();
            for commit in commits {
                commit.await.unwrap();
            }
        }
    })
    .unwrap();
}

/// Under `mutant-no-fdatasync` this goes red: the write alone succeeds.
#[test]
fn a_commit_whose_sync_fails_is_an_error() {
    let _alone = alone();
    let (_reader, writer) = pipe(0, 0);
    let outcome = local::run(FOUR, |ring, _| async move { ring.write_synced(&File::new(writer), ring.take_pages(9).freeze(), 9, 0).await });
    assert!(matches!(outcome.unwrap(), Err(WriteError::Sync(_))));
}

#[test]
fn a_short_write_is_an_error_and_cancels_the_sync() {
    let _alone = alone();
    let (_reader, writer) = pipe(libc::O_NONBLOCK, 0);
    let outcome = local::run(FOUR, |ring, _| async move {
        let file = File::new(writer);
        ring.write_synced(&file, ring.take_pages(12_288).freeze(), 12_288, 0).await
    });
    assert!(matches!(outcome.unwrap(), Err(WriteError::Short { written: 4096, expected: 12_288 })));
}

#[test]
fn a_failed_write_is_an_error_and_cancels_the_sync() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("segment"), "old").unwrap();
    let file = fs::File::open(dir.path().join("segment")).unwrap();
    let outcome =
        local::run(FOUR, |ring, _| async move { ring.write_synced(&File::from(file), ring.take_pages(4096).freeze(), 4096, 0).await });
    assert!(matches!(outcome.unwrap(), Err(WriteError::Write(e)) if e.raw_os_error() == Some(libc::EBADF)));
    assert_eq!(fs::read(dir.path().join("segment")).unwrap(), b"old");
}

/// The limit of file sizes belongs to the process, so it is a child's.
#[test]
fn a_file_that_may_not_grow_makes_the_commit_fail() {
    let _alone = alone();
    if let Some(path) = child_argument() {
        let limit = libc::rlimit { rlim_cur: 6000, rlim_max: 6000 };
        // SAFETY: the limit is valid for the call; the signal that comes with it is ignored.
        unsafe {
            libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
            assert_eq!(libc::setrlimit(libc::RLIMIT_FSIZE, &limit), 0);
        }
        let file = File::from(fs::File::create(path).unwrap());
        let outcome = local::run(FOUR, |ring, _| async move {
            assert!(ring.write_synced(&file, ring.take_pages(4096).freeze(), 4096, 0).await.is_ok());
            ring.write_synced(&file, ring.take_pages(4096).freeze(), 4096, 4096).await
        });
        assert!(matches!(outcome.unwrap(), Err(WriteError::Short { written: 1904, .. } | WriteError::Write(_))));
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("segment");
    // Its limit holds for what it prints, too, where that goes into a file.
    let mut child = child("commits::a_file_that_may_not_grow_makes_the_commit_fail", path.to_str().unwrap());
    let status = child.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap();
    assert!(status.success());
    assert!(fs::metadata(&path).unwrap().len() >= 4096);
}

/// The future is gone, the memory and the file are not: the pages' block is not given to another while the kernel reads it.
#[test]
fn a_dropped_commit_keeps_its_pages_and_its_file_until_the_kernel_is_done() {
    let _alone = alone();
    for polls in 0..3 {
        let (mut reader, writer) = pipe(0, 4096);
        local::run(FOUR, |ring, _| async move {
            let file = File::new(writer);
            let pages = filled(ring.take_pages(4096), 5).freeze();
            let address = pages.as_ptr();
            let commit = ring.write_synced(&file, pages, 4096, 0);
            drop(file);
            assert!(!polled(&ring, polls, commit).await);
            let other = filled(ring.take_pages(4096), 6);
            assert_ne!(other.as_ptr(), address, "the kernel still reads it");
            let mut drained = vec![0; 4096];
            reader.read_exact(&mut drained).unwrap();
            until(&ring, "the last completion", || ring.armed() == 0).await;
            reader.read_exact(&mut drained).unwrap();
            assert!(drained.iter().all(|b| *b == 5));
            assert_eq!(reader.read(&mut drained).unwrap(), 0, "the file is closed");
            assert_eq!(ring.take_pages(4096).as_ptr(), address, "and the block is free");
        })
        .unwrap();
    }
}

#[test]
fn names_are_made_moved_and_removed() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = (dir.path().join("old"), dir.path().join("new"));
    local::run(FOUR, |ring, _| async move {
        let file = ring.open(&old, libc::O_CREAT | libc::O_RDWR, 0o600).await.unwrap();
        ring.fallocate(&file, 0, 8192).await.unwrap();
        assert_eq!(fs::metadata(&old).unwrap().len(), 8192);
        assert!(ring.open(&old, libc::O_CREAT | libc::O_EXCL | libc::O_RDWR, 0o600).await.is_err());
        ring.rename(&old, &new).await.unwrap();
        assert!(ring.unlink(&old).await.is_err_and(|e| e.kind() == std::io::ErrorKind::NotFound));
        ring.unlink(&new).await.unwrap();
        assert_eq!(fs::read_dir(new.parent().unwrap()).unwrap().count(), 0);
    })
    .unwrap();
}
