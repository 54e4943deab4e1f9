//! Runs that end before their time: by a signal, a disk, a server that is gone.

use std::{
    ffi::OsStr,
    io::{BufRead, BufReader, Read},
    os::unix::ffi::OsStrExt,
    path::Path,
    process::{Child, Command, Stdio},
};

use ringpost_loadtest::{
    pinning,
    run_result::RunResult,
    sink::{Sink, SinkOptions},
};

use super::{ringpost_load, text};

/// A good next hop on a free port.
fn sink() -> Sink {
    let options = SinkOptions::new(([127, 0, 0, 1], 0).into(), pinning::cores().unwrap()[0]);
    Sink::start(options).unwrap()
}

/// Waits until so many messages of a load have come, which runs on.
fn wait_for_messages(sink: &Sink, count: u64, load: &mut Child) {
    while sink.messages() < count {
        assert_eq!(load.try_wait().unwrap(), None);
        std::thread::yield_now();
    }
}

fn signal(name: &str, process: u32) {
    assert!(Command::new("kill").args([name, &process.to_string()]).status().unwrap().success());
}

/// What was ended early was taken for a whole run that had gone well: exit code 0, and nothing in the result.
#[test]
fn a_run_that_is_interrupted_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.json");
    let sink = sink();
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringpost-load"));
    command.args(["source", "--to", &sink.address.to_string(), "--seconds", "60", "--output", path.to_str().unwrap()]);
    let mut source = command.stdout(Stdio::null()).spawn().unwrap();
    wait_for_messages(&sink, 1, &mut source);
    signal("-INT", source.id());
    assert_eq!(source.wait().unwrap().code(), Some(130));
    let result = RunResult::read(&path).unwrap();
    assert!(result.interrupted && !result.success && result.emails_sent > 0, "{:?}", result.failures);
    let path = path.to_str().unwrap();
    let compared = ringpost_load(&["compare", path, path]);
    assert!(compared.status.code() == Some(65) && text(&compared).contains("interrupted"), "{}", text(&compared));
    let history = folder.path().join("history.jsonl");
    let added = ringpost_load(&["history", "--file", history.to_str().unwrap(), "add", path]);
    assert!(text(&added).contains("left out, interrupted") && text(&added).contains("added 0"), "{}", text(&added));
}

/// What happened: with its terminal gone a run was gone, its figures too, and its folder stayed; `nohup` was for nothing.
#[test]
fn a_terminal_that_is_gone_ends_a_run_in_order_unless_nobody_minds() {
    let folder = tempfile::tempdir().unwrap();
    let (results, spools) = (folder.path().join("results"), folder.path().join("spools"));
    std::fs::create_dir(&spools).unwrap();
    let start = |call: &str| {
        let sink = sink();
        let mut command = Command::new("sh");
        command.args(["-c", call, env!("CARGO_BIN_EXE_ringpost-load"), &sink.address.to_string()]).stdout(Stdio::null());
        let mut run = command.args([&results, &spools]).spawn().unwrap();
        wait_for_messages(&sink, 1, &mut run);
        signal("-HUP", run.id());
        run.wait().unwrap().code()
    };
    // Whoever tests may do so under `nohup`.
    assert_eq!(
        start("exec env --default-signal=HUP \"$0\" run baseline --seconds 60 --to \"$1\" --output \"$2\" --folder \"$3\""),
        Some(130)
    );
    let result = RunResult::read(&results.join("baseline.json")).unwrap();
    assert!(result.interrupted && result.emails_sent > 0 && results.join("report.html").exists(), "{:?}", result.failures);
    assert_eq!(std::fs::read_dir(&spools).unwrap().count(), 0);
    assert_eq!(start("trap '' HUP; exec \"$0\" source --seconds 1 --to \"$1\""), Some(0));
}

