//! A conversation with the kernel about the links, addresses or filters of one network namespace (netlink(7), rtnetlink(7)).

use std::cell::RefCell;
use std::fmt::Debug;
use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::thread;

use netlink_packet_core::{
    DefaultNla, Emitable, NLA_F_NESTED, NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader,
    NetlinkMessage, NetlinkPayload, NetlinkSerializable,
};
use netlink_packet_netfilter::NetfilterMessage;
use netlink_packet_route::RouteNetlinkMessage;
use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::sockopt::set_socket_send_buffer_size_force;
use rustix::net::{AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recvfrom, send, socket_with};

use crate::error::{Error, ErrorKind, Result};
use crate::sys::process;

/// The kernel makes no larger parts of a dump than this (net/netlink/af_netlink.c, `netlink_recvmsg`).
const PART: usize = 32 << 10;

/// How often a dump may begin anew because something has changed meanwhile.
const TRIES: u32 = 16;

/// What fits into one send. The default, 208 KiB, is too little for the rules of hundreds of containers.
const SEND_BUFFER: usize = 8 << 20;

/// The number of the kernel's own end.
const KERNEL: u32 = 0;

/// A kind of messages, and the family of netlink(7) that they are of.
pub trait Family: NetlinkSerializable + NetlinkDeserializable + Clone + Debug {
    /// `None` is number 0, `NETLINK_ROUTE`.
    const PROTOCOL: Option<Protocol>;
}

impl Family for RouteNetlinkMessage {
    const PROTOCOL: Option<Protocol> = None;
}

impl Family for NetfilterMessage {
    const PROTOCOL: Option<Protocol> = Some(netlink::NETFILTER);
}

/// See the module. Requests are served while they are sent, so nothing here waits for more than the kernel's own lock.
pub struct Socket<M> {
    socket: OwnedFd,
    sequence: u32,
    family: PhantomData<M>,
}

/// About links, addresses and routes.
pub type Route = Socket<RouteNetlinkMessage>;

/// About nf_tables and connections.
pub type Netfilter = Socket<NetfilterMessage>;

