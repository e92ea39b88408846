//! Golden texts: the plan of each `testdata/plans/<case>/config.json` as it reads, and what must hold in every one of them.
//!
//! `UPDATE_GOLDEN=1` writes the texts anew; the difference is then to be reviewed like code.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use super::*;
use crate::cgroup::{MountedHierarchy, Mounts};
use crate::plan::Plan;
use crate::spec::check;

fn null() -> OwnedFd {
    std::fs::File::open("/dev/null").unwrap().into()
}

fn cases() -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/plans");
    let mut cases: Vec<PathBuf> = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    cases.sort();
    assert!(cases.len() >= 6);
    cases
}

fn spec(case: &Path) -> Spec {
    let spec = Spec::parse(&std::fs::read(case.join("config.json")).unwrap()).unwrap();
    check(&spec).unwrap();
    spec
}

fn hierarchies() -> Mounts {
    let one = |name: &str, options: &str| MountedHierarchy {
        name: name.to_owned(),
        options: options.to_owned(),
        directory: Path::new("/sys/fs/cgroup").join(name).join("default/x"),
    };
    Mounts::V1(vec![one("cpu,cpuacct", "cpu,cpuacct"), one("memory", "memory"), one("systemd", "none,name=systemd")])
}

/// The plan of a case, on a v2 host unless it says otherwise.
fn plan(case: &Path) -> Plan {
    plan_of(case, &spec(case))
}

fn plan_of(case: &Path, spec: &Spec) -> Plan {
    let terminal = spec.process.as_ref().unwrap().terminal;
    let v1 = matches!(case.file_name().unwrap().to_str().unwrap(), "cgroup-v1" | "privileged");
    let layer = |number: u32| format!("/var/lib/snapshots/{number}/fs");
    let options = vec![
        "workdir=/var/lib/snapshots/9/work".to_owned(),
        "upperdir=/var/lib/snapshots/9/fs".to_owned(),
        format!("lowerdir={}:{}", layer(2), layer(1)),
        "index=off".to_owned(),
    ];
    let rootfs = [RootMount { fstype: "overlay".into(), source: "overlay".into(), target: String::new(), options }];
    let filter = spec.linux.seccomp.as_ref().map(|profile| crate::seccomp::compile(profile).unwrap());
    let compiled = container(Container {
        id: "x",
        bundle: Path::new("/run/bundle"),
        spec,
        rootfs: &rootfs,
        by_helper: Vec::new(),
        pod: None,
        cgroup: CgroupView {
            procs: if v1 { vec![null(), null()] } else { Vec::new() },
            directory: Some(null()),
            mounts: if v1 { hierarchies() } else { Mounts::V2 },
        },
        streams: if terminal { Streams::Terminal { served: false } } else { Streams::Given([null(), null(), null()]) },
        filter: filter.as_ref(),
        report: null(),
        parents_end: None,
        preserved: Vec::new(),
        no_pivot_root: false,
        networked: false,
        no_new_keyring: false,
        kernel: Features { layers_one_by_one: true, layers_by_descriptor: true, in_user_namespace: false, has_kcore: true },
    });
    compiled.unwrap().launch.plan
}

/// The positions of the steps that `is` chooses.
fn at(plan: &Plan, is: impl Fn(&Step) -> bool) -> Vec<usize> {
    plan.steps.iter().enumerate().filter(|(_, step)| is(step)).map(|(index, _)| index).collect()
}

/// Every step that `a` chooses comes before every one that `b` chooses, and each chooses some.
#[track_caller]
fn before(case: &Path, plan: &Plan, a: impl Fn(&Step) -> bool, b: impl Fn(&Step) -> bool) {
    let (a, b) = (at(plan, a), at(plan, b));
    assert!(a.last().unwrap() < b.first().unwrap(), "{}\n{plan}", case.display());
}

/// The same where there are any of either.
#[track_caller]
fn before_if_any(case: &Path, plan: &Plan, a: impl Fn(&Step) -> bool, b: impl Fn(&Step) -> bool) {
    if !at(plan, &a).is_empty() && !at(plan, &b).is_empty() {
        before(case, plan, a, b);
    }
}

#[test]
fn plans_read_as_the_golden_texts() {
    let update = std::env::var_os("UPDATE_GOLDEN").is_some();
    for case in cases() {
        let text = plan(&case).to_string();
        let path = case.join("plan.txt");
        if update {
            std::fs::write(&path, text).unwrap();
        } else {
            assert_eq!(text, std::fs::read_to_string(&path).unwrap(), "{}", case.display());
        }
    }
}

