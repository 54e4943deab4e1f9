//! `ringpost-tools`: the rigs as commands. `./dev` calls them; each also runs by itself.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(name = "ringpost-tools", version, about = "Fault rigs of Ringpost")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Ten seconds of mail with a SIGKILL in the middle.
    Demo(ringpost_tools::demo::DemoArguments),
    /// Kill the engine under load again and again.
    Crash(ringpost_tools::crash::CrashArguments),
    /// Three nodes and a Valkey: the leader is killed, then Valkey; the account at the end.
    ClusterDemo(ringpost_tools::cluster_demo::ClusterDemoArguments),
    /// Several nodes over a Valkey: leaders, failovers, outages, lost data, killed workers, topologies.
    Cluster(ringpost_tools::cluster::ClusterArguments),
    /// Change the number of shards, with kills in between.
    Shards(ringpost_tools::shards::ShardsArguments),
    /// How two shards share connections, and what a delivery costs that crosses.
    Homes(ringpost_tools::homes::HomesArguments),
    /// Full and failing disks, surroundings that forbid, broken peers, drains.
    Faults(ringpost_tools::faults::FaultsArguments),
    /// Odd and hostile next hops, one message for each, and a table of what came of it.
    Hops(ringpost_tools::hops::HopsArguments),
    /// Cut the power of the engine's disk again and again (root).
    Powercut(ringpost_tools::powercut::PowercutArguments),
    /// When the disk is flushed: per lone message, and under load (root).
    Flushes(ringpost_tools::flushes::FlushesArguments),
    /// Accepted messages per second and CPU per message beside Postfix (root).
    Bench(ringpost_tools::bench::BenchArguments),
    /// What a message costs the engine beside the floor and Postfix (root for Postfix).
    BenchFloor(ringpost_tools::bench_floor::FloorArguments),
    /// What relaying a message costs beside Postfix (root).
    BenchRelay(ringpost_tools::bench_relay::RelayArguments),
    /// What a cluster costs mail that does not use it.
    BenchCluster(ringpost_tools::bench_cluster::ClusterCostArguments),
    /// Memory and CPU of thousands of idle connections.
    Connections(ringpost_tools::connections::ConnectionsArguments),
    /// A thousand destinations, a third of them bad: the others do not notice.
    Destinations(ringpost_tools::destinations::DestinationsArguments),
    /// Enqueue to first attempt, retries to their millisecond, wake-ups of an idle engine.
    Events(ringpost_tools::events::EventsArguments),
    /// An urgent message behind many others, and others behind urgent mail without end.
    Priorities(ringpost_tools::priorities::PrioritiesArguments),
    /// Commands over a million queued messages, and acceptance meanwhile.
    Million(ringpost_tools::million::MillionArguments),
    /// Allocations per message in the steady state.
    Allocations(ringpost_tools::allocations::AllocationsArguments),
    /// Where mail goes when DNS says plain, odd or hostile things.
    Dns(ringpost_tools::dns::DnsArguments),
    /// Clients that others wrote.
    Interop(ringpost_tools::interop::InteropArguments),
}

fn main() -> ExitCode {
    let verdict = match Cli::parse().command {
        Command::Demo(arguments) => ringpost_tools::demo::run(&arguments),
        Command::ClusterDemo(arguments) => ringpost_tools::cluster_demo::run(&arguments),
        Command::Cluster(arguments) => ringpost_tools::cluster::run(&arguments),
        Command::Crash(arguments) => ringpost_tools::crash::run(&arguments),
        Command::Shards(arguments) => ringpost_tools::shards::run(&arguments),
        Command::Homes(arguments) => ringpost_tools::homes::run(&arguments),
        Command::Faults(arguments) => ringpost_tools::faults::run(&arguments),
        Command::Hops(arguments) => ringpost_tools::hops::run(&arguments),
        Command::Powercut(arguments) => ringpost_tools::powercut::run(&arguments),
        Command::Flushes(arguments) => ringpost_tools::flushes::run(&arguments),
        Command::Bench(arguments) => ringpost_tools::bench::run(&arguments),
        Command::BenchFloor(arguments) => ringpost_tools::bench_floor::run(&arguments),
        Command::BenchRelay(arguments) => ringpost_tools::bench_relay::run(&arguments),
        Command::BenchCluster(arguments) => ringpost_tools::bench_cluster::run(&arguments),
        Command::Connections(arguments) => ringpost_tools::connections::run(&arguments),
        Command::Destinations(arguments) => ringpost_tools::destinations::run(&arguments),
        Command::Events(arguments) => ringpost_tools::events::run(&arguments),
        Command::Priorities(arguments) => ringpost_tools::priorities::run(&arguments),
        Command::Million(arguments) => ringpost_tools::million::run(&arguments),
        Command::Allocations(arguments) => ringpost_tools::allocations::run(&arguments),
        Command::Dns(arguments) => ringpost_tools::dns::run(&arguments),
        Command::Interop(arguments) => ringpost_tools::interop::run(&arguments),
    };
    match verdict {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("ringpost-tools: {error}");
            ExitCode::from(2)
        }
    }
}
