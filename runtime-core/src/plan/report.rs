//! What the child and its parent say to each other, over one `SOCK_SEQPACKET` socket of their own: one message, one packet.

use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use rustix::io::{Errno, IoSlice, IoSliceMut};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags};

/// The longest text that travels with a failure.
pub const TEXT_MAX: usize = 160;
const HEADER: usize = 9;
const LISTENER_LENGTH: usize = 5;
const MAP_LENGTH: usize = 10;
const REFUSED_LENGTH: usize = 5;

const READY: u8 = b'R';
const HOOKS: u8 = b'H';
const CONSOLE: u8 = b'C';
const HANDED: u8 = b'D';
const LISTENER: u8 = b'L';
const BORN: u8 = b'B';
const MAP: u8 = b'M';
const FAILED: u8 = b'F';
/// The parent's word that the child may go on.
pub const GO: u8 = b'G';
/// The parent's word that what the child has asked for failed, before the errno.
const REFUSED: u8 = b'E';

/// Where and why a child gave up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Index into the plan's steps.
    pub step: u16,
    /// Which part of the step: the step's own numbering.
    pub detail: u16,
    /// Why.
    pub errno: i32,
    /// What the kernel said besides (fsopen(2)'s log), or nothing.
    pub text: String,
}

/// What a child says.
#[derive(Debug)]
pub enum Message {
    /// Everything up to execve is done; it waits.
    Ready,
    /// The namespaces exist; it waits for the hooks.
    Hooks,
    /// The master of its terminal.
    Console(OwnedFd),
    /// A mount or a namespace that it made for another process.
    Handed(OwnedFd),
    /// It has loaded a filter, and the descriptor of the filter's listener has this number; it waits until that has been taken.
    Listener(i32),
    /// It asks for a detached mount to show its files' owners as the maps of a user namespace say, and waits.
    Map {
        /// The number of the mount's descriptor.
        mount: i32,
        /// That of the namespace's.
        namespace: i32,
        /// Whether what is mounted below is meant as well.
        recursive: bool,
    },
    /// It goes on as a new process, whose pidfd this is; the old one ends.
    Born(OwnedFd),
    /// It gave up and ends.
    Failed(Failure),
}

/// A connected pair: the parent's end, non-blocking, and the child's.
///
/// # Errors
/// `EMFILE`, `ENFILE`.
pub fn pair() -> Result<(OwnedFd, OwnedFd), Errno> {
    let flags = rustix::net::SocketFlags::CLOEXEC;
    let (parent, child) = rustix::net::socketpair(rustix::net::AddressFamily::UNIX, rustix::net::SocketType::SEQPACKET, flags, None)?;
    rustix::io::ioctl_fionbio(&parent, true)?;
    Ok((parent, child))
}

/// The next message, or `None` when the child has executed its program (its end is close-on-exec) or died.
///
/// # Errors
/// `EAGAIN` if there is none yet; `EBADMSG` for something that no child says.
pub fn receive(socket: BorrowedFd<'_>) -> Result<Option<Message>, Errno> {
    let mut bytes = [0u8; HEADER + TEXT_MAX];
    let (length, descriptor) = receive_bytes(socket, &mut bytes)?;
    match (bytes[..length].first(), descriptor) {
        (None, _) => Ok(None),
        (Some(&READY), None) => Ok(Some(Message::Ready)),
        (Some(&HOOKS), None) => Ok(Some(Message::Hooks)),
        (Some(&CONSOLE), Some(master)) => Ok(Some(Message::Console(master))),
        (Some(&HANDED), Some(descriptor)) => Ok(Some(Message::Handed(descriptor))),
        (Some(&BORN), Some(pidfd)) => Ok(Some(Message::Born(pidfd))),
        // The receiver is at its limit: the kernel has dropped what came along.
        (Some(&(CONSOLE | HANDED | BORN)), None) => Err(Errno::MFILE),
        (Some(&LISTENER), None) if length == LISTENER_LENGTH => Ok(Some(Message::Listener(number(&bytes, 1)))),
        (Some(&MAP), None) if length == MAP_LENGTH => {
            Ok(Some(Message::Map { mount: number(&bytes, 1), namespace: number(&bytes, 5), recursive: bytes[9] != 0 }))
        }
        (Some(&FAILED), None) if length >= HEADER => Ok(Some(Message::Failed(decode(&bytes[..length])))),
        _ => Err(Errno::BADMSG),
    }
}

fn number(bytes: &[u8], at: usize) -> i32 {
    i32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// Says the word that a child waits for.
///
/// # Errors
/// `EPIPE` if it is gone.
pub fn go(socket: BorrowedFd<'_>) -> Result<(), Errno> {
    rustix::net::send(socket, &[GO], SendFlags::NOSIGNAL).map(drop)
}

/// Tells a child that what it has asked for failed.
///
/// # Errors
/// `EPIPE` if it is gone.
pub fn refuse(socket: BorrowedFd<'_>, why: Errno) -> Result<(), Errno> {
    let [a, b, c, d] = why.raw_os_error().to_ne_bytes();
    rustix::net::send(socket, &[REFUSED, a, b, c, d], SendFlags::NOSIGNAL).map(drop)
}

fn receive_bytes(socket: BorrowedFd<'_>, bytes: &mut [u8]) -> Result<(usize, Option<OwnedFd>), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let length = match rustix::net::recvmsg(socket, &mut [IoSliceMut::new(bytes)], &mut control, RecvFlags::CMSG_CLOEXEC) {
        Ok(message) => message.bytes,
        // A child that is killed before it has read the parent's word resets the connection.
        Err(Errno::CONNRESET) => 0,
        Err(errno) => return Err(errno),
    };
    let descriptor = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut rights) => rights.next(),
        _ => None,
    });
    Ok((length, descriptor))
}

