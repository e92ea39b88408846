//! containerd, its shims and the OCI command line, run by a user who is root of a user namespace only.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};
use tests::bundle::Bundle;
use tests::command::{self, signal};
use tests::containerd::eventually;
use tests::events::Kind;
use tests::suite::Suite;
use tests::{Case, Result, cases, ensure, ensure_eq, fail, paths, proc, rootless};

const SOON: Duration = Duration::from_secs(15);

fn main() -> ExitCode {
    let suite = Suite {
        name: "rootless",
        parallel: 2,
        cases: cases![
            run,
            exec,
            terminal,
            identity,
            devices,
            privileged,
            mounts,
            layers,
            own_user_namespace,
            networks,
            networks_of_the_node,
            signals,
            limits,
            pause,
            the_cgroup_that_is_asked_for,
            killed_daemon,
            killed_containerd_and_daemon,
            pod,
            command_line,
            command_line_without_a_pid_namespace,
        ],
    };
    rootless::as_a_user(|| suite.main())
}

fn run(case: &Case<'_>) -> Result<()> {
    ensure_eq!(case.run(&[], &["sh", "-c", "echo word; id -u; pwd"])?, "word\n0\n/", "stdout");
    let ended = case.try_run(&[], &["sh", "-c", "echo wrong >&2; exit 7"])?;
    ensure_eq!((ended.code, ended.stderr.as_str()), (7, "wrong\n"), "exit code and stderr");
    let failed = case.try_run(&[], &["/nowhere"])?;
    ensure!(failed.code == 1 && failed.stderr.contains("/nowhere"), "{failed:?}");
    Ok(())
}

fn exec(case: &Case<'_>) -> Result<()> {
    let id = case.detached(&[], &["sh", "-c", "sleep 1000 & exec sleep 1000"])?;
    // More than one: the launcher must not stay where the first has gone.
    for word in ["one", "two"] {
        ensure_eq!(
            case.exec(&id, &["sh", "-c", &format!("echo {word}; readlink /proc/self/ns/pid")])?.lines().next(),
            Some(word),
            "stdout"
        );
    }
    let inside = case.exec(&id, &["readlink", "/proc/1/ns/pid"])?;
    ensure_eq!(case.exec(&id, &["readlink", "/proc/self/ns/pid"])?, inside, "the exec'd process's pid namespace");
    ensure!(case.run(&[], &["readlink", "/proc/self/ns/pid"])? != inside, "a container started later is in the same pid namespace");
    let listed = || case.ctr().ok(&["task", "ps", &id]).is_ok_and(|table| table.lines().count() == 3);
    eventually("both processes are listed", SOON, listed)
}

fn terminal(case: &Case<'_>) -> Result<()> {
    let args = case.run_args(&["--rm", "--tty"], &[], &tests::image::name(1), &case.id("t"), &["tty"]);
    let mut pty = case.ctr().on_terminal(&tests::case::words(&args), 30, 90)?;
    pty.expect("/dev/pts/0", SOON)?;
    ensure_eq!(pty.finish(SOON)?.1, 0, "exit code");
    Ok(())
}

/// Who one is in a container, and who on the host.
fn identity(case: &Case<'_>) -> Result<()> {
    rootless::expect_own_map(&case.run(&[], &["cat", "/proc/self/uid_map"])?)?;
    let shared = case.path("shared")?;
    fs::create_dir(&shared)?;
    std::os::unix::fs::chown(&shared, Some(1000), Some(2000))?;
    let id = case.configured(&["sh", "-c", "echo x >/shared/made; id -u; id -g"], |spec| {
        unnamed(spec);
        spec["process"]["user"] = json!({"uid": 1000, "gid": 2000});
        if let Some(mounts) = spec["mounts"].as_array_mut() {
            mounts.push(json!({"destination": "/shared", "type": "bind", "source": shared, "options": ["rbind"]}));
        }
    })?;
    eventually("its ids inside", SOON, || case.output(&id).is_ok_and(|text| text == "1000\n2000\n"))?;
    let made = fs::metadata(shared.join("made"))?;
    ensure_eq!((made.uid(), made.gid()), (1000, 2000), "owner of what was made");
    Ok(())
}

