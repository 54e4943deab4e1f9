//! The rig's own source: sends at a set pace, to domains by Zipf's law, and stamps each message with when it was sent.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

/// One message that is to be sent.
#[derive(Debug, Clone, Copy)]
pub struct Due {
    /// After the start.
    pub at: Duration,
    /// To this domain; `None`: not in this run, so that the others come at the same times.
    pub domain: Option<usize>,
}

/// Messages by Zipf's law (exponent 1) over `domains`, evenly paced; the same seed draws the same.
pub fn schedule(domains: usize, per_second: f64, seconds: f64, seed: u64) -> Vec<Due> {
    let mut sums = Vec::with_capacity(domains);
    let mut sum = 0.0;
    for rank in 1..=domains {
        sum += 1.0 / rank as f64;
        sums.push(sum);
    }
    let mut state = seed;
    let mut draw = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 11) as f64 / (1_u64 << 53) as f64
    };
    let count = (per_second * seconds) as usize;
    (0..count)
        .map(|number| {
            let drawn = draw() * sum;
            let domain = sums.partition_point(|sum_here| *sum_here < drawn).min(domains - 1);
            Due { at: Duration::from_secs_f64(number as f64 / per_second), domain: Some(domain) }
        })
        .collect()
}

/// What was sent.
#[derive(Debug, Default)]
pub struct Sent {
    /// Answered with 250.
    pub accepted: Cell<u64>,
    /// The number of each and when its 250 was read.
    pub answered: RefCell<Vec<(usize, Instant)>>,
    /// Longest time that a message was sent after it was due.
    pub late_max: Cell<Duration>,
}

/// Sends the schedule over `sessions` connections. Ends when all of it is answered.
///
/// # Errors
/// A connection that breaks or an answer that is not the expected one: the engine has to take everything.
pub async fn send(to: SocketAddr, schedule: Rc<Vec<Due>>, sessions: usize, began: Instant, sent: Rc<Sent>) -> io::Result<()> {
    let next = Rc::new(Cell::new(0_usize));
    let mut tasks = Vec::new();
    for _ in 0..sessions {
        let (schedule, next, sent) = (schedule.clone(), next.clone(), sent.clone());
        tasks.push(tokio::task::spawn_local(session(to, schedule, next, began, sent)));
    }
    for task in tasks {
        task.await.map_err(io::Error::other)??;
    }
    Ok(())
}

async fn session(to: SocketAddr, schedule: Rc<Vec<Due>>, next: Rc<Cell<usize>>, began: Instant, sent: Rc<Sent>) -> io::Result<()> {
    let mut stream = TcpStream::connect(to).await?;
    stream.set_nodelay(true)?;
    let (read, mut write) = stream.split();
    let mut read = BufReader::new(read);
    expect(&mut read, "220").await?;
    write.write_all(b"EHLO source.test\r\n").await?;
    expect(&mut read, "250").await?;
    loop {
        let number = next.get();
        let Some(due) = schedule.get(number) else { break };
        next.set(number + 1);
        let Some(domain) = due.domain else { continue };
        tokio::time::sleep_until((began + due.at).into()).await;
        let late = Instant::now().saturating_duration_since(began + due.at);
        sent.late_max.set(sent.late_max.get().max(late));
        let commands = format!("MAIL FROM:<s{number}@x.test>\r\nRCPT TO:<r{number}@d{domain}.test>\r\nDATA\r\n");
        write.write_all(commands.as_bytes()).await?;
        for code in ["250", "250", "354"] {
            expect(&mut read, code).await?;
        }
        let sent_us = Instant::now().duration_since(began).as_micros();
        let body = "A line of text that is as long as the lines of most messages are.\r\n".repeat(15);
        let content = format!("Subject: {number}\r\nX-Sent: {sent_us}\r\n\r\n{body}.\r\n");
        write.write_all(content.as_bytes()).await?;
        expect(&mut read, "250").await?;
        sent.answered.borrow_mut().push((number, Instant::now()));
        sent.accepted.set(sent.accepted.get() + 1);
    }
    write.write_all(b"QUIT\r\n").await?;
    expect(&mut read, "221").await
}

async fn expect(read: &mut (impl AsyncBufReadExt + Unpin), code: &str) -> io::Result<()> {
    let mut line = String::new();
    loop {
        line.clear();
        if read.read_line(&mut line).await? == 0 {
            return Err(io::Error::other(format!("the engine closed the connection before {code}")));
        }
        if !line.starts_with(code) {
            return Err(io::Error::other(format!("the engine answered {:?}, not {code}", line.trim_end())));
        }
        if line.as_bytes().get(3) != Some(&b'-') {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_domain_gets_most_and_the_same_seed_draws_the_same() {
        let drawn = schedule(1000, 1000.0, 10.0, 7);
        let of = |domain| drawn.iter().filter(|due| due.domain == Some(domain)).count();
        assert_eq!(drawn.len(), 10_000);
        assert!((1200..1500).contains(&of(0)), "{}", of(0));
        assert!(of(0) > of(9) && of(9) > of(500));
        let again = schedule(1000, 1000.0, 10.0, 7);
        assert!(drawn.iter().zip(&again).all(|(one, other)| one.domain == other.domain && one.at == other.at));
    }
}
