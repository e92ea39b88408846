//! The program's own file cannot be reached through `/proc/<pid>/exe`.

use std::ffi::{CStr, CString};
use std::fs::Metadata;
use std::io::{BufRead, BufReader};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use runtime_core::sealed;
use runtime_core::sys::mount::{attr, set_attributes};
use runtime_core::sys::process::{StringArray, execve};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};

use super::bed::{Bed, Test};

pub const TESTS: &[Test] = &[
    ("a sealed program cannot be written to, by nobody and never", read_only),
    ("a sealed program keeps its arguments and its name", same_program),
    ("a sealed program keeps what is no text", odd_strings),
    ("a program is sealed as a copy where it may not be mounted", copied),
];

/// The argument that makes this program the sealed one.
pub const CHILD: &str = "be-sealed";

/// The argument that makes it execute itself as [`CHILD`] with odd arguments and an odd environment.
pub const ODD: &str = "be-odd";

/// No name of the program, no UTF-8, and an entry of the environment that is no `NAME=value`.
pub fn odd() {
    let strings = |all: &[&CStr]| StringArray::new(all.iter().map(|&text| text.to_owned()).collect());
    let arguments = strings(&[c"", &CString::new(CHILD).unwrap(), c"\xff"]);
    panic!("{}", execve(c"/proc/self/exe", &arguments, &strings(&[c"odd", c"X=\xfe", c"", c"X=2"])));
}

/// Seals itself, says so and waits for the end of its standard input.
pub fn child() {
    sealed::ensure().unwrap();
    let comm = std::fs::read_to_string("/proc/self/comm").unwrap();
    let links = std::fs::read_dir("/proc/self/fd").unwrap().filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok());
    let open = links.filter(|target| target.as_os_str() == "/").count();
    println!("{} {} {open} {:?}", sealed::is_sealed().unwrap(), comm.trim(), std::env::args_os().skip(1).collect::<Vec<_>>());
    std::io::stdin().lock().read_line(&mut String::new()).unwrap();
}

fn start(program: &Path) -> (Child, String) {
    started(Command::new(program).args([CHILD, "second"]))
}

fn started(command: &mut Command) -> (Child, String) {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
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

fn odd_strings(_: &Bed) {
    let (child, line) = started(Command::new(std::env::current_exe().unwrap()).arg(ODD));
    assert_eq!(line.trim(), format!("true coracle 0 [\"{CHILD}\", \"\\xFF\"]"));
    let read = |file: &str| std::fs::read(format!("/proc/{}/{file}", child.id())).unwrap();
    assert_eq!(read("cmdline"), [b"\0", CHILD.as_bytes(), b"\0\xff\0"].concat());
    assert_eq!(read("environ"), b"odd\0X=\xfe\0\0X=2\0");
    end(child);
}

/// A user namespace without a mount namespace of its own has no right to the one that the program lies in.
fn copied(_: &Bed) {
    let own = std::env::current_exe().unwrap();
    let (child, line) = started(Command::new("unshare").args(["--user", "--map-root-user"]).arg(&own).arg(CHILD));
    assert!(line.starts_with("true "), "{line}");
    let link = format!("/proc/{}/exe", child.id());
    assert_eq!(std::fs::read_link(&link).unwrap().to_str(), Some("/memfd:coracle (deleted)"));
    let program = rustix::fs::open(&*link, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).unwrap();
    end(child);
    let path = format!("/proc/self/fd/{}", program.as_raw_fd());
    let writable = rustix::fs::open(&*path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).unwrap();
    assert_eq!(rustix::io::write(&writable, b"#!/bin/sh"), Err(Errno::PERM));
    assert_eq!(rustix::fs::ftruncate(&writable, 0), Err(Errno::PERM));
    assert_eq!(std::fs::read(&path).unwrap(), std::fs::read(own).unwrap());
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
