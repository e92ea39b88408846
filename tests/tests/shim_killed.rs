//! The processes of a pod's shim are killed: without the launcher all goes on, without the daemon nothing stays.

use std::process::ExitCode;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};
use tests::command::signal;
use tests::containerd::eventually;
use tests::events::Kind;
use tests::suite::Suite;
use tests::{Case, Context, Result, cases, ensure, ensure_eq, proc};

fn main() -> ExitCode {
    Suite {
        name: "shim_killed",
        parallel: 2,
        cases: cases![
            launcher,
            launcher_of_a_pod,
            daemon,
            daemon_and_launcher,
            daemon_of_a_pod,
            daemon_and_launcher_of_a_pod,
            daemon_with_the_hosts_pids,
            daemon_and_launcher_with_the_hosts_pids,
            daemon_of_a_paused_container,
            daemon_and_launcher_of_a_paused_container,
        ],
    }
    .main()
}

/// What is promised for the end of a shim.
const BOUND: Duration = Duration::from_secs(5);

const SOON: Duration = Duration::from_secs(10);

/// A container of several processes, one of which has a session of its own.
const PROCESSES: [&str; 3] = ["sh", "-c", "sleep 1000 & setsid sleep 1000 & exec sleep 1000"];

/// A pod: containers that share a shim.
struct Pod {
    group: String,
    ids: Vec<String>,
    inits: Vec<u32>,
    daemon: u32,
    launcher: u32,
}

impl Pod {
    fn run(case: &Case<'_>, containers: usize, change: fn(&mut Value)) -> Result<Pod> {
        let group = case.id("g");
        let ids: Vec<String> = (0..containers).map(|_| member(case, &group, change)).collect::<Result<_>>()?;
        let inits: Vec<u32> = ids.iter().map(|id| case.ctr().pid(id)).collect::<Result<_>>()?;
        let parents: Vec<u32> = inits.iter().filter_map(|pid| Some(proc::process(*pid)?.parent)).collect();
        let daemon = parents[0];
        ensure!(parents.len() == containers && parents.iter().all(|parent| *parent == daemon), "parents of the inits: {parents:?}");
        let launcher = launcher_of(daemon).context(|| format!("the daemon {daemon} has no launcher"))?;
        Ok(Pod { group, ids, inits, daemon, launcher })
    }

    fn kill_daemon(&self) -> Result<()> {
        signal(self.daemon, Signal::KILL)
    }

    fn kill_both(&self) -> Result<()> {
        signal(self.launcher, Signal::KILL)?;
        self.kill_daemon()
    }

    /// Everything goes, containerd tells of it, and every id can be had again.
    fn ends(&self, case: &Case<'_>) -> Result<()> {
        eventually("processes and cgroups are gone", BOUND, || self.ids.iter().all(|id| remains(id).is_empty())).map_err(|e| {
            let left: Vec<String> = self.ids.iter().flat_map(|id| remains(id)).collect();
            tests::Failure(format!("{e}: {}", left.join(", ")))
        })?;
        for (id, pid) in self.ids.iter().zip(&self.inits) {
            let exit = case.events.wait(id, Kind::Exit, SOON)?;
            ensure_eq!((exit.pid, exit.status), (*pid, 137), "exit of {id}");
            case.events.wait(id, Kind::Delete, SOON)?;
            eventually("the task is gone", SOON, || case.ctr().status(id).is_ok_and(|status| status.is_none()))?;
        }
        for id in &self.ids {
            case.ctr().ok(&["task", "start", "--detach", "--null-io", id])?;
            ensure_eq!(case.exec(id, &["echo", "again"])?, "again", "exec in the new task of {id}");
        }
        Ok(())
    }
}

fn member(case: &Case<'_>, group: &str, change: fn(&mut Value)) -> Result<String> {
    case.configured(&PROCESSES, |spec| {
        spec["annotations"] = json!({"io.containerd.runc.v2.group": group});
        change(spec);
    })
}

fn launcher_of(daemon: u32) -> Option<u32> {
    proc::all().into_iter().find(|process| process.parent == daemon && process.name == "coracle-launch").map(|process| process.pid)
}

