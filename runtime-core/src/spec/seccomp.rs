//! `linux.seccomp` as Go writes it: a list of names that is absent is `null`, which oci-spec's own type refuses.

use std::path::PathBuf;

use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompBuilder, LinuxSeccompFilterFlag, LinuxSyscall, LinuxSyscallBuilder,
};
use serde::de::{Deserialize, Deserializer, Error};

#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct Profile {
    default_action: LinuxSeccompAction,
    default_errno_ret: Option<u32>,
    #[serde(default)]
    architectures: Vec<Arch>,
    /// Absent, it is not the same as empty.
    flags: Option<Vec<LinuxSeccompFilterFlag>>,
    listener_path: Option<PathBuf>,
    listener_metadata: Option<String>,
    #[serde(default)]
    syscalls: Vec<Syscall>,
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct Syscall {
    #[serde(default)]
    names: Vec<String>,
    action: LinuxSeccompAction,
    errno_ret: Option<u32>,
    #[serde(default)]
    args: Vec<LinuxSeccompArg>,
}

/// Reads the field.
pub fn profile<'de, D: Deserializer<'de>>(from: D) -> Result<Option<LinuxSeccomp>, D::Error> {
    Option::<Profile>::deserialize(from)?.map(|profile| profile.build().map_err(D::Error::custom)).transpose()
}

impl Profile {
    fn build(self) -> oci_spec::Result<LinuxSeccomp> {
        let mut builder = LinuxSeccompBuilder::default().default_action(self.default_action);
        if let Some(errno) = self.default_errno_ret {
            builder = builder.default_errno_ret(errno);
        }
        if !self.architectures.is_empty() {
            builder = builder.architectures(self.architectures);
        }
        if let Some(flags) = self.flags {
            builder = builder.flags(flags);
        }
        if let Some(path) = self.listener_path {
            builder = builder.listener_path(path);
        }
        if let Some(metadata) = self.listener_metadata {
            builder = builder.listener_metadata(metadata);
        }
        builder.syscalls(self.syscalls.into_iter().map(Syscall::build).collect::<oci_spec::Result<Vec<_>>>()?).build()
    }
}

impl Syscall {
    fn build(self) -> oci_spec::Result<LinuxSyscall> {
        let mut builder = LinuxSyscallBuilder::default().names(self.names).action(self.action);
        if let Some(errno) = self.errno_ret {
            builder = builder.errno_ret(errno);
        }
        if !self.args.is_empty() {
            builder = builder.args(self.args);
        }
        builder.build()
    }
}
