//! `linux.resources`, field by field: set at Create and changed by Update, read from inside the container, on whichever controllers the host
//! has.

use std::fs;
use std::os::linux::fs::MetadataExt;
use std::path::Path;

use serde_json::{Value, json};
use tests::bundle::{self, Bundle};
use tests::hand::Hand;
use tests::requests::{end, exec_ran};
use tests::rpc::Shim;
use tests::{Result, ensure, ensure_eq, fail, proc};

/// One field: its value at first and later, and what the files then say.
struct Row {
    field: &'static str,
    values: [Value; 2],
    v1: Option<File>,
    v2: Option<File>,
}

/// A file of a controller, and what it says for each value.
struct File {
    controller: &'static str,
    name: &'static str,
    says: [String; 2],
}

fn file(controller: &'static str, name: &'static str, says: [&str; 2]) -> Option<File> {
    Some(File { controller, name, says: says.map(str::to_owned) })
}

const M: u64 = 1 << 20;

fn bytes(name: &'static str, values: [u64; 2]) -> Option<File> {
    Some(File { controller: "memory", name, says: values.map(|value| (value * M).to_string()) })
}

fn row(field: &'static str, values: [Value; 2], v1: Option<File>, v2: Option<File>) -> Row {
    Row { field, values, v1, v2 }
}

/// Fields that can be set together.
fn together() -> Vec<Row> {
    let device = block_device();
    let rate = |value: u64| json!([{ "major": device.0, "minor": device.1, "rate": value }]);
    let throttle = |name, values: [u64; 2]| {
        Some(File { controller: "blkio", name, says: values.map(|value| format!("{}:{} {value}", device.0, device.1)) })
    };
    let maximum =
        |key: &str, values: [u64; 2]| Some(File { controller: "io", name: "io.max", says: values.map(|value| format!("{key}={value}")) });
    let mut rows = vec![
        row("pids/limit", [json!(71), json!(72)], file("pids", "pids.max", ["71", "72"]), file("pids", "pids.max", ["71", "72"])),
        row("memory/limit", [json!(64 * M), json!(96 * M)], bytes("memory.limit_in_bytes", [64, 96]), bytes("memory.max", [64, 96])),
        row(
            "memory/reservation",
            [json!(32 * M), json!(40 * M)],
            bytes("memory.soft_limit_in_bytes", [32, 40]),
            bytes("memory.low", [32, 40]),
        ),
        row(
            "memory/swap",
            [json!(128 * M), json!(192 * M)],
            bytes("memory.memsw.limit_in_bytes", [128, 192]),
            bytes("memory.swap.max", [64, 96]),
        ),
        row("memory/swappiness", [json!(13), json!(14)], file("memory", "memory.swappiness", ["13", "14"]), None),
        row(
            "memory/disableOOMKiller",
            [json!(true), json!(true)],
            file("memory", "memory.oom_control", ["oom_kill_disable 1", "oom_kill_disable 1"]),
            None,
        ),
        row("cpu/shares", [json!(512), json!(256)], file("cpu", "cpu.shares", ["512", "256"]), file("cpu", "cpu.weight", ["59", "35"])),
        row(
            "cpu/quota",
            [json!(50_000), json!(40_000)],
            file("cpu", "cpu.cfs_quota_us", ["50000", "40000"]),
            file("cpu", "cpu.max", ["50000 100000", "40000 80000"]),
        ),
        row(
            "cpu/period",
            [json!(100_000), json!(80_000)],
            file("cpu", "cpu.cfs_period_us", ["100000", "80000"]),
            file("cpu", "cpu.max", [" 100000", " 80000"]),
        ),
        row(
            "cpu/burst",
            [json!(10_000), json!(20_000)],
            file("cpu", "cpu.cfs_burst_us", ["10000", "20000"]),
            file("cpu", "cpu.max.burst", ["10000", "20000"]),
        ),
        row(
            "cpu/cpus",
            [json!("0"), json!("0-1")],
            file("cpuset", "cpuset.cpus", ["0", "0-1"]),
            file("cpuset", "cpuset.cpus", ["0", "0-1"]),
        ),
        row("cpu/mems", [json!("0"), json!("0")], file("cpuset", "cpuset.mems", ["0", "0"]), file("cpuset", "cpuset.mems", ["0", "0"])),
    ];
    for (field, v1, v2) in [
        ("blockIO/throttleReadBpsDevice", "blkio.throttle.read_bps_device", "rbps"),
        ("blockIO/throttleWriteBpsDevice", "blkio.throttle.write_bps_device", "wbps"),
        ("blockIO/throttleReadIOPSDevice", "blkio.throttle.read_iops_device", "riops"),
        ("blockIO/throttleWriteIOPSDevice", "blkio.throttle.write_iops_device", "wiops"),
    ] {
        let values = [1_000_000, 2_000_000];
        rows.push(row(field, values.map(rate), throttle(v1, values), maximum(v2, values)));
    }
    let pages = |limit: u64| json!([{ "pageSize": "2MB", "limit": limit * M }]);
    let huge = |name, says: [&str; 2]| file("hugetlb", name, says);
    rows.push(row(
        "hugepageLimits",
        [pages(4), pages(8)],
        huge("hugetlb.2MB.limit_in_bytes", ["4194304", "8388608"]),
        huge("hugetlb.2MB.max", ["4194304", "8388608"]),
    ));
    rows.push(row(
        "unified",
        [json!({ "memory.high": "50331648" }), json!({ "memory.high": "67108864" })],
        None,
        file("memory", "memory.high", ["50331648", "67108864"]),
    ));
    rows
}

