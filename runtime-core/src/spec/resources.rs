//! `linux.resources` of the OCI runtime specification 1.3 (config-linux.md, "Control groups").
//!
//! Read leniently: an unknown key or a `null` is no error, and every value is optional, so that the same type serves Create (the whole
//! of it) and Update (only what is to change).

use std::collections::BTreeMap;

use serde::Deserialize;

/// Limits and device rules of one container. What is `None` or empty is not touched.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Resources {
    /// Device rules, in order; the last one that matches decides, as on cgroup v1.
    pub devices: Vec<DeviceRule>,
    /// Memory and swap.
    pub memory: Memory,
    /// Processor time and placement.
    pub cpu: Cpu,
    /// Number of tasks.
    pub pids: Pids,
    /// Block devices.
    #[serde(rename = "blockIO")]
    pub block_io: BlockIo,
    /// Huge pages, one entry per page size.
    pub hugepage_limits: Vec<HugepageLimit>,
    /// Marks and priorities of outgoing packets (cgroup v1 only).
    pub network: Network,
    /// RDMA devices, by device name.
    pub rdma: BTreeMap<String, Rdma>,
    /// cgroup v2 files and what to write into them.
    pub unified: BTreeMap<String, String>,
}

/// One entry of `devices`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct DeviceRule {
    /// Whether the access is allowed or denied.
    pub allow: bool,
    /// `c`, `b`, or `a` (also when absent or empty) for all, whatever the other fields say.
    #[serde(rename = "type")]
    pub kind: String,
    /// Major number; absent or -1 for every one.
    pub major: Option<i64>,
    /// Minor number; absent or -1 for every one.
    pub minor: Option<i64>,
    /// Any of `r`, `w`, `m`.
    pub access: String,
}

/// `memory`: bytes, -1 for no limit, 0 for "not set".
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Memory {
    /// Memory limit.
    pub limit: Option<i64>,
    /// Soft limit.
    pub reservation: Option<i64>,
    /// Limit of memory and swap together.
    pub swap: Option<i64>,
    /// Kernel memory limit: no kernel above the floor has it, ignored.
    pub kernel: Option<i64>,
    /// TCP buffer limit: ignored, like `kernel`.
    #[serde(rename = "kernelTCP")]
    pub kernel_tcp: Option<i64>,
    /// 0 to 100 (cgroup v1 only).
    pub swappiness: Option<u64>,
    /// Stall instead of killing (cgroup v1 only).
    #[serde(rename = "disableOOMKiller")]
    pub disable_oom_killer: Option<bool>,
    /// Hierarchical accounting: always so by now, ignored.
    pub use_hierarchy: Option<bool>,
    /// Refuse a limit that is below what is in use.
    pub check_before_update: Option<bool>,
}

/// `cpu`: times in microseconds, 0 for "not set".
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Cpu {
    /// Relative weight, 2 to 262144.
    pub shares: Option<u64>,
    /// Time allowed per period, negative for no limit.
    pub quota: Option<i64>,
    /// Time that may be saved up for a burst.
    pub burst: Option<u64>,
    /// Length of a period.
    pub period: Option<u64>,
    /// Realtime time allowed per realtime period (cgroup v1 only).
    pub realtime_runtime: Option<i64>,
    /// Length of a realtime period (cgroup v1 only).
    pub realtime_period: Option<u64>,
    /// Processors, in list format (cpuset(7)).
    pub cpus: Option<String>,
    /// Memory nodes, in list format.
    pub mems: Option<String>,
    /// 1 for SCHED_IDLE treatment of the whole group.
    pub idle: Option<i64>,
}

/// `pids`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Pids {
    /// Greatest number of tasks, negative for no limit.
    pub limit: Option<i64>,
}

/// `blockIO`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct BlockIo {
    /// Relative weight, 10 to 1000.
    pub weight: Option<u16>,
    /// Weight of the group's own tasks against its children (cgroup v1 with CFQ only).
    pub leaf_weight: Option<u16>,
    /// Weights by device.
    pub weight_device: Vec<WeightDevice>,
    /// Bytes read per second, by device.
    pub throttle_read_bps_device: Vec<ThrottleDevice>,
    /// Bytes written per second, by device.
    pub throttle_write_bps_device: Vec<ThrottleDevice>,
    /// Reads per second, by device.
    #[serde(rename = "throttleReadIOPSDevice")]
    pub throttle_read_iops_device: Vec<ThrottleDevice>,
    /// Writes per second, by device.
    #[serde(rename = "throttleWriteIOPSDevice")]
    pub throttle_write_iops_device: Vec<ThrottleDevice>,
}

/// One entry of `blockIO.weightDevice`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct WeightDevice {
    /// Major number.
    pub major: i64,
    /// Minor number.
    pub minor: i64,
    /// Weight on this device.
    pub weight: Option<u16>,
    /// Leaf weight on this device.
    pub leaf_weight: Option<u16>,
}

