//! A network of the rig's own: each node in a namespace on one bridge, so that a way can be cut in one direction (root).

use std::{ffi::OsStr, io, net::Ipv4Addr};

use crate::{machine, volume::run};

/// Which packets of a node are dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Cut {
    /// What it sends: its calls are lost, and go out late, by the kernel's repetitions, when the way is whole again.
    Sent,
    /// What it is sent: its calls are done, and it does not hear of it.
    Received,
}

/// The bridge and the namespaces; gone when dropped.
#[derive(Debug)]
pub(super) struct Network {
    bridge: String,
    block: u8,
    namespaces: Vec<String>,
}

fn ip(arguments: &[&str]) -> io::Result<()> {
    run("ip", &arguments.iter().map(OsStr::new).collect::<Vec<_>>()).map(drop)
}

impl Network {
    /// Why there can be none here.
    pub(super) fn lacking() -> Option<String> {
        if !machine::is_root() {
            return Some("needs root".into());
        }
        let lacks = |program: &str| run(program, &[OsStr::new("-V")]).err().map(|error| error.to_string());
        lacks("ip").or_else(|| lacks("nft"))
    }

    /// A bridge with so many namespaces. Names and addresses come from the process id, so that two runs do not meet.
    pub(super) fn new(nodes: usize) -> io::Result<Network> {
        let id = std::process::id();
        let bridge = format!("rpb{id}");
        let block = u8::try_from(id % 250).expect("below 250") + 1;
        let mut network = Network { bridge, block, namespaces: Vec::new() };
        let bridge = network.bridge.clone();
        ip(&["link", "add", &bridge, "type", "bridge"])?;
        ip(&["addr", "add", &format!("{}/24", network.own()), "dev", &bridge])?;
        ip(&["link", "set", &bridge, "up"])?;
        for node in 0..nodes {
            let (namespace, outer, inner) = (format!("rp{id}n{node}"), format!("rpv{id}n{node}"), "eth0");
            ip(&["netns", "add", &namespace])?;
            network.namespaces.push(namespace.clone());
            ip(&["link", "add", &outer, "type", "veth", "peer", "name", inner, "netns", &namespace])?;
            ip(&["link", "set", &outer, "master", &bridge, "up"])?;
            let address = format!("{}/24", network.address(node));
            for words in [&["addr", "add", &address, "dev", inner][..], &["link", "set", inner, "up"], &["link", "set", "lo", "up"]] {
                ip(&[&["-n", &namespace], words].concat())?;
            }
        }
        Ok(network)
    }

    /// The rig's address, where Valkey and the next hop are.
    pub(super) fn own(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, self.block, 1)
    }

    /// A node's address.
    pub(super) fn address(&self, node: usize) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, self.block, 11 + u8::try_from(node).expect("few nodes"))
    }

    /// A node's namespace.
    pub(super) fn namespace(&self, node: usize) -> &str {
        &self.namespaces[node]
    }

    /// Drops a node's packets from or to one port of the rig's address, until [`Network::heal`]; both when called for both.
    pub(super) fn cut(&self, node: usize, port: u16, cut: Cut) -> io::Result<()> {
        let (hook, packets) = match cut {
            Cut::Sent => ("output", "ip daddr OWN tcp dport PORT"),
            Cut::Received => ("input", "ip saddr OWN tcp sport PORT"),
        };
        let packets = packets.replace("OWN", &self.own().to_string()).replace("PORT", &port.to_string());
        let chain = format!("add chain inet rig {hook} {{ type filter hook {hook} priority 0; }}");
        self.nft(node, &format!("add table inet rig\n{chain}\nadd rule inet rig {hook} {packets} drop"))
    }

    /// Lets all packets pass again.
    pub(super) fn heal(&self, node: usize) -> io::Result<()> {
        self.nft(node, "delete table inet rig")
    }

    fn nft(&self, node: usize, rules: &str) -> io::Result<()> {
        ip(&["netns", "exec", &self.namespaces[node], "nft", rules])
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // Links end with their namespaces. What cannot be removed is named, so that somebody can.
        for namespace in &self.namespaces {
            if let Err(error) = ip(&["netns", "del", namespace]) {
                eprintln!("{error}");
            }
        }
        if let Err(error) = ip(&["link", "del", &self.bridge]) {
            eprintln!("{error}");
        }
    }
}
