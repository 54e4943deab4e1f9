//! `[control]` and `[memory]`: settings of the process as a whole.

use std::path::{Path, PathBuf};

use crate::section::{Document, Section};
use crate::{ByteSize, ConfigErrors};

/// `[control]`: how the command line talks to a running engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Control {
    /// The unix socket; a relative path starts at the config file's folder.
    pub socket: PathBuf,
}

/// Longest path of a unix socket, in bytes: `sun_path` holds 108 with the closing zero.
const SOCKET_PATH_BYTES_MAX: usize = 107;

impl Control {
    /// `[control]` of a file in which something else may be wrong: who asks a running engine needs no more of it. `path` as for
    /// [`Config::parse`](crate::Config::parse).
    ///
    /// # Errors
    /// What is wrong with `[control]`; or with a text that is no TOML, where it does not name the socket all the same.
    pub fn alone(text: &str, path: &Path) -> Result<Control, ConfigErrors> {
        let document = Document::new(text, path);
        let (tree, errors) = document.what_can_be_read();
        let control = Control::read(Section::root(&document, &tree).section("control"));
        if !errors.is_empty() && document.line("control.socket") == 0 {
            return Err(ConfigErrors(errors));
        }
        document.finish()?;
        Ok(control)
    }

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_socket_is_read_where_something_else_is_wrong() {
        let read = |text: &str| Control::alone(text, Path::new("/etc/ringpost/ringpost.toml"));
        let socket = |text: &str| read(text).map(|control| control.socket.display().to_string());
        for text in [
            "[control]\nsocket = \"/run/r.sock\"\n[queue]\nretry_base = \"soon\"\n",
            "nonsense = 1\n[control]\nsocket = \"/run/r.sock\"\n",
            "[control]\nsocket = \"/run/r.sock\"\n[queue\n",
            "[queue]\nretry_base = \n[control]\nsocket = \"/run/r.sock\"\n",
        ] {
            assert_eq!(socket(text).as_deref(), Ok("/run/r.sock"), "{text:?}");
        }
        assert_eq!(socket("nonsense = 1\n").as_deref(), Ok("/etc/ringpost/ringpost.sock"), "the default");
        for (text, expected) in [
            ("[control]\nsocket = 7\n", "/etc/ringpost/ringpost.toml:2: control.socket: 7 "),
            ("[control]\nsoket = \"x\"\n", "/etc/ringpost/ringpost.toml:2: control.soket: "),
            ("control = 7\n", "/etc/ringpost/ringpost.toml:1: control: 7 "),
            ("[queue\n", "/etc/ringpost/ringpost.toml:1: "),
        ] {
            let errors = read(text).unwrap_err().to_string();
            assert!(errors.starts_with(expected) && !errors.contains("nonsense"), "{errors}");
        }
    }
}
