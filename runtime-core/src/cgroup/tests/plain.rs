//! On plain directories: what is written where.

use super::*;

/// A v2 tree on a plain directory, with a leaf `pod/web` whose files exist and are empty.
fn v2_tree(files: &[&str]) -> (tempfile::TempDir, Host) {
    let tree = tempfile::tempdir().unwrap();
    let leaf = tree.path().join("pod/web");
    std::fs::create_dir_all(&leaf).unwrap();
    let controllers = "cpuset cpu io memory hugetlb pids\n";
    for (dir, name, text) in [(".", "cgroup.controllers", controllers), (".", "cgroup.subtree_control", "cpu memory\n")] {
        std::fs::write(tree.path().join(dir).join(name), text).unwrap();
    }
    std::fs::write(tree.path().join("pod/cgroup.controllers"), controllers).unwrap();
    std::fs::write(tree.path().join("pod/cgroup.subtree_control"), controllers).unwrap();
    std::fs::write(leaf.join("cgroup.controllers"), "cpu io memory pids\n").unwrap();
    for file in files {
        std::fs::write(leaf.join(file), "").unwrap();
    }
    let host = Host::plain_v2(tree.path());
    (tree, host)
}

fn make(host: &Host) -> Cgroup {
    let path = CgroupPath::new(host, Some("/pod/web"), "web").unwrap();
    let mut made = Made::default();
    let cgroup = Cgroup::make(host, &path, &Resources::default(), &mut made).unwrap();
    made.keep();
    cgroup
}

fn text(root: &Path, file: &str) -> String {
    std::fs::read_to_string(root.join(file)).unwrap()
}

#[test]
fn controllers_are_handed_down_in_one_write_and_only_where_missing() {
    let (tree, host) = v2_tree(&[]);
    make(&host);
    assert_eq!(text(tree.path(), "cgroup.subtree_control"), "+cpuset +io +hugetlb +pids");
    assert_eq!(text(tree.path(), "pod/cgroup.subtree_control"), "cpuset cpu io memory hugetlb pids\n");
}

#[test]
fn a_parent_with_processes_hands_nothing_down() {
    let (tree, host) = v2_tree(&[]);
    let write = |name, text| std::fs::write(tree.path().join("pod").join(name), text).unwrap();
    write("cgroup.subtree_control", "\n");
    write("cgroup.procs", "1\n");
    write("cgroup.type", "domain\n");
    make(&host);
    assert_eq!(text(tree.path(), "pod/cgroup.subtree_control"), "\n");
    write("cgroup.procs", "");
    make(&host);
    assert_eq!(text(tree.path(), "pod/cgroup.subtree_control"), "+cpuset +cpu +io +memory +hugetlb +pids");
}

#[test]
fn v2_limits_arrive_in_their_files() {
    let files = ["memory.max", "memory.low", "memory.high", "memory.swap.max", "cpu.weight", "cpu.max", "pids.max", "io.weight"];
    let (tree, host) = v2_tree(&files);
    let json = r#"{"memory": {"limit": 1000, "swap": 1500, "reservation": 500}, "cpu": {"shares": 512, "quota": 20000, "period": 50000},
                   "pids": {"limit": 9}, "blockIO": {"weight": 500}, "unified": {"memory.high": "900"}}"#;
    make(&host).apply(&resources(json)).unwrap();
    let got = files.map(|file| text(&tree.path().join("pod/web"), file));
    assert_eq!(got, ["1000", "500", "900", "500", "59", "20000 50000", "9", "4950"]);
}

