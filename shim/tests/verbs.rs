//! The shim's verbs as containerd calls them: one process per call, its pipes read to the end.

// The whole file is a test; clippy's exception for tests covers only functions marked as such.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::UNIX_EPOCH;

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use proto::api::DeleteResponse;
use proto::bootstrap_api::{BootstrapParams, BootstrapResult, Extension};
use proto::prost::Message as _;
use proto::protobuf::well_known_types::any::Any;
use proto::protobuf::{Message, MessageField};
use proto::types::introspection::RuntimeInfo;
use tempfile::TempDir;

const SHIM: &str = env!("CARGO_BIN_EXE_containerd-shim-coracle-v2");

/// One fake containerd with its own sockets, and bundles below it. What it started is killed in the end.
struct Node {
    dir: TempDir,
}

impl Node {
    fn new() -> Self {
        // Daemons become our children when `start` exits, so that their end can be waited for.
        nix::sys::prctl::set_child_subreaper(true).unwrap();
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn bundle(&self, id: &str) -> PathBuf {
        let bundle = self.dir.path().join(id);
        if !bundle.exists() {
            std::fs::create_dir_all(&bundle).unwrap();
            std::fs::write(bundle.join("config.json"), "{}").unwrap();
        }
        bundle
    }

    fn grouped(&self, id: &str, group: &str) -> PathBuf {
        let bundle = self.bundle(id);
        let config = format!(r#"{{"annotations":{{"io.kubernetes.cri.sandbox-id":"{group}"}}}}"#);
        std::fs::write(bundle.join("config.json"), config).unwrap();
        bundle
    }

    fn sockets(&self) -> PathBuf {
        self.dir.path().join("s")
    }

    fn grpc_address(&self) -> String {
        self.dir.path().join("c.sock").to_str().unwrap().to_owned()
    }

    fn command(&self, id: &str) -> Command {
        let mut command = Command::new(SHIM);
        command.args(["-namespace", "ns", "-address", &self.grpc_address(), "-publish-binary", "/bin/true", "-id", id]);
        command.current_dir(self.bundle(id)).env_remove("TTRPC_ADDRESS").env_remove("SCHED_CORE").env_remove("CORACLE_TASK_API");
        command
    }

    fn params(&self, id: &str) -> BootstrapParams {
        BootstrapParams {
            instance_id: id.into(),
            namespace: "ns".into(),
            containerd_version: "v2.3.4".into(),
            containerd_grpc_address: self.grpc_address(),
            socket_dir: Some(self.sockets().to_str().unwrap().into()),
            ..BootstrapParams::default()
        }
    }

    fn start_with(&self, params: &BootstrapParams, mut command: Command) -> Output {
        run(command.arg("start"), &params.write_to_bytes().unwrap())
    }

    fn start(&self, id: &str) -> String {
        let output = self.start_with(&self.params(id), self.command(id));
        address(&output)
    }

    /// The daemons of this node that run.
    fn daemons(&self) -> Vec<Pid> {
        let own = self.dir.path().to_str().unwrap().as_bytes().to_vec();
        let is_ours = |pid: &Pid| {
            let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            command.starts_with(SHIM.as_bytes()) && command.windows(own.len()).any(|window| window == own)
        };
        let entries = std::fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().file_name());
        let pids = entries.filter_map(|name| name.to_str()?.parse().ok()).map(Pid::from_raw);
        let ours: Vec<Pid> = pids.filter(is_ours).collect();
        // A launcher goes with its daemon, its parent; it may not have its own name yet.
        let is_launcher = |pid: &Pid| parent(*pid).is_some_and(|parent| ours.contains(&parent));
        ours.iter().copied().filter(|pid| !is_launcher(pid)).collect()
    }

    fn daemon(&self) -> Pid {
        match self.daemons().as_slice() {
            [pid] => *pid,
            other => panic!("want one daemon, have {other:?}"),
        }
    }

    fn sockets_left(&self) -> usize {
        std::fs::read_dir(self.sockets()).map_or(0, Iterator::count)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        for pid in self.daemons() {
            let _ = kill(pid, Signal::SIGKILL);
            let _ = waitpid(pid, None);
        }
    }
}

fn parent(pid: Pid) -> Option<Pid> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse().ok().map(Pid::from_raw)
}

fn run(command: &mut Command, input: &[u8]) -> Output {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // The shim may fail before it reads.
    let _ = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

fn address(output: &Output) -> String {
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), ""));
    let result = BootstrapResult::parse_from_bytes(&output.stdout).unwrap();
    assert_eq!((result.version, result.protocol.as_str()), (2, "ttrpc"));
    result.address
}

fn connect(address: &str) -> UnixStream {
    UnixStream::connect(address.strip_prefix("unix://").unwrap()).unwrap()
}

