//! The queue as far as a hand-over sees it, and chance.

use std::collections::{BTreeMap, HashMap};

use ringpost_cluster::boot_time::BootTime;

/// Numbers from a seed.
pub struct Random(pub u64);

impl Random {
    /// Below the bound.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) % bound
    }

    /// So often.
    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// The queue's scripts, as far as they matter here: one partition, the model of `queue_model` in small.
#[derive(Clone, Default)]
pub struct Valkey {
    pub is_up: bool,
    pub generation: u64,
    /// Where an item is: with `None` it is ready.
    pub items: BTreeMap<String, Option<Held>>,
    /// How often an item was leased without coming to an end.
    pub attempts: HashMap<String, u32>,
    /// How many items became dead letters; an operator requeues each at once.
    pub died: u64,
    /// Who ended it, by the token, and the word. Of what its owner took back there is no token.
    pub outcomes: HashMap<String, (String, String)>,
    /// When an item was enqueued.
    pub enqueued: HashMap<String, u64>,
    pub moments: u64,
    pub tokens: u64,
}

/// What its owner has taken back, and has not signed yet, of what was enqueued then.
pub fn withdrawn(moment: u64) -> (String, String) {
    (String::new(), format!("withdrawn {moment}"))
}

/// The same, signed.
pub fn signed((_, word): &(String, String)) -> (String, String) {
    (String::new(), word.replace("withdrawn", "signed"))
}

impl Valkey {
    /// Whether the record of an item proves to who has this token of it that it is another's.
    pub fn is_anothers(&self, id: &str, token: &str, forged: &str) -> bool {
        let (by, word) = &self.outcomes[id];
        let moment = token.split_once('.').map_or("", |(_, moment)| moment);
        if by.is_empty() { *word == format!("signed {moment}") } else { word != forged }
    }
}

/// By whom has the token.
#[derive(Clone)]
pub struct Held {
    pub token: String,
    pub until: BootTime,
}
