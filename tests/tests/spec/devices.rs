//! `linux.netDevices`: devices of the host's become the container's, with their addresses. The host is a network namespace of the test's own.

use serde_json::json;
use tests::bundle::{self, Bundle};
use tests::command::output;
use tests::hand::Hand;
use tests::requests::{around, create_request, daemon, end, exec_ran, expect_nothing_of, files_of, shim_by};
use tests::rpc::{Shim, refused};
use tests::{Result, ensure, ensure_eq};
use ttrpc::Code;

/// Two pairs; one end has addresses of every kind.
const SETUP: &str = "set -e; ip='/bin/busybox ip'; for name in one two; do $ip link add $name type veth; done; \
                     $ip addr add 10.77.0.2/24 broadcast + dev one; $ip addr add 169.254.9.9/16 scope link dev one; \
                     $ip -6 addr add fd77::2/64 dev one; $ip link set one up; exec \"$@\"";

/// A daemon in that namespace.
fn shim(hand: &Hand, bundle: &Bundle) -> Result<Shim> {
    shim_by(hand, bundle, |start| around("unshare", &["--net", "/bin/sh", "-c", SETUP, "sh"], &start))
}

/// The devices that the daemon has, with their state.
fn links(shim: &Shim, id: &str) -> Result<String> {
    let pid = daemon(shim, id)?.to_string();
    output(std::process::Command::new("nsenter").args(["--net", "--target", &pid, "/bin/busybox", "ip", "addr"]))
}

fn names(text: &str) -> Vec<String> {
    let of_line = |line: &str| Some(line.split(": ").nth(1)?.split('@').next()?.to_owned());
    text.lines().filter(|line| line.starts_with(|c: char| c.is_ascii_digit())).filter_map(of_line).collect()
}

/// Addresses that a device takes along.
fn global(text: &str) -> Vec<String> {
    sorted(text.lines().filter(|line| line.contains("scope global")).map(|line| line.trim().to_owned()).collect())
}

fn sorted(mut names: Vec<String>) -> Vec<String> {
    names.sort();
    names
}

pub fn moved_with_addresses(hand: &mut Hand) -> Result<()> {
    let mut bundle = hand.bundle("a", &["sleep", "1000"])?;
    bundle.edit(|spec| spec["linux"]["netDevices"] = json!({ "one": { "name": "data0" }, "two": {} }))?;
    let shim = shim(hand, &bundle)?;
    shim.create_quiet(&bundle)?;
    shim.start(&bundle.id, "")?;
    let probe = bundle::process(&["sh", "-c", "ip addr >/addresses"]);
    ensure_eq!(exec_ran(&shim, &bundle, "x", &probe)?, 0, "exit status of ip");
    let inside = std::fs::read_to_string(bundle.written("addresses"))?;
    ensure_eq!(names(&inside), ["lo", "data0", "two"], "devices inside: {inside}");
    for word in ["inet 10.77.0.2/24 brd 10.77.0.255 scope global data0", "inet6 fd77::2/64 scope global"] {
        ensure!(inside.contains(word), "{word:?} is not in {inside}");
    }
    ensure!(!inside.contains("169.254.9.9"), "an address of the link came along: {inside}");
    ensure_eq!(inside.lines().filter(|line| line.contains("UP")).count(), 3, "devices that are up: {inside}");
    ensure_eq!(names(&links(&shim, &bundle.id)?), ["lo", "veth0", "veth1"], "what is left outside");
    end(&shim, &bundle)?;
    shim.shutdown(&bundle.id)
}

/// What cannot be moved is refused by the field, and what was moved before it is back as it was.
pub fn put_back(hand: &mut Hand) -> Result<()> {
    let mut bundle = hand.bundle("a", &["sleep", "1000"])?;
    let shim = shim(hand, &bundle)?;
    let request = create_request(&bundle)?;
    let before = links(&shim, &bundle.id)?;
    for (devices, code, words) in [
        (json!({ "nosuch": {} }), Code::NOT_FOUND, ["linux.netDevices[\"nosuch\"]", "look for it"]),
        (json!({ "one": {}, "zzz": {} }), Code::NOT_FOUND, ["linux.netDevices[\"zzz\"]", "look for it"]),
        (json!({ "one": { "name": "x" }, "two": { "name": "lo" } }), Code::ALREADY_EXISTS, ["linux.netDevices[\"two\"]", "\"lo\""]),
        (json!({ "one": { "name": "a/b" } }), Code::INVALID_ARGUMENT, ["linux.netDevices[\"one\"].name", "a/b"]),
    ] {
        bundle.edit(|spec| spec["linux"]["netDevices"] = devices.clone())?;
        let files = files_of(&bundle)?;
        for word in words {
            refused(shim.create(request.clone()), code, word)?;
        }
        expect_nothing_of(&bundle, &files)?;
        let after = links(&shim, &bundle.id)?;
        ensure_eq!(global(&after), global(&before), "addresses of the host after {devices}");
        ensure_eq!(sorted(names(&after)), sorted(names(&before)), "devices of the host after {devices}");
    }
    shim.shutdown(&bundle.id)
}
