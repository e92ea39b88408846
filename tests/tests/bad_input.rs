//! Bad input: what cannot be done is refused in one line with step, object and reason, with the code that containerd maps, and leaves nothing.

use std::process::ExitCode;
use std::time::Duration;

use proto::api::{CreateTaskRequest, Mount};
use proto::protobuf::{Message, MessageField, well_known_types::any::Any};
use serde_json::{Value, json};
use tests::bundle::Bundle;
use tests::hand::Hand;
use tests::requests::{self, create_request, expect_nothing_of, files_of, ran};
use tests::rpc::Shim;
use tests::{Context, Failure, Result, ensure, ensure_eq, hand_cases};
use ttrpc::Code;

fn main() -> ExitCode {
    let cases = hand_cases![
        configuration,
        process,
        users_and_limits,
        rootfs,
        runtime_options,
        mounts,
        seccomp_profiles,
        cgroup_paths,
        limits,
        namespaces,
        sysctls,
        devices,
        hooks,
        streams,
        labels,
        commands,
        unknown_capability_only_warns,
        the_shim_goes_on,
    ];
    requests::main("bad_input", cases, Vec::new())
}

/// What is wrong, put into a bundle or a request that was right.
type Change = Box<dyn Fn(&mut Bundle, &mut CreateTaskRequest) -> Result<()>>;

/// One refusal: what is changed, the code, and the words that the message must have.
struct Row {
    change: Change,
    code: Code,
    words: Vec<&'static str>,
}

fn row(change: impl Fn(&mut Bundle, &mut CreateTaskRequest) -> Result<()> + 'static, code: Code, words: &[&'static str]) -> Row {
    Row { change: Box::new(change), code, words: words.to_vec() }
}

/// A refusal of a specification.
fn spec(change: impl Fn(&mut Value) + 'static, code: Code, words: &[&'static str]) -> Row {
    row(move |bundle, _| bundle.edit(&change), code, words)
}

/// Each row with a bundle of its own, all with one shim.
fn refuse_all(hand: &mut Hand, rows: Vec<Row>) -> Result<()> {
    let first = hand.bundle("first", &["true"])?;
    let shim = hand.shim(&first)?;
    let mut failures = Vec::new();
    for (number, row) in rows.into_iter().enumerate() {
        if let Err(failure) = refuse(hand, &shim, number, &row) {
            failures.push(format!("{:?}: {failure}", row.words));
        }
    }
    shim.shutdown(&first.id)?;
    ensure!(failures.is_empty(), "{}", failures.join("\n    "));
    Ok(())
}

fn refuse(hand: &mut Hand, shim: &Shim, number: usize, row: &Row) -> Result<()> {
    let mut bundle = hand.bundle(&format!("r{number}"), &["true"])?;
    let mut request = create_request(&bundle)?;
    (row.change)(&mut bundle, &mut request)?;
    let files = files_of(&bundle)?;
    let status = shim.create(request).err().context(|| "Create succeeded".to_owned())?;
    let message = &status.message;
    if std::env::var_os("TEST_SHOW").is_some() {
        println!("{:?} {message}", status.code);
    }
    ensure_eq!(status.code, row.code, "code of {message:?}");
    for word in &row.words {
        ensure!(message.to_lowercase().contains(&word.to_lowercase()), "no {word:?} in {message:?}");
    }
    ensure!(!message.chars().any(char::is_control) && message.len() < 700, "not one short line: {message:?}");
    ensure!(!message.contains("Some(") && !message.contains("os error"), "not written for people: {message:?}");
    let state = shim.state(&bundle.id, "").err().context(|| "State knows it".to_owned())?;
    ensure_eq!(state.code, Code::NOT_FOUND, "code of State");
    expect_nothing_of(&bundle, &files)?;
    ensure!(hand.stub.record.of(&bundle.id).is_empty(), "events of a container that never was");
    Ok(())
}

fn text_config(text: &'static str, code: Code, words: &[&'static str]) -> Row {
    row(move |bundle, _| Ok(std::fs::write(bundle.dir.join("config.json"), text)?), code, words)
}

