//! How far two sets of runs did what is asked for and not always offered: of their transactions none, some or all.

use std::{collections::BTreeSet, fmt};

use crate::run_result::RunResult;

/// Of the transactions that were begun.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Extent {
    None,
    Some,
    All,
    /// Results written before say that it was so, and not of how many.
    SomeOrAll,
}

impl Extent {
    /// Nothing where none was begun.
    fn of(done: u64, begun: u64) -> Option<Extent> {
        match done {
            _ if begun == 0 => None,
            0 => Some(Extent::None),
            done if done < begun => Some(Extent::Some),
            _ => Some(Extent::All),
        }
    }
}

impl fmt::Display for Extent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Extent::None => "none",
            Extent::Some => "some",
            Extent::All => "all",
            Extent::SomeOrAll => "some or all",
        })
    }
}

/// A note for each of pipelining and chunking that the sides, or the runs of one, did not do to the same extent. What was asked for is among
/// the settings.
pub(super) fn differences(a: &[&RunResult], b: &[&RunResult]) -> Vec<String> {
    let is_known = a.iter().chain(b).all(|run| run.load.transactions_pipelined.is_some());
    let pipelined = |run: &RunResult| match run.load.transactions_pipelined.filter(|_| is_known) {
        Some(done) => Extent::of(done, run.transactions_begun),
        // As little as the older of them says.
        None => Some(if run.load.pipelined { Extent::SomeOrAll } else { Extent::None }),
    };
    // Of a result that does not say what was done the settings say what was asked for.
    let is_known = a.iter().chain(b).all(|run| run.load.transactions_chunked.is_some());
    let chunked = |run: &RunResult| Extent::of(run.load.transactions_chunked.filter(|_| is_known)?, run.transactions_begun);
    [difference("pipelining", a, b, &pipelined), difference("chunking", a, b, &chunked)].into_iter().flatten().collect()
}

fn difference(name: &str, a: &[&RunResult], b: &[&RunResult], extent: &dyn Fn(&RunResult) -> Option<Extent>) -> Option<String> {
    let of = |runs: &[&RunResult]| runs.iter().filter_map(|run| extent(run)).collect::<BTreeSet<Extent>>();
    let (in_a, in_b) = (of(a), of(b));
    let words = |extents: &BTreeSet<Extent>| extents.iter().map(Extent::to_string).collect::<Vec<_>>().join(", ");
    let differs = !in_a.is_empty() && !in_b.is_empty() && (in_a.len() > 1 || in_a != in_b);
    differs.then(|| format!("not the same {name}: of their transactions {} / {}", words(&in_a), words(&in_b)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{run_result::Load, sample_run::SampleRun};

    fn run(pipelined: Option<u64>, chunked: Option<u64>) -> RunResult {
        let mut run = SampleRun { seconds: 1, ..SampleRun::default() }.result();
        let begun = run.transactions_begun;
        let load = Load { pipelined: pipelined != Some(0), ..run.load.clone() };
        run.load =
            Load { transactions_pipelined: pipelined.map(|n| n.min(begun)), transactions_chunked: chunked.map(|n| n.min(begun)), ..load };
        run
    }

    /// What happened: a run of which one transaction was pipelined was the same as one of which all were, and one that asked for BDAT and did
    /// not get it the same as one that did.
    #[test]
    fn none_some_and_all_are_not_the_same() {
        let words = ["none", "some", "all"];
        let counts = [0, 1, u64::MAX];
        for (of_a, in_a) in counts.into_iter().zip(words) {
            for (of_b, in_b) in counts.into_iter().zip(words) {
                for (name, a, b) in [
                    ("pipelining", run(Some(of_a), Some(0)), run(Some(of_b), Some(0))),
                    ("chunking", run(Some(0), Some(of_a)), run(Some(0), Some(of_b))),
                ] {
                    let note = format!("not the same {name}: of their transactions {in_a} / {in_b}");
                    let wanted = if in_a == in_b { vec![] } else { vec![note] };
                    assert_eq!(differences(&[&a], &[&b]), wanted);
                }
            }
        }
        // Runs of one side may differ, too.
        let (all, some) = (run(Some(u64::MAX), None), run(Some(1), None));
        assert_eq!(differences(&[&all, &some], &[&all]), ["not the same pipelining: of their transactions some, all / all"]);
    }

    #[test]
    fn an_older_result_differs_only_where_what_it_says_does() {
        let older = run(None, None);
        for (newer, notes) in [(run(Some(u64::MAX), Some(7)), 0), (run(Some(1), Some(0)), 0), (run(Some(0), Some(0)), 1)] {
            assert_eq!(differences(&[&older], &[&newer]).len(), notes, "{:?}", newer.load);
        }
    }

    #[test]
    fn a_run_that_began_nothing_is_neither() {
        let (mut nothing, all) = (run(Some(0), Some(0)), run(Some(u64::MAX), Some(u64::MAX)));
        nothing.transactions_begun = 0;
        assert_eq!(differences(&[&nothing], &[&all]), [""; 0]);
    }
}
