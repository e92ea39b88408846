//! What is known of each container between two commands: a directory below the root, mode 0700, whose files are replaced as a whole.

use std::collections::HashMap;
use std::fs::{self, DirBuilder, File};
use std::io::ErrorKind as IoKind;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use runtime_core::cgroup::{Cgroup, Host};
use runtime_core::container::own_file;
use runtime_core::container::record::{Record, write_atomically};
use runtime_core::error::{Context as _, Error, ErrorKind, Result};
use runtime_core::plan::{Launch, Step};
use runtime_core::spec::{Spec, check};
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};
use serde_json::Value;

const STATE: &str = "state.json";
const CONFIG: &str = "config.json";
const LAUNCH: &str = "launch.json";
/// As runc has it.
const ID_MAX: usize = 1024;

/// The directory of all containers, and whether it was named.
pub struct Store(PathBuf, bool);

/// The directory of one.
pub struct Entry {
    path: PathBuf,
    /// Held by a command that changes the container, as long as it runs.
    lock: Option<File>,
}

/// How far the commands have brought a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stage {
    /// `create` is at work, or was killed.
    Creating,
    /// The first process waits.
    Created,
    /// It was let go.
    Started,
}

/// The state of a container, as commands find it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct State {
    /// Who it is and what it has on the host; its daemon is the creator.
    pub record: Record,
    /// Absolute.
    pub bundle: PathBuf,
    /// Absolute.
    pub rootfs: PathBuf,
    /// RFC 3339.
    pub created: String,
    /// Who created it.
    pub owner: u32,
    /// The spec's.
    pub oci_version: String,
    /// The spec's.
    pub annotations: HashMap<String, String>,
    /// How far it is.
    pub stage: Stage,
    /// The number, in the waiting first process, of the other end of its report.
    pub parents_end: i32,
    /// What that is: the inode of the socket.
    #[serde(default)]
    pub report: u64,
    /// For those that join.
    pub no_new_keyring: bool,
    /// Annotations of crun's count.
    #[serde(default)]
    pub crun_annotations: bool,
}

/// In the words of the runtime spec, and runc's `paused`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// `create` is at work.
    Creating,
    /// The first process waits.
    Created,
    /// The first process runs.
    Running,
    /// All stand still.
    Paused,
    /// The first process has ended.
    Stopped,
}

impl Status {
    /// The word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        }
    }
}

/// The words of runc's that callers look for.
pub fn missing() -> Error {
    Error::new(ErrorKind::NotFound, "container does not exist")
}

fn taken() -> Error {
    Error::new(ErrorKind::AlreadyExists, "container with given ID already exists")
}

/// A failure of order in time.
pub fn refused(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::FailedPrecondition, message)
}

impl Store {
    /// At `root`, or where the user's is.
    pub fn new(root: Option<&Path>) -> Result<Self> {
        let named = root.is_some();
        let root = match (root, std::env::var_os("XDG_RUNTIME_DIR")) {
            (Some(root), _) => root.to_owned(),
            (None, Some(directory)) if !rustix::process::geteuid().is_root() => Path::new(&directory).join("coracle"),
            (None, _) => PathBuf::from("/run/coracle"),
        };
        std::path::absolute(&root).map(|absolute| Self(absolute, named)).context(|| format!("--root {root:?}"))
    }

    fn path(&self, id: &str) -> Result<PathBuf> {
        let ordinary = |c: char| c.is_ascii_alphanumeric() || "_+-.".contains(c);
        if id.is_empty() || id.len() > ID_MAX || matches!(id, "." | "..") || !id.chars().all(ordinary) {
            return Err(Error::invalid("invalid container ID format"));
        }
        Ok(self.0.join(id))
    }

    /// A new container's, locked.
    ///
    /// # Errors
    /// The id is taken or none.
    pub fn make(&self, id: &str) -> Result<Entry> {
        let path = self.path(id)?;
        let mut builder = DirBuilder::new();
        builder.mode(0o700);
        builder.recursive(true).create(&self.0).context(|| format!("make {:?}", self.0))?;
        match builder.recursive(false).create(&path) {
            Err(error) if error.kind() == IoKind::AlreadyExists => {
                return Err(taken());
            }
            result => result.context(|| format!("make {path:?}"))?,
        }
        match Entry::lock(path) {
            // Another `create` took it for one that was given up, before it was locked.
            Ok(entry) if entry.path.join(STATE).exists() => Err(taken()),
            Err(error) if error.kind() == ErrorKind::NotFound => Err(taken()),
            result => result,
        }
    }

