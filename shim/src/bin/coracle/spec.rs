//! Spec: a configuration to start from, the same as runc's.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;

use runtime_core::error::{Context as _, Error, ErrorKind, Result};
use rustix::process::{getegid, geteuid};

const CONFIG: &str = "config.json";
const ROOT: &str = include_str!("spec/config.json");
/// With the caller's ids in place of `UID` and `GID`.
const ROOTLESS: &str = include_str!("spec/rootless.json.in");

/// Writes `config.json` into a directory.
///
/// # Errors
/// There is one.
pub fn write(bundle: Option<&Path>, rootless: bool) -> Result<()> {
    let path = bundle.unwrap_or(Path::new("")).join(CONFIG);
    let mut file = match OpenOptions::new().write(true).create_new(true).open(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            return Err(Error::new(ErrorKind::AlreadyExists, format!("File {CONFIG} exists. Remove it first")));
        }
        result => result.context(|| format!("make {path:?}"))?,
    };
    file.write_all(text(rootless).as_bytes()).context(|| format!("write {path:?}"))
}

fn text(rootless: bool) -> String {
    if !rootless {
        return ROOT.to_owned();
    }
    ROOTLESS.replace("UID", &geteuid().as_raw().to_string()).replace("GID", &getegid().as_raw().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use runtime_core::spec::{Spec, check};

    #[test]
    fn what_is_written_is_accepted() {
        for rootless in [false, true] {
            check(&Spec::parse(text(rootless).as_bytes()).unwrap()).unwrap();
        }
    }
}
