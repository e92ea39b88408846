//! `runtime.v1` of Kubernetes' CRI, as far as a pod is made from it: containerd's CRI plugin sends a `PodSandboxConfig` along with
//! `CreateSandbox`. Fields that nothing here needs are left out and passed over.

use std::collections::HashMap;

/// What the kubelet wants of a pod.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PodSandboxConfig {
    /// Name in the UTS namespace.
    #[prost(string, tag = "2")]
    pub hostname: String,
    /// The content of `resolv.conf`; without it that is the host's.
    #[prost(message, optional, tag = "4")]
    pub dns_config: Option<DnsConfig>,
    /// The Linux part.
    #[prost(message, optional, tag = "8")]
    pub linux: Option<LinuxPodSandboxConfig>,
}

/// resolv.conf(5).
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct DnsConfig {
    /// `nameserver`.
    #[prost(string, repeated, tag = "1")]
    pub servers: Vec<String>,
    /// `search`.
    #[prost(string, repeated, tag = "2")]
    pub searches: Vec<String>,
    /// `options`.
    #[prost(string, repeated, tag = "3")]
    pub options: Vec<String>,
}

/// What is particular to Linux.
#[derive(Clone, PartialEq, prost::Message)]
pub struct LinuxPodSandboxConfig {
    /// The cgroup of the pod, which the kubelet makes and removes.
    #[prost(string, tag = "1")]
    pub cgroup_parent: String,
    /// The rights.
    #[prost(message, optional, tag = "2")]
    pub security_context: Option<LinuxSandboxSecurityContext>,
    /// Kernel parameters of the pod's namespaces.
    #[prost(map = "string, string", tag = "3")]
    pub sysctls: HashMap<String, String>,
}

/// The rights of a pod.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct LinuxSandboxSecurityContext {
    /// Whose namespaces it has.
    #[prost(message, optional, tag = "1")]
    pub namespace_options: Option<NamespaceOption>,
}

/// Whose namespaces a pod has.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct NamespaceOption {
    /// Of the network, and of the host's name with it.
    #[prost(enumeration = "NamespaceMode", tag = "1")]
    pub network: i32,
    /// Of processes.
    #[prost(enumeration = "NamespaceMode", tag = "2")]
    pub pid: i32,
    /// Of System V IPC and POSIX message queues.
    #[prost(enumeration = "NamespaceMode", tag = "3")]
    pub ipc: i32,
    /// Of users.
    #[prost(message, optional, tag = "5")]
    pub userns_options: Option<UserNamespace>,
}

/// The user namespace of a pod; its mappings are in the specs of the containers, too.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct UserNamespace {
    /// [`NamespaceMode::Pod`] or [`NamespaceMode::Node`].
    #[prost(enumeration = "NamespaceMode", tag = "1")]
    pub mode: i32,
}

/// Whose namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum NamespaceMode {
    /// The pod's.
    Pod = 0,
    /// Each container its own.
    Container = 1,
    /// The host's.
    Node = 2,
    /// That of another container.
    Target = 3,
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message;

    #[test]
    fn what_is_not_known_is_passed_over() {
        // metadata, hostname, log_directory, linux with cgroup_parent and the namespaces host, pod and container.
        let wire = b"\x0a\x03\x0a\x01p\x12\x03web\x1a\x02/l\x42\x0c\x0a\x02/k\x12\x06\x0a\x04\x08\x02\x18\x01";
        let config = PodSandboxConfig::decode(wire.as_slice()).unwrap();
        let linux = config.linux.unwrap();
        let namespaces = linux.security_context.unwrap().namespace_options.unwrap();
        assert_eq!((config.hostname.as_str(), linux.cgroup_parent.as_str()), ("web", "/k"));
        assert_eq!(
            (namespaces.network(), namespaces.pid(), namespaces.ipc()),
            (NamespaceMode::Node, NamespaceMode::Pod, NamespaceMode::Container)
        );
    }
}
