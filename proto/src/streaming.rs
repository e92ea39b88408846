//! `containerd.services.streaming.v1` and `containerd.types.transfer` of containerd's API, which no crate carries.

/// The first message of a stream.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct StreamInit {
    /// Which stream is meant.
    #[prost(string, tag = "1")]
    pub id: String,
}

/// Some bytes.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct Data {
    /// The bytes.
    #[prost(bytes = "vec", tag = "1")]
    pub data: Vec<u8>,
}

/// What the other side may send from here on, on top of what it could.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct WindowUpdate {
    /// In bytes.
    #[prost(int32, tag = "1")]
    pub update: i32,
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message;

    #[test]
    fn the_wire_form_is_that_of_containerd() {
        assert_eq!(StreamInit { id: "a".into() }.encode_to_vec(), b"\x0a\x01a");
        assert_eq!(Data { data: b"xy".to_vec() }.encode_to_vec(), b"\x0a\x02xy");
        assert_eq!(WindowUpdate { update: 65536 }.encode_to_vec(), b"\x08\x80\x80\x04");
    }
}
