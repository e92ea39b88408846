//! What a container of a pod gets of it.
//!
//! CRI writes the pod's namespaces into a container's spec as those of the process that the sandbox has told of: `/proc/<pid>/ns/ipc`. A pod
//! without a process tells 0, and `/proc/0/ns/ipc` then means the namespace that is held here.

use std::collections::HashSet;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use oci_spec::runtime::{LinuxIdMapping, LinuxNamespaceType, Mount};
use runtime_core::error::{Context as _, Error, ErrorKind, Result};
use runtime_core::spec::Spec;

use super::files::{self, NAMES};
use super::settings::Network;
use super::{Held, Pod};

/// What CRI says of a pod without a process.
const OF_NO_PROCESS: &str = "/proc/0/ns";

/// Keeps what a container's spec refers to, as long as the container is being made.
pub struct Shared {
    /// The mount namespace with the pod's `/dev/shm`.
    pub mounts: Option<OwnedFd>,
    _held: Arc<Held>,
}

impl Pod {
    /// Completes the spec of a container of this pod.
    ///
    /// # Errors
    /// [`ErrorKind::FailedPrecondition`] unless the pod runs.
    pub fn share_with(&self, spec: &mut Spec) -> Result<Shared> {
        let stopped = || Error::new(ErrorKind::FailedPrecondition, format!("sandbox {:?} does not run", self.id));
        let held = self.held().ok_or_else(stopped)?;
        self.lend_namespaces(&held, spec);
        if self.settings.files {
            add_files(&self.bundle, spec);
            let root = |mappings: &[LinuxIdMapping]| mappings.iter().find(|it| it.container_id() == 0).map(LinuxIdMapping::host_id);
            if let (Some(uid), Some(gid)) = (root(&spec.linux.uid_mappings), root(&spec.linux.gid_mappings)) {
                files::give_to(&self.bundle, uid, gid)?;
            }
        }
        let shares_ipc = spec.linux.namespaces.iter().any(|it| it.typ() == LinuxNamespaceType::Ipc && it.path().is_some());
        let mounts = held.mounts.as_ref().filter(|_| shares_ipc).map(|fd| fd.try_clone().context(|| "dup")).transpose()?;
        Ok(Shared { mounts, _held: held })
    }

    fn lend_namespaces(&self, held: &Held, spec: &mut Spec) {
        let lent = |kind| match kind {
            LinuxNamespaceType::Network => match &self.settings.network {
                Network::At(path) => Some(path.clone()),
                _ => held.network.as_ref().map(own_path),
            },
            LinuxNamespaceType::Ipc => held.ipc.as_ref().map(own_path),
            LinuxNamespaceType::Uts => held.uts.as_ref().map(own_path),
            LinuxNamespaceType::User => held.user.as_ref().map(own_path),
            _ => None,
        };
        spec.linux.namespaces.retain_mut(|namespace| {
            if namespace.path().as_deref().is_none_or(|path| path.parent() != Some(Path::new(OF_NO_PROCESS))) {
                return true;
            }
            // What the pod does not hold is the host's.
            let path = lent(namespace.typ());
            let known = path.is_some();
            namespace.set_path(path);
            known
        });
    }
}

/// The path by which this process opens one of its descriptors again.
fn own_path(fd: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

/// Adds the files for which the spec has no mount.
fn add_files(bundle: &Path, spec: &mut Spec) {
    let read_only = spec.root_is_read_only();
    let present: HashSet<PathBuf> = spec.mounts.iter().map(|mount| mount.destination().clone()).collect();
    for name in NAMES {
        let destination = Path::new("/etc").join(name);
        if present.contains(&destination) {
            continue;
        }
        let options = ["rbind", "rprivate", if read_only { "ro" } else { "rw" }].map(str::to_owned).to_vec();
        let mut mount = Mount::default();
        mount.set_destination(destination).set_typ(Some("bind".to_owned())).set_source(Some(bundle.join(name))).set_options(Some(options));
        spec.mounts.push(mount);
    }
}

#[cfg(test)]
mod tests {
    use super::super::settings::Settings;
    use super::*;

    fn spec(text: &str) -> Spec {
        Spec::parse(text.as_bytes()).unwrap()
    }

    fn pod(settings: Settings, held: Held) -> Pod {
        let pod = Pod::new("a", Path::new("/b"), settings);
        pod.started(held);
        pod
    }

    fn file() -> Option<OwnedFd> {
        Some(std::fs::File::open("/dev/null").unwrap().into())
    }

    const NAMESPACES: &str = r#"{"linux":{"namespaces":[{"type":"network","path":"/proc/0/ns/net"},{"type":"ipc","path":"/proc/0/ns/ipc"},
        {"type":"uts","path":"/proc/0/ns/uts"},{"type":"pid","path":"/proc/7/ns/pid"},{"type":"mount"}]}}"#;

    #[test]
    fn namespaces_of_no_process_are_the_pods_or_the_hosts() {
        let held = Held { ipc: file(), mounts: file(), ..Held::default() };
        let ipc = own_path(held.ipc.as_ref().unwrap());
        let pod = pod(Settings { network: Network::At("/n".into()), ..Settings::default() }, held);
        let mut spec = spec(NAMESPACES);
        let shared = pod.share_with(&mut spec).unwrap();
        let paths: Vec<_> = spec.linux.namespaces.iter().map(|it| (it.typ().to_string(), it.path().clone())).collect();
        let want = [("net", Some("/n".into())), ("ipc", Some(ipc)), ("pid", Some("/proc/7/ns/pid".into())), ("mnt", None)];
        assert_eq!(paths, want.map(|(kind, path): (&str, Option<PathBuf>)| (kind.to_owned(), path)), "{paths:?}");
        assert!(shared.mounts.is_some() && spec.mounts.is_empty());
    }

    #[test]
    fn files_are_added_where_there_are_none() {
        let pod = pod(Settings { files: true, ..Settings::default() }, Held::default());
        let mut spec = spec(r#"{"root":{"path":"r","readonly":true},"mounts":[{"destination":"/etc/hosts","type":"bind","source":"/h"}]}"#);
        pod.share_with(&mut spec).unwrap();
        let mounts: Vec<_> = spec.mounts.iter().map(|mount| mount.source().clone().unwrap()).collect();
        assert_eq!(mounts, ["/h", "/b/hostname", "/b/resolv.conf"].map(PathBuf::from));
        assert!(spec.mounts[2].options().as_ref().unwrap().contains(&"ro".to_owned()));
    }

    #[test]
    fn a_pod_that_does_not_run_has_nothing_to_share() {
        let pod = pod(Settings::default(), Held::default());
        pod.ended(0);
        let error = pod.share_with(&mut spec("{}")).map(drop).unwrap_err();
        assert_eq!((error.kind(), error.to_string().as_str()), (ErrorKind::FailedPrecondition, "sandbox \"a\" does not run"));
    }
}
