//! `ctr` as people use it, on every containerd: each flag is looked at from inside the container.

use std::process::ExitCode;
use std::time::Duration;

use tests::case::words;
use tests::containerd::{Version, eventually};
use tests::events::Kind;
use tests::suite::Suite;
use tests::{Case, Context, Result, cases, ensure, ensure_eq, image, paths, proc};

fn main() -> ExitCode {
    Suite {
        name: "ctr_basic",
        parallel: 2,
        cases: cases![
            run_rm,
            run_tty,
            run_detached,
            stdin_reaches_the_container,
            exec,
            exec_tty,
            exec_detached,
            kill_signals,
            pause_and_resume,
            ps,
            metrics,
            delete,
            attach,
            memory_limit,
            cpus,
            seccomp,
            read_only,
            mounts,
            user,
            capabilities,
            privileged,
            own_network,
            host_network,
            environment_and_cwd,
            device,
            rootfs,
            without_pivot,
            layers_on_overlayfs,
            layers_copied_by_native,
            missing_command,
            command_not_executable,
        ],
    }
    .main()
}

/// Long enough for a loaded machine, short enough to notice a hang.
const SOON: Duration = Duration::from_secs(10);

fn run_rm(case: &Case<'_>) -> Result<()> {
    ensure_eq!(case.run(&[], &["echo", "hello"])?, "hello", "stdout");
    let failed = case.try_run(&[], &["sh", "-c", "echo out; echo err >&2; exit 7"])?;
    ensure_eq!((failed.code, failed.stdout.as_str(), failed.stderr.as_str()), (7, "out\n", "err\n"), "code and streams");
    let killed = case.try_run(&[], &["sh", "-c", "sh -c 'kill -9 $$'; exit $?"])?;
    ensure_eq!(killed.code, 137, "code of a killed child");
    ensure_eq!(case.run(&[], &["sh", "-c", "echo $$"])?, "1", "pid inside");
    Ok(())
}

fn run_tty(case: &Case<'_>) -> Result<()> {
    let args = case.run_args(&["--rm"], &["--tty"], &image::name(1), &case.id("t"), &["sh", "-c", "tty; while read word; do $word; done"]);
    let mut terminal = case.ctr().on_terminal(&words(&args), 31, 97)?;
    terminal.expect("/dev/pts/0", SOON)?;
    // ctr sets the size after the start, so it may come a moment later than the first output.
    terminal.send("stty size\n")?;
    if terminal.expect("31 97", Duration::from_secs(2)).is_err() {
        terminal.send("stty size\n")?;
        terminal.expect("31 97", SOON)?;
    }
    let mut resized = false;
    for _ in 0..20 {
        // ctr reads the size before it listens for changes, so one that comes in between is lost; the kernel tells only of changes.
        terminal.resize(41, 100)?;
        terminal.resize(41, 101)?;
        terminal.send("stty size\n")?;
        resized = terminal.expect("41 101", Duration::from_millis(250)).is_ok();
        if resized {
            break;
        }
    }
    ensure!(resized, "the container's terminal did not follow the resize");
    terminal.send("exit\n")?;
    let (shown, code) = terminal.finish(SOON)?;
    ensure_eq!(code, 0, "exit code after {shown:?}");
    Ok(())
}

fn run_detached(case: &Case<'_>) -> Result<()> {
    let id = case.detached(&[], &["sh", "-c", "echo started; exec sleep 1000"])?;
    ensure_eq!(case.ctr().status(&id)?.as_deref(), Some("RUNNING"), "status");
    eventually("the output is in the file", SOON, || case.output(&id).is_ok_and(|text| text == "started\n"))?;
    let process = proc::process(case.ctr().pid(&id)?).context(|| "the pid of ctr task ls is no process".to_owned())?;
    ensure!(process.command_line.contains("sleep 1000") || process.name == "sh", "pid {} is {}", process.pid, process.command_line);
    Ok(())
}

fn stdin_reaches_the_container(case: &Case<'_>) -> Result<()> {
    let args = case.run_args(&["--rm"], &[], &image::name(1), &case.id("i"), &["wc", "-c"]);
    let mut command = case.ctr().command(&words(&args))?;
    let input = case.path("input")?;
    std::fs::write(&input, vec![b'x'; 300_000])?;
    let done = tests::command::run(command.stdin(std::fs::File::open(input)?))?;
    ensure_eq!((done.code, done.stdout.trim()), (0, "300000"), "bytes read to the end of stdin, stderr {:?}", done.stderr);
    Ok(())
}

