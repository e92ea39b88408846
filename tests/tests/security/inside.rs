//! What a process finds around itself.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;

use serde_json::{Value, json};
use tests::bed::Bed;
use tests::bundle::{Bundle, process};
use tests::containerd::eventually;
use tests::requests::status_line;
use tests::{Context, Result, ensure, ensure_eq};

use crate::SOON;

/// What an exec'd shell script wrote to `/out`.
pub fn exec_output(bed: &Bed<'_>, bundle: &Bundle, spec: &Value) -> Result<String> {
    bed.exec(bundle, spec)?;
    Ok(fs::read_to_string(bundle.written("out")).unwrap_or_default())
}

pub fn environment_is_the_specs(bed: &mut Bed<'_>) -> Result<()> {
    let given = ["PATH=/bin", "A=b=c", "EMPTY=", "LINES=one\ntwo", "QUOTE=\"'\\"];
    let mut bundle = bed.bundle("a", &["cat", "/proc/self/environ"])?;
    bundle.edit(|spec| spec["process"]["env"] = json!(given))?;
    let foreign = [("SECRET", "1"), ("RUST_LOG", "trace"), ("LD_PRELOAD", "/no/x.so"), ("HOME", "/host/home")];
    bed.call_by(move |mut command| {
        command.envs(foreign);
        command
    });
    let mut expected: Vec<&str> = given.to_vec();
    expected.push("HOME=/");
    let seen = bed.ran(&bundle)?;
    let variables: Vec<&str> = seen.stdout.split_terminator('\0').collect();
    ensure_eq!(variables, expected, "environment of the init");
    bundle.edit(|spec| spec["process"]["args"] = json!(["sleep", "1000"]))?;
    bed.running(&bundle)?;
    for (given, expected) in
        [(json!(["PATH=/bin", "ONLY=this"]), "PATH=/bin\0ONLY=this\0HOME=/\0"), (json!(["PATH=/bin", "HOME=/x"]), "PATH=/bin\0HOME=/x\0")]
    {
        let mut spec = process(&["cat", "/proc/self/environ"]);
        spec["env"] = given;
        ensure_eq!(bed.exec(&bundle, &spec)?.stdout, expected, "environment of an exec");
    }
    bed.end(&bundle)
}

/// gvisor#5226, tekton#3666, containerd#7348: an image's variables, then those of whoever runs it, and getenv(3) takes the first.
pub fn the_last_of_a_name_counts(bed: &mut Bed<'_>) -> Result<()> {
    let given = json!(["PATH=/nope", "A=image", "HOME=/image", "TERM=xterm", "B=", "A=pod", "HOME=", "TERM=vt100", "PATH=/p:/bin"]);
    let mut bundle = bed.bundle("a", &["show"])?;
    fs::create_dir_all(bundle.written("p"))?;
    fs::copy("/bin/busybox", bundle.written("p/cat"))?;
    std::os::unix::fs::symlink("cat", bundle.written("p/sh"))?;
    let hook = |file: &Path| {
        let script = format!("cat /proc/$$/environ >{}; :", file.display());
        json!([{"path": "/bin/busybox", "args": ["sh", "-c", script], "env": ["PATH=/bin", "A=1", "PATH=/sbin:/bin", "A=2"]}])
    };
    let hooked = bed.data().join("hook");
    let inside = bundle.written("hook");
    bundle.edit(|spec| {
        spec["process"]["env"] = given.clone();
        spec["process"]["args"] = json!(["cat", "/proc/self/environ"]);
        spec["hooks"] = json!({"createRuntime": hook(&hooked), "startContainer": hook(Path::new("/hook"))});
    })?;
    let expected = "B=\0A=pod\0TERM=vt100\0PATH=/p:/bin\0HOME=/\0";
    ensure_eq!(bed.ran(&bundle)?.stdout, expected, "of the first process");
    for (what, file) in [("createRuntime", &hooked), ("startContainer", &inside)] {
        ensure_eq!(fs::read_to_string(file).context(|| what.to_owned())?, "PATH=/sbin:/bin\0A=2\0", "of the {what} hook");
    }
    bundle.edit(|spec| {
        spec["hooks"] = json!({});
        spec["process"]["args"] = json!(["sleep", "1000"]);
    })?;
    bed.running(&bundle)?;
    let mut exec = process(&["sh", "-c", "readlink /proc/$$/exe; cat /proc/$$/environ; :"]);
    exec["env"] = given;
    ensure_eq!(bed.exec(&bundle, &exec)?.stdout, format!("/p/cat\n{expected}"), "of an exec");
    if let Some(oci) = bed.oci() {
        let flags = ["exec", "--env", "A=new", "-e", "PATH=/bin", "-e", "A=newer", &bundle.id];
        let seen = oci.ok(&[&flags[..], &["sh", "-c", "readlink /proc/$$/exe; cat /proc/$$/environ; :"]].concat())?;
        ensure_eq!(seen, "/bin/busybox\nB=\0TERM=vt100\0PATH=/bin\0A=newer\0HOME=/\0", "of exec --env");
    }
    bed.end(&bundle)
}

