//! The contract with containerd on top of runtime-core.
