//! Limits over all nodes: what two nodes send to one destination, and what they take in, with Valkey and without.

use std::{
    net::TcpListener,
    sync::{Arc, Mutex},
};

use super::{
    pushed_settings::{ask, valkey},
    *,
};

/// Takes everything, and keeps when.
struct Sink {
    port: u16,
    times: Arc<Mutex<Vec<Instant>>>,
}

impl Sink {
    fn start() -> Sink {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let times: Arc<Mutex<Vec<Instant>>> = Arc::default();
        let of_threads = times.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let times = of_threads.clone();
                std::thread::spawn(move || drop(Sink::converse(&stream, &times)));
            }
        });
        Sink { port, times }
    }

    fn converse(mut stream: &TcpStream, times: &Mutex<Vec<Instant>>) -> std::io::Result<()> {
        let mut reader = BufReader::new(stream.try_clone()?);
        stream.write_all(b"220 sink\r\n")?;
        let (mut line, mut in_data) = (String::new(), false);
        loop {
            line.clear();
            if reader.read_line(&mut line)? == 0 {
                return Ok(());
            }
            let reply = match line.trim_end() {
                "." if in_data => {
                    in_data = false;
                    times.lock().unwrap().push(Instant::now());
                    "250 2.0.0 ok\r\n"
                }
                _ if in_data => continue,
                "DATA" => {
                    in_data = true;
                    "354 go on\r\n"
                }
                "QUIT" => "221 2.0.0 bye\r\n",
                _ => "250 2.0.0 ok\r\n",
            };
            stream.write_all(reply.as_bytes())?;
        }
    }

    fn times(&self) -> Vec<Instant> {
        self.times.lock().unwrap().clone()
    }

    fn wait_for(&self, count: usize) -> Vec<Instant> {
        wait_for("mail at the sink", || Some(self.times()).filter(|times| times.len() >= count))
    }
}

/// The most within any window.
fn most_within(times: &[Instant], window: Duration) -> usize {
    let mut times = times.to_vec();
    times.sort_unstable();
    (0..times.len()).map(|from| times[from..].iter().take_while(|at| **at - times[from] < window).count()).max().unwrap_or(0)
}

/// How many came in each second from the first on.
fn print_seconds(times: &[Instant]) {
    let first = times.iter().min().expect("some came");
    let mut seconds = vec![0; 64];
    times.iter().for_each(|at| seconds[((*at - *first).as_secs() as usize).min(63)] += 1);
    while seconds.last() == Some(&0) {
        seconds.pop();
    }
    println!("  by second: {seconds:?}");
}

fn rig_with(change: impl Fn(String) -> String) -> Rig {
    let folder = tempfile::tempdir().unwrap();
    let valkey_port = free_port();
    let mut rig = Rig { folder, valkey_port, valkey: None, nodes: Vec::new() };
    for number in 1..=3 {
        let node = node_files(rig.folder.path(), number, valkey_port);
        let text = change(fs::read_to_string(&node.config).unwrap());
        fs::write(&node.config, text).unwrap();
        rig.nodes.push(node);
    }
    rig.start_valkey();
    (0..3).for_each(|number| rig.start_node(number));
    // Their parts are known when the leader has said so, and each has heard it.
    wait_for("the division of shared limits", || {
        rig.nodes.iter().all(|node| node.get("/api/cluster/stats").is_some_and(|stats| stats["shares"]["nodes"] == 3)).then_some(())
    });
    rig
}

fn send(node: &Node, domain: &str, count: usize) {
    let recipient = format!("RCPT TO:<b@{domain}>");
    for _ in 0..count {
        let replies = node.converse(&["EHLO x", "MAIL FROM:<a@x.test>", &recipient, "DATA", "Subject: x\r\n\r\nx\r\n."]);
        assert!(replies[4].starts_with("250"), "{replies:?}");
    }
}

