//! Create: from a request to a process that waits for its start. What fails half-way leaves nothing.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use oci_spec::runtime::ContainerState;
use proto::api::CreateTaskRequest;
use runtime_core::cgroup::{Cgroup, CgroupPath};
use runtime_core::compile::{self, CgroupView, Joined, RootMount, Streams};
use runtime_core::container::failure::killed;
use runtime_core::container::hooks::Point;
use runtime_core::container::passed_over;
use runtime_core::container::record::{ProcessId, Record, write_atomically};
use runtime_core::error::{Context as _, Error, ErrorKind, Result};
use runtime_core::net;
use runtime_core::plan::launcher::Launched;
use runtime_core::plan::report;
use runtime_core::rdt::{self, Groups};
use runtime_core::seccomp::Filter;
use runtime_core::spec::Spec;
use runtime_core::sys::process::send_signal;
use runtime_core::systemd::{Property, annotated_properties};
use tokio::sync::watch;

use super::container::{Account, Container};
use super::hooks::{self, Hooks, given_up, nobody_wants_it};
use super::listener::Listener;
use super::network::{self, Network, Wanted};
use super::node::{Child, Node, Progress};
use super::process::Process;
use super::scope;
use super::servers::Server;
use super::shown;
use super::spawner::Loggers;
use crate::bundle;
use crate::failpoint::{self, Rpc};
use crate::group::Grouping;
use crate::io::{ChildEnds, Io, Origin, Owner, Request};
use crate::options::Options;
use crate::pod::Pod;
use crate::pod::share::Shared;
use crate::slices::Slices;

const REMOVAL_PAUSE: Duration = Duration::from_millis(5);

/// A container whose first process waits for its start.
pub struct Created {
    /// The container.
    pub container: Arc<Container>,
    /// Its first process, which waits.
    pub child: Child,
}

/// Undoes what was done, unless it is told that all went well.
struct Undo {
    node: Arc<Node>,
    id: String,
    bundle: PathBuf,
    pod: Option<Arc<Pod>>,
    groups: Vec<PathBuf>,
    making: scope::Making,
    child: Option<(i32, Arc<OwnedFd>)>,
    servers: Vec<Server>,
    hooks: Hooks,
    shown: Option<PathBuf>,
    network: Option<Arc<Network>>,
}

impl Undo {
    async fn run(mut self) {
        // First, since a process that waits for a server that does not answer cannot be killed.
        for server in &self.servers {
            server.kill().await;
        }
        let child = self.child.take();
        let ran = child.is_some();
        if let Some((pid, pidfd)) = child {
            let _ = send_signal(pidfd.as_fd(), libc::SIGKILL);
            // A frozen process of version 1 does not even die.
            if let Some(Err(error)) = self.making.cgroup.as_ref().map(Cgroup::thaw) {
                log::warn!("{}: {error}", self.id);
            }
            self.node.kill(pid, &pidfd).await;
        }
        self.making.undo(&self.node, &self.id).await;
        if let Some(network) = &self.network {
            network.release().await;
        }
        if let Err(error) = rdt::remove(&self.groups) {
            log::error!("{}: {error}", self.id);
        }
        self.node.forget(&self.id).await;
        // runtime.md, "Lifecycle": what earlier hooks have made is for these to take back.
        if ran && let Err(error) = self.hooks.run(&self.node, Point::Poststop, 0, None).await {
            log::warn!("{}: {error}, ignoring", self.id);
        }
        if let Some(path) = &self.shown
            && let Err(error) = shown::hide(&self.node, path).await
        {
            log::error!("{}: {error}", self.id);
        }
        if let Err(error) = forget_record(self.pod.as_deref(), &self.bundle) {
            log::error!("{}: {error}", self.id);
        }
    }
}

/// A container is no more: what is on disk of it goes, in its pod's record as well.
///
/// # Errors
/// The errno of the write.
pub fn forget_record(pod: Option<&Pod>, bundle: &Path) -> Result<()> {
    if let Some(pod) = pod {
        pod.note(|record| record.members.retain(|member| member != bundle))?;
    }
    Record::remove(bundle)
}

