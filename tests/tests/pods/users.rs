//! Pods in user namespaces (`hostUsers: false`).

use std::fs;
use std::os::unix::fs::MetadataExt;

use tests::cri::api::{IdMapping, Mount, NamespaceMode, UserNamespace};
use tests::cri::pod::{namespaces, security};
use tests::cri::stream::{STDOUT, Stream};
use tests::cri::{Container, Pod, PodCase, api};
use tests::{Result, ensure, ensure_eq};

/// The first of the host's ids that are the pod's.
const FIRST: u32 = 1_000_000;
const COUNT: u32 = 65_536;

fn mapping() -> Vec<IdMapping> {
    vec![IdMapping { host_id: FIRST, container_id: 0, length: COUNT }]
}

fn users() -> Option<UserNamespace> {
    Some(UserNamespace { mode: NamespaceMode::Pod.into(), uids: mapping(), gids: mapping() })
}

fn pod<'c>(case: &'c PodCase<'c>) -> Result<Pod<'c>> {
    case.pod_with("pod", |config| namespaces(config).userns_options = users())
}

fn in_users(config: &mut api::ContainerConfig) {
    security(config).namespace_options.get_or_insert_default().userns_options = users();
}

fn sleeper<'c>(pod: &Pod<'c>, name: &str) -> Result<Container<'c>> {
    pod.container_with(name, &["sleep", "9999"], in_users)
}

pub fn user_namespace(case: &PodCase<'_>) -> Result<()> {
    let pod = pod(case)?;
    let (a, b) = (sleeper(&pod, "a")?, sleeper(&pod, "b")?);
    let numbers = a.shell("cat /proc/self/uid_map /proc/self/gid_map")?;
    let wanted = format!("0 {FIRST} {COUNT} 0 {FIRST} {COUNT}");
    ensure_eq!(numbers.split_whitespace().collect::<Vec<_>>().join(" "), wanted, "maps inside");
    let link = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/user"));
    ensure_eq!(link(a.pid()?)?, link(b.pid()?)?, "user namespace of both");
    ensure_eq!(fs::metadata(format!("/proc/{}", a.pid()?))?.uid(), FIRST, "owner of the process on the host");
    ensure_eq!(a.shell("id -u; stat -c %u /; stat -c %u /dev/null /proc/1 /bin/busybox")?, "0\n0\n0\n0\n0", "owners inside");
    if !case.style.has_pause() {
        ensure_eq!(
            a.shell("stat -c %u:%g /etc/hosts && echo 127.0.0.9 nine >> /etc/hosts && cat /etc/hostname")?,
            "0:0\npod",
            "the pod's files"
        );
    }
    a.shell("echo x > /file && chown 1000:1000 /file && echo y > /dev/shm/file && echo z > /dev/null")?;
    ensure_eq!(b.shell("cat /dev/shm/file")?, "y", "what the other wrote");
    let done = a.exec(&[
        "sh",
        "-c",
        "mount -t tmpfs none /tmp; hostname other; cat /proc/sys/kernel/core_pattern > /dev/null; echo 1 > /proc/sys/kernel/sysrq",
    ])?;
    ensure!(done.exit_code != 0, "the pod's root writes the host's sysctls");
    Ok(())
}

pub fn user_namespace_with_a_volume(case: &PodCase<'_>) -> Result<()> {
    let dir = case.dir()?.join("volume");
    fs::create_dir_all(&dir)?;
    fs::write(dir.join("of-root"), "kept\n")?;
    let pod = pod(case)?;
    let app = pod.container_with("app", &["sleep", "9999"], |config| {
        in_users(config);
        config.mounts = vec![Mount {
            container_path: "/data".into(),
            host_path: dir.display().to_string(),
            uid_mappings: mapping(),
            gid_mappings: mapping(),
            ..Mount::default()
        }];
    })?;
    ensure_eq!(fs::metadata(format!("/proc/{}", app.pid()?))?.uid(), FIRST, "owner of the process on the host");
    ensure_eq!(app.shell("stat -c %u:%g /data /data/of-root; cat /data/of-root")?, "0:0\n0:0\nkept", "owners of the volume inside");
    app.shell("echo new > /data/new; touch /data/of-ada; chown 1000:1000 /data/of-ada")?;
    let owner = |name: &str| fs::metadata(dir.join(name)).map(|file| (file.uid(), file.gid()));
    ensure_eq!((owner("new")?, owner("of-ada")?), ((0, 0), (1000, 1000)), "owners on the host");
    Ok(())
}

