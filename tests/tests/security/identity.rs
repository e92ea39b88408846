//! Who a process is and what it may: users, groups, the five sets of capabilities.

use std::fs;

use serde_json::{Value, json};
use tests::bed::{Bed, refused};
use tests::bundle::{Bundle, process};
use tests::requests::{around, daemon, status_line};
use tests::{Context, Result, ensure_eq};

use crate::inside::exec_output;

const SETS: [(&str, &str); 5] =
    [("inheritable", "CapInh"), ("permitted", "CapPrm"), ("effective", "CapEff"), ("bounding", "CapBnd"), ("ambient", "CapAmb")];

fn mask(numbers: &[u32]) -> String {
    format!("{:016x}", numbers.iter().fold(0u64, |mask, number| mask | 1 << number))
}

/// The five sets of an init and of an exec with these capabilities.
fn expect(bed: &mut Bed<'_>, name: &str, capabilities: &Value, uid: u32, expected: [&[u32]; 5]) -> Result<()> {
    let mut bundle = bed.bundle(name, &["sleep", "1000"])?;
    bundle.edit(|spec| {
        spec["process"]["capabilities"] = capabilities.clone();
        // With it, execve(2) gives root no more than it had.
        spec["process"]["noNewPrivileges"] = json!(false);
        spec["process"]["user"] = json!({"uid": uid, "gid": uid});
    })?;
    let init = bed.running(&bundle)?;
    let mut spec = process(&["sleep", "1000"]);
    spec["noNewPrivileges"] = json!(false);
    (spec["capabilities"], spec["user"]) = (capabilities.clone(), json!({"uid": uid, "gid": uid}));
    let exec = bed.exec_start(&bundle, &spec)?;
    for (what, pid) in [("init", init), ("exec", exec.pid)] {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        for ((_, key), numbers) in SETS.iter().zip(expected) {
            ensure_eq!(status_line(&status, key)?, mask(numbers), "{key} of the {what}, {name}");
        }
    }
    bed.exec_end(&bundle, exec)?;
    bed.end(&bundle)
}

pub fn capabilities(bed: &mut Bed<'_>) -> Result<()> {
    let (chown, kill, raw) = ("CAP_CHOWN", "CAP_KILL", "CAP_NET_RAW");
    // Of root, execve(2) computes permitted and effective from the bounding set.
    let all = json!({"bounding": [chown, kill, raw], "permitted": [chown, kill], "effective": [chown], "inheritable": [], "ambient": []});
    expect(bed, "root", &all, 0, [&[], &[0, 5, 13], &[0, 5, 13], &[0, 5, 13], &[]])?;
    expect(bed, "none", &json!({}), 0, [&[], &[], &[], &[], &[]])?;
    expect(bed, "bounding", &json!({"bounding": [raw]}), 0, [&[], &[13], &[13], &[13], &[]])?;
    // Names without the prefix and in other letters are the same ones.
    let loose = json!({"bounding": ["chown", "Cap_Kill"]});
    expect(bed, "loose", &loose, 0, [&[], &[0, 5], &[0, 5], &[0, 5], &[]])
}

/// CVE-2022-29162, CVE-2025-27612: inheritable is empty unless the spec has it, and ambient too.
pub fn ambient_and_inheritable(bed: &mut Bed<'_>) -> Result<()> {
    let raw = json!(["CAP_NET_RAW"]);
    let ambient = json!({"bounding": raw, "permitted": raw, "effective": raw, "inheritable": raw, "ambient": raw});
    expect(bed, "ambient", &ambient, 1000, [&[13], &[13], &[13], &[13], &[13]])?;
    let inheritable = json!({"bounding": raw, "permitted": raw, "effective": raw, "inheritable": raw});
    expect(bed, "inheritable", &inheritable, 1000, [&[13], &[], &[], &[13], &[]])
}

pub fn another_user_has_no_capabilities(bed: &mut Bed<'_>) -> Result<()> {
    let names = json!(["CAP_CHOWN", "CAP_NET_RAW"]);
    let given = json!({"bounding": names, "permitted": names, "effective": names});
    expect(bed, "user", &given, 1000, [&[], &[], &[], &[0, 13], &[]])
}

