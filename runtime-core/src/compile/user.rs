//! A container in a user namespace.
//!
//! What belongs to the host is made with the host's rights: layers, binds, device nodes, the procfs. All of it is attached in a mount
//! namespace of the host's, which is copied when the process has entered the user namespace: the kernel then locks what is in it
//! (mount_namespaces(7)), so that nothing in the container can take a mount of the host's away, make it writable, or mount something back
//! through it. Clones of the locked mounts, which are locked themselves, go to their places.
//!
//! All its new namespaces belong to the user namespace, the pid namespace as well: so the process goes on as a new one, the init of that.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use oci_spec::runtime::LinuxNamespaceType;

use super::idmap::{Maps, Namespaces};
use super::mounts::new_mount;
use super::namespaces::{is_of, open_one};
use super::rootfs::{self, Layer};
use crate::error::{Context, Error, Result};
use crate::kernel::Features;
use crate::plan::{Builder, Slot, Step, Target};
use crate::spec::{Linux, Process, Spec};

/// The user namespace of a container.
pub struct User {
    /// Its maps.
    pub maps: Maps,
    given: Option<Slot>,
}

/// The maps that a spec has for its user namespace, if it has any.
///
/// # Errors
/// What is no map.
pub fn maps(linux: &Linux) -> Result<Option<Maps>> {
    let is_used = linux.namespaces.iter().any(|namespace| namespace.typ() == LinuxNamespaceType::User);
    if !is_used || (linux.uid_mappings.is_empty() && linux.gid_mappings.is_empty()) {
        return Ok(None);
    }
    Maps::of(&linux.uid_mappings, &linux.gid_mappings).context(|| "linux").map(Some)
}

impl User {
    /// Opens the given one, or has the maps of the one to be made.
    ///
    /// # Errors
    /// A path that is none of a user namespace, and ids that have no place in the maps.
    pub fn open(plan: &mut Builder, spec: &Spec, process: &Process) -> Result<Option<Self>> {
        let Some(namespace) = spec.linux.namespaces.iter().find(|namespace| namespace.typ() == LinuxNamespaceType::User) else {
            return Ok(None);
        };
        let given = namespace.path().as_deref().map(given).transpose().context(|| "linux.namespaces: user")?;
        let maps = match (maps(&spec.linux)?, &given) {
            (Some(maps), _) => maps,
            (None, Some(given)) => Maps::of_namespace(given.as_fd()).context(|| "linux.namespaces: user")?,
            (None, None) => return Err(Error::invalid("linux.uidMappings: there are none for a new user namespace")),
        };
        for (field, mapped) in [
            ("linux.uidMappings: user 0", maps.host_uid(0)),
            ("linux.gidMappings: group 0", maps.host_gid(0)),
            ("process.user.uid", maps.host_uid(process.user.uid)),
            ("process.user.gid", maps.host_gid(process.user.gid)),
        ] {
            mapped.ok_or_else(|| Error::invalid(format!("{field}: not mapped")))?;
        }
        Ok(Some(Self { maps, given: given.map(|given| plan.give(given)) }))
    }

    /// Where the namespace is, made if it has to be.
    pub fn namespace(&self, plan: &mut Builder, namespaces: &mut Namespaces) -> Slot {
        if let Some(given) = self.given {
            namespaces.know(self.maps.clone(), given);
        }
        namespaces.slot(plan, self.maps.clone())
    }

    /// Enters it as its root, and makes in it the mount namespace and others (`CLONE_NEW*`); the first process of a pid namespace is born.
    pub fn enter(&self, plan: &mut Builder, namespace: Slot, others: i32) {
        plan.step(Step::Join { namespace, flags: libc::CLONE_NEWUSER });
        become_root(plan);
        if self.given.is_some() {
            let (uid_map, gid_map) = self.maps.lines();
            plan.step(Step::CheckMaps { uid_map, gid_map });
        }
        plan.step(Step::Unshare { flags: libc::CLONE_NEWNS | others });
        if others & libc::CLONE_NEWPID != 0 {
            plan.step(Step::Birth);
        }
    }
}

fn given(path: &Path) -> Result<OwnedFd> {
    let opened = open_one(path, libc::CLONE_NEWUSER)?;
    if is_of(&opened, "self", "user")? {
        return Err(Error::invalid(format!("{path:?} is the host's own")));
    }
    Ok(opened)
}

/// Until then the process is nobody there.
pub fn become_root(plan: &mut Builder) {
    plan.step(Step::Identity { uid: 0, gid: 0, groups: Some(Vec::new()) });
}

/// Where mounts are attached while the process has the host's rights: in a small filesystem.
pub struct Shelf {
    /// Its root.
    pub root: Slot,
    place: Place,
    taken: Vec<(CString, Slot)>,
    count: usize,
}

fn placed(place: &Place, name: &CStr) -> CString {
    let here: &[u8] = match place {
        Place::Stub => b"/b/",
        Place::Host(_) => b"",
    };
    // A name holds no NUL.
    CString::new([here, name.to_bytes()].concat()).unwrap_or_default()
}

/// Where that is.
enum Place {
    /// At `/b` of the stub, whose `/r` is the container's root.
    Stub,
    /// At this path of a copy of the host's mount namespace, where the container's root comes to be in the end: until then it is on the shelf
    /// as well. A path through directories of the host may be closed to the root of a user namespace, so from there on the shelf is the
    /// working directory, which unshare(2) takes along into the copy.
    Host(CString),
}

