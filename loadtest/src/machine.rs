//! What a figure was measured on: a number without it is a rumour.

use std::{fs, path::Path};

use serde::{Deserialize, Serialize};

/// The machine, the disk under the spool, and the programs.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Machine {
    /// Model as the processor names itself.
    pub cpu_model: String,
    /// Cores that are online.
    pub cores: u32,
    /// Cores this process may use.
    pub cores_allowed: u32,
    /// Memory, MiB.
    pub memory_mib: u64,
    /// Kernel name and release.
    pub kernel: String,
    /// File system and device of the spool (or of the working folder), model and kind where the system tells.
    pub disk: String,
    /// Version and commit of the engine; of a foreign server its banner, empty where none was read.
    pub engine: String,
    /// Version and commit of this tool.
    pub tool: String,
    /// Load average of the last minute, when the run began.
    pub load_average: f64,
}

impl Machine {
    /// Looks at this machine. `spool` is the folder whose disk counts; `engine` is what `ringpost --version` says, or empty.
    pub fn observe(spool: &Path, engine: &str) -> Self {
        let uname = rustix::system::uname();
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let info = rustix::system::sysinfo();
        Machine {
            cpu_model: cpu_model(&cpuinfo).unwrap_or_else(|| uname.machine().to_string_lossy().into_owned()),
            cores: fs::read_to_string("/sys/devices/system/cpu/online").map_or(0, |text| cores_in(text.trim())),
            cores_allowed: std::thread::available_parallelism().map_or(0, |n| n.get() as u32),
            memory_mib: info.totalram as u64 * u64::from(info.mem_unit) / (1 << 20),
            kernel: format!("{} {}", uname.sysname().to_string_lossy(), uname.release().to_string_lossy()),
            disk: disk(spool),
            engine: engine.to_owned(),
            tool: crate::cli::version().to_owned(),
            load_average: fs::read_to_string("/proc/loadavg")
                .ok()
                .and_then(|text| text.split_ascii_whitespace().next()?.parse().ok())
                .unwrap_or(0.0),
        }
    }

    /// One line for tables.
    pub fn line(&self) -> String {
        format!("{}, {} of {} cores, {}, {}", self.cpu_model, self.cores_allowed, self.cores, self.kernel, self.disk)
    }
}

fn cpu_model(cpuinfo: &str) -> Option<String> {
    cpuinfo.lines().find_map(|line| Some(line.strip_prefix("model name")?.split_once(':')?.1.trim().to_owned()))
}

/// Counts a list such as `0-3,8`.
fn cores_in(list: &str) -> u32 {
    list.split(',')
        .filter_map(|range| {
            let (from, to) = range.split_once('-').unwrap_or((range, range));
            to.parse::<u32>().ok()?.checked_sub(from.parse().ok()?)?.checked_add(1)
        })
        .sum()
}

/// Type and device of the mount that holds `path`.
fn disk(path: &Path) -> String {
    let Ok(path) = path.canonicalize() else { return "unknown".to_owned() };
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let Some((device, kind)) = mount_of(&mounts, &path) else { return "unknown".to_owned() };
    let name = device.rsplit('/').next().unwrap_or_default();
    // A partition has its disk's queue one folder up.
    let block = fs::canonicalize(format!("/sys/class/block/{name}")).ok();
    let attribute = |file: &str| {
        let block = block.as_ref()?;
        let text = fs::read_to_string(block.join(file)).ok().or_else(|| fs::read_to_string(block.parent()?.join(file)).ok())?;
        Some(text.trim().to_owned()).filter(|text| !text.is_empty())
    };
    let mut text = format!("{kind} on {device}");
    if let Some(model) = attribute("device/model") {
        text.push_str(&format!(" ({model})"));
    }
    match attribute("queue/rotational").as_deref() {
        Some("0") => text.push_str(", not rotational"),
        Some("1") => text.push_str(", rotational"),
        _ => {}
    }
    if let Some(cache) = attribute("queue/write_cache") {
        text.push_str(&format!(", {cache}"));
    }
    text
}

/// Device and type of the mount with the longest prefix of `path`; of two on one place the later one covers the other.
fn mount_of(mounts: &str, path: &Path) -> Option<(String, String)> {
    mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ');
            let (device, place, kind) = (fields.next()?, fields.next()?, fields.next()?);
            path.starts_with(place).then(|| (place.len(), device.to_owned(), kind.to_owned()))
        })
        .max_by_key(|(length, ..)| *length)
        .map(|(_, device, kind)| (device, kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_cores_and_a_kernel() {
        let machine = Machine::observe(Path::new("/"), "");
        assert!(machine.cores_allowed >= 1 && machine.kernel.starts_with("Linux ") && machine.memory_mib > 0, "{machine:?}");
    }

    #[test]
    fn lists_of_cores_are_counted_and_nonsense_is_none() {
        assert_eq!(cores_in("0-3,8,10-11"), 7);
        assert_eq!(cores_in("5-2,x,"), 0);
    }

    #[test]
    fn the_deepest_mount_wins_and_of_two_the_later() {
        let mounts = "/dev/a / ext4 rw 0 0\n/dev/b /var xfs rw 0 0\nnone /var tmpfs rw 0 0\n";
        assert_eq!(mount_of(mounts, Path::new("/var/spool")), Some(("none".into(), "tmpfs".into())));
        assert_eq!(mount_of(mounts, Path::new("/varnish")), Some(("/dev/a".into(), "ext4".into())));
    }
}
