//! Where Valkey is: one server, Sentinels that know the primary, or a cluster.
//!
//! `valkey://[user[:password]@]host[:port][/db]`, `valkeys://` with TLS (`redis://` and `rediss://` mean the same);
//! `valkey+sentinel://host:26379,host:26379/name[/db]` and `valkey+cluster://host:port,host:port`, with `s` after `valkey` for TLS.

use std::fmt;

use redis::{ConnectionInfo, IntoConnectionInfo, TlsCertificates};

use crate::valkey::roots_of;

/// A parsed `valkey_url`. Its text shows no password.
#[derive(Clone)]
pub struct Target {
    pub(crate) place: Place,
    pub(crate) certificates: Option<TlsCertificates>,
    pub(crate) uses_tls: bool,
    shown: String,
}

#[derive(Clone)]
pub(crate) enum Place {
    Single(ConnectionInfo),
    Sentinel { sentinels: Vec<ConnectionInfo>, name: String, node: ConnectionInfo },
    Cluster(Vec<ConnectionInfo>),
}

/// The most hosts in one URL.
const HOSTS_MAX: usize = 32;

impl Target {
    /// Reads a URL. `password` (from a file or the environment) takes the place of one in the URL; `ca` is PEM that the server's
    /// certificate must lead to, else the system's authorities.
    ///
    /// Fails with a sentence that goes on after the value.
    pub fn parse(url: &str, password: Option<&str>, ca: Option<Vec<u8>>) -> Result<Target, String> {
        let (scheme, rest) = url.split_once("://").ok_or("is not a URL: valkey://host:port")?;
        let (kind, form) = scheme.split_once('+').map_or((scheme, ""), |(kind, form)| (kind, form));
        let uses_tls = match kind {
            "valkey" | "redis" => false,
            "valkeys" | "rediss" => true,
            _ => return Err("starts with none of valkey://, valkeys://, redis://, rediss://".to_owned()),
        };
        let (user, rest) = rest.rsplit_once('@').map_or(("", rest), |(user, rest)| (user, rest));
        let (hosts, path) = rest.split_once('/').unwrap_or((rest, ""));
        let hosts: Vec<&str> = hosts.split(',').collect();
        if hosts.len() > HOSTS_MAX || hosts.iter().any(|host| host.is_empty()) {
            return Err(format!("names no host, an empty one, or more than {HOSTS_MAX}"));
        }
        // Not shown: where there is no @, it is a password.
        if hosts.iter().filter_map(|host| port_of(host)).any(|port| !port.parse::<u16>().is_ok_and(|port| port > 0)) {
            return Err("names a port that is no number from 1 to 65535: valkey://host:6379".to_owned());
        }
        if let Some((path, query)) = path.split_once('?')
            && !matches!(query, "protocol=resp2" | "protocol=resp3")
        {
            return Err(format!("has ?{query} behind it, which means nothing here: end it with /{path}"));
        }
        let user = match (user, password) {
            (user, Some(_)) => user.split(':').next().unwrap_or_default(),
            (user, None) => user,
        };
        let open = |host: &str, user: &str, path: &str| -> Result<ConnectionInfo, String> {
            let scheme = if uses_tls { "rediss" } else { "redis" };
            let at = if user.is_empty() { "" } else { "@" };
            let info = format!("{scheme}://{user}{at}{host}/{path}")
                .as_str()
                .into_connection_info()
                .map_err(|error| format!("is no URL of a Valkey: {error}"))?;
            let settings = info.redis_settings().clone();
            let settings = match password {
                Some(password) => settings.set_password(password),
                None => settings,
            };
            Ok(info.set_redis_settings(settings))
        };
        let place = match form {
            "" if hosts.len() == 1 && !is_database(path.split('?').next().unwrap_or_default()) => {
                return Err(format!("names {path:?} as the database, which is a number from 0 on: /3"));
            }
            "" if hosts.len() == 1 => Place::Single(open(hosts[0], user, path)?),
            "" => return Err("names several hosts: write valkey+sentinel:// or valkey+cluster://".to_owned()),
            "sentinel" if path.is_empty() => return Err("lacks the primary's name: valkey+sentinel://host:26379/NAME".to_owned()),
            "sentinel" => {
                let scheme = if uses_tls { "rediss" } else { "redis" };
                let sentinels = hosts
                    .iter()
                    .map(|host| format!("{scheme}://{host}/").as_str().into_connection_info().map_err(|error| error.to_string()));
                let sentinels = sentinels.collect::<Result<_, String>>()?;
                let (name, database) = path.split_once('/').unwrap_or((path, ""));
                if name.is_empty() {
                    return Err("lacks the primary's name before its database: valkey+sentinel://host:26379/NAME/3".to_owned());
                }
                if !is_database(database) {
                    return Err(format!("names {database:?} as the database, which is a number from 0 on: /{name}/3"));
                }
                Place::Sentinel { sentinels, name: name.to_owned(), node: open(hosts[0], user, database)? }
            }
            "cluster" if !matches!(path, "" | "0") => {
                return Err(format!("names database {path}, and a cluster has only database 0: leave out /{path}"));
            }
            "cluster" => Place::Cluster(hosts.iter().map(|host| open(host, user, "")).collect::<Result<_, String>>()?),
            _ => return Err("has a form that is neither +sentinel nor +cluster".to_owned()),
        };
        let certificates = ca.map(|ca| TlsCertificates { client_tls: None, root_cert: Some(ca) });
        let shown = format!("{scheme}://{}{}{path}", hosts.join(","), if path.is_empty() { "" } else { "/" });
        Ok(Target { place, certificates, uses_tls, shown })
    }

