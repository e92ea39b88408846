//! A private containerd: own root, state, socket and configuration, and never the user's.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use rustix::process::Signal;

use crate::command::{signal, wait_for};
use crate::ctr::Ctr;
use crate::{Context, Result, ensure, fail, image, paths, proc, wait};

/// A generation of containerd, each from one release of Debian.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// 1.6, from bookworm.
    V16,
    /// 1.7, from trixie.
    V17,
    /// 2.x, from sid.
    V2,
}

impl Version {
    /// All that the suites run on.
    pub const ALL: [Version; 3] = [Version::V16, Version::V17, Version::V2];

    /// Debian's name of the release that has it.
    pub fn suite(self) -> &'static str {
        match self {
            Version::V16 => "bookworm",
            Version::V17 => "trixie",
            Version::V2 => "sid",
        }
    }

    /// The name in test output.
    pub fn name(self) -> &'static str {
        match self {
            Version::V16 => "1.6",
            Version::V17 => "1.7",
            Version::V2 => "2.x",
        }
    }

    /// One of its programs.
    pub fn program(self, name: &str) -> Result<PathBuf> {
        Ok(paths::cache(self.suite())?.join("usr/bin").join(name))
    }
}

/// Time for containerd to come up, and to go down.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a containerd may have of its own.
#[derive(Clone, Default)]
pub struct Setup {
    /// The directory of its shim, where it is not the one under test.
    pub shim: Option<PathBuf>,
    /// What is in its environment, and in that of its shims.
    pub environment: Vec<(String, String)>,
    /// The tables of CRI's configuration; without them it is off.
    pub cri: Option<String>,
}

/// A running containerd. Dropping it stops it and removes what it kept.
pub struct Containerd {
    /// Which generation.
    pub version: Version,
    dir: PathBuf,
    data: PathBuf,
    setup: Setup,
    child: Child,
}

impl Containerd {
    /// Starts one on empty directories and waits until it answers.
    pub fn start(version: Version) -> Result<Containerd> {
        Containerd::start_with(version, |_| Setup::default())
    }

    /// As [`Containerd::start`] with a set-up that may name the directory of its socket.
    pub fn start_with(version: Version, setup: impl FnOnce(&Path) -> Setup) -> Result<Containerd> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("{}-{}", version.name(), COUNT.fetch_add(1, Ordering::Relaxed));
        let (dir, data) = (paths::run_dir().join(&name), paths::data_dir()?.join(&name));
        fs::create_dir_all(&dir)?;
        fs::create_dir_all(&data)?;
        let setup = setup(&dir);
        fs::write(dir.join("config.toml"), config(version, &dir, &data, setup.cri.as_deref()))?;
        let child = spawn(version, &dir, &setup)?;
        Ok(Containerd { version, dir, data, setup, child })
    }

    /// The directory of socket, state and fifos.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The directory of content and snapshots.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// containerd's gRPC socket.
    pub fn address(&self) -> PathBuf {
        self.dir.join("containerd.sock")
    }

    /// The bundle of a container in this run's namespace.
    pub fn bundle(&self, id: &str) -> PathBuf {
        self.bundle_in(paths::tag(), id)
    }

    /// The bundle of a container in a namespace of containerd's.
    pub fn bundle_in(&self, namespace: &str, id: &str) -> PathBuf {
        self.dir.join("state/io.containerd.runtime.v2.task").join(namespace).join(id)
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A `ctr` of the same version, talking to it.
    pub fn ctr(&self) -> Ctr<'_> {
        Ctr::new(self, paths::tag())
    }

    /// Makes images, imports and unpacks them.
    pub fn import(&self, layers: &[usize]) -> Result<()> {
        let file = self.data.join("images.tar");
        image::archive(layers, &file)?;
        self.import_into(paths::tag(), &file)
    }

    /// Imports the images of an archive into a namespace and unpacks them; the archive is removed.
    pub fn import_into(&self, namespace: &str, file: &Path) -> Result<()> {
        let archive = file.to_str().context(|| "the checkout's path is not UTF-8".to_owned())?;
        let mut args = vec!["images", "import"];
        // 1.7 and later otherwise hand the work to the transfer service, which unpacks only for configured platforms.
        args.extend((self.version != Version::V16).then_some("--local"));
        args.push(archive);
        Ctr::new(self, namespace).ok(&args)?;
        Ok(fs::remove_file(file)?)
    }

    /// SIGKILL, and waits for the end.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Starts it again on the same directories, after [`Containerd::kill`] or [`Containerd::stop`].
    pub fn restart(&mut self) -> Result<()> {
        ensure!(self.child.try_wait()?.is_some(), "containerd {} still runs", self.version.name());
        self.child = spawn(self.version, &self.dir, &self.setup)?;
        Ok(())
    }

    /// SIGTERM, and waits for the end.
    pub fn stop(&mut self) -> Result<()> {
        if self.child.try_wait()?.is_none() {
            signal(self.child.id(), Signal::TERM)?;
            if wait_for(&mut self.child, PATIENCE)?.is_none() {
                self.kill()?;
                fail!("containerd {} ignored SIGTERM for {PATIENCE:?}", self.version.name());
            }
        }
        Ok(())
    }

    /// Sends it a signal, for example SIGSTOP.
    pub fn signal(&self, number: Signal) -> Result<()> {
        signal(self.child.id(), number)
    }

    /// Copies its log where it outlives the run, and answers the path.
    pub fn keep_log(&self, name: &str) -> Result<PathBuf> {
        let kept = paths::log_dir()?.join(format!("{name}.containerd.log"));
        fs::copy(self.dir.join("log"), &kept)?;
        Ok(kept)
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        // Best effort: what stays is found by the ledger and by the next run's sweep.
        let _ = self.stop();
        remove(&self.dir, &self.data, paths::tag());
        let _ = fs::remove_dir(paths::run_dir());
    }
}

