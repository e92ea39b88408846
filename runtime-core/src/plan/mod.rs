//! The order of a start as data.
//!
//! A [`Plan`] is the flat list of everything that a new process does between clone and execve, with every string, number and descriptor
//! resolved. It is compiled by the parent ([`crate::compile`]) and run by the child ([`child`]) without allocating, logging or deciding.
//! So the order of privileged steps can be read (its [`Display`](std::fmt::Display) is the golden text of the tests), every step can be
//! made to fail, and a failure comes back as numbers that the parent turns into a sentence.

pub mod child;
mod console;
mod decimal;
pub mod launcher;
mod passwd;
pub(crate) mod print;
pub mod report;
mod root;

use std::ffi::CString;

use serde::{Deserialize, Serialize};

use crate::compile::options::BindFlags;
use crate::error::{Error, Result};
use crate::sys::security::Insn;

/// A place in the child's table of descriptors. The first places are filled by the parent, the others by steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slot(pub u16);

/// What a new process does, in order.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Plan {
    /// Run one after the other; the last one does not return.
    pub steps: Vec<Step>,
    /// How many places the table has.
    pub slots: u16,
    /// A step that is to fail.
    #[cfg(feature = "failpoints")]
    pub fail: Option<crate::failpoints::FailStep>,
}

impl Plan {
    /// Whether the process goes on as a new one on the way ([`Step::Birth`]).
    pub fn is_born(&self) -> bool {
        self.steps.contains(&Step::Birth)
    }
}

