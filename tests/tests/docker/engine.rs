//! A Docker Engine with every file of its own, on a containerd of its own.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::json;
use tests::command::{self, signal};
use tests::containerd::{Containerd, Setup, Version, eventually};
use tests::oci::Oci;
use tests::suite::by_systemd;
use tests::{Context, Result, ensure, fail, image, paths, proc};

const SOON: Duration = Duration::from_secs(30);
/// In the name of the parent of all containers' cgroups.
const WORD: &str = "docker-walk";

/// What containers run on if nothing else is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Runtime {
    /// Docker's own.
    Runc,
    /// Ours; the `runc` that is found on the way notes its arguments and fails.
    Coracle,
}

/// A running engine.
pub struct Engine<'a> {
    /// Its default runtime.
    pub runtime: Runtime,
    oci: &'a Oci,
    dir: PathBuf,
    data: PathBuf,
    path: String,
    containerd: Containerd,
    daemons: Vec<Child>,
}

impl<'a> Engine<'a> {
    /// With the image `bb`, and a registry beside it.
    pub fn start(oci: &'a Oci, runtime: Runtime) -> Result<Self> {
        Self::start_with(oci, runtime, &[])
    }

    /// The same with more flags of the engine's.
    pub fn start_with(oci: &'a Oci, runtime: Runtime, flags: &[&str]) -> Result<Self> {
        let name = format!("{runtime:?}").to_lowercase();
        let (dir, data) = (oci.dir().join(&name), oci.data().join(&name));
        for directory in [&dir, &data.join("bin"), &data.join("tmp"), &data.join("config/cli-plugins")] {
            fs::create_dir_all(directory)?;
        }
        let tree = paths::cache("trixie")?;
        let runc = match runtime {
            Runtime::Runc => paths::cache("bookworm")?.join("usr/sbin"),
            Runtime::Coracle => data.join("bin"),
        };
        program(&data.join("bin/runc"), &format!("echo \"$*\" >>{}; exit 1", data.join("runs-of-runc").display()))?;
        program(
            &data.join("bin/docker"),
            &format!("exec {} -H unix://{}/sock \"$@\"", tree.join("usr/bin/docker").display(), dir.display()),
        )?;
        std::os::unix::fs::symlink(
            tree.join("usr/libexec/docker/cli-plugins/docker-buildx"),
            data.join("config/cli-plugins/docker-buildx"),
        )?;
        let own = [&runc, &paths::shim_dir()?, &tree.join("usr/bin"), &tree.join("usr/sbin")].map(|path| path.display().to_string());
        let path = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", own.join(":"));
        let environment = vec![("PATH".to_owned(), path.clone())];
        let containerd = Containerd::start_with(Version::V17, |_| Setup { environment, ..Setup::default() })?;
        let mut engine = Self { runtime, oci, dir, data, path, containerd, daemons: Vec::new() };
        engine.start_daemon(&engine.containerd.address(), flags)?;
        engine.start_registry()?;
        let (root, archive) = (engine.data.join("image"), engine.data.join("image.tar"));
        image::unpack(&root)?;
        command::output(Command::new("tar").arg("-C").arg(&root).arg("-cf").arg(&archive).arg("."))?;
        engine.docker(&["import", &archive.display().to_string(), "bb"])?;
        let _ = fs::remove_file(engine.data.join("runs-of-runc"));
        Ok(engine)
    }

    fn start_daemon(&mut self, containerd: &Path, flags: &[&str]) -> Result<()> {
        let config = self.data.join("daemon.json");
        let default = if self.runtime == Runtime::Runc { "runc" } else { paths::OURS };
        let runtimes = json!({
            "coracle": {"runtimeType": paths::OURS},
            "coracle-cli": {"path": paths::shim_dir()?.join("coracle")},
        });
        let exec_options = [format!("native.cgroupdriver={}", if by_systemd() { "systemd" } else { "cgroupfs" })];
        fs::write(&config, json!({"runtimes": runtimes, "default-runtime": default, "exec-opts": exec_options}).to_string())?;
        let mut daemon = Command::new(paths::cache("trixie")?.join("usr/sbin/dockerd"));
        daemon.arg("--config-file").arg(config).arg("--containerd").arg(containerd).args(["-s", "overlay2"]);
        daemon.arg("--cgroup-parent").arg(if by_systemd() { slice() } else { format!("/{}/{WORD}", paths::tag()) });
        daemon.arg("--data-root").arg(self.data.join("root")).arg("--exec-root").arg(self.dir.join("exec"));
        daemon.arg("-p").arg(self.dir.join("pid")).arg("-H").arg(format!("unix://{}/sock", self.dir.display()));
        daemon.args(flags);
        if self.runtime == Runtime::Coracle {
            // The only thing of the engine's that runs containers without containerd.
            daemon.env("DOCKER_BUILDKIT_RUNC_COMMAND", paths::shim_dir()?.join("coracle"));
        }
        self.spawn(daemon, "dockerd")?;
        eventually("dockerd answers", SOON, || self.docker(&["version"]).is_ok())
            .context(|| fs::read_to_string(self.data.join("dockerd.log")).unwrap_or_default())
    }

