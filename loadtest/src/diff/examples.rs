//! Some examples of each kind of difference.

/// Examples of each kind that a difference names.
const EXAMPLES_MAX: usize = 10;

/// Kinds of differences, in the order in which examples are named.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    Lost,
    Queued,
    Damaged,
    Duplicated,
    Refused,
    Foreign,
    CutOff,
}

/// Examples by kind: the first of each, and how many there are.
#[derive(Debug, Default)]
pub(super) struct Examples([(Vec<String>, u64); 7]);

impl Examples {
    pub(super) fn add(&mut self, kind: Kind, text: impl FnOnce() -> String) {
        let (texts, count) = &mut self.0[kind as usize];
        *count += 1;
        if texts.len() < EXAMPLES_MAX {
            texts.push(text());
        }
    }

    pub(super) fn lines(self) -> Vec<String> {
        let names = ["lost", "still queued", "damaged", "duplicated", "refused", "foreign", "cut off"];
        let of_kind = |(name, (mut texts, count)): (&str, (Vec<String>, u64))| {
            let more = count - texts.len() as u64;
            if more > 0 {
                texts.push(format!("{name}: and {more} more"));
            }
            texts
        };
        names.into_iter().zip(self.0).flat_map(of_kind).collect()
    }
}
