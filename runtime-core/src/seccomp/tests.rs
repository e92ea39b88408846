//! The compiler against libseccomp, driven as runc drives it, both run by the emulator.

use std::collections::BTreeMap;

use libseccomp::{ScmpArch, ScmpSyscall};
use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompAction as Action, LinuxSeccompOperator as Operator};
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use serde_json::json;

use super::arch::{ARCHITECTURES, X32_BIT};
use super::emulate::{Call, run};
use super::model::Model;
use super::oracle::{of_their_names, theirs};
use super::profile::{Profile, RET_ERRNO_ENOSYS};
use super::{Insn, compile, ranges};
use crate::error::ErrorKind;

const X86_64: u32 = 0xc000_003e;
const X86: u32 = 0x4000_0003;

fn parse(profile: serde_json::Value) -> LinuxSeccomp {
    serde_json::from_value(profile).unwrap()
}

fn containerd_default() -> LinuxSeccomp {
    serde_json::from_str(include_str!("../../testdata/seccomp-default-amd64.json")).unwrap()
}

/// Without the answer to newer calls, which libseccomp has not.
fn compile_plain(profile: &LinuxSeccomp) -> crate::Result<Vec<Insn>> {
    let mut profile = Profile::check(profile)?;
    profile.hides_newer_calls = false;
    super::compile::program(&ranges::of(&profile)?, profile.default)
}

/// Numbers around everything that a filter may tell apart.
fn all_numbers() -> impl Iterator<Item = u32> {
    let edges = [0, 0x4000_0000, 0x8000_0000, 0xc000_0000, 0u32];
    let around = edges.into_iter().flat_map(|edge| (0..4).map(move |n| edge.wrapping_sub(2).wrapping_add(n)));
    (0..1024).chain((0..1024).map(|nr| nr | X32_BIT)).chain(4000..4500).chain(5000..5500).chain(0xf_0000..0xf_0010).chain(around)
}

fn same_answer(ours: &[Insn], theirs: &[Insn], call: &Call) {
    let (our, their) = (run(ours, call).0, run(theirs, call).0);
    assert_eq!(our, their, "{call:#x?}: {our:#x}, libseccomp {their:#x}");
}

const CORNERS: [u64; 22] = [
    0,
    1,
    2,
    5,
    8,
    9,
    40,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_fffe,
    0xffff_ffff,
    0x1_0000_0000,
    0x1_0000_0001,
    0x1_0000_0008,
    0x1_ffff_ffff,
    0x2_0000_0000,
    0x2_0000_0001,
    0x7fff_ffff_ffff_ffff,
    0x8000_0000_0000_0000,
    0x8000_0000_0000_0001,
    0xffff_ffff_0000_0000,
    0xffff_ffff_ffff_ffff,
];

#[test]
fn numbers_are_those_of_libseccomp() {
    for arch in ARCHITECTURES.iter().filter(|arch| arch.name != "SCMP_ARCH_LOONGARCH64") {
        let token: ScmpArch = arch.name.parse().unwrap();
        let (mut ours, mut theirs) = (BTreeMap::new(), BTreeMap::new());
        arch.table.for_each(|nr, name| {
            assert_eq!(ours.insert(name.to_owned(), nr), None, "{name} twice on {}", arch.name);
        });
        // For x32 the library takes numbers without the bit too.
        for nr in all_numbers()
            .filter(|nr| !arch.name.ends_with("X32") || nr & X32_BIT != 0)
            .filter(|nr| !arch.name.contains("MIPS") || *nr >= 4000)
        {
            if let Ok(name) = ScmpSyscall::from_raw_syscall(nr as i32).get_name_by_arch(token) {
                theirs.insert(name, nr);
            }
        }
        assert!(theirs.len() > 300, "{}", arch.name);
        for (name, nr) in &theirs {
            assert_eq!(ours.get(name), Some(nr), "{name} on {}", arch.name);
        }
        // The library ends at 450. Other names that it has not are newer too, or placeholders of the MIPS tables.
        for (name, nr) in ours.iter().filter(|(_, nr)| (**nr & !X32_BIT) % 1000 <= 450) {
            let newer = ["uprobe", "uretprobe", "riscv_hwprobe"].contains(&name.as_str());
            let placeholder = name.starts_with("reserved") || name.starts_with("unused");
            assert!(theirs.contains_key(name) || newer || placeholder, "{name} = {nr} on {}", arch.name);
        }
    }
}