const BAD: Code = Code::INVALID_ARGUMENT;

fn configuration(hand: &mut Hand) -> Result<()> {
    let nested = || "[".repeat(100_000);
    let rows = vec![
        row(|bundle, _| Ok(std::fs::remove_file(bundle.dir.join("config.json"))?), BAD, &["config.json", "no such file"]),
        text_config("", BAD, &["config.json"]),
        text_config("{\"ociVersion\": \"1.0.2\", ", BAD, &["config.json", "line 1"]),
        text_config("null", BAD, &["config.json"]),
        text_config("[]", BAD, &["config.json"]),
        text_config("\u{0}\u{1}", BAD, &["config.json"]),
        row(move |bundle, _| Ok(std::fs::write(bundle.dir.join("config.json"), nested())?), BAD, &["config.json"]),
        row(
            |bundle, _| {
                std::fs::remove_file(bundle.dir.join("config.json"))?;
                Ok(std::fs::create_dir(bundle.dir.join("config.json"))?)
            },
            BAD,
            &["config.json", "is a directory"],
        ),
        row(
            |_, request| {
                request.bundle = "/no/such/bundle".to_owned();
                Ok(())
            },
            BAD,
            &["/no/such/bundle", "no such file"],
        ),
        spec(|spec| spec["ociVersion"] = json!("2.0.0"), BAD, &["ociVersion", "2.0.0"]),
        spec(|spec| spec["ociVersion"] = json!(7), BAD, &["config.json"]),
        spec(|spec| spec["process"] = json!(null), BAD, &["process"]),
        spec(|spec| spec["linux"] = json!(null), BAD, &["mount namespace"]),
        spec(|spec| spec["mounts"] = json!({"destination": "/"}), BAD, &["config.json"]),
        spec(|spec| spec["linux"]["rootfsPropagation"] = json!("sideways"), BAD, &["rootfsPropagation", "sideways"]),
        spec(|spec| spec["linux"]["maskedPaths"] = json!(["proc/kcore"]), BAD, &["maskedPaths", "proc/kcore"]),
    ];
    refuse_all(hand, rows)
}

fn process(hand: &mut Hand) -> Result<()> {
    let rows = vec![
        spec(|spec| spec["process"]["args"] = json!([]), BAD, &["process.args"]),
        spec(|spec| spec["process"]["args"] = json!([""]), BAD, &["process.args"]),
        spec(|spec| spec["process"]["args"] = json!(["a\u{0}b"]), BAD, &["process.args", "NUL"]),
        spec(|spec| spec["process"]["args"] = json!("true"), BAD, &["config.json"]),
        spec(|spec| spec["process"]["env"] = json!(["A\u{0}=b"]), BAD, &["process.env", "NUL"]),
        spec(|spec| spec["process"]["cwd"] = json!("tmp"), BAD, &["process.cwd", "tmp"]),
        spec(|spec| spec["process"]["cwd"] = json!(""), BAD, &["process.cwd"]),
        spec(|spec| spec["process"]["cwd"] = json!("/bin/busybox"), Code::UNKNOWN, &["/bin/busybox", "not a directory"]),
        spec(|spec| spec["process"]["oomScoreAdj"] = json!(2000), BAD, &["process.oomScoreAdj", "2000"]),
        spec(|spec| spec["hostname"] = json!("x".repeat(100)), Code::UNKNOWN, &["hostname", "xxx"]),
    ];
    refuse_all(hand, rows)
}

