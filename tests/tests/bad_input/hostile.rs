//! Every field of a spec that has them all gets one hostile value after another: refused by a name on its path, in one line, and nothing is left;
//! or taken, and the container can be deleted.

use proto::api::CreateTaskRequest;
use serde_json::{Value, json};
use tests::bundle::Bundle;
use tests::hand::Hand;
use tests::requests::{create_request, end, expect_nothing_of, files_of};
use tests::rpc::Shim;
use tests::{Context, Result, ensure, ensure_eq};
use ttrpc::Code;

/// Adds what the usual spec does not have. The values are harmless, and mean something on every host.
fn complete(spec: &mut Value) {
    let process = &mut spec["process"];
    process["terminal"] = json!(false);
    process["consoleSize"] = json!({ "height": 24, "width": 80 });
    process["user"] = json!({ "uid": 0, "gid": 0, "umask": 18, "additionalGids": [4] });
    process["oomScoreAdj"] = json!(900);
    process["apparmorProfile"] = json!("");
    process["selinuxLabel"] = json!("");
    process["scheduler"] =
        json!({ "policy": "SCHED_BATCH", "nice": 1, "priority": 0, "flags": [], "runtime": 0, "deadline": 0, "period": 0 });
    process["ioPriority"] = json!({ "class": "IOPRIO_CLASS_BE", "priority": 4 });
    process["execCPUAffinity"] = json!({ "initial": "0", "final": "0" });
    spec["root"]["readonly"] = json!(false);
    spec["hostname"] = json!("name");
    spec["domainname"] = json!("domain");
    spec["annotations"] = json!({ "org.example.key": "value" });
    let hook = json!([{ "path": "/bin/true", "args": ["true"], "env": ["A=b"], "timeout": 5 }]);
    spec["hooks"] = json!({ "createRuntime": hook, "poststop": hook });
    if let Some(mounts) = spec["mounts"].as_array_mut() {
        mounts.push(json!({ "destination": "/bound", "type": "bind", "source": "/usr", "options": ["bind", "ro"] }));
    }
    let linux = &mut spec["linux"];
    linux["namespaces"] = json!([
        { "type": "pid" }, { "type": "ipc" }, { "type": "uts" }, { "type": "mount" }, { "type": "network" }, { "type": "time" },
        { "type": "cgroup" },
    ]);
    linux["timeOffsets"] = json!({ "boottime": { "secs": 1, "nanosecs": 1 }, "monotonic": { "secs": 1, "nanosecs": 1 } });
    linux["devices"] = json!([{ "path": "/dev/d", "type": "c", "major": 1, "minor": 3, "fileMode": 438, "uid": 0, "gid": 0 }]);
    linux["resources"] = json!({
        "devices": [{ "allow": true, "type": "c", "major": 1, "minor": 3, "access": "rwm" }],
        "memory": { "limit": 67_108_864, "reservation": 33_554_432, "swap": 134_217_728, "kernel": 0, "kernelTCP": 0, "swappiness": 10,
                    "disableOOMKiller": false, "useHierarchy": true, "checkBeforeUpdate": false },
        "cpu": { "shares": 512, "quota": 50_000, "period": 100_000, "burst": 0, "idle": 0, "cpus": "0", "mems": "0" },
        "pids": { "limit": 100 },
    });
    linux["rootfsPropagation"] = json!("rprivate");
    linux["sysctl"] = json!({ "kernel.msgmax": "8192" });
    linux["mountLabel"] = json!("");
    linux["personality"] = json!({ "domain": "LINUX" });
    linux["memoryPolicy"] = json!({ "mode": "MPOL_PREFERRED", "nodes": "0", "flags": [] });
    linux["intelRdt"] = json!({ "closID": "", "schemata": [], "l3CacheSchema": "", "memBwSchema": "", "enableMonitoring": false });
    linux["netDevices"] = json!({});
    linux["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ALLOW", "architectures": [], "flags": [],
        "syscalls": [{ "names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1,
                       "args": [{ "index": 0, "value": 1, "valueTwo": 0, "op": "SCMP_CMP_EQ" }] }],
    });
}

