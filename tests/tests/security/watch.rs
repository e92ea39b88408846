//! What the processes of a container see of those that are about to join them.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use serde_json::json;
use tests::bundle::process;
use tests::containerd::eventually;
use tests::hand::Hand;
use tests::requests::{create_request, end, exec_ran, finish, ran};
use tests::{Result, ensure, ensure_eq, paths};

use crate::SOON;

/// CVE-2016-9962, CVE-2019-5736: a process that joins is looked at from its first moment on, by its program, its directories and its
/// descriptors.
pub fn nothing_of_ours_in_a_shared_pid_namespace(hand: &mut Hand) -> Result<()> {
    // What stays of a line is what is no busybox of the image and no null device.
    let look = "while :; do ls -l /proc/[0-9]*/exe /proc/[0-9]*/cwd /proc/[0-9]*/root /proc/[0-9]*/fd/ 2>/dev/null | \
        grep -e ' -> ' | grep -v -e ' -> /bin/busybox$' -e ' -> /$' -e ' -> /dev/null$' -e ' -> pipe:' -e ' -> /proc/[0-9]*/fd$' -e ' -> /seen$' -e ' -> /proc$' >>/seen; \
        : $((n+=1)); echo $n >/rounds; done";
    let bundle = hand.bundle("a", &["sh", "-c", look])?;
    let shim = hand.shim(&bundle)?;
    shim.create_quiet(&bundle)?;
    shim.start(&bundle.id, "")?;
    let rounds = || fs::read_to_string(bundle.written("rounds")).ok().and_then(|text| text.trim().parse::<u32>().ok()).unwrap_or_default();
    eventually("it looks", SOON, || rounds() > 0)?;
    // The two versions of the service start processes by the same code.
    let count = if hand.protocol == tests::start::Protocol::V23 { 300 } else { 50 };
    for _ in 0..count {
        ensure_eq!(exec_ran(&shim, &bundle, "e", &process(&["true"]))?, 0, "status");
    }
    let seen = fs::read_to_string(bundle.written("seen"))?;
    ensure!(rounds() > 5, "it looked only {} times", rounds());
    ensure!(seen.is_empty(), "after {} rounds: {seen}", rounds());
    finish(&shim, &bundle)
}

/// CVE-2019-5736: to execute `/proc/self/exe`, by name or as the interpreter of a script, must not run the shim in the container.
pub fn proc_self_exe_is_not_ours(hand: &mut Hand) -> Result<()> {
    let mut bundle = hand.bundle("a", &["true"])?;
    let binary = paths::shim_binary(hand.protocol.suite())?;
    let before = fs::metadata(&binary)?;
    let shim = hand.shim(&bundle)?;
    let script = bundle.written("script");
    fs::write(&script, "#!/proc/self/exe -v\n")?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
    std::os::unix::fs::symlink("/proc/self/exe", bundle.written("link"))?;
    for args in [["/proc/self/exe", "-v"], ["/proc/thread-self/exe", "-v"], ["/link", "-v"], ["/script", ""]] {
        bundle.edit(|spec| spec["process"]["args"] = json!(args))?;
        if std::env::var_os("TEST_SHOW").is_some() {
            println!("{args:?} {:?}", shim.create(create_request(&bundle)?));
            println!("{args:?} {:?}", shim.start(&bundle.id, ""));
            shim.delete(&bundle.id, "").ok();
        }
        if shim.create(create_request(&bundle)?).is_err() {
            continue;
        }
        if shim.start(&bundle.id, "").is_err() {
            end(&shim, &bundle)?;
            continue;
        }
        end(&shim, &bundle)?;
        let seen = ran(hand, &shim, &bundle)?;
        ensure!(!seen.stdout.contains("coracle") && !seen.stderr.contains("coracle"), "{args:?} ran the shim: {seen:?}");
    }
    ensure_eq!(fs::metadata(&binary)?.len(), before.len(), "size of the shim's binary");
    shim.shutdown(&bundle.id)
}
