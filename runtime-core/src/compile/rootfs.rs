//! The root filesystem from the snapshot's mounts, as detached mounts: the host's mount table never sees them.

use std::ffi::CString;
use std::path::{Component, Path};

use super::options::{Options, clear_mask};
use super::{cstring, relative};
use crate::error::{Error, ErrorKind, Result};
use crate::plan::{Builder, Slot, Step};

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

/// Emits the steps that make each mount of the root filesystem. `target` is an existing directory of the host, needed by the old way.
///
/// # Errors
/// [`ErrorKind::InvalidArgument`] for a mount that makes no sense, [`ErrorKind::Unimplemented`] for one this build cannot make.
pub fn assemble(plan: &mut Builder, mounts: &[RootMount], target: &Path, layers_one_by_one: bool) -> Result<(Vec<Layer>, ByPath)> {
    let mut layers = Vec::with_capacity(mounts.len());
    let mut by_path = ByPath(Vec::new());
    for mount in mounts {
        let options =
            Options::parse(mount.options.iter().map(String::as_str)).map_err(|e| e.context(format!("rootfs {}", mount.fstype)))?;
        let slot = plan.slot();
        make(plan, &mut by_path, mount, &options, slot, target, layers_one_by_one)
            .map_err(|e| e.context(format!("rootfs {}", mount.fstype)))?;
        layers.push(Layer { mount: slot, target: relative(&mount.target)? });
    }
    Ok((layers, by_path))
}

