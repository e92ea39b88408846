//! One copy of one stream: from a source that may be empty to a sink that may be full.
//!
//! [`Pump::step`] never waits; [`Pump::run`] waits for exactly the side that held the step up, so a slow reader stops its writer
//! and nobody else, and an idle stream costs nothing. Between two pipes the pages move by splice(2) and are never seen by us;
//! else at most one buffer is under way.

use std::borrow::Cow;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::pipe::{SpliceFlags, splice};
use rustix::termios::SpecialCodeIndex;
use tokio::sync::watch;

use super::linger::{linger, taken};
use super::streams::Channel;
use super::turns::{LINES, Turn};
use super::watched::{Edge, Edges, Watched};

/// What one step reads at most when it must copy.
const CHUNK: usize = 32 * 1024;
/// More than a pipe holds unless its owner made it larger.
const SPLICE_MAX: usize = 1024 * 1024;
/// Steps without a wait after which the other tasks of the thread get their turn.
const BURST: u32 = 8;
/// Waits between the tries of a write that fails, for instance on a full disk. The last is repeated.
const BACKOFF: [Duration; 4] =
    [Duration::from_millis(50), Duration::from_millis(100), Duration::from_millis(200), Duration::from_millis(500)];

/// How far the life of the process is, as told to its copies. Only ever grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    Running,
    /// The process has ended: a terminal with nothing to read is at its end.
    Exited,
    /// It is being deleted: nobody will come to read what is left in a fifo.
    Draining,
    /// Stop where you are.
    Stopped,
}

/// Waits until the phase is at least `least`. An owner that is gone has stopped everything.
pub(super) async fn until(phase: &mut watch::Receiver<Phase>, least: Phase) {
    let _ = phase.wait_for(|phase| *phase >= least).await;
}

/// Where a copy reads.
#[derive(Debug)]
pub(super) enum Source {
    Pipe(Watched),
    Console(Console),
    Stream(Arc<Channel>),
    /// Nothing comes any more.
    Ended,
}

/// Where a copy writes.
#[derive(Debug)]
pub(super) enum Sink {
    /// A pipe whose reader may go: the process's stdin, a logger.
    Pipe(Watched),
    /// An output fifo and our own reader of it.
    Fifo(Watched, OwnedFd),
    Console(Console),
    File(OwnedFd),
    Stream(Arc<Channel>),
    /// Nowhere. A terminal must be read even when nobody wants its output.
    Discard,
}

/// The master of a terminal, watched for one direction.
#[derive(Debug)]
pub(super) struct Console {
    pub(super) master: Arc<OwnedFd>,
    pub(super) edges: Edges,
}

/// How a copy ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// At the end of its source.
    Complete,
    /// Stopped before, with this many bytes read or readable and not delivered.
    Cut(u64),
}

/// What one try came to.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    Moved,
    /// The source has nothing now.
    Starved,
    /// The sink has no room now.
    Full,
    /// The source will give nothing until someone opens it again: a terminal without slaves.
    Unplugged,
    /// The sink refused the bytes; they are kept.
    Fault(Errno),
    End,
}

/// What a wait came to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Waited {
    Again,
    SourceHungUp,
    SinkHungUp,
    Stopped,
}

/// A copy that has not ended.
#[derive(Debug)]
pub(super) struct Pump {
    /// For messages: container, stream, path.
    name: String,
    source: Source,
    sink: Sink,
    /// Read, and from `sent` on not yet written.
    pending: Vec<u8>,
    sent: usize,
    /// The source has ended and the terminal was told.
    told_end: bool,
    /// Dropped once the process has ended and what it wrote has been taken.
    untaken: Option<Untaken>,
    /// Of one of two outputs.
    turn: Option<Turn>,
}

/// Held as long as output of an ended process may lie where nobody has read it.
pub(super) type Untaken = tokio::sync::mpsc::Sender<std::convert::Infallible>;

impl Pump {
    pub(super) fn new(name: String, source: Source, sink: Sink, untaken: Option<Untaken>) -> Self {
        Self { name, source, sink, pending: Vec::new(), sent: 0, told_end: false, untaken, turn: None }
    }

