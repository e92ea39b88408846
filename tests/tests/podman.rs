//! Debian's Podman with `coracle` as its OCI runtime: pulled from nowhere, with state of its own, nothing of it left.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use tests::command::{self, Output};
use tests::containerd::eventually;
use tests::oci::{self, Entry, Oci};
use tests::pty::Pty;
use tests::{Context, Result, ensure, ensure_eq, fail, image, paths, proc, suite};

const IMAGE: &str = "localhost/busybox";
const SOON: Duration = Duration::from_secs(30);

fn main() -> ExitCode {
    const CGROUPFS: &[Entry] = &[
        ("containers", |oci| containers(&Podman::new(oci, Manager::Cgroupfs)?)),
        ("confinement", |oci| confinement(&Podman::new(oci, Manager::Cgroupfs)?)),
        ("execs", |oci| execs(&Podman::new(oci, Manager::Cgroupfs)?)),
        ("hooks_with_a_user_namespace", |oci| hooks_with_a_user_namespace(&Podman::new(oci, Manager::Cgroupfs)?)),
    ];
    const SYSTEMD: &[Entry] = &[
        ("systemd::containers", |oci| containers(&Podman::new(oci, Manager::Systemd)?)),
        ("systemd::confinement", |oci| confinement(&Podman::new(oci, Manager::Systemd)?)),
        ("systemd::execs", |oci| execs(&Podman::new(oci, Manager::Systemd)?)),
    ];
    let systemd = if Path::new("/run/systemd/system").exists() { SYSTEMD } else { &[] };
    suite::main_of([oci::named("podman", CGROUPFS), oci::named("podman", systemd)].into_iter().flatten().collect())
}

/// Who makes cgroups.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Manager {
    Cgroupfs,
    Systemd,
}

/// A Podman whose every file is below the case's directories.
struct Podman<'a> {
    oci: &'a Oci,
    manager: Manager,
    tree: PathBuf,
    conf: PathBuf,
    /// `coracle` with the directory of its state: what Podman starts again knows no flags of the runtime's.
    runtime: PathBuf,
}

impl Manager {
    fn name(self) -> &'static str {
        match self {
            Self::Cgroupfs => "cgroupfs",
            Self::Systemd => "systemd",
        }
    }
}

impl<'a> Podman<'a> {
    /// With the image imported.
    fn new(oci: &'a Oci, manager: Manager) -> Result<Self> {
        let tree = paths::cache("bookworm")?;
        let conf = oci.data().join("containers.conf");
        // Limits cannot be raised on every machine, and Podman's own are high.
        // conmon starts Podman again when a container has ended, and has no environment but this one.
        let environment = format!("[\"PATH=/usr/sbin:/usr/bin:/sbin:/bin\", {:?}]", format!("LD_LIBRARY_PATH={}", libraries(&tree)));
        let text = format!(
            "[containers]\ndefault_ulimits = [\"nofile=512:512\", \"nproc=512:512\"]\nlog_driver = \"k8s-file\"\n\
             [engine]\nevents_logger = \"file\"\nconmon_path = [{:?}]\nconmon_env_vars = {environment}\n",
            tree.join("usr/bin/conmon")
        );
        fs::write(&conf, text)?;
        let runtime = oci.data().join("coracle");
        let state = oci.dir().join("state");
        fs::write(&runtime, format!("#!/bin/sh\nexec {:?} --root {state:?} \"$@\"\n", paths::shim_dir()?.join("coracle")))?;
        fs::set_permissions(&runtime, fs::Permissions::from_mode(0o755))?;
        let policy = oci.data().join(".config/containers");
        fs::create_dir_all(&policy)?;
        fs::write(policy.join("policy.json"), json!({"default": [{"type": "insecureAcceptAnything"}]}).to_string())?;
        let podman = Podman { oci, manager, tree, conf, runtime };
        let (root, archive) = (oci.data().join("image"), oci.data().join("image.tar"));
        image::unpack(&root)?;
        command::output(Command::new("tar").arg("-C").arg(&root).arg("-cf").arg(&archive).arg("."))?;
        podman.ok(&["import", &archive.display().to_string(), IMAGE])?;
        Ok(podman)
    }