/// Its output is written by what is nobody on the host.
pub fn user_namespace_of_a_user(case: &PodCase<'_>) -> Result<()> {
    let pod = pod(case)?;
    let app = pod.container_with("app", &["sh", "-c", "id -u; echo again > /proc/self/fd/1; sleep 9999"], |config| {
        in_users(config);
        security(config).run_as_user = Some(api::Int64Value { value: 1000 });
    })?;
    app.wait_printed("1000\nagain")?;
    ensure_eq!(fs::metadata(format!("/proc/{}", app.pid()?))?.uid(), FIRST + 1000, "owner of the process on the host");
    ensure_eq!(app.shell("id -u; echo more > /dev/stderr")?, "1000", "user of an exec");
    Ok(())
}

/// Root of the pod with every capability there is cannot undo what the host's mounts are.
pub fn user_namespace_is_locked(case: &PodCase<'_>) -> Result<()> {
    let shared = crate::mounts::Shared::new(case)?;
    shared.mount_tmpfs()?;
    let pod = pod(case)?;
    let app = pod.container_with("app", &["sleep", "9999"], |config| {
        in_users(config);
        security(config).capabilities = Some(api::Capability { add_capabilities: vec!["ALL".to_owned()], ..api::Capability::default() });
        let unconfined = api::security_profile::ProfileType::Unconfined.into();
        let profile = api::SecurityProfile { profile_type: unconfined, localhost_ref: String::new() };
        security(config).seccomp = Some(profile.clone());
        security(config).apparmor = Some(profile);
        let (container_path, host_path) = ("/data".to_owned(), shared.path().display().to_string());
        let propagation = api::MountPropagation::PropagationBidirectional.into();
        config.mounts = vec![Mount { container_path, host_path, readonly: true, propagation, ..Mount::default() }];
    })?;
    // That it may mount at all, in its own namespace.
    app.shell("mount -t tmpfs none /tmp && touch /tmp/file && umount /tmp")?;
    // The pid namespace is the user namespace's own, so its procfs may be mounted, and shows nothing but the container.
    app.shell("mount -t proc none /tmp && grep -q sleep /tmp/1/cmdline && umount /tmp")?;
    for undone in ["mount -o remount,bind,rw /data", "umount /data/sub", "mknod /tmp/disk b 8 0"] {
        let done = app.exec(&["sh", "-c", undone])?;
        ensure!(done.exit_code != 0, "{undone:?} works");
    }
    app.shell("mount -t tmpfs none /data/sub && echo inside > /data/sub/inside")?;
    ensure!(!shared.path().join("sub/inside").exists(), "a mount of the container's is on the host");
    Ok(())
}

pub fn user_namespace_terminal(case: &PodCase<'_>) -> Result<()> {
    let pod = pod(case)?;
    let app = pod.container_with("app", &["sh", "-c", "tty; stat -c %u $(tty); exec sleep 9999"], |config| {
        in_users(config);
        config.tty = true;
        security(config).run_as_user = Some(api::Int64Value { value: 1000 });
    })?;
    app.wait_printed("/dev/pts/0\n1000")?;
    ensure_eq!(fs::metadata(format!("/proc/{}", app.pid()?))?.uid(), FIRST + 1000, "owner of the process on the host");
    let request = api::ExecRequest {
        container_id: app.id.clone(),
        cmd: tests::cri::pod::strings(&["sh", "-c", "stat -c 'owner %u' $(tty)"]),
        tty: true,
        stdin: true,
        stdout: true,
        stderr: false,
    };
    Stream::open(case.node, &case.cri.exec(request)?.url)?.wait(STDOUT, "owner 1000")
}
