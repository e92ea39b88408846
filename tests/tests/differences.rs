//! The tables "Different from runc" and "Limits" of the documentation: each line is run. A line ends with the name of its check in a comment;
//! to add one, write the line, a function of that name here, and its name in the list.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

use nix::sys::prctl;
use serde_json::{Value, json};
use tests::bundle::{Bundle, user_namespace};
use tests::command;
use tests::oci::{self, Entry, Oci};
use tests::requests::{around, expect_dead, status_line};
use tests::{Context, Result, ensure, ensure_eq, paths, proc, suite};

const PAGE: &str = "deploy/docs/oci-command-line.md";

macro_rules! checks {
    ($($name:ident),* $(,)?) => { &[$((stringify!($name), $name)),*] };
}

const DIFFERENCES: &[Entry] = checks![
    rootless_flag,
    hooks_and_shared_pids,
    ps_formats,
    no_service_manager,
    ready_anywhere,
    denied_range,
    odd_device_rules,
    sysctls_of_the_host,
    update_out_of_range,
    poststop_goes_on,
    execve_refused,
    moved_first_process,
    frozen_below,
    undone_create,
    no_libseccomp,
    pid_file,
    sealed,
    words_of_failures,
    crun_annotations,
    processors_of_hooks,
    huge_pages,
    no_capabilities,
    cgroup_of_parent,
    mappings_alone,
    empty_profile,
    doubled_limit,
    relative_namespace,
    oci_version,
    spoilt_json,
    personality_flags,
    access_time_order,
    defaults_of_mounts,
    readonly_below,
];
const LIMITS: &[Entry] = checks![no_checkpoint, no_mount_namespace, given_mount_and_user, given_mount_and_no_pivot];

fn main() -> ExitCode {
    const TABLES: &[Entry] = checks![the_tables_are_whole];
    let all = [TABLES, DIFFERENCES, LIMITS].map(|entries| oci::named("differences", entries));
    suite::main_of(all.into_iter().flatten().collect())
}

/// Every line has a check, and every check a line.
fn the_tables_are_whole(_: &Oci) -> Result<()> {
    let page = fs::read_to_string(paths::checkout().join(PAGE))?;
    for (head, checks) in [("## Different from runc", DIFFERENCES), ("## Limits", LIMITS)] {
        let section = page.split_once(head).context(|| format!("{PAGE} has no {head:?}"))?.1;
        let section = section.split("\n## ").next().unwrap_or_default();
        // The first two lines are the head.
        let mut named = BTreeSet::new();
        for line in section.lines().filter(|line| line.starts_with('|')).skip(2) {
            let name = line.split_once("<!-- ").and_then(|(_, rest)| rest.split_once(" -->")).map(|(name, _)| name);
            let name = name.context(|| format!("{head}: a line without a check: {line}"))?;
            ensure!(named.insert(name), "{head}: {name} has two lines");
        }
        let known: BTreeSet<&str> = checks.iter().map(|(name, _)| *name).collect();
        ensure_eq!(named, known, "lines and checks of {head}");
    }
    Ok(())
}

/// Create fails with these words.
fn refused(oci: &Oci, words: &str, change: impl FnOnce(&mut Value)) -> Result<()> {
    let mut bundle = oci.bundle("a", &["true"])?;
    bundle.edit(change)?;
    oci.fails(&["create", "-b", &bundle.dir.display().to_string(), &bundle.id], 1, words)
}

/// What a container prints that is run by a command around `coracle`.
fn ran(oci: &Oci, bundle: &Bundle, by: impl FnOnce(Command) -> Command) -> Result<String> {
    let command = oci.command(&["run", "-b", &bundle.dir.display().to_string(), &bundle.id])?;
    command::output(by(command).stdin(Stdio::null()))
}

fn rootless_flag(oci: &Oci) -> Result<()> {
    oci.fails(&["--rootless", "true", "list"], 1, "not supported")
}

