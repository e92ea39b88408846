//! New namespaces, and joining given ones.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use oci_spec::runtime::{LinuxNamespace, LinuxNamespaceType};
use rustix::fs::{Mode, OFlags};

use super::idmap::Maps;
use super::user;
use crate::error::{Context, Error, Result};
use crate::plan::{Builder, Slot, Step};
use crate::spec::tuning::{MemoryPolicy, Personality};
use crate::spec::{Linux, namespace_name};
use crate::sys::namespace::{self, CLONE_NEWTIME};

const KINDS: [(LinuxNamespaceType, i32, &str); 8] = [
    (LinuxNamespaceType::User, libc::CLONE_NEWUSER, "user"),
    (LinuxNamespaceType::Pid, libc::CLONE_NEWPID, "pid"),
    (LinuxNamespaceType::Network, libc::CLONE_NEWNET, "net"),
    (LinuxNamespaceType::Ipc, libc::CLONE_NEWIPC, "ipc"),
    (LinuxNamespaceType::Uts, libc::CLONE_NEWUTS, "uts"),
    (LinuxNamespaceType::Mount, libc::CLONE_NEWNS, "mnt"),
    (LinuxNamespaceType::Cgroup, libc::CLONE_NEWCGROUP, "cgroup"),
    (LinuxNamespaceType::Time, CLONE_NEWTIME, "time"),
];

/// What a process that joins a container has in common with the first one: the namespaces that are not the host's, and what is set for all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Joined {
    flags: i32,
    private_pid: bool,
    user: Option<Maps>,
    /// What personality(2) takes.
    pub personality: Option<u32>,
    /// What set_mempolicy(2) takes.
    pub memory_policy: Option<(u32, Vec<u64>)>,
}

impl Joined {
    /// From the spec.
    ///
    /// # Errors
    /// Maps of a user namespace that are none.
    pub fn of(linux: &Linux) -> Result<Self> {
        let mut joined = Self {
            user: user::maps(linux)?,
            personality: linux.personality.as_ref().map(Personality::value).transpose()?,
            memory_policy: linux.memory_policy.as_ref().map(MemoryPolicy::value).transpose()?,
            ..Self::default()
        };
        for namespace in &linux.namespaces {
            joined.flags |= flag(namespace.typ());
            joined.private_pid |= namespace.typ() == LinuxNamespaceType::Pid && namespace.path().is_none();
        }
        Ok(joined)
    }

    /// Whether it is in a user namespace.
    pub fn has_user(&self) -> bool {
        self.flags & libc::CLONE_NEWUSER != 0
    }

    /// The maps of its user namespace, which those of its first process are if the spec has none.
    ///
    /// # Errors
    /// The first process has ended.
    pub fn user(&self, init: BorrowedFd<'_>) -> Result<Option<Maps>> {
        match &self.user {
            None if self.has_user() => Maps::of_process(init).map(Some),
            known => Ok(known.clone()),
        }
    }

    /// `CLONE_NEW*` of what a process enters through a pidfd. The pid namespace is not among them: it takes effect at birth.
    pub fn flags(&self) -> i32 {
        self.flags & !libc::CLONE_NEWPID
    }

    /// Whether there is a pid namespace that is not the host's.
    pub fn has_pid(&self) -> bool {
        self.flags & libc::CLONE_NEWPID != 0
    }

    /// Whether the container's first process is the init of a pid namespace of its own: when it ends, the kernel ends the others.
    pub fn has_private_pid(&self) -> bool {
        self.private_pid
    }
}

fn flag(kind: LinuxNamespaceType) -> i32 {
    KINDS.iter().find(|(known, _, _)| *known == kind).map_or(0, |(_, flag, _)| *flag)
}

/// The OCI names of what this build can make and join, for the `features` document.
pub fn ids() -> Vec<LinuxNamespaceType> {
    KINDS.iter().map(|(kind, _, _)| *kind).collect()
}

/// The namespaces of a plan.
pub struct Namespaces {
    new: i32,
    given: Vec<(i32, Slot)>,
    shared_with_host: i32,
    /// What the clocks of a new time namespace show more than the host's.
    pub time_offsets: CString,
}

/// Opens the given namespaces and checks that each is what it is said to be.
///
/// # Errors
/// A path that cannot be opened or is another kind of thing.
pub fn open(plan: &mut Builder, namespaces: &[LinuxNamespace]) -> Result<Namespaces> {
    let mut result = Namespaces { new: 0, given: Vec::new(), shared_with_host: 0, time_offsets: CString::default() };
    for &(kind, flag, name) in KINDS.iter().filter(|(kind, _, _)| *kind != LinuxNamespaceType::User) {
        let Some(namespace) = namespaces.iter().find(|namespace| namespace.typ() == kind) else {
            result.shared_with_host |= flag;
            continue;
        };
        match namespace.path() {
            None => result.new |= flag,
            Some(path) if path.as_os_str().is_empty() => result.new |= flag,
            Some(path) => {
                let opened = open_one(path, flag).context(|| format!("linux.namespaces: {}", namespace_name(kind)))?;
                if is_of(&opened, "self", name)? {
                    result.shared_with_host |= flag;
                }
                if flag == libc::CLONE_NEWNS && is_host_mounts(&opened)? {
                    let message = format!("linux.namespaces: mount: {path:?} is the host's own, which a container would take over");
                    return Err(Error::invalid(message));
                }
                let slot = plan.give(opened);
                result.given.push((flag, slot));
            }
        }
    }
    Ok(result)
}

