//! Clients of the service over a real socket, and processes whose stdio they have.

use std::fs::File;
use std::io::{Read, Write};
use std::time::Duration;

use runtime_core::error::ErrorKind;
use tokio::time::timeout;
use ttrpc::asynchronous::{Client, Server, StreamInner};

use super::*;
use crate::io::{ChildEnds, Drained, Io, Origin, Request};

const SOON: Duration = Duration::from_secs(5);
/// How long something that must not happen is watched for.
const WHILE: Duration = Duration::from_millis(150);
const WINDOW: usize = 64 * 1024;

struct Bed {
    streams: Streams,
    address: String,
    _server: Server,
    _dir: tempfile::TempDir,
}

impl Bed {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let address = format!("unix://{}/s", dir.path().display());
        let streams = Streams::default();
        let services = HashMap::from([(NAME.to_owned(), service(streams.clone()))]);
        let mut server = Server::new().bind(&address).unwrap().register_service(services);
        server.start().await.unwrap();
        Self { streams, address, _server: server, _dir: dir }
    }

    async fn process(&self, request: Request) -> Result<(Io, ChildEnds)> {
        let origin = Origin { id: "web", namespace: "default", spawner: None, streams: Some(&self.streams) };
        let (io, ends) = Io::open(&request, &origin, None).await?;
        io.start();
        Ok((io, ends.unwrap()))
    }

    /// One whose output is the stream `id`.
    async fn writer(&self, id: &str) -> (Io, File) {
        let (io, ends) = self.process(Request { stdout: url(id), ..Request::default() }).await.unwrap();
        (io, File::from(ends.stdout))
    }

    async fn connect(&self) -> Peer {
        let client = Client::connect(&self.address).await.unwrap();
        let request = ttrpc::Request { service: NAME.to_owned(), method: "Stream".to_owned(), ..ttrpc::Request::default() };
        let stream = client.new_stream(request, true, true).await.unwrap();
        Peer { client, stream }
    }

    async fn open(&self, id: &str) -> Peer {
        let mut peer = self.connect().await;
        peer.send(any::STREAM_INIT, StreamInit { id: id.to_owned() }.encode_to_vec()).await;
        peer.receive().await.unwrap();
        peer
    }
}

fn url(id: &str) -> String {
    format!("ttrpc+unix:///run/s?streaming_id={id}")
}

/// A client with one stream.
struct Peer {
    client: Client,
    stream: StreamInner,
}

impl Peer {
    async fn send(&self, type_url: &str, value: Vec<u8>) {
        self.stream.send(encode(type_url, value).unwrap()).await.unwrap();
    }

    async fn grant(&self, bytes: usize) {
        self.send(any::WINDOW_UPDATE, WindowUpdate { update: bytes as i32 }.encode_to_vec()).await;
    }

    async fn data(&self, bytes: &[u8]) {
        self.send(any::STREAM_DATA, Data { data: bytes.to_vec() }.encode_to_vec()).await;
    }

    async fn receive(&mut self) -> ttrpc::Result<Any> {
        let bytes = timeout(SOON, self.stream.recv()).await.expect("nothing comes")?;
        Ok(parse(&bytes).unwrap())
    }

    async fn bytes(&mut self) -> Option<Vec<u8>> {
        match self.receive().await {
            Ok(any) => match message(&any.write_to_bytes().unwrap()).unwrap() {
                Message::Data(data) => Some(data),
                Message::Window(_) => panic!("a window for what only comes"),
            },
            Err(ttrpc::Error::Eof) => None,
            Err(error) => panic!("{error}"),
        }
    }

    /// As many bytes as come, granted as they do, until `most` have or the end.
    async fn take(&mut self, most: usize) -> Vec<u8> {
        let mut all = Vec::new();
        while all.len() < most {
            let Some(bytes) = self.bytes().await else { break };
            self.grant(bytes.len()).await;
            all.extend(bytes);
        }
        all
    }

    async fn is_silent(&mut self) -> bool {
        timeout(WHILE, self.stream.recv()).await.is_err()
    }
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|place| (place / 7 + place / 4096) as u8).collect()
}

/// Writes in a thread, for the pipe is smaller.
fn write_all(mut to: File, bytes: Vec<u8>) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || to.write_all(&bytes).unwrap())
}

#[tokio::test]
async fn output_comes_as_far_as_the_window_allows_and_then_ends() {
    let bed = Bed::new().await;
    let mut peer = bed.open("web-stdout").await;
    let (io, stdout) = bed.writer("web-stdout").await;
    let written = pattern(300_000);
    let writer = write_all(stdout, written.clone());
    assert!(peer.is_silent().await, "without a window");
    peer.grant(100).await;
    let mut seen = peer.bytes().await.unwrap();
    assert_eq!(seen.len(), 100);
    assert!(peer.is_silent().await, "beyond the window");
    peer.grant(WINDOW).await;
    seen.extend(peer.take(usize::MAX).await);
    assert_eq!(seen, written);
    writer.join().unwrap();
    io.exited();
    assert_eq!(io.drained(SOON).await, Drained::Complete);
}

