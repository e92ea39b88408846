//! A container's control group: one directory per hierarchy of the host, kept open.
//!
//! Version 1, version 2 and the hybrid of both stay in here; callers ask for what they want (limits, freeze, kill, statistics) and not for the
//! version. Each limit is one row of the `knobs` table; `v1` and `v2` hold what is not a limit but different.
//!
//! ```text
//! Host::detect ─► CgroupPath::new ─► Cgroup::create ─► procs_fds / dir_fd for the first process ─► update, stats, freeze, kill
//!                      │ recorded on disk                                                               └─► remove
//!                      └──────────────────► Cgroup::open (another process, after a crash) ─► kill_and_wait, remove
//! ```

mod convert;
mod device_filter;
mod devices;
mod dir;
mod first;
mod freeze;
mod host;
mod intent;
mod join;
mod kill;
mod knobs;
mod mounts;
mod pace;
mod path;
mod remove;
pub mod stats;
mod tree;
mod v1;
mod v2;
mod walk;
mod watch;

use std::collections::{BTreeSet, HashMap};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::fs::OFlags;
use rustix::io::Errno;

pub use devices::default_rules;
pub use freeze::FreezeStep;
pub use host::{Host, Mode, version1_mount_points};
pub use intent::{AllowedDevice, Intent};
pub use join::Entrance;
pub use mounts::{MountedHierarchy, Mounts};
pub use pace::{AtOnce, Pace};
pub use path::CgroupPath;
pub use stats::Stats;
pub use watch::{OOM_COUNTED, OomWatch, Trigger, Watch};

use crate::error::{Context, Error, ErrorKind, Result};
use crate::kernel::in_user_namespace;
use crate::spec::resources::Resources;
use devices::Policy;
use dir::Dir;
use first::First;
use host::{Hierarchy, Version};
use knobs::{Current, KNOBS, Knob, Setting};
use pace::at_once;
use tree::{Made, Tree};

/// Having one means: in each hierarchy where the directory exists it was reached without following a link or leaving the filesystem, and it is
/// held by descriptor. Dropping it removes nothing.
#[derive(Debug)]
pub struct Cgroup {
    mode: Mode,
    trees: Vec<Tree>,
    missing: Vec<Missing>,
    first: Option<First>,
}

/// A hierarchy where the cgroup has no directory any more.
#[derive(Debug)]
struct Missing {
    hierarchy: Hierarchy,
    /// Where the directory was.
    place: String,
}

impl Cgroup {
    /// Makes the cgroup and puts `resources` and the device rules in force, before anybody is inside.
    ///
    /// An existing directory is used if it has no processes and is not frozen. Parents that had to be made stay when the cgroup is removed, as
    /// with runc: others may be using them.
    ///
    /// # Errors
    /// `InvalidArgument` for a value no kernel takes, `FailedPrecondition` for a cgroup that is in use; after any error nothing that was made is
    /// left behind.
    pub fn create(host: &Host, path: &CgroupPath, resources: &Resources) -> Result<Self> {
        let (cgroup, undo) = Self::create_undoably(host, path, resources)?;
        undo.keep();
        Ok(cgroup)
    }

    /// [`Cgroup::create`], and how to undo it.
    ///
    /// # Errors
    /// As [`Cgroup::create`].
    pub fn create_undoably(host: &Host, path: &CgroupPath, resources: &Resources) -> Result<(Self, Undo)> {
        knobs::check(version(host.mode()), resources)?;
        let mut made = Made::default();
        let cgroup = Self::make(host, path, resources, &mut made)?;
        if let Some(used) = cgroup.trees.iter().filter(|tree| !made.is_new(tree)).find_map(|tree| tree.refuse_if_used().err()) {
            return Err(used);
        }
        cgroup.put_in_force(resources)?;
        Ok((cgroup, Undo { host: host.clone(), path: path.clone(), made }))
    }