#[test]
fn two_nodes_share_a_destinations_rate_with_valkey_and_without() {
    const RATE: usize = 20;
    let sinks = [Sink::start(), Sink::start(), Sink::start()];
    let rig = rig_with(|text| {
        let routes: String = [("share", RATE), ("open", 2), ("closed", 5)]
            .iter()
            .zip(&sinks)
            .map(|((word, rate), sink)| {
                format!(
                    "[[route]]\ndomain = \"{word}.test\"\nvia = \"smarthost\"\nhosts = [\"127.0.0.1:{}\"]\n\
                     cluster_rate = \"{rate}/s\"\ncluster_rate_without_valkey = \"{word}\"\n",
                    sink.port
                )
            })
            .collect();
        text + &routes
    });
    let [share, open, closed] = &sinks;
    // Both nodes have more than the rate lets go.
    let began = Instant::now();
    send(&rig.nodes[0], "share.test", 90);
    send(&rig.nodes[1], "share.test", 90);
    let times = share.wait_for(100);
    let most = most_within(&times, Duration::from_secs(3));
    println!("with Valkey: {} mails in {:?}, at most {most} in 3 s, the rate is {RATE}/s", times.len(), began.elapsed());
    print_seconds(&times);
    // On a machine that stands still for a while, what was missed is made up for: at most a second's worth. Alone, each node would have
    // sent all of it in less time.
    assert!(most <= 3 * RATE + RATE + 3, "{most} in 3 s");

    let mut rig = rig;
    rig.valkey = None;
    wait_for("the loss", || {
        rig.nodes.iter().all(|node| node.get("/api/cluster/stats").is_some_and(|stats| stats["valkey_available"] == false)).then_some(())
    });
    let (count, lost) = (share.times().len(), Instant::now());
    send(&rig.nodes[0], "closed.test", 6);
    send(&rig.nodes[0], "open.test", 30);
    let times = open.wait_for(30);
    let span = *times.iter().max().unwrap() - *times.iter().min().unwrap();
    println!("without Valkey, open: 30 mails in {span:?}, at the rate it would be 14 s");
    assert!(span < Duration::from_secs(10), "{span:?}");
    let times = share.wait_for(180);
    let most = most_within(&times, Duration::from_secs(5));
    println!("without Valkey, share: {} mails in {:?}; at most {most} in 5 s over the whole run", 180 - count, lost.elapsed());
    print_seconds(&times);
    assert!(most <= 5 * RATE + RATE + 3, "{most} in 5 s: the rate and one second's worth");
    assert_eq!(closed.times().len(), 0, "closed");
    rig.start_valkey();
    closed.wait_for(6);
}