/// An idle group has no weight.
fn idle() -> Vec<Row> {
    vec![row("cpu/idle", [json!(1), json!(0)], file("cpu", "cpu.idle", ["1", "0"]), file("cpu", "cpu.idle", ["1", "0"]))]
}

/// cgroup v1 divides realtime among groups, so the container's must be right below the root's.
fn realtime() -> Vec<Row> {
    vec![
        row("cpu/realtimePeriod", [json!(900_000), json!(800_000)], file("cpu", "cpu.rt_period_us", ["900000", "800000"]), None),
        row("cpu/realtimeRuntime", [json!(9_000), json!(8_000)], file("cpu", "cpu.rt_runtime_us", ["9000", "8000"]), None),
    ]
}

/// The numbers of the disk that the tests are on.
fn block_device() -> (u64, u64) {
    let disks = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    let numbers = |disk: fs::DirEntry| {
        let text = fs::read_to_string(disk.path().join("dev")).ok()?;
        let (major, minor) = text.trim().split_once(':')?;
        let used = fs::metadata(Path::new("/dev").join(disk.file_name())).is_ok_and(|node| node.st_rdev() != 0);
        Some((major.parse().ok()?, minor.parse().ok()?)).filter(|_| used)
    };
    disks.filter(|disk| disk.file_name().to_string_lossy().starts_with(['v', 's', 'n'])).find_map(numbers).unwrap_or((7, 0))
}

/// What of a row this host can do: the file, as the container sees it.
fn here(row: &Row) -> Option<(&File, String)> {
    let v2 = proc::is_cgroup_v2();
    let file = if v2 { row.v2.as_ref() } else { row.v1.as_ref() }?;
    let directory = if v2 {
        fs::read_to_string("/sys/fs/cgroup/cgroup.controllers")
            .ok()?
            .split_whitespace()
            .any(|name| name == file.controller)
            .then(String::new)?
    } else {
        let own = proc::cgroup_of(std::process::id(), file.controller).ok()?;
        own.join(file.name).exists().then(|| format!("{}/", file.controller))?
    };
    Some((file, format!("/sys/fs/cgroup/{directory}{}", file.name)))
}

fn set(resources: &mut Value, field: &str, value: &Value) {
    let mut place = resources;
    for name in field.split('/') {
        place = &mut place[name];
    }
    *place = value.clone();
}

