//! The yardstick: what the kernel must be asked for one start and one exec of a container with containerd's default specification, and
//! nothing else. No file is parsed, nothing is checked, recorded or reported, no rule of security is kept; so no runtime can be faster.
//!
//! One start: a directory in each cgroup hierarchy, a detached overlay, clone3 with the namespaces, the loopback interface, pivot_root, seven
//! mounts, five read-only and ten masked paths, capabilities, the seccomp filter, execve. Then the end, and the cgroup's removal.

use std::convert::Infallible;
use std::ffi::CStr;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use runtime_core::seccomp::{self, Insn};
use runtime_core::sys::mount::{attr, set_attributes};
use runtime_core::sys::process::{self, Cloned, StringArray};
use runtime_core::sys::{security, tty};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, mkdirat, mknodat, openat, symlinkat, unlinkat};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
    fsconfig_create, fsconfig_set_string, fsmount, fsopen, mount, mount_change, move_mount, open_tree, unmount,
};
use rustix::process::{PidfdFlags, getpid, pidfd_open, pivot_root};

use crate::{Context, Result, ensure, fail, proc};

use super::clone::clone;
use super::place::{self, Cgroups, GivenNet, Net};
use super::worker::Contender;
use super::{Sample, micros, payload};

/// The fourteen capabilities of containerd's default, by number.
const CAPABILITIES: u64 = 0xa804_25fb;
const CAPABILITY_LAST: u32 = 40;
const NAMESPACES: i32 = libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS;
/// How long a cgroup may stay busy after its last process was reaped.
const BUSY: Duration = Duration::from_secs(2);
const MASKED: [&CStr; 10] = [
    c"/proc/acpi",
    c"/proc/asound",
    c"/proc/kcore",
    c"/proc/keys",
    c"/proc/latency_stats",
    c"/proc/timer_list",
    c"/proc/timer_stats",
    c"/proc/sched_debug",
    c"/sys/firmware",
    c"/proc/scsi",
];
const READONLY: [&CStr; 5] = [c"/proc/bus", c"/proc/fs", c"/proc/irq", c"/proc/sys", c"/proc/sysrq-trigger"];
/// The device rules of the specification as version 1 takes them.
const DEVICE_RULES: [&str; 10] =
    ["c *:* m", "b *:* m", "c 1:3 rwm", "c 1:5 rwm", "c 1:7 rwm", "c 1:8 rwm", "c 1:9 rwm", "c 5:0 rwm", "c 5:2 rwm", "c 136:* rwm"];

struct Hierarchy {
    root: OwnedFd,
    version1: bool,
    devices: bool,
    /// What a new directory of a cpuset must be given.
    cpuset: Vec<(&'static str, String)>,
}

/// A container's directory in one hierarchy.
struct Directory {
    fd: OwnedFd,
    procs: Option<OwnedFd>,
}

/// A container that runs.
struct Running {
    name: String,
    directories: Vec<Directory>,
    pidfd: OwnedFd,
}

/// The yardstick, in a process of its own.
pub struct Floor {
    hierarchies: Vec<Hierarchy>,
    given: Option<GivenNet>,
    filter: Vec<Insn>,
    empty: OwnedFd,
    count: u32,
    paused: Option<Running>,
}

impl Floor {
    /// Leaves the host's mount namespace for an empty one, so that the host's mounts are not copied at each clone.
    pub fn new(cgroups: Cgroups, net: Net) -> Result<Floor> {
        place::enter(cgroups)?;
        // Those that the bare tree hides are in the table still.
        let roots = proc::cgroup_roots().into_iter().filter(|root| root.join("cgroup.procs").exists());
        let hierarchies = roots.map(|root| hierarchy(&root)).collect::<Result<Vec<_>>>()?;
        let profile = serde_json::from_value(place::seccomp()?)?;
        let filter = seccomp::compile(&profile)?.program;
        let given = if net == Net::Given { Some(GivenNet::new()?) } else { None };
        let empty = stub()?;
        let mut floor = Floor { hierarchies, given, filter, empty, count: 0, paused: None };
        floor.paused = Some(floor.start(c"/pause")?.0);
        Ok(floor)
    }

