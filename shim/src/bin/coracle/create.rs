//! Create and start: between the two, nobody but the first process itself is there.
//!
//! It waits for the word to go on its report, a socket, and nobody keeps the other end of that but the process itself: so `create` may end, and
//! the process goes on waiting. `start` takes that other end out of it with pidfd_getfd(2). Unlike runc's FIFO in the state directory this
//! needs no step that a seccomp profile could forbid (it is read(2) and write(2) as ever), no file that others could open, and brings
//! failures of execve(2) back to `start`, with the end of the file when the program runs.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use oci_spec::runtime::ContainerState;
use runtime_core::compile::{self, CgroupView, Streams, parents_end};
use runtime_core::container::failure::killed;
use runtime_core::container::hooks::Point;
use runtime_core::container::passed_over;
use runtime_core::container::record::{ProcessId, Record, replace};
use runtime_core::error::{Context as _, Error, ErrorKind, Result};
use runtime_core::kernel::Features;
use runtime_core::plan::report;
use runtime_core::rdt::Groups;
use runtime_core::seccomp::{self, Filter};
use runtime_core::spec::{ConsoleSize, Process, Spec, check};
use runtime_core::sys::process::{borrow_number, send_signal};
use runtime_core::{cgroup::Cgroup, net};
use shim::clock::rfc3339;
use std::os::fd::AsFd;

use crate::Runtime;
use crate::args::CreateFlags;
use crate::cgroups::{self, Made};
use crate::foreground::size;
use crate::hooks::{Hooks, send};
use crate::launch::{Child, Progress, unexpected};
use crate::lifecycle::{destroy, poststop};
use crate::notify::{self, Notify};
use crate::store::{Entry, Stage, State, Status, refused};

/// Whether somebody stays to serve a terminal.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Foreground {
    /// The command waits for the end of the container.
    Yes,
    /// It goes on without it.
    No,
}

impl Foreground {
    /// A terminal that this command serves begins with the size of the caller's.
    pub fn size(self, process: &mut Process) {
        if let Some(size) = size().filter(|_| self == Self::Yes && process.terminal) {
            process.console_size = Some(ConsoleSize { width: size.ws_col.into(), height: size.ws_row.into() });
        }
    }

    /// A new terminal, or the caller's standard streams.
    ///
    /// # Errors
    /// At a limit of descriptors.
    pub fn streams(self, terminal: bool) -> Result<Streams> {
        let duplicate = |number| borrow_number(number).try_clone_to_owned().context(|| format!("dup descriptor {number}"));
        if terminal {
            Ok(Streams::Terminal { served: self == Self::Yes })
        } else {
            Ok(Streams::Given([duplicate(0)?, duplicate(1)?, duplicate(2)?]))
        }
    }
}

/// A created container, locked, and the master of its terminal if the command is to serve that.
pub struct Created {
    /// Its directory.
    pub entry: Entry,
    /// Its state.
    pub state: State,
    /// Its first process.
    pub child: Child,
    /// The terminal.
    pub master: Option<OwnedFd>,
}

