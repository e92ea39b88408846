//! Writes ustar archives, as much of the format as image layers need (POSIX.1-1988, `tar(5)`).

/// An archive in memory.
#[derive(Default)]
pub struct Tar(Vec<u8>);

/// Kinds of entries by their type flag.
#[derive(Clone, Copy)]
enum Kind {
    File = b'0' as isize,
    Symlink = b'2' as isize,
    Directory = b'5' as isize,
}

const BLOCK: usize = 512;

impl Tar {
    /// Adds a regular file.
    pub fn file(&mut self, path: &str, mode: u32, content: &[u8]) -> &mut Tar {
        self.header(Kind::File, path, "", mode, content.len());
        self.0.extend_from_slice(content);
        self.pad()
    }

    /// Adds a directory.
    pub fn directory(&mut self, path: &str, mode: u32) -> &mut Tar {
        self.header(Kind::Directory, path, "", mode, 0);
        self
    }

    /// Adds a symbolic link.
    pub fn symlink(&mut self, path: &str, target: &str) -> &mut Tar {
        self.header(Kind::Symlink, path, target, 0o777, 0);
        self
    }

    /// Ends the archive and hands out its bytes.
    pub fn finish(mut self) -> Vec<u8> {
        self.0.extend_from_slice(&[0; 2 * BLOCK]);
        self.0
    }

    fn header(&mut self, kind: Kind, path: &str, target: &str, mode: u32, size: usize) {
        assert!(path.len() < 100 && target.len() < 100, "{path}: ustar's short names only");
        let mut block = [0u8; BLOCK];
        block[..path.len()].copy_from_slice(path.as_bytes());
        octal(&mut block[100..108], u64::from(mode));
        octal(&mut block[108..116], 0);
        octal(&mut block[116..124], 0);
        octal(&mut block[124..136], size as u64);
        octal(&mut block[136..148], 0);
        block[156] = kind as u8;
        block[157..157 + target.len()].copy_from_slice(target.as_bytes());
        block[257..265].copy_from_slice(b"ustar\x0000");
        // The checksum is taken with its own field as spaces.
        block[148..156].fill(b' ');
        let sum: u64 = block.iter().map(|b| u64::from(*b)).sum();
        octal(&mut block[148..155], sum);
        self.0.extend_from_slice(&block);
    }

    fn pad(&mut self) -> &mut Tar {
        self.0.resize(self.0.len().next_multiple_of(BLOCK), 0);
        self
    }
}

/// Zero-padded octal with a closing NUL.
fn octal(field: &mut [u8], value: u64) {
    let text = format!("{value:0width$o}\0", width = field.len() - 1);
    field.copy_from_slice(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::output;
    use std::process::Command;

    #[test]
    fn the_systems_tar_reads_it() {
        let dir = tempfile::tempdir().unwrap();
        let mut tar = Tar::default();
        tar.directory("d", 0o755).file("d/f", 0o640, b"hello").symlink("l", "d/f");
        std::fs::write(dir.path().join("t.tar"), tar.finish()).unwrap();
        output(Command::new("tar").arg("-C").arg(dir.path()).arg("-xf").arg(dir.path().join("t.tar"))).unwrap();
        assert_eq!(std::fs::read_to_string(dir.path().join("l")).unwrap(), "hello");
    }
}
