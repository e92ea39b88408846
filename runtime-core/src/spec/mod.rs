//! `config.json`, as far as this runtime honours it.
//!
//! Leaf types come from oci-spec where it accepts what runc accepts. The outer ones are our own, because oci-spec refuses whole files for
//! an unknown capability, a device rule with an empty type or a huge page limit above `i64::MAX`, all of which runc runs.

pub mod crun;
pub mod keys;
pub mod labels;
pub mod net_devices;
mod nulls;
pub mod rdt;
mod refuse;
pub mod resources;
mod seccomp;
pub mod tuning;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use oci_spec::runtime::{Hooks, LinuxDevice, LinuxIdMapping, LinuxNamespace, LinuxSeccomp, Mount, PosixRlimit, Root};
use serde::Deserialize;

use crate::error::{Context, Error, ErrorKind, Result};
use crun::Extensions;
use keys::AnyCase;
use labels::{has_apparmor, has_selinux};
use net_devices::NetDevice;
use rdt::IntelRdt;
pub use refuse::{check, namespace_name};
pub use resources::Resources;
use tuning::{CpuAffinity, IoPriority, MemoryPolicy, Personality, Scheduler, TimeOffset};

/// A container's configuration (OCI runtime-spec 1.3, config.md and config-linux.md).
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Spec {
    /// Semantic version; major version 1 is understood.
    #[serde(default)]
    pub oci_version: String,
    /// The root filesystem.
    pub root: Option<Root>,
    /// What runs.
    pub process: Option<Process>,
    /// Name in the UTS namespace.
    #[serde(default)]
    pub hostname: String,
    /// NIS domain in the UTS namespace.
    #[serde(default)]
    pub domainname: String,
    /// In order.
    #[serde(default)]
    pub mounts: Vec<Mount>,
    /// Programs to run along the life of the container.
    #[serde(default)]
    pub hooks: Option<Hooks>,
    /// Free text for tools; none changes what the runtime does.
    #[serde(default)]
    pub annotations: HashMap<String, String>,
    /// The Linux part.
    #[serde(default)]
    pub linux: Linux,
    /// What annotations ask for, where they count.
    #[serde(skip)]
    pub extensions: Extensions,
}

/// A process of a container: its first one, or one that joins (config.md, "Process").
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Process {
    /// Whether it gets a pseudoterminal.
    #[serde(default)]
    pub terminal: bool,
    /// Initial size of the terminal.
    pub console_size: Option<ConsoleSize>,
    /// Who it runs as.
    #[serde(default)]
    pub user: User,
    /// The program and its arguments.
    #[serde(default)]
    pub args: Vec<String>,
    /// `KEY=value`.
    #[serde(default)]
    pub env: Vec<String>,
    /// Absolute, in the container.
    #[serde(default)]
    pub cwd: String,
    /// Five sets of names.
    pub capabilities: Option<Capabilities>,
    /// setrlimit(2).
    #[serde(default)]
    pub rlimits: Vec<PosixRlimit>,
    /// Whether execve may never grant rights.
    #[serde(default)]
    pub no_new_privileges: bool,
    /// proc(5), -1000 to 1000.
    pub oom_score_adj: Option<i32>,
    /// AppArmor profile.
    #[serde(default)]
    pub apparmor_profile: Option<String>,
    /// SELinux label.
    #[serde(default)]
    pub selinux_label: Option<String>,
    /// sched_setattr(2).
    pub scheduler: Option<Scheduler>,
    /// ioprio_set(2).
    #[serde(rename = "ioPriority")]
    pub io_priority: Option<IoPriority>,
    /// CPUs of a joining process.
    #[serde(rename = "execCPUAffinity")]
    pub exec_cpu_affinity: Option<CpuAffinity>,
}

/// Columns and rows.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct ConsoleSize {
    /// Columns.
    #[serde(default)]
    pub width: u64,
    /// Rows.
    #[serde(default)]
    pub height: u64,
}

/// Numbers only: nothing of the image is read to find them.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct User {
    /// User id.
    #[serde(default)]
    pub uid: u32,
    /// Group id.
    #[serde(default)]
    pub gid: u32,
    /// umask(2), 0022 if absent.
    pub umask: Option<u32>,
    /// Exactly these supplementary groups.
    #[serde(default)]
    pub additional_gids: Vec<u32>,
    /// In place of those, the runtime's own stay.
    #[serde(skip)]
    pub keep_groups: bool,
}

/// Capability names; an unknown one lessens rights and is skipped with a warning.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Capabilities {
    /// Upper bound of what execve may give.
    #[serde(default)]
    pub bounding: Vec<String>,
    /// In force.
    #[serde(default)]
    pub effective: Vec<String>,
    /// Kept across execve of files with inheritable bits.
    #[serde(default)]
    pub inheritable: Vec<String>,
    /// May be put in force.
    #[serde(default)]
    pub permitted: Vec<String>,
    /// Kept across execve by users other than root.
    #[serde(default)]
    pub ambient: Vec<String>,
}

