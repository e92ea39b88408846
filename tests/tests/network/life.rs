//! What happens to networks when something dies, or somebody else is at work.

use std::collections::HashSet;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};
use tests::case::words;
use tests::command::signal;
use tests::containerd::{Containerd, Version, eventually};
use tests::footprint::Shims;
use tests::netns::{Namespace, Protocol};
use tests::{Case, Context, Failure, Result, command, ensure, ensure_eq, image, paths, proc};

use crate::{end, leases, state, table, waiting};

const SOON: Duration = Duration::from_secs(15);

fn nft(args: &[&str]) -> Result<String> {
    command::output(Command::new("nft").args(args))
}

pub fn a_flushed_table_is_made_again(case: &Case<'_>) -> Result<()> {
    let first = waiting(case, &[("network", "bridge"), ("ports", "6080:80")])?;
    let _server = first.namespace.serve(Protocol::Tcp, 80, "first")?;
    let host = Namespace::own()?;
    host.ask(Protocol::Tcp, "127.0.0.1", 6080)?;
    // At once, while no other container comes: all, the rules alone, a chain.
    for order in ["delete table inet coracle", "flush ruleset", "flush table inet coracle", "flush chain inet coracle postrouting"] {
        let before = table()?;
        nft(&order.split(' ').collect::<Vec<_>>())?;
        ensure!(table().map_or(true, |now| now != before), "{order} has taken nothing away");
        eventually(order, SOON, || table().is_ok_and(|now| now == before))?;
        host.ask(Protocol::Tcp, "127.0.0.1", 6080)?;
    }
    nft(&["delete", "table", "inet", "coracle"])?;
    let second = waiting(case, &[("network", "bridge"), ("ports", "6081:80")])?;
    let _other = second.namespace.serve(Protocol::Tcp, 80, "second")?;
    for (port, word) in [(6080, "first"), (6081, "second")] {
        ensure!(host.ask(Protocol::Tcp, "127.0.0.1", port)?.starts_with(word), "port {port}");
    }
    Ok(())
}

/// Whoever looks after the firewall may end.
pub fn the_next_one_looks_after_it(case: &Case<'_>) -> Result<()> {
    let first = waiting(case, &[("network", "bridge"), ("ports", "6080:80")])?;
    let second = waiting(case, &[("network", "bridge"), ("ports", "6081:80")])?;
    for id in [&first.id, &second.id] {
        let before = table()?;
        nft(&["delete", "table", "inet", "coracle"])?;
        eventually("the table is made again", SOON, || table().is_ok_and(|now| now == before))?;
        end(case, id)?;
        eventually("its daemon ends", SOON, || !proc::all().iter().any(|process| process.command_line.contains(&format!("-id {id}"))))?;
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
    end(case, &member.id)?;
    ensure!(!crate::table()?.contains("6090"), "the port is left");
    ensure_eq!(theirs()?, before, "tables of others");
    nft(&["delete", "table", "inet", "others"])?;
    nft(&["delete", "table", "ip", "nat"]).map(drop)
}

/// What waits for the kernel's lock of networks is a thread, which the daemon has for as long as its container lives.
pub fn killed_launcher(case: &Case<'_>) -> Result<()> {
    let member = waiting(case, &[("network", "bridge")])?;
    let shims = Shims::of(member.pid)?;
    ensure!(proc::usage(shims.daemon).threads > 1, "the daemon has one thread, so this tests nothing");
    signal(shims.launcher, Signal::KILL)?;
    eventually("the launcher is gone", SOON, || proc::process(shims.launcher).is_none_or(|process| process.state == 'Z'))?;
    ensure_eq!(case.exec(&member.id, &["echo", "hello"])?, "hello", "exec without the first launcher");
    end(case, &member.id)
}

pub fn killed_daemon(case: &Case<'_>) -> Result<()> {
    let member = waiting(case, &[("network", "bridge"), ("ports", "6100:80"), ("egress-rate", "10M")])?;
    let parent = |pid: u32| proc::process(pid).map(|process| process.parent);
    let daemon = parent(member.pid).unwrap_or_default();
    ensure!(table()?.contains("6100"), "no port");
    command::signal(daemon, Signal::KILL)?;
    // Its namespace must not be kept by us.
    let id = member.id.clone();
    drop(member);
    let name = |text: &str| text.contains(&id);
    eventually("its lease is given back", SOON, || !name(&leases()))?;
    eventually("its port is closed", SOON, || table().is_ok_and(|table| !table.contains("6100")))?;
    eventually("its devices have gone", SOON, || devices().is_empty()).context(|| format!("{:?}", devices()))
}

/// The host's devices for containers.
fn devices() -> Vec<String> {
    let text = command::output(Command::new("ip").args(["-br", "link"])).unwrap_or_default();
    let names = text.lines().filter_map(|line| line.split(['@', ' ']).next()).map(str::to_owned);
    names.filter(|name| name.len() == 15 && (name.starts_with("cor") || name.starts_with("cbw"))).collect()
}

/// Does something with each, eight at a time.
fn eight_at_a_time<T: Sync, R: Send>(all: &[T], work: impl Fn(&T) -> Result<R> + Sync) -> Result<Vec<R>> {
    let (next, done) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                while let Some(item) = all.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let result = work(item);
                    if let Ok(mut done) = done.lock() {
                        done.push(result);
                    }
                }
            });
        }
    });
    done.into_inner().map_err(|_| Failure("panicked".to_owned()))?.into_iter().collect()
}

