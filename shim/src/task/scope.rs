//! A container's cgroup, whoever makes it: this program, or systemd as a scope.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use runtime_core::cgroup::{Cgroup, CgroupPath, Intent};
use runtime_core::compile;
use runtime_core::error::{Context as _, Error, ErrorKind, Result};
use runtime_core::plan::report;
use runtime_core::spec::Resources;
use runtime_core::systemd::{New, Property, Scope};

use super::create::remove;
use super::node::{Child, Node, Progress};
use crate::systemd::Systemd;

/// How long a cgroup that nobody wants any more may take to go.
const REMOVAL: Duration = Duration::from_secs(2);

/// Whether systemd makes the cgroup of a path, by what the runtime's options and the operator say; where neither does, the form of the path does.
pub fn by_systemd(options: Option<bool>, operator: Option<bool>, cgroups_path: Option<&str>) -> bool {
    match options.max(operator) {
        Some(said) => said,
        None => Scope::is_meant_by(cgroups_path),
    }
}

/// Where the cgroup of the container `id` is, which is not there yet.
///
/// # Errors
/// `InvalidArgument` where the path does not have the form of the driver; `FailedPrecondition` for a scope that is in use.
pub async fn place(node: &Node, by_systemd: bool, cgroups_path: Option<&str>, id: &str) -> Result<CgroupPath> {
    if !by_systemd {
        return CgroupPath::new(&node.host, cgroups_path, id);
    }
    let scope = Scope::new(cgroups_path, id, Systemd::instance())?;
    node.systemd.manager().place(&node.host, &scope).await
}

/// The process that keeps a scope until the container's own one is inside.
pub struct Guest {
    pid: i32,
    pidfd: Arc<OwnedFd>,
    /// It ends when nobody listens to it any more.
    _child: Child,
}

impl Guest {
    async fn launch(node: &Node) -> Result<Self> {
        let (report, child_report) = report::pair().context(|| "socketpair")?;
        let child = node.launch(compile::guest(child_report)?, report).await?;
        let mut guest = Self { pid: child.pid, pidfd: Arc::clone(&child.pidfd), _child: child };
        match guest._child.progress().await {
            Ok(Progress::Ready) => Ok(guest),
            result => {
                guest.end(node).await;
                let killed = || Error::new(ErrorKind::Internal, "the process that keeps a scope was killed");
                result.and_then(|_| Err(killed()))
            }
        }
    }

    async fn end(&self, node: &Node) {
        node.kill(self.pid, &self.pidfd).await;
    }
}

/// A cgroup that is being made; it has to be settled, or undone.
#[derive(Default)]
pub struct Making {
    guest: Option<Guest>,
    scope: Option<Scope>,
    /// Once there is one.
    pub cgroup: Option<Cgroup>,
}

impl Making {
    /// Makes the cgroup with the limits in force. What there is of it after an error is in `self`.
    ///
    /// # Errors
    /// The step that failed.
    pub async fn make(&mut self, node: &Node, path: &CgroupPath, id: &str, resources: &Resources, extra: &[Property]) -> Result<&Cgroup> {
        let cgroup = match path.scope() {
            None => Cgroup::create(&node.host, path, resources)?,
            Some(scope) => {
                let intent = Intent::new(&node.host, resources, None)?;
                let guest = self.guest.insert(Guest::launch(node).await?);
                let new = New { scope, path, id, pid: guest.pid.cast_unsigned(), intent: &intent, extra };
                node.systemd.manager().start(&node.host, &new).await?;
                self.scope = Some(scope.clone());
                Cgroup::adopt(&node.host, path, resources)?
            }
        };
        Ok(self.cgroup.insert(cgroup))
    }

    /// The container's own first process is inside.
    ///
    /// # Errors
    /// The limit of processes cannot be set.
    pub async fn settle(&mut self, node: &Node, resources: &Resources) -> Result<()> {
        let Some(guest) = self.guest.take() else { return Ok(()) };
        guest.end(node).await;
        self.cgroup.as_ref().map_or(Ok(()), |cgroup| cgroup.settle(resources))
    }

    /// What has been made: nothing is undone any more.
    pub fn take(&mut self) -> Option<Cgroup> {
        self.scope = None;
        self.cgroup.take()
    }

    /// Removes what there is, and all who are inside; `id` is whose it was.
    pub async fn undo(&mut self, node: &Node, id: &str) {
        if let Some(guest) = self.guest.take() {
            guest.end(node).await;
        }
        if let Some(cgroup) = self.cgroup.take()
            && let Err(error) = remove(&cgroup, REMOVAL).await
        {
            log::error!("{id}: {error}");
        }
        if let Err(error) = stop(node, self.scope.take().as_ref()).await {
            log::error!("{id}: {error}");
        }
    }
}

/// Stops the scope of a cgroup that has been removed.
///
/// # Errors
/// systemd does not stop it.
pub async fn stop(node: &Node, scope: Option<&Scope>) -> Result<()> {
    match scope {
        Some(scope) => node.systemd.manager().stop(scope).await,
        None => Ok(()),
    }
}

/// Changes limits of a cgroup.
///
/// # Errors
/// The field that could not be changed.
pub async fn update(node: &Node, scope: Option<&Scope>, cgroup: &Cgroup, resources: &Resources) -> Result<()> {
    match scope {
        Some(scope) => node.systemd.manager().update(&node.host, scope, cgroup, resources).await,
        None => cgroup.update(resources),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn either_word_for_systemd_counts_and_none_leaves_it_to_the_path() {
        let scope = Some("a.slice:b:c");
        for (options, operator, wanted) in [
            (Some(true), None, true),
            (Some(false), Some(true), true),
            (Some(true), Some(false), true),
            (None, Some(false), false),
            (Some(false), None, false),
        ] {
            assert_eq!(by_systemd(options, operator, scope), wanted, "{options:?} {operator:?}");
        }
        assert!(!by_systemd(None, None, Some("/a/b")) && !by_systemd(None, None, None));
    }
}
