//! `containerd.linux.runc` of containerd 1.x's `runtime/linux/runctypes/runc.proto`, which no crate carries.

/// What the Go client of containerd 1.x sends with a task whose runtime is not runc by name, such as for `ctr run --no-pivot`.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct CreateOptions {
    /// Move the root mount and chroot(2) instead of pivot_root(2).
    #[prost(bool, tag = "1")]
    pub no_pivot_root: bool,
    /// Leave the container in the shim's session keyring.
    #[prost(bool, tag = "8")]
    pub no_new_keyring: bool,
    /// The existing cgroup for the shim.
    #[prost(string, tag = "9")]
    pub shim_cgroup: String,
    /// The owner of pipes and terminals.
    #[prost(uint32, tag = "10")]
    pub io_uid: u32,
    /// The group of pipes and terminals.
    #[prost(uint32, tag = "11")]
    pub io_gid: u32,
    /// Where CRIU works.
    #[prost(string, tag = "12")]
    pub criu_work_path: String,
    /// Where CRIU's images go.
    #[prost(string, tag = "13")]
    pub criu_image_path: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message;

    #[test]
    fn the_wire_form_is_that_of_containerd() {
        let options = CreateOptions {
            no_pivot_root: true,
            no_new_keyring: true,
            shim_cgroup: "/s".into(),
            io_uid: 5,
            io_gid: 6,
            criu_work_path: "/w".into(),
            criu_image_path: "/i".into(),
        };
        let wire = options.encode_to_vec();
        assert_eq!(wire, b"\x08\x01\x40\x01\x4a\x02/s\x50\x05\x58\x06\x62\x02/w\x6a\x02/i");
        assert_eq!(CreateOptions::decode(wire.as_slice()), Ok(options));
    }
}
