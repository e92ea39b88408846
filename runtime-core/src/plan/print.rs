//! A plan as text: what a reviewer reads, what golden tests compare, and what error sentences quote.

use std::ffi::{CStr, CString};
use std::fmt;

use crate::sys::namespace::CLONE_NEWTIME;

use super::{Cover, Filesystem, Node, Plan, Slot, Step, Target};

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.steps.iter().try_for_each(|step| writeln!(f, "{step}"))
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.0)
    }
}

fn text(string: &CStr) -> std::borrow::Cow<'_, str> {
    string.to_string_lossy()
}

fn options(options: &[(CString, Option<CString>)]) -> String {
    let one = |(key, value): &(CString, Option<CString>)| match value {
        Some(value) => format!("{}={}", text(key), text(value)),
        None => text(key).into_owned(),
    };
    options.iter().map(one).collect::<Vec<_>>().join(",")
}

fn newlines(onlcr: bool) -> &'static str {
    if onlcr { "" } else { ", newlines as they are" }
}

/// Names of the bits of `value`, or its number.
fn bits(value: u64, names: &[(u64, &str)]) -> String {
    let known: Vec<&str> = names.iter().filter(|(bit, _)| value & bit == *bit).map(|(_, name)| *name).collect();
    let rest = value & !names.iter().filter(|(bit, _)| value & bit == *bit).fold(0, |all, (bit, _)| all | bit);
    match (known.is_empty(), rest) {
        (true, 0) => "-".to_owned(),
        (_, 0) => known.join("|"),
        (true, rest) => format!("{rest:#x}"),
        (false, rest) => format!("{}|{rest:#x}", known.join("|")),
    }
}

fn dimensions(size: Option<(u16, u16)>) -> String {
    size.map_or_else(String::new, |(width, height)| format!(", size {width}x{height}"))
}

fn namespaces(flags: i32) -> String {
    let names = [
        (libc::CLONE_NEWNS as u64, "mount"),
        (libc::CLONE_NEWPID as u64, "pid"),
        (libc::CLONE_NEWNET as u64, "net"),
        (libc::CLONE_NEWIPC as u64, "ipc"),
        (libc::CLONE_NEWUTS as u64, "uts"),
        (libc::CLONE_NEWCGROUP as u64, "cgroup"),
        (CLONE_NEWTIME as u64, "time"),
    ];
    bits(flags as u64, &names)
}

pub(crate) fn attributes(value: u64) -> String {
    use crate::sys::mount::attr;
    let names = [
        (attr::RDONLY, "ro"),
        (attr::NOSUID, "nosuid"),
        (attr::NODEV, "nodev"),
        (attr::NOEXEC, "noexec"),
        (attr::ATIME_MASK, "atime"),
        (attr::NOATIME, "noatime"),
        (attr::STRICTATIME, "strictatime"),
        (attr::NODIRATIME, "nodiratime"),
        (attr::NOSYMFOLLOW, "nosymfollow"),
    ];
    bits(value, &names)
}

fn propagation(flags: u64) -> String {
    let names = [
        (libc::MS_REC, "recursive"),
        (libc::MS_SHARED, "shared"),
        (libc::MS_SLAVE, "slave"),
        (libc::MS_PRIVATE, "private"),
        (libc::MS_UNBINDABLE, "unbindable"),
    ];
    bits(flags, &names)
}

fn depth(recursive: bool) -> &'static str {
    if recursive { " with all below" } else { "" }
}