fn exec(case: &Case<'_>) -> Result<()> {
    let id = case.detached(&["--env", "FROM_RUN=1"], &["sleep", "1000"])?;
    ensure_eq!(
        case.exec(&id, &["sh", "-c", "echo $FROM_RUN; cat /proc/1/cmdline | tr '\\0' ' '"])?,
        "1\nsleep 1000",
        "environment and pid 1"
    );
    let failed = case.ctr().run(&words(&case.exec_args(&id, &[], &["sh", "-c", "echo err >&2; exit 9"])))?;
    ensure_eq!((failed.code, failed.stderr.as_str()), (9, "err\n"), "code and stderr");
    let user = case.ctr().ok(&words(&case.exec_args(&id, &["--user", "1000", "--cwd", "/tmp"], &["sh", "-c", "id -u; pwd"])))?;
    ensure_eq!(user, "1000\n/tmp", "--user and --cwd");
    let missing = case.ctr().run(&words(&case.exec_args(&id, &[], &["/no/such/program"])))?;
    ensure!(missing.code != 0 && missing.stderr.contains("/no/such/program"), "a missing program: {missing:?}");
    // The cgroup is the container's own.
    let inside = case.exec(&id, &["cat", "/proc/self/cgroup"])?;
    let init = case.exec(&id, &["cat", "/proc/1/cgroup"])?;
    ensure_eq!(inside, init, "cgroup of an exec");
    Ok(())
}

fn exec_tty(case: &Case<'_>) -> Result<()> {
    let id = case.detached(&[], &["sleep", "1000"])?;
    let args = case.exec_args(&id, &["--tty"], &["sh", "-c", "tty; read word; echo got $word; exit 5"]);
    let mut terminal = case.ctr().on_terminal(&words(&args), 24, 80)?;
    terminal.expect("/dev/pts/0", SOON)?;
    terminal.send("word\n")?;
    terminal.expect("got word", SOON)?;
    ensure_eq!(terminal.finish(SOON)?.1, 5, "exit code");
    Ok(())
}

fn exec_detached(case: &Case<'_>) -> Result<()> {
    let id = case.detached(&[], &["sleep", "1000"])?;
    case.ctr().ok(&words(&case.exec_args(&id, &["--detach"], &["sh", "-c", "echo done >/tmp/mark; sleep 500"])))?;
    eventually("the detached exec wrote its mark", SOON, || case.exec(&id, &["cat", "/tmp/mark"]).is_ok_and(|text| text == "done"))
}

fn kill_signals(case: &Case<'_>) -> Result<()> {
    let trap = "trap 'echo usr1' USR1; trap 'echo term; exit 3' TERM; echo ready; while :; do sleep 1000 & wait; done";
    let id = case.detached(&[], &["sh", "-c", trap])?;
    eventually("the trap is set", SOON, || case.output(&id).is_ok_and(|text| text == "ready\n"))?;
    case.ctr().ok(&["task", "kill", "--signal", "SIGUSR1", &id])?;
    eventually("USR1 arrived", SOON, || case.output(&id).is_ok_and(|text| text.ends_with("usr1\n")))?;
    case.ctr().ok(&["task", "kill", &id])?;
    case.ctr().wait_status(&id, "STOPPED", SOON)?;
    ensure_eq!(case.output(&id)?, "ready\nusr1\nterm\n", "output");
    ensure_eq!(case.events.wait(&id, Kind::Exit, SOON)?.status, 3, "exit status");
    let stubborn = case.detached(&[], &["sh", "-c", "trap '' TERM; echo ready; while :; do sleep 1; done"])?;
    eventually("TERM is ignored", SOON, || case.output(&stubborn).is_ok_and(|text| text == "ready\n"))?;
    case.ctr().ok(&["task", "kill", "--signal", "KILL", &stubborn])?;
    case.ctr().wait_status(&stubborn, "STOPPED", SOON)?;
    ensure_eq!(case.events.wait(&stubborn, Kind::Exit, SOON)?.status, 137, "exit status after SIGKILL");
    Ok(())
}

