//! The program's file, looked at from inside a container.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::json;
use tests::bundle::CAPABILITIES;
use tests::containerd::eventually;
use tests::oci::Oci;
use tests::{Result, ensure, ensure_eq, paths};

use crate::SOON;

/// CVE-2019-5736: a process of a container that is created holds the program of its first process and writes to it when nobody runs it.
pub fn the_program_cannot_be_overwritten(oci: &Oci) -> Result<()> {
    // A copy, which nobody else executes: otherwise ETXTBSY would protect it for ever.
    let program = oci.data().join("coracle");
    fs::copy(paths::shim_dir()?.join("coracle"), &program)?;
    let about = |path: &Path| -> Result<(u64, i64, u32)> {
        let file = fs::metadata(path)?;
        Ok((file.size(), file.ctime_nsec(), file.mode()))
    };
    let before = about(&program)?;
    let mut bundle = oci.bundle("a", &["sleep", "1000"])?;
    bundle.edit(|spec| {
        let all: Vec<&str> = [CAPABILITIES.as_slice(), &["CAP_SYS_PTRACE", "CAP_SYS_ADMIN"]].concat();
        spec["process"]["capabilities"] = json!({"bounding": all, "effective": all, "permitted": all});
    })?;
    let run = |args: &[&str]| -> Result<()> {
        let mut command = Command::new(&program);
        command.arg("--root").arg(oci.dir().join("state")).args(args);
        let status = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status()?;
        ensure!(status.success(), "{args:?}: {status}");
        Ok(())
    };
    run(&["create", "-b", &bundle.dir.display().to_string(), &bundle.id])?;
    let attack = "exec 9</proc/1/exe && echo held >/said; until [ -e /go ]; do sleep 0.05; done; \
        (: >>/proc/self/fd/9) 2>>/said; (: >/proc/self/fd/9) 2>>/said; chmod 777 /proc/self/fd/9 2>>/said; echo done >>/said";
    run(&["exec", "-d", &bundle.id, "sh", "-c", attack])?;
    let said = || fs::read_to_string(bundle.dir.join("rootfs/said")).unwrap_or_default();
    eventually("the program is held", SOON, || said().starts_with("held"))?;
    run(&["start", &bundle.id])?;
    fs::write(bundle.dir.join("rootfs/go"), "")?;
    eventually("the attack is over", SOON, || said().ends_with("done\n"))?;
    ensure_eq!(said().matches("Read-only file system").count(), 3, "{}", said());
    ensure_eq!(about(&program)?, before, "the program after: {}", said());
    run(&["delete", "-f", &bundle.id])
}

/// Programs that have lost their path start themselves by a descriptor, here with none of the standard streams open.
pub fn started_by_a_descriptor(oci: &Oci) -> Result<()> {
    let bundle = oci.bundle("a", &["sh", "-c", "exec 3>/ran; echo yes >&3"])?;
    let (program, root) = (paths::shim_dir()?.join("coracle"), oci.dir().join("state"));
    let run = format!("exec /proc/self/fd/9 --root {} run -b {} {}", root.display(), bundle.dir.display(), bundle.id);
    let script = format!("exec 9<{} <&- >&- 2>&-; {run}", program.display());
    ensure!(Command::new("sh").args(["-c", &script]).status()?.success(), "run");
    ensure_eq!(fs::read_to_string(bundle.dir.join("rootfs/ran"))?, "yes\n", "what the container has written");
    Ok(())
}
