//! The process itself: streams, limits, identity, filter, program.

use std::collections::HashSet;
use std::ffi::CString;
use std::os::fd::OwnedFd;

use oci_spec::runtime::PosixRlimitType;

use super::devices::Devices;
use super::idmap::Maps;
use super::{GivenStreams, Joined, cstring, cstrings};
use crate::error::{Error, Result};
use crate::plan::{Builder, Cover, Program, Slot, Step};
use crate::seccomp::Filter;
use crate::spec::{Capabilities, Process, Spec};
use crate::sys::security;

/// What a spec means that names no mask.
pub const UMASK: u32 = 0o022;
/// Names by number, linux/capability.h.
const CAPABILITIES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// What is done while the host's procfs is at hand.
pub fn host_side(plan: &mut Builder, process: &Process) -> Result<()> {
    if let Some(score) = process.oom_score_adj {
        if !(-1000..=1000).contains(&score) {
            return Err(Error::invalid(format!("process.oomScoreAdj: {score} is not between -1000 and 1000")));
        }
        plan.step(Step::OomScoreAdj { score });
    }
    process.labels()?.into_iter().for_each(|label| plan.step(Step::Label { label }));
    Ok(())
}

/// A session keyring of its own, unless the option says not to; it belongs to the user namespace in which it is made.
pub fn keyring(plan: &mut Builder, id: &str, no_new_keyring: bool) -> Result<()> {
    if !no_new_keyring {
        plan.step(Step::NewKeyring { name: cstring("id", &format!("_ses.{id}"))? });
    }
    Ok(())
}

/// What a process in a user namespace has no right to: limits above those of the runtime, and streams that are the host's become its user's.
pub fn with_host_rights(plan: &mut Builder, streams: &GivenStreams, process: &Process, maps: &Maps) {
    raise_limits(plan, process);
    if let (GivenStreams::Given(slots), Some(uid)) = (streams, maps.host_uid(process.user.uid)) {
        given(plan, slots, uid);
    }
}

/// Limits above those of the runtime, so that it takes no right to set the process's own later.
pub fn raise_limits(plan: &mut Builder, process: &Process) {
    for limit in &process.rlimits {
        let number = resource(limit.typ());
        if let Some(now) = security::rlimit(number).ok().filter(|(_, hard)| limit.hard() > *hard) {
            plan.step(Step::Rlimit { resource: number, soft: now.0, hard: limit.hard() });
        }
    }
}

/// The streams of a first process; in a user namespace (`user`) those that are given have been set up with the host's rights.
pub fn streams(
    plan: &mut Builder,
    streams: &GivenStreams,
    process: &Process,
    devpts: Option<Slot>,
    devices: &Devices,
    user: bool,
) -> Result<()> {
    match streams {
        GivenStreams::Given(_) if user => {}
        GivenStreams::Given(slots) => given(plan, slots, process.user.uid),
        GivenStreams::Terminal { served } => {
            if devpts.is_none() && !devices.bound {
                return Err(Error::invalid("process.terminal: no devpts is mounted in the container"));
            }
            let cover = match devices {
                // The host must not find a container's terminal in place of its console.
                Devices { shared: true, .. } => Cover::Never,
                Devices { bound: true, .. } => Cover::IfThere,
                Devices { .. } => Cover::Made,
            };
            let (uid, size, onlcr) = (process.user.uid, size(process), !served);
            plan.step(Step::Console { devpts, devices: devices.directory, cover, uid, size, onlcr });
        }
    }
    Ok(())
}

/// The streams of a process that joins.
pub fn joined_streams(plan: &mut Builder, streams: &GivenStreams, process: &Process, user: bool) -> Result<()> {
    match streams {
        GivenStreams::Given(_) if user => {}
        GivenStreams::Given(slots) => given(plan, slots, process.user.uid),
        GivenStreams::Terminal { served } => {
            plan.step(Step::JoinedConsole { uid: process.user.uid, size: size(process), onlcr: !served });
        }
    }
    Ok(())
}