/// One thing that a new process does. Each is a few system calls; none has conditions that the parent could have decided.
#[allow(missing_docs, reason = "each variant says what it does; its fields are named as in the man page that it names")]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Step {
    /// Enters a cgroup by writing to its `cgroup.procs`.
    JoinCgroup { procs: Slot },
    /// Writes `/proc/self/oom_score_adj`.
    OomScoreAdj { score: i32 },
    /// Sets a label of the process, which a file in `/proc/self/attr` stands for (proc_pid_attr(5)), and reads it back; see [`Label`].
    Label { label: Label },
    /// A new session keyring (keyrings(7)); a kernel without keyrings has none to protect.
    NewKeyring { name: CString },
    /// Joins a namespace, or several through a pidfd.
    Join { namespace: Slot, flags: i32 },
    /// Has the next child born in a pid namespace: a given one, or that of a process through its pidfd (pid_namespaces(7)).
    EnterPid { namespace: Slot },
    /// Goes on as a new process, a sibling of this one, in the pid namespace for children; this one ends (clone(2), `CLONE_PARENT`).
    Birth,
    /// Fails unless the maps of the process's own user namespace are these (user_namespaces(7)); needs a procfs at `/proc`.
    CheckMaps { uid_map: CString, gid_map: CString },
    /// Makes new namespaces.
    Unshare { flags: i32 },
    /// Says what the clocks of the new time namespace, which the process has made and is not in, show more than its own (time_namespaces(7)).
    TimeOffsets { offsets: CString },
    /// Enters that namespace.
    EnterTime,
    /// Prepares a fresh network namespace: no router advertisements, then the loopback interface up.
    Loopback,
    /// A new session (setsid(2)).
    Session,

    /// Opens the way back to the host's mounts.
    OpenHost { host: Host },
    /// Opens what tells whether they have changed.
    WatchHost { host: Host },
    /// Goes back to the host's mount namespace.
    ReturnToHost { host: Host },
    /// Unmounts everything at a path; it is no error if nothing is mounted there (umount2(2), `MNT_DETACH`).
    Unmount { path: CString },
    /// Makes a mount among the host's mounts, and comes back.
    AtHost { host: Host, mount: Slot, steps: Vec<Step> },
    /// Enters a directory of the host, so that paths in the following steps may be relative to it.
    SourceDirectory { path: CString },
    /// Clones the mount at a path of the host into a detached one (open_tree(2)); without `follow`, that of a symbolic link at its end.
    CloneTree { source: CString, recursive: bool, follow: bool, mount: Slot },
    /// Makes a filesystem and a detached mount of it (fsopen(2), fsconfig(2), fsmount(2)).
    NewMount { filesystem: Filesystem, mount: Slot },
    /// Makes a procfs of a pid namespace that the process is not in, and a detached mount of it. It is made by a process that has nothing of
    /// the host's but a socket to this one; `isolate` are the namespaces (`CLONE_NEW*`) which that process makes first, since this one still
    /// has the host's.
    ProcOf { namespace: Slot, isolate: i32, filesystem: Filesystem, mount: Slot },
    /// Puts a file behind a loop device and makes a detached mount of it.
    LoopMount { source: CString, direct_io: bool, filesystem: Filesystem, mount: Slot },
    /// Makes a user namespace that has these maps (user_namespaces(7)) and no process.
    UserNamespace { uid_map: CString, gid_map: CString, namespace: Slot },
    /// Shows the owners of a detached mount's files as the maps of a user namespace say; if `recursive`, below it as well.
    IdMap { mount: Slot, namespace: Slot, recursive: bool },
    /// The same of a mount that the process has found in its user namespace, from where it may not do so: it has the parent do it, and waits.
    IdMapByParent { mount: Slot, namespace: Slot, recursive: bool },
    /// Changes attributes and propagation of a detached mount.
    Attributes { mount: Slot, recursive: bool, set: u64, clear: u64, propagation: u64 },
    /// Gives a bind these flags and no others. What is locked stays, unless it is unwanted, which fails (mount_namespaces(7)).
    BindFlags { mount: Slot, flags: BindFlags },
    /// Overlay by mount(2) with paths relative to `base`, for kernels without `lowerdir+`; needs a private mount namespace.
    OverlayByPath { base: CString, target: CString, flags: u64, data: CString, mount: Slot },

    /// Runs the plan's program, a mount helper (mount(8)), which mounts something at a path, and takes it from there as a detached mount;
    /// needs a private mount namespace.
    MountByHelper { target: CString, mount: Slot },
    /// Clones what is mounted at a path of another mount namespace into a detached mount, and comes back.
    TakeFrom { namespace: Slot, path: CString, mount: Slot },
    /// Opens a namespace of the process itself at a path of a procfs.
    OpenNamespace { proc: Slot, path: CString, namespace: Slot },
    /// Gives a descriptor to the parent: a detached mount, or a namespace.
    HandOver { descriptor: Slot },
    /// Ends when the last process ends that this one, the init of a pid namespace, has to reap.
    Keep,

    /// Enters the launcher's nearly empty mount namespace, and makes a copy of it.
    EnterStub,
    /// Changes the propagation of everything below `/`.
    Propagation { flags: u64 },
    /// Attaches the root filesystem at a path of the present mount namespace and opens it.
    AttachRoot { mount: Slot, path: CString, root: Slot },
    /// Attaches a clone of a part of the host's tree for the time being, from when on it follows the host's mounts. If these have changed since
    /// it was made, it lacks something for good, and is made again; so is one that is not made yet.
    Settle { host: Host, mount: Slot, again: Vec<Step> },
    /// The next new filesystem gets the permissions of its mount point, if that is there already.
    TakeMode { root: Slot, target: CString },
    /// Clones what is at a path beneath the root.
    CloneOwn { root: Slot, path: CString, recursive: bool, follow: bool, mount: Slot },
    /// Copies what the root has at a path into a new filesystem that will cover it, with `owner` the directory's own as well; a missing one is
    /// fine.
    CopyUp { mount: Slot, root: Slot, target: CString, owner: bool },
    /// Gives the root of a new filesystem its SELinux label.
    FileLabel { mount: Slot, label: CString },
    /// Attaches a mount beneath the root; missing parents and the mount point are made.
    Attach { mount: Slot, root: Slot, target: CString, rule: Target },
    /// Closes a descriptor.
    Close { slot: Slot },
    /// Opens a directory beneath the root, made if missing.
    OpenDirectory { root: Slot, path: CString, directory: Slot },
    /// Makes a directory below an opened one, if missing.
    MakeDirectory { directory: Slot, name: CString, mode: u32 },
    /// Makes a device node below the root, if missing.
    Device { root: Slot, path: CString, node: Node },
    /// Makes a symbolic link in an opened directory, replacing what is no directory.
    Symlink { directory: Slot, name: CString, target: CString },
    /// A pseudoterminal from the container's own devpts, or the one in `pts` of a `/dev` that is not its own: the master goes to the parent,
    /// the peer becomes the standard streams and `console` in `devices`.
    Console { devpts: Option<Slot>, devices: Slot, cover: Cover, uid: u32, size: Option<(u16, u16)>, onlcr: bool },
    /// The same for a process that joins a container: the terminal multiplexer is looked up beneath `/` and checked.
    JoinedConsole { uid: u32, size: Option<(u16, u16)>, onlcr: bool },
    /// Makes the terminal on standard input the controlling one of the process's session (ioctl_tty(2), `TIOCSCTTY`).
    ControlTerminal,

    /// Tells the parent that the namespaces exist, and waits until it has run its hooks and moved network devices.
    PauseForHooks,
    /// Makes the root filesystem the root of the mount namespace and drops the old one (pivot_root(2)).
    Pivot { root: Slot },
    /// The same where the root cannot be pivoted: the mount is moved over `/`, then chroot(2).
    MoveRoot { root: Slot },
    /// Changes attributes and propagation of the mount at `/`.
    RootAttributes { recursive: bool, set: u64, propagation: u64 },
    /// Makes a path of the container read-only, with everything below; a missing one is fine.
    ReadOnly { path: CString },
    /// Covers a path of the container: a file by `null`, a directory by `empty`; a missing one is fine.
    Mask { path: CString, null: Slot, empty: Slot },

    /// sethostname(2).
    HostName { name: CString },
    /// setdomainname(2).
    DomainName { name: CString },
    /// Writes a value below `sys` of a procfs that is known to be one.
    Sysctl { proc: Slot, path: CString, value: CString },

    /// Makes a descriptor a standard stream.
    Stream { number: i32, from: Slot },
    /// Makes the standard streams that are no null device the user's.
    OwnStreams { uid: u32 },
    /// setrlimit(2).
    Rlimit { resource: u32, soft: u64, hard: u64 },
    /// sched_setaffinity(2).
    Affinity { mask: Vec<u64> },
    /// sched_setattr(2).
    Scheduler { policy: u32, flags: u64, nice: i32, priority: u32, runtime: u64, deadline: u64, period: u64 },
    /// ioprio_set(2).
    IoPriority { value: u32 },
    /// personality(2).
    Personality { value: u32 },
    /// set_mempolicy(2).
    MemoryPolicy { mode: u32, nodes: Vec<u64> },
    /// umask(2).
    Umask { mask: u32 },
    /// Adds `HOME` to the environment, as the container's passwd(5) has it for a user; `/` if it says nothing.
    Home { uid: u32 },
    /// Makes a directory of the container, with parents, if missing.
    MakeWorkingDirectory { path: CString },
    /// Drops everything but these capabilities from the bounding set.
    BoundingSet { keep: u64 },
    /// Loads a seccomp filter; if that makes a listener, waits until the parent has taken it.
    Seccomp { program: Vec<Insn>, flags: u32 },
    /// No gain of rights by execve from here on.
    NoNewPrivileges,
    /// Becomes the user: groups, which stay what they are if none are given, gid, uid.
    Identity { uid: u32, gid: u32, groups: Option<Vec<u32>> },
    /// The capability sets of the process.
    Capabilities { effective: u64, permitted: u64, inheritable: u64, ambient: u64 },
    /// Enters the working directory; with `later`, one that root may not enter is left to a second try as the user.
    WorkingDirectory { path: CString, later: bool },
    /// Finds the first of the candidates that is a file which the user may execute.
    FindProgram,
    /// Moves descriptors out of the way of numbers that are to be given.
    Relocate { above: i32 },
    /// Closes everything from `first` on but the report, which becomes `first`, and the parent's end of it, if the process holds that itself,
    /// which becomes the next one.
    CloseOthers { first: i32, parents_end: Option<Slot> },
    /// Tells the parent that the process is ready, and waits for the start.
    Ready,
    /// execve(2). A helper whose program cannot be executed reports that to the parent. A container's process (`own`) ends of it as a command of a
    /// shell does: with a line on its standard error and status 126 or 127.
    Exec { own: bool },
    /// execveat(2) of an open file, with the program's arguments.
    ExecFile { file: Slot },
}

