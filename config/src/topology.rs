//! Which thread runs on which core: [`Shards`] applied to a machine.
//!
//! Pure: the caller reads `/sys/devices/system` and its own affinity, and fills in a [`Machine`]; [`CoreSet::from_kernel`] reads
//! the kernel's lists. On a one-core machine everything runs on that core.

use crate::{CoordinatorCore, CoreSet, Cores, IoWq, Shards, Smt};

/// From so many usable cores on, `cores = "auto"` leaves one to the coordinator. With fewer, a shard is worth more than quiet.
const CORES_FOR_OWN_COORDINATOR: usize = 4;

/// Shards of a node at most: each knows a lane to each other one.
pub const SHARDS_MAX: usize = 1024;

/// One core (hardware thread) of a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Core {
    /// Its number, as in `cpu7`.
    pub id: u32,
    /// Whether it is online and the process may run on it (affinity, control group).
    pub is_usable: bool,
    /// The threads of its physical core, itself among them (`topology/thread_siblings_list`).
    pub siblings: CoreSet,
    /// Its memory node.
    pub numa_node: u32,
    /// Whether the kernel keeps other work off it (`isolcpus`).
    pub is_isolated: bool,
}

/// The cores of a machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Machine {
    /// In the order of their numbers, each once.
    cores: Vec<Core>,
}

impl Machine {
    /// A machine with these cores; of two with one number the first stays.
    pub fn new(mut cores: Vec<Core>) -> Machine {
        cores.sort_by_key(|core| core.id);
        cores.dedup_by_key(|core| core.id);
        Machine { cores }
    }

    /// The cores in the order of their numbers.
    pub fn cores(&self) -> &[Core] {
        &self.cores
    }

    /// The core of this number.
    pub fn core(&self, id: u32) -> Option<&Core> {
        self.cores.binary_search_by_key(&id, |core| core.id).ok().map(|index| &self.cores[index])
    }

    fn usable(&self) -> CoreSet {
        CoreSet::new(self.cores.iter().filter(|core| core.is_usable).map(|core| core.id))
    }

    /// The core, or why nothing can be pinned to it.
    fn check(&self, key: &'static str, id: u32) -> Result<&Core, PlanError> {
        let has = || CoreSet::new(self.cores.iter().map(|core| core.id));
        match self.core(id) {
            None => Err(PlanError { key, message: format!("core {id} is not on this machine: it has {}", has()) }),
            Some(core) if !core.is_usable => {
                let usable = self.usable();
                Err(PlanError { key, message: format!("core {id} is offline or not allowed to this process, which may use {usable}") })
            }
            Some(core) => Ok(core),
        }
    }
}

/// A setting this machine cannot honour. [`crate::Config::error_at`] adds the line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {message}")]
pub struct PlanError {
    /// The key, for instance `shards.cores`.
    pub key: &'static str,
    /// What is wrong, and what this machine has.
    pub message: String,
}

/// Where the kernel's workers run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoWqPlace {
    /// Those of every shard on this core.
    Core(u32),
    /// Those of each shard on its core.
    OwnShard,
}

/// What runs where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Core of each shard, in the order of the shards' numbers; at least one.
    pub shards: Vec<u32>,
    /// Core of the coordinator.
    pub coordinator_core: u32,
    /// Whether a shard runs on the coordinator's core.
    pub is_coordinator_shared: bool,
    /// Where the kernel's workers run.
    pub io_wq: IoWqPlace,
    /// What works but costs speed, a sentence each.
    pub warnings: Vec<String>,
}

