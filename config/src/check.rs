//! Contradictions between keys that are each right by themselves.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use crate::route::ROUTE_NAMES_MAX;
use crate::section::Document;
use crate::{
    Config, DeliveryMode, Domain, DomainPattern, Listener, OFFERED_CONTENT_MAX, ROUTE_NAME_BYTES_MAX, Relay, Retry, Route, Routes,
    format_duration,
};

/// No address twice, and one limit for a tag. An unreadable listener is None, so that the numbers stay those of the file.
pub(crate) fn listeners(document: &Document<'_>, listeners: Option<&[Option<Listener>]>) {
    let Some(listeners) = listeners else { return };
    if listeners.is_empty() {
        document.refuse("listener", "is empty: without it Ringpost listens on 127.0.0.1:2525, with it on what it names");
    }
    let mut addresses = BTreeMap::new();
    let mut names = BTreeMap::new();
    let mut limits = BTreeMap::new();
    for (index, listener) in (1..).zip(listeners) {
        let Some(listener) = listener else { continue };
        if let (Some(tag), Some(limit)) = (listener.tag.as_deref(), listener.cluster_messages_per_minute) {
            let (first, other) = *limits.entry(tag).or_insert((index, limit));
            if other != limit {
                let line = document.line(&format!("listener[{first}].cluster_messages_per_minute"));
                let key = format!("listener[{index}].cluster_messages_per_minute");
                document.refuse(
                    &key,
                    format!("is another limit than line {line} has for the tag \"{tag}\": a tag is one tenant with one limit"),
                );
            }
        }
        if let Some(first) = addresses.insert(listener.address, index) {
            let line = document.line(&format!("listener[{first}].address"));
            document.refuse(&format!("listener[{index}].address"), format!("is listened on already, see line {line}"));
        } else if let Some(first) = names.insert(listener.name.as_str(), index) {
            let line = document.line(&format!("listener[{first}]"));
            document.refuse(&format!("listener[{index}].name"), format!("names another listener already, see line {line}"));
        }
    }
}

/// No domain twice.
pub(crate) fn domains(document: &Document<'_>, domains: &[Option<Domain>]) {
    let mut names = BTreeMap::new();
    for (index, domain) in (1..).zip(domains) {
        let Some(domain) = domain else { continue };
        if let Some(first) = names.insert(domain.name(), index) {
            let line = document.line(&format!("domain[{first}].name"));
            document.refuse(&format!("domain[{index}].name"), format!("has a [[domain]] already, see line {line}"));
        }
    }
}

/// No pattern twice, and a route for whatever can be accepted.
pub(crate) fn routes(document: &Document<'_>, routes: Option<&[Option<Route>]>, domains: &[Option<Domain>], relay: &Relay) {
    let Some(routes) = routes else { return };
    let mut names = BTreeMap::new();
    for (index, route) in (1..).zip(routes) {
        let Some(route) = route else { continue };
        for name in route.names() {
            let key = format!("route[{index}].domain");
            if name.len() > ROUTE_NAME_BYTES_MAX {
                document.refuse(&key, format!("and the sender are together longer than {ROUTE_NAME_BYTES_MAX} bytes: {name}"));
            }
            match names.entry(name) {
                Entry::Occupied(other) => {
                    let line = document.line(&format!("route[{}].domain", other.get()));
                    document.refuse(&key, format!("repeats {}, which has a route already, see line {line}", other.key()));
                }
                Entry::Vacant(place) => drop(place.insert(index)),
            }
        }
        retry(document, &format!("route[{index}]"), &route.retry);
    }
    if names.len() > ROUTE_NAMES_MAX {
        document.refuse("route", format!("has {} pairs of domain and sender: more than {ROUTE_NAMES_MAX}", names.len()));
    }
    // A route that could not be read may be the one that is missing: its own error is enough.
    if routes.iter().any(Option::is_none) || names.contains_key(&DomainPattern::Any.to_string()) {
        return;
    }
    if !relay.networks.is_empty() {
        let message = "lacks one for \"*\", where relay.networks may send to: add a [[route]] with domain = \"*\" and without sender (via = \"hold\" keeps such mail), \
                       or write networks = [] in [relay]";
        document.refuse("route", message);
    }
    let table = Routes::new(routes.iter().flatten().cloned().collect());
    for (index, domain) in (1..).zip(domains) {
        if let Some(domain) = domain
            && table.get(domain.name()).is_none()
        {
            document.refuse(&format!("domain[{index}].name"), "has no route: add a [[route]] for it or for \"*\"");
        }
    }
}

/// Checks across sections.
pub(crate) fn sections(document: &Document<'_>, config: &Config) {
    let (spool, smtp) = (&config.spool, &config.smtp);
    if spool.open_max < smtp.content_max {
        let key = if document.line("spool.open_max") > 0 { "spool.open_max" } else { "smtp.content_max" };
        let message = format!(
            "does not fit: spool.open_max ({}) holds the content of open transactions, smtp.content_max ({}) is one of them",
            spool.open_max, smtp.content_max
        );
        document.refuse(key, message);
    }
    if let Some((local_part, domain)) = smtp.postmaster.as_deref().and_then(|address| address.rsplit_once('@'))
        && !config.domains.get(domain).is_some_and(|own| own.accepts(local_part))
    {
        document.refuse(
            "smtp.postmaster",
            "is not taken here: it must be an address of a [[domain]], and one of its recipients where it lists them",
        );
    }
    if smtp.bad_commands_max < smtp.bad_commands_soft {
        let key = if document.line("smtp.bad_commands_max") > 0 { "smtp.bad_commands_max" } else { "smtp.bad_commands_soft" };
        let message = format!(
            "is a contradiction: smtp.bad_commands_max ({}) is less than smtp.bad_commands_soft ({})",
            smtp.bad_commands_max, smtp.bad_commands_soft
        );
        document.refuse(key, message);
    }
    if smtp.path_max.bytes() < smtp.local_part_max.bytes() + 1 {
        document.refuse("smtp.path_max", format!("is less than a local part of smtp.local_part_max ({}) and @", smtp.local_part_max));
    }
    retry(document, "queue", &config.queue.retry);
    if !config.delivery.deliver && smtp.content_max > OFFERED_CONTENT_MAX {
        let message = format!(
            "does not fit: with delivery.deliver = false all mail is handed to other nodes, and content above {OFFERED_CONTENT_MAX} cannot be; \
             leave it out or write \"{OFFERED_CONTENT_MAX}\" at most"
        );
        document.refuse("smtp.content_max", message);
    }
    if config.delivery.mode == DeliveryMode::Shared && !config.cluster.enabled {
        document.refuse("delivery.mode", "needs a cluster: set cluster.enabled = true");
    }
}

/// `section` is where the settings stand: `queue`, or a route that overrides it.
fn retry(document: &Document<'_>, section: &str, retry: &Retry) {
    if retry.base <= retry.cap {
        return;
    }
    // Where neither key stands in a route, they come from [queue], and are reported there.
    let keys = ["retry_base", "retry_cap"].map(|key| format!("{section}.{key}"));
    let Some(key) = keys.iter().find(|key| document.line(key) > 0) else { return };
    let (base, cap) = (format_duration(retry.base), format_duration(retry.cap));
    document.refuse(key, format!("is a contradiction: retry_base ({base}) is more than retry_cap ({cap})"));
}
