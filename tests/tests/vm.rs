//! What only a machine of its own shows: cgroup v2 alone with all its controllers, AppArmor in force, limits that may be raised, huge pages.
//! `make test-vm` runs it in the virtual machine; elsewhere there are no cases, and it says so.

use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use proto::cgroups_v2::metrics::Metrics;
use proto::protobuf::Message;
use serde_json::json;
use tests::bundle::{self, Bundle};
use tests::command::output;
use tests::containerd::eventually;
use tests::hand::Hand;
use tests::requests::{self, end, exec_ran, ran};
use tests::rpc::Shim;
use tests::{Context, Result, ensure, ensure_eq, hand_cases, proc};

fn main() -> ExitCode {
    let controllers = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap_or_default();
    let has = |name: &str| controllers.split_whitespace().any(|controller| controller == name);
    let whole = ["cpu", "cpuset", "io", "memory", "pids", "hugetlb"].into_iter().all(has);
    if !whole || !runtime_core::spec::labels::has_apparmor() {
        println!("vm: not a machine with cgroup v2, all of its controllers and AppArmor; run: make test-vm");
        return tests::suite::main_of(Vec::new());
    }
    let cases = hand_cases![
        apparmor_profile,
        memory_grows_and_kills,
        writes_are_throttled,
        huge_pages_are_limited,
        pressure_is_told,
        limits_above_the_runtimes,
        owners_of_a_user_namespace,
    ];
    requests::main("vm", cases, Vec::new())
}

const SOON: Duration = Duration::from_secs(60);
const MIB: u64 = 1 << 20;

fn started(hand: &Hand, bundle: &Bundle) -> Result<Shim> {
    let shim = hand.shim(bundle)?;
    shim.create_quiet(bundle)?;
    shim.start(&bundle.id, "")?;
    Ok(shim)
}

/// A profile of the kernel's that is there while this lives.
struct Profile {
    file: std::path::PathBuf,
}

impl Profile {
    fn load(hand: &Hand, name: &str) -> Result<Self> {
        let file = hand.data().join("profile");
        let text = format!(
            "profile {name} flags=(attach_disconnected,mediate_deleted) {{\n  file,\n  capability,\n  signal,\n  deny /forbidden w,\n}}\n"
        );
        fs::write(&file, text)?;
        output(Command::new("apparmor_parser").arg("--replace").arg("--skip-cache").arg(&file))?;
        Ok(Self { file })
    }
}

impl Drop for Profile {
    fn drop(&mut self) {
        let _ = Command::new("apparmor_parser").arg("--remove").arg(&self.file).status();
    }
}

/// The first process and an exec are under the profile, which holds.
fn apparmor_profile(hand: &mut Hand) -> Result<()> {
    let name = format!("coracle-test-{}", std::process::id());
    let profile = Profile::load(hand, &name)?;
    let script = "cat /proc/self/attr/current >/label; touch /forbidden 2>/said; echo >/ready; exec sleep 1000";
    let mut bundle = hand.bundle("a", &["sh", "-c", script])?;
    bundle.edit(|spec| spec["process"]["apparmorProfile"] = json!(name))?;
    let shim = started(hand, &bundle)?;
    eventually("it has tried", SOON, || bundle.written("ready").exists())?;
    let enforced = format!("{name} (enforce)");
    ensure_eq!(fs::read_to_string(bundle.written("label"))?.trim(), enforced, "label of the first process");
    ensure!(fs::read_to_string(bundle.written("said"))?.contains("Permission denied"), "the profile forbids nothing");
    ensure!(!bundle.written("forbidden").exists(), "what the profile forbids was done");
    let mut process = bundle::process(&["sh", "-c", "cat /proc/self/attr/current >/joined"]);
    process["apparmorProfile"] = json!(name);
    ensure_eq!(exec_ran(&shim, &bundle, "x", &process)?, 0, "exit status of the exec");
    ensure_eq!(fs::read_to_string(bundle.written("joined"))?.trim(), enforced, "label of an exec");
    end(&shim, &bundle)?;
    drop(profile);
    shim.shutdown(&bundle.id)
}

