//! Volumes.

use std::fs;
use std::path::PathBuf;

use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_change, unmount};
use tests::containerd::eventually;
use tests::cri::api::{Mount, MountPropagation};
use tests::cri::pod::{SOON, security};
use tests::cri::{PodCase, api};
use tests::{Result, ensure, ensure_eq};

/// A directory on the host that is a shared mount of its own; undone when dropped.
pub struct Shared(PathBuf);

impl Shared {
    pub fn new(case: &PodCase<'_>) -> Result<Shared> {
        let dir = case.dir()?.join("shared");
        fs::create_dir_all(&dir)?;
        mount_bind(&dir, &dir)?;
        mount_change(&dir, MountPropagationFlags::PRIVATE)?;
        mount_change(&dir, MountPropagationFlags::SHARED)?;
        let shared = Shared(dir);
        fs::create_dir_all(shared.0.join("sub"))?;
        Ok(shared)
    }

    pub fn path(&self) -> &std::path::Path {
        &self.0
    }

    pub fn mount_tmpfs(&self) -> Result<()> {
        mount("none", self.0.join("sub"), "tmpfs", MountFlags::empty(), None)?;
        Ok(fs::write(self.0.join("sub/file"), "from the host\n")?)
    }

    fn is_mounted(&self) -> bool {
        tests::proc::mounts().iter().any(|mount| mount.target == self.0.join("sub"))
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // What the case left mounted is in the ledger's message, too.
        let _ = unmount(self.0.join("sub"), UnmountFlags::DETACH);
        let _ = unmount(&self.0, UnmountFlags::DETACH);
    }
}

fn volume(host: &std::path::Path, propagation: MountPropagation) -> Mount {
    Mount { container_path: "/data".into(), host_path: host.display().to_string(), propagation: propagation.into(), ..Mount::default() }
}

pub fn volumes(case: &PodCase<'_>) -> Result<()> {
    let dir = case.dir()?.join("volume");
    fs::create_dir_all(&dir)?;
    fs::write(dir.join("file"), "kept\n")?;
    let pod = case.pod("pod")?;
    let writer = pod
        .container_with("writer", &["sleep", "9999"], |config| config.mounts = vec![volume(&dir, MountPropagation::PropagationPrivate)])?;
    writer.shell("cat /data/file && echo new > /data/new")?;
    ensure_eq!(fs::read_to_string(dir.join("new"))?, "new\n", "what the container wrote");
    let reader = pod.container_with("reader", &["sleep", "9999"], |config| {
        config.mounts = vec![Mount { readonly: true, ..volume(&dir, MountPropagation::PropagationPrivate) }];
    })?;
    let done = reader.exec(&["touch", "/data/more"])?;
    ensure!(String::from_utf8_lossy(&done.stderr).contains("Read-only"), "write to a read-only volume: {done:?}");
    Ok(())
}

pub fn propagation(case: &PodCase<'_>) -> Result<()> {
    let shared = Shared::new(case)?;
    let pod = case.pod("pod")?;
    let with = |mode| move |config: &mut api::ContainerConfig, dir: &std::path::Path| config.mounts = vec![volume(dir, mode)];
    let none = pod.container_with("none", &["sleep", "9999"], |c| with(MountPropagation::PropagationPrivate)(c, &shared.0))?;
    let from_host =
        pod.container_with("from-host", &["sleep", "9999"], |c| with(MountPropagation::PropagationHostToContainer)(c, &shared.0))?;
    shared.mount_tmpfs()?;
    eventually("the host's mount comes in", SOON, || from_host.shell("cat /data/sub/file").is_ok_and(|text| text == "from the host"))?;
    ensure_eq!(none.shell("ls /data/sub")?, "", "what a private volume shows of a later mount");
    Ok(())
}

pub fn bidirectional_propagation(case: &PodCase<'_>) -> Result<()> {
    let shared = Shared::new(case)?;
    let pod =
        case.pod_with("pod", |config| config.linux.get_or_insert_default().security_context.get_or_insert_default().privileged = true)?;
    let app = pod.container_with("app", &["sleep", "9999"], |config| {
        security(config).privileged = true;
        config.mounts = vec![volume(&shared.0, MountPropagation::PropagationBidirectional)];
    })?;
    app.shell("mount -t tmpfs none /data/sub && echo inside > /data/sub/file")?;
    ensure!(shared.is_mounted(), "the container's mount is not on the host");
    ensure_eq!(fs::read_to_string(shared.0.join("sub/file"))?, "inside\n", "its content");
    app.stop(0)?;
    app.remove()?;
    ensure!(shared.is_mounted(), "a mount of the host ended with the container");
    Ok(())
}

pub fn recursive_read_only(case: &PodCase<'_>) -> Result<()> {
    let shared = Shared::new(case)?;
    shared.mount_tmpfs()?;
    let app = case.pod("pod")?.container_with("app", &["sleep", "9999"], |config| {
        let volume = volume(&shared.0, MountPropagation::PropagationPrivate);
        config.mounts = vec![Mount { readonly: true, recursive_read_only: true, ..volume }];
    })?;
    ensure_eq!(app.shell("cat /data/sub/file")?, "from the host", "what is mounted below");
    let done = app.exec(&["touch", "/data/sub/more"])?;
    ensure!(String::from_utf8_lossy(&done.stderr).contains("Read-only"), "write below a recursively read-only volume: {done:?}");
    Ok(())
}
