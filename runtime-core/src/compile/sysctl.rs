//! `linux.sysctl`: only what belongs to the container's own namespaces (CVE-2022-0532, CVE-2022-0811).

use std::collections::BTreeMap;

use super::cstring;
use super::namespaces::Namespaces;
use crate::error::{Error, Result};
use crate::plan::{Builder, Slot, Step};

const VALUE_MAX: usize = 4096;
const IPC: &[&str] = &[
    "kernel/msgmax",
    "kernel/msgmnb",
    "kernel/msgmni",
    "kernel/sem",
    "kernel/shmall",
    "kernel/shmmax",
    "kernel/shmmni",
    "kernel/shm_rmid_forced",
    "kernel/msg_next_id",
    "kernel/sem_next_id",
    "kernel/shm_next_id",
];

/// Refuses every name that is not of a namespace of the container's own.
///
/// # Errors
/// [`ErrorKind::InvalidArgument`](crate::ErrorKind::InvalidArgument) with the name.
pub fn check(sysctls: &BTreeMap<String, String>, namespaces: &Namespaces) -> Result<()> {
    for (name, value) in sysctls {
        let path = path(name)?;
        let needed = if IPC.contains(&path.as_str()) || path.starts_with("fs/mqueue/") {
            libc::CLONE_NEWIPC
        } else if path.starts_with("net/") {
            libc::CLONE_NEWNET
        } else if path == "kernel/domainname" {
            libc::CLONE_NEWUTS
        } else {
            return Err(Error::invalid(format!("linux.sysctl: {name:?} is not separate per container")));
        };
        if namespaces.shares_with_host(needed) {
            return Err(Error::invalid(format!("linux.sysctl: {name:?} would change the host, whose namespace the container shares")));
        }
        if value.len() > VALUE_MAX || value.chars().any(|c| c.is_control() && c != '\t') {
            return Err(Error::invalid(format!("linux.sysctl: {name:?}: not a value")));
        }
    }
    Ok(())
}

/// The path below `/proc/sys`. Dots separate, unless the first separator is a slash: then a dot belongs to a name (sysctl.d(5)).
fn path(name: &str) -> Result<String> {
    let dotted = name.find(['.', '/']).is_some_and(|at| name.as_bytes()[at] == b'.');
    let swap = |c| match c {
        '.' => '/',
        '/' => '.',
        c => c,
    };
    let path: String = if dotted { name.chars().map(swap).collect() } else { name.to_owned() };
    let plain = path.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '/' | ':' | '@'));
    let clean = path.split('/').all(|part| !part.is_empty() && part != "." && part != "..");
    if plain && clean { Ok(path) } else { Err(Error::invalid(format!("linux.sysctl: {name:?} is not a name"))) }
}

/// Writes them through a procfs that is the container's own.
///
/// # Errors
/// As [`check`].
pub fn write(plan: &mut Builder, sysctls: &BTreeMap<String, String>, proc: Option<Slot>) -> Result<()> {
    for (name, value) in sysctls {
        let proc = proc.ok_or_else(|| Error::invalid("linux.sysctl: the container has no procfs"))?;
        let path = cstring("linux.sysctl", &format!("sys/{}", path(name)?))?;
        plan.step(Step::Sysctl { proc, path, value: cstring("linux.sysctl", value)? });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::path;

    #[test]
    fn names_become_paths() {
        assert_eq!(path("net.ipv4.ip_forward").unwrap(), "net/ipv4/ip_forward");
        assert_eq!(path("net.ipv4.conf.eth0/1.forwarding").unwrap(), "net/ipv4/conf/eth0.1/forwarding");
        assert_eq!(path("net/ipv4/conf/eth0.1/forwarding").unwrap(), "net/ipv4/conf/eth0.1/forwarding");
        for hostile in ["net.ipv4.../../kernel/core_pattern", "net/../kernel/core_pattern", "net.ipv4.ip_forward=1+x", "", "net..x"] {
            assert!(path(hostile).is_err(), "{hostile}");
        }
    }
}
