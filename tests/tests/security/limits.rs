//! Which devices a container may use, which sysctls are its own, and what is no limit.

use std::fs;

use serde_json::{Value, json};
use tests::bed::{Bed, refused};
use tests::bundle::Bundle;
use tests::{Context, Result, ensure, ensure_eq};

/// What opening a device says: no driver has 10:250 and 60:1, which only a rule can tell from what is not permitted.
const TRY: &str =
    "for d in 'c 10 250' 'b 60 1' 'c 10 200'; do set -- $d; mknod /n $1 $2 $3; (exec 3<>/n) 2>&1 | sed \"s/.*: /$1 $2:$3 /\"; rm /n; done";

fn tried(bed: &mut Bed<'_>, bundle: &mut Bundle, rules: Value) -> Result<String> {
    bundle.edit(|spec| spec["linux"]["resources"]["devices"] = rules)?;
    Ok(bed.ran(bundle)?.stdout)
}

/// VPN pods open it without a rule of their own (runc#4555).
pub fn the_tunnel_device_may_be_opened(bed: &mut Bed<'_>) -> Result<()> {
    let mut bundle = bed.bundle("a", &["sh", "-c", TRY])?;
    let seen = tried(bed, &mut bundle, json!([{"allow": false, "access": "rwm"}]))?;
    ensure!(!seen.contains("10:200 Operation not permitted"), "the tunnel device is denied: {seen}");
    ensure_eq!(seen.matches("Operation not permitted").count(), 2, "devices without a rule: {seen}");
    Ok(())
}

/// As with runc on both versions of cgroups: such a rule is one for all devices, and letters that mean nothing are passed over.
pub fn rules_for_all_devices(bed: &mut Bed<'_>) -> Result<()> {
    let mut bundle = bed.bundle("a", &["sh", "-c", TRY])?;
    for rule in [
        json!({"allow": true, "type": "a", "major": 7, "minor": 1, "access": "rwm"}),
        json!({"allow": true, "type": "a", "major": 7, "access": "rw"}),
        json!({"allow": true, "access": "m"}),
    ] {
        let seen = tried(bed, &mut bundle, json!([{"allow": false, "access": "rwm"}, rule]))?;
        ensure!(seen.contains("10:250 No such") && seen.contains("60:1 No such"), "{rule}: {seen}");
    }
    let seen = tried(bed, &mut bundle, json!([{"allow": true, "type": "c", "major": 10, "minor": 250, "access": "rwa"}]))?;
    ensure!(seen.contains("10:250 No such") && seen.contains("60:1 Operation not permitted"), "access \"rwa\": {seen}");
    refused(
        tried(bed, &mut bundle, json!([{"allow": true, "type": "c", "major": 10, "minor": 250}])),
        "resources.devices[0]: access cannot be empty",
    )
}

/// `user.*` counts per user namespace (namespaces(7)).
pub fn sysctls_of_a_user_namespace(bed: &mut Bed<'_>) -> Result<()> {
    let path = "/proc/sys/user/max_inotify_instances";
    let before = fs::read_to_string(path)?;
    let mut bundle = bed.bundle("a", &["cat", path])?;
    bundle.edit(|spec| spec["linux"]["sysctl"] = json!({"user.max_inotify_instances": "77"}))?;
    refused(bed.ran(&bundle), "linux.sysctl: \"user.max_inotify_instances\" would change the host")?;
    bundle.map_users(200_000)?;
    for (name, value) in [("user.max_inotify_instances", "77"), ("user/max_inotify_instances", "78\n")] {
        bundle.edit(|spec| spec["linux"]["sysctl"] = json!({name: value}))?;
        let seen = bed.ran(&bundle)?;
        ensure_eq!(seen.stdout.trim(), value.trim(), "{name} inside, stderr {:?}", seen.stderr);
    }
    ensure_eq!(fs::read_to_string(path)?, before, "the host's");
    bundle.edit(|spec| spec["linux"]["sysctl"] = json!({"net.ipv4.ip_default_ttl": "300"}))?;
    refused(bed.ran(&bundle), "linux.sysctl: set \"net.ipv4.ip_default_ttl\" to \"300\": invalid argument")
}

/// A limit below -1 lifted the limit.
pub fn numbers_that_are_no_limits(bed: &mut Bed<'_>) -> Result<()> {
    let mut bundle = bed.bundle("a", &["sleep", "1000"])?;
    bundle.edit(|spec| spec["linux"]["resources"]["memory"] = json!({"limit": 64 << 20}))?;
    bed.running(&bundle)?;
    let limit = |bed: &Bed<'_>| -> Result<String> {
        let files = bed.cgroups(&bundle).into_iter().flat_map(|dir| ["memory.limit_in_bytes", "memory.max"].map(|file| dir.join(file)));
        Ok(files.filter_map(|file| fs::read_to_string(file).ok()).next().context(|| "no memory controller".to_owned())?.trim().to_owned())
    };
    for (resources, words) in [
        (json!({"memory": {"limit": -2}}), "resources.memory.limit: -2 is neither a number of bytes nor -1"),
        (json!({"memory": {"limit": 1 << 26, "swap": -2}}), "resources.memory.swap: -2 is neither"),
        (json!({"cpu": {"period": 1}}), "resources.cpu.period: 1 us is not in the range 1000-1000000"),
    ] {
        refused(bed.update(&bundle, &resources), words)?;
        ensure_eq!(limit(bed)?, (64 << 20).to_string(), "limit after {resources}");
    }
    bed.update(&bundle, &json!({"memory": {"limit": 32 << 20}}))?;
    ensure_eq!(limit(bed)?, (32 << 20).to_string(), "limit after an update");
    bed.end(&bundle)?;
    bundle.edit(|spec| spec["linux"]["resources"]["memory"] = json!({"limit": -2}))?;
    refused(bed.create(&bundle), "resources.memory.limit: -2 is neither")
}