fn make(
    plan: &mut Builder,
    by_path: &mut ByPath,
    mount: &RootMount,
    options: &Options,
    slot: Slot,
    target: &Path,
    layers_one_by_one: bool,
) -> Result<()> {
    if options.value("uidmap").is_some() || options.value("gidmap").is_some() {
        return Err(Error::new(ErrorKind::Unimplemented, "uidmap/gidmap: this version does not support idmapped layers"));
    }
    match mount.fstype.as_str() {
        "bind" | "rbind" => {
            bind(plan, &mount.source, options, slot)?;
        }
        _ if options.bind => bind(plan, &mount.source, options, slot)?,
        "overlay" => overlay(plan, by_path, options, slot, target, layers_one_by_one)?,
        "" => return Err(Error::invalid("mount without a type")),
        kind if kind.contains('/') => {
            return Err(Error::invalid(format!("type {kind:?}: meant for containerd's mount manager, which did not consume it")));
        }
        kind if kind.starts_with("fuse.") || kind.starts_with("fuse3.") => {
            return Err(Error::new(ErrorKind::Unimplemented, format!("type {kind:?}: FUSE helpers are not supported by this version")));
        }
        kind => filesystem(plan, kind, &mount.source, options, slot)?,
    }
    Ok(())
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
    if options.loop_device {
        plan.step(Step::LoopMount {
            source: cstring("source", source)?,
            direct_io: options.direct_io,
            fstype,
            options: settings,
            attributes: options.set,
            mount: slot,
        });
    } else {
        settings.insert(0, (c"source".to_owned(), Some(cstring("source", source)?)));
        plan.step(Step::NewMount { fstype, options: settings, attributes: options.set, mount: slot });
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

fn overlay(plan: &mut Builder, by_path: &mut ByPath, options: &Options, slot: Slot, target: &Path, layers_one_by_one: bool) -> Result<()> {
    let lower = options.value("lowerdir").ok_or_else(|| Error::invalid("no lowerdir"))?;
    let layers = split_layers(lower);
    let others: Vec<_> = options.filesystem(true).into_iter().filter(|(key, _)| key != "lowerdir").collect();
    let short = |text: &str| text.len() < STRING_MAX;
    let fits = layers.iter().all(|(_, path)| short(path)) && others.iter().all(|(_, value)| value.as_deref().is_none_or(short));
    if !layers_one_by_one || !fits {
        return overlay_by_path(by_path, options, slot, target);
    }
    let mut settings = settings(&others)?;
    for (key, path) in &layers {
        settings.push(((*key).to_owned(), Some(cstring("lowerdir", path)?)));
    }
    settings.insert(0, (c"source".to_owned(), Some(c"overlay".to_owned())));
    plan.step(Step::NewMount { fstype: c"overlay".to_owned(), options: settings, attributes: options.set, mount: slot });
    Ok(())
}

/// Splits overlay's colon list; `\` escapes a colon, and what follows a double colon is a data-only layer (kernel
/// Documentation/filesystems/overlayfs.rst).
fn split_layers(list: &str) -> Vec<(&'static std::ffi::CStr, String)> {
    let mut layers = Vec::new();
    let (mut path, mut key) = (String::new(), c"lowerdir+");
    let mut rest = list.chars();
    while let Some(c) = rest.next() {
        match c {
            '\\' => path.extend(rest.next()),
            ':' if path.is_empty() => key = c"datadir+",
            ':' => layers.push((key, std::mem::take(&mut path))),
            c => path.push(c),
        }
    }
    if !path.is_empty() {
        layers.push((key, path));
    }
    layers
}

/// One option string, its paths relative to their common parent so that it fits a page.
fn overlay_by_path(by_path: &mut ByPath, options: &Options, slot: Slot, target: &Path) -> Result<()> {
    let lower = options.value("lowerdir").unwrap_or_default();
    let mut paths: Vec<String> = split_layers(lower).into_iter().map(|(_, path)| path).collect();
    if lower.contains("::") {
        return Err(Error::new(ErrorKind::Unimplemented, "data-only layers need lowerdir+ (Linux 6.5) and paths below 256 bytes"));
    }
    let layers = paths.len();
    let named = options.data.iter().filter(|(key, _)| matches!(key.as_str(), "upperdir" | "workdir"));
    paths.extend(named.filter_map(|(_, value)| value.clone()));
    let base = common_parent(&paths);
    let short: Vec<String> = paths.iter().map(|path| escape(path.strip_prefix(&base).unwrap_or(path).trim_start_matches('/'))).collect();
    let mut data = vec![format!("lowerdir={}", short[..layers].join(":"))];
    let mut named = short[layers..].iter();
    for (key, value) in options.filesystem(false) {
        match key.as_str() {
            "lowerdir" => {}
            "upperdir" | "workdir" => data.extend(named.next().map(|path| format!("{key}={path}"))),
            _ => data.push(value.map_or(key.clone(), |value| format!("{key}={value}"))),
        }
    }
    let data = data.join(",");
    if data.len() >= DATA_MAX {
        return Err(Error::invalid(format!("{layers} layers need {} bytes of options, mount(2) takes {}", data.len(), DATA_MAX - 1)));
    }
    by_path.0.push(Step::OverlayByPath {
        base: cstring("lowerdir", if base.is_empty() { "/" } else { &base })?,
        target: cstring("rootfs", &target.to_string_lossy())?,
        flags: mount_flags(options.set),
        data: cstring("overlay options", &data)?,
        mount: slot,
    });
    Ok(())
}

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
    common.iter().map(|name| format!("/{name}")).collect()
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
        assemble(&mut plan, &mounts("overlay", &["lowerdir=/a:/b\\:c", "upperdir=/u", "workdir=/w"]), Path::new("/t"), true).unwrap();
        let text = plan.finish().0.to_string();
        assert!(text.contains("lowerdir+=/a,lowerdir+=/b:c"), "{text}");
    }

    #[test]
    fn old_kernels_get_short_relative_names() {
        let mut plan = Builder::default();
        let options = ["workdir=/s/9/work", "upperdir=/s/9/fs", "lowerdir=/s/1/fs:/s/2/fs", "index=off"];
        let (_, by_path) = assemble(&mut plan, &mounts("overlay", &options), Path::new("/t"), false).unwrap();
        by_path.emit(&mut plan);
        let text = plan.finish().0.to_string();
        assert!(text.contains("lowerdir=1/fs:2/fs,workdir=9/work,upperdir=9/fs,index=off"), "{text}");
        assert!(text.contains("/s"), "{text}");
    }

    #[test]
    fn transformations_of_the_mount_manager_are_refused_by_name() {
        let mut plan = Builder::default();
        let error = assemble(&mut plan, &mounts("format/overlay", &[]), Path::new("/t"), true).err().unwrap();
        assert!(error.to_string().contains("format/overlay"), "{error}");
    }
}
