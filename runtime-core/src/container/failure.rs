//! A child's failure as a sentence: the step as the plan prints it, the part that failed, the errno.

use rustix::io::Errno;

use crate::cgroup::Cgroup;
use crate::compile::other_spelling;
use crate::error::{Error, ErrorKind};
use crate::plan::child::{LOCKED, OTHER_LABEL, OTHER_MAPS, OUTSIDE, UNSETTLED, attach, helper_failed};
use crate::plan::print::attributes;
use crate::plan::report::Failure;
use crate::plan::{Launch, Slot, Step};
use crate::spec::labels::APPARMOR;

/// The failure of a first process that has ended without a report: somebody has killed it, most likely the kernel.
pub fn killed(cgroup: Option<&Cgroup>) -> Error {
    let out_of_memory = cgroup.is_some_and(|cgroup| cgroup.out_of_memory_kills().is_ok_and(|count| count > 0));
    let why = if out_of_memory { ": out of memory, resources.memory.limit is too low" } else { "" };
    Error::new(ErrorKind::Internal, format!("the container's first process was killed before it was ready{why}"))
}

/// The failure of a child that ran `launch`.
pub fn explain(launch: &Launch, failure: &Failure) -> Error {
    let Some(step) = launch.plan.steps.get(usize::from(failure.step)) else {
        return Error::new(ErrorKind::Internal, format!("child: step {} does not exist", failure.step));
    };
    match step {
        Step::FindProgram if is_mount_helper(launch) && failure.errno == Errno::NOENT.raw_os_error() => {
            let places = launch.program.candidates.iter().filter_map(|path| path.to_str().ok()?.rsplit_once('/')).map(|(place, _)| place);
            let message = format!("mount helper {:?} is not in {}", launch.program.name, places.collect::<Vec<_>>().join(":"));
            Error::new(ErrorKind::FailedPrecondition, message)
        }
        Step::MountByHelper { .. } if failure.detail == helper_failed::STATUS => {
            let said = failure.text.lines().collect::<Vec<_>>().join("; ");
            Error::new(ErrorKind::Internal, format!("mount helper {}: exit status {}: {said}", launch.program.name, failure.errno))
        }
        Step::EnterPid { .. } | Step::Join { .. } | Step::Birth if has_ended(failure.errno) => {
            Error::new(ErrorKind::FailedPrecondition, no_process(launch))
        }
        Step::FindProgram => no_program(launch, failure.errno),
        Step::Exec { .. } => exec_failed(launch, failure.errno),
        Step::CheckMaps { .. } if failure.detail == OTHER_MAPS => {
            Error::invalid("linux.uidMappings/gidMappings: not those of the given user namespace")
        }
        Step::Label { label } => {
            let field = if label.file.as_c_str() == APPARMOR { "process.apparmorProfile" } else { "process.selinuxLabel" };
            let other = if failure.detail == OTHER_LABEL { ": it shows another one" } else { "" };
            Error::from_errno(format!("{field}: {step}{other}"), failure.errno).with_kind(ErrorKind::InvalidArgument)
        }
        Step::WorkingDirectory { path, .. } if failure.detail == OUTSIDE => {
            Error::invalid(format!("process.cwd: {:?} is outside of the container's root", path.to_string_lossy()))
        }
        _ => {
            let what = match field(step) {
                Some(field) => format!("{field}: {}", said(launch, step)),
                None => said(launch, step),
            };
            let what = match part(step, failure.detail) {
                Some(part) => format!("{what}: {part}"),
                None => what,
            };
            // The kernel's own words come as "e overlay: …".
            let text = failure.text.strip_prefix("e ").unwrap_or(&failure.text);
            let what = if text.is_empty() { what } else { format!("{what}: {text}") };
            Error::from_errno(what, failure.errno)
        }
    }
}

