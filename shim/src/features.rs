//! What this build does, in the form that the runtime spec gives it (`features.md`, `features-linux.md`).
//!
//! containerd and kubelet believe it: what is listed works, what does not work is not listed.

use oci_spec::runtime::{
    Apparmor, Arch, Cgroup, Features, IDMap, IntelRdt, LinuxFeature, LinuxNamespaceType, LinuxSeccompAction, MountExtensions, NetDevices,
    Seccomp, Selinux,
};

const HOOKS: &[&str] = &["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];

const MOUNT_OPTIONS: &[&str] = &[
    "async",
    "atime",
    "bind",
    "defaults",
    "dev",
    "diratime",
    "dirsync",
    "exec",
    "iversion",
    "lazytime",
    "loud",
    "mand",
    "noatime",
    "nodev",
    "nodiratime",
    "noexec",
    "noiversion",
    "nolazytime",
    "nomand",
    "norelatime",
    "nostrictatime",
    "nosuid",
    "nosymfollow",
    "private",
    "ratime",
    "rbind",
    "rdev",
    "rdiratime",
    "relatime",
    "remount",
    "rexec",
    "rnoatime",
    "rnodev",
    "rnodiratime",
    "rnoexec",
    "rnorelatime",
    "rnostrictatime",
    "rnosuid",
    "rnosymfollow",
    "ro",
    "rprivate",
    "rrelatime",
    "rro",
    "rrw",
    "rshared",
    "rslave",
    "rstrictatime",
    "rsuid",
    "rsymfollow",
    "runbindable",
    "rw",
    "shared",
    "silent",
    "slave",
    "strictatime",
    "suid",
    "symfollow",
    "sync",
    "tmpcopyup",
    "unbindable",
];

const CAPABILITIES: &[&str] = &[
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

const NAMESPACES: &[LinuxNamespaceType] = &[
    LinuxNamespaceType::Cgroup,
    LinuxNamespaceType::Ipc,
    LinuxNamespaceType::Mount,
    LinuxNamespaceType::Network,
    LinuxNamespaceType::Pid,
    LinuxNamespaceType::Uts,
];

const SECCOMP_ACTIONS: &[LinuxSeccompAction] = &[
    LinuxSeccompAction::ScmpActAllow,
    LinuxSeccompAction::ScmpActErrno,
    LinuxSeccompAction::ScmpActKill,
    LinuxSeccompAction::ScmpActKillProcess,
    LinuxSeccompAction::ScmpActKillThread,
    LinuxSeccompAction::ScmpActLog,
    LinuxSeccompAction::ScmpActTrace,
    LinuxSeccompAction::ScmpActTrap,
];

const SECCOMP_OPERATORS: &[&str] =
    &["SCMP_CMP_EQ", "SCMP_CMP_GE", "SCMP_CMP_GT", "SCMP_CMP_LE", "SCMP_CMP_LT", "SCMP_CMP_MASKED_EQ", "SCMP_CMP_NE"];

const SECCOMP_ARCHS: &[Arch] = &[
    Arch::ScmpArchAarch64,
    Arch::ScmpArchArm,
    Arch::ScmpArchLoongarch64,
    Arch::ScmpArchMips,
    Arch::ScmpArchMips64,
    Arch::ScmpArchMipsel,
    Arch::ScmpArchMipsel64,
    Arch::ScmpArchPpc,
    Arch::ScmpArchPpc64,
    Arch::ScmpArchPpc64le,
    Arch::ScmpArchRiscv64,
    Arch::ScmpArchS390,
    Arch::ScmpArchS390x,
    Arch::ScmpArchX32,
    Arch::ScmpArchX86,
    Arch::ScmpArchX86_64,
];

const SECCOMP_FLAGS: &[&str] = &["SECCOMP_FILTER_FLAG_TSYNC", "SECCOMP_FILTER_FLAG_SPEC_ALLOW", "SECCOMP_FILTER_FLAG_LOG"];

/// The features of this build.
pub fn features() -> Features {
    let mut features = Features::default();
    features
        .set_oci_version_min("1.0.0".to_owned())
        .set_oci_version_max("1.3.0".to_owned())
        .set_hooks(Some(owned(HOOKS)))
        .set_mount_options(Some(owned(MOUNT_OPTIONS)))
        .set_linux(Some(linux()));
    features
}

fn linux() -> LinuxFeature {
    let mut cgroup = Cgroup::default();
    cgroup.set_v1(Some(true)).set_v2(Some(true)).set_systemd(Some(false)).set_systemd_user(Some(false)).set_rdma(Some(false));
    let mut linux = LinuxFeature::default();
    linux
        .set_namespaces(Some(NAMESPACES.to_vec()))
        .set_capabilities(Some(owned(CAPABILITIES)))
        .set_cgroup(Some(cgroup))
        .set_seccomp(Some(seccomp()))
        .set_apparmor(Some(absent(Apparmor::set_enabled)))
        .set_selinux(Some(absent(Selinux::set_enabled)))
        .set_intel_rdt(Some(absent(IntelRdt::set_enabled)))
        .set_net_devices(Some(absent(NetDevices::set_enabled)));
    let mut extensions = MountExtensions::default();
    extensions.set_idmap(Some(absent(IDMap::set_enabled)));
    linux.set_mount_extensions(Some(extensions));
    linux
}

fn seccomp() -> Seccomp {
    let mut seccomp = Seccomp::default();
    seccomp
        .set_enabled(Some(true))
        .set_actions(Some(SECCOMP_ACTIONS.to_vec()))
        .set_operators(Some(owned(SECCOMP_OPERATORS)))
        .set_archs(Some(SECCOMP_ARCHS.to_vec()))
        .set_known_flags(Some(owned(SECCOMP_FLAGS)))
        .set_supported_flags(Some(owned(SECCOMP_FLAGS)));
    seccomp
}

/// A feature that is known and not there: unlike no word about it, that is an answer.
fn absent<T: Default>(set: impl FnOnce(&mut T, Option<bool>) -> &mut T) -> T {
    let mut feature = T::default();
    set(&mut feature, Some(false));
    feature
}

fn owned(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_spec() {
        let json = serde_json::to_value(features()).unwrap();
        let linux = &json["linux"];
        assert_eq!(linux["namespaces"], serde_json::json!(["cgroup", "ipc", "mount", "network", "pid", "uts"]));
        assert_eq!(linux["seccomp"]["actions"][0], "SCMP_ACT_ALLOW");
        assert_eq!(linux["seccomp"]["archs"][15], "SCMP_ARCH_X86_64");
        assert_eq!(linux["cgroup"]["v2"], true);
        assert_eq!(linux["mountExtensions"]["idmap"]["enabled"], false);
        assert_eq!(json["ociVersionMax"], "1.3.0");
        assert_eq!(json["mountOptions"].as_array().unwrap().len(), MOUNT_OPTIONS.len());
    }

    #[test]
    fn what_is_not_done_is_not_listed() {
        let text = serde_json::to_string(&features()).unwrap();
        for absent in ["SCMP_ACT_NOTIFY", "\"user\"", "\"time\"", "ridmap", "WAIT_KILLABLE"] {
            assert!(!text.contains(absent), "{absent}");
        }
    }
}
