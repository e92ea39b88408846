//! The listener of a seccomp filter: its descriptor goes from the process that has loaded the filter to the program that decides about the
//! system calls with the action NOTIFY (OCI config-linux.md, "Seccomp").

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use oci_spec::runtime::ContainerState;
use runtime_core::container::hooks::{described, process_state};
use runtime_core::error::{Error, ErrorKind, Result};
use runtime_core::plan::report::send_with;
use runtime_core::seccomp::Filter;
use runtime_core::spec::Spec;
use runtime_core::sys::socket::reachable;
use rustix::net::SendFlags;
use tokio::io::Interest;
use tokio::net::UnixStream;

use super::node::Child;

/// How long that program may take to accept what it is given.
const PATIENCE: Duration = Duration::from_secs(10);

/// Who listens for the processes of a container.
pub struct Listener {
    listener: runtime_core::seccomp::Listener,
    version: String,
    annotations: HashMap<String, String>,
    id: String,
    bundle: PathBuf,
}

impl Listener {
    /// That of a container's filter, if it has one.
    pub fn of(filter: Option<&Filter>, spec: &Spec, id: &str, bundle: &Path) -> Option<Self> {
        filter.and_then(|filter| filter.listener.clone()).map(|listener| Self {
            listener,
            version: spec.oci_version.clone(),
            annotations: spec.annotations.clone(),
            id: id.to_owned(),
            bundle: bundle.to_owned(),
        })
    }

    /// Gives `descriptor` away for a process of a container in this state whose first process is `init`, and lets the process go on.
    ///
    /// # Errors
    /// The socket cannot be reached or does not take it in time.
    pub async fn take(&self, child: &Child, descriptor: OwnedFd, status: ContainerState, init: i32) -> Result<()> {
        let state = described(status, &self.id, Some(init), &self.bundle, &self.version, &self.annotations)?;
        let message = process_state(child.pid, &self.listener.metadata, state)?;
        let failed = |why: &dyn std::fmt::Display| {
            Error::new(ErrorKind::Internal, format!("linux.seccomp.listenerPath: give the listener to {:?}: {why}", self.listener.path))
        };
        match tokio::time::timeout(PATIENCE, send(&self.listener.path, &message, descriptor)).await {
            Ok(sent) => sent.map_err(|error| failed(&error))?,
            Err(_) => return Err(failed(&format_args!("not taken within {} s", PATIENCE.as_secs()))),
        }
        child.go()
    }
}

/// The message is in one piece with the descriptor, as receivers expect that read once; what a full socket leaves of it follows.
async fn send(path: &str, message: &[u8], descriptor: OwnedFd) -> std::io::Result<()> {
    let (address, _held) = reachable(Path::new(path))?;
    let socket = UnixStream::connect(address).await?;
    let mut rest = message;
    let mut descriptor = Some(descriptor);
    while !rest.is_empty() {
        socket.writable().await?;
        let sent = socket.try_io(Interest::WRITABLE, || {
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            Ok(match &descriptor {
                Some(descriptor) => send_with(socket.as_fd(), rest, descriptor.as_fd(), flags)?,
                None => rustix::net::send(&socket, rest, flags)?,
            })
        });
        match sent {
            Ok(length) => {
                rest = &rest[length..];
                descriptor = None;
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