impl Plan {
    /// Fits the settings to the machine. Fails when they name a core that is not there or not allowed, or none is left.
    pub fn new(machine: &Machine, settings: &Shards) -> Result<Plan, PlanError> {
        let mut warnings = Vec::new();
        let wanted = match settings.coordinator_core {
            CoordinatorCore::Auto => None,
            CoordinatorCore::Core(id) => Some(machine.check("shards.coordinator_core", id)?.id),
        };
        let shards: Vec<u32> = match &settings.cores {
            Cores::Auto => choose_shards(machine, settings.smt, wanted, &mut warnings)?,
            Cores::List(list) => {
                for id in list.iter() {
                    machine.check("shards.cores", id)?;
                }
                if settings.smt == Smt::Avoid {
                    warn_of_siblings(machine, list, &mut warnings);
                }
                list.iter().collect()
            }
        };
        if settings.per_core > 1 {
            warnings
                .push(format!("{} shards share each core, as shards.per_core says: good for tests, slower than one", settings.per_core));
        }
        // Round by round over the cores: neighbours in number are on different cores.
        let shards: Vec<u32> = (0..settings.per_core).flat_map(|_| shards.iter().copied()).collect();
        if shards.len() > SHARDS_MAX {
            let (key, mend) = match settings.per_core {
                1 => ("shards.cores", "list fewer cores"),
                _ => ("shards.per_core", "lower it, or list fewer cores"),
            };
            let message = format!("makes {} shards, {SHARDS_MAX} are the most: {mend}", shards.len());
            return Err(PlanError { key, message });
        }
        let Some(last_shard) = shards.last().copied() else {
            return Err(PlanError { key: "shards.cores", message: "leaves no core for a shard".to_owned() });
        };
        let coordinator_core = wanted.or_else(|| choose_coordinator(machine, &shards)).unwrap_or(last_shard);
        let is_coordinator_shared = shards.contains(&coordinator_core);
        if is_coordinator_shared && wanted.is_some() && machine.usable().len() > 1 {
            warnings.push(format!("the coordinator shares core {coordinator_core} with a shard, as shards.coordinator_core says"));
        }
        let io_wq = match settings.io_wq {
            IoWq::Auto if is_coordinator_shared => IoWqPlace::OwnShard,
            IoWq::Auto | IoWq::Coordinator => IoWqPlace::Core(coordinator_core),
            IoWq::Shard => IoWqPlace::OwnShard,
            IoWq::Core(id) => IoWqPlace::Core(machine.check("shards.io_wq", id)?.id),
        };
        if let IoWqPlace::Core(id) = io_wq {
            warn_of_shared_workers(machine, &shards, id, coordinator_core, &mut warnings);
        }
        Ok(Plan { shards, coordinator_core, is_coordinator_shared, io_wq, warnings })
    }
}

/// Usable cores, by physical core unless both threads are to be used, without the coordinator's where enough are left.
fn choose_shards(machine: &Machine, smt: Smt, wanted_coordinator: Option<u32>, warnings: &mut Vec<String>) -> Result<Vec<u32>, PlanError> {
    let usable = machine.usable();
    if usable.is_empty() {
        return Err(PlanError { key: "shards.cores", message: "this process may not run on any core of the machine".to_owned() });
    }
    let is_isolated = |id: &u32| machine.core(*id).is_some_and(|core| core.is_isolated);
    let isolated = CoreSet::new(usable.iter().filter(is_isolated));
    let candidates: Vec<u32> = if isolated.len() == usable.len() {
        usable.iter().collect()
    } else {
        if !isolated.is_empty() {
            warnings.push(format!("the isolated cores {isolated} are left out; list them in shards.cores to use them"));
        }
        usable.iter().filter(|id| !is_isolated(id)).collect()
    };
    let is_first_thread = |id: &u32| {
        let siblings = machine.core(*id).map(|core| &core.siblings);
        !siblings.is_some_and(|siblings| siblings.iter().any(|other| other < *id && candidates.contains(&other)))
    };
    let chosen: Vec<u32> = candidates.iter().copied().filter(|id| smt == Smt::Use || is_first_thread(id)).collect();
    // The lowest core is where most interrupts and the kernel's housekeeping end up.
    let coordinator = wanted_coordinator.or_else(|| chosen.first().copied().filter(|_| chosen.len() >= CORES_FOR_OWN_COORDINATOR));
    let is_next_to_coordinator = |id: u32| {
        coordinator == Some(id)
            || smt == Smt::Avoid && coordinator.and_then(|core| machine.core(core)).is_some_and(|core| core.siblings.contains(id))
    };
    let without: Vec<u32> = chosen.iter().copied().filter(|id| !is_next_to_coordinator(*id)).collect();
    Ok(if without.is_empty() { chosen } else { without })
}

/// A core without a shard: better on a physical core without one, better not isolated, better low. None: every core has a shard.
fn choose_coordinator(machine: &Machine, shards: &[u32]) -> Option<u32> {
    let free = machine.cores.iter().filter(|core| core.is_usable && !shards.contains(&core.id));
    let is_beside_shard = |core: &Core| shards.iter().any(|shard| core.siblings.contains(*shard));
    free.min_by_key(|core| (is_beside_shard(core), core.is_isolated, core.id)).map(|core| core.id)
}