/// The field that a step comes from, where its own words do not tell.
fn field(step: &Step) -> Option<&'static str> {
    Some(match step {
        Step::OomScoreAdj { .. } => "process.oomScoreAdj",
        Step::MakeWorkingDirectory { .. } | Step::WorkingDirectory { .. } => "process.cwd",
        Step::Sysctl { .. } => "linux.sysctl",
        Step::Mask { .. } => "linux.maskedPaths",
        Step::ReadOnly { .. } => "linux.readonlyPaths",
        Step::TimeOffsets { .. } => "linux.timeOffsets",
        Step::Scheduler { .. } => "process.scheduler",
        Step::IoPriority { .. } => "process.ioPriority",
        Step::Personality { .. } => "linux.personality",
        Step::MemoryPolicy { .. } => "linux.memoryPolicy",
        Step::Affinity { .. } => "process.execCPUAffinity",
        Step::Rlimit { .. } => "process.rlimits",
        Step::BoundingSet { .. } => "process.capabilities.bounding",
        Step::Capabilities { .. } => "process.capabilities",
        Step::Seccomp { .. } => "linux.seccomp",
        _ => return None,
    })
}

/// Of setns(2) by a pidfd, and of clone(2) into a pid namespace without an init (pid_namespaces(7)).
fn has_ended(errno: i32) -> bool {
    matches!(Errno::from_raw_os_error(errno), Errno::SRCH | Errno::NOMEM)
}

fn no_process(launch: &Launch) -> &'static str {
    if launch.plan.steps.iter().any(|step| matches!(step, Step::Pivot { .. } | Step::MoveRoot { .. })) {
        "linux.namespaces: pid: the first process of the given namespace has ended"
    } else {
        "cannot exec in a stopped container"
    }
}

fn is_mount_helper(launch: &Launch) -> bool {
    launch.plan.steps.iter().any(|step| matches!(step, Step::MountByHelper { .. }))
}

/// The step for people: a mount by where it comes from and where it goes, which the plan tells apart by numbers.
fn said(launch: &Launch, step: &Step) -> String {
    match step {
        Step::CloneTree { mount, .. } | Step::NewMount { mount, .. } | Step::LoopMount { mount, .. } | Step::ProcOf { mount, .. } => {
            format!("{}{}", source(step), target(launch, *mount))
        }
        Step::Attach { mount, .. } | Step::AttachRoot { mount, .. } => {
            let made = maker(launch, *mount);
            format!("attach {}{}", made.map_or_else(|| "mount".to_owned(), source), target(launch, *mount))
        }
        Step::IdMap { mount, .. } | Step::IdMapByParent { mount, .. } => {
            let made = maker(launch, *mount);
            format!("map owners of {}{}", made.map_or_else(|| "mount".to_owned(), source), target(launch, *mount))
        }
        Step::BindFlags { mount, .. } => {
            let made = maker(launch, *mount);
            format!("flags of {}{}", made.map_or_else(|| "bind".to_owned(), source), target(launch, *mount))
        }
        Step::CloneOwn { mount, .. } => format!("{}{}", source(step), target(launch, *mount)),
        Step::AtHost { mount, steps, .. } => format!("{}{}", steps.first().map_or_else(String::new, source), target(launch, *mount)),
        Step::CopyUp { mount, target: path, .. } => format!("copy \"/{}\" to the tmpfs{}", path.to_string_lossy(), target(launch, *mount)),
        Step::Settle { mount, again, .. } => {
            format!("follow the host's mounts with {}{}", again.first().map_or_else(String::new, source), target(launch, *mount))
        }
        Step::Rlimit { resource, soft, hard } => {
            let name = usize::try_from(*resource).ok().and_then(|index| RLIMITS.get(index)).copied().unwrap_or("unknown");
            format!("set rlimit RLIMIT_{name} to {soft}:{hard}")
        }
        Step::JoinCgroup { .. } => "join the container's cgroup".to_owned(),
        Step::Sysctl { path, value, .. } => {
            let path = path.to_string_lossy();
            format!("set {:?} to {:?}", other_spelling(path.strip_prefix("sys/").unwrap_or(&path)), value.to_string_lossy())
        }
        Step::Symlink { name, target, directory } => {
            format!("make link {:?} -> {:?}", format!("{}/{}", place(launch, *directory), name.to_string_lossy()), target.to_string_lossy())
        }
        Step::Console { uid, .. } | Step::JoinedConsole { uid, .. } => format!("make a terminal for user {uid}"),
        Step::Affinity { mask } => format!("keep to processors {}", numbers(mask)),
        Step::MemoryPolicy { nodes, .. } => format!("set the policy for nodes {}", numbers(nodes)),
        Step::BoundingSet { .. } => "drop all others".to_owned(),
        Step::Capabilities { .. } => "set them".to_owned(),
        _ => step.to_string(),
    }
}

