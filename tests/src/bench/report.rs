//! The table on the terminal, and the same as JSON.

use std::fs;
use std::process::Command;

use serde_json::{Value, json};

use crate::containerd::Version;
use crate::{Result, command, paths};

use super::peer;
use super::stats::{quantile, ratio};
use super::suite::{OURS, Results, Row};
use super::target::Target;

/// The machine and the peers: name and value.
pub fn about(quick: bool) -> Result<Vec<(String, String)>> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let containerd = command::output(Command::new(Version::V16.program("containerd")?).arg("--version"))?;
    let hierarchies = crate::proc::cgroup_roots().len();
    let unified = crate::proc::is_cgroup_v2();
    let mut about = vec![
        ("kernel".to_owned(), read("/proc/sys/kernel/osrelease")),
        ("processors".to_owned(), std::thread::available_parallelism()?.to_string()),
        ("cgroups of the host".to_owned(), format!("{}, {hierarchies} mounted", if unified { "version 2" } else { "version 1 or hybrid" })),
        ("load at the start".to_owned(), read("/proc/loadavg")),
        (OURS.to_owned(), paths::shim_dir()?.join(paths::binary_name(paths::OURS)).display().to_string()),
        ("containerd and its shim".to_owned(), containerd.trim().to_owned()),
    ];
    for name in ["runc", "crun"] {
        about.push((name.to_owned(), peer::version(name).unwrap_or_else(|e| format!("cannot run: {e}"))));
    }
    about.push(("peers' root filesystem in the core rows".to_owned(), "a plain directory; ours and the yardstick's an overlay".to_owned()));
    about.push(("kind of run".to_owned(), if quick { "quick" } else { "full" }.to_owned()));
    Ok(about)
}

/// Prints everything.
pub fn print(about: &[(String, String)], results: &Results, targets: &[Target]) {
    for (name, value) in about {
        println!("{name}: {value}");
    }
    print_rows(results);
    println!("\nwhole lives per second, bare cgroup v2");
    println!("  {:<12} {:>9} {:>9} {:>9}", "workers", 1, 2, 4);
    for name in results.rates.iter().filter(|rate| rate.workers == 1).map(|rate| rate.contender) {
        let of = |workers| results.rates.iter().find(|rate| rate.contender == name && rate.workers == workers);
        let cells = [1, 2, 4].map(|workers| of(workers).map_or("-".to_owned(), |rate| format!("{:.0}", rate.per_second)));
        println!("  {name:<12} {:>9} {:>9} {:>9}", cells[0], cells[1], cells[2]);
    }
    print_facts(results);
    if !results.absent.is_empty() {
        println!("\nnot measured");
    }
    for absent in &results.absent {
        println!("  {} in {}: {}", absent.contender, absent.title, absent.reason);
    }
    println!("\ntargets");
    for target in targets {
        let verdict = if target.met() { "met" } else { "MISSED" };
        let value = target.value.map_or("not measured".to_owned(), |value| format!("{}{}", number(value), target.unit));
        println!("  {verdict:<7} {:<60} {value:>10}, at most {}{}", target.what, number(target.limit), target.unit);
    }
}

fn print_rows(results: &Results) {
    let (mut title, mut metric) = ("", "");
    for row in ordered(results) {
        if row.title != title {
            println!("\n{} ({}; {} rounds)", row.title, row.setup, row.values.len());
            println!("  {:<42} {:<10} {:>9} {:>9} {:>9} µs   {OURS} is, with 95 % interval", "", "", "p10", "p50", "p90");
            metric = "";
        }
        let label = if row.metric == metric { "" } else { row.meaning };
        (title, metric) = (row.title, row.metric);
        let [low, middle, high] = [0.1, 0.5, 0.9].map(|q| quantile(&row.values, q));
        let is = compared(results, row).map_or(String::new(), |r| format!("{}× [{} {}]", number(r.median), number(r.low), number(r.high)));
        println!("  {label:<42} {:<10} {low:>9.0} {middle:>9.0} {high:>9.0}      {is}", row.contender);
    }
}

fn print_facts(results: &Results) {
    let contenders: Vec<_> = results.facts.keys().collect();
    println!("\nmeasured once");
    let heads: Vec<String> =
        contenders.iter().map(|(title, who)| format!("{who}{}", title.strip_prefix("shim").unwrap_or(title))).collect();
    println!("  {:<36} {}", "", heads.iter().map(|head| format!("{head:>24}")).collect::<String>());
    let Some(names) = results.facts.values().next().map(|facts| facts.keys()) else { return };
    for name in names {
        let cell = |key: &&(&'static str, &'static str)| {
            let value = results.facts[*key].get(name).copied().unwrap_or(f64::NAN);
            let bytes = ["private", "pss", "binaries", "private of a further container"].contains(&name.as_str());
            format!("{:>24}", if bytes { format!("{:.0} kB", value / 1e3) } else { number(value) })
        };
        println!("  {name:<36} {}", contenders.iter().map(cell).collect::<String>());
    }
}

/// By comparison, then metric, then contender, as they were measured.
pub fn ordered(results: &Results) -> Vec<&Row> {
    let mut titles: Vec<(&str, &str)> = Vec::new();
    for row in &results.rows {
        if !titles.contains(&(row.title, row.metric)) {
            titles.push((row.title, row.metric));
        }
    }
    // A comparison's metrics came contender by contender; its titles are together already.
    titles.iter().flat_map(|key| results.rows.iter().filter(|row| (row.title, row.metric) == *key)).collect()
}

/// Ours in pairs with another's row.
pub fn compared(results: &Results, row: &Row) -> Option<super::stats::Ratio> {
    if row.contender == OURS {
        return None;
    }
    ratio(&results.row(row.title, row.metric, OURS)?.values, &row.values)
}

/// Three digits that count.
pub fn number(value: f64) -> String {
    match value.abs() {
        v if v == 0.0 || v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        v if v >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

/// Everything for programs, the samples included.
pub fn json(about: &[(String, String)], results: &Results, targets: &[Target]) -> String {
    let rows: Vec<Value> = results
        .rows
        .iter()
        .map(|row| {
            let [low, middle, high] = [0.1, 0.5, 0.9].map(|q| quantile(&row.values, q));
            let ours = compared(results, row).map(|r| json!({"median": r.median, "low": r.low, "high": r.high}));
            json!({"comparison": row.title, "setup": row.setup, "metric": row.metric, "meaning": row.meaning, "contender": row.contender,
                "unit": "us", "p10": low, "p50": middle, "p90": high, "ours_to_it": ours, "samples": row.values})
        })
        .collect();
    let rates: Vec<Value> = results
        .rates
        .iter()
        .map(|rate| json!({"contender": rate.contender, "workers": rate.workers, "per_second": rate.per_second}))
        .collect();
    let facts: Vec<Value> = results
        .facts
        .iter()
        .map(|((title, contender), facts)| json!({"comparison": title, "contender": contender, "values": facts}))
        .collect();
    let absent: Vec<Value> =
        results.absent.iter().map(|a| json!({"comparison": a.title, "contender": a.contender, "reason": a.reason})).collect();
    let targets: Vec<Value> =
        targets.iter().map(|t| json!({"what": t.what, "limit": t.limit, "unit": t.unit, "value": t.value, "met": t.met()})).collect();
    let about: serde_json::Map<String, Value> = about.iter().map(|(name, value)| (name.clone(), json!(value))).collect();
    format!("{:#}\n", json!({"about": about, "targets": targets, "rows": rows, "rates": rates, "facts": facts, "absent": absent}))
}
