//! A hundred pods of two containers each: all run, all answer, all go without a trace; and what the shims of one cost, beside containerd's own.

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use tests::containerd::Version;
use tests::cri::{Node, PodCase, Style};
use tests::footprint::{Shims, proportional};
use tests::suite::{Named, is_long, main_of, versions};
use tests::{Failure, Result, ensure_eq, proc};

fn main() -> ExitCode {
    let newest = versions().into_iter().next_back();
    let cases = versions().into_iter().filter(|version| is_long() || Some(*version) == newest).flat_map(|version| {
        let node_mode: &[_] = &[("CORACLE_GROUPING", "node")];
        let without_pause = [("without_pause", &[][..]), ("without_pause_in_node_mode", node_mode)];
        let without_pause = without_pause.map(|(name, mode)| case(name, version, Style::Podless, mode, MANY));
        let with_pause = [
            case("many_pods", version, Style::Own, &[], MANY),
            case("many_pods_in_node_mode", version, Style::Own, node_mode, MANY),
            case("pods_of_the_peer", version, Style::Runc, &[], OF_THE_PEER),
        ];
        with_pause.into_iter().chain(without_pause.into_iter().filter(move |_| Style::all(version).contains(&Style::Podless)))
    });
    main_of(cases.collect())
}

fn case(name: &str, version: Version, style: Style, environment: &'static [(&str, &str)], count: usize) -> Named {
    (format!("many_pods::{}::{name}", version.name()), Box::new(move || run(version, style, environment, count)))
}

/// How many pods are run at once, by so many clients.
const MANY: usize = 100;
/// Of containerd's own shim, of which a few show as much.
const OF_THE_PEER: usize = 20;
const CLIENTS: usize = 8;
/// Of those that are timed.
const ALONE: usize = 21;

/// Runs them, lets each answer, removes them; prints what the shims of one cost.
fn run(version: Version, style: Style, environment: &[(&str, &str)], count: usize) -> Result<()> {
    let mut node = Node::start(version, environment)?;
    let line = memory_of(&node, style, count)?;
    let (pod, container) = alone(&node, style)?;
    let mode = environment.first().map_or("", |_| " in node mode");
    println!(
        "containerd {}, {}{mode}: {line}; {pod:.1} ms for one RunPodSandbox alone, {container:.1} ms for a container",
        version.name(),
        style.name()
    );
    node.containerd.stop()
}

fn memory_of(node: &Node, style: Style, count: usize) -> Result<String> {
    let (case, began) = (PodCase::new(node, style)?, Instant::now());
    let workers: Vec<Result<Processes>> = thread::scope(|scope| {
        let case = &case;
        let run = |worker| move || some_of_many(case, (worker..count).step_by(CLIENTS));
        let workers: Vec<_> = (0..CLIENTS).map(|worker| scope.spawn(run(worker))).collect();
        workers.into_iter().map(|worker| worker.join().unwrap_or_else(|_| Err(Failure("panicked".to_owned())))).collect()
    });
    let all = workers.into_iter().collect::<Result<Vec<_>>>()?;
    let daemons: BTreeSet<u32> = all.iter().flat_map(|it| &it.daemons).copied().collect();
    let apps: BTreeSet<u32> = all.iter().flat_map(|it| &it.apps).copied().collect();
    let of_pods = proc::all().into_iter().filter(|it| it.cgroups.contains(case.word()) && !apps.contains(&it.pid)).map(|it| it.pid);
    let holders: Vec<u32> = of_pods.collect();
    let shims = daemons.iter().copied().chain(daemons.iter().filter_map(|daemon| Some(Shims::of_daemon(*daemon).ok()?.launcher)));
    let started = began.elapsed();
    let pss = shims.map(proportional).sum::<Result<u64>>()?;
    ensure_eq!(case.running()?, 2 * count, "running containers");
    let each = pss as f64 / count as f64;
    let held = holders.iter().copied().map(proportional).sum::<Result<u64>>()? as f64 / count as f64;
    let line = format!(
        "{count} pods of 2 containers: {} daemons, {each:.1} KiB of shims (PSS) for each pod, {} processes that hold pods, {held:.1} KiB of them",
        daemons.len(),
        holders.len()
    );
    case.close()?;
    Ok(format!("{line}; {:.1}s to start and call, {:.1}s to remove", started.as_secs_f32(), (began.elapsed() - started).as_secs_f32()))
}

/// How long it takes to run a pod, and then to create and start a container in it, in milliseconds: the medians of a few, one after the other.
fn alone(node: &Node, style: Style) -> Result<(f64, f64)> {
    let case = PodCase::new(node, style)?;
    let (mut pods, mut containers) = (Vec::new(), Vec::new());
    for number in 0..ALONE {
        let began = Instant::now();
        let pod = case.pod(&format!("pod-{number}"))?;
        pods.push(began.elapsed());
        pod.sleeper("app")?;
        containers.push(began.elapsed() - pods[number]);
        pod.stop()?;
        pod.remove()?;
    }
    case.close()?;
    Ok((median(pods), median(containers)))
}

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    times[times.len() / 2].as_secs_f64() * 1e3
}

/// What runs of some pods.
#[derive(Default)]
struct Processes {
    daemons: BTreeSet<u32>,
    apps: BTreeSet<u32>,
}

/// Runs pods and answers their processes; each container must answer.
fn some_of_many(case: &PodCase<'_>, numbers: impl Iterator<Item = usize>) -> Result<Processes> {
    let mine = case.sibling()?;
    let mut all = Processes::default();
    for number in numbers {
        let pod = mine.pod(&format!("pod-{number}"))?;
        for name in ["a", "b"] {
            let app = pod.sleeper(name)?;
            ensure_eq!(app.shell("hostname")?, format!("pod-{number}"), "name");
            let pid = app.pid()?;
            all.apps.insert(pid);
            all.daemons.insert(proc::parent(pid)?);
        }
    }
    mine.watched().iter().for_each(|id| case.watch(id));
    Ok(all)
}
