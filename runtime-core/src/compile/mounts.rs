//! `mounts`, masked and read-only paths, the propagation and attributes of the root.

use std::collections::HashSet;
use std::ffi::{CStr, CString};
use std::path::Path;

use oci_spec::runtime::{LinuxIdMapping, LinuxNamespaceType, Mount};

use super::idmap::{Maps, Namespaces};
use super::options::{Options, clear_mask};
use super::overlay::Overlay;
use super::rootfs::RootMount;
use super::user::Shelf;
use super::{clean, cstring, pod, relative, rootfs};
use crate::cgroup::{self, MountedHierarchy};
use crate::error::{Context, Error, Result};
use crate::kernel::{Features, in_user_namespace};
use crate::plan::{Builder, Filesystem, Host, Slot, Step, Target};
use crate::spec::Spec;
use crate::spec::labels::mount_label;
use crate::sys::mount::attr;

/// Single files of procfs that may be covered (runc `libcontainer/rootfs_linux.go`, `checkProcMount`).
const PROC_FILES: &[&str] = &[
    "proc/cpuinfo",
    "proc/diskstats",
    "proc/meminfo",
    "proc/stat",
    "proc/swaps",
    "proc/uptime",
    "proc/loadavg",
    "proc/slabinfo",
    "proc/sys/kernel/ns_last_pid",
    "proc/sys/crypto/fips_enabled",
];
/// What the containers of a pod share, if they share anything.
const SHM: &CStr = c"dev/shm";
/// With more mounts than that, none keeps a descriptor: a process may have as few as 256.
const CROWD: usize = 64;
/// Where a cgroup v2 is mounted when it is the only hierarchy.
const UNIFIED: &str = "/sys/fs/cgroup";
/// Filesystems whose source is a mere name, whatever it looks like.
const NO_DEVICE: [&str; 10] = ["proc", "sysfs", "tmpfs", "ramfs", "devpts", "mqueue", "cgroup", "cgroup2", "hugetlbfs", "bpf"];
/// A filesystem for nothing: what covers a masked directory (nr_inodes=1 fails on some kernels).
const EMPTY: [(&str, &str); 4] = [("source", "tmpfs"), ("nr_blocks", "1"), ("nr_inodes", "2"), ("mode", "755")];

/// The mounts of a spec, their sources opened.
pub struct Mounts<'a> {
    entries: Vec<Entry<'a>>,
    /// A procfs for the runtime's own use is made already.
    own_proc: Option<Slot>,
    /// The container's devpts.
    pub devpts: Option<Slot>,
    /// A procfs of the container's own, writable.
    pub proc: Option<Slot>,
    /// SELinux context of what is new.
    label: Option<&'a str>,
    /// The option that gives it.
    context: &'static str,
    is_crowded: bool,
    in_user_namespace: bool,
    taken_as: u64,
}

struct Entry<'a> {
    target: CString,
    options: Options,
    kind: Kind<'a>,
    slot: Slot,
    /// Where it waits for its turn, if it has no descriptor meanwhile.
    shelved: Option<CString>,
}

/// A bind of the host's.
struct Bind {
    host: Host,
    /// By which it is made in sight of the host's mounts, and made again.
    steps: Vec<Step>,
    follows: bool,
}

/// A bind of what the container itself has.
struct Own {
    path: CString,
    owners: Option<(Slot, bool)>,
}

