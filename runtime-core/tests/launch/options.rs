//! Mount options that the kernel knows nothing of, and labels.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown, symlink};

use runtime_core::spec::labels::has_apparmor;
use serde_json::json;

use super::bed::{Bed, Bundle, Test};

pub const TESTS: &[Test] = &[
    ("tmpcopyup: a tmpfs begins with what the image has", copy_up),
    ("tmpcopyup: what does not fit fails", copy_up_too_much),
    ("copy-symlink: a link becomes one", copy_link),
    ("src-nofollow and dest-nofollow: links are mounted and covered themselves", itself),
    ("options that make no sense are refused", misplaced),
    ("a profile that is not loaded fails closed", no_such_profile),
];

fn copy_up(bed: &Bed) {
    let script = "cd /t; stat -c '%n %F %a %u:%g %Y' . a d d/b f s; cat a d/b; readlink s; touch new && rm a && echo writable; \
                  ls /empty /new | grep -c .";
    let bundle = Bundle::new(script)
        .mount("/link", "tmpfs", "tmpfs", &["tmpcopyup", "nosuid"])
        .mount("/empty", "tmpfs", "tmpfs", &["tmpcopyup"])
        .mount("/new", "tmpfs", "tmpfs", &["tmpcopyup", "ro"]);
    let t = bundle.root().join("t");
    fs::create_dir_all(t.join("d")).unwrap();
    fs::create_dir(bundle.root().join("empty")).unwrap();
    symlink("t", bundle.root().join("link")).unwrap();
    fs::write(t.join("a"), "of a\n").unwrap();
    fs::write(t.join("d/b"), "of b\n").unwrap();
    symlink("../nowhere", t.join("s")).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, t.join("f"), rustix::fs::FileType::Fifo, rustix::fs::Mode::from_raw_mode(0o600), 0).unwrap();
    for (name, mode) in [("a", 0o4755), ("d/b", 0o604), ("d", 0o2755), ("f", 0o604), ("", 0o777)] {
        let path = t.join(name);
        chown(&path, Some(3), Some(4)).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000);
        if name != "f" {
            fs::File::open(&path).unwrap().set_modified(time).unwrap();
        }
    }
    let output = bundle.output(bed);
    let lines: Vec<&str> = output.lines().collect();
    assert!(lines[0].starts_with(". directory 777 3:4 "), "{output}");
    assert_eq!(
        lines[1..4],
        ["a regular file 4755 3:4 1000000", "d directory 2755 3:4 1000000", "d/b regular file 604 3:4 1000000"],
        "{output}"
    );
    assert!(lines[4].starts_with("f fifo 604 3:4 ") && lines[5].starts_with("s symbolic link 777 0:0 "), "{output}");
    assert_eq!(lines[6..], ["of a", "of b", "../nowhere", "writable", "2"], "{output}");
    assert!(t.join("a").exists() && !t.join("new").exists(), "the image was written to");
}

fn copy_up_too_much(bed: &Bed) {
    let bundle = Bundle::new("").mount("/t", "tmpfs", "tmpfs", &["tmpcopyup", "size=64k"]);
    fs::create_dir(bundle.root().join("t")).unwrap();
    fs::write(bundle.root().join("t/a"), vec![0; 1 << 20]).unwrap();
    assert_eq!(bundle.failure(bed), "copy \"/t\" to the tmpfs at \"/t\": no space left on device");
}

fn copy_link(bed: &Bed) {
    let directory = tempfile::tempdir().unwrap();
    let (link, file) = (directory.path().join("link"), directory.path().join("file"));
    symlink("some/where", &link).unwrap();
    fs::write(&file, "a file\n").unwrap();
    let [link, file] = [link, file].map(|path| path.display().to_string());
    let script = "readlink /deep/link; readlink /same; cat /file; grep -c link /proc/self/mountinfo";
    let bundle = Bundle::new(&format!("{script}; true"))
        .mount("/deep/link", "bind", &link, &["rbind", "copy-symlink"])
        .mount("/same", "bind", &link, &["bind", "copy-symlink", "ro"])
        .mount("/file", "bind", &file, &["bind", "copy-symlink"]);
    symlink("some/where", bundle.root().join("same")).unwrap();
    assert_eq!(bundle.output(bed), "some/where\nsome/where\na file\n0\n");

    let bundle = Bundle::new("").mount("/other", "bind", &link, &["bind", "copy-symlink"]);
    symlink("else/where", bundle.root().join("other")).unwrap();
    let failure = bundle.failure(bed);
    assert_eq!(failure, format!("attach bind {link:?} at \"/other\": make the symbolic link: file exists"));
}

fn itself(bed: &Bed) {
    let directory = tempfile::tempdir().unwrap();
    let (link, file) = (directory.path().join("link"), directory.path().join("file"));
    symlink("file", &link).unwrap();
    fs::write(&file, "a file\n").unwrap();
    let [link, file] = [link, file].map(|path| path.display().to_string());
    // One follows, one mounts the link, one covers a link with the file, one a link with a link.
    let bundle = Bundle::new("cat /plain; readlink /of; cat /over; readlink /both; cat /target")
        .mount("/plain", "bind", &link, &["bind"])
        .mount("/of", "bind", &link, &["bind", "src-nofollow"])
        .mount("/over", "bind", &file, &["bind", "dest-nofollow"])
        .mount("/both", "bind", &link, &["bind", "src-nofollow", "dest-nofollow"]);
    fs::write(bundle.root().join("target"), "the image's\n").unwrap();
    symlink("target", bundle.root().join("over")).unwrap();
    symlink("target", bundle.root().join("both")).unwrap();
    assert_eq!(bundle.output(bed), "a file\nfile\na file\nfile\nthe image's\n");
}

fn misplaced(bed: &Bed) {
    let cases: [(&str, &[&str], &str); 4] = [
        ("bind", &["tmpcopyup"], "tmpcopyup: only a tmpfs can have it"),
        ("tmpfs", &["copy-symlink"], "copy-symlink/src-nofollow: only a bind can have them"),
        ("tmpfs", &["src-nofollow"], "copy-symlink/src-nofollow: only a bind can have them"),
        ("bind", &["copy-symlink", "dest-nofollow"], "copy-symlink excludes src-nofollow and dest-nofollow"),
    ];
    for (fstype, options, why) in cases {
        let failure = Bundle::new("").mount("/x", fstype, "/usr", options).failure(bed);
        assert_eq!(failure, format!("mounts[\"/x\"]: {why}"));
    }
}

fn no_such_profile(bed: &Bed) {
    let bundle = Bundle::new("touch /ran").with("/process/apparmorProfile", json!("no-such-profile"));
    let failure = bundle.failure(bed);
    assert!(failure.starts_with("process.apparmorProfile: set /proc/self/attr/apparmor/exec to \"exec no-such-profile\": "), "{failure}");
    assert!(!bundle.root().join("ran").exists());
    let bundle = Bundle::new("echo ran").with("/process/apparmorProfile", json!("unconfined"));
    assert_eq!(bundle.output(bed), "ran\n", "AppArmor in force: {}", has_apparmor());
}