/// Messages that one node takes, up to `most`, until it goes on refusing them: a single refusal may mean that it waits for an answer.
fn take(node: &Node, most: usize) -> (usize, String) {
    let (mut count, mut refused, mut refusal) = (0, 0, String::new());
    while count < most && refused < 10 {
        let replies = node.converse(&["EHLO x", "MAIL FROM:<a@x.test>"]);
        if replies[1].starts_with("250") {
            (count, refused) = (count + 1, 0);
        } else {
            refused += 1;
            refusal = replies[1].clone();
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    (count, refusal)
}

#[test]
fn nodes_count_a_client_network_and_a_tenant_together() {
    const LIMIT: usize = 48;
    for (what, listener, smtp) in [
        ("source network", "", format!("[smtp]\ncluster_messages_per_minute = {LIMIT}\n")),
        ("tenant", "tag = \"bulk\"\ncluster_messages_per_minute = 48\n", String::new()),
    ] {
        let mut rig = rig_with(|text| {
            let text = text.replace("networks = [\"127.0.0.0/8\"]", "networks = []");
            text.replace("[admin]", &format!("{listener}[admin]")) + &smtp
        });
        let began = Instant::now();
        // A third of the limit at one node, the rest at another, and then nothing at any.
        let (first, _) = take(&rig.nodes[0], LIMIT / 3);
        assert_eq!(first, LIMIT / 3, "{what}");
        let (second, refusal) = take(&rig.nodes[1], 2 * LIMIT);
        assert!(refusal.starts_with("450 4.7.1"), "{what}: {refusal}");
        let (third, _) = take(&rig.nodes[2], LIMIT);
        let all = first + second + third;
        // What each node may owe at a moment: a quarter. And what the rate has let in meanwhile.
        let most = LIMIT + 2 * (LIMIT / 4) + 2 + began.elapsed().as_secs() as usize;
        println!("{what}: {first} + {second} + {third} = {all} of {LIMIT}, at most {most}");
        assert!((LIMIT..=most).contains(&all), "{what}: {all}, at most {most}");

        rig.valkey = None;
        wait_for("the loss", || {
            rig.nodes
                .iter()
                .all(|node| node.get("/api/cluster/stats").is_some_and(|stats| stats["valkey_available"] == false))
                .then_some(())
        });
        // An equal part of it each; the mail of those that share goes on. The other two were told by Valkey for how long nothing more may pass, half a
        // minute perhaps, and keep to that. The first never met the limit.
        let (alone, _) = take(&rig.nodes[0], LIMIT);
        let most = LIMIT / 3 + LIMIT / 4 + 3;
        println!("{what}, without Valkey: {alone} at once, at most {most}");
        assert!((1..=most).contains(&alone), "{what}: {alone}");
    }
}

/// Each outage began with a whole part, whatever the node had let through before.
#[test]
fn a_valkey_that_comes_and_goes_gives_no_new_burst_each_time() {
    const LIMIT: usize = 48;
    let rig = rig_with(|text| {
        let text = text.replace("networks = [\"127.0.0.0/8\"]", "networks = []");
        text + &format!("[smtp]\ncluster_messages_per_minute = {LIMIT}\n")
    });
    let is_there = |rig: &Rig, there: bool| {
        let says_so = |node: &Node| node.get("/api/cluster/stats").is_some_and(|stats| stats["valkey_available"] == there);
        wait_for("what became of Valkey", || rig.nodes.iter().all(says_so).then_some(()));
    };
    let began = Instant::now();
    let (mut all, _) = take(&rig.nodes[0], 2 * LIMIT);
    for _ in 0..4 {
        rig.valkey.as_ref().unwrap().signal("-STOP");
        is_there(&rig, false);
        all += (0..3).map(|node| take(&rig.nodes[node], LIMIT).0).sum::<usize>();
        rig.valkey.as_ref().unwrap().signal("-CONT");
        is_there(&rig, true);
        all += (0..3).map(|node| take(&rig.nodes[node], LIMIT).0).sum::<usize>();
    }
    // The limit, a quarter for each node, what it never lets wait, and what the rate has let in meanwhile.
    let most = LIMIT + 3 * (LIMIT / 4) + 3 * 9 + began.elapsed().as_secs() as usize;
    println!("{all} in {:?}, at most {most}", began.elapsed());
    assert!(all <= most, "{all}, at most {most}");
}

/// Makes of every limit's number what none of ours is, and says of how many: calls about it fail while all others are answered, as with a part of
/// Valkey away.
fn damage_limits(rig: &Rig) -> u32 {
    let script = "local keys = redis.call('KEYS', '*:t:*') for _, key in ipairs(keys) do redis.call('DEL', key) redis.call('RPUSH', key, 'x') end \
                  return #keys";
    ask(rig, &format!("EVAL \"{script}\" 0")).trim().trim_start_matches(':').parse().unwrap()
}

fn mend_limits(rig: &Rig) {
    valkey(rig, "EVAL \"for _, key in ipairs(redis.call('KEYS', '*:t:*')) do redis.call('DEL', key) end return 1\" 0");
}

const RATE: usize = 30;
const BURST: usize = 30;
/// What is done with limits of which Valkey does not answer, and the rate of each; of the shared one a node has a third.
const WORDS: [(&str, usize); 3] = [("share", RATE), ("open", 2), ("closed", 5)];

/// Three nodes, and a sink for each word.
fn rig_of_words() -> (Rig, [Sink; 3]) {
    let sinks = [Sink::start(), Sink::start(), Sink::start()];
    let rig = rig_with(|text| {
        let route = |((word, rate), sink): (&(&str, usize), &Sink)| {
            format!(
                "[[route]]\ndomain = \"{word}.test\"\nvia = \"smarthost\"\nhosts = [\"127.0.0.1:{}\"]\n\
                 cluster_rate = \"{rate}/s\"\ncluster_rate_burst = {BURST}\ncluster_rate_without_valkey = \"{word}\"\n",
                sink.port
            )
        };
        text + &WORDS.iter().zip(&sinks).map(route).collect::<String>()
    });
    (rig, sinks)
}

/// Each limit holds as it says, for more mail than its rate lets go; `sent` went to each before.
fn assert_they_hold_as_they_say(rig: &Rig, [share, open, closed]: &[Sink; 3], sent: usize) {
    let began = Instant::now();
    send(&rig.nodes[0], "closed.test", 5);
    send(&rig.nodes[0], "open.test", 60);
    send(&rig.nodes[0], "share.test", 60);
    open.wait_for(sent + 60);
    println!("open: 60 mails after {:?}, at the rate and with the burst it would be 15 s", began.elapsed());
    let times = share.wait_for(sent + 60);
    let (part, burst) = (RATE / 3, BURST / 3);
    let most = most_within(&times[sent..], Duration::from_secs(2));
    println!("share: 60 mails after {:?}; at most {most} in 2 s, its part is {part}/s", began.elapsed());
    assert!(most <= 2 * part + burst + part + 2, "{most} in 2 s: its part, its burst and a second's worth");
    let passed = closed.times().len() - sent;
    assert!(passed <= 2, "{passed} of 5: closed, but for moments that were reserved before");
    // It was said to be used up by others.
    let waiting = rig.nodes[0].ringpost("queue", &["ls", "--domain", "closed.test", "--json"]).1;
    let mail: Value = serde_json::from_str(waiting.lines().last().expect("some of it waits")).unwrap();
    assert!(mail["reason"].as_str().unwrap().starts_with("Valkey does not answer about the rate"), "{mail}");
    let why = rig.nodes[0].ringpost("queue", &["why", mail["id"].as_str().unwrap()]).1;
    let says = "Valkey does not answer about the rate of \"closed.test\" over all nodes, 5/s, and nothing goes without it";
    assert!(why.contains(says) && !why.contains("used up"), "{why}");
}

/// The one circuit stays closed while Valkey answers other calls: limits that were to be closed let all mail through, and those that were to be
/// open or shared stopped it for ever.
#[test]
fn a_limit_that_valkey_does_not_answer_about_holds_as_it_says() {
    let (rig, sinks) = rig_of_words();
    // A number lives as long as it says anything, a second at least.
    let mut sent = 0;
    wait_for("three numbers", || {
        sent += 1;
        for ((word, _), sink) in WORDS.iter().zip(&sinks) {
            send(&rig.nodes[0], &format!("{word}.test"), 1);
            sink.wait_for(sent);
        }
        let are_all = damage_limits(&rig) == 3;
        if !are_all {
            mend_limits(&rig);
        }
        are_all.then_some(())
    });
    assert_they_hold_as_they_say(&rig, &sinks, sent);
    mend_limits(&rig);
    sinks[2].wait_for(sent + 5);
}

#[test]
fn a_limit_for_which_valkey_has_no_room_holds_as_it_says() {
    let (rig, sinks) = rig_of_words();
    valkey(&rig, "CONFIG SET maxmemory 1");
    assert_they_hold_as_they_say(&rig, &sinks, 0);
    valkey(&rig, "CONFIG SET maxmemory 0");
    sinks[2].wait_for(5);
}

/// Each limit was asked about three times before it was closed, and what each question had let through went past it.
#[test]
fn a_count_for_which_valkey_has_no_room_is_closed_with_its_first_message_where_it_says_so() {
    const LIMIT: usize = 600;
    let rig = rig_with(|text| {
        text.replace("networks = [\"127.0.0.0/8\"]", "networks = []")
            + &format!("[smtp]\ncluster_messages_per_minute = {LIMIT}\ncluster_messages_without_valkey = \"closed\"\n")
    });
    valkey(&rig, "CONFIG SET maxmemory 1");
    let passed: Vec<usize> = rig
        .nodes
        .iter()
        .map(|node| take(node, LIMIT))
        .map(|(count, refusal)| {
            assert!(refusal.starts_with("450 4.7.1"), "{refusal}");
            count
        })
        .collect();
    println!("{passed:?} messages of {LIMIT} before the three nodes were closed");
    // What comes while the one question is under way, as on a machine that stands still, is what a node may owe.
    assert!(passed.iter().all(|count| (1..=LIMIT / 4).contains(count)), "{passed:?}");
    assert_eq!(take(&rig.nodes[0], 1).0, 0, "as long as there is no room");
    valkey(&rig, "CONFIG SET maxmemory 0");
    for node in &rig.nodes {
        wait_for("room again", || (take(node, 20).0 == 20).then_some(()));
    }
}

#[test]
fn a_count_that_valkey_does_not_answer_about_is_closed_where_it_says_so() {
    const KEY: &str = "{ringpost:cluster:t:source/127.0.0.1}";
    let rig = rig_with(|text| {
        text.replace("networks = [\"127.0.0.0/8\"]", "networks = []")
            + "[smtp]\ncluster_messages_per_minute = 600\ncluster_messages_without_valkey = \"closed\"\n"
    });
    assert_eq!(take(&rig.nodes[0], 1).0, 1);
    valkey(&rig, &format!("EVAL \"redis.call('DEL', KEYS[1]) return redis.call('RPUSH', KEYS[1], 'x')\" 1 {KEY}"));
    let (count, refusal) = take(&rig.nodes[0], 500);
    println!("{count} messages before it was closed");
    assert!(count < 100 && refusal.starts_with("450 4.7.1"), "{count} {refusal}");
    mend_limits(&rig);
    wait_for("an answer", || (take(&rig.nodes[0], 20).0 == 20).then_some(()));
}