fn given(plan: &mut Builder, slots: &[Slot; 3], uid: u32) {
    for (number, from) in (0..).zip(slots) {
        plan.step(Step::Stream { number, from: *from });
    }
    plan.step(Step::OwnStreams { uid });
}

fn size(process: &Process) -> Option<(u16, u16)> {
    let size = process.console_size?;
    Some((u16::try_from(size.width).ok()?, u16::try_from(size.height).ok()?))
}

/// The names of the UTS namespace.
pub fn names(plan: &mut Builder, spec: &Spec) -> Result<()> {
    if !spec.hostname.is_empty() {
        plan.step(Step::HostName { name: cstring("hostname", &spec.hostname)? });
    }
    if !spec.domainname.is_empty() {
        plan.step(Step::DomainName { name: cstring("domainname", &spec.domainname)? });
    }
    Ok(())
}

/// What becomes of an environment without `HOME`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Home {
    /// It is completed.
    LookedUp,
    /// It stays as it is.
    AsGiven,
}

/// The value that counts of a variable that may be given more than once.
fn variable<'a>(environment: &'a [String], name: &str) -> Option<&'a str> {
    environment.iter().rev().find_map(|entry| entry.strip_prefix(name)?.strip_prefix('='))
}

/// An empty value counts as none, as it does for runc.
fn has_home(process: &Process) -> bool {
    variable(&process.env, "HOME").is_some_and(|home| !home.is_empty())
}

/// The environment with each name once: the last value, at the last place, as runc and Go's os/exec leave it.
///
/// containerd, CRI and `exec --env` append to what an image has set and leave both, and getenv(3) takes the first.
pub(super) fn environment(entries: &[String]) -> Vec<&String> {
    let mut seen = HashSet::new();
    let is_last = |entry: &&String| entry.split_once('=').is_none_or(|(name, _)| seen.insert(name.to_owned()));
    let mut kept: Vec<&String> = entries.iter().rev().filter(is_last).collect();
    kept.reverse();
    kept
}

/// Where a plan goes on its own.
pub enum Until {
    /// It waits for the start.
    Started,
    /// It executes at once.
    Executed,
}

/// Descriptors that outlive the rest: those that the program gets from 3 on, and the parent's end of the report.
#[derive(Default)]
pub struct Kept {
    preserved: Vec<Slot>,
    parents_end: Option<Slot>,
}

impl Kept {
    /// Takes them from the parent.
    pub fn give(plan: &mut Builder, preserved: Vec<OwnedFd>, parents_end: Option<OwnedFd>) -> Self {
        let preserved = preserved.into_iter().map(|fd| plan.give(fd)).collect();
        Self { preserved, parents_end: parents_end.map(|fd| plan.give(fd)) }
    }

    /// Gives them their numbers and closes all others.
    fn emit(&self, plan: &mut Builder) {
        let first = (FIRST..).nth(self.preserved.len()).unwrap_or(FIRST);
        if !self.preserved.is_empty() || self.parents_end.is_some() {
            plan.step(Step::Relocate { above: first + 2 });
        }
        for (number, &from) in (FIRST..).zip(&self.preserved) {
            plan.step(Step::Stream { number, from });
        }
        plan.step(Step::CloseOthers { first, parents_end: self.parents_end });
    }
}

/// The first descriptor that is no standard stream.
const FIRST: i32 = 3;

/// The number of the parent's end of the report in a process that holds it itself and preserves so many descriptors.
pub fn parents_end(preserved: usize) -> i32 {
    (FIRST + 1..).nth(preserved).unwrap_or(i32::MAX)
}

