//! Names of units and slices, and the cgroups that they mean.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// UNIT_NAME_MAX of systemd's src/basic/unit-name.h, without the NUL.
const NAME_MAX: usize = 255;
/// What takes the place of a prefix where no cgroupsPath is given, as runc's is "runc".
const PREFIX: &str = "coracle";
const SCOPE: &str = ".scope";
const SLICE: &str = ".slice";

/// Whose manager a unit is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Instance {
    /// That of the machine.
    System,
    /// That of the user who runs this process.
    User,
}

impl Instance {
    /// The one that may be asked by this process: root's is the machine's, unless root is only a user's own.
    pub fn of_this_process() -> Self {
        if rustix::process::geteuid().is_root() && !crate::kernel::in_user_namespace() { Self::System } else { Self::User }
    }

    fn default_slice(self) -> &'static str {
        match self {
            Self::System => "system.slice",
            Self::User => "user.slice",
        }
    }
}

/// Whether systemd is this host's first process (sd_booted(3)).
pub fn is_running() -> bool {
    Path::new("/run/systemd/system").is_dir()
}

/// A transient scope that holds one container.
///
/// Having one means: both names are ones that systemd takes, and neither leads out of its slice.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scope {
    /// As systemd lists it: `prefix-name.scope`.
    pub name: String,
    /// The slice that it is in.
    pub slice: String,
    /// Whose manager holds it.
    pub instance: Instance,
}

impl Scope {
    /// The scope that a cgroupsPath of the form `slice:prefix:name` means; absent, it is that of the container `id` in the default slice.
    ///
    /// As in runc, an empty slice is the default one; as in crun, an empty prefix adds nothing to the name.
    ///
    /// # Errors
    /// `InvalidArgument` for a path of another form, and for names that systemd does not take.
    pub fn new(cgroups_path: Option<&str>, id: &str, instance: Instance) -> Result<Self> {
        let given = cgroups_path.unwrap_or_default();
        if given.is_empty() {
            return Self::checked(instance.default_slice(), PREFIX, id, instance).map_err(|error| error.context(format!("id {id:?}")));
        }
        let parts: Vec<&str> = given.split(':').collect();
        let [slice, prefix, name] = parts[..] else {
            return Err(Error::invalid(format!(
                "cgroupsPath {given:?}: the option SystemdCgroup needs a path of the form slice:prefix:name, such as \"system.slice:coracle:{id}\""
            )));
        };
        let slice = if slice.is_empty() { instance.default_slice() } else { slice };
        Self::checked(slice, prefix, name, instance).map_err(|error| error.context(format!("cgroupsPath {given:?}")))
    }

    /// Whether a cgroupsPath has the form `slice:prefix:name`.
    pub fn has_form(cgroups_path: &str) -> bool {
        !cgroups_path.starts_with('/') && cgroups_path.split(':').count() == 3
    }

    /// Whether systemd is to make the cgroup of a cgroupsPath where nobody has said who is: the path has the form, and systemd runs here. So it is
    /// with Docker, which hands its cgroup driver on to runc only.
    pub fn is_meant_by(cgroups_path: Option<&str>) -> bool {
        cgroups_path.is_some_and(Self::has_form) && is_running()
    }

    fn checked(slice: &str, prefix: &str, name: &str, instance: Instance) -> Result<Self> {
        expand(slice)?;
        if name.is_empty() || name.ends_with(SLICE) {
            return Err(Error::invalid(format!("the name {name:?} is not one of a scope, and only that can hold a container")));
        }
        let separator = if prefix.is_empty() { "" } else { "-" };
        let unit = format!("{prefix}{separator}{name}{SCOPE}");
        check_characters(&unit)?;
        Ok(Self { name: unit, slice: slice.to_owned(), instance })
    }