    /// One start: until execve is done.
    fn start(&mut self, program: &CStr) -> Result<(Running, f64)> {
        self.count += 1;
        let name = format!("floor-{}-{}", std::process::id(), self.count);
        let (upper, work) = (format!("/u/{}", self.count), format!("/w/{}", self.count));
        fs::create_dir(&upper)?;
        fs::create_dir(&work)?;
        let begin = Instant::now();
        let directories = self.hierarchies.iter().map(|h| h.make(&name)).collect::<std::result::Result<Vec<_>, Errno>>();
        let directories = directories.context(|| "cgroup".to_owned())?;
        let overlay = filesystem(c"overlay", &[(c"lowerdir", "/l"), (c"upperdir", &upper), (c"workdir", &work)], MountAttrFlags::empty());
        let overlay = overlay.context(|| "overlay".to_owned())?;
        let (executed, report) = std::io::pipe()?;
        let own_net = if self.given.is_none() { libc::CLONE_NEWNET } else { 0 };
        let pidfd = match clone((NAMESPACES | own_net) as u64, unified(&directories))? {
            Cloned::Child => end(self.run(overlay, &directories, program)),
            Cloned::Parent(_, pidfd) => pidfd,
        };
        drop((overlay, report));
        await_close(executed)?;
        let took = micros(begin);
        Ok((Running { name, directories, pidfd }, took))
    }

    fn run(&self, overlay: OwnedFd, directories: &[Directory], program: &CStr) -> std::result::Result<Infallible, Errno> {
        join_cgroups(directories)?;
        match &self.given {
            Some(net) => process::setns(net.descriptor().as_fd(), libc::CLONE_NEWNET)?,
            None => {
                let socket = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None)?;
                tty::set_loopback_up(socket.as_fd())?;
            }
        }
        attach(overlay, c"/r")?;
        rustix::process::chdir(c"/r")?;
        pivot_root(c".", c".")?;
        unmount(c".", UnmountFlags::DETACH)?;
        rustix::process::chdir(c"/")?;
        mounts()?;
        for path in READONLY {
            read_only(path)?;
        }
        for path in MASKED {
            self.mask(path)?;
        }
        self.confine(program)
    }

    fn mask(&self, path: &CStr) -> std::result::Result<(), Errno> {
        let clone = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let cover = match rustix::fs::stat(path) {
            Ok(found) if FileType::from_raw_mode(found.st_mode).is_dir() => {
                open_tree(&self.empty, c"", clone | OpenTreeFlags::AT_EMPTY_PATH)?
            }
            Ok(_) => open_tree(CWD, c"/dev/null", clone)?,
            Err(Errno::NOENT) => return Ok(()),
            Err(errno) => return Err(errno),
        };
        attach(cover, path)
    }

    fn confine(&self, program: &CStr) -> std::result::Result<Infallible, Errno> {
        rustix::process::setsid()?;
        rustix::process::umask(Mode::from_raw_mode(0o022));
        security::set_rlimit(libc::RLIMIT_NOFILE, 1024, 1024)?;
        for capability in (0..=CAPABILITY_LAST).filter(|number| CAPABILITIES & (1 << number) == 0) {
            security::drop_bounding(capability)?;
        }
        security::no_new_privileges()?;
        security::set_groups(&[])?;
        security::set_gid(0)?;
        security::set_uid(0)?;
        security::set_capabilities(CAPABILITIES, CAPABILITIES, 0)?;
        process::cloexec_from(3)?;
        security::load_filter(&self.filter, 0)?;
        let arguments = StringArray::new(vec![program.to_owned()]);
        let environment = StringArray::new(vec![c"PATH=/bin:/sbin".to_owned()]);
        Err(process::execve(program, &arguments, &environment))
    }

    /// One exec of `/true` in the paused container: until execve is done, and until it is reaped.
    fn exec(&self) -> Result<(f64, f64)> {
        let paused = self.paused.as_ref().context(|| "no container is paused".to_owned())?;
        let begin = Instant::now();
        let own = pidfd_open(getpid(), PidfdFlags::empty())?;
        process::setns(paused.pidfd.as_fd(), libc::CLONE_NEWPID)?;
        let (executed, report) = std::io::pipe()?;
        let pidfd = match clone(0, unified(&paused.directories))? {
            Cloned::Child => end(self.join(paused)),
            Cloned::Parent(_, pidfd) => pidfd,
        };
        process::setns(own.as_fd(), libc::CLONE_NEWPID)?;
        drop(report);
        await_close(executed)?;
        let took = micros(begin);
        reap(&pidfd)?;
        Ok((took, micros(begin)))
    }

