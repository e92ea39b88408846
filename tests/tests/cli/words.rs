//! Words, forms and exit codes that engines and scripts rely on, and files and sockets that the caller names.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Stdio;

use serde_json::{Value, json};
use tests::command;
use tests::oci::Oci;
use tests::{Context, Result, ensure, ensure_eq};

use crate::receive;

/// Docker and Podman read the version by lines, and take a help of checkpoint for the ability.
pub fn what_engines_ask(oci: &Oci) -> Result<()> {
    let version = oci.ok(&["--version"])?;
    let lines: Vec<&str> = version.lines().collect();
    let [first, commit, spec] = lines[..] else { tests::fail!("--version: {version:?}") };
    ensure!(first.strip_prefix("coracle version ").is_some_and(|text| text.starts_with(|c: char| c.is_ascii_digit())), "{first}");
    let commit = commit.strip_prefix("commit: ").context(|| commit.to_owned())?;
    let features: Value = serde_json::from_str(&oci.ok(&["features"])?)?;
    ensure_eq!(spec, format!("spec: {}", features["ociVersionMax"].as_str().unwrap_or_default()), "spec");
    let annotations = &features["annotations"];
    ensure_eq!(first, format!("coracle version {}", annotations["coracle.version"].as_str().unwrap_or_default()), "version");
    ensure_eq!(annotations["coracle.commit"], commit, "commit");
    ensure_eq!(annotations["org.opencontainers.runc.checkpoint.enabled"], "false", "checkpoint");
    for name in ["run.oci.", "org.systemd.property.", "coracle."] {
        let unsafe_ones = features["potentiallyUnsafeConfigAnnotations"].as_array().context(|| "no list".to_owned())?;
        ensure!(unsafe_ones.contains(&json!(name)), "{name} is not in {unsafe_ones:?}");
    }
    for args in [["checkpoint", "--help"], ["checkpoint", "-h"], ["restore", "--help"]] {
        oci.fails(&args, 1, "not supported")?;
    }
    Ok(())
}

/// Those of runc.
pub fn exit_codes_of_usage(oci: &Oci) -> Result<()> {
    let run = |args: &[&str]| command::run(std::process::Command::new(oci.command(&[])?.get_program()).args(args));
    for args in [&["nonsense"][..], &["help", "nonsense"], &["nonsense", "-h"]] {
        let done = run(args)?;
        ensure!(done.code == 3 && done.stderr.contains("No help topic for 'nonsense'"), "{args:?}: {done:?}");
    }
    for args in [&["create"][..], &["create", "--nonsense", "a"], &["--nonsense"], &["exec"], &["state", "a", "b"], &["list", "-f", "xml"]]
    {
        ensure_eq!(run(args)?.code, 1, "{args:?}");
    }
    for (args, name) in [(&[][..], "coracle"), (&["-h"], "coracle"), (&["help"], "coracle"), (&["exec", "-h"], "coracle exec")] {
        let done = run(args)?;
        ensure!(done.code == 0 && done.stdout.starts_with(&format!("NAME:\n   {name} - ")), "{args:?}: {done:?}");
    }
    oci.fails(&["--root", "/nowhere", "list"], 1, "--root: read \"/nowhere\"")?;
    // What cannot be written is a failure, but not a reader that has gone; words that are no text are no panic.
    let program = oci.command(&[])?.get_program().display().to_string();
    for (script, code) in [
        ("$0 features >/dev/full 2>/dev/null", 1),
        ("$0 features | true; exit ${PIPESTATUS[0]}", 0),
        ("$0 nonsense 2>&1 >/dev/null | true; exit ${PIPESTATUS[0]}", 3),
        ("$0 nonsense 2>/dev/full", 3),
        ("$0 $'\\xff' 2>/dev/null", 3),
    ] {
        let status = std::process::Command::new("bash").args(["-c", script, &program]).status()?;
        ensure_eq!(status.code(), Some(code), "{script}");
    }
    Ok(())
}

pub fn what_debug_tells(oci: &Oci) -> Result<()> {
    let bundle = oci.bundle("a", &["true"])?;
    let (dir, log) = (bundle.dir.display().to_string(), oci.data().join("log").display().to_string());
    let done = oci.coracle(&["--debug", "run", "-b", &dir, &bundle.id])?;
    ensure!(done.code == 0 && done.stderr.contains("level=debug") && done.stderr.contains("pivot root"), "{done:?}");
    let done = oci.coracle(&["--debug", "--log", &log, "--log-format", "json", "run", "-b", &dir, &bundle.id])?;
    ensure_eq!((done.code, done.stderr.as_str()), (0, ""), "with a log");
    let text = fs::read_to_string(&log)?;
    ensure!(text.lines().all(|line| serde_json::from_str::<Value>(line).is_ok_and(|line| line["level"] == "debug")), "{text}");
    ensure!(text.contains("pivot root"), "{text}");
    ensure_eq!(oci.coracle(&["run", "-b", &dir, &bundle.id])?.stderr, "", "without --debug");
    Ok(())
}

/// A caller that reads the log would take its silence for success.
pub fn a_log_that_cannot_be_opened(oci: &Oci) -> Result<()> {
    let dir = oci.data().display().to_string();
    let nowhere = format!("{dir}/none/log");
    for command in [["features"].as_slice(), &["exec", "none", "true"], &["create", "none"]] {
        for (log, why) in [(&nowhere, "no such file or directory"), (&dir, "is a directory")] {
            oci.fails(&[["--log", log].as_slice(), command].concat(), 1, &format!("open the log {log}: {why}"))?;
        }
    }
    let made = format!("{dir}/log");
    oci.ok(&["--log", &made, "features"])?;
    ensure_eq!(fs::read_to_string(&made)?, "", "a log with nothing to say");
    Ok(())
}

