//! `linux.cgroupsPath` as a checked value: which directory of each hierarchy belongs to a container.

use serde::{Deserialize, Serialize};

use super::host::{Host, Mode, path_in};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::kernel::in_user_namespace;
use crate::systemd::Scope;

/// NAME_MAX: what mkdir(2) takes for one component.
const COMPONENT_MAX: usize = 255;
/// Leaves room below PATH_MAX for the mount point and for what the container makes underneath.
const PATH_LENGTH_MAX: usize = 3072;

/// Where a container's cgroup is, in every hierarchy. Serializable: with it another process finds the cgroup again (`delete` after a crash).
///
/// Having one means: no component is empty, `.` or `..`, none holds a control character, and the path is not a hierarchy's root.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CgroupPath {
    /// Without a leading slash; below the hierarchy's root, or below the prefix of it in `prefixes`.
    path: String,
    /// Hierarchy (by its first controller, "" for v2) and the directory `path` is relative to. Empty for an absolute cgroupsPath.
    prefixes: Vec<(String, String)>,
    /// The unit of systemd's that it is the cgroup of.
    #[serde(default)]
    scope: Option<Scope>,
    /// Nobody named it: a user namespace that may make none here does without.
    #[serde(default)]
    dispensable: bool,
}

impl CgroupPath {
    /// Where `cgroups_path` of the container `id` is on this host.
    ///
    /// As in runc: an absolute path counts from the root of each hierarchy, a relative one from the caller's own cgroup (v1) or from its parent
    /// (v2, where a cgroup with processes cannot hand controllers on); an absent path is the relative path `id`, and in a user namespace, where
    /// that may be refused, no cgroup in that hierarchy.
    ///
    /// # Errors
    /// `InvalidArgument` for `..`, control characters, over-long names, the root, or the systemd form `slice:prefix:name`.
    pub fn new(host: &Host, cgroups_path: Option<&str>, id: &str) -> Result<Self> {
        let given = cgroups_path.unwrap_or_default();
        if Scope::has_form(given) {
            return Err(Error::invalid(format!(
                "cgroupsPath {given:?}: the form slice:prefix:name is for the systemd cgroup driver, and the option SystemdCgroup is not set"
            )));
        }
        let path = clean(if given.is_empty() { id } else { given })?;
        if given.starts_with('/') {
            return Ok(Self::absolute(path));
        }
        Ok(Self { prefixes: host.own_cgroups()?, dispensable: given.is_empty() && in_user_namespace(), ..Self::absolute(path) })
    }

    fn absolute(path: String) -> Self {
        Self { path, prefixes: Vec::new(), scope: None, dispensable: false }
    }

    /// Where the cgroup of a scope is whose manager's own is `root`, below the root of each hierarchy.
    ///
    /// # Errors
    /// `InvalidArgument` for a path that is too long, or leads elsewhere.
    pub fn of_scope(scope: &Scope, root: &str) -> Result<Self> {
        let path = clean(&format!("{root}/{}", scope.cgroup()?))?;
        Ok(Self { scope: Some(scope.clone()), ..Self::absolute(path) })
    }

    /// The unit of systemd's that it is the cgroup of.
    pub fn scope(&self) -> Option<&Scope> {
        self.scope.as_ref()
    }

    /// Whether a container can be without it in a hierarchy that refuses it.
    pub(crate) fn is_dispensable(&self) -> bool {
        self.dispensable
    }

    /// Whether a process is there according to the hierarchy in which systemd keeps account.
    ///
    /// # Errors
    /// `FailedPrecondition` if it is somewhere else, or gone.
    pub fn check_inside(&self, host: &Host, pid: u32) -> Result<()> {
        let file = format!("/proc/{pid}/cgroup");
        let text = std::fs::read(&file).context(|| format!("read {file}"))?;
        let systemds = if host.mode() == Mode::V2 { "" } else { "name=systemd" };
        let hierarchy = host.hierarchies.iter().find(|hierarchy| hierarchy.name() == systemds);
        let elsewhere = |place: String| {
            let message = format!("systemd has put process {pid} {place} in place of \"/{}\"", self.path);
            Error::new(ErrorKind::FailedPrecondition, message)
        };
        match hierarchy.and_then(|hierarchy| path_in(hierarchy, &text)) {
            Some([b'/', path @ ..]) if path == self.path.as_bytes() => Ok(()),
            Some(other) => Err(elsewhere(format!("into cgroup {:?}", String::from_utf8_lossy(other)))),
            None => Err(elsewhere("into no cgroup of its hierarchy".to_owned())),
        }
    }

