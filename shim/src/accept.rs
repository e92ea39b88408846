//! Accepts clients of the shim's socket, those of our own user only.
//!
//! ttrpc for Go checks each peer (`UnixSocketRequireSameUser`); ttrpc for Rust has no such check. Its server takes any stream of
//! connections, so the check sits in the stream: no raw descriptors, and strangers never reach the protocol. (Its accept hooks would
//! do, too, but their feature adds state to every connection and a call to every message.)

use std::future::Future;
use std::io;
use std::os::unix::net::UnixListener as StdListener;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use futures_core::Stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::{Sleep, sleep};

use crate::idle::{Clients, Present};

/// How long to wait before accepting again after the kernel had no descriptor or no memory for a connection.
const PAUSE: Duration = Duration::from_millis(100);

/// The connections of a listener whose other end runs as our own user.
#[derive(Debug)]
pub struct SameUser {
    listener: UnixListener,
    uid: u32,
    pause: Option<Pin<Box<Sleep>>>,
    clients: Clients,
}

/// A connection that counts as a client until it is closed.
///
/// While its client does not read its answers, no more of its requests are read: each would be worked off, and its answer kept in vain. So one client
/// costs what fits into its socket, and a few answers on the way.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    present: Present,
    /// The last write found no room.
    is_full: bool,
    /// Who waits to read until there is room.
    reader: Option<Waker>,
}

impl SameUser {
    /// Takes over `listener` and counts its clients. To be called within a tokio runtime.
    ///
    /// # Errors
    /// When the listener cannot be made non-blocking or registered.
    pub fn new(listener: StdListener, clients: Clients) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self { listener: UnixListener::from_std(listener)?, uid: rustix::process::geteuid().as_raw(), pause: None, clients })
    }

    /// Whether the process that connected runs as our user (`SO_PEERCRED` of unix(7), taken at connect(2)).
    fn admits(&self, stream: &UnixStream) -> bool {
        match stream.peer_cred() {
            Ok(peer) if peer.uid() == self.uid => true,
            Ok(peer) => {
                log::warn!("refused a client: uid {}, pid {:?}", peer.uid(), peer.pid());
                false
            }
            Err(error) => {
                log::warn!("refused a client: credentials: {error}");
                false
            }
        }
    }
}

impl Stream for SameUser {
    type Item = io::Result<Connection>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        loop {
            if let Some(pause) = &mut this.pause {
                ready!(pause.as_mut().poll(context));
                this.pause = None;
            }
            match ready!(this.listener.poll_accept(context)) {
                Ok((stream, _)) if this.admits(&stream) => {
                    return Poll::Ready(Some(Ok(Connection { stream, present: this.clients.enter(), is_full: false, reader: None })));
                }
                Ok(_) => {}
                Err(error) => {
                    log::warn!("accept: {error}");
                    this.pause = Some(Box::pin(sleep(PAUSE)));
                }
            }
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.is_full {
            this.reader = Some(context.waker().clone());
            return Poll::Pending;
        }
        let read = Pin::new(&mut this.stream).poll_read(context, buffer);
        if read.is_ready() {
            this.present.called();
        }
        read
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write(context, bytes);
        this.is_full = written.is_pending();
        if !this.is_full
            && let Some(reader) = this.reader.take()
        {
            reader.wake();
        }
        written
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;
    use tokio::io::AsyncReadExt;

    async fn next(stream: &mut SameUser) -> Connection {
        poll_fn(|context| Pin::new(&mut *stream).poll_next(context)).await.unwrap().unwrap()
    }

    #[tokio::test]
    async fn our_own_user_comes_in_and_a_stranger_is_hung_up_on() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("s");
        let mut accepted = SameUser::new(StdListener::bind(&path).unwrap(), Clients::default()).unwrap();
        let _client = UnixStream::connect(&path).await.unwrap();
        next(&mut accepted).await;

        accepted.uid = accepted.uid.wrapping_add(1);
        let mut stranger = UnixStream::connect(&path).await.unwrap();
        let hung_up = async { stranger.read(&mut [0; 1]).await.unwrap() };
        tokio::select! {
            _ = next(&mut accepted) => panic!("a stranger came in"),
            read = hung_up => assert_eq!(read, 0),
        }
    }
}
