//! Overlay root filesystems: four ways to the same mount, of which the kernel and the layers decide one.

use std::ffi::CString;
use std::path::{Component, Path};

use super::mounts::new_mount;
use super::options::Options;
use super::rootfs::{ByPath, settings};
use super::{cstring, relative};
use crate::error::{Error, ErrorKind, Result};
use crate::plan::{Builder, Filesystem, Slot, Step, Target};

/// fsconfig(2) takes strings shorter than this.
const STRING_MAX: usize = 256;
/// mount(2) copies one page of options.
const DATA_MAX: usize = 4096;
/// `OVL_MAX_STACK` of fs/overlayfs/params.h.
const LAYERS_MAX: usize = 500;
/// Where the overlay is mounted among its gathered layers, whose names are numbers.
const MERGED: &str = "merged";

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

/// An overlay that is to be mounted.
pub struct Overlay<'a> {
    options: &'a Options,
    layers: Vec<(LayerKind, String)>,
    mount: Slot,
}

impl<'a> Overlay<'a> {
    /// From mount options.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] without layers or with too many.
    pub fn parse(options: &'a Options, mount: Slot) -> Result<Self> {
        let lower = options.value("lowerdir").ok_or_else(|| Error::invalid("no lowerdir"))?;
        let layers = split_layers(lower);
        if layers.len() > LAYERS_MAX {
            return Err(Error::invalid(format!("{} layers: overlay takes at most {LAYERS_MAX}", layers.len())));
        }
        Ok(Self { options, layers, mount })
    }

    /// With one `lowerdir+` per layer. Paths that are too long for fsconfig(2) are given relative to what they have in common.
    pub fn one_by_one(&self, plan: &mut Builder) -> Result<()> {
        let layers = self.layers.iter().map(|(kind, path)| (kind.key().to_owned(), Some(path.clone())));
        self.through_descriptors(plan, layers.collect(), Vec::new())
    }

    /// The same with idmapped clones of the layers: an idmapped overlay as such is not allowed. The upper directory belongs to the mapped
    /// ids already, and one that is idmapped would make the overlay read-only.
    pub fn of_mounts(&self, plan: &mut Builder, namespace: Slot) -> Result<()> {
        let mounts = self.idmapped(plan, namespace)?;
        self.through_descriptors(plan, Vec::new(), mounts)
    }

    fn through_descriptors(&self, plan: &mut Builder, layers: Vec<(String, Option<String>)>, mounts: Vec<(CString, Slot)>) -> Result<()> {
        let mut all: Vec<_> = self.options.filesystem(true).into_iter().filter(|(key, _)| key != "lowerdir").collect();
        all.extend(layers);
        let base = shorten(&mut all)?;
        all.insert(0, ("source".to_owned(), Some("overlay".to_owned())));
        let options = settings(&all)?;
        if let Some(base) = &base {
            plan.step(Step::SourceDirectory { path: cstring("lowerdir", base)? });
        }
        let filesystem = Filesystem { fstype: c"overlay".to_owned(), options, mounts, attributes: self.options.set };
        plan.step(Step::NewMount { filesystem, mount: self.mount });
        if base.is_some() {
            plan.step(Step::SourceDirectory { path: c"/".to_owned() });
        }
        Ok(())
    }

    /// Emits an idmapped clone of each layer.
    fn idmapped(&self, plan: &mut Builder, namespace: Slot) -> Result<Vec<(CString, Slot)>> {
        let clone = |(kind, path): &(LayerKind, String)| {
            let mount = plan.slot();
            plan.step(Step::CloneTree { source: cstring("lowerdir", path)?, recursive: false, follow: true, mount });
            plan.step(Step::IdMap { mount, namespace, recursive: false });
            Ok((cstring("lowerdir", kind.key())?, mount))
        };
        self.layers.iter().map(clone).collect()
    }

    /// By mount(2) with one option string, its paths relative to their common parent so that it fits a page.
    pub fn by_path(&self, steps: &mut ByPath, target: &Path) -> Result<()> {
        let named = self.options.data.iter().filter(|(key, _)| is_upper(key)).filter_map(|(_, value)| value.as_ref());
        let paths: Vec<String> = self.layers.iter().map(|(_, path)| path).chain(named).cloned().collect();
        let base = common_parent(&paths);
        let short = |path: &str| escape(&below(&base, path));
        let lower: Vec<String> = self.layers.iter().map(|(_, path)| short(path)).collect();
        steps.step(self.mount_call(Path::new(&base), target, &lower, short)?);
        Ok(())
    }

    /// The same with idmapped clones of the layers, which get names in a small filesystem first.
    pub fn of_gathered(&self, plan: &mut Builder, steps: &mut ByPath, namespace: Slot, target: &Path) -> Result<()> {
        let layers = self.idmapped(plan, namespace)?;
        let (mount, root) = (plan.slot(), plan.slot());
        new_mount(plan, c"tmpfs", settings(&[("mode".to_owned(), Some("700".to_owned()))])?, 0, mount);
        steps.step(Step::AttachRoot { mount, path: cstring("rootfs", &target.to_string_lossy())?, root });
        let names: Vec<String> = (0..layers.len()).map(|index| index.to_string()).collect();
        for ((_, mount), name) in layers.iter().zip(&names) {
            steps.step(Step::Attach { mount: *mount, root, target: relative(name)?, rule: Target::Ordinary });
        }
        steps.step(Step::MakeDirectory { directory: root, name: cstring("rootfs", MERGED)?, mode: 0o700 });
        steps.step(self.mount_call(target, Path::new(MERGED), &names, escape)?);
        Ok(())
    }

    /// `lower` are the layers' names in `base`; `name` makes the names of the upper directories.
    fn mount_call(&self, base: &Path, target: &Path, lower: &[String], name: impl Fn(&str) -> String) -> Result<Step> {
        if self.layers.iter().any(|(kind, _)| *kind == LayerKind::DataOnly) {
            return Err(Error::new(ErrorKind::Unimplemented, "data-only layers need a kernel whose overlay knows lowerdir+ (Linux 6.8)"));
        }
        let mut data = vec![format!("lowerdir={}", lower.join(":"))];
        for (key, value) in self.options.filesystem(false).into_iter().filter(|(key, _)| key != "lowerdir") {
            data.push(match value {
                Some(path) if is_upper(&key) => format!("{key}={}", name(&path)),
                Some(value) => format!("{key}={value}"),
                None => key,
            });
        }
        let data = data.join(",");
        if data.len() >= DATA_MAX {
            let message = format!("{} layers need {} bytes of options, mount(2) takes {}", lower.len(), data.len(), DATA_MAX - 1);
            return Err(Error::invalid(message));
        }
        Ok(Step::OverlayByPath {
            base: cstring("lowerdir", &base.to_string_lossy())?,
            target: cstring("rootfs", &target.to_string_lossy())?,
            flags: mount_flags(self.options.set),
            data: cstring("overlay options", &data)?,
            mount: self.mount,
        })
    }
}

fn is_upper(key: &str) -> bool {
    matches!(key, "upperdir" | "workdir")
}

/// Makes the paths relative if one is too long, to the directory that is returned.
fn shorten(options: &mut [(String, Option<String>)]) -> Result<Option<String>> {
    let short = |(_, value): &(String, Option<String>)| value.as_ref().is_none_or(|value| value.len() < STRING_MAX);
    if options.iter().all(short) {
        return Ok(None);
    }
    let is_path = |key: &str| is_upper(key) || matches!(key, "lowerdir+" | "datadir+");
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