fn devices(case: &Case<'_>) -> Result<()> {
    let script = "for name in null zero full random urandom tty; do stat -c '%n %F %t:%T' /dev/$name; done; \
                  echo x >/dev/null && head -c 3 /dev/zero | wc -c && head -c 5 /dev/urandom | wc -c; \
                  mknod /dev/own c 1 3 2>/dev/null || echo none made; chmod 600 /dev/null 2>/dev/null || echo as it was";
    let told = case.run(&[], &["sh", "-c", script])?;
    let wanted = "/dev/null character special file 1:3\n/dev/zero character special file 1:5\n/dev/full character special file 1:7\n\
                  /dev/random character special file 1:8\n/dev/urandom character special file 1:9\n/dev/tty character special file 5:0\n\
                  3\n5\nnone made\nas it was";
    ensure_eq!(told, wanted, "devices");
    let told = case.run(&["--device", "/dev/kmsg"], &["stat", "-c", "%F %t:%T", "/dev/kmsg"])?;
    ensure_eq!(told, "character special file 1:b", "a device that was asked for");
    let other = case.configured(&["true"], |spec| {
        unnamed(spec);
        spec["linux"]["devices"] = json!([{"path": "/dev/other", "type": "c", "major": 1, "minor": 3}]);
    });
    match other {
        Err(error) if error.0.contains("a user namespace can make no device") => Ok(()),
        other => fail!("a device that the host has not: {other:?}"),
    }
}

fn privileged(case: &Case<'_>) -> Result<()> {
    let told =
        case.run(&["--privileged"], &["sh", "-c", "grep CapEff /proc/self/status; mkdir /m && mount -t tmpfs none /m && echo mounted"])?;
    ensure!(told.contains("000001ffffffffff") && told.ends_with("mounted"), "{told}");
    Ok(())
}

/// The kernel locks what a mount may not do that came from the host (mount_namespaces(7)).
fn mounts(case: &Case<'_>) -> Result<()> {
    let locked = |options: &str| format!("type=bind,src={},dst=/locked,options={options}", rootless::locked().display());
    for (options, written) in [("rbind:rw", "rw,nosuid,nodev,noexec\nwritten"), ("rbind:ro", "ro,nosuid,nodev,noexec\nrefused")] {
        let script =
            "grep ' /locked ' /proc/mounts | cut -d' ' -f4 | cut -d, -f1-4; echo x 2>/dev/null >/locked/x && echo written || echo refused";
        ensure_eq!(case.run(&["--mount", &locked(options)], &["sh", "-c", script])?, written, "{options}");
    }
    let cleared = case.try_run(&["--mount", &locked("rbind:exec")], &["true"])?;
    ensure!(cleared.code == 1 && cleared.stderr.contains("clear noexec"), "{cleared:?}");
    let script = "grep -c '^proc /proc/sys proc ro' /proc/mounts; head -c 1 /proc/keys | wc -c; ls /sys/class | grep -c net";
    ensure_eq!(case.run(&[], &["sh", "-c", script])?, "1\n0\n1", "what the host has");
    Ok(())
}

fn layers(case: &Case<'_>) -> Result<()> {
    for snapshotter in ["overlayfs", "native"] {
        let args = case.run_args(
            &["--rm"],
            &["--snapshotter", snapshotter],
            &tests::image::name(1),
            &case.id("l"),
            &["sh", "-c", "rm /top && mkdir /top && echo made >/top/file && cat /top/file"],
        );
        ensure_eq!(case.ctr().ok(&tests::case::words(&args))?, "made", "with {snapshotter}");
    }
    Ok(())
}