/// The reader of keys looked for them for ever where the terminal was gone, so that the run ended neither by itself nor with a result.
#[test]
fn a_full_screen_whose_terminal_is_gone_ends_the_run_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    let sink = sink();
    let call = "echo $$ > pid; exec \"$LOAD\" run baseline --seconds 60 --tui --to \"$TO\" --output results --folder .";
    // It gives what it runs a terminal, which is gone when it is.
    let mut command = Command::new("script");
    command.args(["-qec", call, "/dev/null"]).current_dir(&folder).stdin(Stdio::piped()).stdout(Stdio::null());
    command.env("LOAD", env!("CARGO_BIN_EXE_ringpost-load")).env("TO", sink.address.to_string()).env("SHELL", "/bin/sh");
    let mut terminal = command.spawn().unwrap();
    wait_for_messages(&sink, 1, &mut terminal);
    terminal.kill().unwrap();
    terminal.wait().unwrap();
    let began = std::time::Instant::now();
    while !Path::new(&path("results/report.html")).exists() {
        if began.elapsed() > std::time::Duration::from_secs(20) {
            let pid = std::fs::read_to_string(path("pid")).unwrap();
            Command::new("kill").args(["-KILL", pid.trim()]).status().unwrap();
            panic!("it goes on");
        }
        std::thread::yield_now();
    }
    let result = RunResult::read(Path::new(&path("results/baseline.json"))).unwrap();
    assert!(result.interrupted && result.emails_sent > 0, "{:?}", result.failures);
}

/// What happened: what had been measured was gone where standard output could not be written, and of several scenarios the report where one
/// result could not be.
#[test]
fn a_place_that_cannot_be_written_does_not_cost_what_belongs_elsewhere() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    let sink = sink();
    let to = sink.address.to_string();
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringpost-load"));
    command.args(["source", "--to", &to, "--messages", "5", "--output", &path("x.json")]);
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = command.stdout(full).output().unwrap();
    assert!(output.status.code() == Some(74) && text(&output).contains("standard output"), "{}", text(&output));
    assert_eq!(RunResult::read(Path::new(&path("x.json"))).unwrap().emails_sent, 5);

    let mut scenarios = Vec::new();
    for name in ["first", "second", "third"] {
        let text = format!("name = \"{name}\"\nabout = \"Short.\"\nseconds = 0.2\n[load]\n");
        std::fs::write(path(&format!("{name}.toml")), text).unwrap();
        scenarios.push(path(&format!("{name}.toml")));
    }
    // The result of the second has no place.
    std::fs::create_dir_all(path("results/second.json")).unwrap();
    let arguments = ["run", "--to", &to, "--output", &path("results"), "--folder", &path("")];
    let output = ringpost_load(&[&arguments[..], &scenarios.iter().map(String::as_str).collect::<Vec<_>>()].concat());
    let said = text(&output);
    assert!(output.status.code() == Some(74) && said.contains("second.json") && said.contains("not run: third"), "{said}");
    let suite = ringpost_loadtest::report::suite::Suite::read(Path::new(&path("results/suite.json"))).unwrap();
    assert_eq!(suite.results.iter().map(|run| run.test_name.as_str()).collect::<Vec<_>>(), ["first", "second"]);
}

/// What happened: a full disk under the ledger ended the program with that as its only word; what had been measured was gone.
#[test]
fn a_ledger_that_cannot_be_written_ends_the_load_and_not_its_figures() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.json");
    let sink = sink();
    let arguments = ["--seconds", "60", "--ledger", "/dev/full", "--output", path.to_str().unwrap()];
    let output = ringpost_load(&[&["source", "--to", &sink.address.to_string()][..], &arguments].concat());
    assert_eq!(output.status.code(), Some(74), "{}", text(&output));
    assert!(text(&output).contains("acknowledged") && text(&output).contains("dot to 250"), "{}", text(&output));
    let result = RunResult::read(&path).unwrap();
    assert!(!result.success && result.failures.iter().any(|text| text.contains("/dev/full")), "{:?}", result.failures);
}

