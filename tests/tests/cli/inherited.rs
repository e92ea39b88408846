//! What a command inherits of its caller, and what its first process makes of signals.

use std::process::Command;

use serde_json::json;
use tests::command;
use tests::oci::Oci;
use tests::{Result, ensure, ensure_eq};

/// A caller that ignores SIGCHLD has the kernel reap its children.
pub fn sigchld_ignored_by_the_caller(oci: &Oci) -> Result<()> {
    let mut bundle = oci.bundle("a", &["sleep", "1000"])?;
    let ignoring = |args: &[&str]| {
        let coracle = oci.command(args)?;
        let mut command = Command::new("env");
        command.arg("--ignore-signal=CHLD").arg(coracle.get_program()).args(coracle.get_args()).stdin(std::process::Stdio::null());
        command::run(&mut command)
    };
    oci.create(&bundle, &[])?;
    oci.ok(&["start", &bundle.id])?;
    ensure_eq!(ignoring(&["exec", &bundle.id, "sh", "-c", "exit 3"])?.code, 3, "exec");
    oci.ok(&["delete", "-f", &bundle.id])?;
    let hook = |script: &str| json!([{"path": "/bin/sh", "args": ["sh", "-c", script]}]);
    bundle.edit(|spec| {
        spec["process"]["args"] = json!(["sh", "-c", "exit 4"]);
        spec["hooks"] = json!({"createRuntime": hook("exit 0"), "poststop": hook("exit 0")});
    })?;
    let (dir, id) = (bundle.dir.display().to_string(), bundle.id.clone());
    let run = ["run", "-b", &dir, &id];
    let done = ignoring(&run)?;
    ensure_eq!((done.code, done.stderr.as_str()), (4, ""), "run");
    oci.fails(&["state", &bundle.id], 1, "container does not exist")?;
    bundle.edit(|spec| spec["hooks"] = json!({"createRuntime": hook("exit 5")}))?;
    let done = ignoring(&run)?;
    ensure!(done.code == 1 && done.stderr.contains("exit status 5"), "a hook that fails: {done:?}");
    Ok(())
}

/// As with runc, whose waiting process is a Go program; process 1 of a pid namespace is spared what has no handler.
pub fn signals_before_the_start(oci: &Oci) -> Result<()> {
    for private in [true, false] {
        let mut bundle = oci.bundle(if private { "a" } else { "b" }, &["sh", "-c", "kill -USR1 $$; exit 3"])?;
        if !private {
            bundle.edit(|spec| spec["linux"]["namespaces"] = json!([{"type": "mount"}]))?;
        }
        let id = bundle.id.as_str();
        for signal in ["TERM", "INT", "HUP", "QUIT", "ABRT"] {
            oci.create(&bundle, &[])?;
            oci.ok(&["kill", id, signal])?;
            oci.expect_status(id, "stopped")?;
            oci.ok(&["delete", id])?;
        }
        oci.create(&bundle, &[])?;
        for signal in ["USR1", "USR2", "ALRM", "PIPE", "IO", "WINCH", "40"] {
            oci.ok(&["kill", id, signal])?;
            ensure_eq!(oci.state(id)?["status"], "created", "after SIG{signal}, pid namespace {private}");
        }
        // The program's are the default ones: it ends by the signal that it sends to itself, if it is not process 1.
        oci.ok(&["start", id])?;
        oci.expect_status(id, "stopped")?;
        oci.ok(&["delete", id])?;
    }
    Ok(())
}
