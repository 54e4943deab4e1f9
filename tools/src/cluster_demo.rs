//! `./dev demo --cluster`: three nodes over a Valkey, mail for two of them; the leader is killed, then Valkey, and the account at the end.

use std::{
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use clap::Args;
use ringpost_loadtest::{
    content::ContentKind,
    diff::compare,
    live::{Beside, Quiet, run_source},
    schedule::Rate,
    signals::StopSignal,
    sink::{Sink, SinkOptions},
    sizes::Sizes,
    source::SourceOptions,
};

use crate::{
    cluster::nodes::{NodeSetup, leader},
    demo::print_difference,
    engine::{Engine, Route, rig_folder},
    machine,
    valkey_server::{ValkeyOptions, ValkeyServer},
};

/// How long mail is pushed to each of two nodes.
const PUSH: Duration = Duration::from_secs(20);
/// Messages a second for each of them.
const RATE: f64 = 200.0;
const MESSAGE_BYTES: u64 = 4096;
/// Mail runs so long before, between and after what happens.
const PAUSE: Duration = Duration::from_secs(3);

/// What to show.
#[derive(Debug, Args)]
pub struct ClusterDemoArguments {
    /// The engine's binary.
    #[arg(long)]
    engine: PathBuf,
}

/// Runs the demo; true when nothing was lost.
pub fn run(arguments: &ClusterDemoArguments) -> Result<bool, Box<dyn std::error::Error>> {
    let folder = rig_folder("cluster-demo")?;
    let place = folder.path().to_path_buf();
    let received = place.join("received");
    let own = machine::own_core()?;
    let sink = Sink::start(SinkOptions { ledger: Some(received.clone()), ..SinkOptions::new(([127, 0, 0, 1], 0).into(), own) })?;
    let mut valkey = ValkeyServer::start(ValkeyOptions::new(&place)?)?;
    let mut nodes = NodeSetup::new(&arguments.engine, &place, valkey.url(), Route::Smarthost(sink.address)).start(3, 0)?;
    for (number, node) in nodes.iter().enumerate() {
        println!("n{} on {}", number + 1, node.address);
    }
    println!("Valkey on {}, next hop on {}", valkey.address, sink.address);
    let ledgers = [place.join("sent-1"), place.join("sent-2")];
    let targets: Vec<_> = nodes.iter().take(2).map(|node| node.address).collect();
    let happened = thread::scope(|scope| -> Result<(), Box<dyn std::error::Error>> {
        let sources: Vec<_> = targets
            .iter()
            .zip(&ledgers)
            .map(|(address, ledger)| {
                let options = SourceOptions {
                    sessions: 10,
                    ledger: Some(ledger.clone()),
                    duration: Some(PUSH),
                    rate: Some(Rate::Fixed(RATE)),
                    ..SourceOptions::new(*address, own, ContentKind::Text(Sizes::fixed(MESSAGE_BYTES)))
                };
                scope.spawn(move || run_source(options, Beside::default(), &StopSignal::never(), &mut Quiet).map(drop))
            })
            .collect();
        let told = disturb(&mut nodes, &mut valkey);
        for source in sources {
            source.join().map_err(|_| "a source panicked")??;
        }
        told
    });
    happened?;
    println!("-- senders done, waiting for the queues to empty");
    let mut is_clean = true;
    for node in &mut nodes {
        node.drain(Duration::from_secs(60), || sink.messages())?;
        is_clean &= node.terminate(Duration::from_secs(30))?.success();
    }
    sink.stop();
    sink.join()?;
    let result = compare(&[&ledgers[0], &ledgers[1]], &received)?;
    print_difference(&result);
    Ok(result.lost + result.damaged == 0 && is_clean && result.accepted > 0)
}

/// The leader dies and comes back, then Valkey does.
fn disturb(nodes: &mut [Engine], valkey: &mut ValkeyServer) -> Result<(), Box<dyn std::error::Error>> {
    let first = leader(nodes, None)?;
    println!("-- n{} leads", first + 1);
    thread::sleep(PAUSE);
    nodes[first].kill()?;
    let began = Instant::now();
    let second = leader(nodes, Some(first))?;
    println!("-- kill -9 of n{}: n{} leads after {} ms", first + 1, second + 1, began.elapsed().as_millis());
    nodes[first].start()?;
    println!("-- n{} is back", first + 1);
    thread::sleep(PAUSE);
    valkey.kill();
    println!("-- kill -9 of Valkey: mail goes on, nobody leads");
    thread::sleep(PAUSE);
    valkey.spawn()?;
    let began = Instant::now();
    let third = leader(nodes, None)?;
    println!("-- Valkey is back, with nothing: n{} leads after {} ms", third + 1, began.elapsed().as_millis());
    Ok(())
}
