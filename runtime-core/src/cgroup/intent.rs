//! What the files of a cgroup are to hold, for another one that writes them: systemd.

use super::devices::{Access, Kind, Policy};
use super::knobs::{self, Current, KNOBS, Setting};
use super::{Cgroup, Host, version};
use crate::error::{Context, Result};
use crate::spec::resources::Resources;

/// Checked limits, as the files of this host's cgroup version have them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Intent {
    /// Files and their values, in the order in which they are written; `unified` last.
    pub files: Vec<(String, String)>,
    /// The devices that may be used: `None` if nothing is said of devices; inside, `None` if all that are not denied by name may.
    pub devices: Option<Option<Vec<AllowedDevice>>>,
}

/// A device that may be used, or several.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AllowedDevice {
    /// A block device, not a character device.
    pub block: bool,
    /// `None` is every one.
    pub major: Option<u32>,
    /// `None` is every one.
    pub minor: Option<u32>,
    /// Some of `r`, `w` and `m`.
    pub access: String,
}

impl Intent {
    /// What `resources` ask of a container that is to be made on this host, or of the one in `current`, of which only that changes which
    /// is given.
    ///
    /// # Errors
    /// `InvalidArgument` by the field's name.
    pub fn new(host: &Host, resources: &Resources, current: Option<&Cgroup>) -> Result<Self> {
        let version = version(host.mode());
        let mut files = Vec::new();
        for knob in KNOBS {
            let home = current.and_then(|cgroup| cgroup.home(knob.controller)).map(|tree| &tree.dir);
            let settings = knobs::settings(knob, version, resources, Current(home)).context(|| format!("resources.{}", knob.field))?;
            files.extend(settings.into_iter().map(plain));
        }
        for (file, line) in knobs::unified(version, resources)? {
            files.push((file.to_owned(), line.to_owned()));
        }
        // The quota alone: the period stays.
        let period = current.and_then(|cgroup| cgroup.home("cpu")?.dir.read("cpu.max").ok());
        let period = period.as_deref().and_then(|now| now.split_whitespace().nth(1));
        for (_, value) in files.iter_mut().filter(|(file, value)| file == "cpu.max" && !value.trim().contains(' ')) {
            period.iter().for_each(|period| value.push_str(&format!(" {period}")));
        }
        let devices = (current.is_none() || !resources.devices.is_empty()).then(|| Policy::of_container(&resources.devices)).transpose()?;
        Ok(Self { files, devices: devices.map(|policy| allowed(&policy)) })
    }
}

/// systemd writes the file of BFQ as well.
fn plain(setting: Setting) -> (String, String) {
    match setting.otherwise {
        Some(other) if setting.file.starts_with("io.bfq.") => plain(*other),
        _ => (setting.file.into_owned(), setting.value),
    }
}

fn allowed(policy: &Policy) -> Option<Vec<AllowedDevice>> {
    let letters = |access: Access| {
        [(Access::READ, 'r'), (Access::WRITE, 'w'), (Access::MKNOD, 'm')]
            .into_iter()
            .filter(move |(flag, _)| access.contains(*flag))
            .map(|(_, letter)| letter)
    };
    let device = |(devices, access): (&super::devices::Devices, &Access)| AllowedDevice {
        block: devices.kind == Kind::Block,
        major: devices.major,
        minor: devices.minor,
        access: letters(*access).collect(),
    };
    (!policy.allow).then(|| policy.exceptions.iter().map(device).collect())
}