/// Processes and cgroups of a container.
fn remains(id: &str) -> Vec<String> {
    let processes = proc::all().into_iter().filter(|process| process.cgroups.contains(id));
    let cgroups = proc::cgroup_roots().into_iter().flat_map(|root| proc::cgroups_below(&root));
    let cgroups = cgroups.filter(|dir| dir.to_string_lossy().contains(id)).map(|dir| dir.display().to_string());
    processes.map(|process| format!("{} {}", process.pid, process.name)).chain(cgroups).collect()
}

fn as_it_is(_: &mut Value) {}

fn hosts_pids(spec: &mut Value) {
    if let Some(namespaces) = spec["linux"]["namespaces"].as_array_mut() {
        namespaces.retain(|namespace| namespace["type"] != "pid");
    }
}

fn launcher(case: &Case<'_>) -> Result<()> {
    without_launcher(case, 1)
}

fn launcher_of_a_pod(case: &Case<'_>) -> Result<()> {
    without_launcher(case, 3)
}

fn without_launcher(case: &Case<'_>, containers: usize) -> Result<()> {
    let pod = Pod::run(case, containers, as_it_is)?;
    signal(pod.launcher, Signal::KILL)?;
    eventually("the launcher is gone, and no zombie", SOON, || proc::process(pod.launcher).is_none())?;
    for (id, pid) in pod.ids.iter().zip(&pod.inits) {
        ensure_eq!(case.ctr().pid(id)?, *pid, "pid of {id}");
        ensure_eq!(case.ctr().status(id)?.as_deref(), Some("RUNNING"), "status of {id}");
        ensure_eq!(case.exec(id, &["echo", "hello"])?, "hello", "exec in {id}");
    }
    let next = launcher_of(pod.daemon).context(|| "no new launcher".to_owned())?;
    // The one that replaced it is killed, too, so that the next Create has to find out.
    signal(next, Signal::KILL)?;
    eventually("the second launcher is gone", SOON, || proc::process(next).is_none())?;
    let added = member(case, &pod.group, as_it_is)?;
    let parent = proc::process(case.ctr().pid(&added)?).map(|init| init.parent);
    ensure_eq!(parent, Some(pod.daemon), "the shim of the added container");
    ensure_eq!(proc::usage(pod.daemon).zombies, 0, "zombies");
    Ok(())
}

fn daemon(case: &Case<'_>) -> Result<()> {
    let pod = Pod::run(case, 1, as_it_is)?;
    pod.kill_daemon()?;
    pod.ends(case)
}

fn daemon_and_launcher(case: &Case<'_>) -> Result<()> {
    let pod = Pod::run(case, 1, as_it_is)?;
    pod.kill_both()?;
    pod.ends(case)
}

fn daemon_of_a_pod(case: &Case<'_>) -> Result<()> {
    let pod = Pod::run(case, 3, as_it_is)?;
    pod.kill_daemon()?;
    pod.ends(case)
}

fn daemon_and_launcher_of_a_pod(case: &Case<'_>) -> Result<()> {
    let pod = Pod::run(case, 3, as_it_is)?;
    pod.kill_both()?;
    pod.ends(case)
}

fn daemon_with_the_hosts_pids(case: &Case<'_>) -> Result<()> {
    let pod = Pod::run(case, 1, hosts_pids)?;
    pod.kill_daemon()?;
    pod.ends(case)
}

fn daemon_and_launcher_with_the_hosts_pids(case: &Case<'_>) -> Result<()> {
    let pod = Pod::run(case, 3, hosts_pids)?;
    pod.kill_both()?;
    pod.ends(case)
}

fn daemon_of_a_paused_container(case: &Case<'_>) -> Result<()> {
    let pod = Pod::run(case, 1, as_it_is)?;
    case.ctr().ok(&["task", "pause", &pod.ids[0]])?;
    pod.kill_daemon()?;
    pod.ends(case)
}

fn daemon_and_launcher_of_a_paused_container(case: &Case<'_>) -> Result<()> {
    let pod = Pod::run(case, 3, as_it_is)?;
    case.ctr().ok(&["task", "pause", &pod.ids[1]])?;
    pod.kill_both()?;
    pod.ends(case)
}
