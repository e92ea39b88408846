//! The root filesystem from the snapshot's mounts, as detached mounts: the host's mount table never sees them.

use std::ffi::{CStr, CString};
use std::path::Path;

use super::idmap::{Maps, Namespaces};
use super::mounts::new_mount;
use super::options::{Options, clear_mask};
use super::overlay::Overlay;
use super::{cstring, relative};
use crate::container::hooks::Point;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::kernel::Features;
use crate::plan::{Builder, Filesystem, Host, Slot, Step, Target};
use crate::spec::Spec;

/// A mount of a snapshot, as containerd's snapshotters describe it (containerd `api/types/mount.proto`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RootMount {
    /// `overlay`, `bind`, `ext4` …
    pub fstype: String,
    /// Device, file or directory.
    pub source: String,
    /// Below the root; empty for the root itself.
    pub target: String,
    /// As for mount(8).
    pub options: Vec<String>,
}

impl RootMount {
    /// Whether it is a part of the host's tree.
    pub fn is_bind(&self) -> bool {
        matches!(self.fstype.as_str(), "bind" | "rbind") || self.options.iter().any(|option| matches!(option.as_str(), "bind" | "rbind"))
    }

    /// The program that mounts it where the kernel does not by itself, and the type that this is told (containerd `core/mount/mount_linux.go`,
    /// `allowedHelperBinaries`).
    pub fn helper(&self) -> Option<(&'static str, &str)> {
        [("mount.fuse", "fuse."), ("mount.fuse3", "fuse3.")]
            .into_iter()
            .find_map(|(helper, prefix)| Some((helper, self.fstype.strip_prefix(prefix)?)))
    }
}

/// A detached mount of the root filesystem and where it goes.
pub struct Layer {
    /// The mount.
    pub mount: Slot,
    /// Below the root; empty for the root itself.
    pub target: CString,
}

/// Work that needs a private copy of the host's mount namespace.
#[derive(Default)]
pub struct ByPath(Vec<Step>);

impl ByPath {
    /// Whether there is any.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Appends a step.
    pub fn step(&mut self, step: Step) {
        self.0.push(step);
    }

    /// The steps, once the copy exists.
    pub fn emit(self, plan: &mut Builder) {
        self.0.into_iter().for_each(|step| plan.step(step));
    }
}

/// How and where the root filesystem may be put together.
#[derive(Clone, Copy)]
pub struct Place<'a> {
    /// An existing directory of the host, needed by the old way.
    pub target: &'a Path,
    /// How overlay takes its layers.
    pub kernel: Features,
}

/// Emits the steps that make each mount of the root filesystem; those that need a helper are there already.
///
/// # Errors
/// [`ErrorKind::InvalidArgument`] for a mount that makes no sense, [`ErrorKind::Unimplemented`] for one this build cannot make.
pub fn assemble(
    plan: &mut Builder,
    mounts: &[RootMount],
    helped: Vec<Slot>,
    namespaces: &mut Namespaces,
    place: Place<'_>,
) -> Result<(Vec<Layer>, ByPath)> {
    if mounts.first().is_none_or(|mount| !relative(&mount.target).is_ok_and(|target| target.is_empty())) {
        return Err(Error::invalid("rootfs: the first mount must be the root itself"));
    }
    let mut layers = Vec::with_capacity(mounts.len());
    let mut assembly = Assembly { plan, by_path: ByPath(Vec::new()), namespaces, place };
    let mut helped = helped.into_iter();
    for mount in mounts {
        let slot = match mount.helper() {
            Some(_) => {
                helped.next().ok_or_else(|| Error::new(ErrorKind::Internal, format!("rootfs {}: no helper was run", mount.fstype)))?
            }
            None => {
                let slot = assembly.plan.slot();
                assembly.make(mount, slot).context(|| format!("rootfs {}", mount.fstype))?;
                slot
            }
        };
        layers.push(Layer { mount: slot, target: relative(&mount.target)? });
    }
    Ok((layers, assembly.by_path))
}

struct Assembly<'a> {
    plan: &'a mut Builder,
    by_path: ByPath,
    namespaces: &'a mut Namespaces,
    place: Place<'a>,
}

