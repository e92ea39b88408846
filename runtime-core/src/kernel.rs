//! What the running kernel can do beyond the floor, Linux 5.14, and what it lets this process do: asked once.

use std::ffi::CStr;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::OnceLock;

use rustix::fs::{Mode, OFlags};
use rustix::mount::{FsOpenFlags, fsconfig_set_fd, fsconfig_set_string, fsopen};

/// Newer calls, each of which has a plain path with the same result, and what the kernel of this process has and lets it do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Features {
    /// Overlay takes its layers one by one, as `lowerdir+` and `datadir+` (Linux 6.8, Documentation/filesystems/overlayfs.rst).
    pub layers_one_by_one: bool,
    /// Overlay takes detached mounts as layers (Linux 6.15, which also lets fsconfig(2) take `O_PATH` descriptors, as these are).
    pub layers_by_descriptor: bool,
    /// Root is only a user's own here ([`in_user_namespace`]): device nodes are bound from the host's `/dev` instead of made, and the only
    /// procfs and sysfs are those that the user sees.
    pub in_user_namespace: bool,
    /// There is `/proc/kcore` (CONFIG_PROC_KCORE), to which runc's `/dev/core` is a link.
    pub has_kcore: bool,
}

impl Features {
    /// The running kernel's, asked at the first call.
    pub fn get() -> Self {
        static FEATURES: OnceLock<Features> = OnceLock::new();
        *FEATURES.get_or_init(Self::probe)
    }

    fn probe() -> Self {
        #[cfg(feature = "failpoints")]
        let newer_overlay = !crate::failpoints::old_overlay();
        #[cfg(not(feature = "failpoints"))]
        let newer_overlay = true;
        Self {
            layers_one_by_one: newer_overlay && overlay_takes(c"lowerdir+"),
            layers_by_descriptor: newer_overlay && overlay_takes_descriptors(),
            in_user_namespace: in_user_namespace(),
            has_kcore: Path::new("/proc/kcore").exists(),
        }
    }
}

/// Whether root is only a user's own here: this process is in a user namespace that is not the machine's first one. Device nodes, device rules
/// of a cgroup and the cgroups of others are not for it.
///
/// Its maps do not tell: others may map every id to itself, too.
pub fn in_user_namespace() -> bool {
    static ANSWER: OnceLock<bool> = OnceLock::new();
    *ANSWER.get_or_init(|| !is_first(Path::new("/proc/self/ns/user")))
}

/// Whether this is the user namespace that the kernel began with. Its inode's number is part of the kernel's interface (`USER_NS_INIT_INO` of
/// include/uapi/linux/nsfs.h), and was the same before that said so (Linux 3.8, include/linux/proc_ns.h).
fn is_first(namespace: &Path) -> bool {
    const USER_NS_INIT_INO: u64 = 0xEFFF_FFFD;
    rustix::fs::stat(namespace).is_ok_and(|found| found.st_ino == USER_NS_INIT_INO)
}

/// fsconfig(2) refuses an option that the filesystem does not know; nothing is mounted by asking.
///
/// Before Linux 6.5 overlay learned its options only when it was mounted, and fsconfig(2) took any (fs/fs_context.c, `legacy_parse_param`),
/// so an answer counts only where nonsense is refused.
fn overlay_takes(option: &CStr) -> bool {
    let taken = |option: &CStr| {
        let Ok(context) = fsopen(c"overlay", FsOpenFlags::FSOPEN_CLOEXEC) else { return false };
        fsconfig_set_string(context.as_fd(), option, c"/").is_ok()
    };
    taken(option) && !taken(c"nosuchdir+")
}

fn overlay_takes_descriptors() -> bool {
    let Ok(context) = fsopen(c"overlay", FsOpenFlags::FSOPEN_CLOEXEC) else { return false };
    let directory = rustix::fs::open(c"/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    directory.is_ok_and(|directory| fsconfig_set_fd(context.as_fd(), c"lowerdir+", directory.as_fd()).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_namespace_that_maps_all_is_not_the_first_one() {
        let mut other = std::process::Command::new("unshare").args(["--user", "cat"]).stdin(std::process::Stdio::piped()).spawn().unwrap();
        let directory = format!("/proc/{}", other.id());
        let namespace = || std::fs::read_link(format!("{directory}/ns/user")).unwrap();
        let own = std::fs::read_link("/proc/self/ns/user").unwrap();
        // The time that unshare(1) takes to do so.
        while namespace() == own {
            std::thread::yield_now();
        }
        std::fs::write(format!("{directory}/uid_map"), "0 0 4294967295").unwrap();
        let (maps, first) = (std::fs::read_to_string(format!("{directory}/uid_map")), is_first(Path::new(&format!("{directory}/ns/user"))));
        drop(other.stdin.take());
        other.wait().unwrap();
        assert!(maps.unwrap().split_ascii_whitespace().eq(["0", "0", "4294967295"]) && !first);
        assert!(is_first(Path::new("/proc/self/ns/user")) && !is_first(Path::new("/proc/self/ns/mnt")) && !is_first(Path::new("/none")));
    }

    #[test]
    fn an_option_that_overlay_lacks_is_told_from_one_that_it_has() {
        assert!(!overlay_takes(c"othernonsense+"));
        // Both the running kernel and the check must know it.
        let release = rustix::system::uname().release().to_string_lossy().into_owned();
        let mut numbers = release.split(|c: char| !c.is_ascii_digit()).filter_map(|part| part.parse::<u32>().ok());
        let version = (numbers.next().unwrap(), numbers.next().unwrap());
        assert_eq!(overlay_takes(c"lowerdir+"), version >= (6, 8), "{release}");
        assert_eq!(overlay_takes(c"workdir"), version >= (6, 5), "{release}");
        assert_eq!(overlay_takes_descriptors(), version >= (6, 15), "{release}");
    }
}
