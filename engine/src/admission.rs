//! How many sessions, and how many of one address. What is counted is given back when the guard is dropped.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    net::IpAddr,
    rc::Rc,
    time::{Duration, Instant},
};

use ringpost_config::Config;

use crate::share::Share;

/// Addresses remembered for their rates at once. When there are more, those without a session are forgotten first.
const ADDRESSES_MAX: usize = 65_536;
/// What "per minute" means: a count starts anew when so much time has passed since its start.
const MINUTE: Duration = Duration::from_secs(60);
/// Bytes that one session may come to hold in buffers, staging aside: what `sessions_max = "auto"` reckons with.
const SESSION_BYTES: u64 = 16 * 1024;

/// An IPv4 address, or the /64 of an IPv6 address: what one customer has.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Site {
    /// The address.
    V4([u8; 4]),
    /// The first half of the address.
    V6([u8; 8]),
}

impl Site {
    fn of(peer: IpAddr) -> Site {
        match peer.to_canonical() {
            IpAddr::V4(address) => Site::V4(address.octets()),
            IpAddr::V6(address) => Site::V6(*address.octets().first_chunk().expect("sixteen octets")),
        }
    }
}

struct Counts {
    sessions: u32,
    since: Instant,
    connections: u32,
    messages: u32,
    recipients: u32,
}

/// The limits of one shard; those of the config are split evenly.
#[derive(Clone, Copy)]
struct Limits {
    sessions: u32,
    sessions_per_address: u32,
    connections_per_minute: Option<u32>,
    messages_per_minute: Option<u32>,
    recipients_per_minute: Option<u32>,
}

/// Counts sessions and rates.
pub struct Admission {
    limits: Cell<Limits>,
    sessions: Cell<u32>,
    sites: RefCell<HashMap<Site, Counts>>,
}

/// Why a connection is not served.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// All sessions are taken.
    Full,
    /// The address has as many sessions as it may.
    Address,
    /// The address connects too often.
    Rate,
    /// The shard drains, or its spool failed, and another has just passed it this connection.
    Ending,
}

/// A session's place.
pub struct Admitted {
    admission: Rc<Admission>,
    /// `None` for relay networks: they are not counted by address.
    site: Option<Site>,
}

impl Limits {
    fn new(config: &Config, share: Share) -> Self {
        let part = |limit: u32| share.of(limit);
        let smtp = &config.smtp;
        Limits {
            sessions: share.exact(sessions_max(config)),
            sessions_per_address: part(smtp.sessions_per_address),
            connections_per_minute: smtp.connections_per_minute.map(part),
            messages_per_minute: smtp.messages_per_minute.map(part),
            recipients_per_minute: smtp.recipients_per_minute.map(part),
        }
    }
}

impl Admission {
    /// Limits for one shard.
    pub fn new(config: &Config, share: Share) -> Self {
        Admission { limits: Cell::new(Limits::new(config, share)), sessions: Cell::default(), sites: RefCell::default() }
    }

    /// Other limits from now on; sessions that are there stay.
    pub fn set_limits(&self, config: &Config, share: Share) {
        self.limits.set(Limits::new(config, share));
    }

    /// A connection from `peer`; `relaying` peers are bounded by the total alone.
    pub fn admit(self: &Rc<Self>, peer: IpAddr, relaying: bool, now: Instant) -> Result<Admitted, Refusal> {
        if self.sessions.get() >= self.limits.get().sessions {
            return Err(Refusal::Full);
        }
        let site = (!relaying).then(|| Site::of(peer));
        if let Some(site) = site {
            let mut sites = self.sites.borrow_mut();
            if sites.len() >= ADDRESSES_MAX && !sites.contains_key(&site) {
                sites.retain(|_, counts| counts.sessions > 0);
            }
            let counts = sites.entry(site).or_insert(Counts { sessions: 0, since: now, connections: 0, messages: 0, recipients: 0 });
            counts.turn(now);
            if counts.sessions >= self.limits.get().sessions_per_address {
                return Err(Refusal::Address);
            }
            if self.limits.get().connections_per_minute.is_some_and(|most| counts.connections >= most) {
                return Err(Refusal::Rate);
            }
            counts.sessions += 1;
            counts.connections = counts.connections.saturating_add(1);
        }
        self.sessions.set(self.sessions.get() + 1);
        Ok(Admitted { admission: self.clone(), site })
    }
}

impl Admitted {
    /// Whose session it is; `None` for relay networks.
    pub fn site(&self) -> Option<Site> {
        self.site
    }

    /// May this address send a further message now? Counts it.
    pub fn message(&self, now: Instant) -> bool {
        self.count(now, self.admission.limits.get().messages_per_minute, |counts| &mut counts.messages)
    }

    /// May this address name a further recipient now? Counts it.
    pub fn recipient(&self, now: Instant) -> bool {
        self.count(now, self.admission.limits.get().recipients_per_minute, |counts| &mut counts.recipients)
    }

    fn count(&self, now: Instant, most: Option<u32>, which: impl FnOnce(&mut Counts) -> &mut u32) -> bool {
        let (Some(most), Some(site)) = (most, self.site) else { return true };
        let mut sites = self.admission.sites.borrow_mut();
        let Some(counts) = sites.get_mut(&site) else { return true };
        counts.turn(now);
        let count = which(counts);
        if *count >= most {
            return false;
        }
        *count += 1;
        true
    }
}

impl Counts {
    fn turn(&mut self, now: Instant) {
        if now.duration_since(self.since) >= MINUTE {
            *self = Counts { since: now, connections: 0, messages: 0, recipients: 0, sessions: self.sessions };
        }
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let admission = &self.admission;
        admission.sessions.set(admission.sessions.get() - 1);
        let Some(site) = self.site else { return };
        let mut sites = admission.sites.borrow_mut();
        let Some(counts) = sites.get_mut(&site) else { return };
        counts.sessions -= 1;
        let keeps_rates = admission.limits.get().connections_per_minute.is_some()
            || admission.limits.get().messages_per_minute.is_some()
            || admission.limits.get().recipients_per_minute.is_some();
        if counts.sessions == 0 && !keeps_rates {
            sites.remove(&site);
        }
    }
}

/// `smtp.sessions_max`, or what "auto" comes to.
fn sessions_max(config: &Config) -> u32 {
    let auto = || {
        let budget = memory_budget(config) / 2;
        // A descriptor for each session; a quarter of them stays for spool, control and outbound connections.
        let descriptors = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX) / 4 * 3;
        u32::try_from((budget / SESSION_BYTES).min(descriptors)).unwrap_or(u32::MAX)
    };
    config.smtp.sessions_max.unwrap_or_else(auto).max(1)
}

/// The shards that listen, counted from the first: all of them, unless there are fewer sessions than shards. One that may have no
/// session at all would refuse what others have room for.
pub fn listening_shards(config: &Config, shards: u16) -> u16 {
    u16::try_from(sessions_max(config)).map_or(shards, |sessions| sessions.min(shards))
}

/// `memory.max_memory`, for all shards together.
pub(crate) fn memory_budget(config: &Config) -> u64 {
    config.memory.max_memory.map_or_else(machine_memory, |max| max.bytes())
}

/// Half of what the machine or the control group has.
fn machine_memory() -> u64 {
    let machine = {
        let info = rustix::system::sysinfo();
        (info.totalram as u64).saturating_mul(u64::from(info.mem_unit))
    };
    let group = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"]
        .iter()
        .find_map(|path| std::fs::read_to_string(path).ok()?.trim().parse::<u64>().ok());
    group.map_or(machine, |group| group.min(machine)) / 2
}