fn refused(output: &Output) -> &str {
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(1), b"".as_slice()), "{output:?}");
    let line = text(&output.stderr);
    assert!(line.starts_with("containerd-shim-coracle-v2: ") && line.ends_with('\n') && line.lines().count() == 1, "{line}");
    line.trim_end()
}

fn proc_link(pid: Pid, name: &str) -> PathBuf {
    std::fs::read_link(format!("/proc/{pid}/{name}")).unwrap()
}

fn proc_number(pid: &str, name: &str) -> i64 {
    std::fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap().trim().parse().unwrap()
}

#[test]
fn start_leaves_a_quiet_daemon_behind_the_address() {
    let node = Node::new();
    let address = node.start("web");
    connect(&address);
    let file = node.bundle("web").join("address");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), address);
    assert_eq!(std::fs::metadata(&file).unwrap().mode() & 0o7777, 0o600);
    assert_eq!(std::fs::metadata(node.sockets()).unwrap().mode() & 0o7777, 0o700);

    let daemon = node.daemon();
    for fd in 0..3 {
        assert_eq!(proc_link(daemon, &format!("fd/{fd}")), Path::new("/dev/null"));
    }
    assert_eq!(proc_link(daemon, "cwd"), Path::new("/"));
    assert_eq!(std::fs::read_dir(format!("/proc/{daemon}/task")).unwrap().count(), 1);
    assert_eq!(nix::unistd::getsid(Some(daemon)).unwrap(), daemon);
    let own = proc_number("self", "oom_score_adj");
    assert_eq!(proc_number(&daemon.to_string(), "oom_score_adj"), (own + 1).min(1000));

    let fds = std::fs::read_dir(format!("/proc/{daemon}/fd")).unwrap();
    let targets: Vec<PathBuf> = fds.filter_map(|fd| std::fs::read_link(fd.unwrap().path()).ok()).collect();
    let listener = PathBuf::from(format!("socket:[{}]", listening_inode(&address)));
    assert_eq!(targets.iter().filter(|target| **target == listener).count(), 1, "{targets:?}");

    // A client that stays does not keep the daemon.
    let _client = connect(&address);
    kill(daemon, Signal::SIGTERM).unwrap();
    assert_eq!(waitpid(daemon, None).unwrap(), WaitStatus::Exited(daemon, 0));
    assert_eq!(node.sockets_left(), 0);
}

/// The inode of the listener at `address`, from unix(7)'s `/proc/net/unix`.
fn listening_inode(address: &str) -> String {
    let path = address.strip_prefix("unix://").unwrap();
    let table = std::fs::read_to_string("/proc/net/unix").unwrap();
    let fields = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let is_listener = |fields: &Vec<&str>| fields.get(7) == Some(&path) && fields.get(3) == Some(&"00010000");
    fields.into_iter().find(is_listener).unwrap()[6].to_owned()
}

#[test]
fn an_earlier_containerd_gets_the_bare_address() {
    // The socket goes to the fixed directory, so it is given one that nobody else sees.
    let node = Node::new();
    let script = "mount --make-rprivate / && mount -t tmpfs none /run && exec \"$0\" \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", script, SHIM, "-namespace", "ns", "-id", "web", "-address", &node.grpc_address(), "start"]);
    command.current_dir(node.bundle("web")).env("TTRPC_ADDRESS", "/no/such/socket");
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), ""));
    let address = text(&output.stdout);
    assert!(address.starts_with("unix:///run/containerd/s/") && address.len() == "unix:///run/containerd/s/".len() + 64, "{address}");
    assert_eq!(std::fs::read_to_string(node.bundle("web").join("address")).unwrap(), address);
    node.daemon();
}