/// Kills what is left in a cgroup and removes it, trying until `bound`.
///
/// # Errors
/// [`ErrorKind::FailedPrecondition`] if somebody is still inside then; or what the kernel refuses.
pub async fn remove(cgroup: &Cgroup, bound: Duration) -> Result<()> {
    let deadline = tokio::time::Instant::now() + bound;
    let mut slices = Slices::default();
    loop {
        let removed = cgroup.try_remove_by(&mut slices).await;
        if matches!(removed, Ok(true)) {
            return Ok(());
        }
        let killed = cgroup.kill_by(&mut slices).await;
        if tokio::time::Instant::now() >= deadline {
            removed.map(drop).and(killed)?;
            let pids = cgroup.pids_by(&mut slices).await.unwrap_or_default();
            return Err(Error::new(ErrorKind::FailedPrecondition, format!("cgroup is still busy, processes {pids:?}")));
        }
        tokio::time::sleep(REMOVAL_PAUSE).await;
    }
}

/// Creates a container, unless it is given up meanwhile.
///
/// # Errors
/// The step that failed.
pub async fn create(node: &Arc<Node>, request: &CreateTaskRequest, given_up: watch::Receiver<bool>) -> Result<Created> {
    if !request.checkpoint.is_empty() {
        return Err(Error::new(ErrorKind::Unimplemented, "checkpoint: this version cannot restore containers"));
    }
    let bundle = bundle::absolute("bundle", &request.bundle)?;
    let options = options(node, request)?;
    let mut spec = Spec::load(&bundle)?;
    if options.crun_annotations {
        spec.take_extensions()?;
    }
    let pod = node.pods.of(&spec.annotations, node.context.config.grouping == Grouping::Pod);
    let shared = pod.as_ref().map(|pod| pod.share_with(&mut spec)).transpose()?;
    let wanted = network::wanted(node, &mut spec, &request.id, &bundle)?;
    let filter = node.filter(spec.linux.seccomp.as_ref())?;
    for sentence in passed_over(&node.host, &spec, filter.as_deref()) {
        log::warn!("{}: {sentence}", request.id);
    }
    let cgroups_path = spec.linux.cgroups_path.as_deref();
    let by_systemd = scope::by_systemd(options.systemd_cgroup, node.context.config.bootstrap.systemd_cgroup, cgroups_path);
    let path = scope::place(node, by_systemd, cgroups_path, &request.id).await?;
    let properties =
        if path.scope().is_some() && options.systemd_properties { annotated_properties(&spec.annotations)? } else { Vec::new() };
    let init = Arc::new(Process::new("", stdio(&request.stdin, &request.stdout, &request.stderr, request.terminal)));
    let owner = owner(&options);

    let groups = Groups::here(&request.id, spec.linux.intel_rdt.as_ref());
    let mut record = Record::own(&request.id, Some(path.clone()));
    record.resctrl = groups.of_container();
    // The first mark on disk: from here on another process can clean up after us.
    record.write(&bundle)?;
    if let Some(pod) = &pod {
        pod.note(|record| record.members.push(bundle.clone()))?;
    }
    let mut undo = Undo {
        node: Arc::clone(node),
        id: request.id.clone(),
        bundle: bundle.clone(),
        pod: pod.clone(),
        groups: groups.of_container(),
        making: scope::Making::default(),
        child: None,
        servers: Vec::new(),
        hooks: Hooks::of(&spec, &request.id, &bundle),
        shown: None,
        network: None,
    };
    let making = Making {
        node,
        request,
        bundle: &bundle,
        options: &options,
        spec: &spec,
        properties: &properties,
        shared: shared.as_ref(),
        groups: &groups,
        filter: filter.as_deref(),
        owner,
        given_up: given_up.clone(),
    };
    match making.make(&mut undo, &path, &init, record, wanted).await {
        Ok((child, record)) => {
            let cgroup = undo.making.take().ok_or_else(lost)?;
            let container = Container {
                id: request.id.clone(),
                account: Account::new(record, &cgroup, path.scope()),
                hooks: Hooks::of(&spec, &request.id, &bundle),
                listener: Listener::of(filter.as_deref(), &spec, &request.id, &bundle),
                bundle,
                pod,
                cgroup,
                groups,
                scope: path.scope().cloned(),
                namespaces: Joined::of(&spec.linux)?,
                filter,
                no_new_keyring: options.no_new_keyring,
                owner,
                init,
                servers: undo.servers,
                shown: undo.shown,
                network: undo.network,
                changing: tokio::sync::Mutex::default(),
                ending: tokio::sync::RwLock::new(false),
            };
            Ok(Created { container: Arc::new(container), child })
        }
        Err(error) => {
            undo.run().await;
            Err(if *given_up.borrow() { nobody_wants_it() } else { error })
        }
    }
}