/// The numbers that `ls -l` of a directory of descriptors shows.
fn numbers(listing: &str) -> Vec<u32> {
    let mut numbers: Vec<u32> = listing.lines().filter_map(|line| line.split_once(" -> ")?.0.rsplit(' ').next()?.parse().ok()).collect();
    numbers.sort_unstable();
    numbers
}

pub fn three_descriptors(bed: &mut Bed<'_>) -> Result<()> {
    // A shell opens none itself as long as it only waits.
    bed.quiet();
    let bundle = bed.bundle("a", &["sleep", "1000"])?;
    let init = bed.running(&bundle)?;
    let exec = bed.exec_start(&bundle, &process(&["sleep", "1000"]))?;
    for (what, pid) in [("init", init), ("exec", exec.pid)] {
        let entries = fs::read_dir(format!("/proc/{pid}/fd"))?.flatten();
        let mut found: Vec<String> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        found.sort();
        ensure_eq!(found, ["0", "1", "2"], "descriptors of the {what}");
        for number in 0..3 {
            let target = fs::read_link(format!("/proc/{pid}/fd/{number}"))?;
            ensure_eq!(target, Path::new("/dev/null"), "descriptor {number} of the {what}");
        }
    }
    bed.exec_end(&bundle, exec)?;
    let listing = exec_output(bed, &bundle, &process(&["sh", "-c", "ls -l /proc/1/fd >/out"]))?;
    ensure_eq!(numbers(&listing), [0, 1, 2], "descriptors seen from inside: {listing}");
    bed.end(&bundle)
}

/// CVE-2024-21626: a working directory behind a descriptor of the runtime's would be on the host.
pub fn working_directories(bed: &mut Bed<'_>) -> Result<()> {
    let first = bed.bundle("first", &["sleep", "1000"])?;
    bed.running(&first)?;
    let listing = "pwd; ls -a . | tr '\\n' ' '";
    let mut bundle = bed.bundle("a", &["sh", "-c", listing])?;
    bundle.edit(|spec| {
        spec["process"]["env"] = json!(["PATH=/bin"]);
    })?;
    let link = bundle.written("w");
    let _ = fs::remove_file(&link);
    std::os::unix::fs::symlink("/proc/self/fd/9", &link)?;
    let mut paths = vec!["/w".to_owned(), "/proc/self/cwd".to_owned(), "/proc/1/cwd".to_owned(), "/proc/self/root/../..".to_owned()];
    for number in 3..24 {
        paths.extend(["", "/..", "/../../../.."].map(|tail| format!("/proc/self/fd/{number}{tail}")));
        paths.push(format!("/proc/1/fd/{number}"));
    }
    for (number, path) in paths.into_iter().enumerate() {
        bundle.edit(|spec| spec["process"]["cwd"] = json!(path))?;
        if let Ok(seen) = bed.ran(&bundle) {
            ensure!(is_inside(&seen.stdout), "{path} leads to {}", seen.stdout);
        }
        let mut spec = process(&["sh", "-c", &format!("{{ {listing}; }} >/out{number}")]);
        spec["cwd"] = json!(path);
        if bed.exec(&first, &spec).is_ok() {
            let seen = fs::read_to_string(first.written(&format!("out{number}")))?;
            ensure!(is_inside(&seen), "{path} of an exec leads to {seen}");
        }
    }
    bed.end(&first)
}