#[test]
fn fifty_starts_of_one_group_make_one_daemon() {
    let node = Node::new();
    let addresses: Vec<String> = std::thread::scope(|scope| {
        let node = &node;
        let start = |n: u32| {
            let id = format!("app{n}");
            node.grouped(&id, "pod");
            node.start(&id)
        };
        let threads: Vec<_> = (0..50).map(|n| scope.spawn(move || start(n))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(addresses.iter().all(|address| *address == addresses[0]), "{addresses:?}");
    node.daemon();
    assert_eq!(node.sockets_left(), 1);
}

#[test]
fn a_socket_without_a_daemon_is_taken_over() {
    let node = Node::new();
    let first = node.start("web");
    let daemon = node.daemon();
    kill(daemon, Signal::SIGKILL).unwrap();
    waitpid(daemon, None).unwrap();
    assert_eq!(node.sockets_left(), 1);
    assert_eq!(node.start("web"), first);
    assert_ne!(node.daemon(), daemon);
    connect(&first);
}

#[test]
fn a_daemon_that_fails_after_the_fork_is_told_of() {
    let node = Node::new();
    let body = b"ShimCgroup = \"/no-such-cgroup\"".to_vec();
    let output = start_with_toml(&node, body);
    assert_eq!(refused(&output), "containerd-shim-coracle-v2: start: enter the shim cgroup \"/no-such-cgroup\": no such cgroup");
    assert_eq!((node.daemons(), node.sockets_left()), (vec![], 0));
    assert!(!node.bundle("web").join("address").exists());
}

fn start_with_toml(node: &Node, config_body: Vec<u8>) -> Output {
    let options = proto::runtimeoptions::Options { config_body, ..Default::default() };
    let any = Any { type_url: "runtimeoptions.v1.Options".into(), value: options.encode_to_vec(), ..Any::default() };
    let extension = Extension { value: MessageField::some(any), ..Extension::default() };
    let params = BootstrapParams { extensions: vec![extension], ..node.params("web") };
    node.start_with(&params, node.command("web"))
}

/// Cgroups of one name, removed in the end.
struct Cgroups(Vec<PathBuf>);

impl Cgroups {
    fn new(name: &str, parents: &[&str]) -> Self {
        let dirs: Vec<PathBuf> = parents.iter().map(|parent| Path::new(parent).join(name)).collect();
        dirs.iter().for_each(|dir| std::fs::create_dir(dir).unwrap());
        Self(dirs)
    }

    fn hold(&self, pid: Pid) -> bool {
        self.0.iter().all(|dir| std::fs::read_to_string(dir.join("cgroup.procs")).unwrap().lines().any(|line| line == pid.to_string()))
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        self.0.iter().for_each(|dir| remove_cgroup(dir));
    }
}

fn remove_cgroup(dir: &Path) {
    // The launcher follows its daemon a moment later.
    let gone = (0..200).any(|_| {
        std::thread::park_timeout(std::time::Duration::from_millis(10));
        std::fs::remove_dir(dir).is_ok()
    });
    assert!(gone || std::thread::panicking(), "{dir:?} is still in use");
}

/// Where this machine has cgroups: two v1 hierarchies, or the one of v2.
fn hierarchies() -> &'static [&'static str] {
    let v1: &[&str] = &["/sys/fs/cgroup/pids", "/sys/fs/cgroup/memory"];
    if Path::new(v1[0]).exists() { v1 } else { &["/sys/fs/cgroup"] }
}

#[test]
fn the_daemon_is_born_into_the_shim_cgroup() {
    let name = format!("coracle-verbs-{}", std::process::id());
    let cgroups = Cgroups::new(&name, hierarchies());
    let node = Node::new();
    let output = start_with_toml(&node, format!("ShimCgroup = \"/{name}\"").into_bytes());
    connect(&address(&output));
    assert!(cgroups.hold(node.daemon()));
    drop(node);
}

#[test]
fn the_daemon_is_born_into_the_shim_cgroup_of_v2() {
    let name = format!("coracle-verbs-v2-{}", std::process::id());
    let node = Node::new();
    let options = proto::shim::oci::Options { shim_cgroup: name.clone(), ..Default::default() };
    let any = Any { type_url: "containerd.runc.v1.Options".into(), value: options.write_to_bytes().unwrap(), ..Any::default() };
    let extension = Extension { value: MessageField::some(any), ..Extension::default() };
    let params = BootstrapParams { extensions: vec![extension], ..node.params("web") };
    let script = "mount --make-rprivate / && mount -t cgroup2 none /sys/fs/cgroup && mkdir /sys/fs/cgroup/$CGROUP && exec \"$0\" \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", script, SHIM, "-namespace", "ns", "-id", "web", "-address", &node.grpc_address()]);
    command.current_dir(node.bundle("web")).env("CGROUP", &name);
    connect(&address(&node.start_with(&params, command)));
    let daemon = node.daemon();
    let membership = std::fs::read_to_string(format!("/proc/{daemon}/cgroup")).unwrap();
    assert!(membership.lines().any(|line| line == format!("0::/{name}")), "{membership}");
    drop(node);
    let unified = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"].into_iter().find(|dir| Path::new(dir).join(&name).exists());
    remove_cgroup(&Path::new(unified.unwrap()).join(&name));
}

#[test]
fn what_start_cannot_use_is_refused_in_one_line() {
    let node = Node::new();
    let output = start_with_toml(&node, b"Nope = 1".to_vec());
    assert_eq!(refused(&output), "containerd-shim-coracle-v2: start: options in config_body: unknown key \"Nope\"");

    let other = BootstrapParams { instance_id: "other".into(), ..node.params("web") };
    let output = node.start_with(&other, node.command("web"));
    assert!(refused(&output).contains("bootstrap parameters are for \"ns/other\""), "{output:?}");

    let deep = BootstrapParams { socket_dir: Some(format!("/{}", "d".repeat(60))), ..node.params("web") };
    let output = node.start_with(&deep, node.command("web"));
    assert!(refused(&output).contains("126 bytes, at most 106"), "{output:?}");

    std::fs::write(node.bundle("web").join("config.json"), "{").unwrap();
    let output = node.start_with(&node.params("web"), node.command("web"));
    assert!(refused(&output).contains("config.json"), "{output:?}");

    for arguments in [["-nope", "start"], ["-id", "x"], ["-debug", "stop"]] {
        refused(&run(Command::new(SHIM).args(arguments), b""));
    }
    assert_eq!((node.daemons(), node.sockets_left()), (vec![], 0));
}

