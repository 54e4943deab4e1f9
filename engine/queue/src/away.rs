//! A shard that is no home of a destination: its credits at those that are, and what they last said.
//!
//! Each home has so many of this shard's dispatches at most; what has no credit stays in the ready queue here.

use std::sync::Arc;

use crate::route::NextHop;
use crate::wait::Wait;

/// Dispatches that one shard has out at one home at most, whatever the home's part of the limits: each holds memory there.
const CREDITS_MAX: u32 = 32;

/// A site as a home learns it from the shard that has asked DNS.
#[derive(Debug)]
pub(crate) struct GuestSite {
    pub(crate) key: String,
    pub(crate) name: String,
    pub(crate) hosts: Vec<NextHop>,
    pub(crate) is_whole: bool,
    /// Of which of many hosts these are, see [`Question::Mx`](crate::Question::Mx).
    pub(crate) turn: u16,
}

/// How a shard that is no home of a destination stands with those that are.
#[derive(Debug)]
pub(crate) struct Away {
    /// In the order in which this shard prefers them: each shard begins with another.
    homes: Vec<HomeState>,
    /// Dispatches out at each, at most.
    credits: u16,
    /// The operator wants it tried at once: the next dispatch says so.
    pub(crate) revive: bool,
    /// What the homes are told of a site, which they may not have asked DNS about; made at first use.
    pub(crate) site: Option<Arc<GuestSite>>,
}

#[derive(Debug)]
struct HomeState {
    shard: u16,
    /// Dispatches out.
    out: u16,
    /// It said that it can do nothing before, and why.
    sleeps_until: u64,
    wait: Wait,
    /// What those that it has wait for there, as it last said.
    busy_with: Wait,
}

impl Away {
    pub(crate) fn new(mut homes: Vec<u16>, shard: u16, connections: u32) -> Self {
        let first = usize::from(shard) % homes.len();
        homes.rotate_left(first);
        // Two for each connection, one under way and one chained behind it, and as many more as are on the lanes meanwhile.
        let credits = (2 * connections + 2).min(CREDITS_MAX) as u16;
        let homes =
            homes.into_iter().map(|shard| HomeState { shard, out: 0, sleeps_until: 0, wait: Wait::Turn, busy_with: Wait::Turn }).collect();
        Self { homes, credits, revive: false, site: None }
    }

    /// Dispatches that are out at homes that stay.
    pub(crate) fn carry_over(&mut self, before: &Away) {
        for home in &mut self.homes {
            home.out = before.homes.iter().find(|old| old.shard == home.shard).map_or(0, |old| old.out);
        }
    }

    pub(crate) fn credits_of_all(&self) -> u32 {
        u32::from(self.credits) * self.homes.len() as u32
    }

    #[cfg(test)]
    pub(crate) fn homes(&self) -> impl Iterator<Item = u16> {
        self.homes.iter().map(|home| home.shard)
    }

    fn best(&mut self, now: u64) -> Option<&mut HomeState> {
        let credits = self.credits;
        let open = self.homes.iter_mut().filter(|home| home.out < credits && home.sleeps_until <= now);
        open.min_by_key(|home| home.out)
    }

    pub(crate) fn has_credit(&self, now: u64) -> bool {
        self.homes.iter().any(|home| home.out < self.credits && home.sleeps_until <= now)
    }

    /// Takes a credit of the home with the most left.
    pub(crate) fn take(&mut self, now: u64) -> Option<u16> {
        let home = self.best(now)?;
        home.out += 1;
        Some(home.shard)
    }

    /// A dispatch came back.
    pub(crate) fn give_back(&mut self, shard: u16) {
        // The homes may be others by now, if the limits were changed meanwhile.
        if let Some(home) = self.homes.iter_mut().find(|home| home.shard == shard) {
            home.out = home.out.saturating_sub(1);
        }
    }

    pub(crate) fn set_sleep(&mut self, shard: u16, until: u64, wait: Wait) {
        if let Some(home) = self.homes.iter_mut().find(|home| home.shard == shard) {
            (home.sleeps_until, home.wait) = (until, wait);
        }
    }