    /// Whether PEM that is to be the `ca` of [`Target::parse`] has a certificate, and nothing that is none. Fails with a sentence that goes on
    /// after the file's name.
    pub fn check_ca(pem: &[u8]) -> Result<(), String> {
        roots_of(pem).map(drop)
    }

    /// PEM that a server's certificate must lead to.
    pub(crate) fn ca(&self) -> Option<&[u8]> {
        self.certificates.as_ref()?.root_cert.as_deref()
    }

    /// With what Sentinels want to hear, who have users and passwords of their own. Fails where none are named.
    pub fn with_sentinel_login(mut self, user: Option<&str>, password: Option<&str>) -> Result<Target, String> {
        let Place::Sentinel { sentinels, .. } = &mut self.place else {
            return Err("names no Sentinels, and what they want to hear is given".to_owned());
        };
        for sentinel in sentinels {
            let mut settings = sentinel.redis_settings().clone();
            if let Some(user) = user {
                settings = settings.set_username(user);
            }
            if let Some(password) = password {
                settings = settings.set_password(password);
            }
            *sentinel = sentinel.clone().set_redis_settings(settings);
        }
        Ok(self)
    }

    /// The number of the database; a cluster has only 0.
    pub fn database(&self) -> i64 {
        match &self.place {
            Place::Single(server) | Place::Sentinel { node: server, .. } => server.redis_settings().db(),
            Place::Cluster(_) => 0,
        }
    }

    /// Whether Valkey is told a password, or Sentinels are.
    pub fn has_password(&self) -> bool {
        let has = |server: &ConnectionInfo| server.redis_settings().password().is_some();
        match &self.place {
            Place::Single(server) => has(server),
            Place::Sentinel { sentinels, node, .. } => has(node) || sentinels.iter().any(has),
            Place::Cluster(servers) => servers.iter().any(has),
        }
    }

    /// Whether what is sent can be read on the way, and the way leaves this machine.
    pub fn is_exposed(&self) -> bool {
        let hosts = self.shown.split_once("://").map_or("", |(_, rest)| rest).split('/').next().unwrap_or_default();
        !self.uses_tls
            && hosts.split(',').any(|host| !(host.starts_with("127.") || host.starts_with("localhost") || host.starts_with("[::1]")))
    }
}

