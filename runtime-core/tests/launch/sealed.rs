//! The program's own file cannot be reached through `/proc/<pid>/exe`.

use std::fs::Metadata;
use std::io::{BufRead, BufReader};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use runtime_core::sealed;
use runtime_core::sys::mount::{attr, set_attributes};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};

use super::bed::{Bed, Test};

pub const TESTS: &[Test] = &[
    ("a sealed program cannot be written to, by nobody and never", read_only),
    ("a sealed program keeps its arguments and its name", same_program),
];

/// The argument that makes this program the sealed one.
pub const CHILD: &str = "be-sealed";

/// Seals itself, says so and waits for the end of its standard input.
pub fn child() {
    sealed::ensure().unwrap();
    let comm = std::fs::read_to_string("/proc/self/comm").unwrap();
    let links = std::fs::read_dir("/proc/self/fd").unwrap().filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok());
    let open = links.filter(|target| target.as_os_str() == "/").count();
    println!("{} {} {open} {:?}", sealed::is_sealed().unwrap(), comm.trim(), std::env::args().skip(1).collect::<Vec<_>>());
    std::io::stdin().lock().read_line(&mut String::new()).unwrap();
}

fn start(program: &Path) -> (Child, String) {
    let mut child = Command::new(program).args([CHILD, "second"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    (child, line)
}

fn end(mut child: Child) {
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
}

fn same_program(_: &Bed) {
    let own = std::env::current_exe().unwrap();
    let (child, line) = start(&own);
    let name: String = own.file_name().unwrap().to_string_lossy().chars().take(15).collect();
    // None of its descriptors is on the mount.
    assert_eq!(line.trim(), format!("true {name} 0 [\"{CHILD}\", \"second\"]"));
    end(child);
}

/// Every way to write through `program`, a descriptor of the link's target.
fn attack(program: &OwnedFd, path: &str, refusal: Errno) {
    let reopen = |flags| rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty()).map(drop);
    assert_eq!(reopen(OFlags::WRONLY), Err(refusal));
    assert_eq!(reopen(OFlags::RDWR | OFlags::TRUNC), Err(Errno::ROFS));
    assert_eq!(rustix::fs::chmod(path, 0o777.into()), Err(Errno::ROFS));
    // The tests have CAP_SYS_ADMIN: nothing undoes it.
    let clear = set_attributes(program.as_fd(), c"", false, 0, attr::RDONLY, 0);
    assert_eq!(clear, Err(Errno::INVAL));
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    assert_eq!(open_tree(program, c"", flags).map(drop).err(), Some(Errno::INVAL));
}

fn read_only(_: &Bed) {
    let directory = tempfile::tempdir().unwrap();
    // A copy, which nobody else executes: otherwise ETXTBSY would protect it for ever.
    let own = directory.path().join("program");
    std::fs::copy(std::env::current_exe().unwrap(), &own).unwrap();
    let before = std::fs::metadata(&own).unwrap();
    let (child, _) = start(&own);
    let link = format!("/proc/{}/exe", child.id());
    assert_eq!(std::fs::read_link(&link).unwrap().to_str(), Some("/"));
    let program = rustix::fs::open(&*link, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
    attack(&program, &link, Errno::TXTBSY);
    end(child);
    attack(&program, &format!("/proc/self/fd/{}", program.as_raw_fd()), Errno::ROFS);
    let after = std::fs::metadata(&own).unwrap();
    let about = |file: &Metadata| (file.ino(), file.size(), file.ctime(), file.ctime_nsec(), file.mode());
    assert_eq!(about(&before), about(&after));
}