/// What happened: it went on until it was killed, and a result was never written.
#[test]
fn a_load_whose_server_has_died_ends_with_69_its_ledger_and_its_result() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    let sink = sink();
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringpost-load"));
    command.args(["source", "--to", &sink.address.to_string(), "--messages", "100000000", "--timeout", "0.5"]);
    command.args(["--ledger", &path("accepted"), "--output", &path("x.json")]).stdout(Stdio::piped());
    let mut source = command.spawn().unwrap();
    wait_for_messages(&sink, 20, &mut source);
    drop(sink);
    let output = source.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(69), "{}", text(&output));
    assert!(text(&output).contains("the load gave up: nobody was there for 0.5"), "{}", text(&output));
    let result = RunResult::read(Path::new(&path("x.json"))).unwrap();
    assert!(!result.success && result.failures.iter().any(|text| text.contains("gave up")), "{:?}", result.failures);
    let ledger = std::fs::read_to_string(path("accepted")).unwrap();
    assert_eq!(ledger.lines().filter(|line| !line.starts_with('#')).count() as u64, result.emails_sent);
}

/// What happened: an argument that was no UTF-8 ended the call by a panic when the load was over, and its result was lost.
#[test]
fn arguments_of_any_octets_leave_their_result() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &[u8]| folder.path().join(OsStr::from_bytes(name));
    std::fs::create_dir(path(b"\xfecorpus")).unwrap();
    for name in [b"\xfetext".as_slice(), b"\xfecorpus/1.eml"] {
        std::fs::write(path(name), "Subject: x\r\n\r\nx\r\n").unwrap();
    }
    let (sink, result) = (sink(), path(b"\xff.json"));
    for (key, name) in [("--attach", b"\xfetext".as_slice()), ("--template", b"\xfetext"), ("--corpus", b"\xfecorpus")] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ringpost-load"));
        command.args(["source", "--to", &sink.address.to_string(), "--messages", "2", "--quiet", "--output"]).arg(&result);
        let output = command.arg(key).arg(path(name)).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{key}: {}", text(&output));
        let written = RunResult::read(&result).unwrap();
        assert!(written.command_line.iter().any(|argument| argument.ends_with("\u{fffd}.json")), "{:?}", written.command_line);
        std::fs::remove_file(&result).unwrap();
    }
}

/// What happened: nobody was there, it said, of a server that had answered each of its connections, and the load had lasted no time.
#[test]
fn a_load_that_no_session_is_opened_for_says_what_the_server_answered() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.json");
    let sink = sink();
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringpost-load"));
    command.args(["source", "--lmtp", "--to", &sink.address.to_string(), "--messages", "1", "--timeout", "0.3", "--output"]);
    let output = command.arg(&path).output().unwrap();
    assert_eq!(output.status.code(), Some(69), "{}", text(&output));
    assert!(text(&output).contains("no session was opened: ehlo answered 5"), "{}", text(&output));
    assert!(!text(&output).contains("nobody was there"), "{}", text(&output));
    let result = RunResult::read(&path).unwrap();
    assert!(result.duration >= 0.3 && result.cpu_usage.is_none(), "{result:?}");
}

#[test]
fn a_suite_that_is_interrupted_names_what_was_not_run() {
    let sink = sink();
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringpost-load"));
    command.args(["run", "baseline", "concurrent", "--seconds", "60", "--to", &sink.address.to_string()]);
    command.args(["--folder", folder.path().to_str().unwrap()]);
    let mut run = command.stdout(Stdio::piped()).spawn().unwrap();
    wait_for_messages(&sink, 1, &mut run);
    signal("-INT", run.id());
    let output = run.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", text(&output));
    assert!(text(&output).contains("not run: concurrent") && text(&output).contains("it was interrupted"), "{}", text(&output));
}