    /// Makes what is missing of a cgroup that systemd has made for a process which stays inside until the container's own first one is, and
    /// puts `resources` and the device rules in force. That process does not count: [`Cgroup::settle`] afterwards.
    ///
    /// # Errors
    /// As [`Cgroup::create`], but for one that is in use.
    pub fn adopt(host: &Host, path: &CgroupPath, resources: &Resources) -> Result<Self> {
        knobs::check(version(host.mode()), resources)?;
        let mut made = Made::default();
        let cgroup = Self::make(host, path, resources, &mut made)?;
        cgroup.put_in_force(resources)?;
        cgroup.make_room(resources)?;
        made.keep();
        Ok(cgroup)
    }

    /// The process that [`Cgroup::adopt`] found inside has ended: from here on the limit of processes is the container's own.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn settle(&self, resources: &Resources) -> Result<()> {
        let pids = Resources { pids: resources.pids.clone(), ..Resources::default() };
        let unified = resources.unified.get_key_value("pids.max").map(|(file, value)| (file.clone(), value.clone()));
        self.apply(&Resources { unified: unified.into_iter().collect(), ..pids })
    }

    /// One more process for the time being.
    fn make_room(&self, resources: &Resources) -> Result<()> {
        let asked = resources.pids.limit.is_some() || resources.unified.contains_key("pids.max");
        let Some(tree) = self.home("pids").filter(|_| asked) else { return Ok(()) };
        let limit = tree.dir.read("pids.max").context(|| format!("read {}/pids.max", tree.dir.path()))?;
        let Ok(limit) = limit.trim().parse::<u64>() else { return Ok(()) };
        tree.dir.put("pids.max", &limit.saturating_add(1).to_string())
    }

    fn put_in_force(&self, resources: &Resources) -> Result<()> {
        let policy = Policy::of_container(&resources.devices)?;
        self.apply(resources)?;
        self.apply_devices(&policy)?;
        self.trees.iter().try_for_each(v1::inherit_cpuset)
    }

    fn make(host: &Host, path: &CgroupPath, resources: &Resources, made: &mut Made) -> Result<Self> {
        let wanted = Self::wanted_of_v2(host, resources);
        let mut trees = Vec::with_capacity(host.hierarchies.len());
        for hierarchy in &host.hierarchies {
            match Tree::create(hierarchy, path, wanted.as_deref(), made) {
                Err(error) if path.is_dispensable() && is_refusal(&error) => {}
                tree => trees.push(tree?),
            }
        }
        Ok(Self { mode: host.mode(), trees, missing: Vec::new(), first: None })
    }

    /// Which controllers of the v2 tree to hand down: all (`None`) where it is the only tree; on a hybrid host only those that a limit needs
    /// and that are not on version 1, since enabling them changes the host.
    fn wanted_of_v2(host: &Host, resources: &Resources) -> Option<Vec<&'static str>> {
        if host.mode() == Mode::V2 {
            return None;
        }
        let on_v1 = |name: &str| host.hierarchies.iter().any(|hierarchy| hierarchy.controllers.iter().any(|other| other == name));
        let asked = |knob: &&Knob| knobs::settings(knob, Version::V2, resources, Current(None)).is_ok_and(|list| !list.is_empty());
        let missing = KNOBS.iter().filter(|knob| !on_v1(knob.controller)).filter(asked);
        Some(missing.map(|knob| knobs::controller_on(Version::V2, knob.controller)).collect())
    }

    /// Opens what exists of the cgroup, which may be nothing at all.
    ///
    /// # Errors
    /// Where a hierarchy cannot be read.
    pub fn open(host: &Host, path: &CgroupPath) -> Result<Self> {
        let (cgroup, opened) = Self::find(host, path);
        opened.map(|()| cgroup)
    }

    /// What can be opened of the cgroup, and why the rest cannot be: for callers that kill what there is of it.
    pub fn find(host: &Host, path: &CgroupPath) -> (Self, Result<()>) {
        let mut cgroup = Self::none(host);
        let mut opened = Ok(());
        for hierarchy in &host.hierarchies {
            match Tree::open(hierarchy, path) {
                Ok(Some(tree)) => cgroup.trees.push(tree),
                Ok(None) if path.is_dispensable() => {}
                Ok(None) => match path.in_hierarchy(hierarchy.name()) {
                    Ok(path) => {
                        let place = format!("{}/{path}", hierarchy.mount_point);
                        cgroup.missing.push(Missing { hierarchy: hierarchy.clone(), place });
                    }
                    Err(error) => opened = opened.and(Err(error)),
                },
                Err(error) => opened = opened.and(Err(error)),
            }
        }
        (cgroup, opened)
    }

    /// That of a container which has none: what is asked of it is asked of its first process ([`Cgroup::set_first`]).
    pub fn none(host: &Host) -> Self {
        Self { mode: host.mode(), trees: Vec::new(), missing: Vec::new(), first: None }
    }

    /// Refuses a cgroup that a container cannot be made with, before anything says that it is the container's own and may be cleaned up.
    ///
    /// # Errors
    /// `FailedPrecondition` for one that is in use.
    pub fn check_free(host: &Host, path: &CgroupPath) -> Result<()> {
        Self::open(host, path)?.trees.iter().try_for_each(Tree::refuse_if_used)
    }

    /// `cgroup.procs` of each v1 hierarchy, open for writing: the first process, and every one exec'd, writes `0` to each before it does anything
    /// else. Empty on a v2 host, where [`Cgroup::dir_fd`] is all it takes; on a hybrid host both are needed.
    ///
    /// # Errors
    /// The cgroup is gone.
    pub fn procs_fds(&self) -> Result<Vec<OwnedFd>> {
        let v1 = self.trees.iter().filter(|tree| tree.version == Version::V1);
        v1.map(|tree| tree.dir.open_file("cgroup.procs", OFlags::WRONLY).context(|| format!("open {}/cgroup.procs", tree.dir.path())))
            .collect()
    }

    /// The v2 directory, for `CLONE_INTO_CGROUP`. `None` on a pure v1 host.
    pub fn dir_fd(&self) -> Option<BorrowedFd<'_>> {
        self.unified().map(|tree| tree.dir.as_fd())
    }

    /// Those below this one that a process is to join in its place: `paths` by controller (by its v1 name), or one for all by "".
    ///
    /// # Errors
    /// `InvalidArgument` for a controller that has no hierarchy of its own here; a path that does not exist, or leads elsewhere.
    pub fn below(self, paths: &HashMap<String, String>) -> Result<Self> {
        let of = |tree: &Tree| paths.get("").or_else(|| tree.hierarchy().controllers.iter().find_map(|controller| paths.get(controller)));
        if let Some(missing) = self.missing.first() {
            return Err(gone(&missing.place));
        }
        let known = |name: &&String| name.is_empty() || self.trees.iter().any(|tree| tree.hierarchy().controllers.contains(name));
        if let Some(unknown) = paths.keys().find(|name| !known(name)) {
            return Err(Error::invalid(format!("the cgroup controller {unknown:?} has no hierarchy here")));
        }
        let chosen: Vec<Option<String>> = self.trees.iter().map(|tree| of(tree).cloned()).collect();
        let trees = self.trees.into_iter().zip(chosen).map(|(tree, path)| match path {
            Some(path) => tree.open_below(path.trim_matches('/')),
            None => Ok(tree),
        });
        Ok(Self { mode: self.mode, trees: trees.collect::<Result<_>>()?, missing: Vec::new(), first: None })
    }

    /// Moves a process in, in every hierarchy. For processes that exist already; new ones are better born inside.
    ///
    /// # Errors
    /// The process or the cgroup is gone, or the kernel refuses.
    pub fn add(&self, pid: i32) -> Result<()> {
        self.trees.iter().try_for_each(|tree| tree.dir.put("cgroup.procs", &pid.to_string()))
    }

    /// Checks what [`Cgroup::update`] is to be asked for.
    ///
    /// # Errors
    /// `InvalidArgument` for a value no kernel takes, `FailedPrecondition` for a limit below what is in use; both name the field.
    pub fn check_update(&self, resources: &Resources) -> Result<()> {
        knobs::unified(version(self.mode), resources)?;
        if let Some(tree) = self.home("memory") {
            knobs::check_usage(tree.version, resources, &tree.dir)?;
        }
        Policy::of_container(&resources.devices).map(drop)
    }

    /// Changes the limits that are set in `resources`, and the device rules if there are any in it. All is checked before anything is written.
    ///
    /// # Errors
    /// `InvalidArgument` for a value no kernel takes, `FailedPrecondition` for a limit below what is in use; both name the field.
    pub fn update(&self, resources: &Resources) -> Result<()> {
        if let Some(tree) = self.trees.iter().find(|tree| tree.dir.is_gone()) {
            return Err(gone(tree.dir.path()));
        }
        self.check_update(resources)?;
        let policy = (!resources.devices.is_empty()).then(|| Policy::of_container(&resources.devices)).transpose()?;
        self.apply(resources)?;
        policy.map_or(Ok(()), |policy| self.apply_devices(&policy))
    }

    /// Process ids inside, descendants included, in ascending order; and the first process, if it is elsewhere, with its pid namespace.
    ///
    /// # Errors
    /// Where the cgroup cannot be read; one that is gone is empty.
    pub fn pids(&self) -> Result<Vec<i32>> {
        at_once(self.pids_by(&mut AtOnce))
    }

    /// [`Cgroup::pids`] at this pace.
    ///
    /// # Errors
    /// As [`Cgroup::pids`].
    pub async fn pids_by(&self, pace: &mut impl Pace) -> Result<Vec<i32>> {
        let mut pids = BTreeSet::new();
        if let Some(tree) = self.primary() {
            walk::pids(&tree.dir, &mut pids, pace).await?;
        }
        self.first.iter().for_each(|first| first.add_to(&mut pids));
        Ok(pids.into_iter().collect())
    }

    /// Whether a process is inside, descendants included.
    ///
    /// # Errors
    /// As [`Cgroup::pids`].
    pub fn populated(&self) -> Result<bool> {
        let populated = match self.unified() {
            Some(tree) => v2::events(&tree.dir)?.populated,
            None => false,
        };
        if populated || (self.mode == Mode::V2 && !self.trees.is_empty()) {
            return Ok(populated);
        }
        Ok(!self.pids()?.is_empty())
    }

    /// What the cgroup has used, until it is removed.
    ///
    /// # Errors
    /// `NotFound` once it is gone.
    pub fn stats(&self) -> Result<Stats> {
        let gone = || Error::new(ErrorKind::NotFound, "the cgroup is gone");
        let primary = self.primary().ok_or_else(gone)?;
        match primary.dir.open_file("cgroup.procs", OFlags::RDONLY) {
            Err(Errno::NOENT | Errno::NODEV) => Err(gone()),
            Err(errno) => Err(Error::kernel(format!("open {}/cgroup.procs", primary.dir.path()), errno)),
            Ok(_) if self.mode == Mode::V2 => Ok(Stats::V2(Box::new(stats::v2::read(&primary.dir)?))),
            Ok(_) => Ok(Stats::V1(Box::new(stats::v1::read(|controller| self.home(controller).map(|tree| &tree.dir))?))),
        }
    }

    /// What `runc events` shows besides [`Cgroup::stats`].
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn details(&self) -> Result<stats::details::Details> {
        let dir = |controller| self.home(controller).map(|tree| &tree.dir);
        let cpuset = self.home("cpuset").filter(|tree| tree.version == Version::V1).map(|tree| &tree.dir);
        let details = stats::details::read(dir("memory"), dir("cpuacct"), cpuset)?;
        Ok(stats::details::Details { processes: self.pids()?.len() as u64, ..details })
    }

    /// How many processes were killed for want of memory since the cgroup was made; 0 where nobody counts them.
    ///
    /// # Errors
    /// `NotFound` once it is gone.
    pub fn out_of_memory_kills(&self) -> Result<u64> {
        Ok(match self.stats()? {
            Stats::V1(stats) => stats.memory_oom_control.map_or(0, |counters| counters.oom_kill),
            Stats::V2(stats) => stats.memory_events.map_or(0, |counters| counters.oom_kill),
        })
    }

    /// The v2 tree, if there is one.
    fn unified(&self) -> Option<&Tree> {
        self.trees.iter().find(|tree| tree.version == Version::V2)
    }

    /// The directory in which `controller` (by its v1 name) is in force.
    fn home(&self, controller: &'static str) -> Option<&Tree> {
        let has = |tree: &&Tree| tree.has(knobs::controller_on(tree.version, controller));
        self.trees.iter().filter(|tree| tree.version == Version::V1).find(has).or_else(|| self.unified().filter(has))
    }

    /// The directory to ask who is inside: all have the same answer, unless somebody moved processes about.
    fn primary(&self) -> Option<&Tree> {
        let unified = self.unified().filter(|_| self.mode == Mode::V2);
        unified.or_else(|| self.home("pids")).or_else(|| self.home("devices")).or_else(|| self.trees.first())
    }

    /// The failure that the directory in which `controller` (by its v1 name) would be in force is gone, if that is why there is none.
    fn gone(&self, controller: &'static str) -> Option<Error> {
        let had = |Missing { hierarchy, .. }: &&Missing| match hierarchy.version {
            Version::V1 => hierarchy.controllers.iter().any(|name| name == controller),
            Version::V2 => self.mode == Mode::V2,
        };
        self.missing.iter().find(had).map(|missing| gone(&missing.place))
    }

    /// Writes the limits, everything encoded before the first write; `unified` last, so that it can override.
    fn apply(&self, resources: &Resources) -> Result<()> {
        let groups = KNOBS.chunk_by(|a, b| a.controller == b.controller);
        let groups = groups.map(|group| self.plan(group, resources)).collect::<Result<Vec<_>>>()?;
        for (tree, settings) in groups.into_iter().flatten() {
            write_all(&tree.dir, settings)?;
        }
        for (file, line) in knobs::unified(version(self.mode), resources)? {
            self.write_unified(file, line)?;
        }
        Ok(())
    }

    /// Where the settings of one controller go. Without the controller only a setting that changes nothing is accepted.
    fn plan(&self, group: &'static [Knob], resources: &Resources) -> Result<Option<Writes<'_>>> {
        let Some(controller) = group.first().map(|knob| knob.controller) else { return Ok(None) };
        let home = self.home(controller);
        let version = home.map_or(version(self.mode), |tree| tree.version);
        let mut settings = Vec::new();
        for knob in group {
            let encoded = knobs::settings(knob, version, resources, Current(home.map(|tree| &tree.dir)));
            let encoded = encoded.context(|| format!("resources.{}", knob.field))?;
            settings.extend(encoded.into_iter().map(|setting| (knob.field, setting)));
        }
        let Some(tree) = home else {
            let Some((field, _)) = settings.iter().find(|(_, setting)| !setting.dispensable) else { return Ok(None) };
            if let Some(gone) = self.gone(controller) {
                return Err(gone.context(format!("resources.{field}")));
            }
            let controller = knobs::controller_on(version, controller);
            let message = format!("resources.{field}: the cgroup controller {controller:?} is not available here");
            return Err(Error::new(ErrorKind::FailedPrecondition, message));
        };
        Ok(Some((tree, settings)))
    }

    fn write_unified(&self, file: &str, line: &str) -> Result<()> {
        let Some(tree) = self.unified() else {
            let missing = self.missing.iter().find(|missing| missing.hierarchy.version == Version::V2);
            return missing.map_or(Ok(()), |missing| Err(gone(&missing.place).context(format!("resources.unified {file:?}"))));
        };
        let controller = file.split('.').next().unwrap_or_default();
        match tree.dir.write(file, line) {
            Ok(()) => Ok(()),
            Err(Errno::NOENT | Errno::PERM | Errno::ACCESS) if controller != "cgroup" && !tree.has(controller) => {
                let message = format!("resources.unified {file:?}: the cgroup controller {controller:?} is not available here");
                Err(Error::new(ErrorKind::FailedPrecondition, message))
            }
            Err(errno) => Err(Error::kernel(format!("resources.unified {file:?}: write {line:?}"), errno)),
        }
    }

    /// In the v1 controller where there is one, else as a program on the v2 tree. A user namespace can do neither, nor make a device: there a
    /// container has those that the user may use, as with runc.
    fn apply_devices(&self, policy: &Policy) -> Result<()> {
        if in_user_namespace() {
            return Ok(());
        }
        if let Some(tree) = self.home("devices") {
            let list = tree.dir.read("devices.list").context(|| format!("read {}/devices.list", tree.dir.path()))?;
            let writes = policy.transition(&list);
            return writes
                .chunk_by(|a, b| a.0 == b.0)
                .try_for_each(|lines| tree.dir.put_lines(lines[0].0, lines.iter().map(|(_, line)| line)));
        }
        let message = "resources.devices: this host has neither the devices controller nor cgroup v2";
        let none = || self.gone("devices").unwrap_or_else(|| Error::new(ErrorKind::FailedPrecondition, message));
        let tree = self.unified().ok_or_else(none)?;
        device_filter::install(policy, tree.dir.as_fd())
    }
}

