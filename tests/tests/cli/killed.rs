//! Commands that are killed at work, and states that are no more whole.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::{Value, json};
use tests::bundle::Bundle;
use tests::command::{self, signal};
use tests::containerd::eventually;
use tests::oci::Oci;
use tests::{Context, Result, ensure, ensure_eq, paths, proc};

use crate::SOON;

pub fn a_killed_create_is_removed(oci: &Oci) -> Result<()> {
    let mut bundle = oci.bundle("a", &["sleep", "1000"])?;
    let (mut create, mark) = held_by_a_hook(oci, &mut bundle, &["create"])?;
    let id = bundle.id.as_str();
    ensure_eq!(oci.state(id)?["status"], "creating", "while create is at work");
    oci.fails(&["create", "-b", &bundle.dir.display().to_string(), id], 1, "container with given ID already exists")?;
    create.kill()?;
    create.wait()?;
    ensure_eq!(oci.state(id)?["status"], "stopped", "after kill -9 of create");
    oci.fails(&["start", id], 1, "cannot start a container that has stopped")?;
    oci.ok(&["delete", id])?;
    // The hook is the host's, and nobody else's any more.
    Ok(fs::remove_file(mark)?)
}

/// Processes in the container's cgroups.
fn processes(oci: &Oci, id: &str) -> Vec<String> {
    let lists = oci.cgroups(id).into_iter().filter_map(|dir| fs::read_to_string(dir.join("cgroup.procs")).ok());
    lists.filter(|text| !text.is_empty()).collect()
}

/// Either the container is created, or nothing of it runs and the id is free again.
pub fn creates_killed_at_any_time(oci: &Oci) -> Result<()> {
    let bundle = oci.bundle("a", &["sleep", "1000"])?;
    let (id, dir) = (bundle.id.as_str(), bundle.dir.display().to_string());
    let mut unfinished = 0;
    for step in 0..24 {
        let mut create = oci.command(&["create", "-b", &dir, id])?.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        command::wait_for(&mut create, Duration::from_micros(step * 700))?;
        create.kill()?;
        create.wait()?;
        let started = if oci.state(id).is_ok_and(|state| state["status"] == "created") { Some(oci.coracle(&["start", id])?) } else { None };
        if started.as_ref().is_none_or(|started| started.code != 0) {
            unfinished += 1;
            if step % 2 == 1 {
                eventually("nothing of it runs", SOON, || processes(oci, id).is_empty())?;
            } else if let Err(refused) = oci.create(&bundle, &[]) {
                // It was all made, and its creator killed before it could leave it alone.
                ensure!(refused.0.contains("already exists"), "{refused}");
                oci.ok(&["delete", id])?;
            }
        }
        if let Some(started) = started.filter(|started| started.code != 0) {
            ensure!(started.stderr.contains("has stopped"), "start: {}", started.stderr);
        }
        oci.ok(&["delete", "--force", id])?;
    }
    ensure!(unfinished > 3, "only {unfinished} were killed at work");
    Ok(())
}

/// A command whose container has a hook that waits until a file is gone; the hook has begun.
fn held_by_a_hook(oci: &Oci, bundle: &mut Bundle, flags: &[&str]) -> Result<(Child, PathBuf)> {
    let mark = oci.data().join("mark");
    let script = format!("echo >{0}; while [ -e {0} ]; do sleep 0.05; done", mark.display());
    bundle.edit(|spec| spec["hooks"] = json!({"createRuntime": [{"path": "/bin/busybox", "args": ["sh", "-c", script]}]}))?;
    let dir = bundle.dir.display().to_string();
    let mut command = oci.command(&[flags, &["-b", &dir, &bundle.id]].concat())?;
    let child = command.process_group(0).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    eventually("the hook runs", SOON, || mark.exists())?;
    Ok((child, mark))
}

/// Nobody is left to end what there is: that waits until it is removed.
pub fn a_create_killed_with_its_launcher(oci: &Oci) -> Result<()> {
    let mut bundle = oci.bundle("a", &["sleep", "1000"])?;
    let (mut create, mark) = held_by_a_hook(oci, &mut bundle, &["create"])?;
    let inside = processes(oci, &bundle.id).concat();
    let is_launcher = |process: &proc::Process| process.parent == create.id() && !inside.lines().any(|pid| pid == process.pid.to_string());
    let launcher = proc::all().into_iter().find(|process| process.name == "coracle-launch" && is_launcher(process));
    signal(launcher.context(|| "no launcher".to_owned())?.pid, Signal::KILL)?;
    create.kill()?;
    create.wait()?;
    ensure!(!processes(oci, &bundle.id).is_empty(), "there is nothing to be removed");
    oci.ok(&["delete", &bundle.id])?;
    ensure!(oci.cgroups(&bundle.id).is_empty(), "its cgroup is left");
    Ok(fs::remove_file(mark)?)
}

/// It is for the whole group of processes, whoever cleans up after the command included.
pub fn a_key_ends_a_create(oci: &Oci) -> Result<()> {
    let mut bundle = oci.bundle("a", &["sleep", "1000"])?;
    let (mut create, mark) = held_by_a_hook(oci, &mut bundle, &["create"])?;
    let group = Pid::from_raw(create.id().cast_signed()).context(|| "no group".to_owned())?;
    // A key's own signal may be ignored by all, where the tests run in the background.
    kill_process_group(group, Signal::TERM)?;
    let status = command::wait_for(&mut create, SOON)?.context(|| "create does not end".to_owned())?;
    ensure_eq!(command::code(status), 128 + 15, "exit code of create");
    eventually("nothing of it runs", SOON, || processes(oci, &bundle.id).is_empty())?;
    fs::remove_file(&mark)?;
    // The id is not taken any more.
    bundle.edit(|spec| spec["hooks"] = json!({}))?;
    oci.create(&bundle, &[])?;
    oci.ok(&["delete", &bundle.id]).map(drop)
}

