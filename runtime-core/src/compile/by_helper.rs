//! Mounts of the root filesystem that a program of the host's has to make: FUSE.
//!
//! The program, and the server that it leaves running, live in a pid namespace and in a private copy of the host's mount namespace. The mount
//! is taken from there, detached, and given to the container; the host's mount table never has it. The first process of the pid namespace
//! ends when all others have ended, and whoever kills it kills all of them.
//!
//! The server is not in the container's cgroup: the device rules there would keep it from `/dev/fuse`, and a container that is paused or
//! has used up its memory would stop its own root filesystem. It ends by itself when the last user of its mount is gone.

use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::path::Path;

use super::options::Options;
use super::process::UMASK;
use super::rootfs::RootMount;
use super::{Compiled, cstring, cstrings};
use crate::error::{Context, Error, Result};
use crate::plan::{Builder, Launch, Program, Step};

/// Where helpers are looked for, and what they find their own programs in.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Everything that the plan of a helper is compiled from.
pub struct ByHelper<'a> {
    /// A mount that has a helper ([`RootMount::helper`]).
    pub mount: &'a RootMount,
    /// An existing directory of the host, which stays as it is.
    pub target: &'a Path,
    /// Where the child reports: the mount, then its end.
    pub report: OwnedFd,
}

/// A process that has a helper make a mount, hands it over, and stays for as long as what the helper has started.
///
/// # Errors
/// [`ErrorKind::InvalidArgument`](crate::ErrorKind::InvalidArgument) for options that are not meant for helpers.
pub fn by_helper(inputs: ByHelper<'_>) -> Result<Compiled> {
    let ByHelper { mount, target, report } = inputs;
    let (name, kind) = mount.helper().ok_or_else(|| Error::invalid(format!("type {:?} has no mount helper", mount.fstype)))?;
    Options::parse(mount.options.iter().map(String::as_str)).context(|| format!("rootfs {}", mount.fstype))?;
    let target = target.to_string_lossy();

    let mut plan = Builder::default();
    let report = plan.give(report);
    let slot = plan.slot();
    plan.step(Step::Session);
    plan.step(Step::Umask { mask: UMASK });
    plan.step(Step::Unshare { flags: libc::CLONE_NEWNS });
    plan.step(Step::Propagation { flags: libc::MS_SLAVE | libc::MS_REC });
    plan.step(Step::FindProgram);
    plan.step(Step::MountByHelper { target: cstring("rootfs", &target)?, mount: slot });
    plan.step(Step::HandOver { descriptor: slot });
    plan.step(Step::Keep);

    let mut arguments = vec![name.to_owned(), mount.source.clone(), target.into_owned()];
    arguments.extend(mount.options.iter().flat_map(|option| ["-o".to_owned(), option.clone()]));
    arguments.extend(["-t".to_owned(), kind.to_owned()]);
    let program = Program {
        name: name.to_owned(),
        candidates: PATH.split(':').map(|place| cstring("helper", &format!("{place}/{name}"))).collect::<Result<Vec<CString>>>()?,
        arguments: cstrings("rootfs", &arguments)?,
        environment: vec![cstring("helper", &format!("PATH={PATH}"))?],
    };
    let (plan, descriptors) = plan.finish()?;
    let launch = Launch { plan, program, clone_flags: libc::CLONE_NEWPID as u64, cgroup: None, report };
    Ok(Compiled { launch, descriptors })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compiled(options: &[&str]) -> Result<Compiled> {
        let mount = RootMount {
            fstype: "fuse3.fuse-overlayfs".into(),
            source: "overlay".into(),
            target: String::new(),
            options: options.iter().map(|option| (*option).to_owned()).collect(),
        };
        let report = std::fs::File::open("/dev/null").unwrap().into();
        by_helper(ByHelper { mount: &mount, target: Path::new("/run/b/rootfs"), report })
    }

    #[test]
    fn the_helper_is_told_what_containerd_tells_it() {
        let Launch { plan, program, .. } = compiled(&["lowerdir=/a:/b", "ro"]).unwrap().launch;
        let arguments: Vec<_> = program.arguments.iter().map(|argument| argument.to_str().unwrap()).collect();
        assert_eq!(arguments, ["mount.fuse3", "overlay", "/run/b/rootfs", "-o", "lowerdir=/a:/b", "-o", "ro", "-t", "fuse-overlayfs"]);
        assert_eq!(program.environment.len(), 1);
        let text = plan.to_string();
        let own = text.find("new namespaces mount\nchange propagation of / to recursive|slave\n").unwrap();
        assert!(own < text.find("#1 = mount by helper at \"/run/b/rootfs\"\ngive #1 away\n").unwrap(), "{text}");
    }

    #[test]
    fn options_for_the_mount_manager_never_reach_a_helper() {
        let error = compiled(&["X-containerd.x=y"]).err().unwrap();
        assert!(error.to_string().contains("X-containerd.x=y"), "{error}");
    }
}
