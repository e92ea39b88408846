//! `/etc/hosts`, `/etc/hostname` and `/etc/resolv.conf` of a pod's containers: made in the sandbox's bundle, as containerd's CRI plugin makes
//! them for the pods that it starts itself (`internal/cri/server/podsandbox/sandbox_run_linux.go`, `setupSandboxFiles`).

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, lchown};
use std::path::Path;

use proto::cri::DnsConfig;
use runtime_core::error::{Context as _, Error, Result};

use super::settings::Settings;
use crate::bundle::write_atomic;

/// Names in `/etc` of a container and in the bundle.
pub const NAMES: [&str; 3] = ["hosts", "hostname", "resolv.conf"];

/// Everybody in the pod may read them.
const MODE: u32 = 0o644;

/// Writes them.
///
/// # Errors
/// The errno of the file that cannot be read or written.
pub fn write(bundle: &Path, settings: &Settings) -> Result<()> {
    for name in NAMES {
        let content = match name {
            "hostname" if !settings.hostname.is_empty() => format!("{}\n", settings.hostname).into_bytes(),
            "hostname" => [rustix::system::uname().nodename().to_bytes(), b"\n"].concat(),
            "resolv.conf" if settings.dns != DnsConfig::default() => resolv_conf(&settings.dns).into_bytes(),
            name => of_host(name)?,
        };
        write_atomic(bundle, name, &content)?;
        let path = bundle.join(name);
        fs::set_permissions(&path, Permissions::from_mode(MODE)).context(|| format!("chmod {path:?}"))?;
    }
    Ok(())
}

/// Makes them the pod's own root's. A mount with mapped ids would do as well, but not on the tmpfs of kernels before 6.3, and its root could make
/// programs of the host's root of them.
///
/// # Errors
/// The errno of the file that cannot be changed.
pub fn give_to(bundle: &Path, uid: u32, gid: u32) -> Result<()> {
    for path in NAMES.map(|name| bundle.join(name)) {
        lchown(&path, Some(uid), Some(gid)).map_err(|error| Error::io(format!("chown {path:?}"), &error))?;
    }
    Ok(())
}

/// A host without the file has nothing to say.
fn of_host(name: &str) -> Result<Vec<u8>> {
    let path = Path::new("/etc").join(name);
    match fs::read(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        read => read.map_err(|error| Error::io(format!("read {path:?}"), &error)),
    }
}

fn resolv_conf(dns: &DnsConfig) -> String {
    let mut text = String::new();
    if !dns.searches.is_empty() {
        text += &format!("search {}\n", dns.searches.join(" "));
    }
    for server in &dns.servers {
        text += &format!("nameserver {server}\n");
    }
    if !dns.options.is_empty() {
        text += &format!("options {}\n", dns.options.join(" "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_are_those_of_the_pod() {
        let tmp = tempfile::tempdir().unwrap();
        let dns = DnsConfig {
            servers: vec!["10.0.0.1".into(), "10.0.0.2".into()],
            searches: vec!["a.b".into(), "b".into()],
            options: vec!["ndots:5".into()],
        };
        write(tmp.path(), &Settings { hostname: "web".into(), dns, ..Settings::default() }).unwrap();
        let read = |name: &str| fs::read_to_string(tmp.path().join(name)).unwrap();
        assert_eq!(read("hostname"), "web\n");
        assert_eq!(read("resolv.conf"), "search a.b b\nnameserver 10.0.0.1\nnameserver 10.0.0.2\noptions ndots:5\n");
        assert_eq!(fs::metadata(tmp.path().join("hosts")).unwrap().permissions().mode() & 0o777, 0o644);
        write(tmp.path(), &Settings::default()).unwrap();
        assert!(read("hostname").len() > 1);
    }
}
