//! The stdio of a process as containerd and the process see it, over real fifos, pipes and terminals.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::stat::Mode;
use rustix::event::PollFlags;

use super::pump::poll_now;
use super::*;

mod files;
mod loggers;
mod output;
mod stdin;
mod terminal;

/// The bound of everything that must happen.
const SOON: Duration = Duration::from_secs(5);
/// How long something that must not happen is watched for.
const WHILE: Duration = Duration::from_millis(150);

const NOBODY: Origin<'static> = Origin { id: "web-1", namespace: "default", spawner: None, streams: None };

/// A directory with containerd's three fifos.
struct Fifos {
    dir: tempfile::TempDir,
    stdin: PathBuf,
    stdout: PathBuf,
    stderr: PathBuf,
}

fn fifos() -> Fifos {
    let dir = tempfile::tempdir().unwrap();
    let make = |name: &str| {
        let path = dir.path().join(name);
        nix::unistd::mkfifo(&path, Mode::S_IRWXU).unwrap();
        path
    };
    Fifos { stdin: make("stdin"), stdout: make("stdout"), stderr: make("stderr"), dir }
}

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

async fn open(request: Request) -> (Io, ChildEnds) {
    let (io, ends) = Io::open(&request, &NOBODY, None).await.unwrap();
    (io, ends.unwrap())
}

async fn refusal(request: Request) -> Error {
    Io::open(&request, &NOBODY, None).await.unwrap_err()
}

/// A process with the given stdout only, started: the rest is the null device.
async fn with_stdout(path: &Path) -> (Io, File) {
    let (io, ends) = open(Request { stdout: text(path), ..Request::default() }).await;
    io.start();
    (io, File::from(ends.stdout))
}

/// Runs what blocks on a thread of its own: the peers are other processes in life.
async fn peer<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    // A thread of its own: for one of the runtime's, the runtime would wait at its end, and a stuck peer would hang the test instead.
    let (send, answer) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || send.send(work()));
    tokio::time::timeout(Duration::from_secs(60), answer).await.expect("the peer is stuck").unwrap()
}

fn reader(path: &Path) -> File {
    File::open(path).unwrap()
}

fn writer(path: &Path) -> File {
    OpenOptions::new().write(true).open(path).unwrap()
}

/// What comes next, in whichever pieces.
async fn read_exactly(mut from: File, count: usize) -> (File, Vec<u8>) {
    peer(move || {
        let mut bytes = vec![0; count];
        from.read_exact(&mut bytes).unwrap();
        (from, bytes)
    })
    .await
}

async fn read_to_end(mut from: File) -> Vec<u8> {
    peer(move || {
        let mut bytes = Vec::new();
        from.read_to_end(&mut bytes).unwrap();
        bytes
    })
    .await
}

/// Asserts that neither bytes nor an end arrive for a while.
async fn assert_silent(from: &File) {
    tokio::time::sleep(WHILE).await;
    assert_eq!(poll_now(from, PollFlags::IN), PollFlags::empty());
}

/// Bytes that differ at every place, so that a lost, doubled or moved one shows: a xorshift sequence.
struct Noise(u64);

impl Noise {
    fn new() -> Self {
        Self(0x9E37_79B9_7F4A_7C15)
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            chunk.copy_from_slice(&self.0.to_le_bytes()[..chunk.len()]);
        }
    }
}

const BLOCK: usize = 64 * 1024;

/// Writes `blocks` blocks of noise and closes.
fn write_noise(mut to: File, blocks: usize) {
    let mut noise = Noise::new();
    let mut block = vec![0; BLOCK];
    for _ in 0..blocks {
        noise.fill(&mut block);
        to.write_all(&block).unwrap();
    }
}

/// Reads `blocks` blocks and compares them with what `noise` gives next.
fn check_noise(from: &mut File, noise: &mut Noise, blocks: usize) {
    let (mut expected, mut got) = (vec![0; BLOCK], vec![0; BLOCK]);
    for at in 0..blocks {
        noise.fill(&mut expected);
        from.read_exact(&mut got).unwrap();
        assert!(expected == got, "block {at} differs");
    }
}

/// The processor time that this thread, and with it the runtime of the test, has used.
fn cpu_time() -> Duration {
    use nix::sys::resource::{UsageWho, getrusage};
    use nix::sys::time::TimeValLike;
    let usage = getrusage(UsageWho::RUSAGE_THREAD).unwrap();
    Duration::from_micros(u64::try_from((usage.user_time() + usage.system_time()).num_microseconds()).unwrap())
}

/// Asserts that the runtime uses less than one percent of a processor for a second.
async fn assert_idle() {
    // What the start of the test left to do is not meant.
    tokio::time::sleep(WHILE).await;
    let before = cpu_time();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let used = cpu_time() - before;
    assert!(used < Duration::from_millis(10), "{used:?} in a second");
}
