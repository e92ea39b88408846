//! Where systemd's managers can be spoken to.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use super::unit::Instance;
use crate::error::{Error, Result};

/// A socket of the unix family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// In the filesystem.
    Path {
        /// Where.
        path: PathBuf,
        /// The other side is systemd itself, and no bus between.
        direct: bool,
    },
    /// In the abstract namespace.
    Abstract(Vec<u8>),
}

impl Address {
    /// Whether the other side is a bus.
    pub fn is_bus(&self) -> bool {
        !matches!(self, Self::Path { direct: true, .. })
    }

    /// The addresses of a manager, to be tried in this order: the bus, and, should there be none, systemd's own socket.
    ///
    /// # Errors
    /// `InvalidArgument` for an address in the environment that is none.
    pub fn of(instance: Instance) -> Result<Vec<Self>> {
        let environment = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        match instance {
            Instance::System => Self::system(environment("DBUS_SYSTEM_BUS_ADDRESS")),
            Instance::User => Self::user(environment("DBUS_SESSION_BUS_ADDRESS"), environment("XDG_RUNTIME_DIR"), owner()),
        }
    }

    fn system(given: Option<OsString>) -> Result<Vec<Self>> {
        let bus = match given {
            Some(given) => Self::parse("DBUS_SYSTEM_BUS_ADDRESS", &given)?,
            None => vec![bus("/run/dbus/system_bus_socket".into())],
        };
        Ok(bus.into_iter().chain([direct("/run/systemd/private".into())]).collect())
    }

    fn user(given: Option<OsString>, runtime: Option<OsString>, uid: u32) -> Result<Vec<Self>> {
        let runtime = runtime.map_or_else(|| PathBuf::from(format!("/run/user/{uid}")), PathBuf::from);
        let bus = match given {
            Some(given) => Self::parse("DBUS_SESSION_BUS_ADDRESS", &given)?,
            None => vec![bus(runtime.join("bus"))],
        };
        Ok(bus.into_iter().chain([direct(runtime.join("systemd/private"))]).collect())
    }

    /// The addresses of the unix transport among several (D-Bus specification, "Server Addresses").
    fn parse(variable: &str, given: &OsString) -> Result<Vec<Self>> {
        let mut found = Vec::new();
        for address in given.as_bytes().split(|byte| *byte == b';') {
            let Some(pairs) = address.strip_prefix(b"unix:") else { continue };
            for pair in pairs.split(|byte| *byte == b',') {
                if let Some(path) = pair.strip_prefix(b"path=") {
                    found.push(bus(OsString::from_vec(unescape(path)).into()));
                } else if let Some(name) = pair.strip_prefix(b"abstract=") {
                    found.push(Self::Abstract(unescape(name)));
                }
            }
        }
        if found.is_empty() {
            return Err(Error::invalid(format!("{variable}={given:?}: no address of a unix socket")));
        }
        Ok(found)
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Path { path, .. } => write!(f, "{}", path.display()),
            Self::Abstract(name) => write!(f, "@{}", String::from_utf8_lossy(name)),
        }
    }
}

fn bus(path: PathBuf) -> Address {
    Address::Path { path, direct: false }
}

fn direct(path: PathBuf) -> Address {
    Address::Path { path, direct: true }
}

fn unescape(text: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [first, tail @ ..] = rest {
        let escaped =
            tail.get(..2).and_then(|digits| std::str::from_utf8(digits).ok()).and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match (first, escaped) {
            (b'%', Some(byte)) => {
                plain.push(byte);
                rest = &tail[2..];
            }
            _ => {
                plain.push(*first);
                rest = tail;
            }
        }
    }
    plain
}

/// Who this process is outside of the user namespace that it may be root of.
fn owner() -> u32 {
    let own = rustix::process::geteuid().as_raw();
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    outside(own, &map).unwrap_or(own)
}

fn outside(uid: u32, uid_map: &str) -> Option<u32> {
    uid_map.lines().find_map(|line| {
        let mut numbers = line.split_ascii_whitespace().map(str::parse::<u32>);
        let (inside, outside, count) = (numbers.next()?.ok()?, numbers.next()?.ok()?, numbers.next()?.ok()?);
        let offset = uid.checked_sub(inside).filter(|offset| *offset < count)?;
        outside.checked_add(offset)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_has_a_bus_of_their_own() {
        let paths = |addresses: Vec<Address>| addresses.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(paths(Address::user(None, None, 1000).unwrap()), ["/run/user/1000/bus", "/run/user/1000/systemd/private"]);
        assert_eq!(paths(Address::user(None, Some("/r".into()), 1000).unwrap()), ["/r/bus", "/r/systemd/private"]);
        let given = Some("tcp:host=x;unix:path=/a%20b,guid=1;unix:abstract=c".into());
        assert_eq!(paths(Address::user(given, None, 1000).unwrap()), ["/a b", "@c", "/run/user/1000/systemd/private"]);
        assert_eq!(paths(Address::system(None).unwrap()), ["/run/dbus/system_bus_socket", "/run/systemd/private"]);
        let error = Address::system(Some("tcp:host=x".into())).unwrap_err().to_string();
        assert!(error.contains("DBUS_SYSTEM_BUS_ADDRESS"), "{error}");
    }

    #[test]
    fn root_of_a_user_namespace_is_somebody_outside() {
        assert_eq!(outside(0, "0 1000 1\n1 100000 65536\n"), Some(1000));
        assert_eq!(outside(5, "0 1000 1\n1 100000 65536\n"), Some(100_004));
        assert_eq!(outside(0, "0 0 4294967295\n"), Some(0));
        assert_eq!(outside(7, "junk\n"), None);
    }
}