    /// Where its cgroup is below that of its manager, without a slash at either end.
    ///
    /// # Errors
    /// `InvalidArgument` where a record that was read back holds what [`Scope::new`] would have refused.
    pub fn cgroup(&self) -> Result<String> {
        let mut path = expand(&self.slice)?;
        check_characters(&self.name)?;
        path.push(self.name.clone());
        Ok(path.join("/"))
    }
}

/// The directories of a slice: `a-b.slice` is in `a.slice`, and `-.slice` is the root (systemd.slice(5)).
fn expand(slice: &str) -> Result<Vec<String>> {
    let refuse = || Error::invalid(format!("{slice:?} is not the name of a slice"));
    let stem = slice.strip_suffix(SLICE).ok_or_else(refuse)?;
    check_characters(slice)?;
    if stem == "-" {
        return Ok(Vec::new());
    }
    if stem.split('-').any(str::is_empty) {
        return Err(refuse());
    }
    let ends = stem.match_indices('-').map(|(end, _)| end).chain([stem.len()]);
    Ok(ends.map(|end| format!("{}{SLICE}", &stem[..end])).collect())
}

/// `VALID_CHARS` of systemd's src/basic/unit-name.c.
fn check_characters(name: &str) -> Result<()> {
    let valid = |c: char| c.is_ascii_alphanumeric() || ":-_.\\@".contains(c);
    if name.len() > NAME_MAX || !name.chars().all(valid) {
        return Err(Error::invalid(format!("{name:?} is not the name of a unit")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    fn scope(path: &str) -> Result<Scope> {
        Scope::new(Some(path), "web-1", Instance::System)
    }

    #[test]
    fn a_slice_is_in_those_that_its_name_tells() {
        for (path, unit, cgroup) in [
            ("system.slice:coracle:web", "coracle-web.scope", "system.slice/coracle-web.scope"),
            ("-.slice:a:b", "a-b.scope", "a-b.scope"),
            (":a:b", "a-b.scope", "system.slice/a-b.scope"),
            ("x.slice::b", "b.scope", "x.slice/b.scope"),
            (
                "kubepods-besteffort-pod1_2.slice:cri-containerd:0a",
                "cri-containerd-0a.scope",
                "kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod1_2.slice/cri-containerd-0a.scope",
            ),
        ] {
            let scope = scope(path).unwrap();
            assert_eq!((scope.name.as_str(), scope.cgroup().unwrap().as_str()), (unit, cgroup), "{path}");
        }
        assert_eq!(Scope::new(None, "web-1", Instance::User).unwrap().cgroup().unwrap(), "user.slice/coracle-web-1.scope");
    }

    #[test]
    fn a_path_of_another_form_is_told_of_with_the_option() {
        for path in ["/kubepods/x", "x", "a:b", "a:b:c:d", "/a:b/c"] {
            let error = scope(path).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidArgument);
            let text = error.to_string();
            assert!(text.contains(&format!("cgroupsPath {path:?}")) && text.contains("SystemdCgroup"), "{text}");
        }
    }

    #[test]
    fn names_that_systemd_does_not_take_are_refused() {
        let long = format!("a.slice:b:{}", "x".repeat(250));
        for path in [
            "a:b:c",
            "a--b.slice:b:c",
            "-a.slice:b:c",
            ".slice:b:c",
            "a/b.slice:b:c",
            "../a.slice:b:c",
            "a.slice:b:c/d",
            "a.slice:b:c\n",
            "a.slice:b:",
            "a.slice:b:c.slice",
            "a.slice:b:\u{e9}",
            long.as_str(),
        ] {
            let error = scope(path).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{path}");
            assert!(error.to_string().starts_with("cgroupsPath "), "{error}");
        }
    }

    #[test]
    fn a_record_that_was_tampered_with_is_refused() {
        for (name, slice) in [("../x.scope", "a.slice"), ("x.scope", "../../a.slice")] {
            assert!(Scope { name: name.to_owned(), slice: slice.to_owned(), instance: Instance::System }.cgroup().is_err());
        }
    }
}