/// What the way from the runtime's rights to the user's depends on besides the process.
pub struct Confinement<'a> {
    /// What all processes of the container have in common.
    pub common: &'a Joined,
    /// What becomes of an environment without `HOME`.
    pub home: Home,
    /// The compiled `linux.seccomp`.
    pub filter: Option<&'a Filter>,
    /// Standard input is a terminal that the process is to have for its own.
    pub terminal: bool,
    /// The process is still to be born in a pid namespace that others share.
    pub birth: bool,
    /// How far the plan goes.
    pub until: Until,
}

/// From the runtime's rights to the user's. Before the first path of the container's is used, every descriptor of the host's is closed
/// (CVE-2024-21626), and after a limit is set nothing more is opened.
///
/// Who shares the pid namespace sees a process from its birth. With CAP_SYS_PTRACE it sees all that is behind `/proc/<pid>`, and may take the
/// process over; without any right it sees the network's tables and the mounts. So at its birth the process has nothing of the host's any
/// more (its root, working directory, namespaces and descriptors are the container's), and of the rights only those that it still needs.
///
/// seccomp(2): without no_new_privs, loading a filter needs CAP_SYS_ADMIN, so it comes before the capabilities go; with it, it is the very
/// last thing, so that the profile need not allow what happens in between. A filter with a listener is loaded before the process waits for its
/// start all the same, as with runc and crun: the caller of create waits for the listener before the start. Of the profile that takes
/// no more than the handing over of the listener does, read(2) and write(2).
///
/// # Errors
/// [`ErrorKind::InvalidArgument`](crate::ErrorKind::InvalidArgument) by the field's name.
pub fn confine(plan: &mut Builder, process: &Process, kept: &Kept, how: Confinement<'_>) -> Result<()> {
    let directory = cstring("process.cwd", &process.cwd)?;
    // Without the field there are none: a full set is never a default.
    let none = Capabilities::default();
    let sets = process.capabilities.as_ref().unwrap_or(&none);

    kept.emit(plan);
    if how.home == Home::LookedUp && !has_home(process) {
        plan.step(Step::Home { uid: process.user.uid });
    }
    plan.step(Step::Umask { mask: process.user.umask.unwrap_or(UMASK) & 0o777 });
    plan.step(Step::WorkingDirectory { path: directory.clone(), later: true });
    plan.step(Step::BoundingSet { keep: mask(&sets.bounding) });
    if how.birth {
        let kept = until_executed(process, sets, how.filter.is_some());
        plan.step(Step::Capabilities { effective: kept, permitted: kept, inheritable: 0, ambient: 0 });
        plan.step(Step::Birth);
    }
    become_program(plan, process, sets, directory, how)
}

/// The steps from there on, which the container's other processes may watch.
fn become_program(plan: &mut Builder, process: &Process, sets: &Capabilities, directory: CString, how: Confinement<'_>) -> Result<()> {
    let Confinement { common, filter, terminal, until, .. } = how;
    plan.step(Step::Session);
    if terminal {
        plan.step(Step::ControlTerminal);
    }
    for limit in &process.rlimits {
        plan.step(Step::Rlimit { resource: resource(limit.typ()), soft: limit.soft(), hard: limit.hard() });
    }
    tune(plan, process, common)?;
    let load = filter.map(|filter| Step::Seccomp { program: filter.program.clone(), flags: filter.flags });
    let (early, late) = if process.no_new_privileges { (None, load) } else { (load, None) };
    if process.no_new_privileges {
        plan.step(Step::NoNewPrivileges);
    }
    early.into_iter().for_each(|step| plan.step(step));
    let user = &process.user;
    let groups = (!user.keep_groups).then(|| user.additional_gids.clone());
    plan.step(Step::Identity { uid: user.uid, gid: user.gid, groups });
    plan.step(Step::Capabilities {
        effective: mask(&sets.effective),
        permitted: mask(&sets.permitted),
        inheritable: mask(&sets.inheritable),
        // capabilities(7): others cannot be. runc passes over them, and its own `runc spec` has some.
        ambient: mask(&sets.ambient) & mask(&sets.inheritable) & mask(&sets.permitted),
    });
    plan.step(Step::WorkingDirectory { path: directory, later: false });
    plan.step(Step::FindProgram);
    let (before, after) = if filter.is_some_and(|filter| filter.listener.is_some()) { (late, None) } else { (None, late) };
    before.into_iter().for_each(|step| plan.step(step));
    if matches!(until, Until::Started) {
        plan.step(Step::Ready);
    }
    after.into_iter().for_each(|step| plan.step(step));
    plan.step(Step::Exec { own: true });
    Ok(())
}

