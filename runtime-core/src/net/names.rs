//! What resolves names in containers: one hosts(5) for each network, which all of its containers have mounted, and a resolv.conf(5) each.

use std::fs::{self, File, OpenOptions};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::asked::Resolver;
use super::ledger::Lease;
use crate::error::{Context, Result};

const HOSTS: &str = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n";

/// What begins the line of a container that has gone.
const GONE: u8 = b'#';

/// The host's, and the one in which systemd-resolved has the servers behind its own.
const RESOLV_CONF: [&str; 2] = ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"];

/// Where a network's hosts(5) is.
pub fn hosts(state: &Path, network: &str) -> PathBuf {
    state.join("networks").join(network).join("hosts")
}

/// Opens a network's file, which is made if it is missing. Containers have the file itself mounted: it is never replaced, only changed.
fn open(state: &Path, network: &str) -> Result<(File, String)> {
    let path = hosts(state, network);
    let what = || format!("{path:?}");
    let directory = path.parent().unwrap_or(state);
    fs::DirBuilder::new().recursive(true).mode(0o711).create(directory).context(what)?;
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).create(true).truncate(false).mode(0o644).custom_flags(libc::O_NOFOLLOW).open(&path);
    let file = file.context(what)?;
    let text = std::io::read_to_string(&file).context(what)?;
    if text.is_empty() {
        file.write_all_at(HOSTS.as_bytes(), 0).context(what)?;
        return Ok((file, HOSTS.to_owned()));
    }
    Ok((file, text))
}

/// Makes a container known to the others of its network. Readers see whole lines. To be called under the ledger's lock, as [`remove`].
///
/// # Errors
/// The errno and the file.
pub fn add(state: &Path, lease: &Lease) -> Result<()> {
    remove(state, lease)?;
    let (file, text) = open(state, &lease.network)?;
    let lines: String = lease.addresses.iter().map(|address| format!("{}\t{}\n", address.addr(), lease.names.join(" "))).collect();
    file.write_all_at(lines.as_bytes(), text.len() as u64).context(|| format!("{:?}", hosts(state, &lease.network)))
}

/// Forgets a container.
///
/// # Errors
/// The errno and the file.
pub fn remove(state: &Path, lease: &Lease) -> Result<()> {
    if !hosts(state, &lease.network).exists() {
        return Ok(());
    }
    let what = || format!("{:?}", hosts(state, &lease.network));
    let (file, text) = open(state, &lease.network)?;
    let of_lease = |line: &str| {
        let address = line.split('\t').next().and_then(|word| word.parse::<IpAddr>().ok());
        address.is_some_and(|address| lease.addresses.iter().any(|own| own.addr() == address))
    };
    let (mut at, mut gone) = (0, 0);
    let mut kept = String::new();
    for line in text.split_inclusive('\n') {
        if of_lease(line) {
            // One byte, so that nobody reads half a line.
            file.write_all_at(&[GONE], at).context(what)?;
            gone += line.len();
        } else if line.as_bytes().first() == Some(&GONE) {
            gone += line.len();
        } else {
            kept.push_str(line);
        }
        at += line.len() as u64;
    }
    if gone > kept.len().max(4096) {
        file.write_all_at(kept.as_bytes(), 0).and_then(|()| file.set_len(kept.len() as u64)).context(what)?;
    }
    Ok(())
}

/// Writes a container's resolv.conf(5): what is asked for, and the rest as the host has it, but for servers on the host's loopback device.
///
/// # Errors
/// The errno and the file.
pub fn write_resolv_conf(path: &Path, asked: &Resolver) -> Result<()> {
    let text = merged(asked, &RESOLV_CONF.map(|path| fs::read_to_string(path).unwrap_or_default()));
    let mut options = OpenOptions::new();
    let file = options.write(true).create(true).truncate(true).mode(0o644).custom_flags(libc::O_NOFOLLOW).open(path);
    file.and_then(|file| file.write_all_at(text.as_bytes(), 0)).context(|| format!("write {path:?}"))
}

