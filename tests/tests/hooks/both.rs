//! What hooks find, over the shim and the command line.

use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};
use tests::bed::{Bed, refused};
use tests::bundle::Bundle;
use tests::requests::around;
use tests::{Context, Result, ensure, ensure_eq};

use crate::KINDS;

/// Hooks of a kind that runs in the container write there, the others into the case's directory.
fn place(bed: &Bed<'_>, bundle: &Bundle, kind: &str, name: &str) -> PathBuf {
    if kind == "startContainer" { bundle.written(&format!("{kind}{name}")) } else { bed.dir().join(format!("{kind}{name}")) }
}

fn script(text: &str, name: &str) -> Value {
    json!({"path": "/bin/busybox", "args": ["sh", "-c", text, name]})
}

fn words(bytes: &[u8]) -> Vec<String> {
    let mut words: Vec<String> =
        bytes.split(|&b| b == 0).filter(|word| !word.is_empty()).map(|word| String::from_utf8_lossy(word).into_owned()).collect();
    words.sort();
    words
}

/// Those of the host have the runtime's, as with runc and crun, and never the container's (CVE-2025-23266); those of the container have that.
pub fn without_an_environment(bed: &mut Bed<'_>) -> Result<()> {
    let mut bundle = bed.bundle("a", &["sleep", "1000"])?;
    bed.call_by(|mut command| {
        command.env("OF_THE_RUNTIME", "1");
        command
    });
    let mut hooks = json!({});
    for kind in KINDS {
        let file = |name: &str| {
            if kind == "startContainer" { format!("/{kind}{name}") } else { bed.dir().join(format!("{kind}{name}")).display().to_string() }
        };
        let dump = "read p rest </proc/self/stat; /bin/busybox cat /proc/$p/environ >$0; :";
        let (one, mut other) = (script(dump, &file("")), script(dump, &file("empty")));
        other["env"] = json!([]);
        hooks[kind] = json!([one, other]);
    }
    bundle.edit(|spec| {
        spec["hooks"] = hooks;
        spec["process"]["env"] = json!(["PATH=/bin", "LD_PRELOAD=./x.so", "A=old", "A=new"]);
    })?;
    bed.running(&bundle)?;
    bed.end(&bundle)?;
    for kind in KINDS {
        let found = |name: &str| {
            let path = place(bed, &bundle, kind, name);
            fs::read(&path).context(|| path.display().to_string()).map(|bytes| words(&bytes))
        };
        if kind == "startContainer" {
            let inside = ["A=new", "HOME=/", "LD_PRELOAD=./x.so", "PATH=/bin"];
            for name in ["", "empty"] {
                let seen = found(name)?;
                ensure!(inside.iter().all(|word| seen.iter().any(|seen| seen == word)), "environment of {kind}{name}: {seen:?}");
            }
        } else {
            let seen = found("")?;
            ensure!(seen.iter().any(|word| word == "OF_THE_RUNTIME=1"), "{kind} has not the runtime's environment: {seen:?}");
            ensure!(
                !seen.iter().any(|word| word.starts_with("LD_PRELOAD=") || word.starts_with("A=")),
                "{kind} has the container's: {seen:?}"
            );
            ensure_eq!(found("empty")?, Vec::<String>::new(), "environment of {kind} whose list is empty");
        }
    }
    Ok(())
}

