//! `ringpost dns DOMAIN`: where mail for a domain goes by the settings at hand, asked anew, without the engine.

use std::{path::Path, process::ExitCode};

use ringpost_engine::routes::table;
use ringpost_queue::{HostAddress, Mail, NextHop, Question, Resolution, Route, RouteId, Via};
use ringpost_smtp::shown::shown;
use serde::Serialize;

use crate::{
    cli::{EXIT_NEGATIVE, EXIT_OK, Output},
    dns::Dns,
    node::{self, StartConfig},
    queue_cli::{say, say_json},
    queue_filter,
};

/// Routes for other senders that are shown to people at most.
const OTHERS_SHOWN_MAX: usize = 20;

/// What is printed with `--json`.
#[derive(Serialize)]
struct View {
    domain: String,
    /// Null: a sender that no route names.
    sender: Option<String>,
    /// The name of the route; absent: none is for this mail.
    #[serde(skip_serializing_if = "Option::is_none")]
    route: Option<String>,
    /// What the route does, as in the file.
    via: &'static str,
    /// The routes that mail for this domain goes by when a sender has it that they name; only where none was asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    for_senders: Vec<RouteView>,
    /// Whose settings these are.
    settings: String,
    #[serde(flatten)]
    goes: Goes,
}

#[derive(Serialize)]
struct RouteView {
    route: String,
    via: &'static str,
}

/// Where the mail goes.
#[derive(Serialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
enum Goes {
    /// To the first of these hosts that answers.
    Site {
        /// Of the site, the same for all domains with the same MX set; absent where the route names the addresses.
        #[serde(skip_serializing_if = "Option::is_none")]
        site: Option<String>,
        hosts: Vec<HostView>,
        /// How long the answer holds, seconds; absent: while the settings say so.
        #[serde(skip_serializing_if = "Option::is_none")]
        ttl_s: Option<u64>,
    },
    /// Nowhere: the reply that it fails with.
    Refused { reason: String, ttl_s: u64 },
    /// Nowhere for now.
    Unanswered { reason: String },
    /// It stays in the queue.
    Held,
    /// It is thrown away.
    Discarded,
    /// Into files.
    Maildir { path: String },
}

#[derive(Serialize)]
struct HostView {
    preference: u32,
    name: String,
    address: String,
}

impl From<NextHop> for HostView {
    fn from(hop: NextHop) -> Self {
        let address = match hop.address {
            HostAddress::Tcp(address) => address.to_string(),
            HostAddress::Unix(path) => path.display().to_string(),
        };
        HostView { preference: hop.preference, name: hop.name, address }
    }
}

impl From<&Route> for RouteView {
    fn from(route: &Route) -> Self {
        RouteView { route: route.pattern.clone(), via: word_of(route) }
    }
}

/// What can be asked about: a domain, with a final dot or without, or an address literal in brackets.
pub fn domain(text: &str) -> Result<String, String> {
    let wrong = |why: &str| Err(format!("{why}: write a domain, for instance example.org, or an address literal in brackets, [192.0.2.1]"));
    match text {
        "" => return wrong("is empty"),
        _ if text.contains('@') => return wrong("is a mail address"),
        _ if text.parse::<std::net::IpAddr>().is_ok() => return wrong("is an address without its brackets"),
        _ => {}
    }
    queue_filter::domain(text).map(|domain| domain.to_lowercase()).or_else(|_| wrong("is no domain"))
}

/// Looks the route up, asks DNS where it does, and prints. The exit code says whether there is somewhere to go.
pub fn dns(start: &StartConfig, domain: &str, sender: Option<&str>, output: Output) -> Result<ExitCode, String> {
    let routes = table(&start.config).map_err(|reason| format!("route: {reason}"))?;
    let found = match sender {
        Some(sender) => routes.find_mail(Mail { reverse_path: sender.as_bytes(), domain: domain.as_bytes() }),
        None => routes.find(domain.as_bytes()),
    };
    let route_of = |id: RouteId| &routes.all()[usize::from(id.0)];
    let route = found.map(route_of);
    let for_senders = match sender {
        Some(_) => Vec::new(),
        None => routes.find_for_senders(domain.as_bytes()).map(route_of).map(RouteView::from).collect(),
    };
    let view = View {
        domain: domain.to_owned(),
        sender: sender.map(str::to_owned),
        route: route.map(|route| route.pattern.clone()),
        via: route.map_or("hold", word_of),
        for_senders,
        settings: settings_of(start),
        goes: goes(start, route, domain)?,
    };
    if output.json {
        say_json(&serde_json::to_string(&view).expect("a view is plain data"));
    } else {
        text_of(&view).lines().for_each(|line| say(&shown(line)));
        if !start.config.delivery.deliver {
            say("this node delivers nothing itself (delivery.deliver = false): the node that takes the mail over goes by its own settings");
        }
        if let Some(reason) = &start.unfit {
            say(&format!("what was pushed to all nodes does not go with the file and is left out: {}", shown(reason)));
        }
    }
    let goes_on = matches!(view.goes, Goes::Site { .. } | Goes::Discarded | Goes::Maildir { .. });
    Ok(ExitCode::from(if goes_on { EXIT_OK } else { EXIT_NEGATIVE }))
}