/// What fsopen(2), fsconfig(2) and fsmount(2) are told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Filesystem {
    /// A name in `/proc/filesystems`.
    pub fstype: CString,
    /// In order; without a value it is a flag.
    pub options: Vec<(CString, Option<CString>)>,
    /// After them, options whose values are mounts.
    pub mounts: Vec<(CString, Slot)>,
    /// `MOUNT_ATTR_*`.
    pub attributes: u64,
}

/// The host's mount namespace, as seen by a process that has left it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// Its `mountinfo`, which poll(2) finds changed after each mount and unmount (proc_pid_mountinfo(5)).
    pub table: Slot,
    /// The namespace.
    pub namespace: Slot,
    /// The runtime's root there.
    pub root: Slot,
    /// The process's own directory in its procfs.
    pub process: Slot,
}

/// What mknod(2) makes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// `S_IFCHR`, `S_IFBLK` or `S_IFIFO`.
    pub kind: u32,
    /// Permissions, exactly.
    pub mode: u32,
    /// makedev(3).
    pub device: u64,
    /// The owner.
    pub uid: u32,
    /// The owner's group.
    pub gid: u32,
}

/// What becomes of `/dev/console` when there is a terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cover {
    /// It is the terminal.
    Made,
    /// The same if it exists: the directory is not the container's.
    IfThere,
    /// It is left alone: what is mounted on it would be seen outside of the container.
    Never,
}

