//! The `-info` and `-v` verbs: what this shim is, for containerd and for people.

use std::io::Write;

use proto::any;
use proto::protobuf::well_known_types::any::Any;
use proto::protobuf::{Message, MessageField};
use proto::types::introspection::{RuntimeInfo, RuntimeVersion};
use runtime_core::error::{Context, Error, ErrorKind, Result};

use crate::bootstrap::read_stdin;
use crate::features;

/// The runtime's name in containerd's configuration.
pub const NAME: &str = "io.containerd.coracle.v2";

/// This build's version.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The commit that it was built from, or `unknown`; see `build.rs`.
pub const REVISION: &str = env!("CORACLE_REVISION");

/// What `coracle --version` says after the program's name, in lines that Docker and Podman read.
pub const LINES: &str =
    concat!("version ", env!("CARGO_PKG_VERSION"), "\ncommit: ", env!("CORACLE_REVISION"), "\nspec: ", crate::oci_version!());

/// Prints `RuntimeInfo` as protobuf. Standard input may hold the runtime's options as an `Any`; they are echoed, as runc's shim does.
///
/// # Errors
/// When the message cannot be encoded or written.
pub fn info() -> Result<()> {
    let input = read_stdin()?;
    // Options that do not parse change nothing about what the runtime is.
    let options = Any::parse_from_bytes(&input).ok().filter(|any| !any.type_url.is_empty());
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(&encode(options)?).and_then(|()| stdout.flush()).context(|| "write to standard output")
}

/// What `-v` prints.
pub fn version() -> String {
    format!("containerd-shim-coracle-v2:\n  Version:  {VERSION}\n  Revision: {REVISION}\n")
}

fn encode(options: Option<Any>) -> Result<Vec<u8>> {
    let failed = |what: &str, error: &dyn std::fmt::Display| Error::new(ErrorKind::Internal, format!("encode {what}: {error}"));
    let json = serde_json::to_vec(&features::features()).map_err(|error| failed("features", &error))?;
    let features = Any { type_url: any::FEATURES.to_owned(), value: json, ..Any::default() };
    let version = RuntimeVersion { version: VERSION.to_owned(), revision: REVISION.to_owned(), ..Default::default() };
    let info = RuntimeInfo {
        name: NAME.to_owned(),
        version: MessageField::some(version),
        options: options.into(),
        features: MessageField::some(features),
        ..RuntimeInfo::default()
    };
    info.write_to_bytes().map_err(|error| failed("RuntimeInfo", &error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_is_runtime_info_itself() {
        let options = Any { type_url: any::RUNC_OPTIONS.to_owned(), ..Any::default() };
        let info = RuntimeInfo::parse_from_bytes(&encode(Some(options)).unwrap()).unwrap();
        assert_eq!((info.name.as_str(), info.version.version.as_str()), (NAME, VERSION));
        assert_eq!(info.version.revision, REVISION);
        assert!(!REVISION.is_empty() && version().ends_with(&format!("  Revision: {REVISION}\n")), "{}", version());
        assert_eq!(info.options.type_url, any::RUNC_OPTIONS);
        assert_eq!(info.features.type_url, any::FEATURES);
        let features: serde_json::Value = serde_json::from_slice(&info.features.value).unwrap();
        assert_eq!(features["ociVersionMin"], "1.0.0");
        assert!(RuntimeInfo::parse_from_bytes(&encode(None).unwrap()).unwrap().options.is_none());
    }
}
