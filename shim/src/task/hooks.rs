//! Running hooks: programs of the host's, started by the launcher with nothing but what the spec gives them.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use oci_spec::runtime::{ContainerState, Hook};
use runtime_core::cgroup::Cgroup;
use runtime_core::compile::{self, CgroupView, Compiled, Inside, Joined, StartContainerHook};
use runtime_core::container::hooks::{Ending, Point, outcome, pid_inside, state, timeout, which};
use runtime_core::error::{Context as _, Error, ErrorKind, Result};
use runtime_core::plan::report;
use runtime_core::rdt::Groups;
use runtime_core::spec::{Process, Spec, crun};
use runtime_core::sys::process::send_signal;
use rustix::io::Errno;
use tokio::io::Interest;
use tokio::sync::watch;

use super::container::Container;
use super::listener::Listener;
use super::node::{Child, Node, Progress};
use crate::io::watched::{Edge, Watched};
use crate::sync::lock;

/// What is kept of a hook's complaints.
const STDERR_MAX: usize = 1024;

/// How long after a hook's end its complaints may still arrive.
const LAST_WORDS: Duration = Duration::from_millis(100);

/// A container that is being made, for hooks that run in it.
pub struct Making<'a> {
    /// Its first process.
    pub init: &'a OwnedFd,
    /// Its namespaces.
    pub namespaces: &'a Joined,
    /// Its cgroup.
    pub cgroup: &'a Cgroup,
    /// Its groups of resctrl.
    pub groups: &'a Groups,
    /// Where its root is.
    pub root: &'a Path,
}

impl Making<'_> {
    fn inside(&self) -> Result<Inside<'_>> {
        let init = self.init.try_clone().context(|| "dup")?;
        Ok(Inside { init, namespaces: self.namespaces, cgroup: CgroupView::of(self.cgroup, self.groups)?, root: self.root })
    }
}

/// The hooks of a container, and what they are told.
pub struct Hooks {
    hooks: Option<oci_spec::runtime::Hooks>,
    version: String,
    annotations: HashMap<String, String>,
    id: String,
    bundle: PathBuf,
    /// Whose rights a startContainer hook gets.
    process: Option<Process>,
    given_up: Option<watch::Receiver<bool>>,
    /// Files for what hooks write and complain.
    files: [Option<PathBuf>; 2],
}

impl Hooks {
    /// Those of a spec.
    pub fn of(spec: &Spec, id: &str, bundle: &Path) -> Self {
        let annotations = if spec.hooks.is_some() { spec.annotations.clone() } else { HashMap::new() };
        let process = if Point::StartContainer.of(spec.hooks.as_ref()).is_empty() { None } else { spec.process.clone() };
        Self {
            hooks: spec.hooks.clone(),
            version: spec.oci_version.clone(),
            annotations,
            id: id.to_owned(),
            bundle: bundle.to_owned(),
            process,
            given_up: None,
            files: [spec.extensions.stdout.clone(), spec.extensions.stderr.clone()],
        }
    }

    /// The same, killed when this becomes true.
    pub fn until(self, given_up: watch::Receiver<bool>) -> Self {
        Self { given_up: Some(given_up), ..self }
    }

    /// Whether there are any at this point.
    pub fn has(&self, point: Point) -> bool {
        !point.of(self.hooks.as_ref()).is_empty()
    }

    /// Runs the hooks of a point in order, in the container if that is given.
    ///
    /// # Errors
    /// The first one that fails or takes too long, with what it said; after the container's end all of them.
    pub async fn run(&self, node: &Arc<Node>, point: Point, pid: i32, inside: Option<&Making<'_>>) -> Result<()> {
        let pid = if inside.is_some_and(|making| making.namespaces.has_private_pid()) { pid_inside(pid) } else { pid };
        let mut ending = Ending::of(point);
        for (index, hook) in point.of(self.hooks.as_ref()).iter().enumerate() {
            let state = state(point, &self.id, pid, &self.bundle, &self.version, &self.annotations)?;
            ending.note(self.run_one(node, hook, state, inside).await.context(|| which(point, index, hook)))?;
            if self.given_up.as_ref().is_some_and(|given_up| *given_up.borrow()) {
                break;
            }
        }
        ending.all()
    }

    async fn run_one(&self, node: &Arc<Node>, hook: &Hook, state: Vec<u8>, inside: Option<&Making<'_>>) -> Result<()> {
        let inside = inside.map(Making::inside).transpose()?;
        let compile = |streams, report| compile::hook(hook, &self.bundle, streams, inside, report);
        self.live(node, hook, state, None, compile).await
    }

    /// Runs the startContainer hooks: in the container, with the rights of its first process, which is about to execute its program.
    ///
    /// # Errors
    /// As [`Hooks::run`].
    pub async fn run_in_container(&self, node: &Arc<Node>, container: &Container, init: &Arc<OwnedFd>, pid: i32) -> Result<()> {
        let point = Point::StartContainer;
        let Some(process) = &self.process else { return Ok(()) };
        for (index, hook) in point.of(self.hooks.as_ref()).iter().enumerate() {
            let state = state(point, &self.id, pid_inside(pid), &self.bundle, &self.version, &self.annotations)?;
            let init = init.try_clone().context(|| "dup")?;
            let cgroup = CgroupView::of(&container.cgroup, &container.groups)?;
            let compile = |streams, report| {
                compile::start_container_hook(StartContainerHook {
                    id: &self.id,
                    hook,
                    process,
                    namespaces: &container.namespaces,
                    init,
                    cgroup,
                    streams,
                    filter: container.filter.as_deref(),
                    report,
                    no_new_keyring: container.no_new_keyring,
                })
            };
            let listener = container.listener.as_ref().map(|listener| (listener, pid));
            self.live(node, hook, state, listener, compile).await.context(|| which(point, index, hook))?;
        }
        Ok(())
    }

