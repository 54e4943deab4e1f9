//! What else a server can run out of than its cores: memory, the spool's disk, sessions. When, at the pace of the run, or at which rate.

use super::delivery::Backlog;
use crate::{report::format::bytes, run_result::RunResult};

/// Growth of memory per second from which it is more than the noise of a run.
const GROWTH_BYTES_MIN: f64 = 1048576.0;

/// A resource that ends at this pace.
struct RunsOut {
    name: &'static str,
    minutes: f64,
    text: String,
}

/// Sentences on each that is used up, and which of several is first. `cpu_bound` is the rate at which the cores are busy.
pub(super) fn sentences(run: &RunResult, backlog: Option<&Backlog>, cpu_bound: f64) -> Vec<String> {
    let mut running_out: Vec<RunsOut> = [memory(run), disk(run, backlog)].into_iter().flatten().collect();
    running_out.sort_by(|one, other| one.minutes.total_cmp(&other.minutes));
    let mut sentences: Vec<String> = running_out.iter().map(|resource| resource.text.clone()).collect();
    if let [first, _, ..] = &running_out[..] {
        sentences.push(format!("First to run out at this load: {}, after {}.", first.name, time(first.minutes)));
    }
    sentences.extend(sessions(run, cpu_bound));
    sentences
}

/// When the memory is used up if the server's goes on growing as in the second half of the run.
fn memory(run: &RunResult) -> Option<RunsOut> {
    let samples: Vec<(u64, u64)> = run.intervals.iter().filter_map(|i| Some((i.start_s, i.engine?.memory_bytes))).collect();
    let (&(from_s, from), &(to_s, to)) = (samples.get(samples.len() / 2)?, samples.last()?);
    if to_s < from_s + 5 {
        return None;
    }
    let growth = (to as f64 - from as f64) / (to_s - from_s) as f64;
    let (bound, what) = match run.bounds.memory_bytes {
        Some(bound) => (bound as f64, format!("the {} at which it sheds load (memory.max_memory)", bytes(bound as f64))),
        None => (run.machine.memory_mib as f64 * 1048576.0, format!("the machine's {} MiB", run.machine.memory_mib)),
    };
    let minutes = (bound - to as f64).max(0.0) / growth / 60.0;
    (growth > GROWTH_BYTES_MIN && bound > 0.0).then(|| RunsOut {
        name: "memory",
        minutes,
        text: format!(
            "Its memory grew by {}/s to {} in the second half of the run: at that pace {what} are used up after {}.",
            bytes(growth),
            bytes(to as f64),
            time(minutes)
        ),
    })
}

/// When the spool's disk is full if the queue goes on growing.
fn disk(run: &RunResult, backlog: Option<&Backlog>) -> Option<RunsOut> {
    let (free, backlog) = (run.bounds.disk_bytes? as f64, backlog?);
    let growth = backlog.growth_per_second * run.acknowledged_bytes as f64 / run.emails_sent.max(1) as f64;
    let minutes = free / growth / 60.0;
    (growth > 0.0).then(|| RunsOut {
        name: "the disk",
        minutes,
        text: format!(
            "What stays queued takes {}/s of the spool's disk: at that pace the {} that are free beside its reserve are used up after {}.",
            bytes(growth),
            bytes(free),
            time(minutes)
        ),
    })
}

/// What is so many times beyond what the cores carry is not told.
const FAR_BEYOND: f64 = 10.0;

/// At which rate its sessions are used up, beside its cores.
fn sessions(run: &RunResult, cpu_bound: f64) -> Option<String> {
    let most = run.bounds.sessions?;
    if run.connections_max == 0 || most == 0 {
        return None;
    }
    if run.connections_max >= most {
        return Some(format!("It takes {most} sessions, and as many were open: they run out before its cores do."));
    }
    let rate = run.emails_per_second * most as f64 / run.connections_max as f64;
    if rate > FAR_BEYOND * cpu_bound {
        // A lone session says nothing of thousands.
        return None;
    }
    let first = if rate < cpu_bound { "its sessions run out first" } else { "its cores run out first" };
    Some(format!(
        "It takes {most} sessions and {} were open: if each carries what it did here, they are used up at about {rate:.0} messages/s, and {first}.",
        run.connections_max
    ))
}