/// What did not fit fits after an update; what still does not is killed, and counted.
fn memory_grows_and_kills(hand: &mut Hand) -> Result<()> {
    let mut bundle = hand.bundle("a", &["sleep", "1000"])?;
    bundle.edit(|spec| spec["linux"]["resources"]["memory"] = json!({ "limit": 32 * MIB, "swap": 32 * MIB }))?;
    let shim = started(hand, &bundle)?;
    let allocate = bundle::process(&["dd", "if=/dev/zero", "of=/dev/null", "bs=48M", "count=1"]);
    ensure_eq!(exec_ran(&shim, &bundle, "x", &allocate)?, 137, "exit status below the limit");
    shim.update_to(&bundle.id, &json!({ "memory": { "limit": 96 * MIB, "swap": 96 * MIB } }))?;
    ensure_eq!(exec_ran(&shim, &bundle, "y", &allocate)?, 0, "exit status after the update");
    let directory = proc::cgroup_of(shim.state(&bundle.id, "")?.pid, "memory")?;
    let events = fs::read_to_string(directory.join("memory.events"))?;
    ensure!(events.lines().any(|line| line == "oom_kill 1"), "memory.events: {events}");
    let metrics = metrics(&shim, &bundle)?;
    ensure_eq!(metrics.memory_events.oom_kill, 1, "kills in the statistics");
    end(&shim, &bundle)?;
    shim.shutdown(&bundle.id)
}

fn metrics(shim: &Shim, bundle: &Bundle) -> Result<Metrics> {
    let stats = shim.stats(&bundle.id)?;
    ensure_eq!(stats.type_url, "io.containerd.cgroups.v2.Metrics", "type of the statistics");
    Ok(Metrics::parse_from_bytes(&stats.value)?)
}

/// The disk below a bind takes four megabytes at once, and one per second when that is the limit.
fn writes_are_throttled(hand: &mut Hand) -> Result<()> {
    let place = tempfile::tempdir_in("/var/tmp")?;
    let numbers = device_of(place.path())?;
    let mut bundle = hand.bundle("a", &["sleep", "1000"])?;
    let source = place.path().display().to_string();
    bundle.edit(|spec| {
        if let Some(mounts) = spec["mounts"].as_array_mut() {
            mounts.push(json!({ "destination": "/disk", "type": "bind", "source": source, "options": ["bind"] }));
        }
    })?;
    let shim = started(hand, &bundle)?;
    let write = |exec: &str| -> Result<Duration> {
        let program = bundle::process(&["dd", "if=/dev/zero", "of=/disk/x", "bs=1M", "count=4", "conv=fsync"]);
        let begun = Instant::now();
        ensure_eq!(exec_ran(&shim, &bundle, exec, &program)?, 0, "exit status of dd");
        Ok(begun.elapsed())
    };
    let free = write("x")?;
    let throttle = json!([{ "major": numbers.0, "minor": numbers.1, "rate": MIB }]);
    shim.update_to(&bundle.id, &json!({ "blockIO": { "throttleWriteBpsDevice": throttle } }))?;
    let held = write("y")?;
    ensure!(held > Duration::from_secs(3) && held > free, "4 MiB took {held:?} at 1 MiB/s, {free:?} without a limit");
    end(&shim, &bundle)?;
    shim.shutdown(&bundle.id)
}

fn device_of(path: &Path) -> Result<(u32, u32)> {
    let device = rustix::fs::stat(path)?.st_dev;
    Ok((rustix::fs::major(device), rustix::fs::minor(device)))
}

