//! Limits that hold for all nodes together: the generic cell rate algorithm, with moments that are reserved ahead.
//!
//! Pure, and the same rule as the scripts `throttle_reserve` and `throttle_charge`, which run where all nodes meet. A node that cannot ask
//! Valkey keeps its equal part by this rule ([`Flow::divided`]). One number is kept: when the next unit would come if all came evenly.

use std::time::Duration;

/// Moments are reserved at most so far ahead: what a node that dies has taken along is no more than this.
pub const HORIZON: Duration = Duration::from_secs(1);
/// What all nodes let through before they heard of each other is owed; more bursts than this come from a clock that was stepped back.
const OWED_BURSTS_MAX: u64 = 8;

/// So many units in a time, evenly spaced but for a burst.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Flow {
    /// In `per`, at least 1.
    pub units: u32,
    /// A microsecond at least.
    pub per: Duration,
    /// Units that may go at once after a pause, at least 1.
    pub burst: u32,
}

impl Flow {
    /// An equal part, for one of `parts`: the time is stretched, so that they add up. Nobody's burst is 0.
    #[must_use]
    pub fn divided(self, parts: u32) -> Flow {
        let parts = parts.max(1);
        Flow { per: self.per.saturating_mul(parts), burst: (self.burst / parts).max(1), ..self }
    }

    /// What is left of it when some nodes are cut off and keep their parts: so many thousandths, at least 1.
    #[must_use]
    pub fn reduced(self, permille: u32) -> Flow {
        let permille = permille.clamp(1, 1000);
        Flow { per: self.per.saturating_mul(1000) / permille, ..self }
    }

    /// As it is to be asked for when Valkey has been back for so long; `None`: not yet, moments of the own part may still be used. Then,
    /// for as long, without a burst: that Valkey heard of nothing does not mean that nothing was sent.
    pub fn after_return(self, since: Duration) -> Option<Flow> {
        if since < HORIZON {
            return None;
        }
        Some(if since < 2 * HORIZON { Flow { burst: 1, ..self } } else { self })
    }

    /// Microseconds that so many units take.
    fn span_us(self, units: u64) -> u64 {
        let span = u128::from(units) * self.per.as_micros().max(1);
        u64::try_from(span.div_ceil(u128::from(self.units.max(1)))).unwrap_or(u64::MAX)
    }

    fn burst_us(self, units: u32) -> u64 {
        let span = u128::from(units) * self.per.as_micros().max(1) / u128::from(self.units.max(1));
        u64::try_from(span).unwrap_or(u64::MAX)
    }

    /// Nanoseconds from one unit to the next.
    pub fn step_ns(self) -> u64 {
        u64::try_from(self.per.as_nanos() / u128::from(self.units.max(1))).unwrap_or(u64::MAX)
    }
}

/// What came of asking for moments.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reserved {
    /// So many, the first so many microseconds from now; negative: it has passed, and may be used at once.
    Moments {
        /// At least 1.
        count: u32,
        /// From now.
        first_in_us: i64,
    },
    /// There are none so near. To be asked again after this.
    Later(Duration),
}

/// The account of one flow.
#[derive(Clone, Copy, Debug, Default)]
pub struct Account {
    /// When the next unit is on time, in microseconds of the caller's clock.
    on_time_us: u64,
}

impl Account {
    /// Nothing goes before `from_us`; what came before is somebody else's account.
    pub fn beginning_at(from_us: u64) -> Account {
        Account { on_time_us: from_us }
    }

    /// Nothing is owed, and a whole burst may go: a new account would say the same.
    pub fn is_idle(&self, flow: Flow, now_us: u64) -> bool {
        self.on_time_us.saturating_add(flow.burst_us(flow.burst)) <= now_us
    }

    /// Reserves up to `wanted` moments. Each is given once.
    pub fn reserve(&mut self, flow: Flow, wanted: u32, now_us: u64) -> Reserved {
        let from = now_us.saturating_sub(flow.burst_us(flow.burst.max(1) - 1));
        let horizon = now_us.saturating_add(HORIZON.as_micros() as u64);
        if self.on_time_us > horizon.saturating_add(flow.span_us(1)) {
            self.on_time_us = now_us;
        }
        let first = self.on_time_us.max(from);
        if first > horizon {
            return Reserved::Later(Duration::from_micros(first - horizon));
        }
        let fit = u128::from(horizon - first) * u128::from(flow.units) / flow.per.as_micros().max(1) + 1;
        let count = u32::try_from(fit).unwrap_or(u32::MAX).min(wanted.max(1));
        self.on_time_us = first.saturating_add(flow.span_us(count.into()));
        Reserved::Moments { count, first_in_us: i64::try_from(i128::from(first) - i128::from(now_us)).unwrap_or(i64::MAX) }
    }