/// The root's name on the shelf.
const ROOT: &CStr = c"r";

/// A filesystem that shows the kernel's own state, in full.
struct View {
    fstype: &'static CStr,
    /// Where it goes in the stub.
    path: &'static CStr,
    /// Its name on the shelf.
    name: &'static CStr,
    /// What may lie under it there.
    rule: Target,
}

const VIEWS: [View; 2] = [
    View { fstype: c"proc", path: c"/proc", name: c"proc", rule: Target::Proc },
    View { fstype: c"sysfs", path: c"/sys", name: c"sys", rule: Target::PlainDirectory },
];

impl Shelf {
    /// Emits its making, with the root filesystem that goes to `path` of the stub, or of a copy of the host's mount namespace, and a procfs
    /// and a sysfs: in their sight a process of the user namespace may mount its own (`mount_too_revealing` of the kernel's fs/namespace.c).
    ///
    /// A launcher in a user namespace may not mount a procfs of its pid namespace, which is the first user namespace's. Its stub and its
    /// copies have the procfs and the sysfs that it sees itself.
    pub fn new(plan: &mut Builder, layers: &[Layer], path: &CStr, of_host: bool, kernel: Features) -> Self {
        let views: &[View] = if kernel.in_user_namespace { &[] } else { &VIEWS };
        if of_host {
            return Self::in_copy(plan, layers, path, views);
        }
        rootfs::attach(plan, layers, path);
        Self::in_stub(plan, views)
    }

    fn in_stub(plan: &mut Builder, views: &[View]) -> Self {
        for view in views {
            let mount = plan.slot();
            new_mount(plan, view.fstype, Vec::new(), 0, mount);
            plan.step(Step::AttachRoot { mount, path: view.path.to_owned(), root: mount });
        }
        let root = plan.slot();
        new_mount(plan, c"tmpfs", vec![(c"mode".to_owned(), Some(c"711".to_owned()))], 0, root);
        plan.step(Step::AttachRoot { mount: root, path: c"/b".to_owned(), root });
        Self { root, place: Place::Stub, taken: Vec::new(), count: 0 }
    }

    /// The procfs and the sysfs of the host may be covered in part, which would not do.
    fn in_copy(plan: &mut Builder, layers: &[Layer], path: &CStr, views: &[View]) -> Self {
        let root = plan.slot();
        new_mount(plan, c"tmpfs", vec![(c"mode".to_owned(), Some(c"711".to_owned()))], 0, root);
        plan.step(Step::AttachRoot { mount: root, path: path.to_owned(), root });
        for view in views {
            let mount = plan.slot();
            new_mount(plan, view.fstype, Vec::new(), 0, mount);
            plan.step(Step::Attach { mount, root, target: view.name.to_owned(), rule: view.rule });
        }
        let whole = plan.slot();
        for layer in layers {
            if layer.target.is_empty() {
                plan.step(Step::Attach { mount: layer.mount, root, target: ROOT.to_owned(), rule: Target::PlainDirectory });
                plan.step(Step::OpenDirectory { root, path: ROOT.to_owned(), directory: whole });
            } else {
                plan.step(Step::Attach { mount: layer.mount, root: whole, target: layer.target.clone(), rule: Target::Ordinary });
            }
        }
        Self { root, place: Place::Host(path.to_owned()), taken: Vec::new(), count: 0 }
    }

    /// All is on it.
    pub fn close(&self, plan: &mut Builder) {
        if let Place::Host(path) = &self.place {
            plan.step(Step::SourceDirectory { path: path.clone() });
        }
    }

    /// Attaches a mount there.
    pub fn put(&mut self, plan: &mut Builder, mount: Slot) {
        let name = self.reserve(mount);
        plan.step(Step::Attach { mount, root: self.root, target: name, rule: Target::Ordinary });
    }

    /// The same for a mount that then has no descriptor: where it is.
    pub fn put_away(&mut self, plan: &mut Builder, mount: Slot) -> CString {
        let name = self.name();
        plan.step(Step::Attach { mount, root: self.root, target: name.clone(), rule: Target::Ordinary });
        plan.step(Step::Close { slot: mount });
        placed(&self.place, &name)
    }

    fn name(&mut self) -> CString {
        self.count += 1;
        // Digits hold no NUL.
        CString::new((self.count - 1).to_string()).unwrap_or_default()
    }

    /// The name of something that is made there, and will be a mount in `mount`.
    pub fn reserve(&mut self, mount: Slot) -> CString {
        let name = self.name();
        self.taken.push((name.clone(), mount));
        name
    }

    /// In the copy of the namespace: a clone of the root, and clones of all that is on the shelf, in the slots of the originals.
    pub fn take_down(self, plan: &mut Builder) -> Slot {
        let (mount, root) = (plan.slot(), plan.slot());
        let Self { place, taken, .. } = self;
        let (source, target) = match &place {
            Place::Stub => (c"/r", c"/r"),
            Place::Host(_) => (ROOT, c"."),
        };
        plan.step(Step::CloneTree { source: source.to_owned(), recursive: true, follow: true, mount });
        plan.step(Step::AttachRoot { mount, path: target.to_owned(), root });
        for (name, mount) in taken {
            plan.step(Step::CloneTree { source: placed(&place, &name), recursive: true, follow: true, mount });
        }
        root
    }
}