    fn command(&self, args: &[&str]) -> Result<Command> {
        let mut command = Command::new(self.tree.join("usr/bin/podman"));
        command.env("HOME", self.oci.data()).env("CONTAINERS_CONF", &self.conf).env("LD_LIBRARY_PATH", libraries(&self.tree));
        for (flag, directory) in [("--root", self.oci.data()), ("--runroot", self.oci.dir()), ("--tmpdir", self.oci.dir())] {
            command.arg(flag).arg(directory.join(flag.trim_start_matches('-')));
        }
        command.args(["--storage-driver", "vfs", "--cgroup-manager", self.manager.name(), "--runtime"]).arg(&self.runtime);
        command.args(args).stdin(Stdio::null());
        Ok(command)
    }

    fn run(&self, args: &[&str]) -> Result<Output> {
        command::run(&mut self.command(args)?)
    }

    fn ok(&self, args: &[&str]) -> Result<String> {
        let done = self.run(args)?;
        if done.code != 0 {
            fail!("podman {args:?}: exit code {}, stdout {:?}, stderr {:?}", done.code, done.stdout, done.stderr);
        }
        Ok(done.stdout)
    }

    /// `podman run` without a network.
    fn container(&self, flags: &[&str], program: &[&str]) -> Result<Output> {
        let parent = match self.manager {
            Manager::Cgroupfs => format!("/{}", paths::tag()),
            Manager::Systemd => format!("{}.slice", paths::tag()),
        };
        self.run(&[&["run", "--network", "none", "--cgroup-parent", &parent], flags, &[IMAGE], program].concat())
    }

    fn inspect(&self, name: &str) -> Result<Value> {
        let all: Value = serde_json::from_str(&self.ok(&["inspect", name])?)?;
        Ok(all[0].clone())
    }

    /// Nothing of it may be mounted or run when the case ends.
    fn close(&self) -> Result<()> {
        self.ok(&["rm", "--all", "--force", "--time", "0"])?;
        ensure_eq!(self.ok(&["ps", "--all", "--quiet"])?, "", "containers left");
        let state = self.oci.dir().join("state");
        let left: Vec<_> = fs::read_dir(state).into_iter().flatten().flatten().map(|entry| entry.file_name()).collect();
        ensure!(left.is_empty(), "state left: {left:?}");
        let ours = |path: &Path| path.starts_with(self.oci.data()) || path.starts_with(self.oci.dir());
        eventually("its monitors end", SOON, || {
            !proc::all().iter().any(|process| process.command_line.contains(&self.oci.data().display().to_string()))
        })?;
        for mount in proc::mounts().into_iter().rev().filter(|mount| ours(Path::new(&mount.target))) {
            // Podman's own: its storage is a mount point, for as long as the machine runs.
            rustix::mount::unmount(&mount.target, rustix::mount::UnmountFlags::DETACH)?;
        }
        Ok(())
    }
}

/// Where the unpacked packages have their libraries.
fn libraries(tree: &Path) -> String {
    let triple = Command::new("gcc").arg("-print-multiarch").output().map(|done| String::from_utf8_lossy(&done.stdout).trim().to_owned());
    let triple = triple.ok().filter(|text| !text.is_empty()).unwrap_or_else(|| format!("{}-linux-gnu", std::env::consts::ARCH));
    format!("{0}/usr/lib/{triple}:{0}/lib/{triple}", tree.display())
}

