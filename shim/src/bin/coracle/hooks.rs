//! Hooks, one after the other, and the listener of a seccomp filter: what else happens between the steps of a container's first process.

use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use oci_spec::runtime::{ContainerState, Hook};
use runtime_core::cgroup::Cgroup;
use runtime_core::compile::{self, CgroupView, Compiled, Inside, Joined, StartContainerHook};
use runtime_core::container::hooks::{Ending, Point, described, outcome, pid_inside, process_state, state, timeout, which};
use runtime_core::error::{Context as _, Error, ErrorKind, Result};
use runtime_core::plan::report::{self, send_with};
use runtime_core::rdt::Groups;
use runtime_core::seccomp::Filter;
use runtime_core::spec::{Spec, crun};
use runtime_core::sys::socket::reachable;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{MemfdFlags, SeekFrom};
use rustix::io::Errno;
use rustix::net::SendFlags;

use crate::Runtime;
use crate::launch::{Child, Progress, timespec, unexpected};
use crate::store::State;

/// What is kept of a hook's complaints.
const STDERR_MAX: usize = 1024;
/// How long the program that listens for system calls may take to take its descriptor.
const PATIENCE: Duration = Duration::from_secs(10);

/// A container whose hooks are run.
pub struct Hooks<'a> {
    /// The command.
    pub runtime: &'a Runtime<'a>,
    /// The configuration.
    pub spec: &'a Spec,
    /// The container.
    pub state: &'a State,
    /// The compiled `linux.seccomp`.
    pub filter: Option<&'a Filter>,
}

impl Hooks<'_> {
    /// Runs those of a point in order.
    ///
    /// # Errors
    /// The first one that fails or takes too long, with what it said; after the container's end all of them.
    pub fn run(&self, point: Point, init: Option<&Child>) -> Result<()> {
        self.run_all(point, init, None)
    }

    /// Runs those that run in a container which is being made, in that.
    ///
    /// # Errors
    /// As [`Hooks::run`].
    pub fn run_before_pivot(&self, init: &Child, cgroup: &Cgroup, groups: &Groups) -> Result<()> {
        self.run_all(Point::CreateContainer, Some(init), Some((cgroup, groups)))
    }

    fn run_all(&self, point: Point, init: Option<&Child>, inside: Option<(&Cgroup, &Groups)>) -> Result<()> {
        let namespaces = Joined::of(&self.spec.linux)?;
        let sees = |init: &Child| if inside.is_some() && namespaces.has_private_pid() { pid_inside(init.pid) } else { init.pid };
        let pid = init.map_or(0, sees);
        let mut ending = Ending::of(point);
        for (index, hook) in point.of(self.spec.hooks.as_ref()).iter().enumerate() {
            let told = self.told(point, pid)?;
            let inside = match init.zip(inside) {
                Some((init, (cgroup, groups))) => Some(Inside {
                    init: init.pidfd.try_clone().context(|| "dup")?,
                    namespaces: &namespaces,
                    cgroup: CgroupView::of(cgroup, groups)?,
                    root: &self.state.rootfs,
                }),
                None => None,
            };
            let compile = |streams, report| compile::hook(hook, &self.state.bundle, streams, inside, report);
            ending.note(self.live(hook, &told, None, compile).context(|| which(point, index, hook)))?;
        }
        ending.all()
    }

    /// Runs those that run in the container, with the rights of its first process.
    ///
    /// # Errors
    /// As [`Hooks::run`].
    pub fn run_in_container(&self, init: &Child) -> Result<()> {
        let point = Point::StartContainer;
        let hooks = point.of(self.spec.hooks.as_ref());
        let Some(process) = self.spec.process.as_ref().filter(|_| !hooks.is_empty()) else { return Ok(()) };
        let (namespaces, cgroup) = (Joined::of(&self.spec.linux)?, self.state.cgroup(&self.runtime.host)?);
        for (index, hook) in hooks.iter().enumerate() {
            let told = self.told(point, pid_inside(init.pid))?;
            let (init_fd, cgroup) = (init.pidfd.try_clone().context(|| "dup")?, CgroupView::of(&cgroup, &Groups::default())?);
            let compile = |streams, report| {
                compile::start_container_hook(StartContainerHook {
                    id: &self.state.record.id,
                    hook,
                    process,
                    namespaces: &namespaces,
                    init: init_fd,
                    cgroup,
                    streams,
                    filter: self.filter,
                    report,
                    no_new_keyring: self.state.no_new_keyring,
                })
            };
            self.live(hook, &told, Some(init.pid), compile).context(|| which(point, index, hook))?;
        }
        Ok(())
    }

    fn told(&self, point: Point, pid: i32) -> Result<Vec<u8>> {
        let State { record, bundle, oci_version, annotations, .. } = self.state;
        state(point, &record.id, pid, bundle, oci_version, annotations)
    }

    /// The life of one, bounded by its timeout. It reads its state from memory and complains into memory: nobody has to talk with it meanwhile.
    fn live(
        &self,
        hook: &Hook,
        told: &[u8],
        init: Option<i32>,
        compile: impl FnOnce([OwnedFd; 3], OwnedFd) -> Result<Compiled>,
    ) -> Result<()> {
        // A time that no clock can show does not come.
        let deadline = timeout(hook)?.and_then(|timeout| Instant::now().checked_add(timeout));
        let (stdin, said) = (memory(told)?, memory(&[])?);
        let stdout = crun::stdout(self.spec.extensions.stdout.as_deref())?;
        let stderr = match &self.spec.extensions.stderr {
            Some(file) => crun::open(file)?,
            None => said.try_clone().context(|| "dup")?,
        };
        let (report, child_report) = report::pair().context(|| "socketpair")?;
        let mut child = self.runtime.launching.launch(compile([stdin, stdout, stderr], child_report)?, report)?;
        if let Err(error) = self.until_executed(&mut child, ContainerState::Created, init.unwrap_or_default()) {
            child.kill();
            return Err(error);
        }
        if !ends(&child, deadline)? {
            child.kill();
            let seconds = hook.timeout().unwrap_or_default();
            return Err(Error::new(ErrorKind::Internal, format!("killed after its timeout of {seconds} s")));
        }
        outcome(child.wait()?, &complaints(said))
    }

    /// Until a process runs its program; its filter may have a listener, whose container is in this state.
    ///
    /// # Errors
    /// The step that failed.
    pub fn until_executed(&self, child: &mut Child, status: ContainerState, init: i32) -> Result<()> {
        loop {
            match child.progress()? {
                Progress::Executed => return Ok(()),
                Progress::Born(_) => {}
                Progress::Listener(descriptor) => self.give_listener(child, descriptor, status, init)?,
                Progress::Hooks | Progress::Console(_) | Progress::Handed(_) | Progress::Ready => return Err(unexpected()),
            }
        }
    }

    /// Gives the listener of a filter to the program that `listenerPath` names, and lets the process go on.
    ///
    /// # Errors
    /// The socket cannot be reached or does not take it in time.
    pub fn give_listener(&self, child: &Child, descriptor: OwnedFd, status: ContainerState, init: i32) -> Result<()> {
        let listener = self.filter.and_then(|filter| filter.listener.as_ref()).ok_or_else(unexpected)?;
        let State { record, bundle, oci_version, annotations, .. } = self.state;
        let state = described(status, &record.id, Some(init), bundle, oci_version, annotations)?;
        let message = process_state(child.pid, &listener.metadata, state)?;
        send(Path::new(&listener.path), &message, descriptor.as_fd())
            .context(|| format!("linux.seccomp.listenerPath: give the listener to {:?}", listener.path))?;
        child.go()
    }
}