/// Removes what killed runs left: their processes, mounts and directories, by the pid in the names.
pub fn sweep() -> Result<()> {
    let data = paths::data_dir()?.with_file_name("");
    for (parent, prefix) in [(Path::new("/run"), "coracle-test-"), (data.as_path(), "cor")] {
        for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let Some(pid) = name.strip_prefix(prefix).filter(|pid| pid.bytes().all(|b| b.is_ascii_digit())) else { continue };
            if !Path::new("/proc").join(pid).exists() {
                remove(&PathBuf::from(format!("/run/coracle-test-{pid}")), &data.join(format!("cor{pid}")), &format!("cor{pid}"));
                empty_cgroups(&format!("cor{pid}"));
            }
        }
    }
    Ok(())
}

/// The processes with a word in their arguments, and their children: of a shim, the containers that a failed case has left.
fn kill_all(word: &str) {
    let all = proc::all();
    let named: Vec<u32> = all.iter().filter(|process| process.command_line.contains(word)).map(|process| process.pid).collect();
    let children = all.iter().filter(|process| named.contains(&process.parent)).map(|process| process.pid);
    for pid in named.iter().copied().chain(children) {
        let _ = signal(pid, Signal::KILL);
    }
}

/// What a run that is over has left in its cgroups.
fn empty_cgroups(tag: &str) {
    let ours = |path: &str| path.split('/').any(|part| part.strip_prefix(tag).is_some_and(|rest| rest.is_empty() || rest.starts_with('-')));
    for process in proc::all().into_iter().filter(|process| process.cgroups.lines().any(ours)) {
        let _ = signal(process.pid, Signal::KILL);
    }
    let gone = || !proc::all().iter().any(|process| process.cgroups.lines().any(ours));
    let _ = eventually("the processes of an earlier run are gone", PATIENCE, gone);
    for dir in proc::cgroup_roots().iter().flat_map(|root| proc::cgroups_below(root)).collect::<Vec<_>>().into_iter().rev() {
        if ours(&dir.to_string_lossy()) {
            let _ = fs::remove_dir(dir);
        }
    }
}

/// Mounts go first: what is mounted is not to be deleted with the directory.
fn remove(dir: &Path, data: &Path, tag: &str) {
    kill_all(&format!("{}/", dir.display()));
    let below = |target: &Path| target.starts_with(dir) || target.starts_with(data);
    for mount in proc::mounts().into_iter().rev().filter(|mount| below(&mount.target)) {
        let _ = rustix::mount::unmount(&mount.target, rustix::mount::UnmountFlags::DETACH);
    }
    if !proc::mounts().iter().any(|mount| below(&mount.target)) {
        let _ = fs::remove_dir_all(dir);
        let _ = fs::remove_dir_all(data);
    }
    for root in proc::cgroup_roots() {
        let _ = fs::remove_dir(root.join(tag));
    }
}