/// A working directory of the container's own root, which has neither the host's `boot` nor an unreachable path.
fn is_inside(seen: &str) -> bool {
    seen.starts_with('/')
        && !seen.contains("unreachable")
        && !["boot", "lost+found", "sys-host", "cgroup.procs"].iter().any(|name| seen.contains(name))
}

pub fn programs_behind_descriptors(bed: &mut Bed<'_>) -> Result<()> {
    let mut bundle = bed.bundle("a", &["true"])?;
    for number in 3..24 {
        for tail in ["/bin/busybox", "/../../../bin/busybox", "/../../../../../../bin/busybox", ""] {
            let program = format!("/proc/self/fd/{number}{tail}");
            bundle.edit(|spec| spec["process"]["args"] = json!([program, "true"]))?;
            ensure!(bed.create(&bundle).is_err(), "{program} was found");
        }
    }
    Ok(())
}

/// mkdir answers EPERM by the profile, and to no one else.
fn profile() -> Value {
    json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64"],
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95}]})
}

pub fn no_new_privileges_and_seccomp(bed: &mut Bed<'_>) -> Result<()> {
    for forbidden in [true, false] {
        let mut bundle = bed.bundle(&format!("n{forbidden}"), &["sleep", "1000"])?;
        bundle.edit(|spec| {
            spec["process"]["noNewPrivileges"] = json!(forbidden);
            spec["linux"]["seccomp"] = profile();
        })?;
        let init = bed.running(&bundle)?;
        let mut spec = process(&["sh", "-c", "mkdir /d 2>/out; cat /proc/self/status >/status; exec sleep 1000"]);
        spec["noNewPrivileges"] = json!(forbidden);
        let exec = bed.exec_start(&bundle, &spec)?;
        for (what, pid) in [("init", init), ("exec", exec.pid)] {
            let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
            ensure_eq!(status_line(&status, "NoNewPrivs")?, if forbidden { "1" } else { "0" }, "NoNewPrivs of the {what}");
            ensure_eq!((status_line(&status, "Seccomp")?, status_line(&status, "Seccomp_filters")?), ("2", "1"), "Seccomp of the {what}");
        }
        tests::containerd::eventually("mkdir was refused", crate::SOON, || {
            fs::read_to_string(bundle.written("out")).is_ok_and(|text| text.contains("not supported"))
        })?;
        bed.exec_end(&bundle, exec)?;
        bed.end(&bundle)?;
    }
    Ok(())
}

pub fn masked_and_readonly_paths(bed: &mut Bed<'_>) -> Result<()> {
    let bundle = bed.bundle("a", &["sleep", "1000"])?;
    bed.running(&bundle)?;
    let strings = |key: &str| {
        bundle.spec["linux"][key].as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect::<Vec<_>>()
    };
    let masked = strings("maskedPaths").into_iter().filter(|path| fs::metadata(path).is_ok()).collect::<Vec<_>>();
    ensure!(masked.len() > 2, "this host has only {masked:?} of the masked paths");
    let mut script = "exec >/out 2>&1\n".to_owned();
    for path in &masked {
        script += &format!("if [ -d {path} ]; then ls -A {path}; touch {path}/x 2>/dev/null && echo wrote {path}; else cat {path}; fi\n");
    }
    for path in strings("readonlyPaths") {
        script += &format!(
            "[ -d {path} ] && for f in $(find {path} -type f -maxdepth 3 | head -20); do (: >>$f) 2>/dev/null && echo opened $f; done\n"
        );
    }
    script += "(echo 1 >/proc/sysrq-trigger) 2>/dev/null && echo triggered; mount -o remount,rw /proc/sys 2>/dev/null && echo remounted; mount -t proc none /tmp 2>/dev/null && echo mounted; echo end\n";
    let everything = json!(["CAP_DAC_OVERRIDE"]);
    let mut spec = process(&["sh", "-c", &script]);
    for set in ["bounding", "effective", "permitted"] {
        spec["capabilities"][set] = everything.clone();
    }
    ensure_eq!(exec_output(bed, &bundle, &spec)?, "end\n", "what an exec could read or write");
    bed.end(&bundle)
}