enum Kind<'a> {
    Bind(Bind),
    Own(Own),
    /// Made already: what the pod shares, or a filesystem that belongs to the host.
    Made(&'a str),
    Filesystem {
        fstype: &'a str,
        source: &'a str,
    },
    CgroupV1(Vec<(Slot, &'a MountedHierarchy)>, bool),
}

/// Emits the steps that open what belongs to the host, and hands out the slots of everything.
///
/// # Errors
/// [`ErrorKind::InvalidArgument`](crate::ErrorKind::InvalidArgument), naming the mount.
pub fn sources<'a>(plan: &mut Builder, spec: &'a Spec, places: Places<'a, '_>, owners: Owners<'_>) -> Result<Mounts<'a>> {
    let mut mounts = Mounts {
        entries: Vec::new(),
        own_proc: None,
        devpts: None,
        proc: None,
        label: mount_label(spec.linux.mount_label.as_deref())?,
        context: spec.extensions.context,
        is_crowded: spec.mounts.len() > CROWD,
        in_user_namespace: owners.own.is_some(),
        taken_as: taken_as(spec)?,
    };
    let own_cgroup_namespace = spec.linux.namespaces.iter().any(|namespace| namespace.typ() == LinuxNamespaceType::Cgroup);
    let proc = places.proc;
    let is_bound = places.root_is_bound;
    let mut sources = Sources { places, own_cgroup_namespace, host: None, is_watched: false, owners };
    if is_bound {
        sources.host(plan);
    }
    for mount in &spec.mounts {
        let entry = sources.open(plan, mount, &mounts).context(|| format!("mounts[{:?}]", mount.destination().display().to_string()))?;
        let slot = Some(entry.slot);
        match entry.kind {
            Kind::Filesystem { fstype: "devpts", .. } => mounts.devpts = slot,
            Kind::Filesystem { fstype: "proc", .. } | Kind::Made("proc") if entry.options.set & attr::RDONLY == 0 => mounts.proc = slot,
            _ => {}
        }
        mounts.entries.push(entry);
    }
    if mounts.proc.is_none() && !spec.linux.sysctl.is_empty() {
        let slot = plan.slot();
        mounts.proc = Some(slot);
        if proc.is_early() {
            proc.make(plan, Vec::new(), 0, slot);
            mounts.own_proc = Some(slot);
        }
    }
    Ok(mounts)
}

/// Where mounts that are not the container's own come from.
pub struct Places<'a, 'b> {
    /// Relative sources are below it.
    pub bundle: &'a Path,
    /// Where the root would be on the host: paths below it are the container's.
    pub root: &'a Path,
    /// Whether the root is a bind of the host's.
    pub root_is_bound: bool,
    /// Work that needs a private copy of the host's mount namespace.
    pub by_path: &'b mut rootfs::ByPath,
    /// How overlay takes its layers.
    pub kernel: Features,
    /// What a mount of type cgroup shows.
    pub hierarchies: &'a cgroup::Mounts,
    /// The mount namespace of the pod.
    pub pod: Option<Slot>,
    /// Who can make a procfs of the container's pid namespace.
    pub proc: ProcBy,
}

/// Who makes a procfs, which shows the pid namespace of its maker.
#[derive(Clone, Copy)]
pub enum ProcBy {
    /// The process that attaches it: it is in the container's pid namespace then.
    Itself,
    /// The same while it has the host's rights: a container in a user namespace has the host's pid namespace.
    Host,
    /// A process of its own in a pid namespace that others share; before that it makes the namespaces `isolate`.
    InNamespace { namespace: Slot, isolate: i32 },
}

impl ProcBy {
    /// Emits the making of a detached procfs.
    fn make(self, plan: &mut Builder, options: Vec<(CString, Option<CString>)>, attributes: u64, mount: Slot) {
        let filesystem = Filesystem { fstype: c"proc".to_owned(), options, mounts: Vec::new(), attributes };
        plan.step(match self {
            Self::Itself | Self::Host => Step::NewMount { filesystem, mount },
            Self::InNamespace { namespace, isolate } => Step::ProcOf { namespace, isolate, filesystem, mount },
        });
    }

    /// Whether it is made before the process attaches anything.
    fn is_early(self) -> bool {
        !matches!(self, Self::Itself)
    }
}

/// Whose the files of mounts seem to be.
pub struct Owners<'a> {
    /// The user namespaces of the plan.
    pub namespaces: &'a mut Namespaces,
    /// The maps of the container's own.
    pub own: Option<&'a Maps>,
}

impl Mounts<'_> {
    /// Puts on a shelf what was made with the host's rights, and makes what is made only now.
    pub fn shelve(&mut self, plan: &mut Builder, shelf: &mut Shelf) {
        for entry in &mut self.entries {
            match &entry.kind {
                Kind::Bind(bind) if self.is_crowded => {
                    plan.step(Step::AtHost { host: bind.host, mount: entry.slot, steps: bind.steps.clone() });
                    entry.shelved = Some(shelf.put_away(plan, entry.slot));
                }
                Kind::Bind(_) | Kind::Made(_) => shelf.put(plan, entry.slot),
                Kind::CgroupV1(hierarchies, false) => hierarchies.iter().for_each(|(slot, _)| shelf.put(plan, *slot)),
                Kind::CgroupV1(_, true) | Kind::Filesystem { .. } | Kind::Own(_) => {}
            }
        }
        self.own_proc.into_iter().for_each(|mount| shelf.put(plan, mount));
    }

    /// Emits the covers, if any path is to be masked.
    ///
    /// # Errors
    /// A label with a NUL.
    pub fn mask_sources(&self, plan: &mut Builder, spec: &Spec) -> Result<Option<Masks>> {
        if spec.linux.masked_paths.is_empty() {
            return Ok(None);
        }
        let masks = Masks { null: plan.slot(), empty: plan.slot() };
        plan.step(Step::CloneTree { source: c"/dev/null".to_owned(), recursive: false, follow: true, mount: masks.null });
        // The device is the host's own: the container's root must not change its mode or owner.
        let (set, propagation) = (attr::RDONLY, libc::MS_PRIVATE);
        plan.step(Step::Attributes { mount: masks.null, recursive: false, set, clear: 0, propagation });
        let context = self.label.map(|label| (self.context, label));
        let options: Vec<_> = EMPTY.into_iter().chain(context).map(|(key, value)| (key.to_owned(), Some(value.to_owned()))).collect();
        let options = rootfs::settings(&options)?;
        new_mount(plan, c"tmpfs", options, attr::RDONLY, masks.empty);
        Ok(Some(masks))
    }
}

