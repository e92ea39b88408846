//! The kubelet's part played against containerd's CRI plugin: every case on every containerd and in every way to install the shim.
//!
//! What must pass where is the table of deploy/docs/kubernetes.md, which is read here: a case without a row, a row without a case, a gap
//! without a cause and a gap that is none are failures.

mod basics;
mod compare;
mod lifecycle;
mod mounts;
mod namespaces;
mod node;
mod resources;
mod security;
mod streams;
mod table;
mod users;

use std::process::ExitCode;

use tests::containerd::Version;
use tests::cri::{Node, PodCase, Style};
use tests::suite::{Lane, LaneCase, Named, main_of, main_of_lanes, versions};
use tests::{Failure, Result, both};

use table::Table;

/// A named case.
type Entry = (&'static str, fn(&PodCase<'_>) -> Result<()>);

/// Names each function by its identifier, with its module.
macro_rules! entries {
    ($($module:ident: $($name:ident),* $(,)?;)*) => { &[$($((stringify!($name), $module::$name as fn(&PodCase<'_>) -> Result<()>)),*),*] };
}

const CASES: &[Entry] = entries! {
    basics: pod_and_container, exec_sync, logs, options, unknown_option, handler_features;
    namespaces: containers_share_the_pod, shared_pid_namespace, targeted_pid_namespace, host_network, host_pid, host_ipc, pod_sysctls;
    security: run_as_user_and_groups, strict_supplemental_groups, no_new_privileges, capabilities, seccomp_profiles,
        masked_and_readonly_paths, read_only_root, privileged, devices;
    mounts: volumes, propagation, bidirectional_propagation, recursive_read_only;
    resources: limits_of_a_container, resize, resize_before_the_start, resize_below_usage, oom_killed, container_stats, pressure, pod_stats, hugepages;
    streams: exec_stream, exec_terminal, attach, port_forward, pod_address, log_rotation, order_of_both_streams;
    lifecycle: created_and_removed, stopped_and_removed_twice, stopped_and_kept, termination, init_containers_and_sidecars, probes_and_restarts,
        second_of_the_same_name, no_such_command, pods_at_once, daemon_killed;
    users: user_namespace, user_namespace_with_a_volume, user_namespace_of_a_user, user_namespace_is_locked, user_namespace_terminal;
};

/// A case that has the node to itself.
type NodeEntry = (&'static str, fn(&mut Node, Style) -> Result<()>);

/// At the end of each lane.
const OF_ALL: &[NodeEntry] =
    &[("same_as_the_peer", compare::same_as_the_peer), ("containerd_killed", node::containerd_killed), ("upgraded", node::upgraded)];

/// At the end of the lane in which all pods have one daemon.
const OF_NODE_MODE: &[NodeEntry] =
    &[("one_daemon", node::one_daemon), ("containerd_killed", node::containerd_killed), ("upgraded", node::upgraded_in_node_mode)];

/// In node mode all is as in the other, so a few cases do: those that end pods and daemons, and those with most traffic.
const IN_NODE_MODE: [&str; 4] = ["pod_and_container", "shared_pid_namespace", "oom_killed", "pods_at_once"];

fn main() -> ExitCode {
    let table = match table::read(CASES.iter().map(|case| case.0)) {
        Ok(table) => table,
        Err(e) => {
            return main_of(
                vec![("pods::table".to_owned(), Box::new(move || Err(Failure(e.0.clone()))) as Box<dyn Fn() -> Result<()>>)] as Vec<Named>
            );
        }
    };
    let pairs = versions().into_iter().flat_map(|version| Style::all(version).iter().map(move |style| (version, *style)));
    let in_node_mode = versions().into_iter().flat_map(|version| {
        let styles = [Style::Own, Style::Podless].into_iter().filter(move |style| Style::all(version).contains(style));
        styles.map(move |style| (version, style))
    });
    let lanes = pairs
        .map(|(version, style)| lane(&table, version, style))
        .chain(in_node_mode.map(|(version, style)| node_mode(&table, version, style)));
    main_of_lanes(lanes.collect())
}

/// All cases on one containerd of their own, in one style.
fn lane(table: &Table, version: Version, style: Style) -> Lane<Node> {
    lane_of(table, version, style, style.name(), (CASES, OF_ALL), &[])
}

/// Some cases with one daemon for all pods.
fn node_mode(table: &Table, version: Version, style: Style) -> Lane<Node> {
    let name = if style == Style::Podless { "node-podless" } else { "node" };
    let mut lane = lane_of(table, version, style, name, (CASES, OF_NODE_MODE), &[("CORACLE_GROUPING", "node")]);
    let wanted = |name: &str| IN_NODE_MODE.iter().chain(OF_NODE_MODE.iter().map(|case| &case.0)).any(|wanted| *wanted == name);
    lane.cases.retain(|case| case.0.rsplit("::").next().is_some_and(wanted));
    lane
}

fn lane_of(
    table: &Table,
    version: Version,
    style: Style,
    name: &str,
    (cases, of_node): (&[Entry], &'static [NodeEntry]),
    environment: &'static [(&str, &str)],
) -> Lane<Node> {
    let full = |case: &str| format!("pods::{}::{name}::{case}", version.name());
    let case = |entry: &Entry| -> (String, LaneCase<Node>) {
        let (gap, function) = (table.gap(entry.0, version, style), entry.1);
        let log = format!("pods-{}-{name}", version.name());
        (
            full(entry.0),
            Box::new(move |node| {
                run(node, style, function, gap.as_deref()).inspect_err(|_| {
                    // The message is the case's; the log is for who reads it.
                    let _ = node.containerd.keep_log(&log);
                })
            }),
        )
    };
    let at_the_end = of_node.iter().map(|(name, function)| {
        let log = format!("pods-{}-{name}", version.name());
        let run = move |node: &mut Node| function(node, style).inspect_err(|_| drop(node.containerd.keep_log(&log)));
        (full(name), Box::new(run) as LaneCase<Node>)
    });
    Lane {
        prepare: Box::new(move || Node::start(version, environment)),
        cases: cases.iter().map(case).chain(at_the_end).collect(),
        end: (full("containerd_stops"), |mut node| node.containerd.stop()),
    }
}

/// Runs one case and balances its ledger. Where the table has a gap the case must fail, and still leave nothing,
/// unless it is known to end containerd itself.
fn run(node: &Node, style: Style, function: fn(&PodCase<'_>) -> Result<()>, gap: Option<&str>) -> Result<()> {
    if gap.is_some_and(|cause| cause.ends_with('!')) {
        return Ok(());
    }
    let case = PodCase::new(node, style)?;
    let result = match (function(&case), gap) {
        (Ok(()), Some(cause)) => Err(Failure(format!("passes, though the table says that it cannot ({cause})"))),
        (Err(_), Some(_)) => Ok(()),
        (result, None) => result,
    };
    both(result, case.close())
}
