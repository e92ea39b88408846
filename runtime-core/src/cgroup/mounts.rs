//! What a mount of type cgroup shows inside a container.

use std::path::{Path, PathBuf};

use super::Cgroup;
use super::host::{Mode, Version};

/// The hierarchies as a container mounts them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mounts {
    /// The v2 tree.
    V2,
    /// Each v1 hierarchy in a directory of its own.
    V1(Vec<MountedHierarchy>),
}

/// One v1 hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountedHierarchy {
    /// The directory's name below the mount point, for instance `cpu,cpuacct`.
    pub name: String,
    /// How the hierarchy is asked for: `cpu,cpuacct` or `none,name=systemd`.
    pub options: String,
    /// The container's directory in it, as the host sees it.
    pub directory: PathBuf,
}

impl Cgroup {
    /// What a container with this cgroup mounts.
    pub fn mounts(&self) -> Mounts {
        if self.mode == Mode::V2 {
            return Mounts::V2;
        }
        let v1 = self.trees.iter().filter(|tree| tree.version == Version::V1).map(|tree| {
            let hierarchy = tree.hierarchy();
            let name = Path::new(&hierarchy.mount_point).file_name().map(|name| name.to_string_lossy().into_owned());
            let options = hierarchy.controllers.join(",");
            let options = if options.starts_with("name=") { format!("none,{options}") } else { options };
            MountedHierarchy { name: name.unwrap_or_else(|| options.clone()), options, directory: tree.dir.path().into() }
        });
        Mounts::V1(v1.collect())
    }
}
