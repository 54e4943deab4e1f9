//! A name server for addresses, exchanges and aliases of a few names, which a test changes while it runs.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const A: u16 = 1;
const CNAME: u16 = 5;
const SOA: u16 = 6;
const MX: u16 = 15;
const NXDOMAIN: u8 = 3;
struct Zone {
    /// How long a "no" holds, seconds.
    negative_ttl_s: u32,
    /// By name: addresses and their TTL in seconds.
    names: HashMap<String, (Vec<Ipv4Addr>, u32)>,
    /// By name: the hosts that take its mail, best first.
    exchanges: HashMap<String, Vec<String>>,
    /// By name: what it is another name of.
    aliases: HashMap<String, String>,
    queries: HashMap<(String, u16), usize>,
}

/// Answers until dropped. Names that it was not told of do not exist.
pub(crate) struct NameServer {
    pub(crate) address: SocketAddr,
    zone: Arc<Mutex<Zone>>,
    stop: Arc<AtomicBool>,
}

impl NameServer {
    pub(crate) fn start() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        let address = socket.local_addr().unwrap();
        let zone =
            Zone { negative_ttl_s: 1, names: HashMap::new(), exchanges: HashMap::new(), aliases: HashMap::new(), queries: HashMap::new() };
        let (zone, stop) = (Arc::new(Mutex::new(zone)), Arc::<AtomicBool>::default());
        let (shared, stopped) = (Arc::clone(&zone), Arc::clone(&stop));
        std::thread::spawn(move || {
            let mut query = [0; 1024];
            while !stopped.load(Ordering::Relaxed) {
                let Ok((length, client)) = socket.recv_from(&mut query) else { continue };
                if let Some(answer) = answer(&query[..length], &mut shared.lock().unwrap()) {
                    let _gone = socket.send_to(&answer, client);
                }
            }
        });
        Self { address, zone, stop }
    }

    /// What it says of a name from now on.
    pub(crate) fn set(&self, name: &str, addresses: &[[u8; 4]], ttl_s: u32) {
        let addresses = addresses.iter().map(|octets| Ipv4Addr::from(*octets)).collect();
        self.zone.lock().unwrap().names.insert(name.to_owned(), (addresses, ttl_s));
    }

    /// From now on mail for a name goes to these hosts, the best first.
    pub(crate) fn set_exchanges(&self, name: &str, hosts: &[String]) {
        self.zone.lock().unwrap().exchanges.insert(name.to_owned(), hosts.to_vec());
    }

    /// From now on a name is another one's alias, for whatever it is asked. The proof that there is nothing else stands beside it.
    pub(crate) fn set_alias(&self, name: &str, target: &str) {
        self.zone.lock().unwrap().aliases.insert(name.to_owned(), target.to_owned());
    }

    /// How long a "no" holds from now on.
    pub(crate) fn set_negative_ttl(&self, seconds: u32) {
        self.zone.lock().unwrap().negative_ttl_s = seconds;
    }

    /// How often it was asked for the IPv4 addresses of a name.
    pub(crate) fn asked(&self, name: &str) -> usize {
        self.zone.lock().unwrap().queries.get(&(name.to_owned(), A)).copied().unwrap_or(0)
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn answer(query: &[u8], zone: &mut Zone) -> Option<Vec<u8>> {
    let (mut at, mut labels) = (12, Vec::new());
    loop {
        let length = usize::from(*query.get(at)?);
        at += 1;
        if length == 0 {
            break;
        }
        labels.push(String::from_utf8_lossy(query.get(at..at + length)?).to_lowercase());
        at += length;
    }
    let kind = u16::from_be_bytes([*query.get(at)?, *query.get(at + 1)?]);
    let name = labels.join(".");
    *zone.queries.entry((name.clone(), kind)).or_default() += 1;
    let is_known = zone.names.contains_key(&name) || zone.exchanges.contains_key(&name) || zone.aliases.contains_key(&name);
    let mut ttl = 1;
    // Kind and data of each.
    let records: Vec<(u16, Vec<u8>)> = match (zone.aliases.get(&name), kind) {
        (Some(target), _) => vec![(CNAME, wire_name(target))],
        (None, A) => zone.names.get(&name).map_or_else(Vec::new, |(addresses, ttl_s)| {
            ttl = *ttl_s;
            addresses.iter().map(|address| (A, address.octets().to_vec())).collect()
        }),
        (None, MX) => zone.exchanges.get(&name).map_or_else(Vec::new, |hosts| {
            (1_u16..).zip(hosts).map(|(preference, host)| (MX, [&preference.to_be_bytes()[..], &wire_name(host)].concat())).collect()
        }),
        _ => Vec::new(),
    };
    let has_proof = records.iter().all(|(kind, _)| *kind == CNAME);
    let mut out = query[..2].to_vec();
    out.extend([0x84, if is_known { 0x80 } else { 0x80 | NXDOMAIN }, 0, 1, 0, records.len() as u8, 0, u8::from(has_proof)]);
    out.extend_from_slice(&[0, 0]);
    out.extend_from_slice(query.get(12..at + 4)?);
    for (kind, data) in &records {
        record(&mut out, *kind, ttl, data);
    }
    if has_proof {
        // The root's own names, then serial, refresh, retry, expire, and how long the "no" holds (RFC 2308 4).
        let numbers = [1, 3600, 600, 86_400, zone.negative_ttl_s].map(u32::to_be_bytes).concat();
        let soa = [&[0, 0][..], &numbers].concat();
        out.push(0);
        out.extend(SOA.to_be_bytes());
        out.extend([0, 1]);
        out.extend(zone.negative_ttl_s.to_be_bytes());
        out.extend((soa.len() as u16).to_be_bytes());
        out.extend(soa);
    }
    Some(out)
}

fn wire_name(name: &str) -> Vec<u8> {
    let labels = name.split('.').flat_map(|label| std::iter::once(label.len() as u8).chain(label.bytes()));
    labels.chain([0]).collect()
}

/// A record of the name in the question.
fn record(out: &mut Vec<u8>, kind: u16, ttl: u32, data: &[u8]) {
    out.extend([0xC0, 12]);
    out.extend(kind.to_be_bytes());
    out.extend([0, 1]);
    out.extend(ttl.to_be_bytes());
    out.extend((data.len() as u16).to_be_bytes());
    out.extend_from_slice(data);
}