    /// What mail here waits for, by what the homes said; of several that sleep, the one that wakes first.
    pub(crate) fn wait(&self, now: u64) -> Wait {
        if self.has_credit(now) {
            return Wait::Turn;
        }
        match self.homes.iter().min_by_key(|home| home.sleeps_until) {
            Some(home) if home.sleeps_until > now => home.wait.until_at(home.sleeps_until),
            _ => {
                let there = self.wait_there(now);
                if there == Wait::Turn { Wait::Home { out: self.homes.iter().map(|home| u32::from(home.out)).sum() } } else { there }
            }
        }
    }

    /// What dispatches that are out wait for, as the home with the most of them last said.
    pub(crate) fn wait_there(&self, now: u64) -> Wait {
        let most = self.homes.iter().filter(|home| home.out > 0).max_by_key(|home| home.out);
        let busy_with = most.map_or(Wait::Turn, |home| home.busy_with);
        // Where the time that it gave is over it gives another one by now.
        busy_with.until().map_or(busy_with, |until| busy_with.until_at(until.max(now)))
    }

    /// What the home has lately said of those that wait there.
    pub(crate) fn set_busy(&mut self, shard: u16, busy_with: Wait) {
        if let Some(home) = self.homes.iter_mut().find(|home| home.shard == shard) {
            home.busy_with = busy_with;
        }
    }

    /// Others have their turn than those that no home could reach.
    pub(crate) fn hosts_changed(&mut self) {
        for home in self.homes.iter_mut().filter(|home| matches!(home.wait, Wait::BreakerOpen { .. })) {
            home.sleeps_until = 0;
        }
    }

    pub(crate) fn wake(&mut self) {
        self.homes.iter_mut().for_each(|home| home.sleeps_until = 0);
        self.revive = true;
    }

    /// When the first of those that sleep is to be asked again.
    pub(crate) fn wakes_at(&self, now: u64) -> Option<u64> {
        self.homes.iter().map(|home| home.sleeps_until).filter(|&until| until > now).min()
    }

    /// All homes sleep until then at least.
    pub(crate) fn asleep_until(&self, now: u64) -> Option<u64> {
        self.homes.iter().map(|home| home.sleeps_until).min().filter(|&until| until > now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rate::Rate;

    /// It was "waits for its turn" whatever the home waited for.
    #[test]
    fn what_is_out_waits_for_what_its_home_said_last() {
        let mut away = Away::new(vec![3], 0, 1);
        while away.take(50).is_some() {}
        assert_eq!((away.wait(50), away.wait_there(50)), (Wait::Home { out: 4 }, Wait::Turn));
        let rate = Rate { messages: 10, per_ms: 1000, burst: 1 };
        away.set_busy(3, Wait::Rate { until: 60, rate });
        assert_eq!(away.wait(50), Wait::Rate { until: 60, rate });
        assert_eq!(away.wait_there(70), Wait::Rate { until: 70, rate }, "its time is over, and it has another by now");
        away.give_back(3);
        assert_eq!((away.wait(50), away.wait_there(50)), (Wait::Turn, Wait::Rate { until: 60, rate }));
        (0..3).for_each(|_| away.give_back(3));
        assert_eq!(away.wait_there(50), Wait::Turn, "nothing is out");
    }

    #[test]
    fn credits_are_bounded_for_each_home_and_a_sleeping_one_is_left_alone() {
        let mut away = Away::new(vec![3, 5], 0, 1);
        let taken: Vec<_> = std::iter::from_fn(|| away.take(10)).collect();
        assert_eq!(taken, [3, 5, 3, 5, 3, 5, 3, 5]);
        assert!(!away.has_credit(10));
        away.give_back(5);
        away.set_sleep(5, 50, Wait::Probing);
        assert!(!away.has_credit(10), "its credit sleeps, too");
        assert_eq!((away.wakes_at(10), away.asleep_until(10)), (Some(50), None));
        assert_eq!(away.wait(10), Wait::Home { out: 7 });
        assert!(away.has_credit(50));
        away.give_back(3);
        assert_eq!(away.take(10), Some(3));
        away.set_sleep(3, 40, Wait::Throttled { until: 99 });
        assert_eq!(away.asleep_until(10), Some(40));
        assert_eq!(away.wait(10), Wait::Throttled { until: 40 }, "the home that is asked first says why");
        away.wake();
        assert_eq!((away.take(10), away.revive), (Some(5), true));
    }
}