/// A container in a user namespace below the user's.
fn own_user_namespace(case: &Case<'_>) -> Result<()> {
    let id = case.configured(&["sh", "-c", "cat /proc/self/uid_map; echo x >/dev/null; sleep 1000"], |spec| {
        unnamed(spec);
        if let Some(list) = spec["linux"]["namespaces"].as_array_mut() {
            list.push(json!({"type": "user"}));
        }
        let map = json!([{"containerID": 0, "hostID": 5000, "size": 1000}]);
        spec["linux"]["uidMappings"] = map.clone();
        spec["linux"]["gidMappings"] = map;
        spec["root"]["readonly"] = json!(true);
    })?;
    let told = || case.output(&id).is_ok_and(|text| text.split_whitespace().eq(["0", "5000", "1000"]));
    eventually("the map of the container's own namespace", SOON, told)?;
    ensure_eq!(case.exec(&id, &["id", "-u"])?, "0", "an exec there");
    Ok(())
}

fn networks(case: &Case<'_>) -> Result<()> {
    let own = fs::read_link("/proc/self/ns/net")?.display().to_string();
    ensure_eq!(case.run(&["--net-host"], &["readlink", "/proc/self/ns/net"])?, own, "the host's network");
    ensure!(case.run(&[], &["readlink", "/proc/self/ns/net"])? != own, "a network of its own");
    let up = case.run(&[], &["sh", "-c", "cat /sys/class/net/lo/flags"])?;
    ensure_eq!(up, "0x9", "its loopback device is up");
    Ok(())
}

/// By annotations, in the user's own network namespace, which is the host here.
fn networks_of_the_node(case: &Case<'_>) -> Result<()> {
    let asked = |more: &[&str], command: &str| -> Result<String> {
        let flags = more.iter().flat_map(|annotation| ["--annotation", annotation]);
        let flags: Vec<&str> = ["--annotation", "coracle.network=front"].into_iter().chain(flags).collect();
        case.detached(&flags, &["sh", "-c", command])
    };
    let page = "mkdir /w && echo page >/w/index.html && exec httpd -f -p 80 -h /w";
    let web = asked(&["coracle.aliases=web", "coracle.ports=8080:80/tcp"], page)?;
    let other = asked(&[], "sleep 1000")?;
    let get = |url: &str| case.exec(&other, &["wget", "-qO-", url]);
    eventually("it serves", SOON, || get("http://web/").is_ok_and(|page| page == "page"))?;
    let address = case.exec(&web, &["sh", "-c", "ip -o -4 addr show dev eth0 | tr -s ' ' | cut -d' ' -f4"])?;
    ensure!(address.starts_with("10.31.0.") && address.ends_with("/24"), "address: {address}");
    let published = |host: &str| command::output(Command::new("busybox").args(["wget", "-qO-", &format!("http://{host}:8080/")]));
    for host in ["127.0.0.1", "10.31.0.1"] {
        ensure_eq!(published(host)?, "page\n", "the published port at {host}");
    }
    for id in [&web, &other] {
        case.ctr().ok(&["task", "kill", "-s", "KILL", id])?;
        case.ctr().wait_status(id, "STOPPED", SOON)?;
    }
    eventually("nothing serves any more", SOON, || published("127.0.0.1").is_err())
}

fn signals(case: &Case<'_>) -> Result<()> {
    let id = case.detached(&[], &["sh", "-c", "trap 'exit 9' TERM; sleep 1000 & echo ready; while :; do wait; done"])?;
    eventually("ready", SOON, || case.output(&id).is_ok_and(|text| text == "ready\n"))?;
    let init = case.ctr().pid(&id)?;
    case.ctr().ok(&["task", "kill", "-s", "TERM", &id])?;
    case.ctr().wait_status(&id, "STOPPED", SOON)?;
    ensure_eq!(case.events.wait(&id, Kind::Exit, SOON)?.status, 9, "exit status");
    case.ctr().ok(&["task", "rm", &id])?;
    ensure!(proc::process(init).is_none(), "the first process is still there");

    let id = case.detached(&[], &["sh", "-c", "trap '' TERM; sleep 1000 & sleep 1000 & wait; sleep 1000"])?;
    case.ctr().ok(&["task", "kill", "--all", "-s", "KILL", &id])?;
    case.ctr().wait_status(&id, "STOPPED", SOON)
}

