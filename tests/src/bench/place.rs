//! Where a worker works: a mount namespace of its own, with or without the host's cgroup mounts, and a bundle on tmpfs.

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;

use runtime_core::sys::process::{setns, unshare};
use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use serde_json::{Value, json};
use std::os::fd::AsFd;

use crate::bundle::{self, Bundle};
use crate::{Context, Result, paths};

use super::payload;

/// Which cgroups a worker sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cgroups {
    /// What the host has mounted.
    Host,
    /// Only a cgroup v2 tree on /sys/fs/cgroup, in a private mount namespace: what crun needs on a hybrid host.
    Bare,
}

/// Whether a container's network namespace is new or one that exists already, as under CRI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Net {
    /// A new one.
    Own,
    /// A given one.
    Given,
}

/// Enters a private mount namespace, alone or with a bare cgroup v2 tree. Before the first thread.
pub fn enter(cgroups: Cgroups) -> Result<()> {
    unshare(libc::CLONE_NEWNS)?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    if cgroups == Cgroups::Bare {
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        mount("cgroup2", "/sys/fs/cgroup", "cgroup2", flags, None).context(|| "mount cgroup2".to_owned())?;
    }
    Ok(())
}

/// Debian's directory of libraries.
pub fn libraries() -> String {
    format!("/usr/lib/{}-linux-gnu", std::env::consts::ARCH)
}

/// Lets programs find libraries of `extra` that the host lacks, whatever environment they are given. In a private mount namespace.
pub fn add_libraries(extra: &str) -> Result<()> {
    let host = libraries();
    let lacks = |entry: fs::DirEntry| !std::path::Path::new(&host).join(entry.file_name()).exists();
    if fs::read_dir(extra).is_ok_and(|mut entries| entries.any(|entry| entry.is_ok_and(lacks))) {
        let options = std::ffi::CString::new(format!("lowerdir={host}:{extra}"))?;
        mount("libraries", host.as_str(), "overlay", MountFlags::RDONLY, Some(options.as_c_str()))
            .context(|| format!("overlay on {host}"))?;
    }
    Ok(())
}

/// Puts this run's data on a tmpfs, so that no disk is measured. In a private mount namespace.
pub fn data_on_tmpfs() -> Result<PathBuf> {
    let data = paths::data_dir()?;
    fs::create_dir_all(&data)?;
    mount("bench", &data, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, None).context(|| format!("mount tmpfs on {data:?}"))?;
    Ok(data)
}

/// containerd's default seccomp profile.
pub fn seccomp() -> Result<Value> {
    let path = paths::checkout().join("runtime-core/testdata/seccomp-default-amd64.json");
    Ok(serde_json::from_slice(&fs::read(&path).context(|| path.display().to_string())?)?)
}

/// A bundle in `parent` that runs `program` of the payload, with containerd's default specification and seccomp profile.
pub fn bundle(parent: &std::path::Path, id: &str, program: &str, cgroups: Cgroups, net: Option<&str>) -> Result<Bundle> {
    let system = bundle::system()?;
    // What runs already must not be written to.
    if !system.join("pause").exists() {
        payload::write(&system)?;
    }
    let mut bundle = Bundle::new(parent, id, &[program])?;
    let seccomp = seccomp()?;
    bundle.edit(|spec| {
        // The newest that Debian's crun takes.
        spec["ociVersion"] = json!("1.0.2");
        spec["linux"]["seccomp"] = seccomp;
        if cgroups == Cgroups::Bare {
            // crun cannot load a device filter in a tree that lacks its memory limit's privileges.
            spec["linux"]["resources"] = json!({});
        }
        if let Some(path) = net
            && let Some(namespaces) = spec["linux"]["namespaces"].as_array_mut()
        {
            namespaces.retain(|namespace| namespace["type"] != "network");
            namespaces.push(json!({"type": "network", "path": path}));
        }
    })?;
    Ok(bundle)
}

/// A network namespace that is kept by a descriptor.
pub struct GivenNet(OwnedFd);

impl GivenNet {
    /// A new one; the caller stays in its own.
    pub fn new() -> Result<GivenNet> {
        let open = || rustix::fs::open("/proc/thread-self/ns/net", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        let own = open()?;
        unshare(libc::CLONE_NEWNET)?;
        let made = open();
        setns(own.as_fd(), libc::CLONE_NEWNET)?;
        Ok(GivenNet(made?))
    }

    /// A path by which any process finds it.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }

    /// The descriptor.
    pub fn descriptor(&self) -> &OwnedFd {
        &self.0
    }
}
