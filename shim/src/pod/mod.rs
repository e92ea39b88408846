//! Pods that have no container of their own (containerd's `sandboxer = "shim"`): what their containers share is held here.
//!
//! *[`settings`] (what was asked for) → [`Pod`] (what there is) → [`share`] (what a container gets of it)*; [`files`] are the pod's in `/etc`.

pub mod files;
pub mod settings;
pub mod share;

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use runtime_core::container::record::Record;
use runtime_core::error::{Error, ErrorKind, Result};
use tokio::sync::watch;

use crate::group::SANDBOX_ID;
use crate::sync::lock;
use settings::Settings;

/// The pods of a daemon.
#[derive(Default)]
pub struct Pods {
    inner: Mutex<Inner>,
}

struct Inner {
    pods: HashMap<String, Arc<Pod>>,
    /// When the last one came or went.
    changed: Instant,
}

impl Default for Inner {
    fn default() -> Self {
        Self { pods: HashMap::new(), changed: Instant::now() }
    }
}

/// One pod.
pub struct Pod {
    /// The sandbox's id.
    pub id: String,
    /// The sandbox's bundle.
    pub bundle: PathBuf,
    /// What it was asked to be.
    pub settings: Settings,
    /// One at a time: start, stop.
    pub changing: tokio::sync::Mutex<()>,
    life: Mutex<Life>,
    record: Mutex<Record>,
    end: watch::Sender<Option<End>>,
}

/// How a pod ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    /// 0 if it was stopped, else that of the process that held it.
    pub status: u32,
    /// When.
    pub at: SystemTime,
}

/// The process that is the init of the pid namespace that all containers share.
#[derive(Clone)]
pub struct Holder {
    /// As the host sees it.
    pub pid: i32,
    /// For signals.
    pub pidfd: Arc<OwnedFd>,
}

/// What the containers of a running pod share; gone when the last one has it no more.
#[derive(Default)]
pub struct Held {
    /// The mount namespace that has their `/dev/shm`.
    pub mounts: Option<OwnedFd>,
    /// The network namespace, if nobody else has made it.
    pub network: Option<OwnedFd>,
    /// The IPC namespace, unless it is the host's.
    pub ipc: Option<OwnedFd>,
    /// The UTS namespace, unless it is the host's.
    pub uts: Option<OwnedFd>,
    /// The user namespace, if there is one.
    pub user: Option<OwnedFd>,
    /// Where they share a pid namespace.
    pub holder: Option<Holder>,
}

#[derive(Default)]
struct Life {
    started: Option<SystemTime>,
    stopping: bool,
    leaving: bool,
    held: Option<Arc<Held>>,
}

impl Pods {
    /// Adds a pod.
    ///
    /// # Errors
    /// [`ErrorKind::AlreadyExists`].
    pub fn add(&self, pod: Arc<Pod>) -> Result<()> {
        let mut inner = lock(&self.inner);
        if inner.pods.contains_key(&pod.id) {
            return Err(Error::new(ErrorKind::AlreadyExists, format!("sandbox {:?} already exists", pod.id)));
        }
        inner.pods.insert(pod.id.clone(), pod);
        inner.changed = Instant::now();
        Ok(())
    }

    /// The pod of an id.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`].
    pub fn get(&self, id: &str) -> Result<Arc<Pod>> {
        let missing = || Error::new(ErrorKind::NotFound, format!("sandbox {id:?} does not exist"));
        lock(&self.inner).pods.get(id).cloned().ok_or_else(missing)
    }

    /// Forgets a pod.
    pub fn remove(&self, id: &str) {
        let mut inner = lock(&self.inner);
        inner.pods.remove(id);
        inner.changed = Instant::now();
    }

    /// The pod of a container: the one that its annotations name. One that names none belongs to the only one of a daemon that is there for a
    /// pod (`dedicated`).
    pub fn of(&self, annotations: &HashMap<String, String>, dedicated: bool) -> Option<Arc<Pod>> {
        let inner = lock(&self.inner);
        match annotations.get(SANDBOX_ID) {
            Some(id) => inner.pods.get(id).cloned(),
            None if dedicated && inner.pods.len() == 1 => inner.pods.values().next().cloned(),
            None => None,
        }
    }

    /// Whether there is no other one.
    pub fn has_only(&self, id: &str) -> bool {
        lock(&self.inner).pods.keys().all(|other| other == id)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        lock(&self.inner).pods.is_empty()
    }

    /// For how long there has been none, but such as were never started; `None` if there is one.
    pub fn idle_for(&self) -> Option<Duration> {
        let inner = lock(&self.inner);
        inner.pods.values().all(|pod| pod.started_at().is_none()).then(|| inner.changed.elapsed())
    }