struct Sources<'a, 'b, 'c> {
    places: Places<'a, 'c>,
    own_cgroup_namespace: bool,
    /// Once a bind needs it.
    host: Option<Host>,
    is_watched: bool,
    owners: Owners<'b>,
}

impl<'a> Sources<'a, '_, '_> {
    fn open(&mut self, plan: &mut Builder, mount: &'a Mount, mounts: &Mounts<'a>) -> Result<Entry<'a>> {
        let options = Options::parse(mount.options().iter().flatten().map(String::as_str))?;
        let target = self.beneath_root(mount.destination()).map_or_else(|| relative(&mount.destination().to_string_lossy()), Ok)?;
        if target.is_empty() {
            return Err(Error::invalid("destination: nothing can be mounted over the root"));
        }
        let fstype = mount.typ().as_deref().unwrap_or_default();
        placement(&options, fstype)?;
        let owners = self.owners(plan, mount, &options)?;
        let slot = plan.slot();
        let source = mount.source().as_ref().and_then(|source| source.to_str()).unwrap_or(fstype);
        let kind = match (fstype, self.places.hierarchies, self.places.pod) {
            _ if options.bind || fstype == "bind" || fstype == "rbind" => {
                let source = mount.source().as_deref().ok_or_else(|| Error::invalid("bind without a source"))?;
                self.bind(plan, source, Wanted { options: &options, slot, owners }, mounts)?
            }
            _ if owners.is_some() => return Err(Error::invalid("uidMappings/gidMappings: only a bind can be idmapped")),
            ("tmpfs", _, Some(namespace)) if target.as_c_str() == SHM => {
                plan.step(Step::TakeFrom { namespace, path: pod::SHM.to_owned(), mount: slot });
                rootfs::attributes(plan, &without_data(&options), slot);
                Kind::Made(fstype)
            }
            ("proc", ..) if self.places.proc.is_early() => {
                self.places.proc.make(plan, settings(fstype, source, &options)?, options.set, slot);
                rootfs::attributes(plan, &Options { set: 0, clear: 0, ..options.clone() }, slot);
                Kind::Made(fstype)
            }
            ("cgroup", cgroup::Mounts::V1(hierarchies), _) => self.cgroup_v1(plan, hierarchies, &options)?,
            // A user namespace may not mount what belongs to the cgroup namespace of another one.
            ("cgroup" | "cgroup2", cgroup::Mounts::V2, _) if self.shows_hosts_cgroups() => {
                let options = without_data(&options);
                self.bind(plan, Path::new(UNIFIED), Wanted { options: &options, slot, owners: None }, mounts)?
            }
            ("cgroup", cgroup::Mounts::V2, _) => Kind::Filesystem { fstype: "cgroup2", source: "cgroup2" },
            ("", ..) => return Err(Error::invalid("no type")),
            (fstype, ..) if names_host_paths(fstype, source, &options) => {
                self.of_host(plan, fstype, source, &labelled(fstype, &options, mounts.label, mounts.context), slot)?;
                Kind::Made(fstype)
            }
            (fstype, ..) => Kind::Filesystem { fstype, source },
        };
        Ok(Entry { target, options, kind, slot, shelved: None })
    }

    fn shows_hosts_cgroups(&self) -> bool {
        !self.own_cgroup_namespace && (self.owners.own.is_some() || in_user_namespace())
    }

    /// A path of the host's as one of the container's, if that is what it is.
    fn beneath_root(&self, path: &Path) -> Option<CString> {
        let path = clean(path);
        let beneath = path.strip_prefix(clean(self.places.root)).ok()?;
        relative(&beneath.to_string_lossy()).ok()
    }

    /// A filesystem whose device or layers are the host's: made in sight of them.
    fn of_host(&mut self, plan: &mut Builder, fstype: &str, source: &str, options: &Options, slot: Slot) -> Result<()> {
        if fstype == "overlay" && options.value("lowerdir").is_some() {
            let overlay = Overlay::parse(options, slot)?;
            let is_late = !self.places.kernel.layers_one_by_one;
            if is_late {
                overlay.by_path(self.places.by_path, self.places.root)?;
            } else {
                overlay.one_by_one(plan)?;
            }
            let before = plan.length();
            rootfs::attributes(plan, options, slot);
            plan.take_from(before).into_iter().for_each(|step| if is_late { self.places.by_path.step(step) } else { plan.step(step) });
            return Ok(());
        }
        filesystem(plan, fstype, source, options, slot).map(drop)
    }

    /// The user namespace by whose maps a mount shows its owners, and whether what is mounted below does, too. Given maps win over the
    /// container's own, which the options alone mean (OCI config.md, "POSIX-platform Mounts").
    fn owners(&mut self, plan: &mut Builder, mount: &Mount, options: &Options) -> Result<Option<(Slot, bool)>> {
        let given = |mappings: &Option<Vec<LinuxIdMapping>>| mappings.clone().filter(|mappings| !mappings.is_empty());
        let maps = match (given(mount.uid_mappings()), given(mount.gid_mappings()), options.idmap) {
            (Some(uid), Some(gid), _) => Maps::of(&uid, &gid)?,
            (None, None, None) => return Ok(None),
            (None, None, Some(_)) => {
                self.owners.own.cloned().ok_or_else(|| Error::invalid("idmap: there are neither uidMappings nor a user namespace"))?
            }
            _ => return Err(Error::invalid("uidMappings/gidMappings: one without the other")),
        };
        Ok(Some((self.owners.namespaces.slot(plan, maps), options.idmap == Some(true))))
    }

    /// Emits a bind, unless there are so many that it is made only when it is attached.
    fn bind(&mut self, plan: &mut Builder, source: &Path, wanted: Wanted<'_>, mounts: &Mounts<'a>) -> Result<Kind<'a>> {
        let source = self.places.bundle.join(source);
        if let Some(path) = self.beneath_root(&source) {
            return Ok(Kind::Own(Own { path, owners: wanted.owners }));
        }
        let Wanted { options, slot, owners } = wanted;
        let host = self.host(plan);
        // From inside a user namespace it could not be made again.
        let follows = follows_host(options, mounts.taken_as) && !mounts.in_user_namespace;
        if follows && !std::mem::replace(&mut self.is_watched, true) {
            plan.step(Step::WatchHost { host });
        }
        let before = plan.length();
        let source = cstring("bind source", &source.to_string_lossy())?;
        let follow = !options.source_itself && !options.copy_link;
        plan.step(Step::CloneTree { source, recursive: options.recursive, follow, mount: slot });
        taken(plan, options, slot, mounts);
        if let Some((namespace, recursive)) = owners {
            plan.step(Step::IdMap { mount: slot, namespace, recursive });
        }
        let steps = if mounts.is_crowded { plan.take_from(before) } else { plan.steps_from(before) };
        Ok(Kind::Bind(Bind { host, steps, follows }))
    }

    fn host(&mut self, plan: &mut Builder) -> Host {
        *self.host.get_or_insert_with(|| {
            let host = Host { table: plan.slot(), namespace: plan.slot(), root: plan.slot(), process: plan.slot() };
            plan.step(Step::OpenHost { host });
            host
        })
    }

    fn cgroup_v1(&self, plan: &mut Builder, hierarchies: &'a [MountedHierarchy], options: &Options) -> Result<Kind<'a>> {
        let slots: Vec<_> = hierarchies.iter().map(|hierarchy| (plan.slot(), hierarchy)).collect();
        if !self.own_cgroup_namespace {
            for (slot, hierarchy) in &slots {
                rootfs::bind(plan, &hierarchy.directory.to_string_lossy(), &without_data(options), *slot)?;
            }
        }
        Ok(Kind::CgroupV1(slots, self.own_cgroup_namespace))
    }
}