    /// Counts what was let through by the account of all nodes: as much as leaves nothing of a burst, and owes nothing.
    pub fn counted(&mut self, flow: Flow, cost: u32, now_us: u64) {
        let full = self.on_time_us.max(now_us.saturating_add(flow.burst_us(flow.burst.max(1))));
        self.on_time_us = self.on_time_us.max(now_us).saturating_add(flow.span_us(cost.into())).min(full);
    }

    /// Units that were let through and that time has not made good yet.
    pub fn outstanding(&self, flow: Flow, now_us: u64) -> u32 {
        u32::try_from(self.on_time_us.saturating_sub(now_us) / flow.span_us(1).max(1)).unwrap_or(u32::MAX)
    }

    /// Counts what was let through, even beyond the limit, and says for how long nothing more is; zero: more may pass.
    pub fn charge(&mut self, flow: Flow, cost: u32, now_us: u64) -> Duration {
        let ahead = flow.burst_us(flow.burst.max(1));
        let owed = self.on_time_us.max(now_us).min(now_us.saturating_add(ahead.saturating_mul(OWED_BURSTS_MAX)));
        self.on_time_us = owed.saturating_add(flow.span_us(cost.max(1).into()));
        let room_at = self.on_time_us.saturating_add(flow.span_us(1)).saturating_sub(ahead);
        Duration::from_micros(room_at.saturating_sub(now_us))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shares::Shares;

    /// While all nodes have one account, a node's own goes with it: it is no fresh one when the nodes are on their own.
    #[test]
    fn what_passed_by_the_account_of_all_is_nothing_that_passes_once_more_by_the_own() {
        let flow = Flow { units: 60, per: Duration::from_secs(60), burst: 60 }.divided(3);
        let mut own = Account::default();
        own.counted(flow, 15, START);
        assert_eq!(own.outstanding(flow, START), 15);
        assert_eq!((own.charge(flow, 4, START), own.outstanding(flow, START)), (Duration::ZERO, 19));
        // More than its part, by far: nothing is left, and nothing is owed.
        own.counted(flow, 600, START);
        assert_eq!(own.outstanding(flow, START), 20);
        assert_eq!(own.charge(flow, 1, START), Duration::from_secs(6), "one that was let through and one that would be");
        own.counted(flow, 600, START);
        assert_eq!(own.outstanding(flow, START), 21, "what it owes by itself stays");
        assert_eq!(own.outstanding(flow, START + 3_600_000_000), 0);
    }

    const START: u64 = 1_790_000_000_000_000;

    /// A generator that is the same in every run.
    struct Random(u64);

    impl Random {
        fn below(&mut self, bound: u64) -> u64 {
            self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            (mixed ^ (mixed >> 31)) % bound
        }
    }

    /// One node: whether it reaches Valkey, its own account while it does not, and since when it does again.
    struct Node {
        is_cut_off: bool,
        returned_at: u64,
        parts: u32,
        own: Account,
        ask_at: u64,
    }

    /// Nodes that use every moment they can get, with outages of Valkey for all and for some. The moments of all, sorted.
    /// `told_after_us`: so long after a node was cut off the others know.
    fn run(flow: Flow, nodes: u32, seconds: u64, seed: u64, told_after_us: u64, partial: bool) -> Vec<u64> {
        let mut random = Random(seed);
        let mut valkey = Account::default();
        let mut all: Vec<Node> =
            (0..nodes).map(|_| Node { is_cut_off: false, returned_at: 0, parts: nodes, own: Account::default(), ask_at: START }).collect();
        let mut used = Vec::new();
        let (mut cut_since, mut next_change) = (None, START + 3_000_000);
        let mut now = START;
        while now < START + seconds * 1_000_000 {
            if now >= next_change {
                // All are cut off, or some of them; then none again.
                let is_outage = cut_since.is_none();
                cut_since = is_outage.then_some(now);
                next_change = now + 3_000_000 + random.below(4_000_000);
                for node in &mut all {
                    let hit = is_outage && (!partial || random.below(2) == 0);
                    if hit && !node.is_cut_off {
                        node.own = Account::beginning_at(now + HORIZON.as_micros() as u64);
                    }
                    if node.is_cut_off && !hit {
                        node.returned_at = now;
                    }
                    node.is_cut_off = hit;
                }
            }
            let out = all.iter().filter(|node| node.is_cut_off).count() as u32;
            let told = cut_since.is_some_and(|since| now >= since + told_after_us);
            let connected = Shares::of(nodes, if told { out } else { 0 });
            for node in &mut all {
                if now < node.ask_at {
                    continue;
                }
                let wanted = 1 + random.below(flow.units.into()) as u32;
                let since = Duration::from_micros(now - node.returned_at);
                let (reserved, asked) = if node.is_cut_off {
                    let part = flow.divided(node.parts);
                    (node.own.reserve(part, wanted, now), part)
                } else if let Some(whole) = flow.reduced(connected.connected_permille).after_return(since) {
                    (valkey.reserve(whole, wanted, now), whole)
                } else {
                    (Reserved::Later(HORIZON - since), flow)
                };
                match reserved {
                    Reserved::Moments { count, first_in_us } => {
                        for number in 0..u64::from(count) {
                            let at = (now as i64 + first_in_us) as u64 + number * asked.step_ns() / 1000;
                            used.push(at.max(now));
                        }
                        node.ask_at = now + random.below(200_000);
                    }
                    Reserved::Later(wait) => node.ask_at = now + wait.as_micros() as u64,
                }
            }
            now += 20_000;
        }
        used.sort_unstable();
        used
    }

    /// The most in any window of `window_us`.
    fn most_within(times: &[u64], window_us: u64) -> usize {
        let (mut end, mut most) = (0, 0);
        for (index, from) in times.iter().enumerate() {
            while times.get(end).is_some_and(|at| *at < from + window_us) {
                end += 1;
            }
            most = most.max(end - index);
        }
        most
    }

    #[test]
    fn all_nodes_together_stay_below_the_limit_whether_valkey_answers_or_not() {
        for seed in 0..60 {
            let mut random = Random(seed);
            let nodes = 1 + random.below(7) as u32;
            let flow = Flow { units: 20 + random.below(300) as u32, per: Duration::from_secs(1), burst: 1 + random.below(20) as u32 };
            let times = run(flow, nodes, 40, seed, 0, false);
            // The stated burst: the limit's own, and one message for each node at each change.
            let stated = flow.burst + 2 * nodes + 2;
            for window_s in [1, 5, 20] {
                let most = most_within(&times, window_s * 1_000_000);
                let bound = flow.units as usize * window_s as usize + stated as usize + 1;
                assert!(most <= bound, "seed {seed}: {most} in {window_s} s, {flow:?}, {nodes} nodes, at most {bound}");
            }
            // Most of it is used: a second at the beginning and at the end of each outage is given up.
            assert!(times.len() as u32 >= flow.units * 40 * 6 / 10, "seed {seed}: {} of {}", times.len(), flow.units * 40);
        }
    }

    #[test]
    fn nodes_that_are_cut_off_keep_their_part_and_the_others_leave_it_to_them() {
        for seed in 100..140 {
            let mut random = Random(seed);
            let nodes = 2 + random.below(6) as u32;
            let flow = Flow { units: 100, per: Duration::from_secs(1), burst: 1 };
            let told_after_us = 1_000_000;
            let times = run(flow, nodes, 60, seed, told_after_us, true);
            // Beside what holds anyway: until the others know, those that are cut off have their part twice.
            let stated = u64::from(flow.burst.max(nodes) + flow.units + nodes) + 2 * u64::from(flow.units);
            let most = most_within(&times, 20_000_000) as u64;
            assert!(most <= 20 * u64::from(flow.units) + 4 * stated, "seed {seed}: {most} in 20 s");
        }
    }

    #[test]
    fn parts_that_were_not_divided_would_be_noticed() {
        let flow = Flow { units: 100, per: Duration::from_secs(1), burst: 1 };
        // The control: each node takes itself for the only one.
        let mut accounts = [Account::default(); 4];
        let mut count = 0;
        for account in &mut accounts {
            let mut now = START;
            while now < START + 10_000_000 {
                if let Reserved::Moments { count: got, .. } = account.reserve(flow, 10, now) {
                    count += got;
                }
                now += 20_000;
            }
        }
        assert!(count > 3500, "{count} where 1,000 are allowed");
    }

    #[test]
    fn moments_are_given_once_and_evenly() {
        let flow = Flow { units: 10, per: Duration::from_secs(1), burst: 3 };
        let mut account = Account::default();
        assert_eq!(account.reserve(flow, 5, START), Reserved::Moments { count: 5, first_in_us: -200_000 });
        assert_eq!(account.reserve(flow, 5, START), Reserved::Moments { count: 5, first_in_us: 300_000 });
        assert_eq!(account.reserve(flow, 50, START), Reserved::Moments { count: 3, first_in_us: 800_000 });
        assert_eq!(account.reserve(flow, 1, START), Reserved::Later(Duration::from_millis(100)));
        // An hour later the burst is there again, and no more than it.
        assert_eq!(account.reserve(flow, 1, START + 3_600_000_000), Reserved::Moments { count: 1, first_in_us: -200_000 });
        // A clock that was stepped back closes nothing for an hour.
        assert_eq!(account.reserve(flow, 1, START), Reserved::Moments { count: 1, first_in_us: 0 });
    }

    #[test]
    fn what_was_let_through_is_counted_and_closes_the_flow_when_it_is_too_much() {
        let flow = Flow { units: 60, per: Duration::from_secs(60), burst: 10 };
        let mut account = Account::default();
        assert_eq!(account.charge(flow, 9, START), Duration::ZERO);
        assert_eq!(account.charge(flow, 1, START), Duration::from_secs(1));
        assert_eq!(account.charge(flow, 5, START + 1_000_000), Duration::from_secs(5));
        assert_eq!(account.charge(flow, 1, START + 60_000_000), Duration::ZERO);
    }
}
