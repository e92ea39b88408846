//! Streams that a client carries over connections of its own (containerd's Streaming service), in place of fifos.
//!
//! A [`Channel`] is where the copy of a process's stream and the client's connection meet. Either may come first, and the client may go and
//! come back; what it has not taken stays here, a window at most, and then in the process's pipe.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};

use runtime_core::error::{Error, ErrorKind, Result};
use rustix::io::Errno;
use tokio::sync::{Notify, watch};

use super::linger::LATE;
use super::pump::{Phase, until};
use crate::sync::lock;

/// What is under way at most, as in containerd's `core/transfer/streaming`.
const WINDOW: usize = 2 * FRAME;
/// What one message holds at most.
const FRAME: usize = 32 * 1024;

/// The streams of a daemon, by the ids that Create, Exec and the client's first message name.
#[derive(Clone, Debug, Default)]
pub struct Streams(Arc<Mutex<HashMap<String, Arc<Channel>>>>);

/// See the module.
#[derive(Debug)]
pub(super) struct Channel {
    id: String,
    state: Mutex<State>,
    /// Wakes the copy.
    copy: Notify,
    /// Wakes whoever serves the client.
    client: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// Once a process has it.
    direction: Option<Direction>,
    /// The process's side has ended.
    over: bool,
    attached: bool,
    /// How many clients there have been: only the last one counts.
    clients: u64,
    /// On the way to the client, or from it.
    queue: VecDeque<u8>,
    /// What the client is prepared to take, or was told that it may send.
    credit: usize,
    /// CloseIO has not come: the input does not end with its client.
    hold: bool,
}

/// Which way the bytes go, as the process sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    Input,
    Output,
}

/// A process's hold on its stream: while it lives, a client that comes back finds the stream, even one that has ended.
#[derive(Debug)]
pub(super) struct Taken {
    streams: Streams,
    pub(super) channel: Arc<Channel>,
}

/// One client's hold on a stream.
#[derive(Debug)]
pub struct Attachment {
    streams: Streams,
    channel: Arc<Channel>,
    number: u64,
}

/// What the two sides say to each other.
#[derive(Debug, PartialEq, Eq)]
pub enum Message {
    /// Some bytes.
    Data(Vec<u8>),
    /// So many more may be sent.
    Window(i32),
}

/// What is to be done for a client.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// Send this.
    Send(Message),
    /// Wait for the client or for [`Attachment::changed`].
    Wait,
    /// Nothing will come any more.
    End,
}

impl Streams {
    /// Gives a stream to a process.
    ///
    /// # Errors
    /// [`ErrorKind::AlreadyExists`] if another one has it.
    pub(super) fn take(&self, id: &str, direction: Direction) -> Result<Taken> {
        let channel = self.channel(id);
        let mut state = lock(&channel.state);
        if state.direction.is_some() {
            return Err(Error::new(ErrorKind::AlreadyExists, format!("stream {id:?} belongs to another process")));
        }
        state.direction = Some(direction);
        if direction == Direction::Input {
            (state.hold, state.credit) = (true, 0);
        }
        drop(state);
        channel.client.notify_one();
        Ok(Taken { streams: self.clone(), channel })
    }

    /// Gives a stream to a client, and takes it from the one that had it.
    pub fn attach(&self, id: &str) -> Attachment {
        let channel = self.channel(id);
        let mut state = lock(&channel.state);
        state.clients += 1;
        (state.attached, state.credit) = (true, 0);
        let number = state.clients;
        drop(state);
        // Its predecessor may wait here, and finds that it is not meant any more.
        channel.client.notify_waiters();
        channel.copy.notify_one();
        Attachment { streams: self.clone(), channel, number }
    }

    fn channel(&self, id: &str) -> Arc<Channel> {
        let new = || Channel { id: id.to_owned(), state: Mutex::default(), copy: Notify::new(), client: Notify::new() };
        Arc::clone(lock(&self.0).entry(id.to_owned()).or_insert_with(|| Arc::new(new())))
    }

    fn forget(&self, channel: &Arc<Channel>) {
        let mut all = lock(&self.0);
        if all.get(&channel.id).is_some_and(|known| Arc::ptr_eq(known, channel)) {
            all.remove(&channel.id);
        }
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.channel.end();
        self.streams.forget(&self.channel);
    }
}

impl Channel {
    /// Takes some of the process's output.
    ///
    /// # Errors
    /// `EAGAIN` without a client, or with as much as it can get.
    pub(super) fn push(&self, bytes: &[u8]) -> std::result::Result<usize, Errno> {
        let mut state = lock(&self.state);
        let count = if state.attached { bytes.len().min(WINDOW.saturating_sub(state.queue.len())) } else { 0 };
        if count == 0 {
            return Err(Errno::AGAIN);
        }
        state.queue.extend(&bytes[..count]);
        drop(state);
        self.client.notify_one();
        Ok(count)
    }

    /// Waits until [`Channel::push`] may work.
    pub(super) async fn writable(&self) {
        self.wait(|state| state.attached && state.queue.len() < WINDOW).await;
    }

