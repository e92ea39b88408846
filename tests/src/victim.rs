//! A container that talks until it is told to stop, to see that nothing around it disturbs it: it counts, and its last line is `end`.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::case::words;
use crate::command::readable;
use crate::containerd::Containerd;
use crate::rpc::Shim;
use crate::{Context, Result, ensure, ensure_eq, fail, image, paths};

/// What it exits with.
pub const EXIT: i32 = 7;

/// It starts to count when `/go` is there and stops when `/stop` is, which are made from outside through its root.
const SCRIPT: &str =
    "until [ -e /go ]; do usleep 5000; done; i=0; until [ -e /stop ]; do i=$((i+1)); echo $i; usleep 10000; done; echo end; exit 7";

/// Where its output goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sink {
    /// A file that the shim writes.
    File,
    /// A fifo that the test reads.
    Fifo,
}

/// See the module.
pub struct Victim {
    /// Its id.
    pub id: String,
    sink: Sink,
    files: PathBuf,
    fifos: PathBuf,
    pid: Option<u32>,
    read: Option<Receiver<String>>,
}

impl Victim {
    /// A container that is not created yet.
    pub fn new(containerd: &Containerd, id: &str, sink: Sink) -> Result<Victim> {
        let (files, fifos) = (containerd.data().join("files"), containerd.dir().join("fifo").join(id));
        std::fs::create_dir_all(&files)?;
        Ok(Victim { id: id.to_owned(), sink, files, fifos, pid: None, read: None })
    }

    /// `ctr run` with the flags.
    pub fn run_args(&self, flags: &[&str]) -> Vec<String> {
        let head = ["run", "--detach", "--runtime", paths::runtime()].map(str::to_owned);
        let image = image::name(1);
        let tail = [flags, &[&image, &self.id, "sh", "-c", SCRIPT]].concat();
        head.into_iter().chain(self.stream_args()).chain(tail.into_iter().map(str::to_owned)).collect()
    }

    /// `ctr task start` of a container that has no task.
    pub fn start_args(&self) -> Vec<String> {
        let head = ["task", "start", "--detach"].map(str::to_owned);
        head.into_iter().chain(self.stream_args()).chain([self.id.clone()]).collect()
    }

    fn stream_args(&self) -> Vec<String> {
        let (file, fifos) = (format!("file://{}", self.log().display()), self.fifos.display().to_string());
        match self.sink {
            Sink::File => vec!["--log-uri".to_owned(), file],
            Sink::Fifo => vec!["--fifo-dir".to_owned(), fifos],
        }
    }

    /// Creates and starts it, and lets it talk.
    pub fn run(&mut self, containerd: &Containerd, flags: &[&str]) -> Result<()> {
        containerd.ctr().ok(&words(&self.run_args(flags)))?;
        let pid = containerd.ctr().pid(&self.id)?;
        self.go(containerd, pid)
    }

    /// The pid, once it talks.
    pub fn pid(&self) -> Option<u32> {
        self.pid
    }

    /// Lets it talk, to a reader of ours where it has a fifo.
    pub fn go(&mut self, containerd: &Containerd, pid: u32) -> Result<()> {
        if self.sink == Sink::Fifo {
            let stdout = self.shim(containerd)?.state(&self.id, "")?.stdout;
            self.read = Some(reader(&stdout)?);
        }
        self.pid = Some(pid);
        self.touch("go")
    }

    fn touch(&self, name: &str) -> Result<()> {
        let Some(pid) = self.pid else { fail!("{} was not started", self.id) };
        let path = format!("/proc/{pid}/root/{name}");
        File::create(&path).context(|| path)?;
        Ok(())
    }

    /// The socket of its shim.
    pub fn shim(&self, containerd: &Containerd) -> Result<Shim> {
        let path = containerd.bundle(&self.id).join("address");
        let address = std::fs::read_to_string(&path).context(|| path.display().to_string())?;
        Shim::connect(&address, 2)
    }

    /// Tells it to stop and waits until it has.
    pub fn stop(&self, limit: Duration) -> Result<()> {
        let pid = self.pid.and_then(|pid| Pid::from_raw(pid.cast_signed())).context(|| format!("{} was not started", self.id))?;
        let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
        self.touch("stop")?;
        ensure!(readable(&pidfd, limit)?, "{} did not stop in {limit:?}", self.id);
        Ok(())
    }

    /// Checks that it said all it had to say, each line once, in order.
    pub fn check_output(&self, limit: Duration) -> Result<usize> {
        let text = match &self.read {
            Some(read) => read.recv_timeout(limit).context(|| format!("the output of {} has no end", self.id))?,
            None => crate::wait::until(limit, || self.logged().filter(|text| text.ends_with("end\n")))
                .context(|| format!("the output has no end: {:?}", self.logged()))?,
        };
        let Some(counted) = text.strip_suffix("end\n") else { fail!("the output of {} ends with {:?}", self.id, text.lines().last()) };
        for (expected, line) in (1..).zip(counted.lines()) {
            ensure_eq!(line, expected.to_string(), "a line of {}", self.id);
        }
        Ok(counted.lines().count())
    }

    fn logged(&self) -> Option<String> {
        std::fs::read_to_string(self.log()).ok()
    }

    fn log(&self) -> PathBuf {
        self.files.join(format!("{}.out", self.id.rsplit('-').next().unwrap_or_default()))
    }

    /// Removes what a detached `ctr` leaves.
    pub fn tidy(&self) -> Result<()> {
        match std::fs::remove_dir_all(&self.fifos) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e.into()),
            _ => Ok(()),
        }
    }
}

/// Reads a fifo up to the last line in a thread.
fn reader(path: &str) -> Result<Receiver<String>> {
    let mut fifo = File::open(Path::new(path)).context(|| path.to_owned())?;
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let (mut text, mut part) = (Vec::new(), [0; 4096]);
        while let Ok(length) = fifo.read(&mut part) {
            text.extend_from_slice(&part[..length]);
            if length == 0 || text.ends_with(b"end\n") {
                break;
            }
        }
        let _ = sender.send(String::from_utf8_lossy(&text).into_owned());
    });
    Ok(receiver)
}
