//! Mount options, as the OCI spec (config.md, "Linux mount options") and containerd's snapshotters write them.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::sys::mount::attr;

/// What a list of options asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// `bind` or `rbind`: the source is a path, not a filesystem of its own.
    pub bind: bool,
    /// `rbind`: with everything mounted below the source.
    pub recursive: bool,
    /// Attributes of the mount itself, to set and to clear.
    pub set: u64,
    /// See [`Options::set`].
    pub clear: u64,
    /// Attributes of everything below, too.
    pub set_all: u64,
    /// See [`Options::set_all`].
    pub clear_all: u64,
    /// Whether any flag of the mount itself is asked for, by mount(2)'s count: that the superblock has it makes no difference.
    pub has_flags: bool,
    /// `relatime`, which has no attribute of its own.
    pub relative_atime: bool,
    /// Propagation types with their recursiveness, in order.
    pub propagation: Vec<(u64, bool)>,
    /// `idmap`, or `ridmap` for what is mounted below, too.
    pub idmap: Option<bool>,
    /// `loop`: the source is a file.
    pub loop_device: bool,
    /// `tmpcopyup`: a tmpfs begins with what the image has in its place.
    pub copy_up: bool,
    /// `copy-symlink`: a source that is a symbolic link is made anew in the container.
    pub copy_link: bool,
    /// `src-nofollow`: a source that is a symbolic link is mounted itself.
    pub source_itself: bool,
    /// `dest-nofollow`: what is mounted covers a symbolic link at the destination, not what this points to.
    pub destination_itself: bool,
    /// `direct-io` of a loop device.
    pub direct_io: bool,
    /// Flags of the filesystem's superblock, by fsconfig(2)'s names.
    pub superblock: Vec<&'static str>,
    /// Everything else: `key` or `key=value`, for the filesystem.
    pub data: Vec<(String, Option<String>)>,
}