    /// Gives some of what the client has sent; nothing at the end.
    ///
    /// # Errors
    /// `EAGAIN` if there is nothing now.
    pub(super) fn pull(&self) -> std::result::Result<Vec<u8>, Errno> {
        let mut state = lock(&self.state);
        if !state.queue.is_empty() {
            let count = state.queue.len().min(FRAME);
            let bytes = state.queue.drain(..count).collect();
            drop(state);
            self.client.notify_one();
            return Ok(bytes);
        }
        if state.hold || state.attached { Err(Errno::AGAIN) } else { Ok(Vec::new()) }
    }

    /// Waits until [`Channel::pull`] gives something.
    pub(super) async fn readable(&self) {
        self.wait(|state| !state.queue.is_empty() || !(state.hold || state.attached)).await;
    }

    /// CloseIO: the input ends when its client is gone.
    pub(super) fn close_input(&self) {
        lock(&self.state).hold = false;
        self.copy.notify_one();
    }

    /// Bytes that are under way.
    pub(super) fn left(&self) -> u64 {
        lock(&self.state).queue.len() as u64
    }

    /// Waits, [`LATE`] at most, until the client has got everything.
    pub(super) async fn settle(&self, phase: &mut watch::Receiver<Phase>) {
        tokio::select! {
            biased;
            () = self.wait(|state| state.queue.is_empty()) => {}
            () = until(phase, Phase::Draining) => {}
            () = tokio::time::sleep(LATE) => {}
        }
    }

    /// Ends the output when the client has got everything; answers what it has not. In a deletion nobody waits long for a client that is away.
    pub(super) async fn finish(&self, phase: &mut watch::Receiver<Phase>) -> u64 {
        let mut stopped = phase.clone();
        let given_up = async {
            until(phase, Phase::Draining).await;
            if lock(&self.state).attached {
                std::future::pending::<()>().await;
            }
            tokio::time::sleep(LATE).await;
        };
        tokio::select! {
            biased;
            () = self.wait(|state| state.queue.is_empty()) => {}
            () = until(&mut stopped, Phase::Stopped) => {}
            () = given_up => {}
        }
        self.end();
        self.left()
    }

    fn end(&self) {
        lock(&self.state).over = true;
        self.client.notify_one();
    }

    async fn wait(&self, holds: impl Fn(&State) -> bool) {
        loop {
            let changed = self.copy.notified();
            if holds(&lock(&self.state)) {
                return;
            }
            changed.await;
        }
    }
}

impl Attachment {
    /// What is to be done now.
    pub fn next(&self) -> Next {
        let mut state = lock(&self.channel.state);
        if state.clients != self.number {
            return Next::End;
        }
        let next = match state.direction {
            Some(Direction::Output) if !state.queue.is_empty() => {
                let count = state.queue.len().min(FRAME).min(state.credit);
                if count == 0 {
                    return Next::Wait;
                }
                state.credit -= count;
                Next::Send(Message::Data(state.queue.drain(..count).collect()))
            }
            Some(_) if state.over => Next::End,
            Some(Direction::Input) => {
                let grant = WINDOW.saturating_sub(state.credit + state.queue.len());
                if grant < FRAME {
                    return Next::Wait;
                }
                state.credit += grant;
                Next::Send(Message::Window(grant as i32))
            }
            _ => Next::Wait,
        };
        drop(state);
        self.channel.copy.notify_one();
        next
    }

    /// What could not be sent: the next client gets it.
    pub fn give_back(&self, message: Message) {
        let Message::Data(bytes) = message else { return };
        let mut state = lock(&self.channel.state);
        bytes.into_iter().rev().for_each(|byte| state.queue.push_front(byte));
    }

    /// What the client has sent.
    ///
    /// # Errors
    /// `InvalidArgument` for more than it was told that it may send, and for a window that is none.
    pub fn received(&self, message: Message) -> Result<()> {
        let mut state = lock(&self.channel.state);
        match message {
            Message::Data(bytes) if state.direction == Some(Direction::Input) && bytes.len() <= state.credit => {
                state.credit -= bytes.len();
                state.queue.extend(bytes);
            }
            Message::Data(bytes) => {
                let allowed = if state.direction == Some(Direction::Output) { 0 } else { state.credit };
                return Err(Error::invalid(format!("stream {:?}: {} bytes, of which {allowed} are allowed", self.channel.id, bytes.len())));
            }
            Message::Window(more) => {
                let more =
                    usize::try_from(more).map_err(|_| Error::invalid(format!("stream {:?}: a window of {more}", self.channel.id)))?;
                state.credit = state.credit.saturating_add(more);
            }
        }
        drop(state);
        self.channel.copy.notify_one();
        Ok(())
    }

    /// Waits until [`Attachment::next`] may have changed.
    pub async fn changed(&self) {
        self.channel.client.notified().await;
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        let mut state = lock(&self.channel.state);
        if state.clients != self.number {
            return;
        }
        (state.attached, state.credit) = (false, 0);
        let unknown = state.direction.is_none();
        drop(state);
        if unknown {
            self.streams.forget(&self.channel);
        }
        self.channel.copy.notify_one();
    }
}
