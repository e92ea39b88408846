//! `linux`: seccomp, cgroups, limits, namespaces, sysctls, labels.

use std::path::Path;

use serde_json::{Value, json};
use tests::hand::Hand;
use tests::{Result, ensure_eq};
use ttrpc::Code;

use crate::{BAD, Row, refuse_all, spec};

fn profile(profile: Value, code: Code, words: &[&'static str]) -> Row {
    spec(move |spec| spec["linux"]["seccomp"] = profile.clone(), code, words)
}

pub fn seccomp_profiles(hand: &mut Hand) -> Result<()> {
    let rule = |args: Value| json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "args": args}]});
    let rows = vec![
        profile(json!({}), BAD, &["spec: linux.seccomp", "defaultAction"]),
        profile(json!({"defaultAction": ""}), BAD, &["spec: linux.seccomp.defaultAction"]),
        profile(json!({"defaultAction": "SCMP_ACT_MAYBE"}), BAD, &["spec: linux.seccomp.defaultAction", "SCMP_ACT_MAYBE"]),
        profile(
            json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_ABACUS"]}),
            BAD,
            &["spec: linux.seccomp.architectures[0]", "SCMP_ARCH_ABACUS"],
        ),
        profile(rule(json!([{"index": 9, "value": 1, "op": "SCMP_CMP_EQ"}])), BAD, &["linux.seccomp", "index", "9"]),
        profile(
            rule(json!([{"index": 1, "value": 1, "op": "SCMP_CMP_ODD"}])),
            BAD,
            &["spec: linux.seccomp.syscalls[0].args[0].op", "SCMP_CMP_ODD"],
        ),
        profile(
            json!({"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "x.sock", "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"}]}),
            BAD,
            &["linux.seccomp.listenerPath", "x.sock"],
        ),
    ];
    refuse_all(hand, rows)
}

pub fn cgroup_paths(hand: &mut Hand) -> Result<()> {
    let path = |path: &'static str, words: &[&'static str]| spec(move |spec| spec["linux"]["cgroupsPath"] = json!(path), BAD, words);
    let mut rows = vec![
        path("/../x", &["cgroupsPath", ".."]),
        path("../x", &["cgroupsPath", ".."]),
        path("/", &["cgroupsPath", "root"]),
        path("/a\nb", &["cgroupsPath", "control"]),
        spec(|spec| spec["linux"]["cgroupsPath"] = json!(format!("/{}", "x".repeat(300))), BAD, &["cgroupsPath", "too long"]),
    ];
    if !Path::new("/run/systemd/system").exists() {
        rows.push(path("system.slice:x:y", &["cgroupsPath", "systemd", "SystemdCgroup"]));
    }
    refuse_all(hand, rows)
}

pub fn limits(hand: &mut Hand) -> Result<()> {
    let limited = |resources: Value, words: &[&'static str]| {
        spec(
            move |spec| {
                for (key, value) in resources.as_object().into_iter().flatten() {
                    spec["linux"]["resources"][key] = value.clone();
                }
            },
            BAD,
            words,
        )
    };
    let rows = vec![
        limited(json!({"cpu": {"quota": 1, "period": 100_000}}), &["cpu", "quota"]),
        limited(json!({"cpu": {"period": 7}}), &["cpu", "period"]),
        limited(json!({"cpu": {"cpus": "900-999"}}), &["cpus", "900-999"]),
        limited(json!({"cpu": {"cpus": "many"}}), &["cpus", "many"]),
        limited(json!({"cpu": {"mems": "99"}}), &["mems", "99"]),
        limited(json!({"memory": {"limit": "much"}}), &["spec: linux.resources.memory.limit"]),
        limited(json!({"memory": {"limit": 64 << 20, "swap": 32 << 20}}), &["memory", "swap"]),
        limited(json!({"hugepageLimits": [{"pageSize": "../../x", "limit": 1}]}), &["hugepageLimits", "../../x"]),
        limited(json!({"unified": {"../cgroup.procs": "1"}}), &["unified"]),
        limited(json!({"devices": [{"allow": true, "type": "x", "access": "rwm"}]}), &["devices"]),
        limited(json!({"devices": [{"allow": true, "type": "c", "major": 1, "minor": 3}]}), &["devices[0]", "access"]),
    ];
    refuse_all(hand, rows)
}