/// What [`Cgroup::create_undoably`] has made.
#[derive(Debug)]
pub struct Undo {
    host: Host,
    path: CgroupPath,
    made: Made,
}

impl Undo {
    /// All went well: it stays.
    pub fn keep(self) {
        self.made.keep();
    }

    /// Kills who is in the directories that were made, and removes these; what was there before stays. Blocks.
    ///
    /// # Errors
    /// Somebody does not die in this time, or somebody else has begun to use one.
    pub fn run(self, timeout: Duration) -> Result<()> {
        let (mut cgroup, found) = Cgroup::find(&self.host, &self.path);
        cgroup.trees.retain(|tree| self.made.is_new(tree));
        cgroup.kill_and_wait(timeout).and_then(|()| cgroup.remove(timeout)).and(found)
    }
}

impl Host {
    /// The fields of `resources` that are set and have no effect on this host, for a warning.
    pub fn ignored(&self, resources: &Resources) -> Vec<&'static str> {
        knobs::ignored(version(self.mode()), resources)
    }
}

/// A container goes on without its cgroup when its processes have moved.
fn gone(place: &str) -> Error {
    Error::new(ErrorKind::FailedPrecondition, format!("the container's cgroup is gone: {place}"))
}

/// What the kernel says to a user about the cgroups of others.
fn is_refusal(error: &Error) -> bool {
    [Errno::ACCESS, Errno::PERM, Errno::ROFS].iter().any(|errno| error.errno() == Some(errno.raw_os_error()))
}

