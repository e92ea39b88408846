//! SELinux with a policy, in force: a small one that the suite loads, so it runs only on a machine that is there for it (`deploy/vm/test.sh`).

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use nix::mount::{MsFlags, mount};
use serde_json::{Value, json};
use tests::bundle::{self, Bundle};
use tests::hand::Hand;
use tests::requests::{self, create_request, create_with_toml, exec_ran, expect_nothing_of, files_of, finish};
use tests::rpc::{Shim, refused};
use tests::{Context, Result, ensure, ensure_eq, hand_cases, oci, suite};
use ttrpc::Code;

/// Names the compiled policy, on a machine whose own may be replaced.
const POLICY: &str = "CORACLE_SELINUX_POLICY";
const FILESYSTEM: &str = "/sys/fs/selinux";
const PROCESS: &str = "system_u:system_r:container_t:s0:c1,c2";
const FILES: &str = "system_u:object_r:container_file_t:s0:c1,c2";
const SECRET: &str = "system_u:object_r:secret_t:s0";

fn main() -> ExitCode {
    let Some(policy) = std::env::var_os(POLICY) else {
        println!("selinux: not a machine whose policy may be replaced; run: make test-vm");
        return suite::main_of(Vec::new());
    };
    if let Err(error) = enforce(Path::new(&policy)) {
        println!("selinux: {error}");
        return ExitCode::FAILURE;
    }
    const OF_THE_COMMAND_LINE: &[oci::Entry] = &[("command_line", command_line)];
    let cases = hand_cases![
        labels_of_processes,
        labels_of_mounts,
        the_policy_holds,
        kinds_of_contexts,
        what_no_policy_knows,
        what_the_policy_forbids,
        no_label,
    ];
    let code = requests::main("selinux", cases, Vec::new());
    let of_the_command_line = suite::main_of(oci::named("selinux", OF_THE_COMMAND_LINE));
    if code == ExitCode::SUCCESS { of_the_command_line } else { code }
}

/// Loads the policy and puts it in force for every process.
fn enforce(policy: &Path) -> Result<()> {
    if !Path::new(FILESYSTEM).join("load").exists() {
        mount(Some("selinuxfs"), FILESYSTEM, Some("selinuxfs"), MsFlags::empty(), None::<&str>)?;
    }
    let bytes = fs::read(policy)?;
    fs::write(Path::new(FILESYSTEM).join("load"), bytes).context(|| "load the policy".to_owned())?;
    fs::write(Path::new(FILESYSTEM).join("enforce"), "1").context(|| "put the policy in force".to_owned())?;
    let own = attribute("self", "current")?;
    ensure!(own.contains(":kernel_t:"), "own context {own:?}");
    Ok(())
}

fn attribute(process: &str, name: &str) -> Result<String> {
    let text = fs::read_to_string(format!("/proc/{process}/attr/{name}"))?;
    Ok(text.trim_end_matches(['\0', '\n']).to_owned())
}

/// A container that sleeps, after a change of its configuration.
fn running(hand: &mut Hand, name: &str, change: impl FnOnce(&mut Value)) -> Result<(Bundle, Shim, u32)> {
    let mut bundle = hand.bundle(name, &["sleep", "1000"])?;
    bundle.edit(change)?;
    let shim = hand.shim(&bundle)?;
    let pid = shim.create_quiet(&bundle)?;
    shim.start(&bundle.id, "")?;
    Ok((bundle, shim, pid))
}

/// The options of the mount at a path of a process's.
fn options(pid: u32, path: &str) -> Result<String> {
    let table = fs::read_to_string(format!("/proc/{pid}/mounts"))?;
    let line = table.lines().find(|line| line.split(' ').nth(1) == Some(path)).context(|| format!("no mount at {path}"))?;
    Ok(line.to_owned())
}

/// The kernel shows quotes around a context with a comma.
fn has_context(line: &str, kind: &str) -> bool {
    [format!(",{kind}=\"{FILES}\""), format!(",{kind}={FILES}")].iter().any(|option| line.contains(option.as_str()))
}

