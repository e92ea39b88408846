//! The comparisons, and how they are run: all workers of one at the same time, asked in turn.

use std::collections::BTreeMap;
use std::time::Instant;

use crate::{Result, ensure, paths};

use super::worker::Worker;
use super::{Sample, plot, report, target};

/// Our name in tables.
pub const OURS: &str = "coracle";
/// An earlier version of ours, where `BENCH_BASE` names the directory of one.
pub const BEFORE: &str = "before";
/// Ours on an empty host.
const ALONE: &str = "alone";
/// The yardstick's.
pub const FLOOR: &str = "yardstick";
/// Turns whose samples are thrown away: files are read and caches filled.
const WARM_UP: usize = 2;
/// Lives per worker when throughput is measured.
const LIVES: u32 = 60;

/// One set of workers that are compared with each other.
struct Comparison {
    title: &'static str,
    setup: &'static str,
    /// The keys of a sample and what they mean.
    metrics: &'static [(&'static str, &'static str)],
    /// Name, worker's arguments.
    contenders: &'static [(&'static str, &'static [&'static str])],
    rounds: usize,
}

const CORE: &[(&str, &str)] = &[
    ("start", "bundle to execve (peers: create + start)"),
    ("run", "bundle to removed (peers: run)"),
    ("exec", "exec to execve (peers: exec)"),
];
const SHIM: &[(&str, &str)] = &[
    ("boot", "start to first answered RPC"),
    ("first", "Create + Start, first of a pod"),
    ("create+start", "Create + Start, further of a pod"),
    ("exec+start", "Exec + Start"),
    ("delete", "Delete"),
];
const CTR: &[(&str, &str)] = &[("ctr run", "ctr run --rm")];
const NETWORK: &[(&str, &str)] =
    &[("up", "namespace, veth, address, route, published port"), ("down", "released, while the reply has gone")];
const BARE: &str = "private mount namespace with a bare cgroup v2 tree, no device rules, ociVersion 1.0.2";
const HOST: &str = "the host's cgroups, containerd's device rules";

const COMPARISONS: &[Comparison] = &[
    Comparison {
        title: "core",
        setup: BARE,
        metrics: CORE,
        contenders: &[(OURS, &["core", "bare"]), (FLOOR, &["floor", "bare"]), ("runc", &["runc", "bare"]), ("crun", &["crun", "bare"])],
        rounds: 80,
    },
    Comparison {
        title: "core, network namespace given",
        setup: BARE,
        metrics: CORE,
        contenders: &[
            (OURS, &["core", "bare", "given"]),
            (FLOOR, &["floor", "bare", "given"]),
            ("runc", &["runc", "bare", "given"]),
            ("crun", &["crun", "bare", "given"]),
        ],
        rounds: 40,
    },
    Comparison {
        title: "core, host cgroups",
        setup: HOST,
        metrics: CORE,
        contenders: &[(OURS, &["core"]), (FLOOR, &["floor"]), ("runc", &["runc"]), ("crun", &["crun"])],
        rounds: 60,
    },
    Comparison {
        title: "shim",
        setup: HOST,
        metrics: SHIM,
        contenders: &[(OURS, &["shim"]), ("runc", &["shim", "runc"]), ("crun", &["shim", "crun"])],
        rounds: 50,
    },
    Comparison {
        title: "shim, bare cgroup v2",
        setup: BARE,
        metrics: SHIM,
        contenders: &[(OURS, &["shim", "bare"]), ("runc", &["shim", "bare", "runc"]), ("crun", &["shim", "bare", "crun"])],
        rounds: 50,
    },
    Comparison {
        title: "ctr",
        setup: "containerd 1.6, the host's cgroups, overlay snapshot, ctr's own specification with --seccomp",
        metrics: CTR,
        contenders: &[(OURS, &["ctr"]), ("runc", &["ctr", "runc"]), ("crun", &["ctr", "crun"])],
        rounds: 25,
    },
    Comparison {
        title: "ctr, bare cgroup v2",
        setup: "containerd 1.6, bare cgroup v2 tree, --config without cpu shares and device rules, plain directory",
        metrics: CTR,
        contenders: &[(OURS, &["ctr", "bare"]), ("runc", &["ctr", "bare", "runc"]), ("crun", &["ctr", "bare", "crun"])],
        rounds: 25,
    },
    Comparison {
        title: NETWORKS[0],
        setup: "a bridge with one published TCP port, IPv4; CNI is bridge with host-local, and portmap",
        metrics: NETWORK,
        contenders: &[(OURS, &["network"]), (FLOOR, &["network", "primitives"]), ("cni", &["network", "cni"])],
        rounds: 60,
    },
    Comparison {
        title: NETWORKS[1],
        setup: "the same beside 200 others, each with a port, and alone",
        metrics: NETWORK,
        contenders: &[(OURS, &["network", "crowded"]), (FLOOR, &["network", "primitives", "crowded"]), (ALONE, &["network"])],
        rounds: 60,
    },
];

