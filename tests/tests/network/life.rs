//! What happens to networks when something dies, or somebody else is at work.

use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use tests::containerd::eventually;
use tests::netns::{Namespace, Protocol};
use tests::{Case, Result, command, ensure, ensure_eq, proc};

use crate::{state, table, waiting};

const SOON: Duration = Duration::from_secs(15);

fn nft(args: &[&str]) -> Result<String> {
    command::output(Command::new("nft").args(args))
}

pub fn a_flushed_table_is_made_again(case: &Case<'_>) -> Result<()> {
    let first = waiting(case, &[("network", "bridge"), ("ports", "6080:80")])?;
    let _server = first.namespace.serve(Protocol::Tcp, 80, "first")?;
    let host = Namespace::own()?;
    host.ask(Protocol::Tcp, "127.0.0.1", 6080)?;
    nft(&["delete", "table", "inet", "coracle"])?;
    host.is_unanswered(Protocol::Tcp, "127.0.0.1", 6080)?;
    let second = waiting(case, &[("network", "bridge"), ("ports", "6081:80")])?;
    let _other = second.namespace.serve(Protocol::Tcp, 80, "second")?;
    for (port, word) in [(6080, "first"), (6081, "second")] {
        ensure!(host.ask(Protocol::Tcp, "127.0.0.1", port)?.starts_with(word), "port {port}");
    }
    Ok(())
}

pub fn rules_of_others_stay(case: &Case<'_>) -> Result<()> {
    let table = "add table inet others; add chain inet others c { type filter hook forward priority 5; policy accept; }; \
        add set inet others s { type ipv4_addr; }; add element inet others s { 10.0.0.1 }; add rule inet others c ip saddr @s counter drop";
    nft(&["--", table])?;
    command::output(Command::new("iptables-nft").args(["-t", "nat", "-A", "POSTROUTING", "-s", "10.9.0.0/16", "-j", "MASQUERADE"]))?;
    let theirs = || -> Result<String> {
        Ok([nft(&["--handle", "list", "table", "inet", "others"])?, nft(&["--handle", "list", "table", "ip", "nat"])?].concat())
    };
    let before = theirs()?;
    let member = waiting(case, &[("network", "bridge"), ("ports", "6090:80,6090:80/udp")])?;
    ensure!(crate::table()?.contains("6090"), "no port");
    case.ctr().ok(&["task", "kill", "-s", "KILL", &member.id])?;
    case.ctr().wait_status(&member.id, "STOPPED", SOON)?;
    case.ctr().ok(&["task", "rm", &member.id])?;
    ensure!(!crate::table()?.contains("6090"), "the port is left");
    ensure_eq!(theirs()?, before, "tables of others");
    nft(&["delete", "table", "inet", "others"])?;
    nft(&["delete", "table", "ip", "nat"]).map(drop)
}

pub fn killed_daemon(case: &Case<'_>) -> Result<()> {
    let member = waiting(case, &[("network", "bridge"), ("ports", "6100:80"), ("egress-rate", "10M")])?;
    let parent = |pid: u32| proc::process(pid).map(|process| process.parent);
    let daemon = parent(member.pid).unwrap_or_default();
    ensure!(table()?.contains("6100"), "no port");
    command::signal(daemon, Signal::KILL)?;
    let name = |text: &str| text.contains(&member.id);
    eventually("its lease is given back", SOON, || !name(&std::fs::read_to_string(state().join("leases")).unwrap_or_default()))?;
    eventually("its port is closed", SOON, || table().is_ok_and(|table| !table.contains("6100")))?;
    let links = || command::output(Command::new("ip").args(["-br", "link"])).unwrap_or_default();
    eventually("its devices have gone", SOON, || !links().contains("cbw"))
}