fn warn_of_siblings(machine: &Machine, list: &CoreSet, warnings: &mut Vec<String>) {
    for id in list.iter() {
        let siblings = machine.core(id).map(|core| core.siblings.iter().filter(|other| *other > id && list.contains(*other)));
        for other in siblings.into_iter().flatten() {
            warnings.push(format!("the shards on cores {id} and {other} share one physical core; smt = \"use\" says that this is meant"));
        }
    }
}

fn warn_of_shared_workers(machine: &Machine, shards: &[u32], core: u32, coordinator_core: u32, warnings: &mut Vec<String>) {
    if shards.contains(&core) && shards.len() > 1 {
        warnings.push(format!("the disk workers of all shards share core {core} with one of them"));
    }
    let node = machine.core(core).map(|core| core.numa_node);
    let remote = CoreSet::new(shards.iter().copied().filter(|shard| machine.core(*shard).map(|core| core.numa_node) != node));
    if !remote.is_empty() {
        let whose = if core == coordinator_core { "the coordinator's core" } else { "core" };
        warnings.push(format!(
            "the disk workers of shards on {remote} run on another memory node ({whose} {core}); io_wq = \"shard\" keeps them near"
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Cores 0 to n-1, each a physical core.
    fn machine(count: u32) -> Machine {
        Machine::new((0..count).map(|id| core(id, &[id])).collect())
    }

    /// Cores 0 to 2n-1, where i and i+n are the threads of one physical core.
    fn machine_with_threads(count: u32) -> Machine {
        Machine::new((0..2 * count).map(|id| core(id, &[id % count, id % count + count])).collect())
    }

    fn core(id: u32, siblings: &[u32]) -> Core {
        Core { id, is_usable: true, siblings: CoreSet::new(siblings.iter().copied()), numa_node: 0, is_isolated: false }
    }

    fn list(text: &str) -> Shards {
        Shards { cores: Cores::List(text.parse().unwrap()), ..Shards::default() }
    }

    fn plan(machine: &Machine, settings: &Shards) -> (Vec<u32>, u32, bool, IoWqPlace) {
        let plan = Plan::new(machine, settings).unwrap();
        (plan.shards, plan.coordinator_core, plan.is_coordinator_shared, plan.io_wq)
    }

    #[test]
    fn auto_shares_the_last_core_below_four_and_leaves_the_first_from_four_on() {
        let auto = Shards::default();
        assert_eq!(plan(&machine(1), &auto), (vec![0], 0, true, IoWqPlace::OwnShard));
        assert_eq!(plan(&machine(2), &auto), (vec![0, 1], 1, true, IoWqPlace::OwnShard));
        assert_eq!(plan(&machine(3), &auto), (vec![0, 1, 2], 2, true, IoWqPlace::OwnShard));
        assert_eq!(plan(&machine(4), &auto), (vec![1, 2, 3], 0, false, IoWqPlace::Core(0)));
    }

    #[test]
    fn auto_takes_one_thread_of_each_physical_core_unless_told_to_use_both() {
        let machine = machine_with_threads(4);
        assert_eq!(plan(&machine, &Shards::default()), (vec![1, 2, 3], 0, false, IoWqPlace::Core(0)));
        let both = Shards { smt: Smt::Use, ..Shards::default() };
        assert_eq!(plan(&machine, &both), (vec![1, 2, 3, 4, 5, 6, 7], 0, false, IoWqPlace::Core(0)));
        // Two physical cores: the spare threads carry the coordinator.
        assert_eq!(plan(&machine_with_threads(2), &Shards::default()), (vec![0, 1], 2, false, IoWqPlace::Core(2)));
    }

    #[test]
    fn a_thread_whose_first_sibling_may_not_be_used_still_gets_a_shard() {
        let mut cores = machine_with_threads(2).cores;
        cores[0].is_usable = false;
        assert_eq!(plan(&Machine::new(cores), &Shards::default()).0, vec![1, 2]);
    }

    #[test]
    fn a_named_coordinator_core_is_left_out_of_auto() {
        let settings = Shards { coordinator_core: CoordinatorCore::Core(1), ..Shards::default() };
        assert_eq!(plan(&machine(2), &settings), (vec![0], 1, false, IoWqPlace::Core(1)));
        let settings = Shards { coordinator_core: CoordinatorCore::Core(0), ..Shards::default() };
        assert_eq!(plan(&machine(1), &settings), (vec![0], 0, true, IoWqPlace::OwnShard));
        assert!(Plan::new(&machine(1), &settings).unwrap().warnings.is_empty());
    }

    #[test]
    fn listed_cores_are_taken_as_they_are() {
        assert_eq!(plan(&machine(2), &list("0")), (vec![0], 1, false, IoWqPlace::Core(1)));
        assert_eq!(plan(&machine(8), &list("2-3,7")), (vec![2, 3, 7], 0, false, IoWqPlace::Core(0)));
        // Not beside a shard on the same physical core, where another is free.
        assert_eq!(plan(&machine_with_threads(4), &list("0-2")).1, 3);
        let both_threads = Plan::new(&machine_with_threads(2), &list("0,2")).unwrap();
        assert!(both_threads.warnings[0].contains("cores 0 and 2 share one physical core"), "{:?}", both_threads.warnings);
    }

    #[test]
    fn several_shards_on_a_core_are_said() {
        let settings = Shards { per_core: 2, ..list("0-1") };
        let plan = Plan::new(&machine(3), &settings).unwrap();
        assert_eq!((plan.shards, plan.coordinator_core), (vec![0, 1, 0, 1], 2));
        assert!(plan.warnings[0].contains("2 shards share each core"), "{:?}", plan.warnings);
    }

    #[test]
    fn more_shards_than_a_mesh_has_room_for_are_refused_with_the_key_that_makes_them() {
        assert_eq!(Plan::new(&machine(2000), &list("0-1023")).unwrap().shards.len(), SHARDS_MAX);
        let error = Plan::new(&machine(2000), &list("0-1024")).unwrap_err();
        assert_eq!(error.to_string(), "shards.cores: makes 1025 shards, 1024 are the most: list fewer cores");
        let error = Plan::new(&machine(100), &Shards { per_core: 16, ..Shards::default() }).unwrap_err();
        assert_eq!(error.to_string(), "shards.per_core: makes 1584 shards, 1024 are the most: lower it, or list fewer cores");
    }

    #[test]
    fn a_core_that_is_not_there_is_named_with_those_that_are() {
        let error = Plan::new(&machine(2), &list("0,9")).unwrap_err();
        assert_eq!(error.to_string(), "shards.cores: core 9 is not on this machine: it has 0-1");
        let settings = Shards { coordinator_core: CoordinatorCore::Core(4), ..Shards::default() };
        assert_eq!(Plan::new(&machine(2), &settings).unwrap_err().key, "shards.coordinator_core");
        let settings = Shards { io_wq: IoWq::Core(4), ..Shards::default() };
        assert_eq!(Plan::new(&machine(2), &settings).unwrap_err().key, "shards.io_wq");
        let mut cores = machine(3).cores;
        cores[1].is_usable = false;
        let error = Plan::new(&Machine::new(cores), &list("1")).unwrap_err();
        assert!(error.message.contains("may use 0,2"), "{error}");
        assert!(Plan::new(&Machine::default(), &Shards::default()).is_err());
    }

    #[test]
    fn isolated_cores_are_taken_only_when_listed() {
        let mut cores = machine(4).cores;
        cores[2].is_isolated = true;
        cores[3].is_isolated = true;
        let machine = Machine::new(cores);
        let auto = Plan::new(&machine, &Shards::default()).unwrap();
        assert_eq!(auto.shards, vec![0, 1]);
        assert!(auto.warnings[0].contains("isolated cores 2-3"), "{:?}", auto.warnings);
        assert_eq!(plan(&machine, &list("2-3")).0, vec![2, 3]);
    }

    #[test]
    fn disk_workers_go_where_they_are_told() {
        let with = |io_wq| Shards { io_wq, ..list("0-1") };
        assert_eq!(plan(&machine(4), &with(IoWq::Shard)).3, IoWqPlace::OwnShard);
        assert_eq!(plan(&machine(4), &with(IoWq::Coordinator)).3, IoWqPlace::Core(2));
        assert_eq!(plan(&machine(4), &with(IoWq::Core(3))).3, IoWqPlace::Core(3));
        assert_eq!(Plan::new(&machine(4), &with(IoWq::Core(0))).unwrap().warnings.len(), 1);
        let mut cores = machine(4).cores;
        cores[1].numa_node = 1;
        let plan = Plan::new(&Machine::new(cores), &with(IoWq::Auto)).unwrap();
        assert!(plan.warnings[0].contains("shards on 1 run on another memory node"), "{:?}", plan.warnings);
    }
}