pub fn namespaces(hand: &mut Hand) -> Result<()> {
    let with = |namespaces: Value, code: Code, words: &[&'static str]| {
        spec(
            move |spec| {
                let mut all = vec![json!({"type": "mount"})];
                all.extend(namespaces.as_array().into_iter().flatten().cloned());
                spec["linux"]["namespaces"] = json!(all);
            },
            code,
            words,
        )
    };
    let rows = vec![
        with(json!([{"type": "network", "path": "/no/such/netns"}]), Code::UNKNOWN, &["/no/such/netns", "no such file"]),
        with(json!([{"type": "network", "path": "/proc/self/ns/uts"}]), BAD, &["net", "/proc/self/ns/uts"]),
        with(json!([{"type": "network", "path": "/etc/passwd"}]), BAD, &["net", "/etc/passwd"]),
        with(json!([{"type": "network", "path": "netns"}]), BAD, &["netns", "absolute"]),
        with(json!([{"type": "ipc"}, {"type": "ipc"}]), BAD, &["ipc", "twice"]),
        with(json!([{"type": "parallel"}]), BAD, &["spec: linux.namespaces[1].type", "parallel"]),
        with(json!([{"type": "user"}]), BAD, &["linux.uidMappings", "new user namespace"]),
        with(json!([{"type": "user", "path": "/proc/self/ns/user"}]), BAD, &["linux.namespaces: user", "host's own"]),
        with(json!([{"type": "user", "path": "/proc/self/ns/net"}]), BAD, &["linux.namespaces: user", "another kind"]),
        with(json!([{"type": "time", "path": "/proc/self/ns/net"}]), BAD, &["linux.namespaces", "time"]),
        spec(
            |spec| {
                spec["hostname"] = json!("x");
                spec["linux"]["namespaces"] = json!([{"type": "mount"}]);
            },
            BAD,
            &["hostname", "UTS"],
        ),
    ];
    refuse_all(hand, rows)
}

/// A user namespace with a process in it, whose maps are the host's ids from 1000000 on.
struct Holder(std::process::Child);

