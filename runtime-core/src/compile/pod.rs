//! The namespaces of a pod that no container of its own holds, and the process that makes them.
//!
//! The process makes what the pod's containers share, hands it over, and ends. Only where they share a pid namespace it stays, as the init of
//! that ([`hold`]), with no right and no file in sight.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use oci_spec::runtime::LinuxNamespace;

use super::mounts::new_mount;
use super::namespaces;
use super::user::become_root;
use super::{CgroupView, Compiled, cstring, cstrings, sysctl};
use crate::error::{Error, Result};
use crate::hold;
use crate::plan::{Builder, Launch, Program, Step};
use crate::sys::mount::attr;

/// Where a pod's mount namespace has what its containers share as `/dev/shm`.
pub const SHM: &std::ffi::CStr = c"/b";

/// The size that containerd's CRI and runc's default spec give `/dev/shm`.
const SHM_SIZE: &std::ffi::CStr = c"65536k";

/// Who the init of a pod's pid namespace runs as: the user of the image `pause` of Kubernetes.
const NOBODY: u32 = 65535;

/// Everything that the plan of a pod is compiled from.
pub struct Pod<'a> {
    /// New ones without, given ones with a path; those that are missing are the host's. A pid namespace can only be a new one.
    pub namespaces: &'a [LinuxNamespace],
    /// The user namespace that is to own the new ones.
    pub user: Option<OwnedFd>,
    /// Name in the UTS namespace; empty, it stays the host's.
    pub hostname: &'a str,
    /// Kernel parameters of the namespaces.
    pub sysctl: &'a BTreeMap<String, String>,
    /// The init of a new pid namespace.
    pub holder: Option<Holder>,
    /// Where the child reports: the descriptors of [`CompiledPod::gives`].
    pub report: OwnedFd,
}

/// The process that is the init of a pod's pid namespace.
pub struct Holder {
    /// Where it lives.
    pub cgroup: CgroupView,
    /// What it runs: [`hold::program`].
    pub program: OwnedFd,
}

/// A plan, and what comes of it.
pub struct CompiledPod {
    /// For the launcher.
    pub compiled: Compiled,
    /// What is handed over, in this order: `CLONE_NEW*` of each namespace.
    pub gives: Vec<i32>,
}

