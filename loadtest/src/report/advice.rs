//! What set the pace of a run, and what the server could carry: from measured numbers only, in sentences that hold the numbers.
//!
//! `advice/verdict.rs` has the rules that name the bottleneck.

mod capacity;
mod delivery;
mod numbers;
mod offer;
mod pauses;
mod presence;
mod refusals;
mod resources;
mod verdict;

use serde::Serialize;

pub use capacity::Capacity;

use delivery::backlog;
use numbers::Numbers;
use presence::greeted_late;
use verdict::verdict;

use crate::run_result::RunResult;

/// Share of its cores at which a process counts as busy: above it queues build up whatever the load's shape.
const BUSY: f64 = 0.85;
/// Share of connections, or of begun transactions, turned away from which a limit sets the pace.
const LIMIT_SHARE: f64 = 0.01;
/// Share of accepted messages that stayed in the queue from which the next hop is behind.
const BEHIND_SHARE: f64 = 0.05;

/// What set the pace.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Bottleneck {
    /// A limit of the server turned connections or mail away (421, other 4xx).
    Limit,
    /// The server was not there all the time, or ended connections.
    Gone,
    /// The load generator itself; the server could do more.
    Generator,
    /// The server's cores.
    EngineCpu,
    /// All cores of the machine together, server and generator.
    Machine,
    /// Nothing: the server did what the schedule asked.
    Nothing,
    /// The wait for stable storage.
    DiskSync,
    /// Delivery is slower than acceptance.
    NextHop,
    /// Sessions that waited to connect again after failures.
    Pauses,
    /// Too few sessions: each waits for its replies.
    Concurrency,
    /// The numbers do not say.
    Unknown,
}

/// The verdict on one run.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Advice {
    /// What set the pace.
    pub bottleneck: Bottleneck,
    /// Why, with the numbers used, and what to try.
    pub sentences: Vec<String>,
    /// What the server could carry, where CPU was measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capacity: Option<Capacity>,
}

