//! What may come over the socket: ttrpc frames (ten bytes of length, stream and type, then a message), good and bad.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use proto::api::{ConnectRequest, Empty, StatsRequest, WaitRequest};
use proto::protobuf::Message;
use tests::footprint::Shims;
use tests::hand::Hand;
use tests::requests::{daemon, finish, running};
use tests::rpc::{Shim, refused};
use tests::{Context, Result, ensure, ensure_eq, proc};
use ttrpc::{Code, Request, Response};

use crate::SOON;

const REQUEST: u8 = 1;

/// A connection without a client's manners.
pub struct Raw(UnixStream);

impl Raw {
    pub fn connect(address: &str) -> Result<Raw> {
        let stream = UnixStream::connect(address.trim_start_matches("unix://")).context(|| address.to_owned())?;
        stream.set_read_timeout(Some(SOON))?;
        stream.set_write_timeout(Some(SOON))?;
        Ok(Raw(stream))
    }

    fn header(length: u32, stream: u32, kind: u8) -> Vec<u8> {
        [&length.to_be_bytes()[..], &stream.to_be_bytes(), &[kind, 0]].concat()
    }

    fn frame(&mut self, stream: u32, kind: u8, payload: &[u8]) -> Result<()> {
        let length = u32::try_from(payload.len())?;
        Ok(self.0.write_all(&[Self::header(length, stream, kind), payload.to_vec()].concat())?)
    }

    pub fn request(&mut self, stream: u32, service: &str, method: &str, message: &impl Message) -> Result<()> {
        let mut request = Request::new();
        (request.service, request.method) = (service.to_owned(), method.to_owned());
        request.payload = message.write_to_bytes()?;
        self.frame(stream, REQUEST, &request.write_to_bytes()?)
    }

    /// The stream and the answer of the next frame.
    fn response(&mut self) -> Result<(u32, Response)> {
        let mut header = [0; 10];
        self.0.read_exact(&mut header)?;
        let number = |bytes: &[u8]| bytes.iter().fold(0, |number: u32, byte| number << 8 | u32::from(*byte));
        let mut payload = vec![0; number(&header[..4]) as usize];
        self.0.read_exact(&mut payload)?;
        Ok((number(&header[4..8]), Response::parse_from_bytes(&payload)?))
    }
}

/// The address of a case's shim, which its bundle names.
fn address(bundle: &tests::bundle::Bundle) -> Result<String> {
    Ok(std::fs::read_to_string(bundle.dir.join("address"))?)
}

/// The others are served as if nothing had happened.
fn unharmed(shim: &Shim, id: &str) -> Result<()> {
    let began = Instant::now();
    ensure_eq!(shim.state(id, "")?.status.value(), 2, "status");
    ensure!(began.elapsed() < Duration::from_secs(2), "State took {:?}", began.elapsed());
    Ok(())
}

/// containerd asks a shim for what it may not have, and takes UNIMPLEMENTED for no: a task API of version 3, streams.
pub fn unknown_methods_and_services(hand: &mut Hand) -> Result<()> {
    let (bundle, shim) = running(hand, &["sleep", "1000"])?;
    refused(shim.call::<_, Empty>("Fly", &Empty::new()), Code::UNIMPLEMENTED, "Fly")?;
    let streaming = shim.with_service("containerd.services.streaming.v1.Streaming");
    refused(streaming.call::<_, Empty>("Fly", &Empty::new()), Code::UNIMPLEMENTED, "Fly")?;
    let sandbox = shim.with_service("containerd.runtime.sandbox.v1.Sandbox");
    refused(sandbox.call::<_, Empty>("Platform", &Empty::new()), Code::NOT_FOUND, "sandbox")?;
    // ttrpc for Rust knows no other answer to a name that nobody could have foreseen.
    let status = shim.with_service("no.such.Service").call::<_, Empty>("State", &Empty::new()).err().context(|| "answered".to_owned())?;
    ensure!(matches!(status.code, Code::UNIMPLEMENTED | Code::INVALID_ARGUMENT), "{status}");
    unharmed(&shim, &bundle.id)?;
    finish(&shim, &bundle)
}