/// It is passed on once there is one, and nothing stays.
pub fn a_signal_for_a_run_that_has_no_process_yet(oci: &Oci) -> Result<()> {
    let mut bundle = oci.bundle("a", &["sleep", "1000"])?;
    // The first process of a namespace of its own ignores what it has no handler for.
    bundle.edit(|spec| {
        if let Some(namespaces) = spec["linux"]["namespaces"].as_array_mut() {
            namespaces.retain(|namespace| namespace["type"] != "pid");
        }
    })?;
    let (mut run, mark) = held_by_a_hook(oci, &mut bundle, &["run"])?;
    signal(run.id(), Signal::TERM)?;
    ensure!(command::wait_for(&mut run, Duration::from_millis(200))?.is_none(), "run has ended at once");
    fs::remove_file(&mark)?;
    let status = command::wait_for(&mut run, SOON)?.context(|| "run does not end".to_owned())?;
    ensure_eq!(command::code(status), 128 + 15, "exit code of run");
    oci.fails(&["state", &bundle.id], 1, "container does not exist")
}

pub fn one_of_two_starts(oci: &Oci) -> Result<()> {
    let bundle = oci.bundle("a", &["sleep", "1000"])?;
    let id = bundle.id.as_str();
    oci.create(&bundle, &[])?;
    let start = || -> Result<std::process::Child> { Ok(oci.command(&["start", id])?.stderr(Stdio::null()).spawn()?) };
    let children = [start()?, start()?, start()?];
    let codes = children.into_iter().map(|mut child| Ok(command::code(child.wait()?))).collect::<Result<Vec<_>>>()?;
    ensure_eq!(codes.iter().filter(|code| **code == 0).count(), 1, "starts that succeeded: {codes:?}");
    oci.ok(&["delete", "--force", id]).map(drop)
}

/// It has said go and not lived to write that down: the container runs all the same.
pub fn a_start_that_was_killed(oci: &Oci) -> Result<()> {
    let bundle = oci.bundle("a", &["sleep", "1000"])?;
    let id = bundle.id.as_str();
    oci.create(&bundle, &[])?;
    let file = oci.dir().join("state").join(id).join("state.json");
    let before = fs::read_to_string(&file)?;
    oci.ok(&["start", id])?;
    fs::write(&file, before)?;
    oci.expect_status(id, "running")?;
    oci.fails(&["start", id], 1, "cannot start an already running container")?;
    oci.fails(&["delete", id], 1, "that is not stopped: running")?;
    oci.ok(&["delete", "--force", id]).map(drop)
}

pub fn a_spoilt_state(oci: &Oci) -> Result<()> {
    let mut bundle = oci.bundle("a", &["sleep", "1000"])?;
    let id = &bundle.id.clone();
    let dir = oci.dir().join("state").join(id);
    fs::create_dir_all(&dir)?;
    for spoilt in ["", "{", "[]"] {
        fs::create_dir_all(&dir)?;
        fs::write(dir.join("state.json"), spoilt)?;
        oci.fails(&["delete", id], 1, "state.json")?;
        let listed = oci.coracle(&["list"])?;
        ensure!(listed.code == 0 && listed.stderr.contains("ignoring"), "list: {}", listed.stderr);
        oci.ok(&["delete", "--force", id])?;
        ensure!(!dir.exists(), "{spoilt:?} is still there");
    }
    let whole = |spec: &mut Value| spec["linux"]["cgroupsPath"] = json!(format!("/{}/{id}", paths::tag()));
    bundle.edit(whole)?;
    let spoil: [fn(&str) -> String; 3] = [
        // As another build might have it.
        |whole| whole.replace("\"stage\"", "\"phase\""),
        // From the configuration.
        |whole| whole.split_at(whole.len() / 2).0.to_owned(),
        |_| String::new(),
    ];
    for spoil in spoil {
        oci.create(&bundle, &[])?;
        oci.ok(&["start", id])?;
        let state = fs::read_to_string(dir.join("state.json"))?;
        fs::write(dir.join("state.json"), spoil(&state))?;
        oci.fails(&["delete", id], 1, "state.json")?;
        ensure!(!processes(oci, id).is_empty(), "delete without force has killed it");
        oci.ok(&["delete", "--force", id])?;
        ensure!(!dir.exists() && oci.cgroups(id).is_empty(), "there is something left: {:?}", oci.cgroups(id));
    }
    // What is no regular file is neither waited for nor read to its end.
    let state = dir.join("state.json");
    let replace: [fn(&Path) -> Result<()>; 3] = [
        |path| Ok(nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRUSR)?),
        |path| Ok(fs::create_dir(path)?),
        |path| Ok(std::os::unix::fs::symlink("/dev/zero", path)?),
    ];
    for replace in replace {
        oci.create(&bundle, &[])?;
        oci.ok(&["start", id])?;
        fs::remove_file(&state)?;
        replace(&state)?;
        oci.fails(&["state", id], 1, "state.json")?;
        oci.fails(&["delete", id], 1, "state.json")?;
        let listed = oci.coracle(&["list"])?;
        ensure!(listed.code == 0 && listed.stderr.contains("ignoring"), "list: {}", listed.stderr);
        oci.ok(&["delete", "--force", id])?;
        ensure!(!dir.exists() && oci.cgroups(id).is_empty(), "there is something left: {:?}", oci.cgroups(id));
    }
    oci.create(&bundle, &[])?;
    oci.ok(&["delete", id]).map(drop)
}
