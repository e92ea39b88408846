//! Paths beneath the container's root: every lookup by openat2(2) from a descriptor, never by a joined string.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::decimal::decimal;

/// A lookup that races with renames answers EAGAIN; runc measured 128 tries to be enough under attack.
const LOOKUP_TRIES: u32 = 128;
const PATH_MAX: usize = 4096;
/// As the kernel's own `MAXSYMLINKS`.
const LINKS_MAX: u32 = 40;
/// `PROC_SUPER_MAGIC` of linux/magic.h.
const PROC_MAGIC: i64 = 0x9fa0;

/// Which links a lookup may follow. All stay beneath the root; none follows the magic links of procfs.
#[derive(Clone, Copy, Debug)]
pub enum Links {
    /// As the container would see them.
    Follow,
    /// None at all.
    Refuse,
}

/// Opens `path` beneath `root` without side effects (`O_PATH`).
pub fn lookup(root: BorrowedFd<'_>, path: &CStr, links: Links, flags: OFlags) -> Result<OwnedFd, Errno> {
    open_with(root, path, links, flags | OFlags::PATH)
}

/// Opens `path` beneath `root`; a terminal found there does not become the caller's.
pub fn open(root: BorrowedFd<'_>, path: &CStr, links: Links, flags: OFlags) -> Result<OwnedFd, Errno> {
    open_with(root, path, links, flags | OFlags::NOCTTY)
}

fn open_with(root: BorrowedFd<'_>, path: &CStr, links: Links, flags: OFlags) -> Result<OwnedFd, Errno> {
    let mut resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    if matches!(links, Links::Refuse) {
        resolve |= ResolveFlags::NO_SYMLINKS;
    }
    let path = if path.is_empty() { c"." } else { path };
    for _ in 1..LOOKUP_TRIES {
        match rustix::fs::openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            result => return result,
        }
    }
    Err(Errno::AGAIN)
}

/// What to make at the end of a path that does not exist.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Make {
    Directory,
    File,
}

/// Opens `path` beneath `root`, making what is missing: parents as directories (0755), the last component as `make` says.
///
/// A link that points to nothing yet is followed, too, and what it points to is made: images have `/var/run -> /run` and
/// `/etc/resolv.conf -> ../run/…` without the target.
pub fn ensure(root: BorrowedFd<'_>, path: &CStr, make: Make, links: Links) -> Result<OwnedFd, Errno> {
    match lookup(root, path, links, OFlags::empty()) {
        Err(Errno::NOENT) => Walk::new(root, links).go(path.to_bytes(), make),
        result => result,
    }
}

/// The same, but a symbolic link at the end of `path` is what is opened.
pub fn ensure_itself(root: BorrowedFd<'_>, path: &CStr, make: Make) -> Result<OwnedFd, Errno> {
    let mut name = Name::default();
    let parent = parents(root, path.to_bytes(), Links::Follow)?;
    open_or_make(parent.as_fd(), name.set(last_component(path.to_bytes()))?, make)
}

/// Opens the directory that holds the last component of `path`, making missing ones.
pub fn parents(root: BorrowedFd<'_>, path: &[u8], links: Links) -> Result<OwnedFd, Errno> {
    let end = path.len() - last_component(path).len();
    let mut name = Name::default();
    ensure(root, name.set(&path[..end])?, Make::Directory, links)
}

/// A walk from the root, one component at a time, that makes what is missing.
///
/// Links are read and followed as text; every step down is a lookup of the whole path so far, which must be free of links. So a racing
/// rename can make the walk fail, but cannot lead it out of the root.
struct Walk<'a> {
    root: BorrowedFd<'a>,
    links: Links,
    followed: u32,
    /// Where the walk has come to: directories only, beneath the root.
    here: Text,
    /// What is still to be walked.
    rest: Text,
}

impl<'a> Walk<'a> {
    fn new(root: BorrowedFd<'a>, links: Links) -> Self {
        Self { root, links, followed: 0, here: Text::default(), rest: Text::default() }
    }

