//! What the sink does wrong on purpose: refusals, drops, broken replies and silence at a chosen stage, with a probability.

use std::{fmt, str::FromStr};

use crate::{random::Random, source::host::Stage};

/// What happens instead of the good reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultKind {
    /// This code, 400 to 599. 421 also closes; behind another instead of a banner there is no mail, and QUIT is waited for.
    Reply(u16),
    /// The connection is reset without a reply. A message is not taken.
    Drop,
    /// The connection is reset without a reply to a message that was taken: whoever sends it again doubles it.
    Lose,
    /// The good reply, then the connection is closed.
    Close,
    /// Something that is no reply, and the session goes on.
    Garble,
    /// The first half of the good reply, then the connection is closed. A message is not taken.
    Half,
    /// No reply, now and later; the connection stays. A message is not taken.
    Silence,
}

/// All but the replies.
const NAMED: [FaultKind; 6] = [FaultKind::Drop, FaultKind::Lose, FaultKind::Close, FaultKind::Garble, FaultKind::Half, FaultKind::Silence];

impl FaultKind {
    /// Does it end the connection in a way that the client did not ask for?
    pub fn ends_connection(self) -> bool {
        matches!(self, FaultKind::Drop | FaultKind::Lose | FaultKind::Close | FaultKind::Half)
    }
}

/// One thing that goes wrong.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Fault {
    /// In place of which reply; at `content`: with its first octets, once for each message.
    pub stage: Stage,
    /// What happens.
    pub kind: FaultKind,
    /// How often, 0 to 1.
    pub probability: f64,
}

impl fmt::Display for FaultKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FaultKind::Reply(code) => write!(f, "{code}"),
            FaultKind::Drop => f.write_str("drop"),
            FaultKind::Lose => f.write_str("lose"),
            FaultKind::Close => f.write_str("close"),
            FaultKind::Garble => f.write_str("garble"),
            FaultKind::Half => f.write_str("half"),
            FaultKind::Silence => f.write_str("silence"),
        }
    }
}

/// What a text for a fault may look like.
pub const FAULT_FORM: &str = "STAGE:WHAT:PROBABILITY with STAGE banner, ehlo, mail, rcpt, data, content or dot, and WHAT 400 to 599, drop, \
lose, close, garble, half or silence";

/// The same for people who look for one.
pub const FAULT_HELP: &str = "What goes wrong: STAGE:WHAT:PROBABILITY. May be repeated; the first of a stage that happens counts.

STAGE, the reply in whose place it happens:
  banner   as soon as the connection is accepted
  ehlo     HELO and LHLO, too
  mail, rcpt, data
  content  with the first octets of the content; drawn once for each message (only drop)
  dot      when all of it is there (LMTP: for each recipient)

WHAT:
  400..599 that reply; 421 also closes. Behind another at banner all but QUIT gets 503, behind one at ehlo MAIL does until an EHLO or
           HELO is answered well
  drop     the connection is reset without a reply
  half     the first half of the good reply, then the connection is closed
  close    the good reply, then the connection is closed
  garble   rubbish instead of a reply, and the session goes on
  silence  nothing more is answered, and the connection stays
  lose     (dot) the message is taken, and the connection is reset without a reply

At dot a message is taken with close and lose only: whoever sends it again after lose doubles it, rightly; whoever takes half a reply
for one loses it.";

impl FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Fault, String> {
        let wrong = || format!("{text:?} is no fault; faults are {FAULT_FORM}");
        let words: Vec<&str> = text.split(':').collect();
        let [stage, kind, probability] = words[..] else { return Err(wrong()) };
        let kind = match NAMED.into_iter().find(|named| named.to_string() == kind) {
            Some(named) => named,
            None => FaultKind::Reply(kind.parse().ok().filter(|code| (400..=599).contains(code)).ok_or_else(wrong)?),
        };
        let stage: Stage = stage.parse().map_err(|_| wrong())?;
        if stage == Stage::Content && kind != FaultKind::Drop {
            return Err(format!("{text:?}: nothing is answered while content arrives, so that content:drop is all there is"));
        }
        if kind == FaultKind::Lose && stage != Stage::Dot {
            return Err(format!("{text:?}: what is taken and lost is a message, so that it is dot:lose"));
        }
        let probability = probability.parse().ok().filter(|p: &f64| (0.0..=1.0).contains(p)).ok_or_else(wrong)?;
        Ok(Fault { stage, kind, probability })
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.stage, self.kind, self.probability)
    }
}

/// All faults of a sink, by stage.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Faults(Vec<Fault>);

impl Faults {
    /// These.
    pub fn new(faults: Vec<Fault>) -> Faults {
        Faults(faults)
    }

    /// The first that refuses mail for good, so that whoever sends it bounces it.
    pub fn bounces(&self) -> Option<&Fault> {
        self.0.iter().find(|fault| matches!(fault.kind, FaultKind::Reply(500..)) && fault.probability > 0.0)
    }

    /// What goes wrong at this stage, this time.
    pub fn draw(&self, stage: Stage, random: &mut Random) -> Option<FaultKind> {
        self.0.iter().find(|fault| fault.stage == stage && random.happens(fault.probability)).map(|fault| fault.kind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_read_printed_and_drawn() {
        for text in ["mail:451:0.1", "content:drop:1", "dot:silence:0.5", "rcpt:garble:0.25", "banner:half:0", "dot:lose:1", "ehlo:close:1"]
        {
            assert_eq!(text.parse::<Fault>().unwrap().to_string(), text);
        }
        for text in
            ["", "mail:250:1", "quit:451:1", "mail:451", "mail:451:2", "content:451:1", "mail:explode:1", "mail:lose:1", "content:close:1"]
        {
            assert!(text.parse::<Fault>().is_err(), "{text}");
        }
        let faults = Faults::new(vec!["dot:451:0.5".parse().unwrap(), "dot:drop:1".parse().unwrap()]);
        let mut random = Random::new(1);
        let refused = (0..1000).filter(|_| faults.draw(Stage::Dot, &mut random) == Some(FaultKind::Reply(451))).count();
        assert!((400..600).contains(&refused));
        assert_eq!(faults.draw(Stage::Mail, &mut random), None);
    }
}
