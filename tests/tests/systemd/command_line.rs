//! `coracle --systemd-cgroup`, as Podman calls it.

use serde_json::json;
use tests::bundle::Bundle;
use tests::containerd::eventually;
use tests::oci::Oci;
use tests::{Result, ensure, ensure_eq, proc};

use crate::{SLICE, SOON, cgroup_of, expect_no_unit, property, unit};

fn bundle(oci: &Oci) -> Result<Bundle> {
    let mut bundle = oci.bundle("a", &["sleep", "1000"])?;
    let path = format!("{SLICE}:test:{}", bundle.id);
    bundle.edit(|spec| spec["linux"]["cgroupsPath"] = json!(path))?;
    Ok(bundle)
}

/// Later commands know from the state whose the cgroup is, with the flag and without it.
pub fn life_of_a_scope(oci: &Oci) -> Result<()> {
    let bundle = bundle(oci)?;
    let (id, unit) = (bundle.id.as_str(), unit(&bundle));
    let systemd = |args: &[&str]| oci.ok(&[&["--systemd-cgroup"], args].concat());
    oci.create_with(&bundle, &["--systemd-cgroup"], &[])?;
    ensure_eq!(
        (property(&unit, "ActiveState")?.as_str(), property(&unit, "Slice")?.as_str()),
        ("active", SLICE),
        "state and slice of the scope"
    );
    oci.ok(&["start", id])?;
    let pid = oci.state(id)?["pid"].as_u64().unwrap_or_default() as u32;
    ensure_eq!(cgroup_of(pid)?, format!("/coracletest.slice/{SLICE}/{unit}"), "cgroup of the first process");
    ensure_eq!(systemd(&["exec", id, "sh", "-c", "exit 0"])?, "", "an exec");
    systemd(&["pause", id])?;
    ensure_eq!(oci.state(id)?["status"], "paused", "after pause");
    oci.ok(&["resume", id])?;
    if proc::is_cgroup_v2() && property(&unit, "TasksCurrent")? != "[not set]" {
        systemd(&["update", "--pids-limit", "55", id])?;
        ensure_eq!(property(&unit, "TasksMax")?, "55", "TasksMax after update");
    }
    oci.ok(&["kill", id, "KILL"])?;
    eventually("the scope ends with its process", SOON, || proc::process(pid).is_none())?;
    oci.ok(&["delete", id])?;
    expect_no_unit(&bundle)
}

pub fn forced_and_refused(oci: &Oci) -> Result<()> {
    let mut bundle = bundle(oci)?;
    oci.create_with(&bundle, &["--systemd-cgroup"], &[])?;
    oci.ok(&["delete", "--force", &bundle.id])?;
    expect_no_unit(&bundle)?;
    // The form of the path is enough.
    oci.create(&bundle, &[])?;
    ensure_eq!(property(&unit(&bundle), "Slice")?, SLICE, "slice of the scope");
    oci.ok(&["delete", "--force", &bundle.id])?;
    expect_no_unit(&bundle)?;
    let dir = bundle.dir.display().to_string();
    bundle.edit(|spec| spec["linux"]["cgroupsPath"] = json!("/not/a/scope"))?;
    let refused = oci.coracle(&["--systemd-cgroup", "create", "-b", &dir, &bundle.id])?;
    ensure!(refused.code == 1 && refused.stderr.contains("/not/a/scope"), "{refused:?}");
    expect_no_unit(&bundle)
}

pub fn a_failed_create_leaves_no_scope(oci: &Oci) -> Result<()> {
    let mut bundle = bundle(oci)?;
    bundle.edit(|spec| spec["process"]["args"] = json!(["/nowhere"]))?;
    let dir = bundle.dir.display().to_string();
    let failed = oci.coracle(&["--systemd-cgroup", "run", "-b", &dir, &bundle.id])?;
    ensure!(failed.code != 0 && failed.stderr.contains("/nowhere"), "{failed:?}");
    expect_no_unit(&bundle)
}
