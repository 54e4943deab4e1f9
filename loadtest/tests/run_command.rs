//! `ringpost-load run` from outside: how it ends.

use std::{
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use ringpost_loadtest::{
    pinning,
    run_result::RunResult,
    sink::{Sink, SinkOptions},
};

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// A sink as a process of its own, which ends with the test.
struct Server {
    process: Child,
    address: String,
}

impl Server {
    fn start(mut command: Command) -> Server {
        let mut process = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut listening = String::new();
        BufReader::new(process.stderr.take().unwrap()).read_line(&mut listening).unwrap();
        Server { process, address: listening.trim().strip_prefix("listening on ").unwrap().to_owned() }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

/// What happened: the signal was for the load alone, so that the wait for what the next hop was owed went on for as long as the scenario
/// allows, and the result was not interrupted.
#[test]
fn a_run_that_waits_for_the_next_hop_is_interrupted_as_any_other() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    let scenario = "name = \"wait\"\nabout = \"Waits.\"\nseconds = 60\n[load]\nmessages = 5\n[sink]\n[expect]\ndrain_s_max = 600\n";
    std::fs::write(path("wait.toml"), scenario).unwrap();
    let core = pinning::cores().unwrap()[0];
    let address = ([127, 0, 0, 1], 0).into();
    // It sends nothing on.
    let sink = Sink::start(SinkOptions::new(address, core)).unwrap();
    let counters = sink.counters();
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringpost-load"));
    command.args(["run", &path("wait.toml"), "--to", &sink.address.to_string(), "--next-hop", "127.0.0.1:0"]);
    command.args(["--output", &path("results"), "--folder", &path("")]).stdout(Stdio::null());
    let mut run = command.spawn().unwrap();
    while counters.messages() < 5 || counters.connections_open() > 0 {
        assert_eq!(run.try_wait().unwrap(), None);
        std::thread::yield_now();
    }
    assert!(Command::new("kill").args(["-INT", &run.id().to_string()]).status().unwrap().success());
    let began = Instant::now();
    let status = loop {
        match run.try_wait().unwrap() {
            Some(status) => break status,
            None if began.elapsed() > Duration::from_secs(20) => {
                run.kill().unwrap();
                panic!("it goes on waiting");
            }
            None => std::thread::yield_now(),
        }
    };
    assert_eq!(status.code(), Some(130));
    let result = RunResult::read(&folder.path().join("results/wait.json")).unwrap();
    assert!(result.interrupted && !result.success && result.emails_sent == 5, "{:?}", result.failures);
    assert!(!result.failures.iter().any(|text| text.contains("lost")), "nobody waited for it: {:?}", result.failures);
}

/// What happened: mail that a server that runs was to try again after minutes was called lost, and nothing else.
#[test]
fn what_does_not_come_from_a_server_that_runs_may_wait_there() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    let scenario = "name = \"wait\"\nabout = \"Waits.\"\nseconds = 60\n[load]\nmessages = 5\n[sink]\n[expect]\ndrain_s_max = 0.3\n";
    std::fs::write(path("wait.toml"), scenario).unwrap();
    // It sends nothing on.
    let sink = Sink::start(SinkOptions::new(([127, 0, 0, 1], 0).into(), pinning::cores().unwrap()[0])).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringpost-load"));
    command.args(["run", &path("wait.toml"), "--to", &sink.address.to_string(), "--next-hop", "127.0.0.1:0", "--folder", &path("")]);
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    for part in ["lost 5", "nothing more came for 0.3 s", "may wait in the server's queue"] {
        assert!(text(&output).contains(part), "{}", text(&output));
    }
}

/// What happened: what a server used while its queue was waited for was that of the load, which had then used several cores' time on one.
#[test]
fn the_servers_cpu_behind_the_load_is_not_that_of_the_load() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    let scenario = "name = \"drain\"\nabout = \"Waits.\"\nseconds = 60\n[load]\nmessages = 5\n[sink]\n[expect]\ndrain_s_max = 0.5\n";
    std::fs::write(path("drain.toml"), scenario).unwrap();
    // The server is this process. It sends nothing on, and when the load is over it works.
    let sink = Sink::start(SinkOptions::new(([127, 0, 0, 1], 0).into(), pinning::cores().unwrap()[0])).unwrap();
    let counters = sink.counters();
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringpost-load"));
    command.args(["run", &path("drain.toml"), "--to", &sink.address.to_string(), "--next-hop", "127.0.0.1:0", "--folder", &path("")]);
    command.args(["--server-pid", &std::process::id().to_string(), "--output", &path("results")]).stdout(Stdio::null());
    let mut run = command.spawn().unwrap();
    while counters.messages() < 5 || counters.connections_open() > 0 {
        assert_eq!(run.try_wait().unwrap(), None);
        std::thread::yield_now();
    }
    let status = loop {
        match run.try_wait().unwrap() {
            Some(status) => break status,
            None => std::hint::black_box((0..1_000_000_u64).sum::<u64>()),
        };
    };
    assert_eq!(status.code(), Some(1), "what it did not send on is lost");
    let result = RunResult::read(&folder.path().join("results/drain.json")).unwrap();
    let cpu = result.server_cpu_by_phase.unwrap();
    assert!(cpu.drain_lasted_s >= 0.5 && cpu.drain_s > 0.0 && cpu.messages == 5 && !cpu.is_drained, "{cpu:?}");
    let of_load = result.cpu_usage.unwrap_or(0.0) / 100.0 * result.duration;
    assert!((of_load - cpu.load_s).abs() < 0.001, "{of_load} {cpu:?}");
    assert_eq!(result.cpu_us_per_message, None, "what a message costs whose delivery did not come is not known");
}

