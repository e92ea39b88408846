//! Limits hold against processes that try to break them: memory, cpu, pids and devices.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use serde_json::json;
use tests::containerd::eventually;
use tests::events::Kind;
use tests::suite::Suite;
use tests::{Case, Context, Result, cases, ensure, ensure_eq, proc, wait};

fn main() -> ExitCode {
    Suite {
        name: "limits",
        // The quota is measured, so nothing else may run.
        parallel: 1,
        cases: cases![
            allocator_is_killed_and_reported,
            a_killed_child_is_reported,
            no_report_without_a_limit,
            too_little_memory_to_start,
            spinner_is_held_to_its_quota,
            fork_bomb_stops_at_the_limit,
            device_not_allowed,
            device_allowed_by_rule
        ],
    }
    .main()
}

const SOON: Duration = Duration::from_secs(10);

const LIMIT: &str = "33554432";

/// dd touches its whole buffer, which is three times the limit.
const ALLOCATE: &str = "dd if=/dev/zero of=/dev/null bs=100M count=1";

fn allocator_is_killed_and_reported(case: &Case<'_>) -> Result<()> {
    let id = case.detached(&["--memory-limit", LIMIT], &["sh", "-c", &format!("exec {ALLOCATE}")])?;
    let exit = case.events.wait(&id, Kind::Exit, SOON)?;
    ensure_eq!(exit.status, 137, "exit status");
    let kinds: Vec<Kind> = case.events.of(&id).iter().map(|event| event.kind).collect();
    ensure_eq!(kinds, [Kind::Create, Kind::Start, Kind::Oom, Kind::Exit], "events");
    Ok(())
}

fn a_killed_child_is_reported(case: &Case<'_>) -> Result<()> {
    let id = case.detached(&["--memory-limit", LIMIT], &["sh", "-c", &format!("{ALLOCATE}; echo code $?; exec sleep 1000")])?;
    eventually("the child was killed", SOON, || case.output(&id).is_ok_and(|text| text.contains("code 137")))?;
    case.events.wait(&id, Kind::Oom, SOON)?;
    ensure_eq!(case.ctr().status(&id)?.as_deref(), Some("RUNNING"), "the init lives on");
    Ok(())
}

fn no_report_without_a_limit(case: &Case<'_>) -> Result<()> {
    let id = case.detached(&[], &["sh", "-c", &format!("{ALLOCATE} && kill -9 $$")])?;
    case.events.wait(&id, Kind::Exit, SOON)?;
    ensure!(case.events.of(&id).iter().all(|event| event.kind != Kind::Oom), "an OOM event without an OOM");
    Ok(())
}

fn too_little_memory_to_start(case: &Case<'_>) -> Result<()> {
    let refused = case.try_run(&["--memory-limit", "16384"], &["true"])?;
    ensure!(refused.code != 0 && ["memory limit", "memory.limit"].iter().any(|words| refused.stderr.contains(words)), "{refused:?}");
    Ok(())
}

fn spinner_is_held_to_its_quota(case: &Case<'_>) -> Result<()> {
    let id = case.detached(&["--cpus", "0.5"], &["sh", "-c", "while :; do :; done"])?;
    let dir = proc::cgroup_of(case.ctr().pid(&id)?, "cpuacct").or_else(|_| proc::cgroup_of(case.ctr().pid(&id)?, "cpu"))?;
    let used = || -> Result<Duration> {
        if let Ok(text) = std::fs::read_to_string(dir.join("cpuacct.usage")) {
            return Ok(Duration::from_nanos(text.trim().parse()?));
        }
        let text = std::fs::read_to_string(dir.join("cpu.stat"))?;
        let line = text.lines().find_map(|line| line.strip_prefix("usage_usec ")).context(|| format!("no usage in {}", dir.display()))?;
        Ok(Duration::from_micros(line.parse()?))
    };
    // The first period's quota is spent before the measurement.
    wait::pause_for(Duration::from_millis(300));
    // It may never get more. It gets less while others keep the machine busy, so one quiet window out of ten must do.
    let mut shares = Vec::new();
    for _ in 0..10 {
        let (began, before) = (Instant::now(), used()?);
        wait::pause_for(Duration::from_secs(2));
        let share = (used()? - before).as_secs_f64() / began.elapsed().as_secs_f64();
        ensure!(share <= 0.55, "the spinner got {share:.3} of a cpu instead of 0.5");
        if share >= 0.45 {
            return Ok(());
        }
        shares.push(share);
    }
    ensure!(false, "the spinner got {shares:.3?} of a cpu instead of 0.5");
    Ok(())
}

fn fork_bomb_stops_at_the_limit(case: &Case<'_>) -> Result<()> {
    // The shell that is refused a fork gives up; what it has started goes on.
    let bomb = "(while :; do sleep 1000 & done); exec sleep 1000";
    let id = case.configured(&["sh", "-c", bomb], |spec| {
        spec["linux"]["resources"]["pids"] = json!({"limit": 20});
    })?;
    let dir = proc::cgroup_of(case.ctr().pid(&id)?, "pids")?;
    let value = |file: &str| std::fs::read_to_string(dir.join(file)).unwrap_or_default().trim().to_owned();
    ensure_eq!(value("pids.max"), "20", "limit");
    eventually("forks were refused", SOON, || !value("pids.events").ends_with("max 0"))?;
    let current: usize = value("pids.current").parse()?;
    ensure!((18..=20).contains(&current), "{current} processes of 20");
    let listed = case.ctr().ok(&["task", "ps", &id])?.lines().count() - 1;
    ensure!(listed <= 20, "{listed} processes are listed");
    Ok(())
}

/// ctr's default device rules allow mknod of anything and opening of few; kmsg is not one of them.
fn device_not_allowed(case: &Case<'_>) -> Result<()> {
    let script = "mknod /kmsg c 1 11 && mknod /zero c 1 5 && head -c 1 /zero | wc -c && head -c 0 /kmsg";
    let refused = case.try_run(&["--cap-add", "CAP_SYSLOG"], &["sh", "-c", script])?;
    ensure!(refused.code != 0 && refused.stderr.contains("Operation not permitted"), "kmsg could be opened: {refused:?}");
    ensure_eq!(refused.stdout.trim(), "1", "a default device made by mknod");
    Ok(())
}

fn device_allowed_by_rule(case: &Case<'_>) -> Result<()> {
    // No driver has 10:250, which only a rule can tell from what is not permitted.
    let script =
        "mknod /kmsg c 1 11; head -c 0 /kmsg && echo opened; (echo x >/kmsg) 2>&1; mknod /none c 10 250; head -c 1 /none 2>&1; echo end";
    let id = case.configured(&["sh", "-c", script], |spec| {
        for set in ["bounding", "effective", "permitted"] {
            if let Some(set) = spec["process"]["capabilities"][set].as_array_mut() {
                set.push(json!("CAP_SYSLOG"));
            }
        }
        spec["linux"]["resources"]["devices"] = json!([
            {"allow": false, "access": "rwm"},
            {"allow": true, "type": "c", "access": "m"},
            {"allow": true, "type": "c", "major": 1, "minor": 11, "access": "r"},
        ]);
    })?;
    case.events.wait(&id, Kind::Exit, SOON)?;
    let said = case.output(&id)?;
    ensure!(said.starts_with("opened\n") && said.ends_with("end\n"), "reading by the rule: {said}");
    ensure_eq!(said.matches("not permitted").count(), 2, "writing against the rule, and a device without one: {said}");
    Ok(())
}
