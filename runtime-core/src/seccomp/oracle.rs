//! libseccomp, driven as runc drives it.

use std::io::{Read, Seek};

use libseccomp::{ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall};
use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompAction as Action, LinuxSeccompArg, LinuxSeccompOperator as Operator};

use super::Insn;

fn their_action(action: Action, errno: Option<u32>) -> ScmpAction {
    let errno = errno.unwrap_or(1) & 0xffff;
    match action {
        Action::ScmpActKill | Action::ScmpActKillThread => ScmpAction::KillThread,
        Action::ScmpActKillProcess => ScmpAction::KillProcess,
        Action::ScmpActTrap => ScmpAction::Trap,
        Action::ScmpActErrno => ScmpAction::Errno(errno as i32),
        Action::ScmpActTrace => ScmpAction::Trace(errno as u16),
        Action::ScmpActLog => ScmpAction::Log,
        Action::ScmpActAllow => ScmpAction::Allow,
        Action::ScmpActNotify => ScmpAction::Notify,
    }
}

fn their_condition(arg: &LinuxSeccompArg) -> ScmpArgCompare {
    let index = arg.index() as u32;
    let (op, value) = match arg.op() {
        Operator::ScmpCmpNe => (ScmpCompareOp::NotEqual, arg.value()),
        Operator::ScmpCmpLt => (ScmpCompareOp::Less, arg.value()),
        Operator::ScmpCmpLe => (ScmpCompareOp::LessOrEqual, arg.value()),
        Operator::ScmpCmpEq => (ScmpCompareOp::Equal, arg.value()),
        Operator::ScmpCmpGe => (ScmpCompareOp::GreaterEqual, arg.value()),
        Operator::ScmpCmpGt => (ScmpCompareOp::Greater, arg.value()),
        Operator::ScmpCmpMaskedEq => (ScmpCompareOp::MaskedEqual(arg.value()), arg.value_two().unwrap_or(0)),
    };
    ScmpArgCompare::new(index, op, value)
}

/// Without the names that are too new for the library.
pub fn of_their_names(mut profile: LinuxSeccomp) -> LinuxSeccomp {
    let mut syscalls = profile.syscalls().clone().unwrap();
    for syscall in &mut syscalls {
        syscall.set_names(syscall.names().iter().filter(|name| ScmpSyscall::from_name(name).is_ok()).cloned().collect());
    }
    profile.set_syscalls(Some(syscalls));
    profile
}

/// What runc makes of a profile (libcontainer/seccomp, InitSeccomp and matchCall).
pub fn theirs(profile: &LinuxSeccomp) -> Result<Vec<Insn>, libseccomp::error::SeccompError> {
    let default = their_action(profile.default_action(), profile.default_errno_ret());
    let mut filter = ScmpFilterContext::new(default)?;
    for arch in profile.architectures().iter().flatten() {
        filter.add_arch(arch.to_string().parse::<ScmpArch>()?)?;
    }
    for syscall in profile.syscalls().iter().flatten() {
        let action = their_action(syscall.action(), syscall.errno_ret());
        for name in syscall.names().iter().filter(|_| action != default) {
            let Ok(nr) = ScmpSyscall::from_name(name) else { continue };
            let args = syscall.args().as_deref().unwrap_or_default();
            let conditions: Vec<_> = args.iter().map(their_condition).collect();
            let repeated = (0..6).any(|index| args.iter().filter(|arg| arg.index() == index).count() > 1);
            match (conditions.is_empty(), repeated) {
                (true, _) => drop(filter.add_rule(action, nr)?),
                (false, false) => drop(filter.add_rule_conditional(action, nr, &conditions)?),
                (false, true) => {
                    for condition in conditions {
                        filter.add_rule_conditional(action, nr, &[condition])?;
                    }
                }
            }
        }
    }
    let (mut file, mut bytes) = (tempfile::tempfile().unwrap(), Vec::new());
    filter.export_bpf(&file)?;
    file.rewind().unwrap();
    file.read_to_end(&mut bytes).unwrap();
    Ok(bytes
        .as_chunks::<8>()
        .0
        .iter()
        .map(|&[c0, c1, jt, jf, k0, k1, k2, k3]| Insn {
            code: u16::from_ne_bytes([c0, c1]),
            jt,
            jf,
            k: u32::from_ne_bytes([k0, k1, k2, k3]),
        })
        .collect())
}