/// Names by number (include/uapi/asm-generic/resource.h).
const RLIMITS: [&str; 16] = [
    "CPU",
    "FSIZE",
    "DATA",
    "STACK",
    "CORE",
    "RSS",
    "NPROC",
    "NOFILE",
    "MEMLOCK",
    "AS",
    "LOCKS",
    "SIGPENDING",
    "MSGQUEUE",
    "NICE",
    "RTPRIO",
    "RTTIME",
];

/// The first step that makes a mount: it names the source.
fn maker(launch: &Launch, mount: Slot) -> Option<&Step> {
    launch.plan.steps.iter().find_map(|step| match step {
        Step::AtHost { steps, .. } | Step::Settle { again: steps, .. } => steps.iter().find(|step| makes(step) == Some(mount)),
        step => Some(step).filter(|step| makes(step) == Some(mount)),
    })
}

fn makes(step: &Step) -> Option<Slot> {
    match step {
        Step::CloneTree { mount, .. }
        | Step::CloneOwn { mount, .. }
        | Step::NewMount { mount, .. }
        | Step::LoopMount { mount, .. }
        | Step::ProcOf { mount, .. } => Some(*mount),
        _ => None,
    }
}

fn source(step: &Step) -> String {
    match step {
        Step::CloneTree { source, .. } => format!("bind {:?}", source.to_string_lossy()),
        Step::CloneOwn { path, .. } => format!("bind {:?} of the container", format!("/{}", path.to_string_lossy())),
        Step::NewMount { filesystem, .. } | Step::ProcOf { filesystem, .. } => format!("mount {}", filesystem.fstype.to_string_lossy()),
        Step::LoopMount { source, filesystem, .. } => {
            format!("loop mount {:?} as {}", source.to_string_lossy(), filesystem.fstype.to_string_lossy())
        }
        _ => String::new(),
    }
}

fn target(launch: &Launch, made: Slot) -> String {
    match attached(launch, made) {
        Some(path) => format!(" at {path:?}"),
        None if launch.plan.steps.iter().any(|step| matches!(step, Step::AttachRoot { mount, .. } if *mount == made)) => {
            " as the root".to_owned()
        }
        None => String::new(),
    }
}

/// Where a mount ends, as the container sees it: before that it may have been put aside, and what it is attached in may be a mount, too.
fn attached(launch: &Launch, made: Slot) -> Option<String> {
    launch.plan.steps.iter().rev().find_map(|step| match step {
        Step::Attach { mount, root, target, .. } if *mount == made => {
            Some(format!("{}/{}", place(launch, *root), target.to_string_lossy()))
        }
        _ => None,
    })
}

/// The path of a mount that others are attached in, or of a directory that was opened; nothing for the root.
fn place(launch: &Launch, root: Slot) -> String {
    let opened = || {
        launch.plan.steps.iter().find_map(|step| match step {
            Step::OpenDirectory { root: above, path, directory } if *directory == root => {
                Some(format!("{}/{}", place(launch, *above), path.to_string_lossy()))
            }
            _ => None,
        })
    };
    attached(launch, root).or_else(opened).unwrap_or_default()
}

/// The bits of a mask as a list (cpuset(7), "List format").
fn numbers(mask: &[u64]) -> String {
    let mut ranges: Vec<(usize, usize)> = Vec::new();
    for bit in (0..mask.len() * 64).filter(|bit| mask[bit / 64] & (1 << (bit % 64)) != 0) {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == bit => *last = bit,
            _ => ranges.push((bit, bit)),
        }
    }
    let range = |(first, last): &(usize, usize)| if first == last { first.to_string() } else { format!("{first}-{last}") };
    ranges.iter().map(range).collect::<Vec<_>>().join(",")
}