impl Assembly<'_> {
    fn make(&mut self, mount: &RootMount, slot: Slot) -> Result<()> {
        let mut options = Options::parse(mount.options.iter().map(String::as_str))?;
        let maps = Maps::take(&mut options)?;
        let namespace = maps.map(|maps| self.namespaces.slot(self.plan, maps));
        match mount.fstype.as_str() {
            _ if mount.is_bind() => bind(self.plan, &mount.source, &options, slot)?,
            // The layers are idmapped and not the whole, which the kernel does not allow.
            "overlay" => return self.overlay(&options, namespace, slot),
            "" => return Err(Error::invalid("mount without a type")),
            kind if kind.contains('/') => {
                return Err(Error::invalid(format!("type {kind:?}: meant for containerd's mount manager, which did not consume it")));
            }
            kind => filesystem(self.plan, kind, &mount.source, &options, slot)?,
        }
        if let Some(namespace) = namespace {
            self.plan.step(Step::IdMap { mount: slot, namespace, recursive: false });
        }
        Ok(())
    }

    /// Through descriptors alone, if the kernel can.
    fn overlay(&mut self, options: &Options, namespace: Option<Slot>, slot: Slot) -> Result<()> {
        let overlay = Overlay::parse(options, slot)?;
        let Place { kernel, target } = self.place;
        match namespace {
            None if kernel.layers_one_by_one => overlay.one_by_one(self.plan),
            None => overlay.by_path(&mut self.by_path, target),
            Some(namespace) if kernel.layers_by_descriptor => overlay.of_mounts(self.plan, namespace),
            Some(namespace) => overlay.of_gathered(self.plan, &mut self.by_path, namespace, target),
        }
    }
}

/// Emits the attaching of the layers, the first at `path` of the mount namespace, and gives the opened root.
pub fn attach(plan: &mut Builder, layers: &[Layer], path: &CStr) -> Slot {
    let root = plan.slot();
    for layer in layers {
        plan.step(match layer.target.is_empty() {
            true => Step::AttachRoot { mount: layer.mount, path: path.to_owned(), root },
            false => Step::Attach { mount: layer.mount, root, target: layer.target.clone(), rule: Target::Ordinary },
        });
    }
    root
}

/// Whether the host is to see the root filesystem in its place in the bundle: there hooks look for it that run in the runtime's namespaces, also
/// after the container's end, and so do those whom they tell of it. Elsewhere the bundle's place stays empty.
pub fn is_shown(spec: &Spec, rootfs: &[RootMount]) -> bool {
    let points = [Point::Prestart, Point::CreateRuntime, Point::Poststart, Point::Poststop];
    !rootfs.is_empty() && points.into_iter().any(|point| !point.of(spec.hooks.as_ref()).is_empty())
}

/// Emits the attaching of the layers in the host's own mount namespace, and gives the container's part of it: a clone, which follows what is
/// mounted below later on. The caller that runs the plan has to unmount it afterwards.
pub fn show(plan: &mut Builder, layers: &[Layer], by_path: ByPath, target: &Path) -> Result<Layer> {
    let target = target.to_string_lossy();
    if !by_path.is_empty() {
        let [table, namespace, root, process] = std::array::from_fn(|_| plan.slot());
        let host = Host { table, namespace, root, process };
        plan.step(Step::OpenHost { host });
        plan.step(Step::Unshare { flags: libc::CLONE_NEWNS });
        plan.step(Step::Propagation { flags: libc::MS_SLAVE | libc::MS_REC });
        by_path.emit(plan);
        plan.step(Step::ReturnToHost { host });
    }
    attach(plan, layers, &cstring("bundle", &target)?);
    let mount = plan.slot();
    bind(plan, &target, &Options { recursive: true, ..Options::default() }, mount)?;
    Ok(Layer { mount, target: CString::default() })
}

/// A clone of a part of the host's tree. By default it follows the host's mounts and gives none back, as runc's does.
pub fn bind(plan: &mut Builder, source: &str, options: &Options, slot: Slot) -> Result<()> {
    if !source.starts_with('/') {
        return Err(Error::invalid(format!("bind source {source:?} is not absolute")));
    }
    let follow = !options.source_itself && !options.copy_link;
    plan.step(Step::CloneTree { source: cstring("bind source", source)?, recursive: options.recursive, follow, mount: slot });
    if options.propagation.is_empty() {
        plan.step(Step::Attributes { mount: slot, recursive: true, set: 0, clear: 0, propagation: libc::MS_SLAVE });
    }
    attributes(plan, options, slot);
    Ok(())
}

