//! What a spec may not ask of this build: refused by the field's name, before the first side effect.
//!
//! A field that matters for security fails closed. One that only tunes is warned about by [`Spec::warnings`].

use std::collections::HashSet;

use oci_spec::runtime::{LinuxDevice, LinuxDeviceType, LinuxNamespace, LinuxNamespaceType};

use super::labels::mount_label;
use super::rdt::IntelRdt;
use super::tuning::{CpuAffinity, IoPriority, MemoryPolicy, Personality, time_offsets};
use super::{Process, Spec};
use crate::error::{Error, ErrorKind, Result};

/// No process may be this user: in the kernel's interfaces it means "no change".
const NO_ID: u32 = u32::MAX;
/// The largest numbers of a device (`MINORBITS` in include/linux/kdev_t.h: 12 and 20 bits).
const MAJOR_MAX: i64 = (1 << 12) - 1;
const MINOR_MAX: i64 = (1 << 20) - 1;

/// Checks everything that does not depend on the host.
///
/// # Errors
/// [`ErrorKind::InvalidArgument`] or [`ErrorKind::Unimplemented`], naming the field.
pub fn check(spec: &Spec) -> Result<()> {
    version(&spec.oci_version)?;
    if spec.root.is_none() {
        return Err(Error::invalid("root: there is no root filesystem"));
    }
    if let Some(process) = &spec.process {
        check_process(process)?;
    }
    namespaces(spec)?;
    user_namespace(spec)?;
    spec.linux.devices.iter().try_for_each(device)?;
    spec.linux.personality.as_ref().map(Personality::value).transpose()?;
    spec.linux.memory_policy.as_ref().map(MemoryPolicy::value).transpose()?;
    spec.linux.devices_to_move()?;
    mount_label(spec.linux.mount_label.as_deref())?;
    spec.linux.intel_rdt.as_ref().map(IntelRdt::check).transpose()?;
    for mount in &spec.mounts {
        let name = mount.destination().display();
        plain(&format!("mounts[{name:?}].destination"), &mount.destination().to_string_lossy())?;
    }
    for path in spec.linux.masked_paths.iter().chain(&spec.linux.readonly_paths) {
        plain("linux.maskedPaths/readonlyPaths", path)?;
    }
    Ok(())
}

/// Numbers of a node that the kernel would take for others: an owner that means "no change", and a device whose number it would cut off
/// (`new_decode_dev` in include/linux/kdev_t.h), which is another device.
fn device(device: &LinuxDevice) -> Result<()> {
    let wrong = |what: String| Error::invalid(format!("linux.devices: {:?}: {what}", device.path().display().to_string()));
    for (field, id) in [("uid", device.uid()), ("gid", device.gid())] {
        if id == Some(NO_ID) {
            return Err(wrong(format!("{field} {NO_ID} is not an id")));
        }
    }
    if device.typ() != LinuxDeviceType::P {
        for (field, number, most) in [("major", device.major(), MAJOR_MAX), ("minor", device.minor(), MINOR_MAX)] {
            if !(0..=most).contains(&number) {
                return Err(wrong(format!("{field} {number} is no device number: it is not between 0 and {most}")));
            }
        }
    }
    Ok(())
}

fn version(version: &str) -> Result<()> {
    let major = version.split('.').next().unwrap_or_default();
    if major == "1" { Ok(()) } else { Err(Error::invalid(format!("ociVersion: {version:?} is not a version 1"))) }
}

