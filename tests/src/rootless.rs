//! Root of a user namespace and of nothing else: where rootless containerd runs (as its documentation has it, made by `rootlesskit`).
//!
//! A suite runs again as a user with subordinate ids (subuid(5)), in user, mount and network namespaces of its own. On cgroup v2 alone it has a
//! cgroup that was delegated to it, as by systemd; elsewhere none.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use rustix::process::Signal;

use crate::netns::NODE_FILE;
use crate::requests::status_line;
use crate::{Context, Result, command, ensure, ensure_eq, paths, proc, wait};

/// Who is root inside; nobody on any machine.
pub const USER: u32 = 300_000;
/// How many more ids are mapped, in order: 1 is the one after [`USER`].
pub const IDS: u32 = 65_536;

/// Says that we are inside.
const INSIDE: &str = "CORACLE_TEST_ROOTLESS";
/// The user's networks, in the user's own network namespace.
const NETWORKS: &str = r#"
    state = "/run/coracle-network"
    [networks.front]
    subnets = ["10.31.0.0/24", "fd31::/64"]
    [namespaces.NAMESPACE]
    ports = ["8080/tcp"]
"#;
const PATIENCE: Duration = Duration::from_secs(10);
/// For the arguments: directories of the user's and their places, for data and for logs, and the program with its arguments. Data is on disk,
/// since containerd tells overlay to use the extended attributes of users (`userxattr`) where these are not on a tmpfs.
const SCRIPT: &str = "read -r go && mount -t tmpfs tmpfs /run && mount --bind \"$1\" \"$2\" && mount --bind \"$3\" \"$4\" && \
                      ip link set lo up && shift 4 && exec \"$@\" </dev/null";

/// Whether this is the run inside of the namespace.
pub fn is_a_user() -> bool {
    std::env::var_os(INSIDE).is_some()
}

/// Whether there is a cgroup to make others in.
pub fn has_cgroups() -> bool {
    proc::is_cgroup_v2()
}

/// Where a mount is, `nosuid,nodev,noexec`, that stays so for the user.
pub fn locked() -> PathBuf {
    PathBuf::from("/mnt")
}

/// Runs a suite there.
pub fn as_a_user(suite: impl FnOnce() -> ExitCode) -> ExitCode {
    if is_a_user() || std::env::args().any(|argument| argument == "--list") {
        return suite();
    }
    run_again().unwrap_or_else(|error| {
        println!("as a user: {error}");
        ExitCode::FAILURE
    })
}

fn run_again() -> Result<ExitCode> {
    // The mounts below are to be seen by nobody else.
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
    let checkout = fs::canonicalize(paths::checkout())?;
    make_reachable(&checkout)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("tmpfs"), &locked(), Some("tmpfs"), flags, Some("mode=777"))?;

    let (data, logs) = (checkout.join("target/run"), paths::log_dir()?);
    let on_disk = if is_tmpfs(&data)? { Path::new("/var/tmp") } else { &data };
    let (own_data, own_logs) = (on_disk.join(format!("coracle-rootless{}", std::process::id())), logs.join("rootless"));
    for dir in [&own_data, &own_logs] {
        fs::create_dir_all(dir)?;
        chown(dir, Some(USER), Some(USER))?;
    }
    let id = USER.to_string();
    let mut child = Command::new("setpriv")
        .args(["--reuid", &id, "--regid", &id, "--clear-groups", "--"])
        .args(["unshare", "--user", "--mount", "--net", "--propagation", "private", "sh", "-c", SCRIPT, "sh"])
        .args([&own_data, &data, &own_logs, &logs])
        .arg(std::env::current_exe()?)
        .args(std::env::args().skip(1))
        .env(INSIDE, "1")
        .env("CORACLE_NETWORK_FILE", data.join(NODE_FILE))
        .stdin(Stdio::piped())
        .spawn()?;
    let node_file = own_data.join(NODE_FILE);
    fs::write(&node_file, NETWORKS.replace("NAMESPACE", &paths::tag_of(child.id())))?;
    chown(&node_file, Some(USER), Some(USER))?;
    let delegated = Delegated::new(child.id())?;
    let result = let_in(&mut child, &delegated).and_then(|()| Ok(child.wait()?));
    if result.is_err() {
        child.kill()?;
        child.wait()?;
    }
    let left = kill_all()?;
    delegated.remove()?;
    fs::remove_dir_all(&own_data)?;
    let status = result?;
    ensure!(left.is_empty(), "left behind: {left:?}");
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn is_tmpfs(dir: &Path) -> Result<bool> {
    fs::create_dir_all(dir)?;
    Ok(nix::sys::statfs::statfs(dir)?.filesystem_type() == nix::sys::statfs::TMPFS_MAGIC)
}

