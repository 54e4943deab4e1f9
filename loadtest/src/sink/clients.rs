//! Connections by client address: the limits, and what is reported of each.

use std::{
    collections::{BTreeMap, HashMap, hash_map::Entry},
    net::IpAddr,
};

use crate::sink::{ClientReport, SinkOptions};

/// Client addresses that are reported apart.
const CLIENTS_MAX: usize = 1000;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Clients {
    /// At most [`CLIENTS_MAX`] addresses.
    pub(crate) by_address: BTreeMap<IpAddr, ClientReport>,
    /// Those that are open, by address: what limits go by. As many as there are connections, at most.
    open_by_address: HashMap<IpAddr, u64>,
    now: u64,
    taken: u64,
    pub(crate) concurrent_max: u64,
}

impl Clients {
    /// Connections that are open.
    pub(crate) fn open(&self) -> u64 {
        self.now
    }

    /// Connections there were, those that are open among them.
    pub(crate) fn taken(&self) -> u64 {
        self.taken
    }

    /// Counts a connection, or tells that it is one too many.
    pub(super) fn admit(&mut self, address: IpAddr, options: &SinkOptions) -> bool {
        let own = self.open_by_address.get(&address).copied().unwrap_or(0);
        if options.connections_max.is_some_and(|most| self.now >= most) || options.per_client_max.is_some_and(|most| own >= most) {
            return false;
        }
        self.now += 1;
        self.taken += 1;
        self.concurrent_max = self.concurrent_max.max(self.now);
        self.open_by_address.insert(address, own + 1);
        if self.by_address.len() < CLIENTS_MAX || self.by_address.contains_key(&address) {
            let client = self.by_address.entry(address).or_default();
            client.connections += 1;
            client.concurrent_max = client.concurrent_max.max(own + 1);
        }
        true
    }

    pub(super) fn close(&mut self, address: IpAddr, messages: u64) {
        self.now -= 1;
        if let Entry::Occupied(mut open) = self.open_by_address.entry(address) {
            *open.get_mut() -= 1;
            if *open.get() == 0 {
                open.remove();
            }
        }
        if let Some(client) = self.by_address.get_mut(&address) {
            client.messages += messages;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What happened: from a thousand addresses on, connections of further ones were not counted, so that the limit did not hold for them,
    /// and those of known ones neither unless another was open.
    #[test]
    fn the_limit_of_an_address_holds_for_more_addresses_than_are_reported() {
        let mut clients = Clients::default();
        let options = SinkOptions { per_client_max: Some(2), ..SinkOptions::new(([127, 0, 0, 1], 0).into(), 0) };
        let address = |number: usize| IpAddr::from([127, 0, (number / 250) as u8, (number % 250) as u8]);
        for number in 0..=CLIENTS_MAX {
            assert!(clients.admit(address(number), &options));
            clients.close(address(number), 1);
        }
        for number in [0, CLIENTS_MAX] {
            assert!(clients.admit(address(number), &options) && clients.admit(address(number), &options));
            assert!(!clients.admit(address(number), &options), "{number}");
            clients.close(address(number), 1);
            assert!(clients.admit(address(number), &options), "{number}");
        }
        assert_eq!((clients.by_address.len(), clients.open(), clients.taken()), (CLIENTS_MAX, 4, CLIENTS_MAX as u64 + 1 + 2 * 3));
        let first = &clients.by_address[&address(0)];
        assert_eq!((first.connections, first.concurrent_max, first.messages), (4, 2, 2));
    }
}
