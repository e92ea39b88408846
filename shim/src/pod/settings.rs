//! What a pod is asked to be, out of what containerd sends with `CreateSandbox`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxNamespace, LinuxNamespaceType};
use proto::any;
use proto::cri::{DnsConfig, NamespaceMode, NamespaceOption, PodSandboxConfig};
use proto::prost::Message as _;
use proto::protobuf::well_known_types::any::Any;
use runtime_core::error::{Error, Result};

/// What containerd's CRI plugin sets in the network of pods by default since 2.0, where it makes them itself
/// (`internal/cri/server/podsandbox/sandbox_run_linux.go`): any user may serve ports below 1024, and ping.
const UNPRIVILEGED: [(&str, &str); 2] = [("net.ipv4.ip_unprivileged_port_start", "0"), ("net.ipv4.ping_group_range", "0 2147483647")];

/// Whose network a pod has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Network {
    /// The host's.
    #[default]
    Host,
    /// That of a namespace that somebody else has made.
    At(PathBuf),
    /// One of its own with a loopback interface and nothing else: its client has made none.
    Own,
}

/// See the module.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Settings {
    /// Name in the UTS namespace; empty: the host's.
    pub hostname: String,
    /// For `resolv.conf`.
    pub dns: DnsConfig,
    /// The cgroup of the pod, which is somebody else's to make and remove.
    pub cgroup_parent: String,
    /// Whose network it has.
    pub network: Network,
    /// Whether the pod has an IPC namespace.
    pub ipc: bool,
    /// Whether it has a user namespace.
    pub user: bool,
    /// Whether it has a pid namespace.
    pub pid: bool,
    /// Kernel parameters.
    pub sysctl: BTreeMap<String, String>,
    /// Whether its containers get `/etc/hosts`, `/etc/hostname` and `/etc/resolv.conf`.
    pub files: bool,
}

impl Settings {
    /// Those of CRI, or the defaults for a client that sends none.
    ///
    /// # Errors
    /// `InvalidArgument` for options of another kind or that do not parse, and for a network namespace that is no absolute path.
    pub fn new(options: Option<&Any>, network: &str) -> Result<Self> {
        if !network.is_empty() && !network.starts_with('/') {
            return Err(Error::invalid(format!("netns_path: {network:?} is not absolute")));
        }
        let network = if network.is_empty() { Network::Own } else { Network::At(PathBuf::from(network)) };
        match options.filter(|options| !options.type_url.is_empty()) {
            None => Ok(Self { network, ipc: true, ..Self::default() }),
            Some(options) if any::is(&options.type_url, any::POD_SANDBOX_CONFIG) => {
                let config = PodSandboxConfig::decode(options.value.as_slice())
                    .map_err(|error| Error::invalid(format!("parse options {}: {error}", any::POD_SANDBOX_CONFIG)))?;
                Self::from_cri(config, network)
            }
            Some(options) => Err(Error::invalid(format!("options: {:?}: want {}", options.type_url, any::POD_SANDBOX_CONFIG))),
        }
    }

    fn from_cri(config: PodSandboxConfig, network: Network) -> Result<Self> {
        let linux = config.linux.unwrap_or_default();
        let namespaces = linux.security_context.and_then(|context| context.namespace_options).unwrap_or_default();
        let of_host = namespaces.network() == NamespaceMode::Node;
        let network = match network {
            Network::At(_) if of_host => return Err(Error::invalid("netns_path: given, though the network is the host's")),
            _ if of_host => Network::Host,
            network => network,
        };
        let user = has_user(&namespaces);
        let mut sysctl: BTreeMap<String, String> = linux.sysctls.into_iter().collect();
        if !of_host && !user {
            for (name, value) in UNPRIVILEGED {
                sysctl.entry(name.to_owned()).or_insert_with(|| value.to_owned());
            }
        }
        let dns = config.dns_config.unwrap_or_default();
        let words = dns.servers.iter().chain(&dns.searches).chain(&dns.options);
        if let Some(word) = words.chain([&config.hostname]).find(|word| word.chars().any(|c| c.is_whitespace() || c.is_control())) {
            return Err(Error::invalid(format!("hostname/dns_config: {word:?} is not one word")));
        }
        Ok(Self {
            hostname: config.hostname,
            dns,
            cgroup_parent: linux.cgroup_parent,
            network,
            ipc: namespaces.ipc() != NamespaceMode::Node,
            user,
            pid: namespaces.pid() == NamespaceMode::Pod,
            sysctl,
            files: true,
        })
    }

    /// Whether the pod has a name of its own: as with CRI, where it has a network of its own.
    pub fn has_name(&self) -> bool {
        self.network != Network::Host
    }