/// The namespaces of a pod.
///
/// # Errors
/// [`ErrorKind::InvalidArgument`](crate::ErrorKind::InvalidArgument) by the field's name.
pub fn pod(inputs: Pod<'_>) -> Result<CompiledPod> {
    let mut plan = Builder::default();
    let report = plan.give(inputs.report);
    let (mut procs, mut cgroup, mut program) = (Vec::new(), None, None);
    if let Some(holder) = inputs.holder {
        procs.extend(holder.cgroup.procs.into_iter().map(|fd| plan.give(fd)));
        cgroup = holder.cgroup.directory.map(|fd| plan.give(fd));
        program = Some(plan.give(holder.program));
    }
    let joined = namespaces::open(&mut plan, inputs.namespaces)?;
    let user = inputs.user.map(|fd| plan.give(fd));
    sysctl::check(inputs.sysctl, &joined, user.is_some())?;
    if joined.pid().is_some() || joined.mount().is_some() || (joined.new_pid() != 0) != program.is_some() {
        return Err(Error::invalid("pod: a pid namespace is a new one with a process to hold it, and a mount namespace cannot be given"));
    }

    procs.iter().for_each(|&procs| plan.step(Step::JoinCgroup { procs }));
    plan.step(Step::Session);
    let proc = plan.slot();
    new_mount(&mut plan, c"proc", Vec::new(), 0, proc);
    let mut shared = Vec::new();
    if joined.unborn() & libc::CLONE_NEWIPC != 0 {
        let shm = plan.slot();
        let options = [(c"source", c"shm"), (c"mode", c"1777"), (c"size", SHM_SIZE)];
        let options = options.map(|(key, value)| (key.to_owned(), Some(value.to_owned()))).to_vec();
        new_mount(&mut plan, c"tmpfs", options, attr::NOSUID | attr::NODEV | attr::NOEXEC, shm);
        plan.step(Step::EnterStub);
        plan.step(Step::AttachRoot { mount: shm, path: SHM.to_owned(), root: shm });
        shared.push((libc::CLONE_NEWNS, "mnt"));
    } else {
        plan.step(Step::EnterStub);
    }
    joined.join(&mut plan);
    if let Some(namespace) = user {
        plan.step(Step::Join { namespace, flags: libc::CLONE_NEWUSER });
        become_root(&mut plan);
        if joined.new_pid() != 0 {
            plan.step(Step::Unshare { flags: joined.new_pid() });
            plan.step(Step::Birth);
        }
    }
    joined.make(&mut plan);
    if !inputs.hostname.is_empty() && joined.unborn() & libc::CLONE_NEWUTS != 0 {
        plan.step(Step::HostName { name: cstring("hostname", inputs.hostname)? });
    }
    sysctl::write(&mut plan, inputs.sysctl, Some(proc))?;

    let made = [(libc::CLONE_NEWNET, "net"), (libc::CLONE_NEWIPC, "ipc"), (libc::CLONE_NEWUTS, "uts")];
    shared.extend(made.into_iter().filter(|(flag, _)| joined.unborn() & flag != 0));
    let mut made = Vec::new();
    for (_, name) in &shared {
        let namespace = plan.slot();
        plan.step(Step::OpenNamespace { proc, path: cstring("namespace", &format!("self/ns/{name}"))?, namespace });
        made.push(namespace);
    }
    if program.is_some() {
        plan.step(Step::BoundingSet { keep: 0 });
        plan.step(Step::NoNewPrivileges);
        plan.step(Step::Identity { uid: NOBODY, gid: NOBODY, groups: Some(Vec::new()) });
        plan.step(Step::Capabilities { effective: 0, permitted: 0, inheritable: 0, ambient: 0 });
    }
    made.into_iter().for_each(|descriptor| plan.step(Step::HandOver { descriptor }));
    plan.step(program.map_or(Step::Keep, |file| Step::ExecFile { file }));

    let (plan, descriptors) = plan.finish()?;
    let program = Program { name: hold::NAME.to_owned(), arguments: cstrings("holder", &[hold::NAME.to_owned()])?, ..Program::default() };
    // In a user namespace it is made there, and belongs to it.
    let clone_flags = if user.is_none() { joined.new_pid() as u64 } else { 0 };
    let launch = Launch { plan, program, clone_flags, cgroup, report };
    Ok(CompiledPod { compiled: Compiled { launch, descriptors }, gives: shared.into_iter().map(|(flag, _)| flag).collect() })
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::{LinuxNamespaceBuilder, LinuxNamespaceType};

    use super::*;

    fn plan(kinds: &[LinuxNamespaceType], sysctls: &[(&str, &str)]) -> Result<(String, Vec<i32>)> {
        let namespaces: Vec<_> = kinds.iter().map(|kind| LinuxNamespaceBuilder::default().typ(*kind).build().unwrap()).collect();
        let sysctl = sysctls.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let null = || std::fs::File::open("/dev/null").unwrap().into();
        let cgroup = CgroupView { procs: Vec::new(), directory: None, mounts: crate::cgroup::Mounts::V2 };
        let holder = kinds.contains(&LinuxNamespaceType::Pid).then(|| Holder { cgroup, program: null() });
        let inputs = Pod { namespaces: &namespaces, user: None, hostname: "web", sysctl: &sysctl, holder, report: null() };
        pod(inputs).map(|made| (made.compiled.launch.plan.to_string(), made.gives))
    }

    #[test]
    fn the_maker_hands_over_what_it_made_and_ends() {
        use LinuxNamespaceType::{Ipc, Uts};
        let (text, gives) = plan(&[Ipc, Uts], &[("kernel.shm_rmid_forced", "1")]).unwrap();
        assert_eq!(gives, [libc::CLONE_NEWNS, libc::CLONE_NEWIPC, libc::CLONE_NEWUTS]);
        let order =
            ["mount tmpfs", "enter an empty", "new namespaces ipc|uts", "set hostname \"web\"", "shm_rmid_forced", "give #", "stay until"];
        let places: Vec<_> = order.iter().map(|part| text.find(part).unwrap_or_else(|| panic!("{part}: {text}"))).collect();
        assert!(places.is_sorted(), "{text}");
        assert!(text.ends_with("stay until everything that was started has ended\n"), "{text}");
        assert!(!text.contains("become user"), "{text}");
    }

    #[test]
    fn the_init_of_a_pod_has_lost_its_rights_before_anybody_knows_of_it() {
        let (text, _) = plan(&[LinuxNamespaceType::Ipc, LinuxNamespaceType::Pid], &[]).unwrap();
        assert!(text.find("set capabilities: effective 0x0").unwrap() < text.find("give #").unwrap(), "{text}");
        assert!(text.lines().last().unwrap().starts_with("execute #"), "{text}");
    }

    #[test]
    fn what_belongs_to_the_host_is_not_changed() {
        let (text, gives) = plan(&[], &[]).unwrap();
        assert!(gives.is_empty() && !text.contains("hostname") && !text.contains("new namespaces"), "{text}");
        for name in ["kernel.shmmax", "net.ipv4.ip_forward", "vm.swappiness"] {
            assert!(plan(&[], &[(name, "1")]).is_err(), "{name}");
        }
    }
}
