//! `linux.intelRdt` (OCI config-linux.md, "IntelRdt").

use serde::Deserialize;

use crate::error::{Error, Result};

/// A class of service. What only switched monitoring on before version 1.3 of the spec, `enableCMT` and `enableMBM`, is passed over.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct IntelRdt {
    /// The class; `/` is the one of all that have none, and without it the container has its own.
    #[serde(rename = "closID")]
    pub clos_id: Option<String>,
    /// Lines of the schemata file.
    pub schemata: Vec<String>,
    /// One such line.
    pub l3_cache_schema: String,
    /// One such line.
    pub mem_bw_schema: String,
    /// Whether the container has a monitoring group of its own.
    pub enable_monitoring: bool,
}

impl IntelRdt {
    /// What the schemata file is to say: those lines come last, and win.
    pub fn lines(&self) -> Vec<String> {
        let single = [&self.l3_cache_schema, &self.mem_bw_schema].into_iter().filter(|line| !line.is_empty());
        single.chain(&self.schemata).cloned().collect()
    }

    /// Checks what no kernel takes.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`](crate::ErrorKind::InvalidArgument) by the field's name.
    pub fn check(&self) -> Result<()> {
        let name = self.clos_id.as_deref().unwrap_or_default();
        // Those are files and directories of the kernel's own.
        let taken = ["info", "mon_groups", "mon_data"].contains(&name) || name == "." || name == "..";
        if name != "/" && (taken || name.contains('/') || name.contains(char::is_control)) {
            return Err(Error::invalid(format!("linux.intelRdt.closID: {name:?} is not a name of a class")));
        }
        let single = [("l3CacheSchema", &self.l3_cache_schema, "L3"), ("memBwSchema", &self.mem_bw_schema, "MB")];
        for (field, line, resource) in single.into_iter().filter(|(_, line, _)| !line.is_empty()) {
            if line.contains(char::is_control) || !line.starts_with(resource) {
                return Err(Error::invalid(format!("linux.intelRdt.{field}: {line:?} is not one line that begins with {resource}")));
            }
        }
        match self.schemata.iter().find(|line| line.contains(char::is_control) || !line.contains(':')) {
            Some(line) => Err(Error::invalid(format!("linux.intelRdt.schemata: {line:?} is not a line of the form RESOURCE:VALUES"))),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_kernel_takes_is_refused_by_its_field() {
        for (json, field) in [
            (r#"{"closID":"a/b"}"#, "closID"),
            (r#"{"closID":".."}"#, "closID"),
            (r#"{"closID":"info"}"#, "closID"),
            (r#"{"closID":"a\nb"}"#, "closID"),
            (r#"{"l3CacheSchema":"MB:0=1"}"#, "l3CacheSchema"),
            (r#"{"memBwSchema":"MB:0=1\nL3:0=1"}"#, "memBwSchema"),
            (r#"{"schemata":["x"]}"#, "schemata"),
        ] {
            let error = crate::spec::keys::from_slice::<IntelRdt>(json.as_bytes()).unwrap().check().unwrap_err().to_string();
            assert!(error.starts_with(&format!("linux.intelRdt.{field}: ")), "{error}");
        }
        for json in [r#"{}"#, r#"{"closID":"/"}"#, r#"{"closID":"a b","schemata":null,"l3CacheSchema":"L3CODE:0=1"}"#] {
            crate::spec::keys::from_slice::<IntelRdt>(json.as_bytes()).unwrap().check().unwrap();
        }
    }
}
