//! `ringpost dns DOMAIN`: what the resolver says about a domain, asked anew, without the engine.

use std::{net::IpAddr, process::ExitCode};

use ringpost_config::{Config, Via};
use ringpost_engine::routes::named_hosts;
use ringpost_queue::{HostAddress, Question, Resolution};
use serde::Serialize;

use crate::{
    cli::{EXIT_NEGATIVE, EXIT_OK, Output},
    dns::Dns,
    node,
    queue_cli::say,
};

/// What is printed with `--json`.
#[derive(Serialize)]
struct View {
    domain: String,
    /// `site`, `refused` or `unanswered`.
    outcome: &'static str,
    /// Of the site, the same for all domains with the same MX set.
    #[serde(skip_serializing_if = "Option::is_none")]
    site: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    hosts: Vec<HostView>,
    /// The reply that the mail would fail with, or why it would wait.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// How long the answer holds, seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    ttl_s: Option<u64>,
}

#[derive(Serialize)]
struct HostView {
    preference: u32,
    name: String,
    address: String,
}

/// Asks and prints, of a domain whose route names its hosts about those. The exit code says whether there is a host.
pub fn dns(config: &Config, domain: &str, output: Output) -> Result<ExitCode, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|reason| reason.to_string())?;
    let domain = domain.trim_end_matches('.').to_lowercase();
    if domain.is_empty() || domain.contains(['@', ' ']) || domain.parse::<IpAddr>().is_ok() {
        return Err(format!("{domain:?} is no domain: write example.org, or an address literal in brackets"));
    }
    let question = match config.routes.get(&domain).map(|route| &route.via) {
        Some(Via::Smarthost { hosts }) => Question::Hosts(named_hosts(hosts)),
        Some(Via::Mx { port }) => Question::Mx { domain: domain.clone(), port: *port },
        _ => Question::Mx { domain: domain.clone(), port: ringpost_config::SMTP_PORT },
    };
    let resolution = runtime.block_on(async {
        let dns = Dns::new(config, &config.hostname.clone().unwrap_or_else(node::machine_name))?;
        Ok::<_, String>(dns.resolve(question).await)
    })?;
    let view = view_of(domain, resolution);
    let code = if view.outcome == "site" { EXIT_OK } else { EXIT_NEGATIVE };
    if output.json {
        say(&serde_json::to_string(&view).expect("a view is plain data"));
    } else {
        say(text_of(&view).trim_end());
    }
    Ok(ExitCode::from(code))
}

fn view_of(domain: String, resolution: Resolution) -> View {
    match resolution {
        Resolution::Site { key, hosts, until, .. } => View {
            domain,
            outcome: "site",
            site: Some(key),
            hosts: hosts
                .into_iter()
                .map(|hop| HostView {
                    preference: hop.preference,
                    address: match hop.address {
                        HostAddress::Tcp(address) => address.to_string(),
                        HostAddress::Unix(path) => path.display().to_string(),
                    },
                    name: hop.name,
                })
                .collect(),
            reason: None,
            ttl_s: Some(until / 1000),
        },
        Resolution::Refused { reply, until } => {
            View { domain, outcome: "refused", site: None, hosts: Vec::new(), reason: Some(reply), ttl_s: Some(until / 1000) }
        }
        Resolution::Unanswered { reason } => {
            View { domain, outcome: "unanswered", site: None, hosts: Vec::new(), reason: Some(reason), ttl_s: None }
        }
    }
}

fn text_of(view: &View) -> String {
    match (&view.reason, view.outcome) {
        (Some(reason), "refused") => format!("mail for {} fails: {reason}\n", view.domain),
        (Some(reason), _) => format!("mail for {} waits: {reason}\n", view.domain),
        (None, _) => {
            let hosts: String = view.hosts.iter().map(|host| format!("{:>6}  {}\n", host.preference, host.name)).collect();
            let site = view.site.as_deref().unwrap_or_default();
            format!(
                "mail for {} goes to the first of these that answers:\n{hosts}site {site:?}, holds for {} s\n",
                view.domain,
                view.ttl_s.unwrap_or(0)
            )
        }
    }
}
