//! Update: limits from a file or from flags.

use std::io::Read;
use std::path::Path;
use std::str::FromStr;

use runtime_core::error::{Context as _, Error, Result};
use runtime_core::rdt::Groups;
use runtime_core::spec::Resources;
use runtime_core::spec::rdt::IntelRdt;
use runtime_core::spec::resources::{BlockIo, Cpu, Memory, Pids};

use crate::Runtime;
use crate::args::Update;
use crate::cgroups;
use crate::store::{Status, refused};

/// Changes limits of a container.
///
/// # Errors
/// The field that could not be changed.
pub fn update(runtime: &Runtime<'_>, options: &Update) -> Result<()> {
    let (entry, mut state) = runtime.store.change(&options.id)?;
    if state.status(&runtime.host)? == Status::Stopped {
        return Err(refused("container not running"));
    }
    let resources = match &options.resources {
        Some(file) => parse(&read(file)?).context(|| format!("--resources {file:?}"))?,
        None => of_flags(options)?,
    };
    if resources.memory.kernel.or(resources.memory.kernel_tcp).is_some() {
        runtime.log.warn(&format!("{}: limits of kernel memory have no effect, ignoring", options.id));
    }
    cgroups::update(&runtime.host, &state, &resources).context(|| "update")?;
    let (l3_cache_schema, mem_bw_schema) = (options.l3_cache_schema.clone(), options.mem_bw_schema.clone());
    if l3_cache_schema.is_empty() && mem_bw_schema.is_empty() {
        return Ok(());
    }
    let own = entry.spec(state.crun_annotations)?.linux.intel_rdt;
    let class = IntelRdt { l3_cache_schema, mem_bw_schema, schemata: Vec::new(), ..own.clone().unwrap_or_default() };
    class.check().context(|| "update")?;
    let groups = Groups::here(&options.id, Some(&class));
    groups.update().context(|| "update")?;
    if own.is_some() {
        return Ok(());
    }
    // The container has had none so far.
    state.record.resctrl = groups.of_container();
    entry.write(&state)?;
    groups.add(&state.cgroup(&runtime.host)?.pids()?)
}

fn parse(bytes: &[u8]) -> Result<Resources> {
    runtime_core::spec::keys::from_slice(bytes).map_err(|error| Error::invalid(error.to_string()))
}

fn read(file: &Path) -> Result<Vec<u8>> {
    if file != Path::new("-") {
        return std::fs::read(file).context(|| format!("read {file:?}"));
    }
    let mut bytes = Vec::new();
    std::io::stdin().read_to_end(&mut bytes).context(|| "read standard input")?;
    Ok(bytes)
}

/// The flags as `linux.resources`; those that are not given are not there.
fn of_flags(options: &Update) -> Result<Resources> {
    let text = |given: &str| (!given.is_empty()).then(|| given.to_owned());
    Ok(Resources {
        block_io: BlockIo { weight: options.blkio_weight, ..BlockIo::default() },
        cpu: Cpu {
            shares: number("cpu-share", &options.cpu_share)?,
            quota: number("cpu-quota", &options.cpu_quota)?,
            burst: number("cpu-burst", &options.cpu_burst)?,
            period: number("cpu-period", &options.cpu_period)?,
            realtime_runtime: number("cpu-rt-runtime", &options.cpu_rt_runtime)?,
            realtime_period: number("cpu-rt-period", &options.cpu_rt_period)?,
            cpus: text(&options.cpuset_cpus),
            mems: text(&options.cpuset_mems),
            idle: number("cpu-idle", &options.cpu_idle)?,
        },
        memory: Memory {
            limit: size("memory", &options.memory)?,
            reservation: size("memory-reservation", &options.memory_reservation)?,
            swap: size("memory-swap", &options.memory_swap)?,
            kernel: size("kernel-memory", &options.kernel_memory)?,
            kernel_tcp: size("kernel-memory-tcp", &options.kernel_memory_tcp)?,
            ..Memory::default()
        },
        pids: Pids { limit: options.pids_limit },
        ..Resources::default()
    })
}

/// An empty text is none, as with runc.
fn number<T: FromStr>(flag: &str, text: &str) -> Result<Option<T>> {
    let wrong = |_| Error::invalid(format!("invalid value for {flag}: {text:?} is not a number in its range"));
    if text.is_empty() { Ok(None) } else { text.parse().map(Some).map_err(wrong) }
}

/// As go-units' RAMInBytes reads it, which runc does: a number, perhaps a space, and a unit of 1024s such as `k`, `MB` or `GiB`. Or -1.
fn size(flag: &str, text: &str) -> Result<Option<i64>> {
    let wrong = || Error::invalid(format!("invalid value for {flag}: {text:?} is not a size such as 4096, 50M or 1.5GiB, nor -1"));
    match text {
        "" => Ok(None),
        "-1" => Ok(Some(-1)),
        _ => bytes(text).map(Some).ok_or_else(wrong),
    }
}

fn bytes(text: &str) -> Option<i64> {
    let end = text.rfind(|c: char| c.is_ascii_digit() || c == '.' || c == ' ')?;
    let (number, unit) = text.split_at(end + 1);
    let number = number.strip_suffix(' ').unwrap_or(number);
    let unit = unit.to_ascii_lowercase();
    let power = match unit.strip_suffix("ib").or_else(|| unit.strip_suffix('b')).unwrap_or(&unit) {
        "" if unit != "ib" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        "p" => 50,
        _ => return None,
    };
    // Exact, where a float would not be.
    if let Ok(whole) = number.parse::<i64>() {
        return whole.checked_mul(1 << power).filter(|bytes| *bytes >= 0);
    }
    let bytes = number.parse::<f64>().ok()? * (1u64 << power) as f64;
    (0.0..i64::MAX as f64).contains(&bytes).then_some(bytes as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_those_of_go_units() {
        let (kib, mib, gib) = (1 << 10, 1 << 20, 1i64 << 30);
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("4096b", 4096),
            ("32kb", 32 * kib),
            ("32Kib", 32 * kib),
            ("50M", 50 * mib),
            ("50 M", 50 * mib),
            ("1.5GiB", 3 * gib / 2),
            (".5m", mib / 2),
            ("32.mb", 32 * mib),
            ("1e3", 1000),
            ("2t", 2048 * gib),
            ("3PB", 3 * 1024 * 1024 * gib),
            ("9223372036854775807", i64::MAX),
            ("-1", -1),
        ] {
            assert_eq!(size("memory", text).unwrap(), Some(bytes), "{text}");
        }
        assert_eq!(size("memory", "").unwrap(), None);
        for wrong in [
            "-2",
            "-1k",
            "-0.5m",
            "M",
            "50X",
            "50ib",
            "50bb",
            "50MBi",
            "50 MiBs",
            " 50",
            "5 0",
            "50  M",
            "1e400",
            "8192P",
            "9223372036854775808",
            "inf",
            "nan",
        ] {
            let error = size("memory-swap", wrong).unwrap_err().to_string();
            assert!(error.starts_with("invalid value for memory-swap: "), "{wrong}: {error}");
        }
    }

    #[test]
    fn numbers_are_of_their_range() {
        assert_eq!(
            (number::<u64>("f", "7").unwrap(), number::<u64>("f", "").unwrap(), number::<i64>("f", "-7").unwrap()),
            (Some(7), None, Some(-7))
        );
        for wrong in ["-7", "1k", "18446744073709551616", " 1"] {
            assert!(number::<u64>("f", wrong).unwrap_err().to_string().starts_with("invalid value for f: "), "{wrong}");
        }
    }
}