/// The part that an exec request has, too.
pub fn check_process(process: &Process) -> Result<()> {
    if process.args.first().is_none_or(String::is_empty) {
        return Err(Error::invalid("process.args: there is no program to run"));
    }
    if !process.cwd.starts_with('/') {
        return Err(Error::invalid(format!("process.cwd: {:?} is not absolute", process.cwd)));
    }
    let user = &process.user;
    for (field, id) in
        [("uid", &user.uid), ("gid", &user.gid)].into_iter().chain(user.additional_gids.iter().map(|g| ("additionalGids", g)))
    {
        if *id == NO_ID {
            return Err(Error::invalid(format!("process.user.{field}: {id} is not an id")));
        }
    }
    plain("process.cwd", &process.cwd)?;
    for text in &process.args {
        plain("process.args", text)?;
    }
    for text in &process.env {
        plain("process.env", text)?;
        if !text.contains('=') || text.starts_with('=') {
            return Err(Error::invalid(format!("process.env: {text:?} is not KEY=value")));
        }
    }
    process.labels()?;
    if let Some(scheduler) = &process.scheduler {
        scheduler.policy().and_then(|_| scheduler.flags())?;
    }
    process.io_priority.as_ref().map(IoPriority::value).transpose()?;
    process.exec_cpu_affinity.as_ref().map(CpuAffinity::masks).transpose()?;
    for (index, limit) in process.rlimits.iter().enumerate() {
        if process.rlimits[..index].iter().any(|earlier| earlier.typ() == limit.typ()) {
            return Err(Error::invalid(format!("process.rlimits: {} is given twice", limit.typ())));
        }
        if limit.soft() > limit.hard() {
            return Err(Error::invalid(format!("process.rlimits: {}: soft {} is above hard {}", limit.typ(), limit.soft(), limit.hard())));
        }
    }
    Ok(())
}

/// A kind of namespace as config.json writes it; the type's own text is the name in `/proc/<pid>/ns`.
pub fn namespace_name(kind: LinuxNamespaceType) -> &'static str {
    match kind {
        LinuxNamespaceType::Mount => "mount",
        LinuxNamespaceType::Cgroup => "cgroup",
        LinuxNamespaceType::Uts => "uts",
        LinuxNamespaceType::Ipc => "ipc",
        LinuxNamespaceType::User => "user",
        LinuxNamespaceType::Pid => "pid",
        LinuxNamespaceType::Network => "network",
        LinuxNamespaceType::Time => "time",
    }
}

fn namespaces(spec: &Spec) -> Result<()> {
    let mut seen = HashSet::new();
    for namespace in &spec.linux.namespaces {
        let (typ, kind) = (namespace.typ(), namespace_name(namespace.typ()));
        if !seen.insert(typ) {
            return Err(Error::invalid(format!("linux.namespaces: {kind} is given twice")));
        }
        if let Some(path) = namespace.path()
            && !path.is_absolute()
        {
            return Err(Error::invalid(format!("linux.namespaces: {kind}: path {path:?} is not absolute")));
        }
    }
    if !seen.contains(&LinuxNamespaceType::Mount) {
        return Err(Error::invalid("linux.namespaces: there is no mount namespace, and containers without one are not supported"));
    }
    let new_time = |it: &LinuxNamespace| it.typ() == LinuxNamespaceType::Time && it.path().is_none();
    if !spec.linux.time_offsets.is_empty() && !spec.linux.namespaces.iter().any(new_time) {
        return Err(Error::invalid("linux.timeOffsets: cannot be set without a new time namespace"));
    }
    time_offsets(&spec.linux.time_offsets)?;
    let uts = seen.contains(&LinuxNamespaceType::Uts);
    let named = !spec.hostname.is_empty() || !spec.domainname.is_empty();
    if named && !uts {
        return Err(Error::invalid("hostname/domainname: cannot be set without a UTS namespace"));
    }
    Ok(())
}

/// A user namespace and its maps belong together. One that is given by its path alone has them already.
fn user_namespace(spec: &Spec) -> Result<()> {
    let linux = &spec.linux;
    let given = |namespace: &LinuxNamespace| namespace.path().as_ref().is_some_and(|path| !path.as_os_str().is_empty());
    let Some(user) = linux.namespaces.iter().find(|namespace| namespace.typ() == LinuxNamespaceType::User) else {
        return match linux.uid_mappings.is_empty() && linux.gid_mappings.is_empty() {
            true => Ok(()),
            false => Err(Error::invalid("linux.uidMappings/gidMappings: there is no user namespace in linux.namespaces")),
        };
    };
    if linux.uid_mappings.is_empty() != linux.gid_mappings.is_empty() {
        return Err(Error::invalid("linux.uidMappings/gidMappings: one without the other"));
    }
    if linux.uid_mappings.is_empty() && !given(user) {
        return Err(Error::invalid("linux.uidMappings: a new user namespace needs them"));
    }
    if linux.namespaces.iter().any(|namespace| namespace.typ() == LinuxNamespaceType::Mount && given(namespace)) {
        return Err(unimplemented("linux.namespaces: mount", "a given mount namespace with a user namespace"));
    }
    Ok(())
}

