//! Limits, their changes, and statistics.

use std::path::Path;

use tests::containerd::eventually;
use tests::cri::api::{ContainerStatsRequest, LinuxContainerResources, PodSandboxStatsRequest, UpdateContainerResourcesRequest};
use tests::cri::pod::{SOON, resources};
use tests::cri::{Container, PodCase, api};
use tests::{Context, Result, ensure, ensure_eq, proc};

const MIB: i64 = 1 << 20;

/// The limits that a container sees of itself: memory, memory with swap, quota in microseconds, and [`share`].
fn limits(app: &Container<'_>) -> Result<Vec<i64>> {
    let unified = proc::is_cgroup_v2();
    let files = if unified {
        "memory.max memory.swap.max cpu.max cpu.weight"
    } else {
        "memory/memory.limit_in_bytes memory/memory.memsw.limit_in_bytes cpu/cpu.cfs_quota_us cpu/cpu.shares"
    };
    let text = app.shell(&format!("cd /sys/fs/cgroup; for f in {files}; do cat $f 2>/dev/null || echo -2; done"))?;
    let figure = |line: &str| line.split(' ').next().unwrap_or_default().replace("max", "-1").parse();
    let mut seen = text.lines().map(figure).collect::<std::result::Result<Vec<i64>, _>>()?;
    ensure_eq!(seen.len(), 4, "figures in {text:?}");
    // Version 2 limits swap by itself.
    if unified && seen[1] >= 0 {
        seen[1] += seen[0];
    }
    Ok(seen)
}

/// What is read for shares: in version 2 the weight that runc makes of them since 1.4 (opencontainers/cgroups, `ConvertCPUSharesToCgroupV2Value`).
fn share(shares: i64) -> i64 {
    if !proc::is_cgroup_v2() {
        return shares;
    }
    let log = (shares as f64).log2();
    10f64.powf((log * log + 125.0 * log) / 612.0 - 7.0 / 34.0).ceil() as i64
}

fn update(case: &PodCase<'_>, app: &Container<'_>, change: impl FnOnce(&mut LinuxContainerResources)) -> Result<()> {
    let mut linux = LinuxContainerResources::default();
    change(&mut linux);
    case.cri.update_container_resources(UpdateContainerResourcesRequest {
        container_id: app.id.clone(),
        linux: Some(linux),
        ..UpdateContainerResourcesRequest::default()
    })?;
    Ok(())
}

/// Without swap accounting in the kernel the second figure is not there, which is -2.
fn swap_or(limit: i64, seen: &[i64]) -> i64 {
    if seen[1] == -2 { -2 } else { limit }
}

pub fn limits_of_a_container(case: &PodCase<'_>) -> Result<()> {
    let app = case.pod("pod")?.container_with("app", &["sleep", "9999"], |config| {
        *resources(config) = LinuxContainerResources {
            memory_limit_in_bytes: 64 * MIB,
            memory_swap_limit_in_bytes: 64 * MIB,
            cpu_period: 100_000,
            cpu_quota: 50_000,
            cpu_shares: 512,
            cpuset_cpus: "0".to_owned(),
            oom_score_adj: 500,
            ..LinuxContainerResources::default()
        };
    })?;
    let seen = limits(&app)?;
    ensure_eq!(seen, [64 * MIB, swap_or(64 * MIB, &seen), 50_000, share(512)], "limits");
    let cpus = if proc::is_cgroup_v2() { "cpuset.cpus" } else { "cpuset/cpuset.cpus" };
    ensure_eq!(app.shell(&format!("cat /sys/fs/cgroup/{cpus} /proc/self/oom_score_adj"))?, "0\n500", "processors and score");
    Ok(())
}

pub fn resize(case: &PodCase<'_>) -> Result<()> {
    let app = case.pod("pod")?.container_with("app", &["sleep", "9999"], |config| {
        let limit = 64 * MIB;
        *resources(config) =
            LinuxContainerResources { memory_limit_in_bytes: limit, memory_swap_limit_in_bytes: limit, ..Default::default() };
    })?;
    // Growing writes the limit with swap first, shrinking writes it last; each twice, for nothing may change the second time.
    for size in [256, 256, 32, 32, 128] {
        update(case, &app, |linux| {
            linux.memory_limit_in_bytes = size * MIB;
            linux.memory_swap_limit_in_bytes = size * MIB;
            linux.cpu_quota = size * 1000;
            linux.cpu_period = 100_000;
            linux.cpu_shares = size * 2;
        })?;
        let seen = limits(&app)?;
        ensure_eq!(seen, [size * MIB, swap_or(size * MIB, &seen), size * 1000, share(size * 2)], "limits after a resize to {size} MiB");
    }
    // What is not named stays.
    update(case, &app, |linux| linux.cpu_shares = 300)?;
    let seen = limits(&app)?;
    ensure_eq!((seen[0], seen[3]), (128 * MIB, share(300)), "memory and shares after a change of the shares alone");
    Ok(())
}

pub fn resize_before_the_start(case: &PodCase<'_>) -> Result<()> {
    let app = case.pod("pod")?.create_with("app", &["sleep", "9999"], |config| resources(config).memory_limit_in_bytes = 64 * MIB)?;
    update(case, &app, |linux| linux.memory_limit_in_bytes = 96 * MIB)?;
    app.start()?;
    ensure_eq!(limits(&app)?[0], 96 * MIB, "limit");
    Ok(())
}

