//! What a container can do with its cgroups and its names to outlive its end, to hide, or to keep others waiting.

use std::ffi::CString;
use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags, mkdirat, openat};
use rustix::process::Signal;
use serde_json::{Value, json};
use tests::bed::{Bed, refused};
use tests::bundle::{Bundle, process};
use tests::command::signal;
use tests::containerd::eventually;
use tests::hand::Hand;
use tests::proc::{cgroup_of, is_cgroup_v2};
use tests::requests::{daemon, expect_dead, finish, shim_by};
use tests::rpc::Shim;
use tests::suite::is_long;
use tests::{Context, Result, ensure, ensure_eq};

use crate::SOON;

/// A controller that has a cgroup of the container's on every host.
const CONTROLLER: &str = "pids";

/// Cgroups one in the other below `top`, and in the last one a process.
fn nest(top: &Path, name: &[u8], depth: usize, pid: u32) -> Result<OwnedFd> {
    let mut dir = OwnedFd::from(File::open(top)?);
    let name = CString::new(name)?;
    for _ in 0..depth {
        mkdirat(&dir, &*name, Mode::RWXU)?;
        dir = openat(&dir, &*name, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    }
    write_in(&dir, "cgroup.procs", &pid.to_string())?;
    Ok(dir)
}

fn write_in(dir: &impl AsFd, file: &str, text: &str) -> Result<()> {
    let file = openat(dir, file, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(&file, text.as_bytes())?;
    Ok(())
}

/// All processes of a container but the first.
fn others(bed: &Bed<'_>, bundle: &Bundle, first: u32) -> Result<Vec<u32>> {
    Ok(bed.pids(bundle)?.into_iter().filter(|pid| *pid != first).collect())
}

/// The first process calls itself what no text holds.
pub fn a_name_that_is_no_text(bed: &mut Bed<'_>) -> Result<()> {
    for (number, name) in ["x\\377", ") Z 1 ("].into_iter().enumerate() {
        let bundle =
            bed.bundle(&format!("a{number}"), &["sh", "-c", &format!("printf '{name}' >/proc/$$/comm; while :; do sleep 1; done")])?;
        let pid = bed.running(&bundle)?;
        eventually("it has its name", SOON, || fs::read(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm != b"sh\n"))?;
        ensure_eq!(bed.status(&bundle)?, "running", "status of {name:?}");
        ensure_eq!(bed.exec(&bundle, &process(&["true"]))?.status, 0, "an exec beside {name:?}");
        bed.pause(&bundle)?;
        bed.resume(&bundle)?;
        bed.kill(&bundle, 9, false)?;
        expect_dead(pid, SOON)?;
        bed.expect_status(&bundle, "stopped")?;
        bed.delete(&bundle)?;
    }
    Ok(())
}

/// Names longer together than any path, and one that is no text: with a pid namespace and without.
pub fn cgroups_that_no_path_names(bed: &mut Bed<'_>) -> Result<()> {
    for (name, depth) in [(&[b'a'; 250][..], 30), (b"x\xff", 1)] {
        for own_pids in [true, false] {
            let mut bundle = bed.bundle(&format!("a{depth}{own_pids}"), &["sh", "-c", "sleep 1000 & exec sleep 1000"])?;
            bundle.edit(|spec| without_pid_namespace(spec, own_pids))?;
            let first = bed.running(&bundle)?;
            eventually("a second process", SOON, || others(bed, &bundle, first).is_ok_and(|others| others.len() == 1))?;
            let second = others(bed, &bundle, first)?[0];
            nest(&cgroup_of(first, CONTROLLER)?, name, depth, second)?;
            ensure_eq!(others(bed, &bundle, first)?, [second], "processes in a deep or odd cgroup");
            bed.kill(&bundle, 18, true)?;
            bed.end(&bundle)?;
            expect_dead(first, SOON)?;
            expect_dead(second, SOON)?;
        }
    }
    Ok(())
}

fn without_pid_namespace(spec: &mut Value, own: bool) {
    if !own && let Some(namespaces) = spec["linux"]["namespaces"].as_array_mut() {
        namespaces.retain(|namespace| namespace["type"] != "pid");
    }
}

/// A cgroup is somebody else's: of a container that runs, of one that is frozen, and one above.
pub fn a_refused_create_hurts_nobody(bed: &mut Bed<'_>) -> Result<()> {
    let mut owner = bed.bundle("owner", &["sleep", "1000"])?;
    let path = format!("/{}-above/owner", owner.id);
    owner.edit(|spec| spec["linux"]["cgroupsPath"] = json!(path))?;
    let pid = bed.running(&owner)?;
    let above = path.trim_end_matches("/owner").to_owned();
    for frozen in [false, true] {
        if frozen {
            bed.pause(&owner)?;
        }
        for taken in [&path, &above] {
            let mut thief = bed.bundle(&format!("thief{frozen}{}", taken.len()), &["true"])?;
            thief.edit(|spec| spec["linux"]["cgroupsPath"] = json!(taken))?;
            refused(bed.create(&thief), "is not empty")?;
            if let Some(oci) = bed.oci() {
                let dir = thief.dir.display().to_string();
                oci.fails(&["run", "-b", &dir, &thief.id], 1, "is not empty")?;
                oci.fails(&["state", &thief.id], 1, "does not exist")?;
            }
            ensure!(fs::read_link(format!("/proc/{pid}/exe")).is_ok(), "the owner of {path} was killed for {taken}");
            ensure!(cgroup_of(pid, CONTROLLER)?.ends_with(&path[1..]), "its cgroup");
        }
    }
    bed.resume(&owner)?;
    ensure_eq!(bed.status(&owner)?, "running", "status of the owner");
    bed.end(&owner)?;
    remove_below(&above)
}

/// Removes what is left of a path in all hierarchies.
fn remove_below(path: &str) -> Result<()> {
    for root in tests::proc::cgroup_roots() {
        match fs::remove_dir(root.join(path.trim_start_matches('/'))) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
    }
    Ok(())
}

/// Where the test puts a process that has left its cgroup, in every hierarchy; goes with this.
struct Elsewhere(Vec<PathBuf>);

impl Elsewhere {
    fn new(bundle: &Bundle) -> Result<Self> {
        let below = tests::proc::cgroup_roots().into_iter().flat_map(|root| tests::proc::cgroups_below(&root));
        let own: Vec<PathBuf> = below.filter(|dir| dir.ends_with(&bundle.id)).collect();
        let mut places = Vec::new();
        for dir in own {
            let place = dir.with_file_name(format!("{}-elsewhere", bundle.id));
            fs::create_dir(&place)?;
            for file in ["cpuset.cpus", "cpuset.mems"].into_iter().filter(|file| dir.join(file).exists()) {
                let _ = fs::copy(dir.join(file), place.join(file));
            }
            places.push(place);
        }
        Ok(Self(places))
    }

    fn take(&self, pid: u32) -> Result<()> {
        self.0.iter().try_for_each(|place| fs::write(place.join("cgroup.procs"), pid.to_string()))?;
        Ok(())
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        for place in &self.0 {
            let _ = tests::wait::until(SOON, || fs::remove_dir(place).is_ok().then_some(()));
        }
    }
}

/// A container is not its cgroup: its processes have moved, and the cgroup is empty or gone.
pub fn processes_that_have_left_their_cgroup(bed: &mut Bed<'_>) -> Result<()> {
    for (removed, own_pids) in [(false, true), (true, true), (true, false)] {
        let mut bundle = bed.bundle(&format!("a{removed}{own_pids}"), &["sleep", "1000"])?;
        bundle.edit(|spec| without_pid_namespace(spec, own_pids))?;
        let pid = bed.running(&bundle)?;
        let own: Vec<PathBuf> = bed.cgroups(&bundle);
        let elsewhere = Elsewhere::new(&bundle)?;
        elsewhere.take(pid)?;
        if removed {
            own.iter().rev().try_for_each(fs::remove_dir).context(|| format!("remove {own:?}"))?;
            refused(bed.update(&bundle, &json!({"pids": {"limit": 50}})), "the container's cgroup is gone")?;
            refused(bed.pause(&bundle), "the container's cgroup is gone")?;
        }
        ensure_eq!(bed.status(&bundle)?, "running", "status");
        ensure_eq!(bed.pids(&bundle)?, [pid], "processes");
        let places = |exec: u32| -> Result<Vec<String>> {
            let text = fs::read_to_string(format!("/proc/{exec}/cgroup"))?;
            Ok(text.lines().filter(|line| !line.contains(&bundle.id)).map(str::to_owned).collect())
        };
        let exec = bed.exec_start(&bundle, &process(&["sleep", "1000"]))?;
        ensure_eq!(places(exec.pid)?, places(pid)?, "hierarchies in which an exec is in neither cgroup");
        bed.exec_end(&bundle, exec)?;
        bed.kill(&bundle, 18, true)?;
        ensure_eq!(bed.status(&bundle)?, "running", "status after a signal");
        bed.kill(&bundle, 9, true)?;
        expect_dead(pid, SOON)?;
        bed.end(&bundle)?;
        drop(elsewhere);
    }
    Ok(())
}

/// The end of a container whose processes have left the cgroup.
pub fn whoever_left_ends_with_the_rest(bed: &mut Bed<'_>) -> Result<()> {
    let bundle = bed.bundle("a", &["sh", "-c", "sleep 1000 & exec sleep 1000"])?;
    let first = bed.running(&bundle)?;
    eventually("a second process", SOON, || others(bed, &bundle, first).is_ok_and(|others| others.len() == 1))?;
    let second = others(bed, &bundle, first)?[0];
    let elsewhere = Elsewhere::new(&bundle)?;
    elsewhere.take(first)?;
    elsewhere.take(second)?;
    bed.end(&bundle)?;
    expect_dead(first, SOON)?;
    expect_dead(second, SOON)
}

/// The same when the daemon is killed: its launcher sees to it, or without one the command `delete`.
pub fn whoever_left_ends_with_the_daemon(hand: &mut Hand) -> Result<()> {
    for (name, launcher_too) in [("a", false), ("b", true)] {
        let bundle = hand.bundle(name, &["sleep", "1000"])?;
        let shim = hand.shim(&bundle)?;
        let pid = shim.create_quiet(&bundle)?;
        shim.start(&bundle.id, "")?;
        let elsewhere = Elsewhere::new(&bundle)?;
        elsewhere.take(pid)?;
        let daemon = daemon(&shim, &bundle.id)?;
        let killed = hand.shim_pids().into_iter().filter(|pid| launcher_too || *pid == daemon);
        killed.collect::<Vec<_>>().into_iter().try_for_each(|pid| signal(pid, Signal::KILL))?;
        if !launcher_too {
            expect_dead(pid, SOON)?;
        }
        eventually("the daemon and its launcher are gone", SOON, || hand.shim_pids().is_empty())?;
        hand.launch(|launch| launch.delete(&bundle.dir, &bundle.id))?;
        expect_dead(pid, SOON)?;
    }
    Ok(())
}

/// Frozen in a cgroup of its own below, or by another tool: it dies, and nobody joins it meanwhile.
pub fn frozen_by_others(bed: &mut Bed<'_>) -> Result<()> {
    for below in [true, false] {
        let bundle = bed.bundle(&format!("a{below}"), &["sleep", "1000"])?;
        let pid = bed.running(&bundle)?;
        let (controller, file, word) =
            if is_cgroup_v2() { (CONTROLLER, "cgroup.freeze", "1") } else { ("freezer", "freezer.state", "FROZEN") };
        let top = cgroup_of(pid, controller)?;
        if below {
            write_in(&nest(&top, b"below", 1, pid)?, file, word)?;
        } else {
            write_in(&File::open(&top)?, file, word)?;
            refused(bed.exec(&bundle, &process(&["true"])), "cannot exec in a paused container")?;
            bed.resume(&bundle)?;
            ensure_eq!(bed.exec(&bundle, &process(&["true"]))?.status, 0, "an exec after it was thawed");
            write_in(&File::open(&top)?, file, word)?;
        }
        bed.kill(&bundle, 15, false)?;
        bed.kill(&bundle, 9, false)?;
        expect_dead(pid, SOON)?;
        bed.expect_status(&bundle, "stopped")?;
        bed.delete(&bundle)?;
    }
    // One that was never started, and that nobody has killed before.
    let bundle = bed.bundle("created", &["sleep", "1000"])?;
    let pid = bed.create(&bundle)?;
    if !is_cgroup_v2() {
        write_in(&nest(&cgroup_of(pid, "freezer")?, b"below", 1, pid)?, "freezer.state", "FROZEN")?;
    }
    bed.end(&bundle)?;
    expect_dead(pid, SOON)
}

/// Without a pid namespace the others live on after the first process: by the command line until they are killed.
pub fn what_the_first_process_leaves(bed: &mut Bed<'_>) -> Result<()> {
    let mut bundle = bed.bundle("a", &["sh", "-c", "sleep 1000 & sleep 1000 & exec sleep 1000"])?;
    bundle.edit(|spec| without_pid_namespace(spec, false))?;
    let first = bed.running(&bundle)?;
    eventually("three processes", SOON, || bed.pids(&bundle).is_ok_and(|pids| pids.len() == 3))?;
    let left = others(bed, &bundle, first)?;
    signal(first, Signal::KILL)?;
    bed.expect_status(&bundle, "stopped")?;
    if bed.oci().is_some() {
        refused(bed.kill(&bundle, 15, false), "container not running")?;
        ensure_eq!(others(bed, &bundle, first)?, left, "processes after the end of the first");
        bed.kill(&bundle, 9, false)?;
    }
    left.into_iter().try_for_each(|pid| expect_dead(pid, SOON))?;
    bed.delete(&bundle)
}

/// A signal for all of many processes takes one look at each; through the shim, other containers do not wait for it.
pub fn many_processes_keep_nobody_waiting(bed: &mut Bed<'_>) -> Result<()> {
    const COUNT: usize = 1500;
    let mut bundle = bed.bundle("a", &["sh", "-c", &format!("i=0; while [ $i -lt {COUNT} ]; do sleep 1000 & i=$((i+1)); done; wait")])?;
    bundle.edit(|spec| {
        if let Some(resources) = spec["linux"]["resources"].as_object_mut() {
            resources.remove("pids");
        }
    })?;
    bed.running(&bundle)?;
    eventually("all processes", Duration::from_secs(60), || bed.pids(&bundle).is_ok_and(|pids| pids.len() == COUNT + 1))?;
    let began = Instant::now();
    bed.kill(&bundle, 18, true)?;
    ensure!(began.elapsed() < Duration::from_secs(5), "kill --all of {COUNT} processes took {:?}", began.elapsed());
    bed.end(&bundle)
}

/// How long `State` of a container may take while another one of its daemon is walked through.
const PROMPT: Duration = Duration::from_millis(50);
/// The same while thousands of processes wake up or end, which have the processors to themselves for a moment.
const CROWDED: Duration = Duration::from_millis(250);

/// The longest answer to `State` until `work` has ended.
fn slowest_state<T: Send>(shim: &Shim, id: &str, work: impl FnOnce() -> Result<T> + Send) -> Result<(Duration, T)> {
    std::thread::scope(|scope| {
        let work = scope.spawn(work);
        let mut slowest = Duration::ZERO;
        while !work.is_finished() {
            let began = Instant::now();
            shim.state(id, "")?;
            slowest = slowest.max(began.elapsed());
            tests::wait::pause_for(Duration::from_millis(5));
        }
        let done = work.join().map_err(|_| tests::Failure("panicked, see above".to_owned()))??;
        Ok((slowest, done))
    })
}

/// In a daemon of the whole node: one container has thousands of processes and cgroups, and another one is asked for.
pub fn a_huge_container_keeps_nobody_waiting(hand: &mut Hand) -> Result<()> {
    let (processes, cgroups) = if is_long() { (3000, 40_000) } else { (3000, 4000) };
    let script = format!("i=0; while [ $i -lt {processes} ]; do sleep 1000 & i=$((i+1)); done; wait");
    let mut huge = hand.bundle("huge", &["sh", "-c", &script])?;
    huge.edit(|spec| {
        if let Some(resources) = spec["linux"]["resources"].as_object_mut() {
            resources.remove("pids");
        }
    })?;
    let shim = shim_by(hand, &huge, |mut start| {
        start.env("CORACLE_GROUPING", "node");
        start
    })?;
    let pid = shim.create_quiet(&huge)?;
    let other = hand.member("other", &["sleep", "1000"])?;
    shim.create_quiet(&other)?;
    shim.start(&other.id, "")?;
    shim.start(&huge.id, "")?;
    eventually("all processes", Duration::from_secs(60), || shim.pids(&huge.id).is_ok_and(|pids| pids.len() == processes + 1))?;
    let top = cgroup_of(pid, CONTROLLER)?;
    for number in 0..cgroups {
        // In a hundred branches.
        fs::create_dir_all(top.join(format!("b{}/{number}", number % 100)))?;
    }
    // What this machine takes when nobody does anything else.
    let idle = || {
        tests::wait::pause_for(Duration::from_secs(1));
        Ok(())
    };
    let usual = slowest_state(&shim, &other.id, idle)?.0 * 4;
    let (patient, id) = (shim.limited(Duration::from_secs(60)), huge.id.as_str());
    let steps: [(&str, &(dyn Fn() -> Result<()> + Sync)); 5] = [
        ("Pids", &|| patient.pids(id).map(drop).map_err(Into::into)),
        ("Stats", &|| patient.stats(id).map(drop).map_err(Into::into)),
        ("Kill of all with CONT", &|| patient.kill_all(id, 18).map(drop).map_err(Into::into)),
        ("Kill of all with KILL", &|| patient.kill_all(id, 9).map(drop).map_err(Into::into)),
        ("Delete", &|| Ok(patient.wait(id, "").and_then(|_| patient.delete(id, "")).map(drop)?)),
    ];
    let mut late = Vec::new();
    for (name, step) in steps {
        let began = Instant::now();
        let (slowest, ()) = slowest_state(&shim, &other.id, step)?;
        let took = began.elapsed();
        let bound = usual.max(if name.starts_with("Kill") { CROWDED } else { PROMPT });
        if slowest > bound {
            late.push(format!("{name} took {took:?}, and State of another container up to {slowest:?} in place of {bound:?}"));
        }
    }
    finish(&shim, &other)?;
    ensure!(late.is_empty(), "{late:?}");
    ensure!(!top.exists(), "{top:?} is still there");
    Ok(())
}