/// What a process needs from its birth to its program: its own capabilities, those to become its user, and those of single steps.
fn until_executed(process: &Process, sets: &Capabilities, filtered: bool) -> u64 {
    let own = mask(&sets.permitted) | mask(&sets.effective) | mask(&sets.inheritable) | mask(&sets.ambient);
    let of =
        |needed: bool, names: &[&str]| if needed { names.iter().filter_map(|name| number(name)).fold(0, |m, n| m | 1 << n) } else { 0 };
    own | of(true, &["SETUID", "SETGID", "SETPCAP"])
        | of(filtered && !process.no_new_privileges, &["SYS_ADMIN"])
        | of(process.scheduler.is_some() || process.io_priority.is_some(), &["SYS_NICE"])
}

/// How the kernel is to treat the process: set with the runtime's rights, which some of it needs.
fn tune(plan: &mut Builder, process: &Process, common: &Joined) -> Result<()> {
    if let Some(scheduler) = &process.scheduler {
        plan.step(Step::Scheduler {
            policy: scheduler.policy()?,
            flags: scheduler.flags()?,
            nice: scheduler.nice,
            priority: scheduler.priority.unsigned_abs(),
            runtime: scheduler.runtime,
            deadline: scheduler.deadline,
            period: scheduler.period,
        });
    }
    if let Some(priority) = &process.io_priority {
        plan.step(Step::IoPriority { value: priority.value()? });
    }
    if let Some(value) = common.personality {
        plan.step(Step::Personality { value });
    }
    if let Some((mode, nodes)) = common.memory_policy.clone() {
        plan.step(Step::MemoryPolicy { mode, nodes });
    }
    Ok(())
}

/// Makes the working directory while the root may still be written to.
///
/// # Errors
/// A path with a NUL.
pub fn make_working_directory(plan: &mut Builder, process: &Process) -> Result<()> {
    plan.step(Step::MakeWorkingDirectory { path: cstring("process.cwd", &process.cwd)? });
    Ok(())
}

fn mask(names: &[String]) -> u64 {
    names.iter().filter_map(|name| number(name)).fold(0, |mask, number| mask | 1 << number)
}

fn number(name: &str) -> Option<usize> {
    let name = name.to_ascii_uppercase();
    let name = name.strip_prefix("CAP_").unwrap_or(&name);
    CAPABILITIES.iter().position(|known| *known == name)
}

/// Every capability that this build knows, with the `CAP_` prefix.
pub fn capability_names() -> impl Iterator<Item = String> {
    CAPABILITIES.iter().map(|name| format!("CAP_{name}"))
}

/// Names that are skipped: the caller warns.
pub fn unknown_capabilities(process: &Process) -> Vec<&str> {
    let Some(sets) = &process.capabilities else { return Vec::new() };
    let all = [&sets.bounding, &sets.effective, &sets.inheritable, &sets.permitted, &sets.ambient];
    let mut unknown: Vec<&str> = all.into_iter().flatten().map(String::as_str).filter(|name| number(name).is_none()).collect();
    unknown.sort_unstable();
    unknown.dedup();
    unknown
}

