//! The Streaming service (containerd `api/services/streaming/v1/streaming.proto`): stdio over the shim's own socket.
//!
//! A client opens a stream and names it; the answer tells that it is there. Then either side sends `Data` as far as the other one's
//! `WindowUpdate` allows (containerd's `core/transfer/streaming`). One that comes again takes the stream from its predecessor.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use proto::any;
use proto::prost::Message as _;
use proto::protobuf::Message as _;
use proto::protobuf::well_known_types::any::Any;
use proto::streaming::{Data, StreamInit, WindowUpdate};
use runtime_core::error::{Error, Result};
use ttrpc::asynchronous::{Service, StreamHandler, StreamInner, TtrpcContext};

use crate::io::{Attachment, Message, Next, Streams};

/// The service's full name.
pub const NAME: &str = "containerd.services.streaming.v1.Streaming";

/// What a client is told when its stream is there; which message it is does not matter.
const READY: &str = "google.protobuf.Empty";

/// The service for the streams of a daemon.
pub fn service(streams: Streams) -> Service {
    let stream: Arc<dyn StreamHandler + Send + Sync> = Arc::new(Stream(streams));
    Service { methods: HashMap::new(), streams: HashMap::from([("Stream".to_owned(), stream)]) }
}

struct Stream(Streams);

#[async_trait]
impl StreamHandler for Stream {
    async fn handler(&self, _: TtrpcContext, mut stream: StreamInner) -> ttrpc::Result<Option<ttrpc::Response>> {
        let mut first = stream.recv().await?;
        if first.is_empty() {
            // The request itself, which has no content: ttrpc for Go does not say so by the flag that ttrpc for Rust looks for.
            first = stream.recv().await?;
        }
        let id = stream_id(&first).map_err(refused)?;
        let attachment = self.0.attach(&id);
        stream.send(encode(READY, Vec::new())?).await?;
        serve(&mut stream, &attachment).await.map(|()| None)
    }
}

async fn serve(stream: &mut StreamInner, attachment: &Attachment) -> ttrpc::Result<()> {
    loop {
        match attachment.next() {
            Next::End => return Ok(()),
            Next::Send(message) => {
                if let Err(error) = stream.send(wire(&message)?).await {
                    attachment.give_back(message);
                    return Err(error);
                }
            }
            Next::Wait => tokio::select! {
                received = stream.recv() => match received {
                    Ok(bytes) => attachment.received(message(&bytes).map_err(refused)?).map_err(refused)?,
                    // The client has nothing more to say.
                    Err(ttrpc::Error::Eof | ttrpc::Error::RemoteClosed) => return Ok(()),
                    Err(error) => return Err(error),
                },
                () = attachment.changed() => {}
            },
        }
    }
}

fn refused(error: Error) -> ttrpc::Error {
    log::warn!("streaming: {error}");
    ttrpc::Error::Others(error.to_string())
}

fn parse(bytes: &[u8]) -> Result<Any> {
    Any::parse_from_bytes(bytes).map_err(|error| Error::invalid(format!("parse Any: {error}")))
}

fn stream_id(bytes: &[u8]) -> Result<String> {
    let first = parse(bytes)?;
    if !any::is(&first.type_url, any::STREAM_INIT) {
        return Err(Error::invalid(format!("the first message is {:?}: want {}", first.type_url, any::STREAM_INIT)));
    }
    let init =
        StreamInit::decode(first.value.as_slice()).map_err(|error| Error::invalid(format!("parse {}: {error}", any::STREAM_INIT)))?;
    if init.id.is_empty() { Err(Error::invalid("the stream has no id")) } else { Ok(init.id) }
}

fn message(bytes: &[u8]) -> Result<Message> {
    let sent = parse(bytes)?;
    let broken = |error| Error::invalid(format!("parse {}: {error}", sent.type_url));
    if any::is(&sent.type_url, any::STREAM_DATA) {
        return Data::decode(sent.value.as_slice()).map(|data| Message::Data(data.data)).map_err(broken);
    }
    if any::is(&sent.type_url, any::WINDOW_UPDATE) {
        return WindowUpdate::decode(sent.value.as_slice()).map(|window| Message::Window(window.update)).map_err(broken);
    }
    Err(Error::invalid(format!("a message of type {:?}", sent.type_url)))
}

fn wire(message: &Message) -> ttrpc::Result<Vec<u8>> {
    match message {
        Message::Data(data) => encode(any::STREAM_DATA, Data { data: data.clone() }.encode_to_vec()),
        Message::Window(update) => encode(any::WINDOW_UPDATE, WindowUpdate { update: *update }.encode_to_vec()),
    }
}

fn encode(type_url: &str, value: Vec<u8>) -> ttrpc::Result<Vec<u8>> {
    let any = Any { type_url: type_url.to_owned(), value, ..Any::default() };
    any.write_to_bytes().map_err(|error| ttrpc::Error::Others(format!("encode {type_url}: {error}")))
}

#[cfg(test)]
mod tests;
