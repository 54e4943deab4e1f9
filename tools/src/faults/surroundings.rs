//! What forbids a start: one clear sentence, an exit code that is not 0, and no panic.

use std::io;
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::{Case, Needs, Place, Seen};
use crate::dialogue::Dialogue;
use crate::engine::{Engine, EngineOptions, Route};

/// A start that is refused ends within this (a busy port is waited for, 5 s).
const REFUSED_MAX: Duration = Duration::from_secs(15);
/// The user `nobody`.
const NOBODY: u32 = 65534;

pub(super) const CASES: &[Case] = &[
    ("start: port in use", Needs::Nothing, port_in_use),
    ("start: spool is a file", Needs::Nothing, spool_is_a_file),
    ("start: spool in use", Needs::Nothing, spool_in_use),
    ("start: spool not writable", Needs::Root, spool_not_writable),
    ("start: read-only file system", Needs::Root, read_only),
    ("start: port below 1024", Needs::Root, privileged_port),
    ("start: as nobody", Needs::Root, unprivileged),
    ("start: 64 KiB memlock", Needs::Root, little_memlock),
    ("start: 64 open files", Needs::Root, few_files),
    ("start: io_uring forbidden", Needs::Strace, no_io_uring),
];

fn options(place: &Place<'_>) -> io::Result<EngineOptions> {
    let mut options = EngineOptions::new(place.engine, &place.folder, Route::Hold)?;
    options.segment_mib = Some(1);
    Ok(options)
}

/// Runs `serve` under `wrapper`; the file is of what it says.
fn serve(place: &Place<'_>, engine: &Engine, wrapper: &[&str]) -> io::Result<(Child, PathBuf)> {
    let binary = place.engine.canonicalize()?.to_string_lossy().into_owned();
    let config = engine.config().to_string_lossy().into_owned();
    let line: Vec<&str> = wrapper.iter().copied().chain([binary.as_str(), "serve", "-c", config.as_str()]).collect();
    let said = place.folder.join("said");
    let file = std::fs::File::create(&said)?;
    let child = Command::new(line[0]).args(&line[1..]).stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file).spawn()?;
    Ok((child, said))
}

/// Runs `serve` under `wrapper`; it must end by itself and say all of `words`.
fn is_refused(place: &Place<'_>, engine: &Engine, wrapper: &[&str], words: &[&str]) -> Seen {
    let (mut child, said) = serve(place, engine, wrapper)?;
    let began = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if began.elapsed() > REFUSED_MAX {
            child.kill()?;
            child.wait()?;
            return Ok((false, "it runs instead of refusing".into()));
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let text = String::from_utf8_lossy(&std::fs::read(&said)?).into_owned();
    let sentence = text.lines().rev().find(|line| line.starts_with("ringpost: ")).unwrap_or("no sentence").to_string();
    let good =
        !status.success() && status.code().is_some() && !text.contains("panicked") && words.iter().all(|word| sentence.contains(word));
    Ok((good, format!("{status}: {sentence}")))
}

fn port_in_use(place: &Place<'_>) -> Seen {
    let engine = Engine::new(options(place)?)?;
    let _holder = TcpListener::bind(engine.address)?;
    is_refused(place, &engine, &[], &["listener.address", "in use"])
}

fn spool_is_a_file(place: &Place<'_>) -> Seen {
    let engine = Engine::new(options(place)?)?;
    std::fs::write(place.folder.join("spool"), b"")?;
    is_refused(place, &engine, &[], &["spool"])
}

fn spool_in_use(place: &Place<'_>) -> Seen {
    let mut first = Engine::new(options(place)?)?;
    first.start()?;
    let mut second = options(place)?;
    second.folder = place.folder.join("second");
    second.spool = Some(place.folder.join("spool"));
    let second = Engine::new(second)?;
    let seen = is_refused(place, &second, &[], &["spool"])?;
    first.must_run()?;
    Ok(seen)
}

/// The folder of the case belongs to nobody, and so may everything on the way to it and to the binary be read.
fn for_nobody<'a>(place: &'a Place<'a>, binary: &'a std::path::Path) -> io::Result<Place<'a>> {
    std::fs::copy(place.engine, binary)?;
    std::fs::set_permissions(binary, std::fs::Permissions::from_mode(0o755))?;
    let base = place.folder.parent().expect("a case has a folder of its own");
    std::fs::set_permissions(base, std::fs::Permissions::from_mode(0o755))?;
    chown(&place.folder, Some(NOBODY), Some(NOBODY))?;
    Ok(Place { engine: binary, folder: place.folder.clone() })
}

