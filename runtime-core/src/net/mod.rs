//! Networks: what a container's annotations ask for, made with rtnetlink(7) and nf_tables; and devices of the host's that become a container's.

pub mod asked;
mod attachment;
mod conntrack;
mod devices;
mod firewall;
pub mod ledger;
mod links;
mod made;
mod names;
mod netlink;
pub mod node;
mod shaping;
pub mod watch;

pub use attachment::{Attachment, Container, Traffic, leases, prune, reconcile, release};
pub use devices::move_into;
pub use links::INSIDE;
pub use names::{hosts, write_resolv_conf};

#[cfg(test)]
mod tests;