fn pause_and_resume(case: &Case<'_>) -> Result<()> {
    let id = case.detached(&[], &["sh", "-c", "i=0; while :; do i=$((i+1)); echo $i >/count; done"])?;
    let count = || -> Result<u64> {
        let pid = case.ctr().pid(&id)?;
        let text = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // utime, the fourteenth field, the twelfth after the name.
        let field = text.rsplit_once(')').and_then(|(_, tail)| tail.split_whitespace().nth(11)).context(|| format!("stat {text:?}"))?;
        Ok(field.parse()?)
    };
    let start = count()?;
    eventually("it runs", SOON, || count().is_ok_and(|now| now > start))?;
    case.ctr().ok(&["task", "pause", &id])?;
    ensure_eq!(case.ctr().status(&id)?.as_deref(), Some("PAUSED"), "status");
    let paused = count()?;
    tests::wait::pause_for(Duration::from_millis(500));
    ensure_eq!(count()?, paused, "user time while paused");
    case.ctr().ok(&["task", "resume", &id])?;
    ensure_eq!(case.ctr().status(&id)?.as_deref(), Some("RUNNING"), "status");
    eventually("it runs again", SOON, || count().is_ok_and(|now| now > paused))
}

fn ps(case: &Case<'_>) -> Result<()> {
    let id = case.detached(&[], &["sh", "-c", "sleep 1000 & sleep 1000 & wait"])?;
    let pids = || -> Result<Vec<u32>> {
        let list = case.ctr().ok(&["task", "ps", &id])?;
        Ok(list.lines().filter_map(|line| line.split_whitespace().next()?.parse().ok()).collect())
    };
    eventually("three processes are listed", SOON, || pids().is_ok_and(|pids| pids.len() == 3))?;
    let init = case.ctr().pid(&id)?;
    for pid in pids()? {
        let process = proc::process(pid).context(|| format!("listed pid {pid} is no process"))?;
        ensure!(pid == init || process.parent == init, "{pid} is not of the container: {process:?}");
    }
    Ok(())
}

fn metrics(case: &Case<'_>) -> Result<()> {
    let id = case.detached(&[], &["sh", "-c", "head -c 8000000 /dev/zero >/tmp/file; while :; do :; done"])?;
    let value = |keys: &[&str]| -> Result<u64> {
        let table = case.ctr().ok(&["task", "metrics", &id])?;
        let line = table.lines().find(|line| line.split_whitespace().next().is_some_and(|word| keys.contains(&word)));
        let number = line.and_then(|line| line.split_whitespace().nth(1)).context(|| format!("none of {keys:?} in {table}"))?;
        Ok(number.parse()?)
    };
    // The names of v1's and of v2's message.
    let memory = ["memory.usage_in_bytes", "memory.usage"];
    let cpu = ["cpuacct.usage", "cpu.usage_usec"];
    let pids = ["pids.current"];
    eventually("the file's pages are counted", SOON, || value(&memory).is_ok_and(|bytes| bytes > 7_000_000))?;
    eventually("one process is counted", SOON, || value(&pids).is_ok_and(|pids| pids == 1))?;
    let before = value(&cpu)?;
    eventually("cpu time grows", SOON, || value(&cpu).is_ok_and(|now| now > before))
}

fn delete(case: &Case<'_>) -> Result<()> {
    let id = case.detached(&[], &["sleep", "1000"])?;
    case.ctr().refused(&["task", "rm", &id], "unning")?;
    ensure_eq!(case.ctr().status(&id)?.as_deref(), Some("RUNNING"), "a refused delete changes nothing");
    case.ctr().ok(&["task", "kill", "--signal", "KILL", &id])?;
    case.ctr().wait_status(&id, "STOPPED", SOON)?;
    case.ctr().ok(&["task", "rm", &id])?;
    ensure_eq!(case.events.wait(&id, Kind::Exit, SOON)?.status, 137, "exit status");
    ensure_eq!(case.ctr().status(&id)?, None, "no task is left");
    ensure!(!case.containerd.bundle(&id).exists(), "the bundle is left");
    case.ctr().refused(&["task", "kill", &id], "not found")?;
    // The container stays and can have a task again.
    case.ctr().ok(&["task", "start", "--null-io", "--detach", &id])?;
    ensure_eq!(case.ctr().status(&id)?.as_deref(), Some("RUNNING"), "status of the second task");
    Ok(())
}

fn attach(case: &Case<'_>) -> Result<()> {
    let id = case.id("a");
    let args = case.run_args(
        &["--tty"],
        &[],
        &image::name(1),
        &id,
        &["sh", "-c", "while read word; do echo got $word; [ $word != end ] || exit 6; done"],
    );
    let mut first = case.ctr().on_terminal(&words(&args), 24, 80)?;
    first.send("one\n")?;
    first.expect("got one", SOON)?;
    first.kill()?;
    ensure_eq!(case.ctr().status(&id)?.as_deref(), Some("RUNNING"), "the container lives without its client");
    let mut second = case.ctr().on_terminal(&["task", "attach", &id], 24, 80)?;
    second.send("two\n")?;
    second.expect("got two", SOON)?;
    second.send("end\n")?;
    ensure_eq!(second.finish(SOON)?.1, 6, "exit code of attach");
    Ok(())
}

