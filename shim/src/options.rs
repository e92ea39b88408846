//! The runtime's options, in every form that containerd sends them: typed as runc's (`containerd.runc.v1.Options`), as TOML text in
//! `runtimeoptions.v1.Options`, which is what a runtime of its own name gets, or as the `containerd.linux.runc.CreateOptions` that the Go client of
//! containerd 1.x makes of what it is told for one task of such a runtime.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use proto::any;
use proto::prost::Message as _;
use proto::protobuf::well_known_types::any::Any;
use proto::protobuf::{Message as _, UnknownValueRef};
use proto::shim::oci;
use runtime_core::error::{Context, Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};

use crate::bundle::write_atomic;

/// The file in the bundle that keeps the options for `delete` and for tools.
const FILE: &str = "options.json";

/// The most that is read of a file with options.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// The field of runc's options that containerd 2.0 removed and earlier ones still send.
const CRIU_PATH_FIELD: u32 = 8;

/// What the operator set for the runtime. Empty text and zero mean "not set".
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// Move the root mount and chroot(2) instead of pivot_root(2).
    pub no_pivot_root: bool,
    /// Leave the container in the shim's session keyring.
    pub no_new_keyring: bool,
    /// The existing cgroup that the shim moves to, relative to the root of each hierarchy.
    pub shim_cgroup: String,
    /// The owner of pipes and terminals.
    pub io_uid: u32,
    /// The group of pipes and terminals.
    pub io_gid: u32,
    /// The OCI runtime's binary: accepted for runc's sake; here there is none.
    pub binary_name: String,
    /// The directory for state.
    pub root: String,
    /// Cgroups are made by systemd, or not; where nobody says, the form of the container's path does.
    pub systemd_cgroup: Option<bool>,
    /// Annotations may set properties of the scopes that systemd makes; only in TOML.
    pub systemd_properties: bool,
    /// Annotations of crun's count; only in TOML.
    pub crun_annotations: bool,
    /// The CRIU binary (containerd before 2.0).
    pub criu_path: String,
    /// Where CRIU's images go.
    pub criu_image_path: String,
    /// Where CRIU works.
    pub criu_work_path: String,
    /// The address of the sandbox's task service (containerd 2.0 to 2.2).
    pub task_api_address: String,
    /// The version of the sandbox's task service (containerd 2.0 to 2.2).
    pub task_api_version: u32,
    /// Who shares a daemon: `pod` or `node`; only in TOML.
    pub grouping: String,
}

/// The keys that TOML may hold.
const KEYS: &[&str] = &[
    "no_pivot_root",
    "no_new_keyring",
    "shim_cgroup",
    "io_uid",
    "io_gid",
    "binary_name",
    "root",
    "systemd_cgroup",
    "systemd_properties",
    "crun_annotations",
    "criu_path",
    "criu_image_path",
    "criu_work_path",
    "task_api_address",
    "task_api_version",
    "grouping",
];