/// runc: ambient only where the container's processes inherit capabilities at all.
pub fn capabilities_of_exec(oci: &Oci) -> Result<()> {
    for (inheritable, ambient) in [(json!([]), 0), (json!(["CAP_CHOWN", "CAP_SYSLOG"]), 1u64 << 34)] {
        let mut bundle = oci.bundle(if ambient == 0 { "a" } else { "b" }, &["sleep", "1000"])?;
        bundle.edit(|spec| {
            let all = ["CAP_KILL", "CAP_CHOWN", "CAP_SYSLOG"];
            spec["process"]["capabilities"] = json!({"bounding": all, "permitted": ["CAP_KILL", "CAP_CHOWN"], "effective": ["CAP_KILL"]});
            spec["process"]["capabilities"]["inheritable"] = inheritable;
        })?;
        oci.create(&bundle, &[])?;
        oci.ok(&["start", &bundle.id])?;
        let status = oci.ok(&["exec", "--cap", "CAP_SYSLOG", &bundle.id, "cat", "/proc/self/status"])?;
        let line = status.lines().find_map(|line| line.strip_prefix("CapAmb:\t")).unwrap_or_default();
        ensure_eq!(line, format!("{ambient:016x}"), "ambient capabilities");
        oci.ok(&["delete", "-f", &bundle.id])?;
    }
    Ok(())
}

/// A file of somebody else's in the directory of the pid file stays what it is, whatever it is called.
pub fn pid_files_clobber_nothing(oci: &Oci) -> Result<()> {
    let bundle = oci.bundle("a", &["sleep", "1000"])?;
    let (dir, theirs) = (oci.data().join("pids"), oci.data().join("theirs"));
    fs::create_dir(&dir)?;
    fs::write(&theirs, "theirs")?;
    for name in [".pid.new", ".pid"] {
        fs::hard_link(&theirs, dir.join(name))?;
    }
    std::os::unix::fs::symlink(&theirs, dir.join("pid"))?;
    let file = dir.join("pid");
    oci.create(&bundle, &["--pid-file", &file.display().to_string()])?;
    ensure_eq!(fs::read_to_string(&theirs)?, "theirs", "the other file");
    ensure_eq!(fs::read_to_string(&file)?, oci.state(&bundle.id)?["pid"].to_string(), "pid file");
    ensure!(fs::symlink_metadata(&file)?.is_file(), "the link was followed");
    ensure_eq!(fs::metadata(&file)?.permissions().mode() & 0o777, 0o644, "mode");
    ensure_eq!(fs::read_dir(&dir)?.count(), 3, "files in the directory");
    // A name as long as one can be.
    oci.ok(&["start", &bundle.id])?;
    let long = dir.join("p".repeat(255));
    let mut exec = oci.command(&["exec", "-d", "--pid-file", &long.display().to_string(), &bundle.id, "true"])?;
    ensure!(exec.stdout(Stdio::null()).stderr(Stdio::null()).status()?.success() && long.exists(), "exec --pid-file");
    oci.ok(&["delete", "-f", &bundle.id]).map(drop)
}

/// An address has room for 107 bytes.
pub fn sockets_with_long_paths(oci: &Oci) -> Result<()> {
    let mut bundle = oci.bundle("a", &["sleep", "1000"])?;
    bundle.edit(|spec| spec["process"]["terminal"] = json!(true))?;
    let dir = oci.data().join("d".repeat(120));
    fs::create_dir(&dir)?;
    let bind = |name: &str| -> Result<UnixListener> {
        let held = fs::File::open(&dir)?;
        Ok(UnixListener::bind(Path::new(&format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&held))).join(name))?)
    };
    let (console, pidfd) = (bind("console")?, bind("pidfd")?);
    let path = |name: &str| dir.join(name).display().to_string();
    oci.create(&bundle, &["--console-socket", &path("console"), "--pidfd-socket", &path("pidfd")])?;
    receive(&console)?;
    receive(&pidfd)?;
    oci.ok(&["delete", &bundle.id]).map(drop)
}

/// What is missing, and what Go writes for an absent list.
pub fn absent_fields(oci: &Oci) -> Result<()> {
    let mut bundle = oci.bundle("a", &["echo", "ran"])?;
    let (id, dir) = (bundle.id.clone(), bundle.dir.display().to_string());
    let run = ["run", "-b", &dir, &id];
    let entry = json!({"names": null, "action": "SCMP_ACT_ALLOW", "args": null});
    let denied = json!({"names": ["chroot"], "action": "SCMP_ACT_ERRNO"});
    bundle
        .edit(|spec| spec["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW", "flags": null, "syscalls": [entry, denied]}))?;
    ensure_eq!(oci.ok(&run)?, "ran\n", "names of a rule");
    bundle.edit(|spec| spec["linux"]["seccomp"]["syscalls"][1]["action"] = json!("NO"))?;
    oci.fails(&run, 1, "linux.seccomp.syscalls[1].action: ")?;
    bundle.edit(|spec| {
        spec["linux"]["seccomp"] = Value::Null;
        spec["linux"]["namespaces"] = json!([{"type": "pid"}]);
    })?;
    oci.fails(&run, 1, "linux.namespaces: there is no mount namespace")?;
    bundle.edit(|spec| spec["root"] = Value::Null)?;
    oci.fails(&run, 1, "root: there is no root filesystem")
}
