//! Who has which address, name and port: a file of one record for each container, and a lock on it. It is read for each container that comes or
//! goes, hence its form: the length of a record as four bytes, and the record as postcard has it.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::asked::Port;
use super::links;
use crate::container::record::{ProcessId, write_atomically};
use crate::error::{Context, Error, ErrorKind, Result};

/// What a container has of a network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Lease {
    /// The container: its containerd namespace and its id.
    pub key: String,
    /// Its bundle.
    pub bundle: PathBuf,
    /// The network's name.
    pub network: String,
    /// The network's bridge; `None` of a macvlan network.
    pub bridge: Option<String>,
    /// The host's end of its link, or what would be its name.
    pub device: String,
    /// On the network, the container's own first.
    pub names: Vec<String>,
    /// With the lengths of their subnets' prefixes.
    pub addresses: Vec<IpNet>,
    /// Of the host.
    pub ports: Vec<Port>,
    /// It has a device for the limit of what it sends.
    pub shaped: bool,
    /// Whoever made it and will give it back.
    pub holder: ProcessId,
}

impl Lease {
    /// Whether nobody will give it back any more: its holder has gone, and so has its link, or for a macvlan, which the host does not see, its bundle.
    pub fn is_dead(&self) -> bool {
        let gone = || match self.bridge {
            Some(_) => links::index(&self.device) == Err(Errno::NODEV),
            None => !self.bundle.exists(),
        };
        !self.holder.is_alive() && gone()
    }
}

/// The file, which nobody else changes while this lives.
#[derive(Debug)]
pub struct Ledger {
    path: PathBuf,
    leases: Vec<Lease>,
    /// An append was cut short.
    torn: bool,
    _lock: File,
}

impl Ledger {
    /// Takes the lock and reads the file; the directory is made if it is missing.
    ///
    /// # Errors
    /// The errno and the file.
    pub fn open(state: &Path) -> Result<Self> {
        let what = || format!("network state {state:?}");
        let made = fs::DirBuilder::new().recursive(true).mode(0o711).create(state);
        made.context(what)?;
        let mut options = OpenOptions::new();
        let lock = options.read(true).write(true).create(true).truncate(false).mode(0o600).custom_flags(libc::O_NOFOLLOW);
        let lock = lock.open(state.join("lock")).context(what)?;
        rustix::io::retry_on_intr(|| flock(&lock, FlockOperation::LockExclusive)).context(what)?;
        let path = state.join("leases");
        let bytes = match fs::read(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            result => result.context(|| format!("{path:?}"))?,
        };
        let (mut leases, mut rest) = (Vec::new(), bytes.as_slice());
        while let Some((record, next)) = split(rest) {
            let lease = postcard::from_bytes(record);
            let unreadable =
                |error| Error::new(ErrorKind::Internal, format!("{path:?}: {error}; remove it and run: coracle network prune"));
            leases.push(lease.map_err(unreadable)?);
            rest = next;
        }
        let torn = !rest.is_empty();
        Ok(Self { path, leases, torn, _lock: lock })
    }

    /// All of them.
    pub fn leases(&self) -> &[Lease] {
        &self.leases
    }

    /// A container's.
    pub fn of(&self, key: &str) -> Option<&Lease> {
        self.leases.iter().find(|lease| lease.key == key)
    }

    /// Adds one.
    ///
    /// # Errors
    /// The errno of the write; then it is not there.
    pub fn add(&mut self, lease: Lease) -> Result<()> {
        let what = || format!("write {:?}", self.path);
        let record = record(&lease)?;
        if self.torn {
            self.leases.push(lease);
            return self.rewrite();
        }
        let mut options = OpenOptions::new();
        let file = options.append(true).create(true).mode(0o600).custom_flags(libc::O_NOFOLLOW).open(&self.path);
        file.and_then(|mut file| file.write_all(&record)).context(what)?;
        self.leases.push(lease);
        Ok(())
    }

    /// Removes a container's.
    ///
    /// # Errors
    /// The errno of the write.
    pub fn remove(&mut self, key: &str) -> Result<()> {
        self.leases.retain(|lease| lease.key != key);
        self.rewrite()
    }

    fn rewrite(&mut self) -> Result<()> {
        let mut bytes = Vec::new();
        for lease in &self.leases {
            bytes.extend(record(lease)?);
        }
        write_atomically(&self.path, &bytes)?;
        self.torn = false;
        Ok(())
    }

    /// The lowest address of a subnet that nobody has.
    ///
    /// # Errors
    /// [`ErrorKind::FailedPrecondition`] if there is none.
    pub fn free(&self, subnet: &IpNet, gateway: Option<IpAddr>) -> Result<IpAddr> {
        let mut taken: Vec<IpAddr> = self.leases.iter().flat_map(|lease| &lease.addresses).map(IpNet::addr).collect();
        taken.retain(|address| subnet.contains(address));
        taken.extend(gateway);
        taken.extend([subnet.network(), subnet.broadcast()]);
        taken.sort_unstable();
        // In an ordered list of what is taken, the first gap.
        let free = subnet.hosts().find(|address| taken.binary_search(address).is_err());
        free.ok_or_else(|| {
            Error::new(ErrorKind::FailedPrecondition, format!("subnet {subnet} is full, {} addresses are taken", taken.len()))
        })
    }
}

