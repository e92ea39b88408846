//! One connection to a manager of systemd's: what is sent, what is waited for. It never blocks; who drives it waits for its descriptor.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, recv, send, socket_with};

use super::address::Address;
use super::wire::{self, Call, Message, Writer, kind};
use crate::error::{Context, Error, ErrorKind, Result};

pub(super) const MANAGER: &str = "org.freedesktop.systemd1.Manager";
pub(super) const SYSTEMD: &str = "org.freedesktop.systemd1";
pub(super) const SYSTEMD_PATH: &str = "/org/freedesktop/systemd1";
const JOB_REMOVED: &str = "JobRemoved";
const BUS: &str = "org.freedesktop.DBus";
const BUS_PATH: &str = "/org/freedesktop/DBus";

/// All in one go, as sd-bus does it: the peer is known by its credentials (D-Bus specification, "Authentication Protocol"), and an empty
/// identity stands for them, which is right in a user namespace as well.
const AUTHENTICATION: &[u8] = b"\0AUTH EXTERNAL\r\nDATA\r\nBEGIN\r\n";
/// More lines than the handshake has, or a longer one, is no D-Bus server.
const HANDSHAKE_MAX: usize = 4096;
const CHUNK: usize = 4096;

/// What a call came back with.
#[derive(Debug)]
pub enum Answer {
    /// Its reply.
    Reply(Reply),
    /// The job that it began has ended: with "done" if all is well (org.freedesktop.systemd1(5), "JobRemoved").
    Job(String),
}

/// The body of a reply.
#[derive(Debug)]
pub struct Reply(pub(super) Message);

/// Why a call came back with nothing.
#[derive(Debug)]
pub enum Failure {
    /// systemd, or the bus, has refused: its error's name and what it says.
    Refused {
        /// As `org.freedesktop.systemd1.UnitExists`.
        name: String,
        /// For people.
        message: String,
    },
    /// There is nobody to ask.
    Unreachable(Error),
    /// The connection has ended; systemd may have done it or not.
    Lost(Error),
    /// No answer in time; systemd may do it yet.
    TimedOut,
}

/// Told once, of the answer or the failure.
pub type Done = Box<dyn FnOnce(std::result::Result<Answer, Failure>) + Send>;

/// What the end of is waited for.
struct Waiting {
    job: bool,
    done: Done,
}

/// See the module. Dropping it leaves what is waited for untold; [`Client::end`] tells.
pub struct Client {
    socket: OwnedFd,
    authenticated: bool,
    ended: bool,
    serial: u32,
    /// The last serial of the greeting.
    greeting: u32,
    out: Vec<u8>,
    /// What has to wait for the authentication: systemd itself, unlike a bus, does not look at what comes in one go with that.
    held: Vec<u8>,
    received: Vec<u8>,
    calls: HashMap<u32, Waiting>,
    /// Of calls that were answered with a job: its path, and the serial of the call.
    jobs: HashMap<String, (u32, Done)>,
}