/// What a createContainer hook makes and mounts by relative paths is the container's.
pub fn in_the_containers_root(bed: &mut Bed<'_>) -> Result<()> {
    let mut bundle = bed.bundle("a", &["sleep", "1000"])?;
    let visit = "set -e; mkdir -p ./lib ./mnt; echo made >./lib/x; mount -t tmpfs hook ./mnt; cat /proc/self/cgroup >./cgroup; \
                 for n in mnt pid net uts ipc; do readlink /proc/self/ns/$n; done >./namespaces; pwd >./directory";
    bundle.edit(|spec| spec["hooks"] = json!({"createContainer": [script(visit, "x")]}))?;
    fs::create_dir_all(bundle.written("lib"))?;
    let pid = bed.running(&bundle)?;
    let read = |name: &str| fs::read_to_string(bundle.written(name)).context(|| name.to_owned());
    ensure_eq!(read("lib/x")?, "made\n", "what the hook has made");
    ensure_eq!(read("directory")?.trim(), bundle.dir.join("rootfs").display().to_string(), "its directory");
    let own = ["mnt", "pid", "net", "uts", "ipc"].map(|name| fs::read_link(format!("/proc/{pid}/ns/{name}")));
    let own = own.into_iter().map(|link| Ok(link?.display().to_string())).collect::<Result<Vec<_>>>()?;
    ensure_eq!(read("namespaces")?.lines().collect::<Vec<_>>(), own, "its namespaces");
    ensure_eq!(read("cgroup")?, fs::read_to_string(format!("/proc/{pid}/cgroup"))?, "its cgroups");
    let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo"))?;
    ensure!(mounts.lines().any(|line| line.contains(" /mnt ") && line.contains(" tmpfs hook ")), "mounts of the container:\n{mounts}");
    bed.end(&bundle)
}

/// Docker with userns-remap, a pod with hostUsers: false and a CDI device, Podman with --uidmap and --hooks-dir.
pub fn in_a_user_namespace(bed: &mut Bed<'_>) -> Result<()> {
    let mut bundle = bed.bundle("a", &["sh", "-c", "cat /prestart /createContainer && echo >/seen; exec sleep 1000"])?;
    bundle.map_users(1_000_000)?;
    let look = "set -e; for n in user mnt pid net uts ipc; do readlink /proc/self/ns/$n; done >./namespaces; \
                grep . /proc/self/uid_map >./$0; echo x >/proc/self/fd/2; mkdir mnt; mount -t tmpfs hook mnt";
    bundle.edit(|spec| {
        spec["hooks"] = json!({
            "prestart": [script("echo >rootfs/$0", "prestart")],
            "createRuntime": [script("[ -e rootfs/prestart ] && echo >rootfs/$0", "createRuntime")],
            "createContainer": [script(look, "createContainer")],
            "poststop": [script("echo >rootfs/$0", "poststop")],
        });
    })?;
    let pid = bed.running(&bundle)?;
    let own = ["user", "mnt", "pid", "net", "uts", "ipc"].map(|name| fs::read_link(format!("/proc/{pid}/ns/{name}")));
    let own = own.into_iter().map(|link| Ok(link?.display().to_string())).collect::<Result<Vec<_>>>()?;
    let seen = fs::read_to_string(bundle.written("namespaces"))?;
    ensure_eq!(seen.lines().collect::<Vec<_>>(), own, "namespaces of the createContainer hook");
    let map = fs::read_to_string(bundle.written("createContainer"))?;
    ensure_eq!(map.split_whitespace().collect::<Vec<_>>(), ["0", "1000000", "65536"], "its ids");
    tests::containerd::eventually("the program sees what hooks have made", crate::SOON, || bundle.written("seen").exists())?;
    let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo"))?;
    ensure!(mounts.lines().any(|line| line.contains(" /mnt ") && line.contains(" tmpfs hook ")), "mounts of the container:\n{mounts}");
    let mut points = mounts.lines().filter_map(|line| line.split(' ').nth(4));
    ensure!(!points.any(|point| bundle.dir.starts_with(point) && point != "/"), "mounts of the host are left in the container:\n{mounts}");
    ensure!(mounts.lines().count() < 40, "mounts of the host are left in the container:\n{mounts}");
    bed.end(&bundle)?;
    ensure!(["createRuntime", "poststop"].iter().all(|kind| bundle.written(kind).exists()), "a hook has not run");
    Ok(())
}