fn users_and_limits(hand: &mut Hand) -> Result<()> {
    let limit = |kind: &str, soft: u64, hard: u64| json!({"type": kind, "soft": soft, "hard": hard});
    let rows = vec![
        spec(|spec| spec["process"]["user"]["uid"] = json!(u32::MAX), BAD, &["process.user.uid", "4294967295"]),
        spec(|spec| spec["process"]["user"]["gid"] = json!(u32::MAX), BAD, &["process.user.gid", "4294967295"]),
        spec(|spec| spec["process"]["user"]["uid"] = json!(-1), BAD, &["config.json"]),
        spec(|spec| spec["process"]["user"]["uid"] = json!(4_294_967_296u64), BAD, &["config.json"]),
        spec(|spec| spec["process"]["user"]["additionalGids"] = json!([5, u32::MAX]), BAD, &["additionalGids", "4294967295"]),
        spec(move |spec| spec["process"]["rlimits"] = json!([limit("RLIMIT_NOFILE", 10, 5)]), BAD, &["process.rlimits", "above"]),
        spec(
            move |spec| spec["process"]["rlimits"] = json!([limit("RLIMIT_CORE", 0, 0), limit("RLIMIT_CORE", 1, 1)]),
            BAD,
            &["process.rlimits", "twice"],
        ),
        spec(move |spec| spec["process"]["rlimits"] = json!([limit("RLIMIT_NONE", 1, 1)]), BAD, &["config.json", "RLIMIT_NONE"]),
        // Above fs.nr_open.
        spec(
            move |spec| spec["process"]["rlimits"] = json!([limit("RLIMIT_NOFILE", 4_000_000_000, 4_000_000_000)]),
            Code::UNKNOWN,
            &["NOFILE", "operation not permitted"],
        ),
    ];
    refuse_all(hand, rows)
}

fn mount(kind: &str, source: &str, options: &[&str]) -> Mount {
    let mut mount = Mount::new();
    (mount.type_, mount.source) = (kind.to_owned(), source.to_owned());
    mount.options = options.iter().map(|option| (*option).to_owned()).collect();
    mount
}

fn rooted(mounts: impl Fn() -> Vec<Mount> + 'static, code: Code, words: &[&'static str]) -> Row {
    row(
        move |_, request| {
            request.rootfs = mounts();
            Ok(())
        },
        code,
        words,
    )
}

fn rootfs(hand: &mut Hand) -> Result<()> {
    let rows = vec![
        rooted(|| vec![mount("bind", "/no/such/root", &["rbind", "rw"])], Code::UNKNOWN, &["/no/such/root", "no such file"]),
        rooted(|| vec![mount("bind", "/etc/passwd", &["rbind", "rw"])], Code::UNKNOWN, &["/etc/passwd", "root"]),
        rooted(|| vec![mount("sillyfs", "none", &[])], Code::UNKNOWN, &["sillyfs"]),
        rooted(|| vec![mount("", "none", &[])], BAD, &["rootfs"]),
        rooted(|| vec![mount("overlay", "overlay", &["lowerdir=/no/such/layer"])], Code::UNKNOWN, &["overlay"]),
        rooted(|| vec![mount("overlay", "overlay", &["upperdir=/tmp"])], BAD, &["overlay"]),
        rooted(|| vec![mount("format/overlay", "overlay", &["lowerdir={{ mount 0 }}"])], BAD, &["format/overlay"]),
        rooted(|| vec![mount("bind", "/tmp", &["rbind", "X-containerd.mkdir.path=/x"])], BAD, &["X-containerd.mkdir.path"]),
        rooted(|| vec![mount("ext4", "/no/such.img", &["loop"])], Code::UNKNOWN, &["/no/such.img", "no such file"]),
        row(
            |bundle, request| {
                request.rootfs.clear();
                bundle.edit(|spec| spec["root"]["path"] = json!("/no/such/root"))
            },
            Code::UNKNOWN,
            &["/no/such/root", "no such file"],
        ),
    ];
    refuse_all(hand, rows)
}

fn with_options(type_url: &'static str, value: Vec<u8>, code: Code, words: &[&'static str]) -> Row {
    row(
        move |_, request| {
            let mut any = Any::new();
            (any.type_url, any.value) = (type_url.to_owned(), value.clone());
            request.options = MessageField::some(any);
            Ok(())
        },
        code,
        words,
    )
}