/// Ctrl-C reached the engine together with the load, and the run that was ended failed for its 421s.
#[test]
fn the_engine_of_a_run_is_not_in_the_terminals_group() {
    let folder = tempfile::tempdir().unwrap();
    let (engine, said) = (folder.path().join("ringpost"), folder.path().join("said"));
    // No engine: it tells its group and ends.
    std::fs::write(&engine, "#!/bin/sh\n[ \"$1\" = serve ] && cat /proc/$$/stat > \"$SAID\"\nexit 1\n").unwrap();
    std::fs::set_permissions(&engine, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringpost-load"));
    command.args(["run", "baseline", "--engine", engine.to_str().unwrap(), "--folder", folder.path().to_str().unwrap()]);
    let output = command.env("SAID", &said).output().unwrap();
    assert_eq!(output.status.code(), Some(69), "{}", text(&output));
    let stat = std::fs::read_to_string(said).unwrap();
    let fields: Vec<&str> = stat.split_ascii_whitespace().collect();
    assert_eq!(fields[0], fields[4], "its process is the first of its group: {stat}");
}

/// A second signal, and a panic, left the engine behind with its port and its core, and the signal its folder with the spool.
#[test]
fn two_signals_end_a_run_at_once_and_its_engine_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let (engine, said) = (folder.path().join("ringpost"), folder.path().join("said"));
    // No engine: it tells its number and waits for the end of an input that does not come.
    let script =
        "#!/bin/sh\n[ \"$1\" = serve ] || exit 1\nmkfifo fifo\necho $$ > \"$SAID.new\"\nmv \"$SAID.new\" \"$SAID\"\nread line < fifo\n";
    std::fs::write(&engine, script).unwrap();
    std::fs::set_permissions(&engine, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringpost-load"));
    command.args(["run", "baseline", "--engine", engine.to_str().unwrap(), "--folder", folder.path().to_str().unwrap()]);
    let mut run = command.env("SAID", &said).spawn().unwrap();
    let pid = loop {
        match std::fs::read_to_string(&said) {
            Ok(text) => break text.trim().to_owned(),
            Err(_) => std::thread::yield_now(),
        }
    };
    // The run waits for a banner that does not come; both signals find it there. Equal ones can merge, so that they differ.
    for name in ["-INT", "-TERM"] {
        signal(name, run.id());
    }
    assert!(matches!(run.wait().unwrap().code(), Some(130 | 143)));
    let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()).collect();
    assert_eq!(left, [""; 0].map(std::path::PathBuf::from), "the folder of the run goes with it");
    let is_gone = || std::fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| stat.contains(") Z "));
    let began = std::time::Instant::now();
    while !is_gone() {
        assert!(began.elapsed() < std::time::Duration::from_secs(20), "the engine goes on");
        std::thread::yield_now();
    }
}

/// What happened: the other load began, and a verdict about both was printed, with exit code 1.
#[test]
fn a_standstill_that_is_interrupted_has_no_verdict() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringpost-load"));
    command.args(["omission", "--seconds", "60", "--quiet"]).stdout(Stdio::piped());
    let mut run = command.spawn().unwrap();
    let mut words = BufReader::new(run.stdout.take().unwrap());
    let mut said = String::new();
    words.read_line(&mut said).unwrap();
    signal("-INT", run.id());
    words.read_to_string(&mut said).unwrap();
    assert_eq!(run.wait().unwrap().code(), Some(130), "{said}");
    assert!(said.contains("interrupted") && !said.contains("open loop"), "{said}");
}

