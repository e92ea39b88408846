//! Commands about what a container uses and may use.

use std::fs;
use std::path::Path;
use std::process::Stdio;

use serde_json::{Value, json};
use tests::command::{self, output};
use tests::containerd::eventually;
use tests::oci::Oci;
use tests::requests::with_resctrl;
use tests::{Result, ensure, ensure_eq};

use crate::SOON;

pub fn pause_update_and_figures(oci: &Oci) -> Result<()> {
    let bundle = oci.bundle("a", &["sleep", "1000"])?;
    let id = bundle.id.as_str();
    oci.create(&bundle, &[])?;
    oci.fails(&["resume", id], 1, "container not paused")?;
    oci.ok(&["start", id])?;
    oci.ok(&["pause", id])?;
    ensure_eq!(oci.state(id)?["status"], "paused", "after pause");
    oci.fails(&["exec", id, "true"], 255, "cannot exec in a paused container (use --ignore-paused to override)")?;
    oci.ok(&["resume", id])?;
    ensure_eq!(oci.state(id)?["status"], "running", "after resume");
    let limit = |what: &str| -> Result<()> {
        let stats: Value = serde_json::from_str(&oci.ok(&["events", "--stats", id])?)?;
        ensure_eq!((&stats["type"], &stats["id"]), (&json!("stats"), &json!(id)), "events --stats");
        ensure_eq!(stats["data"]["pids"]["limit"].to_string(), what, "pids.limit");
        ensure!(stats["data"]["cpu"]["usage"]["total"].as_u64().is_some_and(|total| total > 0), "cpu: {stats}");
        Ok(())
    };
    oci.ok(&["update", "--pids-limit", "55", id])?;
    limit("55")?;
    let file = oci.data().join("resources");
    fs::write(&file, json!({"pids": {"limit": 66}}).to_string())?;
    oci.ok(&["update", "-r", &file.display().to_string(), id])?;
    limit("66")?;
    oci.ok(&["pause", id])?;
    oci.ok(&["delete", "--force", id]).map(drop)
}

pub fn an_exec_in_a_cgroup_below(oci: &Oci) -> Result<()> {
    let bundle = oci.bundle("a", &["sleep", "1000"])?;
    let id = bundle.id.as_str();
    oci.create(&bundle, &[])?;
    oci.ok(&["start", id])?;
    let own: Vec<_> = oci.cgroups(id).into_iter().filter(|dir| dir.ends_with(id)).collect();
    for dir in &own {
        fs::create_dir(dir.join("sub"))?;
        // Version 1's cpuset begins with none; on version 2 a cgroup below has no such files until its parent gives it the controller.
        for file in ["cpuset.cpus", "cpuset.mems"].into_iter().filter(|file| dir.join("sub").join(file).exists()) {
            fs::copy(dir.join(file), dir.join("sub").join(file))?;
        }
    }
    let pid_file = oci.data().join("exec.pid").display().to_string();
    let places = |flags: &[&str]| -> Result<(usize, usize)> {
        let mut exec = oci.command(&[&["exec", "-d", "--pid-file", &pid_file], flags, &[id, "sleep", "1000"]].concat())?;
        ensure!(exec.stdout(Stdio::null()).stderr(Stdio::null()).status()?.success(), "exec {flags:?}");
        let text = fs::read_to_string(format!("/proc/{}/cgroup", fs::read_to_string(&pid_file)?))?;
        let lines = |end: String| text.lines().filter(|line| line.ends_with(&end)).count();
        Ok((lines(format!("/{id}")), lines(format!("/{id}/sub"))))
    };
    ensure_eq!(places(&["--cgroup", "sub"])?, (0, own.len()), "in the container's, and below, with one path");
    ensure_eq!(places(&["--cgroup", "/"])?, (own.len(), 0), "with the container's own");
    if oci.cgroups(id).iter().any(|dir| dir.join("memory.limit_in_bytes").exists()) {
        ensure_eq!(places(&["--cgroup", "memory,pids:sub"])?, (own.len() - 2, 2), "with a path for two controllers");
        oci.fails(&["exec", "--cgroup", "memory:sub", "--cgroup", "memory:/", id, "true"], 255, "given twice")?;
    }
    oci.fails(&["exec", "--cgroup", "none", id, "true"], 255, "no such file or directory")?;
    oci.fails(&["exec", "--cgroup", "..", id, "true"], 255, "--cgroup: open cgroup")?;
    oci.fails(&["exec", "--cgroup", "nonsense:sub", id, "true"], 255, "the cgroup controller \"nonsense\" has no hierarchy here")?;
    oci.fails(&["exec", "--cgroup", "a:b:c", id, "true"], 255, "want [controllers:]path")?;
    oci.fails(&["exec", "--cgroup", "pids,:sub", id, "true"], 255, "a controller is empty")?;
    oci.fails(&["exec", "--cgroup", "a", "--cgroup", "b", id, "true"], 255, "needs controllers before it")?;
    oci.ok(&["delete", "--force", id]).map(drop)
}

