//! What tests over loopback have in common: an address, a core, a load, and the wait for what another thread does.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use ringpost_loadtest::{
    content::ContentKind,
    live::{Beside, Quiet, SourceRun, run_source},
    pinning,
    signals::StopSignal,
    sizes::Sizes,
    source::SourceOptions,
};

/// A free port of loopback.
pub fn loopback() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

/// The first core this process may use.
pub fn core() -> usize {
    pinning::cores().unwrap()[0]
}

/// Runs a load of four sessions without ledger against `to`.
pub fn load(to: SocketAddr, change: impl FnOnce(&mut SourceOptions)) -> SourceRun {
    let mut options = SourceOptions {
        sessions: 4,
        timeout: Duration::from_secs(60),
        ..SourceOptions::new(to, core(), ContentKind::Text(Sizes::fixed(1500)))
    };
    change(&mut options);
    run_source(options, Beside::default(), &StopSignal::never(), &mut Quiet).unwrap()
}

/// Waits for what another thread does.
pub fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < Duration::from_secs(20), "{what}");
        std::thread::yield_now();
    }
}
