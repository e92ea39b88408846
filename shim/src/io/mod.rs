//! The stdio of containers and execs, between the pipes or the terminal of a process and what containerd named.
//!
//! ```text
//! open ──► start ──► exited ──► drained          abort, or a drop, at any point: everything closes
//!     └─ attach_console (terminal), before or after start
//! ```
//!
//! A process never gets containerd's fifo, it gets a pipe; our copies run as tasks on the one thread, none of which ever blocks
//! it, except for writes to a regular log file, which the kernel has no other way for. A reader that is slow or away stops the
//! process that writes, as a pipe would, and nothing else. See containerd's `cmd/containerd-shim-runc-v2/process/io.go`.

mod linger;
mod logger;
mod open;
mod pump;
mod streams;
mod target;
mod turns;
pub(crate) mod watched;

use std::convert::Infallible;
use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use runtime_core::error::{Context, Error, ErrorKind, Result};
use rustix::event::epoll::EventFlags;
use rustix::termios::Winsize;
use tokio::io::Interest;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout, timeout_at};

pub use logger::{LoggerCommand, LoggerProcess, Spawner};
pub use streams::{Attachment, Message, Next, Streams};

use linger::LATE;
use logger::Logger;
use open::{FifoReader, FifoWriter, Input, Output};
use pump::{Console, End, Phase, Pump, Sink, Source, Untaken};
use streams::{Channel, Taken};
use target::Target;
use turns::{Turn, Turns};
use watched::{Edges, Watched};

/// The stdio of a process, as Create and Exec name it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// Whether the process has a terminal.
    pub terminal: bool,
    /// Empty, or the path of a fifo.
    pub stdin: String,
    /// Empty, the path of a fifo, or a URI.
    pub stdout: String,
    /// As `stdout`; with a terminal, whose only output is `stdout`, passed over.
    pub stderr: String,
}

/// Whose process it is, for loggers and for messages.
#[derive(Clone, Copy)]
pub struct Origin<'a> {
    /// The container, or of an exec the exec id, as containerd has it.
    pub id: &'a str,
    /// The containerd namespace.
    pub namespace: &'a str,
    /// Starts loggers; without one they are not allowed.
    pub spawner: Option<&'a dyn Spawner>,
    /// Where streams meet their clients; without it they are not allowed.
    pub streams: Option<&'a Streams>,
}

/// Who owns the pipes: `io_uid` and `io_gid`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// What a process without a terminal gets as 0, 1 and 2. Its copies in our process must be dropped once it runs, for an
/// output ends when its last writer is gone.
#[derive(Debug)]
pub struct ChildEnds {
    /// Descriptor 0.
    pub stdin: OwnedFd,
    /// Descriptor 1.
    pub stdout: OwnedFd,
    /// Descriptor 2.
    pub stderr: OwnedFd,
}

/// What became of the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a truncated output must be reported"]
pub enum Drained {
    /// Everything was delivered.
    Complete,
    /// Everything so far was delivered, but some process still held an output open.
    HeldOpen,
    /// This many bytes were not taken in time and are lost.
    Truncated(u64),
}

/// The shim's side of the stdio of one process.
pub struct Io {
    name: String,
    phase: watch::Sender<Phase>,
    state: Mutex<State>,
    draining: tokio::sync::Mutex<Draining>,
    /// Its senders are held by outputs that may not have been taken.
    taken: tokio::sync::Mutex<tokio::sync::mpsc::Receiver<Infallible>>,
}

#[derive(Default)]
struct State {
    /// For outputs that are still to be opened.
    untaken: Option<Untaken>,
    started: bool,
    /// Opened and not yet copying.
    waiting: Vec<(Direction, Pump)>,
    tasks: Vec<(Direction, JoinHandle<End>)>,
    /// Opened and waiting for the master.
    terminal: Option<TerminalEnds>,
    master: Option<Arc<OwnedFd>>,
    stdin_hold: Option<OwnedFd>,
    stdin_stream: Option<Arc<Channel>>,
    streams: Vec<Taken>,
    logger: Option<Logger>,
}

struct TerminalEnds {
    input: Option<Source>,
    output: Sink,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    In,
    Out,
}

/// Kept here and not in the future that drains, so that a dropped one loses nothing.
#[derive(Default)]
struct Draining {
    tasks: Vec<(Direction, JoinHandle<End>)>,
    ends: Vec<End>,
    result: Option<Drained>,
}