/// Attributes that a mount did not get at birth.
pub fn attributes(plan: &mut Builder, options: &Options, slot: Slot) {
    for (recursive, set, clear) in [(false, options.set, options.clear), (true, options.set_all, options.clear_all)] {
        if set | clear != 0 {
            plan.step(Step::Attributes { mount: slot, recursive, set, clear: clear_mask(set, clear), propagation: 0 });
        }
    }
    for (propagation, recursive) in &options.propagation {
        plan.step(Step::Attributes { mount: slot, recursive: *recursive, set: 0, clear: 0, propagation: *propagation });
    }
}

fn filesystem(plan: &mut Builder, kind: &str, source: &str, options: &Options, slot: Slot) -> Result<()> {
    let fstype = cstring("type", kind)?;
    let mut settings = settings(&options.filesystem(true))?;
    let source = cstring("source", source)?;
    if options.loop_device {
        let filesystem = Filesystem { fstype, options: settings, mounts: Vec::new(), attributes: options.set };
        plan.step(Step::LoopMount { source, direct_io: options.direct_io, filesystem, mount: slot });
    } else {
        settings.insert(0, (c"source".to_owned(), Some(source)));
        new_mount(plan, &fstype, settings, options.set, slot);
    }
    Ok(())
}

/// Options as fsconfig(2) takes them.
pub fn settings(options: &[(String, Option<String>)]) -> Result<Vec<(CString, Option<CString>)>> {
    options
        .iter()
        .map(|(key, value)| Ok((cstring("mount option", key)?, value.as_deref().map(|v| cstring("mount option", v)).transpose()?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(layers_one_by_one: bool) -> Place<'static> {
        let kernel = Features { layers_one_by_one, layers_by_descriptor: layers_one_by_one, in_user_namespace: false, has_kcore: true };
        Place { target: Path::new("/t"), kernel }
    }

    fn mounts(kind: &str, options: &[&str]) -> Vec<RootMount> {
        vec![RootMount {
            fstype: kind.into(),
            source: kind.into(),
            options: options.iter().map(|o| (*o).to_owned()).collect(),
            ..RootMount::default()
        }]
    }

    #[test]
    fn layers_go_in_one_by_one() {
        let mut plan = Builder::default();
        assemble(
            &mut plan,
            &mounts("overlay", &["lowerdir=/a:/b\\:c", "upperdir=/u", "workdir=/w"]),
            Vec::new(),
            &mut Namespaces::default(),
            place(true),
        )
        .unwrap();
        let text = plan.finish().unwrap().0.to_string();
        assert!(text.contains("lowerdir+=/a,lowerdir+=/b:c"), "{text}");
    }

    #[test]
    fn old_kernels_get_short_relative_names() {
        let mut plan = Builder::default();
        let options = ["workdir=/s/9/work", "upperdir=/s/9/fs", "lowerdir=/s/1/fs:/s/2/fs", "index=off"];
        let (_, by_path) = assemble(&mut plan, &mounts("overlay", &options), Vec::new(), &mut Namespaces::default(), place(false)).unwrap();
        by_path.emit(&mut plan);
        let text = plan.finish().unwrap().0.to_string();
        assert!(text.contains("lowerdir=1/fs:2/fs,workdir=9/work,upperdir=9/fs,index=off"), "{text}");
        assert!(text.contains("/s"), "{text}");
    }

    #[test]
    fn layers_are_idmapped_each_and_the_rest_is_not() {
        let options = ["uidmap=0:1000:5,5:2000:1", "gidmap=0:3000:6", "lowerdir=/s/1/fs:/s/2/fs", "upperdir=/s/3/fs", "workdir=/s/3/work"];
        let text = |layers_one_by_one| {
            let mut plan = Builder::default();
            let (_, by_path) =
                assemble(&mut plan, &mounts("overlay", &options), Vec::new(), &mut Namespaces::default(), place(layers_one_by_one))
                    .unwrap();
            by_path.emit(&mut plan);
            plan.finish().unwrap().0.to_string()
        };
        let layers = "#1 = user namespace, users 0 1000 5, 5 2000 1, groups 0 3000 6\n#2 = bind \"/s/1/fs\"\nmap owners of #2 by #1\n\
                      #3 = bind \"/s/2/fs\"\nmap owners of #3 by #1\n";
        let overlay = "#0 = mount overlay [source=overlay,upperdir=/s/3/fs,workdir=/s/3/work,lowerdir+=#2,lowerdir+=#3] -\n";
        assert_eq!(text(true), format!("{layers}{overlay}"));
        let old = text(false);
        assert!(old.starts_with(layers), "{old}");
        assert!(old.ends_with("in \"/t\" [lowerdir=0:1,upperdir=/s/3/fs,workdir=/s/3/work]\n"), "{old}");
    }

    #[test]
    fn any_other_filesystem_is_idmapped_itself() {
        for (kind, options) in [("bind", &["rbind"] as &[&str]), ("ext4", &["loop"]), ("btrfs", &["subvol=x"])] {
            let mut plan = Builder::default();
            let mut mount = mounts(kind, &["uidmap=0:1000:5", "gidmap=0:1000:5", "ro"]);
            mount[0].source = "/s".into();
            mount[0].options.extend(options.iter().map(|option| (*option).to_owned()));
            assemble(&mut plan, &mount, Vec::new(), &mut Namespaces::default(), place(true)).unwrap();
            let text = plan.finish().unwrap().0.to_string();
            assert!(text.ends_with("map owners of #0 by #1\n") && !text.contains("uidmap"), "{text}");
        }
    }

    #[test]
    fn what_needs_a_helper_is_told_by_its_type() {
        let helper = |kind: &str| mounts(kind, &[])[0].helper().map(|(helper, kind)| (helper, kind.to_owned()));
        assert_eq!(helper("fuse3.fuse-overlayfs"), Some(("mount.fuse3", "fuse-overlayfs".to_owned())));
        assert_eq!(helper("fuse.nydus-overlayfs"), Some(("mount.fuse", "nydus-overlayfs".to_owned())));
        assert_eq!((helper("fuse"), helper("fuseblk")), (None, None));
        let error =
            assemble(&mut Builder::default(), &mounts("fuse.x", &[]), Vec::new(), &mut Namespaces::default(), place(true)).err().unwrap();
        assert_eq!(error.to_string(), "rootfs fuse.x: no helper was run");
    }

    #[test]
    fn transformations_of_the_mount_manager_are_refused_by_name() {
        for kind in ["format/overlay", "mkdir/bind", "format/mkdir/overlay", "mkfs/ext4"] {
            let error =
                assemble(&mut Builder::default(), &mounts(kind, &[]), Vec::new(), &mut Namespaces::default(), place(true)).err().unwrap();
            assert!(error.to_string().contains(&format!("type {kind:?}: meant for containerd's mount manager")), "{error}");
        }
        let error = assemble(
            &mut Builder::default(),
            &mounts("ext4", &["X-containerd.mkfs.fs=ext4"]),
            Vec::new(),
            &mut Namespaces::default(),
            place(true),
        )
        .err()
        .unwrap();
        assert!(error.to_string().contains("X-containerd.mkfs.fs=ext4"), "{error}");
    }

    #[test]
    fn other_filesystems_go_to_the_kernel_with_their_options() {
        for (kind, options, text) in [
            ("zfs", &["zfsutil", "noatime"] as &[&str], "#0 = mount zfs [source=zfs,zfsutil] noatime\n"),
            ("btrfs", &["subvol=a", "ro"], "#0 = mount btrfs [source=btrfs,ro,subvol=a] ro\n"),
            ("xfs", &["nouuid", "rw", "sync", "nosuid"], "#0 = mount xfs [source=xfs,sync,nouuid] nosuid\n"),
            ("erofs", &["ro", "loop"], "#0 = loop mount \"erofs\" erofs [ro] ro\n"),
            ("ext4", &["loop", "direct-io"], "#0 = loop mount \"ext4\", direct I/O, ext4 [] -\n"),
        ] {
            let mut plan = Builder::default();
            assemble(&mut plan, &mounts(kind, options), Vec::new(), &mut Namespaces::default(), place(true)).unwrap();
            assert_eq!(plan.finish().unwrap().0.to_string(), text);
        }
    }
}
