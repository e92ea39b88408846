use super::*;
use crate::spec::resources::Resources;

fn resources(json: &str) -> Resources {
    serde_json::from_str(json).unwrap()
}

/// Every write that `json` leads to, as `file=value`, marked `?` when it is dispensable.
fn writes(version: Version, json: &str) -> Vec<String> {
    let resources = resources(json);
    let settings = KNOBS.iter().flat_map(|knob| settings(knob, version, &resources, Current(None)).unwrap());
    settings
        .map(|setting| {
            let other = setting.otherwise.map(|other| format!(" or {}={}", other.file, other.value)).unwrap_or_default();
            format!("{}={}{}{other}", setting.file, setting.value, if setting.dispensable { "?" } else { "" })
        })
        .collect()
}

#[track_caller]
fn both(json: &str, v1: &[&str], v2: &[&str]) {
    assert_eq!(writes(Version::V1, json), v1, "v1 of {json}");
    assert_eq!(writes(Version::V2, json), v2, "v2 of {json}");
}

#[track_caller]
fn refused_with(version: Version, json: &str, text: &str) {
    let error = check(version, &resources(json)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    assert!(error.to_string().contains(text), "{error}");
}

#[test]
fn memory() {
    both(
        r#"{"memory": {"limit": 100, "swap": 150, "reservation": 50}}"#,
        &["memory.limit_in_bytes=100", "memory.memsw.limit_in_bytes=150", "memory.soft_limit_in_bytes=50"],
        &["memory.swap.max=50", "memory.max=100", "memory.low=50"],
    );
    both(
        r#"{"memory": {"limit": 100, "swap": 100}}"#,
        &["memory.limit_in_bytes=100", "memory.memsw.limit_in_bytes=100"],
        &["memory.swap.max=0?", "memory.max=100"],
    );
    both(
        r#"{"memory": {"limit": -1}}"#,
        &["memory.limit_in_bytes=-1?", "memory.memsw.limit_in_bytes=-1?"],
        &["memory.swap.max=max?", "memory.max=max?"],
    );
    both(r#"{"memory": {"limit": 0, "swap": 0, "reservation": 0}}"#, &[], &[]);
    both(r#"{"memory": {"disableOOMKiller": true, "swappiness": 0}}"#, &["memory.oom_control=1", "memory.swappiness=0"], &[]);
    both(r#"{"memory": {"disableOOMKiller": false, "kernel": 1, "kernelTCP": 2, "useHierarchy": true}}"#, &[], &[]);
    refused_with(Version::V2, r#"{"memory": {"limit": 100, "swap": 99}}"#, "below memory.limit");
    refused_with(Version::V1, r#"{"memory": {"limit": 100, "swap": 99}}"#, "below memory.limit");
    refused_with(Version::V2, r#"{"memory": {"swap": 99}}"#, "needs a memory.limit");
    both(
        r#"{"memory": {"limit": -1, "swap": 99}}"#,
        &["memory.limit_in_bytes=-1?", "memory.memsw.limit_in_bytes=99"],
        &["memory.swap.max=99", "memory.max=max?"],
    );
    refused_with(Version::V1, r#"{"memory": {"swappiness": 101}}"#, "resources.memory.swappiness: 101");
}

#[test]
fn cpu() {
    both(
        r#"{"cpu": {"shares": 512, "quota": 20000, "period": 50000, "burst": 1000}}"#,
        &["cpu.shares=512", "cpu.cfs_period_us=50000", "cpu.cfs_burst_us=1000", "cpu.cfs_quota_us=20000"],
        &["cpu.weight=59", "cpu.max.burst=1000", "cpu.max=20000 50000"],
    );
    both(r#"{"cpu": {"quota": -1}}"#, &["cpu.cfs_quota_us=-1?"], &["cpu.max=max?"]);
    both(r#"{"cpu": {"quota": 5000}}"#, &["cpu.cfs_quota_us=5000"], &["cpu.max=5000"]);
    both(r#"{"cpu": {"period": 100000}}"#, &["cpu.cfs_period_us=100000?"], &["cpu.max=max 100000?"]);
    both(r#"{"cpu": {"shares": 1024}}"#, &["cpu.shares=1024?"], &["cpu.weight=100?"]);
    both(r#"{"cpu": {"shares": 512, "idle": 1}}"#, &["cpu.idle=1"], &["cpu.idle=1"]);
    both(r#"{"cpu": {"shares": 512, "idle": 0}}"#, &["cpu.idle=0?", "cpu.shares=512"], &["cpu.idle=0?", "cpu.weight=59"]);
    both(r#"{"cpu": {"realtimeRuntime": 7, "realtimePeriod": 8}}"#, &["cpu.rt_period_us=8", "cpu.rt_runtime_us=7"], &[]);
    both(r#"{"cpu": {"cpus": "0-1", "mems": ""}}"#, &["cpuset.cpus=0-1"], &["cpuset.cpus=0-1"]);
    refused_with(Version::V1, r#"{"cpu": {"shares": 1}}"#, "resources.cpu.shares: the minimum allowed cpu-shares is 2");
    refused_with(Version::V1, r#"{"cpu": {"shares": 262145}}"#, "the maximum allowed cpu-shares is 262144");
}

#[test]
fn numbers_out_of_range_are_refused_by_their_field() {
    for version in [Version::V1, Version::V2] {
        for (json, text) in [
            (r#"{"memory": {"limit": -2}}"#, "resources.memory.limit: -2 is neither a number of bytes nor -1 for no limit"),
            (r#"{"memory": {"limit": -9223372036854775808}}"#, "resources.memory.limit: -9223372036854775808 is"),
            (r#"{"memory": {"reservation": -7}}"#, "resources.memory.reservation: -7 is neither"),
            (r#"{"memory": {"limit": 4096, "swap": -2}}"#, "resources.memory.swap: -2 is neither"),
            (r#"{"cpu": {"period": 999}}"#, "resources.cpu.period: 999 us is not in the range 1000-1000000"),
            (r#"{"cpu": {"period": 1000001}}"#, "resources.cpu.period: 1000001 us"),
            (r#"{"cpu": {"quota": 999}}"#, "resources.cpu.quota: 999 us is less than"),
            (r#"{"cpu": {"idle": 2}}"#, "resources.cpu.idle: 2 is neither 0 nor 1"),
            (r#"{"cpu": {"idle": -1}}"#, "resources.cpu.idle: -1 is neither 0 nor 1"),
            (r#"{"blockIO": {"weight": 1001}}"#, "resources.blockIO.weight: 1001 is not in the range 10-1000"),
            (r#"{"blockIO": {"weightDevice": [{"major": 8, "minor": 0, "weight": 9}]}}"#, "resources.blockIO.weightDevice: 9 is not"),
        ] {
            refused_with(version, json, text);
        }
    }
    refused_with(Version::V1, r#"{"cpu": {"realtimeRuntime": -2}}"#, "resources.cpu.realtimeRuntime: -2 is neither");
    // No limit, as the kernel and runc have it.
    both(r#"{"cpu": {"quota": -2}}"#, &["cpu.cfs_quota_us=-2?"], &["cpu.max=max?"]);
    both(r#"{"pids": {"limit": -2}}"#, &["pids.max=max?"], &["pids.max=max?"]);
}

#[test]
fn a_period_alone_keeps_the_quota() {
    let tree = tempfile::tempdir().unwrap();
    std::fs::write(tree.path().join("cpu.max"), "20000 100000\n").unwrap();
    let dir = Dir::mount_point(tree.path().to_str().unwrap(), None).unwrap();
    let got = period_v2(&resources(r#"{"cpu": {"period": 50000}}"#), Current(Some(&dir))).unwrap();
    assert_eq!(got, [set("cpu.max", "20000 50000")]);
}

#[test]
fn pids_zero_still_lets_the_first_process_in() {
    for (limit, text) in [("7", "pids.max=7"), ("0", "pids.max=1"), ("-1", "pids.max=max?")] {
        let json = format!(r#"{{"pids": {{"limit": {limit}}}}}"#);
        both(&json, &[text], &[text]);
    }
    both(r#"{"pids": {}}"#, &[], &[]);
}

#[test]
fn block_io() {
    both(
        r#"{"blockIO": {"weight": 500, "leafWeight": 300, "weightDevice": [{"major": 8, "minor": 0, "weight": 10, "leafWeight": 20}]}}"#,
        &[
            "blkio.weight=500 or blkio.bfq.weight=500",
            "blkio.leaf_weight=300",
            "blkio.weight_device=8:0 10 or blkio.bfq.weight_device=8:0 10",
            "blkio.leaf_weight_device=8:0 20",
        ],
        &["io.bfq.weight=500 or io.weight=4950", "io.bfq.weight=8:0 10 or io.weight=8:0 1"],
    );
    both(
        r#"{"blockIO": {"throttleReadBpsDevice": [{"major": 8, "minor": 1, "rate": 4096}],
                        "throttleWriteIOPSDevice": [{"major": 8, "minor": 1, "rate": 0}]}}"#,
        &["blkio.throttle.read_bps_device=8:1 4096", "blkio.throttle.write_iops_device=8:1 0"],
        &["io.max=8:1 rbps=4096", "io.max=8:1 wiops=max"],
    );
    refused_with(Version::V2, r#"{"blockIO": {"weight": 5}}"#, "resources.blockIO.weight: 5 is not in the range");
    refused_with(
        Version::V1,
        r#"{"blockIO": {"throttleReadBpsDevice": [{"major": -1, "minor": 1, "rate": 1}]}}"#,
        "-1:1 is not a device number",
    );
}

#[test]
fn the_rest() {
    both(
        r#"{"hugepageLimits": [{"pageSize": "2MB", "limit": 4194304}]}"#,
        &["hugetlb.2MB.limit_in_bytes=4194304", "hugetlb.2MB.rsvd.limit_in_bytes=4194304?"],
        &["hugetlb.2MB.max=4194304", "hugetlb.2MB.rsvd.max=4194304?"],
    );
    both(
        r#"{"network": {"classID": 1048577, "priorities": [{"name": "eth0", "priority": 5}]}}"#,
        &["net_cls.classid=1048577", "net_prio.ifpriomap=eth0 5"],
        &[],
    );
    let rdma = "rdma.max=mlx5_1 hca_handle=3 hca_object=4";
    both(r#"{"rdma": {"mlx5_1": {"hcaHandles": 3, "hcaObjects": 4}}}"#, &[rdma], &[rdma]);
    refused_with(Version::V2, r#"{"hugepageLimits": [{"pageSize": "../../x", "limit": 1}]}"#, "resources.hugepageLimits: pageSize");
    refused_with(Version::V1, r#"{"network": {"priorities": [{"name": "a\nb", "priority": 1}]}}"#, "is not a device name");
    refused_with(Version::V1, r#"{"rdma": {"a b": {}}}"#, "is not a device name");
}

#[test]
fn unified_keys_are_file_names_of_controllers() {
    let good = resources(r#"{"unified": {"memory.high": "1", "io.max": "8:0 rbps=1\n8:16 wbps=2"}}"#);
    let lines = [("io.max", "8:0 rbps=1"), ("io.max", "8:16 wbps=2"), ("memory.high", "1")];
    assert_eq!(unified(Version::V2, &good).unwrap(), lines);
    assert!(unified(Version::V1, &good).unwrap_err().to_string().contains("resources.unified: needs cgroup v2"));
    for key in ["../cgroup.procs", "a/b.c", "memory", "", ".", "..", ".x", "cgroup.procs", "cgroup.threads", "cgroup.kill", "cgroup.freeze"]
    {
        let json = serde_json::json!({"unified": {key: "1"}}).to_string();
        assert!(check(Version::V2, &resources(&json)).is_err(), "{key}");
    }
    assert!(check(Version::V2, &resources(r#"{"unified": {"cgroup.max.depth": "1"}}"#)).is_ok());
}

#[test]
fn what_a_version_lacks_is_named() {
    let json =
        r#"{"memory": {"limit": 1, "swappiness": 1, "kernel": 1}, "cpu": {"realtimePeriod": 1, "shares": 5}, "network": {"classID": 1}}"#;
    assert_eq!(ignored(Version::V2, &resources(json)), ["memory.swappiness", "cpu.realtimePeriod", "network.classID", "memory.kernel"]);
    assert_eq!(ignored(Version::V1, &resources(json)), ["memory.kernel"]);
    // As containerd sends it for a container without a limit.
    assert!(ignored(Version::V2, &resources(r#"{"cpu": {"shares": 2, "period": 100000}}"#)).is_empty());
    // Refused on version 1.
    assert!(ignored(Version::V1, &resources(r#"{"cpu": {"shares": 1}}"#)).is_empty());
}

#[test]
fn a_limit_below_what_is_in_use_is_refused_when_asked() {
    let tree = tempfile::tempdir().unwrap();
    std::fs::write(tree.path().join("memory.current"), "5000\n").unwrap();
    let dir = Dir::mount_point(tree.path().to_str().unwrap(), None).unwrap();
    let limit = |bytes: i64, check: bool| resources(&format!(r#"{{"memory": {{"limit": {bytes}, "checkBeforeUpdate": {check}}}}}"#));
    let error = check_usage(Version::V2, &limit(5000, true), &dir).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::FailedPrecondition);
    assert_eq!(error.to_string(), "resources.memory.limit: 5000 is not above the 5000 bytes in use");
    for fine in [limit(5001, true), limit(5000, false), limit(-1, true)] {
        check_usage(Version::V2, &fine, &dir).unwrap();
    }
}