    /// Forgets pods that have ended and whose bundles are gone: nobody will shut them down here.
    pub fn forget_abandoned(&self) {
        let mut inner = lock(&self.inner);
        let before = inner.pods.len();
        inner.pods.retain(|_, pod| pod.end.borrow().is_none() || pod.bundle.exists());
        if inner.pods.len() < before {
            inner.changed = Instant::now();
        }
    }
}

impl Pod {
    /// One that is not started.
    pub fn new(id: &str, bundle: &Path, settings: Settings) -> Self {
        Self {
            id: id.to_owned(),
            bundle: bundle.to_owned(),
            settings,
            changing: tokio::sync::Mutex::default(),
            life: Mutex::default(),
            record: Mutex::new(Record::own(id, None)),
            end: watch::Sender::new(None),
        }
    }

    /// It runs.
    pub fn started(&self, held: Held) -> SystemTime {
        let now = SystemTime::now();
        *lock(&self.life) = Life { started: Some(now), held: Some(Arc::new(held)), ..Life::default() };
        now
    }

    /// When it was started.
    pub fn started_at(&self) -> Option<SystemTime> {
        lock(&self.life).started
    }

    /// What its containers share, while it runs.
    pub fn held(&self) -> Option<Arc<Held>> {
        lock(&self.life).held.clone()
    }

    /// The pid of the process that holds it; 0 where there is none.
    pub fn pid(&self) -> i32 {
        self.held().and_then(|held| held.holder.as_ref().map(|holder| holder.pid)).unwrap_or(0)
    }

    /// It is being stopped: however it ends now, it was asked to.
    pub fn stopping(&self) {
        lock(&self.life).stopping = true;
    }

    /// Its daemon is not needed any more: true the first time.
    pub fn leaves(&self) -> bool {
        !std::mem::replace(&mut lock(&self.life).leaving, true)
    }

    /// It has ended, unless it had before.
    pub fn ended(&self, status: u32) {
        let mut life = lock(&self.life);
        life.held = None;
        let status = if life.stopping { 0 } else { status };
        drop(life);
        self.end.send_if_modified(|end| {
            let first = end.is_none();
            end.get_or_insert(End { status, at: SystemTime::now() });
            first
        });
    }

    /// How it ended, once it has.
    pub fn end(&self) -> watch::Receiver<Option<End>> {
        self.end.subscribe()
    }

    /// Changes what is on disk for the time when this daemon is no more.
    ///
    /// # Errors
    /// The errno of the write.
    pub fn note(&self, change: impl FnOnce(&mut Record)) -> Result<()> {
        let mut record = lock(&self.record);
        change(&mut record);
        record.write(&self.bundle)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(id: &str) -> Arc<Pod> {
        Arc::new(Pod::new(id, Path::new("/nowhere"), Settings::default()))
    }

    #[test]
    fn a_container_belongs_to_the_pod_that_it_names_or_to_the_only_one() {
        let pods = Pods::default();
        let named = |id: &str| HashMap::from([(SANDBOX_ID.to_owned(), id.to_owned())]);
        assert!(pods.of(&HashMap::new(), true).is_none() && pods.is_empty());
        pods.add(pod("a")).unwrap();
        assert_eq!(pods.add(pod("a")).unwrap_err().kind(), ErrorKind::AlreadyExists);
        assert_eq!(pods.of(&HashMap::new(), true).unwrap().id, "a");
        assert!(pods.of(&HashMap::new(), false).is_none());
        assert!(pods.of(&named("b"), true).is_none() && !pods.is_empty());
        pods.add(pod("b")).unwrap();
        assert!(pods.of(&HashMap::new(), true).is_none());
        assert_eq!(pods.of(&named("b"), true).unwrap().id, "b");
        pods.remove("a");
        pods.remove("b");
        assert_eq!(pods.get("a").map(drop).unwrap_err().kind(), ErrorKind::NotFound);
        assert!(pods.is_empty());
    }

    #[test]
    fn a_pod_that_was_never_started_keeps_no_daemon_and_one_that_runs_does() {
        let pods = Pods::default();
        let pod = pod("a");
        pods.add(Arc::clone(&pod)).unwrap();
        assert!(pods.idle_for().is_some() && !pods.is_empty());
        pod.started(Held::default());
        assert_eq!(pods.idle_for(), None);
        pods.forget_abandoned();
        assert_eq!(pods.idle_for(), None);
        pod.ended(0);
        pods.forget_abandoned();
        assert!(pods.is_empty() && pods.idle_for().is_some());
    }

    #[test]
    fn a_pod_ends_once() {
        let pod = pod("a");
        pod.started(Held::default());
        assert!(pod.held().is_some());
        pod.ended(137);
        pod.stopping();
        pod.ended(137);
        assert_eq!(pod.end().borrow().map(|end| end.status), Some(137));
        assert!(pod.held().is_none() && pod.started_at().is_some());
    }
}