impl Holder {
    fn new() -> Result<Holder> {
        let child = std::process::Command::new("unshare").args(["--user", "--", "/bin/busybox", "sleep", "1000"]).spawn()?;
        let holder = Holder(child);
        let directory = format!("/proc/{}", holder.0.id());
        let host = std::fs::read_link("/proc/self/ns/user")?;
        let entered = || std::fs::read_link(format!("{directory}/ns/user")).is_ok_and(|own| own != host);
        tests::containerd::eventually("the process is in its user namespace", std::time::Duration::from_secs(5), entered)?;
        for map in ["uid_map", "gid_map"] {
            std::fs::write(format!("{directory}/{map}"), "0 1000000 65536")?;
        }
        Ok(holder)
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub fn user_namespaces(hand: &mut Hand) -> Result<()> {
    let holder = Holder::new()?;
    let path = format!("/proc/{}/ns/user", holder.0.id());
    let map = |host: u32, size: u32| json!([{"containerID": 0, "hostID": host, "size": size}]);
    let with = |path: Option<String>, uid: Value, gid: Value, code: Code, words: &[&'static str]| {
        spec(
            move |spec| {
                let user = path.as_ref().map_or_else(|| json!({"type": "user"}), |path| json!({"type": "user", "path": path}));
                spec["linux"]["namespaces"] = json!([{"type": "mount"}, {"type": "pid"}, {"type": "network"}, user]);
                spec["linux"]["uidMappings"] = uid.clone();
                spec["linux"]["gidMappings"] = gid.clone();
            },
            code,
            words,
        )
    };
    let rows = vec![
        with(Some(path.clone()), map(1_000_000, 1000), map(1_000_000, 65536), BAD, &["linux.uidMappings", "given user namespace"]),
        with(Some(path.clone()), map(1_000_000, 65536), map(2_000_000, 65536), BAD, &["gidMappings", "given user namespace"]),
        with(None, map(1_000_000, 0), map(1_000_000, 1), BAD, &["uidMappings", "range"]),
        with(None, map(u32::MAX, 2), map(1_000_000, 1), BAD, &["uidMappings", "range"]),
        with(
            None,
            json!([{"containerID": 5, "hostID": 1_000_000, "size": 9}]),
            map(1_000_000, 9),
            BAD,
            &["uidMappings", "user 0", "not mapped"],
        ),
        with(None, map(1_000_000, 9), json!([]), BAD, &["uidMappings/gidMappings", "without the other"]),
        spec(
            |spec| spec["linux"]["uidMappings"] = json!([{"containerID": 0, "hostID": 1, "size": 1}]),
            BAD,
            &["uidMappings", "no user namespace"],
        ),
        spec(
            |spec| {
                let mount = json!({"destination": "/data", "type": "bind", "source": "/tmp", "options": ["bind", "idmap"]});
                spec["mounts"].as_array_mut().into_iter().for_each(|mounts| mounts.push(mount.clone()));
            },
            BAD,
            &["/data", "idmap"],
        ),
    ];
    refuse_all(hand, rows)
}

pub fn sysctls(hand: &mut Hand) -> Result<()> {
    let sysctl = |name: &'static str, value: &'static str, code: Code, words: &[&'static str]| {
        spec(move |spec| spec["linux"]["sysctl"] = json!({name: value}), code, words)
    };
    let mut rows = vec![
        sysctl("kernel.core_pattern", "|/x", BAD, &["linux.sysctl", "kernel.core_pattern"]),
        sysctl("kernel/core_pattern", "|/x", BAD, &["linux.sysctl", "kernel/core_pattern"]),
        sysctl("net.ipv4.../../kernel/core_pattern", "|/x", BAD, &["linux.sysctl"]),
        sysctl("net.ipv4.ip_forward=1+kernel.core_pattern", "|/x", BAD, &["linux.sysctl"]),
        sysctl("net.ipv4.ip_forward", "1\n2", BAD, &["linux.sysctl", "value"]),
        sysctl("net.ipv4.no_such_thing", "1", Code::UNKNOWN, &["net.ipv4.no_such_thing", "no such file"]),
        sysctl("net.ipv4.ip_forward", "perhaps", Code::UNKNOWN, &["net.ipv4.ip_forward", "invalid argument"]),
    ];
    rows.push(spec(
        |spec| {
            spec["linux"]["namespaces"] = json!([{"type": "pid"}, {"type": "mount"}]);
            spec["linux"]["sysctl"] = json!({"net.ipv4.ip_forward": "1"});
        },
        BAD,
        &["linux.sysctl", "net.ipv4.ip_forward", "host"],
    ));
    rows.push(spec(
        |spec| {
            spec["linux"]["namespaces"] =
                json!([{"type": "pid"}, {"type": "mount"}, {"type": "network", "path": format!("/proc/{}/ns/net", std::process::id())}]);
            spec["linux"]["sysctl"] = json!({"net.ipv4.ip_forward": "1"});
        },
        BAD,
        &["linux.sysctl", "net.ipv4.ip_forward", "host"],
    ));
    let forward = std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward")?;
    let core = std::fs::read_to_string("/proc/sys/kernel/core_pattern")?;
    refuse_all(hand, rows)?;
    ensure_eq!(std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward")?, forward, "the host's ip_forward");
    ensure_eq!(std::fs::read_to_string("/proc/sys/kernel/core_pattern")?, core, "the host's core_pattern");
    Ok(())
}

pub fn labels(hand: &mut Hand) -> Result<()> {
    let rows = vec![
        spec(|spec| spec["process"]["apparmorProfile"] = json!("no-such-profile"), BAD, &["process.apparmorProfile", "no-such-profile"]),
        spec(|spec| spec["process"]["selinuxLabel"] = json!("a:b:c"), BAD, &["process.selinuxLabel"]),
        spec(|spec| spec["linux"]["mountLabel"] = json!("a:b:c"), BAD, &["linux.mountLabel"]),
        spec(|spec| spec["linux"]["intelRdt"] = json!({"closID": "a/b"}), BAD, &["linux.intelRdt.closID", "a/b"]),
        spec(|spec| spec["linux"]["personality"] = json!({"domain": "SVR4"}), BAD, &["linux.personality.domain", "SVR4"]),
        spec(|spec| spec["linux"]["memoryPolicy"] = json!({"mode": "MPOL_BIND", "nodes": "x"}), BAD, &["linux.memoryPolicy.nodes"]),
        spec(|spec| spec["linux"]["timeOffsets"] = json!({"boottime": {"secs": 1}}), BAD, &["linux.timeOffsets"]),
        spec(|spec| spec["process"]["scheduler"] = json!({"policy": "SCHED_FIFO", "nice": 40}), BAD, &["process.scheduler.nice"]),
        spec(|spec| spec["process"]["ioPriority"] = json!({"class": "IOPRIO_CLASS_BE", "priority": 9}), BAD, &["process.ioPriority"]),
    ];
    refuse_all(hand, rows)
}