fn containers(podman: &Podman<'_>) -> Result<()> {
    let name = podman.oci.id("c");
    let done = podman.container(&["--rm"], &["sh", "-c", "echo out; echo err >&2; exit 5"])?;
    ensure_eq!((done.code, done.stdout.as_str(), done.stderr.as_str()), (5, "out\n", "err\n"), "podman run");
    let missing = podman.container(&["--rm"], &["nope"])?;
    ensure_eq!(missing.code, 127, "status of a program that does not exist: {}", missing.stderr);
    ensure_eq!(podman.container(&["--rm"], &["/etc"])?.code, 126, "status of a directory");
    let script = "trap 'echo bye; exit 3' TERM; echo up; while :; do sleep 0.1; done";
    let detached = podman.container(&["-d", "--name", &name], &["sh", "-c", script])?;
    ensure_eq!(detached.code, 0, "podman run -d: {}", detached.stderr);
    eventually("it runs", SOON, || podman.ok(&["logs", &name]).is_ok_and(|text| text == "up\n"))?;
    let inspected = podman.inspect(&name)?;
    ensure_eq!(inspected["State"]["Status"], "running", "inspect");
    ensure!(inspected["OCIRuntime"].as_str().is_some_and(|path| path.ends_with("/coracle")), "runtime: {}", inspected["OCIRuntime"]);
    let exec = podman.run(&["exec", "-e", "A=b", "-w", "/tmp", &name, "sh", "-c", "echo $A; pwd; exit 4"])?;
    ensure_eq!((exec.code, exec.stdout.as_str()), (4, "b\n/tmp\n"), "podman exec: {}", exec.stderr);
    ensure_eq!(podman.run(&["exec", &name, "nope"])?.code, 127, "status of an exec that does not exist");
    ensure!(podman.ok(&["top", &name])?.contains("sleep 0.1"), "podman top");
    podman.ok(&["pause", &name])?;
    ensure_eq!(podman.inspect(&name)?["State"]["Status"], "paused", "after podman pause");
    podman.ok(&["unpause", &name])?;
    podman.ok(&["stop", "-t", "20", &name])?;
    ensure_eq!(podman.inspect(&name)?["State"]["ExitCode"], 3, "status after podman stop");
    ensure_eq!(podman.ok(&["logs", &name])?, "up\nbye\n", "podman logs");
    podman.ok(&["start", &name])?;
    podman.ok(&["kill", "-s", "KILL", &name])?;
    ensure_eq!(podman.ok(&["wait", &name])?.trim(), "137", "status after podman kill");
    podman.ok(&["rm", &name])?;
    podman.close()
}

/// What Podman does by another process in a container, and by another first one.
fn execs(podman: &Podman<'_>) -> Result<()> {
    let name = podman.oci.id("e");
    let init = paths::cache("trixie")?.join("usr/bin/tini-static").display().to_string();
    let flags = ["-d", "--name", &name, "--init", "--init-path", &init, "--health-cmd", "test -e /well", "--health-interval", "disable"];
    let started = podman.container(&flags, &["sh", "-c", "sleep 1000 & sleep 1000 & wait"])?;
    ensure_eq!(started.code, 0, "podman run --init: {}", started.stderr);
    let first = podman.ok(&["exec", &name, "cat", "/proc/1/cmdline"])?;
    ensure!(first.contains("init") && first.ends_with("wait\0"), "the first process: {first:?}");

    let mut pty = Pty::spawn(&mut podman.command(&["exec", "-it", &name, "sh"])?, 33, 99)?;
    pty.send("tty; stty size; exit 6\n")?;
    pty.expect("/dev/pts/0", SOON)?;
    pty.expect("33 99", SOON)?;
    ensure_eq!(pty.finish(SOON)?.1, 6, "exit code of podman exec -it");

    let stats = podman.ok(&["stats", "--no-stream", "--format", "{{.PIDs}} {{.MemUsage}}", &name])?;
    ensure!(stats.starts_with("4 ") && stats.contains("kB /") | stats.contains("MB /"), "podman stats: {stats:?}");
    ensure_eq!(podman.run(&["healthcheck", "run", &name])?.code, 1, "a check that fails");
    podman.ok(&["exec", &name, "touch", "/well"])?;
    ensure_eq!(podman.run(&["healthcheck", "run", &name])?.code, 0, "a check that passes");
    ensure_eq!(podman.inspect(&name)?["State"]["Health"]["Status"], "healthy", "after that");
    podman.ok(&["stop", "-t", "20", &name])?;
    ensure_eq!(podman.inspect(&name)?["State"]["ExitCode"], 143, "status of an init that was asked to end");
    podman.close()
}

