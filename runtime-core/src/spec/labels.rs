//! Labels of security modules: a profile of AppArmor, a context of SELinux.

use std::ffi::CStr;
use std::fs;

use super::Process;
use crate::compile::cstring;
use crate::error::{Error, Result};
use crate::plan::Label;

/// Where AppArmor takes the profile of the next program (proc_pid_attr(5)): its own file, which no other module answers for.
pub const APPARMOR: &CStr = c"/proc/self/attr/apparmor/exec";
const SELINUX: &CStr = c"/proc/self/attr/exec";
const SELINUX_KEYS: &CStr = c"/proc/self/attr/keycreate";

/// The profile that means none.
const UNCONFINED: &str = "unconfined";

impl Process {
    /// What this process asks for, in the order in which it is set. The label of keys is that of the process, as runc does it; both end with
    /// the execution of the program.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`](crate::ErrorKind::InvalidArgument) for a text that is no label, or one of SELinux where that is not in
    /// force. A profile of AppArmor that the kernel does not know fails when it is set.
    pub fn labels(&self) -> Result<Vec<Label>> {
        let given = |label: &Option<String>| label.clone().filter(|label| !label.is_empty());
        let mut labels = Vec::new();
        if let Some(context) = given(&self.selinux_label) {
            require_selinux("process.selinuxLabel")?;
            for file in [SELINUX_KEYS, SELINUX] {
                labels.push(label("process.selinuxLabel", file, &context, &context)?);
            }
        }
        match given(&self.apparmor_profile) {
            Some(profile) if profile != UNCONFINED || has_apparmor() => {
                // Names in a namespace, and stacks of profiles, are shown in another form.
                let plain = !profile.contains([':', '&']);
                labels.push(label("process.apparmorProfile", APPARMOR, &format!("exec {profile}"), if plain { &profile } else { "" })?);
            }
            _ => {}
        }
        Ok(labels)
    }
}

/// The SELinux context of new filesystems, if there is one.
///
/// # Errors
/// [`ErrorKind::InvalidArgument`](crate::ErrorKind::InvalidArgument) where SELinux is not in force.
pub fn mount_label(label: Option<&str>) -> Result<Option<&str>> {
    let label = label.filter(|label| !label.is_empty());
    if label.is_some() {
        require_selinux("linux.mountLabel")?;
    }
    Ok(label)
}

fn label(field: &str, file: &CStr, text: &str, shown: &str) -> Result<Label> {
    if text.contains(char::is_control) {
        return Err(Error::invalid(format!("{field}: {text:?} holds a control character")));
    }
    Ok(Label { file: file.to_owned(), text: cstring(field, text)?, shown: cstring(field, shown)? })
}

fn require_selinux(field: &str) -> Result<()> {
    if has_selinux() { Ok(()) } else { Err(Error::invalid(format!("{field}: SELinux is not in force on this host"))) }
}

/// Whether AppArmor is in force (Documentation/admin-guide/LSM/apparmor.rst).
pub fn has_apparmor() -> bool {
    fs::read_to_string("/sys/module/apparmor/parameters/enabled").is_ok_and(|enabled| enabled.trim() == "Y")
}

/// Whether SELinux is in force: its filesystem is there with a policy (libselinux, `is_selinux_enabled`).
pub fn has_selinux() -> bool {
    fs::metadata("/sys/fs/selinux/enforce").is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(apparmor: &str, selinux: &str) -> Process {
        Process { apparmor_profile: Some(apparmor.to_owned()), selinux_label: Some(selinux.to_owned()), ..Process::default() }
    }

    #[test]
    fn a_profile_is_set_for_the_next_program_and_read_back() {
        let labels = process("cri-containerd.apparmor.d", "").labels().unwrap();
        let texts = |label: &Label| [&label.file, &label.text, &label.shown].map(|text| text.to_str().unwrap().to_owned());
        assert_eq!(
            labels.iter().map(texts).collect::<Vec<_>>(),
            [[APPARMOR.to_str().unwrap(), "exec cri-containerd.apparmor.d", "cri-containerd.apparmor.d"]]
        );
        assert_eq!(process(":ns:profile", "").labels().unwrap()[0].shown.to_bytes(), b"");
        assert_eq!(process("", "").labels().unwrap(), []);
        assert_eq!(process(UNCONFINED, "").labels().unwrap().len(), usize::from(has_apparmor()));
    }

    #[test]
    fn what_is_no_label_is_refused_by_its_field() {
        let refusal = |process: Process| process.labels().unwrap_err().to_string();
        assert_eq!(refusal(process("a\nb", "")), "process.apparmorProfile: \"exec a\\nb\" holds a control character");
        if !has_selinux() {
            assert_eq!(refusal(process("", "x")), "process.selinuxLabel: SELinux is not in force on this host");
            assert!(mount_label(Some("x")).unwrap_err().to_string().starts_with("linux.mountLabel: "));
        }
        assert_eq!(mount_label(Some("")).unwrap(), None);
    }
}