/// Settings with the fields they come from, and the directory they go to.
type Writes<'a> = (&'a Tree, Vec<(&'static str, Setting)>);

/// The version whose controllers are in use.
fn version(mode: Mode) -> Version {
    if mode == Mode::V2 { Version::V2 } else { Version::V1 }
}

/// What is refused with EINVAL is tried again after the rest: a limit may fit only once the one that bounds it has moved.
fn write_all(dir: &Dir, settings: Vec<(&'static str, Setting)>) -> Result<()> {
    let mut deferred = Vec::new();
    for (field, setting) in settings {
        match write(dir, &setting) {
            Ok(()) => {}
            Err((_, Errno::INVAL)) => deferred.push((field, setting)),
            Err((refused, errno)) => return Err(knobs::refused(field, refused, dir, errno)),
        }
    }
    let again =
        |(field, setting): (&str, Setting)| write(dir, &setting).map_err(|(refused, errno)| knobs::refused(field, refused, dir, errno));
    deferred.into_iter().try_for_each(again)
}

/// Writes the setting, or what there is in place of it; the error is of the one that was refused.
fn write<'a>(dir: &Dir, setting: &'a Setting) -> Result<(), (&'a Setting, Errno)> {
    match (dir.write(&setting.file, &setting.value), &setting.otherwise) {
        // BFQ has its file, and no weights for a device with another scheduler.
        (Err(first @ (Errno::NOENT | Errno::OPNOTSUPP)), Some(other)) => write(dir, other).map_err(|(refused, errno)| match errno {
            Errno::NOENT => (setting, first),
            _ => (refused, errno),
        }),
        (Err(Errno::NOENT | Errno::OPNOTSUPP), None) if setting.dispensable => Ok(()),
        (result, _) => result.map_err(|errno| (setting, errno)),
    }
}

#[cfg(test)]
mod tests;