struct Making<'a> {
    node: &'a Arc<Node>,
    request: &'a CreateTaskRequest,
    bundle: &'a Path,
    options: &'a Options,
    spec: &'a Spec,
    /// Those of the scope, where systemd makes one, that annotations give.
    properties: &'a [Property],
    shared: Option<&'a Shared>,
    groups: &'a Groups,
    filter: Option<&'a Filter>,
    owner: Option<Owner>,
    given_up: watch::Receiver<bool>,
}

impl Making<'_> {
    async fn make(
        &self,
        undo: &mut Undo,
        path: &CgroupPath,
        init: &Process,
        mut record: Record,
        wanted: Option<Wanted>,
    ) -> Result<(Child, Record)> {
        let node = self.node;
        let joins = wanted.as_ref().and_then(|wanted| wanted.joins);
        if let Some(wanted) = wanted {
            undo.network = wanted.reserve(&mut record).await?;
        }
        let loggers = Loggers(Arc::clone(node));
        let namespace = &node.context.config.bootstrap.namespace;
        let origin = Origin { id: &self.request.id, namespace, spawner: Some(&loggers), streams: Some(&node.streams) };
        let (io, ends) = Io::open(&init.stdio, &origin, self.owner).await?;
        let io = Arc::new(io);
        node.watch(&self.request.id, path).await?;
        self.groups.make()?;
        let resources = &self.spec.linux.resources;
        let cgroup = undo.making.make(node, path, &self.request.id, resources, self.properties).await?;
        let cgroup = CgroupView::of(cgroup, self.groups)?;
        let rootfs: Vec<RootMount> = self.request.rootfs.iter().map(root_mount).collect();
        let by_helper = self.mount_by_helper(undo, &rootfs, &mut record).await?;
        let root = compile::root_path(self.spec, self.bundle, &rootfs);
        if compile::is_shown(self.spec, &rootfs) {
            (undo.shown, record.rootfs) = (Some(root.clone()), Some(root.clone()));
            record.write(self.bundle)?;
        }
        let (report, child_report) = report::pair().context(|| "socketpair")?;
        let compiled = compile::container(compile::Container {
            id: &self.request.id,
            bundle: self.bundle,
            spec: self.spec,
            rootfs: &rootfs,
            by_helper,
            pod: self.shared.and_then(|shared| shared.mounts.as_ref()).map(|fd| fd.try_clone().context(|| "dup")).transpose()?,
            cgroup,
            streams: streams(ends),
            filter: self.filter,
            report: child_report,
            parents_end: None,
            preserved: Vec::new(),
            no_pivot_root: self.options.no_pivot_root,
            networked: undo.network.is_some(),
            no_new_keyring: self.options.no_new_keyring,
            kernel: node.kernel,
        })?;
        let mut child = node.launch(compiled, report).await?;
        undo.child = Some((child.pid, Arc::clone(&child.pidfd)));
        undo.making.settle(node, resources).await?;
        init.launched(child.pid, Arc::clone(&child.pidfd), Arc::clone(&io));
        undo.making.cgroup.iter_mut().for_each(|cgroup| cgroup.set_first(child.pid, Arc::clone(&child.pidfd)));
        record.init = ProcessId::of(child.pid);
        record.write(self.bundle)?;
        node.watch_first(&self.request.id, record.init).await?;
        failpoint::inside(Rpc::Create).await?;
        self.accompany(&mut child, &io, init, undo, &mut record, &root).await?;
        // If it has ended meanwhile, its number may have been another one's when the namespace was joined by it.
        if joins.is_some_and(|joined| !joined.is_alive()) {
            return Err(Error::new(ErrorKind::FailedPrecondition, "the container whose network namespace it is to have has ended"));
        }
        write_atomically(&self.bundle.join("init.pid"), child.pid.to_string().as_bytes())?;
        self.options.save(self.bundle)?;
        io.start();
        Ok((child, record))
    }

    /// The mounts that need a helper, in their order.
    async fn mount_by_helper(&self, undo: &mut Undo, rootfs: &[RootMount], record: &mut Record) -> Result<Vec<OwnedFd>> {
        let mut mounts = Vec::new();
        for mount in rootfs.iter().filter(|mount| mount.helper().is_some()) {
            let (server, made) = Server::start(self.node, mount, &self.bundle.join("rootfs"), &self.given_up).await?;
            record.servers.extend(server.id());
            undo.servers.push(server);
            mounts.push(made);
            record.write(self.bundle)?;
        }
        Ok(mounts)
    }

    async fn run_hooks(&self, child: &Child, cgroup: &Cgroup, root: &Path) -> Result<()> {
        let hooks = Hooks::of(self.spec, &self.request.id, self.bundle).until(self.given_up.clone());
        hooks.run(self.node, Point::Prestart, child.pid, None).await?;
        hooks.run(self.node, Point::CreateRuntime, child.pid, None).await?;
        let namespaces = &Joined::of(&self.spec.linux)?;
        let making = hooks::Making { init: &child.pidfd, namespaces, cgroup, groups: self.groups, root };
        hooks.run(self.node, Point::CreateContainer, child.pid, Some(&making)).await
    }

    /// Until the child waits for its start. Its root is at `root`.
    async fn accompany(
        &self,
        child: &mut Child,
        io: &Arc<Io>,
        init: &Process,
        undo: &mut Undo,
        record: &mut Record,
        root: &Path,
    ) -> Result<()> {
        loop {
            let progress = tokio::select! {
                () = given_up(&self.given_up) => return Err(nobody_wants_it()),
                progress = child.progress() => progress?,
            };
            match progress {
                Progress::Ready => return Ok(()),
                Progress::Born(born) => self.note_born(born, io, init, undo, record).await?,
                Progress::Console(master) => io.attach_console(master)?,
                Progress::Listener(descriptor) => {
                    let listener = Listener::of(self.filter, self.spec, &self.request.id, self.bundle).ok_or_else(unexpected)?;
                    listener.take(child, descriptor, ContainerState::Creating, child.pid).await?;
                }
                Progress::Hooks => {
                    if let Some(network) = &undo.network {
                        network.connect(child.pid).await?;
                    }
                    move_devices(self.spec, child.pid).await?;
                    self.run_hooks(child, undo.making.cgroup.as_ref().ok_or_else(lost)?, root).await?;
                    child.go()?;
                }
                Progress::Executed | Progress::Handed(_) => return Err(killed(undo.making.cgroup.as_ref())),
            }
        }
    }
}

