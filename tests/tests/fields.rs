//! The table of fields in the documentation is whole: every field of the runtime specification's schema has a row, every row's tests exist,
//! and what it says of a feature is what `-info` says.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests: a failure is a panic")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

const TABLE: &str = "deploy/docs/fields.md";

/// Debian's golang-github-opencontainers-specs-dev, which the setup unpacks.
const SCHEMA: &str = "target/cache/sid/usr/share/gocode/src/github.com/opencontainers/runtime-spec/schema";

/// What version 1.3 has and that package, of 1.2, has not (specs-go/config.go).
const ADDED: [&str; 6] = [
    "linux.netDevices{}.name",
    "linux.memoryPolicy.mode",
    "linux.memoryPolicy.nodes",
    "linux.memoryPolicy.flags",
    "linux.intelRdt.schemata",
    "linux.intelRdt.enableMonitoring",
];

/// Other systems' parts of the schema.
const ELSEWHERE: [&str; 4] = ["solaris", "vm", "windows", "zos"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

struct Row {
    field: String,
    here: String,
    tests: String,
}

fn rows() -> Vec<Row> {
    let text = fs::read_to_string(root().join(TABLE)).unwrap();
    let cells = |line: &str| line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect::<Vec<_>>();
    let row = |line: &str| {
        let cells = cells(line);
        assert_eq!(cells.len(), 6, "{line}");
        assert!(cells.iter().all(|cell| !cell.is_empty()), "an empty cell: {line}");
        Row { field: cells[0].trim_matches('`').to_owned(), here: cells[1].clone(), tests: cells[2].clone() }
    };
    text.lines().filter(|line| line.starts_with("| `")).map(row).collect()
}

/// A walk through the schema's files.
#[derive(Default)]
struct Walk {
    fields: BTreeSet<String>,
}

impl Walk {
    /// Adds the fields below `node`, which stands in `file`; whether there are any.
    fn below(&mut self, node: &Value, file: &str, path: &str) -> bool {
        if let Some(reference) = node["$ref"].as_str() {
            let (other, pointer) = reference.split_once('#').unwrap_or((reference, ""));
            let file = if other.is_empty() { file } else { other };
            let schema = load(file);
            let target = schema.pointer(pointer).unwrap_or_else(|| panic!("{reference} of {file} is not there"));
            return self.below(target, file, path);
        }
        let mut any = false;
        for word in ["allOf", "anyOf", "oneOf"] {
            for part in node[word].as_array().into_iter().flatten() {
                any |= self.below(part, file, path);
            }
        }
        if node["items"].is_object() {
            any |= self.below(&node["items"], file, &format!("{path}[]"));
        }
        let patterns = node["patternProperties"].as_object().into_iter().flat_map(|map| map.values());
        for part in patterns.chain([&node["additionalProperties"]]).filter(|part| part.is_object()) {
            any |= self.below(part, file, &format!("{path}{{}}"));
        }
        for (name, part) in node["properties"].as_object().into_iter().flatten() {
            any = true;
            let field = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            if !ELSEWHERE.contains(&field.as_str()) && !self.below(part, file, &field) {
                self.fields.insert(field);
            }
        }
        any
    }
}

fn load(file: &str) -> Value {
    let path = root().join(SCHEMA).join(file);
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}; run: make peers", path.display()));
    serde_json::from_str(&text).unwrap()
}

