//! Checks a profile and puts it into the compiler's terms.

use std::cell::Cell;
use std::collections::{HashMap, HashSet};

use oci_spec::runtime::{
    LinuxSeccomp, LinuxSeccompAction as Action, LinuxSeccompArg, LinuxSeccompFilterFlag as Flag, LinuxSeccompOperator as Operator,
    LinuxSyscall,
};

use super::arch::{self, Architecture};
use super::numbers;
use crate::error::{Error, Result};

/// `SECCOMP_RET_*` (include/uapi/linux/seccomp.h).
pub(super) const RET_KILL_THREAD: u32 = 0;
const RET_KILL_PROCESS: u32 = 0x8000_0000;
const RET_TRAP: u32 = 0x0003_0000;
const RET_ERRNO: u32 = 0x0005_0000;
const RET_USER_NOTIF: u32 = 0x7fc0_0000;
const RET_TRACE: u32 = 0x7ff0_0000;
const RET_LOG: u32 = 0x7ffc_0000;
const RET_ALLOW: u32 = 0x7fff_0000;
const RET_DATA: u32 = 0xffff;
pub(super) const RET_ERRNO_ENOSYS: u32 = RET_ERRNO | libc::ENOSYS.unsigned_abs();

/// `SECCOMP_FILTER_FLAG_*` (include/uapi/linux/seccomp.h).
const FILTER_FLAG_LOG: u32 = 1 << 1;
const FILTER_FLAG_SPEC_ALLOW: u32 = 1 << 2;
const FILTER_FLAG_NEW_LISTENER: u32 = 1 << 3;
const FILTER_FLAG_WAIT_KILLABLE_RECV: u32 = 1 << 5;

/// Arguments a system call has.
const ARGUMENTS: usize = 6;

/// One comparison of one argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Condition {
    pub index: u8,
    pub op: Operator,
    /// Only these bits count. All of them but for [`Operator::ScmpCmpMaskedEq`].
    pub mask: u64,
    pub value: u64,
}

impl Condition {
    fn new(arg: &LinuxSeccompArg, field: impl Fn() -> String) -> Result<Self> {
        let index = arg.index();
        let Some(index) = u8::try_from(index).ok().filter(|index| usize::from(*index) < ARGUMENTS) else {
            return Err(Error::invalid(format!("{}.index: {index} is out of range 0..{}", field(), ARGUMENTS - 1)));
        };
        Ok(match arg.op() {
            Operator::ScmpCmpMaskedEq => Self { index, op: arg.op(), mask: arg.value(), value: arg.value_two().unwrap_or(0) & arg.value() },
            op => Self { index, op, mask: u64::MAX, value: arg.value() },
        })
    }
}

/// An action for system calls whose arguments meet every condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    /// What the filter returns.
    pub action: u32,
    /// At most one for an argument, by argument.
    pub conditions: Vec<Condition>,
    /// Index in `linux.seccomp.syscalls`.
    pub at: usize,
}

/// What a profile says of one name.
#[derive(Debug, Default)]
pub(super) struct Named {
    /// Indices of rules, in the order of the profile. Empty: only the default action again.
    pub rules: Vec<usize>,
    /// An architecture of the filter has it. Set on the way.
    pub known: Cell<bool>,
}

/// A profile that can be compiled.
#[derive(Debug)]
pub(super) struct Profile<'a> {
    pub default: u32,
    pub architectures: Vec<&'static Architecture>,
    pub rules: Vec<Rule>,
    pub names: HashMap<&'a str, Named>,
    /// Numbers above the greatest named one are newer than the profile and answer `ENOSYS`.
    pub hides_newer_calls: bool,
    pub flags: u32,
    /// Who answers for the calls of NOTIFY, if there are any.
    pub listener: Option<Listener>,
}

impl<'a> Profile<'a> {
    pub fn check(spec: &'a LinuxSeccomp) -> Result<Self> {
        if spec.default_action() == Action::ScmpActNotify {
            return Err(Error::invalid("linux.seccomp.defaultAction: SCMP_ACT_NOTIFY is only for single system calls"));
        }
        let default = verdict(spec.default_action(), spec.default_errno_ret());
        let architectures = arch::selected(spec.architectures().as_deref().unwrap_or_default())?;
        let permissive = matches!(spec.default_action(), Action::ScmpActAllow | Action::ScmpActLog | Action::ScmpActTrace);
        let mut profile = Self {
            default,
            architectures,
            rules: Vec::new(),
            names: HashMap::new(),
            hides_newer_calls: !permissive && default != RET_ERRNO_ENOSYS,
            flags: flag_bits(spec.flags().as_deref()),
            listener: None,
        };
        for (at, syscall) in spec.syscalls().iter().flatten().enumerate() {
            profile.add(at, syscall)?;
        }
        if profile.rules.iter().any(|rule| rule.action == RET_USER_NOTIF) {
            profile.listener = Some(Listener::new(spec)?);
            profile.flags |= FILTER_FLAG_NEW_LISTENER;
        } else {
            profile.flags &= !FILTER_FLAG_WAIT_KILLABLE_RECV;
        }
        Ok(profile)
    }

