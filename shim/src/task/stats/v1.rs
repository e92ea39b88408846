//! `io.containerd.cgroups.v1.Metrics`.

use proto::cgroups::metrics as to;
use runtime_core::cgroup::stats::{self, v1 as from};

use super::{convert, message};

message!(from::Metrics => to::Metrics { hugetlb, pids, cpu, memory, blkio, rdma, memory_oom_control });
message!(from::HugetlbStat => to::HugetlbStat { usage, max, failcnt, pagesize });
message!(stats::PidsStat => to::PidsStat { current, limit });
message!(from::CpuStat => to::CPUStat { usage, throttling });
message!(from::CpuUsage => to::CPUUsage { total, kernel, user, per_cpu });
message!(from::Throttle => to::Throttle { periods, throttled_periods, throttled_time });
message!(from::MemoryEntry => to::MemoryEntry { limit, usage, max, failcnt });
message!(from::MemoryOomControl => to::MemoryOomControl { oom_kill_disable, under_oom, oom_kill });
message!(from::BlkIoEntry => to::BlkIOEntry { op, device, major, minor, value });
message!(stats::RdmaStat => to::RdmaStat { current, limit });
message!(stats::RdmaEntry => to::RdmaEntry { device, hca_handles, hca_objects });
message!(from::BlkIoStat => to::BlkIOStat {
    io_service_bytes_recursive,
    io_serviced_recursive,
    io_queued_recursive,
    io_service_time_recursive,
    io_wait_time_recursive,
    io_merged_recursive,
    io_time_recursive,
    sectors_recursive,
});
message!(from::MemoryStat => to::MemoryStat {
    cache,
    rss,
    rss_huge,
    mapped_file,
    dirty,
    writeback,
    pg_pg_in,
    pg_pg_out,
    pg_fault,
    pg_maj_fault,
    inactive_anon,
    active_anon,
    inactive_file,
    active_file,
    unevictable,
    hierarchical_memory_limit,
    hierarchical_swap_limit,
    total_cache,
    total_rss,
    total_rss_huge,
    total_mapped_file,
    total_dirty,
    total_writeback,
    total_pg_pg_in,
    total_pg_pg_out,
    total_pg_fault,
    total_pg_maj_fault,
    total_inactive_anon,
    total_active_anon,
    total_inactive_file,
    total_active_file,
    total_unevictable,
    usage,
    swap,
    kernel,
    kernel_tcp,
});