/// The title of the comparison of networks, and that of ours with itself on a host with many containers.
pub const NETWORKS: [&str; 2] = ["network", "network, 200 containers there"];

/// All samples of one contender for one metric.
pub struct Row {
    /// The comparison.
    pub title: &'static str,
    /// Its set-up.
    pub setup: &'static str,
    /// The sample's key.
    pub metric: &'static str,
    /// What it means.
    pub meaning: &'static str,
    /// Who.
    pub contender: &'static str,
    /// Microseconds, turn by turn.
    pub values: Vec<f64>,
}

/// Whole lives per second.
pub struct Rate {
    /// Who.
    pub contender: &'static str,
    /// How many workers at once.
    pub workers: usize,
    /// Containers per second of all of them.
    pub per_second: f64,
}

/// Who could not take part, where and why.
pub struct Absent {
    /// The comparison.
    pub title: String,
    /// Who.
    pub contender: &'static str,
    /// Why.
    pub reason: String,
}

/// Everything that was measured.
#[derive(Default)]
pub struct Results {
    /// Times.
    pub rows: Vec<Row>,
    /// Throughput.
    pub rates: Vec<Rate>,
    /// What is measured once, by contender and set-up.
    pub facts: BTreeMap<(&'static str, &'static str), Sample>,
    /// Who is missing.
    pub absent: Vec<Absent>,
}

impl Results {
    /// The row of one contender.
    pub fn row(&self, title: &str, metric: &str, contender: &str) -> Option<&Row> {
        self.rows.iter().find(|row| row.title == title && row.metric == metric && row.contender == contender)
    }

    fn miss(&mut self, title: &str, contender: &'static str, reason: String) {
        eprintln!("  {contender} cannot run here: {reason}");
        self.absent.push(Absent { title: title.to_owned(), contender, reason });
    }
}

/// Runs everything, prints the table and writes JSON and plot.
pub fn run() -> Result<()> {
    let quick = std::env::var_os("BENCH_QUICK").is_some_and(|value| value != "0");
    let begin = Instant::now();
    let about = report::about(quick)?;
    let mut results = Results::default();
    for comparison in COMPARISONS.iter().filter(|comparison| is_wanted(comparison)) {
        let rounds = if quick { (comparison.rounds / 8).max(3) } else { comparison.rounds };
        eprintln!("{}: {rounds} rounds", comparison.title);
        compare(comparison, rounds, &mut results)?;
    }
    eprintln!("throughput");
    throughput(if quick { LIVES / 6 } else { LIVES }, &mut results)?;
    let targets = target::judge(&results);
    report::print(&about, &results, &targets);
    println!("took {:.0} s", begin.elapsed().as_secs_f64());
    let dir = paths::checkout().join("target/bench");
    std::fs::create_dir_all(&dir)?;
    std::fs::write(dir.join("bench.json"), report::json(&about, &results, &targets))?;
    std::fs::write(dir.join("bench.svg"), plot::svg(&about, &results))?;
    println!("written: target/bench/bench.json, target/bench/bench.svg");
    ensure!(!results.absent.iter().any(|absent| absent.contender == OURS), "our own runtime could not run, see above");
    Ok(())
}