    fn join(&self, paused: &Running) -> std::result::Result<Infallible, Errno> {
        join_cgroups(&paused.directories)?;
        let others = (NAMESPACES & !libc::CLONE_NEWPID) | libc::CLONE_NEWNET;
        process::setns(paused.pidfd.as_fd(), others)?;
        rustix::process::chdir(c"/")?;
        self.confine(c"/true")
    }

    fn remove(&self, running: Running) -> Result<()> {
        let Running { name, directories, .. } = running;
        drop(directories);
        let end = Instant::now() + BUSY;
        for hierarchy in &self.hierarchies {
            while let Err(errno) = unlinkat(&hierarchy.root, name.as_str(), AtFlags::REMOVEDIR) {
                ensure!(errno == Errno::BUSY && Instant::now() < end, "rmdir of cgroup {name}: {errno}");
                std::thread::yield_now();
            }
        }
        // Not the kernel's work of a container: containerd removes a snapshot on its own time.
        let _ = fs::remove_dir_all(format!("/u/{}", self.count));
        Ok(())
    }
}

impl Contender for Floor {
    fn sample(&mut self) -> Result<Sample> {
        let begin = Instant::now();
        let (running, start) = self.start(c"/true")?;
        reap(&running.pidfd)?;
        self.remove(running)?;
        let run = micros(begin);
        let (exec, exec_run) = self.exec()?;
        let values = [("start", start), ("run", run), ("exec", exec), ("exec run", exec_run)];
        Ok(values.map(|(name, value)| (name.to_owned(), value)).into())
    }

    fn life(&mut self) -> Result<()> {
        let (running, _) = self.start(c"/true")?;
        reap(&running.pidfd)?;
        self.remove(running)
    }
}

impl Drop for Floor {
    fn drop(&mut self) {
        if let Some(paused) = self.paused.take() {
            // What fails here is named by the next run's ledger of cgroups.
            let _ = rustix::process::pidfd_send_signal(&paused.pidfd, rustix::process::Signal::KILL);
            let _ = process::wait(paused.pidfd.as_fd());
            let _ = self.remove(paused);
        }
    }
}

