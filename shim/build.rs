//! Tells the programs which commit they are built from: `CORACLE_REVISION` of the environment, or else what git says of this tree.

use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-env-changed=CORACLE_REVISION");
    let given = std::env::var("CORACLE_REVISION").ok().filter(|text| !text.is_empty());
    let revision = given.or_else(commit).unwrap_or_else(|| "unknown".to_owned());
    println!("cargo::rustc-env=CORACLE_REVISION={revision}");
}

/// The commit of a work tree that begins here; a source tree that somebody has unpacked inside of another one has none.
fn commit() -> Option<String> {
    let top = Path::new(&git(&["rev-parse", "--show-toplevel"])?).canonicalize().ok()?;
    if top != Path::new("..").canonicalize().ok()? {
        return None;
    }
    // The second one grows by each commit.
    for name in ["HEAD", "logs/HEAD"] {
        let path = git(&["rev-parse", "--git-path", name])?;
        if Path::new(&path).exists() {
            println!("cargo::rerun-if-changed={path}");
        }
    }
    git(&["rev-parse", "HEAD"])
}

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
}
