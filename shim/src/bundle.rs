//! The bundle: the directory that containerd made for the container, which is also the working directory of each call.

use std::path::{Path, PathBuf};

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flag_wins_over_the_working_directory() {
        assert_eq!(dir("/run/b").unwrap(), Path::new("/run/b"));
        assert_eq!(dir("").unwrap(), std::env::current_dir().unwrap());
        assert_eq!(dir("b").unwrap_err().to_string(), "-bundle \"b\": not an absolute path");
    }
}