pub fn devices(bed: &mut Bed<'_>) -> Result<()> {
    let bundle = bed.bundle("a", &["sleep", "1000"])?;
    bed.running(&bundle)?;
    let script = "exec >/out 2>&1; for d in 'b 8 0' 'c 1 1' 'c 1 11' 'c 10 200' 'c 10 229' 'b 7 0'; do set -- $d; mknod /n $1 $2 $3 && \
        (head -c 0 /n) 2>/dev/null && echo opened $d; rm -f /n; done; \
        for n in null zero full random urandom tty; do [ -c /dev/$n ] || echo no $n; done; head -c 4 /dev/urandom | wc -c; ls /dev | tr '\\n' ' '";
    let text = exec_output(bed, &bundle, &process(&["sh", "-c", script]))?;
    // A link, as in runc's containers, to what is masked.
    let core = if Path::new("/proc/kcore").exists() { "core " } else { "" };
    // One of runc's default devices.
    let tunnel = if fs::read_to_string("/proc/misc")?.contains(" tun\n") { "opened c 10 200\n" } else { "" };
    ensure_eq!(
        text.trim(),
        format!("{tunnel}4\n{core}fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero"),
        "devices"
    );
    bed.end(&bundle)
}

/// Whoever holds a descriptor of a device, or sees it in place of a masked file, may change its mode and owner: the host's is everybody's.
pub fn the_null_device_is_not_the_hosts(bed: &mut Bed<'_>) -> Result<()> {
    let owner = || -> Result<(u32, u32, u32)> {
        let device = fs::metadata("/dev/null")?;
        Ok((device.mode() & 0o7777, device.uid(), device.gid()))
    };
    let before = owner()?;
    let change = "for f in /proc/self/fd/0 /proc/self/fd/1 /proc/self/fd/2 /proc/kcore /proc/keys /proc/timer_list; do \
        [ -c $f ] && chmod 604 $f; [ -c $f ] && chown 5:6 $f; done";
    let mut bundle = bed.bundle("a", &["sh", "-c", &format!("{change}; echo done >/done; exec sleep 1000")])?;
    let rights = json!(["CAP_CHOWN", "CAP_FOWNER", "CAP_DAC_OVERRIDE"]);
    let allow = |process: &mut Value| {
        for set in ["bounding", "effective", "permitted"] {
            process["capabilities"][set] = rights.clone();
        }
    };
    bundle.edit(|spec| allow(&mut spec["process"]))?;
    bed.quiet();
    bed.running(&bundle)?;
    eventually("the first process has tried", SOON, || bundle.written("done").exists())?;
    let mut exec = process(&["sh", "-c", &format!("{change}; for n in 0 1 2; do [ -c /proc/self/fd/$n ] && echo null >>/out; done")]);
    allow(&mut exec);
    let seen = exec_output(bed, &bundle, &exec)?;
    let after = owner()?;
    fs::set_permissions("/dev/null", fs::Permissions::from_mode(before.0))?;
    chown("/dev/null", Some(before.1), Some(before.2))?;
    ensure_eq!(after, before, "mode and owner of the host's /dev/null");
    ensure_eq!(seen, "null\nnull\nnull\n", "the streams");
    bed.end(&bundle)
}

