//! What this build does, in the form that the runtime spec gives it (`features.md`, `features-linux.md`).
//!
//! containerd and kubelet believe it: what is listed works, what does not work is not listed. So the lists are those of the code that
//! does the work.

use runtime_core::compile::{capability_names, namespace_ids, options};
use runtime_core::container::hooks::Point;
use runtime_core::seccomp;
use runtime_core::spec::{crun, tuning};
use runtime_core::{net, systemd};
use serde_json::{Value, json};

use crate::info;

/// The version of the runtime spec that is followed, as a literal.
#[macro_export]
macro_rules! oci_version {
    () => {
        "1.3.0"
    };
}

/// The libseccomp that a compiled profile decides as: none is linked, and the tests compare with this one.
const LIBSECCOMP: &str = "2.5.4";

const HOOKS: [Point; 6] =
    [Point::Prestart, Point::CreateRuntime, Point::CreateContainer, Point::StartContainer, Point::Poststart, Point::Poststop];

/// The features of this build, as the JSON of the spec's `Features`.
pub fn features() -> Value {
    json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": oci_version!(),
        "hooks": HOOKS.map(Point::name),
        "mountOptions": options::NAMES,
        "linux": linux(),
        "annotations": {
            "coracle.version": info::VERSION,
            "coracle.commit": info::REVISION,
            "io.github.seccomp.libseccomp.version": LIBSECCOMP,
            // Engines ask the features of every runtime for this name.
            "org.opencontainers.runc.checkpoint.enabled": "false",
        },
        "potentiallyUnsafeConfigAnnotations": [net::asked::PREFIX, systemd::ANNOTATIONS, crun::PREFIX],
    })
}

/// `"enabled": false` is an answer, unlike no word about it.
fn linux() -> Value {
    json!({
        "namespaces": namespace_ids(),
        "capabilities": capability_names().collect::<Vec<_>>(),
        "cgroup": { "v1": true, "v2": true, "systemd": true, "systemdUser": true, "rdma": true },
        "seccomp": {
            "enabled": true,
            "actions": seccomp::actions(),
            "operators": seccomp::operators(),
            "archs": seccomp_architectures(),
            "knownFlags": seccomp::flags(),
            "supportedFlags": seccomp::flags(),
        },
        "apparmor": { "enabled": true },
        "selinux": { "enabled": true },
        "intelRdt": { "enabled": true, "schemata": true, "monitoring": true },
        "memoryPolicy": { "modes": tuning::memory_modes(), "flags": tuning::memory_flags() },
        "mountExtensions": { "idmap": { "enabled": true } },
        "netDevices": { "enabled": true },
    })
}

