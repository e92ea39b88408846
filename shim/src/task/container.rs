//! A container as the daemon knows it, and what happens when one of its processes ends.

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use proto::events::task::{TaskExit, TaskOOM};
use proto::protobuf::well_known_types::any::Any;
use runtime_core::cgroup::{Cgroup, OOM_COUNTED, OomWatch, Trigger};
use runtime_core::compile::Joined;
use runtime_core::container::record::Record;
use runtime_core::error::{Context as _, Error, ErrorKind, Result};
use runtime_core::rdt::Groups;
use runtime_core::seccomp::Filter;
use runtime_core::systemd::Scope;
use tokio::io::Interest;

use super::hooks::Hooks;
use super::listener::Listener;
use super::network::Network;
use super::node::Node;
use super::process::{Exit, Process};
use super::servers::Server;
use super::stats;
use crate::clock::timestamp;
use crate::io::Owner;
use crate::io::watched::Watched;
use crate::pod::Pod;
use crate::slices::Slices;
use crate::sync::lock;

/// How long an exit waits for those of the container's other processes, which were killed.
const OTHERS: Duration = Duration::from_secs(10);
/// What a process ends with that was killed by SIGKILL, or a shell whose last child was.
const KILLED: u32 = 128 + libc::SIGKILL as u32;

/// See the module.
pub struct Container {
    /// The container's id.
    pub id: String,
    /// Absolute.
    pub bundle: PathBuf,
    /// The pod that it is of, where that is held by this daemon.
    pub pod: Option<Arc<Pod>>,
    /// Its cgroup, until it is deleted.
    pub cgroup: Cgroup,
    /// Its classes of service and monitoring groups.
    pub groups: Groups,
    /// The unit of systemd's that this is the cgroup of.
    pub scope: Option<Scope>,
    /// Which namespaces it has.
    pub namespaces: Joined,
    /// Its system call filter.
    pub filter: Option<Arc<Filter>>,
    /// Where the host sees its root filesystem, for hooks.
    pub shown: Option<PathBuf>,
    /// Who is to have the listeners of that filter.
    pub listener: Option<Listener>,
    /// Leave the session keyring in place.
    pub no_new_keyring: bool,
    /// Owner of pipes.
    pub owner: Option<Owner>,
    /// What is still to be run.
    pub hooks: Hooks,
    /// The first process.
    pub init: Arc<Process>,
    /// Those of its root filesystem.
    pub servers: Vec<Server>,
    /// What it has of a network of the node's.
    pub network: Option<Arc<Network>>,
    /// One at a time: start, pause, resume, update, delete.
    pub changing: tokio::sync::Mutex<()>,
    /// Read while a process is launched, written (true) when the first one has ended: then no other one is launched any more.
    pub ending: tokio::sync::RwLock<bool>,
    /// Execs, the record, kills for lack of memory.
    pub account: Account,
}

/// What the container itself keeps account of.
pub struct Account {
    execs: Mutex<HashMap<String, Arc<Process>>>,
    record: Mutex<Record>,
    oom: Mutex<Option<OomWatch>>,
    killed: AtomicBool,
}

impl Account {
    /// Of a container that has been made: what is on disk, and where its memory is counted.
    pub fn new(record: Record, cgroup: &Cgroup, scope: Option<&Scope>) -> Self {
        let oom = if scope.is_some() { cgroup.oom_watch_of_scope() } else { cgroup.oom_watch() };
        let oom = oom.unwrap_or_else(|error| {
            log::warn!("{}: out-of-memory kills will not be reported: {error}", record.id);
            None
        });
        Self { execs: Mutex::default(), record: Mutex::new(record), oom: Mutex::new(oom), killed: AtomicBool::new(false) }
    }

    /// The first process is killed on request.
    pub fn note_kill(&self) {
        self.killed.store(true, Ordering::Relaxed);
    }
}

impl Container {
    /// The process that a request means: an empty `exec_id` is the first one.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`].
    pub fn process(&self, exec_id: &str) -> Result<Arc<Process>> {
        if exec_id.is_empty() {
            return Ok(Arc::clone(&self.init));
        }
        let missing = || Error::new(ErrorKind::NotFound, format!("exec {exec_id:?} of container {:?} does not exist", self.id));
        lock(&self.account.execs).get(exec_id).cloned().ok_or_else(missing)
    }

    /// Adds an exec'd process.
    ///
    /// # Errors
    /// [`ErrorKind::AlreadyExists`].
    pub fn add(&self, process: Arc<Process>) -> Result<()> {
        let mut execs = lock(&self.account.execs);
        if execs.contains_key(&process.exec_id) {
            let message = format!("exec {:?} of container {:?} already exists", process.exec_id, self.id);
            return Err(Error::new(ErrorKind::AlreadyExists, message));
        }
        execs.insert(process.exec_id.clone(), process);
        Ok(())
    }

    /// Forgets an exec'd process.
    pub fn remove(&self, exec_id: &str) {
        lock(&self.account.execs).remove(exec_id);
    }

    /// The exec'd processes.
    pub fn execs(&self) -> Vec<Arc<Process>> {
        lock(&self.account.execs).values().cloned().collect()
    }

    /// Tells of kills that nobody has been told of: whether there were any.
    pub fn tell_oom(&self, node: &Node) -> bool {
        self.tell_oom_by(node, OomWatch::take)
    }

