//! The launcher: a small single-threaded process that forks what becomes a container.
//!
//! It is forked by the daemon before any runtime exists, owns no socket but the one to the daemon, and lives in the host's mount namespace.
//! One that was killed is replaced by one that is executed afresh ([`Launcher::execute`]): by then the daemon may have threads, and a process
//! with threads must not be forked. Its children are the daemon's children (`CLONE_PARENT`) and inherit nothing of other containers.
//!
//! It holds a *stub*: a mount namespace with a few empty directories and a null device on a read-only tmpfs. A container's mount namespace is
//! copied from that, so that its cost does not grow with the host's mount table.
//! In a user namespace it has the host's procfs and sysfs as well, without which no container may mount its own.
//!
//! When the daemon's end of the socket closes, the daemon has died and its containers have no supervisor: the launcher kills the first
//! processes and the cgroups that it was told to watch, removes the cgroups, and ends.

use std::collections::HashMap;
use std::ffi::{CStr, OsString};
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, FileType, Mode, OFlags, makedev, mknodat};
use rustix::io::{Errno, IoSliceMut};
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount, mount_change, move_mount, open_tree, unmount,
};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize};

use super::Launch;
use super::child::{Child, HOME, run};
use super::passwd::HOME_MAX;
use crate::cgroup::{Cgroup, CgroupPath, Host};
use crate::container::record::{ProcessId, Record};
use crate::error::{Context, Error, Result};
use crate::kernel::in_user_namespace;
use crate::sys::fork::{Fork, fork};
use crate::sys::memory;
use crate::sys::mount::{attr, set_attributes};
use crate::sys::process::{self, Cloned, StringArray};
use crate::systemd;

/// The kernel passes at most this many descriptors with one message (`SCM_MAX_FD` of net/scm.h).
const DESCRIPTORS_MAX: usize = 253;
/// A plan is a few kilobytes; the bound keeps a mad request from eating the node's memory.
const REQUEST_MAX: usize = 64 << 20;
const HEADER: usize = 4;
const ANSWER: usize = 8;
/// How long one cgroup may take to die.
const ABANDON: Duration = Duration::from_secs(2);
/// How long after a request the launcher expects another one.
const QUIET: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };
/// The launcher's own end of the socket.
const CONTROL: u32 = 3;
const OWN_PROGRAM: &str = "/proc/self/exe";

/// What the daemon asks.
#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    /// Start a process. Answered.
    Launch(Box<Launch>),
    /// Kill and remove this cgroup when the daemon is gone; a lock that comes with it is held meanwhile. Not answered.
    Watch(String, CgroupPath),
    /// Its first process, which may leave the cgroup. Not answered.
    First(String, ProcessId),
    /// Forget it. Not answered.
    Forget(String),
}

/// A started process: the daemon's child.
#[derive(Clone, Debug)]
pub struct Launched {
    /// As the host sees it.
    pub pid: i32,
    /// For signals and its end.
    pub pidfd: Arc<OwnedFd>,
}

/// The daemon's side of a launcher.
#[derive(Debug)]
pub struct Launcher {
    socket: OwnedFd,
    pid: i32,
}

impl Launcher {
    /// Forks a launcher off the caller, which must be single-threaded.
    ///
    /// # Errors
    /// At a limit of processes or descriptors.
    pub fn spawn() -> Result<Self> {
        let (daemon, control) = sockets()?;
        match fork().context(|| "launcher")? {
            Fork::Parent(pid) => Ok(Self { socket: daemon, pid: pid.as_raw_nonzero().get() }),
            Fork::Child => {
                let status = match serve(control) {
                    Ok(()) => 0,
                    Err(_) => 1,
                };
                process::exit(status)
            }
        }
    }