fn goes(start: &StartConfig, route: Option<&Route>, domain: &str) -> Result<Goes, String> {
    let question = match route.map(|route| &route.via) {
        None | Some(Via::Hold) => return Ok(Goes::Held),
        Some(Via::Discard) => return Ok(Goes::Discarded),
        Some(Via::Maildir { path, .. }) => return Ok(Goes::Maildir { path: path.display().to_string() }),
        Some(Via::Smarthost { hosts } | Via::Lmtp { hosts }) => {
            return Ok(Goes::Site { site: None, hosts: hosts.iter().cloned().map(HostView::from).collect(), ttl_s: None });
        }
        Some(Via::Named { hosts }) => Question::Hosts(hosts.clone()),
        Some(Via::Mx { port }) => Question::Mx { domain: domain.to_owned(), port: *port, turn: 0 },
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|reason| reason.to_string())?;
    let config = &start.config;
    let resolution = runtime.block_on(async {
        let dns = Dns::new(config, &config.hostname.clone().unwrap_or_else(node::machine_name))?;
        Ok::<_, String>(dns.resolve(question).await)
    })?;
    Ok(match resolution {
        Resolution::Site { key, hosts, until, .. } => {
            Goes::Site { site: Some(key), hosts: hosts.into_iter().map(HostView::from).collect(), ttl_s: Some(until / 1000) }
        }
        Resolution::Refused { reply, until } => Goes::Refused { reason: reply, ttl_s: until / 1000 },
        Resolution::Unanswered { reason, .. } => Goes::Unanswered { reason },
        Resolution::Awaited => unreachable!("it is no answer of DNS"),
    })
}

/// `via` as it stands in the file.
fn word_of(route: &Route) -> &'static str {
    match route.via {
        Via::Smarthost { .. } | Via::Named { .. } => "smarthost",
        Via::Lmtp { .. } => "lmtp",
        Via::Maildir { .. } => "maildir",
        Via::Mx { .. } => "mx",
        Via::Discard => "discard",
        Via::Hold => "hold",
    }
}

fn settings_of(start: &StartConfig) -> String {
    let path = start.config.path();
    let file = if path == Path::new("") { "the defaults, for want of a config file".to_owned() } else { path.display().to_string() };
    if start.pushed.is_empty() { file } else { format!("{file} and what was pushed to all nodes") }
}

fn text_of(view: &View) -> String {
    let from = match view.sender.as_deref() {
        None => String::new(),
        Some("") => " from <>".to_owned(),
        Some(sender) => format!(" from {sender}"),
    };
    let about = format!("mail for {}{from}", view.domain);
    let goes = match &view.goes {
        Goes::Refused { reason, .. } => format!("{about} fails: {reason}\n"),
        Goes::Unanswered { reason } => format!("{about} waits: {reason}\n"),
        Goes::Held => format!("{about} is held: it stays in the queue\n"),
        Goes::Discarded => format!("{about} is discarded: it counts as delivered and is thrown away\n"),
        Goes::Maildir { path } => format!("{about} is written into {path}\n"),
        Goes::Site { site, hosts, ttl_s } => {
            let hosts: String = hosts.iter().map(|host| format!("{:>6}  {}\n", host.preference, host.name)).collect();
            let site = site.as_ref().map(|site| format!("site {site:?}, holds for {} s\n", ttl_s.unwrap_or(0))).unwrap_or_default();
            format!("{about} goes to the first of these that answers:\n{hosts}{site}")
        }
    };
    let route = match &view.route {
        Some(name) => format!("by route {name:?} (via = \"{}\")", view.via),
        None => "no route is for it".to_owned(),
    };
    let mut others = String::new();
    if !view.for_senders.is_empty() {
        others.push_str(", for senders that no route names; for others:\n");
        for RouteView { route, via } in view.for_senders.iter().take(OTHERS_SHOWN_MAX) {
            others.push_str(&format!("  route {route:?} (via = \"{via}\")\n"));
        }
        if let Some(more @ 1..) = view.for_senders.len().checked_sub(OTHERS_SHOWN_MAX) {
            others.push_str(&format!("  and {more} more\n"));
        }
        others.push_str("--sender ADDRESS says where the mail of one goes");
    }
    format!("{goes}{route}{others}\nread from {}; a running engine has changes of it after `ringpost reload`\n", view.settings)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_domain_is_refused_with_what_it_is() {
        for (text, read) in [("Example.org.", "example.org"), ("[192.0.2.1]", "[192.0.2.1]"), ("localhost", "localhost")] {
            assert_eq!(domain(text).as_deref(), Ok(read), "{text}");
        }
        for (text, why) in [
            ("", "is empty: "),
            ("a@x.test", "is a mail address: "),
            ("192.0.2.1", "is an address without its brackets: "),
            ("::1", "is an address without its brackets: "),
            ("a b", "is no domain: "),
            (".", "is no domain: "),
            ("x..test", "is no domain: "),
            ("[192.0.2.1", "is no domain: "),
        ] {
            let said = domain(text).unwrap_err();
            assert!(said.starts_with(why) && said.contains(": write "), "{text:?}: {said}");
        }
    }
}
