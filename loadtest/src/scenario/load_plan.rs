//! What a scenario sends: sessions, their pace, and what their messages are made of.

use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::{
    addresses::{DOMAINS_MAX, RecipientPlan, Spread},
    content,
    ingredients::Ingredients,
    scenario::text::Text,
    schedule::Rate,
    sizes::Sizes,
    source::{
        SESSIONS_MAX, SourceOptions,
        arguments::{Cores, MILLISECONDS_MAX, RECIPIENTS_MAX, SECONDS_MAX, parse_abort},
        paused_open_loop,
    },
};

/// Sessions and what they send. The keys are those of `ringpost-load source`, but for `--lmtp`, `--linger` and `--gently`, and for `--domain`,
/// `--sender` and `--hello`, which are those that `source` has by itself. Its seed follows from that of the run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LoadPlan {
    /// Connections at once.
    pub sessions: usize,
    /// Messages in all; absent: until the time is over.
    pub messages: Option<u64>,
    /// Open loop; absent: closed loop.
    pub rate: Option<Text<Rate>>,
    /// Octets of a message; of `@FILE`, whose folder is the scenario's, what is in the file.
    pub size: Text<Sizes>,
    /// Messages per connection, 0: no limit.
    pub per_connection: u32,
    /// MAIL, RCPT, DATA and content are sent ahead.
    pub pipelining: bool,
    /// BDAT.
    pub chunking: bool,
    /// Recipients of a message.
    pub recipients: usize,
    /// Domains they are spread over.
    pub domains: usize,
    /// How.
    pub spread: Text<Spread>,
    /// Pause between two messages of a session, milliseconds; not with `rate`, which says when messages begin.
    pub think_ms: u64,
    /// Octets per second that a session sends.
    pub bytes_per_s: Option<u64>,
    /// Where sessions are given up: `STAGE:PROBABILITY`.
    pub abort: Vec<String>,
    /// A folder of .eml files instead of generated text. Paths are relative to the scenario's folder.
    pub corpus: Option<PathBuf>,
    /// A file with `{{seq}}` and `{{id}}` in it, instead.
    pub template: Option<PathBuf>,
    /// Header fields, `{{seq}}` and `{{id}}` allowed, instead.
    pub header: Vec<String>,
    /// Files to attach, instead.
    pub attach: Vec<PathBuf>,
    /// Local addresses that connections take in turn.
    pub from_address: Vec<IpAddr>,
    /// How long a connection or reply is waited for, seconds.
    pub timeout_s: f64,
}

impl Default for LoadPlan {
    fn default() -> LoadPlan {
        LoadPlan {
            sessions: 1,
            messages: None,
            rate: None,
            size: Text(Sizes::fixed(4096)),
            per_connection: 0,
            pipelining: true,
            chunking: false,
            recipients: 1,
            domains: 1,
            spread: Text(Spread::Uniform),
            think_ms: 0,
            bytes_per_s: None,
            abort: Vec::new(),
            corpus: None,
            template: None,
            header: Vec::new(),
            attach: Vec::new(),
            from_address: Vec::new(),
            timeout_s: 60.0,
        }
    }
}

impl LoadPlan {
    /// Can a load be this?
    ///
    /// # Errors
    /// Key, value and what is allowed; a file that is not there.
    pub(super) fn check(&self, folder: &Path) -> Result<(), String> {
        for (name, value) in [("sessions", self.sessions), ("recipients", self.recipients), ("domains", self.domains)] {
            if value == 0 {
                return Err(format!("{name} = 0: 1 at least"));
            }
        }
        for (name, value, most) in [("recipients", self.recipients, RECIPIENTS_MAX as usize), ("domains", self.domains, DOMAINS_MAX)] {
            if value > most {
                return Err(format!("{name} = {value}: {most} at most"));
            }
        }
        if self.messages == Some(0) {
            return Err("messages = 0: there is nothing to measure".into());
        }
        if !(self.timeout_s > 0.0 && self.timeout_s <= SECONDS_MAX) {
            return Err(format!("timeout_s = {:?} is no time above 0", self.timeout_s));
        }
        if self.bytes_per_s == Some(0) {
            return Err("bytes_per_s = 0: 1 at least; leave it out for senders that are not slow".into());
        }
        if self.think_ms > MILLISECONDS_MAX {
            return Err(format!("think_ms = {}: {MILLISECONDS_MAX} at most", self.think_ms));
        }
        if let (Some(rate), true) = (&self.rate, self.think_ms > 0) {
            return Err(paused_open_loop(&rate.0, "rate =", "think_ms"));
        }
        content::check_sizes(&self.size.0).map_err(|error| format!("size = {error}"))?;
        self.ingredients(folder).check()?;
        self.abort.iter().try_for_each(|abort| parse_abort(abort).map(drop)).map_err(|error| format!("abort = {error}"))?;
        self.ingredients(folder).check_content()
    }

    /// Can it be sent from here, by so many cores?
    ///
    /// # Errors
    /// Key, value and what is allowed.
    pub(super) fn check_here(&self, cores: usize) -> Result<(), String> {
        let most = SESSIONS_MAX * cores;
        if self.sessions > most {
            return Err(format!(
                "sessions = {}: {most} at most from {cores} core(s); name more of them (--cores), or ask for fewer",
                self.sessions
            ));
        }
        for address in &self.from_address {
            UdpSocket::bind((*address, 0)).map_err(|error| {
                format!("from_address = \"{address}\": {error}: it is no address of this machine; give it to one of its interfaces, or name another")
            })?;
        }
        Ok(())
    }

    fn ingredients<'a>(&'a self, folder: &'a Path) -> Ingredients<'a> {
        let (corpus, template) = (self.corpus.as_ref(), self.template.as_ref());
        Ingredients { folder, corpus, template, header: &self.header, attach: &self.attach, size: &self.size.0 }
    }

    /// The options of a source that does this, to `to` from these cores for `seconds`; `folder` is that of its scenario.
    ///
    /// # Errors
    /// A file of its content that cannot be read.
    pub fn options(&self, folder: &Path, to: SocketAddr, cores: &Cores, seconds: f64) -> Result<SourceOptions, String> {
        Ok(SourceOptions {
            cores: cores.0.clone(),
            sessions: self.sessions,
            messages: self.messages,
            duration: Some(Duration::from_secs_f64(seconds)),
            rate: self.rate.as_ref().map(|rate| rate.0),
            recipients: RecipientPlan {
                per_message: self.recipients,
                domains: self.domains,
                spread: self.spread.0,
                ..RecipientPlan::default()
            },
            pipelining: self.pipelining,
            chunking: self.chunking,
            per_connection: (self.per_connection > 0).then_some(self.per_connection),
            think: Duration::from_millis(self.think_ms),
            bytes_per_s: self.bytes_per_s,
            addresses: self.from_address.clone(),
            aborts: self.abort.iter().map(|abort| parse_abort(abort)).collect::<Result<_, _>>()?,
            timeout: Duration::from_secs_f64(self.timeout_s),
            ..SourceOptions::new(to, cores.0[0], self.ingredients(folder).read()?)
        })
    }
}