/// Sends a descriptor with a message over a Unix socket.
///
/// # Errors
/// The socket cannot be reached or does not take it in time.
pub fn send(path: &Path, message: &[u8], descriptor: BorrowedFd<'_>) -> std::io::Result<()> {
    let (address, _held) = reachable(path)?;
    let mut socket = UnixStream::connect(address)?;
    socket.set_write_timeout(Some(PATIENCE))?;
    let sent = send_with(socket.as_fd(), message, descriptor, SendFlags::NOSIGNAL)?;
    socket.write_all(message.get(sent..).unwrap_or_default())
}

/// A file in memory that holds these bytes, to be read from its beginning.
fn memory(bytes: &[u8]) -> Result<OwnedFd> {
    let fd = rustix::fs::memfd_create(c"coracle-hook", MemfdFlags::CLOEXEC).context(|| "memfd_create")?;
    let mut file = std::fs::File::from(fd);
    file.write_all(bytes).context(|| "write the state for a hook")?;
    rustix::fs::seek(&file, SeekFrom::Start(0)).context(|| "seek the state for a hook")?;
    Ok(file.into())
}

fn complaints(said: OwnedFd) -> String {
    let mut text = Vec::new();
    // What cannot be read is not said.
    let _ = rustix::fs::seek(&said, SeekFrom::Start(0));
    let _ = std::fs::File::from(said).take(STDERR_MAX as u64).read_to_end(&mut text);
    String::from_utf8_lossy(&text).into_owned()
}

/// Whether it ends before the deadline.
fn ends(child: &Child, deadline: Option<Instant>) -> Result<bool> {
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let timeout = left.map(timespec);
        match poll(&mut [PollFd::new(&child.pidfd, PollFlags::IN)], timeout.as_ref()) {
            Ok(count) => return Ok(count > 0),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(Error::kernel("poll", errno)),
        }
    }
}