/// A context for what is the container's own alone, unless the options have one (runc `libcontainer/rootfs_linux.go`, `mountToRootfs`).
fn labelled(fstype: &str, options: &Options, label: Option<&str>, context: &str) -> Options {
    let mut options = options.clone();
    if let Some(label) = label.filter(|_| has_own_superblock(fstype) || fstype == "devpts").filter(|_| options.value(context).is_none()) {
        options.data.push((context.to_owned(), Some(label.to_owned())));
    }
    options
}

/// A bind that is asked for.
struct Wanted<'o> {
    options: &'o Options,
    slot: Slot,
    owners: Option<(Slot, bool)>,
}

/// What is done to the host's mounts before any is taken (runc `libcontainer/rootfs_linux.go`, `prepareRoot`): without a word they become
/// slaves, so that no container's mounts are the host's, and only where the root is to be shared they stay what they are.
fn taken_as(spec: &Spec) -> Result<u64> {
    Ok(match root_propagation(spec)? {
        Some((libc::MS_SHARED, _)) => 0,
        Some((libc::MS_PRIVATE, _)) => libc::MS_PRIVATE,
        _ => libc::MS_SLAVE,
    })
}

/// Whether a bind gets what the host mounts below its source later on.
fn follows_host(options: &Options, taken_as: u64) -> bool {
    let follows = |(kind, _): &(u64, bool)| kind & (libc::MS_SHARED | libc::MS_SLAVE) != 0;
    taken_as != libc::MS_PRIVATE && (options.propagation.is_empty() || options.propagation.iter().any(follows))
}