fn memory_limit(case: &Case<'_>) -> Result<()> {
    let id = case.detached(&["--memory-limit", "33554432"], &["sleep", "1000"])?;
    ensure_eq!(cgroup_value(case, &id, "memory", &["memory.limit_in_bytes", "memory.max"])?, "33554432", "limit");
    Ok(())
}

fn cpus(case: &Case<'_>) -> Result<()> {
    let id = case.detached(&["--cpus", "0.25"], &["sleep", "1000"])?;
    let quota = cgroup_value(case, &id, "cpu", &["cpu.cfs_quota_us", "cpu.max"])?;
    ensure!(["25000", "25000 100000"].contains(&quota.as_str()), "quota {quota:?} of a period of 100000");
    Ok(())
}

/// The first of these files in the cgroup of a container's init, as the host sees it.
fn cgroup_value(case: &Case<'_>, id: &str, controller: &str, files: &[&str]) -> Result<String> {
    let dir = proc::cgroup_of(case.ctr().pid(id)?, controller)?;
    ensure!(dir.ends_with(id), "the cgroup {} is not named after the container", dir.display());
    let text = files.iter().find_map(|file| std::fs::read_to_string(dir.join(file)).ok());
    Ok(text.context(|| format!("none of {files:?} in {}", dir.display()))?.trim().to_owned())
}

fn seccomp(case: &Case<'_>) -> Result<()> {
    let probe = "grep Seccomp: /proc/self/status; unshare -U true 2>&1";
    let with = case.try_run(&["--seccomp"], &["sh", "-c", probe])?;
    ensure!(with.stdout.contains("Seccomp:\t2") && with.code != 0, "filtered, and no new user namespace: {with:?}");
    ensure!(with.stdout.contains("not permitted"), "EPERM from the profile: {with:?}");
    let without = case.try_run(&[], &["grep", "Seccomp:", "/proc/self/status"])?;
    ensure!(without.stdout.contains("Seccomp:\t0"), "no filter without the flag: {without:?}");
    let profile = case.path("profile")?;
    let text = r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO","errnoRet":28}]}"#;
    std::fs::write(&profile, text)?;
    let own = case.try_run(&["--seccomp", "--seccomp-profile", &profile.to_string_lossy()], &["mkdir", "/tmp/new"])?;
    ensure!(own.code != 0 && own.stderr.contains("No space left"), "the profile's own errno: {own:?}");
    Ok(())
}

fn read_only(case: &Case<'_>) -> Result<()> {
    let refused = case.try_run(&["--read-only"], &["touch", "/file"])?;
    ensure!(refused.code != 0 && refused.stderr.contains("Read-only file system"), "{refused:?}");
    ensure_eq!(
        case.run(&["--read-only"], &["sh", "-c", "echo yes >/dev/shm/file && cat /dev/shm/file"])?,
        "yes",
        "a tmpfs is still writable"
    );
    Ok(())
}

fn mounts(case: &Case<'_>) -> Result<()> {
    let dir = case.path("shared")?;
    std::fs::create_dir_all(&dir)?;
    std::fs::write(dir.join("in"), "from the host\n")?;
    let bind = |options: &str| format!("type=bind,src={},dst=/shared/deep,options={options}", dir.display());
    let script = "cat /shared/deep/in; echo back >/shared/deep/out";
    ensure_eq!(case.run(&["--mount", &bind("rbind:rw")], &["sh", "-c", script])?, "from the host", "a bind mount");
    ensure_eq!(std::fs::read_to_string(dir.join("out"))?, "back\n", "what the container wrote");
    let refused = case.try_run(&["--mount", &bind("rbind:ro")], &["touch", "/shared/deep/no"])?;
    ensure!(refused.code != 0 && refused.stderr.contains("Read-only file system"), "ro: {refused:?}");
    let options = case.run(&["--mount", &bind("rbind:nosuid:noexec:nodev")], &["grep", " /shared/deep ", "/proc/self/mounts"])?;
    ensure!(["nosuid", "noexec", "nodev"].iter().all(|word| options.contains(word)), "flags: {options}");
    let tmpfs = case.run(&["--mount", "type=tmpfs,src=tmpfs,dst=/ram,options=size=65536"], &["grep", " /ram ", "/proc/self/mounts"])?;
    ensure!(tmpfs.contains("tmpfs") && tmpfs.contains("size=64k"), "tmpfs: {tmpfs}");
    Ok(())
}

