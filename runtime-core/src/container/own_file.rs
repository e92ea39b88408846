//! Reading the small files that the runtime has left in a directory of its own.

use std::fs::{File, OpenOptions};
use std::io::{Error, ErrorKind, Read, Result};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// More than any of these files has; a spec is the largest.
const SIZE_MAX: u64 = 64 << 20;

/// The content of a regular file. Whatever else has taken its place is an error and never waited for, as the open of a fifo would be.
///
/// # Errors
/// The errno of open(2) or read(2); `ELOOP` for a symbolic link; `InvalidInput` for what is no regular file, or too large.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    let file = open(path)?;
    let mut content = Vec::new();
    file.take(SIZE_MAX + 1).read_to_end(&mut content)?;
    if content.len() as u64 > SIZE_MAX {
        return Err(Error::new(ErrorKind::InvalidInput, "too large"));
    }
    Ok(content)
}

fn open(path: &Path) -> Result<File> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOFOLLOW | libc::O_NOCTTY).open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(Error::new(ErrorKind::InvalidInput, "not a regular file")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_regular_file_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::write(at("file"), "content").unwrap();
        std::os::unix::fs::symlink(at("file"), at("link")).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, at("fifo"), rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        assert_eq!(read(&at("file")).unwrap(), b"content");
        assert_eq!(read(&at("link")).unwrap_err().raw_os_error(), Some(libc::ELOOP));
        for other in [at("fifo"), dir.path().to_path_buf(), "/dev/zero".into()] {
            assert_eq!(read(&other).unwrap_err().kind(), ErrorKind::InvalidInput, "{other:?}");
        }
        assert_eq!(read(&at("none")).unwrap_err().kind(), ErrorKind::NotFound);
    }
}