fn resource(kind: PosixRlimitType) -> u32 {
    match kind {
        PosixRlimitType::RlimitCpu => libc::RLIMIT_CPU,
        PosixRlimitType::RlimitFsize => libc::RLIMIT_FSIZE,
        PosixRlimitType::RlimitData => libc::RLIMIT_DATA,
        PosixRlimitType::RlimitStack => libc::RLIMIT_STACK,
        PosixRlimitType::RlimitCore => libc::RLIMIT_CORE,
        PosixRlimitType::RlimitRss => libc::RLIMIT_RSS,
        PosixRlimitType::RlimitNproc => libc::RLIMIT_NPROC,
        PosixRlimitType::RlimitNofile => libc::RLIMIT_NOFILE,
        PosixRlimitType::RlimitMemlock => libc::RLIMIT_MEMLOCK,
        PosixRlimitType::RlimitAs => libc::RLIMIT_AS,
        PosixRlimitType::RlimitLocks => libc::RLIMIT_LOCKS,
        PosixRlimitType::RlimitSigpending => libc::RLIMIT_SIGPENDING,
        PosixRlimitType::RlimitMsgqueue => libc::RLIMIT_MSGQUEUE,
        PosixRlimitType::RlimitNice => libc::RLIMIT_NICE,
        PosixRlimitType::RlimitRtprio => libc::RLIMIT_RTPRIO,
        PosixRlimitType::RlimitRttime => libc::RLIMIT_RTTIME,
    }
}

/// What is executed: the container's `PATH` is searched by the child, inside and as the user.
///
/// # Errors
/// A string with a NUL.
pub fn program(process: &Process) -> Result<Program> {
    let name = process.args.first().map(String::as_str).unwrap_or_default();
    let candidates: Vec<CString> = if name.contains('/') {
        vec![cstring("process.args", name)?]
    } else {
        let path = variable(&process.env, "PATH").unwrap_or_default();
        // A relative entry would depend on the working directory; Go's LookPath refuses such a match, too.
        let directories = path.split(':').filter(|directory| directory.starts_with('/'));
        directories
            .map(|directory| cstring("process.args", &format!("{}/{name}", directory.trim_end_matches('/'))))
            .collect::<Result<_>>()?
    };
    let mut environment = environment(&process.env);
    if !has_home(process) {
        environment.retain(|entry| *entry != "HOME=");
    }
    let (arguments, environment) = (cstrings("process.args", &process.args)?, cstrings("process.env", environment)?);
    Ok(Program { name: name.to_owned(), candidates, arguments, environment })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(env: &[&str]) -> (Vec<String>, bool, Vec<String>) {
        let process =
            Process { args: vec!["x".to_owned()], env: env.iter().map(|&entry| entry.to_owned()).collect(), ..Process::default() };
        let program = program(&process).unwrap();
        let text = |list: Vec<CString>| list.into_iter().map(|text| text.into_string().unwrap()).collect();
        (text(program.environment), has_home(&process), text(program.candidates))
    }

    #[test]
    fn the_last_of_a_name_counts() {
        let given = ["PATH=/a", "X=1", "HOME=/x", "X=2", "x=3", "PATH=/b:/c", "X=", "Y==", "HOME="];
        let (environment, has_home, candidates) = of(&given);
        assert_eq!(environment, ["x=3", "PATH=/b:/c", "X=", "Y=="]);
        assert!(!has_home, "the empty one is the last");
        assert_eq!(candidates, ["/b/x", "/c/x"]);
        assert_eq!(of(&["HOME=", "A=1", "HOME=/y"]), (vec!["A=1".to_owned(), "HOME=/y".to_owned()], true, Vec::new()));
    }

    proptest::proptest! {
        #[test]
        fn each_name_stays_with_its_last_value(entries in proptest::collection::vec("[a-c]=[0-9]", 0..20)) {
            let entries: Vec<String> = entries;
            let mut last = std::collections::BTreeMap::new();
            for entry in &entries {
                last.insert(entry[..1].to_owned(), entry.clone());
            }
            let mut kept: Vec<String> = environment(&entries).into_iter().cloned().collect();
            kept.sort();
            proptest::prop_assert_eq!(kept, last.into_values().collect::<Vec<_>>());
        }
    }
}