fn labels_of_processes(hand: &mut Hand) -> Result<()> {
    let (bundle, shim, pid) = running(hand, "a", |spec| spec["process"]["selinuxLabel"] = json!(PROCESS))?;
    ensure_eq!(attribute(&pid.to_string(), "current")?, PROCESS, "context of the first process");
    // What it starts has its context, and makes keys with no other than that.
    ensure_eq!((attribute(&pid.to_string(), "exec")?, attribute(&pid.to_string(), "keycreate")?), Default::default(), "what is left set");
    let mut process = bundle::process(&["sh", "-c", "cat /proc/self/attr/current >/context"]);
    for (exec, label) in [("with", "system_u:system_r:container_t:s0:c3"), ("as", PROCESS)] {
        process["selinuxLabel"] = json!(label);
        ensure_eq!(exec_ran(&shim, &bundle, exec, &process)?, 0, "exit status of an exec");
        let seen = fs::read_to_string(bundle.written("context"))?;
        ensure_eq!(seen.trim_end_matches('\0'), label, "context of an exec");
    }
    finish(&shim, &bundle)
}

fn labels_of_mounts(hand: &mut Hand) -> Result<()> {
    let (bundle, shim, pid) = running(hand, "a", |spec| {
        spec["process"]["selinuxLabel"] = json!(PROCESS);
        spec["linux"]["mountLabel"] = json!(FILES);
    })?;
    // The root's is the snapshotter's to give.
    for path in ["/dev", "/dev/shm", "/run"] {
        let line = options(pid, path)?;
        ensure!(has_context(&line, "context"), "{path}: {line}");
    }
    // Those that have labels of the policy's get none.
    for path in ["/proc", "/sys"] {
        let line = options(pid, path)?;
        ensure!(!line.contains("container_file_t"), "{path}: {line}");
    }
    let process = bundle::process(&["sh", "-c", "echo x >/dev/shm/made && echo x >/made && echo x >/dev/null"]);
    ensure_eq!(exec_ran(&shim, &bundle, "x", &process)?, 0, "exit status of an exec that writes");
    finish(&shim, &bundle)
}

/// What it may not write to, root in another context may.
fn the_policy_holds(hand: &mut Hand) -> Result<()> {
    let secret = hand.data().join("secret");
    fs::create_dir(&secret)?;
    mount(Some("tmpfs"), &secret, Some("tmpfs"), MsFlags::empty(), Some(format!("context={SECRET}").as_str()))?;
    fs::write(secret.join("file"), "x")?;
    let result = [("a", PROCESS, 1), ("b", "", 0)].into_iter().try_for_each(|(name, label, status)| {
        let (bundle, shim, _) = running(hand, name, |spec| {
            spec["process"]["selinuxLabel"] = json!(label);
            if let Some(mounts) = spec["mounts"].as_array_mut() {
                mounts.push(json!({"destination": "/secret", "type": "bind", "source": secret, "options": ["rbind"]}));
            }
        })?;
        let mut process = bundle::process(&["sh", "-c", "echo x >/secret/file"]);
        process["selinuxLabel"] = json!(label);
        ensure_eq!(exec_ran(&shim, &bundle, "x", &process)?, status, "exit status of a write as {label:?}");
        finish(&shim, &bundle)
    });
    nix::mount::umount(&secret)?;
    result
}

/// crun's annotation. The kernel takes a defcontext for filesystems only that keep labels on disk.
fn kinds_of_contexts(hand: &mut Hand) -> Result<()> {
    for kind in ["context", "fscontext", "rootcontext"] {
        let mut bundle = hand.bundle(kind, &["sleep", "1000"])?;
        bundle.edit(|spec| {
            spec["linux"]["mountLabel"] = json!(FILES);
            spec["annotations"] = json!({"run.oci.mount_context_type": kind});
        })?;
        let shim = hand.shim(&bundle)?;
        let pid = create_with_toml(&shim, &bundle, "CrunAnnotations = true\n")??;
        shim.start(&bundle.id, "")?;
        // The root's own context is not an option that is shown, but that of the directory.
        if kind == "rootcontext" {
            let mut value = [0; 256];
            let length = rustix::fs::getxattr(format!("/proc/{pid}/root/dev/shm"), "security.selinux", &mut value)?;
            ensure_eq!(String::from_utf8_lossy(&value[..length]).trim_end_matches('\0'), FILES, "{kind} of /dev/shm");
        } else {
            let line = options(pid, "/dev/shm")?;
            ensure!(has_context(&line, kind), "{kind}: {line}");
        }
        finish(&shim, &bundle)?;
    }
    Ok(())
}

