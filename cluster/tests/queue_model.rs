//! The work queue's scripts on a real Valkey, beside a model: random operations, crashed workers, stale tokens, lost data.
//!
//! `RINGPOST_OPERATIONS=1000000 cargo test --profile fast -p ringpost-cluster --test queue_model -- --nocapture` is the long run.

#[path = "queue_model/model.rs"]
mod model;
mod server;

use model::{Fault, check};
use ringpost_cluster::script::Scripts;
use server::{Durability, Server};

fn operations(default: u64) -> u64 {
    std::env::var("RINGPOST_OPERATIONS").ok().map_or(default, |text| text.parse().expect("RINGPOST_OPERATIONS is a number"))
}

fn run(durability: Durability, fault: Fault, operations: u64, scripts: &'static Scripts, seed: u64) -> Result<model::Report, String> {
    let mut server = Server::start(durability);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(check(&mut server, scripts, seed, operations, fault))
}

#[test]
fn the_queue_does_what_its_model_does() {
    let report = run(Durability::None, Fault::None, operations(20_000), Scripts::shipped(), 1).unwrap();
    println!("{report:?}");
    assert!(report.stale_refused > 100 && report.died > 10 && report.recovered > 100 && report.settled > 1000, "{report:?}");
}

#[test]
fn a_killed_server_with_a_log_loses_nothing() {
    for (durability, operations) in [(Durability::EverySecond, operations(4_000)), (Durability::Always, operations(4_000).min(50_000) / 4)]
    {
        let report = run(durability, Fault::Kill, operations, Scripts::shipped(), 2).unwrap();
        println!("{durability:?}: {report:?}");
        assert!(report.faults > 0);
    }
}

#[test]
fn what_valkey_forgot_is_offered_again() {
    for fault in [Fault::KillForgets, Fault::Flush] {
        let report = run(Durability::None, fault, operations(5_000), Scripts::shipped(), 3).unwrap();
        println!("{fault:?}: {report:?}");
        assert!(report.faults > 0 && report.offered_again > 0, "{report:?}");
    }
}

/// The scripts with one text replaced in one of them.
fn mutant(script: &'static str, text: &'static str, by: &'static str) -> &'static Scripts {
    let changed = Scripts::changed(|name, source| {
        if name != script {
            return source.to_owned();
        }
        assert!(source.contains(text), "{script} has {text}");
        source.replace(text, by)
    });
    Box::leak(Box::new(changed))
}

#[test]
fn an_unchecked_token_is_noticed() {
    let scripts = mutant("queue_complete", "meta[8] == token", "true");
    let found = run(Durability::None, Fault::None, 5_000, scripts, 4).unwrap_err();
    assert!(found.contains("complete"), "{found}");
}

#[test]
fn a_lease_that_is_never_recovered_is_noticed() {
    let scripts = mutant("queue_recover", "local ids = ", "if true then return {0, 0} end\nlocal ids = ");
    let found = run(Durability::None, Fault::None, 5_000, scripts, 5).unwrap_err();
    assert!(found.contains("recover"), "{found}");
}

#[test]
fn attempts_that_do_not_count_are_noticed() {
    let scripts = mutant("queue_lease", "meta[3] + 1", "meta[3]");
    assert!(run(Durability::None, Fault::None, 5_000, scripts, 6).unwrap_err().contains("attempts"));
}

#[test]
fn an_item_in_two_places_is_noticed() {
    let scripts = mutant("queue_lease", "redis.call('ZREM', AGES, id)", "redis.call('EXISTS', AGES)");
    assert!(run(Durability::None, Fault::None, 5_000, scripts, 7).is_err());
}