fn hooks_and_shared_pids(oci: &Oci) -> Result<()> {
    let first = oci.bundle("a", &["sleep", "1000"])?;
    oci.create(&first, &[])?;
    let pid = oci.state(&first.id)?["pid"].to_string();
    let shared = format!("/proc/{pid}/ns/pid");
    let out = oci.data().join("hook");
    let mut second = oci.bundle("b", &["sleep", "1000"])?;
    second.edit(|spec| {
        for namespace in spec["linux"]["namespaces"].as_array_mut().into_iter().flatten() {
            if namespace["type"] == "pid" {
                namespace["path"] = json!(shared);
            }
        }
        // The container's own procfs has no such process.
        let script = format!("cat /proc/self/status >{}", out.display());
        spec["hooks"] = json!({"createContainer": [{"path": "/bin/busybox", "args": ["sh", "-c", script]}]});
    })?;
    oci.create(&second, &[])?;
    let seen = fs::read_to_string(&out)?;
    oci.ok(&["delete", "--force", &second.id])?;
    oci.ok(&["delete", "--force", &first.id])?;
    ensure_eq!(status_line(&seen, "NSpid")?.split_whitespace().count(), 1, "pid namespaces of the hook below the host's: {seen}");
    Ok(())
}

fn ps_formats(oci: &Oci) -> Result<()> {
    let bundle = oci.bundle("a", &["sleep", "1000"])?;
    oci.create(&bundle, &[])?;
    oci.ok(&["start", &bundle.id])?;
    for format in ["args,ppid,pid", "lstart,pid", "args"] {
        let table = oci.ok(&["ps", &bundle.id, "-eo", format])?;
        ensure_eq!(table.lines().count(), 2, "lines of ps -eo {format}: {table}");
    }
    oci.ok(&["delete", "--force", &bundle.id]).map(drop)
}

fn no_service_manager(oci: &Oci) -> Result<()> {
    let bundle = oci.bundle("a", &["echo", "ran"])?;
    let seen = ran(oci, &bundle, |mut command| {
        command.env("NOTIFY_SOCKET", "/run/nobody/listens");
        command
    })?;
    ensure_eq!(seen, "ran\n", "output");
    Ok(())
}

fn ready_anywhere(oci: &Oci) -> Result<()> {
    let socket = oci.dir().join("manager");
    let manager = UnixDatagram::bind(&socket)?;
    manager.set_read_timeout(Some(Duration::from_secs(10)))?;
    let bundle = oci.bundle("a", &["sleep", "1000"])?;
    // busybox has no program that sends a datagram to a unix socket, so the container's is reached from outside.
    let mut command = oci.command(&["run", "-b", &bundle.dir.display().to_string(), &bundle.id])?;
    let mut child = command.env("NOTIFY_SOCKET", &socket).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let result = told(oci, &bundle, &manager, child.id());
    oci.ok(&["delete", "--force", &bundle.id])?;
    child.wait()?;
    result
}

fn told(oci: &Oci, bundle: &Bundle, manager: &UnixDatagram, run: u32) -> Result<()> {
    oci.expect_status(&bundle.id, "running")?;
    let pid = oci.state(&bundle.id)?["pid"].to_string();
    UnixDatagram::unbound()?.send_to(b"STATUS=up\nREADY=1\n", format!("/proc/{pid}/root/run/notify/notify.sock"))?;
    let mut said = String::new();
    let mut message = [0; 4096];
    while !(said.contains("READY=1") && said.contains("MAINPID=")) {
        let length = manager.recv(&mut message).context(|| format!("so far {said:?}"))?;
        said += &String::from_utf8_lossy(&message[..length]);
        said.push('\n');
    }
    ensure!(said.contains(&format!("MAINPID={run}\n")), "MAINPID is not run, {run}: {said:?}");
    Ok(())
}

