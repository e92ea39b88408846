//! The type URLs of an `Any` as containerd writes them.
//!
//! containerd's `typeurl` writes bare message names (`containerd.runc.v1.Options`), `Any::pack` of the protobuf libraries puts a
//! host in front (`type.googleapis.com/…`), and Go types without a protobuf definition travel as JSON under a path
//! (`types.containerd.io/opencontainers/runtime-spec/1/Process`).

/// The type URL of the features that `-info` reports; the value is JSON.
pub const FEATURES: &str = "types.containerd.io/opencontainers/runtime-spec/1/features/Features";

/// `containerd.runc.v1.Options`: what runc's shim is configured with.
pub const RUNC_OPTIONS: &str = "containerd.runc.v1.Options";

/// `containerd.runc.v1.CheckpointOptions`.
pub const RUNC_CHECKPOINT_OPTIONS: &str = "containerd.runc.v1.CheckpointOptions";

/// `containerd.runc.v1.ProcessDetails`: the `info` of one process in the answer to `Pids`.
pub const RUNC_PROCESS_DETAILS: &str = "containerd.runc.v1.ProcessDetails";

/// `containerd.linux.runc.CreateOptions`: what the client of containerd 1.x sends with a task of any other runtime.
pub const LINUX_CREATE_OPTIONS: &str = "containerd.linux.runc.CreateOptions";

/// `runtime.v1.PodSandboxConfig` of CRI: what a pod is made from.
pub const POD_SANDBOX_CONFIG: &str = "runtime.v1.PodSandboxConfig";

/// `containerd.services.streaming.v1.StreamInit`: which stream is meant.
pub const STREAM_INIT: &str = "containerd.services.streaming.v1.StreamInit";

/// `containerd.types.transfer.Data`: some bytes of a stream.
pub const STREAM_DATA: &str = "containerd.types.transfer.Data";

/// `containerd.types.transfer.WindowUpdate`: how much more may be sent.
pub const WINDOW_UPDATE: &str = "containerd.types.transfer.WindowUpdate";

/// `runtimeoptions.v1.Options`: what any other runtime is configured with.
pub const RUNTIME_OPTIONS: &str = "runtimeoptions.v1.Options";

const RUNTIME_SPEC: &str = "opencontainers/runtime-spec/";

/// The protobuf message name of a type URL: what follows the last slash.
pub fn message_name(type_url: &str) -> &str {
    type_url.rsplit('/').next().unwrap_or_default()
}

/// Whether `type_url` names the protobuf message `name`, with a host in front or not.
pub fn is(type_url: &str, name: &str) -> bool {
    !is_json(type_url) && message_name(type_url) == name
}

/// Whether the value under `type_url` is JSON: a type of the OCI runtime spec, which has no protobuf definition.
pub fn is_json(type_url: &str) -> bool {
    runtime_spec_type(type_url).is_some()
}

/// The type of the OCI runtime spec that `type_url` names: `Process`, `Spec`, `LinuxResources`, `features/Features`.
pub fn runtime_spec_type(type_url: &str) -> Option<&str> {
    let (host, rest) = type_url.split_once(RUNTIME_SPEC)?;
    let known_host = host.is_empty() || host.ends_with('/');
    let (major, name) = rest.split_once('/')?;
    (known_host && !name.is_empty() && major.bytes().all(|b| b.is_ascii_digit())).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_named_with_or_without_a_host() {
        for url in ["containerd.runc.v1.Options", "type.googleapis.com/containerd.runc.v1.Options", "/containerd.runc.v1.Options"] {
            assert!(is(url, RUNC_OPTIONS), "{url}");
            assert!(!is_json(url), "{url}");
        }
        for url in ["", "Options", "xcontainerd.runc.v1.Options", "containerd.runc.v1.Options/", "runtimeoptions.v1.Options"] {
            assert!(!is(url, RUNC_OPTIONS), "{url}");
        }
    }

    #[test]
    fn types_of_the_runtime_spec_are_json() {
        let cases = [
            ("types.containerd.io/opencontainers/runtime-spec/1/Process", Some("Process")),
            ("opencontainers/runtime-spec/1/LinuxResources", Some("LinuxResources")),
            (FEATURES, Some("features/Features")),
            ("types.containerd.io/opencontainers/runtime-spec/x/Process", None),
            ("notopencontainers/runtime-spec/1/Process", None),
            ("types.containerd.io/opencontainers/runtime-spec/1/", None),
            ("containerd.runc.v1.Options", None),
        ];
        for (url, name) in cases {
            assert_eq!(runtime_spec_type(url), name, "{url}");
        }
    }
}