/// The Linux part (config-linux.md).
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Linux {
    /// New and joined namespaces.
    #[serde(default, deserialize_with = "namespaces")]
    pub namespaces: Vec<LinuxNamespace>,
    /// User namespace mappings.
    #[serde(default)]
    pub uid_mappings: Vec<LinuxIdMapping>,
    /// User namespace mappings.
    #[serde(default)]
    pub gid_mappings: Vec<LinuxIdMapping>,
    /// Clock offsets of a time namespace.
    #[serde(default)]
    pub time_offsets: BTreeMap<String, TimeOffset>,
    /// Device nodes to make, beside the default ones.
    #[serde(default)]
    pub devices: Vec<LinuxDevice>,
    /// Host network devices to move into the container.
    #[serde(default)]
    pub net_devices: BTreeMap<String, NetDevice>,
    /// Where the container's cgroup is.
    #[serde(default)]
    pub cgroups_path: Option<String>,
    /// Limits.
    #[serde(default)]
    pub resources: Resources,
    /// Resource director.
    pub intel_rdt: Option<IntelRdt>,
    /// set_mempolicy(2).
    pub memory_policy: Option<MemoryPolicy>,
    /// personality(2).
    pub personality: Option<Personality>,
    /// Propagation of the container's root.
    #[serde(default)]
    pub rootfs_propagation: Option<String>,
    /// System call filter.
    #[serde(default, deserialize_with = "seccomp::profile")]
    pub seccomp: Option<LinuxSeccomp>,
    /// Kernel parameters of the container's namespaces.
    #[serde(default)]
    pub sysctl: BTreeMap<String, String>,
    /// Paths that the container may not read.
    #[serde(default)]
    pub masked_paths: Vec<String>,
    /// Paths that the container may not write.
    #[serde(default)]
    pub readonly_paths: Vec<String>,
    /// SELinux context of mounts.
    #[serde(default)]
    pub mount_label: Option<String>,
}

/// An empty label is none, as for Go.
fn is_absent(label: &Option<String>) -> bool {
    label.as_deref().unwrap_or_default().is_empty()
}

/// An empty path is none, as for Go.
fn namespaces<'de, D: serde::Deserializer<'de>>(from: D) -> std::result::Result<Vec<LinuxNamespace>, D::Error> {
    let mut namespaces: Vec<LinuxNamespace> = Vec::deserialize(from)?;
    for namespace in &mut namespaces {
        let path = namespace.path().clone().filter(|path| !path.as_os_str().is_empty());
        namespace.set_path(path);
    }
    Ok(namespaces)
}

/// Only what does not parse is read a second time, for the name of the field.
fn parse<'a, T: Deserialize<'a>>(bytes: &'a [u8], told: fn(&serde_json::Error) -> String) -> Result<T> {
    keys::from_slice(bytes).map_err(|error| {
        let mut reader = serde_json::Deserializer::from_slice(bytes);
        match serde_path_to_error::deserialize::<_, T>(AnyCase::new(&mut reader)) {
            Err(placed) if placed.path().iter().next().is_some() => Error::invalid(format!("{}: {}", placed.path(), told(placed.inner()))),
            _ => Error::invalid(told(&error)),
        }
    })
}

/// What is wrong, without the line and the column of a text that no user has written.
fn without_place(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    text.strip_suffix(&place).unwrap_or(&text).to_owned()
}

impl Spec {
    /// Reads and checks `<bundle>/config.json`, which an engine has made: what this build cannot honour is refused here, before any side effect.
    /// The reader of the error knows the field at most, and neither the bundle nor the text.
    ///
    /// # Errors
    /// The file cannot be read; it is no JSON of a spec; a field is refused, by name.
    pub fn load(bundle: &Path) -> Result<Self> {
        let path = bundle.join("config.json");
        // A bundle without one is the caller's mistake.
        let bytes =
            std::fs::read(&path).context(|| format!("read {path:?}")).map_err(|error| error.with_kind(ErrorKind::InvalidArgument))?;
        let spec = parse(&bytes, without_place).context(|| "spec")?;
        check(&spec)?;
        Ok(spec)
    }

    /// Parses a configuration that somebody has written.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`](crate::ErrorKind::InvalidArgument) with the place in the text.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        parse(bytes, ToString::to_string)
    }

    /// The directory of the root filesystem, absolute.
    pub fn root_path(&self, bundle: &Path) -> PathBuf {
        bundle.join(self.root.as_ref().map_or_else(|| Path::new("rootfs"), |root| root.path().as_path()))
    }

    /// Whether the root is mounted read-only.
    pub fn root_is_read_only(&self) -> bool {
        self.root.as_ref().and_then(Root::readonly).unwrap_or(false)
    }
}

impl Process {
    /// Parses a process that somebody has written.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`](crate::ErrorKind::InvalidArgument) with the place in the text, or the name of a refused field.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        Self::checked(parse(bytes, ToString::to_string))
    }

    /// Parses the process of an exec request, which an engine has made.
    ///
    /// # Errors
    /// As [`Process::parse`], without the place.
    pub fn parse_request(bytes: &[u8]) -> Result<Self> {
        Self::checked(parse(bytes, without_place))
    }

    /// Whether its confinement is left to the container, as a process is that was not copied from the container's own.
    pub fn is_unconfined(&self) -> bool {
        let unlabelled = (is_absent(&self.apparmor_profile) && has_apparmor()) || (is_absent(&self.selinux_label) && has_selinux());
        self.capabilities.is_none() || unlabelled
    }

    /// Takes the capabilities and labels that it does not name from the container's first process, as runc and crun do for an exec.
    pub fn confine_as(&mut self, first: &Self) {
        let fill = |label: &mut Option<String>, first: &Option<String>| {
            if is_absent(label) {
                label.clone_from(first);
            }
        };
        if self.capabilities.is_none() {
            self.capabilities.clone_from(&first.capabilities);
        }
        fill(&mut self.apparmor_profile, &first.apparmor_profile);
        fill(&mut self.selinux_label, &first.selinux_label);
    }

    fn checked(parsed: Result<Self>) -> Result<Self> {
        let process = parsed.context(|| "process")?;
        refuse::check_process(&process)?;
        Ok(process)
    }
}
