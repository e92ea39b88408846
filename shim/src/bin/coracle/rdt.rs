//! What resctrl says of a container's groups (Documentation/filesystems/resctrl.rst), as `runc events` shows it (types/events.go, `IntelRdt`).

use std::fs;
use std::path::{Path, PathBuf};

use runtime_core::rdt::{self, Groups};
use serde::{Serialize, Serializer};

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

/// An object whose fields stay in their order.
#[derive(Default)]
pub struct Figures(Vec<(&'static str, Figure)>);

#[derive(Serialize)]
#[serde(untagged)]
enum Figure {
    Number(u64),
    Text(String),
    Object(Figures),
    List(Vec<Figures>),
}

impl Serialize for Figures {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, figure)| (name, figure)))
    }
}

/// Empty for a container without groups. What the processor has not is left out.
pub fn figures(groups: &Groups) -> Figures {
    let (Some(class), Some(monitored)) = (groups.class(), groups.monitored()) else { return Figures::default() };
    let root = rdt::root();
    let mut figures = Vec::new();
    for kind in KINDS {
        let about = fields(&root.join("info").join(kind.name), kind.about.1);
        if about.0.is_empty() {
            continue;
        }
        figures.push((kind.about.0, Figure::Object(about)));
        let lines = [(kind.root, root), (kind.own, class)].into_iter();
        figures.extend(lines.filter_map(|(name, group)| Some((name, Figure::Text(schema(group, kind.name)?)))));
    }
    let domains = domains(&monitored.join("mon_data"));
    for (list, names) in COUNTERS {
        let all: Vec<Figures> = domains.iter().map(|domain| fields(domain, names)).filter(|one| !one.0.is_empty()).collect();
        if !all.is_empty() {
            figures.push((list, Figure::List(all)));
        }
    }
    Figures(figures)
}

/// What the files of a directory say: numbers, but for masks.
fn fields(directory: &Path, names: &[&'static str]) -> Figures {
    let read = |name: &&'static str| {
        let text = fs::read_to_string(directory.join(name)).ok()?;
        let text = text.trim();
        Some((*name, if *name == "cbm_mask" { Figure::Text(text.to_owned()) } else { Figure::Number(text.parse().ok()?) }))
    };
    Figures(names.iter().filter_map(read).collect())
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