fn denied_range(oci: &Oci) -> Result<()> {
    let mut bundle = oci.bundle("a", &["sh", "-c", "mknod /d c 1 11 && (: </d) 2>/dev/null && echo opened; true"])?;
    let rules = [("c", 1, Some(11), true), ("c", 1, None, false)];
    let rule = |(kind, major, minor, allow): (&str, i64, Option<i64>, bool)| json!({"type": kind, "major": major, "minor": minor, "allow": allow, "access": "rwm"});
    bundle.edit(|spec| {
        spec["linux"]["resources"]["devices"] =
            json!([[json!({"allow": false, "access": "rwm"})].to_vec(), rules.map(rule).to_vec()].concat())
    })?;
    let seen = ran(oci, &bundle, |command| command)?;
    ensure_eq!(seen, "", "what an earlier, narrower rule allows");
    Ok(())
}

fn odd_device_rules(oci: &Oci) -> Result<()> {
    refused(oci, "devices", |spec| {
        spec["linux"]["resources"]["devices"] = json!([{"type": "c", "major": -2, "minor": 0, "access": "r", "allow": true}]);
    })?;
    let mut bundle = oci.bundle("b", &["true"])?;
    bundle.edit(|spec| {
        spec["linux"]["resources"]["devices"] = json!([{"type": "a", "major": 7, "minor": 1, "access": "r", "allow": true}])
    })?;
    let done = oci.coracle(&["run", "-b", &bundle.dir.display().to_string(), &bundle.id])?;
    ensure!(done.code == 0 && done.stderr.contains("level=warning"), "no warning: {done:?}");
    Ok(())
}

fn sysctls_of_the_host(oci: &Oci) -> Result<()> {
    refused(oci, "kernel.shmmni", |spec| {
        for namespace in spec["linux"]["namespaces"].as_array_mut().into_iter().flatten() {
            if namespace["type"] == "ipc" {
                namespace["path"] = json!("/proc/self/ns/ipc");
            }
        }
        spec["linux"]["sysctl"] = json!({"kernel.shmmni": fs::read_to_string("/proc/sys/kernel/shmmni").unwrap_or_default()});
    })
}

fn update_out_of_range(oci: &Oci) -> Result<()> {
    let bundle = oci.bundle("a", &["sleep", "1000"])?;
    oci.create(&bundle, &[])?;
    let done = oci.fails(&["update", "--blkio-weight", "5", &bundle.id], 1, "weight");
    oci.ok(&["delete", "--force", &bundle.id])?;
    done
}

fn poststop_goes_on(oci: &Oci) -> Result<()> {
    let mut bundle = oci.bundle("a", &["true"])?;
    let out = oci.data().join("second");
    let hook = |script: String| json!({"path": "/bin/busybox", "args": ["sh", "-c", script]});
    bundle.edit(|spec| spec["hooks"] = json!({"poststop": [hook("exit 3".to_owned()), hook(format!("echo ran >{}", out.display()))]}))?;
    oci.coracle(&["run", "-b", &bundle.dir.display().to_string(), &bundle.id])?;
    ensure_eq!(fs::read_to_string(&out)?, "ran\n", "the second hook");
    Ok(())
}

fn execve_refused(oci: &Oci) -> Result<()> {
    let bundle = oci.bundle("a", &["/bad"])?;
    fs::write(bundle.written("bad"), "no program")?;
    fs::set_permissions(bundle.written("bad"), fs::Permissions::from_mode(0o755))?;
    let done = oci.coracle(&["run", "-b", &bundle.dir.display().to_string(), &bundle.id])?;
    ensure_eq!(done.code, 126, "exit code: {done:?}");
    Ok(())
}

/// A running container and its first process.
fn running(oci: &Oci) -> Result<(Bundle, u32)> {
    let bundle = oci.bundle("a", &["sleep", "1000"])?;
    oci.create(&bundle, &[])?;
    oci.ok(&["start", &bundle.id])?;
    let state = oci.state(&bundle.id)?;
    let pid = state["pid"].as_u64().and_then(|pid| pid.try_into().ok()).context(|| format!("no pid in {state}"))?;
    Ok((bundle, pid))
}