/// Makes a container whose first process waits; what fails half-way leaves nothing.
///
/// # Errors
/// The step that failed.
pub fn create(runtime: &Runtime<'_>, options: &CreateFlags, id: &str, foreground: Foreground) -> Result<Created> {
    // First, before other descriptors get numbers of theirs.
    let listening = listening();
    let preserved = preserved(listening.saturating_add(options.preserve_fds))?;
    let bundle = options.bundle.clone().unwrap_or_else(|| PathBuf::from("."));
    let bundle = std::fs::canonicalize(&bundle).context(|| format!("bundle {bundle:?}"))?;
    let path = bundle.join("config.json");
    let config = std::fs::read(&path).context(|| format!("read {path:?}"))?;
    let mut spec = Spec::parse(&config).context(|| format!("{path:?}"))?;
    check(&spec)?;
    if runtime.crun_annotations {
        spec.take_extensions()?;
    }
    if let Some(process) = spec.process.as_mut().filter(|_| listening > 0) {
        // sd_listen_fds(3), for a first process that is process 1 of its namespace.
        process.env.extend([format!("LISTEN_FDS={listening}"), "LISTEN_PID=1".to_owned()]);
    }
    if let Some(process) = &mut spec.process {
        foreground.size(process);
    }
    let terminal = spec.process.as_ref().is_some_and(|process| process.terminal);
    check_console(terminal, options.console_socket.as_deref(), foreground)?;
    let filter = spec.linux.seccomp.as_ref().map(seccomp::compile).transpose()?;
    for sentence in passed_over(&runtime.host, &spec, filter.as_ref()) {
        runtime.log.warn(&format!("{id}: {sentence}"));
    }
    let cgroup = cgroups::place(runtime, spec.linux.cgroups_path.as_deref(), id)?;
    let groups = Groups::here(id, spec.linux.intel_rdt.as_ref());

    runtime.launching.prepare()?;
    let entry = new_entry(runtime, id)?;
    if let Err(error) = cgroups::check_free(runtime, &cgroup) {
        entry.remove()?;
        return Err(error);
    }
    let mut record = Record::own(id, Some(cgroup));
    record.resctrl = groups.of_container();
    let mut state = State {
        record,
        rootfs: spec.root_path(&bundle),
        created: rfc3339(SystemTime::now()),
        owner: rustix::process::getuid().as_raw(),
        oci_version: spec.oci_version.clone(),
        annotations: spec.annotations.clone(),
        stage: Stage::Creating,
        parents_end: parents_end(preserved.len()),
        report: 0,
        no_new_keyring: options.no_new_keyring,
        crun_annotations: runtime.crun_annotations,
        bundle,
    };
    // From here on `delete --force` can clean up after us.
    let noted = entry.write(&state).and_then(|()| entry.write_config(&config)).and_then(|()| notify::offer(&entry, &mut spec));
    let making = Making { runtime, options, spec: &spec, filter: filter.as_ref(), groups: &groups, entry: &entry, foreground };
    let mut made = Made::default();
    match noted.and_then(|()| making.make(&mut state, preserved, &mut made)) {
        Ok((child, master)) => {
            made.keep();
            Ok(Created { entry, state, child, master })
        }
        Err(error) => {
            undo(runtime, &entry, &state, made);
            Err(error)
        }
    }
}

/// The directory of a new container. What a killed `create` of this id has left goes first: nobody will finish that.
fn new_entry(runtime: &Runtime<'_>, id: &str) -> Result<Entry> {
    let taken = match runtime.store.make(id) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => error,
        result => return result,
    };
    match runtime.store.abandoned(id)? {
        Some((entry, Some(state))) => destroy(runtime, &entry, &state)?,
        Some((entry, None)) => entry.remove()?,
        None => return Err(taken),
    }
    runtime.store.make(id)
}

fn undo(runtime: &Runtime<'_>, entry: &Entry, state: &State, made: Made) {
    let undone = made.undo(&runtime.host, &state.record);
    // The launcher must not do it again: by then the cgroup may be another one's.
    let left = runtime.launching.leave(&state.record.id);
    // runtime.md, "Lifecycle": what earlier hooks have made is for these to take back.
    if state.record.init.is_some() {
        poststop(runtime, entry, state);
    }
    if let Err(error) = undone.and_then(|()| entry.remove()).and(left) {
        runtime.log.warn(&error.to_string());
    }
}

struct Making<'a> {
    runtime: &'a Runtime<'a>,
    options: &'a CreateFlags,
    spec: &'a Spec,
    filter: Option<&'a Filter>,
    groups: &'a Groups,
    entry: &'a Entry,
    foreground: Foreground,
}