    fn go(mut self, path: &[u8], make: Make) -> Result<OwnedFd, Errno> {
        self.rest.prepend(path)?;
        let mut component = Name::default();
        loop {
            let parent = open_with(self.root, self.here.as_c_str()?, Links::Refuse, OFlags::PATH | OFlags::DIRECTORY)?;
            let Some(name) = self.rest.next_component(&mut component)? else { return Ok(parent) };
            match name.to_bytes() {
                b"." => continue,
                b".." => {
                    self.here.pop();
                    continue;
                }
                _ => {}
            }
            let last = self.rest.is_done();
            let found = open_or_make(parent.as_fd(), name, if last { make } else { Make::Directory })?;
            match FileType::from_raw_mode(rustix::fs::fstat(&found)?.st_mode) {
                FileType::Symlink => self.follow(found.as_fd())?,
                FileType::Directory => self.here.push(name.to_bytes())?,
                _ if last => return Ok(found),
                _ => return Err(Errno::NOTDIR),
            }
        }
    }

    fn follow(&mut self, link: BorrowedFd<'_>) -> Result<(), Errno> {
        self.followed += 1;
        // The text of a magic link is no path: procfs is where they are.
        if matches!(self.links, Links::Refuse) || self.followed > LINKS_MAX || on_procfs(link)? {
            return Err(Errno::LOOP);
        }
        let mut buffer = [0u8; PATH_MAX];
        let length = rustix::fs::readlinkat_raw(link, c"", buffer.as_mut_slice())?;
        let target = &buffer[..length];
        if target.first() == Some(&b'/') {
            self.here.clear();
        }
        self.rest.prepend(target)
    }
}

/// Opens a name without following it (`O_PATH`), making it if it is missing.
fn open_or_make(parent: BorrowedFd<'_>, name: &CStr, make: Make) -> Result<OwnedFd, Errno> {
    let open = || rustix::fs::openat(parent, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty());
    match open() {
        Err(Errno::NOENT) => {}
        result => return result,
    }
    match make {
        Make::Directory => make_directory(parent, name, 0o755)?,
        Make::File => make_file(parent, name)?,
    }
    open()
}

/// Whether a file is of a procfs.
pub fn on_procfs(fd: BorrowedFd<'_>) -> Result<bool, Errno> {
    Ok(rustix::fs::fstatfs(fd)?.f_type as i64 == PROC_MAGIC)
}

/// The part of `path` after its last slash.
pub fn last_component(path: &[u8]) -> &[u8] {
    path.rsplit(|&b| b == b'/').next().unwrap_or(path)
}

/// mkdirat(2) with an exact mode; an existing one is fine.
pub fn make_directory(parent: BorrowedFd<'_>, name: &CStr, mode: u32) -> Result<(), Errno> {
    match rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(mode)) {
        Err(Errno::EXIST) => Ok(()),
        result => result,
    }
}