impl<M: Family> Socket<M> {
    /// To the caller's own network namespace.
    ///
    /// # Errors
    /// `EMFILE`, `ENFILE`; `EPROTONOSUPPORT` where the kernel has no such family.
    pub fn open() -> Result<Self, Errno> {
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, M::PROTOCOL)?;
        Ok(Self { socket, sequence: 0, family: PhantomData })
    }

    /// To another network namespace: a socket stays with the one that it was made in.
    ///
    /// # Errors
    /// Those of setns(2) as well.
    pub fn open_in(namespace: BorrowedFd<'_>) -> Result<Self, Errno>
    where
        M: Send,
    {
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
    pub fn change(&mut self, request: M, flags: u16) -> Result<(), Errno> {
        self.ask(request, flags | NLM_F_ACK).map(drop)
    }

    /// Asks for one thing.
    ///
    /// # Errors
    /// What the kernel answers, `ENODEV` for instance.
    pub fn get(&mut self, request: M) -> Result<M, Errno> {
        self.ask(request, NLM_F_ACK)?.pop().ok_or(Errno::NOENT)
    }

    /// Asks for all there is, and again until nothing has changed meanwhile.
    ///
    /// # Errors
    /// What the kernel answers; `EAGAIN` if it never stops changing.
    pub fn list(&mut self, request: &M) -> Result<Vec<M>, Errno> {
        for _ in 0..TRIES {
            match self.ask(request.clone(), NLM_F_DUMP) {
                Err(Errno::INTR) => {}
                result => return result,
            }
        }
        Err(Errno::AGAIN)
    }

    /// Sends several requests as one: those about routes are done one after the other, a batch of netfilter's as a whole or not at all.
    ///
    /// # Errors
    /// The first refusal, and the number of the request that it is for.
    pub fn batch(&mut self, requests: Vec<(M, u16)>) -> Result<(), (usize, Errno)> {
        let (count, first) = (requests.len(), self.sequence.wrapping_add(1));
        let mut bytes = Vec::new();
        for (request, flags) in requests {
            bytes.extend(self.encoded(request, flags));
        }
        if bytes.len() > PART {
            set_socket_send_buffer_size_force(&self.socket, SEND_BUFFER).map_err(|errno| (0, errno))?;
        }
        send(self.socket.as_fd(), &bytes, SendFlags::empty()).map_err(|errno| (0, errno))?;
        let mut part = vec![0; PART];
        let mut refused: Option<(usize, Errno)> = None;
        loop {
            // What has been sent has been done, so all answers are there.
            let length = match self.heard(&mut part, RecvFlags::DONTWAIT) {
                Ok(length) => length,
                Err(Errno::AGAIN) => return refused.map_or(Ok(()), Err),
                Err(errno) => return Err((0, errno)),
            };
            for message in Messages::<M>::of(part.get(..length).unwrap_or_default()) {
                let message = message.map_err(|errno| (0, errno))?;
                let place = message.header.sequence_number.wrapping_sub(first) as usize;
                if let NetlinkPayload::Error(answer) = message.payload
                    && let Some(code) = answer.code
                    && place < count
                    && refused.is_none()
                {
                    refused = Some((place, Errno::from_raw_os_error(-code.get())));
                }
            }
        }
    }

    /// The next packet of the kernel's. A process with CAP_NET_ADMIN in the socket's namespace, a container for instance, may send there, too
    /// (netlink(7), `nl_pid`).
    fn heard(&self, part: &mut [u8], flags: RecvFlags) -> Result<usize, Errno> {
        loop {
            let (length, _, sender) = recvfrom(self.socket.as_fd(), &mut *part, flags)?;
            if sender.and_then(|sender| SocketAddrNetlink::try_from(sender).ok()).is_some_and(|sender| sender.pid() == KERNEL) {
                return Ok(length);
            }
        }
    }

    fn encoded(&mut self, request: M, flags: u16) -> Vec<u8> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        (header.flags, header.sequence_number) = (NLM_F_REQUEST | flags, self.sequence);
        let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(request));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len().next_multiple_of(ALIGNMENT)];
        message.serialize(&mut bytes);
        bytes
    }

    fn ask(&mut self, request: M, flags: u16) -> Result<Vec<M>, Errno> {
        let bytes = self.encoded(request, flags);
        send(self.socket.as_fd(), &bytes, SendFlags::empty())?;
        let (mut answers, mut interrupted) = (Vec::new(), false);
        let mut part = vec![0; PART];
        loop {
            let length = self.heard(&mut part, RecvFlags::empty())?;
            for message in Messages::<M>::of(part.get(..length).unwrap_or_default()) {
                let message = message?;
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

thread_local! {
    static CONNECTION: RefCell<Option<Netfilter>> = const { RefCell::new(None) };
}

impl Netfilter {
    /// Talks by the calling thread's own connection. It stays open: the closing of one waits until the kernel has freed what anybody has removed
    /// (net/netfilter/nf_tables_api.c, `nft_rcv_nl_event`), some ten milliseconds, and nobody is to wait for that under a lock.
    ///
    /// # Errors
    /// Those of [`Socket::open`] and of `work`.
    pub fn with<T>(work: impl FnOnce(&mut Self) -> Result<T, Errno>) -> Result<T, Errno> {
        CONNECTION.with_borrow_mut(|connection| match connection {
            Some(connection) => work(connection),
            none => work(none.insert(Self::open()?)),
        })
    }
}

/// `NLMSG_ALIGNTO`.
const ALIGNMENT: usize = 4;

/// The messages of a packet.
struct Messages<'a, M> {
    rest: &'a [u8],
    family: PhantomData<M>,
}

impl<'a, M> Messages<'a, M> {
    fn of(packet: &'a [u8]) -> Self {
        Self { rest: packet, family: PhantomData }
    }
}

impl<M: Family> Iterator for Messages<'_, M> {
    type Item = Result<NetlinkMessage<M>, Errno>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let message = NetlinkMessage::<M>::deserialize(self.rest).map_err(|_| Errno::BADMSG);
        let length = message.as_ref().map_or(self.rest.len(), |message| message.header.length as usize);
        self.rest = self.rest.get(length.next_multiple_of(ALIGNMENT).max(ALIGNMENT)..).unwrap_or_default();
        Some(message)
    }
}

/// An attribute that holds attributes.
pub fn nested(kind: u16, inner: &[DefaultNla]) -> DefaultNla {
    let mut bytes = vec![0; inner.buffer_len()];
    inner.emit(&mut bytes);
    DefaultNla::new(kind | NLA_F_NESTED, bytes)
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

#[cfg(test)]
mod tests {
    use netlink_packet_route::link::LinkMessage;
    use rustix::net::{getsockname, sendto};

    use super::*;

    fn loopback() -> RouteNetlinkMessage {
        let mut link = LinkMessage::default();
        link.header.index = 1;
        RouteNetlinkMessage::GetLink(link)
    }

    /// `NLMSG_ERROR` for the request with this number, as the kernel would say it.
    fn refusal(sequence: u32) -> Vec<u8> {
        let header =
            [36u32.to_ne_bytes().to_vec(), [2u16.to_ne_bytes(), 0u16.to_ne_bytes()].concat(), sequence.to_ne_bytes().to_vec(), vec![0; 4]];
        let error = [(-libc::EPERM).to_ne_bytes().to_vec(), vec![0; 16]];
        [header.concat(), error.concat()].concat()
    }

    #[test]
    fn what_a_process_sends_is_no_answer() {
        let mut socket = Route::open().unwrap();
        // Bound by its first request.
        socket.get(loopback()).unwrap();
        let own = SocketAddrNetlink::try_from(getsockname(&socket.socket).unwrap()).unwrap();
        let stranger = Route::open().unwrap();
        sendto(&stranger.socket, &refusal(socket.sequence + 1), SendFlags::empty(), &own).unwrap();
        let RouteNetlinkMessage::NewLink(link) = socket.get(loopback()).unwrap() else { panic!("no link") };
        assert_eq!(link.header.index, 1);
        sendto(&stranger.socket, &refusal(socket.sequence + 1), SendFlags::empty(), &own).unwrap();
        socket.batch(vec![(loopback(), NLM_F_ACK)]).unwrap();
    }
}