/// What becomes of the clone that a bind is, in sight of the host's mounts. Where a user namespace is to come, the copy of the mount
/// namespace that comes with it locks what is set here, and what the kernel may not allow is left to [`dress`] in it.
fn taken(plan: &mut Builder, options: &Options, slot: Slot, mounts: &Mounts<'_>) {
    let whole = |(_, recursive): &&(u64, bool)| *recursive || !options.recursive;
    let first = options.propagation.first().filter(whole).map(|(kind, _)| *kind).filter(|_| !mounts.in_user_namespace);
    let implied = first.is_some_and(|kind| kind == libc::MS_PRIVATE || (kind == libc::MS_SLAVE && mounts.taken_as == libc::MS_SLAVE));
    let propagation = match mounts.taken_as {
        // Only the peers that the specification names receive the container's mounts.
        0 if options.propagation.is_empty() || mounts.in_user_namespace => libc::MS_SLAVE,
        taken_as => taken_as,
    };
    if propagation != 0 && !implied {
        plan.step(Step::Attributes { mount: slot, recursive: true, set: 0, clear: 0, propagation });
    }
    if !mounts.in_user_namespace {
        return dress(plan, options, slot);
    }
    for (recursive, set) in [(false, options.set & (attr::LOCKABLE | attr::NOSYMFOLLOW)), (true, options.set_all)] {
        if set != 0 {
            plan.step(Step::Attributes { mount: slot, recursive, set, clear: clear_mask(set, 0), propagation: 0 });
        }
    }
}

/// The flags and the propagation that a bind's own options ask for.
fn dress(plan: &mut Builder, options: &Options, slot: Slot) {
    if let Some(flags) = options.of_bind() {
        plan.step(Step::BindFlags { mount: slot, flags });
    }
    rootfs::attributes(plan, &Options { set: 0, clear: 0, ..options.clone() }, slot);
}

/// Whether a filesystem is found by paths, which are the host's.
fn names_host_paths(fstype: &str, source: &str, options: &Options) -> bool {
    let mut values = options.data.iter().filter_map(|(_, value)| value.as_deref());
    !NO_DEVICE.contains(&fstype) && (fstype == "overlay" || is_path(source) || values.any(|value| value.split(':').any(is_path)))
}

/// Whether any mount has the kernel open a device of the host's.
pub fn open_devices(spec: &Spec, roots: &[RootMount]) -> bool {
    let of_root = |mount: &RootMount| {
        !mount.is_bind() && (mount.options.iter().any(|option| option == "loop") || is_device(&mount.fstype, &mount.source))
    };
    let of_spec = |mount: &Mount| {
        let is_bind = mount.options().iter().flatten().any(|option| option == "bind" || option == "rbind");
        let source = mount.source().as_deref().unwrap_or(Path::new(""));
        !is_bind && is_device(mount.typ().as_deref().unwrap_or_default(), &source.to_string_lossy())
    };
    roots.iter().any(of_root) || spec.mounts.iter().any(of_spec)
}

