//! The end of a life, and a life without work.

use std::time::{Duration, Instant};

use super::next_hops::{BadHop, Manner, impatient};
use super::{Case, Needs, Place, Seen};
use crate::dialogue::Dialogue;
use crate::engine::{Engine, EngineOptions, Route};

/// SIGTERM ends the process within this, whatever peers do.
const DRAIN_MAX: Duration = Duration::from_secs(30);
/// CPU of an idle node is measured over this: one tick of the clock that counts it, 10 ms, is then below the bound, and two are above.
const IDLE: Duration = Duration::from_secs(20);
/// Milliseconds of CPU a minute that an idle node may use.
const IDLE_MS_MAX: f64 = 50.0;

pub(super) const CASES: &[Case] = &[
    ("drain: stuck client and hop", Needs::Nothing, stuck),
    ("drain: idle", Needs::Nothing, idle_drain),
    ("idle: CPU", Needs::Nothing, idle_cpu),
];

fn stuck(place: &Place<'_>) -> Seen {
    let hop = BadHop::start(Manner::Silent)?;
    let mut options = EngineOptions::new(place.engine, &place.folder, Route::Smarthost(hop.address))?;
    options.segment_mib = Some(1);
    let mut engine = Engine::new(options)?;
    engine.start()?;
    Dialogue::greeted(engine.address, DRAIN_MAX)?.message()?;
    let mut client = Dialogue::greeted(engine.address, DRAIN_MAX)?;
    client.begin_content()?;
    client.send(b"Subject: never ends\r\n")?;
    let began = Instant::now();
    while engine.stats()["queue_attempting"].as_u64() != Some(1) {
        if began.elapsed() > DRAIN_MAX {
            return Ok((false, "the attempt does not begin".into()));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let began = Instant::now();
    let status = engine.terminate(DRAIN_MAX + Duration::from_secs(5))?;
    let took = began.elapsed();
    engine.start()?;
    let kept = engine.queued()?.len();
    Ok((status.success() && took < DRAIN_MAX && kept == 1, format!("{status} after {:.1} s, {kept} of 1 message kept", took.as_secs_f64())))
}

fn idle_drain(place: &Place<'_>) -> Seen {
    let mut engine = impatient(place, crate::machine::free_port()?)?;
    let mut client = Dialogue::greeted(engine.address, DRAIN_MAX)?;
    let began = Instant::now();
    let status = engine.terminate(DRAIN_MAX)?;
    let took = began.elapsed();
    let farewell = client.reply()?;
    let good = status.success() && took < Duration::from_secs(5) && farewell.starts_with("421");
    Ok((good, format!("{status} after {:.2} s, the idle session reads {:?}", took.as_secs_f64(), farewell.trim_end())))
}

fn idle_cpu(place: &Place<'_>) -> Seen {
    let mut options = EngineOptions::new(place.engine, &place.folder, Route::Hold)?;
    options.segment_mib = Some(1);
    let mut engine = Engine::new(options)?;
    engine.start()?;
    Dialogue::greeted(engine.address, DRAIN_MAX)?.message()?;
    let pid = engine.pid().expect("it was started");
    // What a start has left to do, such as preparing segments, is no idleness.
    std::thread::sleep(Duration::from_secs(5));
    let before = crate::machine::process_cpu(pid)?;
    std::thread::sleep(IDLE);
    let used = crate::machine::process_cpu(pid)? - before;
    let per_minute = used.as_secs_f64() * 1000.0 * 60.0 / IDLE.as_secs_f64();
    Ok((per_minute <= IDLE_MS_MAX, format!("{per_minute:.0} ms of CPU a minute (at most {IDLE_MS_MAX:.0})")))
}
