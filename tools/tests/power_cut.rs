//! The disk of the power-cut rig itself: what was flushed stays, what was not is torn.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::process::Command;
use std::time::Duration;

use ringpost_loadtest::random::Random;
use ringpost_tools::disk::{Disk, Event};
use ringpost_tools::volume::{Volume, fresh_ext4, must_be_possible};

/// The rig needs root. `./dev test` is where it must work or be excused by name; here it only says that it did not run.
fn possible(test: &str) -> bool {
    let answer = must_be_possible();
    if let Err(error) = &answer {
        eprintln!("{test} could not run: {error}");
    }
    answer.is_ok()
}

#[test]
fn flushed_files_survive_a_cut_and_unflushed_ones_are_torn() {
    if !possible("flushed_files_survive_a_cut_and_unflushed_ones_are_torn") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let disk = Disk::mount(fresh_ext4(32, folder.path()).unwrap(), &path("disk"), Duration::ZERO).unwrap();
    let control = disk.control();
    let volume = Volume::mount(&disk.file(), &path("fs")).unwrap();

    let file = File::create(path("fs/data")).unwrap();
    file.write_all_at(&[1; 1 << 20], 0).unwrap();
    file.sync_all().unwrap();
    File::open(path("fs")).unwrap().sync_all().unwrap();
    let flushes = control.counts().1;
    assert!(flushes > 0, "a sync of the file must reach the disk as a flush");
    control.watch(b"needle in the block");
    let mut direct = Vec::from([2u8; 512 * 64]);
    direct[..19].copy_from_slice(b"needle in the block");
    // Overwritten past the page cache, but without flush.
    std::fs::write(path("direct"), &direct).unwrap();
    let (from, to) = (format!("if={}", path("direct").display()), format!("of={}", path("fs/data").display()));
    let mut dd = Command::new("dd");
    dd.args([&from, &to]).args(["bs=4096", "seek=1", "conv=notrunc", "oflag=direct", "status=none"]);
    assert!(dd.status().unwrap().success());
    let mut random = Random::new(3);
    let cut = loop {
        if control.events().iter().any(|event| matches!(event, Event::Write(_, true))) {
            break control.cut(&mut random, &path("image")).unwrap();
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    assert!(cut.unflushed >= 64 && cut.kept < cut.unflushed, "{cut:?}");
    let dead = File::create(path("fs/other")).and_then(|mut file| file.write_all(b"x").and_then(|()| file.sync_all()));
    assert!(dead.is_err(), "a disk without power takes nothing");
    drop((file, volume, disk));

    let volume = Volume::mount(&path("image"), &path("fs")).unwrap();
    let after = std::fs::read(path("fs/data")).unwrap();
    assert_eq!(after.len(), 1 << 20);
    assert!(after[..4096].iter().all(|&byte| byte == 1), "what was flushed is there");
    let torn = after[4096..4096 + direct.len()].chunks(512).filter(|sector| sector[100] == 1).count();
    assert_eq!(torn as u64 > 0, cut.kept < cut.unflushed);
    volume.unmount().unwrap();
}

#[test]
fn a_slow_flush_takes_its_time_and_is_recorded() {
    if !possible("a_slow_flush_takes_its_time_and_is_recorded") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let disk = Disk::mount(vec![0; 1 << 20], &folder.path().join("disk"), Duration::from_millis(4)).unwrap();
    let control = disk.control();
    control.watch(b"");
    let file = File::options().write(true).open(disk.file()).unwrap();
    file.write_all_at(b"x", 0).unwrap();
    file.sync_all().unwrap();
    let events = control.events();
    let slow = events.iter().any(|event| matches!(event, Event::Flush(came, done) if *done - *came >= Duration::from_millis(4)));
    assert!(slow, "{events:?}");
    drop(file);
}