/// Opens a namespace of a kind (`CLONE_NEW*`).
pub fn open_one(path: &Path, flag: i32) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let opened = rustix::fs::open(path, flags, Mode::empty()).context(|| format!("open {path:?}"))?;
    match namespace::namespace_type(opened.as_fd()) {
        Ok(found) if found == flag => Ok(opened),
        Ok(_) => Err(Error::invalid(format!("{path:?} is another kind of namespace"))),
        Err(_) => Err(Error::invalid(format!("{path:?} is no namespace"))),
    }
}

/// Whether a namespace is that of a process: of the runtime itself (`self`), say.
pub fn is_of(opened: &OwnedFd, process: &str, name: &str) -> Result<bool> {
    let path = format!("/proc/{process}/ns/{name}");
    let own = rustix::fs::stat(path.as_str()).context(|| format!("stat {path:?}"))?;
    let other = rustix::fs::fstat(opened).context(|| "fstat namespace")?;
    Ok((own.st_dev, own.st_ino) == (other.st_dev, other.st_ino))
}

/// The runtime may itself be in another mount namespace than the host's first process, as a unit of systemd's. A first process that may not
/// be looked at is a container's, whose mount namespace the runtime's own one is.
fn is_host_mounts(opened: &OwnedFd) -> Result<bool> {
    Ok(is_of(opened, "self", "mnt")? || is_of(opened, "1", "mnt").unwrap_or(false))
}

impl Namespaces {
    /// Joins the given ones, then makes the new ones, in one call each. The mount namespace comes later, and the pid namespace at birth.
    pub fn emit(&self, plan: &mut Builder) {
        self.join(plan);
        self.make(plan);
    }

    /// Makes the new ones.
    pub fn make(&self, plan: &mut Builder) {
        let flags = self.unborn();
        if flags != 0 {
            plan.step(Step::Unshare { flags });
        }
        self.make_time(plan);
        self.prepare(plan);
    }

    /// Makes the time namespace, sets its clocks and enters it. In a user namespace that would be too late: the file that sets them is the
    /// host's root's for as long as the process may not be looked at.
    pub fn make_time(&self, plan: &mut Builder) {
        if self.new & CLONE_NEWTIME == 0 {
            return;
        }
        plan.step(Step::Unshare { flags: CLONE_NEWTIME });
        if !self.time_offsets.is_empty() {
            plan.step(Step::TimeOffsets { offsets: self.time_offsets.clone() });
        }
        plan.step(Step::EnterTime);
    }

    /// Joins the given ones.
    pub fn join(&self, plan: &mut Builder) {
        for &(flags, namespace) in self.given.iter().filter(|(flag, _)| flag & (libc::CLONE_NEWPID | libc::CLONE_NEWNS) == 0) {
            plan.step(Step::Join { namespace, flags });
        }
    }

    /// Has the process be born in a pid namespace that others share, once it is to be born.
    pub fn enter_pid(&self, plan: &mut Builder) {
        if let Some(namespace) = self.pid() {
            plan.step(Step::EnterPid { namespace });
        }
    }

    /// The new ones that are made by the process itself.
    pub fn unborn(&self) -> i32 {
        self.new & !(libc::CLONE_NEWNS | libc::CLONE_NEWPID | CLONE_NEWTIME)
    }

    /// What the new ones need.
    pub fn prepare(&self, plan: &mut Builder) {
        if self.new & libc::CLONE_NEWNET != 0 {
            plan.step(Step::Loopback);
        }
    }

    /// A new pid namespace (`CLONE_NEWPID`), or 0. A process makes it for the next one: in the clone itself, or by unshare(2) before a birth.
    pub fn new_pid(&self) -> i32 {
        self.new & libc::CLONE_NEWPID
    }

    /// The pid namespace to be born in, which others share.
    pub fn pid(&self) -> Option<Slot> {
        self.given(libc::CLONE_NEWPID).filter(|_| !self.shares_with_host(libc::CLONE_NEWPID))
    }

    /// The mount namespace in whose place the container's mounts come.
    pub fn mount(&self) -> Option<Slot> {
        self.given(libc::CLONE_NEWNS)
    }

    fn given(&self, kind: i32) -> Option<Slot> {
        self.given.iter().find(|(flag, _)| *flag == kind).map(|(_, slot)| *slot)
    }

    /// Whether the container shares this kind (`CLONE_NEW*`) with the host, be it by omission or by path.
    pub fn shares_with_host(&self, flag: i32) -> bool {
        self.shared_with_host & flag != 0
    }
}