fn moved_first_process(oci: &Oci) -> Result<()> {
    let (bundle, pid) = running(oci)?;
    for root in proc::cgroup_roots() {
        fs::write(root.join("cgroup.procs"), pid.to_string())?;
    }
    let seen = oci.ok(&["ps", "-f", "json", &bundle.id])?;
    oci.ok(&["delete", "--force", &bundle.id])?;
    ensure!(seen.contains(&pid.to_string()), "{pid} is not in {seen}");
    expect_dead(pid, Duration::from_secs(5))
}

fn frozen_below(oci: &Oci) -> Result<()> {
    let (bundle, pid) = running(oci)?;
    let below = proc::cgroup_of(pid, "freezer")?.join("below");
    fs::create_dir(&below)?;
    fs::write(below.join("cgroup.procs"), pid.to_string())?;
    let version_1 = below.join("freezer.state");
    if version_1.exists() {
        fs::write(version_1, "FROZEN")?
    } else {
        fs::write(below.join("cgroup.freeze"), "1")?
    }
    oci.ok(&["delete", "--force", &bundle.id])?;
    expect_dead(pid, Duration::from_secs(5))
}

fn undone_create(oci: &Oci) -> Result<()> {
    let (first, pid) = running(oci)?;
    let mut second = oci.bundle("b", &["true"])?;
    second.edit(|spec| spec["linux"]["cgroupsPath"] = first.spec["linux"]["cgroupsPath"].clone())?;
    let done = oci.coracle(&["run", "-b", &second.dir.display().to_string(), &second.id])?;
    let lives = proc::process(pid).is_some_and(|process| process.cgroups.contains(&first.id));
    oci.ok(&["delete", "--force", &first.id])?;
    ensure!(done.code != 0 && lives, "the owner of the cgroup lives: {lives}; {done:?}");
    Ok(())
}

fn no_libseccomp(oci: &Oci) -> Result<()> {
    let version = oci.ok(&["--version"])?;
    ensure!(!version.contains("libseccomp"), "{version}");
    let features = oci.ok(&["features"])?;
    ensure!(features.contains("io.github.seccomp.libseccomp.version"), "{features}");
    Ok(())
}

fn pid_file(oci: &Oci) -> Result<()> {
    let bundle = oci.bundle("a", &["true"])?;
    let (theirs, ours) = (oci.data().join(".pid"), oci.data().join("pid"));
    fs::write(&theirs, "theirs")?;
    oci.create(&bundle, &["--pid-file", &ours.display().to_string()])?;
    let told = fs::read_to_string(&ours)?;
    let pid = oci.state(&bundle.id)?["pid"].to_string();
    oci.ok(&["delete", "--force", &bundle.id])?;
    ensure_eq!((told, fs::read_to_string(&theirs)?), (pid, "theirs".to_owned()), "both files");
    Ok(())
}

fn sealed(oci: &Oci) -> Result<()> {
    let bundle = oci.bundle("a", &["true"])?;
    oci.create(&bundle, &[])?;
    let program = format!("/proc/{}/exe", oci.state(&bundle.id)?["pid"]);
    let flags = rustix::fs::statvfs(&program).map(|found| found.f_flag);
    let copied = fs::read_link(&program).is_ok_and(|path| path.to_string_lossy().contains("memfd:"));
    oci.ok(&["delete", "--force", &bundle.id])?;
    ensure!(copied || flags?.contains(rustix::fs::StatVfsMountFlags::RDONLY), "the program can be written to");
    Ok(())
}

fn words_of_failures(oci: &Oci) -> Result<()> {
    refused(oci, "process.cwd: \"x\" is not absolute", |spec| spec["process"]["cwd"] = json!("x"))
}

fn crun_annotations(oci: &Oci) -> Result<()> {
    let (mut bundle, out) = (oci.bundle("a", &["true"])?, oci.data().join("out"));
    bundle.edit(|spec| {
        spec["hooks"] = json!({"poststop": [{"path": "/bin/busybox", "args": ["echo", "said"]}]});
        spec["annotations"] = json!({"run.oci.hooks.stdout": out});
    })?;
    let dir = bundle.dir.display().to_string();
    oci.ok(&["run", "-b", &dir, &bundle.id])?;
    ensure!(!out.exists(), "they count without the flag");
    oci.ok(&["--crun-annotations", "run", "-b", &dir, &bundle.id])?;
    ensure_eq!(fs::read_to_string(&out)?, "said\n", "with the flag");
    Ok(())
}