/// How many there are the server knows; nothing is the first.
fn is_database(text: &str) -> bool {
    text.is_empty() || text.parse::<u32>().is_ok() && !text.starts_with('+')
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

/// What stands behind a host's colon.
fn port_of(host: &str) -> Option<&str> {
    let (name, port) = host.rsplit_once(':')?;
    (!name.starts_with('[') || name.ends_with(']')).then_some(port)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file without a certificate was taken, and no server was trusted.
    #[test]
    fn a_ca_that_has_no_certificate_is_refused() {
        let key = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
        let not_one = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        for (pem, said) in
            [("", "has no certificate"), ("junk\n", "has no certificate"), (key, "has no certificate"), (not_one, "cannot be read")]
        {
            let error = Target::check_ca(pem.as_bytes()).unwrap_err();
            assert!(error.contains(said), "{pem}: {error}");
        }
    }

    /// They were taken by the check, and the start waited for a server that cannot be.
    #[test]
    fn a_port_and_a_query_that_cannot_be_are_refused() {
        for (url, said) in [
            ("valkey://a:99999", "no number from 1 to 65535"),
            ("valkey://a:0/2", "no number from 1 to 65535"),
            ("valkey+cluster://a:6379,b:x", "no number from 1 to 65535"),
            ("valkey+sentinel://[::1]:70000/mail", "no number from 1 to 65535"),
            ("valkey://a/?a=b", "has ?a=b behind it"),
            ("valkey+sentinel://a/mail?a=b", "end it with /mail"),
        ] {
            let error = Target::parse(url, None, None).unwrap_err();
            assert!(error.contains(said), "{url}: {error}");
        }
        assert!(!Target::parse("valkey://user:secret", None, None).unwrap_err().contains("secret"));
        for url in ["valkey://[::1]", "valkey://[::1]:6379/3", "valkey://a:65535", "valkey://a/?protocol=resp3"] {
            assert!(Target::parse(url, None, None).is_ok(), "{url}");
        }
    }

    #[test]
    fn every_form_is_read_and_no_password_is_shown() {
        let single = Target::parse("valkey://mail:secret@10.0.0.1:7000/2", None, None).unwrap();
        assert!(matches!(&single.place, Place::Single(_)) && single.is_exposed());
        assert_eq!((single.to_string().as_str(), single.database()), ("valkey://10.0.0.1:7000/2", 2));
        assert_eq!(format!("{single:?}"), "valkey://10.0.0.1:7000/2");
        for url in ["redis://127.0.0.1:6379", "valkeys://example.org", "rediss://[::1]:6380"] {
            assert!(!Target::parse(url, Some("p"), None).unwrap().is_exposed(), "{url}");
        }
        let sentinel = Target::parse("valkey+sentinel://a:26379,b:26379/mail", None, None).unwrap();
        for (target, has_password) in [
            (Target::parse("valkey://a", None, None), false),
            (Target::parse("valkey://u@a", None, None), false),
            (Target::parse("valkey://u:p@a", None, None), true),
            (Target::parse("valkey+cluster://a:1,b:2", Some("p"), None), true),
            (Ok(sentinel.clone()), false),
            (sentinel.clone().with_sentinel_login(None, Some("p")), true),
        ] {
            let target = target.unwrap();
            assert_eq!(target.has_password(), has_password, "{target}");
        }
        assert!(matches!(&sentinel.place, Place::Sentinel { sentinels, name, .. } if sentinels.len() == 2 && name == "mail"));
        let with_database = Target::parse("valkey+sentinel://u:p@a:26379/mail/3", None, None).unwrap();
        assert!(matches!(&with_database.place, Place::Sentinel { name, node, .. } if name == "mail" && node.redis_settings().db() == 3));
        assert_eq!(with_database.to_string(), "valkey+sentinel://a:26379/mail/3");
        for bad in ["mail/x", "mail/3/4", "mail/-1", "/3"] {
            assert!(Target::parse(&format!("valkey+sentinel://a/{bad}"), None, None).is_err(), "{bad}");
        }
        assert!(sentinel.with_sentinel_login(None, Some("p")).is_ok() && single.with_sentinel_login(None, Some("p")).is_err());
        let cluster = Target::parse("valkeys+cluster://a:1,b:2,c:3", None, None).unwrap();
        assert!(matches!(&cluster.place, Place::Cluster(hosts) if hosts.len() == 3));
        assert!(Target::parse("valkey+cluster://a:1/0", None, None).is_ok());
        // A cluster's keys went to database 0 whatever the URL said.
        let refused = Target::parse("valkey+cluster://a:1/3", None, None).unwrap_err();
        assert!(refused.contains("leave out /3"), "{refused}");
        // A database that is none was told by Valkey alone, call by call.
        for (database, fits) in [("", true), ("/", true), ("/0", true), ("/40", true), ("/-1", false), ("/x", false), ("/+1", false)] {
            assert_eq!(Target::parse(&format!("valkey://a{database}"), None, None).is_ok(), fits, "{database}");
        }
        for bad in ["", "http://x", "valkey://a,b", "valkey+sentinel://a", "valkey+ring://a", "valkey://", "valkey://a:notaport"] {
            assert!(Target::parse(bad, None, None).is_err(), "{bad}");
        }
    }
}