/// What may lie under a mount point (contract of the OCI spec, and of the published attacks on `/proc`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Target {
    /// Anything but procfs.
    Ordinary,
    /// A real directory, reached without symbolic links.
    PlainDirectory,
    /// The same, and what is mounted there must be a procfs.
    Proc,
    /// A file of procfs that may be covered, for instance `/proc/cpuinfo`.
    ProcFile,
    /// As for an ordinary one, but a symbolic link at the end is covered itself.
    Itself,
    /// As for an ordinary one, but in place of mounting a symbolic link its text becomes one.
    Link,
}

/// A label of a security module for the program to come, or for the keys of the process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Label {
    /// A file of the process's own, in the host's procfs.
    pub file: CString,
    /// What is written.
    pub text: CString,
    /// What the file says then, up to a mode or its end; empty where it may say the same in other words.
    pub shown: CString,
}

/// What is executed at the end of a plan.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    /// What was asked for, as messages quote it: a path, or a name that was searched for.
    pub name: String,
    /// Paths to try, in order.
    pub candidates: Vec<CString>,
    /// The arguments, the program's name first.
    pub arguments: Vec<CString>,
    /// `KEY=value`.
    pub environment: Vec<CString>,
}

/// What the launcher is asked for: how to clone, and what the new process does then.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Launch {
    /// The steps.
    pub plan: Plan,
    /// What runs in the end.
    pub program: Program,
    /// `CLONE_NEW*` for the clone itself.
    pub clone_flags: u64,
    /// The cgroup v2 directory that the process is born in.
    pub cgroup: Option<Slot>,
    /// Where the child reports.
    pub report: Slot,
}

/// Builds a plan, handing out slots. The descriptors go to the launcher beside the plan.
#[derive(Default)]
pub struct Builder {
    steps: Vec<Step>,
    /// More than there can be are told of in the end.
    slots: usize,
    given: Vec<std::os::fd::OwnedFd>,
}

impl Builder {
    /// A slot for a descriptor that the parent hands over. All of these come before the first [`Builder::slot`].
    pub fn give(&mut self, fd: std::os::fd::OwnedFd) -> Slot {
        debug_assert_eq!(self.slots, self.given.len(), "descriptors are given before slots are made");
        self.given.push(fd);
        self.slot()
    }

    /// A slot that a step will fill.
    pub fn slot(&mut self) -> Slot {
        let slot = u16::try_from(self.slots).unwrap_or(u16::MAX);
        self.slots += 1;
        Slot(slot)
    }

    /// Appends a step.
    pub fn step(&mut self, step: Step) {
        self.steps.push(step);
    }

    /// How many steps there are.
    pub fn length(&self) -> usize {
        self.steps.len()
    }

    /// The steps after the first `length`.
    pub fn steps_from(&self, length: usize) -> Vec<Step> {
        self.steps.get(length..).unwrap_or_default().to_vec()
    }

    /// Takes out the steps after the first `length`.
    pub fn take_from(&mut self, length: usize) -> Vec<Step> {
        self.steps.split_off(length.min(self.steps.len()))
    }

    /// Moves the steps that `is_early` to where there are `length` before them; their order among each other stays.
    pub fn bring_forward(&mut self, length: usize, is_early: impl Fn(&Step) -> bool) {
        let (early, rest): (Vec<_>, Vec<_>) = self.take_from(length).into_iter().partition(is_early);
        self.steps.extend(early);
        self.steps.extend(rest);
    }

    /// The plan, and the descriptors of its first slots.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`](crate::ErrorKind::InvalidArgument) for a plan whose steps or descriptors have no numbers any more.
    pub fn finish(self) -> Result<(Plan, Vec<std::os::fd::OwnedFd>)> {
        let count = |what: &str, count: usize| {
            let most = u16::MAX;
            u16::try_from(count)
                .map_err(|_| Error::invalid(format!("mounts, devices, paths: {count} {what} to start, {most} are the most")))
        };
        count("steps", self.steps.len())?;
        let plan = Plan {
            slots: count("descriptors", self.slots)?,
            steps: self.steps,
            #[cfg(feature = "failpoints")]
            fail: crate::failpoints::FailStep::from_environment(),
        };
        Ok((plan, self.given))
    }
}
