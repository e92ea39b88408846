//! `linux.intelRdt`, on a tree of files in place of resctrl, which few machines have, in a private mount namespace.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::process::Signal;
use serde_json::json;
use tests::bundle::{self, Bundle};
use tests::command::{output, signal};
use tests::hand::Hand;
use tests::requests::{create_request, daemon, end, exec_ran, expect_dead, expect_nothing_of, files_of, ran, shim_by, with_resctrl};
use tests::rpc::{Shim, refused};
use tests::{Result, ensure, ensure_eq};
use ttrpc::Code;

use crate::SOON;

/// The tree, with a class and what the kernel would fill a monitoring group of the container with.
fn tree(hand: &Hand, bundle: &Bundle) -> Result<PathBuf> {
    let root = hand.data().join("resctrl");
    let monitor = root.join("gold/mon_groups").join(&bundle.id);
    fs::create_dir_all(&monitor)?;
    for directory in [&root, &root.join("gold")] {
        fs::write(directory.join("schemata"), "L3:0=0ff\nMB:0=100\n")?;
        fs::write(directory.join("tasks"), "")?;
    }
    fs::write(monitor.join("tasks"), "")?;
    Ok(root)
}

fn shim(hand: &Hand, bundle: &Bundle) -> Result<Shim> {
    shim_by(hand, bundle, |start| with_resctrl(hand.data(), &start))
}

/// Whether a process has entered since, by writing what stands for itself.
fn entered(group: &Path) -> Result<bool> {
    let text = fs::read_to_string(group.join("tasks"))?;
    fs::write(group.join("tasks"), "")?;
    Ok(text == "0")
}

pub fn class_and_monitoring(hand: &mut Hand) -> Result<()> {
    let mut bundle = hand.bundle("a", &["sleep", "1000"])?;
    let root = tree(hand, &bundle)?;
    let (gold, monitor) = (root.join("gold"), root.join("gold/mon_groups").join(&bundle.id));
    bundle.edit(|spec| spec["linux"]["intelRdt"] = json!({ "closID": "gold", "l3CacheSchema": "L3:0=ff", "enableMonitoring": true }))?;
    let shim = shim(hand, &bundle)?;
    shim.create_quiet(&bundle)?;
    for group in [&gold, &monitor] {
        ensure!(entered(group)?, "the first process is not in {}", group.display());
    }
    shim.start(&bundle.id, "")?;
    ensure_eq!(exec_ran(&shim, &bundle, "x", &bundle::process(&["true"]))?, 0, "exit status");
    for group in [&gold, &monitor] {
        ensure!(entered(group)?, "an exec is not in {}", group.display());
    }
    // The kernel's own files go with a directory of resctrl.
    fs::remove_file(monitor.join("tasks"))?;
    end(&shim, &bundle)?;
    ensure!(gold.is_dir() && !monitor.exists(), "the class must stay and the monitoring group go");
    shim.shutdown(&bundle.id)
}

pub fn refused_and_removed(hand: &mut Hand) -> Result<()> {
    let mut bundle = hand.bundle("a", &["sleep", "1000"])?;
    let root = tree(hand, &bundle)?;
    let shim = shim(hand, &bundle)?;
    let request = create_request(&bundle)?;
    for (rdt, code, words) in [
        (json!({ "closID": "silver" }), Code::FAILED_PRECONDITION, ["linux.intelRdt.closID", "silver"]),
        (json!({ "closID": "gold", "memBwSchema": "MB:0=10" }), Code::FAILED_PRECONDITION, ["linux.intelRdt", "MB:0=10"]),
        (json!({ "closID": "../x" }), Code::INVALID_ARGUMENT, ["linux.intelRdt.closID", "../x"]),
        // Its own class has no files, in this tree.
        (json!({}), Code::UNKNOWN, ["linux.intelRdt", "tasks"]),
    ] {
        bundle.edit(|spec| spec["linux"]["intelRdt"] = rdt.clone())?;
        let files = files_of(&bundle)?;
        for word in words {
            refused(shim.create(request.clone()), code, word)?;
        }
        expect_nothing_of(&bundle, &files)?;
        ensure!(!root.join(&bundle.id).exists(), "a class of a container that could not be made: {rdt}");
    }
    shim.shutdown(&bundle.id)
}

/// What a dead daemon leaves, `delete` removes.
pub fn after_a_dead_daemon(hand: &mut Hand) -> Result<()> {
    let mut bundle = hand.bundle("a", &["sleep", "1000"])?;
    let root = tree(hand, &bundle)?;
    bundle.edit(|spec| spec["linux"]["intelRdt"] = json!({ "closID": "gold", "enableMonitoring": true }))?;
    let shim = shim(hand, &bundle)?;
    shim.create_quiet(&bundle)?;
    shim.start(&bundle.id, "")?;
    let monitor = root.join("gold/mon_groups").join(&bundle.id);
    fs::remove_file(monitor.join("tasks"))?;
    let pid = daemon(&shim, &bundle.id)?;
    signal(pid, Signal::KILL)?;
    expect_dead(pid, SOON)?;
    let path = bundle.dir.display().to_string();
    let delete = hand.launch(|launch| launch.command(&bundle.dir, &bundle.id, &["-bundle", &path], "delete"))?;
    output(&mut with_resctrl(hand.data(), &delete))?;
    ensure!(root.join("gold").is_dir() && !monitor.exists(), "the monitoring group is left");
    Ok(())
}

/// Without resctrl the field only tunes, and a container runs.
pub fn passed_over(hand: &mut Hand) -> Result<()> {
    let mut bundle = hand.bundle("a", &["true"])?;
    if runtime_core::rdt::is_mounted() {
        return Ok(());
    }
    bundle.edit(|spec| spec["linux"]["intelRdt"] = json!({ "closID": "gold" }))?;
    let shim = hand.shim(&bundle)?;
    ensure_eq!(ran(hand, &shim, &bundle)?.status, 0, "exit status");
    shim.shutdown(&bundle.id)
}