/// What happened: a key of `[engine.settings]` that the engine does not know was a server that is not reachable.
#[test]
fn settings_that_the_engine_refuses_are_the_scenarios_fault() {
    let folder = tempfile::tempdir().unwrap();
    let engine = folder.path().join("ringpost");
    // No engine: it refuses its config file.
    std::fs::write(&engine, "#!/bin/sh\n[ \"$1\" = --version ] && exit 0\necho 'line 7: unknown key' >&2\nexit 78\n").unwrap();
    std::fs::set_permissions(&engine, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringpost-load"));
    command.args(["run", "baseline", "--folder"]).arg(folder.path()).arg("--engine").arg(&engine);
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(65), "{}", text(&output));
    assert!(text(&output).contains("[engine.settings]") && text(&output).contains("unknown key"), "{}", text(&output));
}

/// What happened: an engine that had no room on its disk was a server that is not reachable.
#[test]
fn an_engine_that_the_disk_fails_at_its_start_is_the_disks_fault() {
    let folder = tempfile::tempdir().unwrap();
    let engine = folder.path().join("ringpost");
    let ended = |script: &str| {
        std::fs::write(&engine, format!("#!/bin/sh\n[ \"$1\" = serve ] || exit 0\n{script}\n")).unwrap();
        std::fs::set_permissions(&engine, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_ringpost-load"));
        let output = command.args(["run", "baseline", "--folder"]).arg(folder.path()).arg("--engine").arg(&engine).output().unwrap();
        (output.status.code(), text(&output))
    };
    let (code, said) = ended("echo 'spool: No space left on device' >&2; exit 74");
    assert!(code == Some(74) && said.contains("No space left"), "{code:?} {said}");
    let (code, said) = ended("exit 0");
    assert!(code == Some(69) && said.contains("(exit status: 0) and said nothing"), "{code:?} {said}");
}

/// What happened: a ramp of ten seconds ran within three, and the result had the one of ten beside the seconds that it lasted.
#[test]
fn the_result_of_a_shorter_run_has_the_schedule_that_ran() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    std::fs::write(path("ramp.toml"), "name = \"ramp\"\nabout = \"Grows.\"\nseconds = 10\n[load]\nrate = \"10..90/10\"\n").unwrap();
    let sink = Sink::start(SinkOptions::new(([127, 0, 0, 1], 0).into(), pinning::cores().unwrap()[0])).unwrap();
    let run = |seconds: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ringpost-load"));
        command.args(["run", &path("ramp.toml"), "--to", &sink.address.to_string(), "--folder", &path(""), "--seconds", seconds]);
        let output = command.args(["--output", &path(seconds)]).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", text(&output));
        path(&format!("{seconds}/ramp.json"))
    };
    let (shorter, longer) = (run("0.5"), run("1"));
    let result = RunResult::read(shorter.as_ref()).unwrap();
    assert_eq!(
        (&result.settings["scenario"]["load"]["rate"], &result.settings["scenario"]["seconds"]),
        (&"10..90/0.5".into(), &0.5.into())
    );
    assert_eq!((&result.settings["seconds"], &result.settings["planned_s"], result.emails_sent), (&0.5.into(), &10.0.into(), 25));
    let compared = Command::new(env!("CARGO_BIN_EXE_ringpost-load")).args(["compare", &shorter, &longer]).output().unwrap();
    for note in ["not the same seconds: 0.5 / 1.0", "not the same load.rate: 10..90/0.5 / 10..90/1"] {
        assert!(text(&compared).contains(note), "{}", text(&compared));
    }
}

