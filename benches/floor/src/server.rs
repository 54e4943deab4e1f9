//! The floor's one loop: take all completions, feed clients, begin batches, send what is ready, one system call, again.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, RawFd};
use std::path::PathBuf;

use crate::client::Client;
use crate::kernel::{Completion, Kernel, Kind};
use crate::log::Log;
use crate::relay::Relay;

/// Outcomes that nothing else takes along wait so long.
const RIDE_MS: u32 = 5;

/// What to be.
#[derive(Debug, Clone)]
pub struct Options {
    /// The file that is the log.
    pub log: PathBuf,
    /// Its length.
    pub log_bytes: u64,
    /// Where messages go; none: they are accepted and that is all.
    pub relay: Option<SocketAddr>,
    /// Connections to the next hop.
    pub connections: usize,
    /// MAIL goes with the dot before it.
    pub chained: bool,
}

/// What was done, for the table.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counts {
    /// Messages answered with 250.
    pub accepted: u64,
    /// Messages the next hop took.
    pub delivered: u64,
    /// Flushes.
    pub batches: u64,
    /// System calls.
    pub calls: u64,
}

impl Counts {
    /// As one JSON object.
    pub fn json(&self) -> String {
        let Self { accepted, delivered, batches, calls } = self;
        format!("{{\"accepted\":{accepted},\"delivered\":{delivered},\"batches\":{batches},\"calls\":{calls}}}")
    }
}

/// The acceptor.
pub struct Server {
    kernel: Kernel,
    log: Log,
    relay: Option<Relay>,
    clients: Vec<Option<Client>>,
    free: Vec<u32>,
    /// Clients with something to send, at most once each.
    dirty: Vec<u32>,
    /// Who waits for which batch, in order.
    waiting: VecDeque<(u64, u32)>,
    timing: bool,
    accepted: u64,
}

impl Server {
    /// Makes the log, connects to the next hop. Takes as long as the log takes to be written.
    pub fn new(options: &Options) -> io::Result<Self> {
        let mut kernel = Kernel::new()?;
        let log = Log::create(&options.log, options.log_bytes)?;
        let relay = match options.relay {
            Some(to) => Some(Relay::connect(to, options.connections, options.chained, &mut kernel)?),
            None => None,
        };
        Ok(Self {
            kernel,
            log,
            relay,
            clients: Vec::new(),
            free: Vec::new(),
            dirty: Vec::new(),
            waiting: VecDeque::new(),
            timing: false,
            accepted: 0,
        })
    }

    /// Serves until `input` ends; for each line of it `output` gets what was done so far, as one JSON object on a line, and whoever asks
    /// reads it before asking again. Fails at the first failure of disk, next hop or these two.
    pub fn run(mut self, listener: &TcpListener, mut input: impl Read + AsRawFd, mut output: impl Write) -> io::Result<Counts> {
        self.kernel.accept(listener.as_raw_fd());
        self.kernel.readable(input.as_raw_fd());
        let mut completions = Vec::new();
        loop {
            self.kernel.turn(&mut completions)?;
            for completion in &completions {
                if completion.kind != Kind::Input {
                    self.completed(completion, listener)?;
                } else if !self.answer(&mut input, &mut output)? {
                    return Ok(self.counts());
                }
            }
            self.acknowledge();
            self.log.begin(&mut self.kernel);
            if self.relay.is_some() && self.log.is_waiting() && !self.timing {
                self.timing = true;
                self.kernel.timeout(RIDE_MS);
            }
            self.send_replies();
        }
    }

    /// Tells what was done to whoever asked; false at the end of `input`, which is readable.
    fn answer(&mut self, input: &mut (impl Read + AsRawFd), output: &mut impl Write) -> io::Result<bool> {
        let mut asked = [0; 64];
        let bytes = input.read(&mut asked)?;
        self.kernel.calls += 1;
        if bytes == 0 {
            return Ok(false);
        }
        for _line in asked[..bytes].iter().filter(|byte| **byte == b'\n') {
            writeln!(output, "{}", self.counts().json())?;
            output.flush()?;
            self.kernel.calls += 1;
        }
        self.kernel.readable(input.as_raw_fd());
        Ok(true)
    }