/// Reads the files inside, by a program that is executed there.
fn expect(shim: &Shim, bundle: &Bundle, rows: &[Row], turn: usize) -> Result<()> {
    let present: Vec<_> = rows.iter().filter_map(|row| Some((row.field, here(row)?))).collect();
    let script: String = present.iter().enumerate().map(|(number, (_, (_, path)))| format!("cat {path} >/{number}.{turn} 2>&1;")).collect();
    exec_ran(shim, bundle, &format!("x{turn}"), &bundle::process(&["sh", "-c", &script]))?;
    for (number, (field, (file, path))) in present.iter().enumerate() {
        let text = fs::read_to_string(bundle.written(&format!("{number}.{turn}")))?;
        let wanted = &file.says[turn];
        let said = text.trim() == wanted || text.lines().any(|line| line.contains(wanted.as_str()));
        ensure!(said, "linux.resources.{field}: {path} says {text:?} inside, not {wanted:?}");
    }
    Ok(())
}

/// Sets the rows, looks, changes them, and looks again.
fn walk(hand: &mut Hand, rows: &[Row], cgroups_path: Option<&str>) -> Result<()> {
    let mut bundle = hand.bundle("a", &["sleep", "1000"])?;
    let with = |turn: usize| {
        let mut resources = json!({});
        for row in rows.iter().filter(|row| here(row).is_some()) {
            set(&mut resources, row.field, &row.values[turn]);
        }
        resources
    };
    let id = bundle.id.clone();
    bundle.edit(|spec| {
        spec["linux"]["resources"] = with(0);
        if let Some(path) = cgroups_path {
            spec["linux"]["cgroupsPath"] = json!(format!("{path}{id}"));
        }
        if let Some(namespaces) = spec["linux"]["namespaces"].as_array_mut() {
            namespaces.push(json!({ "type": "cgroup" }));
        }
        let Some(mounts) = spec["mounts"].as_array_mut() else { return };
        mounts.retain(|mount| mount["destination"] != "/sys/fs/cgroup");
        mounts.push(json!({ "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro"] }));
    })?;
    let shim = hand.shim(&bundle)?;
    shim.create_quiet(&bundle)?;
    shim.start(&bundle.id, "")?;
    expect(&shim, &bundle, rows, 0)?;
    shim.update_to(&bundle.id, &with(1))?;
    expect(&shim, &bundle, rows, 1)?;
    end(&shim, &bundle)?;
    shim.shutdown(&bundle.id)
}

pub fn set_and_changed(hand: &mut Hand) -> Result<()> {
    let rows = together();
    let found = rows.iter().filter(|row| here(row).is_some()).count();
    ensure!(found >= 8, "only {found} of {} fields can be set on this host", rows.len());
    walk(hand, &rows, None)
}

pub fn idle_groups(hand: &mut Hand) -> Result<()> {
    walk(hand, &idle(), None)
}

pub fn realtime_groups(hand: &mut Hand) -> Result<()> {
    walk(hand, &realtime(), Some("/"))
}

/// `checkBeforeUpdate` refuses a limit below what is in use, before anything is changed.
pub fn checked_before_the_update(hand: &mut Hand) -> Result<()> {
    let mut bundle =
        hand.bundle("a", &["sh", "-c", "dd if=/dev/zero of=/dev/shm/x bs=1M count=20 2>/dev/null; echo >/full; exec sleep 1000"])?;
    bundle.edit(|spec| spec["linux"]["resources"] = json!({ "memory": { "limit": 64 * M } }))?;
    let shim = hand.shim(&bundle)?;
    shim.create_quiet(&bundle)?;
    shim.start(&bundle.id, "")?;
    tests::containerd::eventually("the memory is in use", crate::SOON, || bundle.written("full").exists())?;
    let checked = json!({ "memory": { "limit": 8 * M, "checkBeforeUpdate": true }, "pids": { "limit": 33 } });
    match shim.update_to(&bundle.id, &checked) {
        Err(status) => ensure!(status.message.contains("memory.limit"), "the field is not named: {status:?}"),
        Ok(_) => fail!("a limit below what is in use was taken"),
    }
    let pids = proc::cgroup_of(shim.state(&bundle.id, "")?.pid, "pids")?;
    ensure_eq!(fs::read_to_string(pids.join("pids.max"))?.trim(), "max", "limit of processes after the refusal");
    end(&shim, &bundle)?;
    shim.shutdown(&bundle.id)
}