fn runtime_options(hand: &mut Hand) -> Result<()> {
    let mut systemd = proto::shim::oci::Options::new();
    systemd.systemd_cgroup = true;
    let toml = |text: &str| {
        let mut options = Vec::new();
        // runtimeoptions.v1.Options: config_body is field 3, bytes.
        options.extend([0x1a, u8::try_from(text.len()).unwrap_or_default()]);
        options.extend(text.as_bytes());
        options
    };
    let rows = vec![
        with_options("containerd.runc.v1.Options", vec![0xff; 8], BAD, &["options"]),
        with_options("containerd.runc.v1.Options", systemd.write_to_bytes()?, Code::UNIMPLEMENTED, &["SystemdCgroup"]),
        with_options("runtimeoptions.v1.Options", toml("SystemdCgroup = \"perhaps\""), BAD, &["options", "SystemdCgroup"]),
        with_options("runtimeoptions.v1.Options", toml("= ="), BAD, &["options"]),
    ];
    refuse_all(hand, rows)
}

fn added(mount: Value, code: Code, words: &[&'static str]) -> Row {
    spec(
        move |spec| {
            if let Some(mounts) = spec["mounts"].as_array_mut() {
                mounts.push(mount.clone());
            }
        },
        code,
        words,
    )
}

fn mounts(hand: &mut Hand) -> Result<()> {
    let bind = |source: &str, target: &str, option: &str| json!({"destination": target, "type": "bind", "source": source, "options": ["rbind", option]});
    let new = |kind: &str, target: &str, option: &str| json!({"destination": target, "type": kind, "source": kind, "options": [option]});
    let rows = vec![
        added(bind("/no/such/volume", "/v", "rw"), Code::UNKNOWN, &["/no/such/volume", "no such file"]),
        added(bind("/tmp", "/", "rw"), BAD, &["mounts[\"/\"]", "root"]),
        added(bind("/tmp", "/proc/1", "rw"), BAD, &["/proc/1"]),
        added(bind("/tmp", "/proc/self/attr", "rw"), BAD, &["/proc/self/attr"]),
        added(bind("/tmp", "/bin/busybox/v", "rw"), Code::UNKNOWN, &["bin/busybox/v", "not a directory"]),
        added(bind("/etc/passwd", "/bin", "rw"), Code::UNKNOWN, &["bin"]),
        added(new("sillyfs", "/v", "ro"), Code::UNKNOWN, &["sillyfs", "no such device"]),
        added(new("tmpfs", "/v", "silly=1"), Code::UNKNOWN, &["silly", "/v"]),
        added(new("tmpfs", "/v", "size=much"), Code::UNKNOWN, &["size", "/v", "invalid argument"]),
        added(new("", "/v", "ro"), BAD, &["mounts[\"/v\"]", "type"]),
        added(json!({"destination": "/v", "type": "bind", "options": ["bind"]}), BAD, &["mounts[\"/v\"]", "source"]),
        added(
            json!({"destination": "/v", "type": "bind", "source": "/tmp", "options": ["bind", "ro"], "uidMappings": [{"containerID": 0, "hostID": 1, "size": 1}]}),
            Code::UNIMPLEMENTED,
            &["uidMappings"],
        ),
    ];
    refuse_all(hand, rows)
}

fn profile(profile: Value, code: Code, words: &[&'static str]) -> Row {
    spec(move |spec| spec["linux"]["seccomp"] = profile.clone(), code, words)
}

fn seccomp_profiles(hand: &mut Hand) -> Result<()> {
    let rule = |args: Value| json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "args": args}]});
    let rows = vec![
        profile(json!({}), BAD, &["config.json", "defaultAction"]),
        profile(json!({"defaultAction": ""}), BAD, &["config.json"]),
        profile(json!({"defaultAction": "SCMP_ACT_MAYBE"}), BAD, &["config.json", "SCMP_ACT_MAYBE"]),
        profile(
            json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_ABACUS"]}),
            BAD,
            &["config.json", "SCMP_ARCH_ABACUS"],
        ),
        profile(rule(json!([{"index": 9, "value": 1, "op": "SCMP_CMP_EQ"}])), BAD, &["linux.seccomp", "index", "9"]),
        profile(rule(json!([{"index": 1, "value": 1, "op": "SCMP_CMP_ODD"}])), BAD, &["config.json", "SCMP_CMP_ODD"]),
        profile(
            json!({"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/run/x.sock", "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"}]}),
            Code::UNIMPLEMENTED,
            &["linux.seccomp"],
        ),
    ];
    refuse_all(hand, rows)
}

