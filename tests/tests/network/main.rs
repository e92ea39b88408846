//! Networks of the node's, asked for by annotations: on a host that is a network namespace of the suite's own.

mod life;
mod reach;
mod refused;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use serde_json::Value;
use tests::netns::{self, Namespace};
use tests::suite::Suite;
use tests::{Case, Context, Result, cases, command, paths};

const FILE: &str = r#"
    [networks.front]
    subnets = ["10.31.0.0/24", "fd31::/64"]
    [networks.back]
    subnets = ["10.32.0.0/24"]
    internal = true
    [networks.tiny]
    subnets = ["10.33.0.0/30"]
    [networks.overlapping]
    subnets = ["192.0.2.128/25"]
    [networks.lan]
    subnets = ["198.51.100.0/24"]
    macvlan = "parent"
    [namespaces.NAMESPACE]
    modes = ["bridge", "host", "none", "macvlan"]
    ports = ["1024-65535"]
    join = true
    [namespaces.narrow]
    ports = ["8000/tcp"]
    addresses = ["127.0.0.1"]
"#;

fn main() -> ExitCode {
    let suite = Suite {
        name: "network",
        // There is one host, and some cases take what it has from under the others.
        parallel: 1,
        cases: cases![
            reach::one_network,
            reach::two_networks,
            reach::outside,
            reach::published_ports,
            reach::published_on_one_address,
            reach::names,
            reach::resolver,
            reach::macvlan,
            reach::modes,
            reach::rates,
            refused::bad_annotations,
            refused::what_is_taken,
            refused::full_subnet,
            refused::overlapping_route,
            refused::namespaces_that_do_not_count,
            life::a_flushed_table_is_made_again,
            life::the_next_one_looks_after_it,
            life::rules_of_others_stay,
            life::killed_daemon,
            life::killed_launcher,
            life::many_at_once,
            life::a_state_that_was_lost,
            life::everything_killed,
            life::the_operators_command,
        ],
    };
    let prepare = |bed: &Path| {
        let text = format!("state = {:?}\n{}", bed.join("state"), FILE.replace("NAMESPACE", paths::tag()));
        Ok(fs::write(bed.join(netns::NODE_FILE), text)?)
    };
    netns::on_a_host_of_its_own(prepare, || suite.main())
}

/// Where the state is.
fn state() -> PathBuf {
    netns::bed().join("state")
}

/// A container that only waits.
fn waiting(case: &Case<'_>, annotations: &[(&str, &str)]) -> Result<Member> {
    let flags: Vec<String> =
        annotations.iter().flat_map(|(key, value)| ["--annotation".to_owned(), format!("coracle.{key}={value}")]).collect();
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let id = case.detached(&flags, &["sleep", "1000"])?;
    let pid = case.ctr().pid(&id)?;
    Ok(Member { namespace: Namespace::of(pid)?, id, pid })
}

/// Kills a container's first process, and deletes the task.
fn end(case: &Case<'_>, id: &str) -> Result<()> {
    case.ctr().ok(&["task", "kill", "-s", "KILL", id])?;
    case.ctr().wait_status(id, "STOPPED", Duration::from_secs(10))?;
    case.ctr().ok(&["task", "rm", id]).map(drop)
}

/// A container in a network.
struct Member {
    id: String,
    pid: u32,
    namespace: Namespace,
}

impl Member {
    /// Its addresses, IPv4 first.
    fn addresses(&self) -> Result<Vec<String>> {
        let text = self.namespace.command("ip", &["-json", "addr", "show", "dev", "eth0", "scope", "global"])?;
        let all: Value = serde_json::from_str(&text)?;
        let list = all[0]["addr_info"].as_array().context(|| format!("no addresses in {text}"))?;
        Ok(list.iter().filter_map(|address| address["local"].as_str().map(str::to_owned)).collect())
    }

    fn address(&self) -> Result<String> {
        self.addresses()?.into_iter().next().context(|| "no address".to_owned())
    }
}

/// The leases, as they are on disk: text among other things.
fn leases() -> String {
    fs::read(state().join("leases")).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

/// The elements and rules of the node's table.
fn table() -> Result<String> {
    command::output(Command::new("nft").args(["list", "table", "inet", "coracle"]))
}