/// A time for people.
fn time(minutes: f64) -> String {
    match minutes {
        minutes if minutes < 2.0 => format!("{:.0} s", minutes * 60.0),
        minutes if minutes < 120.0 => format!("{minutes:.0} minutes"),
        minutes if minutes < 48.0 * 60.0 => format!("{:.0} hours", minutes / 60.0),
        _ => format!("{:.0} days", minutes / 60.0 / 24.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{run_result::Bounds, sample_run::SampleRun};

    /// A run of 20 s whose server has 50 MB in its tenth second and grows by so much in each of the others.
    fn growing(bytes_per_second: u64, bounds: Bounds) -> RunResult {
        let mut run = SampleRun { seconds: 20, ..SampleRun::default() }.result();
        for interval in &mut run.intervals {
            interval.engine.as_mut().unwrap().memory_bytes = 50_000_000 + interval.start_s.saturating_sub(10) * bytes_per_second;
        }
        RunResult { bounds, ..run }
    }

    fn backlog(growth_per_second: f64) -> Backlog {
        Backlog { text: String::new(), left_per_second: 1.0, growth_per_second }
    }

    /// What happened: an engine that sheds load at half of the machine's memory was said to have all of it.
    #[test]
    fn memory_is_held_against_where_the_server_sheds_load_and_else_against_the_machines() {
        let told = |grows, memory_bytes| sentences(&growing(grows, Bounds { memory_bytes, ..Bounds::default() }), None, 1.0).concat();
        // 68 MB at the end, and 2 MB a second: 232 MB more take 116 s.
        let text = told(2_000_000, Some(300_000_000));
        assert!(text.contains("286 MiB at which it sheds load") && text.contains("after 116 s"), "{text}");
        // The model's machine has 1000 MiB.
        let text = told(2_000_000, None);
        assert!(text.contains("the machine's 1000 MiB are used up after 8 minutes"), "{text}");
        assert_eq!((told(1_000_000, Some(300_000_000)), told(0, None)), (String::new(), String::new()));
        assert!(told(2_000_000, Some(10)).contains("after 0 s"));
    }

    #[test]
    fn the_disk_is_full_when_what_stays_queued_has_filled_it() {
        let run = growing(0, Bounds { disk_bytes: Some(600 * 4096 * 3600), ..Bounds::default() });
        let told = |growth: f64| sentences(&run, Some(&backlog(growth)), 1.0).concat();
        // Messages of 4096 octets.
        let text = told(100.0);
        assert!(text.contains("takes 400 KiB/s of the spool's disk") && text.contains("after 6 hours"), "{text}");
        assert!(told(5.0).contains("after 5 days") && told(4000.0).contains("after 9 minutes"), "{}", told(5.0));
        assert_eq!(sentences(&run, None, 1.0), [""; 0], "the queue did not grow");
        assert_eq!(sentences(&growing(0, Bounds::default()), Some(&backlog(100.0)), 1.0), [""; 0], "nobody knows what is free");
    }

    #[test]
    fn what_is_used_up_first_is_named() {
        let first = |disk_bytes| {
            let bounds = Bounds { memory_bytes: Some(300_000_000), disk_bytes: Some(disk_bytes), ..Bounds::default() };
            sentences(&growing(2_000_000, bounds), Some(&backlog(100.0)), 1.0).pop().unwrap()
        };
        assert_eq!(first(1 << 40), "First to run out at this load: memory, after 116 s.");
        assert_eq!(first(409_600 * 60), "First to run out at this load: the disk, after 60 s.");
    }

    #[test]
    fn sessions_run_out_before_or_behind_the_cores() {
        let run = growing(0, Bounds { sessions: Some(80), ..Bounds::default() });
        let told = |cpu_bound: f64| sentences(&run, None, cpu_bound).concat();
        // 8 were open.
        let rate = run.emails_per_second * 10.0;
        assert!(
            told(rate * 2.0).contains("8 were open") && told(rate * 2.0).ends_with("its sessions run out first."),
            "{}",
            told(rate * 2.0)
        );
        assert!(told(rate / 2.0).contains(&format!("about {rate:.0} messages/s, and its cores run out first.")), "{}", told(rate / 2.0));
        assert_eq!(told(rate / 11.0), "", "a lone session says nothing of thousands");
        assert_eq!(sentences(&growing(0, Bounds::default()), None, 1.0), [""; 0]);
        let full = growing(0, Bounds { sessions: Some(8), ..Bounds::default() });
        assert_eq!(sentences(&full, None, 1.0), ["It takes 8 sessions, and as many were open: they run out before its cores do."]);
    }
}