/// Whether a step makes such a mount.
pub fn opens_device(step: &Step) -> bool {
    let source = |(key, value): &(CString, Option<CString>)| value.clone().filter(|_| key.as_c_str() == c"source");
    match step {
        Step::LoopMount { .. } => true,
        Step::NewMount { filesystem, .. } => {
            let source = filesystem.options.iter().find_map(source).unwrap_or_default();
            is_device(&filesystem.fstype.to_string_lossy(), &source.to_string_lossy())
        }
        _ => false,
    }
}

fn is_device(fstype: &str, source: &str) -> bool {
    is_path(source) && !["", "bind", "rbind", "overlay"].contains(&fstype) && !NO_DEVICE.contains(&fstype)
}

/// Two slashes begin the name of a server.
fn is_path(text: &str) -> bool {
    text.starts_with('/') && !text.starts_with("//")
}

fn has_own_superblock(fstype: &str) -> bool {
    !matches!(fstype, "proc" | "sysfs" | "mqueue" | "cgroup" | "cgroup2" | "devpts")
}

/// What only makes sense with one kind of mount, and not together.
fn placement(options: &Options, fstype: &str) -> Result<()> {
    let bind = options.bind || fstype == "bind" || fstype == "rbind";
    if options.copy_up && (bind || fstype != "tmpfs") {
        return Err(Error::invalid("tmpcopyup: only a tmpfs can have it"));
    }
    if options.loop_device || options.direct_io {
        return Err(Error::invalid("loop/direct-io: only a mount of the root filesystem can have them"));
    }
    if let Some((key, value)) = options.data.first().filter(|_| bind) {
        let option = value.as_ref().map_or_else(|| key.clone(), |value| format!("{key}={value}"));
        return Err(Error::invalid(format!("option {option:?}: a bind has no options of a filesystem")));
    }
    if (options.copy_link || options.source_itself) && !bind {
        return Err(Error::invalid("copy-symlink/src-nofollow: only a bind can have them"));
    }
    if options.copy_link && (options.source_itself || options.destination_itself) {
        return Err(Error::invalid("copy-symlink excludes src-nofollow and dest-nofollow"));
    }
    Ok(())
}

fn without_data(options: &Options) -> Options {
    Options { data: Vec::new(), superblock: Vec::new(), ..options.clone() }
}

/// Emits the mounts in the spec's order.
///
/// # Errors
/// A mount point inside `/proc` that could deceive the runtime or the container.
pub fn attach_all(plan: &mut Builder, mounts: &Mounts<'_>, root: Slot) -> Result<Vec<Slot>> {
    let mut sealed_later = Vec::new();
    for entry in &mounts.entries {
        let rule = rule(entry).context(|| format!("mounts[\"/{}\"]", entry.target.to_string_lossy()))?;
        let mut is_used_later = false;
        match &entry.kind {
            Kind::Bind(bind) => settle(plan, mounts, entry, bind),
            Kind::Own(Own { path, owners }) => {
                let (recursive, follow) = (entry.options.recursive, !entry.options.source_itself && !entry.options.copy_link);
                plan.step(Step::CloneOwn { root, path: path.clone(), recursive, follow, mount: entry.slot });
                dress(plan, &entry.options, entry.slot);
                for (namespace, recursive) in owners.iter().copied() {
                    let mount = entry.slot;
                    // It takes rights over the filesystem, which is the host's.
                    plan.step(match mounts.in_user_namespace {
                        true => Step::IdMapByParent { mount, namespace, recursive },
                        false => Step::IdMap { mount, namespace, recursive },
                    });
                }
            }
            Kind::Made(_) => {}
            Kind::Filesystem { fstype, source } => {
                is_used_later = new_filesystem(plan, mounts, entry, (fstype, source), root)?;
                sealed_later.extend(is_used_later.then_some(entry.slot));
            }
            Kind::CgroupV1(hierarchies, new) => {
                cgroup_v1(plan, entry, hierarchies, *new, root, rule)?;
                sealed_later.extend((entry.options.set & attr::RDONLY != 0).then_some(entry.slot));
                continue;
            }
        }
        plan.step(Step::Attach { mount: entry.slot, root, target: entry.target.clone(), rule });
        if mounts.is_crowded && !is_used_later && ![mounts.devpts, mounts.proc].contains(&Some(entry.slot)) {
            plan.step(Step::Close { slot: entry.slot });
        }
    }
    if let Some(slot) = mounts.proc
        && mounts.own_proc.is_none()
        && !mounts.entries.iter().any(|entry| entry.slot == slot)
    {
        new_mount(plan, c"proc", Vec::new(), 0, slot);
    }
    Ok(sealed_later)
}

