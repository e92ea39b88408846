//! A hundred pods of two containers each: all run, all answer, all go without a trace; and what the shims of one cost, beside containerd's own.

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::thread;
use std::time::Instant;

use tests::containerd::Version;
use tests::cri::{Node, PodCase, Style};
use tests::footprint::{Shims, proportional};
use tests::suite::{Named, is_long, main_of, versions};
use tests::{Context, Failure, Result, ensure_eq, proc};

fn main() -> ExitCode {
    let newest = versions().into_iter().next_back();
    let cases = versions().into_iter().filter(|version| is_long() || Some(*version) == newest).flat_map(|version| {
        [
            case("many_pods", version, Style::Own, &[], MANY),
            case("many_pods_in_node_mode", version, Style::Own, &[("CORACLE_GROUPING", "node")], MANY),
            case("pods_of_the_peer", version, Style::Runc, &[], OF_THE_PEER),
        ]
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

/// Runs them, lets each answer, removes them; prints what the shims of one cost.
fn run(version: Version, style: Style, environment: &[(&str, &str)], count: usize) -> Result<()> {
    let mut node = Node::start(version, environment)?;
    let line = memory_of(&node, style, count)?;
    println!("containerd {}, {}{}: {line}", version.name(), style.name(), environment.first().map_or("", |_| " in node mode"));
    node.containerd.stop()
}

fn memory_of(node: &Node, style: Style, count: usize) -> Result<String> {
    let (case, began) = (PodCase::new(node, style)?, Instant::now());
    let workers: Vec<Result<BTreeSet<u32>>> = thread::scope(|scope| {
        let case = &case;
        let run = |worker| move || some_of_many(case, (worker..count).step_by(CLIENTS));
        let workers: Vec<_> = (0..CLIENTS).map(|worker| scope.spawn(run(worker))).collect();
        workers.into_iter().map(|worker| worker.join().unwrap_or_else(|_| Err(Failure("panicked".to_owned())))).collect()
    });
    let daemons = workers.into_iter().collect::<Result<Vec<_>>>()?.into_iter().flatten().collect::<BTreeSet<u32>>();
    let shims = daemons.iter().copied().chain(daemons.iter().filter_map(|daemon| Some(Shims::of_daemon(*daemon).ok()?.launcher)));
    let started = began.elapsed();
    let pss = shims.map(proportional).sum::<Result<u64>>()?;
    ensure_eq!(case.running()?, 2 * count, "running containers");
    let each = pss as f64 / count as f64;
    let line = format!("{count} pods of 2 containers: {} daemons, {each:.1} KiB of shims (PSS) for each pod", daemons.len());
    case.close()?;
    Ok(format!("{line}; {:.1}s to start and call, {:.1}s to remove", started.as_secs_f32(), (began.elapsed() - started).as_secs_f32()))
}

/// Runs pods and answers their daemons; each container must answer.
fn some_of_many(case: &PodCase<'_>, numbers: impl Iterator<Item = usize>) -> Result<BTreeSet<u32>> {
    let mine = case.sibling()?;
    let mut daemons = BTreeSet::new();
    for number in numbers {
        let pod = mine.pod(&format!("pod-{number}"))?;
        for name in ["a", "b"] {
            let app = pod.sleeper(name)?;
            ensure_eq!(app.shell("hostname")?, format!("pod-{number}"), "name");
            daemons.insert(proc::process(app.pid()?).context(|| "the container is gone".to_owned())?.parent);
        }
    }
    mine.watched().iter().for_each(|id| case.watch(id));
    Ok(daemons)
}