#[test]
fn the_root_is_sealed_after_everything_was_made_in_it() {
    for case in cases() {
        let plan = plan(&case);
        let pivot = |step: &Step| matches!(step, Step::Pivot { .. });
        let made = |step: &Step| {
            matches!(
                step,
                Step::Attach { .. } | Step::Device { .. } | Step::Symlink { .. } | Step::MakeDirectory { .. } | Step::Console { .. }
            )
        };
        let sealed = |step: &Step| matches!(step, Step::RootAttributes { .. } | Step::ReadOnly { .. } | Step::Mask { .. });
        before(&case, &plan, made, pivot);
        before_if_any(&case, &plan, pivot, sealed);
        before_if_any(&case, &plan, |step| matches!(step, Step::Sysctl { .. } | Step::MakeWorkingDirectory { .. }), sealed);
        before_if_any(&case, &plan, |step| matches!(step, Step::ReadOnly { .. }), |step| matches!(step, Step::Mask { .. }));
        before_if_any(&case, &plan, |step| matches!(step, Step::PauseForHooks), pivot);
    }
}

#[test]
fn sources_are_opened_before_the_host_is_left() {
    for case in cases() {
        let plan = plan(&case);
        let source = |step: &Step| matches!(step, Step::CloneTree { .. } | Step::LoopMount { .. } | Step::SourceDirectory { .. });
        let leave = |step: &Step| match step {
            Step::EnterStub => true,
            Step::Unshare { flags } => flags & libc::CLONE_NEWNS != 0,
            _ => false,
        };
        before_if_any(&case, &plan, source, leave);
        let hooks = has_early_hooks(&spec(&case));
        assert_eq!(at(&plan, |step| matches!(step, Step::EnterStub)).is_empty(), hooks, "{}", case.display());
    }
}

#[test]
fn cgroups_come_first_and_the_host_is_closed_before_the_containers_paths_are_used() {
    for case in cases() {
        let plan = plan(&case);
        let joins = at(&plan, |step| matches!(step, Step::JoinCgroup { .. }));
        assert_eq!(joins, (0..joins.len()).collect::<Vec<_>>());
        let close = |step: &Step| matches!(step, Step::CloseOthers { .. });
        before(&case, &plan, close, |step| {
            matches!(step, Step::Home { .. } | Step::WorkingDirectory { .. } | Step::FindProgram | Step::Ready)
        });
        before(&case, &plan, |step| matches!(step, Step::Pivot { .. }), close);
    }
}

#[test]
fn rights_go_in_the_one_order_that_works() {
    for case in cases() {
        let plan = plan(&case);
        let identity = |step: &Step| matches!(step, Step::Identity { .. });
        before(&case, &plan, |step| matches!(step, Step::BoundingSet { .. }), identity);
        before(&case, &plan, identity, |step| matches!(step, Step::Capabilities { .. }));
        before(&case, &plan, |step| matches!(step, Step::Capabilities { .. }), |step| matches!(step, Step::FindProgram));
        before(&case, &plan, |step| matches!(step, Step::FindProgram), |step| matches!(step, Step::Ready));
        assert_eq!(plan.steps.last(), Some(&Step::Exec { own: true }));
    }
}

#[test]
fn the_filter_is_loaded_with_rights_only_where_it_must_be() {
    let case = cases().into_iter().find(|case| case.ends_with("cri")).unwrap();
    let told = || Some(crate::seccomp::Listener { path: "/agent".to_owned(), metadata: String::new() });
    for (no_new_privileges, listener) in [(true, None), (true, told()), (false, None), (false, told())] {
        let mut process = spec(&case).process.unwrap();
        process.no_new_privileges = no_new_privileges;
        let filter = crate::seccomp::Filter { program: Vec::new(), flags: 0, skipped: Vec::new(), listener: listener.clone() };
        let mut builder = Builder::default();
        let common = &Joined::default();
        let how = process::Confinement {
            common,
            home: process::Home::LookedUp,
            filter: Some(&filter),
            terminal: false,
            birth: false,
            until: process::Until::Started,
        };
        process::confine(&mut builder, &process, &process::Kept::default(), how).unwrap();
        let (plan, _) = builder.finish().unwrap();
        let load = at(&plan, |step| matches!(step, Step::Seccomp { .. }));
        let identity = at(&plan, |step| matches!(step, Step::Identity { .. }));
        assert_eq!((load.len(), load < identity), (1, !no_new_privileges), "{plan}");
        let ready = at(&plan, |step| matches!(step, Step::Ready));
        assert_eq!(load < ready, !no_new_privileges || listener.is_some(), "{plan}");
        assert_eq!(load[0] >= plan.steps.len() - 3, no_new_privileges, "{plan}");
    }
}

