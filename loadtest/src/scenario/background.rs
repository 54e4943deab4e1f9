//! What goes on beside a scenario's load. Its latencies are nobody's, and yet it is asked how it fared: a server that turns all of it away has
//! not shown what the scenario is for.

use serde::Serialize;

use crate::{
    error_kind::ErrorCounts,
    live::{Beside, Followed, Quiet, follow},
    run_result::Fates,
    scenario::Expectations,
    signals::StopSignal,
    source::{Source, SourceError, SourceOptions, summary::fates},
};

/// A load that runs beside the one that is measured. Stopped when dropped.
pub(super) struct Background {
    source: Source,
    threads: usize,
}

/// How it fared, as results keep it.
#[derive(Debug, Default, Serialize)]
pub(super) struct Fared {
    /// Messages acknowledged.
    pub(super) acknowledged: u64,
    transactions_begun: u64,
    #[serde(flatten)]
    fates: Fates,
    errors: ErrorCounts,
    last_trouble: Option<String>,
    /// Why it ended before its time, where a thread of it failed or its ledger could not be written.
    ended_by: Option<String>,
}

impl Background {
    /// # Errors
    /// As [`Source::start`].
    pub(super) fn start(options: SourceOptions) -> Result<Background, SourceError> {
        let threads = options.cores.len().min(options.sessions);
        Ok(Background { source: Source::start(options)?, threads })
    }

    /// Begins nothing more, waits for what is under way, and says how all of it fared.
    pub(super) fn end(self) -> Fared {
        let source = self.source;
        source.stop();
        let followed = Followed {
            threads: self.threads,
            began: source.began,
            next_part: &|limit| source.next_part(limit),
            is_over: &|| source.is_over(),
            stop: &|| source.stop(),
        };
        let (measurement, _) = follow(&followed, Beside::default(), &StopSignal::never(), &mut Quiet);
        let totals = measurement.totals();
        let fared = Fared { transactions_begun: totals.sent, errors: totals.errors.clone(), ..Fared::default() };
        match source.join() {
            Ok(report) => Fared {
                acknowledged: report.acknowledged,
                fates: fates(&report),
                ended_by: report.ledger_trouble,
                last_trouble: report.last_trouble,
                ..fared
            },
            Err(error) => Fared { ended_by: Some(error.to_string()), ..fared },
        }
    }
}

impl Fared {
    /// What did not hold, as sentences.
    pub(super) fn failures(&self, expect: &Expectations) -> Vec<String> {
        let mut failures: Vec<String> =
            self.ended_by.iter().map(|reason| format!("the background ended before its time: {reason}")).collect();
        let errors = self.errors.total();
        if errors as f64 > expect.background_error_share_max * self.transactions_begun.max(1) as f64 {
            let (share_max, bound) = (expect.background_error_share_max, "background_error_share_max");
            failures.push(format!(
                "the background had {}",
                self.errors.told(self.transactions_begun, share_max, bound, self.last_trouble.as_deref())
            ));
        } else if self.transactions_begun == 0 && self.fates.aborted == 0 {
            failures.push("the background began no message: the load was measured alone".to_owned());
        }
        failures
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error_kind::ErrorKind;

    fn fared(begun: u64, refusals: u64) -> Fared {
        let mut fared = Fared { acknowledged: begun.saturating_sub(refusals), transactions_begun: begun, ..Fared::default() };
        fared.errors.add(ErrorKind::Reply(421), refusals);
        fared
    }

    #[test]
    fn a_background_is_held_to_its_share_of_errors_and_must_have_been_there() {
        let said = |fared: &Fared, share: f64| {
            fared.failures(&Expectations { background_error_share_max: share, ..Expectations::default() }).join("; ")
        };
        assert_eq!((said(&fared(100, 0), 0.0), said(&fared(100, 5), 0.05)), (String::new(), String::new()));
        let told = said(&fared(100, 5), 0.04);
        assert!(told.contains("5 errors in 100 transactions (421: 5), 4.00 % are allowed"), "{told}");
        // With all of it refused there is no transaction to have a share of.
        assert!(said(&fared(0, 1800), 0.5).contains("1800 errors in 0 transactions"));
        assert!(said(&fared(0, 0), 0.0).contains("began no message"));
        // Sessions that are given up at their banner begin none, and nobody is to blame.
        let aborted = Fared { fates: Fates { aborted: 7, ..Fates::default() }, ..Fared::default() };
        assert_eq!(said(&aborted, 0.0), "");
        assert!(said(&Fared { ended_by: Some("no ring".into()), ..fared(9, 0) }, 0.0).contains("ended before its time: no ring"));
    }
}
