//! Which containers share one shim: by default what the annotations of `config.json` say, else all of containerd's namespace.

use std::path::Path;

use runtime_core::error::{Context, Error, Result};
use serde::Deserialize;
use serde_json::{Map, Value};

/// The annotations that name the group, in this order (containerd's `cmd/containerd-shim-runc-v2/manager/manager_linux.go`).
const ANNOTATIONS: [&str; 2] = ["io.containerd.runc.v2.group", SANDBOX_ID];

/// The annotation by which CRI says whose a container is.
pub const SANDBOX_ID: &str = "io.kubernetes.cri.sandbox-id";

/// Who shares a daemon.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Grouping {
    /// The containers of a pod; one without a pod has a daemon of its own.
    #[default]
    Pod,
    /// All containers of a namespace of one containerd.
    Node,
}

impl Grouping {
    /// The operator's word; none is the default. `origin` is where it stands.
    ///
    /// # Errors
    /// `InvalidArgument` for another word.
    pub fn parse(origin: &str, word: &str) -> Result<Self> {
        match word {
            "" | "pod" => Ok(Self::Pod),
            "node" => Ok(Self::Node),
            other => Err(Error::invalid(format!("{origin}={other:?}: want pod or node"))),
        }
    }

    /// The group of the container in `bundle`; `None` when it is alone.
    ///
    /// # Errors
    /// As [`of`]; the errno when this program cannot be looked at.
    pub fn group(self, bundle: &Path) -> Result<Option<String>> {
        match self {
            Self::Pod => of(bundle),
            Self::Node => node().map(Some),
        }
    }
}

/// The group of all containers of a node. An installed upgrade is another file, so what starts after it gets a daemon of the new program,
/// while the old one stays for its own.
fn node() -> Result<String> {
    let program = rustix::fs::stat("/proc/self/exe").context(|| "stat /proc/self/exe")?;
    Ok(format!("node:{:x}:{:x}:{:x}.{:x}", program.st_dev, program.st_ino, program.st_mtime, program.st_mtime_nsec))
}

#[derive(Deserialize)]
struct Config {
    annotations: Option<Map<String, Value>>,
}

/// The pod of the container in `bundle`; `None` when it is alone, or when there is no `config.json` (a sandbox without a container).
///
/// # Errors
/// `InvalidArgument` when `config.json` is not JSON; the errno when it cannot be read.
fn of(bundle: &Path) -> Result<Option<String>> {
    let path = bundle.join("config.json");
    match std::fs::read(&path) {
        Ok(text) => from_config(&text).map_err(|error| error.context(format!("parse {path:?}"))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io(format!("read {path:?}"), &error)),
    }
}

/// Everything but the annotations is skipped, not judged: that is Create's to do.
fn from_config(text: &[u8]) -> Result<Option<String>> {
    let config: Config = runtime_core::spec::keys::from_slice(text).map_err(|error| Error::invalid(error.to_string()))?;
    let annotations = config.annotations.unwrap_or_default();
    let group = ANNOTATIONS.iter().find_map(|key| annotations.get(*key).and_then(Value::as_str).filter(|group| !group.is_empty()));
    Ok(group.map(str::to_owned))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_annotation_names_the_group() {
        let cases = [
            (r#"{"annotations":{"io.kubernetes.cri.sandbox-id":"s","io.containerd.runc.v2.group":"g"}}"#, Some("g")),
            (r#"{"ociVersion":3,"annotations":{"io.kubernetes.cri.sandbox-id":"s","x":1},"process":[]}"#, Some("s")),
            (r#"{"annotations":{"io.containerd.runc.v2.group":"","io.kubernetes.cri.sandbox-id":7}}"#, None),
            (r#"{"annotations":null}"#, None),
            ("{}", None),
        ];
        for (text, group) in cases {
            assert_eq!(from_config(text.as_bytes()).unwrap().as_deref(), group, "{text}");
        }
    }

    #[test]
    fn a_node_is_one_group_and_other_words_are_refused() {
        let tmp = tempfile::tempdir().unwrap();
        assert_eq!(Grouping::parse("x", "").unwrap(), Grouping::Pod);
        let node = Grouping::parse("x", "node").unwrap();
        assert_eq!(node.group(tmp.path()).unwrap(), node.group(Path::new("/nowhere")).unwrap());
        assert_eq!(Grouping::Pod.group(tmp.path()).unwrap(), None);
        assert_eq!(Grouping::parse("grouping", "rack").unwrap_err().to_string(), "grouping=\"rack\": want pod or node");
    }

    #[test]
    fn an_absent_config_is_no_group_and_a_broken_one_an_error() {
        let tmp = tempfile::tempdir().unwrap();
        assert_eq!(of(tmp.path()).unwrap(), None);
        std::fs::write(tmp.path().join("config.json"), "{").unwrap();
        let error = of(tmp.path()).unwrap_err().to_string();
        assert!(error.starts_with("parse \"") && error.contains("config.json\": EOF while parsing"), "{error}");
    }
}