fn spawn(name: &str, args: &[&str]) -> Result<Worker> {
    let runtime = if matches!(name, OURS | BEFORE) { paths::OURS } else { "io.containerd.runc.v2" };
    let base = base().filter(|_| name == BEFORE);
    let mut environment = vec![("TEST_RUNTIME", runtime)];
    environment.extend(base.as_deref().map(|base| ("CORACLE_BIN", base)));
    Worker::spawn(name, args, &environment)
}

fn base() -> Option<String> {
    std::env::var("BENCH_BASE").ok().filter(|base| !base.is_empty())
}

/// Whether a comparison was asked for: all are, unless `BENCH_ONLY` has the words that its title begins with.
fn is_wanted(comparison: &Comparison) -> bool {
    std::env::var("BENCH_ONLY").map_or(true, |only| only.split(',').any(|word| comparison.title.starts_with(word)))
}

fn compare(comparison: &Comparison, rounds: usize, results: &mut Results) -> Result<()> {
    let mut workers = Vec::new();
    let ours =
        comparison.contenders.iter().find(|(name, args)| *name == OURS && args.first().is_some_and(|kind| matches!(*kind, "shim" | "ctr")));
    let before = ours.filter(|_| base().is_some()).map(|(_, args)| (BEFORE, *args));
    for (name, args) in comparison.contenders.iter().copied().chain(before) {
        match spawn(name, args) {
            Ok(worker) => workers.push((name, worker, Vec::<Sample>::new())),
            Err(e) => results.miss(comparison.title, name, e.0),
        }
    }
    for round in 0..rounds + WARM_UP {
        let mut failed = None;
        // To and fro: each comes after each of its neighbours as often.
        let turn: &mut dyn Iterator<Item = _> =
            if round % 2 == 0 { &mut workers.iter_mut().enumerate() } else { &mut workers.iter_mut().enumerate().rev() };
        for (place, (name, worker, samples)) in turn {
            match worker.sample() {
                Ok(sample) if round >= WARM_UP => samples.push(sample),
                Ok(_) => {}
                Err(e) => failed = Some((place, *name, e.0)),
            }
        }
        if let Some((place, name, reason)) = failed {
            results.miss(comparison.title, name, reason);
            workers.remove(place);
        }
    }
    for (name, worker, samples) in &mut workers {
        for &(metric, meaning) in comparison.metrics {
            let values = samples.iter().filter_map(|sample| sample.get(metric).copied()).collect();
            let (title, setup) = (comparison.title, comparison.setup);
            results.rows.push(Row { title, setup, metric, meaning, contender: name, values });
        }
        match worker.facts() {
            Ok(facts) if facts.is_empty() => {}
            Ok(facts) => drop(results.facts.insert((comparison.title, *name), facts)),
            Err(e) => results.miss(&format!("{}, once", comparison.title), name, e.0),
        }
    }
    Ok(())
}

/// Whole lives by 1, 2 and 4 workers at once, on the set-up where all can run.
fn throughput(lives: u32, results: &mut Results) -> Result<()> {
    for &(name, args) in COMPARISONS[0].contenders {
        for count in [1, 2, 4] {
            let spawned = (0..count).map(|_| spawn(name, args)).collect::<Result<Vec<_>>>();
            let mut workers = match spawned {
                Ok(workers) => workers,
                Err(e) => {
                    results.miss("throughput", name, e.0);
                    break;
                }
            };
            let begin = Instant::now();
            workers.iter_mut().try_for_each(|worker| worker.begin_lives(lives))?;
            let ended = workers.iter_mut().try_for_each(|worker| worker.numbers().map(drop));
            let per_second = f64::from(lives) * count as f64 / begin.elapsed().as_secs_f64();
            match ended {
                Ok(()) => results.rates.push(Rate { contender: name, workers: count, per_second }),
                Err(e) => results.miss("throughput", name, e.0),
            }
        }
    }
    Ok(())
}