impl Client {
    /// Connects. What has to be said first is sent before the first call.
    ///
    /// # Errors
    /// The errno of connect(2); `EAGAIN` if the other side does not keep up.
    pub fn connect(address: &Address) -> std::result::Result<Self, Errno> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        let name = match address {
            Address::Path { path, .. } => SocketAddrUnix::new(path.as_path())?,
            Address::Abstract(name) => SocketAddrUnix::new_abstract_name(name)?,
        };
        connect(&socket, &name)?;
        let mut client = Self {
            socket,
            authenticated: false,
            ended: false,
            serial: 0,
            greeting: 0,
            out: AUTHENTICATION.to_vec(),
            held: Vec::new(),
            received: Vec::new(),
            calls: HashMap::new(),
            jobs: HashMap::new(),
        };
        if address.is_bus() {
            client.introduce();
        }
        Ok(client)
    }

    /// A bus wants to be greeted, and to be told that the ends of jobs are of interest. systemd sends that of a job to who began it without
    /// being subscribed to, so the bus is spared all its other signals.
    fn introduce(&mut self) {
        let bus = |member, signature, body| Call { destination: BUS, path: BUS_PATH, interface: BUS, member, signature, body, job: false };
        self.queue(&bus("Hello", "", Vec::new()));
        let mut rule = Writer::default();
        rule.text(&format!("type='signal',sender='{SYSTEMD}',path='{SYSTEMD_PATH}',interface='{MANAGER}',member='{JOB_REMOVED}'"));
        self.greeting = self.queue(&bus("AddMatch", "s", rule.finish()));
    }

    fn queue(&mut self, call: &Call) -> u32 {
        // A serial may not be 0 (D-Bus specification, "Message Format").
        self.serial = self.serial.checked_add(1).unwrap_or(1);
        let queue = if self.authenticated { &mut self.out } else { &mut self.held };
        queue.extend(call.encode(self.serial));
        self.serial
    }

    /// Queues a call: its serial, by which it can be forgotten.
    pub fn call(&mut self, call: &Call, done: Done) -> u32 {
        if self.ended {
            done(Err(Failure::Lost(Error::new(ErrorKind::Internal, "D-Bus: the connection has ended"))));
            return 0;
        }
        let serial = self.queue(call);
        self.calls.insert(serial, Waiting { job: call.job, done });
        serial
    }

    /// Nobody waits for that any more.
    pub fn forget(&mut self, serial: u32) {
        self.calls.remove(&serial);
        self.jobs.retain(|_, (of, _)| *of != serial);
    }

    /// What to wait for: it is readable when there is something to [`Client::receive`].
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Sends what fits: whether all is sent that may be. To be called after [`Client::receive`], which may let more through.
    ///
    /// # Errors
    /// The connection is at its end.
    pub fn flush(&mut self) -> Result<bool> {
        while !self.out.is_empty() {
            match send(&self.socket, &self.out, SendFlags::NOSIGNAL) {
                Ok(sent) => drop(self.out.drain(..sent)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(false),
                Err(errno) => return Err(Error::kernel("D-Bus: send", errno)),
            }
        }
        Ok(true)
    }

    /// Takes what has come and tells whom it concerns.
    ///
    /// # Errors
    /// The connection is at its end, or what comes is no D-Bus.
    pub fn receive(&mut self) -> Result<()> {
        let mut chunk = [0u8; CHUNK];
        loop {
            match recv(&self.socket, &mut chunk[..], RecvFlags::empty()).map(|(_, length)| length) {
                Ok(0) => return Err(Error::new(ErrorKind::Internal, "D-Bus: the other side has closed the connection")),
                Ok(length) => self.received.extend(&chunk[..length]),
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => return Ok(()),
                Err(errno) => return Err(Error::kernel("D-Bus: recv", errno)),
            }
            self.handshake()?;
            while self.authenticated
                && let Some(length) = wire::length(&self.received)?
                && length <= self.received.len()
            {
                let message = Message::decode(&self.received[..length])?;
                self.received.drain(..length);
                self.dispatch(message)?;
            }
        }
    }

    fn handshake(&mut self) -> Result<()> {
        let refused = |line: &str| Err(Error::new(ErrorKind::Internal, format!("D-Bus: authentication is refused: {line:?}")));
        while !self.authenticated {
            let Some(end) = self.received.windows(2).position(|pair| pair == b"\r\n") else {
                return if self.received.len() > HANDSHAKE_MAX { refused("a line without an end") } else { Ok(()) };
            };
            let line = String::from_utf8_lossy(&self.received[..end]).into_owned();
            self.received.drain(..end + 2);
            match line.split(' ').next() {
                Some("DATA") => {}
                Some("OK") => {
                    self.authenticated = true;
                    self.out.append(&mut self.held);
                }
                _ => return refused(&line),
            }
        }
        Ok(())
    }

    fn dispatch(&mut self, message: Message) -> Result<()> {
        if message.kind == kind::SIGNAL {
            return self.signal(&message);
        }
        let Some(Waiting { job, done }) = self.calls.remove(&message.reply_serial) else {
            // The greeting is answered with a name that nobody needs; refused, there is no connection.
            let greeting = message.kind == kind::ERROR && (1..=self.greeting).contains(&message.reply_serial);
            let refused = || Error::new(ErrorKind::Internal, format!("D-Bus: the bus refuses the connection: {}", message.error_name));
            return if greeting { Err(refused()) } else { Ok(()) };
        };
        if message.kind == kind::ERROR {
            let text = message.read("s").and_then(|mut body| body.text().map(str::to_owned));
            done(Err(Failure::Refused { name: message.error_name, message: text.unwrap_or_default() }));
        } else if job {
            match message.read("o").and_then(|mut body| body.text().map(str::to_owned)) {
                Ok(path) => drop(self.jobs.insert(path, (message.reply_serial, done))),
                Err(error) => done(Err(Failure::Lost(error))),
            }
        } else {
            done(Ok(Answer::Reply(Reply(message))));
        }
        Ok(())
    }

    /// A job's end comes after the answer that tells of it, since both are systemd's own and the bus keeps the order.
    fn signal(&mut self, message: &Message) -> Result<()> {
        if message.interface != MANAGER || message.member != JOB_REMOVED || message.path != SYSTEMD_PATH {
            return Ok(());
        }
        let mut body = message.read("uoss")?;
        body.uint32()?;
        let job = body.text()?;
        body.text()?;
        if let Some((_, done)) = self.jobs.remove(job) {
            done(Ok(Answer::Job(body.text()?.to_owned())));
        }
        Ok(())
    }

    /// Tells all that is waited for, now or later, that the connection has ended.
    pub fn end(&mut self, why: &Error) {
        self.ended = true;
        let calls = self.calls.drain().map(|(_, waiting)| waiting.done);
        for done in calls.chain(self.jobs.drain().map(|(_, (_, done))| done)) {
            done(Err(Failure::Lost(Error::new(why.kind(), why.to_string()))));
        }
    }
}

