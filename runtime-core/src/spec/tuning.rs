//! How the kernel is to treat a process, and what its clocks show: fields that runc, crun and youki honour alike.

use std::collections::BTreeMap;
use std::ffi::CString;

use serde::Deserialize;

use crate::error::{Error, Result};

/// sched_setattr(2) (config.md, "scheduler").
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Scheduler {
    /// `SCHED_OTHER` and its like.
    #[serde(default)]
    pub policy: String,
    /// -20 to 19, for `SCHED_OTHER` and `SCHED_BATCH`.
    #[serde(default)]
    pub nice: i32,
    /// Above 0, for `SCHED_FIFO` and `SCHED_RR`.
    #[serde(default)]
    pub priority: i32,
    /// `SCHED_FLAG_*`.
    #[serde(default)]
    pub flags: Vec<String>,
    /// Nanoseconds, for `SCHED_DEADLINE`.
    #[serde(default)]
    pub runtime: u64,
    /// Nanoseconds, for `SCHED_DEADLINE`.
    #[serde(default)]
    pub deadline: u64,
    /// Nanoseconds, for `SCHED_DEADLINE`.
    #[serde(default)]
    pub period: u64,
}

/// ioprio_set(2) (config.md, "ioPriority").
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct IoPriority {
    /// `IOPRIO_CLASS_RT`, `IOPRIO_CLASS_BE` or `IOPRIO_CLASS_IDLE`.
    #[serde(default)]
    pub class: String,
    /// 0 to 7, the smaller the sooner.
    #[serde(default)]
    pub priority: i32,
}

/// sched_setaffinity(2) of a joining process (config.md, "execCPUAffinity"), as lists of cpuset(7).
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct CpuAffinity {
    /// Before it enters the container's cgroup.
    #[serde(default)]
    pub initial: String,
    /// After.
    #[serde(default, rename = "final")]
    pub last: String,
}

/// personality(2) (config-linux.md, "Personality").
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Personality {
    /// `LINUX` or `LINUX32`.
    #[serde(default)]
    pub domain: String,
    /// The spec knows none.
    #[serde(default)]
    pub flags: Vec<String>,
}

/// set_mempolicy(2) (config-linux.md, "Memory policy").
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct MemoryPolicy {
    /// `MPOL_*`.
    #[serde(default)]
    pub mode: String,
    /// A list of cpuset(7).
    #[serde(default)]
    pub nodes: String,
    /// `MPOL_F_*`.
    #[serde(default)]
    pub flags: Vec<String>,
}

/// What a clock of a time namespace shows more than the host's (config-linux.md, "Offset for Time Namespace").
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct TimeOffset {
    /// Seconds, negative ones too.
    #[serde(default)]
    pub secs: i64,
    /// Below one second.
    #[serde(default)]
    pub nanosecs: u32,
}

/// Policies by number (sched(7)).
const POLICIES: [(&str, u32); 6] =
    [("SCHED_OTHER", 0), ("SCHED_FIFO", 1), ("SCHED_RR", 2), ("SCHED_BATCH", 3), ("SCHED_IDLE", 5), ("SCHED_DEADLINE", 6)];

/// Flags by bit (include/uapi/linux/sched.h).
const SCHEDULER_FLAGS: [(&str, u64); 7] = [
    ("SCHED_FLAG_RESET_ON_FORK", 0x01),
    ("SCHED_FLAG_RECLAIM", 0x02),
    ("SCHED_FLAG_DL_OVERRUN", 0x04),
    ("SCHED_FLAG_KEEP_POLICY", 0x08),
    ("SCHED_FLAG_KEEP_PARAMS", 0x10),
    ("SCHED_FLAG_UTIL_CLAMP_MIN", 0x20),
    ("SCHED_FLAG_UTIL_CLAMP_MAX", 0x40),
];

/// Classes by number (include/uapi/linux/ioprio.h).
const IO_CLASSES: [(&str, u32); 3] = [("IOPRIO_CLASS_RT", 1), ("IOPRIO_CLASS_BE", 2), ("IOPRIO_CLASS_IDLE", 3)];
const IO_CLASS_SHIFT: u32 = 13;

/// Modes by number and flags by bit (include/uapi/linux/mempolicy.h).
const MEMORY_MODES: [(&str, u32); 7] = [
    ("MPOL_DEFAULT", 0),
    ("MPOL_PREFERRED", 1),
    ("MPOL_BIND", 2),
    ("MPOL_INTERLEAVE", 3),
    ("MPOL_LOCAL", 4),
    ("MPOL_PREFERRED_MANY", 5),
    ("MPOL_WEIGHTED_INTERLEAVE", 6),
];
const MEMORY_FLAGS: [(&str, u32); 3] =
    [("MPOL_F_NUMA_BALANCING", 1 << 13), ("MPOL_F_RELATIVE_NODES", 1 << 14), ("MPOL_F_STATIC_NODES", 1 << 15)];

/// Personalities by number (include/uapi/linux/personality.h).
const PERSONALITIES: [(&str, u32); 2] = [("LINUX", 0), ("LINUX32", 8)];

