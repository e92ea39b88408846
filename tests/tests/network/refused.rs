//! What cannot be had is refused before anything is made, by the name of its annotation.

use std::process::Command;

use tests::case::words;
use tests::netns::{Namespace, Protocol};
use tests::{Case, Result, command, ensure, ensure_eq, image, paths};

use crate::{end, leases, table, waiting};

/// The sentence of a `ctr run` that must fail; nothing of it may be left.
fn refusal(case: &Case<'_>, annotations: &[(&str, &str)]) -> Result<String> {
    let before = leases();
    let flags: Vec<String> =
        annotations.iter().flat_map(|(key, value)| ["--annotation".to_owned(), format!("coracle.{key}={value}")]).collect();
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let id = case.id("x");
    let done = case.ctr().run(&words(&case.run_args(&["--rm"], &flags, &image::name(1), &id, &["true"])))?;
    ensure!(done.code != 0, "{annotations:?} is not refused");
    ensure!(!leases().contains(&id), "a lease is left: {before}");
    Ok(done.stderr)
}

pub fn bad_annotations(case: &Case<'_>) -> Result<()> {
    let bridge = ("network", "bridge");
    for (annotations, want) in [
        (vec![("network", "nonsense")], "annotations[\"coracle.network\"]: there is no network \"nonsense\""),
        (vec![("network", "bridge:x")], "annotations[\"coracle.network\"]: \"bridge:x\" is none of"),
        (vec![("network", "container:nobody")], "annotations[\"coracle.network\"]: container \"nobody\": does not run"),
        (vec![("network", "ns:/nowhere")], "/nowhere"),
        (vec![bridge, ("ports", "80:80")], "annotations[\"coracle.ports\"]: host port 80/tcp is not allowed here"),
        (vec![bridge, ("ports", "8080")], "annotations[\"coracle.ports\"]: \"8080\" is not"),
        (vec![bridge, ("ports", "203.0.113.250:8080:80")], "annotations[\"coracle.ports\"]: 203.0.113.250 is no address of the host"),
        (vec![bridge, ("address", "10.209.0.1")], "annotations[\"coracle.address\"]: 10.209.0.1 is not a container's"),
        (vec![bridge, ("aliases", "a_b!")], "annotations[\"coracle.aliases\"]: \"a_b!\" cannot be a host's name"),
        (vec![bridge, ("egress-rate", "none")], "annotations[\"coracle.egress-rate\"]: \"none\" is no number of bits"),
        (vec![("port", "1:1")], "annotations[\"coracle.port\"]: needs coracle.network"),
        (vec![bridge, ("port", "1:1")], "annotations[\"coracle.port\"]: there is no such annotation"),
    ] {
        let said = refusal(case, &annotations)?;
        ensure!(said.contains(want), "{annotations:?}: {said}");
    }
    Ok(())
}

pub fn what_is_taken(case: &Case<'_>) -> Result<()> {
    let asked = [("network", "bridge"), ("ports", "4080:80"), ("aliases", "taken"), ("address", "10.209.77.7")];
    let holder = waiting(case, &asked)?;
    for (key, value, what) in [
        ("ports", "4080:81", "host port 4080/tcp"),
        ("ports", "127.0.0.1:4080:81", "host port 127.0.0.1:4080/tcp"),
        ("aliases", "taken", "\"taken\""),
        ("address", "10.209.77.7", "10.209.77.7"),
    ] {
        let said = refusal(case, &[("network", "bridge"), (key, value)])?;
        let want = format!("annotations[\"coracle.{key}\"]: {what} is taken by container {}/{}", paths::tag(), holder.id);
        ensure!(said.contains(&want), "{value}: {said}");
    }
    // The same alias on another network is another one.
    waiting(case, &[("network", "front"), ("aliases", "taken")])?;
    let _listener = Namespace::own()?.serve(Protocol::Tcp, 4081, "host")?;
    let said = refusal(case, &[("network", "bridge"), ("ports", "4081:80")])?;
    ensure!(said.contains("host port 4081/tcp is taken by a process of the host"), "{said}");
    // What has ended has nothing any more.
    end(case, &holder.id)?;
    waiting(case, &asked).map(drop)
}

pub fn full_subnet(case: &Case<'_>) -> Result<()> {
    let only = waiting(case, &[("network", "tiny")])?;
    ensure_eq!(only.addresses()?, ["10.33.0.2"], "the only address");
    let said = refusal(case, &[("network", "tiny")])?;
    ensure!(said.contains("annotations[\"coracle.network\"]: subnet 10.33.0.0/30 is full"), "{said}");
    Ok(())
}

pub fn overlapping_route(case: &Case<'_>) -> Result<()> {
    let host = Namespace::own()?;
    command::output(Command::new(paths::shim_dir()?.join("coracle")).args(["network", "prune"]))?;
    host.command("ip", &["link", "add", "dummy0", "type", "bridge"])?;
    host.command("ip", &["addr", "add", "192.0.2.1/24", "dev", "dummy0"])?;
    host.command("ip", &["link", "set", "dummy0", "up"])?;
    let said = refusal(case, &[("network", "overlapping")])?;
    ensure!(
        said.contains(
            "annotations[\"coracle.network\"]: network \"overlapping\": subnet 192.0.2.128/25 overlaps the host's route to 192.0.2.0/24"
        ),
        "{said}"
    );
    ensure!(host.command("ip", &["link", "show", "overlapping"]).is_err(), "the bridge is left");
    host.command("ip", &["link", "del", "dummy0"])?;
    waiting(case, &[("network", "overlapping")]).map(drop)
}

pub fn namespaces_that_do_not_count(case: &Case<'_>) -> Result<()> {
    let run = |namespace: &str, annotations: &[&str], script: &str| {
        let id = case.id("n");
        let flags: Vec<&str> = annotations.iter().flat_map(|annotation| ["--annotation", annotation]).collect();
        let file = case.path("image")?;
        image::archive(&[1], &file)?;
        case.containerd.import_into(namespace, &file)?;
        let args = case.run_args(&["--rm"], &flags, &image::name(1), &id, &["sh", "-c", script]);
        case.ctr().run(&[&["--namespace", namespace][..], &words(&args)].concat())
    };
    for namespace in ["k8s.io", "elsewhere"] {
        let done = run(
            namespace,
            &["coracle.network=bridge", "coracle.ports=5080:80"],
            "ls /sys/class/net; cat /etc/hosts 2>/dev/null | grep coracle; :",
        )?;
        ensure_eq!((done.code, done.stdout.trim()), (0, "lo"), "{namespace}: {}", done.stderr);
    }
    ensure!(!table().unwrap_or_default().contains("5080"), "a port is published");
    for (annotations, want) in [
        (&["coracle.network=host"][..], "host is not allowed here"),
        (&["coracle.network=bridge", "coracle.ports=8001:80"], "host port 8001/tcp is not allowed here"),
        (&["coracle.network=bridge", "coracle.ports=8000:80"], "host port 8000/tcp on all addresses is not allowed here"),
        (&["coracle.network=container:x"], "joining is not allowed here"),
    ] {
        let done = run("narrow", annotations, "true")?;
        ensure!(done.code != 0 && done.stderr.contains(want), "{annotations:?}: {}", done.stderr);
    }
    let done = run("narrow", &["coracle.network=bridge", "coracle.ports=127.0.0.1:8000:80"], "true")?;
    ensure_eq!(done.code, 0, "what is allowed: {}", done.stderr);
    Ok(())
}
