//! What a container can make of its cgroups to outlive them: deep ones, odd names, freezers of its own, leaving them.

use std::ffi::{CStr, CString};
use std::os::unix::process::ExitStatusExt;
use std::sync::Arc;

use super::*;

/// Cgroups one in the other; the last.
fn nest(top: &Dir, name: &CStr, depth: usize) -> Dir {
    let mut dir = top.open("").unwrap();
    for _ in 0..depth {
        rustix::fs::mkdirat(&dir, name, rustix::fs::Mode::RWXU).unwrap();
        let child = dir.child(name, "nested".to_owned()).unwrap();
        // A cpuset of version 1 takes no process before it has processors.
        if child.read("cpuset.mems").is_ok_and(|mems| mems.trim().is_empty()) {
            v1::inherit(&dir, &child).unwrap();
        }
        dir = child;
    }
    dir
}

fn long_name() -> CString {
    CString::new([b'a'; 250]).unwrap()
}

fn was_killed(mut child: Child) -> bool {
    child.wait().unwrap().signal() == Some(libc::SIGKILL)
}

/// On any version: processes in cgroups whose path is longer than PATH_MAX, or whose name is no text, are seen and die, and the cgroups go.
pub fn deep_and_odd(name: &str) {
    for (step, (below, depth)) in [(long_name(), 30), (CString::new(b"x\xff").unwrap(), 1)].into_iter().enumerate() {
        let scratch = Scratch::new(&format!("{name}{step}"), "{}");
        let child = scratch.run("read stop");
        for tree in &scratch.cgroup().trees {
            nest(&tree.dir, &below, depth).put("cgroup.procs", &child.id().to_string()).unwrap();
        }
        assert_eq!(scratch.cgroup().pids().unwrap(), [child.id() as i32]);
        scratch.cgroup().signal(0).unwrap();
        assert!(scratch.cgroup().entrance(child.id() as i32).is_ok());
        scratch.cgroup().kill_and_wait(LONG).unwrap();
        assert!(was_killed(child));
        scratch.cgroup().remove(LONG).unwrap();
        assert!(scratch.gone());
    }
}

#[test]
fn neither_depth_nor_names_hide_processes() {
    deep_and_odd("deep");
}

#[test]
fn wide_and_nested_cgroups_go_in_one_attempt() {
    let scratch = Scratch::new("wide", "{}");
    let tree = scratch.cgroup().home("pids").unwrap();
    for number in 0..300 {
        let branch = nest(&tree.dir, &CString::new(format!("b{number}")).unwrap(), 1);
        (0..number % 3).for_each(|leaf| drop(nest(&branch, &CString::new(format!("l{leaf}")).unwrap(), 1 + number % 2)));
    }
    let mut seen = 0;
    at_once(walk::each(&tree.dir, &mut AtOnce, |_| {
        seen += 1;
        Ok(())
    }))
    .unwrap();
    assert_eq!(seen, 1 + 300 + 100 * (1 + 2) + 150);
    assert!(scratch.cgroup().try_remove().unwrap());
    assert!(scratch.gone());
}

/// Version 1 only: there a frozen process does not die.
#[test]
fn whoever_is_frozen_below_or_by_another_tool_is_thawed_to_die() {
    for (name, depth) in [("frozen-top", 0), ("frozen-below", 1), ("frozen-deep", 20)] {
        let scratch = Scratch::new(name, "{}");
        let Some(freezer) = scratch.cgroup().freezer_v1() else { return };
        let child = scratch.run("sleep 1000");
        let below = nest(&freezer.dir, &long_name(), depth);
        below.put("cgroup.procs", &child.id().to_string()).unwrap();
        below.put("freezer.state", "FROZEN").unwrap();
        assert_eq!(scratch.cgroup().is_frozen().unwrap(), depth == 0);
        // A resume leaves what the container has frozen itself.
        scratch.cgroup().thaw().unwrap();
        assert_eq!(below.read("freezer.state").unwrap().trim() == "THAWED", depth == 0);
        below.put("freezer.state", "FROZEN").unwrap();
        scratch.cgroup().kill_and_wait(LONG).unwrap();
        assert!(was_killed(child));
    }
}