    /// The namespaces that the pod holds, as a spec has them.
    pub fn namespaces(&self) -> Vec<LinuxNamespace> {
        use LinuxNamespaceType::{Ipc, Pid, Uts};
        let path = if let Network::At(path) = &self.network { Some(path.as_path()) } else { None };
        let wanted = [
            (LinuxNamespaceType::Network, self.network != Network::Host, path),
            (Ipc, self.ipc, None),
            (Uts, self.has_name(), None),
            (Pid, self.pid, None),
        ];
        let namespace = |(kind, _, path): (LinuxNamespaceType, bool, Option<&Path>)| {
            let mut namespace = LinuxNamespace::default();
            namespace.set_typ(kind).set_path(path.map(Path::to_path_buf));
            namespace
        };
        wanted.into_iter().filter(|(_, wanted, _)| *wanted).map(namespace).collect()
    }
}

fn has_user(namespaces: &NamespaceOption) -> bool {
    namespaces.userns_options.as_ref().is_some_and(|user| user.mode() == NamespaceMode::Pod)
}

#[cfg(test)]
mod tests {
    use proto::cri::{LinuxPodSandboxConfig, LinuxSandboxSecurityContext};

    use super::*;

    fn options(namespaces: NamespaceOption, change: impl FnOnce(&mut PodSandboxConfig)) -> Any {
        let security_context = Some(LinuxSandboxSecurityContext { namespace_options: Some(namespaces) });
        let linux = LinuxPodSandboxConfig { security_context, ..LinuxPodSandboxConfig::default() };
        let mut config = PodSandboxConfig { hostname: "web".into(), linux: Some(linux), ..PodSandboxConfig::default() };
        change(&mut config);
        Any { type_url: any::POD_SANDBOX_CONFIG.into(), value: config.encode_to_vec(), ..Any::default() }
    }

    fn kinds(settings: &Settings) -> Vec<LinuxNamespaceType> {
        settings.namespaces().iter().map(LinuxNamespace::typ).collect()
    }

    #[test]
    fn a_pod_holds_what_is_not_the_hosts() {
        use LinuxNamespaceType::{Ipc, Pid, Uts};
        let net = LinuxNamespaceType::Network;
        let all = Settings::new(Some(&options(NamespaceOption::default(), |_| {})), "/run/netns/x").unwrap();
        assert_eq!((kinds(&all), &all.network), (vec![net, Ipc, Uts, Pid], &Network::At("/run/netns/x".into())));
        assert_eq!(all.sysctl.len(), 2);
        let host = NamespaceMode::Node.into();
        let none = NamespaceOption { network: host, ipc: host, pid: host, ..NamespaceOption::default() };
        let none = Settings::new(Some(&options(none, |_| {})), "").unwrap();
        assert!(kinds(&none).is_empty() && none.sysctl.is_empty());
        let alone = Settings::new(None, "").unwrap();
        assert_eq!((kinds(&alone), alone.network), (vec![net, Ipc, Uts], Network::Own));
    }

    #[test]
    fn the_kubelets_sysctl_wins() {
        let set = |config: &mut PodSandboxConfig| {
            config.linux.get_or_insert_default().sysctls = [("net.ipv4.ip_unprivileged_port_start".to_owned(), "99".to_owned())].into();
        };
        let settings = Settings::new(Some(&options(NamespaceOption::default(), set)), "/n").unwrap();
        assert_eq!(settings.sysctl["net.ipv4.ip_unprivileged_port_start"], "99");
    }

    #[test]
    fn what_is_wrong_is_named() {
        let refuse = |any: &Any, network: &str| Settings::new(Some(any), network).unwrap_err().to_string();
        let good = options(NamespaceOption::default(), |_| {});
        assert_eq!(refuse(&good, "n"), "netns_path: \"n\" is not absolute");
        let host = NamespaceOption { network: NamespaceMode::Node.into(), ..NamespaceOption::default() };
        assert_eq!(refuse(&options(host, |_| {}), "/n"), "netns_path: given, though the network is the host's");
        let other = Any { type_url: "x.Y".into(), ..Any::default() };
        assert_eq!(refuse(&other, "/n"), "options: \"x.Y\": want runtime.v1.PodSandboxConfig");
        let broken = Any { type_url: any::POD_SANDBOX_CONFIG.into(), value: vec![0xff], ..Any::default() };
        assert!(refuse(&broken, "/n").starts_with("parse options runtime.v1.PodSandboxConfig: "));
        let hostile = options(NamespaceOption::default(), |config| {
            config.dns_config = Some(DnsConfig { servers: vec!["1\noptions x".into()], ..DnsConfig::default() })
        });
        assert!(refuse(&hostile, "/n").contains("is not one word"));
    }
}