/// An exec that names no capabilities and no labels is confined as the container is.
pub fn an_exec_is_confined_as_its_container(bed: &mut Bed<'_>) -> Result<()> {
    let mut bundle = bed.bundle("a", &["sleep", "1000"])?;
    let names = json!(["CAP_CHOWN", "CAP_NET_RAW"]);
    bundle.edit(|spec| spec["process"]["capabilities"] = json!({"bounding": names, "permitted": names, "effective": names}))?;
    bed.running(&bundle)?;
    let mut spec = process(&["sh", "-c", "cat /proc/self/status >/out"]);
    for (capabilities, bounding) in [(Value::Null, mask(&[0, 13])), (json!({}), mask(&[])), (json!({"bounding": ["CAP_KILL"]}), mask(&[5]))]
    {
        spec["capabilities"] = capabilities;
        ensure_eq!(status_line(&exec_output(bed, &bundle, &spec)?, "CapBnd")?, bounding, "bounding set with {}", spec["capabilities"]);
    }
    bed.end(&bundle)
}

pub fn groups_are_exact(bed: &mut Bed<'_>) -> Result<()> {
    let mut bundle = bed.bundle("a", &["cat", "/proc/self/status"])?;
    bed.call_by(|command| around("setpriv", &["--groups", "4,27"], &command));
    let mut groups = |user: Value, bundle: &mut Bundle| -> Result<(String, String, String)> {
        bundle.edit(|spec| spec["process"]["user"] = user)?;
        let seen = bed.ran(bundle)?;
        let line = |key: &str| status_line(&seen.stdout, key).map(str::to_owned);
        Ok((line("Uid")?, line("Gid")?, line("Groups")?))
    };
    let four = |id: u32| format!("{id}\t{id}\t{id}\t{id}");
    ensure_eq!(groups(json!({"uid": 0, "gid": 0}), &mut bundle)?, (four(0), four(0), String::new()), "root's ids");
    let some = json!({"uid": 1000, "gid": 1001, "additionalGids": [5, 7, 5, 2_000_000_000]});
    ensure_eq!(groups(some, &mut bundle)?, (four(1000), four(1001), "5 5 7 2000000000".to_owned()), "a user's ids");
    bundle.edit(|spec| {
        spec["process"]["user"] = json!({"uid": 0, "gid": 0});
        spec["process"]["args"] = json!(["sleep", "1000"]);
    })?;
    if let Some(shim) = bed.shim() {
        let daemon = fs::read_to_string(format!("/proc/{}/status", daemon(shim, &bundle.id)?))?;
        ensure_eq!(status_line(&daemon, "Groups")?, "4 27", "groups of the shim");
    }
    bed.running(&bundle)?;
    let mut spec = process(&["sh", "-c", "cat /proc/self/status >/out"]);
    ensure_eq!(status_line(&exec_output(bed, &bundle, &spec)?, "Groups")?, "", "groups of an exec");
    spec["user"]["additionalGids"] = json!([9]);
    ensure_eq!(status_line(&exec_output(bed, &bundle, &spec)?, "Groups")?, "9", "groups of an exec");
    bed.end(&bundle)
}

/// CVE-2024-40635: no large number becomes 0.
pub fn ids_at_the_edge(bed: &mut Bed<'_>) -> Result<()> {
    let mut bundle = bed.bundle("a", &["sh", "-c", "id -u; id -g"])?;
    for id in [1u32, 65_534, 65_535, 2_147_483_647, 2_147_483_648, 4_294_967_294] {
        bundle.edit(|spec| spec["process"]["user"] = json!({"uid": id, "gid": id}))?;
        let seen = bed.ran(&bundle)?;
        ensure_eq!(seen.stdout, format!("{id}\n{id}\n"), "ids");
    }
    bundle.edit(|spec| spec["process"]["user"] = json!({"uid": u32::MAX, "gid": 0}))?;
    refused(bed.create(&bundle), "process.user.uid")
}

/// CVE-2016-3697: a number is a number, whatever the image's passwd says; and what cannot be read there hurts nobody.
pub fn passwd_is_not_read(bed: &mut Bed<'_>) -> Result<()> {
    let mut bundle = bed.bundle("a", &["sh", "-c", "id -u; grep Groups /proc/self/status"])?;
    bundle.edit(|spec| spec["process"]["user"] = json!({"uid": 1000, "gid": 1000}))?;
    fs::create_dir_all(bundle.written("etc"))?;
    let passwd = bundle.written("etc/passwd");
    fs::write(&passwd, "1000:x:0:0::/:/bin/sh\n")?;
    let _ = fs::remove_file(bundle.written("etc/group"));
    std::os::unix::fs::symlink("/dev/zero", bundle.written("etc/group"))?;
    let seen = bed.ran(&bundle)?;
    ensure_eq!(seen.stdout.trim_end(), "1000\nGroups:", "ids, stderr {:?}", seen.stderr);
    let kept = fs::read_to_string(&passwd).context(|| "passwd".to_owned())?;
    ensure_eq!(kept, "1000:x:0:0::/:/bin/sh\n", "passwd");
    Ok(())
}
