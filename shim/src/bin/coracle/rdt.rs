//! What resctrl says of a container's groups (Documentation/filesystems/resctrl.rst), as `runc events` shows it (types/events.go, `IntelRdt`).

use std::fs;
use std::path::{Path, PathBuf};

use runtime_core::rdt::{self, Groups};
use serde_json::{Map, Value, json};

/// Kinds of resources: what its line of `schemata` begins with, what is said of it, and by which names.
struct Kind {
    name: &'static str,
    about: (&'static str, &'static [&'static str]),
    own: &'static str,
    root: &'static str,
}

const KINDS: [Kind; 2] = [
    Kind {
        name: "L3",
        about: ("l3_cache_info", &["cbm_mask", "min_cbm_bits", "num_closids"]),
        own: "l3_cache_schema",
        root: "l3_cache_schema_root",
    },
    Kind {
        name: "MB",
        about: ("mem_bw_info", &["bandwidth_gran", "delay_linear", "min_bandwidth", "num_closids"]),
        own: "mem_bw_schema",
        root: "mem_bw_schema_root",
    },
];

/// Counters of a cache: the list that has them.
const COUNTERS: [(&str, &[&str]); 2] = [("mbm_stats", &["mbm_total_bytes", "mbm_local_bytes"]), ("cmt_stats", &["llc_occupancy"])];

/// Empty for a container without groups. What the processor has not is left out.
pub fn figures(groups: &Groups) -> Value {
    let (Some(class), Some(monitored)) = (groups.class(), groups.monitored()) else { return json!({}) };
    let root = rdt::root();
    let mut figures = Map::new();
    for kind in KINDS {
        let about = fields(&root.join("info").join(kind.name), kind.about.1);
        if about.is_empty() {
            continue;
        }
        figures.insert(kind.about.0.to_owned(), about.into());
        for (name, group) in [(kind.root, root), (kind.own, class)] {
            if let Some(line) = schema(group, kind.name) {
                figures.insert(name.to_owned(), line.into());
            }
        }
    }
    let domains = domains(&monitored.join("mon_data"));
    for (list, names) in COUNTERS {
        let all: Vec<Value> = domains.iter().map(|domain| fields(domain, names)).filter(|one| !one.is_empty()).map(Value::from).collect();
        if !all.is_empty() {
            figures.insert(list.to_owned(), all.into());
        }
    }
    figures.into()
}

/// What the files of a directory say: numbers, but for masks.
fn fields(directory: &Path, names: &[&str]) -> Map<String, Value> {
    let read = |name: &&str| {
        let text = fs::read_to_string(directory.join(name)).ok()?;
        let text = text.trim();
        let number = text.parse::<u64>().map(Value::from);
        Some(((*name).to_owned(), if *name == "cbm_mask" { text.into() } else { number.ok()? }))
    };
    names.iter().filter_map(read).collect()
}

/// The line of a group for one kind of resources.
fn schema(group: &Path, kind: &str) -> Option<String> {
    let text = fs::read_to_string(group.join("schemata")).ok()?;
    text.lines().map(str::trim).find(|line| line.starts_with(kind)).map(str::to_owned)
}

/// One directory for each cache of the third level.
fn domains(data: &Path) -> Vec<PathBuf> {
    let mut found: Vec<_> = fs::read_dir(data).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    found.retain(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("mon_L3_")));
    found.sort();
    found
}