enum Meaning {
    Nothing,
    /// A flag of mount(2)'s that has no effect where it is not the default.
    Plain,
    Set(u64),
    Clear(u64),
    AccessTime(u64),
    SetAll(u64),
    ClearAll(u64),
    Propagation(u64, bool),
    Superblock(&'static str),
    NotSuperblock(&'static str),
}

/// Superblock flag names that fsconfig(2) knows (`vfs_parse_sb_flag`), with the attribute that goes along.
const READ_ONLY: &str = "ro";

fn meaning(option: &str) -> Option<Meaning> {
    use Meaning::{AccessTime, Clear, ClearAll, NotSuperblock, Nothing, Plain, Propagation, Set, SetAll, Superblock};
    Some(match option {
        "defaults" | "remount" => Nothing,
        "iversion" | "noiversion" | "loud" | "silent" => Plain,
        "async" => NotSuperblock("sync"),
        "nomand" => NotSuperblock("mand"),
        "nolazytime" => NotSuperblock("lazytime"),
        "ro" => Set(attr::RDONLY),
        "rw" => Clear(attr::RDONLY),
        "nosuid" => Set(attr::NOSUID),
        "suid" => Clear(attr::NOSUID),
        "nodev" => Set(attr::NODEV),
        "dev" => Clear(attr::NODEV),
        "noexec" => Set(attr::NOEXEC),
        "exec" => Clear(attr::NOEXEC),
        "nodiratime" => Set(attr::NODIRATIME),
        "diratime" => Clear(attr::NODIRATIME),
        "nosymfollow" => Set(attr::NOSYMFOLLOW),
        "symfollow" => Clear(attr::NOSYMFOLLOW),
        // The access time modes exclude each other; clearing the field gives relatime, the kernel's default.
        "noatime" => AccessTime(attr::NOATIME),
        "strictatime" => AccessTime(attr::STRICTATIME),
        "relatime" => AccessTime(0),
        "atime" | "norelatime" | "nostrictatime" => Clear(attr::ATIME_MASK),
        "rro" => SetAll(attr::RDONLY),
        "rrw" => ClearAll(attr::RDONLY),
        "rnosuid" => SetAll(attr::NOSUID),
        "rsuid" => ClearAll(attr::NOSUID),
        "rnodev" => SetAll(attr::NODEV),
        "rdev" => ClearAll(attr::NODEV),
        "rnoexec" => SetAll(attr::NOEXEC),
        "rexec" => ClearAll(attr::NOEXEC),
        "rnodiratime" => SetAll(attr::NODIRATIME),
        "rdiratime" => ClearAll(attr::NODIRATIME),
        "rnosymfollow" => SetAll(attr::NOSYMFOLLOW),
        "rsymfollow" => ClearAll(attr::NOSYMFOLLOW),
        "rnoatime" => SetAll(attr::NOATIME),
        "rstrictatime" => SetAll(attr::STRICTATIME),
        "rrelatime" | "ratime" | "rnorelatime" | "rnostrictatime" => ClearAll(attr::ATIME_MASK),
        "private" => Propagation(libc::MS_PRIVATE, false),
        "rprivate" => Propagation(libc::MS_PRIVATE, true),
        "slave" => Propagation(libc::MS_SLAVE, false),
        "rslave" => Propagation(libc::MS_SLAVE, true),
        "shared" => Propagation(libc::MS_SHARED, false),
        "rshared" => Propagation(libc::MS_SHARED, true),
        "unbindable" => Propagation(libc::MS_UNBINDABLE, false),
        "runbindable" => Propagation(libc::MS_UNBINDABLE, true),
        "sync" => Superblock("sync"),
        "dirsync" => Superblock("dirsync"),
        "mand" => Superblock("mand"),
        "lazytime" => Superblock("lazytime"),
        _ => return None,
    })
}

/// Options whose values may have commas: directories of overlayfs, lists of ranges.
const WITH_COMMAS: [&str; 5] = ["lowerdir", "upperdir", "workdir", "uidmap", "gidmap"];

/// Options of SELinux (mount(8)).
const CONTEXTS: [&str; 4] = ["context", "fscontext", "defcontext", "rootcontext"];

/// Every option name with a meaning of its own, for the `features` document.
pub const NAMES: &[&str] = &[
    "async",
    "atime",
    "bind",
    "copy-symlink",
    "defaults",
    "dest-nofollow",
    "dev",
    "diratime",
    "dirsync",
    "exec",
    "idmap",
    "iversion",
    "lazytime",
    "loud",
    "mand",
    "noatime",
    "nodev",
    "nodiratime",
    "noexec",
    "noiversion",
    "nolazytime",
    "nomand",
    "norelatime",
    "nostrictatime",
    "nosuid",
    "nosymfollow",
    "private",
    "ratime",
    "rbind",
    "rdev",
    "rdiratime",
    "relatime",
    "remount",
    "rexec",
    "ridmap",
    "rnoatime",
    "rnodev",
    "rnodiratime",
    "rnoexec",
    "rnorelatime",
    "rnostrictatime",
    "rnosuid",
    "rnosymfollow",
    "ro",
    "rprivate",
    "rrelatime",
    "rro",
    "rrw",
    "rshared",
    "rslave",
    "rstrictatime",
    "rsuid",
    "rsymfollow",
    "runbindable",
    "rw",
    "shared",
    "silent",
    "slave",
    "src-nofollow",
    "strictatime",
    "suid",
    "symfollow",
    "sync",
    "tmpcopyup",
    "unbindable",
];

impl Options {
    /// Reads a list of options.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`](crate::ErrorKind::InvalidArgument) for options that this build may not silently drop.
    pub fn parse<'a>(options: impl IntoIterator<Item = &'a str>) -> Result<Self> {
        let mut parsed = Self::default();
        for option in options {
            for part in parts(option) {
                parsed.add(part)?;
            }
        }
        Ok(parsed)
    }

    fn add(&mut self, option: &str) -> Result<()> {
        match option {
            "" => return Ok(()),
            "bind" => self.bind = true,
            "rbind" => (self.bind, self.recursive) = (true, true),
            "loop" => self.loop_device = true,
            "direct-io" => self.direct_io = true,
            "idmap" => self.idmap = Some(false),
            "ridmap" => self.idmap = Some(true),
            "tmpcopyup" => self.copy_up = true,
            "copy-symlink" => self.copy_link = true,
            "src-nofollow" => self.source_itself = true,
            "dest-nofollow" => self.destination_itself = true,
            _ if option.starts_with("X-containerd.") => {
                return Err(Error::invalid(format!(
                    "mount option {option:?}: meant for containerd's mount manager, which did not consume it"
                )));
            }
            _ => match meaning(option) {
                Some(meaning) => self.apply(meaning),
                None => self.data.push(match option.split_once('=') {
                    // The quotes are for mount(2), where a comma would end the value; fsconfig(2) takes it as it is.
                    Some((key, value)) if CONTEXTS.contains(&key) => (key.to_owned(), Some(value.trim_matches('"').to_owned())),
                    Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
                    None => (option.to_owned(), None),
                }),
            },
        }
        Ok(())
    }

    fn apply(&mut self, meaning: Meaning) {
        let change = |bits: u64, to: &mut u64, other: &mut u64| {
            *other &= !bits;
            *to |= bits;
        };
        self.has_flags |= !matches!(meaning, Meaning::Nothing | Meaning::SetAll(_) | Meaning::ClearAll(_) | Meaning::Propagation(..));
        match meaning {
            Meaning::Nothing | Meaning::Plain => {}
            Meaning::Set(bits) => change(bits, &mut self.set, &mut self.clear),
            Meaning::Clear(bits) => {
                change(bits, &mut self.clear, &mut self.set);
                self.relative_atime &= bits & attr::ATIME_MASK == 0;
            }
            Meaning::AccessTime(mode) => {
                change(attr::ATIME_MASK, &mut self.clear, &mut self.set);
                change(mode, &mut self.set, &mut self.clear);
                self.relative_atime = mode == 0;
            }
            Meaning::SetAll(bits) => change(bits, &mut self.set_all, &mut self.clear_all),
            Meaning::ClearAll(bits) => change(bits, &mut self.clear_all, &mut self.set_all),
            Meaning::Propagation(flags, recursive) => self.propagation.push((flags, recursive)),
            Meaning::Superblock(name) => self.superblock.push(name),
            Meaning::NotSuperblock(name) => self.superblock.retain(|given| *given != name),
        }
    }

    /// The flags that the options of a bind ask for, if they ask for any (runc `libcontainer/rootfs_linux.go`, `mountToRootfs`): it has these and no
    /// others, those of the source go. Access times stay as they are unless there is a word about them.
    pub fn of_bind(&self) -> Option<BindFlags> {
        let access_time = attr::ATIME_MASK | attr::NODIRATIME;
        let has_access_time = self.relative_atime || self.set & access_time != 0;
        let all = attr::LOCKABLE | attr::NOSYMFOLLOW | if has_access_time { access_time } else { 0 };
        self.has_flags.then_some(BindFlags {
            set: self.set,
            clear: clear_mask(self.set, all & !self.set),
            unwanted: self.clear & attr::LOCKABLE,
            has_access_time,
        })
    }

    /// The value of a filesystem option.
    pub fn value(&self, key: &str) -> Option<&str> {
        self.data.iter().rev().find(|(name, _)| name == key).and_then(|(_, value)| value.as_deref())
    }

    /// Takes a filesystem option out: its last value.
    pub fn take(&mut self, key: &str) -> Option<String> {
        let value = self.value(key).map(str::to_owned);
        self.data.retain(|(name, _)| name != key);
        value
    }

    /// What fsconfig(2) is told: the superblock's flags, then the filesystem's own options. A read-only superblock only where it is the
    /// container's own: those of the kernel's virtual filesystems are shared.
    pub fn filesystem(&self, own_superblock: bool) -> Vec<(String, Option<String>)> {
        let read_only = (own_superblock && self.set & attr::RDONLY != 0).then_some(READ_ONLY);
        let flags = read_only.into_iter().chain(self.superblock.iter().copied()).map(|name| (name.to_owned(), None));
        flags.chain(self.data.iter().cloned()).collect()
    }
}

/// Several options in one text, as mount(2) takes them and so runc and crun: a comma separates, unless it is quoted, escaped or before a
/// digit (`mpol=bind:0,2`, mm/shmem.c, `shmem_next_opt`).
fn parts(option: &str) -> Vec<&str> {
    let whole = |key: &str, value: &str| WITH_COMMAS.contains(&key) || (CONTEXTS.contains(&key) && !value.starts_with('"'));
    if option.split_once('=').is_some_and(|(key, value)| whole(key, value)) {
        return vec![option];
    }
    let (mut parts, mut start) = (Vec::new(), 0);
    let (mut quoted, mut before) = (false, b' ');
    for (at, &byte) in option.as_bytes().iter().enumerate() {
        quoted ^= byte == b'"';
        let digit_follows = option.as_bytes().get(at + 1).is_some_and(u8::is_ascii_digit);
        if byte == b',' && !quoted && before != b'\\' && !digit_follows {
            parts.push(&option[start..at]);
            start = at + 1;
        }
        before = byte;
    }
    parts.push(&option[start..]);
    parts
}

/// The flags of a bind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BindFlags {
    /// What it has.
    pub set: u64,
    /// What goes, unless it is locked.
    pub clear: u64,
    /// What must go: it was asked for by name.
    pub unwanted: u64,
    /// Whether access times are among them.
    pub has_access_time: bool,
}

