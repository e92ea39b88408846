//! Who the program is and what it may do, read back from proc(5).

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::bed::{Bed, Bundle, Test};

pub const TESTS: &[Test] = &[
    ("user, groups and umask are exactly the spec's", identity),
    ("five sets of capabilities are exactly the spec's", capabilities),
    ("without capabilities there are none", no_capabilities),
    ("no_new_privs and a filter, in either order", filter),
    ("limits hold, also those that leave no descriptor", limits),
    ("the oom score is the spec's", oom_score),
    ("the environment is exactly the spec's", environment),
    ("a session and a keyring of its own", session),
    ("streams belong to the user", streams),
];

const STATUS: &str = "cat /proc/self/status";

/// The fields of `/proc/self/status`.
pub fn status(text: &str) -> BTreeMap<&str, String> {
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name, value.split_ascii_whitespace().collect::<Vec<_>>().join(" ")))
        .collect()
}

fn identity(bed: &Bed) {
    let user = json!({"uid": 1000, "gid": 100, "umask": 0o27, "additionalGids": [7, 5, 5]});
    let output = Bundle::new(STATUS).with("/process/user", user).output(bed);
    let status = status(&output);
    assert_eq!((&*status["Uid"], &*status["Gid"]), ("1000 1000 1000 1000", "100 100 100 100"));
    // The kernel keeps them sorted, duplicates and all.
    assert_eq!((&*status["Groups"], &*status["Umask"]), ("5 5 7", "0027"));
    let root = Bundle::new(STATUS).output(bed);
    let root = self::status(&root);
    assert_eq!((&*root["Uid"], &*root["Groups"], &*root["Umask"]), ("0 0 0 0", "", "0022"));
}

fn sets(status: &BTreeMap<&str, String>) -> [u64; 5] {
    ["CapBnd", "CapEff", "CapPrm", "CapInh", "CapAmb"].map(|name| u64::from_str_radix(&status[name], 16).unwrap())
}

fn capabilities(bed: &Bed) {
    let (chown, kill, net_raw) = (1 << 0, 1 << 5, 1 << 13);
    let given = json!({"bounding": ["CAP_CHOWN", "CAP_KILL", "CAP_NET_RAW"], "permitted": ["CAP_KILL", "CAP_NET_RAW"],
        "effective": ["CAP_KILL"], "inheritable": ["CAP_NET_RAW"], "ambient": ["CAP_NET_RAW"]});
    let user = Bundle::new(STATUS).with("/process/capabilities", given).with("/process/user", json!({"uid": 5, "gid": 5}));
    // execve(2) of another user keeps what is ambient.
    let output = user.output(bed);
    assert_eq!(sets(&status(&output)), [chown | kill | net_raw, net_raw, net_raw, net_raw, net_raw]);
    // Root's program gets what is bounded and permitted by its file, capabilities(7).
    let plain = json!({"bounding": ["CAP_CHOWN", "CAP_KILL"], "permitted": ["CAP_CHOWN", "CAP_KILL"], "effective": ["CAP_KILL"]});
    let output = Bundle::new(STATUS).with("/process/capabilities", plain.clone()).output(bed);
    assert_eq!(sets(&status(&output)), [chown | kill, chown | kill, chown | kill, 0, 0]);
    let output = user.with("/process/capabilities", plain).output(bed);
    assert_eq!(sets(&status(&output)), [chown | kill, 0, 0, 0, 0]);
}

fn no_capabilities(bed: &Bed) {
    let mut bundle = Bundle::new(STATUS);
    bundle.spec["process"].as_object_mut().unwrap().remove("capabilities");
    assert_eq!(sets(&status(&bundle.output(bed))), [0; 5]);
    let joined = bundle.with("/process/capabilities", json!({}));
    assert_eq!(sets(&status(&joined.output(bed))), [0; 5]);
}

pub fn default_profile() -> Value {
    serde_json::from_str(include_str!("../../testdata/seccomp-default-amd64.json")).unwrap()
}

fn filter(bed: &Bed) {
    for privileges in [true, false] {
        let bundle = Bundle::new(STATUS).with("/linux/seccomp", default_profile()).with("/process/noNewPrivileges", json!(privileges));
        for uid in [0, 1000] {
            let bundle = Bundle { directory: tempfile::tempdir().unwrap(), spec: bundle.spec.clone(), ..Bundle::new("") };
            super::bed::fill(&bundle.root());
            let output = bundle.with("/process/user", json!({"uid": uid, "gid": uid})).output(bed);
            let status = status(&output);
            assert_eq!((&*status["Seccomp"], &*status["Seccomp_filters"]), ("2", "1"));
            assert_eq!(status["NoNewPrivs"], if privileges { "1" } else { "0" });
        }
    }
}

fn limits(bed: &Bed) {
    // Raising a hard limit takes CAP_SYS_RESOURCE, which whoever runs the tests may lack.
    let rlimits = json!([{"type": "RLIMIT_NOFILE", "soft": 3, "hard": 3}, {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
        {"type": "RLIMIT_NPROC", "soft": 99, "hard": 999}]);
    let bundle = Bundle::new("ulimit -n; ulimit -c; ulimit -u").with("/process/rlimits", rlimits).with("/process/cwd", json!("/made"));
    assert_eq!(bundle.output(bed), "3\n0\n99\n");
}

fn oom_score(bed: &Bed) {
    // Lowering it takes CAP_SYS_RESOURCE, which whoever runs the tests may lack.
    for score in [7, 93, 1000] {
        let output = Bundle::new("cat /proc/self/oom_score_adj").with("/process/oomScoreAdj", json!(score)).output(bed);
        assert_eq!(output, format!("{score}\n"));
    }
}

fn environment(bed: &Bed) {
    let given = json!(["PATH=/bin", "A=b c", "A=d", "HOME=/", "LINE=x\ny"]);
    let bundle = Bundle::new("").with("/process/args", json!(["cat", "/proc/self/environ"]));
    let output = bundle.with("/process/env", given).output(bed);
    assert_eq!(output, "PATH=/bin\0A=d\0HOME=/\0LINE=x\ny\0");
}

fn session(bed: &Bed) {
    let output = Bundle::new("cat /proc/self/stat; grep -q ' _ses.t: ' /proc/keys && echo keyring").with("/linux/maskedPaths", json!([]));
    let output = output.output(bed);
    // pid, name, state, parent, group, session, terminal.
    let fields: Vec<&str> = output.split(' ').collect();
    assert_eq!((fields[5], fields[6]), ("1", "0"), "{output}");
    assert!(output.ends_with("\nkeyring\n"), "{output}");
}

fn streams(bed: &Bed) {
    let output = Bundle::new("stat -L -c %u /proc/self/fd/0 /proc/self/fd/1").with("/process/user", json!({"uid": 11, "gid": 0}));
    // The null device stays root's.
    assert_eq!(output.output(bed), "0\n11\n");
}
