//! `null` as Go's encoding/json takes it: the zero value of a type, wherever it stands. Engines are written in Go, whose nil slices, maps and
//! pointers become `null`.

use std::fmt;
use std::iter::empty;

use serde::de::value::{MapDeserializer, SeqDeserializer};
use serde::de::{Deserializer, Error, Visitor};

/// What a type asks its deserializer for.
#[derive(Clone, Copy)]
pub enum Asked {
    /// `true` or `false`.
    Bool,
    /// A whole number.
    Signed,
    /// A whole number that is not negative.
    Unsigned,
    /// Any number.
    Float,
    /// A string.
    Text,
    /// A list.
    List,
    /// A map.
    Map,
    /// A struct with these fields.
    Fields(&'static [&'static str]),
}

/// Visits what is there, or the zero value in place of a `null`.
pub struct OrNull<V> {
    /// The type's own visitor.
    pub visitor: V,
    /// What it takes.
    pub asked: Asked,
}

impl<'de, V: Visitor<'de>> Visitor<'de> for OrNull<V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.visitor.expecting(f)
    }

    fn visit_none<E: Error>(self) -> Result<V::Value, E> {
        match self.asked {
            Asked::Bool => self.visitor.visit_bool(false),
            Asked::Signed => self.visitor.visit_i64(0),
            Asked::Unsigned => self.visitor.visit_u64(0),
            Asked::Float => self.visitor.visit_f64(0.0),
            Asked::Text => self.visitor.visit_str(""),
            Asked::List => self.visitor.visit_seq(SeqDeserializer::new(empty::<bool>())),
            Asked::Map | Asked::Fields(_) => self.visitor.visit_map(MapDeserializer::new(empty::<(&str, bool)>())),
        }
    }

    fn visit_some<D: Deserializer<'de>>(self, inner: D) -> Result<V::Value, D::Error> {
        match self.asked {
            Asked::Bool => inner.deserialize_bool(self.visitor),
            Asked::Signed => inner.deserialize_i64(self.visitor),
            Asked::Unsigned => inner.deserialize_u64(self.visitor),
            Asked::Float => inner.deserialize_f64(self.visitor),
            Asked::Text => inner.deserialize_str(self.visitor),
            Asked::List => inner.deserialize_seq(self.visitor),
            Asked::Map => inner.deserialize_map(self.visitor),
            Asked::Fields(fields) => inner.deserialize_struct("", fields, self.visitor),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::spec::Spec;

    #[test]
    fn null_is_the_zero_value_wherever_it_stands() {
        let spec = Spec::parse(
            br#"{"ociVersion": "1.0.2", "root": {"path": "rootfs", "readonly": null}, "hostname": null, "domainname": null, "mounts": null,
                "hooks": null, "annotations": {"a": null, "B": "c"}, "process": {"terminal": null, "user": {"uid": null, "gid": 5,
                "additionalGids": null}, "args": ["x", null], "env": null, "cwd": null, "noNewPrivileges": null, "oomScoreAdj": null},
                "linux": {"namespaces": [{"type": "mount", "path": null}], "rootfsPropagation": null, "sysctl": null, "maskedPaths": null,
                "seccomp": {"defaultAction": "SCMP_ACT_ALLOW", "architectures": null, "syscalls": [{"names": null,
                "action": "SCMP_ACT_ERRNO", "args": null}]}, "resources": {"devices": null, "memory": {"limit": null},
                "hugepageLimits": null}, "devices": null}}"#,
        )
        .unwrap();
        let process = spec.process.unwrap();
        assert_eq!((process.user.uid, process.user.gid, process.args), (0, 5, vec!["x".to_owned(), String::new()]));
        assert_eq!(spec.annotations["a"], "");
        assert!(spec.linux.seccomp.is_some_and(|seccomp| seccomp.syscalls().as_ref().is_some_and(|rules| rules[0].names().is_empty())));
    }

    #[test]
    fn a_type_that_is_wrong_is_told_with_its_place() {
        for (text, words) in [
            (r#"{"process": {"args": 5}}"#, "process.args"),
            (r#"{"linux": {"sysctl": {"a": 1}}}"#, "linux.sysctl.a"),
            (r#"{"process": {"user": {"uid": -1}}}"#, "process.user.uid"),
            (r#"{} x"#, "trailing characters"),
        ] {
            let error = Spec::parse(text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(words), "{text}: {error}");
        }
    }
}