/// Which flags of the spec the kernel keeps a user namespace from changing.
fn locked(step: &Step) -> String {
    let steps = if let Step::AtHost { steps, .. } = step { steps.as_slice() } else { std::slice::from_ref(step) };
    let unwanted = steps.iter().find_map(|step| match step {
        Step::BindFlags { flags, .. } if flags.unwanted != 0 => Some(attributes(flags.unwanted)),
        _ => None,
    });
    match unwanted {
        Some(names) => format!("clear {names}: the user namespace locks what the source has of it"),
        None => "the user namespace locks the source's access times".to_owned(),
    }
}

fn part(step: &Step, detail: u16) -> Option<String> {
    let name = |text: &str| Some(text.to_owned());
    match (step, detail) {
        (Step::Attach { .. }, attach::LOOKUP) => name("find or make the mount point"),
        (Step::Attach { .. }, attach::HOSTILE) => name("the mount point is not what it should be"),
        (Step::Attach { .. }, attach::MOVE) => name("move the mount there"),
        (Step::Attach { .. }, attach::LINK) => name("make the symbolic link"),
        (Step::Attach { .. } | Step::AttachRoot { .. } | Step::Settle { .. }, attach::PINNED) => name("a mount namespace is mounted in it"),
        (Step::BindFlags { .. } | Step::AtHost { .. }, LOCKED) => Some(locked(step)),
        (Step::NewMount { .. } | Step::LoopMount { .. } | Step::ProcOf { .. }, 1) => name("create"),
        (Step::NewMount { filesystem, .. } | Step::LoopMount { filesystem, .. } | Step::ProcOf { filesystem, .. }, detail)
            if detail >= 2 =>
        {
            let mounts = filesystem.mounts.iter().map(|(key, _)| key);
            let key = filesystem.options.iter().map(|(key, _)| key).chain(mounts).nth(usize::from(detail) - 2)?;
            Some(format!("option {:?}", key.to_string_lossy()))
        }
        (Step::Pivot { .. }, 1) => name("pivot_root"),
        (Step::Pivot { .. }, 2) => name("detach the old root"),
        (Step::Console { .. }, 0) => name("/dev/pts/ptmx"),
        (Step::JoinedConsole { .. }, 0) => name("/dev/ptmx"),
        (Step::Console { .. } | Step::JoinedConsole { .. }, 1) => name("not a terminal multiplexer"),
        (Step::Console { .. } | Step::JoinedConsole { .. }, 3) => name("chown"),
        (Step::Console { .. }, 4 | 5) => name("/dev/console"),
        (Step::Console { .. }, 7) => name("/dev/pts"),
        (Step::Device { .. }, 1) => name("parent directory"),
        (Step::Device { .. }, 2) => name("chown"),
        (Step::Identity { .. }, 1) => name("setgroups"),
        (Step::Identity { .. }, 2) => name("setgid"),
        (Step::Identity { .. }, 3) => name("setuid"),
        (Step::UserNamespace { .. }, 1) => name("clone3"),
        (Step::UserNamespace { .. }, 2) => name("uid_map"),
        (Step::UserNamespace { .. }, 3) => name("gid_map"),
        (Step::MountByHelper { .. }, helper_failed::NOTHING) => name("the helper ended well and mounted nothing"),
        (Step::Settle { .. }, UNSETTLED) => name("they do not stop changing"),
        (Step::Loopback, 1) => name("accept_ra"),
        (Step::Mask { .. } | Step::ReadOnly { .. }, detail) if detail > 0 => name("mount over it"),
        (Step::OverlayByPath { .. }, 1) => name("chdir"),
        (Step::Capabilities { .. }, 1) => name("the ambient ones"),
        _ => None,
    }
}