fn user(case: &Case<'_>) -> Result<()> {
    if case.version() == Version::V16 {
        // 1.6 has no --user, so the id goes in by a whole spec; and its refusal of the flag is what is asserted.
        return case
            .ctr()
            .refused(&["run", "--rm", "--user", "1000", &image::name(1), "x", "id"], "flag provided but not defined")
            .map(drop);
    }
    ensure_eq!(case.run(&["--user", "1000:2000"], &["sh", "-c", "id -u; id -g"])?, "1000\n2000", "numbers");
    ensure_eq!(case.run(&["--user", "ada"], &["id", "-un"])?, "ada", "a name of the image");
    let refused = case.try_run(&["--user", "1000"], &["touch", "/file"])?;
    ensure!(refused.code != 0 && refused.stderr.contains("Permission denied"), "root's directory: {refused:?}");
    Ok(())
}

fn capabilities(case: &Case<'_>) -> Result<()> {
    let sets = |flags: &[&str]| -> Result<u64> {
        let line = case.run(flags, &["grep", "CapEff", "/proc/self/status"])?;
        Ok(u64::from_str_radix(line.rsplit('\t').next().unwrap_or_default(), 16)?)
    };
    let (chown, net_raw, sys_time) = (1u64, 1 << 13, 1 << 25);
    let default = sets(&[])?;
    ensure!(default & chown != 0 && default & net_raw != 0 && default & sys_time == 0, "default set {default:x}");
    ensure_eq!(sets(&["--cap-drop", "CAP_NET_RAW"])?, default & !net_raw, "one dropped");
    ensure_eq!(sets(&["--cap-add", "CAP_SYS_TIME"])?, default | sys_time, "one added");
    let refused = case.try_run(&["--cap-drop", "CAP_CHOWN"], &["chown", "1000", "/top"])?;
    ensure!(refused.code != 0 && refused.stderr.contains("not permitted"), "chown without its capability: {refused:?}");
    ensure_eq!(case.run(&[], &["grep", "NoNewPrivs", "/proc/self/status"])?, "NoNewPrivs:\t1", "no_new_privs");
    Ok(())
}

fn privileged(case: &Case<'_>) -> Result<()> {
    let script = "grep CapEff /proc/self/status; ls /dev/kmsg; mkdir /m && mount -t tmpfs none /m && grep -c ' /m ' /proc/mounts; touch /proc/sys/x 2>&1";
    let done = case.try_run(&["--privileged"], &["sh", "-c", script])?;
    let host = std::fs::read_to_string("/proc/self/status")?;
    let all =
        host.lines().find(|line| line.starts_with("CapBnd")).and_then(|line| line.split('\t').nth(1)).context(|| "no CapBnd".to_owned())?;
    ensure!(done.stdout.contains(&format!("CapEff:\t{all}")), "every capability of the host, {all}: {done:?}");
    ensure!(done.stdout.contains("/dev/kmsg\n1\n"), "host devices and mount(2): {done:?}");
    ensure!(!done.stdout.contains("Read-only"), "/proc/sys is writable: {done:?}");
    let plain = case.try_run(&[], &["mount", "-t", "tmpfs", "none", "/tmp"])?;
    ensure!(plain.code != 0, "mount(2) without the flag: {plain:?}");
    Ok(())
}

fn own_network(case: &Case<'_>) -> Result<()> {
    let inside = case.run(&[], &["readlink", "/proc/self/ns/net"])?;
    ensure!(inside != std::fs::read_link("/proc/self/ns/net")?.to_string_lossy(), "the network namespace is the host's");
    let links = case.run(&[], &["ls", "/sys/class/net"])?;
    ensure!(links.split_whitespace().all(|link| link == "lo" || link.ends_with('0')), "links {links:?}");
    Ok(())
}

fn host_network(case: &Case<'_>) -> Result<()> {
    let inside = case.run(&["--net-host"], &["readlink", "/proc/self/ns/net"])?;
    ensure_eq!(inside, std::fs::read_link("/proc/self/ns/net")?.to_string_lossy(), "network namespace");
    Ok(())
}