fn spawn(version: Version, dir: &Path, setup: &Setup) -> Result<Child> {
    let program = version.program("containerd")?;
    let shim = setup.shim.as_ref().map(|dir| format!("{}:", dir.display())).unwrap_or_default();
    let mut command = match &setup.cri {
        None => Command::new(&program),
        Some(_) => in_own_network(&program),
    };
    let mut child = command
        .arg("--config")
        .arg(dir.join("config.toml"))
        .env_clear()
        .env("PATH", shim + &paths::search_path(version.suite())?)
        .envs(setup.environment.iter().cloned())
        // Where a suite says what networks there are.
        .envs(std::env::vars().filter(|(name, _)| name == "CORACLE_NETWORK_FILE"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context(|| program.display().to_string())?;
    let log = File::options().create(true).append(true).open(dir.join("log"))?;
    let Some(stderr) = child.stderr.take() else { fail!("containerd has no stderr") };
    let booted = booted(stderr, log);
    // Two answers to "is it ready": its own word, then the socket's.
    if booted.recv_timeout(PATIENCE).is_err() || UnixStream::connect(dir.join("containerd.sock")).is_err() {
        child.kill()?;
        child.wait()?;
        let log = fs::read_to_string(dir.join("log"))?;
        let tail: Vec<&str> = log.lines().rev().take(5).collect();
        fail!("containerd {} did not start; the end of its log: {}", version.name(), tail.join(" | "));
    }
    Ok(child)
}

/// Bridges, addresses and the streaming server's port are then this containerd's own. The pid stays the same through each execve.
fn in_own_network(program: &Path) -> Command {
    let mut command = Command::new("unshare");
    command.args(["--net", "--", "/bin/busybox", "sh", "-c", "/bin/busybox ip link set lo up && exec \"$0\" \"$@\""]).arg(program);
    command
}

/// Copies containerd's log to a file, and tells once that it serves.
fn booted(stderr: ChildStderr, mut log: File) -> Receiver<()> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let mut lines = BufReader::new(stderr);
        let mut line = Vec::new();
        while lines.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
            // A full disk must not stop containerd at a full pipe.
            let _ = log.write_all(&line);
            if line.windows(19).any(|w| w == b"successfully booted") {
                let _ = sender.send(());
            }
            line.clear();
        }
    });
    receiver
}

/// What serves Kubernetes; off unless it is configured.
const CRI: [&str; 6] = [
    "io.containerd.image-verifier.v1.bindir",
    "io.containerd.grpc.v1.cri",
    "io.containerd.cri.v1.images",
    "io.containerd.cri.v1.runtime",
    "io.containerd.podsandbox.controller.v1.podsandbox",
    "io.containerd.sandbox.controller.v1.podsandbox",
];

/// The least that runs tasks: no NRI, no device-mapper and its like, CRI where it is asked for; nothing outside of its own directories.
fn config(version: Version, dir: &Path, data: &Path, cri: Option<&str>) -> String {
    let mut disabled = vec![
        "io.containerd.nri.v1.nri",
        "io.containerd.internal.v1.opt",
        "io.containerd.internal.v1.restart",
        "io.containerd.internal.v1.tracing",
        "io.containerd.tracing.processor.v1.otlp",
        "io.containerd.snapshotter.v1.aufs",
        "io.containerd.snapshotter.v1.blockfile",
        "io.containerd.snapshotter.v1.btrfs",
        "io.containerd.snapshotter.v1.devmapper",
        "io.containerd.snapshotter.v1.erofs",
        "io.containerd.snapshotter.v1.zfs",
    ];
    if cri.is_none() {
        disabled.extend(CRI);
    }
    let (format, cri) = (if version == Version::V2 { 3 } else { 2 }, cri.unwrap_or_default());
    let (dir, data) = (dir.display(), data.display());
    format!(
        "version = {format}\nroot = \"{data}\"\nstate = \"{dir}/state\"\ndisabled_plugins = {disabled:?}\n\
         [grpc]\naddress = \"{dir}/containerd.sock\"\n[ttrpc]\naddress = \"{dir}/containerd.sock.ttrpc\"\n[debug]\nlevel = \"debug\"\n{cri}"
    )
}

/// Waits until a condition on the state of a container holds.
pub fn eventually(what: &str, limit: Duration, mut holds: impl FnMut() -> bool) -> Result<()> {
    wait::until(limit, || holds().then_some(())).context(|| format!("not so after {limit:?}: {what}"))
}
