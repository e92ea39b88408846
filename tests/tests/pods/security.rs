//! Who the processes are and what they may do.

use serde_json::json;
use tests::cri::api::{Capability, Int64Value, SecurityProfile};
use tests::cri::pod::security;
use tests::cri::{Container, PodCase, api};
use tests::{Result, ensure, ensure_eq};

/// A field of `/proc/self/status` in a container.
fn status(container: &Container<'_>, field: &str) -> Result<String> {
    container.shell(&format!("sed -n 's/^{field}:[[:space:]]*//p' /proc/self/status"))
}

fn profile(kind: api::security_profile::ProfileType, path: &str) -> Option<SecurityProfile> {
    Some(SecurityProfile { profile_type: kind.into(), localhost_ref: path.to_owned() })
}

pub fn run_as_user_and_groups(case: &PodCase<'_>) -> Result<()> {
    let pod = case.pod("pod")?;
    let app = pod.container_with("app", &["sleep", "9999"], |config| {
        let security = security(config);
        security.run_as_user = Some(Int64Value { value: 1000 });
        security.run_as_group = Some(Int64Value { value: 3000 });
        security.supplemental_groups = vec![4000, 5000];
    })?;
    ensure_eq!(app.shell("id -u; id -g")?, "1000\n3000", "user and group");
    let groups = app.shell("id -G")?;
    for group in ["4000", "5000", "2000"] {
        ensure!(groups.split(' ').any(|have| have == group), "group {group} is not in {groups}");
    }
    Ok(())
}

pub fn strict_supplemental_groups(case: &PodCase<'_>) -> Result<()> {
    let app = case.pod("pod")?.container_with("app", &["sleep", "9999"], |config| {
        let security = security(config);
        security.run_as_user = Some(Int64Value { value: 1000 });
        security.supplemental_groups = vec![4000];
        security.supplemental_groups_policy = api::SupplementalGroupsPolicy::Strict.into();
    })?;
    // The image's /etc/group puts user 1000 into 2000.
    ensure!(!app.shell("id -G")?.split(' ').any(|group| group == "2000"), "a group of the image: {}", app.shell("id -G")?);
    Ok(())
}

pub fn no_new_privileges(case: &PodCase<'_>) -> Result<()> {
    let pod = case.pod("pod")?;
    for (name, wanted) in [("with", "1"), ("without", "0")] {
        let app = pod.container_with(name, &["sleep", "9999"], |config| security(config).no_new_privs = wanted == "1")?;
        ensure_eq!(status(&app, "NoNewPrivs")?, wanted, "{name}");
    }
    Ok(())
}

pub fn capabilities(case: &PodCase<'_>) -> Result<()> {
    let pod = case.pod("pod")?;
    let none = pod.container_with("none", &["sleep", "9999"], |config| {
        security(config).capabilities = Some(Capability { drop_capabilities: vec!["ALL".to_owned()], ..Capability::default() });
    })?;
    ensure_eq!(u64::from_str_radix(&status(&none, "CapEff")?, 16)?, 0, "capabilities without any");
    ensure_eq!(u64::from_str_radix(&status(&none, "CapBnd")?, 16)?, 0, "bounding set without any");
    let one = pod.container_with("one", &["sleep", "9999"], |config| {
        let (add, drop) = (vec!["NET_ADMIN".to_owned()], vec!["ALL".to_owned()]);
        security(config).capabilities = Some(Capability { add_capabilities: add, drop_capabilities: drop, ..Capability::default() });
    })?;
    ensure_eq!(u64::from_str_radix(&status(&one, "CapEff")?, 16)?, 1 << 12, "capabilities with CAP_NET_ADMIN alone");
    one.shell("ip link set lo down")?;
    Ok(())
}