fn covers(row: &str, field: &str) -> bool {
    field.strip_prefix(row).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[', '{']))
}

#[test]
fn every_field_has_a_row_and_every_row_a_field() {
    let mut walk = Walk::default();
    walk.below(&load("config-schema.json"), "config-schema.json", "");
    assert!(walk.fields.len() > 150, "the schema has only {} fields", walk.fields.len());
    walk.fields.extend(ADDED.map(str::to_owned));
    let rows = rows();
    let without: Vec<_> = walk.fields.iter().filter(|field| !rows.iter().any(|row| covers(&row.field, field))).collect();
    assert!(without.is_empty(), "{TABLE} has no row for {without:?}");
    let unknown: Vec<_> = rows.iter().map(|row| &row.field).filter(|row| !walk.fields.iter().any(|field| covers(row, field))).collect();
    assert!(unknown.is_empty(), "{TABLE} has rows that the specification has no field for: {unknown:?}");
    let mut names: Vec<_> = rows.iter().map(|row| &row.field).collect();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), rows.len(), "a field has two rows");
}

/// All the source below a directory, or of a single file.
fn source(path: &Path) -> String {
    if path.is_file() {
        return fs::read_to_string(path).unwrap();
    }
    let entries = fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path());
    entries.filter(|path| path.is_dir() || path.extension().is_some_and(|end| end == "rs")).map(|path| source(&path)).collect()
}

#[test]
fn the_tests_of_every_row_exist() {
    let root = root();
    for row in rows() {
        for part in row.tests.split("; ") {
            let (suite, names) = part.split_once(": ").unwrap_or_else(|| panic!("{}: {part:?} names no suite", row.field));
            // Those of `launch` are sentences, with commas of their own.
            let (text, names): (String, Vec<String>) = match suite {
                "launch" => (source(&root.join("runtime-core/tests/launch")), vec![format!("\"{names}\"")]),
                _ => {
                    let tests = root.join("tests/tests");
                    let text = match suite {
                        "core" => source(&root.join("runtime-core/src")),
                        _ if tests.join(suite).is_dir() => source(&tests.join(suite)),
                        _ => source(&tests.join(format!("{suite}.rs"))),
                    };
                    let function = |name: &str| format!("fn {}(", name.rsplit("::").next().unwrap_or(name));
                    (text, names.split(", ").map(function).collect())
                }
            };
            for name in names {
                assert!(text.contains(&name), "{}: {suite} has no {name:?}", row.field);
            }
        }
    }
}

#[test]
fn features_are_those_of_the_table() {
    let features = shim::features::features();
    let linux = &features["linux"];
    let says = |field: &str| {
        let rows = rows();
        let row = rows.iter().find(|row| row.field == field).unwrap_or_else(|| panic!("no row for {field}"));
        ["yes", "v1", "v2"].iter().any(|word| row.here.starts_with(word))
    };
    for (field, enabled) in [
        ("process.apparmorProfile", &linux["apparmor"]["enabled"]),
        ("process.selinuxLabel", &linux["selinux"]["enabled"]),
        ("linux.mountLabel", &linux["selinux"]["enabled"]),
        ("linux.intelRdt.closID", &linux["intelRdt"]["enabled"]),
        ("linux.intelRdt.schemata", &linux["intelRdt"]["schemata"]),
        ("linux.intelRdt.enableMonitoring", &linux["intelRdt"]["monitoring"]),
        ("linux.netDevices", &linux["netDevices"]["enabled"]),
        ("mounts[].uidMappings", &linux["mountExtensions"]["idmap"]["enabled"]),
        ("linux.resources.rdma", &linux["cgroup"]["rdma"]),
        ("linux.seccomp.defaultAction", &linux["seccomp"]["enabled"]),
    ] {
        assert_eq!(Some(says(field)), enabled.as_bool(), "{field}");
    }
    let has = |pointer: &str, word: &str| features.pointer(pointer).and_then(Value::as_array).unwrap().iter().any(|name| name == word);
    assert_eq!(says("linux.seccomp.listenerPath"), has("/linux/seccomp/actions", "SCMP_ACT_NOTIFY"));
    assert_eq!(says("linux.memoryPolicy"), !linux["memoryPolicy"]["modes"].as_array().unwrap().is_empty());
    for hook in ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"] {
        assert_eq!(says(&format!("hooks.{hook}")), has("/hooks", hook), "{hook}");
    }
}