    /// Executes a launcher from the program that the caller runs, whose `main` calls [`launch_from_stdin`] when it finds `arguments`. The
    /// caller may have threads: nothing of it is copied.
    ///
    /// # Errors
    /// At a limit of processes or descriptors.
    pub fn execute(arguments: impl IntoIterator<Item = OsString>) -> Result<Self> {
        let (daemon, control) = sockets()?;
        let mut command = Command::new(OWN_PROGRAM);
        if let Some(name) = std::env::args_os().next() {
            command.arg0(name);
        }
        command.args(arguments).stdin(Stdio::from(control)).stdout(Stdio::null()).stderr(Stdio::null());
        // Not waited for: the daemon reaps whatever ends, as it does the launcher that was forked.
        let child = command.spawn().map_err(|error| Error::io("launcher: execute /proc/self/exe", &error))?;
        let pid = i32::try_from(child.id()).map_err(|_| Error::invalid("launcher: no pid"))?;
        Ok(Self { socket: daemon, pid })
    }

    /// The launcher's process id.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Non-blocking; readable when an answer is there or the launcher is gone.
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Sends as much of `message` as fits, the descriptors with the first byte: `(bytes sent)`.
    ///
    /// # Errors
    /// `EAGAIN` if nothing fits; `EPIPE` if the launcher is gone.
    pub fn send(&self, message: &[u8], descriptors: &[BorrowedFd<'_>]) -> std::result::Result<usize, Errno> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
            return Err(Errno::TOOBIG);
        }
        sendmsg(&self.socket, &[IoSlice::new(message)], &mut control, SendFlags::NOSIGNAL)
    }

    /// The answer to a [`Request::Launch`].
    ///
    /// # Errors
    /// `EAGAIN` as the outer error if there is none yet, `EPIPE` if the launcher is gone; the inner error is why the clone failed.
    pub fn receive(&self) -> std::result::Result<std::result::Result<Launched, Errno>, Errno> {
        let mut bytes = [0u8; ANSWER];
        let (length, mut descriptors) = receive(self.socket.as_fd(), &mut bytes)?;
        if length != ANSWER {
            return Err(Errno::PIPE);
        }
        let [pid, errno] = [&bytes[..4], &bytes[4..]].map(|half| i32::from_ne_bytes([half[0], half[1], half[2], half[3]]));
        match descriptors.pop() {
            Some(pidfd) => Ok(Ok(Launched { pid, pidfd: Arc::new(pidfd) })),
            None if pid > 0 => {
                // At the caller's limit of descriptors the kernel drops the pidfd. The process is the caller's child and not reaped, so it still
                // has its number.
                let _ = rustix::process::Pid::from_raw(pid).map(|pid| rustix::process::kill_process(pid, rustix::process::Signal::KILL));
                Ok(Err(Errno::MFILE))
            }
            None => Ok(Err(Errno::from_raw_os_error(errno))),
        }
    }
}

/// The daemon's end, which does not block, and the launcher's.
fn sockets() -> Result<(OwnedFd, OwnedFd)> {
    let flags = rustix::net::SocketFlags::CLOEXEC;
    let (daemon, control) = rustix::net::socketpair(rustix::net::AddressFamily::UNIX, rustix::net::SocketType::STREAM, flags, None)
        .context(|| "launcher: socketpair")?;
    rustix::io::ioctl_fionbio(&daemon, true).context(|| "launcher: socket")?;
    Ok((daemon, control))
}

/// The life of a launcher that was executed, with its socket as standard input.
///
/// # Errors
/// The step that failed; the caller ends then.
pub fn launch_from_stdin() -> Result<()> {
    let control = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), CONTROL as i32).context(|| "launcher: standard input")?;
    let kind = rustix::fs::fstat(&control).map(|found| FileType::from_raw_mode(found.st_mode));
    if kind != Ok(FileType::Socket) {
        return Err(Error::invalid("launcher: standard input is no socket: only the daemon starts a launcher"));
    }
    let null = rustix::fs::open(c"/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).context(|| "launcher: open /dev/null")?;
    rustix::stdio::dup2_stdin(&null).context(|| "launcher: /dev/null")?;
    drop(null);
    serve(control)
}