impl Hierarchy {
    fn make(&self, name: &str) -> std::result::Result<Directory, Errno> {
        mkdirat(&self.root, name, Mode::from_raw_mode(0o755))?;
        let fd = openat(&self.root, name, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        for (file, value) in &self.cpuset {
            put(&fd, file, value)?;
        }
        if self.devices {
            put(&fd, "devices.deny", "a")?;
            DEVICE_RULES.iter().try_for_each(|rule| put(&fd, "devices.allow", rule))?;
        }
        let procs = match self.version1 {
            true => Some(openat(&fd, "cgroup.procs", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?),
            false => None,
        };
        Ok(Directory { fd, procs })
    }
}

fn put(directory: &OwnedFd, file: &str, value: &str) -> std::result::Result<(), Errno> {
    let file = openat(directory, file, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(&file, value.as_bytes()).map(drop)
}

fn hierarchy(root: &Path) -> Result<Hierarchy> {
    let values = ["cpuset.cpus", "cpuset.mems"].into_iter();
    // On version 2 an empty set means the parent's.
    let version1 = !root.join("cgroup.controllers").exists();
    let cpuset = values.filter(|_| version1).filter_map(|file| Some((file, fs::read_to_string(root.join(file)).ok()?))).collect();
    let devices = root.join("devices.deny").exists();
    let root = rustix::fs::open(root, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    Ok(Hierarchy { root, version1, devices, cpuset })
}

/// The version 2 directory: where a process is born.
fn unified(directories: &[Directory]) -> Option<std::os::fd::BorrowedFd<'_>> {
    directories.iter().find(|directory| directory.procs.is_none()).map(|directory| directory.fd.as_fd())
}

fn join_cgroups(directories: &[Directory]) -> std::result::Result<(), Errno> {
    directories.iter().filter_map(|d| d.procs.as_ref()).try_for_each(|procs| rustix::io::write(procs, b"0").map(drop))
}

/// An emptied mount namespace on one tmpfs: the lower directory with the payload, room for upper directories, and an empty read-only mount.
fn stub() -> Result<OwnedFd> {
    mount("floor", "/mnt", "tmpfs", MountFlags::empty(), None)?;
    rustix::process::chdir("/mnt")?;
    pivot_root(".", ".")?;
    unmount(".", UnmountFlags::DETACH)?;
    rustix::process::chdir("/")?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    for dir in ["r", "l", "l/proc", "l/sys", "l/dev", "l/run", "u", "w"] {
        fs::create_dir(Path::new("/").join(dir))?;
    }
    payload::write(Path::new("/l"))?;
    Ok(filesystem(c"tmpfs", &[(c"nr_blocks", "1"), (c"nr_inodes", "2")], MountAttrFlags::MOUNT_ATTR_RDONLY)?)
}

fn filesystem(kind: &CStr, options: &[(&CStr, &str)], attributes: MountAttrFlags) -> std::result::Result<OwnedFd, Errno> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in options {
        fsconfig_set_string(context.as_fd(), *key, *value)?;
    }
    fsconfig_create(context.as_fd())?;
    fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

fn attach(tree: OwnedFd, path: &CStr) -> std::result::Result<(), Errno> {
    move_mount(&tree, c"", CWD, path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
}

fn read_only(path: &CStr) -> std::result::Result<(), Errno> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    let tree = match open_tree(CWD, path, flags) {
        Err(Errno::NOENT) => return Ok(()),
        other => other?,
    };
    set_attributes(tree.as_fd(), c"", true, attr::RDONLY, 0, 0)?;
    attach(tree, path)
}

/// The seven mounts of containerd's default and what belongs in /dev.
fn mounts() -> std::result::Result<(), Errno> {
    let nosuid = MountAttrFlags::MOUNT_ATTR_NOSUID;
    let noexec = nosuid | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let closed = noexec | MountAttrFlags::MOUNT_ATTR_NODEV;
    let strict = nosuid | MountAttrFlags::MOUNT_ATTR_STRICTATIME;
    attach(filesystem(c"proc", &[], closed)?, c"/proc")?;
    attach(filesystem(c"tmpfs", &[(c"mode", "755"), (c"size", "65536k")], strict)?, c"/dev")?;
    for (name, major, minor) in [
        (c"/dev/null", 1, 3),
        (c"/dev/zero", 1, 5),
        (c"/dev/full", 1, 7),
        (c"/dev/random", 1, 8),
        (c"/dev/urandom", 1, 9),
        (c"/dev/tty", 5, 0),
    ] {
        mknodat(CWD, name, FileType::CharacterDevice, Mode::from_raw_mode(0o666), rustix::fs::makedev(major, minor))?;
    }
    let links = [
        (c"/proc/self/fd", c"/dev/fd"),
        (c"/proc/self/fd/0", c"/dev/stdin"),
        (c"/proc/self/fd/1", c"/dev/stdout"),
        (c"/proc/self/fd/2", c"/dev/stderr"),
        (c"pts/ptmx", c"/dev/ptmx"),
    ];
    links.into_iter().try_for_each(|(target, link)| symlinkat(target, CWD, link))?;
    [c"/dev/pts", c"/dev/shm", c"/dev/mqueue"].into_iter().try_for_each(|dir| mkdirat(CWD, dir, Mode::from_raw_mode(0o755)))?;
    attach(filesystem(c"devpts", &[(c"ptmxmode", "0666"), (c"mode", "0620"), (c"gid", "5")], noexec)?, c"/dev/pts")?;
    attach(filesystem(c"tmpfs", &[(c"mode", "1777"), (c"size", "65536k")], closed)?, c"/dev/shm")?;
    attach(filesystem(c"mqueue", &[], closed)?, c"/dev/mqueue")?;
    attach(filesystem(c"sysfs", &[], closed | MountAttrFlags::MOUNT_ATTR_RDONLY)?, c"/sys")?;
    attach(filesystem(c"tmpfs", &[(c"mode", "755"), (c"size", "65536k")], strict)?, c"/run")
}

/// A child that did not become its program says why and ends.
fn end(failed: std::result::Result<Infallible, Errno>) -> ! {
    let Err(errno) = failed;
    eprintln!("yardstick: a child failed: {errno}");
    process::exit(100)
}

/// The child's end of the pipe is close-on-exec.
fn await_close(mut executed: std::io::PipeReader) -> Result<()> {
    Ok(std::io::Read::read_exact(&mut executed, &mut [0]).map_or(Ok(()), |()| Err(std::io::Error::other("the child wrote")))?)
}

fn reap(pidfd: &OwnedFd) -> Result<()> {
    match process::wait(pidfd.as_fd())? {
        Some(ended) if ended.status == 0 => Ok(()),
        Some(ended) => fail!("the payload ended with {}", ended.status),
        None => fail!("the payload is no child"),
    }
}