/// The words that ctr, Docker and kubelet users know from runc, and that Docker derives exit codes 126 and 127 from.
fn no_program(launch: &Launch, errno: i32) -> Error {
    let name = &launch.program.name;
    let found_nothing = errno == Errno::NOENT.raw_os_error();
    if !name.contains('/') && found_nothing {
        return Error::new(ErrorKind::NotFound, format!("exec: {name:?}: executable file not found in $PATH"));
    }
    let what = if found_nothing { format!("exec: {name:?}: stat {name}") } else { format!("exec: {name:?}") };
    program_error(what, errno)
}

fn exec_failed(launch: &Launch, errno: i32) -> Error {
    let name = &launch.program.name;
    program_error(format!("exec {name}"), errno)
}

fn program_error(what: String, errno: i32) -> Error {
    let kind = match Errno::from_raw_os_error(errno) {
        Errno::NOENT | Errno::NOTDIR => ErrorKind::NotFound,
        Errno::ACCESS | Errno::ISDIR | Errno::NOEXEC | Errno::PERM => ErrorKind::InvalidArgument,
        _ => ErrorKind::Internal,
    };
    Error::from_errno(what, errno).with_kind(kind)
}

#[cfg(test)]
mod tests {
    use std::ffi::CString;

    use super::*;
    use crate::plan::{Builder, Program, Target};

    fn sentence(build: impl FnOnce(&mut Builder), step: u16) -> String {
        let mut plan = Builder::default();
        build(&mut plan);
        let (plan, _) = plan.finish().unwrap();
        let launch = Launch { plan, program: Program::default(), clone_flags: 0, cgroup: None, report: Slot(0) };
        explain(&launch, &Failure { step, detail: 0, errno: Errno::INVAL.raw_os_error(), text: String::new() }).to_string()
    }

    fn attach(mount: Slot, root: Slot, target: &str) -> Step {
        Step::Attach { mount, root, target: CString::new(target).unwrap(), rule: Target::Ordinary }
    }

    #[test]
    fn paths_are_whole() {
        // The container's root, a shelf, a tmpfs that was put on it, and a mount inside of that.
        let (root, shelf, outer, inner) = (Slot(1), Slot(2), Slot(3), Slot(4));
        let build = |plan: &mut Builder| {
            plan.step(attach(outer, shelf, "1"));
            plan.step(attach(outer, root, "sys/fs/cgroup"));
            plan.step(attach(inner, outer, "cpu"));
            plan.step(Step::Symlink { directory: outer, name: c"cpuacct".to_owned(), target: c"cpu".to_owned() });
        };
        assert!(sentence(build, 0).contains("at \"/sys/fs/cgroup\""), "{}", sentence(build, 0));
        assert!(sentence(build, 2).contains("at \"/sys/fs/cgroup/cpu\""), "{}", sentence(build, 2));
        assert_eq!(sentence(build, 3), "make link \"/sys/fs/cgroup/cpuacct\" -> \"cpu\": invalid argument");
    }

    #[test]
    fn fields_and_names_stand_for_paths_and_masks() {
        let of = |step: Step| sentence(|plan| plan.step(step), 0);
        let sysctl = |path: &str| Step::Sysctl { proc: Slot(1), path: CString::new(path).unwrap(), value: c"x".to_owned() };
        assert_eq!(of(sysctl("sys/net/ipv4/conf/eth0.1/mtu")), "linux.sysctl: set \"net.ipv4.conf.eth0/1.mtu\" to \"x\": invalid argument");
        assert_eq!(of(Step::BoundingSet { keep: 7 }), "process.capabilities.bounding: drop all others: invalid argument");
        let sets = Step::Capabilities { effective: 1, permitted: 1, inheritable: 0, ambient: 0 };
        assert_eq!(of(sets), "process.capabilities: set them: invalid argument");
        assert_eq!(
            of(Step::MemoryPolicy { mode: 2, nodes: vec![0b1011, 1] }),
            "linux.memoryPolicy: set the policy for nodes 0-1,3,64: invalid argument"
        );
        assert_eq!(of(Step::JoinCgroup { procs: Slot(1) }), "join the container's cgroup: invalid argument");
    }
}
