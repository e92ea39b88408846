//! One daemon of the node's looks after the firewall: who flushes all tables has not asked the containers.

use std::fs::{self, File, OpenOptions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::ledger::Ledger;
use super::netlink::refused;
use super::{firewall, made};
use crate::container::record::ProcessId;
use crate::error::{Context, Error, ErrorKind, Result};

/// Who has the turn to watch.
pub enum Turn {
    /// This process, as long as this lives.
    Ours(Watcher),
    /// Another process, behind its pidfd; `None` while that cannot be said yet.
    Theirs(Option<OwnedFd>),
    /// Nobody: there are no networks.
    Over,
}

/// What a look has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// All is there.
    Whole,
    /// Something was missing, and is there again.
    Mended,
    /// There are no networks any more.
    Nothing,
}

/// See the module.
#[derive(Debug)]
pub struct Watcher {
    state: PathBuf,
    lock: File,
    generation: Option<u32>,
}

fn file(state: &Path) -> PathBuf {
    state.join("watcher")
}

impl Turn {
    /// Takes the turn if nobody has it.
    ///
    /// # Errors
    /// The errno and the file.
    pub fn take(state: &Path) -> Result<Self> {
        let path = file(state);
        let what = || format!("{path:?}");
        let mut options = OpenOptions::new();
        let lock = match options.read(true).write(true).create(true).truncate(false).mode(0o600).custom_flags(libc::O_NOFOLLOW).open(&path)
        {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Self::Over),
            result => result.context(what)?,
        };
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {
                let own = ProcessId::of(std::process::id().cast_signed());
                let bytes = serde_json::to_vec(&own).map_err(|error| Error::new(ErrorKind::Internal, format!("{path:?}: {error}")))?;
                lock.set_len(0).and_then(|()| lock.write_all_at(&bytes, 0)).context(what)?;
                Ok(Self::Ours(Watcher { state: state.to_owned(), lock, generation: None }))
            }
            Err(Errno::AGAIN) => {
                // It may be about to write this down.
                let holder = fs::read(&path).ok().and_then(|bytes| serde_json::from_slice::<Option<ProcessId>>(&bytes).ok().flatten());
                holder.map_or(Ok(None), |holder| holder.open()).map(Self::Theirs)
            }
            Err(errno) => Err(Error::kernel(format!("lock {path:?}"), errno)),
        }
    }
}

impl Watcher {
    /// Makes the firewall anew if something of it is missing. Takes a fraction of a millisecond where nothing has changed.
    ///
    /// # Errors
    /// The step and the errno.
    pub fn look(&mut self) -> Result<Found> {
        let status = self.lock.metadata().context(|| format!("{:?}", file(&self.state)))?;
        if !fs::metadata(file(&self.state)).is_ok_and(|there| (there.dev(), there.ino()) == (status.dev(), status.ino())) {
            return Ok(Found::Nothing);
        }
        let generation = || firewall::generation().map_err(refused("ask for the generation of nf_tables".to_owned()));
        let now = generation()?;
        if now.is_some() && now == self.generation {
            return Ok(Found::Whole);
        }
        let ledger = Ledger::open(&self.state)?;
        let mended = made::mend(&self.state, ledger.leases())?;
        // What is changed after this is seen the next time.
        self.generation = if mended { None } else { now };
        Ok(if mended { Found::Mended } else { Found::Whole })
    }
}
