//! A name server for addresses of a few names, which a test changes while it runs.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const A: u16 = 1;
const SOA: u16 = 6;
const NXDOMAIN: u8 = 3;
struct Zone {
    /// How long a "no" holds, seconds.
    negative_ttl_s: u32,
    /// By name: addresses and their TTL in seconds.
    names: HashMap<String, (Vec<Ipv4Addr>, u32)>,
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
        let zone = Zone { negative_ttl_s: 1, names: HashMap::new(), queries: HashMap::new() };
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
    let known = zone.names.get(&name);
    let (addresses, ttl) = match known {
        Some((addresses, ttl)) if kind == A => (&addresses[..], *ttl),
        _ => (&[][..], 0),
    };
    let mut out = query[..2].to_vec();
    out.extend([
        0x84,
        if known.is_some() { 0x80 } else { 0x80 | NXDOMAIN },
        0,
        1,
        0,
        addresses.len() as u8,
        0,
        u8::from(addresses.is_empty()),
    ]);
    out.extend_from_slice(&[0, 0]);
    out.extend_from_slice(query.get(12..at + 4)?);
    for address in addresses {
        record(&mut out, A, ttl, &address.octets());
    }
    if addresses.is_empty() {
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

/// A record of the name in the question.
fn record(out: &mut Vec<u8>, kind: u16, ttl: u32, data: &[u8]) {
    out.extend([0xC0, 12]);
    out.extend(kind.to_be_bytes());
    out.extend([0, 1]);
    out.extend(ttl.to_be_bytes());
    out.extend((data.len() as u16).to_be_bytes());
    out.extend_from_slice(data);
}
