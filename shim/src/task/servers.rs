//! Servers of root filesystems: what a mount helper leaves running for as long as the container lives.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use runtime_core::compile::{self, ByHelper, RootMount};
use runtime_core::container::record::ProcessId;
use runtime_core::error::{Context as _, Error, ErrorKind, Result};
use runtime_core::plan::report;
use runtime_core::sys::process::send_signal;
use tokio::sync::watch;

use super::hooks::{given_up, nobody_wants_it};
use super::node::{Child, Node, Progress};

/// How long a server may take to end after its last user, for what it still has to write.
const GRACE: Duration = Duration::from_secs(2);

/// The first process of a server's pid namespace: it ends when the server has ended, and when it is killed the server is killed with it.
pub struct Server {
    pid: i32,
    pidfd: Arc<OwnedFd>,
    ended: watch::Receiver<bool>,
}

impl Server {
    /// Has a helper make a mount at `target`, where it does not stay.
    ///
    /// # Errors
    /// What the helper said.
    pub async fn start(node: &Arc<Node>, mount: &RootMount, target: &Path, wanted: &watch::Receiver<bool>) -> Result<(Self, OwnedFd)> {
        let (report, child_report) = report::pair().context(|| "socketpair")?;
        let compiled = compile::by_helper(ByHelper { mount, target, report: child_report })?;
        let mut child = node.launch(compiled, report).await?;
        let server = Self::watch(node, &child);
        let made = tokio::select! {
            () = given_up(wanted) => Err(nobody_wants_it()),
            progress = child.progress() => match progress {
                Ok(Progress::Handed(mount)) => Ok(mount),
                Ok(_) => Err(Error::new(ErrorKind::Internal, "the mount helper was killed")),
                Err(error) => Err(error),
            },
        };
        match made {
            Ok(mount) => Ok((server, mount)),
            Err(error) => {
                server.kill().await;
                Err(error.context(format!("rootfs {}", mount.fstype)))
            }
        }
    }

    fn watch(node: &Arc<Node>, child: &Child) -> Self {
        let (tell, ended) = watch::channel(false);
        let (node, pid, pidfd) = (Arc::clone(node), child.pid, Arc::clone(&child.pidfd));
        let server = Self { pid, pidfd: Arc::clone(&pidfd), ended };
        tokio::spawn(async move {
            node.wait(pid, &pidfd).await;
            tell.send_replace(true);
        });
        server
    }

    /// For the record.
    pub fn id(&self) -> Option<ProcessId> {
        ProcessId::of(self.pid)
    }

    /// Waits for its end, which comes when nobody has its mount any more; one that does not end is killed.
    pub async fn end(&self) {
        if tokio::time::timeout(GRACE, self.ended.clone().wait_for(|ended| *ended)).await.is_err() {
            self.kill().await;
        }
    }

    /// Kills it at once: whoever waits for an answer of its filesystem gets an error.
    pub async fn kill(&self) {
        let _ = send_signal(self.pidfd.as_fd(), libc::SIGKILL);
        // An error means that nobody is left who could tell.
        let _ = self.ended.clone().wait_for(|ended| *ended).await;
    }
}
