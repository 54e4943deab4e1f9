//! A name server that answers by script: what no real one says, or not on purpose.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(10);

/// A name server that answers by script; ends with the process.
pub struct Scripted {
    /// Over UDP and TCP.
    pub address: SocketAddr,
    stop: Arc<AtomicBool>,
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.stop.store(true, SeqCst);
    }
}

impl Scripted {
    /// On a free port.
    pub fn start() -> io::Result<Self> {
        let tcp = TcpListener::bind("127.0.0.1:0")?;
        let address = tcp.local_addr()?;
        let udp = UdpSocket::bind(address)?;
        let stop = Arc::new(AtomicBool::new(false));
        let (stop_udp, stop_tcp) = (stop.clone(), stop.clone());
        udp.set_read_timeout(Some(Duration::from_millis(200)))?;
        std::thread::spawn(move || {
            let mut query = [0; 2048];
            while !stop_udp.load(SeqCst) {
                if let Ok((length, client)) = udp.recv_from(&mut query)
                    && let Some(answer) = answer(&query[..length], false)
                {
                    // A client that is gone needs no answer.
                    let _ = udp.send_to(&answer, client);
                }
            }
        });
        std::thread::spawn(move || {
            for stream in tcp.incoming().flatten() {
                if stop_tcp.load(SeqCst) {
                    return;
                }
                std::thread::spawn(move || -> io::Result<()> {
                    let mut stream = stream;
                    stream.set_read_timeout(Some(PATIENCE))?;
                    loop {
                        let mut length = [0; 2];
                        stream.read_exact(&mut length)?;
                        let mut query = vec![0; usize::from(u16::from_be_bytes(length))];
                        stream.read_exact(&mut query)?;
                        let Some(answer) = answer(&query, true) else { return Ok(()) };
                        stream.write_all(&(answer.len() as u16).to_be_bytes())?;
                        stream.write_all(&answer)?;
                    }
                });
            }
        });
        Ok(Self { address, stop })
    }
}

const A: u16 = 1;
const NS: u16 = 2;
const CNAME: u16 = 5;
const SOA: u16 = 6;
const MX: u16 = 15;

/// An answer being written.
struct Reply {
    rcode: u8,
    truncated: bool,
    answers: Vec<u8>,
    answers_count: u16,
    authority: Vec<u8>,
    authority_count: u16,
}

impl Reply {
    fn new() -> Self {
        Self { rcode: 0, truncated: false, answers: Vec::new(), answers_count: 0, authority: Vec::new(), authority_count: 0 }
    }

    fn with(mut self, owner: &str, kind: u16, data: &[u8]) -> Self {
        record(&mut self.answers, owner, kind, data);
        self.answers_count += 1;
        self
    }

    fn mx(self, owner: &str, preference: u16, host: &str) -> Self {
        self.with(owner, MX, &[&preference.to_be_bytes()[..], &name(host)].concat())
    }

    fn authority(mut self, kind: u16, data: &[u8]) -> Self {
        record(&mut self.authority, "test", kind, data);
        self.authority_count += 1;
        self
    }

    /// The proof of a negative answer.
    fn soa(self) -> Self {
        let times = [1_u32, 3600, 600, 86400, 5].map(u32::to_be_bytes).concat();
        self.authority(SOA, &[name("ns.test"), name("admin.test"), times].concat())
    }
}

fn name(text: &str) -> Vec<u8> {
    let mut octets = Vec::new();
    for label in text.split('.').filter(|label| !label.is_empty()) {
        octets.push(label.len() as u8);
        octets.extend_from_slice(label.as_bytes());
    }
    octets.push(0);
    octets
}

fn record(out: &mut Vec<u8>, owner: &str, kind: u16, data: &[u8]) {
    out.extend(name(owner));
    out.extend(kind.to_be_bytes());
    out.extend([0, 1, 0, 0, 0, 60]);
    out.extend((data.len() as u16).to_be_bytes());
    out.extend_from_slice(data);
}

/// What is sent to a query; nothing for silence.
fn answer(query: &[u8], over_tcp: bool) -> Option<Vec<u8>> {
    let mut at = 12;
    let mut labels = Vec::new();
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
    let question = query.get(12..at + 4)?;
    let domain = labels.join(".");
    if domain == "garbage.test" {
        return Some(b"\x00\x01 this is no message \xFF\xFF".to_vec());
    }
    let reply = script(&domain, kind, over_tcp)?;
    let mut out = query[..2].to_vec();
    out.extend([0x84 | if reply.truncated { 2 } else { 0 }, 0x80 | reply.rcode, 0, 1]);
    out.extend(reply.answers_count.to_be_bytes());
    out.extend(reply.authority_count.to_be_bytes());
    out.extend([0, 0]);
    out.extend_from_slice(question);
    out.extend(reply.answers);
    out.extend(reply.authority);
    Some(out)
}

/// What the name server says of a domain.
fn script(domain: &str, kind: u16, over_tcp: bool) -> Option<Reply> {
    let none = || Reply::new().soa();
    let sink = Ipv4Addr::new(127, 0, 0, 2).octets();
    if domain == "silent.test" || domain.ends_with(".silent.test") {
        return None;
    }
    Some(match (domain, kind) {
        ("plain.test", MX) => Reply::new().mx(domain, 10, "mx1.test"),
        ("mx1.test", A) => Reply::new().with(domain, A, &sink),
        ("bare.test", _) => Reply { rcode: 3, ..Reply::new() },
        ("servfail.test", _) => Reply { rcode: 2, ..Reply::new() },
        ("lame.test", _) => Reply::new().authority(NS, &name("ns.elsewhere.test")),
        ("circle.test", _) => Reply::new().with(domain, CNAME, &name(domain)).soa(),
        ("cut.test", _) if over_tcp => return None,
        ("cut.test", _) => Reply { truncated: true, ..Reply::new() },
        _ => none(),
    })
}