pub fn a_failure_tells_which_and_how(bed: &mut Bed<'_>) -> Result<()> {
    let mut bundle = bed.bundle("a", &["sleep", "1000"])?;
    for (text, how) in
        [("exit 137", "exit status 137"), ("kill -9 $$", "killed by signal 9"), ("echo why >&2; kill -6 $$", "killed by signal 6: why")]
    {
        for kind in ["prestart", "createRuntime", "createContainer"] {
            bundle.edit(|spec| spec["hooks"] = json!({kind: [script("exit 0", ""), script(text, "")]}))?;
            refused(bed.create(&bundle), &format!("error running {kind} hook #1: \"/bin/busybox\": {how}"))?;
        }
    }
    bundle.edit(|spec| spec["hooks"] = json!({"startContainer": [script("exit 0", ""), script("exit 9", "")]}))?;
    bed.create(&bundle)?;
    refused(bed.start(&bundle), "error running startContainer hook #1: \"/bin/busybox\": exit status 9")?;
    bed.end(&bundle)
}

/// What the first hook has made, as nerdctl's makes a network, is for the poststop hook to take back.
pub fn poststop_after_a_failure(bed: &mut Bed<'_>) -> Result<()> {
    let mut bundle = bed.bundle("a", &["nosuchprogram"])?;
    let made = bed.dir().join("made");
    let (make, remove) = (format!("echo >{}", made.display()), format!("cat >&2; rm {}", made.display()));
    bundle.edit(|spec| spec["hooks"] = json!({"createRuntime": [script(&make, "")], "poststop": [script(&remove, "")]}))?;
    refused(bed.create(&bundle), "nosuchprogram")?;
    ensure!(!made.exists(), "the poststop hook did not run after a program that is not there");
    bundle.edit(|spec| spec["hooks"]["createContainer"] = json!([script("exit 3", "")]))?;
    refused(bed.create(&bundle), "exit status 3")?;
    ensure!(!made.exists(), "the poststop hook did not run after a hook that failed");
    Ok(())
}

/// A caller that ignores SIGCHLD hands that down.
pub fn whose_caller_ignores_its_children(bed: &mut Bed<'_>) -> Result<()> {
    let mut bundle = bed.bundle("a", &["sleep", "1000"])?;
    bed.call_by(|command| around("env", &["--ignore-signal=CHLD"], &command));
    let all = KINDS.iter().map(|kind| ((*kind).to_owned(), json!([script("exit 0", "")])));
    bundle.edit(|spec| spec["hooks"] = all.collect::<serde_json::Map<_, _>>().into())?;
    bed.running(&bundle)?;
    bed.end(&bundle)?;
    bundle.edit(|spec| spec["hooks"] = json!({"createRuntime": [script("exit 7", "")]}))?;
    refused(bed.create(&bundle), "exit status 7")
}

/// "the remaining hooks and lifecycle continue as if the hook had succeeded" (OCI runtime.md); crun does so, too.
pub fn poststop_hooks_run_whatever_the_others_do(bed: &mut Bed<'_>) -> Result<()> {
    let mut bundle = bed.bundle("a", &["sleep", "1000"])?;
    let mark = bed.dir().join("mark");
    let last = script("echo ran >$0", &mark.display().to_string());
    let slow = json!({"path": "/bin/busybox", "args": ["sleep", "1000"], "timeout": 1});
    bundle.edit(|spec| spec["hooks"] = json!({"poststop": [script("exit 3", "x"), slow, {"path": "/missing"}, last]}))?;
    bed.running(&bundle)?;
    bed.end(&bundle)?;
    ensure_eq!(fs::read_to_string(&mark).context(|| "the last hook has not run".to_owned())?, "ran\n", "what the last hook wrote");
    Ok(())
}

/// One that ends after the clock's last second.
pub fn the_longest_timeout(bed: &mut Bed<'_>) -> Result<()> {
    let mut bundle = bed.bundle("a", &["echo", "ran"])?;
    let hook = json!([{"path": "/bin/true", "timeout": i64::MAX}]);
    bundle.edit(|spec| spec["hooks"] = json!({"createRuntime": hook, "startContainer": hook, "poststop": hook}))?;
    let ran = bed.ran(&bundle)?;
    ensure_eq!((ran.status, ran.stdout.as_str()), (0, "ran\n"), "{ran:?}");
    Ok(())
}