/// Judges a run.
pub fn advise(run: &RunResult) -> Advice {
    if run.is_of_connections() {
        let text = "Connections without mail: there is no pace of messages to explain.".to_owned();
        return Advice { bottleneck: Bottleneck::Nothing, sentences: vec![text], capacity: None };
    }
    let numbers = Numbers::new(run);
    let (bottleneck, found) = verdict(run, &numbers);
    // What was refused is no part of the figures that the verdict is about: it comes first, unless it is the verdict.
    let mut sentences: Vec<String> = refusals::for_good(run).into_iter().chain(found).collect();
    if bottleneck != Bottleneck::Pauses {
        sentences.extend(pauses::remark(run));
    }
    if bottleneck != Bottleneck::NextHop
        && let Some(backlog) = backlog(run)
    {
        sentences.push(backlog.text);
    }
    sentences.extend(greeted_late(run));
    sentences.extend(numbers.assumed_text());
    if numbers.generator_share > 0.5 && bottleneck != Bottleneck::Generator {
        sentences.push(format!(
            "The generator used {:.0} % of its {} thread(s); latencies below a millisecond include its own delays.",
            numbers.generator_share * 100.0,
            numbers.generator_threads
        ));
    }
    if run.machine.load_average > f64::from(run.machine.cores_allowed) * 0.5 {
        sentences.push(format!(
            "The machine had a load average of {:.2} before the run began: something else was at work, repeat it on a quiet machine.",
            run.machine.load_average
        ));
    }
    Advice { bottleneck, sentences, capacity: capacity::capacity(run, &numbers, bottleneck) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{error_kind::ErrorKind, phase::Phase, sample_run::SampleRun, server_cpu::CpuByPhase};

    fn judged(change: impl FnOnce(&mut RunResult)) -> Advice {
        let mut run = SampleRun::default().result();
        run.load.server_cores = Some(1);
        run.cpu_usage = Some(50.0);
        run.generator_cpu_usage = 40.0;
        run.machine.cores_allowed = 2;
        run.machine.load_average = 0.1;
        change(&mut run);
        advise(&run)
    }

    #[test]
    fn busy_cores_of_the_server_are_named_with_the_cost_per_message() {
        let advice = judged(|run| {
            run.cpu_usage = Some(97.0);
            run.cpu_us_per_message = Some(12.34);
        });
        assert_eq!(advice.bottleneck, Bottleneck::EngineCpu);
        assert!(advice.sentences[0].contains("97 % of its 1 core(s)") && advice.sentences[0].contains("12.3 us"), "{advice:?}");
        let capacity = advice.capacity.unwrap();
        assert!(capacity.messages_per_second < SampleRun::default().result().emails_per_second);
    }

    #[test]
    fn connections_that_nobody_greets_are_a_limit_and_late_greetings_are_told() {
        let advice = judged(|run| run.errors.add(ErrorKind::NoBanner, 50));
        assert_eq!(advice.bottleneck, Bottleneck::Limit);
        assert!(advice.sentences[0].contains("50 of ") && advice.sentences[0].contains("default_process_limit"), "{advice:?}");
        let advice = judged(|run| {
            let mut late = crate::encoded_histogram::latency_histogram();
            late.record_n(20_000_000, 50).unwrap();
            late.record_n(3_000_000_000, 50).unwrap();
            run.phases.insert(Phase::Banner, crate::run_result::PhaseSummary::new(&late));
        });
        assert!(advice.sentences.iter().any(|text| text.contains("50 of 100") && text.contains("3.0 s")), "{advice:?}");
    }

    #[test]
    fn a_busy_generator_before_an_idle_server_is_the_bottleneck() {
        let advice = judged(|run| {
            run.generator_cpu_usage = 99.0;
            run.load.generator_threads = 1;
        });
        assert_eq!(advice.bottleneck, Bottleneck::Generator);
    }

    #[test]
    fn both_busy_blames_the_server_and_both_half_busy_on_two_cores_nobody() {
        let both = judged(|run| (run.cpu_usage, run.generator_cpu_usage) = (Some(96.0), 96.0));
        assert_eq!(both.bottleneck, Bottleneck::EngineCpu);
        let shared = judged(|run| {
            run.load.server_cores = Some(2);
            run.load.generator_threads = 2;
            (run.cpu_usage, run.generator_cpu_usage) = (Some(100.0), 95.0);
        });
        assert_eq!(shared.bottleneck, Bottleneck::Machine);
    }

    #[test]
    fn refusals_at_a_limit_come_before_everything() {
        let advice = judged(|run| {
            run.cpu_usage = Some(99.0);
            run.errors.add(ErrorKind::Reply(452), run.transactions_begun / 10);
        });
        assert_eq!(advice.bottleneck, Bottleneck::Limit);
        assert!(advice.sentences[0].contains("times 452"), "{advice:?}");
    }

    /// What happened: fifty of a hundred and fifty sessions were told 421 for the whole of a run, and the hundred others began so many
    /// transactions that the refusals were less than a hundredth of them: the disk was named.
    #[test]
    fn sessions_told_421_are_counted_among_connections_and_not_among_transactions() {
        let limited = |connections: u64| {
            judged(|run| {
                let mut connects = crate::encoded_histogram::latency_histogram();
                connects.record_n(20_000, connections).unwrap();
                run.phases.insert(Phase::Connect, crate::run_result::PhaseSummary::new(&connects));
                run.errors.add(ErrorKind::Reply(421), run.transactions_begun / 200);
            })
        };
        let advice = limited(150);
        assert_eq!(advice.bottleneck, Bottleneck::Limit, "{advice:?}");
        assert!(advice.sentences[0].contains(" of 150 connections were told 421"), "{advice:?}");
        assert_eq!(limited(10_000).bottleneck, Bottleneck::DiskSync);
    }

    #[test]
    fn mail_refused_for_good_is_told_and_is_no_limit() {
        let refused = |messages: u64| {
            judged(|run| {
                run.errors.add(ErrorKind::Reply(552), run.transactions_begun / 10);
                run.fates.refused = messages;
            })
        };
        // Recipients beside whom others had the mail.
        assert!(!refused(0).sentences.iter().any(|text| text.contains("for good")));
        let advice = refused(1_000_000);
        assert_eq!(advice.bottleneck, Bottleneck::DiskSync);
        assert!(advice.sentences[0].contains("times 552 refused mail for good"), "{advice:?}");
    }

    /// What happened: without a look at the server's CPU the disk was named, of a server that had none.
    #[test]
    fn what_was_waited_for_is_not_known_where_the_servers_cpu_was_not_measured() {
        let advice = judged(|run| run.cpu_usage = None);
        assert_eq!((advice.bottleneck, &advice.capacity), (Bottleneck::Unknown, &None), "{advice:?}");
        assert!(advice.sentences[0].contains("is not known") && advice.sentences[0].contains("--server-pid"), "{advice:?}");
        assert_eq!(judged(|_| ()).bottleneck, Bottleneck::DiskSync);
    }

    /// What happened: eight of ten sessions slept at any time, as their connections had broken, and the disk was named.
    #[test]
    fn sessions_that_wait_to_connect_again_set_the_pace_and_are_told_beside_what_does() {
        let paused = |share: f64| {
            judged(|run| {
                run.fates.pauses = 40;
                run.fates.paused_s = share * run.load.sessions as f64 * run.duration;
            })
        };
        let most = paused(0.8);
        assert_eq!(most.bottleneck, Bottleneck::Pauses);
        assert!(most.sentences[0].contains("waited 40 times to connect again after a failure, 80 % of their time"), "{most:?}");
        let some = paused(0.1);
        assert_eq!(some.bottleneck, Bottleneck::DiskSync);
        assert!(some.sentences.iter().any(|text| text.contains("10 % of their time: the load was smaller")), "{some:?}");
        assert!(!paused(0.01).sentences.iter().any(|text| text.contains("to connect again")));
    }

    #[test]
    fn an_open_loop_that_was_served_has_no_bottleneck() {
        let advice = judged(|run| run.load.offered_per_second = Some(run.emails_per_second * 1.001));
        assert_eq!(advice.bottleneck, Bottleneck::Nothing);
    }

    /// What happened: the rate over a duration with the tail in it was held against the nominal rate, which a Poisson schedule misses by
    /// chance, and the disk was blamed.
    #[test]
    fn an_open_loop_is_judged_by_what_was_due() {
        let open = |change: fn(&mut RunResult)| {
            judged(|run| {
                run.load.offered_per_second = Some(run.emails_per_second * 1.1);
                run.load.scheduled_s = Some(run.duration * 0.97);
                run.phases.insert(Phase::TransactionNaive, run.phases[&Phase::Transaction].clone());
                change(run);
            })
        };
        let longest = |run: &mut RunResult, max_s: f64| {
            run.phases.get_mut(&Phase::TransactionNaive).unwrap().max_ns = (max_s * 1e9) as u64;
        };
        assert_eq!(open(|run| run.load.scheduled_s = Some(run.duration * 0.99)).bottleneck, Bottleneck::Nothing);
        let served = judged(|run| {
            run.load.offered_per_second = Some(run.emails_per_second * 1.1);
            run.load.scheduled_s = Some(run.duration * 0.9);
            run.phases.insert(Phase::TransactionNaive, run.phases[&Phase::Transaction].clone());
            longest(run, run.duration * 0.11);
        });
        assert_eq!(served.bottleneck, Bottleneck::Nothing, "{served:?}");
        assert!(served.sentences[0].contains("messages that were due were acknowledged"), "{served:?}");
        // Much later than the schedule: sessions that were always busy are named before the disk that each of them waited for.
        let overload = open(|run| {
            run.load.scheduled_s = Some(run.duration / 3.0);
            run.load.sessions = 2;
            let naive = run.phases.get_mut(&Phase::TransactionNaive).unwrap();
            naive.mean_ns = 1.9e9 / run.emails_per_second;
        });
        assert_eq!(overload.bottleneck, Bottleneck::Concurrency, "{overload:?}");
        assert!(overload.sentences[0].contains("too few sessions"), "{overload:?}");
        assert_ne!(open(|run| run.fates.never_begun = run.emails_sent).bottleneck, Bottleneck::Nothing);
    }

    #[test]
    fn a_server_that_was_gone_is_named() {
        let advice = judged(|run| {
            run.errors.add(ErrorKind::ConnectRefused, 7);
            run.fates.never_begun = run.transactions_begun;
        });
        assert_eq!(advice.bottleneck, Bottleneck::Gone);
        assert!(advice.sentences[0].contains("7 times connect_refused"), "{advice:?}");
        assert_ne!(judged(|run| run.errors.add(ErrorKind::Closed, 1)).bottleneck, Bottleneck::Gone);
    }

    #[test]
    fn waiting_for_the_250_is_the_disk_with_batches_as_counted() {
        let advice = judged(|run| {
            run.final_metrics.insert("accepted".into(), run.emails_sent as f64);
            run.final_metrics.insert("batches".into(), run.emails_sent as f64 / 4.0);
        });
        assert_eq!(advice.bottleneck, Bottleneck::DiskSync);
        assert!(advice.sentences[0].contains("4.0 messages in each"), "{advice:?}");
    }

    #[test]
    fn a_queue_that_grew_names_the_next_hop() {
        let advice = judged(|run| {
            run.phases.remove(&Phase::DotTo250);
            run.final_metrics.insert("accepted".into(), 1000.0);
            run.final_metrics.insert("queue_messages".into(), 600.0);
        });
        assert_eq!(advice.bottleneck, Bottleneck::NextHop);
        assert!(advice.sentences[0].contains("600 of 1000"), "{advice:?}");
        assert!(advice.capacity.unwrap().sentences.iter().any(|text| text.contains("queue grew by 60 messages/s")));
    }

    /// What happened: deliveries were counted by recipient and messages by message, and the counters were read when the queue had run empty:
    /// neither of two recipients each nor of an own next hop was anything ever seen to be behind.
    #[test]
    fn deliveries_that_come_when_the_load_has_ended_are_behind() {
        let with_arrivals = |seconds: std::ops::Range<u64>| {
            judged(|run| {
                run.phases.remove(&Phase::DotTo250);
                let mut whole = crate::measurement::Measurement::new();
                for second in seconds {
                    let mut recorder = crate::measurement::Recorder::new();
                    (0..100).for_each(|_| recorder.record_ns(Phase::EndToEnd, 5_000_000));
                    whole.add(second, &recorder.take(0, 0));
                }
                run.intervals = whole.finish().1;
                run.duration = 10.0;
                run.final_metrics.insert("accepted".into(), 500.0);
                run.final_metrics.insert("delivered".into(), 1000.0);
            })
        };
        let late = with_arrivals(5..15);
        assert_eq!(late.bottleneck, Bottleneck::NextHop, "{late:?}");
        assert!(late.sentences[0].contains("500 of 1000 deliveries (50 %) came when the load had ended"), "{late:?}");
        assert!(late.capacity.unwrap().sentences.iter().any(|text| text.contains("what leaves (25 messages/s)")));
        assert_ne!(with_arrivals(0..10).bottleneck, Bottleneck::NextHop);
    }

    #[test]
    fn few_sessions_that_always_wait_are_too_few() {
        let advice = judged(|run| {
            run.phases.remove(&Phase::DotTo250);
            run.emails_per_second = 0.9 * run.load.sessions as f64 / run.avg_response_time;
        });
        assert_eq!(advice.bottleneck, Bottleneck::Concurrency);
    }

    #[test]
    fn without_numbers_nothing_is_claimed() {
        let advice = judged(|run| {
            run.phases.clear();
            run.intervals.clear();
            run.cpu_usage = None;
            run.emails_per_second = 0.0;
            run.emails_sent = 0;
            run.duration = 0.0;
        });
        assert_eq!(advice.bottleneck, Bottleneck::Unknown);
        assert_eq!(advice.capacity, None);
    }

    #[test]
    fn a_capacity_from_a_lightly_loaded_server_is_the_least() {
        // Seen: 2,000 messages/s at 30 % of a core, and 78,000 on the same core in a closed loop, where all share flushes.
        let light = judged(|run| {
            run.cpu_usage = Some(30.0);
            run.load.offered_per_second = Some(run.emails_per_second);
        });
        let light = light.capacity.unwrap();
        assert!(light.at_least && light.sentences.iter().any(|text| text.contains("the least it can carry")));
        assert!(!judged(|run| run.cpu_usage = Some(86.0)).capacity.unwrap().at_least);
    }

    /// What happened: of a closed loop that the disk held at 4,000 messages/s it was said that the server carries 18,000 at the least.
    #[test]
    fn what_its_cores_would_carry_is_no_capacity_where_something_else_ended_it() {
        let advice = judged(|run| run.cpu_usage = Some(20.0));
        assert_eq!(advice.bottleneck, Bottleneck::DiskSync);
        let capacity = advice.capacity.unwrap();
        assert!(!capacity.at_least, "{capacity:?}");
        assert!(capacity.sentences[1].contains("the wait for the disk ended it before its cores did"), "{capacity:?}");
    }

    #[test]
    fn what_the_queue_costs_behind_the_load_lowers_the_capacity() {
        let capacity = |drain_s| {
            let cpu = CpuByPhase { load_s: 6.0, drain_s, drain_lasted_s: 2.0, messages: 100, is_drained: true };
            judged(|run| run.server_cpu_by_phase = Some(cpu)).capacity.unwrap()
        };
        let (whole, part) = (capacity(0.0), capacity(3.0));
        assert!((whole.messages_per_second / part.messages_per_second - 1.5).abs() < 1e-9, "{whole:?} {part:?}");
        assert!(part.sentences[0].contains("and 50 % of that again behind the load") && !whole.sentences[0].contains("behind"), "{part:?}");
    }

    /// What happened: of a server that had delivered none of 4,000 messages it was said that it carries 7,556 a second at the least.
    #[test]
    fn what_was_not_delivered_is_in_no_capacity() {
        let light = |is_drained| {
            let advice = judged(|run| {
                run.cpu_usage = Some(20.0);
                run.load.offered_per_second = Some(run.emails_per_second);
                run.server_cpu_by_phase = Some(CpuByPhase { load_s: 6.0, drain_s: 0.0, drain_lasted_s: 2.0, messages: 100, is_drained });
            });
            advice.capacity.unwrap()
        };
        assert!(light(true).at_least);
        let left = light(false);
        assert!(!left.at_least && left.sentences.iter().any(|text| text.contains("perhaps far less")), "{left:?}");
        assert!(!left.sentences.iter().any(|text| text.contains("the least it can carry")), "{left:?}");
    }

    /// What happened: connections that waited while a killed server was started again were called those of a server that makes room slowly,
    /// and the backlog of the pause too few sessions.
    #[test]
    fn a_pause_that_the_scenario_made_is_not_blamed_on_the_server() {
        let advice = judged(|run| {
            let mut late = crate::encoded_histogram::latency_histogram();
            late.record_n(1_200_000_000, 50).unwrap();
            run.phases.insert(Phase::Banner, crate::run_result::PhaseSummary::new(&late));
            run.settings["recovery_s"] = 0.84.into();
        });
        assert_eq!(advice.bottleneck, Bottleneck::Gone);
        assert!(advice.sentences[0].contains("killed the server, and 0.84 s later"), "{advice:?}");
        assert!(!advice.sentences.iter().any(|text| text.contains("makes room")), "{advice:?}");
    }

    /// What happened: an engine on one of two cores that was asked for by `--to` was said to use 31 % of its two, and to carry twice what it
    /// can.
    #[test]
    fn cores_that_are_assumed_are_said_to_be() {
        let advised = |cores| judged(|run| run.load.server_cores = cores);
        let told = |advice: &Advice| advice.sentences.iter().any(|text| text.contains("all 2 of this machine are assumed"));
        let (known, assumed) = (advised(Some(1)), advised(None));
        assert!(!told(&known) && told(&assumed), "{known:?} {assumed:?}");
        let (known, assumed) = (known.capacity.unwrap(), assumed.capacity.unwrap());
        assert!(known.sentences[0].contains("50 % of its 1 core(s);") && assumed.sentences[0].contains("25 % of its 2 core(s) (assumed);"));
        assert!((assumed.messages_per_second / known.messages_per_second - 2.0).abs() < 1e-9);
        assert!(!judged(|run| (run.cpu_usage, run.load.server_cores) = (None, None)).sentences.iter().any(|text| text.contains("assumed")));
    }

    #[test]
    fn a_busy_machine_is_said() {
        let advice = judged(|run| run.machine.load_average = 1.7);
        assert!(advice.sentences.iter().any(|text| text.contains("load average of 1.70")));
    }

    /// What happened: of a server that was sent mail at a rate, took all of it and delivered none it was said that it kept up.
    #[test]
    fn mail_that_never_reached_the_next_hop_was_not_kept_up_with() {
        let run = |lost: u64| {
            judged(|run| {
                run.load.offered_per_second = Some(run.emails_per_second * 1.001);
                run.settings["difference"] =
                    serde_json::json!({"owed": run.emails_sent, "delivered": run.emails_sent - lost, "lost": lost, "queued": 0});
            })
        };
        assert_eq!(run(0).bottleneck, Bottleneck::Nothing);
        let all = SampleRun::default().result().emails_sent;
        let advice = run(all);
        assert_eq!(advice.bottleneck, Bottleneck::NextHop, "{advice:?}");
        let told = advice.sentences.join(" ");
        assert!(told.contains(&format!("{all} of {all} deliveries (100 %) never came")) && !told.contains("kept up."), "{told}");
        assert!(!advice.capacity.unwrap().at_least);
    }
}