/// What a list of processors or nodes may name at most: more than any kernel is built for.
const LIST_MAX: usize = 8192;

/// The modes of a memory policy, for the `features` document.
pub fn memory_modes() -> Vec<&'static str> {
    MEMORY_MODES.iter().map(|(name, _)| *name).collect()
}

/// The flags of a memory policy, for the `features` document.
pub fn memory_flags() -> Vec<&'static str> {
    MEMORY_FLAGS.iter().map(|(name, _)| *name).collect()
}

fn named<T: Copy>(table: &[(&str, T)], field: &str, name: &str) -> Result<T> {
    let known = table.iter().find(|(known, _)| *known == name).map(|(_, value)| *value);
    known.ok_or_else(|| Error::invalid(format!("{field}: {name:?} is unknown")))
}

impl Scheduler {
    /// The policy's number.
    ///
    /// # Errors
    /// What does not go together, by the field's name.
    pub fn policy(&self) -> Result<u32> {
        let policy = named(&POLICIES, "process.scheduler.policy", &self.policy)?;
        if !(-20..=19).contains(&self.nice) {
            return Err(Error::invalid(format!("process.scheduler.nice: {} is not between -20 and 19", self.nice)));
        }
        if self.priority != 0 && !matches!(self.policy.as_str(), "SCHED_FIFO" | "SCHED_RR") {
            return Err(Error::invalid(format!("process.scheduler.priority: {} has none", self.policy)));
        }
        if self.priority < 0 {
            return Err(Error::invalid(format!("process.scheduler.priority: {} is below 0", self.priority)));
        }
        if (self.runtime, self.deadline, self.period) != (0, 0, 0) && self.policy != "SCHED_DEADLINE" {
            return Err(Error::invalid(format!("process.scheduler.runtime/deadline/period: {} has none", self.policy)));
        }
        Ok(policy)
    }

    /// The flags' bits.
    ///
    /// # Errors
    /// An unknown one.
    pub fn flags(&self) -> Result<u64> {
        self.flags.iter().try_fold(0, |all, flag| Ok(all | named(&SCHEDULER_FLAGS, "process.scheduler.flags", flag)?))
    }
}

impl IoPriority {
    /// What ioprio_set(2) takes.
    ///
    /// # Errors
    /// An unknown class, or a priority that is none.
    pub fn value(&self) -> Result<u32> {
        let class = named(&IO_CLASSES, "process.ioPriority.class", &self.class)?;
        match u32::try_from(self.priority) {
            Ok(priority @ 0..=7) => Ok(class << IO_CLASS_SHIFT | priority),
            _ => Err(Error::invalid(format!("process.ioPriority.priority: {} is not between 0 and 7", self.priority))),
        }
    }
}

impl CpuAffinity {
    /// The masks before and after the cgroup is entered; none where the spec says nothing.
    ///
    /// # Errors
    /// What is no list.
    pub fn masks(&self) -> Result<[Option<Vec<u64>>; 2]> {
        let mask = |field: &str, list: &str| (!list.is_empty()).then(|| mask(field, list)).transpose();
        Ok([mask("process.execCPUAffinity.initial", &self.initial)?, mask("process.execCPUAffinity.final", &self.last)?])
    }
}

impl Personality {
    /// What personality(2) takes.
    ///
    /// # Errors
    /// An unknown domain, and any flag.
    pub fn value(&self) -> Result<u32> {
        match self.flags.first() {
            Some(flag) => Err(Error::invalid(format!("linux.personality.flags: {flag:?} is unknown"))),
            None => named(&PERSONALITIES, "linux.personality.domain", &self.domain),
        }
    }
}

impl MemoryPolicy {
    /// What set_mempolicy(2) takes: the mode with its flags, and the mask of nodes.
    ///
    /// # Errors
    /// An unknown mode or flag, or what is no list.
    pub fn value(&self) -> Result<(u32, Vec<u64>)> {
        let mode = named(&MEMORY_MODES, "linux.memoryPolicy.mode", &self.mode)?;
        let flags =
            self.flags.iter().try_fold(0, |all, flag| Ok::<_, Error>(all | named(&MEMORY_FLAGS, "linux.memoryPolicy.flags", flag)?))?;
        let nodes = if self.nodes.is_empty() { Vec::new() } else { mask("linux.memoryPolicy.nodes", &self.nodes)? };
        Ok((mode | flags, nodes))
    }
}

/// What is written to `/proc/<pid>/timens_offsets` (time_namespaces(7)).
///
/// # Errors
/// An unknown clock, or a fraction of a second or more.
pub fn time_offsets(offsets: &BTreeMap<String, TimeOffset>) -> Result<CString> {
    let mut text = String::new();
    for (clock, offset) in offsets {
        if !matches!(clock.as_str(), "monotonic" | "boottime") {
            return Err(Error::invalid(format!("linux.timeOffsets: clock {clock:?} is unknown")));
        }
        if offset.nanosecs >= 1_000_000_000 {
            return Err(Error::invalid(format!("linux.timeOffsets: {clock}: {} ns are a second or more", offset.nanosecs)));
        }
        text += &format!("{clock} {} {}\n", offset.secs, offset.nanosecs);
    }
    CString::new(text).map_err(|_| Error::invalid("linux.timeOffsets: a NUL"))
}