pub fn seccomp_profiles(case: &PodCase<'_>) -> Result<()> {
    use api::security_profile::ProfileType::{Localhost, RuntimeDefault, Unconfined};
    let pod = case.pod("pod")?;
    let file = case.dir()?.join("seccomp.json");
    let rules = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28}]});
    std::fs::write(&file, rules.to_string())?;
    for (name, kind, path, mode) in [
        ("default", RuntimeDefault, String::new(), "2"),
        ("free", Unconfined, String::new(), "0"),
        ("local", Localhost, file.display().to_string(), "2"),
    ] {
        let app = pod.container_with(name, &["sleep", "9999"], |config| security(config).seccomp = profile(kind, &path))?;
        ensure_eq!(status(&app, "Seccomp")?, mode, "seccomp mode of {name}");
        let (made, unshared) = (app.exec(&["mkdir", "/tmp/dir"])?, app.exec(&["unshare", "-U", "true"])?);
        match kind {
            RuntimeDefault => ensure!(unshared.exit_code != 0, "unshare works under the default profile"),
            Unconfined => ensure_eq!((made.exit_code, unshared.exit_code), (0, 0), "mkdir and unshare without a profile"),
            Localhost => ensure!(String::from_utf8_lossy(&made.stderr).contains("No space left"), "not the profile's errno: {made:?}"),
        }
    }
    Ok(())
}

pub fn masked_and_readonly_paths(case: &PodCase<'_>) -> Result<()> {
    let pod = case.pod("pod")?;
    let usual = pod.container_with("usual", &["sleep", "9999"], |config| {
        security(config).masked_paths = ["/proc/kcore", "/proc/keys", "/sys/firmware"].map(str::to_owned).to_vec();
        security(config).readonly_paths = ["/proc/sys", "/proc/irq"].map(str::to_owned).to_vec();
    })?;
    ensure_eq!(usual.shell("cat /proc/keys | wc -c; ls /sys/firmware | wc -l")?, "0\n0", "bytes of what is masked");
    ensure!(usual.exec(&["sh", "-c", "echo 61 > /proc/sys/net/ipv4/tcp_fin_timeout"])?.exit_code != 0, "/proc/sys is writable");
    let open = pod.container_with("unmasked", &["sleep", "9999"], |config| {
        security(config).masked_paths = Vec::new();
        security(config).readonly_paths = Vec::new();
        // Where there is AppArmor, containerd's own profile forbids it, too.
        security(config).apparmor = profile(api::security_profile::ProfileType::Unconfined, "");
    })?;
    ensure!(open.shell("ls /sys/firmware | wc -l; wc -c < /proc/keys")? != "0\n0", "masked without a list");
    open.shell("echo 61 > /proc/sys/net/ipv4/tcp_fin_timeout")?;
    Ok(())
}

pub fn read_only_root(case: &PodCase<'_>) -> Result<()> {
    let app = case.pod("pod")?.container_with("app", &["sleep", "9999"], |config| security(config).readonly_rootfs = true)?;
    let done = app.exec(&["touch", "/file"])?;
    ensure!(String::from_utf8_lossy(&done.stderr).contains("Read-only"), "touch in the root: {done:?}");
    app.shell("touch /dev/shm/file")?;
    Ok(())
}

pub fn privileged(case: &PodCase<'_>) -> Result<()> {
    let pod =
        case.pod_with("pod", |config| config.linux.get_or_insert_default().security_context.get_or_insert_default().privileged = true)?;
    let app = pod.container_with("app", &["sleep", "9999"], |config| security(config).privileged = true)?;
    let host = std::fs::read_to_string("/proc/self/status")?;
    let have = host.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap_or_default().trim();
    ensure_eq!(status(&app, "CapEff")?, have, "capabilities");
    ensure_eq!(status(&app, "Seccomp")?, "0", "seccomp mode");
    app.shell("mkdir /tmp/dir && mount -t tmpfs none /tmp/dir && umount /tmp/dir")?;
    ensure!(app.shell("grep ' /sys sysfs ' /proc/mounts")?.contains("rw"), "/sys is read-only");
    ensure!(app.shell("ls /dev")?.lines().count() > 15, "no devices of the host: {}", app.shell("ls /dev")?);
    Ok(())
}

pub fn devices(case: &PodCase<'_>) -> Result<()> {
    let pod = case.pod("pod")?;
    let device = |permissions: &str| api::Device {
        container_path: "/dev/mine".into(),
        host_path: "/dev/kmsg".into(),
        permissions: permissions.into(),
    };
    let app = pod.container_with("app", &["sleep", "9999"], |config| config.devices = vec![device("rw")])?;
    app.shell(": > /dev/mine")?;
    let readable = pod.container_with("readable", &["sleep", "9999"], |config| config.devices = vec![device("r")])?;
    let done = readable.exec(&["sh", "-c", ": > /dev/mine"])?;
    ensure!(String::from_utf8_lossy(&done.stderr).contains("not permitted"), "write to a device that may be read: {done:?}");
    Ok(())
}
