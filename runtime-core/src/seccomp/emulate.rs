//! Runs a filter as the kernel does: the part of classic BPF that seccomp accepts (net/core/filter.c, seccomp_check_filter).

use super::Insn;

/// `struct seccomp_data` (include/uapi/linux/seccomp.h) without the instruction pointer.
#[derive(Clone, Copy, Debug, Default)]
pub struct Call {
    pub nr: u32,
    pub arch: u32,
    pub args: [u64; 6],
}

impl Call {
    fn word(&self, offset: u32) -> u32 {
        assert_eq!(offset % 4, 0, "unaligned load at {offset}");
        match offset {
            0 => self.nr,
            4 => self.arch,
            16..64 => {
                let bytes = self.args[(offset as usize - 16) / 8].to_ne_bytes();
                let half = (offset as usize) % 8;
                u32::from_ne_bytes([bytes[half], bytes[half + 1], bytes[half + 2], bytes[half + 3]])
            }
            _ => panic!("load outside of seccomp_data at {offset}"),
        }
    }
}

/// The verdict and how many instructions it took.
pub fn run(program: &[Insn], call: &Call) -> (u32, usize) {
    let (mut pc, mut a, mut steps) = (0, 0u32, 0);
    loop {
        let Insn { code, jt, jf, k } = program[pc];
        pc += 1;
        steps += 1;
        let taken = match code {
            0x20 => {
                a = call.word(k);
                continue;
            }
            0x54 => {
                a &= k;
                continue;
            }
            0x05 => {
                pc += k as usize;
                continue;
            }
            0x06 => return (k, steps),
            0x15 => a == k,
            0x25 => a > k,
            0x35 => a >= k,
            0x45 => a & k != 0,
            _ => panic!("code {code:#x} at {pc}"),
        };
        pc += usize::from(if taken { jt } else { jf });
    }
}
