//! What a container has of whoever started the runtime: what the list "What is inherited" of architecture.md says.

use std::fs;
use std::path::Path;

use nix::sys::prctl;
use serde_json::{Value, json};
use tests::bed::Bed;
use tests::bundle::{Bundle, process};
use tests::requests::{around, status_line};
use tests::{Context, Result, ensure, ensure_eq};

/// Hooks that leave what `look` prints, one on the host's side and one inside; answers where.
fn hooked(bed: &Bed<'_>, bundle: &mut Bundle, look: &str) -> Result<[(&'static str, std::path::PathBuf); 2]> {
    let files = [("createRuntime", bed.data().join("hooked")), ("startContainer", bundle.written("hooked"))];
    let hook = |file: &Path| json!([{"path": "/bin/busybox", "args": ["sh", "-c", format!("{{ {look}; }} >{}", file.display())]}]);
    bundle.edit(|spec| spec["hooks"] = json!({"createRuntime": hook(&files[0].1), "startContainer": hook(Path::new("/hooked"))}))?;
    Ok(files)
}

/// The processors of a running process.
fn processors(pid: u32) -> Result<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    status_line(&status, "Cpus_allowed_list").map(str::to_owned)
}

/// containerd#11345, runc#4858, crun#1315: since Linux 6.2 joining a cpuset does not reset the mask.
pub fn processors_of_the_caller(bed: &mut Bed<'_>) -> Result<()> {
    let all = processors(std::process::id())?;
    ensure_eq!(all, "0-1", "processors of this test, which needs two");
    bed.call_by(|command| around("taskset", &["-c", "1"], &command));
    let mut bundle = bed.bundle("a", &["sleep", "1000"])?;
    let files = hooked(bed, &mut bundle, "grep Cpus_allowed_list /proc/self/status")?;
    let pid = bed.running(&bundle)?;
    ensure_eq!(processors(pid)?, all, "of the first process");
    for (what, file) in &files {
        let seen = fs::read_to_string(file).context(|| (*what).to_owned())?;
        ensure_eq!(status_line(&seen, "Cpus_allowed_list")?, all, "of the {what} hook");
    }
    let exec = |bed: &Bed<'_>, bundle: &Bundle, affinity: Value| -> Result<String> {
        let mut spec = process(&["grep", "Cpus_allowed_list", "/proc/self/status"]);
        spec["execCPUAffinity"] = affinity;
        Ok(status_line(&bed.exec(bundle, &spec)?.stdout, "Cpus_allowed_list")?.to_owned())
    };
    ensure_eq!(exec(bed, &bundle, Value::Null)?, all, "of an exec");
    ensure_eq!(exec(bed, &bundle, json!({"final": "0"}))?, "0", "of an exec with an affinity of its own");
    bed.end(&bundle)?;
    bundle.edit(|spec| {
        spec["hooks"] = json!({});
        // That is for those that join.
        spec["process"]["execCPUAffinity"] = json!({"initial": "0", "final": "0"});
        spec["linux"]["resources"]["cpu"] = json!({"cpus": "0"});
    })?;
    let pid = bed.running(&bundle)?;
    ensure_eq!(processors(pid)?, "0", "with a cpuset");
    ensure_eq!(exec(bed, &bundle, Value::Null)?, "0", "of an exec in a cpuset");
    bed.update(&bundle, &json!({"cpu": {"cpus": "0-1"}}))?;
    ensure_eq!(processors(pid)?, all, "after an update");
    ensure_eq!(exec(bed, &bundle, Value::Null)?, all, "of an exec after an update");
    bed.end(&bundle)
}

/// What differs from the usual in the caller, and what each process has of it.
const ODD: &str = "ulimit -c 7; umask 0077; trap '' USR1 HUP; echo 0x7 >/proc/self/coredump_filter; echo 300 >/proc/self/oom_score_adj; \
    echo 70000 >/proc/$$/timerslack_ns; exec nice -n 5 ionice -c 2 -n 7 chrt --batch 0 setarch -R \"$@\"";
const LOOK: &str = "set -- $(sed 's/.*) //' /proc/self/stat); echo nice: ${17}; echo policy: ${39}; echo core: $(ulimit -c); \
    echo io: $(busybox ionice -p $$); for f in coredump_filter oom_score_adj timerslack_ns personality; do echo $f: $(cat /proc/self/$f); done; \
    grep -E '^(Umask|SigBlk|SigIgn|NoNewPrivs|Groups|THP_enabled|CapAmb|CapInh)' /proc/self/status";

pub fn everything_odd(bed: &mut Bed<'_>) -> Result<()> {
    bed.call_by(|command| around("/bin/sh", &["-c", ODD, "sh"], &command));
    let mut bundle = bed.bundle("a", &["sh", "-c", LOOK])?;
    bundle.edit(|spec| {
        spec["process"]["noNewPrivileges"] = json!(false);
        // timerslack_ns(5) of another, and reading personality.
        for set in ["bounding", "effective", "permitted"] {
            spec["process"]["capabilities"][set] = json!(["CAP_SYS_NICE", "CAP_SYS_PTRACE"]);
        }
    })?;
    let files = hooked(bed, &mut bundle, LOOK)?;
    // Children inherit it; this process gets its own again.
    prctl::set_thp_disable(true)?;
    let first = bed.ran(&bundle);
    prctl::set_thp_disable(false)?;
    let first = first?.stdout;
    let mut seen = vec![("first process", first)];
    for (what, file) in &files {
        seen.push((what, fs::read_to_string(file).context(|| (*what).to_owned())?));
    }
    bundle.edit(|spec| {
        spec["hooks"] = json!({});
        spec["process"]["args"] = json!(["sleep", "1000"]);
    })?;
    bed.running(&bundle)?;
    let mut exec = process(&["sh", "-c", LOOK]);
    exec["noNewPrivileges"] = json!(false);
    exec["capabilities"] = bundle.spec["process"]["capabilities"].clone();
    seen.push(("exec", bed.exec(&bundle, &exec)?.stdout));
    bed.end(&bundle)?;
    for (what, text) in seen {
        expect(what, &text)?;
    }
    Ok(())
}

fn expect(what: &str, text: &str) -> Result<()> {
    let inherited = [
        ("nice", "5"),
        ("policy", "3"),
        ("core", "7"),
        ("io", "best-effort: prio 7"),
        ("coredump_filter", "00000007"),
        ("timerslack_ns", "70000"),
        ("personality", "00040000"),
    ];
    let own =
        [("Umask", "0022"), ("SigBlk", "0000000000000000"), ("NoNewPrivs", "0"), ("THP_enabled", "1"), ("CapAmb", "0000000000000000")];
    for (key, value) in inherited.into_iter().chain(own) {
        ensure_eq!(status_line(text, key)?, value, "{key} of the {what}");
    }
    // A shell that runs a script ignores SIGQUIT itself. Signals 32 and 33 are those that posix_spawn(3) leaves ignored.
    let ignored = status_line(text, "SigIgn")?;
    ensure!(["0000000000000000", "0000000000000004"].contains(&ignored), "SigIgn of the {what}: {ignored}");
    // A shim counts one up, as containerd's do, so that the kernel kills it after containerd.
    let score = status_line(text, "oom_score_adj")?;
    ensure!(["300", "301"].contains(&score), "oom_score_adj of the {what}: {score}");
    Ok(())
}
