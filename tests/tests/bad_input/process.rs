//! The process, its user and its program.

use serde_json::json;
use tests::hand::Hand;
use tests::requests::ran;
use tests::{Result, ensure_eq};
use ttrpc::Code;

use crate::{BAD, refuse_all, spec};

pub fn process(hand: &mut Hand) -> Result<()> {
    let rows = vec![
        spec(|spec| spec["process"]["args"] = json!([]), BAD, &["process.args"]),
        spec(|spec| spec["process"]["args"] = json!([""]), BAD, &["process.args"]),
        spec(|spec| spec["process"]["args"] = json!(["a\u{0}b"]), BAD, &["process.args", "NUL"]),
        spec(|spec| spec["process"]["args"] = json!("true"), BAD, &["spec: process.args"]),
        spec(|spec| spec["process"]["env"] = json!(["A\u{0}=b"]), BAD, &["process.env", "NUL"]),
        spec(|spec| spec["process"]["cwd"] = json!("tmp"), BAD, &["process.cwd", "tmp"]),
        spec(|spec| spec["process"]["cwd"] = json!(""), BAD, &["process.cwd"]),
        spec(|spec| spec["process"]["cwd"] = json!("/bin/busybox"), Code::UNKNOWN, &["/bin/busybox", "not a directory"]),
        spec(|spec| spec["process"]["oomScoreAdj"] = json!(2000), BAD, &["process.oomScoreAdj", "2000"]),
        spec(|spec| spec["hostname"] = json!("x".repeat(100)), Code::UNKNOWN, &["hostname", "xxx"]),
    ];
    refuse_all(hand, rows)
}

pub fn users_and_limits(hand: &mut Hand) -> Result<()> {
    let limit = |kind: &str, soft: u64, hard: u64| json!({"type": kind, "soft": soft, "hard": hard});
    let rows = vec![
        spec(|spec| spec["process"]["user"]["uid"] = json!(u32::MAX), BAD, &["process.user.uid", "4294967295"]),
        spec(|spec| spec["process"]["user"]["gid"] = json!(u32::MAX), BAD, &["process.user.gid", "4294967295"]),
        spec(|spec| spec["process"]["user"]["uid"] = json!(-1), BAD, &["spec: process.user.uid"]),
        spec(|spec| spec["process"]["user"]["uid"] = json!(4_294_967_296u64), BAD, &["spec: process.user.uid"]),
        spec(|spec| spec["process"]["user"]["additionalGids"] = json!([5, u32::MAX]), BAD, &["additionalGids", "4294967295"]),
        spec(move |spec| spec["process"]["rlimits"] = json!([limit("RLIMIT_NOFILE", 10, 5)]), BAD, &["process.rlimits", "above"]),
        spec(
            move |spec| spec["process"]["rlimits"] = json!([limit("RLIMIT_CORE", 0, 0), limit("RLIMIT_CORE", 1, 1)]),
            BAD,
            &["process.rlimits", "twice"],
        ),
        spec(
            move |spec| spec["process"]["rlimits"] = json!([limit("RLIMIT_NONE", 1, 1)]),
            BAD,
            &["spec: process.rlimits[0].type", "RLIMIT_NONE"],
        ),
        // Above fs.nr_open.
        spec(
            move |spec| spec["process"]["rlimits"] = json!([limit("RLIMIT_NOFILE", 4_000_000_000, 4_000_000_000)]),
            Code::UNKNOWN,
            &["NOFILE", "operation not permitted"],
        ),
    ];
    refuse_all(hand, rows)
}

/// The words that Docker makes exit codes 127 and 126 of (`daemon/errors.go`, `translateContainerdStartErr`).
pub fn commands(hand: &mut Hand) -> Result<()> {
    let run = |args: &'static [&'static str], code: Code, words: &[&'static str]| {
        spec(move |spec| spec["process"]["args"] = json!(args), code, words)
    };
    let rows = vec![
        run(&["no-such-program"], Code::NOT_FOUND, &["exec: \"no-such-program\": executable file not found in $PATH"]),
        run(&["/no/such/program"], Code::NOT_FOUND, &["exec: \"/no/such/program\": stat /no/such/program: no such file or directory"]),
        run(&["/bin"], BAD, &["exec: \"/bin\": is a directory"]),
        run(&["/proc/version"], BAD, &["exec: \"/proc/version\": permission denied"]),
        run(&["/bin/busybox/x"], Code::NOT_FOUND, &["/bin/busybox/x"]),
        spec(
            |spec| {
                spec["process"]["env"] = json!(["PATH=/nowhere"]);
                spec["process"]["args"] = json!(["sh"]);
            },
            Code::NOT_FOUND,
            &["exec: \"sh\": executable file not found in $PATH"],
        ),
        spec(|spec| spec["process"]["env"] = json!([]), Code::NOT_FOUND, &["exec: \"true\": executable file not found in $PATH"]),
    ];
    refuse_all(hand, rows)
}

pub fn unknown_capability_only_warns(hand: &mut Hand) -> Result<()> {
    let mut bundle = hand.bundle("a", &["grep", "Cap", "/proc/self/status"])?;
    let shim = hand.shim(&bundle)?;
    let plain = ran(hand, &shim, &bundle)?;
    bundle.edit(|spec| {
        for set in ["bounding", "effective", "permitted", "inheritable", "ambient"] {
            let mut names = spec["process"]["capabilities"][set].as_array().cloned().unwrap_or_default();
            names.push(json!("CAP_FLY"));
            spec["process"]["capabilities"][set] = json!(names);
        }
    })?;
    let with = ran(hand, &shim, &bundle)?;
    ensure_eq!((with.status, &with.stdout), (0, &plain.stdout), "capabilities");
    shim.shutdown(&bundle.id)
}