/// On any version: the first process is the container, wherever it has gone.
pub fn elsewhere(name: &str) {
    let (mut scratch, other) = (Scratch::new(name, "{}"), Scratch::new(&format!("{name}-other"), "{}"));
    let child = scratch.run("read stop");
    let pid = child.id() as i32;
    let pidfd = Arc::new(kill::hold(pid).unwrap());
    scratch.cgroup.as_mut().unwrap().set_first(pid, Arc::clone(&pidfd));
    assert_eq!(scratch.cgroup().pids().unwrap(), [pid]);
    other.cgroup().add(pid).unwrap();
    assert_eq!(scratch.cgroup().pids().unwrap(), [pid], "it has moved");

    // Version 2 follows it, version 1 keeps to the container's own.
    let inode = |dir: &Dir| rustix::fs::fstat(dir).unwrap().st_ino;
    let entrance = scratch.cgroup().entrance(pid).unwrap();
    let v1_count = scratch.cgroup().trees.iter().filter(|tree| tree.version == Version::V1).count();
    assert_eq!(entrance.procs.len(), v1_count);
    let born = |entrance: &Entrance| entrance.directory.as_ref().map(|dir| rustix::fs::fstat(dir).unwrap().st_ino);
    assert_eq!(born(&entrance), other.cgroup().unified().map(|tree| inode(&tree.dir)));

    // Its own cgroup is gone: held open, and opened anew.
    scratch.cgroup().remove(LONG).unwrap();
    let mut anew = Cgroup::open(&scratch.host, &scratch.path).unwrap();
    anew.set_first(pid, pidfd);
    for cgroup in [scratch.cgroup(), &anew] {
        let entrance = cgroup.entrance(pid).unwrap();
        assert_eq!((entrance.procs.len(), born(&entrance)), (v1_count, other.cgroup().unified().map(|tree| inode(&tree.dir))));
        let refused = cgroup.update(&resources(r#"{"pids": {"limit": 5}}"#)).unwrap_err().to_string();
        assert!(refused.contains("the container's cgroup is gone: /") && refused.contains("/coracle-test-"), "{refused}");
        let refused = cgroup.freeze_step(0).unwrap_err().to_string();
        assert!(refused.contains("the container's cgroup is gone: /") && refused.contains("/coracle-test-"), "{refused}");
        assert_eq!((cgroup.pids().unwrap(), cgroup.is_frozen().unwrap()), (vec![pid], false));
        cgroup.signal(0).unwrap();
    }
    anew.kill_and_wait(LONG).unwrap();
    assert!(was_killed(child) && anew.pids().unwrap().is_empty());
    let error = anew.entrance(pid).unwrap_err().to_string();
    assert!(error.starts_with("cannot join the container: its cgroup "), "{error}");
}

#[test]
fn the_first_process_is_reached_wherever_it_is() {
    elsewhere("elsewhere");
}

/// On any version: nobody dies for a container that is not made.
pub fn refused(name: &str) {
    let owner = Scratch::new(name, "{}");
    let mut child = owner.run("read stop");
    let pid = child.id() as i32;
    let at = |path: &str| CgroupPath::new(&owner.host, Some(path), "new").unwrap();
    let own = format!("/coracle-test-{}-{name}", std::process::id());
    for tree in &owner.cgroup().trees {
        nest(&tree.dir, c"below", 1);
    }
    assert!(Cgroup::check_free(&owner.host, &at(&own)).unwrap_err().to_string().contains("is not empty: 1 process(es) found"));
    assert!(Cgroup::create(&owner.host, &at(&own), &Resources::default()).is_err());
    // Undone: what was there stays, with all that is in it, and what was made goes.
    for (path, made) in [(format!("{own}/below"), false), (format!("{own}/new/one"), true)] {
        Cgroup::check_free(&owner.host, &at(&path)).unwrap();
        let (cgroup, undo) = Cgroup::create_undoably(&owner.host, &at(&path), &Resources::default()).unwrap();
        nest(&cgroup.trees[0].dir, c"theirs", 1);
        undo.run(LONG).unwrap();
        let left = Cgroup::open(&owner.host, &at(&path)).unwrap();
        assert_eq!(left.trees.is_empty(), made, "{path}");
    }
    assert!(Cgroup::open(&owner.host, &at(&format!("{own}/new"))).unwrap().trees.is_empty());
    assert_eq!((owner.cgroup().pids().unwrap(), child.try_wait().unwrap()), (vec![pid], None));
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_refused_cgroup_hurts_nobody() {
    refused("refused");
}

/// A signal for all costs one look for each, not one for each pair.
#[test]
fn a_signal_for_many_processes() {
    let scratch = Scratch::new("many", "{}");
    let mut child = scratch.run("i=0; while [ $i -lt 700 ]; do sleep 1000 & i=$((i+1)); done; wait");
    eventually("700 processes", || scratch.cgroup().pids().unwrap().len() == 701);
    let start = std::time::Instant::now();
    scratch.cgroup().signal(libc::SIGCONT).unwrap();
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    scratch.cgroup().kill_and_wait(LONG).unwrap();
    child.wait().unwrap();
}