/// Takes so many messages as a server does, over as many connections as they come. What `take` makes of a message's recipient is its queue id.
fn take_mail(listener: &TcpListener, messages: usize, mut take: impl FnMut(&str) -> String) {
    let mut taken = 0;
    while taken < messages {
        taken += serve(&listener.accept().unwrap().0, &mut take);
    }
}

/// The messages of one connection.
fn serve(stream: &TcpStream, take: &mut impl FnMut(&str) -> String) -> usize {
    let reply = |mut stream: &TcpStream, text: &str| stream.write_all(format!("{text}\r\n").as_bytes());
    let (mut taken, mut is_content, mut recipient) = (0, false, String::new());
    let mut is_open = reply(stream, "220 server.test").is_ok();
    for line in BufReader::new(stream).lines().map_while(Result::ok) {
        let answer = match line.as_str() {
            "." if is_content => {
                is_content = false;
                taken += 1;
                format!("250 2.0.0 taken, id={}", take(&recipient))
            }
            _ if is_content => continue,
            "DATA" => {
                is_content = true;
                "354 go on".to_owned()
            }
            "QUIT" => "221 bye".to_owned(),
            line => {
                if let Some(path) = line.strip_prefix("RCPT TO:<") {
                    recipient = path.trim_end_matches('>').to_owned();
                }
                "250 well".to_owned()
            }
        };
        is_open = is_open && reply(stream, &answer).is_ok() && line != "QUIT";
        if !is_open {
            break;
        }
    }
    taken
}

/// What happened: the first scenario that could not be run took the report of all before it with it.
#[test]
fn a_scenario_that_cannot_be_run_leaves_the_report_of_those_before_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    let write = |name: &str, more: &str| {
        let text = format!("name = \"{name}\"\nabout = \"Short.\"\nseconds = 60\n[load]\nmessages = 1\n{more}");
        std::fs::write(path(&format!("{name}.toml")), text).unwrap();
        path(&format!("{name}.toml"))
    };
    std::fs::create_dir(path("mail")).unwrap();
    std::fs::write(path("mail/one.eml"), "Subject: x\r\n\r\n").unwrap();
    let scenarios = [write("first", ""), write("second", "corpus = \"mail\"\n"), write("third", "")];
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringpost-load"));
    command.arg("run").args(scenarios).args(["--to", &listener.local_addr().unwrap().to_string()]);
    command.args(["--output", &path("results"), "--folder", &path("")]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let run = command.spawn().unwrap();
    // When the first scenario sends, all of them have been looked at.
    take_mail(&listener, 1, |_| {
        std::fs::remove_file(path("mail/one.eml")).unwrap();
        "Q1".to_owned()
    });
    let output = run.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(65), "{}", text(&output));
    assert!(text(&output).contains("\nnot run: second, third") && text(&output).contains("/mail has no file"), "{}", text(&output));
    for file in ["first.json", "suite.json", "report.html"] {
        assert!(folder.path().join("results").join(file).exists(), "{file}");
    }
}