    fn tell_oom_by(&self, node: &Node, take: impl FnOnce(&mut OomWatch) -> Result<u64>) -> bool {
        let mut oom = lock(&self.account.oom);
        let killed = oom.as_mut().map_or(Ok(0), take).unwrap_or_else(|error| {
            log::warn!("{}: {error}", self.id);
            0
        });
        // One event per increase, however many were killed in one go.
        if killed > 0 {
            node.context.events.publish(&TaskOOM { container_id: self.id.clone(), ..TaskOOM::default() });
        }
        killed > 0
    }

    /// The first process has just ended: systemd is about to remove the cgroup, or was quicker.
    fn tell_last_oom(&self, node: &Node, exit: Exit) {
        if self.scope.is_none() || self.tell_oom(node) {
            return;
        }
        if exit.status == KILLED && !self.account.killed.load(Ordering::Relaxed) {
            self.tell_oom_by(node, OomWatch::take_from_above);
        }
    }

    /// Waits for out-of-memory kills and tells of them, for as long as the container lives.
    ///
    /// # Errors
    /// The reactor refuses the descriptor.
    pub fn watch_oom(self: &Arc<Self>, node: &Arc<Node>) -> Result<()> {
        let watched = {
            let oom = lock(&self.account.oom);
            let Some(oom) = oom.as_ref() else { return Ok(()) };
            let interest = match oom.watch().trigger() {
                Trigger::Readable => Interest::READABLE,
                Trigger::Priority => Interest::PRIORITY,
            };
            Watched::new(oom.watch().as_fd().try_clone_to_owned().context(|| "dup")?, interest)?
        };
        let (container, node) = (Arc::downgrade(self), Arc::clone(node));
        let exit = self.init.subscribe();
        tokio::spawn(async move {
            let mut exit = exit;
            loop {
                tokio::select! {
                    biased;
                    _ = exit.wait_for(Option::is_some) => return,
                    _ = watched.ready() => {}
                }
                let Some(container) = container.upgrade() else { return };
                for pause in OOM_COUNTED {
                    if container.tell_oom(&node) {
                        break;
                    }
                    tokio::time::sleep(pause).await;
                }
            }
        });
        Ok(())
    }

    /// Waits for the first process's end, and tells of it after the ends of all others.
    pub fn watch_init(self: &Arc<Self>, node: &Arc<Node>) {
        let (container, node) = (Arc::clone(self), Arc::clone(node));
        tokio::spawn(async move {
            let init = &container.init;
            let Some(exit) = end_of(&node, init).await else { return };
            container.tell_last_oom(&node, exit);
            container.note_exit(exit);
            if let Some(network) = container.network.clone() {
                // Nobody waits for it, but for Delete.
                tokio::spawn(async move { network.release().await });
            }
            *container.ending.write().await = true;
            if !container.namespaces.has_private_pid() {
                // The kernel ends the others only where the first process was their init.
                if let Err(error) = container.cgroup.kill_by(&mut Slices::default()).await {
                    log::error!("{}: {error}", container.id);
                }
            }
            let _told = init.telling.lock().await;
            let others = async {
                for exec in container.execs() {
                    if exec.pid() != 0 {
                        exec.wait_told().await;
                    }
                }
            };
            if tokio::time::timeout(OTHERS, others).await.is_err() {
                log::warn!("{}: a process outlives the first one", container.id);
            }
            init.output_taken().await;
            container.tell_exit(&node, init, exit);
        });
    }

    /// The same for a process that joined.
    pub fn watch_exec(self: &Arc<Self>, node: &Arc<Node>, process: &Arc<Process>) {
        let (container, node, process) = (Arc::clone(self), Arc::clone(node), Arc::clone(process));
        tokio::spawn(async move {
            let Some(exit) = end_of(&node, &process).await else { return };
            let _told = process.telling.lock().await;
            process.output_taken().await;
            container.tell_exit(&node, &process, exit);
        });
    }

    /// What it has used, as `Stats` answers it.
    ///
    /// # Errors
    /// The file of the cgroup that cannot be read.
    pub fn stats(&self) -> Result<Any> {
        stats::encode(&self.cgroup.stats()?, self.network.as_ref().and_then(|network| network.traffic()))
    }

    fn tell_exit(&self, node: &Node, process: &Process, exit: Exit) {
        self.tell_oom(node);
        let id = if process.exec_id.is_empty() { self.id.clone() } else { process.exec_id.clone() };
        if process.was_told_of() {
            node.context.events.publish(&TaskExit {
                container_id: self.id.clone(),
                id,
                pid: process.pid() as u32,
                exit_status: exit.status,
                exited_at: proto::protobuf::MessageField::some(timestamp(exit.at)),
                ..TaskExit::default()
            });
        }
        process.ended(exit);
        process.told();
    }

    /// For `delete`, should the daemon die before it was asked.
    fn note_exit(&self, exit: Exit) {
        let at = exit.at.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_nanos() as i64);
        let mut record = lock(&self.account.record);
        record.exited = Some((exit.status, at));
        if let Err(error) = record.write(&self.bundle) {
            log::warn!("{}: {error}", self.id);
        }
    }
}

async fn end_of(node: &Node, process: &Process) -> Option<Exit> {
    let pidfd = process.pidfd()?;
    let status = node.wait(process.pid(), &pidfd).await.status;
    Some(Exit { status, at: SystemTime::now() })
}