fn make_file(parent: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::WRONLY;
    match rustix::fs::openat(parent, name, flags, Mode::from_raw_mode(0o644)) {
        Ok(_) | Err(Errno::EXIST) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// Removes a name that is no directory, so that it can be made anew; a missing one is fine.
pub fn remove(parent: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Err(Errno::NOENT) => Ok(()),
        result => result,
    }
}

/// A string on the stack, for names cut from longer paths: the child does not allocate.
pub struct Name {
    bytes: [u8; PATH_MAX],
}

impl Default for Name {
    fn default() -> Self {
        Self { bytes: [0; PATH_MAX] }
    }
}

impl Name {
    /// Holds `text`, which must be shorter than `PATH_MAX` and free of NUL.
    pub fn set(&mut self, text: &[u8]) -> Result<&CStr, Errno> {
        if text.len() >= PATH_MAX {
            return Err(Errno::NAMETOOLONG);
        }
        self.bytes[..text.len()].copy_from_slice(text);
        self.bytes[text.len()] = 0;
        CStr::from_bytes_with_nul(&self.bytes[..=text.len()]).map_err(|_| Errno::INVAL)
    }

    /// Holds the text of a symbolic link.
    pub fn link(&mut self, at: BorrowedFd<'_>, name: &CStr) -> Result<&CStr, Errno> {
        let length = rustix::fs::readlinkat_raw(at, name, &mut self.bytes[..PATH_MAX - 1])?;
        self.bytes[length] = 0;
        CStr::from_bytes_with_nul(&self.bytes[..=length]).map_err(|_| Errno::INVAL)
    }

    /// Holds a number as permissions are written.
    pub fn octal(&mut self, mut number: u32) -> Result<&CStr, Errno> {
        let (mut digits, mut start) = ([b'0'; 11], 11);
        while start == 11 || number > 0 {
            start -= 1;
            digits[start] = b'0' + (number & 7) as u8;
            number >>= 3;
        }
        self.set(&digits[start..])
    }

    /// Holds `prefix`, which must be short, and a number.
    pub fn numbered(&mut self, prefix: &[u8], number: u32) -> Result<&CStr, Errno> {
        let (mut text, mut digits) = ([0u8; 64], [0u8; 10]);
        let digits = decimal(number, &mut digits);
        let length = prefix.len() + digits.len();
        text.get_mut(..prefix.len()).ok_or(Errno::NAMETOOLONG)?.copy_from_slice(prefix);
        text.get_mut(prefix.len()..length).ok_or(Errno::NAMETOOLONG)?.copy_from_slice(digits);
        self.set(&text[..length])
    }
}

/// A relative path on the stack.
struct Text {
    bytes: [u8; PATH_MAX],
    start: usize,
    end: usize,
}

impl Default for Text {
    fn default() -> Self {
        Self { bytes: [0; PATH_MAX], start: 0, end: 0 }
    }
}

impl Text {
    fn clear(&mut self) {
        (self.start, self.end) = (0, 0);
        self.bytes[0] = 0;
    }

    fn as_c_str(&self) -> Result<&CStr, Errno> {
        CStr::from_bytes_until_nul(&self.bytes[self.start..]).map_err(|_| Errno::NAMETOOLONG)
    }

    /// Adds a component at the end.
    fn push(&mut self, name: &[u8]) -> Result<(), Errno> {
        let at = if self.end == 0 { 0 } else { self.end + 1 };
        if at + name.len() >= PATH_MAX {
            return Err(Errno::NAMETOOLONG);
        }
        if at > 0 {
            self.bytes[self.end] = b'/';
        }
        self.bytes[at..at + name.len()].copy_from_slice(name);
        self.end = at + name.len();
        self.bytes[self.end] = 0;
        Ok(())
    }

    /// Removes the component at the end: at the root there is none, as for `..` in `/`.
    fn pop(&mut self) {
        self.end = self.bytes[..self.end].iter().rposition(|&b| b == b'/').unwrap_or(0);
        self.bytes[self.end] = 0;
    }

    /// Puts a path before what is there.
    fn prepend(&mut self, path: &[u8]) -> Result<(), Errno> {
        let left = self.end - self.start;
        let length = path.len() + 1 + left;
        if length >= PATH_MAX {
            return Err(Errno::NAMETOOLONG);
        }
        self.bytes.copy_within(self.start..self.end, path.len() + 1);
        self.bytes[..path.len()].copy_from_slice(path);
        self.bytes[path.len()] = b'/';
        (self.start, self.end) = (0, length);
        Ok(())
    }

    /// Takes the component at the front.
    fn next_component<'n>(&mut self, name: &'n mut Name) -> Result<Option<&'n CStr>, Errno> {
        self.skip_slashes();
        if self.start == self.end {
            return Ok(None);
        }
        let left = &self.bytes[self.start..self.end];
        let length = left.iter().position(|&b| b == b'/').unwrap_or(left.len());
        let name = name.set(&left[..length])?;
        self.start += length;
        self.skip_slashes();
        Ok(Some(name))
    }

    fn skip_slashes(&mut self) {
        self.start += self.bytes[self.start..self.end].iter().take_while(|&&b| b == b'/').count();
    }

    fn is_done(&self) -> bool {
        self.start == self.end
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::CString;

    use super::*;

    fn root(directory: &std::path::Path) -> OwnedFd {
        rustix::fs::open(directory, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap()
    }

    #[test]
    fn missing_parents_are_made_beneath_the_root_through_absolute_links() {
        let directory = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/elsewhere", directory.path().join("link")).unwrap();
        std::fs::create_dir(directory.path().join("elsewhere")).unwrap();
        ensure(root(directory.path()).as_fd(), c"link/a/b", Make::File, Links::Follow).unwrap();
        assert!(directory.path().join("elsewhere/a/b").is_file());
    }

    fn make(directory: &std::path::Path, path: &CStr, what: Make) -> Result<OwnedFd, Errno> {
        ensure(root(directory).as_fd(), path, what, Links::Follow)
    }

    #[test]
    fn what_a_dangling_link_points_to_is_made_beneath_the_root() {
        let link = |target: &str, name: &str, directory: &std::path::Path| {
            std::os::unix::fs::symlink(target, directory.join(name)).unwrap();
        };
        let outer = tempfile::tempdir().unwrap();
        let inner = outer.path().join("a/root");
        std::fs::create_dir_all(inner.join("var")).unwrap();
        link("/run", "var/run", &inner);
        link("../../../../escape/./x", "up", &inner);
        link("var/run//secrets", "chain", &inner);
        link("../run/resolv", "var/resolv", &inner);
        make(&inner, c"var/run/lock/", Make::Directory).unwrap();
        make(&inner, c"up/y", Make::File).unwrap();
        make(&inner, c"chain/z", Make::Directory).unwrap();
        make(&inner, c"var/resolv", Make::File).unwrap();
        assert!(inner.join("run/lock").is_dir() && inner.join("escape/x/y").is_file());
        assert!(inner.join("run/secrets/z").is_dir() && inner.join("run/resolv").is_file());
        assert_eq!(std::fs::read_dir(outer.path()).unwrap().count(), 1);
    }

    #[test]
    fn links_that_lead_nowhere_are_errors_and_make_nothing() {
        let directory = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("loop/x", directory.path().join("loop")).unwrap();
        assert_eq!(make(directory.path(), c"loop/y", Make::Directory).unwrap_err(), Errno::LOOP);
        std::fs::write(directory.path().join("file"), "").unwrap();
        assert_eq!(make(directory.path(), c"file/y", Make::Directory).unwrap_err(), Errno::NOTDIR);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 2);
        let long = CString::new(vec![b'a'; 5000]).unwrap();
        assert_eq!(make(directory.path(), &long, Make::File).unwrap_err(), Errno::NAMETOOLONG);
    }

    #[test]
    fn a_dangling_link_is_refused_where_links_are() {
        let directory = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("nowhere", directory.path().join("proc")).unwrap();
        let error = ensure(root(directory.path()).as_fd(), c"proc", Make::Directory, Links::Refuse).unwrap_err();
        assert_eq!(error, Errno::LOOP);
        assert!(!directory.path().join("nowhere").exists());
    }

    proptest::proptest! {
        #[test]
        fn no_path_or_link_leads_out(path in "[ab./]{0,12}", target in "[ab./]{1,12}") {
            let outer = tempfile::tempdir().unwrap();
            let inner = outer.path().join("root");
            std::fs::create_dir(&inner).unwrap();
            std::os::unix::fs::symlink(target, inner.join("a")).unwrap();
            let _ = make(&inner, &CString::new(path).unwrap(), Make::Directory);
            proptest::prop_assert_eq!(std::fs::read_dir(outer.path()).unwrap().count(), 1);
        }
    }

    #[test]
    fn links_are_refused_where_a_plain_directory_is_asked() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("real")).unwrap();
        std::os::unix::fs::symlink("real", directory.path().join("proc")).unwrap();
        let error = ensure(root(directory.path()).as_fd(), c"proc", Make::Directory, Links::Refuse).unwrap_err();
        assert_eq!(error, Errno::LOOP);
    }
}
