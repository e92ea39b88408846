//! The root filesystem from the snapshot's mounts, as detached mounts: the host's mount table never sees them.

use std::ffi::{CStr, CString};
use std::path::{Component, Path};

use super::mounts::new_mount;
use super::options::{Options, clear_mask};
use super::{cstring, relative};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::plan::{Builder, Filesystem, Slot, Step, Target};

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

/// A detached mount of the root filesystem and where it goes.
pub struct Layer {
    /// The mount.
    pub mount: Slot,
    /// Below the root; empty for the root itself.
    pub target: CString,
}

/// fsconfig(2) takes strings shorter than this.
const STRING_MAX: usize = 256;
/// mount(2) copies one page of options.
const DATA_MAX: usize = 4096;
/// `OVL_MAX_STACK` of fs/overlayfs/params.h.
const LAYERS_MAX: usize = 500;

/// Work that needs a private copy of the host's mount namespace.
pub struct ByPath(Vec<Step>);

impl ByPath {
    /// Whether there is any.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
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
    /// Whether overlay takes its layers one by one.
    pub layers_one_by_one: bool,
}

/// Emits the steps that make each mount of the root filesystem.
///
/// # Errors
/// [`ErrorKind::InvalidArgument`] for a mount that makes no sense, [`ErrorKind::Unimplemented`] for one this build cannot make.
pub fn assemble(plan: &mut Builder, mounts: &[RootMount], place: Place<'_>) -> Result<(Vec<Layer>, ByPath)> {
    if mounts.first().is_none_or(|mount| !relative(&mount.target).is_ok_and(|target| target.is_empty())) {
        return Err(Error::invalid("rootfs: the first mount must be the root itself"));
    }
    let mut layers = Vec::with_capacity(mounts.len());
    let mut by_path = ByPath(Vec::new());
    for mount in mounts {
        let slot = plan.slot();
        make(plan, &mut by_path, mount, slot, place).context(|| format!("rootfs {}", mount.fstype))?;
        layers.push(Layer { mount: slot, target: relative(&mount.target)? });
    }
    Ok((layers, by_path))
}