impl Making<'_> {
    fn make(&self, state: &mut State, preserved: Vec<OwnedFd>, made: &mut Made) -> Result<(Child, Option<OwnedFd>)> {
        let Self { runtime, spec, .. } = self;
        self.groups.make()?;
        let resources = &spec.linux.resources;
        let path = state.record.cgroup.clone().ok_or_else(unexpected)?;
        runtime.launching.watch(&state.record.id, &path, self.entry.lock_fd()?)?;
        let (cgroup, guest) = cgroups::make(runtime, &path, &state.record.id, resources, made)?;
        let (report, child_report) = report::pair().context(|| "socketpair")?;
        state.report = rustix::fs::fstat(&report).context(|| "fstat of a socket")?.st_ino;
        let terminal = spec.process.as_ref().is_some_and(|process| process.terminal);
        let compiled = compile::container(compile::Container {
            id: &state.record.id,
            bundle: &state.bundle,
            spec,
            rootfs: &[],
            by_helper: Vec::new(),
            pod: None,
            cgroup: CgroupView::of(&cgroup, self.groups)?,
            streams: self.foreground.streams(terminal)?,
            filter: self.filter,
            report: child_report,
            parents_end: Some(report.try_clone().context(|| "dup")?),
            preserved,
            no_pivot_root: self.options.no_pivot,
            networked: false,
            no_new_keyring: self.options.no_new_keyring,
            kernel: Features::get(),
        })?;
        runtime.log.plan(&format!("{} create", state.record.id), &compiled.launch.plan);
        let mut child = runtime.launching.launch(compiled, report)?;
        match self.accompany(state, &mut child, &cgroup, guest) {
            Ok(master) => Ok((child, master)),
            Err(error) => {
                child.kill();
                Err(error)
            }
        }
    }

    fn accompany(&self, state: &mut State, child: &mut Child, cgroup: &Cgroup, guest: Option<cgroups::Guest>) -> Result<Option<OwnedFd>> {
        if let Some(guest) = guest {
            drop(guest);
            cgroup.settle(&self.spec.linux.resources)?;
        }
        state.record.init = ProcessId::of(child.pid);
        self.runtime.launching.watch_first(&state.record.id, state.record.init)?;
        self.entry.write(state)?;
        let master = self.until_ready(state, child, cgroup)?;
        self.entry.write_launch(&child.launch)?;
        if let Some(file) = &self.options.pid_file {
            write_pid(file, child.pid)?;
        }
        if let Some(socket) = &self.options.pidfd_socket {
            send(socket, b"pidfd", child.pidfd.as_fd()).context(|| format!("--pidfd-socket {socket:?}"))?;
        }
        state.stage = Stage::Created;
        self.entry.write(state)?;
        self.runtime.launching.leave(&state.record.id)?;
        Ok(master)
    }

    fn until_ready(&self, state: &mut State, child: &mut Child, cgroup: &Cgroup) -> Result<Option<OwnedFd>> {
        let mut served = None;
        loop {
            let progress = child.progress()?;
            if let Progress::Born(_) = progress {
                state.record.init = ProcessId::of(child.pid);
                self.runtime.launching.watch_first(&state.record.id, state.record.init)?;
                self.entry.write(state)?;
            }
            let hooks = Hooks { runtime: self.runtime, spec: self.spec, state, filter: self.filter };
            match progress {
                Progress::Ready => return Ok(served),
                Progress::Born(_) => {}
                Progress::Console(master) => served = hand_out(self.options.console_socket.as_deref(), self.foreground, master)?,
                Progress::Listener(descriptor) => hooks.give_listener(child, descriptor, ContainerState::Creating, child.pid)?,
                Progress::Hooks => {
                    net::move_into(&self.spec.linux.devices_to_move()?, child.pid)?;
                    hooks.run(Point::Prestart, Some(child))?;
                    hooks.run(Point::CreateRuntime, Some(child))?;
                    hooks.run_before_pivot(child, cgroup, self.groups)?;
                    child.go()?;
                }
                Progress::Executed => return Err(killed(Some(cgroup))),
                Progress::Handed(_) => return Err(unexpected()),
            }
        }
    }
}