#[test]
fn core_scheduling_is_on_or_start_says_why_not() {
    let node = Node::new();
    let mut command = node.command("web");
    // The cookie is the process group's: not ours.
    std::os::unix::process::CommandExt::process_group(command.env("SCHED_CORE", "1"), 0);
    let output = node.start_with(&node.params("web"), command);
    if output.status.success() {
        connect(&address(&output));
    } else {
        assert!(refused(&output).contains("SCHED_CORE: create a core scheduling cookie"), "{output:?}");
        assert_eq!((node.daemons(), node.sockets_left()), (vec![], 0));
    }
}

#[test]
fn the_daemon_logs_to_the_fifo_of_the_bundle() {
    let node = Node::new();
    let fifo = node.bundle("web").join("log");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    // As containerd opens it: there is always a reader.
    let log = std::fs::File::options().read(true).write(true).open(&fifo).unwrap();
    node.start("web");
    kill(node.daemon(), Signal::SIGUSR1).unwrap();
    let mut lines = BufReader::new(log).lines();
    let first = lines.next().unwrap().unwrap();
    assert!(first.contains("level=warning msg=\"containerd gave no ttrpc address: events are dropped\""), "{first}");
    let second = lines.next().unwrap().unwrap();
    assert!(second.contains("level=info msg=\"state: pid ") && second.ends_with("id=\"web\" namespace=\"ns\""), "{second}");
}

#[test]
fn delete_answers_whatever_is_left() {
    let node = Node::new();
    let address = node.start("web");
    let path = PathBuf::from(address.strip_prefix("unix://").unwrap());
    let bundle = node.bundle("web");
    std::fs::write(bundle.join("init.pid"), "4194304").unwrap();
    let delete = |id: &str| {
        let output = run(node.command(id).arg("-bundle").arg(node.bundle(id)).arg("delete"), b"");
        assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), ""));
        DeleteResponse::parse_from_bytes(&output.stdout).unwrap()
    };
    assert!((delete("web").pid, path.exists()) == (4_194_304, true), "the daemon lives");
    let daemon = node.daemon();
    kill(daemon, Signal::SIGKILL).unwrap();
    waitpid(daemon, None).unwrap();
    for _ in 0..2 {
        let response = delete("web");
        assert_eq!((response.exit_status, path.exists()), (137, false));
        assert!(response.exited_at.seconds >= i64::try_from(UNIX_EPOCH.elapsed().unwrap().as_secs()).unwrap() - 5);
    }
    assert_eq!(delete("never-created").pid, 0);
}

#[test]
fn a_bundle_without_a_spec_is_a_sandboxes_and_gets_version_3() {
    let node = Node::new();
    std::fs::remove_file(node.bundle("pod").join("config.json")).unwrap();
    let output = run(node.command("pod").current_dir(node.dir.path().join("pod")).arg("start"), b"");
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), ""));
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&answer["version"], &answer["protocol"]), (&3.into(), &"ttrpc".into()));
    kill(node.daemon(), Signal::SIGKILL).unwrap();
}

#[test]
fn info_and_version_need_nothing() {
    let output = run(Command::new(SHIM).arg("-info").env_clear(), b"\xff not an Any");
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), ""));
    let info = RuntimeInfo::parse_from_bytes(&output.stdout).unwrap();
    assert_eq!(info.name, "io.containerd.coracle.v2");
    assert_eq!(info.features.type_url, "types.containerd.io/opencontainers/runtime-spec/1/features/Features");
    // What containerd's CRI plugin reads of it (`internal/cri/config`, `introspectRuntimeFeatures`): these two make the kubelet's features.
    let features: serde_json::Value = serde_json::from_slice(&info.features.value).unwrap();
    let lists = |list: &serde_json::Value, word: &str| list.as_array().unwrap().iter().any(|entry| entry == word);
    assert!(lists(&features["mountOptions"], "rro"), "{features}");
    assert!(lists(&features["linux"]["namespaces"], "user"), "{features}");
    assert_eq!(features["linux"]["mountExtensions"]["idmap"]["enabled"], true);
    for flag in ["-v", "--version"] {
        let output = run(Command::new(SHIM).arg(flag), b"");
        assert!(text(&output.stdout).contains(env!("CARGO_PKG_VERSION")), "{output:?}");
    }
}
