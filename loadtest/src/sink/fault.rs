//! What the sink does wrong on purpose: refusals, drops, broken replies and silence at a chosen stage, with a probability.

use std::{fmt, str::FromStr};

use crate::{random::Random, source::host::Stage};

/// What happens instead of the good reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultKind {
    /// This code, 400 to 599. 421 also closes.
    Reply(u16),
    /// The connection is closed without a reply.
    Drop,
    /// Something that is no reply, and the session goes on.
    Garble,
    /// The beginning of a reply, then the connection is closed.
    Half,
    /// No reply, now and later; the connection stays.
    Silence,
}

/// One thing that goes wrong.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Fault {
    /// In place of which reply; at `content`: while the content arrives.
    pub stage: Stage,
    /// What happens.
    pub kind: FaultKind,
    /// How often, 0 to 1.
    pub probability: f64,
}

/// What a text for a fault may look like.
pub const FAULT_FORM: &str =
    "STAGE:WHAT:PROBABILITY with STAGE banner, ehlo, mail, rcpt, data, content or dot, and WHAT 400 to 599, drop, garble, half or silence";

impl FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Fault, String> {
        let wrong = || format!("{text:?} is no fault; faults are {FAULT_FORM}");
        let words: Vec<&str> = text.split(':').collect();
        let [stage, kind, probability] = words[..] else { return Err(wrong()) };
        let kind = match kind {
            "drop" => FaultKind::Drop,
            "garble" => FaultKind::Garble,
            "half" => FaultKind::Half,
            "silence" => FaultKind::Silence,
            code => FaultKind::Reply(code.parse().ok().filter(|code| (400..=599).contains(code)).ok_or_else(wrong)?),
        };
        let stage: Stage = stage.parse().map_err(|_| wrong())?;
        if stage == Stage::Content && kind != FaultKind::Drop {
            return Err(format!("{text:?}: nothing is answered while content arrives, so that content:drop is all there is"));
        }
        let probability = probability.parse().ok().filter(|p: &f64| (0.0..=1.0).contains(p)).ok_or_else(wrong)?;
        Ok(Fault { stage, kind, probability })
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            FaultKind::Reply(code) => code.to_string(),
            FaultKind::Drop => "drop".into(),
            FaultKind::Garble => "garble".into(),
            FaultKind::Half => "half".into(),
            FaultKind::Silence => "silence".into(),
        };
        write!(f, "{}:{kind}:{}", self.stage, self.probability)
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
        for text in ["mail:451:0.1", "content:drop:1", "dot:silence:0.5", "rcpt:garble:0.25", "banner:half:0"] {
            assert_eq!(text.parse::<Fault>().unwrap().to_string(), text);
        }
        for text in ["", "mail:250:1", "quit:451:1", "mail:451", "mail:451:2", "content:451:1", "mail:explode:1"] {
            assert!(text.parse::<Fault>().is_err(), "{text}");
        }
        let faults = Faults::new(vec!["dot:451:0.5".parse().unwrap(), "dot:drop:1".parse().unwrap()]);
        let mut random = Random::new(1);
        let refused = (0..1000).filter(|_| faults.draw(Stage::Dot, &mut random) == Some(FaultKind::Reply(451))).count();
        assert!((400..600).contains(&refused));
        assert_eq!(faults.draw(Stage::Mail, &mut random), None);
    }
}