impl Making<'_> {
    /// The process that was launched goes on as another one, which is the container's first from here on.
    async fn note_born(&self, born: Launched, io: &Arc<Io>, init: &Process, undo: &mut Undo, record: &mut Record) -> Result<()> {
        let Launched { pid, pidfd } = born;
        undo.child = Some((pid, Arc::clone(&pidfd)));
        undo.making.cgroup.iter_mut().for_each(|cgroup| cgroup.set_first(pid, Arc::clone(&pidfd)));
        init.launched(pid, pidfd, Arc::clone(io));
        record.init = ProcessId::of(pid);
        record.write(self.bundle)?;
        self.node.watch_first(&self.request.id, record.init).await
    }
}

/// Gives network devices to the namespace of the container's first process, while others are served.
async fn move_devices(spec: &Spec, pid: i32) -> Result<()> {
    let devices = spec.linux.devices_to_move()?;
    if devices.is_empty() {
        return Ok(());
    }
    let moved = tokio::task::spawn_blocking(move || net::move_into(&devices, pid)).await;
    moved.unwrap_or_else(|panic| Err(Error::new(ErrorKind::Internal, format!("linux.netDevices: {panic}"))))
}

fn lost() -> Error {
    Error::new(ErrorKind::Internal, "cgroup: lost")
}

fn unexpected() -> Error {
    Error::new(ErrorKind::Internal, "an unexpected report of the first process")
}

/// The request's own options, or those that the daemon was started with.
fn options(node: &Node, request: &CreateTaskRequest) -> Result<Options> {
    let given = request.options.as_ref().map(Options::from_any).transpose().context(|| "options")?.flatten();
    let config = &node.context.config;
    let options = given.unwrap_or_else(|| config.options.clone());
    options.tell_ignored();
    Ok(options)
}

fn owner(options: &Options) -> Option<Owner> {
    (options.io_uid != 0 || options.io_gid != 0).then_some(Owner { uid: options.io_uid, gid: options.io_gid })
}

/// The streams as the request names them.
pub fn stdio(stdin: &str, stdout: &str, stderr: &str, terminal: bool) -> Request {
    Request { terminal, stdin: stdin.to_owned(), stdout: stdout.to_owned(), stderr: stderr.to_owned() }
}

/// The child's ends of its streams, or a terminal.
pub fn streams(ends: Option<ChildEnds>) -> Streams {
    ends.map_or(Streams::Terminal { served: false }, |ends| Streams::Given([ends.stdin, ends.stdout, ends.stderr]))
}

fn root_mount(mount: &proto::types::mount::Mount) -> RootMount {
    RootMount { fstype: mount.type_.clone(), source: mount.source.clone(), target: mount.target.clone(), options: mount.options.clone() }
}