impl Io {
    /// Opens and checks everything that `request` names and makes the pipes. Without a terminal the second value is what the
    /// process gets; with one, the caller brings the master to [`Io::attach_console`]. Nothing is copied before [`Io::start`].
    ///
    /// Must be called inside a runtime. Waits for nothing but a logger that gets ready, 10 s at most.
    ///
    /// # Errors
    /// InvalidArgument for what is missing at a path, or is not a fifo, a file or the null device; Unimplemented for unknown
    /// schemes; the errno of a failed open. Nothing stays open.
    pub async fn open(request: &Request, origin: &Origin<'_>, owner: Option<Owner>) -> Result<(Self, Option<ChildEnds>)> {
        let mut opening = Opening { io: Self::new(origin.id), owner, turns: Arc::default() };
        let ends = if request.terminal {
            opening.terminal(request, origin).await?;
            None
        } else {
            Some(opening.pipes(request, origin).await?)
        };
        Ok((opening.io, ends))
    }

    fn new(name: &str) -> Self {
        let (untaken, taken) = tokio::sync::mpsc::channel(1);
        Self {
            name: name.to_owned(),
            phase: watch::Sender::new(Phase::Running),
            state: Mutex::new(State { untaken: Some(untaken), ..State::default() }),
            draining: tokio::sync::Mutex::default(),
            taken: tokio::sync::Mutex::new(taken),
        }
    }

    /// Brings the master of the process's terminal. From now on it is copied (once started) and can be resized.
    ///
    /// # Errors
    /// FailedPrecondition without a terminal in the request or at the second call; those of `epoll_ctl(2)`.
    pub fn attach_console(&self, master: OwnedFd) -> Result<()> {
        rustix::io::ioctl_fionbio(&master, true).context(|| "set a terminal non-blocking")?;
        let master = Arc::new(master);
        let watched = |events| Ok::<_, Error>(Console { master: Arc::clone(&master), edges: Edges::new(&*master, events)? });
        let (reader, writer) = (watched(EventFlags::IN)?, watched(EventFlags::OUT)?);
        let mut state = self.state();
        let Some(ends) = state.terminal.take() else {
            return Err(Error::new(ErrorKind::FailedPrecondition, format!("{}: no terminal was asked for", self.name)));
        };
        let output = Pump::new(format!("{}: terminal", self.name), Source::Console(reader), ends.output, state.untaken.clone());
        self.add(&mut state, Direction::Out, output);
        if let Some(input) = ends.input {
            let input = Pump::new(format!("{}: stdin", self.name), input, Sink::Console(writer), None);
            self.add(&mut state, Direction::In, input);
        }
        state.master = Some(master);
        Ok(())
    }

    /// Begins to copy. Must be called inside the runtime of [`Io::open`]. A second call does nothing.
    pub fn start(&self) {
        let mut state = self.state();
        state.started = true;
        for (direction, pump) in std::mem::take(&mut state.waiting) {
            self.add(&mut state, direction, pump);
        }
    }