pub fn bad_frames(hand: &mut Hand) -> Result<()> {
    let (bundle, shim) = running(hand, &["sleep", "1000"])?;
    let address = address(&bundle)?;
    // The first line of its log opens the fifo, which then stays open.
    refused(shim.call::<_, Empty>("Fly", &Empty::new()), Code::UNIMPLEMENTED, "")?;
    Raw::connect(&address)?.frame(1, 9, b"")?;
    unharmed(&shim, &bundle.id)?;
    let before = proc::usage(daemon(&shim, &bundle.id)?);
    // A frame above 4 MiB is refused, and the connection goes on or is closed.
    let mut raw = Raw::connect(&address)?;
    raw.0.write_all(&Raw::header((4 << 20) + 1, 1, REQUEST))?;
    let chunk = vec![0; 1 << 20];
    for _ in 0..4 {
        raw.0.write_all(&chunk)?;
    }
    raw.0.write_all(&[0])?;
    let (stream, answer) = raw.response()?;
    ensure!(stream == 1 && answer.status.code.value() != 0, "an answer to an oversized frame: {stream} {answer:?}");
    drop(raw);
    // A request that is none, a stream of the server's own, one of number 0, kinds that do not exist.
    for (stream, kind, payload) in
        [(1, REQUEST, &b"\xff\xff\xff\xff"[..]), (2, REQUEST, b""), (0, REQUEST, b""), (3, 9, b"x"), (5, 3, b"data"), (7, 2, b"response")]
    {
        let mut raw = Raw::connect(&address)?;
        raw.frame(stream, kind, payload)?;
        raw.request(9, shim.service, "Connect", &ConnectRequest { id: bundle.id.clone(), ..Default::default() })?;
        // Whatever is said of the first, the second may be answered after it.
        let answered = loop {
            let Ok((number, answer)) = raw.response() else { break false };
            if number == 9 {
                break answer.status.code.value() == 0;
            }
        };
        ensure!(answered, "the connection is of no use after ({stream}, {kind}, {payload:?})");
    }
    // A frame that ends early, and a header that does.
    for part in [&Raw::header(100, 1, REQUEST)[..], &Raw::header(100, 1, REQUEST)[..4], b""] {
        let mut raw = Raw::connect(&address)?;
        raw.0.write_all(part)?;
        drop(raw);
        unharmed(&shim, &bundle.id)?;
    }
    // A message whose payload is not what the method takes.
    let mut raw = Raw::connect(&address)?;
    let mut request = Request::new();
    (request.service, request.method, request.payload) = (shim.service.to_owned(), "State".to_owned(), vec![0xff; 32]);
    raw.frame(1, REQUEST, &request.write_to_bytes()?)?;
    ensure!(raw.response()?.1.status.code.value() != 0, "garbage was understood");
    drop(raw);
    let after = tests::wait::until(SOON, || Some(proc::usage(shim.connected(&bundle.id).ok()?.shim_pid)).filter(|usage| *usage == before));
    ensure!(after.is_some(), "the daemon held {before:?} and now {:?}", proc::usage(daemon(&shim, &bundle.id)?));
    finish(&shim, &bundle)
}

/// RUSTSEC-2024-0437: groups in groups, to a depth that would exhaust a stack.
pub fn nested_message(hand: &mut Hand) -> Result<()> {
    let (bundle, shim) = running(hand, &["sleep", "1000"])?;
    let mut raw = Raw::connect(&address(&bundle)?)?;
    // Field 15, start of group.
    raw.frame(1, REQUEST, &vec![0x7b; 1_000_000])?;
    ensure!(raw.response()?.1.status.code.value() != 0, "nested groups were understood");
    let mut request = Request::new();
    (request.service, request.method, request.payload) = (shim.service.to_owned(), "State".to_owned(), vec![0x7b; 1_000_000]);
    raw.frame(3, REQUEST, &request.write_to_bytes()?)?;
    ensure!(raw.response()?.1.status.code.value() != 0, "nested groups were understood");
    unharmed(&shim, &bundle.id)?;
    finish(&shim, &bundle)
}