fn processors_of_hooks(oci: &Oci) -> Result<()> {
    let all = fs::read_to_string("/proc/self/status")?;
    let (mut bundle, out) = (oci.bundle("a", &["true"])?, oci.data().join("out"));
    let script = format!("cat /proc/self/status >{}", out.display());
    bundle.edit(|spec| spec["hooks"] = json!({"createRuntime": [{"path": "/bin/busybox", "args": ["sh", "-c", script]}]}))?;
    ran(oci, &bundle, |command| around("taskset", &["-c", "0"], &command))?;
    let list = "Cpus_allowed_list";
    ensure_eq!(status_line(&fs::read_to_string(&out)?, list)?, status_line(&all, list)?, "processors of a hook");
    Ok(())
}

fn huge_pages(oci: &Oci) -> Result<()> {
    let bundle = oci.bundle("a", &["cat", "/proc/self/status"])?;
    prctl::set_thp_disable(true)?;
    let seen = ran(oci, &bundle, |command| command);
    prctl::set_thp_disable(false)?;
    ensure_eq!(status_line(&seen?, "THP_enabled")?, "1", "huge pages of a container");
    Ok(())
}

fn doubled_limit(oci: &Oci) -> Result<()> {
    let limit = json!({"type": "RLIMIT_CORE", "soft": 0, "hard": 0});
    refused(oci, "RLIMIT_CORE is given twice", |spec| spec["process"]["rlimits"] = json!([limit, limit]))
}

fn relative_namespace(oci: &Oci) -> Result<()> {
    refused(oci, "is not absolute", |spec| spec["linux"]["namespaces"][0]["path"] = json!("ns/pid"))
}

fn oci_version(oci: &Oci) -> Result<()> {
    refused(oci, "ociVersion", |spec| spec["ociVersion"] = json!("2.0.0"))
}

fn spoilt_json(oci: &Oci) -> Result<()> {
    let bundle = oci.bundle("a", &["true"])?;
    let (file, dir) = (bundle.dir.join("config.json"), bundle.dir.display().to_string());
    let text = bundle.spec.to_string();
    let not_utf8 = text.replace("true", "\u{1}").bytes().map(|byte| if byte == 1 { 0xff } else { byte }).collect();
    for spoilt in [format!("{text} x").into_bytes(), not_utf8] {
        fs::write(&file, spoilt)?;
        oci.fails(&["create", "-b", &dir, &bundle.id], 1, "config.json")?;
    }
    Ok(())
}

fn personality_flags(oci: &Oci) -> Result<()> {
    refused(oci, "linux.personality.flags", |spec| spec["linux"]["personality"] = json!({"domain": "LINUX", "flags": ["X"]}))
}

fn no_capabilities(oci: &Oci) -> Result<()> {
    let mut bundle = oci.bundle("a", &["grep", "Cap", "/proc/self/status"])?;
    bundle.edit(|spec| spec["process"]["capabilities"] = Value::Null)?;
    let seen = ran(oci, &bundle, |command| command)?;
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        ensure_eq!(status_line(&seen, set)?, "0000000000000000", "{set}");
    }
    Ok(())
}

fn cgroup_of_parent(oci: &Oci) -> Result<()> {
    for path in ["/x/../y", "/../y", "../y"] {
        refused(oci, "\"..\" is not allowed", |spec| spec["linux"]["cgroupsPath"] = json!(path))?;
    }
    Ok(())
}

fn mappings_alone(oci: &Oci) -> Result<()> {
    let map = json!([{"containerID": 0, "hostID": 100_000, "size": 1000}]);
    for field in ["uidMappings", "gidMappings"] {
        refused(oci, "no user namespace", |spec| spec["linux"][field] = map.clone())?;
    }
    Ok(())
}