#[test]
fn a_limit_without_its_controller_is_an_error_only_if_it_limits() {
    let (_tree, host) = v2_tree(&[]);
    let cgroup = make(&host);
    let refused = |json| cgroup.apply(&resources(json)).unwrap_err().to_string();
    let error = refused(r#"{"hugepageLimits": [{"pageSize": "2MB", "limit": 1}]}"#);
    assert_eq!(error, "resources.hugepageLimits: the cgroup controller \"hugetlb\" is not available here");
    assert!(refused(r#"{"cpu": {"cpus": "0"}}"#).contains("resources.cpu.cpus: the cgroup controller \"cpuset\""));
    assert!(refused(r#"{"unified": {"rdma.max": "x"}}"#).contains("\"rdma.max\": the cgroup controller \"rdma\""));
    assert!(refused(r#"{"memory": {"limit": 5}}"#).contains("resources.memory.limit: write \"5\" to "));
    cgroup
        .apply(&resources(r#"{"cpu": {"shares": 1024, "quota": -1}, "memory": {"limit": -1, "swap": -1}, "pids": {"limit": -1}}"#))
        .unwrap();
}

#[test]
fn a_refusal_names_the_file_that_refused() {
    let json = r#"{"blockIO": {"weight": 500}}"#;
    for (present, file) in [(None, "io.bfq.weight"), (Some("io.bfq.weight"), "io.bfq.weight"), (Some("io.weight"), "io.weight")] {
        let (tree, host) = v2_tree(&[]);
        let cgroup = make(&host);
        if let Some(name) = present {
            // A directory cannot be written.
            std::fs::create_dir(tree.path().join("pod/web").join(name)).unwrap();
        }
        let error = cgroup.apply(&resources(json)).unwrap_err().to_string();
        assert!(error.contains(&format!("/pod/web/{file}: ")), "{error}");
    }
}

#[test]
fn v1_writes_go_to_the_hierarchy_of_their_controller() {
    let tree = tempfile::tempdir().unwrap();
    let files =
        [("memory", "memory.limit_in_bytes"), ("memory", "memory.memsw.limit_in_bytes"), ("cpu", "cpu.shares"), ("pids", "pids.max")];
    for (controller, file) in files {
        let leaf = tree.path().join(controller).join("pod/web");
        std::fs::create_dir_all(&leaf).unwrap();
        std::fs::write(leaf.join(file), "").unwrap();
    }
    let cgroup = make(&Host::plain_v1(tree.path(), &["memory", "cpu", "pids"]));
    let json = r#"{"memory": {"limit": 1000, "swap": 1500}, "cpu": {"shares": 512}, "pids": {"limit": 9}}"#;
    cgroup.apply(&resources(json)).unwrap();
    assert_eq!(files.map(|(controller, file)| text(&tree.path().join(controller).join("pod/web"), file)), ["1000", "1500", "512", "9"]);
    let error = cgroup.apply(&resources(r#"{"unified": {"memory.high": "1"}}"#)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
}

#[test]
fn a_failed_create_takes_back_what_it_made_and_nothing_else() {
    let tree = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(tree.path().join("pod")).unwrap();
    let host = Host::plain_v2(tree.path());
    let path = CgroupPath::new(&host, Some("/pod/a/b/web"), "web").unwrap();
    // A plain directory has no controllers: the limit cannot be set.
    let error = Cgroup::create(&host, &path, &resources(r#"{"memory": {"limit": 5}}"#)).unwrap_err();
    assert!(error.to_string().contains("\"memory\" is not available"), "{error}");
    assert!(tree.path().join("pod").exists() && !tree.path().join("pod/a").exists());
}

#[test]
fn an_occupied_frozen_or_threaded_cgroup_is_refused() {
    for (file, content, why) in [
        ("cgroup.procs", "1\n2\n", "is not empty: 2 process(es) found"),
        ("cgroup.freeze", "1\n", "is frozen"),
        ("cgroup.type", "domain invalid\n", "is of type \"domain invalid\""),
    ] {
        let (tree, host) = v2_tree(&[]);
        std::fs::write(tree.path().join("pod/web").join(file), content).unwrap();
        let path = CgroupPath::new(&host, Some("/pod/web"), "web").unwrap();
        let error = Cgroup::create(&host, &path, &Resources::default()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::FailedPrecondition);
        assert!(error.to_string().contains(why), "{error}");
        assert!(tree.path().join("pod/web").exists());
    }
}

#[test]
fn kills_for_want_of_memory_are_counted_once() {
    let (tree, host) = v2_tree(&[]);
    let cgroup = make(&host);
    assert!(cgroup.oom_watch().unwrap().is_none(), "there is no memory.events");
    let events = tree.path().join("pod/web/memory.events");
    std::fs::write(&events, "low 0\noom 3\noom_kill 3\n").unwrap();
    let mut watch = cgroup.oom_watch().unwrap().unwrap();
    assert_eq!((watch.take().unwrap(), watch.watch().trigger()), (0, Trigger::Priority));
    std::fs::write(&events, "low 0\noom 9\noom_kill 5\n").unwrap();
    assert_eq!((watch.take().unwrap(), watch.take().unwrap()), (2, 0));
}

#[test]
fn the_cgroup_above_is_asked_when_it_is_gone() {
    let (tree, host) = v2_tree(&[]);
    let cgroup = make(&host);
    let [own, above] = ["pod/web/memory.events", "pod/memory.events"].map(|name| tree.path().join(name));
    let count = |file: &Path, kills: u64| std::fs::write(file, format!("oom {kills}\noom_kill {kills}\n")).unwrap();
    count(&own, 0);
    count(&above, 4);
    let mut watch = cgroup.oom_watch_of_scope().unwrap().unwrap();
    count(&above, 5);
    assert_eq!((watch.take_from_above().unwrap(), watch.take().unwrap()), (0, 0), "it is there, and a neighbour's kill is none of its own");
    count(&above, 6);
    // On a plain directory a counter that says nothing stands for one that is gone.
    std::fs::write(&own, "").unwrap();
    assert_eq!((watch.take().unwrap(), watch.take_from_above().unwrap(), watch.take_from_above().unwrap()), (0, 1, 0));
}

#[test]
fn a_path_survives_the_record() {
    let host = Host::with_own(&[("", "outer")]);
    let path = CgroupPath::new(&host, None, "web").unwrap();
    let text = serde_json::to_string(&path).unwrap();
    assert_eq!(serde_json::from_str::<CgroupPath>(&text).unwrap(), path);
}