    fn counts(&self) -> Counts {
        let delivered = self.relay.as_ref().map_or(0, |relay| relay.delivered);
        Counts { accepted: self.accepted, delivered, batches: self.log.durable, calls: self.kernel.calls }
    }

    fn completed(&mut self, completion: &Completion, listener: &TcpListener) -> io::Result<()> {
        match completion.kind {
            Kind::Accept => {
                if completion.result >= 0 {
                    self.accept(completion.result);
                }
                if !completion.more() {
                    self.kernel.accept(listener.as_raw_fd());
                }
            }
            Kind::Receive => self.receive(completion),
            Kind::Send => {
                let client = self.clients[completion.number as usize].as_mut().expect("clients stay while a send is under way");
                client.busy = false;
                client.leaving |= completion.result != client.sending.len() as i32;
                client.sending.clear();
                self.dirty.push(completion.number);
            }
            Kind::Write | Kind::Flush => self.log.completed(completion)?,
            Kind::HopReceive => {
                let relay = self.relay.as_mut().expect("hops are a relay's");
                relay.received(completion, &mut self.kernel, &mut self.log)?;
            }
            Kind::HopSend => self.relay.as_mut().expect("hops are a relay's").sent(completion, &mut self.kernel)?,
            Kind::Timeout => {
                self.timing = false;
                self.log.urgent |= self.log.is_waiting();
            }
            Kind::Input | Kind::Forget => {}
        }
        Ok(())
    }

    fn accept(&mut self, fd: RawFd) {
        let on: libc::c_int = 1;
        // SAFETY: the option is read during the call.
        unsafe { libc::setsockopt(fd, libc::IPPROTO_TCP, libc::TCP_NODELAY, (&raw const on).cast(), size_of_val(&on) as u32) };
        self.kernel.calls += 1;
        let number = self.free.pop().unwrap_or_else(|| {
            self.clients.push(None);
            self.clients.len() as u32 - 1
        });
        let mut client = Client::new(fd);
        client.receiving = true;
        self.clients[number as usize] = Some(client);
        self.kernel.receive(Kind::Receive, fd, number);
        self.dirty.push(number);
    }

    fn receive(&mut self, completion: &Completion) {
        let number = completion.number;
        let client = self.clients[number as usize].as_mut().expect("clients stay while a receive is armed");
        let (log, keep) = (&mut self.log, self.relay.is_some());
        let mut whole = false;
        self.kernel.received(completion, |bytes| whole = client.feed(bytes, log, keep));
        if whole {
            self.waiting.push_back((client.awaits.expect("a whole message waits for its batch"), number));
        }
        if !completion.more() {
            // Out of buffers is no end: those of this turn are back already.
            if completion.result > 0 || completion.result == -libc::ENOBUFS {
                self.kernel.receive(Kind::Receive, client.fd, number);
            } else {
                client.receiving = false;
                client.leaving = true;
            }
        }
        self.dirty.push(number);
    }

    /// Says 250 to all whose batch is durable, and sends their messages on.
    fn acknowledge(&mut self) {
        while let Some(&(batch, number)) = self.waiting.front() {
            if batch > self.log.durable {
                return;
            }
            self.waiting.pop_front();
            let client = self.clients[number as usize].as_mut().expect("clients stay while a message waits");
            self.accepted += 1;
            client.durable(self.accepted);
            self.dirty.push(number);
            if let Some(relay) = &mut self.relay {
                let message = std::mem::replace(&mut client.message, relay.spare());
                relay.forward(message, &mut self.kernel);
            }
        }
    }

    /// One send for each client that has replies and none under way.
    fn send_replies(&mut self) {
        for number in self.dirty.drain(..) {
            let Some(client) = self.clients[number as usize].as_mut() else { continue };
            if client.busy {
                continue;
            }
            if !client.replies.is_empty() {
                std::mem::swap(&mut client.replies, &mut client.sending);
                client.busy = true;
                self.kernel.send(client.fd, number, &client.sending);
            } else if client.leaving && client.awaits.is_none() {
                if client.is_over() {
                    self.kernel.close(client.fd);
                    self.clients[number as usize] = None;
                    self.free.push(number);
                } else if !std::mem::replace(&mut client.stopping, true) {
                    // Not IORING_OP_SHUTDOWN: it runs on a worker, and may come when the descriptor is another connection's.
                    self.kernel.stop_receiving(number);
                }
            }
        }
    }
}
