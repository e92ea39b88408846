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

/// Refuses every name that is not of a namespace of the container's own; `in_user_namespace` says whether it has one of users.
///
/// # Errors
/// [`ErrorKind::InvalidArgument`](crate::ErrorKind::InvalidArgument) with the name.
pub fn check(sysctls: &BTreeMap<String, String>, namespaces: &Namespaces, in_user_namespace: bool) -> Result<()> {
    for (name, value) in sysctls {
        let refuse = |why: &str| Err(Error::invalid(format!("linux.sysctl: {name:?} {why}")));
        let path = path(name)?;
        let shared = match path.as_str() {
            path if IPC.contains(&path) || path.starts_with("fs/mqueue/") => namespaces.shares_with_host(libc::CLONE_NEWIPC),
            path if path.starts_with("net/") => namespaces.shares_with_host(libc::CLONE_NEWNET),
            "kernel/domainname" => namespaces.shares_with_host(libc::CLONE_NEWUTS),
            "kernel/hostname" => return refuse("is what the field hostname is for"),
            path if path.starts_with("user/") => !in_user_namespace,
            _ => return refuse("is not separate per container"),
        };
        if shared {
            return refuse("would change the host, whose namespace the container shares");
        }
        let value = plain(value);
        if value.len() > VALUE_MAX || value.chars().any(|c| c.is_control() && c != '\t') {
            return refuse("has a value that is none");
        }
    }
    Ok(())
}

/// The value without the line break at its end, which the kernel passes over.
fn plain(value: &str) -> &str {
    value.trim_end_matches(['\n', '\r'])
}

/// The path below `/proc/sys`. Dots separate, unless the first separator is a slash: then a dot belongs to a name (sysctl.d(5)).
fn path(name: &str) -> Result<String> {
    let dotted = name.find(['.', '/']).is_some_and(|at| name.as_bytes()[at] == b'.');
    let path = if dotted { other_spelling(name) } else { name.to_owned() };
    // A device's name may have any character but these (net/core/dev.c, `dev_valid_name`).
    let odd = |c: char| c.is_control() || c.is_whitespace() || matches!(c, '=' | '\\');
    let clean = path.split('/').all(|part| !part.is_empty() && part != "." && part != "..");
    if clean && !path.contains(odd) { Ok(path) } else { Err(Error::invalid(format!("linux.sysctl: {name:?} is not a name"))) }
}

/// A path for a dotted name, or the other way round.
pub(crate) fn other_spelling(name: &str) -> String {
    let swap = |c| match c {
        '.' => '/',
        '/' => '.',
        c => c,
    };
    name.chars().map(swap).collect()
}

/// Writes them through a procfs that is the container's own.
///
/// # Errors
/// As [`check`].
pub fn write(plan: &mut Builder, sysctls: &BTreeMap<String, String>, proc: Option<Slot>) -> Result<()> {
    for (name, value) in sysctls {
        let proc = proc.ok_or_else(|| Error::invalid("linux.sysctl: the container has no procfs"))?;
        let path = cstring("linux.sysctl", &format!("sys/{}", path(name)?))?;
        plan.step(Step::Sysctl { proc, path, value: cstring("linux.sysctl", plain(value))? });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::{LinuxNamespaceBuilder, LinuxNamespaceType};

    use super::*;
    use crate::compile::namespaces;

    #[test]
    fn names_become_paths() {
        assert_eq!(path("net.ipv4.ip_forward").unwrap(), "net/ipv4/ip_forward");
        assert_eq!(path("net.ipv4.conf.eth0/1.forwarding").unwrap(), "net/ipv4/conf/eth0.1/forwarding");
        assert_eq!(path("net/ipv4/conf/eth0.1/forwarding").unwrap(), "net/ipv4/conf/eth0.1/forwarding");
        assert_eq!(path("net.ipv4.conf.w+~\u{e9}.forwarding").unwrap(), "net/ipv4/conf/w+~\u{e9}/forwarding");
        for hostile in
            ["net.ipv4.../../kernel/core_pattern", "net/../kernel/core_pattern", "net.ipv4.ip_forward=1+x", "", "net..x", "/net/x"]
        {
            assert!(path(hostile).is_err(), "{hostile}");
        }
    }

    fn checked(names: &[LinuxNamespaceType], sysctl: (&str, &str), in_user_namespace: bool) -> std::result::Result<(), String> {
        let namespaces: Vec<_> = names.iter().map(|kind| LinuxNamespaceBuilder::default().typ(*kind).build().unwrap()).collect();
        let joined = namespaces::open(&mut Builder::default(), &namespaces).unwrap();
        let sysctls = BTreeMap::from([(sysctl.0.to_owned(), sysctl.1.to_owned())]);
        check(&sysctls, &joined, in_user_namespace).map_err(|error| error.to_string())
    }

    #[test]
    fn each_name_needs_its_namespace() {
        use LinuxNamespaceType::{Ipc, Network, Uts};
        for (name, needs) in [
            ("kernel.shm_rmid_forced", Ipc),
            ("fs.mqueue.msg_max", Ipc),
            ("fs/mqueue/msg_max", Ipc),
            ("net.core.somaxconn", Network),
            ("net/core/somaxconn", Network),
            ("kernel.domainname", Uts),
        ] {
            assert_eq!(checked(&[needs], (name, "1\n"), false), Ok(()), "{name}");
            let error = checked(&[Ipc, Network, Uts].into_iter().filter(|kind| *kind != needs).collect::<Vec<_>>(), (name, "1"), true);
            assert!(error.unwrap_err().ends_with("would change the host, whose namespace the container shares"), "{name}");
        }
        assert_eq!(checked(&[], ("user.max_inotify_watches", "5"), true), Ok(()));
        assert_eq!(checked(&[], ("user/max_inotify_watches", "5"), true), Ok(()));
        assert!(checked(&[], ("user.max_inotify_watches", "5"), false).unwrap_err().contains("would change the host"));
        assert!(checked(&[Uts], ("kernel.hostname", "x"), true).unwrap_err().contains("the field hostname"));
        for of_host in ["kernel.core_pattern", "vm.swappiness", "fs.file-max", "kernel.pid_max", "user", "debug.x"] {
            assert!(checked(&[Ipc, Network, Uts], (of_host, "1"), true).unwrap_err().contains("not separate"), "{of_host}");
        }
        assert!(checked(&[Uts], ("kernel.domainname", "a\nb"), true).unwrap_err().contains("has a value that is none"));
    }
}