/// Emits what a bind still needs before it is attached.
fn settle(plan: &mut Builder, mounts: &Mounts<'_>, entry: &Entry<'_>, bind: &Bind) {
    let (host, mount) = (bind.host, entry.slot);
    if bind.follows {
        return plan.step(Step::Settle { host, mount, again: bind.steps.clone() });
    }
    if mounts.in_user_namespace {
        if let Some(source) = &entry.shelved {
            plan.step(Step::CloneTree { source: source.clone(), recursive: true, follow: true, mount });
        }
        dress(plan, &entry.options, mount);
    } else if mounts.is_crowded {
        plan.step(Step::AtHost { host, mount, steps: bind.steps.clone() });
    }
}

/// Emits a filesystem of the container's own; whether something is still done with it after it was attached.
fn new_filesystem(plan: &mut Builder, mounts: &Mounts<'_>, entry: &Entry<'_>, (fstype, source): (&str, &str), root: Slot) -> Result<bool> {
    let options = labelled(fstype, &entry.options, mounts.label, mounts.context);
    if fstype == "tmpfs" && options.value("mode").is_none() {
        // As runc: a tmpfs in place of the image's directory is as open as that was, not for everybody to write.
        plan.step(Step::TakeMode { root, target: entry.target.clone() });
    }
    let late = filesystem(plan, fstype, source, &options, entry.slot)?;
    if let ("mqueue", Some(label)) = (fstype, mounts.label) {
        plan.step(Step::FileLabel { mount: entry.slot, label: cstring("linux.mountLabel", label)? });
    }
    if options.copy_up {
        let owner = options.value("uid").is_none() && options.value("gid").is_none();
        plan.step(Step::CopyUp { mount: entry.slot, root, target: entry.target.clone(), owner });
    }
    Ok(late)
}

/// Emits [`Step::NewMount`].
pub fn new_mount(plan: &mut Builder, fstype: &CStr, options: Vec<(CString, Option<CString>)>, attributes: u64, mount: Slot) {
    plan.step(Step::NewMount { filesystem: Filesystem { fstype: fstype.to_owned(), options, mounts: Vec::new(), attributes }, mount });
}

/// Whether the mount becomes read-only later: mount points and nodes are still to be made in it.
fn filesystem(plan: &mut Builder, fstype: &str, source: &str, options: &Options, slot: Slot) -> Result<bool> {
    let mut options = options.clone();
    let late = fstype == "tmpfs" && options.set & attr::RDONLY != 0;
    if late {
        options.set &= !attr::RDONLY;
    }
    new_mount(plan, &cstring("type", fstype)?, settings(fstype, source, &options)?, options.set, slot);
    let rest = Options { set: 0, clear: 0, ..options };
    rootfs::attributes(plan, &rest, slot);
    Ok(late)
}

/// What fsconfig(2) is told.
fn settings(fstype: &str, source: &str, options: &Options) -> Result<Vec<(CString, Option<CString>)>> {
    let mut settings = rootfs::settings(&options.filesystem(has_own_superblock(fstype)))?;
    settings.insert(0, (c"source".to_owned(), Some(cstring("source", source)?)));
    Ok(settings)
}

/// A small tmpfs with one directory per hierarchy; a co-mounted controller gets a link by its own name.
fn cgroup_v1(
    plan: &mut Builder,
    entry: &Entry<'_>,
    hierarchies: &[(Slot, &MountedHierarchy)],
    new: bool,
    root: Slot,
    rule: Target,
) -> Result<()> {
    let attributes = entry.options.set & !attr::RDONLY;
    let source = |name: &str| ("source".to_owned(), Some(name.to_owned()));
    let settings = rootfs::settings(&[source("tmpfs"), ("mode".to_owned(), Some("755".to_owned()))])?;
    new_mount(plan, c"tmpfs", settings, attributes, entry.slot);
    plan.step(Step::Attach { mount: entry.slot, root, target: entry.target.clone(), rule });
    for (slot, hierarchy) in hierarchies {
        let name = cstring("cgroup", &hierarchy.name)?;
        plan.step(Step::MakeDirectory { directory: entry.slot, name: name.clone(), mode: 0o755 });
        if new {
            let given = hierarchy.options.split(',').map(|option| match option.split_once('=') {
                Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
                None => (option.to_owned(), None),
            });
            let options = rootfs::settings(&[source("cgroup")].into_iter().chain(given).collect::<Vec<_>>())?;
            new_mount(plan, c"cgroup", options, entry.options.set, *slot);
        }
        plan.step(Step::Attach { mount: *slot, root: entry.slot, target: name.clone(), rule: Target::Ordinary });
        for controller in hierarchy.name.split(',').filter(|controller| *controller != hierarchy.name) {
            plan.step(Step::Symlink { directory: entry.slot, name: cstring("cgroup", controller)?, target: name.clone() });
        }
    }
    Ok(())
}

