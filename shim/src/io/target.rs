//! The stdio strings of Create and Exec: what they name, checked before anything is opened.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, PathBuf};

use runtime_core::error::{Error, ErrorKind, Result};

/// What one of the three strings asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// Empty: `/dev/null`.
    Null,
    /// No scheme: what containerd's client made at this path, a fifo as a rule.
    Path(PathBuf),
    /// `file://`: a log to append to.
    File(PathBuf),
    /// `binary://` and `binary-v2://`: a logger to start.
    Logger(LoggerUri),
    /// `ttrpc+unix://`: a stream of this id over the shim's own socket.
    Stream(String),
}

/// A logger as its URI tells it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct LoggerUri {
    pub(super) path: PathBuf,
    /// Key and value of each query pair in turn, a repeated key once, as containerd's `NewBinaryCmd` has it.
    pub(super) args: Vec<OsString>,
    pub(super) readiness: Readiness,
}

/// How a logger says that it reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Readiness {
    /// It closes descriptor 5, or writes to it.
    Close,
    /// It must write a byte; only to close it is a failure.
    Byte,
}

impl Target {
    /// Reads `text`, the request's field `field`.
    ///
    /// # Errors
    /// InvalidArgument for what can never work, Unimplemented for schemes of other platforms' or newer shims.
    pub(super) fn parse(field: &str, text: &str) -> Result<Self> {
        Self::read(text).map_err(|error| error.context(format_args!("{field} {text:?}")))
    }

    fn read(text: &str) -> Result<Self> {
        if text.is_empty() {
            return Ok(Self::Null);
        }
        let Some((scheme, rest)) = text.split_once("://").filter(|_| !text.starts_with('/')) else {
            return checked_path(text.as_bytes().to_vec()).map(Self::Path);
        };
        match scheme {
            "file" => uri_path(rest).map(Self::File),
            "binary" => LoggerUri::read(rest, Readiness::Close).map(Self::Logger),
            "binary-v2" => LoggerUri::read(rest, Readiness::Byte).map(Self::Logger),
            "pipe" | "npipe" => Err(Error::invalid("named pipes exist on Windows only")),
            "ttrpc+unix" => streaming_id(rest).map(Self::Stream),
            "ttrpc+vsock" => Err(unimplemented("there is no virtual machine to stream from")),
            _ => Err(unimplemented("unknown stdio scheme")),
        }
    }
}

impl LoggerUri {
    fn read(rest: &str, readiness: Readiness) -> Result<Self> {
        let query = rest.split_once('#').map_or(rest, |(before, _)| before).split_once('?').map_or("", |(_, query)| query);
        Ok(Self { path: uri_path(rest)?, args: query_args(query)?, readiness })
    }
}

/// What containerd's CRI plugin puts behind the address of the sandbox's shim (`internal/cri/io/helpers.go`, `newStreams`).
fn streaming_id(rest: &str) -> Result<String> {
    let query = rest.split_once('?').map_or("", |(_, query)| query);
    let arguments = query_args(query)?;
    let id = arguments.chunks(2).find(|pair| pair[0] == "streaming_id").and_then(|pair| pair[1].to_str());
    id.filter(|id| !id.is_empty()).map(str::to_owned).ok_or_else(|| Error::invalid("no streaming_id"))
}

fn unimplemented(why: &str) -> Error {
    Error::new(ErrorKind::Unimplemented, why)
}

/// The path of what follows `scheme://`: no host, no query, percent-decoded.
fn uri_path(rest: &str) -> Result<PathBuf> {
    let path = rest.split(['?', '#']).next().unwrap_or_default();
    if !path.starts_with('/') {
        return Err(Error::invalid("the path is not absolute (a URI has three slashes: scheme:///path)"));
    }
    checked_path(decode(path, Spaces::AsTheyAre)?)
}

fn checked_path(bytes: Vec<u8>) -> Result<PathBuf> {
    if bytes.contains(&0) {
        return Err(Error::invalid("the path holds a zero byte"));
    }
    let path = PathBuf::from(OsString::from_vec(bytes));
    if !path.is_absolute() {
        return Err(Error::invalid("the path is not absolute"));
    }
    if path.components().any(|part| part == Component::ParentDir) {
        return Err(Error::invalid("the path holds \"..\""));
    }
    Ok(path)
}