    /// A container whose `create` was killed, locked, and its state if it came so far.
    ///
    /// # Errors
    /// Its directory cannot be read.
    pub fn abandoned(&self, id: &str) -> Result<Option<(Entry, Option<State>)>> {
        let entry = match self.look(id) {
            // Whoever still ends what there is of it holds the lock.
            Ok((_, state)) if state.is_abandoned() => match self.lock(id) {
                Err(error) if error.kind() == ErrorKind::NotFound => None,
                result => Some(result?),
            },
            Err(error) if error.kind() == ErrorKind::NotFound => Entry::lock_if_free(self.path(id)?)?,
            _ => None,
        };
        let Some(entry) = entry else { return Ok(None) };
        match entry.state() {
            Ok(state) if state.is_abandoned() => Ok(Some((entry, Some(state)))),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Some((entry, None))),
            _ => Ok(None),
        }
    }

    /// A container's, to look at.
    ///
    /// # Errors
    /// There is none.
    pub fn look(&self, id: &str) -> Result<(Entry, State)> {
        let entry = Entry { path: self.path(id)?, lock: None };
        let state = entry.state()?;
        Ok((entry, state))
    }

    /// A container's, for a change: commands that change it wait for each other.
    ///
    /// # Errors
    /// There is none.
    pub fn change(&self, id: &str) -> Result<(Entry, State)> {
        let entry = self.lock(id)?;
        let state = entry.state()?;
        Ok((entry, state))
    }

    /// The same for one that may have no state, since its `create` was killed.
    ///
    /// # Errors
    /// There is no directory.
    pub fn lock(&self, id: &str) -> Result<Entry> {
        Entry::lock(self.path(id)?)
    }

    /// The ids of all.
    ///
    /// # Errors
    /// The directory cannot be read; where none was named a missing one is empty.
    pub fn ids(&self) -> Result<Vec<String>> {
        let entries = match fs::read_dir(&self.0) {
            Err(error) if error.kind() == IoKind::NotFound && !self.1 => return Ok(Vec::new()),
            result => result.context(|| format!("--root: read {:?}", self.0))?,
        };
        let mut ids: Vec<String> = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
        ids.sort();
        Ok(ids)
    }
}

impl Entry {
    fn lock(path: PathBuf) -> Result<Self> {
        loop {
            if let Some(entry) = Self::try_lock(&path, FlockOperation::LockExclusive)? {
                return Ok(entry);
            }
        }
    }

    /// `None` while another command holds it.
    fn lock_if_free(path: PathBuf) -> Result<Option<Self>> {
        match Self::try_lock(&path, FlockOperation::NonBlockingLockExclusive) {
            Err(error) if error.kind() == ErrorKind::NotFound || error.errno() == Some(libc::EAGAIN) => Ok(None),
            result => result,
        }
    }

    /// `None` if it was deleted meanwhile, and made again.
    fn try_lock(path: &Path, operation: FlockOperation) -> Result<Option<Self>> {
        let file = match File::open(path) {
            Err(error) if matches!(error.kind(), IoKind::NotFound | IoKind::NotADirectory) => return Err(missing()),
            result => result.context(|| format!("open {path:?}"))?,
        };
        rustix::io::retry_on_intr(|| rustix::fs::flock(&file, operation)).context(|| format!("lock {path:?}"))?;
        let (ours, there) = (file.metadata().context(|| format!("stat {path:?}"))?, fs::metadata(path));
        let same = there.is_ok_and(|there| (there.dev(), there.ino()) == (ours.dev(), ours.ino()));
        Ok(same.then(|| Self { path: path.to_owned(), lock: Some(file) }))
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The lock of one that is held for a change.
    ///
    /// # Errors
    /// It is only looked at.
    pub fn lock_fd(&self) -> Result<BorrowedFd<'_>> {
        self.lock.as_ref().map(AsFd::as_fd).ok_or_else(|| Error::new(ErrorKind::Internal, "the container is not locked"))
    }

    fn read(&self, name: &str) -> Result<Vec<u8>> {
        let path = self.path.join(name);
        match own_file::read(&path) {
            Err(error) if matches!(error.kind(), IoKind::NotFound | IoKind::NotADirectory) => Err(missing()),
            result => result.context(|| format!("read {path:?}")),
        }
    }