fn rule(entry: &Entry<'_>) -> Result<Target> {
    let target = entry.target.to_string_lossy();
    match &*target {
        "proc" => Ok(Target::Proc),
        "sys" => Ok(Target::PlainDirectory),
        path if PROC_FILES.contains(&path) => Ok(Target::ProcFile),
        path if path.starts_with("proc/") => Err(Error::invalid("destination: inside /proc only single known files may be covered")),
        _ if entry.options.destination_itself => Ok(Target::Itself),
        _ if entry.options.copy_link => Ok(Target::Link),
        _ => match &entry.kind {
            Kind::Made("proc") | Kind::Filesystem { fstype: "proc" | "sysfs", .. } => Ok(Target::PlainDirectory),
            _ => Ok(Target::Ordinary),
        },
    }
}

/// What masked paths are covered with, taken on the host where the image has no say.
pub struct Masks {
    null: Slot,
    empty: Slot,
}

/// Emits what must come after everything that is still made in the root.
///
/// # Errors
/// An unknown propagation type.
pub fn seal(plan: &mut Builder, spec: &Spec, masks: Option<Masks>, sealed_later: &[Slot]) -> Result<()> {
    for mount in sealed_later {
        plan.step(Step::Attributes { mount: *mount, recursive: false, set: attr::RDONLY, clear: 0, propagation: 0 });
    }
    if let Some((propagation, recursive)) = root_propagation(spec)?.filter(|(kind, _)| !is_early(*kind)) {
        plan.step(Step::RootAttributes { recursive, set: 0, propagation });
    }
    let readonly = below_root(&spec.linux.readonly_paths)?;
    // A mount over the root would be seen by no process whose root is below it.
    if spec.root_is_read_only() || readonly.iter().any(|path| path.is_empty()) {
        plan.step(Step::RootAttributes { recursive: false, set: attr::RDONLY, propagation: 0 });
    }
    for path in readonly.into_iter().filter(|path| !path.is_empty()) {
        plan.step(Step::ReadOnly { path });
    }
    if let Some(Masks { null, empty }) = masks {
        let mut masked = HashSet::new();
        for path in below_root(&spec.linux.masked_paths)? {
            if masked.insert(path.clone()) {
                plan.step(Step::Mask { path, null, empty });
            }
        }
    }
    Ok(())
}

/// Masked or read-only paths. Podman passes an empty one on, which is none for runc and crun.
fn below_root(paths: &[String]) -> Result<Vec<CString>> {
    paths.iter().filter(|path| !path.is_empty()).map(|path| relative(path)).collect()
}

/// Emits what the root is for its mounts to come: a type that would undo what they ask for themselves is not for the end.
///
/// # Errors
/// An unknown propagation type.
pub fn prepare_root(plan: &mut Builder, spec: &Spec, root: Slot) -> Result<()> {
    if let Some((propagation, recursive)) = root_propagation(spec)?.filter(|(kind, _)| is_early(*kind)) {
        plan.step(Step::Attributes { mount: root, recursive, set: 0, clear: 0, propagation });
    }
    Ok(())
}

fn is_early(propagation: u64) -> bool {
    matches!(propagation, libc::MS_PRIVATE | libc::MS_SLAVE)
}

fn root_propagation(spec: &Spec) -> Result<Option<(u64, bool)>> {
    let Some(name) = spec.linux.rootfs_propagation.as_deref().filter(|name| !name.is_empty()) else { return Ok(None) };
    let options = Options::parse([name]).context(|| "linux.rootfsPropagation")?;
    match options.propagation.first() {
        Some(propagation) if options.data.is_empty() => Ok(Some(*propagation)),
        _ => Err(Error::invalid(format!("linux.rootfsPropagation: {name:?} is unknown"))),
    }
}
