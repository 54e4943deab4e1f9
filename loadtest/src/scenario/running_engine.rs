//! An engine of ours that runs already: which one it is, and its counters.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::{
    engine::{find_binary, flattened, version_of},
    process::descendants,
};

/// See the module.
#[derive(Debug, Clone)]
pub struct RunningEngine {
    binary: PathBuf,
    /// The binary is what runs, and not only one that can ask it.
    is_its_own: bool,
    /// Its control socket, where that was said.
    socket: Option<PathBuf>,
}

impl RunningEngine {
    /// By its process, or one below that; another server's program is not asked for anything. Where that tells nothing and a control socket was
    /// given, by the `ringpost` beside this program.
    ///
    /// # Errors
    /// A socket, and no program that could ask it: a sentence.
    pub fn find(pid: Option<u32>, socket: Option<&Path>) -> Result<Option<RunningEngine>, String> {
        let socket = socket.map(Path::to_path_buf);
        if let Some(binary) = pid.and_then(program) {
            return Ok(Some(RunningEngine { binary, is_its_own: true, socket }));
        }
        let Some(socket) = socket else { return Ok(None) };
        Ok(Some(RunningEngine { binary: find_binary(None)?, is_its_own: false, socket: Some(socket) }))
    }

    /// What its program says with `--version`, where that is what runs.
    pub fn version(&self) -> Option<String> {
        self.is_its_own.then(|| version_of(&self.binary)).filter(|version| !version.is_empty())
    }

    /// Its counters; nothing without a control socket.
    ///
    /// # Errors
    /// What `ringpost stats` says.
    pub fn counters(&self) -> io::Result<BTreeMap<String, f64>> {
        let Some(socket) = &self.socket else { return Ok(BTreeMap::new()) };
        let output = Command::new(&self.binary).args(["stats", "--json", "--socket"]).arg(socket).stdin(Stdio::null()).output()?;
        if !output.status.success() {
            let words = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            return Err(io::Error::other(if words.is_empty() { format!("ringpost stats: {}", output.status) } else { words }));
        }
        let counters: serde_json::Value = serde_json::from_slice(&output.stdout).map_err(io::Error::other)?;
        Ok(flattened(&counters))
    }
}

/// The program of a process, or of one below it, that is called `ringpost`; as the process has it, so that one that was replaced since is not
/// taken for it.
fn program(root: u32) -> Option<PathBuf> {
    let is_ours = |pid: &u32| {
        let name = fs::read_link(format!("/proc/{pid}/exe")).ok().and_then(|path| Some(path.file_name()?.to_str()?.to_owned()));
        name.is_some_and(|name| name.strip_suffix(" (deleted)").unwrap_or(&name) == "ringpost")
    };
    let pid = descendants(root).ok()?.into_iter().find(is_ours)?;
    Some(PathBuf::from(format!("/proc/{pid}/exe")))
}