fn cgroup_paths(hand: &mut Hand) -> Result<()> {
    let path = |path: &'static str, words: &[&'static str]| spec(move |spec| spec["linux"]["cgroupsPath"] = json!(path), BAD, words);
    let rows = vec![
        path("/../x", &["cgroupsPath", ".."]),
        path("../x", &["cgroupsPath", ".."]),
        path("/", &["cgroupsPath", "root"]),
        path("/a\nb", &["cgroupsPath", "control"]),
        path("system.slice:x:y", &["cgroupsPath", "systemd"]),
        spec(|spec| spec["linux"]["cgroupsPath"] = json!(format!("/{}", "x".repeat(300))), BAD, &["cgroupsPath", "too long"]),
    ];
    refuse_all(hand, rows)
}

fn limits(hand: &mut Hand) -> Result<()> {
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
        limited(json!({"memory": {"limit": "much"}}), &["config.json"]),
        limited(json!({"memory": {"limit": 64 << 20, "swap": 32 << 20}}), &["memory", "swap"]),
        limited(json!({"hugepageLimits": [{"pageSize": "../../x", "limit": 1}]}), &["hugepageLimits", "../../x"]),
        limited(json!({"unified": {"../cgroup.procs": "1"}}), &["unified"]),
        limited(json!({"devices": [{"allow": true, "type": "x", "access": "rwm"}]}), &["devices"]),
        limited(json!({"devices": [{"allow": true, "type": "c", "major": 1, "minor": 3, "access": "z"}]}), &["devices", "z"]),
    ];
    refuse_all(hand, rows)
}