fn empty_profile(oci: &Oci) -> Result<()> {
    refused(oci, "seccomp", |spec| spec["linux"]["seccomp"] = json!({}))
}

fn mounted(oci: &Oci, script: &str, fstype: &str, options: &[&str], change: impl FnOnce(&mut Value)) -> Result<String> {
    let mut bundle = oci.bundle("a", &["sh", "-c", script])?;
    bundle.edit(|spec| {
        let entry = json!({"destination": "/v", "type": fstype, "source": "/usr", "options": options});
        spec["mounts"].as_array_mut().into_iter().for_each(|mounts| mounts.push(entry.clone()));
        change(spec);
    })?;
    ran(oci, &bundle, |command| command)
}

fn access_time_order(oci: &Oci) -> Result<()> {
    let seen = mounted(oci, "grep ' /v ' /proc/self/mountinfo", "tmpfs", &["noatime", "relatime"], |_| {})?;
    ensure!(seen.contains(" rw,relatime "), "{seen}");
    Ok(())
}

fn defaults_of_mounts(oci: &Oci) -> Result<()> {
    for (fstype, options) in [("tmpfs", ["defaults", "nodev"]), ("bind", ["bind", "defaults"])] {
        mounted(oci, "true", fstype, &options, |_| {})?;
    }
    Ok(())
}

fn readonly_below(oci: &Oci) -> Result<()> {
    let seen = mounted(oci, "", "tmpfs", &["rw"], |spec| {
        spec["mounts"].as_array_mut().into_iter().for_each(|mounts| {
            mounts.iter_mut().filter(|mount| mount["destination"] == "/v").for_each(|mount| mount["destination"] = json!("/r/v"));
        });
        spec["process"]["args"] = json!(["sh", "-c", "touch /r/v/x 2>&1; true"]);
        spec["linux"]["readonlyPaths"] = json!(["/r"]);
    })?;
    ensure!(seen.contains("Read-only"), "{seen}");
    Ok(())
}

fn no_checkpoint(oci: &Oci) -> Result<()> {
    for command in ["checkpoint", "restore"] {
        let help = oci.coracle(&[command, "--help"])?;
        ensure!(help.code != 0, "{command} --help: {help:?}");
    }
    oci.fails(&["checkpoint", "x"], 1, "not supported")?;
    oci.fails(&["restore", "x"], 1, "not supported")
}

fn no_mount_namespace(oci: &Oci) -> Result<()> {
    refused(oci, "mount namespace", |spec| spec["linux"]["namespaces"] = json!([{"type": "pid"}]))
}

/// Gives the mount namespace of a process.
fn given_mount(spec: &mut Value, process: &str) {
    for namespace in spec["linux"]["namespaces"].as_array_mut().into_iter().flatten() {
        if namespace["type"] == "mount" {
            namespace["path"] = json!(format!("/proc/{process}/ns/mnt"));
        }
    }
}

fn given_mount_and_user(oci: &Oci) -> Result<()> {
    refused(oci, "a given mount namespace with a user namespace", |spec| {
        given_mount(spec, "self");
        user_namespace(spec, 100_000);
    })
}

fn given_mount_and_no_pivot(oci: &Oci) -> Result<()> {
    let mut holder = Command::new("unshare").args(["--mount", "sh", "-c", "echo up; exec sleep 1000"]).stdout(Stdio::piped()).spawn()?;
    let refused = no_pivot_into(oci, &mut holder);
    holder.kill()?;
    holder.wait()?;
    refused
}

fn no_pivot_into(oci: &Oci, holder: &mut Child) -> Result<()> {
    holder.stdout.take().context(|| "no stdout".to_owned())?.read_exact(&mut [0; 3])?;
    let mut bundle = oci.bundle("a", &["true"])?;
    bundle.edit(|spec| given_mount(spec, &holder.id().to_string()))?;
    oci.fails(&["create", "--no-pivot", "-b", &bundle.dir.display().to_string(), &bundle.id], 1, "NoPivotRoot")
}
