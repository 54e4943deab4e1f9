//! Sessions that ended and are kept for the next connections, which then allocate nothing for theirs.

use std::{cell::RefCell, net::SocketAddr, rc::Rc};

use ringpost_smtp::server::{ServerSettings, Session};

/// Sessions kept.
const KEPT: usize = 64;
/// One that holds more than an ordinary one, because its connection ended in the midst of a transaction, is not kept.
const SESSION_BYTES_MAX: usize = 1024;

/// Spare sessions of one shard.
#[derive(Default)]
pub struct SpareSessions(RefCell<Vec<Session>>);

impl SpareSessions {
    /// A session for a new connection.
    pub fn open(&self, settings: &Rc<ServerSettings>, peer: SocketAddr) -> Session {
        match self.0.borrow_mut().pop() {
            Some(mut session) => {
                session.reopen(settings.clone(), peer);
                session
            }
            None => Session::new(settings.clone(), peer),
        }
    }

    /// Takes one whose connection has ended.
    pub fn keep(&self, session: Session) {
        let mut spare = self.0.borrow_mut();
        if spare.len() < KEPT && session.heap_bytes() <= SESSION_BYTES_MAX {
            spare.push(session);
        }
    }
}
