//! A thousand next hops in one thread: each listens on an address of its own, has a temper, and keeps accounts.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

/// How long a slow next hop holds back each answer.
const SLOW: Duration = Duration::from_millis(400);
/// A greylisting next hop takes the second try if it comes so much later.
const GREY: Duration = Duration::from_millis(500);
/// Longest line that is read; a longer one ends the connection.
const LINE_BYTES_MAX: u64 = 4096;

/// What a next hop is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Temper {
    /// Takes everything at once.
    Healthy,
    /// Refuses connections.
    Refusing,
    /// Takes connections and never says a word.
    Silent,
    /// Takes its time for each answer.
    Slow,
    /// Says 450 to a sender and recipient until they come again.
    Greylisting,
}

/// What one next hop saw.
#[derive(Debug, Default)]
pub struct Account {
    /// Connections that are open, and the most at once.
    pub open: Cell<u32>,
    /// The most of them at once.
    pub open_max: Cell<u32>,
    /// Connections in all.
    pub connections: Cell<u64>,
    /// Messages taken.
    pub messages: Cell<u64>,
    /// Each MAIL: the number in its sender, and when it came.
    pub mails: RefCell<Vec<(usize, Instant)>>,
    /// When recipients were greylisted.
    pub greylisted: RefCell<Vec<(usize, Instant)>>,
    /// When each message was taken.
    pub arrivals: RefCell<Vec<Instant>>,
    /// From `X-Sent` to the end of content, microseconds.
    pub delays_us: RefCell<Vec<u64>>,
}

/// All next hops.
pub struct Hops {
    /// Where each listens (or does not).
    pub addresses: Vec<SocketAddr>,
    /// What each saw.
    pub accounts: Vec<Rc<Account>>,
}

impl Hops {
    /// Starts one next hop for each temper, on addresses of 127.0.0.0/8. Runs on the current thread's `LocalSet`.
    ///
    /// # Errors
    /// An address that cannot be listened on.
    pub async fn start(tempers: &[Temper], began: Instant) -> io::Result<Hops> {
        let mut hops = Hops { addresses: Vec::new(), accounts: Vec::new() };
        for (number, &temper) in tempers.iter().enumerate() {
            let host = [127, 77, (number / 250) as u8, (number % 250) as u8 + 1];
            let listener = TcpListener::bind(SocketAddr::from((host, 0))).await?;
            let (address, account) = (listener.local_addr()?, Rc::new(Account::default()));
            hops.addresses.push(address);
            hops.accounts.push(account.clone());
            if temper == Temper::Refusing {
                continue; // The listener is closed here: nobody answers at its port.
            }
            tokio::task::spawn_local(async move {
                let seen: Rc<RefCell<HashMap<String, Instant>>> = Rc::default();
                while let Ok((stream, _)) = listener.accept().await {
                    let (account, seen) = (account.clone(), seen.clone());
                    tokio::task::spawn_local(async move {
                        account.connections.set(account.connections.get() + 1);
                        account.open.set(account.open.get() + 1);
                        account.open_max.set(account.open_max.get().max(account.open.get()));
                        // A connection that breaks is the sender's business; what it took is counted.
                        let _ended = converse(stream, temper, &account, &seen, began).await;
                        account.open.set(account.open.get() - 1);
                    });
                }
            });
        }
        Ok(hops)
    }
}

async fn converse(
    mut stream: TcpStream,
    temper: Temper,
    account: &Account,
    seen: &RefCell<HashMap<String, Instant>>,
    began: Instant,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let (read, mut write) = stream.split();
    let mut read = BufReader::new(read);
    if temper == Temper::Silent {
        let mut nothing = [0; 64];
        while read.read(&mut nothing).await? > 0 {}
        return Ok(());
    }
    let pause = async || {
        if temper == Temper::Slow {
            tokio::time::sleep(SLOW).await;
        }
    };
    pause().await;
    write.write_all(b"220 hop.test ESMTP\r\n").await?;
    let (mut line, mut sender, mut number, mut takes) = (Vec::new(), String::new(), 0, false);
    loop {
        line.clear();
        if (&mut read).take(LINE_BYTES_MAX).read_until(b'\n', &mut line).await? == 0 {
            return Ok(());
        }
        let text = String::from_utf8_lossy(&line).trim_end().to_owned();
        let verb = text.get(..4).unwrap_or_default().to_ascii_uppercase();
        let reply: &[u8] = match verb.as_str() {
            "EHLO" => b"250-hop.test\r\n250-PIPELINING\r\n250-8BITMIME\r\n250 SIZE 50000000\r\n",
            "HELO" | "RSET" | "NOOP" => b"250 2.0.0 ok\r\n",
            "MAIL" => {
                number = text.split_once("<s").and_then(|(_, rest)| rest.split('@').next()?.parse().ok()).unwrap_or_default();
                account.mails.borrow_mut().push((number, Instant::now()));
                (sender, takes) = (text, false);
                b"250 2.1.0 ok\r\n"
            }
            "RCPT" => {
                let first = *seen.borrow_mut().entry(format!("{sender} {text}")).or_insert_with(Instant::now);
                if temper == Temper::Greylisting && first.elapsed() < GREY {
                    account.greylisted.borrow_mut().push((number, Instant::now()));
                    b"450 4.7.1 greylisted, try again later\r\n"
                } else {
                    takes = true;
                    b"250 2.1.5 ok\r\n"
                }
            }
            "DATA" if takes => b"354 go on\r\n",
            "DATA" => b"554 5.5.1 no recipients\r\n",
            "QUIT" => {
                write.write_all(b"221 2.0.0 bye\r\n").await?;
                return Ok(());
            }
            _ => b"500 5.5.2 what\r\n",
        };
        pause().await;
        write.write_all(reply).await?;
        if verb == "DATA" && takes {
            let sent = content(&mut read).await?;
            pause().await;
            let now = Instant::now();
            account.messages.set(account.messages.get() + 1);
            account.arrivals.borrow_mut().push(now);
            if let Some(sent_us) = sent {
                let delay = now.duration_since(began).as_micros().saturating_sub(sent_us.into());
                account.delays_us.borrow_mut().push(u64::try_from(delay).unwrap_or(u64::MAX));
            }
            write.write_all(b"250 2.0.0 taken\r\n").await?;
        }
    }
}

/// Reads content to its end; returns what `X-Sent` says.
async fn content(read: &mut (impl AsyncBufReadExt + Unpin)) -> io::Result<Option<u64>> {
    let (mut line, mut sent) = (Vec::new(), None);
    loop {
        line.clear();
        if read.read_until(b'\n', &mut line).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if line == b".\r\n" {
            return Ok(sent);
        }
        if let Some(value) = line.strip_prefix(b"X-Sent: ") {
            sent = std::str::from_utf8(value.trim_ascii()).ok().and_then(|value| value.parse().ok());
        }
    }
}
