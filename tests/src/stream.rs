//! The other end of a container's streams: fifos as containerd holds them, and a long text of which every byte is known.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::command::readable;
use crate::{Result, ensure, fail};

/// Makes a fifo and answers its path.
pub fn fifo(dir: &Path, name: &str) -> Result<PathBuf> {
    let path = dir.join(name);
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU)?;
    Ok(path)
}

/// The reading end of a fifo or pipe, which waits for the first writer too.
pub struct Reader {
    file: File,
}

impl Reader {
    /// Opens a fifo, which may have no writer yet.
    pub fn open(path: &Path) -> Result<Reader> {
        Ok(Reader { file: File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path)? })
    }

    /// Reads what is there, after a wait if it is nothing; 0 at the end.
    pub fn read(&mut self, buffer: &mut [u8], limit: Duration) -> Result<usize> {
        let end = Instant::now() + limit;
        loop {
            ensure!(readable(&self.file, end.saturating_duration_since(Instant::now()))?, "nothing came in {limit:?}");
            match self.file.read(buffer) {
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
                done => return Ok(done?),
            }
        }
    }

    /// Reads to the end; `limit` is for each read.
    pub fn text(&mut self, limit: Duration) -> Result<String> {
        let (mut all, mut buffer) = (Vec::new(), vec![0; 1 << 16]);
        loop {
            match self.read(&mut buffer, limit) {
                Ok(0) => return Ok(String::from_utf8_lossy(&all).into_owned()),
                Ok(count) => all.extend_from_slice(&buffer[..count]),
                Err(e) => fail!("{e}, after {:?}", String::from_utf8_lossy(&all)),
            }
        }
    }
}

/// A text of blocks, each with its number and then the same random bytes: neither a lost nor a repeated nor an exchanged page goes unseen.
pub struct Blocks {
    data: Vec<u8>,
    header: Vec<u8>,
    total: usize,
    block: usize,
    offset: usize,
    /// How many bytes were right so far.
    pub received: u64,
}

/// Bytes of a block after its header.
const BLOCK: usize = 64 << 20;

impl Blocks {
    /// So many blocks of 64 MiB; the random bytes are written to `dir`, for the container to read.
    pub fn new(dir: &Path, total: usize) -> Result<Blocks> {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut next = || {
            // xorshift64 (Marsaglia 2003).
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        let data: Vec<u8> = (0..BLOCK / 8).flat_map(|_| next().to_ne_bytes()).collect();
        std::fs::create_dir_all(dir)?;
        File::create(dir.join("block"))?.write_all(&data)?;
        Ok(Blocks { data, header: header(1), total, block: 1, offset: 0, received: 0 })
    }

    /// The shell command that writes the text, with `dir` at `/data`.
    pub fn script(&self) -> String {
        format!("i=0; while [ $i -lt {} ]; do i=$((i+1)); echo block $i; cat /data/block; done", self.total)
    }

    /// The length of the text.
    pub fn length(&self) -> u64 {
        (1..=self.total).map(|block| (header(block).len() + BLOCK) as u64).sum()
    }

    /// Compares what has arrived.
    pub fn take(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            if self.offset == self.header.len() + BLOCK {
                self.block += 1;
                self.header = header(self.block);
                self.offset = 0;
            }
            ensure!(self.block <= self.total, "{} bytes more than were written", bytes.len());
            let rest = match self.header.get(self.offset..) {
                Some(rest) if !rest.is_empty() => rest,
                _ => &self.data[self.offset - self.header.len()..],
            };
            let count = rest.len().min(bytes.len());
            ensure!(rest[..count] == bytes[..count], "another byte than was written, within {count} after {}", self.received);
            self.offset += count;
            self.received += count as u64;
            bytes = &bytes[count..];
        }
        Ok(())
    }

    /// Whether all has arrived.
    pub fn expect_whole(&self) -> Result<()> {
        ensure!(self.received == self.length(), "{} bytes of {} arrived", self.received, self.length());
        Ok(())
    }
}

fn header(block: usize) -> Vec<u8> {
    format!("block {block}\n").into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn the_script_writes_the_blocks() {
        let dir = tempfile::tempdir().unwrap();
        let mut blocks = Blocks::new(dir.path(), 2).unwrap();
        let script = blocks.script().replace("/data", &dir.path().display().to_string());
        let written = Command::new("sh").args(["-c", &script]).output().unwrap().stdout;
        assert_eq!(written.len() as u64, blocks.length());
        for part in written.chunks(70_001) {
            blocks.take(part).unwrap();
        }
        blocks.expect_whole().unwrap();
        assert!(blocks.take(b"b").is_err());
    }

    #[test]
    fn faults_are_seen() {
        let dir = tempfile::tempdir().unwrap();
        let mut blocks = Blocks::new(dir.path(), 1).unwrap();
        let mut bytes = std::fs::read(dir.path().join("block")).unwrap();
        blocks.take(b"block 1\n").unwrap();
        blocks.take(&bytes[..4096]).unwrap();
        assert!(blocks.take(&bytes[8192..12288]).is_err(), "a lost page");
        assert!(blocks.expect_whole().is_err());
        bytes[5000] ^= 1;
        assert!(blocks.take(&bytes[4096..8192]).is_err(), "a changed byte");
    }

    #[test]
    fn a_reader_waits_for_the_first_writer() {
        let dir = tempfile::tempdir().unwrap();
        let path = fifo(dir.path(), "f").unwrap();
        let mut reader = Reader::open(&path).unwrap();
        assert!(reader.text(Duration::from_millis(20)).is_err());
        File::options().write(true).open(&path).unwrap().write_all(b"text").unwrap();
        assert_eq!(reader.text(Duration::from_secs(5)).unwrap(), "text");
    }
}
