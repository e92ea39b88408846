//! The bundle: the directory that containerd made for the container, which is also the working directory of each call.

use std::path::{Path, PathBuf};

use runtime_core::container::record::write_atomically;
use runtime_core::error::{Context, Error, Result};

/// The bundle that the command line named, else the working directory; absolute.
///
/// # Errors
/// `InvalidArgument` for a relative path; the errno when the working directory is gone.
pub fn dir(flag: &str) -> Result<PathBuf> {
    if flag.is_empty() {
        return std::env::current_dir().context(|| "get the working directory");
    }
    let path = Path::new(flag);
    if path.is_absolute() {
        return Ok(path.to_path_buf());
    }
    Err(Error::invalid(format!("-bundle {flag:?}: not an absolute path")))
}

/// The bundle that a request's field names.
///
/// # Errors
/// `InvalidArgument` for a relative path.
pub fn absolute(field: &str, text: &str) -> Result<PathBuf> {
    let path = PathBuf::from(text);
    if path.is_absolute() { Ok(path) } else { Err(Error::invalid(format!("{field}: {text:?} is not absolute"))) }
}

/// Whether the bundle is that of a sandbox: it has no `config.json` (containerd's `core/runtime/v2/bundle.go`, `NewBundle` without a spec).
///
/// # Errors
/// The errno when the bundle cannot be looked at.
pub fn is_of_sandbox(dir: &Path) -> Result<bool> {
    let path = dir.join("config.json");
    path.try_exists().map(|exists| !exists).context(|| format!("stat {path:?}"))
}

/// Writes `name` in the bundle `dir` so that a reader sees the old file or the whole new one; mode 0600.
///
/// # Errors
/// The errno of the step that failed.
pub fn write_atomic(dir: &Path, name: &str, content: &[u8]) -> Result<()> {
    write_atomically(&dir.join(name), content)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn a_file_is_written_whole_or_not_at_all() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("address");
        std::fs::write(&path, "something longer").unwrap();
        write_atomic(tmp.path(), "address", b"new").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
        std::fs::create_dir(tmp.path().join("taken")).unwrap();
        let error = write_atomic(tmp.path(), "taken", b"new").unwrap_err();
        assert!(error.to_string().ends_with("taken\": is a directory"), "{error}");
        assert_eq!(std::fs::read_dir(tmp.path()).unwrap().count(), 2);
    }

    #[test]
    fn the_flag_wins_over_the_working_directory() {
        assert_eq!(dir("/run/b").unwrap(), Path::new("/run/b"));
        assert_eq!(dir("").unwrap(), std::env::current_dir().unwrap());
        assert_eq!(dir("b").unwrap_err().to_string(), "-bundle \"b\": not an absolute path");
    }
}
