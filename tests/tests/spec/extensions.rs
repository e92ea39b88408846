//! Annotations of crun's, which count only where the operator says so.

use std::fs;

use serde_json::json;
use tests::bundle;
use tests::hand::Hand;
use tests::requests::{around, create_with_toml, end, exec_ran, expect_nothing_of, files_of, finish, shim_by};
use tests::rpc::refused;
use tests::{Result, ensure, ensure_eq};
use ttrpc::Code;

const ALLOWED: &str = "CrunAnnotations = true\n";

pub fn of_crun(hand: &mut Hand) -> Result<()> {
    for (name, options, count) in [("a", "", false), ("b", ALLOWED, true)] {
        let mut bundle = hand.bundle(name, &["sleep", "1000"])?;
        let [out, err] = ["out", "err"].map(|file| hand.data().join(format!("{name}.{file}")));
        let hook = json!([{"path": "/bin/busybox", "args": ["sh", "-c", "echo said; echo complained >&2"]}]);
        bundle.edit(|spec| {
            spec["hooks"] = json!({"createRuntime": hook, "poststart": hook});
            spec["annotations"] = json!({"run.oci.keep_original_groups": "1", "run.oci.mount_context_type": "rootcontext",
                "run.oci.hooks.stdout": out.display().to_string(), "run.oci.hooks.stderr": err.display().to_string()});
        })?;
        let shim = shim_by(hand, &bundle, |start| around("setpriv", &["--groups", "5,7"], &start))?;
        create_with_toml(&shim, &bundle, options)??;
        shim.start(&bundle.id, "")?;
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let (said, complained) = if count { ("said\nsaid\n", "complained\ncomplained\n") } else { ("", "") };
        ensure_eq!((read(&out).as_str(), read(&err).as_str()), (said, complained), "what hooks have written");
        let status = fs::read_to_string(format!("/proc/{}/status", shim.state(&bundle.id, "")?.pid))?;
        let groups = status.lines().find_map(|line| line.strip_prefix("Groups:")).unwrap_or_default().trim();
        ensure_eq!(groups, if count { "5 7" } else { "" }, "supplementary groups of the first process");
        // Those of others are theirs to choose.
        let mut process = bundle::process(&["sh", "-c", "id -G >/groups"]);
        process["user"]["additionalGids"] = json!([9]);
        ensure_eq!(exec_ran(&shim, &bundle, "x", &process)?, 0, "exit status");
        ensure_eq!(read(&bundle.written("groups")), "0 9\n", "groups of an exec");
        finish(&shim, &bundle)?;
    }
    Ok(())
}

pub fn malformed(hand: &mut Hand) -> Result<()> {
    let mut bundle = hand.bundle("a", &["sleep", "1000"])?;
    let shim = hand.shim(&bundle)?;
    let files = files_of(&bundle)?;
    for (key, value) in [
        ("run.oci.keep_original_groups", "yes"),
        ("run.oci.mount_context_type", "other"),
        ("run.oci.hooks.stdout", "relative"),
        ("run.oci.hooks.stderr", ""),
    ] {
        bundle.edit(|spec| spec["annotations"] = json!({ key: value }))?;
        refused(create_with_toml(&shim, &bundle, ALLOWED)?, Code::INVALID_ARGUMENT, key)?;
        expect_nothing_of(&bundle, &files)?;
    }
    // Without the option nobody looks at them.
    create_with_toml(&shim, &bundle, "")??;
    ensure!(shim.start(&bundle.id, "").is_ok(), "start");
    end(&shim, &bundle)?;
    shim.shutdown(&bundle.id)
}
