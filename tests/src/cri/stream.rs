//! Exec, Attach and PortForward by CRI's streaming server, over WebSocket: each message is a channel's number and bytes.
//!
//! The server listens on the loopback of containerd's own network namespace.

use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags, open};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tungstenite::client::IntoClientRequest;
use tungstenite::http::HeaderValue;
use tungstenite::{Message, WebSocket, client};

use super::node::Node;
use crate::{Context, Failure, Result, ensure, fail};

/// Time for what is sent to be answered.
const LIMIT: Duration = Duration::from_secs(20);

/// Channels of exec and attach; port-forward has its data on 0 in both directions.
pub const STDIN: u8 = 0;
/// Standard output.
pub const STDOUT: u8 = 1;
/// Standard error.
pub const STDERR: u8 = 2;
/// How the process ended, as JSON.
pub const STATUS: u8 = 3;
/// The size of the terminal, as JSON.
pub const RESIZE: u8 = 4;

/// An open stream.
pub struct Stream {
    socket: WebSocket<TcpStream>,
    received: Vec<(u8, Vec<u8>)>,
    open: bool,
}

impl Stream {
    /// Opens the address that Exec, Attach or PortForward answered.
    pub fn open(node: &Node, url: &str) -> Result<Stream> {
        let rest = url.strip_prefix("http://").context(|| format!("address {url}"))?;
        let (host, _) = rest.split_once('/').context(|| format!("address {url}"))?;
        let tcp = connect(node.containerd.pid(), host.to_owned())?;
        tcp.set_read_timeout(Some(Duration::from_millis(50)))?;
        let mut request = url.replacen("http", "ws", 1).into_client_request()?;
        request.headers_mut().insert("Sec-WebSocket-Protocol", HeaderValue::from_static("v4.channel.k8s.io"));
        let (socket, _) = handshake(client(request, tcp))?;
        Ok(Stream { socket, received: Vec::new(), open: true })
    }

    /// Sends bytes on a channel.
    pub fn send(&mut self, channel: u8, bytes: &[u8]) -> Result<()> {
        Ok(self.socket.send(Message::binary([&[channel], bytes].concat()))?)
    }

    /// All that came on a channel up to now.
    pub fn text(&self, channel: u8) -> String {
        let bytes: Vec<u8> = self.received.iter().filter(|(number, _)| *number == channel).flat_map(|(_, bytes)| bytes.clone()).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Reads until a channel has a text.
    pub fn wait(&mut self, channel: u8, text: &str) -> Result<()> {
        self.read_until(|stream| stream.text(channel).contains(text)).context(|| format!("waiting for {text:?} on channel {channel}"))
    }

    /// Reads until the server closes it.
    pub fn wait_end(&mut self) -> Result<()> {
        self.read_until(|stream| !stream.open).context(|| "waiting for the end".to_owned())
    }

    fn read_until(&mut self, done: impl Fn(&Stream) -> bool) -> Result<()> {
        let end = Instant::now() + LIMIT;
        while !done(self) {
            ensure!(self.open, "the stream ended; it had {:?}", self.summary());
            ensure!(Instant::now() < end, "nothing in {LIMIT:?}; it had {:?}", self.summary());
            match self.socket.read() {
                Ok(Message::Binary(bytes)) if !bytes.is_empty() => self.received.push((bytes[0], bytes[1..].to_vec())),
                Ok(Message::Close(_)) => self.open = false,
                Ok(_) => {}
                Err(tungstenite::Error::Io(e)) if e.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(tungstenite::Error::ConnectionClosed | tungstenite::Error::AlreadyClosed | tungstenite::Error::Protocol(_)) => {
                    self.open = false
                }
                Err(e) => fail!("{e}"),
            }
        }
        Ok(())
    }

    fn summary(&self) -> Vec<(u8, String)> {
        [STDIN, STDOUT, STDERR, STATUS]
            .map(|channel| (channel, self.text(channel)))
            .into_iter()
            .filter(|(_, text)| !text.is_empty())
            .collect()
    }
}

/// The socket's time limit may strike in the middle of a handshake.
fn handshake<S>(mut result: std::result::Result<S, tungstenite::HandshakeError<tungstenite::ClientHandshake<TcpStream>>>) -> Result<S>
where
    tungstenite::ClientHandshake<TcpStream>: tungstenite::handshake::HandshakeRole<FinalResult = S>,
{
    let end = Instant::now() + LIMIT;
    loop {
        match result {
            Ok(done) => return Ok(done),
            Err(tungstenite::HandshakeError::Interrupted(middle)) if Instant::now() < end => result = middle.handshake(),
            Err(e) => fail!("WebSocket handshake: {e}"),
        }
    }
}

/// Connects from the network namespace of a process. A thread of its own enters it, for a thread cannot be sure to come back.
pub fn connect(pid: u32, address: String) -> Result<TcpStream> {
    let connecting = thread::spawn(move || -> Result<TcpStream> {
        let namespace = open(format!("/proc/{pid}/ns/net"), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        move_into_link_name_space(std::os::fd::AsFd::as_fd(&namespace), Some(LinkNameSpaceType::Network))?;
        TcpStream::connect(&address).context(|| address)
    });
    connecting.join().unwrap_or_else(|_| Err(Failure("the connecting thread panicked".to_owned())))
}