/// What happened: what the engine still had in its queue, and said so, was lost by the account that stood beside that.
#[test]
fn mail_that_the_engine_still_has_is_queued_and_not_lost() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    let scenario = "name = \"wait\"\nabout = \"Waits.\"\nseconds = 60\n[load]\nmessages = 3\n[sink]\n[expect]\ndrain_s_max = 0.2\n";
    std::fs::write(path("wait.toml"), scenario).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, path("config"), rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    // No engine: who answers is this test.
    let script = format!(
        "#!/bin/sh\ncase \"$1 $2\" in\n'queue ls') cat {0}/queue;;\n'serve -c') cat \"$3\" > {0}/config; trap 'exit 0' TERM; mkfifo {0}/end; read end < {0}/end;;\nesac\n",
        path("")
    );
    std::fs::write(path("ringpost"), script).unwrap();
    std::fs::set_permissions(path("ringpost"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringpost-load"));
    command.args(["run", &path("wait.toml"), "--engine", &path("ringpost"), "--folder", &path(""), "--output", &path("results")]);
    let run = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let config: toml::Table = std::fs::read_to_string(path("config")).unwrap().parse().unwrap();
    let listener = TcpListener::bind(config["listener"][0]["address"].as_str().unwrap()).unwrap();
    let mut queue = String::new();
    take_mail(&listener, 3, |recipient| {
        let id = format!("Q{}", queue.len());
        queue.push_str(&format!("{{\"id\":\"{id}\",\"recipients\":[{{\"address\":\"{recipient}\",\"state\":\"deferred\"}}]}}\n"));
        std::fs::write(path("queue"), &queue).unwrap();
        id
    });
    let output = run.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    let result = RunResult::read(&folder.path().join("results/wait.json")).unwrap();
    let difference = &result.settings["difference"];
    let counts = ["owed", "delivered", "queued", "lost"].map(|name| difference[name].as_u64());
    assert_eq!(counts, [Some(3), Some(0), Some(3), Some(0)], "{difference}");
    let failures = result.failures.join("; ");
    assert!(failures.contains("3 of 3 deliveries are still queued") && !failures.contains("lost"), "{failures}");
}

/// What happened: an empty corpus was found when the scenarios before it had run, and which key it was of was not said.
#[test]
fn what_no_scenario_can_use_is_found_before_the_first_one_runs() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    let sink = Sink::start(SinkOptions::new(([127, 0, 0, 1], 0).into(), pinning::cores().unwrap()[0])).unwrap();
    std::fs::create_dir(path("empty")).unwrap();
    std::fs::write(path("t.eml"), "Subject: {{who}}\r\n\r\n").unwrap();
    let write = |name: &str, load: &str| {
        let text = format!("name = \"{name}\"\nabout = \"Sends.\"\nseconds = 60\n[load]\nmessages = 1\n{load}\n");
        std::fs::write(path(&format!("{name}.toml")), text).unwrap();
    };
    write("first", "");
    for (load, told) in [
        ("corpus = \"empty\"", "[load] corpus = \"empty\": "),
        ("template = \"t.eml\"", "[load] template = \"t.eml\": "),
        ("header = [\"nonsense\"]", "[load] header = \"nonsense\""),
        ("template = \"\"", "[load] template = \"\": it names no file"),
        ("[background]\ncorpus = \"empty\"", "[background] corpus = \"empty\": "),
    ] {
        write("second", load);
        let mut command = Command::new(env!("CARGO_BIN_EXE_ringpost-load"));
        command.args(["run", &path("first.toml"), &path("second.toml"), "--to", &sink.address.to_string(), "--folder", &path("")]);
        let output = command.output().unwrap();
        assert_eq!((output.status.code(), sink.messages()), (Some(65), 0), "{load}: {}", text(&output));
        assert!(text(&output).contains(told), "{load}: {}", text(&output));
    }
}

/// What happened: a Ctrl-C while the engine was asked about its settings ended the process, and the folder for that stayed.
#[test]
fn a_run_that_is_interrupted_before_its_first_scenario_leaves_no_folder() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    let spools = path("spools");
    std::fs::create_dir(&spools).unwrap();
    // No engine: its answer about a config file is waited for. It counts behind that, as a signal has a way through a thread.
    let count = "n=0; while [ $n -lt 100000 ]; do n=$((n+1)); done";
    let script = format!("#!/bin/sh\n[ \"$1\" = check ] && echo asked > {0} && read line < {0}\n{count}\nexit 0\n", path("pipe"));
    std::fs::write(path("ringpost"), script).unwrap();
    std::fs::set_permissions(path("ringpost"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    assert!(Command::new("mkfifo").arg(path("pipe")).status().unwrap().success());
    let scenario = "name = \"one\"\nabout = \"Sends.\"\nseconds = 60\n[load]\n[engine.settings.smtp]\nsessions_max = 10\n";
    std::fs::write(path("one.toml"), scenario).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringpost-load"));
    command.args(["run", &path("one.toml"), "--engine", &path("ringpost"), "--folder", &spools]).stdout(Stdio::null());
    let mut run = command.spawn().unwrap();
    assert_eq!(std::fs::read_to_string(path("pipe")).unwrap(), "asked\n");
    assert!(Command::new("kill").args(["-INT", &run.id().to_string()]).status().unwrap().success());
    std::fs::write(path("pipe"), "go on\n").unwrap();
    assert_eq!(run.wait().unwrap().code(), Some(130));
    assert_eq!(std::fs::read_dir(&spools).unwrap().count(), 0);
}

/// What happened: a name of a folder below the one that was asked for stood in the error.
#[test]
fn a_folder_that_is_not_there_is_named_as_it_was_given() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringpost-load"));
    let output = command.args(["run", "baseline", "--folder", "/not/there", "--engine", "/bin/true"]).output().unwrap();
    assert_eq!(output.status.code(), Some(74), "{}", text(&output));
    assert!(text(&output).contains("--folder /not/there: "), "{}", text(&output));
}

