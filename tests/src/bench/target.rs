//! What the project promises of speed and size, and whether this run kept it.

use super::stats::ratio;
use super::suite::{FLOOR, NETWORKS, OURS, Results};

/// One promise.
pub struct Target {
    /// What is compared.
    pub what: &'static str,
    /// At most this.
    pub limit: f64,
    /// Behind the number: a unit, or × for a ratio.
    pub unit: &'static str,
    /// What was measured; `None` where it could not be.
    pub value: Option<f64>,
}

impl Target {
    /// Whether the promise was kept; what could not be measured was not.
    pub fn met(&self) -> bool {
        self.value.is_some_and(|value| value <= self.limit)
    }
}

/// Our median in pairs with another's.
fn pairs(results: &Results, title: &str, metric: &str, other: &str) -> Option<f64> {
    let (ours, theirs) = (results.row(title, metric, OURS)?, results.row(title, metric, other)?);
    Some(ratio(&ours.values, &theirs.values)?.median)
}

fn fact(results: &Results, contender: &str, name: &str) -> Option<f64> {
    results.facts.get(&("shim", contender))?.get(name).copied()
}

/// All promises.
pub fn judge(results: &Results) -> Vec<Target> {
    let target = |what, limit, unit, value| Target { what, limit, unit, value };
    let megabytes = |value: f64| value / 1e6;
    let pss = fact(results, OURS, "pss").zip(fact(results, "runc", "pss")).map(|(ours, theirs)| ours / theirs);
    vec![
        target("core start to the yardstick's", 2.0, "×", pairs(results, "core", "start", FLOOR)),
        target("core start to runc's", 0.15, "×", pairs(results, "core", "start", "runc")),
        target("core exec to runc's", 0.1, "×", pairs(results, "core", "exec", "runc")),
        target("Create + Start to containerd-shim-runc-v2 with runc", 0.2, "×", pairs(results, "shim", "create+start", "runc")),
        target("start to first answered RPC, to containerd-shim-runc-v2", 0.3, "×", pairs(results, "shim", "boot", "runc")),
        target("a network's bring-up to the yardstick's", 2.0, "×", pairs(results, NETWORKS[0], "up", FLOOR)),
        target("a network's bring-up to the CNI plugins'", 0.1, "×", pairs(results, NETWORKS[0], "up", "cni")),
        target("a network's bring-up beside 200 others to the yardstick's there", 2.0, "×", pairs(results, NETWORKS[1], "up", FLOOR)),
        target("idle pod, private memory of daemon and launcher", 0.8, "MB", fact(results, OURS, "private").map(megabytes)),
        target("idle pod, PSS to containerd-shim-runc-v2's", 1.0 / 6.0, "×", pss),
        target("programs executed for a second container", 0.0, "", fact(results, OURS, "execs of the second container")),
        target("host mounts of a container", 0.0, "", fact(results, OURS, "host mounts of a container")),
    ]
}
