//! `linux.netDevices` (OCI config-linux.md, "Network Devices").

use std::collections::HashSet;

use oci_spec::runtime::LinuxNamespaceType;
use serde::Deserialize;

use super::Linux;
use crate::error::{Error, Result};

/// What the container calls a device.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct NetDevice {
    /// Empty for the name that it has.
    #[serde(default)]
    name: String,
}

/// A device by its name here and there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// On the host.
    pub host: String,
    /// In the container.
    pub container: String,
}

impl Linux {
    /// The devices that are to be moved, in the order of their names.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`](crate::ErrorKind::InvalidArgument) without a network namespace of the container's own or a given one; for
    /// what is no name, or one that two devices would have.
    pub fn devices_to_move(&self) -> Result<Vec<Device>> {
        if self.net_devices.is_empty() {
            return Ok(Vec::new());
        }
        if !self.namespaces.iter().any(|namespace| namespace.typ() == LinuxNamespaceType::Network) {
            return Err(Error::invalid("linux.netDevices: cannot be moved without a network namespace"));
        }
        let mut names = HashSet::new();
        let mut devices = Vec::new();
        for (host, device) in &self.net_devices {
            check_name("linux.netDevices", host)?;
            let container = if device.name.is_empty() { host } else { &device.name };
            check_name(&format!("linux.netDevices[{host:?}].name"), container)?;
            if !names.insert(container) {
                return Err(Error::invalid(format!("linux.netDevices[{host:?}].name: two devices would be {container:?}")));
            }
            devices.push(Device { host: host.clone(), container: container.clone() });
        }
        Ok(devices)
    }
}

/// `IFNAMSIZ` without the NUL (linux/if.h).
const NAME_MAX: usize = 15;

/// Whether a text can be a device's name (net/core/dev.c, `dev_valid_name`), and not a pattern for one.
fn check_name(field: &str, name: &str) -> Result<()> {
    let odd = |c: char| c == '/' || c == ':' || c == '%' || c.is_whitespace() || c.is_control();
    match name {
        "" => Err(Error::invalid(format!("{field}: a device needs a name"))),
        "." | ".." => Err(Error::invalid(format!("{field}: {name:?} is not a name of a device"))),
        _ if name.len() > NAME_MAX => Err(Error::invalid(format!("{field}: {name:?} has more than {NAME_MAX} bytes"))),
        _ if name.contains(odd) => Err(Error::invalid(format!("{field}: {name:?} is not a name of a device"))),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn devices(devices: &str, namespace: &str) -> Result<Vec<Device>> {
        let text = format!("{{\"namespaces\":[{{\"type\":\"{namespace}\"}}],\"netDevices\":{devices}}}");
        serde_json::from_str::<Linux>(&text).unwrap().devices_to_move()
    }

    #[test]
    fn a_device_keeps_its_name_unless_it_gets_another() {
        let found = devices(r#"{"eth1":{"name":"data"},"eth0":{}}"#, "network").unwrap();
        let named = |host: &str, container: &str| Device { host: host.to_owned(), container: container.to_owned() };
        assert_eq!(found, [named("eth0", "eth0"), named("eth1", "data")]);
    }

    #[test]
    fn what_cannot_be_is_refused_by_its_field() {
        for (given, why) in [
            (r#"{"a b":{}}"#, "linux.netDevices: \"a b\" is not a name"),
            (r#"{"":{}}"#, "linux.netDevices: a device needs a name"),
            (r#"{"e":{"name":"x/y"}}"#, "linux.netDevices[\"e\"].name: \"x/y\" is not a name"),
            (r#"{"e":{"name":"eth%d"}}"#, "linux.netDevices[\"e\"].name: \"eth%d\" is not a name"),
            (r#"{"e":{"name":".."}}"#, "linux.netDevices[\"e\"].name: \"..\" is not a name"),
            (r#"{"e":{"name":"sixteen-bytes-of"}}"#, "linux.netDevices[\"e\"].name: \"sixteen-bytes-of\" has more than 15 bytes"),
            (r#"{"e":{"name":"f"},"f":{}}"#, "linux.netDevices[\"f\"].name: two devices would be \"f\""),
        ] {
            let error = devices(given, "network").unwrap_err().to_string();
            assert!(error.starts_with(why), "{error}");
        }
        assert_eq!(
            devices(r#"{"e":{}}"#, "mount").unwrap_err().to_string(),
            "linux.netDevices: cannot be moved without a network namespace"
        );
    }
}