fn make(plan: &mut Builder, by_path: &mut ByPath, mount: &RootMount, slot: Slot, place: Place<'_>) -> Result<()> {
    let options = Options::parse(mount.options.iter().map(String::as_str))?;
    if options.value("uidmap").is_some() || options.value("gidmap").is_some() {
        return Err(Error::new(ErrorKind::Unimplemented, "uidmap/gidmap: this version does not support idmapped layers"));
    }
    match mount.fstype.as_str() {
        "bind" | "rbind" => bind(plan, &mount.source, &options, slot),
        _ if options.bind => bind(plan, &mount.source, &options, slot),
        "overlay" => overlay(plan, by_path, &options, slot, place),
        "" => Err(Error::invalid("mount without a type")),
        kind if kind.contains('/') => {
            Err(Error::invalid(format!("type {kind:?}: meant for containerd's mount manager, which did not consume it")))
        }
        kind if kind.starts_with("fuse.") || kind.starts_with("fuse3.") => {
            Err(Error::new(ErrorKind::Unimplemented, format!("type {kind:?}: FUSE helpers are not supported by this version")))
        }
        kind => filesystem(plan, kind, &mount.source, &options, slot),
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

/// A clone of a part of the host's tree. By default it follows the host's mounts and gives none back, as runc's does.
pub fn bind(plan: &mut Builder, source: &str, options: &Options, slot: Slot) -> Result<()> {
    if !source.starts_with('/') {
        return Err(Error::invalid(format!("bind source {source:?} is not absolute")));
    }
    plan.step(Step::CloneTree { source: cstring("bind source", source)?, recursive: options.recursive, mount: slot });
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
        let filesystem = Filesystem { fstype, options: settings, attributes: options.set };
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

/// Overlay with one `lowerdir+` per layer. Paths that are too long for fsconfig(2) are given relative to what they have in common.
fn overlay(plan: &mut Builder, by_path: &mut ByPath, options: &Options, slot: Slot, place: Place<'_>) -> Result<()> {
    let lower = options.value("lowerdir").ok_or_else(|| Error::invalid("no lowerdir"))?;
    let layers = split_layers(lower);
    if !place.layers_one_by_one {
        return overlay_by_path(by_path, options, &layers, slot, place.target);
    }
    if layers.len() > LAYERS_MAX {
        return Err(Error::invalid(format!("{} layers: overlay takes at most {LAYERS_MAX}", layers.len())));
    }
    let mut all: Vec<(String, Option<String>)> = options.filesystem(true).into_iter().filter(|(key, _)| key != "lowerdir").collect();
    all.extend(layers.into_iter().map(|(kind, path)| (kind.key().to_owned(), Some(path))));
    let base = shorten(&mut all)?;
    all.insert(0, ("source".to_owned(), Some("overlay".to_owned())));
    let settings = settings(&all)?;
    if let Some(base) = &base {
        plan.step(Step::SourceDirectory { path: cstring("lowerdir", base)? });
    }
    new_mount(plan, c"overlay", settings, options.set, slot);
    if base.is_some() {
        plan.step(Step::SourceDirectory { path: c"/".to_owned() });
    }
    Ok(())
}

/// Makes the paths relative if one is too long, to the directory that is returned.
fn shorten(options: &mut [(String, Option<String>)]) -> Result<Option<String>> {
    let short = |(_, value): &(String, Option<String>)| value.as_ref().is_none_or(|value| value.len() < STRING_MAX);
    if options.iter().all(short) {
        return Ok(None);
    }
    let is_path = |key: &str| matches!(key, "lowerdir+" | "datadir+" | "upperdir" | "workdir");
    let paths: Vec<String> = options.iter().filter(|(key, _)| is_path(key)).filter_map(|(_, value)| value.clone()).collect();
    let base = common_parent(&paths);
    for (key, value) in options.iter_mut().filter(|(key, _)| is_path(key)) {
        let Some(path) = value else { continue };
        *path = below(&base, path);
        if path.len() >= STRING_MAX {
            return Err(Error::invalid(format!("{key}: {path:?} is longer than fsconfig(2) takes, {} bytes", STRING_MAX - 1)));
        }
    }
    Ok(Some(base))
}

/// What a layer is for overlay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LayerKind {
    Ordinary,
    /// Holds only the contents of files that an ordinary layer names.
    DataOnly,
}

impl LayerKind {
    fn key(self) -> &'static str {
        match self {
            Self::Ordinary => "lowerdir+",
            Self::DataOnly => "datadir+",
        }
    }
}

/// Splits overlay's colon list; `\` escapes a colon, and what follows a double colon is a data-only layer (kernel
/// Documentation/filesystems/overlayfs.rst).
fn split_layers(list: &str) -> Vec<(LayerKind, String)> {
    let mut layers = Vec::new();
    let (mut path, mut kind) = (String::new(), LayerKind::Ordinary);
    let mut rest = list.chars();
    while let Some(c) = rest.next() {
        match c {
            '\\' => path.extend(rest.next()),
            ':' if path.is_empty() => kind = LayerKind::DataOnly,
            ':' => layers.push((kind, std::mem::take(&mut path))),
            c => path.push(c),
        }
    }
    if !path.is_empty() {
        layers.push((kind, path));
    }
    layers
}

/// One option string, its paths relative to their common parent so that it fits a page.
fn overlay_by_path(by_path: &mut ByPath, options: &Options, layers: &[(LayerKind, String)], slot: Slot, target: &Path) -> Result<()> {
    if layers.iter().any(|(kind, _)| *kind == LayerKind::DataOnly) {
        return Err(Error::new(ErrorKind::Unimplemented, "data-only layers need a kernel whose overlay knows lowerdir+ (Linux 6.5)"));
    }
    let is_path = |key: &str| matches!(key, "upperdir" | "workdir");
    let others = options.filesystem(false);
    let named = others.iter().filter(|(key, _)| is_path(key)).filter_map(|(_, value)| value.as_ref());
    let paths: Vec<String> = layers.iter().map(|(_, path)| path).chain(named).cloned().collect();
    let base = common_parent(&paths);
    let short = |path: &str| escape(&below(&base, path));
    let lower: Vec<String> = layers.iter().map(|(_, path)| short(path)).collect();
    let mut data = vec![format!("lowerdir={}", lower.join(":"))];
    for (key, value) in others.into_iter().filter(|(key, _)| key != "lowerdir") {
        data.push(match value {
            Some(path) if is_path(&key) => format!("{key}={}", short(&path)),
            Some(value) => format!("{key}={value}"),
            None => key,
        });
    }
    let data = data.join(",");
    if data.len() >= DATA_MAX {
        let message = format!("{} layers need {} bytes of options, mount(2) takes {}", layers.len(), data.len(), DATA_MAX - 1);
        return Err(Error::invalid(message));
    }
    by_path.0.push(Step::OverlayByPath {
        base: cstring("lowerdir", &base)?,
        target: cstring("rootfs", &target.to_string_lossy())?,
        flags: mount_flags(options.set),
        data: cstring("overlay options", &data)?,
        mount: slot,
    });
    Ok(())
}

fn below(base: &str, path: &str) -> String {
    path.strip_prefix(base).unwrap_or(path).trim_start_matches('/').to_owned()
}

/// The deepest directory above all `paths`.
fn common_parent(paths: &[String]) -> String {
    let components = |path: &str| -> Vec<String> {
        Path::new(path)
            .parent()
            .map(|parent| {
                parent
                    .components()
                    .filter_map(|c| match c {
                        Component::Normal(name) => Some(name.to_string_lossy().into_owned()),
                        _ => None,
                    })
                    .collect()
            })
            .unwrap_or_default()
    };
    let mut all = paths.iter().map(|path| components(path));
    let mut common = all.next().unwrap_or_default();
    for other in all {
        let same = common.iter().zip(&other).take_while(|(a, b)| a == b).count();
        common.truncate(same);
    }
    format!("/{}", common.join("/"))
}

fn escape(path: &str) -> String {
    path.replace('\\', "\\\\").replace(':', "\\:").replace(',', "\\,")
}

fn mount_flags(attributes: u64) -> u64 {
    // The first four attributes have mount(2)'s values.
    attributes & 0xf
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(layers_one_by_one: bool) -> Place<'static> {
        Place { target: Path::new("/t"), layers_one_by_one }
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
        assemble(&mut plan, &mounts("overlay", &["lowerdir=/a:/b\\:c", "upperdir=/u", "workdir=/w"]), place(true)).unwrap();
        let text = plan.finish().0.to_string();
        assert!(text.contains("lowerdir+=/a,lowerdir+=/b:c"), "{text}");
    }

    #[test]
    fn old_kernels_get_short_relative_names() {
        let mut plan = Builder::default();
        let options = ["workdir=/s/9/work", "upperdir=/s/9/fs", "lowerdir=/s/1/fs:/s/2/fs", "index=off"];
        let (_, by_path) = assemble(&mut plan, &mounts("overlay", &options), place(false)).unwrap();
        by_path.emit(&mut plan);
        let text = plan.finish().0.to_string();
        assert!(text.contains("lowerdir=1/fs:2/fs,workdir=9/work,upperdir=9/fs,index=off"), "{text}");
        assert!(text.contains("/s"), "{text}");
    }

    #[test]
    fn transformations_of_the_mount_manager_are_refused_by_name() {
        let mut plan = Builder::default();
        let error = assemble(&mut plan, &mounts("format/overlay", &[]), place(true)).err().unwrap();
        assert!(error.to_string().contains("format/overlay"), "{error}");
    }
}