#[tokio::test]
async fn a_client_that_comes_back_gets_the_rest() {
    let bed = Bed::new().await;
    let (io, stdout) = bed.writer("web-stdout").await;
    let written = pattern(500_000);
    let writer = write_all(stdout, written.clone());
    let mut first = bed.open("web-stdout").await;
    first.grant(WINDOW).await;
    let mut seen = Vec::new();
    while seen.len() < WINDOW {
        seen.extend(first.bytes().await.unwrap());
    }
    drop(first);
    let mut second = bed.open("web-stdout").await;
    second.grant(WINDOW).await;
    seen.extend(second.take(usize::MAX).await);
    assert_eq!(seen.len(), written.len());
    assert_eq!(seen, written);
    writer.join().unwrap();
    // One that comes after the end, before the deletion, finds the end and waits for nothing.
    assert_eq!(bed.open("web-stdout").await.bytes().await, None);
    assert_eq!(io.drained(SOON).await, Drained::Complete);
}

#[tokio::test]
async fn a_second_client_takes_the_stream_from_the_first() {
    let bed = Bed::new().await;
    let (_io, mut stdout) = bed.writer("web-stdout").await;
    let mut first = bed.open("web-stdout").await;
    let mut second = bed.open("web-stdout").await;
    assert_eq!(first.bytes().await, None);
    second.grant(WINDOW).await;
    stdout.write_all(b"hello").unwrap();
    assert_eq!(second.bytes().await.unwrap(), b"hello");
}

#[tokio::test]
async fn input_ends_when_it_was_closed_and_its_client_is_gone() {
    let bed = Bed::new().await;
    let mut peer = bed.open("web-stdin").await;
    let (io, ends) = bed.process(Request { stdin: url("web-stdin"), ..Request::default() }).await.unwrap();
    let granted = message(&peer.receive().await.unwrap().write_to_bytes().unwrap()).unwrap();
    assert_eq!(granted, Message::Window(WINDOW as i32));
    let reader = tokio::task::spawn_blocking(move || {
        let mut read = Vec::new();
        File::from(ends.stdin).read_to_end(&mut read).unwrap();
        read
    });
    peer.data(b"one ").await;
    drop(peer);
    let again = bed.open("web-stdin").await;
    again.data(b"two").await;
    io.close_stdin();
    tokio::time::sleep(WHILE).await;
    assert!(!reader.is_finished(), "its client is there");
    again.stream.close_send().await.unwrap();
    assert_eq!(timeout(SOON, reader).await.unwrap().unwrap(), b"one two");
}

#[tokio::test]
async fn more_than_the_window_is_refused_and_a_full_process_stops_the_client() {
    let bed = Bed::new().await;
    let (_io, _ends) = bed.process(Request { stdin: url("web-stdin"), ..Request::default() }).await.unwrap();
    let mut peer = bed.open("web-stdin").await;
    let mut window = 0i64;
    let mut sent = 0usize;
    // A pipe holds 64 KiB, and so does the stream; nobody reads.
    while let Ok(bytes) = timeout(WHILE, peer.stream.recv()).await {
        let Message::Window(more) = message(&bytes.unwrap()).unwrap() else { panic!("data on an input") };
        window += i64::from(more);
        while window > 0 {
            let count = window.min(8192) as usize;
            peer.data(&vec![7; count]).await;
            window -= count as i64;
            sent += count;
        }
        assert!(sent < 1 << 20, "{sent} bytes were asked for");
    }
    assert!(sent >= WINDOW, "{sent}");
    peer.data(b"x").await;
    assert!(matches!(peer.receive().await, Err(ttrpc::Error::RpcStatus(status)) if status.message.contains("of which 0 are allowed")));
}

#[tokio::test]
async fn a_stream_belongs_to_one_process_and_ends_with_it() {
    let bed = Bed::new().await;
    let (io, stdout) = bed.writer("web-stdout").await;
    let error = bed.process(Request { stdout: url("web-stdout"), ..Request::default() }).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    let mut peer = bed.open("web-stdout").await;
    drop((io, stdout));
    assert_eq!(peer.bytes().await, None);
    // The name is free again.
    bed.writer("web-stdout").await;
}

#[tokio::test]
async fn a_deletion_does_not_wait_for_a_client_that_is_away() {
    let bed = Bed::new().await;
    let (io, mut stdout) = bed.writer("web-stdout").await;
    stdout.write_all(b"lost").unwrap();
    drop(stdout);
    io.exited();
    assert_eq!(io.drained(Duration::from_millis(500)).await, Drained::Truncated(4));
}

#[tokio::test]
async fn what_is_no_stream_is_refused_by_a_sentence() {
    let bed = Bed::new().await;
    for (type_url, value, words) in [
        ("x.Y", vec![], "the first message is \"x.Y\""),
        (any::STREAM_INIT, vec![], "the stream has no id"),
        (any::STREAM_INIT, vec![0xff], "parse containerd.services.streaming.v1.StreamInit"),
    ] {
        let mut peer = bed.connect().await;
        peer.send(type_url, value).await;
        match peer.receive().await {
            Err(ttrpc::Error::RpcStatus(status)) => assert!(status.message.contains(words), "{}", status.message),
            other => panic!("{other:?}"),
        }
        drop(peer.client);
    }
}