const LENGTH: usize = 4;

/// The first record and what comes after it; `None` at the end, and where an append was cut short.
fn split(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<LENGTH>()?;
    rest.split_at_checked(u32::from_ne_bytes(*length) as usize)
}

fn record(lease: &Lease) -> Result<Vec<u8>> {
    let wrong = |error| Error::invalid(format!("lease: {error}"));
    let mut bytes = postcard::to_extend(lease, vec![0; LENGTH]).map_err(wrong)?;
    let length = u32::try_from(bytes.len() - LENGTH).map_err(|_| Error::invalid("lease: too long"))?;
    bytes[..LENGTH].copy_from_slice(&length.to_ne_bytes());
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    pub fn lease(key: &str, address: &str) -> Lease {
        Lease {
            key: key.to_owned(),
            bundle: PathBuf::from("/b"),
            network: "n".to_owned(),
            bridge: Some("n".to_owned()),
            device: "none-such".to_owned(),
            names: vec![key.to_owned()],
            addresses: vec![address.parse().unwrap()],
            ports: Vec::new(),
            shaped: false,
            holder: ProcessId { pid: i32::MAX, started: 0 },
        }
    }

    #[test]
    fn what_was_added_is_there_until_it_is_removed() {
        let tmp = tempfile::tempdir().unwrap();
        let state = tmp.path().join("a/b");
        Ledger::open(&state).unwrap().add(lease("x", "10.0.0.2/24")).unwrap();
        Ledger::open(&state).unwrap().add(lease("y", "10.0.0.3/24")).unwrap();
        let mut ledger = Ledger::open(&state).unwrap();
        assert_eq!(ledger.leases().iter().map(|lease| lease.key.as_str()).collect::<Vec<_>>(), ["x", "y"]);
        ledger.remove("x").unwrap();
        drop(ledger);
        let ledger = Ledger::open(&state).unwrap();
        assert!(ledger.of("x").is_none());
        assert_eq!(ledger.of("y"), Some(&lease("y", "10.0.0.3/24")));
    }

    #[test]
    fn a_record_that_was_cut_short_does_not_count() {
        let tmp = tempfile::tempdir().unwrap();
        Ledger::open(tmp.path()).unwrap().add(lease("x", "10.0.0.2/24")).unwrap();
        let path = tmp.path().join("leases");
        let whole = fs::read(&path).unwrap();
        fs::write(&path, [&whole[..], &whole[..9]].concat()).unwrap();
        let mut ledger = Ledger::open(tmp.path()).unwrap();
        assert_eq!(ledger.leases().len(), 1);
        ledger.add(lease("y", "10.0.0.3/24")).unwrap();
        drop(ledger);
        assert_eq!(Ledger::open(tmp.path()).unwrap().leases().len(), 2);
    }

    #[test]
    fn the_lowest_free_address_is_given_and_a_full_subnet_is_told() {
        let tmp = tempfile::tempdir().unwrap();
        let mut ledger = Ledger::open(tmp.path()).unwrap();
        let subnet: IpNet = "10.0.0.0/29".parse().unwrap();
        let gateway = Some("10.0.0.1".parse().unwrap());
        for want in 2..=6 {
            let address = ledger.free(&subnet, gateway).unwrap();
            assert_eq!(address.to_string(), format!("10.0.0.{want}"));
            ledger.add(lease(&want.to_string(), &format!("{address}/29"))).unwrap();
        }
        let error = ledger.free(&subnet, gateway).unwrap_err();
        assert!(error.to_string().starts_with("subnet 10.0.0.0/29 is full"), "{error}");
        ledger.remove("4").unwrap();
        assert_eq!(ledger.free(&subnet, gateway).unwrap().to_string(), "10.0.0.4");
        let six: IpNet = "fd00::/64".parse().unwrap();
        assert_eq!(ledger.free(&six, Some("fd00::1".parse().unwrap())).unwrap().to_string(), "fd00::2");
    }

    #[test]
    fn a_lease_of_a_dead_holder_without_a_link_is_dead() {
        let dead = lease("x", "10.0.0.2/24");
        assert!(dead.is_dead());
        assert!(!Lease { holder: ProcessId::of(std::process::id() as i32).unwrap(), ..dead.clone() }.is_dead());
        assert!(!Lease { device: "lo".to_owned(), ..dead.clone() }.is_dead());
        assert!(!Lease { bridge: None, bundle: PathBuf::from("/"), ..dead }.is_dead());
    }
}