pub fn resize_below_usage(case: &PodCase<'_>) -> Result<()> {
    let hold = "mkdir /held && dd if=/dev/zero of=/dev/shm/held bs=1M count=40 2>/dev/null && echo held && exec sleep 9999";
    let app = case.pod("pod")?.container_with("app", &["sh", "-c", hold], |config| {
        let limit = 128 * MIB;
        *resources(config) =
            LinuxContainerResources { memory_limit_in_bytes: limit, memory_swap_limit_in_bytes: limit, ..Default::default() };
    })?;
    app.wait_printed("held")?;
    let answer = update(case, &app, |linux| {
        linux.memory_limit_in_bytes = 8 * MIB;
        linux.memory_swap_limit_in_bytes = 8 * MIB;
    });
    // Version 2 takes any limit and ends what does not fit (cgroup-v2.rst, memory.max), under runc as well: CRI asks for no check.
    if proc::is_cgroup_v2() {
        answer?;
        let status = app.wait_exit()?;
        ensure_eq!((status.exit_code, status.reason.as_str()), (137, "OOMKilled"), "end");
        return Ok(());
    }
    let message = answer.err().context(|| "a limit below the usage was taken".to_owned())?.0;
    ensure!(message.contains("memory"), "the message names no memory: {message}");
    ensure_eq!(limits(&app)?[0], 128 * MIB, "limit after the refusal");
    ensure_eq!(app.shell("echo alive")?, "alive", "the container");
    Ok(())
}

pub fn oom_killed(case: &PodCase<'_>) -> Result<()> {
    let app = case.pod("pod")?.container_with("app", &["sh", "-c", "exec dd if=/dev/zero of=/dev/null bs=100M count=1"], |config| {
        let limit = 32 * MIB;
        *resources(config) =
            LinuxContainerResources { memory_limit_in_bytes: limit, memory_swap_limit_in_bytes: limit, ..Default::default() };
    })?;
    let status = app.wait_exit()?;
    ensure_eq!((status.exit_code, status.reason.as_str()), (137, "OOMKilled"), "end");
    Ok(())
}

pub fn container_stats(case: &PodCase<'_>) -> Result<()> {
    let app = case.pod("pod")?.container("app", &["sh", "-c", "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done; exec sleep 9999"])?;
    let read = || -> Result<(u64, u64)> {
        let stats = case
            .cri
            .container_stats(ContainerStatsRequest { container_id: app.id.clone() })?
            .stats
            .context(|| "no statistics".to_owned())?;
        let cpu = stats.cpu.and_then(|cpu| cpu.usage_core_nano_seconds).map_or(0, |figure| figure.value);
        let memory = stats.memory.and_then(|memory| memory.working_set_bytes).map_or(0, |figure| figure.value);
        Ok((cpu, memory))
    };
    eventually("time and memory are counted", SOON, || read().is_ok_and(|(cpu, memory)| cpu > 10_000_000 && memory > 4096))
}

/// What CRI knows since 2.2 about the time that tasks wait.
pub fn pressure(case: &PodCase<'_>) -> Result<()> {
    let app = case.pod("pod")?.sleeper("app")?;
    let stats = case.cri.container_stats(ContainerStatsRequest { container_id: app.id })?.stats.context(|| "no statistics".to_owned())?;
    ensure!(stats.cpu.is_some_and(|cpu| cpu.psi.is_some()), "no pressure of the processors");
    Ok(())
}

pub fn pod_stats(case: &PodCase<'_>) -> Result<()> {
    let pod = case.pod("pod")?;
    let app = pod.sleeper("app")?;
    let read = || -> Result<api::PodSandboxStats> {
        let request = PodSandboxStatsRequest { pod_sandbox_id: pod.id.clone() };
        case.cri.pod_sandbox_stats(request)?.stats.context(|| "no statistics".to_owned())
    };
    eventually("the pod's statistics have its container, its memory and its network", SOON, || {
        read().is_ok_and(|stats| {
            let linux = stats.linux.unwrap_or_default();
            let memory = linux.memory.and_then(|memory| memory.usage_bytes).is_some_and(|usage| usage.value > 0);
            let received = linux.network.and_then(|network| network.default_interface).is_some_and(|interface| interface.name == "eth0");
            let ids: Vec<String> = linux.containers.into_iter().filter_map(|c| c.attributes).map(|attributes| attributes.id).collect();
            memory && received && ids == [app.id.clone()]
        })
    })
}

/// A node without pages of that size, or where containerd does not see their controller, runs the container without the limit
/// (`tolerate_missing_hugetlb_controller`).
pub fn hugepages(case: &PodCase<'_>) -> Result<()> {
    let app = case.pod("pod")?.container_with("app", &["sleep", "9999"], |config| {
        resources(config).hugepage_limits = vec![api::HugepageLimit { page_size: "2MB".to_owned(), limit: 4 * MIB as u64 }];
    })?;
    let has_pages = Path::new("/sys/kernel/mm/hugepages/hugepages-2048kB").exists();
    let unified = std::fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").is_ok_and(|names| names.contains("hugetlb"));
    let is_limited = has_pages && (unified || Path::new("/sys/fs/cgroup/hugetlb/cgroup.procs").exists());
    let seen = app.shell("cd /sys/fs/cgroup; cat hugetlb.2MB.max hugetlb/hugetlb.2MB.limit_in_bytes 2>/dev/null || true")?;
    ensure_eq!(
        seen,
        if is_limited { (4 * MIB).to_string() } else { String::new() },
        "limit of huge pages, where there are some: {has_pages}"
    );
    Ok(())
}