fn unimplemented(field: &str, what: &str) -> Error {
    Error::new(ErrorKind::Unimplemented, format!("{field}: this version does not support {what}"))
}

fn plain(field: &str, text: &str) -> Result<()> {
    if text.contains('\0') { Err(Error::invalid(format!("{field}: {text:?} holds a NUL"))) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(json: &str) -> String {
        let base =
            r#"{"ociVersion":"1.0.2","root":{"path":"r"},"process":{"args":["x"],"cwd":"/"},"linux":{"namespaces":[{"type":"mount"}]}}"#;
        let mut spec: serde_json::Value = serde_json::from_str(base).unwrap();
        let patch: serde_json::Value = serde_json::from_str(json).unwrap();
        merge(&mut spec, patch);
        let spec = Spec::parse(spec.to_string().as_bytes()).unwrap();
        check(&spec).unwrap_err().to_string()
    }

    fn merge(into: &mut serde_json::Value, from: serde_json::Value) {
        match (into, from) {
            (serde_json::Value::Object(into), serde_json::Value::Object(from)) => {
                for (key, value) in from {
                    merge(into.entry(key).or_insert(serde_json::Value::Null), value);
                }
            }
            (into, from) => *into = from,
        }
    }

    #[test]
    fn each_refusal_names_its_field() {
        for (json, field) in [
            (r#"{"ociVersion":"2.0"}"#, "ociVersion"),
            (r#"{"root":null}"#, "root"),
            (r#"{"process":{"args":[]}}"#, "process.args"),
            (r#"{"process":{"cwd":"relative"}}"#, "process.cwd"),
            (r#"{"process":{"user":{"uid":4294967295}}}"#, "process.user.uid"),
            (r#"{"process":{"user":{"additionalGids":[1,4294967295]}}}"#, "process.user.additionalGids"),
            (r#"{"process":{"env":["HOME"]}}"#, "process.env"),
            (r#"{"process":{"env":["A=b\u0000"]}}"#, "process.env"),
            (r#"{"process":{"apparmorProfile":"x\n"}}"#, "process.apparmorProfile"),
            (r#"{"hostname":"x"}"#, "hostname"),
            (r#"{"linux":{"timeOffsets":{"boottime":{"secs":1}}}}"#, "linux.timeOffsets: cannot"),
            (r#"{"process":{"scheduler":{"policy":"SCHED_X"}}}"#, "process.scheduler.policy"),
            (r#"{"process":{"ioPriority":{"class":"x"}}}"#, "process.ioPriority.class"),
            (r#"{"process":{"execCPUAffinity":{"final":"x"}}}"#, "process.execCPUAffinity.final"),
            (r#"{"linux":{"personality":{"domain":"x"}}}"#, "linux.personality.domain"),
            (r#"{"linux":{"memoryPolicy":{"mode":"x"}}}"#, "linux.memoryPolicy.mode"),
            (r#"{"linux":{"namespaces":[{"type":"mount"},{"type":"user"}]}}"#, "linux.uidMappings: a new"),
            (r#"{"linux":{"uidMappings":[{"containerID":0,"hostID":1,"size":1}]}}"#, "linux.uidMappings/gidMappings: there is no"),
            (
                r#"{"linux":{"namespaces":[{"type":"mount"},{"type":"user"}],"gidMappings":[{"containerID":0,"hostID":1,"size":1}]}}"#,
                "linux.uidMappings/gidMappings: one",
            ),
            (r#"{"linux":{"namespaces":[{"type":"mount"},{"type":"mount"}]}}"#, "linux.namespaces: mount"),
            (r#"{"linux":{"namespaces":[{"type":"pid"}]}}"#, "linux.namespaces"),
            (r#"{"linux":{"intelRdt":{"closID":"a/b"}}}"#, "linux.intelRdt.closID"),
            (r#"{"linux":{"maskedPaths":["/proc\u0000"]}}"#, "linux.maskedPaths"),
        ] {
            assert!(refusal(json).starts_with(field), "{json}: {}", refusal(json));
        }
    }
}