fn namespaces(hand: &mut Hand) -> Result<()> {
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
        with(json!([{"type": "parallel"}]), BAD, &["config.json", "parallel"]),
        with(json!([{"type": "user"}]), Code::UNIMPLEMENTED, &["linux.namespaces", "user"]),
        with(json!([{"type": "time"}]), Code::UNIMPLEMENTED, &["linux.namespaces", "time"]),
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

fn sysctls(hand: &mut Hand) -> Result<()> {
    let sysctl = |name: &'static str, value: &'static str, code: Code, words: &[&'static str]| {
        spec(move |spec| spec["linux"]["sysctl"] = json!({name: value}), code, words)
    };
    let mut rows = vec![
        sysctl("kernel.core_pattern", "|/x", BAD, &["linux.sysctl", "kernel.core_pattern"]),
        sysctl("kernel/core_pattern", "|/x", BAD, &["linux.sysctl", "kernel/core_pattern"]),
        sysctl("net.ipv4.../../kernel/core_pattern", "|/x", BAD, &["linux.sysctl"]),
        sysctl("net.ipv4.ip_forward=1+kernel.core_pattern", "|/x", BAD, &["linux.sysctl"]),
        sysctl("net.ipv4.ip_forward", "1\n2", BAD, &["linux.sysctl", "value"]),
        sysctl("net.ipv4.no_such_thing", "1", Code::UNKNOWN, &["net/ipv4/no_such_thing", "no such file"]),
        sysctl("net.ipv4.ip_forward", "perhaps", Code::UNKNOWN, &["net/ipv4/ip_forward", "invalid argument"]),
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

fn devices(hand: &mut Hand) -> Result<()> {
    let device = |device: Value, code: Code, words: &[&'static str]| {
        spec(move |spec| spec["linux"]["devices"] = json!([device.clone()]), code, words)
    };
    let rows = vec![
        device(json!({"path": "/dev/x", "type": "a", "major": 1, "minor": 3}), BAD, &["linux.devices", "/dev/x"]),
        device(json!({"path": "/dev/x", "type": "z", "major": 1, "minor": 3}), BAD, &["config.json"]),
        device(json!({"path": "dev/x", "type": "c", "major": 1, "minor": 3}), BAD, &["linux.devices", "dev/x"]),
        device(json!({"path": "/", "type": "c", "major": 1, "minor": 3}), BAD, &["linux.devices"]),
        device(json!({"path": "/dev/x", "type": "c", "major": -1, "minor": 3}), BAD, &["linux.devices", "/dev/x", "number"]),
        device(json!({"path": "/bin/busybox/x", "type": "c", "major": 1, "minor": 3}), Code::UNKNOWN, &["busybox/x", "not a directory"]),
    ];
    refuse_all(hand, rows)
}

fn hooks(hand: &mut Hand) -> Result<()> {
    let hook = |hook: Value, code: Code, words: &[&'static str]| {
        spec(move |spec| spec["hooks"] = json!({"createRuntime": [hook.clone()]}), code, words)
    };
    let rows = vec![
        hook(json!({"path": "/no/such/hook"}), Code::NOT_FOUND, &["createRuntime", "/no/such/hook"]),
        hook(json!({"path": "relative"}), BAD, &["createRuntime", "relative", "absolute"]),
        hook(json!({"path": "/etc/passwd"}), BAD, &["createRuntime", "/etc/passwd", "permission denied"]),
        hook(json!({"path": "/bin/sh", "timeout": -1}), BAD, &["createRuntime", "timeout"]),
        hook(json!({"path": "/bin/sh", "timeout": 0}), BAD, &["createRuntime", "timeout"]),
        hook(
            json!({"path": "/bin/sh", "args": ["sh", "-c", "echo broken >&2; exit 3"]}),
            Code::UNKNOWN,
            &["createRuntime", "/bin/sh", "3", "broken"],
        ),
        hook(json!({"args": ["x"]}), BAD, &["config.json", "path"]),
    ];
    refuse_all(hand, rows)
}

fn streams(hand: &mut Hand) -> Result<()> {
    let stdout = |stdout: &'static str, code: Code, words: &[&'static str]| {
        row(
            move |_, request| {
                request.stdout = stdout.to_owned();
                Ok(())
            },
            code,
            words,
        )
    };
    let link = hand.dir().join("link");
    std::os::unix::fs::symlink("/etc/passwd", &link)?;
    let mut rows = vec![
        stdout("/no/such/fifo", BAD, &["stdout", "/no/such/fifo", "no such file"]),
        stdout("relative", BAD, &["stdout", "relative", "absolute"]),
        stdout("/tmp", BAD, &["stdout", "/tmp", "directory"]),
        stdout("/tmp/../etc/passwd", BAD, &["stdout", ".."]),
        stdout("carrier-pigeon:///x", Code::UNIMPLEMENTED, &["stdout", "carrier-pigeon"]),
        stdout("file:///etc/passwd/log", BAD, &["/etc/passwd/log", "not a directory"]),
        stdout("binary:///no/such/logger", Code::UNKNOWN, &["/no/such/logger"]),
        stdout("binary://relative", BAD, &["stdout", "absolute"]),
    ];
    rows.push(row(
        move |_, request| {
            request.stdout = format!("file://{}", link.display());
            Ok(())
        },
        BAD,
        &["link", "symbolic links"],
    ));
    rows.push(row(
        |bundle, request| {
            request.terminal = true;
            bundle.edit(|spec| {
                spec["process"]["terminal"] = json!(true);
                if let Some(mounts) = spec["mounts"].as_array_mut() {
                    mounts.retain(|mount| mount["type"] != "devpts");
                }
            })
        },
        BAD,
        &["process.terminal", "devpts"],
    ));
    refuse_all(hand, rows)
}

fn labels(hand: &mut Hand) -> Result<()> {
    let rows = vec![
        spec(|spec| spec["process"]["apparmorProfile"] = json!("strict"), Code::UNIMPLEMENTED, &["process.apparmorProfile"]),
        spec(|spec| spec["process"]["selinuxLabel"] = json!("a:b:c"), Code::UNIMPLEMENTED, &["process.selinuxLabel"]),
        spec(|spec| spec["linux"]["mountLabel"] = json!("a:b:c"), Code::UNIMPLEMENTED, &["linux.mountLabel"]),
        spec(|spec| spec["linux"]["intelRdt"] = json!({"closID": "x"}), Code::UNIMPLEMENTED, &["linux.intelRdt"]),
        spec(|spec| spec["linux"]["personality"] = json!({"domain": "LINUX32"}), Code::UNIMPLEMENTED, &["linux.personality"]),
    ];
    refuse_all(hand, rows)
}

/// The words that Docker makes exit codes 127 and 126 of (`daemon/errors.go`, `translateContainerdStartErr`).
fn commands(hand: &mut Hand) -> Result<()> {
    let run = |args: &'static [&'static str], code: Code, words: &[&'static str]| {
        spec(move |spec| spec["process"]["args"] = json!(args), code, words)
    };
    let rows = vec![
        run(&["no-such-program"], Code::NOT_FOUND, &["exec: \"no-such-program\": executable file not found in $PATH"]),
        run(&["/no/such/program"], Code::NOT_FOUND, &["exec: \"/no/such/program\": stat /no/such/program: no such file or directory"]),
        run(&["/bin"], BAD, &["exec: \"/bin\": is a directory"]),
        run(&["/proc/version"], BAD, &["exec: \"/proc/version\": permission denied"]),
        run(&["/bin/busybox/x"], Code::NOT_FOUND, &["/bin/busybox/x"]),
        spec(
            |spec| {
                spec["process"]["env"] = json!(["PATH=/nowhere"]);
                spec["process"]["args"] = json!(["sh"]);
            },
            Code::NOT_FOUND,
            &["exec: \"sh\": executable file not found in $PATH"],
        ),
        spec(|spec| spec["process"]["env"] = json!([]), Code::NOT_FOUND, &["exec: \"true\": executable file not found in $PATH"]),
    ];
    refuse_all(hand, rows)
}

fn unknown_capability_only_warns(hand: &mut Hand) -> Result<()> {
    let mut bundle = hand.bundle("a", &["grep", "Cap", "/proc/self/status"])?;
    let shim = hand.shim(&bundle)?;
    let plain = ran(hand, &shim, &bundle)?;
    bundle.edit(|spec| {
        for set in ["bounding", "effective", "permitted", "inheritable", "ambient"] {
            let mut names = spec["process"]["capabilities"][set].as_array().cloned().unwrap_or_default();
            names.push(json!("CAP_FLY"));
            spec["process"]["capabilities"][set] = json!(names);
        }
    })?;
    let with = ran(hand, &shim, &bundle)?;
    ensure_eq!((with.status, &with.stdout), (0, &plain.stdout), "capabilities");
    shim.shutdown(&bundle.id)
}

/// After two hundred refusals the shim is what it was, and an id that was refused can be used.
fn the_shim_goes_on(hand: &mut Hand) -> Result<()> {
    let mut bundle = hand.bundle("a", &["true"])?;
    let shim = hand.shim(&bundle)?;
    let pid = shim.connected(&bundle.id)?.shim_pid;
    ran(hand, &shim, &bundle)?;
    let before = tests::proc::usage(pid);
    for round in 0..50 {
        bundle.edit(|spec| {
            spec["process"]["args"] = json!(["no-such-program"]);
            spec["linux"]["resources"]["pids"] = json!({"limit": 10 + round});
        })?;
        ensure!(shim.create(create_request(&bundle)?).is_err(), "round {round} succeeded");
    }
    bundle.edit(|spec| spec["process"]["args"] = json!(["true"]))?;
    ensure_eq!(ran(hand, &shim, &bundle)?.status, 0, "status of a good one");
    let after = tests::wait::until(Duration::from_secs(5), || Some(tests::proc::usage(pid)).filter(|usage| *usage == before));
    after.context(|| format!("the daemon held {before:?} and now {:?}", tests::proc::usage(pid)))?;
    shim.shutdown(&bundle.id).map_err(|e| Failure(format!("Shutdown: {e}")))
}