    /// Sets the size of the terminal; without one does nothing.
    ///
    /// # Errors
    /// Those of `ioctl(TIOCSWINSZ)`.
    pub fn resize(&self, width: u16, height: u16) -> Result<()> {
        let Some(master) = self.state().master.clone() else { return Ok(()) };
        let size = Winsize { ws_row: height, ws_col: width, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(&*master, size).context(|| format!("resize the terminal of {} to {width}x{height}", self.name))
    }

    /// CloseIO: from here on the input ends when containerd's writer is gone, after all that was written. At any time, before
    /// the start too; a second call does nothing.
    pub fn close_stdin(&self) {
        let mut state = self.state();
        state.stdin_hold = None;
        if let Some(stream) = &state.stdin_stream {
            stream.close_input();
        }
    }

    /// No process can read the input any more: a writer gets EPIPE.
    pub fn end_input(&self) {
        let mut state = self.state();
        state.stdin_hold = None;
        state.waiting.retain(|(direction, _)| *direction == Direction::Out);
        if let Some(terminal) = &mut state.terminal {
            terminal.input = None;
        }
        state.tasks.iter().filter(|(direction, _)| *direction == Direction::In).for_each(|(_, task)| task.abort());
    }

    /// The process itself has ended, or there will be none. A terminal is then at its end when there is nothing left to read, for no process may
    /// wait for those who still hold it; one that was never made has nothing to read. Pipes end by themselves. To be called at the exit, before
    /// anybody waits for the output's end.
    pub fn exited(&self) {
        self.advance(Phase::Exited);
        let mut state = self.state();
        if let Some(TerminalEnds { output, .. }) = state.terminal.take() {
            let output = Pump::new(format!("{}: terminal", self.name), Source::Ended, output, state.untaken.clone());
            self.add(&mut state, Direction::Out, output);
        }
    }

    /// Waits until what the process has written before its end has been read from the fifos, a moment at most. To be called between
    /// [`Io::exited`] and the telling of the end: containerd's client gives up a fifo that it has not come to read when it hears of that
    /// (`Cancel` in its `pkg/cio`, `OpenFifo` in containerd/fifo), and on a busy machine its reader may run late.
    pub async fn taken(&self) {
        self.state().untaken = None;
        let mut taken = self.taken.lock().await;
        let _ = timeout(LATE, taken.recv()).await;
    }

    /// Waits until all output was delivered, `bound` at most, then closes everything, the terminal too, and ends the logger.
    /// For Delete: a fifo that nobody reads loses its content here. A second call gives the first one's answer.
    pub async fn drained(&self, bound: Duration) -> Drained {
        let deadline = Instant::now() + bound;
        let mut draining = self.draining.lock().await;
        if let Some(result) = draining.result {
            return result;
        }
        self.advance(Phase::Draining);
        draining.tasks.append(&mut self.state().tasks);
        let _ = timeout_at(deadline, draining.join(Some(Direction::Out))).await;
        self.advance(Phase::Stopped);
        draining.join(None).await;
        let result = draining.sum();
        draining.result = Some(result);
        if let Some(logger) = self.release() {
            // In a task of its own: a logger gets all its time even when nobody waits for it any longer.
            let _ = timeout_at(deadline, tokio::spawn(logger.finish())).await;
        }
        result
    }

    /// Closes everything as it is; what was not delivered is lost.
    pub fn abort(&self) {
        self.advance(Phase::Stopped);
        drop(self.release());
    }

    fn state(&self) -> MutexGuard<'_, State> {
        crate::sync::lock(&self.state)
    }

    fn advance(&self, to: Phase) {
        self.phase.send_if_modified(|phase| {
            let grows = to > *phase;
            *phase = to.max(*phase);
            grows
        });
    }

    fn add(&self, state: &mut State, direction: Direction, pump: Pump) {
        if state.started {
            state.tasks.push((direction, tokio::spawn(pump.run(self.phase.subscribe()))));
        } else {
            state.waiting.push((direction, pump));
        }
    }

    /// Lets go of what no task holds.
    fn release(&self) -> Option<Logger> {
        let mut state = self.state();
        let logger = state.logger.take();
        *state = State { started: state.started, tasks: std::mem::take(&mut state.tasks), ..State::default() };
        logger
    }
}

impl Drop for Io {
    fn drop(&mut self) {
        self.abort();
    }
}

impl fmt::Debug for Io {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Io").field("name", &self.name).field("phase", &*self.phase.borrow()).finish_non_exhaustive()
    }
}

impl Draining {
    /// Joins the tasks of `direction`, or all. A dropped future has lost nothing.
    async fn join(&mut self, direction: Option<Direction>) {
        while let Some(at) = self.tasks.iter().position(|(of, _)| direction.is_none_or(|wanted| wanted == *of)) {
            let (of, task) = &mut self.tasks[at];
            let end = task.await.unwrap_or(End::Cut(0));
            if *of == Direction::Out {
                self.ends.push(end);
            }
            self.tasks.swap_remove(at);
        }
    }

    fn sum(&self) -> Drained {
        let cuts: Vec<u64> = self.ends.iter().filter_map(|end| if let End::Cut(left) = end { Some(*left) } else { None }).collect();
        match (cuts.len(), cuts.iter().sum()) {
            (0, _) => Drained::Complete,
            (_, 0) => Drained::HeldOpen,
            (_, lost) => Drained::Truncated(lost),
        }
    }
}

/// An [`Io`] whose parts are being opened. Dropped on the way, it closes them.
struct Opening {
    io: Io,
    owner: Option<Owner>,
    turns: Arc<Turns>,
}

impl Opening {
    /// A terminal has one output. containerd's Go client may name a fifo for stderr all the same, and reads nothing from it.
    async fn terminal(&mut self, request: &Request, origin: &Origin<'_>) -> Result<()> {
        let input = self.stdin(&request.stdin, origin)?;
        let output = match Target::parse("stdout", &request.stdout)? {
            Target::Logger(uri) => {
                let (logger, ends) = logger::start(uri, origin, self.owner).await?;
                self.io.state().logger = Some(logger);
                Sink::Pipe(Watched::new(ends.stdout, Interest::WRITABLE)?)
            }
            target => sink(self.open_output("stdout", &target, origin)?)?,
        };
        self.io.state().terminal = Some(TerminalEnds { input, output });
        Ok(())
    }