impl Reply {
    /// A variant that holds a string.
    ///
    /// # Errors
    /// It holds something else.
    pub fn text_in_variant(&self) -> Result<String> {
        let mut body = self.0.read("v")?;
        match body.signature()? {
            "s" => body.text().map(str::to_owned),
            other => Err(Error::new(ErrorKind::Internal, format!("D-Bus: a property of type {other:?} in place of a string"))),
        }
        .context(|| "read a property")
    }
}

impl Failure {
    /// As an error of `step`, done to `unit`.
    pub fn explain(self, step: &str, unit: &str, bound: std::time::Duration) -> Error {
        let what = format!("systemd: {step} {unit:?}");
        match self {
            Self::Refused { name, message } => Error::new(kind_of(&name), format!("{what}: {message} ({name})")),
            Self::Unreachable(error) | Self::Lost(error) => error.context(what),
            Self::TimedOut => Error::new(ErrorKind::Internal, format!("{what}: no answer in {} s", bound.as_secs_f32())),
        }
    }

    /// Whether the same may come to another answer in a moment: systemd is leaving the bus, or coming back to it.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Lost(_) => true,
            Self::Refused { name, .. } => {
                let error = name.strip_prefix("org.freedesktop.DBus.Error.").unwrap_or_default();
                matches!(error, "NoReply" | "Disconnected" | "ServiceUnknown" | "NameHasNoOwner") || error.starts_with("Spawn.")
            }
            Self::Unreachable(_) | Self::TimedOut => false,
        }
    }

    /// Whether systemd has refused with this error of its own.
    pub fn is(&self, error: &str) -> bool {
        matches!(self, Self::Refused { name, .. } if name.strip_prefix("org.freedesktop.systemd1.") == Some(error))
    }
}

fn kind_of(name: &str) -> ErrorKind {
    match name.rsplit('.').next().unwrap_or_default() {
        "UnitExists" => ErrorKind::AlreadyExists,
        "NoSuchUnit" => ErrorKind::NotFound,
        "InvalidArgs" | "PropertyReadOnly" | "UnknownProperty" => ErrorKind::InvalidArgument,
        _ => ErrorKind::Internal,
    }
}
