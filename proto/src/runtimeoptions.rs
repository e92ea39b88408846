//! `runtimeoptions.v1` of containerd's `api/types/runtimeoptions/v1/api.proto`, which no crate carries.

/// The options of a runtime that is not runc: the `options` table of containerd's configuration as TOML text, or the path of such a file.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct Options {
    /// The type that the operator gave the options, empty by default.
    #[prost(string, tag = "1")]
    pub type_url: String,
    /// The path of a file with the options, on the host.
    #[prost(string, tag = "2")]
    pub config_path: String,
    /// The options themselves, as TOML.
    #[prost(bytes = "vec", tag = "3")]
    pub config_body: Vec<u8>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message;

    #[test]
    fn the_wire_form_is_that_of_containerd() {
        let options = Options { type_url: "t".into(), config_path: "/p".into(), config_body: b"Root=\"\"".to_vec() };
        let wire = options.encode_to_vec();
        assert_eq!(wire, b"\x0a\x01t\x12\x02/p\x1a\x07Root=\"\"");
        assert_eq!(Options::decode(wire.as_slice()), Ok(options));
    }
}