impl Options {
    /// The options among what containerd sent, or the defaults.
    ///
    /// # Errors
    /// As [`Options::from_any`].
    pub fn from_extensions<'a>(extensions: impl IntoIterator<Item = &'a Any>) -> Result<Self> {
        for extension in extensions {
            if let Some(options) = Self::from_any(extension)? {
                return Ok(options);
            }
        }
        Ok(Self::default())
    }

    /// The options in `any`; `None` when it holds something else.
    ///
    /// # Errors
    /// `InvalidArgument` for bytes that do not parse, and for an unknown key, by its name.
    pub fn from_any(any: &Any) -> Result<Option<Self>> {
        if any::is(&any.type_url, any::RUNC_OPTIONS) {
            return Self::from_runc(&any.value).map(Some);
        }
        if any::is(&any.type_url, any::RUNTIME_OPTIONS) {
            return Self::from_runtime(&any.value).map(Some);
        }
        if any::is(&any.type_url, any::LINUX_CREATE_OPTIONS) {
            return Self::from_linux(&any.value).map(Some);
        }
        Ok(None)
    }

    fn from_runc(bytes: &[u8]) -> Result<Self> {
        let runc = oci::Options::parse_from_bytes(bytes)
            .map_err(|error| Error::invalid(format!("parse options {}: {error}", any::RUNC_OPTIONS)))?;
        let criu_path = match runc.special_fields.unknown_fields().get(CRIU_PATH_FIELD) {
            Some(UnknownValueRef::LengthDelimited(path)) => String::from_utf8_lossy(path).into_owned(),
            _ => String::new(),
        };
        Ok(Self {
            no_pivot_root: runc.no_pivot_root,
            no_new_keyring: runc.no_new_keyring,
            shim_cgroup: runc.shim_cgroup,
            io_uid: runc.io_uid,
            io_gid: runc.io_gid,
            binary_name: runc.binary_name,
            root: runc.root,
            // false is no word of anybody's: containerd sends it for runtimes that nobody has set it for.
            systemd_cgroup: runc.systemd_cgroup.then_some(true),
            systemd_properties: false,
            crun_annotations: false,
            criu_path,
            criu_image_path: runc.criu_image_path,
            criu_work_path: runc.criu_work_path,
            task_api_address: runc.task_api_address,
            task_api_version: runc.task_api_version,
            grouping: String::new(),
        })
    }

    fn from_linux(bytes: &[u8]) -> Result<Self> {
        let options = proto::linuxruntime::CreateOptions::decode(bytes)
            .map_err(|error| Error::invalid(format!("parse options {}: {error}", any::LINUX_CREATE_OPTIONS)))?;
        Ok(Self {
            no_pivot_root: options.no_pivot_root,
            no_new_keyring: options.no_new_keyring,
            shim_cgroup: options.shim_cgroup,
            io_uid: options.io_uid,
            io_gid: options.io_gid,
            criu_work_path: options.criu_work_path,
            criu_image_path: options.criu_image_path,
            ..Self::default()
        })
    }

    fn from_runtime(bytes: &[u8]) -> Result<Self> {
        let options = proto::runtimeoptions::Options::decode(bytes)
            .map_err(|error| Error::invalid(format!("parse options {}: {error}", any::RUNTIME_OPTIONS)))?;
        let (origin, text) = if !options.config_body.is_empty() {
            ("config_body".to_owned(), options.config_body)
        } else if !options.config_path.is_empty() {
            (options.config_path.clone(), read_limited(Path::new(&options.config_path))?)
        } else {
            return Ok(Self::default());
        };
        let text = String::from_utf8(text).map_err(|_| Error::invalid(format!("options in {origin}: not UTF-8")))?;
        Self::from_toml(&text).context(|| format!("options in {origin}"))
    }

    /// The options in TOML; keys as Go writes them (`SystemdCgroup`) or with underscores, in any case.
    ///
    /// # Errors
    /// `InvalidArgument` that names the key, or the place where the text is no TOML.
    pub fn from_toml(text: &str) -> Result<Self> {
        let given: toml::Table = text.parse().map_err(|error| toml_error(text, &error))?;
        let mut table = toml::Table::new();
        for (key, value) in given {
            let Some(known) = KEYS.iter().find(|known| canonical(known) == canonical(&key)) else {
                return Err(Error::invalid(format!("unknown key {key:?}")));
            };
            let checked = toml::Table::from_iter([((*known).to_owned(), value.clone())]);
            Self::deserialize(checked).map_err(|error| Error::invalid(format!("key {key:?}: {}", error.message())))?;
            if table.insert((*known).to_owned(), value).is_some() {
                return Err(Error::invalid(format!("key {key:?} is given twice")));
            }
        }
        Self::deserialize(table).map_err(|error| Error::invalid(error.message()))
    }

    /// Logs what was set and changes nothing.
    pub fn tell_ignored(&self) {
        if !self.binary_name.is_empty() {
            log::info!("option BinaryName {:?} is ignored: the runtime is part of the shim", self.binary_name);
        }
    }

    /// Keeps the options in `bundle`, readable by us alone.
    ///
    /// # Errors
    /// The errno of the step that failed.
    pub fn save(&self, bundle: &Path) -> Result<()> {
        let text = serde_json::to_vec(self).map_err(|error| Error::new(ErrorKind::Internal, format!("encode {FILE}: {error}")))?;
        write_atomic(bundle, FILE, &text)
    }

    /// The options kept in `bundle`; the defaults when there are none.
    ///
    /// # Errors
    /// `InvalidArgument` for a file that does not parse; the errno when it cannot be read.
    pub fn load(bundle: &Path) -> Result<Self> {
        let path = bundle.join(FILE);
        match read_limited(&path) {
            Err(error) if error.errno() == Some(libc::ENOENT) => Ok(Self::default()),
            Err(error) => Err(error),
            Ok(text) => serde_json::from_slice(&text).map_err(|error| Error::invalid(format!("parse {path:?}: {error}"))),
        }
    }
}

fn read_limited(path: &Path) -> Result<Vec<u8>> {
    let what = || format!("read {path:?}");
    let mut text = Vec::new();
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path).context(what)?;
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut text).context(what)?;
    if text.len() as u64 > MAX_FILE_BYTES {
        return Err(Error::invalid(format!("read {path:?}: more than 1 MiB")));
    }
    Ok(text)
}

/// A key without what the writers differ in.
fn canonical(key: &str) -> String {
    key.chars().filter(|c| *c != '_').flat_map(char::to_lowercase).collect()
}