/// mount_setattr(2): to set one access time mode, the whole field must be cleared.
pub fn clear_mask(set: u64, clear: u64) -> u64 {
    if set & attr::ATIME_MASK != 0 { clear | attr::ATIME_MASK } else { clear }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_of_two_opposites_wins() {
        let options = Options::parse(["ro", "nosuid", "rw"]).unwrap();
        assert_eq!((options.set, options.clear), (attr::NOSUID, attr::RDONLY));
    }

    #[test]
    fn of_the_access_times_the_last_one_wins_and_is_alone() {
        let set = |options: &[&'static str]| Options::parse(options.iter().copied()).unwrap().set;
        assert_eq!(set(&["noatime", "strictatime"]), attr::STRICTATIME);
        assert_eq!(set(&["strictatime", "noatime", "ro"]), attr::NOATIME | attr::RDONLY);
        assert_eq!(set(&["strictatime", "relatime"]), 0);
    }

    #[test]
    fn a_bind_has_the_flags_of_its_options_and_no_others() {
        let flags = |options: &[&'static str]| Options::parse(options.iter().copied()).unwrap().of_bind();
        for options in [&["rbind", "rprivate"] as &[&str], &["bind", "rro", "remount", "defaults"]] {
            assert_eq!(flags(options), None, "{options:?}");
        }
        let rw = flags(&["rbind", "rprivate", "rw"]).unwrap();
        assert_eq!((rw.set, rw.clear, rw.unwanted), (0, attr::LOCKABLE | attr::NOSYMFOLLOW, attr::RDONLY));
        let sync = flags(&["bind", "sync"]).unwrap();
        assert_eq!((sync.set, sync.unwanted, sync.has_access_time), (0, 0, false));
        let noatime = flags(&["bind", "ro", "noatime"]).unwrap();
        assert_eq!(noatime.set, attr::RDONLY | attr::NOATIME);
        assert_eq!(noatime.clear & (attr::ATIME_MASK | attr::NODIRATIME), attr::ATIME_MASK | attr::NODIRATIME);
        assert!(flags(&["bind", "relatime"]).unwrap().has_access_time && !flags(&["bind", "relatime", "atime"]).unwrap().has_access_time);
    }

    #[test]
    fn words_of_fstab_are_the_filesystems() {
        for word in ["nofail", "auto", "_netdev", "user", "acl", "x-systemd.automount"] {
            assert_eq!(Options::parse([word]).unwrap().data, [(word.to_owned(), None)]);
        }
    }

    #[test]
    fn what_is_not_an_option_of_ours_goes_to_the_filesystem() {
        let options = Options::parse(["size=64k", "mode=755", "nosuid", "userxattr"]).unwrap();
        assert_eq!(options.value("size"), Some("64k"));
        assert_eq!(options.data.last(), Some(&("userxattr".to_owned(), None)));
    }

    #[test]
    fn one_text_may_hold_several_options() {
        let options = Options::parse(["size=64k,mode=755,nosuid", ",", "context=\"a:s0:c1,c2\",uid=1"]).unwrap();
        assert_eq!((options.value("size"), options.value("mode"), options.value("uid")), (Some("64k"), Some("755"), Some("1")));
        assert_eq!((options.set, options.value("context")), (attr::NOSUID, Some("a:s0:c1,c2")));
        for (whole, key, value) in [
            ("lowerdir=/a,b:/c", "lowerdir", "/a,b:/c"),
            ("context=a:s0:c1,c2", "context", "a:s0:c1,c2"),
            ("x=a\\,b", "x", "a\\,b"),
            ("mpol=bind:0,2", "mpol", "bind:0,2"),
        ] {
            assert_eq!(Options::parse([whole]).unwrap().value(key), Some(value));
        }
    }

    #[test]
    fn options_for_the_mount_manager_never_reach_the_kernel() {
        let error = Options::parse(["X-containerd.mkdir.path=/x"]).unwrap_err();
        assert!(error.to_string().contains("X-containerd.mkdir.path"), "{error}");
    }

    #[test]
    fn every_listed_name_is_understood() {
        for name in NAMES {
            assert!(Options::parse([*name]).unwrap().data.is_empty(), "{name}");
        }
    }
}