/// What a container needs a cgroup for is refused by its name where there is none, and works in one that was delegated.
fn limits(case: &Case<'_>) -> Result<()> {
    let ended = case.try_run(&["--memory-limit", "33554432"], &["sh", "-c", "x=$(head -c 60000000 /dev/zero | tr '\\0' x); echo ${#x}"])?;
    if rootless::has_cgroups() {
        ensure_eq!(ended.code, 137, "exit code of what needs too much memory: {ended:?}");
        let id = case.detached(&["--memory-limit", "33554432"], &["sleep", "1000"])?;
        let metrics = case.ctr().ok(&["task", "metrics", &id])?;
        return if metrics.contains("33554432") { Ok(()) } else { fail!("metrics: {metrics}") };
    }
    ensure!(ended.code == 1 && ended.stderr.contains("resources.memory.limit"), "{ended:?}");
    let id = case.detached(&[], &["sleep", "1000"])?;
    case.ctr().refused(&["task", "metrics", &id], "no metrics received").map(drop)
}

fn pause(case: &Case<'_>) -> Result<()> {
    let id = case.detached(&[], &["sleep", "1000"])?;
    if !rootless::has_cgroups() {
        case.ctr().refused(&["task", "pause", &id], "cannot freeze")?;
        return case.ctr().wait_status(&id, "RUNNING", SOON);
    }
    case.ctr().ok(&["task", "pause", &id])?;
    case.ctr().wait_status(&id, "PAUSED", SOON)?;
    case.ctr().ok(&["task", "resume", &id])?;
    case.ctr().wait_status(&id, "RUNNING", SOON)
}

/// One that is named is made, or its absence is no secret.
fn the_cgroup_that_is_asked_for(case: &Case<'_>) -> Result<()> {
    let asked = case.try_run(&["--cgroup", &format!("/{}/asked", case.id("asked"))], &["true"])?;
    ensure!(asked.code == 1 && asked.stderr.contains("mkdir /sys/fs/cgroup/"), "{asked:?}");
    Ok(())
}

fn killed_daemon(case: &Case<'_>) -> Result<()> {
    let id = case.detached(&[], &["sh", "-c", "sleep 1000 & exec sleep 1000"])?;
    let init = case.ctr().pid(&id)?;
    let daemon = proc::parent(init)?;
    signal(daemon, Signal::KILL)?;
    eventually("the container ends with its daemon", SOON, || proc::process(init).is_none())?;
    eventually("the task is gone", SOON, || case.ctr().status(&id).is_ok_and(|status| status.is_none()))
}

/// As when the session of the user ends: what runs on is removed by the next containerd.
fn killed_containerd_and_daemon(case: &Case<'_>) -> Result<()> {
    let mut own = tests::containerd::Containerd::start(case.version())?;
    own.import(&[1])?;
    let id = case.id("k");
    let log = case.path("k.out")?;
    let args = case.run_args(
        &["--detach", "--log-uri", &format!("file://{}", log.display())],
        &[],
        &tests::image::name(1),
        &id,
        &["sleep", "1000"],
    );
    own.ctr().ok(&tests::case::words(&args))?;
    let init = own.ctr().pid(&id)?;
    let daemon = proc::parent(init)?;
    own.kill()?;
    signal(daemon, Signal::KILL)?;
    own.restart()?;
    eventually("what the dead left is gone", SOON, || proc::process(init).is_none())?;
    own.ctr().ok(&["container", "rm", &id])?;
    own.stop()
}

