//! Spec: a configuration to start from, the same as runc's.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;

use runtime_core::cgroup::{Host, Mode};
use runtime_core::error::{Context as _, Error, ErrorKind, Result};
use rustix::process::{getegid, geteuid};

const CONFIG: &str = "config.json";
const ROOT: &str = include_str!("spec/config.json.in");
const CGROUP_NAMESPACE: &str = ",\n\t\t\t{\n\t\t\t\t\"type\": \"cgroup\"\n\t\t\t}";
/// With the caller's ids in place of `UID` and `GID`.
const ROOTLESS: &str = include_str!("spec/rootless.json.in");

/// Writes `config.json` into a directory.
///
/// # Errors
/// There is one.
pub fn write(host: &Host, bundle: Option<&Path>, rootless: bool) -> Result<()> {
    let path = bundle.unwrap_or(Path::new("")).join(CONFIG);
    let mut file = match OpenOptions::new().write(true).create_new(true).open(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            return Err(Error::new(ErrorKind::AlreadyExists, format!("File {CONFIG} exists. Remove it first")));
        }
        result => result.context(|| format!("make {path:?}"))?,
    };
    file.write_all(text(rootless, host.mode() == Mode::V2).as_bytes()).context(|| format!("write {path:?}"))
}

/// With a cgroup namespace where there is nothing but version 2, as runc writes it.
fn text(rootless: bool, v2: bool) -> String {
    let namespace = if v2 { CGROUP_NAMESPACE } else { "" };
    let text = if rootless { ROOTLESS } else { ROOT };
    text.replace("CGROUP_NAMESPACE", namespace)
        .replace("UID", &geteuid().as_raw().to_string())
        .replace("GID", &getegid().as_raw().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::LinuxNamespaceType;
    use runtime_core::spec::{Spec, check};

    #[test]
    fn what_is_written_is_accepted() {
        for (rootless, v2) in [(false, false), (false, true), (true, false), (true, true)] {
            let spec = Spec::parse(text(rootless, v2).as_bytes()).unwrap();
            check(&spec).unwrap();
            assert_eq!(spec.oci_version, shim::oci_version!());
            assert_eq!(spec.linux.namespaces.iter().any(|namespace| namespace.typ() == LinuxNamespaceType::Cgroup), v2);
            let capabilities = spec.process.unwrap().capabilities.unwrap();
            assert!(capabilities.ambient.is_empty() && capabilities.inheritable.is_empty() && capabilities.bounding.len() == 3);
        }
    }
}