fn toml_error(text: &str, error: &toml::de::Error) -> Error {
    let line = error.span().map(|span| text.get(..span.start).unwrap_or(text).matches('\n').count() + 1);
    let place = line.map_or_else(String::new, |line| format!("line {line}: "));
    Error::invalid(format!("{place}{}", error.message()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn any(type_url: &str, value: Vec<u8>) -> Any {
        Any { type_url: type_url.into(), value, ..Any::default() }
    }

    fn toml_any(options: &proto::runtimeoptions::Options) -> Any {
        any("runtimeoptions.v1.Options", options.encode_to_vec())
    }

    #[test]
    fn options_of_runc_are_read_whole() {
        let mut wire = oci::Options {
            no_pivot_root: true,
            io_uid: 1000,
            shim_cgroup: "/shims".into(),
            systemd_cgroup: true,
            task_api_version: 3,
            ..oci::Options::default()
        }
        .write_to_bytes()
        .unwrap();
        wire.extend(b"\x42\x05/criu");
        for url in ["containerd.runc.v1.Options", "type.googleapis.com/containerd.runc.v1.Options"] {
            let options = Options::from_any(&any(url, wire.clone())).unwrap().unwrap();
            assert!(options.no_pivot_root && options.systemd_cgroup == Some(true));
            assert_eq!((options.io_uid, options.shim_cgroup.as_str(), options.criu_path.as_str()), (1000, "/shims", "/criu"));
        }
    }

    #[test]
    fn options_of_one_task_from_an_old_client_are_read() {
        let sent =
            proto::linuxruntime::CreateOptions { no_pivot_root: true, shim_cgroup: "/shims".into(), io_gid: 1000, ..Default::default() };
        let options = Options::from_any(&any("containerd.linux.runc.CreateOptions", sent.encode_to_vec())).unwrap().unwrap();
        assert_eq!(options, Options { no_pivot_root: true, shim_cgroup: "/shims".into(), io_gid: 1000, ..Options::default() });
    }

    #[test]
    fn toml_is_read_with_either_spelling() {
        let go = "SystemdCgroup = true\nNoPivotRoot = true\nIoUid = 7\nShimCgroup = \"/s\"\nRoot = \"/r\"\nBinaryName = \"crun\"\n";
        let snake =
            "systemd_cgroup = true\nno_pivot_root = true\nio_uid = 7\nshim_cgroup = \"/s\"\nroot = \"/r\"\nbinary_name = \"crun\"\n";
        let options = Options::from_toml(go).unwrap();
        assert_eq!(options, Options::from_toml(snake).unwrap());
        assert_eq!((options.io_uid, options.root.as_str(), options.systemd_cgroup), (7, "/r", Some(true)));
        let keys = serde_json::to_value(Options::default()).unwrap();
        assert_eq!(keys.as_object().unwrap().len(), KEYS.len());
        assert!(KEYS.iter().all(|key| keys.get(key).is_some()));
    }

    #[test]
    fn what_is_wrong_in_toml_is_named() {
        let cases = [
            ("Nope = 1", "unknown key \"Nope\""),
            ("SystemdCgroup = \"yes\"", "key \"SystemdCgroup\": invalid type: string \"yes\", expected a boolean"),
            ("IoUid = -1", "key \"IoUid\": invalid value: integer `-1`, expected u32"),
            ("Root = \"a\"\nroot = \"b\"", "key \"root\" is given twice"),
        ];
        for (text, message) in cases {
            let error = Options::from_toml(text).unwrap_err();
            assert_eq!((error.kind(), error.to_string().as_str()), (ErrorKind::InvalidArgument, message));
        }
        let error = Options::from_toml("Root = \"a\"\n= 3").unwrap_err();
        assert!(error.to_string().starts_with("line 2: "), "{error}");
    }

    #[test]
    fn a_file_stands_in_for_the_text() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("o.toml");
        std::fs::write(&path, "Root = \"/from-file\"").unwrap();
        let by_path = proto::runtimeoptions::Options { config_path: path.to_str().unwrap().into(), ..Default::default() };
        assert_eq!(Options::from_any(&toml_any(&by_path)).unwrap().unwrap().root, "/from-file");
        let both = proto::runtimeoptions::Options { config_body: b"Root = \"/body\"".to_vec(), ..by_path };
        assert_eq!(Options::from_any(&toml_any(&both)).unwrap().unwrap().root, "/body");
        let missing = proto::runtimeoptions::Options { config_path: "/does/not/exist".into(), ..Default::default() };
        let error = Options::from_any(&toml_any(&missing)).unwrap_err();
        assert_eq!(error.to_string(), "read \"/does/not/exist\": no such file or directory");
    }

    #[test]
    fn something_else_is_not_options() {
        let others = [any("containerd.io/cri.v1.PodSandboxConfig", vec![1]), any("", vec![])];
        assert_eq!(Options::from_extensions(&others).unwrap(), Options::default());
        assert!(Options::from_any(&any("containerd.runc.v1.Options", vec![0xff])).is_err());
    }

    #[test]
    fn options_survive_in_the_bundle() {
        let tmp = tempfile::tempdir().unwrap();
        assert_eq!(Options::load(tmp.path()).unwrap(), Options::default());
        let options = Options { root: "/r".into(), io_gid: 9, ..Options::default() };
        options.save(tmp.path()).unwrap();
        assert_eq!(Options::load(tmp.path()).unwrap(), options);
        assert_eq!(std::fs::read_dir(tmp.path()).unwrap().count(), 1);
        std::fs::write(tmp.path().join(FILE), "{").unwrap();
        assert!(Options::load(tmp.path()).is_err());
    }
}
