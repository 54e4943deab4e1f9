//! Routes that end in mailboxes here: `via = "lmtp"` and `via = "maildir"`.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

use crate::choice::choice;
use crate::section::Section;

/// Stores of one route: they are tried in turn, so more than this would only delay the verdict.
const STORES_MAX: usize = 32;
/// What a socket's path can have at most, in bytes (`sockaddr_un`).
const SOCKET_PATH_BYTES_MAX: usize = 107;
/// SMTP's port, which a store of mailboxes must not have (RFC 2033 5).
const SMTP_PORT: u16 = 25;

choice! {
    /// What becomes of mail for a maildir that is not there.
    UnknownMailbox {
        /// The maildir is made.
        Create = "create",
        /// The mail waits until somebody has made it.
        Defer = "defer",
        /// There is no such mailbox.
        Refuse = "refuse",
    }
}

/// Where a store of mailboxes listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreAddress {
    /// `127.0.0.1:24`.
    Tcp(SocketAddr),
    /// `unix:/run/lmtp.sock`; a relative path starts at the config file's folder.
    Unix(PathBuf),
}

impl fmt::Display for StoreAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StoreAddress::Tcp(address) => address.fmt(f),
            StoreAddress::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl StoreAddress {
    pub(crate) fn read(text: &str) -> Result<StoreAddress, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            return match path.len() {
                0 => Err("names no socket: write for instance \"unix:/run/lmtp.sock\"".to_owned()),
                _ if path.contains('\0') => Err("is not a path".to_owned()),
                _ => Ok(StoreAddress::Unix(PathBuf::from(path))),
            };
        }
        match text.parse::<SocketAddr>() {
            Ok(address) if address.port() == SMTP_PORT => {
                Err("has port 25, which is SMTP's and never LMTP's: a store listens for instance on \"127.0.0.1:24\"".to_owned())
            }
            Ok(address) if address.port() == 0 => Err("has no port: it is 1 to 65535".to_owned()),
            Ok(address) => Ok(StoreAddress::Tcp(address)),
            Err(_) => Err("is not an address with a port: write for instance \"127.0.0.1:24\" or \"unix:/run/lmtp.sock\"".to_owned()),
        }
    }
}

/// The stores of `via = "lmtp"`.
pub(crate) fn read_stores(section: &mut Section<'_, '_>) -> Option<Vec<StoreAddress>> {
    let stores = section.list("hosts", StoreAddress::read);
    match &stores {
        None => section.refuse("hosts", "is missing: via = \"lmtp\" needs hosts = [\"127.0.0.1:24\"] or [\"unix:/run/lmtp.sock\"]"),
        Some(_) if section.has_empty_list("hosts") => section.refuse("hosts", "names no host: write for instance [\"127.0.0.1:24\"]"),
        Some(stores) if stores.len() > STORES_MAX => section.refuse("hosts", format!("has more than {STORES_MAX} hosts")),
        Some(stores) => {
            for (index, store) in stores.iter().enumerate() {
                if stores[..index].contains(store) {
                    section.refuse("hosts", format!("names {store} twice"));
                }
            }
        }
    }
    let resolved = stores?.into_iter().map(|store| match store {
        StoreAddress::Unix(path) => StoreAddress::Unix(section.resolved(&path)),
        tcp => tcp,
    });
    let resolved: Vec<_> = resolved.collect();
    for store in &resolved {
        if let StoreAddress::Unix(path) = store
            && path.as_os_str().len() > SOCKET_PATH_BYTES_MAX
        {
            section.refuse("hosts", format!("{store} is longer than the {SOCKET_PATH_BYTES_MAX} bytes of a socket's path"));
        }
    }
    Some(resolved)
}

/// The path of `via = "maildir"`, with `{local}` and `{domain}` in it; whole, because a relative one starts at the config file's folder.
pub(crate) fn read_maildir(section: &mut Section<'_, '_>, path: Option<String>) -> Option<PathBuf> {
    let Some(path) = path else {
        section.refuse("path", "is missing: via = \"maildir\" needs path = \"/var/mail/{domain}/{local}/Maildir\"");
        return None;
    };
    let bare = path.replace("{local}", "").replace("{domain}", "");
    if path.is_empty() || path.contains('\0') {
        section.refuse("path", "is not a path");
    } else if bare.contains(['{', '}']) {
        section.refuse("path", "has braces with another word: there are {local} and {domain}");
    } else if !path.contains("{local}") {
        section.refuse("path", "has no {local}: all recipients would share one mailbox");
    } else {
        return Some(section.resolved(path.as_ref()));
    }
    None
}