pub fn sysctls_stay_inside(bed: &mut Bed<'_>) -> Result<()> {
    let keys = [
        ("net.ipv4.ip_unprivileged_port_start", "123"),
        ("kernel.shmmni", "1234"),
        ("net.ipv4.ip_forward", "1"),
        ("fs.mqueue.msg_max", "12"),
    ];
    let path = |key: &str| format!("/proc/sys/{}", key.replace('.', "/"));
    let host = || keys.map(|(key, _)| fs::read_to_string(path(key)).unwrap_or_default());
    let before = host();
    let script = keys.map(|(key, _)| format!("cat {}", path(key))).join("; ");
    let mut bundle = bed.bundle("a", &["sh", "-c", &script])?;
    bundle.edit(|spec| spec["linux"]["sysctl"] = keys.iter().map(|(key, value)| ((*key).to_owned(), json!(value))).collect())?;
    let seen = bed.ran(&bundle)?;
    ensure_eq!(seen.stdout, "123\n1234\n1\n12\n", "values inside, stderr {:?}", seen.stderr);
    ensure_eq!(host(), before, "values of the host");
    Ok(())
}

/// CVE-2016-10124: no session and no terminal of who started it.
pub fn no_controlling_terminal(bed: &mut Bed<'_>) -> Result<()> {
    let bundle = bed.bundle("a", &["sleep", "1000"])?;
    let init = bed.running(&bundle)?;
    let exec = bed.exec_start(&bundle, &process(&["sleep", "1000"]))?;
    for (what, pid) in [("init", init), ("exec", exec.pid)] {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let fields: Vec<&str> = stat.rsplit_once(") ").context(|| "no name".to_owned())?.1.split(' ').collect();
        // state, ppid, pgrp, session, tty
        ensure_eq!(
            (fields[2], fields[3], fields[4]),
            (pid.to_string().as_str(), pid.to_string().as_str(), "0"),
            "group, session and terminal of the {what}"
        );
    }
    ensure_eq!(
        exec_output(bed, &bundle, &process(&["sh", "-c", "(: </dev/tty) 2>/out || echo none >>/out"]))?.lines().last(),
        Some("none"),
        "/dev/tty"
    );
    bed.exec_end(&bundle, exec)?;
    bed.end(&bundle)
}

/// Keys that other runtimes take orders from: none changes what the process may do.
pub fn annotations_change_nothing(bed: &mut Bed<'_>) -> Result<()> {
    let script = "grep -E '^(Cap|Seccomp|NoNew|Uid|Gid|Groups)' /proc/self/status; cut -d' ' -f4- /proc/self/mountinfo | sed 's/,[a-z]*dir=[^ ,]*//g; s/cor[^ ]*//g'; ulimit -a";
    let mut bundle = bed.bundle("a", &["sh", "-c", script])?;
    let plain = bed.ran(&bundle)?;
    let keys = [
        "io.kubernetes.cri-o.UnifiedCgroup",
        "io.kubernetes.cri-o.userns-mode",
        "io.kubernetes.cri-o.seccompNotifierAction",
        "io.kubernetes.cri-o.Devices",
        "org.systemd.property.MemoryMax",
        "run.oci.systemd.subgroup",
        "run.oci.keep_original_groups",
        "run.oci.mount_context_type",
        "run.oci.hooks.stdout",
        "run.oci.delegate-cgroup",
        "run.oci.seccomp_fail_unknown_syscall",
        "run.oci.handler",
        "run.oci.timens_offset",
        "run.oci.pidfd_receiver",
        "run.oci.devices",
        "io.kubernetes.cri.container-type",
        "io.containerd.runc.v2.group",
        "io.katacontainers.config.hypervisor.path",
        "org.criu.config",
        "dev.coracle.privileged",
        "privileged",
        "io.podman.annotations.privileged",
        "io.podman.annotations.seccomp",
        "cgroup.memory.max",
        "seccomp.security.alpha.kubernetes.io/pod",
    ];
    for value in ["true", "1", "/../../x", "unconfined", "memory.max=1", "\u{1b}[31m\nlevel=fatal"] {
        bundle.edit(|spec| spec["annotations"] = keys.iter().map(|key| ((*key).to_owned(), json!(value))).collect())?;
        let with = bed.ran(&bundle)?;
        ensure_eq!((with.status, &with.stdout, &with.stderr), (plain.status, &plain.stdout, &plain.stderr), "with annotations {value:?}");
    }
    Ok(())
}