fn confinement(podman: &Podman<'_>) -> Result<()> {
    let oci = podman.oci;
    let inside = |flags: &[&str], script: &str| -> Result<String> {
        let done = podman.container(&[&["--rm"], flags].concat(), &["sh", "-c", script])?;
        ensure_eq!(done.code, 0, "{flags:?} {script:?}: {}", done.stderr);
        Ok(done.stdout)
    };
    ensure_eq!(
        inside(&["--read-only"], "echo x 2>/dev/null >/f || echo refused; echo y >/tmp/f; cat /tmp/f")?,
        "refused\ny\n",
        "--read-only"
    );
    let volume = oci.data().join("volume");
    fs::create_dir(&volume)?;
    inside(&["-v", &format!("{}:/v", volume.display())], "echo x >/v/f")?;
    ensure_eq!(fs::read_to_string(volume.join("f"))?, "x\n", "-v");
    let maps = inside(&["--uidmap", "0:100000:1000", "--gidmap", "0:100000:1000"], "cat /proc/self/uid_map")?;
    ensure_eq!(maps.split_whitespace().collect::<Vec<_>>(), ["0", "100000", "1000"], "--uidmap");
    ensure_eq!(inside(&["-t"], "[ -t 0 ] && echo yes")?.trim(), "yes", "-t");
    let status = inside(
        &["--user", "5:6", "--cap-drop", "all", "--security-opt", "no-new-privileges"],
        "id -u; grep -E 'CapBnd|NoNew|Seccomp:' /proc/self/status",
    )?;
    let words: Vec<&str> = status.split_whitespace().collect();
    ensure_eq!(words, ["5", "CapBnd:", "0000000000000000", "NoNewPrivs:", "1", "Seccomp:", "2"], "confinement");
    let name = oci.id("l");
    ensure_eq!(podman.container(&["-d", "--name", &name, "--pids-limit", "33"], &["sleep", "1000"])?.code, 0, "--pids-limit");
    let pid = podman.inspect(&name)?["State"]["Pid"].as_u64().and_then(|pid| u32::try_from(pid).ok()).context(|| "no pid".to_owned())?;
    let limit = fs::read_to_string(proc::cgroup_of(pid, "pids")?.join("pids.max"))?;
    ensure_eq!(limit.trim(), "33", "--pids-limit");
    podman.close()
}

fn hooks_with_a_user_namespace(podman: &Podman<'_>) -> Result<()> {
    let (dir, ran) = (podman.oci.data().join("hooks"), podman.oci.data().join("ran"));
    fs::create_dir(&dir)?;
    for (stage, script) in [("prestart", format!("cat >{}", ran.display())), ("createContainer", "echo >./from-hook".to_owned())] {
        let hook = json!({"path": "/bin/busybox", "args": ["sh", "-c", script]});
        let file = json!({"version": "1.0.0", "hook": hook, "when": {"always": true}, "stages": [stage]});
        fs::write(dir.join(format!("{stage}.json")), file.to_string())?;
    }
    let (dir, parent) = (dir.display().to_string(), format!("/{}", paths::tag()));
    let flags = ["--hooks-dir", &dir, "run", "--rm", "--network", "none", "--cgroup-parent", &parent];
    let maps = ["--uidmap", "0:1000000:65536", "--gidmap", "0:1000000:65536", IMAGE];
    let out = podman.ok(&[&flags[..], &maps, &["sh", "-c", "cat /proc/self/uid_map; ls /from-hook"]].concat())?;
    ensure_eq!(out.split_whitespace().collect::<Vec<_>>(), ["0", "1000000", "65536", "/from-hook"], "what the container sees");
    ensure!(fs::read_to_string(ran)?.contains("\"creating\""), "the prestart hook was told another state");
    Ok(())
}
