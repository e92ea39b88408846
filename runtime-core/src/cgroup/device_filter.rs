//! A device [`Policy`] as a `BPF_PROG_TYPE_CGROUP_DEVICE` program, for cgroup v2 (cgroup-v2.rst, "Device controller").
//!
//! The program gets a `struct bpf_cgroup_dev_ctx { u32 access_type; u32 major; u32 minor; }`, the access wanted in the upper half of
//! `access_type` and the type in the lower, and returns 1 to allow. It is one straight line: per exception a few comparisons that jump to
//! the next, then the default.

use std::os::fd::BorrowedFd;

use rustix::io::Errno;

use super::devices::{Access, Devices, Policy};
use crate::error::{Context, Result};
use crate::sys::bpf::{DeviceProgram, Insn};

/// eBPF operations (Documentation/bpf/standardization/instruction-set.rst).
mod code {
    pub const LOAD_WORD: u8 = 0x61;
    pub const AND: u8 = 0x54;
    pub const SHIFT_RIGHT: u8 = 0x74;
    pub const COPY: u8 = 0xbc;
    pub const MOVE: u8 = 0xb4;
    pub const JUMP_UNEQUAL: u8 = 0x56;
    pub const JUMP_EQUAL: u8 = 0x16;
    pub const EXIT: u8 = 0x95;
}

const RESULT: u8 = 0;
/// The context on entry, scratch after it is read.
const SCRATCH: u8 = 1;
const KIND: u8 = 2;
const WANTED: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

/// Puts the filter on the cgroup v2 directory `cgroup`, in place of one that is there.
///
/// Attached as one of several (`BPF_F_ALLOW_MULTI`): all of them, the ancestors' too, must allow. Replacing is atomic; where more than one is
/// found, the new one is in force before the others go.
pub(super) fn install(policy: &Policy, cgroup: BorrowedFd<'_>) -> Result<()> {
    let old = DeviceProgram::attached(cgroup).context(|| "list the device filters of the cgroup")?;
    let program = DeviceProgram::load(&compile(policy)).context(|| "load the device filter")?;
    let replaced = if let [single] = old.as_slice() { Some(single) } else { None };
    program.attach(cgroup, replaced).context(|| "attach the device filter to the cgroup")?;
    for other in old.iter().filter(|_| replaced.is_none()) {
        match other.detach(cgroup) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno).context(|| "detach the old device filter from the cgroup"),
        }
    }
    Ok(())
}

pub(super) fn compile(policy: &Policy) -> Vec<Insn> {
    let mut program = vec![
        load(KIND, 0),
        register(code::COPY, WANTED, KIND),
        constant(code::AND, KIND, 0xffff),
        constant(code::SHIFT_RIGHT, WANTED, 16),
        load(MAJOR, 4),
        load(MINOR, 8),
    ];
    for (devices, access) in &policy.exceptions {
        program.extend(exception(*devices, *access, policy.allow));
    }
    program.extend(verdict(policy.allow));
    program
}

/// Returns `!default` if the exception holds, else goes on behind its own end.
fn exception(devices: Devices, access: Access, default: bool) -> Vec<Insn> {
    let mut block = vec![constant(code::JUMP_UNEQUAL, KIND, devices.kind as u32)];
    for (register, number) in [(MAJOR, devices.major), (MINOR, devices.minor)] {
        block.extend(number.map(|number| constant(code::JUMP_UNEQUAL, register, number)));
    }
    block.push(register(code::COPY, SCRATCH, WANTED));
    // As security/device_cgroup.c: to be allowed, all that is wanted must be in one exception; to be denied, some of it suffices.
    if default {
        block.push(constant(code::AND, SCRATCH, access.bits()));
        block.push(constant(code::JUMP_EQUAL, SCRATCH, 0));
    } else {
        block.push(constant(code::AND, SCRATCH, !access.bits()));
        block.push(constant(code::JUMP_UNEQUAL, SCRATCH, 0));
    }
    block.extend(verdict(!default));
    let length = block.len();
    for (index, insn) in block.iter_mut().enumerate().filter(|(_, insn)| matches!(insn.code, code::JUMP_UNEQUAL | code::JUMP_EQUAL)) {
        // At most 9 instructions: always in range.
        insn.offset = i16::try_from(length - index - 1).unwrap_or(i16::MAX);
    }
    block
}

fn verdict(allow: bool) -> [Insn; 2] {
    [constant(code::MOVE, RESULT, u32::from(allow)), constant(code::EXIT, 0, 0)]
}

fn constant(code: u8, register: u8, immediate: u32) -> Insn {
    Insn { code, registers: register, offset: 0, immediate: immediate.cast_signed() }
}

fn register(code: u8, to: u8, from: u8) -> Insn {
    Insn { code, registers: to | from << 4, offset: 0, immediate: 0 }
}

fn load(to: u8, offset: i16) -> Insn {
    Insn { offset, ..register(code::LOAD_WORD, to, SCRATCH) }
}
