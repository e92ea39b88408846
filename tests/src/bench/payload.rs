//! What the containers of the benchmark run: programs of a few instructions without a C library, so that the payload's own start does not
//! hide the runtime's.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::Result;

/// exit(0).
#[cfg(target_arch = "x86_64")]
const TRUE: &[u8] = &[0x31, 0xff, 0xb8, 60, 0, 0, 0, 0x0f, 0x05];
/// pause(2) for ever.
#[cfg(target_arch = "x86_64")]
const PAUSE: &[u8] = &[0xb8, 34, 0, 0, 0, 0x0f, 0x05, 0xeb, 0xf7];
/// `EM_X86_64` of elf(5).
#[cfg(target_arch = "x86_64")]
const MACHINE: u16 = 62;

/// exit(0): `mov x0, #0; mov x8, #93; svc #0`.
#[cfg(target_arch = "aarch64")]
const TRUE: &[u8] = &[0x00, 0x00, 0x80, 0xd2, 0xa8, 0x0b, 0x80, 0xd2, 0x01, 0x00, 0x00, 0xd4];
/// ppoll(NULL, 0, NULL, NULL) for ever.
#[cfg(target_arch = "aarch64")]
const PAUSE: &[u8] = &[
    0x00, 0x00, 0x80, 0xd2, 0x01, 0x00, 0x80, 0xd2, 0x02, 0x00, 0x80, 0xd2, 0x03, 0x00, 0x80, 0xd2, 0x28, 0x09, 0x80, 0xd2, 0x01, 0x00,
    0x00, 0xd4, 0xfa, 0xff, 0xff, 0x17,
];
/// `EM_AARCH64` of elf(5).
#[cfg(target_arch = "aarch64")]
const MACHINE: u16 = 183;

/// Where the program is loaded.
const BASE: u64 = 0x40_0000;
/// ELF header and one program header.
const HEADERS: u64 = 64 + 56;

/// Writes `true` and `pause` into the root directory of a system.
pub fn write(root: &Path) -> Result<()> {
    for (name, code) in [("true", TRUE), ("pause", PAUSE)] {
        let path = root.join(name);
        fs::write(&path, elf(code))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    }
    Ok(())
}

/// A static executable of one segment (elf(5)).
fn elf(code: &[u8]) -> Vec<u8> {
    let size = HEADERS + code.len() as u64;
    let mut out = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    for half in [2u16, MACHINE] {
        out.extend(half.to_le_bytes());
    }
    out.extend(1u32.to_le_bytes());
    for word in [BASE + HEADERS, 64, 0] {
        out.extend(word.to_le_bytes());
    }
    out.extend(0u32.to_le_bytes());
    for half in [64u16, 56, 1, 0, 0, 0] {
        out.extend(half.to_le_bytes());
    }
    // PT_LOAD, readable and executable.
    out.extend(1u32.to_le_bytes());
    out.extend(5u32.to_le_bytes());
    for word in [0, BASE, BASE, size, size, 0x1000] {
        out.extend(word.to_le_bytes());
    }
    out.extend(code);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_run() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path()).unwrap();
        let run = |name: &str| {
            // A test beside this one may just have forked, and its child holds the file open for writing until it executes.
            let spawned = || match std::process::Command::new(dir.path().join(name)).spawn() {
                Err(error) if error.kind() == std::io::ErrorKind::ExecutableFileBusy => None,
                spawned => Some(spawned),
            };
            crate::wait::until(std::time::Duration::from_secs(5), spawned).unwrap().unwrap()
        };
        assert!(run("true").wait().unwrap().success());
        let mut pause = run("pause");
        assert!(crate::command::wait_for(&mut pause, std::time::Duration::from_millis(50)).unwrap().is_none());
        pause.kill().unwrap();
        pause.wait().unwrap();
    }
}
