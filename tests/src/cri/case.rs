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
    before: Entries,
}

impl<'a> PodCase<'a> {
    /// Opens the books.
    pub fn new(node: &'a Node, style: Style) -> Result<PodCase<'a>> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let word = format!("{}-{}p", paths::tag(), COUNT.fetch_add(1, Ordering::Relaxed));
        let scope = Scope { words: vec![word.clone()], ..Scope::default() };
        let before = ledger::read(&scope);
        Ok(PodCase { node, style, cri: node.cri()?, word, scope: Mutex::new(scope), before })
    }

    /// Another of the same node and style, for a thread of its own.
    pub fn again(&self) -> Result<PodCase<'a>> {
        PodCase::new(self.node, self.style)
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
        Pod::run(self, name, change)
    }

    /// Has the ledger look for a container or pod, too.
    pub fn watch(&self, id: &str) {
        self.scope.lock().unwrap_or_else(PoisonError::into_inner).add(&self.node.containerd.address(), NAMESPACE, id);
    }

    /// Removes the pods that the case did not, and fails if anything is left on the host.
    pub fn close(self) -> Result<()> {
        let label = [("case".to_owned(), self.word.clone())].into();
        let filter = Some(PodSandboxFilter { label_selector: label, ..PodSandboxFilter::default() });
        for pod in self.cri.list_pod_sandbox(ListPodSandboxRequest { filter })?.items {
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
        for dir in proc::cgroup_roots().into_iter().map(|root| root.join(&self.word)) {
            for below in proc::cgroups_below(&dir) {
                let _ = std::fs::remove_dir(below);
            }
            let _ = std::fs::remove_dir(dir);
        }
    }
}
