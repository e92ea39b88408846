//! What the processes of a container see of those that are about to join them.

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};

use serde_json::json;
use tests::bed::Bed;
use tests::bundle::process;
use tests::containerd::eventually;
use tests::hand::Hand;
use tests::requests::{create_request, end, ran, running};
use tests::start::Protocol;
use tests::{Result, ensure, ensure_eq, paths};

use crate::SOON;

/// CVE-2016-9962, CVE-2019-5736: a process that joins is looked at from its first moment on, by its program, its directories and its
/// descriptors.
pub fn nothing_of_ours_in_a_shared_pid_namespace(bed: &mut Bed<'_>) -> Result<()> {
    // What stays of a line is what is no busybox of the image and no null device.
    let look = "while :; do ls -l /proc/[0-9]*/exe /proc/[0-9]*/cwd /proc/[0-9]*/root /proc/[0-9]*/fd/ 2>/dev/null | \
        grep -e ' -> ' | grep -v -e ' -> /bin/busybox$' -e ' -> /$' -e ' -> /dev/null$' -e ' -> pipe:' -e ' -> /proc/[0-9]*/fd$' -e ' -> /seen$' -e ' -> /proc$' >>/seen; \
        echo >>/rounds; done";
    let bundle = bed.bundle("a", &["sh", "-c", look])?;
    bed.quiet();
    bed.running(&bundle)?;
    let rounds = || fs::read(bundle.written("rounds")).map_or(0, |lines| lines.len());
    eventually("it looks", SOON, || rounds() > 0)?;
    // The two versions of the service start processes by the same code.
    let count = if bed.hand().is_some_and(|hand| hand.protocol == Protocol::V17) { 50 } else { 300 };
    for _ in 0..count {
        ensure_eq!(bed.exec(&bundle, &process(&["true"]))?.status, 0, "status");
    }
    let seen = fs::read_to_string(bundle.written("seen"))?;
    ensure!(rounds() > 5, "it looked only {} times", rounds());
    ensure!(seen.is_empty(), "after {} rounds: {seen}", rounds());
    bed.end(&bundle)
}

/// CVE-2019-5736: what executes `/proc/self/exe`, by name or as the interpreter of a script, may hold the shim's file as its program. It
/// must not be able to write to it, not even when no shim runs.
pub fn proc_self_exe_cannot_be_written(hand: &mut Hand) -> Result<()> {
    let (mut bundle, shim) = running(hand, &["sleep", "1000"])?;
    let binary = paths::shim_binary(hand.protocol.suite())?;
    let before = fs::metadata(&binary)?;
    // A shim of the debug build is loaded by what the image has in place of its loader, one of the release build is static.
    for loader in ["lib64/ld-linux-x86-64.so.2", "lib/ld-linux-aarch64.so.1"] {
        let loader = bundle.written(loader);
        fs::create_dir_all(loader.parent().unwrap_or(&loader))?;
        fs::copy("/bin/busybox", loader)?;
    }
    end(&shim, &bundle)?;
    let script = bundle.written("script");
    fs::write(&script, "#!/proc/self/exe -v\n")?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
    std::os::unix::fs::symlink("/proc/self/exe", bundle.written("sh"))?;
    let write = "echo ran; : >>/proc/$$/exe";
    for args in [vec!["/proc/self/exe", "-v"], vec!["/script"], vec!["/sh", "-c", write]] {
        bundle.edit(|spec| spec["process"]["args"] = json!(args))?;
        if shim.create(create_request(&bundle)?).is_err() {
            continue;
        }
        let started = shim.start(&bundle.id, "").is_ok();
        end(&shim, &bundle)?;
        if started {
            let seen = ran(hand, &shim, &bundle)?;
            let refused = ["Read-only file system", "Text file busy"].iter().any(|text| seen.stderr.contains(text));
            ensure!(!seen.stdout.contains("ran") || refused, "{args:?} could write to the shim's program: {seen:?}");
        }
    }
    // What a container could have kept: a handle, used when no shim runs any more.
    let pids = hand.shim_pids();
    let handle = |pid: &u32| fs::File::options().read(true).custom_flags(libc::O_PATH).open(format!("/proc/{pid}/exe"));
    let handles = pids.iter().map(handle).collect::<std::io::Result<Vec<_>>>()?;
    ensure!(handles.len() >= 2, "the shim is {pids:?}");
    shim.shutdown(&bundle.id)?;
    eventually("the shim is gone", SOON, || hand.shim_pids().is_empty())?;
    for handle in handles {
        let flags = rustix::fs::fstatvfs(&handle)?.f_flag;
        ensure!(flags.contains(rustix::fs::StatVfsMountFlags::RDONLY), "the shim's program is on a mount with {flags:?}");
        // A shim of another case keeps the file busy.
        let opened = fs::File::options().append(true).open(format!("/proc/self/fd/{}", handle.as_raw_fd()));
        let errno = opened.err().and_then(|error| error.raw_os_error());
        ensure!(matches!(errno, Some(libc::EROFS | libc::ETXTBSY)), "errno of opening the shim's program: {errno:?}");
    }
    let after = fs::metadata(&binary)?;
    ensure_eq!((after.len(), after.modified()?), (before.len(), before.modified()?), "size and time of the shim's file");
    Ok(())
}
