//! Whom messages go to: recipients spread over domains, evenly or by Zipf's law.

use std::{fmt, str::FromStr};

use crate::{
    identity::push_decimal,
    random::{Random, Zipf},
};

/// Domains that one load may have.
pub const DOMAINS_MAX: usize = 1_000_000;

/// How recipients choose among the domains.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Spread {
    /// Each domain as often as another.
    Uniform,
    /// Few large and many small ones; the exponent is about 1 for mail.
    Zipf(f64),
}

impl FromStr for Spread {
    type Err = String;

    fn from_str(text: &str) -> Result<Spread, String> {
        match text.split_once(':') {
            None if text == "uniform" => Ok(Spread::Uniform),
            None if text == "zipf" => Ok(Spread::Zipf(1.0)),
            Some(("zipf", exponent)) => {
                let exponent = exponent.parse().ok().filter(|exponent: &f64| (0.0..=10.0).contains(exponent));
                exponent.map(Spread::Zipf).ok_or_else(|| format!("{text:?}: the exponent is a number from 0 to 10"))
            }
            _ => Err(format!("{text:?} is neither uniform nor zipf[:EXPONENT]")),
        }
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Spread::Uniform => f.write_str("uniform"),
            Spread::Zipf(exponent) => write!(f, "zipf:{exponent}"),
        }
    }
}

/// Recipients of a load. With one domain it is `domain` itself; else domain number k is `d<k>.<domain>`.
#[derive(Debug, Clone, PartialEq)]
pub struct RecipientPlan {
    /// Recipients of each message, at least 1.
    pub per_message: usize,
    /// How many domains, at least 1.
    pub domains: usize,
    /// How they are chosen.
    pub spread: Spread,
    /// What all names end in.
    pub domain: String,
    /// Mailboxes per domain that messages go to in turn.
    pub mailboxes: u64,
}

impl Default for RecipientPlan {
    fn default() -> RecipientPlan {
        RecipientPlan { per_message: 1, domains: 1, spread: Spread::Uniform, domain: "load.test".into(), mailboxes: 1000 }
    }
}

/// Chooses recipients, for one core.
#[derive(Debug, Clone)]
pub struct Recipients {
    plan: RecipientPlan,
    zipf: Option<Zipf>,
    random: Random,
    next: u64,
}

impl Recipients {
    /// The recipients of core `part`.
    pub fn new(plan: &RecipientPlan, seed: u64, part: u64) -> Recipients {
        let zipf = match plan.spread {
            Spread::Zipf(exponent) if plan.domains > 1 => Some(Zipf::new(plan.domains, exponent)),
            _ => None,
        };
        Recipients { plan: plan.clone(), zipf, random: Random::part(!seed, part), next: 0 }
    }

    /// How many a message has.
    pub fn per_message(&self) -> usize {
        self.plan.per_message
    }

    /// Appends the next forward-path, without brackets. The mailbox number goes up by one, so that those of one message differ.
    pub fn push_next(&mut self, out: &mut Vec<u8>) {
        out.push(b'r');
        push_decimal(self.next % self.plan.mailboxes.max(self.plan.per_message as u64), out);
        self.next += 1;
        out.push(b'@');
        if self.plan.domains > 1 {
            let domain = match &self.zipf {
                Some(zipf) => zipf.draw(&mut self.random) as u64,
                None => self.random.below(self.plan.domains as u64),
            };
            out.push(b'd');
            push_decimal(domain, out);
            out.push(b'.');
        }
        out.extend_from_slice(self.plan.domain.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    fn drawn(plan: &RecipientPlan, count: usize) -> Vec<String> {
        let mut recipients = Recipients::new(plan, 1, 0);
        let one = |_| {
            let mut out = Vec::new();
            recipients.push_next(&mut out);
            String::from_utf8(out).unwrap()
        };
        (0..count).map(one).collect()
    }

    #[test]
    fn one_domain_is_named_as_given_and_recipients_of_a_message_differ() {
        let plan = RecipientPlan { per_message: 3, mailboxes: 1, ..RecipientPlan::default() };
        assert_eq!(drawn(&plan, 4), ["r0@load.test", "r1@load.test", "r2@load.test", "r0@load.test"]);
    }

    #[test]
    fn zipf_makes_the_first_domain_the_largest() {
        let plan = RecipientPlan { domains: 10, spread: "zipf:1".parse().unwrap(), ..RecipientPlan::default() };
        let mut counts: HashMap<String, u32> = HashMap::new();
        for path in drawn(&plan, 5000) {
            *counts.entry(path.split_once('@').unwrap().1.to_string()).or_default() += 1;
        }
        assert_eq!(counts.len(), 10);
        assert!(counts["d0.load.test"] > 4 * counts["d9.load.test"]);
    }

    #[test]
    fn spreads_are_read() {
        assert_eq!("zipf".parse(), Ok(Spread::Zipf(1.0)));
        assert_eq!("zipf:0.8".parse::<Spread>().unwrap().to_string(), "zipf:0.8");
        assert!("zipf:x".parse::<Spread>().is_err() && "even".parse::<Spread>().is_err());
    }
}
