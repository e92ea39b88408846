//! One case on one node and in one style: names of its own, and a ledger that must balance at its end.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

use super::api::{self, ListPodSandboxRequest, PodSandboxFilter, RemovePodSandboxRequest};
use super::client::Cri;
use super::node::{NAMESPACE, Node, Style};
use super::pod::Pod;
use crate::containerd::Version;
use crate::ledger::{self, Entries, Scope};
use crate::suite::by_systemd;
use crate::{Context, Result, paths, proc};

/// What a case works with.
pub struct PodCase<'a> {
    /// Its containerd, shared with other cases.
    pub node: &'a Node,
    /// The handler of its pods.
    pub style: Style,
    /// Its client.
    pub cri: Cri,
    word: String,
    scope: Mutex<Scope>,
    watched: Mutex<Vec<String>>,
    before: Entries,
}

/// A case without its containerd.
pub struct Suspended {
    style: Style,
    word: String,
    scope: Mutex<Scope>,
    watched: Mutex<Vec<String>>,
    before: Entries,
}

impl Suspended {
    /// The case with a containerd that runs again.
    pub fn resume(self, node: &Node) -> Result<PodCase<'_>> {
        let Suspended { style, word, scope, watched, before } = self;
        Ok(PodCase { node, style, cri: node.cri()?, word, scope, watched, before })
    }
}

impl<'a> PodCase<'a> {
    /// Opens the books.
    pub fn new(node: &'a Node, style: Style) -> Result<PodCase<'a>> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let word = format!("{}-{}p", paths::tag(), COUNT.fetch_add(1, Ordering::Relaxed));
        let scope = Scope { words: vec![word.clone()], ..Scope::default() };
        let before = ledger::read(&scope);
        Ok(PodCase { node, style, cri: node.cri()?, word, scope: Mutex::new(scope), watched: Mutex::default(), before })
    }

    /// Another of the same node and style, for a thread of its own.
    pub fn again(&self) -> Result<PodCase<'a>> {
        PodCase::new(self.node, self.style)
    }

    /// One with the same names and no ledger of its own, for a thread.
    pub fn sibling(&self) -> Result<PodCase<'a>> {
        let scope = Scope { words: vec![self.word.clone()], ..Scope::default() };
        let (cri, word) = (self.node.cri()?, self.word.clone());
        Ok(PodCase {
            node: self.node,
            style: self.style,
            cri,
            word,
            scope: Mutex::new(scope),
            watched: Mutex::default(),
            before: Entries::new(),
        })
    }

    /// The ids of its pods and containers.
    pub fn watched(&self) -> Vec<String> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How many containers of its pods run.
    pub fn running(&self) -> Result<usize> {
        let pods: Vec<String> = self.cri.list_pod_sandbox(self.mine())?.items.into_iter().map(|pod| pod.id).collect();
        let all = self.cri.list_containers(api::ListContainersRequest::default())?.containers;
        let running = |c: &&api::Container| c.state() == api::ContainerState::ContainerRunning && pods.contains(&c.pod_sandbox_id);
        Ok(all.iter().filter(running).count())
    }

    /// What is left when its containerd is to be killed.
    pub fn suspend(self) -> Suspended {
        Suspended { style: self.style, word: self.word, scope: self.scope, watched: self.watched, before: self.before }
    }

    fn mine(&self) -> ListPodSandboxRequest {
        let label = [("case".to_owned(), self.word.clone())].into();
        ListPodSandboxRequest { filter: Some(PodSandboxFilter { label_selector: label, ..PodSandboxFilter::default() }) }
    }

    /// The containerd's generation.
    pub fn version(&self) -> Version {
        self.node.containerd.version
    }

    /// A word that is in every name of this case.
    pub fn word(&self) -> &str {
        &self.word
    }

    /// A directory of this case that is gone with the containerd.
    pub fn dir(&self) -> Result<PathBuf> {
        let number = self.word.trim_start_matches(paths::tag()).trim_start_matches('-');
        let dir = self.node.containerd.data().join("pods").join(number);
        std::fs::create_dir_all(&dir)?;
        Ok(dir)
    }

    /// Runs a pod of this case's style.
    pub fn pod(&self, name: &str) -> Result<Pod<'_>> {
        self.pod_with(name, |_| {})
    }

    /// As [`PodCase::pod`], with a changed configuration.
    pub fn pod_with(&self, name: &str, change: impl FnOnce(&mut api::PodSandboxConfig)) -> Result<Pod<'_>> {
        Pod::run(self, self.style.name(), name, change)
    }

    /// Runs a pod by a handler of another name.
    pub fn pod_of(&self, handler: &str, name: &str) -> Result<Pod<'_>> {
        Pod::run(self, handler, name, |_| {})
    }

    /// Has the ledger look for a container or pod, too.
    pub fn watch(&self, id: &str) {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner).push(id.to_owned());
        self.scope.lock().unwrap_or_else(PoisonError::into_inner).add(&self.node.containerd.address(), NAMESPACE, id);
    }

    /// Removes the pods that the case did not, and fails if anything is left on the host.
    pub fn close(self) -> Result<()> {
        for pod in self.cri.list_pod_sandbox(self.mine())?.items {
            let remove = RemovePodSandboxRequest { pod_sandbox_id: pod.id.clone() };
            self.cri
                .stop_pod_sandbox(api::StopPodSandboxRequest { pod_sandbox_id: pod.id.clone() })
                .context(|| format!("stop of {}", pod.id))?;
            self.cri.remove_pod_sandbox(remove).context(|| format!("removal of {}", pod.id))?;
        }
        self.remove_parents();
        ledger::expect_clean(&self.scope.into_inner().unwrap_or_else(PoisonError::into_inner), &self.before)
    }

    /// The cgroups of pods are the kubelet's to remove. What still has a container's in it stays, for the ledger to find.
    fn remove_parents(&self) {
        if by_systemd() {
            return proc::remove_slice(&format!("{}.slice", self.word));
        }
        for dir in proc::cgroup_roots().into_iter().map(|root| root.join(&self.word)) {
            for below in proc::cgroups_below(&dir) {
                let _ = std::fs::remove_dir(below);
            }
            let _ = std::fs::remove_dir(dir);
        }
    }
}
