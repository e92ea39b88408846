//! A program that decides about system calls with the action NOTIFY (seccomp_unotify(2)): it listens at a socket, and answers every call with
//! one errno.
#![allow(unsafe_code, reason = "no crate offers the ioctls of a seccomp listener")]

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde_json::Value;

use crate::{Context, Failure, Result};

/// include/uapi/linux/seccomp.h.
const NOTIF_RECV: libc::c_ulong = 0xc050_2100;
const NOTIF_SEND: libc::c_ulong = 0xc018_2101;

#[repr(C)]
#[derive(Default)]
struct Notification {
    id: u64,
    pid: u32,
    flags: u32,
    number: i32,
    arch: u32,
    instruction: u64,
    arguments: [u64; 6],
}

#[repr(C)]
struct Answer {
    id: u64,
    value: i64,
    error: i32,
    flags: u32,
}

/// See the module.
pub struct Agent {
    told: Receiver<Value>,
    calls: Receiver<u32>,
}

impl Agent {
    /// Listens at `path` and answers every call with `errno`. Its threads end with the processes that it decides for, and at the latest with
    /// the tests.
    ///
    /// # Errors
    /// The socket cannot be made.
    pub fn start(path: &Path, errno: i32) -> Result<Self> {
        let listener = UnixListener::bind(path).context(|| format!("bind {}", path.display()))?;
        let (tell, told) = mpsc::channel();
        let (count, calls) = mpsc::channel();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok((state, descriptor)) = stream.map_err(Failure::from).and_then(|stream| receive(&stream)) else { return };
                let count = count.clone();
                thread::spawn(move || while decide(&descriptor, errno).is_ok_and(|pid| count.send(pid).is_ok()) {});
                if tell.send(state).is_err() {
                    return;
                }
            }
        });
        Ok(Self { told, calls })
    }

    /// What it was told with the next descriptor.
    ///
    /// # Errors
    /// Nothing came.
    pub fn told(&self) -> Result<Value> {
        self.told.recv_timeout(SOON).context(|| "a listener's descriptor".to_owned())
    }

    /// The process whose call was answered next.
    ///
    /// # Errors
    /// Nothing came.
    pub fn call(&self) -> Result<u32> {
        self.calls.recv_timeout(SOON).context(|| "a call to decide about".to_owned())
    }
}

const SOON: Duration = Duration::from_secs(10);

fn receive(stream: &UnixStream) -> Result<(Value, OwnedFd)> {
    let mut bytes = vec![0; 1 << 16];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let length = recvmsg(stream, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::CMSG_CLOEXEC)?.bytes;
    let descriptor = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut rights) => rights.next(),
        _ => None,
    });
    let descriptor = descriptor.ok_or_else(|| Failure("a message without a descriptor".to_owned()))?;
    Ok((serde_json::from_slice(&bytes[..length])?, descriptor))
}

/// Answers the next call; whose it was.
fn decide(listener: &OwnedFd, errno: i32) -> Result<u32> {
    let mut notification = Notification::default();
    // SAFETY: the kernel fills a struct that is as long as the request says, and zeroed as it asks for.
    let received = unsafe { libc::ioctl(listener.as_fd().as_raw_fd(), NOTIF_RECV, &raw mut notification) };
    if received != 0 {
        return Err(std::io::Error::last_os_error().into());
    }
    let answer = Answer { id: notification.id, value: 0, error: -errno, flags: 0 };
    // SAFETY: the kernel only reads a struct that is as long as the request says.
    match unsafe { libc::ioctl(listener.as_fd().as_raw_fd(), NOTIF_SEND, &raw const answer) } {
        0 => Ok(notification.pid),
        _ => Err(std::io::Error::last_os_error().into()),
    }
}
