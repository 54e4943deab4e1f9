//! `[control]` and `[memory]`: settings of the process as a whole.

use std::path::PathBuf;

use crate::ByteSize;
use crate::section::Section;

/// `[control]`: how the command line talks to a running engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Control {
    /// The unix socket; a relative path starts at the config file's folder.
    pub socket: PathBuf,
}

/// Longest path of a unix socket, in bytes: `sun_path` holds 108 with the closing zero.
const SOCKET_PATH_BYTES_MAX: usize = 107;

impl Control {
    pub(crate) fn read(mut section: Section<'_, '_>) -> Control {
        let socket = section.path("socket", "ringpost.sock");
        if socket.as_os_str().len() > SOCKET_PATH_BYTES_MAX {
            let shown = socket.display();
            section.refuse("socket", format!("is too long: a socket's path ({shown}) has at most {SOCKET_PATH_BYTES_MAX} bytes"));
        }
        section.finish();
        Control { socket }
    }
}

impl Default for Control {
    fn default() -> Control {
        Control { socket: PathBuf::from("ringpost.sock") }
    }
}

/// `[memory]`: what the engine may take.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Bytes that buffers, sessions and queue entries may take together; None (`"auto"`): half of what the machine or the
    /// control group has.
    pub max_memory: Option<ByteSize>,
}

impl Memory {
    pub(crate) fn read(mut section: Section<'_, '_>) -> Memory {
        let max_memory = section.word_or_within("max_memory", "auto", None, ByteSize::mib(64)..=ByteSize::gib(65_536));
        section.finish();
        Memory { max_memory }
    }
}