fn huge_pages_are_limited(hand: &mut Hand) -> Result<()> {
    let mut bundle = hand.bundle("a", &["sh", "-c", "fallocate -l 4M /huge/a && echo two; fallocate -l 2M /huge/b || echo no third"])?;
    bundle.edit(|spec| {
        spec["linux"]["resources"]["hugepageLimits"] = json!([{ "pageSize": "2MB", "limit": 4 * MIB }]);
        if let Some(mounts) = spec["mounts"].as_array_mut() {
            mounts.push(json!({ "destination": "/huge", "type": "hugetlbfs", "source": "none", "options": ["pagesize=2M"] }));
        }
    })?;
    let shim = hand.shim(&bundle)?;
    let ran = ran(hand, &shim, &bundle)?;
    ensure_eq!(ran.stdout, "two\nno third\n", "huge pages: {ran:?}");
    shim.shutdown(&bundle.id)
}

fn pressure_is_told(hand: &mut Hand) -> Result<()> {
    let mut bundle = hand.bundle("a", &["sh", "-c", "for i in 1 2 3 4; do (while :; do :; done) & done; wait"])?;
    bundle.edit(|spec| spec["linux"]["resources"]["cpu"] = json!({ "quota": 20_000, "period": 100_000 }))?;
    let shim = started(hand, &bundle)?;
    eventually("somebody has waited for the processor", SOON, || {
        metrics(&shim, &bundle).is_ok_and(|metrics| metrics.cpu.psi.some.total > 100_000)
    })?;
    let metrics = metrics(&shim, &bundle)?;
    ensure!(metrics.cpu.nr_throttled > 0, "the quota of 20 ms in 100 was never used up");
    ensure!(metrics.memory.psi.is_some() && metrics.io.psi.is_some(), "pressure of memory or disks is missing");
    end(&shim, &bundle)?;
    shim.shutdown(&bundle.id)
}

fn limits_above_the_runtimes(hand: &mut Hand) -> Result<()> {
    let (_, hard) = runtime_core::sys::security::rlimit(libc::RLIMIT_MEMLOCK)?;
    let raised = hard / MIB * MIB + MIB;
    let mut bundle = hand.bundle("a", &["sh", "-c", "ulimit -Hl; cat /proc/self/oom_score_adj"])?;
    bundle.edit(|spec| {
        spec["process"]["rlimits"] = json!([{ "type": "RLIMIT_MEMLOCK", "soft": 1024, "hard": raised }]);
        spec["process"]["oomScoreAdj"] = json!(-321);
    })?;
    let shim = hand.shim(&bundle)?;
    let ran = ran(hand, &shim, &bundle)?;
    ensure_eq!(ran.stdout, format!("{}\n-321\n", raised / 1024), "limits: {ran:?}");
    shim.shutdown(&bundle.id)
}

/// A user namespace on cgroup v2, with an idmapped bind: what is root's outside of it is so inside, and what is made inside is mapped back.
fn owners_of_a_user_namespace(hand: &mut Hand) -> Result<()> {
    let place = tempfile::tempdir_in("/var/tmp")?;
    let source = place.path().display().to_string();
    let script = "stat -c %u:%g /run/given; touch /run/given/new && cat /proc/self/uid_map && cat /proc/self/cgroup";
    let mut bundle = hand.bundle("a", &["sh", "-c", script])?;
    bundle.map_users(200_000)?;
    bundle.edit(|spec| {
        if let Some(namespaces) = spec["linux"]["namespaces"].as_array_mut() {
            namespaces.push(json!({ "type": "cgroup" }));
        }
        if let Some(mounts) = spec["mounts"].as_array_mut() {
            mounts.push(json!({ "destination": "/run/given", "type": "bind", "source": source, "options": ["bind", "idmap"] }));
        }
    })?;
    let shim = hand.shim(&bundle)?;
    let ran = ran(hand, &shim, &bundle)?;
    let lines: Vec<String> = ran.stdout.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    ensure_eq!(lines, ["0:0", "0 200000 65536", "0::/"], "inside: {ran:?}");
    let owner =
        fs::metadata(place.path().join("new")).map(|file| std::os::unix::fs::MetadataExt::uid(&file)).context(|| "no file".to_owned())?;
    ensure_eq!(owner, 0, "owner of a file outside");
    shim.shutdown(&bundle.id)
}