    /// Keeps the order of two outputs, where each has a reader of its own.
    pub(super) fn takes_turns(&mut self, turn: Turn) {
        if matches!(self.sink, Sink::Fifo(..) | Sink::Stream(_)) {
            self.turn = Some(turn);
        }
    }

    /// Waits for the other output's reader, if there are lines here and some have just gone there.
    async fn take_turn(&self, phase: &mut watch::Receiver<Phase>) {
        let (Some(turn), Source::Pipe(source)) = (&self.turn, &self.source) else { return };
        let Some(wait) = turn.wait() else { return };
        if (1..=LINES).contains(&rustix::io::ioctl_fionread(source).unwrap_or(0)) {
            tokio::select! {
                biased;
                () = until(phase, Phase::Stopped) => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// Copies until the source ends, the sink is gone for good, or the phase says so.
    pub(super) async fn run(mut self, mut phase: watch::Receiver<Phase>) -> End {
        let mut burst = 0;
        let mut faults = 0;
        let mut last = Waited::Again;
        loop {
            self.take_turn(&mut phase).await;
            // Asked before the step: what was written before the exit is then seen by the step.
            let exited = *phase.borrow() >= Phase::Exited;
            let step = self.step();
            if let (Step::Moved, Some(turn)) = (&step, &self.turn) {
                turn.taken();
            }
            if step == Step::End || self.is_over(&step, last, exited) {
                break;
            }
            if exited && step == Step::Starved {
                // Somebody else holds the pipe: all that the process itself has written is through.
                self.settle(&mut phase).await;
            }
            if let Step::Fault(errno) = step {
                last = self.back_off(errno, faults, &mut phase).await;
                faults += 1;
            } else {
                self.recover(&step, &mut faults);
                burst = if step == Step::Moved { burst + 1 } else { 0 };
                last = self.wait(&step, &mut burst, &mut phase).await;
            }
            if last == Waited::Stopped {
                return End::Cut(self.left());
            }
        }
        self.settle(&mut phase).await;
        let lost = match self.sink {
            Sink::Fifo(write, hold) => linger(write, hold, &mut phase).await,
            Sink::Stream(channel) => channel.finish(&mut phase).await,
            _ => 0,
        };
        if lost > 0 { End::Cut(lost) } else { End::Complete }
    }

    /// Waits, once and not for long, until what lies in a fifo or a stream has been taken, and says so.
    async fn settle(&mut self, phase: &mut watch::Receiver<Phase>) {
        match (&self.untaken, &self.sink) {
            (Some(_), Sink::Fifo(write, _)) => taken(write, phase, Phase::Draining).await,
            (Some(_), Sink::Stream(channel)) => channel.settle(phase).await,
            _ => {}
        }
        self.untaken = None;
    }

    /// Whether a step that could do nothing will never do more.
    fn is_over(&self, step: &Step, last: Waited, exited: bool) -> bool {
        match (step, &self.source) {
            (Step::Starved, Source::Pipe(_)) => last == Waited::SourceHungUp,
            (Step::Full, _) => last == Waited::SinkHungUp,
            // What the process wrote before its end can be read at once, and whoever else holds the terminal has lost its session.
            (Step::Starved | Step::Unplugged, Source::Console(_)) => exited,
            _ => false,
        }
    }

    /// Waits for what `step` lacks.
    async fn wait(&self, step: &Step, burst: &mut u32, phase: &mut watch::Receiver<Phase>) -> Waited {
        let least = match self.source {
            Source::Console(_) if *step != Step::Full => Phase::Exited,
            _ if self.untaken.is_some() => Phase::Exited,
            _ => Phase::Stopped,
        };
        match step {
            Step::Moved if *burst < BURST => Waited::Again,
            Step::Moved => {
                *burst = 0;
                tokio::select! {
                    biased;
                    () = until(phase, Phase::Stopped) => Waited::Stopped,
                    () = tokio::task::yield_now() => Waited::Again,
                }
            }
            Step::Full => tokio::select! {
                biased;
                () = until(phase, Phase::Stopped) => Waited::Stopped,
                edge = self.sink.writable() => after(edge, Waited::SinkHungUp),
            },
            _ => tokio::select! {
                biased;
                () = until(phase, least) => if *phase.borrow() == Phase::Stopped { Waited::Stopped } else { Waited::Again },
                edge = self.source.readable() => after(edge, Waited::SourceHungUp),
            },
        }
    }

    /// One try to move something.
    fn step(&mut self) -> Step {
        if self.sent < self.pending.len() {
            return self.flush();
        }
        if self.told_end {
            return Step::End;
        }
        match (&self.source, &self.sink) {
            (Source::Pipe(from), Sink::Pipe(to) | Sink::Fifo(to, _)) => splice_some(from, to),
            _ => self.copy_some(),
        }
    }

    fn copy_some(&mut self) -> Step {
        let mut buffer = [MaybeUninit::uninit(); CHUNK];
        match self.source.read(&mut buffer) {
            Ok(bytes) if bytes.is_empty() => self.tell_end(),
            Ok(bytes) => self.deliver(&bytes),
            Err(Errno::INTR) => Step::Moved,
            Err(Errno::AGAIN) => Step::Starved,
            Err(Errno::IO) if matches!(self.source, Source::Console(_)) => Step::Unplugged,
            Err(errno) => {
                log::warn!("{}: read: {errno}; the copy ends", self.name);
                Step::End
            }
        }
    }

    fn deliver(&mut self, bytes: &[u8]) -> Step {
        let written = self.sink.write(bytes);
        let count = *written.as_ref().unwrap_or(&0);
        self.pending = bytes[count..].to_vec();
        self.sent = 0;
        written.map_or_else(|errno| self.refused(errno), |_| Step::Moved)
    }

    fn flush(&mut self) -> Step {
        match self.sink.write(&self.pending[self.sent..]) {
            Ok(count) => {
                self.sent += count;
                if self.sent == self.pending.len() {
                    self.pending = Vec::new();
                    self.sent = 0;
                }
                Step::Moved
            }
            Err(errno) => self.refused(errno),
        }
    }

    fn refused(&mut self, errno: Errno) -> Step {
        match (errno, &self.source, &self.sink) {
            (Errno::INTR, ..) => Step::Moved,
            (Errno::AGAIN, ..) | (Errno::IO, _, Sink::Console(_)) => Step::Full,
            (Errno::PIPE, Source::Console(_), _) => {
                log::warn!("{}: the logger is gone; the terminal's output is discarded from here on", self.name);
                self.sink = Sink::Discard;
                Step::Moved
            }
            (Errno::PIPE, ..) | (_, _, Sink::Console(_)) => Step::End,
            _ => Step::Fault(errno),
        }
    }

    /// The end of the input. A terminal cannot be half closed; its user would type the end-of-file character: once for what
    /// stands on an unfinished line, once for the end.
    fn tell_end(&mut self) -> Step {
        if let Sink::Console(console) = &self.sink
            && let Ok(settings) = rustix::termios::tcgetattr(&console.master)
        {
            self.told_end = true;
            self.pending = vec![settings.special_codes[SpecialCodeIndex::VEOF]; 2];
            return Step::Moved;
        }
        Step::End
    }

    /// Bytes that a stop leaves undelivered.
    fn left(&self) -> u64 {
        let unread = match &self.source {
            Source::Pipe(pipe) => rustix::io::ioctl_fionread(pipe).unwrap_or(0),
            Source::Console(console) => rustix::io::ioctl_fionread(&console.master).unwrap_or(0),
            Source::Stream(channel) => channel.left(),
            Source::Ended => 0,
        };
        let unsent = if let Sink::Stream(channel) = &self.sink { channel.left() } else { 0 };
        unread + unsent + (self.pending.len() - self.sent) as u64
    }

    /// A write that fails is tried again for as long as the process lives: nothing is lost when the fault clears.
    async fn back_off(&self, errno: Errno, faults: usize, phase: &mut watch::Receiver<Phase>) -> Waited {
        if faults == 0 {
            log::warn!("{}: write: {errno}; the process waits until this works again", self.name);
        }
        tokio::select! {
            biased;
            () = until(phase, Phase::Stopped) => Waited::Stopped,
            () = tokio::time::sleep(BACKOFF[faults.min(BACKOFF.len() - 1)]) => Waited::Again,
        }
    }

    fn recover(&self, step: &Step, faults: &mut usize) {
        if *step == Step::Moved && *faults > 0 {
            log::warn!("{}: write works again", self.name);
            *faults = 0;
        }
    }
}

fn splice_some(from: &Watched, to: &Watched) -> Step {
    match splice(from, None, to, None, SPLICE_MAX, SpliceFlags::NONBLOCK | SpliceFlags::MOVE) {
        Ok(0) | Err(Errno::PIPE) => Step::End,
        Ok(_) | Err(Errno::INTR) => Step::Moved,
        // The same errno for either side.
        Err(Errno::AGAIN) if !is_ready(from, PollFlags::IN) => Step::Starved,
        Err(Errno::AGAIN) if !is_ready(to, PollFlags::OUT) => Step::Full,
        Err(Errno::AGAIN) => Step::Moved,
        Err(errno) => Step::Fault(errno),
    }
}

/// What poll(2) says of `fd` now; a hang-up or an error is ready too.
pub(super) fn poll_now(fd: impl AsFd, events: PollFlags) -> PollFlags {
    let mut fds = [PollFd::new(&fd, events)];
    match poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })) {
        Ok(_) => fds[0].revents(),
        Err(_) => PollFlags::empty(),
    }
}