impl Request {
    /// The bytes of the message.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`](crate::ErrorKind::InvalidArgument) for one that is too large.
    pub fn encode(&self) -> Result<Vec<u8>> {
        let mut bytes = vec![0u8; HEADER];
        bytes = postcard::to_extend(self, bytes).map_err(|error| Error::invalid(format!("plan: encode: {error}")))?;
        let length = bytes.len() - HEADER;
        if length > REQUEST_MAX {
            return Err(Error::invalid(format!("plan: {length} bytes are more than {REQUEST_MAX}")));
        }
        bytes[..HEADER].copy_from_slice(&(length as u32).to_ne_bytes());
        Ok(bytes)
    }
}

fn receive(socket: BorrowedFd<'_>, bytes: &mut [u8]) -> std::result::Result<(usize, Vec<OwnedFd>), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let message = recvmsg(socket, &mut [IoSliceMut::new(bytes)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let descriptors = control
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(rights) => Some(rights),
            _ => None,
        })
        .flatten()
        .collect();
    Ok((message.bytes, descriptors))
}

/// The nearly empty mount namespace.
struct Stub {
    namespace: OwnedFd,
    /// Its root directory, if there is a `dev/null` in it.
    null: Option<OwnedFd>,
}

/// What the launcher process owns besides its socket.
struct Server {
    control: OwnedFd,
    stub: Stub,
    watched: HashMap<String, Watched>,
}

/// What dies with the daemon.
struct Watched {
    cgroup: CgroupPath,
    first: Option<ProcessId>,
    /// What came with it, which is held until it is forgotten or all is done.
    held: Vec<OwnedFd>,
}

/// The life of the launcher process.
fn serve(control: OwnedFd) -> Result<()> {
    let control = keep_only(control)?;
    // A key that ends the command which forked it must leave it time to clean up after that. Keys go to one process group; a session of its own
    // would be scheduled apart from the daemon's (sched(7), "The autogroup feature").
    rustix::process::setpgid(None, None).context(|| "launcher: setpgid")?;
    // Children inherit this: none can be looked at in the moment before it says so itself.
    process::forbid_dump().context(|| "launcher: prctl")?;
    // One that replaces another is forked by the daemon as it is by then: its signal handlers and its wish for small pages pass to children.
    process::reset_signals();
    process::allow_huge_pages().context(|| "launcher: prctl")?;
    let _ = rustix::thread::set_name(c"coracle-launch");
    // Modes of what is made here are those that are given.
    rustix::process::umask(Mode::empty());
    let mut server = Server { stub: make_stub()?, control, watched: HashMap::new() };
    loop {
        server.rest()?;
        let Some((request, descriptors)) = server.next()? else { break };
        match request {
            Request::Launch(launch) => {
                let answer = server.launch(&launch, descriptors);
                server.answer(answer)?;
            }
            Request::Watch(id, cgroup) => drop(server.watched.insert(id, Watched { cgroup, first: None, held: descriptors })),
            Request::First(id, first) => server.watched.get_mut(&id).into_iter().for_each(|watched| watched.first = Some(first)),
            Request::Forget(id) => drop(server.watched.remove(&id)),
        }
    }
    server.abandon()
}

/// Everything else that was inherited belongs to the daemon.
fn keep_only(control: OwnedFd) -> Result<OwnedFd> {
    let control = process::move_to(control, CONTROL).context(|| "launcher: dup3")?;
    process::close_from(CONTROL + 1).context(|| "launcher: close_range")?;
    Ok(control)
}

fn open_namespace(path: &CStr) -> Result<OwnedFd> {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).context(|| format!("launcher: open {path:?}"))
}