#[test]
fn the_default_profile_is_what_libseccomp_makes_of_it() {
    let profile = of_their_names(containerd_default());
    let (ours, theirs) = (compile_plain(&profile).unwrap(), theirs(&profile).unwrap());
    for arch in [X86_64, X86, 0xc000_00b7, 0] {
        for nr in all_numbers() {
            same_answer(&ours, &theirs, &Call { nr, arch, args: [1, 2, 3, 4, 5, 6] });
        }
    }
    for name in ["personality", "clone", "clone3", "socket", "socketcall", "ipc"] {
        for (arch, nr) in ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"].into_iter().filter_map(|arch| number(arch, name)) {
            let values = CORNERS.into_iter().chain([0x20000, 0x20008, 0x0200_0000, 0x7e02_0000, 0x1_7e02_0000]);
            for arg in values {
                same_answer(&ours, &theirs, &Call { nr, arch, args: [arg; 6] });
            }
        }
    }
}

fn number(arch: &str, name: &str) -> Option<(u32, u32)> {
    let arch = ARCHITECTURES.iter().find(|known| known.name == arch)?;
    let mut found = None;
    arch.table.for_each(|nr, known| {
        if known == name {
            found = Some((arch.audit, nr));
        }
    });
    found
}

fn action() -> impl Strategy<Value = Action> {
    use Action::{ScmpActAllow, ScmpActErrno, ScmpActKill, ScmpActKillProcess, ScmpActLog, ScmpActTrace, ScmpActTrap};
    select(vec![ScmpActAllow, ScmpActErrno, ScmpActKill, ScmpActKillProcess, ScmpActLog, ScmpActTrace, ScmpActTrap])
}

fn value() -> impl Strategy<Value = u64> {
    prop_oneof![select(CORNERS.to_vec()), any::<u64>()]
}

fn condition() -> impl Strategy<Value = serde_json::Value> {
    let op = select(super::operators().to_vec());
    (0..6usize, value(), value(), op).prop_map(|(index, value, two, op)| json!({"index": index, "value": value, "valueTwo": two, "op": op}))
}

const NAMES: [&str; 18] = [
    "read",
    "write",
    "clone",
    "clone3",
    "personality",
    "ioctl",
    "socket",
    "bind",
    "recv",
    "semop",
    "shmget",
    "socketcall",
    "ipc",
    "chown32",
    "execve",
    "mmap2",
    "no_such_call",
    "set_tls",
];

fn entry(actions: impl Strategy<Value = Action>, conditions: usize) -> impl Strategy<Value = serde_json::Value> {
    let names = subsequence(NAMES.to_vec(), 1..4);
    (names, actions, proptest::option::of(0..70_000u32), prop::collection::vec(condition(), 0..=conditions))
        .prop_map(|(names, action, errno, args)| json!({"names": names, "action": action, "errnoRet": errno, "args": args}))
}

fn profile(default: Action, entries: Vec<serde_json::Value>, architectures: Vec<&str>) -> LinuxSeccomp {
    parse(json!({"defaultAction": default, "architectures": architectures, "syscalls": entries}))
}

fn architectures() -> impl Strategy<Value = Vec<&'static str>> {
    subsequence(vec!["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32", "SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM", "SCMP_ARCH_PPC64LE"], 0..6)
}

/// Several ranges of one argument: there libseccomp 2.5 loses rules, and which of the rest decides says nothing.
fn has_several_ranges(profile: &LinuxSeccomp) -> bool {
    use Operator::{ScmpCmpGe, ScmpCmpGt, ScmpCmpLe, ScmpCmpLt};
    let args = profile.syscalls().iter().flatten().flat_map(|syscall| syscall.args().iter().flatten());
    let ranges: Vec<_> = args.filter(|arg| matches!(arg.op(), ScmpCmpGe | ScmpCmpGt | ScmpCmpLe | ScmpCmpLt)).collect();
    (0..6).any(|index| ranges.iter().filter(|arg| arg.index() == index).count() > 1)
}