const AS_NOBODY: &[&str] = &["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all", "--bounding-set=-all"];

fn spool_not_writable(place: &Place<'_>) -> Seen {
    let binary = place.folder.join("ringpost");
    let place = for_nobody(place, &binary)?;
    let engine = Engine::new(options(&place)?)?;
    std::fs::create_dir(place.folder.join("spool"))?;
    is_refused(&place, &engine, AS_NOBODY, &["spool", "ermission"])
}

fn read_only(place: &Place<'_>) -> Seen {
    let image = place.folder.join("image");
    std::fs::write(&image, crate::volume::fresh_ext4(64, &place.folder)?)?;
    let mounted = place.folder.join("fs");
    let volume = crate::volume::Volume::mount(&image, &mounted)?;
    crate::volume::run("mount", &["-o".as_ref(), "remount,ro".as_ref(), mounted.as_ref()])?;
    let mut options = options(place)?;
    options.spool = Some(mounted.join("spool"));
    let engine = Engine::new(options)?;
    let seen = is_refused(place, &engine, &[], &["spool", "ead-only"]);
    volume.unmount()?;
    seen
}

fn privileged_port(place: &Place<'_>) -> Seen {
    let binary = place.folder.join("ringpost");
    let place = for_nobody(place, &binary)?;
    let mut engine = Engine::new(options(&place)?)?;
    engine.address.set_port(579);
    engine.change(|_| ())?;
    is_refused(&place, &engine, AS_NOBODY, &["listener.address", "579", "CAP_NET_BIND_SERVICE"])
}

/// Starts under `wrapper` and takes a message.
fn runs(place: &Place<'_>, wrapper: &[&str]) -> Seen {
    let engine = Engine::new(options(place)?)?;
    let (mut child, said) = serve(place, &engine, wrapper)?;
    let began = Instant::now();
    let seen = loop {
        if let Some(status) = child.try_wait()? {
            let text = String::from_utf8_lossy(&std::fs::read(&said)?).into_owned();
            let is_said = |line: &&str| line.starts_with("ringpost: ") || line.contains(" ERROR ");
            let sentence = text.lines().rev().find(is_said).unwrap_or("no sentence");
            break (
                !text.contains("panicked") && status.code().is_some_and(|code| code != 0) && sentence != "no sentence",
                format!("refused: {sentence}"),
            );
        }
        if let Ok(mut client) = Dialogue::greeted(engine.address, Duration::from_secs(5)) {
            let reply = client.message()?;
            break (reply.starts_with("250"), format!("runs, and answers {:?}", reply.trim_end()));
        }
        if began.elapsed() > REFUSED_MAX {
            break (false, "neither runs nor ends".into());
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    let _already_ended = child.kill();
    child.wait()?;
    Ok(seen)
}

fn unprivileged(place: &Place<'_>) -> Seen {
    let binary = place.folder.join("ringpost");
    let place = for_nobody(place, &binary)?;
    let seen = runs(&place, AS_NOBODY)?;
    Ok((seen.0 && seen.1.starts_with("runs"), seen.1))
}

fn little_memlock(place: &Place<'_>) -> Seen {
    let binary = place.folder.join("ringpost");
    let place = for_nobody(place, &binary)?;
    runs(&place, &[&["prlimit", "--memlock=65536:65536"], AS_NOBODY].concat())
}

fn few_files(place: &Place<'_>) -> Seen {
    let binary = place.folder.join("ringpost");
    let place = for_nobody(place, &binary)?;
    runs(&place, &[&["prlimit", "--nofile=64:64"], AS_NOBODY].concat())
}

fn no_io_uring(place: &Place<'_>) -> Seen {
    let engine = Engine::new(options(place)?)?;
    let trace = place.folder.join("trace").to_string_lossy().into_owned();
    is_refused(place, &engine, &["strace", "-f", "-o", &trace, "-e", "inject=io_uring_setup:error=EPERM"], &["io_uring"])
}