    /// Names in the profile that no architecture has, sorted; to be asked after the numbers were looked up.
    pub fn unknown_names(&self) -> Vec<String> {
        let mut unknown = self.names.iter().filter(|(_, named)| !named.known.get()).map(|(name, _)| *name).collect::<HashSet<_>>();
        numbers::discard_known(&mut unknown);
        let mut unknown: Vec<_> = unknown.into_iter().map(str::to_owned).collect();
        unknown.sort_unstable();
        unknown
    }

    fn add(&mut self, at: usize, syscall: &'a LinuxSyscall) -> Result<()> {
        let field = || format!("linux.seccomp.syscalls[{at}]");
        let action = verdict(syscall.action(), syscall.errno_ret());
        let mut conditions = Vec::new();
        for (n, arg) in syscall.args().iter().flatten().enumerate() {
            conditions.push(Condition::new(arg, || format!("{}.args[{n}]", field()))?);
        }
        let first = self.rules.len();
        // As in runc: what says the default again is left out.
        if action != self.default {
            self.rules.extend(alternatives(conditions).into_iter().map(|conditions| Rule { action, conditions, at }));
        }
        for (n, name) in syscall.names().iter().enumerate() {
            if name.is_empty() {
                return Err(Error::invalid(format!("{}.names[{n}]: empty", field())));
            }
            // With it a process tells that it has the listener, and nobody listens before that; runc refuses it, too.
            if action == RET_USER_NOTIF && name == "write" {
                return Err(Error::invalid(format!("{}.names[{n}]: write cannot have the action SCMP_ACT_NOTIFY", field())));
            }
            self.names.entry(name).or_default().rules.extend(first..self.rules.len());
        }
        Ok(())
    }
}

/// The rules that one entry stands for. Conditions are joined by *and*; but when two are on the same argument, each becomes
/// a rule of its own, as runc does (libcontainer/seccomp, `matchCall`), since profiles were written for that.
fn alternatives(mut conditions: Vec<Condition>) -> Vec<Vec<Condition>> {
    conditions.sort_by_key(|condition| condition.index);
    if conditions.windows(2).any(|pair| pair[0].index == pair[1].index) {
        return conditions.into_iter().map(|condition| vec![condition]).collect();
    }
    vec![conditions]
}

/// The return value of an action. `errno` counts for ERRNO and TRACE only and is EPERM by default; the kernel takes its low 16 bits.
fn verdict(action: Action, errno: Option<u32>) -> u32 {
    let data = errno.unwrap_or(libc::EPERM.unsigned_abs()) & RET_DATA;
    match action {
        Action::ScmpActKill | Action::ScmpActKillThread => RET_KILL_THREAD,
        Action::ScmpActKillProcess => RET_KILL_PROCESS,
        Action::ScmpActTrap => RET_TRAP,
        Action::ScmpActErrno => RET_ERRNO | data,
        Action::ScmpActTrace => RET_TRACE | data,
        Action::ScmpActLog => RET_LOG,
        Action::ScmpActAllow => RET_ALLOW,
        Action::ScmpActNotify => RET_USER_NOTIF,
    }
}

/// Who decides about system calls with the action NOTIFY (config-linux.md, "Seccomp"): a program that listens at a socket.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Listener {
    /// Its socket, absolute.
    pub path: String,
    /// What it is told beside the container's state.
    pub metadata: String,
}

impl Listener {
    fn new(spec: &LinuxSeccomp) -> Result<Self> {
        let path = spec.listener_path().as_ref().map(|path| path.to_string_lossy().into_owned()).unwrap_or_default();
        if !path.starts_with('/') || path.contains('\0') {
            return Err(Error::invalid(format!("linux.seccomp.listenerPath: {path:?}: SCMP_ACT_NOTIFY needs an absolute path")));
        }
        Ok(Self { path, metadata: spec.listener_metadata().clone().unwrap_or_default() })
    }
}

/// The flags for seccomp(2). Absent means SPEC_ALLOW, as in runc; an empty list means none.
///
/// TSYNC asks for nothing here: the filter is loaded by a process of one thread.
fn flag_bits(flags: Option<&[Flag]>) -> u32 {
    let Some(flags) = flags else { return FILTER_FLAG_SPEC_ALLOW };
    flags.iter().fold(0, |bits, flag| {
        bits | match flag {
            Flag::SeccompFilterFlagLog => FILTER_FLAG_LOG,
            Flag::SeccompFilterFlagSpecAllow => FILTER_FLAG_SPEC_ALLOW,
            Flag::SeccompFilterFlagWaitKillableRecv => FILTER_FLAG_WAIT_KILLABLE_RECV,
            Flag::SeccompFilterFlagTsync => 0,
        }
    })
}
