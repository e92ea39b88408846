//! Sizes and numbers of limits, the figures of events, and the lines of ps, as callers of runc give and read them.

use std::fs;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use tests::bundle::Bundle;
use tests::command::{self, Output, output};
use tests::containerd::eventually;
use tests::oci::Oci;
use tests::{Context, Result, ensure, ensure_eq, paths};

use crate::SOON;

fn running(oci: &Oci, args: &[&str]) -> Result<Bundle> {
    let bundle = oci.bundle("a", args)?;
    oci.create(&bundle, &[])?;
    oci.ok(&["start", &bundle.id])?;
    Ok(bundle)
}

fn memory_limit(oci: &Oci, id: &str) -> Result<u64> {
    let stats: Value = serde_json::from_str(&oci.ok(&["events", "--stats", id])?)?;
    stats["data"]["memory"]["usage"]["limit"].as_u64().context(|| format!("no memory.usage.limit in {stats}"))
}

/// What is no size or out of range changes nothing.
pub fn sizes_with_units(oci: &Oci) -> Result<()> {
    let bundle = running(oci, &["sleep", "1000"])?;
    let id = bundle.id.as_str();
    for (size, bytes) in [("50M", 50 << 20), ("64 MiB", 64 << 20), ("0.0625g", 64 << 20), ("41943040", 40 << 20)] {
        oci.ok(&["update", "--memory", size, id])?;
        ensure_eq!(memory_limit(oci, id)?, bytes, "memory.usage.limit after --memory {size}");
    }
    let swap = "-1";
    oci.ok(&["update", "--memory-reservation=1k", "--memory-swap", swap, "--kernel-memory", "1M", id])?;
    for (flags, words) in [
        (&["--memory", "-2"][..], "invalid value for memory: \"-2\""),
        (&["--memory", "50X"], "invalid value for memory: \"50X\""),
        (&["--memory-swap", "-5M"], "invalid value for memory-swap"),
        (&["--memory-reservation", "lots"], "invalid value for memory-reservation"),
        (&["--cpu-period", "-1"], "invalid value for cpu-period"),
        (&["--cpu-period", "999"], "resources.cpu.period: 999 us is not in the range 1000-1000000"),
        (&["--cpu-quota", "1x"], "invalid value for cpu-quota"),
        (&["--cpu-idle", "2"], "resources.cpu.idle: 2 is neither 0 nor 1"),
        (&["--blkio-weight", "5"], "resources.blockIO.weight: 5 is not in the range 10-1000"),
    ] {
        oci.fails(&[&["update"], flags, &[id]].concat(), 1, words)?;
    }
    let file = oci.data().join("resources");
    fs::write(&file, json!({"memory": {"limit": -2}}).to_string())?;
    oci.fails(&["update", "-r", &file.display().to_string(), id], 1, "resources.memory.limit: -2 is neither")?;
    ensure_eq!(memory_limit(oci, id)?, 40 << 20, "memory.usage.limit after what was refused");
    oci.ok(&["update", "--memory", "-1", id])?;
    ensure!(memory_limit(oci, id)? > 1 << 60, "memory.usage.limit after -1: {}", memory_limit(oci, id)?);
    oci.ok(&["delete", "--force", id])?;
    let mut refused = oci.bundle("b", &["true"])?;
    refused.edit(|spec| spec["linux"]["resources"]["memory"] = json!({"limit": -2}))?;
    oci.fails(&["run", "-b", &refused.dir.display().to_string(), &refused.id], 1, "resources.memory.limit: -2 is neither")
}

/// The keys of a JSON text in their order, with the names of those around them.
fn keys(text: &str) -> Vec<String> {
    let (mut keys, mut around, mut word, mut inside) = (Vec::new(), Vec::<String>::new(), String::new(), false);
    for c in text.chars() {
        match c {
            '"' => {
                inside = !inside;
                if inside {
                    word.clear();
                }
            }
            c if inside => word.push(c),
            ':' => keys.push([around.join("."), word.clone()].join(".")),
            '{' | '[' => around.push(word.clone()),
            '}' | ']' => drop(around.pop()),
            _ => {}
        }
    }
    keys
}