/// What happened: a setting that the engine does not know was found when the scenarios before it had run.
#[test]
fn settings_that_the_engine_refuses_are_found_before_the_first_scenario_runs() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    // No engine: it refuses a config file with `wrong` in it, and tells of each start.
    let script = format!(
        "#!/bin/sh\ncase \"$1\" in\nserve) echo started >> {0}/started; exit 1;;\ncheck) grep -q wrong \"$3\" && echo 'line 7: unknown key' >&2 && exit 78;;\nesac\nexit 0\n",
        path("")
    );
    std::fs::write(path("ringpost"), script).unwrap();
    std::fs::set_permissions(path("ringpost"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    for (name, settings) in [("first", ""), ("second", "[engine.settings.smtp]\nwrong = 1\n")] {
        let text = format!("name = \"{name}\"\nabout = \"Sends.\"\nseconds = 60\n[load]\n{settings}");
        std::fs::write(path(&format!("{name}.toml")), text).unwrap();
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringpost-load"));
    command.args(["run", &path("first.toml"), &path("second.toml"), "--engine", &path("ringpost"), "--folder", &path("")]);
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(65), "{}", text(&output));
    assert!(text(&output).contains("second: [engine.settings] line 7: unknown key"), "{}", text(&output));
    assert!(!folder.path().join("started").exists(), "an engine was started: {}", text(&output));
}

/// What happened: how the background fared was not asked, and a server that refused all of the slow clients passed the scenario that is about
/// them, without a word.
#[test]
fn a_background_that_is_refused_fails_its_scenario_and_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    let mut options = SinkOptions::new(([127, 0, 0, 1], 0).into(), pinning::cores().unwrap()[0]);
    options.per_client_max = Some(3);
    let sink = Sink::start(options).unwrap();
    let run = |sessions: usize| {
        let background = format!("[background]\nsessions = {sessions}\nbytes_per_s = 20000\nsize = 1000\nfrom_address = [\"127.0.0.2\"]\n");
        let scenario = format!("name = \"beside\"\nabout = \"Short.\"\nseconds = 0.5\n[load]\nrate = 40\n{background}");
        std::fs::write(path("beside.toml"), scenario).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_ringpost-load"));
        command.args(["run", &path("beside.toml"), "--to", &sink.address.to_string(), "--folder", &path(""), "--output", &path("results")]);
        let output = command.output().unwrap();
        let result = RunResult::read(&folder.path().join("results/beside.json")).unwrap();
        (output.status.code(), text(&output), result, std::fs::read_to_string(path("results/report.html")).unwrap())
    };
    let (code, said, result, page) = run(3);
    assert_eq!((code, result.errors.total()), (Some(0), 0), "{said}");
    let background = &result.settings["background"];
    assert!(background["acknowledged"].as_u64().is_some_and(|acknowledged| acknowledged > 0), "{background}");
    assert_eq!(background["acknowledged"], background["transactions_begun"]);
    let (code, refused, result, other_page) = run(7);
    assert_eq!((code, result.errors.total()), (Some(1), 0), "{refused}");
    let background = &result.settings["background"];
    assert!(background["errors"]["421"].as_u64().is_some_and(|refusals| refusals >= 4), "{background}");
    assert!(result.failures.iter().any(|failure| failure.starts_with("the background had ") && failure.contains("421: ")), "{refused}");
    for (text, part) in
        [(&said, "acknowledged, no errors"), (&page, "acknowledged, no errors"), (&refused, "errors 421: "), (&other_page, "errors 421: ")]
    {
        assert!(text.contains("the background beside it") && text.contains(part), "{part}: {text}");
    }
}