/// One entry of the `blockIO.throttle…` lists.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ThrottleDevice {
    /// Major number.
    pub major: i64,
    /// Minor number.
    pub minor: i64,
    /// Bytes or operations per second; 0 lifts the limit.
    pub rate: u64,
}

/// One entry of `hugepageLimits`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct HugepageLimit {
    /// `2MB`, `1GB` …: the kernel's own spelling.
    pub page_size: String,
    /// Bytes.
    pub limit: u64,
}

/// `network`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Network {
    /// Class of outgoing packets.
    #[serde(rename = "classID")]
    pub class_id: Option<u32>,
    /// Priorities by interface.
    pub priorities: Vec<InterfacePriority>,
}

/// One entry of `network.priorities`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct InterfacePriority {
    /// Interface name.
    pub name: String,
    /// Priority of what leaves through it.
    pub priority: u32,
}

/// One entry of `rdma`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Rdma {
    /// Greatest number of handles.
    pub hca_handles: Option<u32>,
    /// Greatest number of objects.
    pub hca_objects: Option<u32>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_of_the_specification_is_read() {
        let json = r#"{
            "devices": [{"allow": false, "access": "rwm"}, {"allow": true, "type": "c", "major": 10, "minor": 229, "access": "rw"}],
            "memory": {"limit": 1, "reservation": 2, "swap": -1, "kernel": 4, "kernelTCP": 5, "swappiness": 6,
                       "disableOOMKiller": true, "useHierarchy": true, "checkBeforeUpdate": true},
            "cpu": {"shares": 1024, "quota": -1, "burst": 3, "period": 4, "realtimeRuntime": 5, "realtimePeriod": 6,
                    "cpus": "0-1", "mems": "0", "idle": 1},
            "pids": {"limit": 7},
            "blockIO": {"weight": 10, "leafWeight": 11, "weightDevice": [{"major": 8, "minor": 0, "weight": 12, "leafWeight": 13}],
                        "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 1}],
                        "throttleWriteBpsDevice": [{"major": 8, "minor": 0, "rate": 2}],
                        "throttleReadIOPSDevice": [{"major": 8, "minor": 0, "rate": 3}],
                        "throttleWriteIOPSDevice": [{"major": 8, "minor": 0, "rate": 4}]},
            "hugepageLimits": [{"pageSize": "2MB", "limit": 18446744073709551615}],
            "network": {"classID": 1048577, "priorities": [{"name": "eth0", "priority": 5}]},
            "rdma": {"mlx5_1": {"hcaHandles": 3, "hcaObjects": 4}},
            "unified": {"memory.high": "1"},
            "later": {"unknown": 1}
        }"#;
        let got: Resources = serde_json::from_str(json).unwrap();
        assert_eq!(got.devices[0], DeviceRule { access: "rwm".into(), ..DeviceRule::default() });
        assert_eq!((got.devices[1].kind.as_str(), got.devices[1].minor), ("c", Some(229)));
        let memory = Memory {
            limit: Some(1),
            reservation: Some(2),
            swap: Some(-1),
            kernel: Some(4),
            kernel_tcp: Some(5),
            swappiness: Some(6),
            disable_oom_killer: Some(true),
            use_hierarchy: Some(true),
            check_before_update: Some(true),
        };
        assert_eq!(got.memory, memory);
        let cpu = Cpu {
            shares: Some(1024),
            quota: Some(-1),
            burst: Some(3),
            period: Some(4),
            realtime_runtime: Some(5),
            realtime_period: Some(6),
            cpus: Some("0-1".into()),
            mems: Some("0".into()),
            idle: Some(1),
        };
        assert_eq!(got.cpu, cpu);
        assert_eq!(got.pids.limit, Some(7));
        assert_eq!((got.block_io.weight, got.block_io.leaf_weight), (Some(10), Some(11)));
        assert_eq!(got.block_io.weight_device[0].leaf_weight, Some(13));
        let rates = [
            &got.block_io.throttle_read_bps_device,
            &got.block_io.throttle_write_bps_device,
            &got.block_io.throttle_read_iops_device,
            &got.block_io.throttle_write_iops_device,
        ]
        .map(|list| list[0].rate);
        assert_eq!(rates, [1, 2, 3, 4]);
        assert_eq!(got.hugepage_limits[0], HugepageLimit { page_size: "2MB".into(), limit: u64::MAX });
        assert_eq!((got.network.class_id, got.network.priorities[0].priority), (Some(1_048_577), 5));
        assert_eq!(got.rdma["mlx5_1"], Rdma { hca_handles: Some(3), hca_objects: Some(4) });
        assert_eq!(got.unified["memory.high"], "1");
    }

    #[test]
    fn null_and_absent_are_not_set() {
        let got: Resources =
            crate::spec::keys::from_slice(br#"{"devices": null, "memory": null, "cpu": {"shares": null}, "pids": {}, "blockIO": null}"#)
                .unwrap();
        assert_eq!(got, Resources::default());
    }
}