/// Waits that nobody ever answers, on one connection, and then it is closed.
pub fn many_open_calls(hand: &mut Hand) -> Result<()> {
    let (bundle, shim) = running(hand, &["sleep", "1000"])?;
    let before = proc::usage(daemon(&shim, &bundle.id)?);
    let mut raw = Raw::connect(&address(&bundle)?)?;
    for number in 0..5000u32 {
        raw.request(2 * number + 1, shim.service, "Wait", &WaitRequest { id: bundle.id.clone(), ..Default::default() })?;
    }
    unharmed(&shim, &bundle.id)?;
    drop(raw);
    let after = tests::wait::until(SOON, || Some(proc::usage(shim.connected(&bundle.id).ok()?.shim_pid)).filter(|usage| *usage == before));
    ensure!(after.is_some(), "the daemon held {before:?} and now {:?}", proc::usage(daemon(&shim, &bundle.id)?));
    finish(&shim, &bundle)
}

/// One that asks and does not read: the daemon stops reading its requests, keeps nothing of them, and answers all of them when it reads.
pub fn unread_answers(hand: &mut Hand) -> Result<()> {
    let (bundle, shim) = running(hand, &["sleep", "1000"])?;
    let shims = Shims::of_daemon(daemon(&shim, &bundle.id)?)?;
    shim.stats(&bundle.id)?;
    let before = shims.read()?[0].private;
    let mut deaf = Raw::connect(&address(&bundle)?)?;
    deaf.0.set_write_timeout(Some(Duration::from_secs(1)))?;
    let request = StatsRequest { id: bundle.id.clone(), ..Default::default() };
    let mut asked = 0;
    // What is cut off in the middle is as good as not asked.
    while asked < 300_000 && deaf.request(2 * asked + 1, shim.service, "Stats", &request).is_ok() {
        asked += 1;
    }
    ensure!((100..100_000).contains(&asked), "the shim has taken {asked} requests");
    let grown = shims.read()?[0].private.saturating_sub(before);
    ensure!(grown < 4096, "{asked} requests without a reader: {grown} KiB more");
    unharmed(&shim, &bundle.id)?;
    for _ in 0..asked {
        let (_, answer) = deaf.response()?;
        ensure_eq!(answer.status.code.value(), 0, "status of an answer");
    }
    drop(deaf);
    finish(&shim, &bundle)
}

/// One that sends byte by byte, and one that never reads its answers.
pub fn slow_client(hand: &mut Hand) -> Result<()> {
    let (bundle, shim) = running(hand, &["sleep", "1000"])?;
    let address = address(&bundle)?;
    let mut slow = Raw::connect(&address)?;
    slow.0.write_all(&Raw::header(50, 1, REQUEST)[..3])?;
    let mut deaf = Raw::connect(&address)?;
    deaf.0.set_write_timeout(Some(Duration::from_millis(500)))?;
    let state = proto::api::StateRequest { id: bundle.id.clone(), ..Default::default() };
    for number in 0..20_000u32 {
        // Up to the point where the shim takes no more, which is as good.
        if deaf.request(2 * number + 1, shim.service, "State", &state).is_err() {
            break;
        }
    }
    unharmed(&shim, &bundle.id)?;
    ensure_eq!(tests::requests::exec_ran(&shim, &bundle, "e", &tests::bundle::process(&["true"]))?, 0, "an exec meanwhile");
    drop((slow, deaf));
    finish(&shim, &bundle)
}
