//! A FUSE server in which there is nothing but a directory of 12:34's, the root.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;

use runtime_core::sys::fork::{Fork, fork};
use rustix::mount::MountFlags;

/// The argument that makes a program of tests this server; after it come those of a mount helper.
pub const SERVER: &str = "fuse-server";
/// A mount option: who looks for a file waits for ever.
pub const SILENT: &str = "silent";

const LOOKUP: u32 = 1;

/// Mounts, goes to the background, and answers until the mount is gone.
pub fn serve() -> std::io::Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let is_silent = arguments.iter().any(|argument| argument == SILENT);
    let mut device = File::options().read(true).write(true).open("/dev/fuse")?;
    let data = std::ffi::CString::new(format!("fd={},rootmode=40000,user_id=0,group_id=0,allow_other", device.as_raw_fd()))?;
    rustix::mount::mount(arguments[2].as_str(), arguments[3].as_str(), "fuse.test", MountFlags::empty(), data.as_c_str())?;
    if matches!(fork(), Ok(Fork::Parent(_))) {
        return Ok(());
    }
    let mut request = vec![0u8; 1 << 18];
    loop {
        match device.read(&mut request) {
            Ok(_) if is_silent && request[4..8] == LOOKUP.to_ne_bytes() => {}
            Ok(length) => drop(device.write(&answer(&request[..length]))),
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENODEV | libc::ECONNABORTED)) => return Ok(()),
            Err(_) => {}
        }
    }
}

/// fuse(4): a header of the length, an errno and the request's number; then what the request asks for.
fn answer(request: &[u8]) -> Vec<u8> {
    const GETATTR: u32 = 3;
    const INIT: u32 = 26;
    let word = |at: usize| u32::from_ne_bytes([0, 1, 2, 3].map(|offset| request[at + offset]));
    let (errno, body): (i32, Vec<u32>) = match word(4) {
        // Version 7.31; the rest is zero: no limits that matter, no flags.
        INIT => (0, [7, 31].into_iter().chain([0; 14]).collect()),
        // For ever valid; inode 1; a directory with two links.
        GETATTR => (0, vec![u32::MAX, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0o40755, 2, 12, 34, 0, 512, 0]),
        _ => (-libc::ENOSYS, Vec::new()),
    };
    let mut answer = (16 + 4 * body.len() as u32).to_ne_bytes().to_vec();
    answer.extend(errno.to_ne_bytes());
    answer.extend(&request[8..16]);
    answer.extend(body.iter().flat_map(|word| word.to_ne_bytes()));
    answer
}
