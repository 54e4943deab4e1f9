//! Valkey loses everything while thousands of messages are offered: before anybody delivers them (kill -9 without a log), and again and
//! again while they are delivered (FLUSHALL). Owners have the mail: nothing is lost, and twice comes at most what was completed and of
//! which its owner had not heard.

use std::{
    io,
    time::{Duration, Instant},
};

use ringpost_loadtest::{random::Random, sink::Sink, source::SourceOptions};

use super::{Place, nodes, report::Report};
use crate::{
    engine::{Engine, Route},
    traffic::{Sent, difference, next_hop, texts},
    valkey_server::{ValkeyOptions, ValkeyServer},
};

/// Octets of a message.
const SIZE: &str = "2KiB";
/// Losses while mail is delivered.
const LOSSES: u64 = 3;
/// Delivery may take so long in all.
const DELIVERY_MAX: Duration = Duration::from_secs(600);
/// Counts what was completed so far and loses all, with nothing in between: scripts are alone while they run.
const COUNT_AND_FLUSH: &str = r"
local completed = 0
for _, key in ipairs(redis.call('KEYS', '*}:counters')) do
  completed = completed + tonumber(redis.call('HGET', key, 'completed') or '0')
end
redis.call('FLUSHALL')
return completed";

pub(super) fn run(place: &Place<'_>, report: &mut Report) -> io::Result<()> {
    let (items, mut random) = (place.items, Random::new(place.seed));
    let (received, sent_to) = (place.folder.join("received"), place.folder.join("sent"));
    let sink = Sink::start(next_hop(Some(received.clone()))?)?;
    let mut valkey = ValkeyServer::start(ValkeyOptions::new(&place.folder)?)?;
    let mut setup = nodes::NodeSetup::new(place.engine, &place.folder, valkey.url(), Route::Smarthost(sink.address));
    setup.is_shared = true;
    let mut cluster = setup.start(1, 1)?;

    let load = SourceOptions {
        sessions: 20,
        messages: Some(items),
        ledger: Some(sent_to.clone()),
        seed: place.seed,
        ..texts(cluster[0].address, SIZE)?
    };
    let sent = Sent::run(load)?;
    report.figure("accepted", sent.acknowledged);
    report.must(sent.acknowledged == items, format!("{} of {items} were accepted: {}", sent.acknowledged, sent.last_trouble));
    let all_offered = |node: &Engine| {
        nodes::wait_for("the offer of all", || {
            Ok(nodes::queue_stats(node).filter(|stats| stats["pending"].as_u64() == Some(items)).map(drop))
        })
    };
    all_offered(&cluster[0])?;
    report.note(&format!("{items} messages are offered; Valkey is killed and keeps nothing"));
    valkey.kill();
    valkey.spawn()?;
    let began = Instant::now();
    all_offered(&cluster[0])?;
    report.figure("offered_again_s", seconds(began.elapsed()));

    for number in 2..=3 {
        let mut node = Engine::new(setup.node(number, true)?)?;
        node.start()?;
        cluster.push(node);
    }
    let began = Instant::now();
    let (mut bound, mut settled_before) = (0_i64, 0_i64);
    for loss in 1..=LOSSES {
        // Somewhere in this share of the mail.
        let after = items * (loss - 1) / LOSSES + random.below(items / LOSSES);
        nodes::wait_within(DELIVERY_MAX, "delivery", || Ok((sink.messages() >= after).then_some(())))?;
        let left = nodes::wait_for("an answer of the owner", || Ok(nodes::depth(&cluster[0])))?;
        let completed: i64 = valkey.ask(&["EVAL", COUNT_AND_FLUSH, "0"])?;
        // Settled by its owner is all but what was left a moment before the loss.
        let settled = i64::try_from(items.saturating_sub(left)).expect("few messages");
        let unsettled = completed - (settled - settled_before);
        report.note(&format!(
            "FLUSHALL after {} arrived: {completed} completed since the last loss, {unsettled} of them not settled",
            sink.messages()
        ));
        bound += unsettled;
        settled_before = settled;
    }
    for node in &mut cluster {
        node.drain(super::CLAIMS_DECIDED, || sink.messages())?;
    }
    report.figure("delivered_s", seconds(began.elapsed()));
    for node in &mut cluster {
        let status = node.terminate(Duration::from_secs(30))?;
        report.must(status.success(), format!("SIGTERM: {status}: {}", node.last_words()));
    }
    sink.stop();
    sink.join()?;
    let result = difference(&[&sent_to], &received)?;
    report.figure("losses_of_all_data", LOSSES + 1);
    report.figure("delivered", result.delivered);
    report.figure("lost", result.lost);
    report.figure("damaged", result.damaged);
    report.figure("duplicates", result.duplicated);
    report.figure("completed_and_not_settled_at_a_loss", bound);
    report.must(result.is_intact(), format!("lost {}, damaged {}: {:?}", result.lost, result.damaged, result.examples));
    let is_bounded = i64::try_from(result.duplicated).is_ok_and(|duplicated| duplicated <= bound);
    report.must(is_bounded, format!("{} duplicates, more than {bound}", result.duplicated));
    Ok(())
}

fn seconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 100.0).round() / 100.0
}