    async fn pipes(&mut self, request: &Request, origin: &Origin<'_>) -> Result<ChildEnds> {
        let stdin = match self.stdin(&request.stdin, origin)? {
            None => open::dev_null()?,
            Some(from) => {
                let (read, write) = open::pipe(self.owner)?;
                self.pump(Direction::In, "stdin", from, Sink::Pipe(Watched::new(write, Interest::WRITABLE)?));
                read
            }
        };
        let stdout = Target::parse("stdout", &request.stdout)?;
        let (stdout, stderr) = match stdout {
            Target::Logger(uri) => {
                let (logger, ends) = logger::start(uri, origin, self.owner).await?;
                self.io.state().logger = Some(logger);
                (ends.stdout, ends.stderr)
            }
            stdout => {
                // A log file takes both streams when nothing else is said, as containerd's shim has it.
                let both = matches!(stdout, Target::File(_)) && request.stderr.is_empty();
                let stderr = if both { None } else { Some(Target::parse("stderr", &request.stderr)?) };
                (self.output("stdout", &stdout, origin)?, self.output("stderr", stderr.as_ref().unwrap_or(&stdout), origin)?)
            }
        };
        Ok(ChildEnds { stdin, stdout, stderr })
    }

    /// Opens the input fifo or stream, if one is named, and keeps what CloseIO closes.
    fn stdin(&mut self, text: &str, origin: &Origin<'_>) -> Result<Option<Source>> {
        match Target::parse("stdin", text)? {
            Target::Null => Ok(None),
            Target::Path(path) => match open::input(&path)? {
                Input::Null => Ok(None),
                Input::Fifo(FifoReader { read, hold }) => {
                    self.io.state().stdin_hold = Some(hold);
                    Ok(Some(Source::Pipe(Watched::new(read, Interest::READABLE)?)))
                }
            },
            Target::Stream(id) => {
                let stream = self.stream("stdin", &id, streams::Direction::Input, origin)?;
                self.io.state().stdin_stream = Some(Arc::clone(&stream));
                Ok(Some(Source::Stream(stream)))
            }
            _ => Err(Error::invalid(format!("stdin {text:?}: an input is a fifo or a stream"))),
        }
    }

    fn stream(&mut self, field: &str, id: &str, direction: streams::Direction, origin: &Origin<'_>) -> Result<Arc<Channel>> {
        let none = || Error::new(ErrorKind::Unimplemented, format!("{field}: there are no streams here"));
        let taken = origin.streams.ok_or_else(none)?.take(id, direction).context(|| field.to_owned())?;
        let channel = Arc::clone(&taken.channel);
        self.io.state().streams.push(taken);
        Ok(channel)
    }

    fn open_output(&mut self, field: &str, target: &Target, origin: &Origin<'_>) -> Result<Output> {
        match target {
            Target::Null => Ok(Output::Null),
            Target::Path(path) => open::output(field, path),
            Target::File(path) => open::log_file(field, path).map(Output::File),
            Target::Stream(id) => self.stream(field, id, streams::Direction::Output, origin).map(Output::Stream),
            Target::Logger(_) => Err(Error::invalid(format!("{field}: a logger is named in stdout"))),
        }
    }

    fn output(&mut self, field: &'static str, target: &Target, origin: &Origin<'_>) -> Result<OwnedFd> {
        match self.open_output(field, target, origin)? {
            Output::Null => open::dev_null(),
            output => {
                let (read, write) = open::pipe(self.owner)?;
                let from = Source::Pipe(Watched::new(read, Interest::READABLE)?);
                self.pump(Direction::Out, field, from, sink(output)?);
                Ok(write)
            }
        }
    }

    fn pump(&mut self, direction: Direction, field: &str, source: Source, sink: Sink) {
        let mut state = self.io.state();
        let untaken = state.untaken.clone().filter(|_| direction == Direction::Out);
        let mut pump = Pump::new(format!("{}: {field}", self.io.name), source, sink, untaken);
        if direction == Direction::Out {
            pump.takes_turns(Turn::new(&self.turns, field == "stderr"));
        }
        state.waiting.push((direction, pump));
    }
}

fn sink(output: Output) -> Result<Sink> {
    Ok(match output {
        Output::Null => Sink::Discard,
        Output::Fifo(FifoWriter { write, hold }) => Sink::Fifo(Watched::new(write, Interest::WRITABLE)?, hold),
        Output::File(log) => Sink::File(log),
        Output::Stream(stream) => Sink::Stream(stream),
    })
}

#[cfg(test)]
mod tests;