    fn start_registry(&mut self) -> Result<()> {
        let config = self.data.join("registry.yml");
        let storage = self.data.join("registry");
        fs::write(
            &config,
            format!("version: 0.1\nstorage: {{filesystem: {{rootdirectory: {storage:?}}}}}\nhttp: {{addr: 127.0.0.1:5000}}\n"),
        )?;
        let mut registry = Command::new(paths::cache("trixie")?.join("usr/bin/docker-registry"));
        registry.arg("serve").arg(config);
        self.spawn(registry, "registry")?;
        eventually("the registry answers", SOON, || std::net::TcpStream::connect("127.0.0.1:5000").is_ok())
    }

    fn spawn(&mut self, mut daemon: Command, name: &str) -> Result<()> {
        let log = fs::File::create(self.data.join(format!("{name}.log")))?;
        daemon.env("PATH", &self.path).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        self.daemons.push(daemon.spawn().context(|| name.to_owned())?);
        Ok(())
    }

    /// With this engine's `docker`.
    pub fn within<'c>(&self, command: &'c mut Command) -> &'c mut Command {
        let path = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", self.data.join("bin").display());
        command.env("PATH", path).env("TMP", self.data.join("tmp")).env("DOCKER_CONFIG", self.data.join("config"))
    }

    /// What a command prints that must succeed.
    pub fn docker(&self, args: &[&str]) -> Result<String> {
        command::output(self.within(Command::new(self.data.join("bin/docker")).args(args)))
    }

    /// The arguments of every run of the `runc` that fails.
    pub fn runs_of_runc(&self) -> Result<String> {
        Ok(fs::read_to_string(self.data.join("runs-of-runc")).unwrap_or_default())
    }

    /// The command line of the parent of a process.
    pub fn supervisor(&self, pid: &str) -> Result<String> {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:\t")).context(|| "no parent".to_owned())?;
        Ok(fs::read_to_string(format!("/proc/{parent}/cmdline"))?.replace('\0', " "))
    }

    /// Ids of containers and images are drawn by lot, and the engines have directories of their own.
    pub fn without_ids(&self, text: &str) -> String {
        let text = text.replace(&self.data.display().to_string(), "DATA");
        let mut result = String::new();
        let mut rest = text.as_str();
        while let Some(start) = rest.find(|c: char| c.is_ascii_hexdigit()) {
            let (before, word) = rest.split_at(start);
            let length = word.find(|c: char| !c.is_ascii_hexdigit()).unwrap_or(word.len());
            let (word, after) = word.split_at(length);
            result.push_str(before);
            // Capability sets have 16 digits.
            result.push_str(if matches!(length, 12 | 64) { "ID" } else { word });
            rest = after;
        }
        result + rest
    }

    /// Nothing of it stays.
    pub fn stop(mut self) -> Result<()> {
        ensure!(self.docker(&["ps", "-aq"])?.is_empty(), "containers are left");
        // The parents that the engine and its builder have made.
        let slice = slice();
        let parents = [Path::new(WORD), &Path::new(WORD).join("buildkit"), Path::new(&slice)];
        let groups = self.oci.cgroups(WORD).into_iter().filter(|path| !parents.iter().any(|parent| path.ends_with(parent)));
        let groups: Vec<_> = groups.collect();
        ensure!(groups.is_empty(), "cgroups are left: {groups:?}");
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        for mut daemon in self.daemons.drain(..).rev() {
            signal(daemon.id(), Signal::TERM)?;
            if command::wait_for(&mut daemon, SOON)?.is_none() {
                daemon.kill()?;
                daemon.wait()?;
                fail!("{} did not end", daemon.id());
            }
        }
        for mount in
            proc::mounts().into_iter().rev().filter(|mount| [&self.data, &self.dir].iter().any(|own| mount.target.starts_with(own)))
        {
            // The engine's storage is a mount point of its own, and so is its network namespace.
            rustix::mount::unmount(&mount.target, rustix::mount::UnmountFlags::DETACH)?;
        }
        if by_systemd() {
            proc::remove_slice(&slice());
        }
        for path in self.oci.cgroups(WORD).into_iter().rev() {
            // One that is in use is told of by the ledger.
            let _ = fs::remove_dir(path);
        }
        Ok(())
    }
}

impl Drop for Engine<'_> {
    fn drop(&mut self) {
        // After a failure; what it leaves is told of by the ledger.
        let _ = self.end();
    }
}

/// The parent of all containers' scopes with systemd's driver.
fn slice() -> String {
    format!("{}-{WORD}.slice", paths::tag())
}

fn program(path: &Path, script: &str) -> Result<()> {
    fs::write(path, format!("#!/bin/sh\n{script}\n"))?;
    Ok(fs::set_permissions(path, fs::Permissions::from_mode(0o755))?)
}