/// The pointers of everything in a value but its root.
fn pointers(value: &Value, here: &str, found: &mut Vec<String>) {
    let parts: Vec<(String, &Value)> = match value {
        Value::Object(map) => map.iter().map(|(key, value)| (key.clone(), value)).collect(),
        Value::Array(list) => list.iter().take(2).enumerate().map(|(index, value)| (index.to_string(), value)).collect(),
        _ => Vec::new(),
    };
    for (name, part) in parts {
        let pointer = format!("{here}/{name}");
        pointers(part, &pointer, found);
        found.push(pointer);
    }
}

/// What no sensible client writes.
fn hostile() -> Vec<Value> {
    vec![
        json!(null),
        json!(true),
        json!(-1),
        json!(u64::MAX),
        json!(i64::MIN),
        json!(4_294_967_295_u64),
        json!(1e300),
        json!(0.5),
        json!(""),
        json!(".."),
        json!("../../../../etc"),
        json!("/proc/self/exe"),
        json!("nul\u{0}byte"),
        json!("new\nline"),
        json!("\u{1f980} no-such-word"),
        json!("x".repeat(5000)),
        json!({}),
        json!({ "x": {} }),
        json!([]),
        json!([[]]),
        json!(["..", -1, null]),
    ]
}

/// A message names the field, or what it belongs to; numbers of lists do not count.
fn names(message: &str, pointer: &str) -> bool {
    let message = message.to_lowercase();
    // As everybody knows it from other runtimes.
    if message.starts_with("exec: ") && (pointer.starts_with("/process/args") || pointer.starts_with("/process/env")) {
        return true;
    }
    let words = pointer.split('/').filter(|word| word.len() > 2 && (*word != "linux" || pointer == "/linux"));
    words.map(str::to_lowercase).any(|word| message.contains(word.trim_end_matches('s')))
}

pub fn every_field(hand: &mut Hand) -> Result<()> {
    let mut bundle = hand.bundle("a", &["true"])?;
    bundle.edit(complete)?;
    let shim = hand.shim(&bundle)?;
    let request = create_request(&bundle)?;
    ensure!(attempt(&shim, &bundle, &request)?.is_none(), "the spec that is to be spoiled is not good");
    let good = bundle.spec.clone();
    let mut places = Vec::new();
    pointers(&good, "", &mut places);
    ensure!(places.len() > 150, "only {} places", places.len());
    let (mut failures, mut refusals) = (Vec::new(), 0);
    for pointer in &places {
        for value in hostile() {
            bundle.edit(|spec| {
                spec.clone_from(&good);
                if let Some(place) = spec.pointer_mut(pointer) {
                    *place = value.clone();
                }
            })?;
            let said = attempt(&shim, &bundle, &request).map_err(|failure| tests::Failure(format!("{pointer} = {value}: {failure}")))?;
            let Some(message) = said else { continue };
            refusals += 1;
            let fit = names(&message, pointer) && !message.chars().any(char::is_control) && message.len() < 1500;
            if !fit {
                failures.push(format!("{pointer} = {}: {message:?}", value.to_string().chars().take(40).collect::<String>()));
            }
        }
    }
    ensure!(failures.is_empty(), "{} refusals without a name:\n    {}", failures.len(), failures.join("\n    "));
    ensure!(refusals > 1000, "only {refusals} refusals");
    shim.shutdown(&bundle.id)
}

/// What Create says if it refuses; otherwise the container is deleted.
fn attempt(shim: &Shim, bundle: &Bundle, request: &CreateTaskRequest) -> Result<Option<String>> {
    let files = files_of(bundle)?;
    match shim.create(request.clone()) {
        Ok(_) => {
            end(shim, bundle)?;
            Ok(None)
        }
        Err(status) => {
            let state = shim.state(&bundle.id, "").err().context(|| "State knows what Create refused".to_owned())?;
            ensure_eq!(state.code, Code::NOT_FOUND, "code of State");
            expect_nothing_of(bundle, &files)?;
            Ok(Some(status.message))
        }
    }
}
