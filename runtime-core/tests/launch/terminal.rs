//! Terminals, of a first process and of one that joins.

use serde_json::json;

use super::bed::{Bed, Bundle, Test};

pub const TESTS: &[Test] = &[
    ("a first process has a console of its own devpts", console),
    ("a process that joins has a terminal", joined),
    ("a terminal without devpts is refused by name", without_devpts),
    ("a bound /dev has terminals of its own", bound_dev),
];

const SCRIPT: &str = "tty; stty size; stat -c '%F %u %a %t:%T' /dev/console; stat -L -c %u:%t /proc/self/fd/0; echo x > /dev/tty; \
                      grep -c ' /dev/console ' /proc/self/mountinfo";

fn console(bed: &Bed) {
    let mut bundle = Bundle::new(SCRIPT)
        .with("/process/terminal", json!(true))
        .with("/process/consoleSize", json!({"width": 100, "height": 33}))
        .with("/process/user", json!({"uid": 12, "gid": 12}));
    bundle.terminal = true;
    let output = bundle.output(bed);
    let lines: Vec<&str> = output.lines().collect();
    assert_eq!(lines, ["/dev/pts/0", "33 100", "character special file 12 620 88:0", "12:88", "x", "1"], "{output}");
}

fn joined(bed: &Bed) {
    let bundle = Bundle::new("cat /run/fifo");
    let mut init = bundle.start(bed);
    init.ready();
    let changes = json!({"args": ["sh", "-c", "tty; stty size; stat -L -c %u:%t /proc/self/fd/0; echo x > /dev/tty; kill -9 $$"],
        "terminal": true, "consoleSize": {"width": 80, "height": 24}, "user": {"uid": 12, "gid": 12}});
    let mut joined = bundle.join(bed, &init, changes, true).unwrap();
    joined.console();
    joined.executed();
    let (status, output) = joined.end();
    assert_eq!((status, &*output), (137, "/dev/pts/0\n24 80\n12:88\nx\n"));
    init.kill();
}

fn without_devpts(bed: &Bed) {
    let mut bundle = Bundle::new("").without_mount("/dev/pts").with("/process/terminal", json!(true));
    bundle.terminal = true;
    assert!(bundle.failure(bed).starts_with("process.terminal: no devpts"), "{}", bundle.failure(bed));
}

fn bound_dev(bed: &Bed) {
    let script = "tty; stat -L -c %t /proc/self/fd/0; echo x > /dev/tty; grep -c ' /dev/console ' /proc/self/mountinfo || true";
    let bundle = |source: &str, propagation: &str| {
        let bundle = Bundle::new(script).without_mount("/dev").with("/process/terminal", json!(true));
        let mut bundle = bundle.mount("/dev", "bind", source, &["rbind", propagation]);
        bundle.terminal = true;
        bundle
    };
    let has_console = std::path::Path::new("/dev/console").exists();
    for (propagation, covered) in [("rprivate", has_console), ("rshared", false)] {
        let output = bundle("/dev", propagation).output(bed);
        let lines: Vec<&str> = output.lines().collect();
        assert!(lines[0].starts_with("/dev/pts/"), "{output}");
        assert_eq!(&lines[1..], ["88", "x", if covered { "1" } else { "0" }], "{propagation}: {output}");
        assert_eq!(std::path::Path::new("/dev/console").exists(), has_console);
    }
    let empty = tempfile::tempdir().unwrap();
    let failure = bundle(&empty.path().display().to_string(), "rprivate").failure(bed);
    assert!(failure.ends_with("/dev/pts: no such file or directory"), "{failure}");
    assert_eq!(std::fs::read_dir(empty.path()).unwrap().count(), 0);
}