/// Compares over every number, with the values that the profile itself holds, and their neighbours.
///
/// Where libseccomp 2.5 does not do what the profile says (it has such faults with several conditions on one argument and with
/// calls that the native architecture has not), the profile counts.
fn same_filters(profile: &LinuxSeccomp, random: &[u64]) {
    let model = Model::new(profile);
    let (theirs, comparable) = (theirs(profile).ok(), !has_several_ranges(profile));
    let Ok(ours) = compile_plain(profile) else {
        assert!(theirs.is_none(), "refused, but not by libseccomp");
        return;
    };
    let compare = |call: &Call| {
        let (our, possible) = (run(&ours, call).0, model.answers(call));
        assert!(possible.contains(&our), "{call:#x?}: {our:#x} instead of {possible:#x?}");
        if let Some(their) = theirs.as_ref().map(|program| run(program, call).0).filter(|their| comparable && possible.contains(their)) {
            assert_eq!(our, their, "{call:#x?}: {our:#x}, libseccomp {their:#x}");
        }
    };
    let mut values: Vec<u64> = random.to_vec();
    for arg in profile.syscalls().iter().flatten().flat_map(|syscall| syscall.args().iter().flatten()) {
        for value in [arg.value(), arg.value_two().unwrap_or(0)] {
            values.extend([value, value.wrapping_add(1), value.wrapping_sub(1), value ^ 1 << 32, value & 0xffff_ffff]);
        }
    }
    for arch in [X86_64, X86, 0xc000_00b7, 0x4000_0028, 0xc000_0015, 0x1234] {
        for nr in all_numbers() {
            compare(&Call { nr, arch, args: [values[0]; 6] });
        }
    }
    for (arch, nr) in ARCHITECTURES.iter().flat_map(|arch| NAMES.iter().filter_map(|name| number(arch.name, name))) {
        for (at, value) in values.iter().enumerate() {
            compare(&Call { nr, arch, args: [*value; 6] });
            let args = std::array::from_fn(|n| values[(at * 7 + n * 3) % values.len()]);
            compare(&Call { nr, arch, args });
            compare(&Call { nr, arch, args: [at as u64 % 25, args[1], args[2], args[3], args[4], args[5]] });
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_profiles_of_one_action(
        default in action(), entries in prop::collection::vec(entry(Just(Action::ScmpActAllow), 4), 0..8),
        architectures in architectures(), random in prop::collection::vec(value(), 4),
    ) {
        same_filters(&profile(default, entries, architectures), &random);
    }

    #[test]
    fn random_profiles(
        default in action(), entries in prop::collection::vec(entry(action(), 1), 0..8),
        architectures in architectures(), random in prop::collection::vec(value(), 4),
    ) {
        same_filters(&profile(default, entries, architectures), &random);
    }
}

/// The greatest number of the profile by architecture, asked of the library as runc does (libcontainer/seccomp/patchbpf).
fn greatest(profile: &LinuxSeccomp, arch: &str) -> Option<u32> {
    let arch: ScmpArch = arch.parse().unwrap();
    let names = profile.syscalls().iter().flatten().flat_map(|syscall| syscall.names());
    let numbers = names.filter_map(|name| ScmpSyscall::from_name_by_arch(name, arch).ok());
    numbers.map(|nr| nr.as_raw_syscall()).max().and_then(|nr| u32::try_from(nr).ok()).filter(|nr| *nr > 0)
}

fn hides_what_is_newer(profile: &LinuxSeccomp) {
    let (with, without) = (compile(profile).unwrap().program, compile_plain(profile).unwrap());
    let listed = profile.architectures().clone().unwrap_or_default();
    for (arch, name) in
        [(X86_64, "SCMP_ARCH_X86_64"), (X86, "SCMP_ARCH_X86"), (X86_64, "SCMP_ARCH_X32"), (0xc000_0015, "SCMP_ARCH_PPC64LE")]
    {
        let covered = name == "SCMP_ARCH_X86_64" || listed.iter().any(|arch| arch.to_string() == name);
        let greatest = covered.then(|| greatest(profile, name)).flatten();
        for nr in all_numbers().filter(|nr| arch != X86_64 || (nr & X32_BIT != 0) == (name == "SCMP_ARCH_X32")) {
            let call = Call { nr, arch, args: [0; 6] };
            let expected = if greatest.is_some_and(|greatest| nr > greatest) { RET_ERRNO_ENOSYS } else { run(&without, &call).0 };
            assert_eq!(run(&with, &call).0, expected, "{call:#x?}, greatest {greatest:#x?}");
        }
    }
}

#[test]
fn newer_calls_answer_enosys() {
    let entry = |names: &[&str]| json!({"names": names, "action": "SCMP_ACT_ALLOW"});
    for architectures in
        [json!([]), json!(["SCMP_ARCH_X86"]), json!(["SCMP_ARCH_X32"]), json!(["SCMP_ARCH_X32", "SCMP_ARCH_X86", "SCMP_ARCH_PPC64LE"])]
    {
        for names in [
            &["read"][..],
            &["write", "execve"],
            &["chown32"],
            &["socket"],
            &["socket", "write"],
            &["no_such_call"],
            &["openat2", "shmget"],
        ] {
            for default in ["SCMP_ACT_ERRNO", "SCMP_ACT_KILL_PROCESS", "SCMP_ACT_TRAP"] {
                hides_what_is_newer(&parse(json!({"defaultAction": default, "architectures": architectures, "syscalls": [entry(names)]})));
            }
        }
    }
    hides_what_is_newer(&of_their_names(containerd_default()));
}

#[test]
fn a_name_with_the_default_action_still_counts_as_known() {
    let syscalls = json!([{"names": ["openat2"], "action": "SCMP_ACT_ERRNO"}, {"names": ["write"], "action": "SCMP_ACT_ALLOW"}]);
    let filter = compile(&parse(json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": syscalls}))).unwrap();
    let answer = |nr| run(&filter.program, &Call { nr, arch: X86_64, args: [0; 6] }).0;
    assert_eq!([answer(1), answer(436), answer(437), answer(438)], [0x7fff_0000, 0x5_0001, 0x5_0001, RET_ERRNO_ENOSYS]);
}

#[test]
fn nothing_is_hidden_where_the_default_permits_or_says_enosys() {
    for (action, errno) in [("SCMP_ACT_ALLOW", None), ("SCMP_ACT_LOG", None), ("SCMP_ACT_TRACE", None), ("SCMP_ACT_ERRNO", Some(38))] {
        let syscalls = json!([{"names": ["write"], "action": "SCMP_ACT_KILL"}]);
        let profile = parse(json!({"defaultAction": action, "defaultErrnoRet": errno, "syscalls": syscalls}));
        assert_eq!(compile(&profile).unwrap().program, compile_plain(&profile).unwrap(), "{action}");
    }
}

#[test]
fn the_default_profile_is_small_and_shallow() {
    let filter = compile(&containerd_default()).unwrap();
    assert!(filter.program.len() <= 290, "{} instructions", filter.program.len());
    assert_eq!(filter.skipped, Vec::<String>::new());
    let steps = |arch, nr| run(&filter.program, &Call { nr, arch, args: [0; 6] }).1;
    let deepest = (0..512).filter(|nr| *nr != 135).map(|nr| steps(X86_64, nr)).max().unwrap();
    assert!(deepest <= 14, "{deepest} steps");
    let sum: usize = (0..470).map(|nr| steps(X86_64, nr) + steps(X86, nr)).sum();
    assert!(sum <= 2 * 470 * 11, "{sum} steps for 940 numbers");
}

#[test]
fn jumps_reach_any_distance() {
    let names: Vec<&str> =
        NAMES.into_iter().chain(["open", "close", "stat", "fstat", "lstat", "poll", "lseek", "mmap", "munmap", "brk"]).collect();
    let syscalls: Vec<_> = names
        .iter()
        .flat_map(|name| (0..15u64).map(move |n| (name, n)))
        .map(|(name, n)| {
            let args =
                json!([{"index": n % 6, "value": n << 30, "op": "SCMP_CMP_GT"}, {"index": (n + 1) % 6, "value": n, "op": "SCMP_CMP_LE"}]);
            json!({"names": [name], "action": "SCMP_ACT_ERRNO", "errnoRet": n + 1, "args": args})
        })
        .collect();
    let profile = parse(json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": syscalls}));
    let (program, model) = (compile(&profile).unwrap().program, Model::new(&profile));
    assert!(program.len() > 3000, "{}", program.len());
    for nr in (0..70).chain([135, 436]) {
        for args in CORNERS.windows(6) {
            let call = Call { nr, arch: X86_64, args: args.try_into().unwrap() };
            assert!(model.answers(&call).contains(&run(&program, &call).0), "{call:#x?}");
        }
    }
}

#[test]
fn a_filter_beyond_the_kernel_s_limit_is_refused() {
    let many: Vec<_> = (0..1200u64)
        .map(|n| json!({"names": ["read", "open"], "action": "SCMP_ACT_KILL", "args": [{"index": 0, "value": n, "op": "SCMP_CMP_EQ"}]}))
        .collect();
    let error = compile(&parse(json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": many}))).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    assert!(error.to_string().contains("the kernel accepts 4096"), "{error}");
}

#[test]
fn refusals_name_the_field() {
    let read = |rest: serde_json::Value| {
        let mut entry = json!({"names": ["read"], "action": "SCMP_ACT_ALLOW"});
        entry.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
        json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"names": [], "action": "SCMP_ACT_ALLOW"}, entry]})
    };
    let arg = |value: u64, op: &str| json!([{"index": 0, "value": value, "op": op}]);
    let contradiction = json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [
        {"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": arg(1, "SCMP_CMP_EQ")},
        {"names": ["read"], "action": "SCMP_ACT_KILL", "args": arg(1, "SCMP_CMP_EQ")},
    ]});
    let cases = [
        (
            read(json!({"args": [{"index": 6, "value": 0, "op": "SCMP_CMP_EQ"}]})),
            "linux.seccomp.syscalls[1].args[0].index: 6 is out of range 0..5",
        ),
        (read(json!({"names": ["read", ""]})), "linux.seccomp.syscalls[1].names[1]: empty"),
        (read(json!({"action": "SCMP_ACT_NOTIFY"})), "linux.seccomp.listenerPath: \"\": SCMP_ACT_NOTIFY needs an absolute path"),
        (
            read(json!({"names": ["write"], "action": "SCMP_ACT_NOTIFY"})),
            "linux.seccomp.syscalls[1].names[0]: write cannot have the action SCMP_ACT_NOTIFY",
        ),
        (
            json!({"defaultAction": "SCMP_ACT_NOTIFY", "listenerPath": "/x"}),
            "linux.seccomp.defaultAction: SCMP_ACT_NOTIFY is only for single system calls",
        ),
        (
            json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86", "SCMP_ARCH_PARISC"]}),
            "linux.seccomp.architectures[1]: no system call table for SCMP_ARCH_PARISC",
        ),
        (
            json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_S390X"]}),
            "linux.seccomp.architectures[0]: SCMP_ARCH_S390X has another byte order than SCMP_ARCH_X86_64",
        ),
        (contradiction, "linux.seccomp.syscalls[1]: contradicts syscalls[0]: the same arguments, another action"),
    ];
    for (profile, expected) in cases {
        let error = compile(&parse(profile)).unwrap_err();
        assert_eq!(error.to_string(), expected);
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
    }
}

#[test]
fn names_that_nothing_knows_are_told() {
    let syscalls = json!([{"names": ["reed", "chown32", "breakpoint", "raed"], "action": "SCMP_ACT_ALLOW"}]);
    let filter = compile(&parse(json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": syscalls}))).unwrap();
    assert_eq!(filter.skipped, ["raed", "reed"]);
}

#[test]
fn absent_flags_are_not_no_flags() {
    let flags = |flags: serde_json::Value| compile(&parse(json!({"defaultAction": "SCMP_ACT_ALLOW", "flags": flags}))).unwrap().flags;
    assert_eq!(compile(&parse(json!({"defaultAction": "SCMP_ACT_ALLOW"}))).unwrap().flags, 4);
    assert_eq!(flags(json!([])), 0);
    assert_eq!(flags(json!(["SECCOMP_FILTER_FLAG_LOG"])), 2);
    assert_eq!(flags(json!(super::flags())), 6);
}

#[test]
fn lists_hold_what_a_profile_may_say() {
    for name in super::actions() {
        assert!(parse(json!({"defaultAction": name})).default_action().to_string() == *name);
    }
    for name in super::architectures() {
        assert_eq!(
            parse(json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": [name]})).architectures().as_ref().unwrap()[0].to_string(),
            name
        );
    }
}

proptest! {
    /// The two halves of every 64-bit comparison.
    #[test]
    fn comparisons_are_those_of_64_bit_integers(op in select(super::operators().to_vec()), value in value(), two in value(), other in value()) {
        let arg = json!([{"index": 3, "value": value, "valueTwo": two, "op": op}]);
        let profile = parse(json!({
            "defaultAction": "SCMP_ACT_KILL", "architectures": ["SCMP_ARCH_X86"],
            "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": arg}],
        }));
        let program = compile(&profile).unwrap().program;
        let model = Model::new(&profile);
        let near = [value, value.wrapping_add(1), value.wrapping_sub(1), value ^ (1 << 32), value & two, two, other];
        for argument in near.into_iter().chain(CORNERS) {
            for (arch, nr) in [(X86_64, 0), (X86, 3)] {
                let call = Call { nr, arch, args: [7, 7, 7, argument, 7, 7] };
                prop_assert_eq!(vec![run(&program, &call).0], model.answers(&call));
            }
        }
    }
}