/// How many of the caller's descriptors are sockets that systemd has given to this command for the container (sd_listen_fds(3)).
fn listening() -> u16 {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u32>().ok());
    let ours = number("LISTEN_PID") == Some(std::process::id());
    number("LISTEN_FDS").filter(|_| ours).and_then(|count| u16::try_from(count).ok()).unwrap_or(0)
}

/// The caller's descriptors from 3 on.
///
/// # Errors
/// One of them is not open.
pub fn preserved(count: u16) -> Result<Vec<OwnedFd>> {
    let what = |number| move || format!("--preserve-fds: descriptor {number}");
    let numbers = || (3..).take(count.into());
    // All of them before the first copy, which may get the number of one that is missing.
    numbers().try_for_each(|number| rustix::io::fcntl_getfd(borrow_number(number)).map(drop).context(what(number)))?;
    numbers().map(|number| borrow_number(number).try_clone_to_owned().context(what(number))).collect()
}

/// Who serves the terminal must be clear beforehand.
///
/// # Errors
/// In runc's words.
pub fn check_console(terminal: bool, socket: Option<&Path>, foreground: Foreground) -> Result<()> {
    match (terminal, socket, foreground) {
        (true, None, Foreground::No) => Err(Error::invalid("cannot allocate tty if runc will detach without setting console socket")),
        (false, Some(_), _) | (_, Some(_), Foreground::Yes) => {
            Err(Error::invalid("cannot use console socket if runc will not detach or allocate tty"))
        }
        _ => Ok(()),
    }
}

/// Gives the terminal's master to who is to serve it: the caller's socket, or this command.
///
/// # Errors
/// The socket does not take it.
pub fn hand_out(socket: Option<&Path>, foreground: Foreground, master: OwnedFd) -> Result<Option<OwnedFd>> {
    let Some(socket) = socket.filter(|_| foreground == Foreground::No) else { return Ok(Some(master)) };
    send(socket, b"/dev/ptmx", master.as_fd()).context(|| format!("--console-socket {socket:?}"))?;
    Ok(None)
}

/// Writes the file of `--pid-file`, for all to read.
///
/// # Errors
/// The errno of the write.
pub fn write_pid(file: &Path, pid: i32) -> Result<()> {
    replace(file, pid.to_string().as_bytes(), 0o644).context(|| "--pid-file")
}

/// Lets the first process of a created container go. The answer is for who waits until it is ready.
///
/// # Errors
/// The step that failed; the process has ended then.
pub fn start(runtime: &Runtime<'_>, entry: &Entry, state: &mut State) -> Result<Option<Notify>> {
    match state.status(&runtime.host)? {
        Status::Created => {}
        Status::Stopped => return Err(refused("cannot start a container that has stopped")),
        Status::Creating => return Err(refused("cannot start a container that is being created")),
        Status::Paused => return Err(refused("cannot start a paused container")),
        Status::Running => return Err(refused("cannot start an already running container")),
    }
    let spec = entry.spec(state.crun_annotations)?;
    // Only hooks inside ask for it: the first process has loaded its own.
    let filtered = spec.linux.seccomp.as_ref().filter(|_| spec.hooks.is_some());
    let filter = filtered.map(seccomp::compile).transpose()?;
    let notify = Notify::listen(entry, runtime.log)?;
    let mut child = Child::waiting(state.record.init, state.parents_end, entry.launch()?)?;
    let hooks = Hooks { runtime, spec: &spec, state, filter: filter.as_ref() };
    let started = hooks.run_in_container(&child).and_then(|()| {
        child.go()?;
        let pid = child.pid;
        hooks.until_executed(&mut child, ContainerState::Created, pid)
    });
    if let Err(error) = started {
        let _ = send_signal(child.pidfd.as_fd(), libc::SIGKILL);
        return Err(error);
    }
    state.stage = Stage::Started;
    entry.write(state)?;
    let hooks = Hooks { runtime, spec: &spec, state, filter: filter.as_ref() };
    if let Err(error) = hooks.run(Point::Poststart, Some(&child)) {
        let _ = state.cgroup(&runtime.host)?.kill();
        return Err(error);
    }
    Ok(notify)
}
