//! What a container runs without, for the log.

use crate::cgroup::Host;
use crate::compile::unknown_capabilities;
use crate::rdt;
use crate::seccomp::Filter;
use crate::spec::Spec;

/// One sentence per thing that a spec asks for and this host or build has not, and that does not matter for security, and per device rule that
/// allows more than its author may think.
pub fn passed_over(host: &Host, spec: &Spec, filter: Option<&Filter>) -> Vec<String> {
    let limits = host.ignored(&spec.linux.resources);
    let limits = limits.into_iter().map(|field| format!("linux.resources.{field} has no effect on this host, ignoring"));
    let calls = filter.iter().flat_map(|filter| &filter.skipped);
    let calls = calls.map(|name| format!("linux.seccomp: system call {name:?} is unknown, ignoring"));
    let capabilities = spec.process.iter().flat_map(unknown_capabilities).map(|name| format!("capability {name:?} is unknown, ignoring"));
    let groups = spec.linux.intel_rdt.iter().filter(|_| !rdt::is_mounted());
    let groups = groups.map(|_| "linux.intelRdt has no effect without a mounted resctrl, ignoring".to_owned());
    let rules = spec.linux.resources.devices.iter().enumerate().filter(|(_, rule)| rule.is_wider_than_it_says());
    let rules = rules.map(|(index, _)| format!("linux.resources.devices[{index}] is of type \"a\" and allows all access to all devices"));
    limits.chain(calls).chain(capabilities).chain(groups).chain(rules).collect()
}