/// The first process outlives the kill.
pub fn events_tell_of_a_lack_of_memory(oci: &Oci) -> Result<()> {
    let mut bundle = oci.bundle("a", &["sh", "-c", "sleep 0.5; dd if=/dev/zero of=/dev/null bs=100M count=1; exec sleep 1000"])?;
    bundle.edit(|spec| {
        spec["linux"]["resources"]["memory"] = json!({"limit": 32 << 20});
    })?;
    let id = bundle.id.as_str();
    oci.create(&bundle, &[])?;
    let out = oci.data().join("events");
    let mut events = oci.command(&["events", "--interval", "1h", id])?.stdout(fs::File::create(&out)?).spawn()?;
    let told = format!("{{\"type\":\"oom\",\"id\":\"{id}\"}}\n");
    let started = oci.ok(&["start", id]);
    let seen =
        started.and_then(|_| eventually("the kill is told", SOON, || fs::read_to_string(&out).is_ok_and(|text| text.contains(&told))));
    let deleted = oci.ok(&["delete", "--force", id]);
    // The container has ended, and with it the events.
    let ended = command::wait_for(&mut events, SOON)?;
    seen.and(deleted)?;
    ensure_eq!(ended.map(command::code), Some(0), "exit code of events");
    Ok(())
}

/// Few machines have resctrl: a tree of files where it would be, in a mount namespace of the test's.
pub fn classes_of_service(oci: &Oci) -> Result<()> {
    let bundle = oci.bundle("a", &["sleep", "1000"])?;
    let id = bundle.id.as_str();
    oci.create(&bundle, &[])?;
    if !std::path::Path::new("/sys/fs/resctrl/schemata").exists() {
        oci.fails(&["update", "--mem-bw-schema", "MB:0=50", id], 1, "linux.intelRdt: resctrl is not mounted")?;
    }
    oci.fails(&["update", "--l3-cache-schema", "MB:0=50", id], 1, "linux.intelRdt.l3CacheSchema")?;
    let root = oci.data().join("resctrl");
    fs::create_dir_all(root.join(id))?;
    // The kernel fills a new class.
    ["schemata", &format!("{id}/schemata"), &format!("{id}/tasks")].iter().try_for_each(|file| fs::write(root.join(file), ""))?;
    let update = oci.command(&["update", "--l3-cache-schema", "L3:0=f", "--mem-bw-schema", "MB:0=50", id])?;
    output(&mut with_resctrl(oci.data(), &update))?;
    ensure_eq!(fs::read_to_string(root.join(id).join("schemata"))?, "L3:0=f\nMB:0=50\n", "schemata");
    ensure_eq!(fs::read_to_string(root.join(id).join("tasks"))?, oci.state(id)?["pid"].to_string(), "tasks");
    figures_of_classes(oci, id, &root)?;
    oci.ok(&["delete", "--force", id]).map(drop)
}

fn figures_of_classes(oci: &Oci, id: &str, root: &Path) -> Result<()> {
    let cache = format!("{id}/mon_data/mon_L3_00");
    for (directory, files) in [
        ("info/L3", &[("cbm_mask", "fffff"), ("min_cbm_bits", "1"), ("num_closids", "16")][..]),
        ("info/MB", &[("bandwidth_gran", "10"), ("delay_linear", "1"), ("min_bandwidth", "10"), ("num_closids", "8")]),
        (&cache, &[("mbm_total_bytes", "77"), ("mbm_local_bytes", "Unavailable"), ("llc_occupancy", "4096")]),
        ("", &[("schemata", "    L3:0=fffff\n    MB:0=100")]),
    ] {
        fs::create_dir_all(root.join(directory))?;
        files.iter().try_for_each(|(name, text)| fs::write(root.join(directory).join(name), format!("{text}\n")))?;
    }
    let told = output(&mut with_resctrl(oci.data(), &oci.command(&["events", "--stats", id])?))?;
    let told: Value = serde_json::from_str(&told)?;
    let wanted = json!({
        "l3_cache_info": { "cbm_mask": "fffff", "min_cbm_bits": 1, "num_closids": 16 },
        "l3_cache_schema_root": "L3:0=fffff", "l3_cache_schema": "L3:0=f",
        "mem_bw_info": { "bandwidth_gran": 10, "delay_linear": 1, "min_bandwidth": 10, "num_closids": 8 },
        "mem_bw_schema_root": "MB:0=100", "mem_bw_schema": "MB:0=50",
        "mbm_stats": [{ "mbm_total_bytes": 77 }], "cmt_stats": [{ "llc_occupancy": 4096 }],
    });
    ensure_eq!(told["data"]["intel_rdt"], wanted, "figures of RDT");
    Ok(())
}