/// Those that a profile may list on this machine: one of the other byte order is refused.
fn seccomp_architectures() -> Vec<&'static str> {
    let compiles = |arch: &&str| {
        let profile = json!({ "defaultAction": "SCMP_ACT_ALLOW", "architectures": [arch] });
        serde_json::from_value(profile).is_ok_and(|profile| seccomp::compile(&profile).is_ok())
    };
    seccomp::architectures().into_iter().filter(compiles).collect()
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::{Features, LinuxSeccomp};
    use runtime_core::compile::unknown_capabilities;
    use runtime_core::spec::{self, Process, Spec};

    use super::*;

    /// The strings of a list in the document.
    fn list(pointer: &str) -> Vec<String> {
        let features = features();
        let list = features.pointer(pointer).unwrap().as_array().unwrap();
        assert!(!list.is_empty(), "{pointer}");
        list.iter().map(|name| name.as_str().unwrap().to_owned()).collect()
    }

    fn container(patch: impl FnOnce(&mut Value)) -> Spec {
        let mut config = json!({
            "ociVersion": "1.0.0", "root": { "path": "r" }, "process": { "args": ["x"], "cwd": "/" }, "linux": { "namespaces": [{ "type": "mount" }] },
        });
        patch(&mut config);
        Spec::parse(config.to_string().as_bytes()).unwrap()
    }

    fn profile(patch: impl FnOnce(&mut Value)) -> LinuxSeccomp {
        let rule = json!({ "names": ["read"], "action": "SCMP_ACT_ERRNO", "args": [{ "index": 0, "value": 1, "op": "SCMP_CMP_EQ" }] });
        let mut profile = json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule], "listenerPath": "/agent" });
        patch(&mut profile);
        serde_json::from_value(profile).unwrap()
    }

    fn without_nulls(value: Value) -> Value {
        match value {
            Value::Object(map) => {
                map.into_iter().filter(|(_, value)| !value.is_null()).map(|(key, value)| (key, without_nulls(value))).collect()
            }
            other => other,
        }
    }

    #[test]
    fn the_document_is_that_of_the_spec() {
        let parsed: Features = serde_json::from_value(features()).unwrap();
        assert_eq!(without_nulls(serde_json::to_value(parsed).unwrap()), features());
    }

    #[test]
    fn both_versions_are_accepted() {
        for version in ["/ociVersionMin", "/ociVersionMax"] {
            spec::check(&container(|config| config["ociVersion"] = features().pointer(version).unwrap().clone())).unwrap();
        }
    }

    #[test]
    fn every_hook_is_found_in_a_spec() {
        let names = list("/hooks");
        let config = container(|config| {
            config["hooks"] = names.iter().map(|name| (name.clone(), json!([{ "path": format!("/{name}") }]))).collect();
        });
        spec::check(&config).unwrap();
        for (point, name) in HOOKS.into_iter().zip(&names) {
            let hooks = point.of(config.hooks.as_ref());
            assert_eq!(hooks.iter().map(|hook| hook.path().to_str().unwrap()).collect::<Vec<_>>(), [format!("/{name}")]);
        }
    }

    #[test]
    fn every_namespace_is_accepted() {
        let namespaces: Vec<_> = list("/linux/namespaces").into_iter().map(|kind| json!({ "type": kind })).collect();
        let mappings = json!([{ "containerID": 0, "hostID": 100_000, "size": 65_536 }]);
        spec::check(&container(|config| {
            config["linux"]["namespaces"] = namespaces.into();
            config["linux"]["uidMappings"] = mappings.clone();
            config["linux"]["gidMappings"] = mappings;
        }))
        .unwrap();
    }

    #[test]
    fn every_memory_policy_is_accepted() {
        for mode in list("/linux/memoryPolicy/modes") {
            let policy = json!({ "mode": mode, "nodes": "0", "flags": list("/linux/memoryPolicy/flags") });
            spec::check(&container(|config| config["linux"]["memoryPolicy"] = policy)).unwrap();
        }
    }

    #[test]
    fn every_capability_is_known() {
        let names = list("/linux/capabilities");
        let process = json!({ "args": ["x"], "cwd": "/", "capabilities": { "bounding": names, "ambient": ["CAP_NONE"] } });
        let process = Process::parse(process.to_string().as_bytes()).unwrap();
        assert_eq!(unknown_capabilities(&process), ["CAP_NONE"]);
    }

    #[test]
    fn every_mount_option_is_understood() {
        for name in list("/mountOptions") {
            assert!(options::Options::parse([name.as_str()]).unwrap().data.is_empty(), "{name}");
        }
    }

    #[test]
    fn every_word_of_seccomp_compiles() {
        let compile = |profile: LinuxSeccomp, word: &str| {
            seccomp::compile(&profile).unwrap_or_else(|error| panic!("{word}: {error}"));
        };
        for action in list("/linux/seccomp/actions") {
            compile(profile(|profile| profile["syscalls"][0]["action"] = action.as_str().into()), &action);
            if action != "SCMP_ACT_NOTIFY" {
                compile(profile(|profile| profile["defaultAction"] = action.as_str().into()), &action);
            }
        }
        for operator in list("/linux/seccomp/operators") {
            compile(profile(|profile| profile["syscalls"][0]["args"][0]["op"] = operator.as_str().into()), &operator);
        }
        for flag in list("/linux/seccomp/knownFlags") {
            compile(profile(|profile| profile["flags"] = json!([flag])), &flag);
        }
        compile(profile(|profile| profile["architectures"] = list("/linux/seccomp/archs").into()), "architectures");
    }

    #[test]
    fn architectures_are_those_of_the_byte_order() {
        let found = list("/linux/seccomp/archs");
        let little = cfg!(target_endian = "little");
        assert_eq!(found.contains(&"SCMP_ARCH_AARCH64".to_owned()), little);
        assert_eq!(found.contains(&"SCMP_ARCH_S390X".to_owned()), !little);
    }
}