/// Beside runc on the same bundle. Its Debian release shows empty objects, which later ones leave out.
pub fn figures_are_in_runcs_order(oci: &Oci) -> Result<()> {
    let bundle = oci.bundle("a", &["sleep", "1000"])?;
    let (id, dir) = (bundle.id.as_str(), bundle.dir.display().to_string());
    let root = oci.dir().join("runc").display().to_string();
    let program = paths::cache("bookworm")?.join("usr/sbin/runc");
    let runc = |args: &[&str]| -> Command {
        let mut command = Command::new(&program);
        command.args(["--root", &root]).args(args).stdin(Stdio::null());
        command
    };
    let made = runc(&["run", "-d", "-b", &dir, id]).stdout(Stdio::null()).stderr(Stdio::null()).status()?;
    ensure!(made.success(), "runc run");
    let theirs = output(&mut runc(&["events", "--stats", id]));
    output(&mut runc(&["delete", "--force", id]))?;
    let theirs = theirs?;
    oci.create(&bundle, &[])?;
    oci.ok(&["start", id])?;
    let ours = oci.ok(&["events", "--stats", id])?;
    oci.ok(&["delete", "--force", id])?;
    let (theirs, ours) = (keys(&theirs), keys(&ours));
    let common = |keys: &[String], others: &[String]| keys.iter().filter(|key| others.contains(key)).cloned().collect::<Vec<_>>();
    ensure_eq!(common(&ours, &theirs), common(&theirs, &ours), "the order of what both show");
    let may_be_empty = ["data.cpu.throttling", "data.memory.kernel", "data.memory.swap", "data.memory.usage", "data.blkio"];
    let missing: Vec<&String> =
        theirs.iter().filter(|key| !ours.contains(key) && !may_be_empty.iter().any(|empty| key.contains(empty))).collect();
    ensure!(missing.is_empty(), "runc shows {missing:?} besides");
    Ok(())
}

/// Commands of several words stand before the process id, and have ids of strangers among them.
pub fn whose_lines_ps_shows(oci: &Oci) -> Result<()> {
    let bundle = running(oci, &["sh", "-c", "sleep 1001 & exec sleep 1002"])?;
    let id = bundle.id.as_str();
    let pid = oci.state(id)?["pid"].to_string();
    // A stranger whose arguments are the container's process id.
    let mut stranger = Command::new("sh").args(["-c", "read x", &pid, &pid, &pid, &pid]).stdin(Stdio::piped()).spawn()?;
    let name = stranger.id().to_string();
    for options in [
        &["-e", "-o", "cmd,ppid,pid"][..],
        &["-eo", "args,pid,ppid"],
        &["axo", "lstart,cmd,pid"],
        &["-e", "--format=cmd"],
        &["-ef"],
        &["aux"],
        &["-eLf"],
        &["-efm"],
    ] {
        let shown = oci.ok(&[&["ps", id], options].concat())?;
        let lines: Vec<&str> = shown.lines().collect();
        let has = |word: &str| lines.iter().skip(1).any(|line| line.contains(word));
        ensure!(has("sleep 1001") && has("sleep 1002"), "{options:?}: one is missing: {shown}");
        ensure!(
            !has("read x") && !lines.iter().any(|line| line.split_whitespace().any(|word| word == name)),
            "{options:?}: a stranger: {shown}"
        );
        ensure!(!shown.contains("CORACLE"), "{options:?}: {shown}");
    }
    drop(stranger.stdin.take());
    stranger.wait()?;
    oci.fails(&["ps", id, "--nonsense"], 1, "ps: ")?;
    oci.ok(&["delete", "--force", id]).map(drop)
}

/// Its maps are those of the machine's first one, and its rights are not: no device node can be made there, and no device rule.
pub fn a_user_namespace_that_maps_all(oci: &Oci) -> Result<()> {
    let bundle = oci.bundle("a", &["sh", "-c", "cat /proc/self/uid_map; echo x >/dev/null && ls -l /dev/null | cut -c1"])?;
    let mut holder = Command::new("unshare").args(["--user", "cat"]).stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
    let of = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/user"));
    let (pid, own) = (holder.id().to_string(), of("self")?);
    eventually("there is a user namespace", SOON, || of(&pid).is_ok_and(|namespace| namespace != own))?;
    let inside = |args: &[&str]| -> Result<Output> {
        let command = oci.command(args)?;
        let mut entered = Command::new("nsenter");
        entered.arg(format!("--user=/proc/{pid}/ns/user")).args(["unshare", "--mount"]);
        command::run(entered.arg(command.get_program()).args(command.get_args()).stdin(Stdio::null()))
    };
    let ran = ["uid_map", "gid_map"].iter().try_for_each(|file| fs::write(format!("/proc/{pid}/{file}"), "0 0 4294967295"));
    let ran =
        ran.map_err(Into::into).and_then(|()| inside(&["--rootless", "true", "run", "-b", &bundle.dir.display().to_string(), &bundle.id]));
    drop(holder.stdin.take());
    holder.wait()?;
    let ran = ran?;
    let words: Vec<&str> = ran.stdout.split_whitespace().collect();
    ensure_eq!((ran.code, &words[..]), (0, &["0", "0", "4294967295", "c"][..]), "a container in it, stderr {:?}", ran.stderr);
    Ok(())
}
