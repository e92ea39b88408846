//! `mounts`, masked and read-only paths, the propagation and attributes of the root.

use std::ffi::{CStr, CString};
use std::path::Path;

use oci_spec::runtime::{LinuxIdMapping, LinuxNamespaceType, Mount};

use super::idmap::{Maps, Namespaces};
use super::options::Options;
use super::{cstring, pod, relative, rootfs};
use crate::cgroup::{self, MountedHierarchy};
use crate::error::{Context, Error, Result};
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
}

struct Entry<'a> {
    target: CString,
    options: Options,
    kind: Kind<'a>,
    slot: Slot,
}

/// How a bind that follows the host's mounts is made, and made again.
struct Again {
    host: Host,
    steps: Vec<Step>,
}

enum Kind<'a> {
    Bind(Option<Again>),
    /// A procfs that is made early ([`ProcBy`]).
    Proc,
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
pub fn sources<'a>(plan: &mut Builder, spec: &'a Spec, places: Places<'a>, owners: Owners<'_>) -> Result<Mounts<'a>> {
    let (label, context) = (mount_label(spec.linux.mount_label.as_deref())?, spec.extensions.context);
    let mut mounts = Mounts { entries: Vec::new(), own_proc: None, devpts: None, proc: None, label, context };
    let own_cgroup_namespace = spec.linux.namespaces.iter().any(|namespace| namespace.typ() == LinuxNamespaceType::Cgroup);
    let proc = places.proc;
    let mut sources = Sources { places, own_cgroup_namespace, host: None, owners };
    for mount in &spec.mounts {
        let entry = sources.open(plan, mount).context(|| format!("mounts[{:?}]", mount.destination().display().to_string()))?;
        if let Kind::Filesystem { fstype, .. } = entry.kind {
            let slot = Some(entry.slot);
            match fstype {
                "devpts" => mounts.devpts = slot,
                "proc" if entry.options.set & attr::RDONLY == 0 => mounts.proc = slot,
                _ => {}
            }
        }
        if matches!(entry.kind, Kind::Proc) && entry.options.set & attr::RDONLY == 0 {
            mounts.proc = Some(entry.slot);
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
pub struct Places<'a> {
    /// Relative sources are below it.
    pub bundle: &'a Path,
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
    /// What was made with the host's rights.
    pub fn of_host(&self) -> Vec<Slot> {
        let of = |entry: &Entry<'_>| match &entry.kind {
            Kind::Bind(_) | Kind::Proc => vec![entry.slot],
            Kind::CgroupV1(hierarchies, false) => hierarchies.iter().map(|(slot, _)| *slot).collect(),
            Kind::CgroupV1(_, true) | Kind::Filesystem { .. } => Vec::new(),
        };
        self.entries.iter().flat_map(of).chain(self.own_proc).collect()
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

struct Sources<'a, 'b> {
    places: Places<'a>,
    own_cgroup_namespace: bool,
    /// Once a bind needs it.
    host: Option<Host>,
    owners: Owners<'b>,
}

impl<'a> Sources<'a, '_> {
    fn open(&mut self, plan: &mut Builder, mount: &'a Mount) -> Result<Entry<'a>> {
        let options = Options::parse(mount.options().iter().flatten().map(String::as_str))?;
        let target = relative(&mount.destination().to_string_lossy())?;
        if target.is_empty() {
            return Err(Error::invalid("destination: nothing can be mounted over the root"));
        }
        let fstype = mount.typ().as_deref().unwrap_or_default();
        placement(&options, fstype)?;
        let owners = self.owners(plan, mount, &options)?;
        let slot = plan.slot();
        let kind = match (fstype, self.places.hierarchies, self.places.pod) {
            _ if options.bind || fstype == "bind" || fstype == "rbind" => {
                let source = mount.source().as_deref().ok_or_else(|| Error::invalid("bind without a source"))?;
                Kind::Bind(self.bind(plan, source, &options, slot, owners)?)
            }
            _ if owners.is_some() => return Err(Error::invalid("uidMappings/gidMappings: only a bind can be idmapped")),
            ("tmpfs", _, Some(namespace)) if target.as_c_str() == SHM => {
                plan.step(Step::TakeFrom { namespace, path: pod::SHM.to_owned(), mount: slot });
                rootfs::attributes(plan, &without_data(&options), slot);
                Kind::Bind(None)
            }
            ("proc", ..) if self.places.proc.is_early() => {
                let source = mount.source().as_ref().and_then(|source| source.to_str()).unwrap_or(fstype);
                self.places.proc.make(plan, settings(fstype, source, &options)?, options.set, slot);
                rootfs::attributes(plan, &Options { set: 0, clear: 0, ..options.clone() }, slot);
                Kind::Proc
            }
            ("cgroup", cgroup::Mounts::V1(hierarchies), _) => self.cgroup_v1(plan, hierarchies, &options)?,
            ("cgroup", cgroup::Mounts::V2, _) => Kind::Filesystem { fstype: "cgroup2", source: "cgroup2" },
            ("", ..) => return Err(Error::invalid("no type")),
            (fstype, ..) => {
                let source = mount.source().as_ref().and_then(|source| source.to_str()).unwrap_or(fstype);
                Kind::Filesystem { fstype, source }
            }
        };
        Ok(Entry { target, options, kind, slot })
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

    /// Emits a bind; if it follows the host's mounts, says how to make it again.
    fn bind(
        &mut self,
        plan: &mut Builder,
        source: &Path,
        options: &Options,
        slot: Slot,
        owners: Option<(Slot, bool)>,
    ) -> Result<Option<Again>> {
        let source = self.places.bundle.join(source);
        let source = source.to_string_lossy();
        let make = |plan: &mut Builder| {
            rootfs::bind(plan, &source, options, slot)?;
            if let Some((namespace, recursive)) = owners {
                plan.step(Step::IdMap { mount: slot, namespace, recursive });
            }
            Ok::<(), Error>(())
        };
        // From inside a user namespace it could not be made again.
        if !rootfs::follows_host(options) || self.owners.own.is_some() {
            return make(plan).map(|()| None);
        }
        let host = *self.host.get_or_insert_with(|| {
            let host = Host { table: plan.slot(), namespace: plan.slot(), root: plan.slot(), process: plan.slot() };
            plan.step(Step::WatchHost { host });
            host
        });
        let before = plan.length();
        make(plan)?;
        Ok(Some(Again { host, steps: plan.steps_from(before) }))
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

fn has_own_superblock(fstype: &str) -> bool {
    !matches!(fstype, "proc" | "sysfs" | "mqueue" | "cgroup" | "cgroup2" | "devpts")
}

/// What only makes sense with one kind of mount, and not together.
fn placement(options: &Options, fstype: &str) -> Result<()> {
    let bind = options.bind || fstype == "bind" || fstype == "rbind";
    if options.copy_up && (bind || fstype != "tmpfs") {
        return Err(Error::invalid("tmpcopyup: only a tmpfs can have it"));
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
        match &entry.kind {
            Kind::Bind(None) | Kind::Proc => {}
            Kind::Bind(Some(Again { host, steps })) => {
                plan.step(Step::Settle { host: *host, mount: entry.slot, again: steps.clone() });
            }
            Kind::Filesystem { fstype, source } => {
                let late = filesystem(plan, fstype, source, &labelled(fstype, &entry.options, mounts.label, mounts.context), entry.slot)?;
                if let ("mqueue", Some(label)) = (*fstype, mounts.label) {
                    plan.step(Step::FileLabel { mount: entry.slot, label: cstring("linux.mountLabel", label)? });
                }
                sealed_later.extend(late.then_some(entry.slot));
                if entry.options.copy_up {
                    let owner = entry.options.value("uid").is_none() && entry.options.value("gid").is_none();
                    plan.step(Step::CopyUp { mount: entry.slot, root, target: entry.target.clone(), owner });
                }
                if *fstype == "tmpfs" && entry.options.value("mode").is_none() {
                    // As runc: a tmpfs in place of the image's directory is as open as that was, not for everybody to write.
                    plan.step(Step::TakeMode { mount: entry.slot, root, target: entry.target.clone() });
                }
            }
            Kind::CgroupV1(hierarchies, new) => {
                cgroup_v1(plan, entry, hierarchies, *new, root, rule)?;
                sealed_later.extend((entry.options.set & attr::RDONLY != 0).then_some(entry.slot));
                continue;
            }
        }
        plan.step(Step::Attach { mount: entry.slot, root, target: entry.target.clone(), rule });
    }
    if let Some(slot) = mounts.proc
        && mounts.own_proc.is_none()
        && !mounts.entries.iter().any(|entry| entry.slot == slot)
    {
        new_mount(plan, c"proc", Vec::new(), 0, slot);
    }
    Ok(sealed_later)
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
            Kind::Proc | Kind::Filesystem { fstype: "proc" | "sysfs", .. } => Ok(Target::PlainDirectory),
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
    if let Some((propagation, recursive)) = root_propagation(spec)? {
        plan.step(Step::RootAttributes { recursive, set: 0, propagation });
    }
    if spec.root_is_read_only() {
        plan.step(Step::RootAttributes { recursive: false, set: attr::RDONLY, propagation: 0 });
    }
    for path in &spec.linux.readonly_paths {
        plan.step(Step::ReadOnly { path: relative(path)? });
    }
    if let Some(Masks { null, empty }) = masks {
        for path in &spec.linux.masked_paths {
            plan.step(Step::Mask { path: relative(path)?, null, empty });
        }
    }
    Ok(())
}

fn root_propagation(spec: &Spec) -> Result<Option<(u64, bool)>> {
    let Some(name) = spec.linux.rootfs_propagation.as_deref().filter(|name| !name.is_empty()) else { return Ok(None) };
    let options = Options::parse([name]).context(|| "linux.rootfsPropagation")?;
    match options.propagation.first() {
        Some(propagation) if options.data.is_empty() => Ok(Some(*propagation)),
        _ => Err(Error::invalid(format!("linux.rootfsPropagation: {name:?} is unknown"))),
    }
}