pub fn many_at_once(case: &Case<'_>) -> Result<()> {
    let count: u16 = if case.version() == Version::V17 { 200 } else { 40 };
    let ports: Vec<u16> = (20_000..20_000 + count).collect();
    let members = eight_at_a_time(&ports, |port| {
        let member = waiting(case, &[("network", "bridge"), ("ports", &format!("{port}:80"))])?;
        Ok((member.addresses()?, member.id))
    })?;
    let addresses: HashSet<&String> = members.iter().flat_map(|(addresses, _)| addresses).collect();
    ensure_eq!(addresses.len(), 2 * usize::from(count), "different addresses");
    eight_at_a_time(&members, |(_, id)| end(case, id))?;
    nothing_is_left()
}

/// No lease, device, rule or name of a container.
fn nothing_is_left() -> Result<()> {
    ensure_eq!(leases(), "", "leases");
    eventually("no device is left", SOON, || devices().is_empty()).context(|| format!("{:?}", devices()))?;
    let table = table().unwrap_or_default();
    ensure!(!table.contains(" : 10.") && !table.contains(" : fd"), "elements are left: {table}");
    for network in std::fs::read_dir(state().join("networks")).into_iter().flatten().flatten() {
        let hosts = std::fs::read_to_string(network.path().join("hosts")).unwrap_or_default();
        ensure!(hosts.lines().all(|line| line.starts_with('#') || line.contains("localhost")), "names are left: {hosts}");
    }
    Ok(())
}

/// The directory of the state is removed under a container that runs: whoever comes next clears up.
pub fn a_state_that_was_lost(case: &Case<'_>) -> Result<()> {
    let asked = [("network", "bridge"), ("ports", "6200:80"), ("egress-rate", "10M")];
    let first = waiting(case, &asked)?;
    let before = devices();
    std::fs::remove_dir_all(state())?;
    let second = waiting(case, &asked)?;
    let server = second.namespace.serve(Protocol::Tcp, 80, "second")?;
    ensure!(Namespace::own()?.ask(Protocol::Tcp, "127.0.0.1", 6200)?.starts_with("second"), "the port is the second's");
    ensure!(before.iter().all(|device| !devices().contains(device)), "what was lost is left: {:?}", devices());
    drop(server);
    for member in [first, second] {
        let id = member.id.clone();
        drop(member);
        end(case, &id)?;
    }
    nothing_is_left()
}

/// containerd and all daemons at once, and for good measure the state as well, as a reboot takes it.
pub fn everything_killed(case: &Case<'_>) -> Result<()> {
    for wiped in [false, true] {
        let mut own = Containerd::start(case.version())?;
        own.import(&[1])?;
        let daemons = (0..6).map(|number| {
            let (id, port) = (case.id("k"), format!("coracle.ports={}:80", 6300 + number));
            let flags = ["--detach", "--annotation", "coracle.network=bridge", "--annotation", &port];
            own.ctr().ok(&words(&case.run_args(&flags, &[], &image::name(1), &id, &["sleep", "1000"])))?;
            let pid = own.ctr().pid(&id)?;
            Ok(proc::process(pid).map(|process| process.parent).unwrap_or_default())
        });
        let daemons = daemons.collect::<Result<Vec<u32>>>()?;
        own.kill()?;
        daemons.iter().try_for_each(|daemon| command::signal(*daemon, Signal::KILL))?;
        if wiped {
            std::fs::remove_dir_all(state())?;
        }
        // containerd calls `delete` for each.
        own.restart()?;
        let member = waiting(case, &[("network", "bridge"), ("ports", "6300:80")])?;
        eventually("only the last one has a lease", SOON, || leases().matches("runtime.v2.task").count() == 1)?;
        ensure!(!table()?.contains("6301"), "a port of a dead one is open");
        eventually("only the last one has a device", SOON, || devices().len() == 1)?;
        end(case, &member.id)?;
        own.stop()?;
    }
    nothing_is_left()
}

pub fn the_operators_command(case: &Case<'_>) -> Result<()> {
    let coracle = |args: &[&str]| command::output(Command::new(paths::shim_dir()?.join("coracle")).arg("network").args(args));
    let member = waiting(case, &[("network", "front"), ("ports", "6400:80/udp"), ("aliases", "web")])?;
    let listed = coracle(&["ls"])?;
    let row = listed.lines().find(|line| line.starts_with("front ")).unwrap_or_default();
    ensure!(row.ends_with(" 1") && row.contains("10.31.0.0/24,fd31::/64"), "ls: {listed}");
    let inspected: Value = serde_json::from_str(&coracle(&["inspect", "front"])?)?;
    let inside = &inspected["containers"][0];
    ensure_eq!(inside["names"], json!([member.id, "web"]), "names");
    ensure_eq!(inside["ports"], json!(["6400/udp -> 80"]), "ports");
    let pruned = coracle(&["prune"])?;
    ensure!(!pruned.contains("front"), "a network that is in use is removed: {pruned}");
    member.addresses()?;
    end(case, &member.id)?;
    ensure!(coracle(&["prune"])?.contains("front"), "the unused network stays");
    ensure!(table().is_err() && !state().exists(), "the table or the state is left");
    ensure!(command::output(Command::new("ip").args(["link", "show", "front"])).is_err(), "the bridge is left");
    Ok(())
}