/// Go's `url.Query`, in the order of the text.
fn query_args(query: &str) -> Result<Vec<OsString>> {
    let mut seen = Vec::new();
    let mut args = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let (key, value) = (decode(key, Spaces::Plus)?, decode(value, Spaces::Plus)?);
        if key.contains(&0) || value.contains(&0) {
            return Err(Error::invalid("the query holds a zero byte"));
        }
        if seen.contains(&key) {
            continue;
        }
        seen.push(key.clone());
        args.extend([OsString::from_vec(key), OsString::from_vec(value)]);
    }
    Ok(args)
}

/// How a blank is written: in a query as `+`, in a path not otherwise than `%20`.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Spaces {
    AsTheyAre,
    Plus,
}

/// RFC 3986 section 2.1.
fn decode(text: &str, spaces: Spaces) -> Result<Vec<u8>> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        decoded.push(match byte {
            b'%' => match (rest.next().and_then(hex), rest.next().and_then(hex)) {
                (Some(high), Some(low)) => high << 4 | low,
                _ => return Err(Error::invalid("\"%\" without two hexadecimal digits")),
            },
            b'+' if spaces == Spaces::Plus => b' ',
            other => other,
        });
    }
    Ok(decoded)
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(text: &str) -> String {
        Target::parse("stdout", text).unwrap_err().to_string()
    }

    #[test]
    fn each_form_is_told_apart() {
        assert_eq!(Target::parse("stdin", "").unwrap(), Target::Null);
        assert_eq!(Target::parse("stdin", "ttrpc+unix:///run/s?streaming_id=a-stdin").unwrap(), Target::Stream("a-stdin".into()));
        assert_eq!(Target::parse("stdout", "/run/a://b").unwrap(), Target::Path("/run/a://b".into()));
        assert_eq!(Target::parse("stdout", "file:///var/log/a%20b+c?x=1#y").unwrap(), Target::File("/var/log/a b+c".into()));
    }

    #[test]
    fn a_logger_has_its_arguments_in_order() {
        let Target::Logger(logger) = Target::parse("stdout", "binary-v2:///bin/log?b=1+2&a=%2Fx&flag&b=3#f?c=d").unwrap() else {
            panic!("not a logger")
        };
        assert_eq!(logger.path, PathBuf::from("/bin/log"));
        assert_eq!(logger.args, ["b", "1 2", "a", "/x", "flag", ""]);
        assert_eq!(logger.readiness, Readiness::Byte);
    }

    #[test]
    fn what_cannot_work_is_refused_by_a_sentence() {
        assert_eq!(message("out"), "stdout \"out\": the path is not absolute");
        assert_eq!(message("/run/../etc/x"), "stdout \"/run/../etc/x\": the path holds \"..\"");
        assert_eq!(message("file:///a/%2e%2e/b"), "stdout \"file:///a/%2e%2e/b\": the path holds \"..\"");
        assert!(message("file://host/a").contains("three slashes"));
        assert!(message("file:///a%0").contains("hexadecimal"));
        assert!(message("binary:///a?x=%00").contains("zero byte"));
        assert!(message("pipe:////./pipe/x").contains("Windows"));
        assert!(message("ttrpc+unix:///run/s?id=x").contains("no streaming_id"));
        let vsock = Target::parse("stdout", "ttrpc+vsock://3:1024?streaming_id=x").unwrap_err();
        assert_eq!(vsock.kind(), ErrorKind::Unimplemented);
    }

    fn encode(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("%{byte:02X}")).collect()
    }

    proptest! {
        #[test]
        fn every_path_survives_the_encoding(name in proptest::collection::vec(1u8..=255, 1..40)) {
            let expected = [b"/".to_vec(), name.clone()].concat();
            prop_assume!(checked_path(expected.clone()).is_ok());
            let parsed = Target::parse("stdout", &format!("file:///{}", encode(&name))).unwrap();
            prop_assert_eq!(parsed, Target::File(PathBuf::from(OsString::from_vec(expected))));
        }

        #[test]
        fn no_input_panics_and_no_accepted_path_climbs(text in ".{0,60}") {
            let parsed = Target::parse("stdout", &text);
            if let Ok(Target::Path(path) | Target::File(path)) = parsed {
                prop_assert!(path.is_absolute() && !path.components().any(|part| part == Component::ParentDir));
            }
        }
    }
}