/// A process that is the init of a pid namespace, to be ended.
struct Init(std::process::Child);

impl Init {
    fn start() -> Self {
        let script = ["--pid", "--fork", "--kill-child", "sh", "-c", "echo; exec sleep 1000"];
        let mut child = std::process::Command::new("unshare").args(script).stdout(std::process::Stdio::piped()).spawn().unwrap();
        std::io::Read::read(child.stdout.as_mut().unwrap(), &mut [0]).unwrap();
        Self(child)
    }

    fn pid(&self) -> i32 {
        let id = self.0.id();
        std::fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap().trim().parse().unwrap()
    }
}

impl Drop for Init {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The plan of a container in a pid namespace that others share, and of a process that joins a container.
fn born(filtered: bool, no_new_privileges: bool) -> Vec<Plan> {
    let case = cases().into_iter().find(|case| case.ends_with("cri")).unwrap();
    let init = Init::start();
    let mut text: serde_json::Value = serde_json::from_slice(&std::fs::read(case.join("config.json")).unwrap()).unwrap();
    for namespace in text["linux"]["namespaces"].as_array_mut().unwrap().iter_mut().filter(|namespace| namespace["type"] == "pid") {
        namespace["path"] = format!("/proc/{}/ns/pid", init.pid()).into();
    }
    text["process"]["noNewPrivileges"] = no_new_privileges.into();
    if !filtered {
        text["linux"].as_object_mut().unwrap().remove("seccomp");
    }
    let spec = Spec::parse(text.to_string().as_bytes()).unwrap();
    let filter = spec.linux.seccomp.as_ref().map(|profile| crate::seccomp::compile(profile).unwrap());
    let joins = |terminal| {
        joining(Joining {
            id: "x",
            namespaces: &Joined::of(&spec.linux).unwrap(),
            process: spec.process.as_ref().unwrap(),
            init: null(),
            cgroup: CgroupView { procs: vec![null(), null()], directory: None, mounts: hierarchies() },
            streams: if terminal { Streams::Terminal { served: false } } else { Streams::Given([null(), null(), null()]) },
            filter: filter.as_ref(),
            report: null(),
            preserved: vec![null()],
            no_new_keyring: false,
        })
    };
    vec![plan_of(&case, &spec), joins(false).unwrap().launch.plan, joins(true).unwrap().launch.plan]
}

#[test]
fn who_is_born_among_others_has_nothing_of_the_hosts() {
    for (filtered, no_new_privileges) in [(true, true), (true, false), (false, false)] {
        for plan in born(filtered, no_new_privileges) {
            let births = at(&plan, |step| *step == Step::Birth);
            assert_eq!(births.len(), 1, "{plan}");
            let (outside, inside) = plan.steps.split_at(births[0]);
            // All that holds a descriptor, opens a path of the host's or changes a namespace is done by the process outside.
            let harmless = |step: &Step| {
                use Step::{
                    Birth, Capabilities, ControlTerminal, Exec, FindProgram, Identity, NoNewPrivileges, Ready, Rlimit, Seccomp, Session,
                    WorkingDirectory,
                };
                matches!(
                    step,
                    Birth
                        | Session
                        | ControlTerminal
                        | Rlimit { .. }
                        | NoNewPrivileges
                        | Seccomp { .. }
                        | Identity { .. }
                        | Capabilities { .. }
                        | WorkingDirectory { .. }
                        | FindProgram
                        | Ready
                        | Exec { .. }
                )
            };
            assert!(inside.iter().all(harmless), "{plan}");
            let place = |is: &dyn Fn(&Step) -> bool| outside.iter().rposition(is);
            let closed = place(&|step| matches!(step, Step::CloseOthers { .. })).unwrap();
            let entered = place(&|step| matches!(step, Step::EnterPid { .. })).unwrap();
            let own_root = place(&|step| matches!(step, Step::Pivot { .. }) || joins_mounts(step));
            assert!(own_root.unwrap() < closed && entered < closed, "{plan}");
            // A tracer that takes it over at its birth must gain little.
            let Some(Step::Capabilities { permitted, .. }) = outside.last() else { panic!("{plan}") };
            assert_eq!(permitted & 1 << 21 != 0, filtered && !no_new_privileges, "{plan}");
        }
    }
}

fn joins_mounts(step: &Step) -> bool {
    matches!(step, Step::Join { flags, .. } if flags & libc::CLONE_NEWNS != 0)
}
