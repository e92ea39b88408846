//! `io.containerd.cgroups.v2.Metrics`.

use proto::cgroups_v2::metrics as to;
use runtime_core::cgroup::stats::{self, v2 as from};

use super::{convert, message};

message!(from::Metrics => to::Metrics { pids, cpu, memory, rdma, io, hugetlb, memory_events });
convert!(stats::PidsStat => to::PidsStat { current, limit });
convert!(stats::RdmaStat => to::RdmaStat { current, limit });
convert!(stats::RdmaEntry => to::RdmaEntry { device, hca_handles, hca_objects });
message!(from::PsiData => to::PSIData { avg10, avg60, avg300, total });
message!(from::PsiStats => to::PSIStats { some, full });
message!(from::MemoryEvents => to::MemoryEvents { low, high, max, oom, oom_kill, oom_group_kill });
message!(from::IoStat => to::IOStat { usage, psi });
message!(from::IoEntry => to::IOEntry { major, minor, rbytes, wbytes, rios, wios });
message!(from::HugeTlbStat => to::HugeTlbStat { current, max, pagesize, failcnt });
message!(from::CpuStat => to::CPUStat {
    usage_usec,
    user_usec,
    system_usec,
    nr_periods,
    nr_throttled,
    throttled_usec,
    psi,
    nr_bursts,
    burst_usec,
});
message!(from::MemoryStat => to::MemoryStat {
    anon,
    file,
    kernel_stack,
    slab,
    sock,
    shmem,
    file_mapped,
    file_dirty,
    file_writeback,
    anon_thp,
    inactive_anon,
    active_anon,
    inactive_file,
    active_file,
    unevictable,
    slab_reclaimable,
    slab_unreclaimable,
    pgfault,
    pgmajfault,
    workingset_refault,
    workingset_activate,
    workingset_nodereclaim,
    pgrefill,
    pgscan,
    pgsteal,
    pgactivate,
    pgdeactivate,
    pglazyfree,
    pglazyfreed,
    thp_fault_alloc,
    thp_collapse_alloc,
    usage,
    usage_limit,
    swap_usage,
    swap_limit,
    max_usage,
    swap_max_usage,
    psi,
});