fn what_no_policy_knows(hand: &mut Hand) -> Result<()> {
    let mut bundle = hand.bundle("a", &["true"])?;
    let shim = hand.shim(&bundle)?;
    let files = files_of(&bundle)?;
    for (pointer, label) in [
        ("/process/selinuxLabel", "nonsense"),
        ("/process/selinuxLabel", "system_u:system_r:nobody_t:s0"),
        ("/process/selinuxLabel", "system_u:system_r:container_t:s0:c9"),
        ("/linux/mountLabel", "nonsense"),
        ("/linux/mountLabel", "system_u:object_r:container_file_t:s0,rw"),
    ] {
        let before = bundle.spec.clone();
        bundle.edit(|spec| {
            let (parent, name) = pointer.rsplit_once('/').unwrap_or_default();
            if let Some(parent) = spec.pointer_mut(parent) {
                parent[name] = json!(label);
            }
        })?;
        let answer = shim.create(create_request(&bundle)?);
        let told = answer.err().context(|| format!("{pointer} {label:?} was taken"))?.to_string();
        ensure!(told.contains(label) || told.contains("context"), "{pointer} {label:?}: {told}");
        expect_nothing_of(&bundle, &files)?;
        bundle.edit(|spec| *spec = before)?;
    }
    shim.shutdown(&bundle.id)
}

/// A container may not become what it likes, nor may what is exec'd in it by a daemon that is confined itself.
fn what_the_policy_forbids(hand: &mut Hand) -> Result<()> {
    let (bundle, shim, pid) = running(hand, "a", |spec| spec["process"]["selinuxLabel"] = json!(PROCESS))?;
    let script = "echo system_u:system_r:kernel_t:s0 >/proc/self/attr/exec; cat /proc/self/attr/current >/context";
    let mut process = bundle::process(&["sh", "-c", script]);
    process["selinuxLabel"] = json!(PROCESS);
    exec_ran(&shim, &bundle, "x", &process)?;
    ensure_eq!(fs::read_to_string(bundle.written("context"))?.trim_end_matches('\0'), PROCESS, "context after a try");
    ensure_eq!(attribute(&pid.to_string(), "current")?, PROCESS, "context of the first process");
    finish(&shim, &bundle)
}

fn no_label(hand: &mut Hand) -> Result<()> {
    let (bundle, shim, pid) = running(hand, "a", |_| {})?;
    ensure_eq!(attribute(&pid.to_string(), "current")?, attribute("self", "current")?, "context without a label");
    let line = options(pid, "/dev/shm")?;
    ensure!(!line.contains("context="), "{line}");
    finish(&shim, &bundle)?;
    let mut bundle = hand.bundle("b", &["true"])?;
    bundle.edit(|spec| spec["process"]["selinuxLabel"] = json!("with\nline"))?;
    let shim = hand.shim(&bundle)?;
    refused(shim.create(create_request(&bundle)?), Code::INVALID_ARGUMENT, "process.selinuxLabel")?;
    shim.shutdown(&bundle.id)
}

fn command_line(oci: &oci::Oci) -> Result<()> {
    let mut bundle = oci.bundle("a", &["cat", "/proc/self/attr/current"])?;
    bundle.edit(|spec| spec["process"]["selinuxLabel"] = json!(PROCESS))?;
    let dir = bundle.dir.display().to_string();
    let told = oci.ok(&["run", "-b", &dir, &bundle.id])?;
    ensure_eq!(told.trim_end_matches('\0'), PROCESS, "context of a run");
    Ok(())
}
