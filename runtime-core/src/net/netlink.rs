//! A conversation with the kernel about the links and addresses of one network namespace (netlink(7), rtnetlink(7)).

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::thread;

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with};

use crate::error::{Error, ErrorKind, Result};
use crate::sys::process;

/// The kernel makes no larger parts of a dump than this (net/netlink/af_netlink.c, `netlink_recvmsg`).
const PART: usize = 32 << 10;

/// How often a dump may begin anew because something has changed meanwhile.
const TRIES: u32 = 16;

/// See the module. Requests are served while they are sent, so nothing here waits for more than the kernel's own lock.
pub struct Route {
    socket: OwnedFd,
    sequence: u32,
}

impl Route {
    /// To the caller's own network namespace.
    ///
    /// # Errors
    /// `EMFILE`, `ENFILE`.
    pub fn open() -> Result<Self, Errno> {
        // Protocol 0 is NETLINK_ROUTE.
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
        Ok(Self { socket, sequence: 0 })
    }

    /// To another network namespace: a socket stays with the one that it was made in.
    ///
    /// # Errors
    /// Those of setns(2) as well.
    pub fn open_in(namespace: BorrowedFd<'_>) -> Result<Self, Errno> {
        // A namespace is a thread's own; this one ends and takes it along.
        let enter = || process::setns(namespace, libc::CLONE_NEWNET).and_then(|()| Self::open());
        thread::scope(|scope| {
            let thread =
                thread::Builder::new().spawn_scoped(scope, enter).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::AGAIN))?;
            thread.join().unwrap_or(Err(Errno::INVAL))
        })
    }

    /// Asks for a change.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn change(&mut self, request: RouteNetlinkMessage, flags: u16) -> Result<(), Errno> {
        self.ask(request, flags | NLM_F_ACK).map(drop)
    }

    /// Asks for one thing.
    ///
    /// # Errors
    /// What the kernel answers, `ENODEV` for instance.
    pub fn get(&mut self, request: RouteNetlinkMessage) -> Result<RouteNetlinkMessage, Errno> {
        self.ask(request, NLM_F_ACK)?.pop().ok_or(Errno::NOENT)
    }

    /// Asks for all there is, and again until nothing has changed meanwhile.
    ///
    /// # Errors
    /// What the kernel answers; `EAGAIN` if it never stops changing.
    pub fn list(&mut self, request: &RouteNetlinkMessage) -> Result<Vec<RouteNetlinkMessage>, Errno> {
        for _ in 0..TRIES {
            match self.ask(request.clone(), NLM_F_DUMP) {
                Err(Errno::INTR) => {}
                result => return result,
            }
        }
        Err(Errno::AGAIN)
    }

    fn ask(&mut self, request: RouteNetlinkMessage, flags: u16) -> Result<Vec<RouteNetlinkMessage>, Errno> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        (header.flags, header.sequence_number) = (NLM_F_REQUEST | flags, self.sequence);
        let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(request));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        send(self.socket.as_fd(), &bytes, SendFlags::empty())?;
        let (mut answers, mut interrupted) = (Vec::new(), false);
        let mut part = vec![0; PART];
        loop {
            let length = recv(self.socket.as_fd(), &mut part, RecvFlags::empty())?.0;
            let mut rest = part.get(..length).unwrap_or_default();
            while !rest.is_empty() {
                let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest).map_err(|_| Errno::BADMSG)?;
                rest = rest.get(aligned(message.header.length)..).unwrap_or_default();
                if message.header.sequence_number != self.sequence {
                    continue;
                }
                interrupted |= message.header.flags & NLM_F_DUMP_INTR != 0;
                match message.payload {
                    NetlinkPayload::Error(answer) => {
                        return match answer.code {
                            None => Ok(answers),
                            Some(code) => Err(Errno::from_raw_os_error(-code.get())),
                        };
                    }
                    NetlinkPayload::Done(_) if interrupted => return Err(Errno::INTR),
                    NetlinkPayload::Done(_) => return Ok(answers),
                    NetlinkPayload::InnerMessage(answer) => answers.push(answer),
                    _ => {}
                }
            }
        }
    }
}

/// Where the next message of a packet begins (`NLMSG_ALIGN`).
fn aligned(length: u32) -> usize {
    (length as usize).next_multiple_of(4).max(4)
}

/// An errno of the kernel's as an error of ours.
pub fn refused(what: String) -> impl FnOnce(Errno) -> Error {
    move |errno| {
        let error = Error::kernel(what, errno);
        match errno {
            Errno::NODEV => error.with_kind(ErrorKind::NotFound),
            Errno::EXIST => error.with_kind(ErrorKind::AlreadyExists),
            _ => error,
        }
    }
}