/// What happened: of a server that was not started here all cores of the machine were its own, however many it was pinned to.
#[test]
fn the_cores_of_a_server_that_runs_are_those_it_works_on() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    let core = pinning::cores().unwrap()[0].to_string();
    let tool = || Command::new(env!("CARGO_BIN_EXE_ringpost-load"));
    // Its main thread may run anywhere.
    let mut server = tool();
    server.args(["sink", "--listen", "127.0.0.1:0", "--cores", &core, "--quiet"]);
    let server = Server::start(server);
    std::fs::write(path("busy.toml"), "name = \"busy\"\nabout = \"Short.\"\nseconds = 0.5\n[load]\nsessions = 20\n").unwrap();
    let cores = |more: &[&str]| {
        let mut command = tool();
        command.args([
            "run",
            &path("busy.toml"),
            "--to",
            &server.address,
            "--server-pid",
            &server.process.id().to_string(),
            "--folder",
            &path(""),
        ]);
        let output = command.args(["--output", &path("results")]).args(more).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", text(&output));
        RunResult::read(&folder.path().join("results/busy.json")).unwrap().load.server_cores
    };
    assert_eq!((cores(&[]), cores(&["--server-cores", "0-2"])), (Some(1), Some(3)));
}

/// What happened: of an engine that was not started here the result had the banner, whatever version that was, and none of its counters.
#[test]
fn an_engine_that_runs_says_what_it_is_and_its_counters() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    // No engine: this tool under its name, which takes mail and says a version. Who asks for counters is what lies beside the other.
    std::fs::create_dir(path("beside")).unwrap();
    std::fs::hard_link(env!("CARGO_BIN_EXE_ringpost-load"), path("ringpost")).unwrap();
    std::fs::hard_link(env!("CARGO_BIN_EXE_ringpost-load"), path("beside/ringpost-load")).unwrap();
    let answers = |script: &str| {
        std::fs::write(path("beside/ringpost"), format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(path("beside/ringpost"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    };
    let mut server = Command::new(path("ringpost"));
    server.args(["sink", "--listen", "127.0.0.1:0", "--quiet"]);
    let server = Server::start(server);
    std::fs::write(path("one.toml"), "name = \"one\"\nabout = \"Short.\"\nseconds = 60\n[load]\nmessages = 3\n").unwrap();
    let run = |more: &[&str]| {
        let mut command = Command::new(path("beside/ringpost-load"));
        command.args(["run", &path("one.toml"), "--to", &server.address, "--folder", &path(""), "--output", &path("results")]).args(more);
        let output = command.output().unwrap();
        (output.status.code(), text(&output), RunResult::read(&folder.path().join("results/one.json")).ok())
    };
    let (code, said, result) = run(&["--server-pid", &server.process.id().to_string()]);
    let version = result.unwrap().machine.engine;
    assert!(code == Some(0) && version.starts_with("ringpost-load ") && version.ends_with(')'), "{version}: {said}");
    let stats = format!(
        "[ \"$*\" = 'stats --json --socket /its/socket' ] || exit 2; echo >> {0}/asked; echo \"{{\\\"accepted\\\": $(wc -l < {0}/asked)}}\"",
        path("")
    );
    answers(&stats);
    let (code, said, result) = run(&["--control", "/its/socket"]);
    let result = result.unwrap();
    // The first was whether it answers.
    assert_eq!((code, result.initial_metrics["accepted"], result.final_metrics["accepted"]), (Some(0), 2.0, 3.0), "{said}");
    assert!(!result.machine.engine.starts_with("ringpost-load "), "it is not known to be what lies beside: {}", result.machine.engine);
    // What happened: where nothing was known of it before the run what it had counted in all its life was the run's.
    std::fs::remove_file(path("asked")).unwrap();
    answers(&format!("{stats}; [ $(wc -l < {}/asked) != 2 ]", path("")));
    let (code, said, result) = run(&["--control", "/its/socket"]);
    let result = result.unwrap();
    assert_eq!((code, result.initial_metrics.len(), result.final_metrics.len()), (Some(0), 0, 0), "{said}");
    assert_eq!(std::fs::read_to_string(path("asked")).unwrap(), "\n\n\n", "it was asked three times");
    answers("echo 'the engine is not running' >&2; exit 69");
    let (code, said, _) = run(&["--control", "/its/socket"]);
    assert!(code == Some(69) && said.contains("--control /its/socket: the engine is not running"), "{said}");
}