fn merged(asked: &Resolver, hosts: &[String]) -> String {
    let words = |text: &str, key: &str| -> Vec<String> {
        let lines = text.lines().filter_map(|line| line.trim_start().strip_prefix(key)?.strip_prefix([' ', '\t']));
        lines.flat_map(str::split_whitespace).map(str::to_owned).collect()
    };
    let reachable = |text: &str| -> Vec<String> {
        let loopback = |server: &str| server.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
        words(text, "nameserver").into_iter().filter(|server| !loopback(server)).collect()
    };
    let own = hosts.first().map(String::as_str).unwrap_or_default();
    let given = |list: &[String], key| if list.is_empty() { words(own, key) } else { list.to_vec() };
    let servers = match asked.servers.as_slice() {
        [] => hosts.iter().map(|text| reachable(text)).find(|servers| !servers.is_empty()).unwrap_or_default(),
        servers => servers.iter().map(IpAddr::to_string).collect(),
    };
    let mut text: String = servers.iter().map(|server| format!("nameserver {server}\n")).collect();
    for (key, words) in [("search", given(&asked.search, "search")), ("options", given(&asked.options, "options"))] {
        if !words.is_empty() {
            text.push_str(&format!("{key} {}\n", words.join(" ")));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::record::ProcessId;

    fn lease(name: &str, addresses: &[&str]) -> Lease {
        Lease {
            key: name.to_owned(),
            bundle: PathBuf::new(),
            network: "n".to_owned(),
            bridge: None,
            device: String::new(),
            names: vec![name.to_owned(), format!("{name}.alias")],
            addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
            ports: Vec::new(),
            shaped: false,
            holder: ProcessId { pid: 1, started: 0 },
        }
    }

    fn names(state: &Path) -> Vec<String> {
        let text = fs::read_to_string(hosts(state, "n")).unwrap();
        text.strip_prefix(HOSTS).unwrap().lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect()
    }

    #[test]
    fn containers_come_and_go() {
        let tmp = tempfile::tempdir().unwrap();
        let (one, other) = (lease("a", &["10.0.0.2/24", "fd00::2/64"]), lease("b", &["10.0.0.20/24"]));
        remove(tmp.path(), &one).unwrap();
        add(tmp.path(), &one).unwrap();
        add(tmp.path(), &other).unwrap();
        assert_eq!(names(tmp.path()), ["10.0.0.2\ta a.alias", "fd00::2\ta a.alias", "10.0.0.20\tb b.alias"]);
        remove(tmp.path(), &one).unwrap();
        assert_eq!(names(tmp.path()), ["10.0.0.20\tb b.alias"]);
        add(tmp.path(), &one).unwrap();
        add(tmp.path(), &one).unwrap();
        assert_eq!(names(tmp.path()).len(), 3);
    }

    #[test]
    fn the_file_does_not_grow_for_ever_and_stays_the_same_one() {
        use std::os::unix::fs::MetadataExt;
        let tmp = tempfile::tempdir().unwrap();
        let (stays, goes) = (lease("stays", &["10.0.0.3/24"]), lease("goes", &["10.0.0.2/24"]));
        add(tmp.path(), &stays).unwrap();
        let path = hosts(tmp.path(), "n");
        let inode = fs::metadata(&path).unwrap().ino();
        for _ in 0..1000 {
            add(tmp.path(), &goes).unwrap();
            remove(tmp.path(), &goes).unwrap();
        }
        let status = fs::metadata(&path).unwrap();
        assert!(status.len() < 9000, "{} bytes", status.len());
        assert_eq!((status.ino(), names(tmp.path())), (inode, vec!["10.0.0.3\tstays stays.alias".to_owned()]));
    }

    #[test]
    fn resolv_conf_is_the_hosts_but_for_what_is_asked_and_for_loopback() {
        let host = "nameserver 127.0.0.53\nnameserver ::1\noptions edns0 trust-ad\nsearch a.example b.example\n".to_owned();
        let behind = "# comment\nnameserver 10.0.0.53\nnameserver fd00::53\n".to_owned();
        let rest = "search a.example b.example\noptions edns0 trust-ad\n";
        let none = Resolver::default();
        assert_eq!(merged(&none, &[host.clone(), behind.clone()]), format!("nameserver 10.0.0.53\nnameserver fd00::53\n{rest}"));
        assert_eq!(merged(&none, &[host.clone(), String::new()]), rest);
        let asked = Resolver { servers: vec!["1.2.3.4".parse().unwrap()], search: vec!["c".to_owned()], options: Vec::new() };
        assert_eq!(merged(&asked, &[host, behind]), "nameserver 1.2.3.4\nsearch c\noptions edns0 trust-ad\n");
    }
}