/// The bits of a list such as `0-3,7` (cpuset(7), "List format").
fn mask(field: &str, list: &str) -> Result<Vec<u64>> {
    let bad = || Error::invalid(format!("{field}: {list:?} is no list of numbers and ranges"));
    let number = |text: &str| text.trim().parse::<usize>().ok().filter(|number| *number < LIST_MAX).ok_or_else(bad);
    let mut mask = Vec::new();
    for part in list.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (number(first)?, number(last)?);
        if first > last {
            return Err(bad());
        }
        for bit in first..=last {
            let word = bit / 64;
            if mask.len() <= word {
                mask.resize(word + 1, 0u64);
            }
            mask[word] |= 1 << (bit % 64);
        }
    }
    Ok(mask)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn refusal<T: std::fmt::Debug>(result: Result<T>) -> String {
        result.unwrap_err().to_string()
    }

    #[test]
    fn what_does_not_go_together_is_named() {
        let scheduler = |policy: &str| Scheduler { policy: policy.into(), ..Scheduler::default() };
        assert_eq!(scheduler("SCHED_IDLE").policy().unwrap(), 5);
        assert!(refusal(scheduler("SCHED_ISO").policy()).starts_with("process.scheduler.policy: \"SCHED_ISO\""));
        assert!(refusal(scheduler("").policy()).starts_with("process.scheduler.policy"));
        assert!(refusal(Scheduler { nice: 20, ..scheduler("SCHED_BATCH") }.policy()).starts_with("process.scheduler.nice"));
        assert!(refusal(Scheduler { priority: 1, ..scheduler("SCHED_OTHER") }.policy()).starts_with("process.scheduler.priority"));
        assert!(refusal(Scheduler { priority: -1, ..scheduler("SCHED_RR") }.policy()).starts_with("process.scheduler.priority"));
        assert!(refusal(Scheduler { runtime: 1, ..scheduler("SCHED_RR") }.policy()).starts_with("process.scheduler.runtime"));
        assert!(refusal(Scheduler { flags: vec!["X".into()], ..scheduler("SCHED_RR") }.flags()).starts_with("process.scheduler.flags"));
        let io = |class: &str, priority| IoPriority { class: class.into(), priority };
        assert_eq!(io("IOPRIO_CLASS_BE", 4).value().unwrap(), 2 << 13 | 4);
        assert!(refusal(io("IOPRIO_CLASS_NONE", 0).value()).starts_with("process.ioPriority.class"));
        assert!(refusal(io("IOPRIO_CLASS_RT", 8).value()).starts_with("process.ioPriority.priority"));
        let personality =
            |domain: &str, flags: &[&str]| Personality { domain: domain.into(), flags: flags.iter().map(|f| (*f).into()).collect() };
        assert_eq!(personality("LINUX32", &[]).value().unwrap(), 8);
        assert!(refusal(personality("SVR4", &[]).value()).starts_with("linux.personality.domain"));
        assert!(refusal(personality("LINUX", &["X"]).value()).starts_with("linux.personality.flags"));
        let memory = MemoryPolicy { mode: "MPOL_BIND".into(), nodes: "0,65".into(), flags: vec!["MPOL_F_STATIC_NODES".into()] };
        assert_eq!(memory.value().unwrap(), (2 | 1 << 15, vec![1, 2]));
        assert!(refusal(MemoryPolicy { mode: "MPOL_MAGIC".into(), ..memory }.value()).starts_with("linux.memoryPolicy.mode"));
    }

    #[test]
    fn offsets_are_written_as_the_kernel_reads_them() {
        let offset = |secs, nanosecs| TimeOffset { secs, nanosecs };
        let offsets = BTreeMap::from([("monotonic".to_owned(), offset(-5, 1)), ("boottime".to_owned(), offset(7, 0))]);
        assert_eq!(time_offsets(&offsets).unwrap().to_str().unwrap(), "boottime 7 0\nmonotonic -5 1\n");
        let bad = BTreeMap::from([("realtime".to_owned(), offset(1, 0))]);
        assert!(refusal(time_offsets(&bad)).starts_with("linux.timeOffsets: clock \"realtime\""));
        let bad = BTreeMap::from([("boottime".to_owned(), offset(1, 1_000_000_000))]);
        assert!(refusal(time_offsets(&bad)).starts_with("linux.timeOffsets: boottime"));
    }

    #[test]
    fn lists_are_masks() {
        assert_eq!(mask("f", "0-3,7").unwrap(), [0b1000_1111]);
        assert_eq!(mask("f", "64").unwrap(), [0, 1]);
        for bad in ["", "3-1", "x", "1-", "-1", "1,,2", "8192", "99999999999999999999"] {
            assert!(refusal(mask("f", bad)).starts_with("f: "), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in ".{0,40}") {
            let _ = mask("f", &text);
        }
    }
}