/// What happened: a server that stood still when somebody had no patience any more stood still for ever.
#[test]
fn two_signals_leave_no_server_standing_still() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut server = Command::new("sleep").arg("600").spawn().unwrap();
    let pid = server.id().to_string();
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringpost-load"));
    command.args(["omission", "--to", &listener.local_addr().unwrap().to_string(), "--server-pid", &pid]);
    let mut run = command.args(["--every", "1", "--stall", "0.9", "--quiet"]).stdout(Stdio::null()).spawn().unwrap();
    let stands_still = || std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap().contains(") T ");
    while !stands_still() {
        assert_eq!(run.try_wait().unwrap(), None);
        std::thread::yield_now();
    }
    for name in ["-INT", "-TERM"] {
        signal(name, run.id());
    }
    run.wait().unwrap();
    let still = stands_still();
    server.kill().unwrap();
    server.wait().unwrap();
    assert!(!still);
}

/// What happened: a sink whose descriptors were used up took no connection any more and said nothing of it.
#[test]
fn a_sink_without_descriptors_says_so_and_goes_on() {
    let mut command = Command::new("/bin/sh");
    command.args([
        "-c",
        "ulimit -n 40; exec \"$0\" sink --listen 127.0.0.1:0 --seconds 60 --quiet --json",
        env!("CARGO_BIN_EXE_ringpost-load"),
    ]);
    let mut sink = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut said = BufReader::new(sink.stderr.take().unwrap());
    let mut line = String::new();
    said.read_line(&mut line).unwrap();
    let address = line.trim_end().strip_prefix("listening on ").unwrap().to_owned();
    let connections: Vec<_> = (0..60).map(|_| std::net::TcpStream::connect(&address).unwrap()).collect();
    line.clear();
    said.read_line(&mut line).unwrap();
    assert!(line.contains("no connection can be taken: ") && line.contains("ulimit -n"), "{line}");
    drop(connections);
    // It takes others again.
    let mut banner = String::new();
    BufReader::new(std::net::TcpStream::connect(&address).unwrap()).read_line(&mut banner).unwrap();
    assert!(banner.starts_with("220 "), "{banner}");
    signal("-INT", sink.id());
    let output = sink.wait_with_output().unwrap();
    let value: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(value["accepts_failed"].as_u64().is_some_and(|count| count > 0), "{value}");
}

/// A source of one message against a server that says these replies, each to a line, and then nothing.
fn source_of(replies: &'static [&'static str]) -> (Child, std::thread::JoinHandle<()>) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringpost-load"));
    command.args(["source", "--to", &listener.local_addr().unwrap().to_string(), "--messages", "1", "--sessions", "1"]);
    let source = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut server = BufReader::new(listener.accept().unwrap().0);
    let mut line = String::new();
    for reply in replies {
        std::io::Write::write_all(server.get_mut(), reply.as_bytes()).unwrap();
        assert!(server.read_line(&mut line).unwrap() > 0);
    }
    let reader = std::thread::spawn(move || drop(std::io::copy(&mut server, &mut std::io::sink())));
    (source, reader)
}

/// What happened: a Ctrl-C while the reply to EHLO was waited for was of no use for half a minute, though no message had been begun.
#[test]
fn nothing_is_waited_for_where_no_message_is_under_way() {
    let (mut source, server) = source_of(&["220 here\r\n"]);
    let began = std::time::Instant::now();
    signal("-INT", source.id());
    assert_eq!(source.wait().unwrap().code(), Some(130));
    assert!(began.elapsed() < std::time::Duration::from_secs(15), "{:?}", began.elapsed());
    server.join().unwrap();
}

/// What happened: half a minute of silence behind a Ctrl-C.
#[test]
fn what_is_waited_for_behind_a_ctrl_c_is_said() {
    let (mut source, server) = source_of(&["220 here\r\n", "250 here\r\n"]);
    signal("-INT", source.id());
    let mut told = String::new();
    BufReader::new(source.stderr.take().unwrap()).read_line(&mut told).unwrap();
    assert!(told.contains("messages are under way") && told.contains("a second Ctrl-C ends it at once"), "{told:?}");
    signal("-INT", source.id());
    assert_eq!(source.wait().unwrap().code(), Some(130));
    server.join().unwrap();
}