fn pod(case: &Case<'_>) -> Result<()> {
    let group = case.id("g");
    let member = |args: &[&str]| {
        case.configured(args, |spec| {
            unnamed(spec);
            spec["annotations"] = json!({"io.kubernetes.cri.sandbox-id": group});
        })
    };
    let (first, second) = (member(&["sleep", "1000"])?, member(&["sleep", "1000"])?);
    let parent = |id: &str| proc::parent(case.ctr().pid(id)?);
    ensure_eq!(parent(&first)?, parent(&second)?, "the daemon of both");
    ensure_eq!(case.exec(&second, &["echo", "word"])?, "word", "an exec");
    Ok(())
}

/// `coracle`, as a user runs it who has unshared.
struct Coracle {
    state: PathBuf,
}

impl Coracle {
    fn command(&self, args: &[&str]) -> Result<Command> {
        let mut command = Command::new(paths::shim_dir()?.join("coracle"));
        command.arg("--root").arg(&self.state).args(args);
        Ok(command)
    }

    fn ok(&self, args: &[&str]) -> Result<String> {
        command::output(&mut self.command(args)?)
    }
}

fn bundle(case: &Case<'_>, args: &[&str], change: impl FnOnce(&mut Value)) -> Result<(Coracle, Bundle)> {
    let mut bundle = Bundle::new(&case.path("bundle")?, &case.id("o"), args)?;
    bundle.fill()?;
    bundle.edit(|spec| {
        unnamed(spec);
        change(spec);
    })?;
    Ok((Coracle { state: case.path("state")? }, bundle))
}

fn command_line(case: &Case<'_>) -> Result<()> {
    let (coracle, bundle) = bundle(case, &["sh", "-c", "echo out; exit 4"], |_| {})?;
    let (id, dir) = (bundle.id.as_str(), bundle.dir.display().to_string());
    let ran = command::run(&mut coracle.command(&["--rootless", "true", "run", "-b", &dir, id])?)?;
    ensure_eq!((ran.code, ran.stdout.as_str()), (4, "out\n"), "run: {}", ran.stderr);
    ensure_eq!(coracle.ok(&["list", "-q"])?, "", "list afterwards");
    Ok(())
}

/// Nobody but the first process is known to be inside then.
fn command_line_without_a_pid_namespace(case: &Case<'_>) -> Result<()> {
    let (coracle, bundle) = bundle(case, &["sleep", "1000"], |spec| {
        if let Some(list) = spec["linux"]["namespaces"].as_array_mut() {
            list.retain(|namespace| namespace["type"] != "pid");
        }
        // A procfs of the host's pid namespace is the host's to mount.
        if let Some(mounts) = spec["mounts"].as_array_mut() {
            mounts.retain(|mount| mount["type"] != "proc");
            mounts.push(json!({"destination": "/proc", "type": "bind", "source": "/proc", "options": ["rbind"]}));
        }
    })?;
    let (id, dir) = (bundle.id.as_str(), bundle.dir.display().to_string());
    let log = fs::File::create(case.path("o.out")?)?;
    let mut create = coracle.command(&["create", "-b", &dir, id])?;
    ensure!(
        create.stdin(std::process::Stdio::null()).stdout(log.try_clone()?).stderr(log).status()?.success(),
        "create: {}",
        fs::read_to_string(case.path("o.out")?)?
    );
    coracle.ok(&["start", id])?;
    let state: Value = serde_json::from_str(&coracle.ok(&["state", id])?)?;
    ensure_eq!(coracle.ok(&["ps", "-f", "json", id])?.trim(), format!("[{}]", state["pid"]), "ps");
    coracle.ok(&["kill", id, "KILL"])?;
    eventually("stopped", SOON, || coracle.ok(&["state", id]).is_ok_and(|state| state.contains("\"stopped\"")))?;
    coracle.ok(&["delete", id]).map(drop)
}

/// No cgroup is asked for by name.
fn unnamed(spec: &mut Value) {
    if let Some(linux) = spec["linux"].as_object_mut() {
        linux.remove("cgroupsPath");
    }
}