    /// The life of one hook, bounded by its timeout.
    async fn live(
        &self,
        node: &Arc<Node>,
        hook: &Hook,
        state: Vec<u8>,
        listener: Option<(&Listener, i32)>,
        compile: impl FnOnce([OwnedFd; 3], OwnedFd) -> Result<Compiled>,
    ) -> Result<()> {
        let timeout = timeout(hook)?.unwrap_or(Duration::MAX);
        let (stdin, state_end) = pipe()?;
        let (stderr_end, stderr) = pipe()?;
        let [stdout, stderr_file] = &self.files;
        let (stdout, stderr) = (crun::stdout(stdout.as_deref())?, stderr_file.as_deref().map_or(Ok(stderr), crun::open)?);
        let (report, child_report) = report::pair().context(|| "socketpair")?;
        let compiled = compile([stdin, stdout, stderr], child_report)?;
        let mut child = node.launch(compiled, report).await?;
        let life = async {
            if let Err(error) = run_to_exec(&mut child, listener).await {
                let _ = send_signal(child.pidfd.as_fd(), libc::SIGKILL);
                node.wait(child.pid, &child.pidfd).await;
                return Err(error);
            }
            let said = Mutex::default();
            let talk = async { tokio::join!(gather(stderr_end, &said), feed(state_end, state)) };
            let ended = node.wait(child.pid, &child.pidfd);
            tokio::pin!(talk, ended);
            let exited = tokio::select! {
                _ = &mut talk => ended.await,
                exited = &mut ended => {
                    // What a hook leaves in the background may hold its standard error for ever.
                    let _ = tokio::time::timeout(LAST_WORDS, talk).await;
                    exited
                }
            };
            Ok((exited, String::from_utf8_lossy(&lock(&said)).into_owned()))
        };
        let given_up = async {
            match &self.given_up {
                Some(wanted) => given_up(wanted).await,
                None => std::future::pending().await,
            }
        };
        let ended = tokio::select! {
            ended = tokio::time::timeout(timeout, life) => Some(ended),
            () = given_up => None,
        };
        let Some(ended) = ended else {
            node.kill(child.pid, &child.pidfd).await;
            return Err(Error::new(ErrorKind::Internal, "killed, since nobody waits for it any more"));
        };
        match ended {
            Ok(Ok((exited, said))) => outcome(exited, &said),
            Ok(Err(error)) => Err(error),
            Err(_) => {
                node.kill(child.pid, &child.pidfd).await;
                Err(Error::new(ErrorKind::Internal, format!("killed after its timeout of {} s", timeout.as_secs())))
            }
        }
    }
}

/// Waits until nobody wants what is being made.
pub async fn given_up(wanted: &watch::Receiver<bool>) {
    if wanted.clone().wait_for(|given_up| *given_up).await.is_err() {
        // Nobody is left who could give it up.
        std::future::pending().await
    }
}

/// The failure of what was given up.
pub fn nobody_wants_it() -> Error {
    Error::new(ErrorKind::Internal, "the container was deleted while it was being created")
}

/// Until the program runs. Before that it may load the filter of a container, which has a listener then, and a first process.
pub async fn run_to_exec(child: &mut Child, listener: Option<(&Listener, i32)>) -> Result<()> {
    loop {
        match (child.progress().await?, listener) {
            (Progress::Executed, _) => return Ok(()),
            (Progress::Born(_), _) => {}
            (Progress::Listener(descriptor), Some((listener, init))) => {
                listener.take(child, descriptor, ContainerState::Created, init).await?;
            }
            _ => return Err(Error::new(ErrorKind::Internal, "an unexpected report of a helper")),
        }
    }
}

fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).context(|| "pipe")
}

/// A hook need not read its state.
async fn feed(to: OwnedFd, state: Vec<u8>) {
    let Ok(to) = Watched::new(to, Interest::WRITABLE) else { return };
    let mut rest = state.as_slice();
    while !rest.is_empty() {
        match rustix::io::write(&to, rest) {
            Ok(written) => rest = &rest[written..],
            Err(Errno::AGAIN) => {
                to.writable().await;
            }
            Err(Errno::INTR) => {}
            Err(_) => return,
        }
    }
}

/// Reads to the end and keeps the beginning.
async fn gather(from: OwnedFd, said: &Mutex<Vec<u8>>) {
    let Ok(from) = Watched::new(from, Interest::READABLE) else { return };
    let (mut buffer, mut hung_up) = ([0u8; 512], false);
    loop {
        match rustix::io::read(&from, &mut buffer) {
            Ok(0) => break,
            Ok(length) => {
                let mut said = lock(said);
                let room = STDERR_MAX - said.len();
                said.extend_from_slice(&buffer[..length.min(room)]);
            }
            Err(Errno::AGAIN) if hung_up => break,
            Err(Errno::AGAIN) => hung_up = from.readable().await == Edge::HungUp,
            Err(Errno::INTR) => {}
            Err(_) => break,
        }
    }
}