fn is_ready(fd: &Watched, events: PollFlags) -> bool {
    !poll_now(fd, events).is_empty()
}

impl Source {
    fn read<'a>(&self, buffer: &'a mut [MaybeUninit<u8>; CHUNK]) -> Result<Cow<'a, [u8]>, Errno> {
        let (bytes, _) = match self {
            Self::Pipe(pipe) => rustix::io::read(pipe, &mut buffer[..])?,
            Self::Console(console) => rustix::io::read(&console.master, &mut buffer[..])?,
            Self::Stream(channel) => return channel.pull().map(Cow::Owned),
            Self::Ended => return Ok(Cow::Borrowed(&[])),
        };
        Ok(Cow::Borrowed(bytes))
    }

    async fn readable(&self) -> Edge {
        match self {
            Self::Pipe(pipe) => pipe.readable().await,
            Self::Console(console) => console.edges.next().await,
            Self::Stream(channel) => {
                channel.readable().await;
                Edge::Changed
            }
            Self::Ended => Edge::HungUp,
        }
    }
}

impl Sink {
    fn write(&self, bytes: &[u8]) -> Result<usize, Errno> {
        let written = match self {
            Self::Pipe(pipe) | Self::Fifo(pipe, _) => rustix::io::write(pipe, bytes)?,
            Self::Console(console) => rustix::io::write(&console.master, bytes)?,
            Self::File(file) => rustix::io::write(file, bytes)?,
            Self::Stream(channel) => channel.push(bytes)?,
            Self::Discard => bytes.len(),
        };
        // No file promises this, and an answer of zero must not become a loop.
        if written == 0 { Err(Errno::AGAIN) } else { Ok(written) }
    }

    async fn writable(&self) -> Edge {
        match self {
            Self::Pipe(pipe) | Self::Fifo(pipe, _) => pipe.writable().await,
            Self::Console(console) => console.edges.next().await,
            Self::Stream(channel) => {
                channel.writable().await;
                Edge::Changed
            }
            Self::File(_) | Self::Discard => {
                tokio::time::sleep(BACKOFF[0]).await;
                Edge::Changed
            }
        }
    }
}

fn after(edge: Edge, hung_up: Waited) -> Waited {
    if edge == Edge::HungUp { hung_up } else { Waited::Again }
}