    fn state(&self) -> Result<State> {
        let bytes = self.read(STATE)?;
        serde_json::from_slice(&bytes).map_err(|error| Error::invalid(format!("{:?}: {error}", self.path.join(STATE))))
    }

    /// The container's cgroup and groups of resctrl, as far as a state that is no more whole still tells them.
    pub fn remains(&self) -> Option<Record> {
        let mut state: Value = serde_json::from_slice(&self.read(STATE).ok()?).ok()?;
        serde_json::from_value(state.get_mut("record")?.take()).ok()
    }

    /// Replaces the state.
    ///
    /// # Errors
    /// The errno of the write.
    pub fn write(&self, state: &State) -> Result<()> {
        self.put(STATE, &json(state)?)
    }

    fn put(&self, name: &str, bytes: &[u8]) -> Result<()> {
        write_atomically(&self.path.join(name), bytes)
    }

    /// Keeps the configuration as it is: the bundle's may be changed later.
    ///
    /// # Errors
    /// The errno of the write.
    pub fn write_config(&self, bytes: &[u8]) -> Result<()> {
        self.put(CONFIG, bytes)
    }

    /// The configuration that the container was made with, whose annotations of crun's may count.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn spec(&self, crun_annotations: bool) -> Result<Spec> {
        let mut spec = Spec::parse(&self.read(CONFIG)?).context(|| format!("{:?}", self.path.join(CONFIG)))?;
        check(&spec)?;
        if crun_annotations {
            spec.take_extensions()?;
        }
        Ok(spec)
    }

    /// Keeps what the first process does, for what its failures mean: `start` has to say it.
    ///
    /// # Errors
    /// The errno of the write.
    pub fn write_launch(&self, launch: &Launch) -> Result<()> {
        let mut launch = launch.clone();
        // No failure tells of these.
        launch.program.environment.clear();
        for step in &mut launch.plan.steps {
            if let Step::Seccomp { program, .. } = step {
                program.clear();
            }
        }
        self.put(LAUNCH, &json(&launch)?)
    }

    /// That again.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn launch(&self) -> Result<Launch> {
        let bytes = self.read(LAUNCH)?;
        serde_json::from_slice(&bytes).map_err(|error| Error::invalid(format!("{:?}: {error}", self.path.join(LAUNCH))))
    }

    /// Removes the directory: the container is no more.
    ///
    /// # Errors
    /// The errno of the removal.
    pub fn remove(&self) -> Result<()> {
        fs::remove_dir_all(&self.path).context(|| format!("remove {:?}", self.path))
    }
}

fn json(value: &impl Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(|error| Error::new(ErrorKind::Internal, format!("state: {error}")))
}

impl State {
    /// Its process id, 0 without one.
    pub fn pid(&self) -> i32 {
        self.record.init.map_or(0, |init| init.pid)
    }

    /// Its cgroup, as far as it exists.
    ///
    /// # Errors
    /// The hierarchies cannot be read.
    pub fn cgroup(&self, host: &Host) -> Result<Cgroup> {
        self.record.open_cgroup(host)
    }

    /// Whether the first process still holds its report: the program that it executes does not get it.
    fn waits(&self) -> bool {
        let held = fs::read_link(format!("/proc/{}/fd/{}", self.pid(), self.parents_end));
        match held {
            // Builds that did not write the inode down.
            Ok(link) if self.report == 0 => link.to_string_lossy().starts_with("socket:["),
            Ok(link) => link == Path::new(&format!("socket:[{}]", self.report)),
            Err(error) => error.kind() != IoKind::NotFound,
        }
    }

    /// Whether its `create` was killed.
    fn is_abandoned(&self) -> bool {
        self.stage == Stage::Creating && !self.record.daemon.is_some_and(|creator| creator.is_alive())
    }

    /// What it does now.
    ///
    /// # Errors
    /// The cgroup cannot be read.
    pub fn status(&self, host: &Host) -> Result<Status> {
        let alive = self.record.init.is_some_and(|init| init.is_alive());
        Ok(match self.stage {
            Stage::Creating if !self.is_abandoned() => Status::Creating,
            Stage::Created | Stage::Started if alive && self.cgroup(host)?.is_frozen()? => Status::Paused,
            Stage::Created if alive && self.waits() => Status::Created,
            // Its `start` was killed before it could write that down.
            Stage::Created if alive => Status::Running,
            Stage::Started if alive => Status::Running,
            _ => Status::Stopped,
        })
    }
}