    /// The path below the root of the hierarchy that is known by `name`.
    ///
    /// # Errors
    /// `InvalidArgument` where a record that was read back holds what [`CgroupPath::new`] would have refused.
    pub(super) fn in_hierarchy(&self, name: &str) -> Result<String> {
        let prefix = self.prefixes.iter().find(|(hierarchy, _)| hierarchy == name).map_or("", |(_, prefix)| prefix.as_str());
        clean(&format!("{prefix}/{}", self.path))
    }
}

/// The path without empty and `.` components and without a leading slash.
fn clean(path: &str) -> Result<String> {
    let refuse = |why: &str| Err(Error::invalid(format!("cgroupsPath {path:?}: {why}")));
    let components: Vec<&str> = path.split('/').filter(|name| !name.is_empty() && *name != ".").collect();
    if components.is_empty() {
        return refuse("names the root of the hierarchy");
    }
    if components.contains(&"..") {
        return refuse("\"..\" is not allowed");
    }
    if path.chars().any(char::is_control) {
        return refuse("control characters are not allowed");
    }
    if path.len() > PATH_LENGTH_MAX || components.iter().any(|name| name.len() > COMPONENT_MAX) {
        return refuse("too long");
    }
    Ok(components.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;
    use proptest::prelude::*;

    fn new(path: Option<&str>) -> Result<CgroupPath> {
        CgroupPath::new(&Host::with_own(&[("memory", "machine"), ("", "outer")]), path, "web-1")
    }

    #[test]
    fn absolute_counts_from_the_root_and_relative_from_the_own_cgroup() {
        let absolute = new(Some("/kubepods//pod1/./web-1/")).unwrap();
        assert_eq!(absolute.in_hierarchy("memory").unwrap(), "kubepods/pod1/web-1");
        for (given, name) in [(Some("a/b"), "a/b"), (None, "web-1"), (Some(""), "web-1")] {
            let relative = new(given).unwrap();
            assert_eq!(relative.in_hierarchy("memory").unwrap(), format!("machine/{name}"));
            assert_eq!(relative.in_hierarchy("").unwrap(), format!("outer/{name}"));
            assert_eq!(relative.in_hierarchy("pids").unwrap(), name);
        }
    }

    #[test]
    fn what_could_lead_elsewhere_is_refused() {
        let long = "x".repeat(300);
        for path in ["/..", "/a/../../b", "../a", "a/..", "/", "//", ".", "/a\0b", "/a\nb", long.as_str(), "/a/b/c/".repeat(600).as_str()] {
            let error = new(Some(path)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{path:?}");
            assert!(error.to_string().starts_with("cgroupsPath "), "{error}");
        }
        assert!(new(Some("/a..b/..c")).is_ok());
    }

    #[test]
    fn the_systemd_form_is_refused_by_name() {
        let error = new(Some("system.slice:coracle:web-1")).unwrap_err().to_string();
        assert!(error.contains("cgroupsPath \"system.slice:coracle:web-1\"") && error.contains("systemd cgroup driver"), "{error}");
    }

    #[test]
    fn a_record_that_was_tampered_with_is_refused() {
        let record = r#"{"path":"../../x","prefixes":[]}"#;
        let path: CgroupPath = serde_json::from_str(record).unwrap();
        assert_eq!(path.in_hierarchy("memory").unwrap_err().kind(), ErrorKind::InvalidArgument);
    }

    proptest! {
        #[test]
        fn nothing_accepted_leaves_the_hierarchy(path in "(/|\\.|\\.\\.|a|b:|\\PC|\0|\n){0,12}") {
            if let Ok(path) = new(Some(&path)) {
                let inside = path.in_hierarchy("x").unwrap();
                prop_assert!(!inside.starts_with('/') && inside.split('/').all(|name| !matches!(name, "" | "." | "..")));
            }
        }
    }
}
