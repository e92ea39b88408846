//! The architectures a profile may name, and their system call numbers.
//!
//! Numbers come from the kernel's `syscall.tbl` files by way of the `syscalls` crate; where that crate says less or more than the
//! kernel, [`numbers`](super::numbers) corrects it.

use oci_spec::runtime::Arch;

use super::numbers::Table;
use crate::error::{Error, ErrorKind, Result};

/// One calling convention as seccomp sees it.
#[derive(Debug)]
pub(super) struct Architecture {
    pub arch: Arch,
    /// As in a profile.
    pub name: &'static str,
    /// `seccomp_data.arch`: an `AUDIT_ARCH_*` of include/uapi/linux/audit.h. x32 shares that of x86_64.
    pub audit: u32,
    /// Arguments are compared as 64-bit words. Not on x32: its registers are wide, its ABI is not (as libseccomp has it).
    pub wide: bool,
    /// The numbers of `socketcall` and `ipc`, where these exist beside direct calls for what they multiplex.
    pub multiplexers: Option<(u32, u32)>,
    pub table: Table,
}

/// Set in every number of x32 (arch/x86/include/uapi/asm/unistd.h).
pub(super) const X32_BIT: u32 = 0x4000_0000;

/// `__AUDIT_ARCH_64BIT` and `__AUDIT_ARCH_LE` of include/uapi/linux/audit.h.
const AUDIT_64BIT: u32 = 0x8000_0000;
const AUDIT_LE: u32 = 0x4000_0000;

const fn row(arch: Arch, name: &'static str, audit: u32, multiplexers: Option<(u32, u32)>, table: Table) -> Architecture {
    Architecture { arch, name, audit, wide: audit & AUDIT_64BIT != 0 && !matches!(table, Table::X32), multiplexers, table }
}

/// Every architecture with a table of numbers.
pub(super) static ARCHITECTURES: [Architecture; 16] = [
    row(Arch::ScmpArchX86_64, "SCMP_ARCH_X86_64", 0xc000_003e, None, Table::X86_64),
    row(Arch::ScmpArchX86, "SCMP_ARCH_X86", 0x4000_0003, Some((102, 117)), Table::X86),
    row(Arch::ScmpArchX32, "SCMP_ARCH_X32", 0xc000_003e, None, Table::X32),
    row(Arch::ScmpArchAarch64, "SCMP_ARCH_AARCH64", 0xc000_00b7, None, Table::Aarch64),
    row(Arch::ScmpArchArm, "SCMP_ARCH_ARM", 0x4000_0028, None, Table::Arm),
    row(Arch::ScmpArchRiscv64, "SCMP_ARCH_RISCV64", 0xc000_00f3, None, Table::Riscv64),
    row(Arch::ScmpArchLoongarch64, "SCMP_ARCH_LOONGARCH64", 0xc000_0102, None, Table::Loongarch64),
    row(Arch::ScmpArchS390x, "SCMP_ARCH_S390X", 0x8000_0016, Some((102, 117)), Table::S390x),
    row(Arch::ScmpArchS390, "SCMP_ARCH_S390", 0x0000_0016, Some((102, 117)), Table::S390),
    row(Arch::ScmpArchPpc64le, "SCMP_ARCH_PPC64LE", 0xc000_0015, Some((102, 117)), Table::Ppc64),
    row(Arch::ScmpArchPpc64, "SCMP_ARCH_PPC64", 0x8000_0015, Some((102, 117)), Table::Ppc64),
    row(Arch::ScmpArchPpc, "SCMP_ARCH_PPC", 0x0000_0014, Some((102, 117)), Table::Ppc),
    row(Arch::ScmpArchMips, "SCMP_ARCH_MIPS", 0x0000_0008, Some((4102, 4117)), Table::Mips),
    row(Arch::ScmpArchMipsel, "SCMP_ARCH_MIPSEL", 0x4000_0008, Some((4102, 4117)), Table::Mips),
    row(Arch::ScmpArchMips64, "SCMP_ARCH_MIPS64", 0x8000_0008, None, Table::Mips64),
    row(Arch::ScmpArchMipsel64, "SCMP_ARCH_MIPSEL64", 0xc000_0008, None, Table::Mips64),
];

/// The architecture this program was built for. `None`: one without a table.
fn native() -> Option<&'static Architecture> {
    let little = cfg!(target_endian = "little");
    let arch = match std::env::consts::ARCH {
        "x86_64" => Arch::ScmpArchX86_64,
        "x86" => Arch::ScmpArchX86,
        "aarch64" => Arch::ScmpArchAarch64,
        "arm" => Arch::ScmpArchArm,
        "riscv64" => Arch::ScmpArchRiscv64,
        "loongarch64" => Arch::ScmpArchLoongarch64,
        "s390x" => Arch::ScmpArchS390x,
        "powerpc64" if little => Arch::ScmpArchPpc64le,
        "powerpc64" => Arch::ScmpArchPpc64,
        "powerpc" => Arch::ScmpArchPpc,
        "mips" if little => Arch::ScmpArchMipsel,
        "mips" => Arch::ScmpArchMips,
        "mips64" if little => Arch::ScmpArchMipsel64,
        "mips64" => Arch::ScmpArchMips64,
        _ => return None,
    };
    ARCHITECTURES.iter().find(|known| known.arch == arch)
}

/// The native architecture, then the listed ones, each once.
///
/// The native one is always there: `seccomp_init` of libseccomp starts from it, and a list adds to it.
///
/// # Errors
/// One without a table, or one whose byte order is not the machine's (its arguments would be read from the wrong half).
pub(super) fn selected(listed: &[Arch]) -> Result<Vec<&'static Architecture>> {
    let Some(native) = native() else {
        return Err(Error::new(ErrorKind::Unimplemented, format!("linux.seccomp: no system call table for {}", std::env::consts::ARCH)));
    };
    let mut selected = vec![native];
    for (at, &arch) in listed.iter().enumerate().filter(|(_, arch)| **arch != Arch::ScmpArchNative) {
        let Some(known) = ARCHITECTURES.iter().find(|known| known.arch == arch) else {
            return Err(Error::invalid(format!("linux.seccomp.architectures[{at}]: no system call table for {arch}")));
        };
        if known.audit & AUDIT_LE != native.audit & AUDIT_LE {
            return Err(Error::invalid(format!("linux.seccomp.architectures[{at}]: {arch} has another byte order than {}", native.name)));
        }
        if !selected.iter().any(|seen| seen.arch == arch) {
            selected.push(known);
        }
    }
    Ok(selected)
}
