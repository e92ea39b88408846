//! Forks and execs as the kernel tells of them: the process connector (linux/cn_proc.h, drivers/connector/cn_proc.c). Nothing is traced, so
//! nothing is slowed down or changed.

use std::collections::HashSet;
use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use rustix::net::netlink::{CONNECTOR, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recv, send, socket_with};

use crate::{Context, Result, command};

/// `CN_IDX_PROC` and `CN_VAL_PROC`.
const PROC: u32 = 1;
/// `PROC_CN_MCAST_LISTEN`.
const LISTEN: u32 = 1;
/// `PROC_CN_MCAST_IGNORE`.
const IGNORE: u32 = 2;
const EVENT_FORK: u32 = 1;
const EVENT_EXEC: u32 = 2;
/// `struct nlmsghdr` and `struct cn_msg` come before the event.
const HEADERS: usize = 16 + 20;
/// After what was watched is over, events in flight still arrive.
const LAG: Duration = Duration::from_millis(50);

/// What a process and its descendants did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Programs executed.
    pub execs: u32,
    /// Processes made.
    pub processes: u32,
    /// Threads made.
    pub threads: u32,
}

/// A subscription to the events of all processes.
struct Connector(OwnedFd);

impl Connector {
    fn open() -> Result<Connector> {
        let what = || "process connector".to_owned();
        let socket = socket_with(AddressFamily::NETLINK, SocketType::DGRAM, SocketFlags::CLOEXEC, Some(CONNECTOR)).context(what)?;
        bind(&socket, &SocketAddrNetlink::new(0, PROC)).context(what)?;
        let connector = Connector(socket);
        connector.say(LISTEN).context(what)?;
        Ok(connector)
    }

    fn say(&self, operation: u32) -> std::result::Result<(), rustix::io::Errno> {
        // nlmsghdr: length, NLMSG_DONE, sequence, port; cn_msg: two ids, sequence, acknowledgement, length and flags; the operation.
        let words: [u32; 10] = [40, 3, 0, 0, PROC, PROC, 0, 0, 4, operation];
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        send(&self.0, &bytes, SendFlags::empty()).map(drop)
    }

    /// Reads until `over` says so and nothing more comes.
    fn follow(&self, mut family: HashSet<u32>, over: &Receiver<()>) -> Result<Counts> {
        let mut counts = Counts::default();
        loop {
            if command::readable(&self.0, LAG)? {
                let mut bytes = [0u8; 512];
                let (length, _) = recv(&self.0, &mut bytes, RecvFlags::empty()).context(|| "process connector".to_owned())?;
                note(&bytes[..length], &mut family, &mut counts);
            } else if over.try_recv().is_ok() {
                return Ok(counts);
            }
        }
    }
}

impl Drop for Connector {
    fn drop(&mut self) {
        // Older kernels count listeners and not sockets.
        let _ = self.say(IGNORE);
    }
}

/// Runs `work` and counts what the processes in `roots` and their descendants did meanwhile. Needs CAP_NET_ADMIN in the host's namespaces
/// and CONFIG_PROC_EVENTS.
pub fn count(roots: &[u32], work: impl FnOnce() -> Result<()>) -> Result<Counts> {
    let connector = Connector::open()?;
    let family: HashSet<u32> = roots.iter().copied().collect();
    let (done, over) = channel();
    std::thread::scope(|scope| {
        // The kernel drops events that nobody reads.
        let reader = scope.spawn(move || connector.follow(family, &over));
        let worked = work();
        let _ = done.send(());
        let counted = reader.join().ok().context(|| "the reader of the connector panicked".to_owned())?;
        worked.and(counted)
    })
}

/// `struct proc_event`: what, cpu, time, then for a fork the parent's and the child's pid and tgid, for an exec the process's.
fn note(bytes: &[u8], family: &mut HashSet<u32>, counts: &mut Counts) {
    let word = |at: usize| {
        let bytes = bytes.get(HEADERS + at..HEADERS + at + 4)?;
        Some(u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    };
    match (word(0), word(20), word(24), word(28)) {
        (Some(EVENT_FORK), Some(parent), Some(child), Some(group)) if family.contains(&parent) => {
            if child == group {
                family.insert(child);
                counts.processes += 1;
            } else {
                counts.threads += 1;
            }
        }
        (Some(EVENT_EXEC), Some(group), _, _) if family.contains(&group) => counts.execs += 1,
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(words: &[u32]) -> Vec<u8> {
        let mut bytes = vec![0; HEADERS];
        bytes.extend(words.iter().flat_map(|word| word.to_ne_bytes()));
        bytes
    }

    #[test]
    fn a_family_is_followed() {
        let (mut family, mut counts) = (HashSet::from([10]), Counts::default());
        let fork = |parent, child, group| event(&[EVENT_FORK, 0, 0, 0, parent, parent, child, group]);
        for bytes in [fork(10, 11, 11), fork(11, 12, 12), fork(10, 13, 10), fork(99, 14, 14)] {
            note(&bytes, &mut family, &mut counts);
        }
        for pid in [12, 14] {
            note(&event(&[EVENT_EXEC, 0, 0, 0, pid, pid]), &mut family, &mut counts);
        }
        note(b"short", &mut family, &mut counts);
        assert_eq!(counts, Counts { execs: 1, processes: 2, threads: 1 });
    }

    #[test]
    fn real_events_arrive() {
        let counts = count(&[std::process::id()], || {
            let status = std::process::Command::new("/bin/sh").args(["-c", "/bin/true; /bin/true; exit 0"]).status()?;
            crate::ensure!(status.success(), "{status}");
            Ok(())
        });
        let counts = counts.unwrap();
        assert!(counts.execs >= 3 && counts.processes >= 3, "{counts:?}");
    }
}