impl fmt::Display for Filesystem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} [{}", text(&self.fstype), options(&self.options))?;
        for (key, mount) in &self.mounts {
            write!(f, ",{}={mount}", text(key))?;
        }
        write!(f, "] {}", attributes(self.attributes))
    }
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            libc::S_IFBLK => "block",
            libc::S_IFIFO => "fifo",
            _ => "character",
        };
        let (major, minor) = (rustix::fs::major(self.device), rustix::fs::minor(self.device));
        write!(f, "{kind} {major}:{minor}, mode {:o}, owner {}:{}", self.mode, self.uid, self.gid)
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::JoinCgroup { procs } => write!(f, "join cgroup {procs}"),
            Self::OomScoreAdj { score } => write!(f, "set oom_score_adj {score}"),
            Self::Label { label } => write!(f, "set {} to {:?}", text(&label.file), text(&label.text)),
            Self::NewKeyring { name } => write!(f, "new session keyring {}", text(name)),
            Self::Join { namespace, flags } => write!(f, "join namespaces {} of {namespace}", namespaces(*flags)),
            Self::EnterPid { namespace } => write!(f, "have the next process born in pid namespace {namespace}"),
            Self::Birth => write!(f, "go on as a new process"),
            Self::Unshare { flags } => write!(f, "new namespaces {}", namespaces(*flags)),
            Self::TimeOffsets { offsets } => write!(f, "set clocks: {}", text(offsets).trim_end().replace('\n', ", ")),
            Self::EnterTime => write!(f, "enter the new time namespace"),
            Self::Loopback => write!(f, "set loopback up"),
            Self::Session => write!(f, "new session"),
            Self::CloneTree { source, recursive, follow, mount } => {
                let itself = if *follow { "" } else { ", not following it" };
                write!(f, "{mount} = bind {:?}{}{itself}", text(source), depth(*recursive))
            }
            Self::OpenHost { host } => write!(f, "{} = the host's mount namespace", host.namespace),
            Self::WatchHost { host } => write!(f, "{} = the host's mounts", host.table),
            Self::AtHost { steps, .. } => {
                write!(f, "at the host's mounts:")?;
                steps.iter().try_for_each(|step| write!(f, " {step};"))
            }
            Self::Settle { host, mount, .. } => write!(f, "attach {mount} for now, make it again if {} has changed", host.table),
            Self::ReturnToHost { host } => write!(f, "return to the host's mounts in {}", host.namespace),
            Self::Unmount { path } => write!(f, "unmount what is at {:?}", text(path)),
            Self::SourceDirectory { path } => write!(f, "enter {:?} of the host", text(path)),
            Self::NewMount { filesystem, mount } => write!(f, "{mount} = mount {filesystem}"),
            Self::ProcOf { namespace, filesystem, mount, .. } => write!(f, "{mount} = mount {filesystem} of pid namespace {namespace}"),
            Self::LoopMount { source, direct_io, filesystem, mount } => {
                let direct = if *direct_io { ", direct I/O," } else { "" };
                write!(f, "{mount} = loop mount {:?}{direct} {filesystem}", text(source))
            }
            Self::UserNamespace { uid_map, gid_map, namespace } => {
                let ranges = |map: &CStr| text(map).trim_end().replace('\n', ", ");
                write!(f, "{namespace} = user namespace, users {}, groups {}", ranges(uid_map), ranges(gid_map))
            }
            Self::IdMap { mount, namespace, recursive } => write!(f, "map owners of {mount}{} by {namespace}", depth(*recursive)),
            Self::IdMapByParent { mount, namespace, recursive } => {
                write!(f, "have the parent map owners of {mount}{} by {namespace}", depth(*recursive))
            }
            Self::CheckMaps { .. } => write!(f, "check the maps of the user namespace"),
            Self::Attributes { mount, recursive, set, clear, propagation: p } => {
                let all = depth(*recursive);
                write!(
                    f,
                    "change mount {mount}{all}: set {}, clear {}, propagation {}",
                    attributes(*set),
                    attributes(*clear),
                    propagation(*p)
                )
            }
            Self::BindFlags { mount, flags } => {
                write!(f, "change bind {mount}: set {}, clear {}", attributes(flags.set), attributes(flags.clear))?;
                if flags.unwanted == 0 { Ok(()) } else { write!(f, ", not locked {}", attributes(flags.unwanted)) }
            }
            Self::OverlayByPath { base, data, mount, .. } => write!(f, "{mount} = mount overlay in {:?} [{}]", text(base), text(data)),
            Self::MountByHelper { target, mount } => write!(f, "{mount} = mount by helper at {:?}", text(target)),
            Self::TakeFrom { namespace, path, mount } => write!(f, "{mount} = bind {:?} of mount namespace {namespace}", text(path)),
            Self::OpenNamespace { path, namespace, .. } => write!(f, "{namespace} = namespace {:?} of procfs", text(path)),
            Self::HandOver { descriptor } => write!(f, "give {descriptor} away"),
            Self::Keep => write!(f, "stay until everything that was started has ended"),
            Self::EnterStub => write!(f, "enter an empty mount namespace"),
            Self::Propagation { flags } => write!(f, "change propagation of / to {}", propagation(*flags)),
            Self::AttachRoot { mount, path, root } => write!(f, "{root} = attach root {mount} at {:?}", text(path)),
            Self::TakeMode { target, .. } => write!(f, "take the mode of \"/{}\"", text(target)),
            Self::CloneOwn { path, recursive, follow, mount, .. } => {
                let itself = if *follow { "" } else { ", not following it" };
                write!(f, "{mount} = bind \"/{}\" of the container{}{itself}", text(path), depth(*recursive))
            }
            Self::Close { slot } => write!(f, "close {slot}"),
            Self::CopyUp { mount, target, .. } => write!(f, "copy \"/{}\" to {mount}", text(target)),
            Self::FileLabel { mount, label } => write!(f, "label {mount} {:?}", text(label)),
            Self::Attach { mount, target, rule, .. } => {
                let rule = match rule {
                    Target::Ordinary => "",
                    Target::PlainDirectory => " (a plain directory)",
                    Target::Proc => " (a plain directory, a procfs)",
                    Target::ProcFile => " (a file of procfs)",
                    Target::Itself => " (not following it)",
                    Target::Link => " (a link becomes one)",
                };
                write!(f, "attach {mount} at \"/{}\"{rule}", text(target))
            }
            Self::OpenDirectory { path, directory, .. } => write!(f, "{directory} = open directory \"/{}\"", text(path)),
            Self::MakeDirectory { directory, name, mode } => write!(f, "make directory {:?} in {directory}, mode {mode:o}", text(name)),
            Self::Device { path, node, .. } => write!(f, "make device \"/{}\": {node}", text(path)),
            Self::Symlink { name, target, directory } => write!(f, "make link {:?} -> {:?} in {directory}", text(name), text(target)),
            Self::Console { uid, size, cover, onlcr, .. } => {
                let what = match cover {
                    Cover::Made => "console",
                    Cover::IfThere => "terminal, over a console that is there,",
                    Cover::Never => "terminal that is no console",
                };
                write!(f, "make {what} for user {uid}{}{}", dimensions(*size), newlines(*onlcr))
            }
            Self::JoinedConsole { uid, size, onlcr } => write!(f, "make terminal for user {uid}{}{}", dimensions(*size), newlines(*onlcr)),
            Self::ControlTerminal => write!(f, "make standard input the controlling terminal"),
            Self::PauseForHooks => write!(f, "wait for hooks"),
            Self::Pivot { root } => write!(f, "pivot root to {root}"),
            Self::MoveRoot { root } => write!(f, "move root to {root}"),
            Self::RootAttributes { recursive, set, propagation: p } => {
                write!(f, "change root{}: set {}, propagation {}", depth(*recursive), attributes(*set), propagation(*p))
            }
            Self::ReadOnly { path } => write!(f, "make \"/{}\" read-only", text(path)),
            Self::Mask { path, .. } => write!(f, "mask \"/{}\"", text(path)),
            Self::HostName { name } => write!(f, "set hostname {:?}", text(name)),
            Self::DomainName { name } => write!(f, "set domainname {:?}", text(name)),
            Self::Sysctl { path, value, .. } => write!(f, "set {:?} to {:?}", text(path), text(value)),
            Self::Stream { number, from } => write!(f, "stream {number} = {from}"),
            Self::OwnStreams { uid } => write!(f, "give streams to user {uid}"),
            Self::Rlimit { resource, soft, hard } => write!(f, "set rlimit {resource} to {soft}:{hard}"),
            Self::Affinity { mask } => write!(f, "keep to processors {mask:x?}"),
            Self::Scheduler { policy, flags, nice, priority, runtime, deadline, period } => write!(
                f,
                "set scheduler {policy}: flags {flags:#x}, nice {nice}, priority {priority}, runtime/deadline/period {runtime}/{deadline}/{period}"
            ),
            Self::IoPriority { value } => write!(f, "set I/O priority {value:#x}"),
            Self::Personality { value } => write!(f, "set personality {value:#x}"),
            Self::MemoryPolicy { mode, nodes } => write!(f, "set memory policy {mode:#x} for nodes {nodes:x?}"),
            Self::Umask { mask } => write!(f, "set umask {mask:04o}"),
            Self::Home { uid } => write!(f, "find home of user {uid}"),
            Self::MakeWorkingDirectory { path } => write!(f, "make working directory {:?}", text(path)),
            Self::BoundingSet { keep } => write!(f, "keep bounding set {keep:#x}"),
            Self::Seccomp { program, flags } => write!(f, "load seccomp filter of {} instructions, flags {flags:#x}", program.len()),
            Self::NoNewPrivileges => write!(f, "set no_new_privs"),
            Self::Identity { uid, gid, groups: Some(groups) } => write!(f, "become user {uid}:{gid}, groups {groups:?}"),
            Self::Identity { uid, gid, groups: None } => write!(f, "become user {uid}:{gid}, groups as they are"),
            Self::Capabilities { effective, permitted, inheritable, ambient } => {
                write!(
                    f,
                    "set capabilities: effective {effective:#x}, permitted {permitted:#x}, inheritable {inheritable:#x}, ambient {ambient:#x}"
                )
            }
            Self::WorkingDirectory { path, .. } => write!(f, "enter working directory {:?}", text(path)),
            Self::FindProgram => write!(f, "find program"),
            Self::Relocate { above } => write!(f, "move descriptors above {above}"),
            Self::CloseOthers { first, parents_end: None } => write!(f, "close descriptors from {first} on"),
            Self::CloseOthers { first, parents_end: Some(end) } => {
                write!(f, "close descriptors from {first} on, keep the parent's end {end}")
            }
            Self::Ready => write!(f, "ready: wait for start"),
            Self::Exec { own: true } => write!(f, "execute program"),
            Self::Exec { own: false } => write!(f, "execute program, or report why not"),
            Self::ExecFile { file } => write!(f, "execute {file}"),
        }
    }
}
