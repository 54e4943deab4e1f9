//! The end of an engine one of whose threads is in the system's resolver, which does not answer.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat};
use rustix::process::Signal;

use crate::node::{Node, PATIENCE, Setup};

/// A name without a dot: the C library looks for another one for it in the file that HOSTALIASES names, before it asks DNS.
const CLUSTER: &str = "[cluster]\nenabled = true\nvalkey_url = \"valkey://silent-valkey:6379\"\n";

/// Waits until somebody is about to read the pipe, and keeps them from coming to its end.
fn reader_of(pipe: &Path, node: &Node) -> File {
    let began = Instant::now();
    loop {
        // Without a reader that fails.
        match OpenOptions::new().write(true).custom_flags(OFlags::NONBLOCK.bits() as i32).open(pipe) {
            Ok(writer) => return writer,
            Err(reason) => assert!(
                began.elapsed() < PATIENCE,
                "the C library has not looked for an alias of Valkey's host (`dns` in the line `hosts:` of nsswitch.conf, and nothing before it that \
                 has an end of its own): {reason}; {}",
                node.log()
            ),
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Its listeners were closed, its mail log was written and it had said that it is drained; then the process waited for the thread, and was killed in the end.
#[test]
fn an_engine_that_is_told_to_end_does_not_wait_for_the_systems_resolver() {
    let setup = Setup::new();
    let mut node = Node::start(&setup);
    node.kill();
    let pipe = node.folder.path().join("aliases");
    mknodat(CWD, &pipe, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    std::fs::write(&node.config, setup.text() + CLUSTER).unwrap();
    node.prelude = Some(format!("export HOSTALIASES='{}'", pipe.display()));
    node.restart();
    let silence = reader_of(&pipe, &node);
    node.signal(Signal::TERM);
    let status = node.wait();
    assert!(status.success() && node.log().contains(" drained "), "{status}: {}", node.log());
    drop(silence);
}