/// sendmsg(2) of bytes and a descriptor over a Unix socket; how many bytes went.
///
/// # Errors
/// Those of sendmsg(2).
pub fn send_with(socket: BorrowedFd<'_>, bytes: &[u8], descriptor: BorrowedFd<'_>, flags: SendFlags) -> Result<usize, Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let rights = [descriptor];
    control.push(SendAncillaryMessage::ScmRights(&rights));
    rustix::net::sendmsg(socket, &[IoSlice::new(bytes)], &mut control, flags)
}

fn decode(bytes: &[u8]) -> Failure {
    let half = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
    Failure { step: half(1), detail: half(3), errno: number(bytes, 5), text: String::from_utf8_lossy(&bytes[HEADER..]).trim().to_owned() }
}

/// The child's side: write(2) and read(2) only, which every seccomp profile that can run a program allows.
pub(super) mod child {
    use super::{
        AsRawFd, BORN, BorrowedFd, CONSOLE, Errno, FAILED, GO, HANDED, HEADER, HOOKS, LISTENER, MAP, OwnedFd, READY, REFUSED,
        REFUSED_LENGTH, SendFlags, TEXT_MAX, number, receive_bytes,
    };
    use crate::plan::child::Failed;

    /// What a process was asked to hand over, or why it could not; what the kernel said besides is put into `text`, with its length.
    pub fn handed(socket: BorrowedFd<'_>, text: &mut [u8; TEXT_MAX], text_length: &mut usize) -> Result<OwnedFd, Failed> {
        let mut bytes = [0u8; HEADER + TEXT_MAX];
        match receive_bytes(socket, &mut bytes)? {
            (length, None) if length >= HEADER && bytes[0] == FAILED => {
                *text_length = length - HEADER;
                text[..*text_length].copy_from_slice(&bytes[HEADER..length]);
                let errno = Errno::from_raw_os_error(number(&bytes, 5));
                Err(Failed { detail: u16::from_ne_bytes([bytes[3], bytes[4]]), errno })
            }
            (1.., Some(descriptor)) if bytes[0] == HANDED => Ok(descriptor),
            // It was killed.
            _ => Err(Errno::SRCH.into()),
        }
    }

    pub fn ready(socket: BorrowedFd<'_>) -> Result<(), Errno> {
        say_and_wait(socket, &[READY])
    }

    pub fn hooks(socket: BorrowedFd<'_>) -> Result<(), Errno> {
        say_and_wait(socket, &[HOOKS])
    }

    pub fn listener(socket: BorrowedFd<'_>, number: i32) -> Result<(), Errno> {
        let [a, b, c, d] = number.to_ne_bytes();
        say_and_wait(socket, &[LISTENER, a, b, c, d])
    }

    pub fn map(socket: BorrowedFd<'_>, mount: BorrowedFd<'_>, namespace: BorrowedFd<'_>, recursive: bool) -> Result<(), Errno> {
        let mut words = [MAP; super::MAP_LENGTH];
        words[1..5].copy_from_slice(&mount.as_raw_fd().to_ne_bytes());
        words[5..9].copy_from_slice(&namespace.as_raw_fd().to_ne_bytes());
        words[9] = u8::from(recursive);
        say_and_wait(socket, &words)
    }

    pub fn console(socket: BorrowedFd<'_>, master: BorrowedFd<'_>) -> Result<(), Errno> {
        hand_over(socket, CONSOLE, master)
    }

    pub fn descriptor(socket: BorrowedFd<'_>, descriptor: BorrowedFd<'_>) -> Result<(), Errno> {
        hand_over(socket, HANDED, descriptor)
    }

    pub fn born(socket: BorrowedFd<'_>, pidfd: BorrowedFd<'_>) -> Result<(), Errno> {
        hand_over(socket, BORN, pidfd)
    }

    fn hand_over(socket: BorrowedFd<'_>, word: u8, descriptor: BorrowedFd<'_>) -> Result<(), Errno> {
        super::send_with(socket, &[word], descriptor, SendFlags::NOSIGNAL).map(drop)
    }

    /// Nobody may be listening any more; there is nobody else to tell.
    pub fn failed(socket: BorrowedFd<'_>, step: u16, detail: u16, errno: Errno, text: &[u8]) {
        let mut bytes = [0u8; HEADER + TEXT_MAX];
        let length = text.len().min(TEXT_MAX);
        bytes[0] = FAILED;
        bytes[1..3].copy_from_slice(&step.to_ne_bytes());
        bytes[3..5].copy_from_slice(&detail.to_ne_bytes());
        bytes[5..9].copy_from_slice(&errno.raw_os_error().to_ne_bytes());
        bytes[HEADER..HEADER + length].copy_from_slice(&text[..length]);
        let _ = rustix::io::write(socket, &bytes[..HEADER + length]);
    }

    /// The parent's end closing instead of a word means that the parent is gone: so is the reason to live.
    fn say_and_wait(socket: BorrowedFd<'_>, words: &[u8]) -> Result<(), Errno> {
        rustix::io::write(socket, words)?;
        let mut answer = [0u8; REFUSED_LENGTH];
        loop {
            match rustix::io::read(socket, &mut answer) {
                Ok(1) if answer[0] == GO => return Ok(()),
                Ok(REFUSED_LENGTH) if answer[0] == REFUSED => return Err(Errno::from_raw_os_error(number(&answer, 1))),
                Ok(_) | Err(Errno::CONNRESET) => crate::sys::process::exit(super::ORPHANED),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
    }
}

/// Exit status of a child whose parent went away before the start.
const ORPHANED: i32 = 125;
