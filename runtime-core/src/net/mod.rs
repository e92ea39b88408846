//! Network devices of a container's namespace, by rtnetlink(7).

mod devices;
mod netlink;

pub use devices::move_into;