/// Who is there of the user's.
fn processes() -> Vec<proc::Process> {
    let of_the_user = |process: &proc::Process| {
        let status = fs::read_to_string(format!("/proc/{}/status", process.pid)).unwrap_or_default();
        let uid = status_line(&status, "Uid").ok().and_then(|ids| ids.split_whitespace().next()?.parse::<u32>().ok());
        uid.is_some_and(|uid| (USER..=USER + IDS).contains(&uid)) && !matches!(process.state, 'Z' | 'X')
    };
    proc::all().into_iter().filter(of_the_user).collect()
}

/// Kills whoever stays, and tells who that was.
fn kill_all() -> Result<Vec<String>> {
    let _ = wait::until(PATIENCE, || processes().is_empty().then_some(()));
    let left = processes();
    left.iter().try_for_each(|process| command::signal(process.pid, Signal::KILL))?;
    Ok(left.into_iter().map(|process| format!("{} {}", process.pid, process.command_line)).collect())
}

/// What a user cannot pass through on the way to the checkout is hidden behind a directory that leads there only.
fn make_reachable(checkout: &Path) -> Result<()> {
    let ways: Vec<&Path> = checkout.ancestors().collect();
    let mut closed = ways.into_iter().rev().filter(|dir| fs::metadata(dir).is_ok_and(|found| found.mode() & 1 == 0));
    let Some(closed) = closed.next() else { return Ok(()) };
    ensure!(closed != checkout, "{} is closed to other users: chmod o+x", checkout.display());
    let held = fs::File::open(checkout)?;
    mount(Some("tmpfs"), closed, Some("tmpfs"), MsFlags::empty(), Some("mode=755"))?;
    fs::create_dir_all(checkout)?;
    let source = PathBuf::from(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&held)));
    Ok(mount(Some(&source), checkout, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)?)
}

/// Once the child is in its user namespace it is given ids, as newuidmap(1) does, and a cgroup.
fn let_in(child: &mut Child, delegated: &Delegated) -> Result<()> {
    let proc = PathBuf::from(format!("/proc/{}", child.id()));
    let namespace = |process: &str| fs::read_link(Path::new(process).join("ns/user")).ok();
    let own = namespace("/proc/self");
    let entered = || {
        let waits = fs::read_to_string(proc.join("comm")).is_ok_and(|name| name.trim() == "sh");
        (waits && namespace(&proc.to_string_lossy()) != own).then_some(())
    };
    wait::until(PATIENCE, entered).context(|| "there is no user namespace: user.max_user_namespaces?".to_owned())?;
    let map = format!("0 {USER} 1\n1 {} {IDS}\n", USER + 1);
    fs::write(proc.join("uid_map"), &map)?;
    fs::write(proc.join("gid_map"), &map)?;
    delegated.enter(child.id())?;
    let mut stdin = child.stdin.take().context(|| "no standard input".to_owned())?;
    Ok(std::io::Write::write_all(&mut stdin, b"go\n")?)
}

/// A cgroup that belongs to the user, if they can have one.
struct Delegated(Option<PathBuf>);

impl Delegated {
    fn new(pid: u32) -> Result<Self> {
        if !has_cgroups() {
            return Ok(Self(None));
        }
        fs::write("/sys/fs/cgroup/cgroup.subtree_control", "+memory +pids")?;
        let dir = PathBuf::from(format!("/sys/fs/cgroup/cor{pid}"));
        for dir in [dir.clone(), dir.join("own")] {
            fs::create_dir(&dir)?;
            chown(&dir, Some(USER), Some(USER))?;
            // cgroups(7), "Delegation": these and nothing else.
            for file in ["cgroup.procs", "cgroup.subtree_control", "cgroup.threads"] {
                chown(dir.join(file), Some(USER), Some(USER))?;
            }
        }
        Ok(Self(Some(dir)))
    }

    fn enter(&self, pid: u32) -> Result<()> {
        self.0.as_ref().map_or(Ok(()), |dir| Ok(fs::write(dir.join("own/cgroup.procs"), pid.to_string())?))
    }

    fn remove(&self) -> Result<()> {
        let Some(dir) = &self.0 else { return Ok(()) };
        fs::write(dir.join("cgroup.kill"), "1")?;
        for below in proc::cgroups_below(dir).iter().rev().chain([dir]) {
            wait::until(PATIENCE, || (fs::remove_dir(below).is_ok() || !below.exists()).then_some(()))
                .context(|| format!("{} cannot be removed", below.display()))?;
        }
        Ok(())
    }
}

/// The map of every process inside, as procfs shows it.
pub fn expect_own_map(text: &str) -> Result<()> {
    let words: Vec<&str> = text.split_whitespace().collect();
    let (first, next, count) = (USER.to_string(), (USER + 1).to_string(), IDS.to_string());
    ensure_eq!(words, ["0", &first, "1", "1", &next, &count], "uid_map");
    Ok(())
}
