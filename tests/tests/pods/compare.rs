//! What CRI shows of a pod is the same as with containerd's own shim, field by field; what differs is listed here with its reason.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Value, json};
use tests::cri::api::{self, Int64Value};
use tests::cri::pod::{SOON, resources, security};
use tests::cri::{Container, Node, Pod, PodCase, Style};
use tests::events::{CtrEvents, Event, Kind};
use tests::{Context, Result, containerd, ensure, ensure_eq};

/// Parts of paths, in small letters, that may differ, and why.
const INTENDED: [(&str, &str); 5] = [
    ("/runtimetype", "the runtime's name is what is compared"),
    ("/runtimehandler", "as is the handler's"),
    ("/runtime_handler", "as is the handler's"),
    ("/runtimeoptions", "the reference needs the path of its runc"),
    ("/cniresult", "addresses and names that the network's plug-ins chose"),
];

/// The same for pods without a pause container.
const INTENDED_WITHOUT_PAUSE: [(&str, &str); 3] = [
    ("pod/verbose/info", "there is no container of the pod's with a process, an image and a spec"),
    ("events/pod", "nor a task that there could be events of"),
    ("/runtimespec/mounts", "/dev/shm and the files in /etc are the shim's, which adds them to what containerd asks for"),
];

/// Runs the same pod on both and compares all that CRI tells of it.
pub fn same_as_the_peer(node: &mut Node, style: Style) -> Result<()> {
    let (ours, theirs) = (seen(node, style)?, seen(node, Style::Runc)?);
    let mut differences = Vec::new();
    let without_pause = INTENDED_WITHOUT_PAUSE.iter().filter(|_| !style.has_pause());
    let intended: Vec<&str> = INTENDED.iter().chain(without_pause).map(|(part, _)| *part).collect();
    let paths: std::collections::BTreeSet<&String> = ours.keys().chain(theirs.keys()).collect();
    for path in paths {
        let (here, there) = (ours.get(path), theirs.get(path));
        if here != there && !intended.iter().any(|part| path.to_lowercase().contains(part)) {
            differences.push(format!("{path}: {here:?} instead of {there:?}"));
        }
    }
    ensure!(differences.is_empty(), "not as with containerd's own shim:\n    {}", differences.join("\n    "));
    ensure!(ours.len() > 150, "only {} fields were compared", ours.len());
    Ok(())
}

/// Every field by its path.
type Fields = BTreeMap<String, Value>;

fn seen(node: &Node, style: Style) -> Result<Fields> {
    let (case, events) = (PodCase::new(node, style)?, CtrEvents::start(&node.containerd)?);
    let pod = case.pod_with("pod", |config| {
        config.annotations = [("a".to_owned(), "b".to_owned())].into();
        config.linux.get_or_insert_default().sysctls = [("kernel.shm_rmid_forced".to_owned(), "1".to_owned())].into();
    })?;
    let app = pod.container_with("app", &["sh", "-c", "echo ready; exec sleep 9999"], |config| {
        security(config).run_as_user = Some(Int64Value { value: 1000 });
        resources(config).memory_limit_in_bytes = 64 << 20;
        resources(config).cpu_quota = 50_000;
        resources(config).cpu_period = 100_000;
    })?;
    app.wait_printed("ready")?;
    let exited = pod.container("exited", &["sh", "-c", "kill -TERM $$; sleep 1; exit 3"])?;
    exited.wait_exit()?;
    let created = pod.create_with("created", &["true"], |_| {})?;
    let mut fields = Fields::new();
    let mut names = vec![(pod.id.clone(), "POD".to_owned())];
    for (name, container) in [("app", &app), ("exited", &exited), ("created", &created)] {
        names.push((container.id.clone(), name.to_uppercase()));
    }
    fields_of_pod(&case, &pod, &mut fields)?;
    for (name, container) in [("app", &app), ("exited", &exited), ("created", &created)] {
        fields_of_container(&case, name, container, &mut fields)?;
    }
    stats_of(&case, &pod, &app, &mut fields)?;
    let holder = format!("/proc/{}/ns", pod.pid()?);
    let own = [(holder, "/proc/HOLDER/ns"), (case.dir()?.display().to_string(), "DIR"), (case.word().to_owned(), "WORD")];
    drop((pod, app, exited, created));
    case.close()?;
    for (id, name) in &names {
        // containerd's own shim loses its last event now and then, when containerd is quicker to end it.
        if name != "CREATED" && style != Style::Runc {
            events.record.wait(id, Kind::Delete, SOON)?;
        }
        let last = |event: &Event| name == "POD" && event.kind == Kind::Delete;
        let events: Vec<Event> = events.record.of(id).into_iter().filter(|event| !last(event)).collect();
        let told: Vec<String> = events.iter().map(|event| format!("{:?} {} {:?}", event.kind, event.status, event.timed)).collect();
        fields.insert(format!("events/{name}"), json!(told));
    }
    names.extend(own.map(|(from, to)| (from, to.to_owned())));
    Ok(fields.into_iter().map(|(path, value)| (rename(&path, &names), Value::String(rename(&value.to_string(), &names)))).collect())
}

