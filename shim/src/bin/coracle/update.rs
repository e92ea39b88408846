//! Update: limits from a file or from flags.

use std::io::Read;
use std::path::Path;

use runtime_core::error::{Context as _, Error, Result};
use runtime_core::rdt::Groups;
use runtime_core::spec::Resources;
use runtime_core::spec::rdt::IntelRdt;
use serde_json::{Map, Value};

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
        None => parse(of_flags(options).to_string().as_bytes())?,
    };
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
    serde_json::from_slice(bytes).map_err(|error| Error::invalid(error.to_string()))
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
fn of_flags(options: &Update) -> Value {
    let section = |fields: Vec<(&str, Option<Value>)>| -> Value {
        fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect::<Map<_, _>>().into()
    };
    fn value<T: Clone + Into<Value>>(given: &Option<T>) -> Option<Value> {
        given.clone().map(Into::into)
    }
    serde_json::json!({
        "blockIO": section(vec![("weight", value(&options.blkio_weight))]),
        "cpu": section(vec![
            ("shares", value(&options.cpu_share)),
            ("quota", value(&options.cpu_quota)),
            ("period", value(&options.cpu_period)),
            ("burst", value(&options.cpu_burst)),
            ("realtimeRuntime", value(&options.cpu_rt_runtime)),
            ("realtimePeriod", value(&options.cpu_rt_period)),
            ("cpus", value(&options.cpuset_cpus)),
            ("mems", value(&options.cpuset_mems)),
            ("idle", value(&options.cpu_idle)),
        ]),
        "memory": section(vec![
            ("limit", value(&options.memory)),
            ("reservation", value(&options.memory_reservation)),
            ("swap", value(&options.memory_swap)),
        ]),
        "pids": section(vec![("limit", value(&options.pids_limit))]),
    })
}