fn environment_and_cwd(case: &Case<'_>) -> Result<()> {
    let text =
        case.run(&["--env", "A=b c", "--env", "EMPTY=", "--cwd", "/var"], &["sh", "-c", "echo \"$A|${EMPTY-unset}|$FROM_IMAGE\"; pwd"])?;
    ensure_eq!(text, "b c||yes\n/var", "environment and cwd");
    let names = case.run(&[], &["sh", "-c", "env | cut -d= -f1 | sort | tr '\\n' ' '"])?;
    ensure!(!names.contains("TTRPC") && !names.contains("GOMAXPROCS"), "containerd's environment leaks: {names}");
    Ok(())
}

fn device(case: &Case<'_>) -> Result<()> {
    let seen = case.run(
        &["--device", "/dev/kmsg", "--cap-add", "CAP_SYSLOG"],
        &["sh", "-c", "stat -c %F:%t,%T /dev/kmsg && head -c 0 /dev/kmsg && echo opened"],
    )?;
    ensure_eq!(seen, "character special file:1,b\nopened", "the device");
    let missing = case.try_run(&[], &["ls", "/dev/kmsg"])?;
    ensure!(missing.code != 0, "there without the flag: {missing:?}");
    let default = case
        .run(&[], &["sh", "-c", "for d in null zero full random urandom tty; do [ -c /dev/$d ] || echo no $d; done; echo x >/dev/null"])?;
    ensure_eq!(default, "", "default devices");
    Ok(())
}

/// An option of one task. ctr of containerd 1.x, unlike 2.x, sends it to a runtime that is not runc by name in a message of its own.
fn without_pivot(case: &Case<'_>) -> Result<()> {
    let id = case.detached(&["--no-pivot"], &["sleep", "1000"])?;
    ensure_eq!(case.exec(&id, &["cat", "/top"])?, "1", "a file of the image");
    if paths::is_ours() {
        let options = std::fs::read_to_string(case.containerd.bundle(&id).join("options.json"))?;
        ensure!(options.contains(r#""no_pivot_root":true"#), "the options in force are {options}");
    }
    Ok(())
}

fn rootfs(case: &Case<'_>) -> Result<()> {
    let dir = case.path("rootfs")?;
    image::unpack(&dir)?;
    let args = case.run_args(
        &["--rm"],
        &["--rootfs"],
        &dir.to_string_lossy(),
        &case.id("f"),
        &["/bin/sh", "-c", "echo written >/mark; /bin/cat /top"],
    );
    ensure_eq!(case.ctr().ok(&words(&args))?, "1", "a file of the directory");
    ensure_eq!(std::fs::read_to_string(dir.join("mark"))?, "written\n", "what the container wrote");
    Ok(std::fs::remove_dir_all(dir)?)
}

fn layers(case: &Case<'_>, snapshotter: &str, counts: &[usize]) -> Result<()> {
    for count in counts {
        let flags = ["--snapshotter", snapshotter];
        let script = "cat /top; ls /layers | wc -l; echo new >/layers/1; cat /layers/1; rm /layers/1; ls /layers | wc -l";
        let args = case.run_args(&["--rm"], &flags, &image::name(*count), &case.id("l"), &["sh", "-c", script]);
        let expected = format!("{count}\n{count}\nnew\n{}", count - 1);
        ensure_eq!(case.ctr().ok(&words(&args))?, expected, "{count} layers on {snapshotter}");
    }
    Ok(())
}

fn layers_on_overlayfs(case: &Case<'_>) -> Result<()> {
    layers(case, "overlayfs", &image::LAYERS)
}

fn layers_copied_by_native(case: &Case<'_>) -> Result<()> {
    layers(case, "native", &image::LAYERS)
}

fn missing_command(case: &Case<'_>) -> Result<()> {
    let missing = case.try_run(&[], &["/no/such/program"])?;
    ensure!(missing.code != 0, "a missing program: {missing:?}");
    ensure!(missing.stderr.contains("/no/such/program") && missing.stderr.contains("no such file"), "the error names it: {missing:?}");
    let unfound = case.try_run(&[], &["no-such-word"])?;
    ensure!(unfound.stderr.contains("no-such-word") && unfound.stderr.contains("not found"), "the error names it: {unfound:?}");
    Ok(())
}

fn command_not_executable(case: &Case<'_>) -> Result<()> {
    let refused = case.try_run(&[], &["/etc/passwd"])?;
    ensure!(refused.code != 0 && refused.stderr.contains("/etc/passwd") && refused.stderr.contains("ermission denied"), "{refused:?}");
    Ok(())
}