fn fields_of_pod(case: &PodCase<'_>, pod: &Pod<'_>, fields: &mut Fields) -> Result<()> {
    let request = api::PodSandboxStatusRequest { pod_sandbox_id: pod.id.clone(), verbose: true };
    let reply = case.cri.pod_sandbox_status(request)?;
    flatten("pod/status", &to_json(&reply.status)?, fields);
    for (key, text) in &reply.info {
        flatten(&format!("pod/verbose/{key}"), &serde_json::from_str(text)?, fields);
    }
    let filter = api::PodSandboxFilter { id: pod.id.clone(), ..Default::default() };
    let list = case.cri.list_pod_sandbox(api::ListPodSandboxRequest { filter: Some(filter) })?;
    ensure_eq!(list.items.len(), 1, "pods in the list");
    flatten("pod/list", &to_json(&list.items)?, fields);
    Ok(())
}

fn fields_of_container(case: &PodCase<'_>, name: &str, container: &Container<'_>, fields: &mut Fields) -> Result<()> {
    let request = api::ContainerStatusRequest { container_id: container.id.clone(), verbose: true };
    let reply = case.cri.container_status(request)?;
    flatten(&format!("{name}/status"), &to_json(&reply.status)?, fields);
    for (key, text) in &reply.info {
        flatten(&format!("{name}/verbose/{key}"), &serde_json::from_str(text)?, fields);
    }
    let filter = api::ContainerFilter { id: container.id.clone(), ..Default::default() };
    let list = case.cri.list_containers(api::ListContainersRequest { filter: Some(filter) })?;
    flatten(&format!("{name}/list"), &to_json(&list.containers)?, fields);
    Ok(())
}

/// Which statistics there are; their values are of the moment.
fn stats_of(case: &PodCase<'_>, pod: &Pod<'_>, app: &Container<'_>, fields: &mut Fields) -> Result<()> {
    let read = || -> Result<Fields> {
        let mut read = Fields::new();
        let stats = case.cri.container_stats(api::ContainerStatsRequest { container_id: app.id.clone() })?.stats;
        flatten("app/stats", &to_json(&stats)?, &mut read);
        let stats = case.cri.pod_sandbox_stats(api::PodSandboxStatsRequest { pod_sandbox_id: pod.id.clone() })?.stats;
        flatten("pod/stats", &to_json(&stats)?, &mut read);
        Ok(read)
    };
    // Of the filesystem there are some after a while, and a rate when containerd has measured twice.
    let late = ["writable_layer/used_bytes/value", "cpu/usage_nano_cores/value"];
    containerd::eventually("all statistics are there", SOON, || {
        read().is_ok_and(|read| late.iter().all(|late| read.iter().any(|(path, value)| path.contains(late) && value.is_number())))
    })?;
    for (path, value) in read()? {
        // containerd measures filesystems every ten seconds, whoever runs the containers; until then the time of it is zero.
        let varies = value.is_number() || path.ends_with("writable_layer/timestamp");
        fields.insert(path, if varies { json!("a number") } else { value });
    }
    Ok(())
}

fn to_json(message: &impl Serialize) -> Result<Value> {
    serde_json::to_value(message).context(|| "a message as JSON".to_owned())
}

/// Every leaf by its path, and empty lists and maps as such.
fn flatten(path: &str, value: &Value, fields: &mut Fields) {
    match value {
        Value::Object(map) if !map.is_empty() => map.iter().for_each(|(key, value)| flatten(&format!("{path}/{key}"), value, fields)),
        Value::Array(list) if !list.is_empty() => {
            list.iter().enumerate().for_each(|(index, value)| flatten(&format!("{path}/{}", key_of(index, value)), value, fields));
        }
        leaf => drop(fields.insert(path.to_owned(), of_no_moment(path, leaf))),
    }
}

/// Containers among statistics come in any order, so they go by their names.
fn key_of(index: usize, value: &Value) -> String {
    value["attributes"]["metadata"]["name"].as_str().map_or_else(|| index.to_string(), str::to_owned)
}

/// Times, process numbers, addresses and made-up names are never the same.
fn of_no_moment(path: &str, value: &Value) -> Value {
    let name = path.rsplit('/').next().unwrap_or_default();
    let varies = ["pid", "created_at", "started_at", "finished_at", "createdAt", "ip", "timestamp", "IP", "NetNSPath", "netNSPath"];
    match value {
        Value::Number(number) if varies.contains(&name) => json!(if number.as_i64() == Some(0) { "zero" } else { "not zero" }),
        Value::String(text) if !text.is_empty() && varies.contains(&name) => json!("something"),
        // The pod's network namespace, by the name that containerd gave it.
        Value::String(text) if text.contains("/netns/cni-") => json!("a network namespace"),
        other => other.clone(),
    }
}

fn rename(text: &str, names: &[(String, String)]) -> String {
    names.iter().fold(text.to_owned(), |text, (from, to)| text.replace(from.as_str(), to))
}
