//! Which core does what on this machine: reads the kernel's files, asks the pure plan, pins, prints.

use std::{fmt, fs, io, path::Path};

use ringpost_config::{
    Config, ConfigError, CoreSet,
    topology::{Core, IoWqPlace, Machine, Plan},
};
use rustix::thread::CpuSet;
use serde::Serialize;

/// Locked memory below which rings may fail to start for a process without CAP_IPC_LOCK.
const MEMLOCK_BYTES_MIN: u64 = 8 << 20;
/// Descriptors below which a busy node runs out.
const DESCRIPTORS_MIN: u64 = 4096;

/// The plan, and what works but costs.
#[derive(Serialize)]
pub struct CorePlan {
    /// One for each shard, in order.
    pub shards: Vec<ShardCore>,
    /// Core of the coordinator.
    pub coordinator: u32,
    /// Core of the kernel's disk workers; absent when each shard has its own.
    pub io_wq: Option<u32>,
    /// A sentence each, with the mend.
    pub warnings: Vec<String>,
}

/// Where a shard runs.
#[derive(Serialize)]
pub struct ShardCore {
    /// Number of the shard.
    pub shard: u16,
    /// Its core.
    pub core: u32,
    /// Threads of the same physical core, itself among them.
    pub siblings: Vec<u32>,
    /// Memory node.
    pub numa_node: u32,
}

impl CorePlan {
    /// Fits `[shards]` to this machine.
    pub fn new(config: &Config) -> Result<CorePlan, ConfigError> {
        let machine = read_machine();
        let plan = Plan::new(&machine, &config.shards).map_err(|error| config.error_at(error.key, error.message))?;
        let mut warnings = plan.warnings.clone();
        warnings.extend(config.cautions(u32::try_from(plan.shards.len()).unwrap_or(u32::MAX)));
        warnings.extend(machine_warnings(&plan));
        let shards = plan.shards.iter().enumerate().map(|(at, &core)| {
            let known = machine.core(core);
            ShardCore {
                shard: u16::try_from(at).unwrap_or(u16::MAX),
                core,
                siblings: known.map(|core| core.siblings.iter().collect()).unwrap_or_default(),
                numa_node: known.map_or(0, |core| core.numa_node),
            }
        });
        Ok(CorePlan {
            shards: shards.collect(),
            coordinator: plan.coordinator_core,
            io_wq: match plan.io_wq {
                IoWqPlace::Core(core) => Some(core),
                IoWqPlace::OwnShard => None,
            },
            warnings,
        })
    }

    /// Pins the calling thread, the coordinator.
    pub fn pin_coordinator(&self) -> io::Result<()> {
        let mut set = CpuSet::new();
        set.set(self.coordinator as usize);
        Ok(rustix::thread::sched_setaffinity(None, &set)?)
    }
}

impl fmt::Display for CorePlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:<14}{:>5}  {:<12}{:>9}", "thread", "core", "siblings", "NUMA node")?;
        for shard in &self.shards {
            let siblings = CoreSet::new(shard.siblings.iter().copied()).to_string();
            writeln!(f, "{:<14}{:>5}  {:<12}{:>9}", format!("shard {}", shard.shard), shard.core, siblings, shard.numa_node)?;
        }
        writeln!(f, "{:<14}{:>5}", "coordinator", self.coordinator)?;
        match self.io_wq {
            Some(core) => writeln!(f, "{:<14}{core:>5}", "disk workers")?,
            None => writeln!(f, "{:<14}{:>5}", "disk workers", "own")?,
        }
        for warning in &self.warnings {
            writeln!(f, "warning: {warning}")?;
        }
        Ok(())
    }
}

fn kernel_text(path: impl AsRef<Path>) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

fn core_set(path: &str) -> CoreSet {
    kernel_text(path).and_then(|text| CoreSet::from_kernel(&text).ok()).unwrap_or_default()
}

fn read_machine() -> Machine {
    const CPU: &str = "/sys/devices/system/cpu";
    let online = core_set(&format!("{CPU}/online"));
    let present = core_set(&format!("{CPU}/present"));
    let isolated = core_set(&format!("{CPU}/isolated"));
    let allowed = rustix::thread::sched_getaffinity(None).ok();
    let nodes: Vec<(u32, CoreSet)> = core_set("/sys/devices/system/node/online")
        .iter()
        .map(|node| (node, core_set(&format!("/sys/devices/system/node/node{node}/cpulist"))))
        .collect();
    let ids: Vec<u32> = if present.is_empty() { online.iter().collect() } else { present.iter().collect() };
    Machine::new(
        ids.into_iter()
            .map(|id| {
                let siblings = core_set(&format!("{CPU}/cpu{id}/topology/thread_siblings_list"));
                Core {
                    id,
                    is_usable: online.contains(id) && allowed.as_ref().is_none_or(|set| set.is_set(id as usize)),
                    siblings: if siblings.is_empty() { CoreSet::new([id]) } else { siblings },
                    numa_node: nodes.iter().find(|(_, cores)| cores.contains(id)).map_or(0, |(node, _)| *node),
                    is_isolated: isolated.contains(id),
                }
            })
            .collect(),
    )
}

fn machine_warnings(plan: &Plan) -> Vec<String> {
    let mut warnings = Vec::new();
    let limit = |resource| rustix::process::getrlimit(resource).current.unwrap_or(u64::MAX);
    let (memlock, nofile) = (limit(rustix::process::Resource::Memlock), limit(rustix::process::Resource::Nofile));
    if memlock < MEMLOCK_BYTES_MIN && !rustix::process::geteuid().is_root() {
        warnings.push(format!(
            "locked memory is limited to {} KiB: raise it to 64 MiB a shard (`ulimit -l`, LimitMEMLOCK= in the unit), at least to {} MiB",
            memlock >> 10,
            MEMLOCK_BYTES_MIN >> 20
        ));
    }
    if nofile < DESCRIPTORS_MIN {
        warnings
            .push(format!("open files are limited to {nofile}: each session takes one; raise it (`ulimit -n`, LimitNOFILE= in the unit)"));
    }
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version < (6, 1) {
        warnings.push(format!("kernel {release}: 6.1 or newer is needed for everything the ring uses"));
    } else if version < (6, 17) {
        warnings.push(format!("kernel {release}: from 6.17 on large messages are received with fewer system calls"));
    }
    for &core in &plan.shards {
        let governor = kernel_text(format!("/sys/devices/system/cpu/cpu{core}/cpufreq/scaling_governor"));
        if let Some(governor) = governor.filter(|governor| governor != "performance") {
            warnings.push(format!(
                "core {core} runs under the governor {governor:?}: `cpupower frequency-set -g performance` steadies latency"
            ));
        }
    }
    warnings
}
