//! Netlink messages, as bytes: what the yardstick of networks sends is ready before the clock starts.

use std::os::fd::OwnedFd;

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, connect, recv, send, socket_with};

use crate::{Context, Result, ensure, fail};

/// `NLM_F_REQUEST | NLM_F_ACK`.
pub const ACKNOWLEDGED: u16 = 5;
/// `NLM_F_CREATE | NLM_F_EXCL` besides.
pub const NEW: u16 = 0x600 | ACKNOWLEDGED;

const HEADER: usize = 16;
const ERROR: u16 = 2;

/// A connected socket; without a protocol, of rtnetlink(7).
pub fn open(protocol: Option<Protocol>) -> Result<OwnedFd> {
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)?;
    connect(&socket, &SocketAddrNetlink::new(0, 0))?;
    Ok(socket)
}

/// An attribute, padded.
pub fn attribute(kind: u16, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len() + 4).unwrap_or(u16::MAX);
    let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend_from_slice(payload);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// An attribute that holds others.
pub fn nest(kind: u16, attributes: &[Vec<u8>]) -> Vec<u8> {
    const NESTED: u16 = 0x8000;
    attribute(kind | NESTED, &attributes.concat())
}

/// A whole message.
pub fn message(kind: u16, flags: u16, header: &[u8], attributes: &[Vec<u8>]) -> Vec<u8> {
    let payload = [header, &attributes.concat()].concat();
    let length = u32::try_from(HEADER + payload.len()).unwrap_or(u32::MAX);
    let mut bytes = length.to_ne_bytes().to_vec();
    bytes.extend([kind.to_ne_bytes(), flags.to_ne_bytes()].concat());
    bytes.resize(HEADER, 0);
    bytes.extend(payload);
    bytes
}

/// Sends messages of which one asks for an answer, and waits for that.
pub fn ask(socket: &OwnedFd, bytes: &[u8], what: &str) -> Result<()> {
    send(socket, bytes, SendFlags::empty()).context(|| what.to_owned())?;
    let mut answer = [0_u8; 512];
    let (_, length) = recv(socket, &mut answer, RecvFlags::empty()).context(|| what.to_owned())?;
    ensure!(length >= HEADER + 4, "{what}: a short answer");
    let kind = u16::from_ne_bytes([answer[4], answer[5]]);
    let errno = i32::from_ne_bytes([answer[16], answer[17], answer[18], answer[19]]);
    if kind != ERROR || errno != 0 {
        fail!("{what}: {}", std::io::Error::from_raw_os_error(-errno));
    }
    Ok(())
}