/// Makes the stub namespace and comes back to the host's.
fn make_stub() -> Result<Stub> {
    let host = open_namespace(c"/proc/self/ns/mnt")?;
    let this = rustix::fs::open(c"/proc/self", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .context(|| "launcher: open /proc/self")?;
    process::unshare(libc::CLONE_NEWNS).context(|| "launcher: unshare mount namespace")?;
    let stub = empty_namespace(this.as_fd());
    process::setns(host.as_fd(), libc::CLONE_NEWNS).context(|| "launcher: setns to the host's mount namespace")?;
    stub.context(|| "launcher: stub mount namespace")
}

fn empty_namespace(this: BorrowedFd<'_>) -> std::result::Result<Stub, Errno> {
    mount_change(c"/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    let seen = if in_user_namespace() { host_views()? } else { Vec::new() };
    // Any directory that exists everywhere will do as a mount point; the way back is `this`.
    mount(c"coracle", c"/proc", c"tmpfs", MountFlags::NOSUID | MountFlags::NOEXEC, c"mode=755,nr_inodes=8,size=4k")?;
    rustix::process::chdir(c"/proc")?;
    for name in [c"r", c"b", c"proc", c"sys", c"dev"] {
        rustix::fs::mkdirat(CWD, name, Mode::from_raw_mode(0o755))?;
    }
    for (name, view) in seen {
        move_mount(&view, c"", CWD, name, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    }
    let null = match mknodat(CWD, c"dev/null", FileType::CharacterDevice, Mode::from_raw_mode(0o666), makedev(1, 3)) {
        Ok(()) => true,
        // In a user namespace: nor could a container do anything to the host's.
        Err(Errno::PERM) => false,
        Err(errno) => return Err(errno),
    };
    rustix::process::pivot_root(c".", c".")?;
    unmount(c".", UnmountFlags::DETACH)?;
    rustix::process::chdir(c"/")?;
    let slash = rustix::fs::open(c"/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    set_attributes(slash.as_fd(), c"", false, attr::RDONLY, 0, 0)?;
    let namespace = rustix::fs::openat(this, c"ns/mnt", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    Ok(Stub { namespace, null: null.then_some(slash) })
}

/// The host's procfs and sysfs: a user namespace may mount its own only in their sight (`mount_too_revealing` of the kernel's fs/namespace.c).
fn host_views() -> std::result::Result<Vec<(&'static CStr, OwnedFd)>, Errno> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    [(c"proc", c"/proc"), (c"sys", c"/sys")].into_iter().map(|(name, path)| Ok((name, open_tree(CWD, path, flags)?))).collect()
}

impl Server {
    /// Waits for a request. When none has come for a while, what the last one needed is given back.
    fn rest(&self) -> Result<()> {
        let mut control = [PollFd::new(&self.control, PollFlags::IN)];
        let mut polled = poll(&mut control, Some(&QUIET));
        if polled == Ok(0) {
            memory::give_back();
            polled = poll(&mut control, None);
        }
        match polled {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(Error::kernel("launcher: poll", errno)),
        }
    }

    /// The next request, or `None` when the daemon is gone.
    fn next(&self) -> Result<Option<(Request, Vec<OwnedFd>)>> {
        let mut header = [0u8; HEADER];
        let (mut length, mut descriptors) = match receive(self.control.as_fd(), &mut header) {
            Ok(received) => received,
            Err(Errno::INTR) => return self.next(),
            // It was killed before it had read the last answer.
            Err(Errno::CONNRESET) => return Ok(None),
            Err(errno) => return Err(Error::kernel("launcher: recvmsg", errno)),
        };
        if length == 0 {
            return Ok(None);
        }
        let mut read = |bytes: &mut [u8], mut filled: usize| -> Result<bool> {
            while filled < bytes.len() {
                let (more, mut with) = match receive(self.control.as_fd(), &mut bytes[filled..]) {
                    Ok((0, _)) | Err(Errno::CONNRESET) => return Ok(false),
                    result => result.context(|| "launcher: recvmsg")?,
                };
                filled += more;
                descriptors.append(&mut with);
            }
            Ok(true)
        };
        length = length.min(HEADER);
        if !read(&mut header, length)? {
            return Ok(None);
        }
        let size = u32::from_ne_bytes(header) as usize;
        if size > REQUEST_MAX {
            return Err(Error::invalid("launcher: request too large"));
        }
        let mut body = vec![0u8; size];
        if !read(&mut body, 0)? {
            return Ok(None);
        }
        let request = postcard::from_bytes(&body).map_err(|error| Error::invalid(format!("launcher: decode: {error}")))?;
        Ok(Some((request, descriptors)))
    }

    /// Kills and removes the containers of a daemon that has died: all are killed before one is waited for, the first processes before a cgroup is
    /// looked at. What fails with one must not keep the others.
    fn abandon(&self) -> Result<()> {
        if self.watched.is_empty() {
            return Ok(());
        }
        // Tried again below, where it is waited for.
        self.watched.values().filter_map(|watched| watched.first).for_each(|first| drop(first.kill()));
        let host = Host::detect()?;
        let cgroups: Vec<(Cgroup, Result<()>)> = self.watched.values().map(|watched| watched.find(&host)).collect();
        for (cgroup, _) in &cgroups {
            let _ = cgroup.kill();
        }
        let removed = cgroups.into_iter().map(|(cgroup, found)| {
            let killed = cgroup.kill_and_wait(ABANDON);
            killed.and(cgroup.remove(ABANDON)).and(found)
        });
        let removed = removed.collect::<Vec<_>>();
        systemd::stop(self.watched.values().filter_map(|watched| watched.cgroup.scope()), ABANDON);
        removed.into_iter().collect()
    }

    fn answer(&self, answer: std::result::Result<Launched, Errno>) -> Result<()> {
        let mut bytes = [0u8; ANSWER];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let pidfd;
        match &answer {
            Ok(launched) => {
                bytes[..4].copy_from_slice(&launched.pid.to_ne_bytes());
                pidfd = [launched.pidfd.as_fd()];
                control.push(SendAncillaryMessage::ScmRights(&pidfd));
            }
            Err(errno) => bytes[4..].copy_from_slice(&errno.raw_os_error().to_ne_bytes()),
        }
        match sendmsg(&self.control, &[IoSlice::new(&bytes)], &mut control, SendFlags::NOSIGNAL) {
            // The next read sees the daemon's end closed.
            Ok(_) | Err(Errno::PIPE | Errno::CONNRESET) => Ok(()),
            Err(errno) => Err(Error::kernel("launcher: sendmsg", errno)),
        }
    }

    fn launch(&self, launch: &Launch, descriptors: Vec<OwnedFd>) -> std::result::Result<Launched, Errno> {
        let mut slots: Vec<Option<OwnedFd>> = descriptors.into_iter().map(Some).collect();
        if slots.len() > usize::from(launch.plan.slots) {
            return Err(Errno::INVAL);
        }
        slots.resize_with(usize::from(launch.plan.slots), || None);
        let (arguments, environment) = (launch.program.arguments.clone(), launch.program.environment.clone());
        let arguments = StringArray::new(arguments);
        let mut environment = StringArray::with_room(environment, HOME.len() + HOME_MAX);
        let cloned = process::clone_as_sibling(launch.clone_flags, find(&slots, launch.cgroup)?.map(AsFd::as_fd))?;
        if let Cloned::Parent(pid, pidfd) = cloned {
            return Ok(Launched { pid, pidfd: Arc::new(pidfd) });
        }
        // The new process must not keep the daemon's socket open when the launcher dies.
        process::close_number(CONTROL);
        // Nor a lock, when everybody else is dead.
        let held = self.watched.values().flat_map(|watched| &watched.held);
        held.for_each(|lock| process::close_number(lock.as_raw_fd().cast_unsigned()));
        let Stub { namespace, null } = &self.stub;
        let (stub, null) = (namespace.as_fd(), null.as_ref().map(AsFd::as_fd));
        run(Child { launch, arguments: &arguments, environment: &mut environment, slots: &mut slots, stub, null })
    }
}

impl Watched {
    fn find(&self, host: &Host) -> (Cgroup, Result<()>) {
        Record { init: self.first, ..Record::new("", Some(self.cgroup.clone())) }.find_cgroup(host)
    }
}

fn find(slots: &[Option<OwnedFd>], slot: Option<super::Slot>) -> std::result::Result<Option<&OwnedFd>, Errno> {
    let held = |slot: super::Slot| slots.get(usize::from(slot.0)).and_then(Option::as_ref).ok_or(Errno::BADF);
    slot.map(held).transpose()
}
