//! JSON as Go's encoding/json reads it. Names of fields are found exactly, or else without regard to case; for `null` see [`super::nulls`].
//!
//! Engines that are written in Go, and configurations that were tried with runc, rely on it. A `maskedpaths` that is not read would lessen
//! the isolation without a word.

use std::fmt;

use serde::de::value::MapDeserializer;
use serde::de::{Deserialize, DeserializeSeed, Deserializer, EnumAccess, Error, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use super::nulls::{Asked, OrNull};

/// Parses JSON.
///
/// # Errors
/// It is none, or none of this type.
pub fn from_slice<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> serde_json::Result<T> {
    match read(bytes, false) {
        Err(error) if is_twice(&error) => read(bytes, true),
        result => result,
    }
}

fn read<'a, T: Deserialize<'a>>(bytes: &'a [u8], merge: bool) -> serde_json::Result<T> {
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let value = T::deserialize(AnyCase::within(&mut reader, merge))?;
    reader.end()?;
    Ok(value)
}

/// Whether a field stands there twice, which the derived code does not take.
fn is_twice(error: &serde_json::Error) -> bool {
    error.to_string().starts_with("duplicate field")
}

/// What one layer of the value is read through: its deserializer, visitor, seed or access.
pub struct AnyCase<T> {
    inner: T,
    /// Of the struct that is read; none of a map, whose keys are the user's.
    fields: &'static [&'static str],
    /// Whether fields may stand there twice: the last one counts, and of two objects what each says.
    merge: bool,
}

impl<T> AnyCase<T> {
    /// Around a deserializer.
    pub fn new(inner: T) -> Self {
        Self::within(inner, false)
    }

    fn within(inner: T, merge: bool) -> Self {
        Self { inner, fields: &[], merge }
    }

    /// The field that a name means.
    fn field(&self, name: &str) -> Option<&'static str> {
        if self.fields.contains(&name) {
            return None;
        }
        self.fields.iter().find(|field| field.eq_ignore_ascii_case(name)).copied()
    }
}

impl<V> AnyCase<V> {
    /// The entries of a struct, each field once.
    fn merged<'de, A: MapAccess<'de>>(&self, mut access: A) -> Result<Vec<(String, Value)>, A::Error> {
        let mut entries: Vec<(String, Value)> = Vec::new();
        while let Some((key, value)) = access.next_entry::<String, Value>()? {
            let key = self.field(&key).map_or(key, str::to_owned);
            match (entries.iter_mut().find(|(earlier, _)| *earlier == key), value) {
                (Some((_, Value::Object(earlier))), Value::Object(later)) => {
                    earlier.retain(|name, _| !later.keys().any(|new| new.eq_ignore_ascii_case(name)));
                    earlier.extend(later);
                }
                (Some(_), Value::Null) => {}
                (Some((_, earlier)), value) => *earlier = value,
                (None, value) => entries.push((key, value)),
            }
        }
        Ok(entries)
    }
}

macro_rules! plain {
    ($($method:ident)*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
            self.inner.$method(AnyCase::within(visitor, self.merge))
        })*
    };
}

macro_rules! or_null {
    ($($method:ident($asked:ident))*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
            self.inner.deserialize_option(OrNull { visitor: AnyCase::within(visitor, self.merge), asked: Asked::$asked })
        })*
    };
}

impl<'de, D: Deserializer<'de>> Deserializer<'de> for AnyCase<D> {
    type Error = D::Error;

    plain! {
        deserialize_any deserialize_char deserialize_bytes deserialize_byte_buf deserialize_option deserialize_unit
    }

    or_null! {
        deserialize_bool(Bool) deserialize_i8(Signed) deserialize_i16(Signed) deserialize_i32(Signed) deserialize_i64(Signed)
        deserialize_u8(Unsigned) deserialize_u16(Unsigned) deserialize_u32(Unsigned) deserialize_u64(Unsigned)
        deserialize_f32(Float) deserialize_f64(Float) deserialize_str(Text) deserialize_string(Text) deserialize_seq(List)
        deserialize_map(Map)
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.inner.deserialize_ignored_any(visitor)
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.inner.deserialize_identifier(AnyCase { inner: visitor, fields: self.fields, merge: self.merge })
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        let visitor = AnyCase { inner: visitor, fields, merge: self.merge };
        self.inner.deserialize_option(OrNull { visitor, asked: Asked::Fields(fields) })
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(self, name: &'static str, visitor: V) -> Result<V::Value, D::Error> {
        self.inner.deserialize_unit_struct(name, AnyCase::within(visitor, self.merge))
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, name: &'static str, visitor: V) -> Result<V::Value, D::Error> {
        self.inner.deserialize_newtype_struct(name, AnyCase::within(visitor, self.merge))
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, len: usize, visitor: V) -> Result<V::Value, D::Error> {
        self.inner.deserialize_tuple(len, AnyCase::within(visitor, self.merge))
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(self, name: &'static str, len: usize, visitor: V) -> Result<V::Value, D::Error> {
        self.inner.deserialize_tuple_struct(name, len, AnyCase::within(visitor, self.merge))
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.inner.deserialize_enum(name, variants, AnyCase::within(visitor, self.merge))
    }

    fn is_human_readable(&self) -> bool {
        self.inner.is_human_readable()
    }
}

macro_rules! as_it_is {
    ($($method:ident($of:ty))*) => {
        $(fn $method<E: Error>(self, value: $of) -> Result<V::Value, E> {
            self.inner.$method(value)
        })*
    };
}

impl<'de, V: Visitor<'de>> Visitor<'de> for AnyCase<V> {
    type Value = V::Value;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.expecting(formatter)
    }

    as_it_is! {
        visit_bool(bool) visit_i8(i8) visit_i16(i16) visit_i32(i32) visit_i64(i64) visit_i128(i128) visit_u8(u8) visit_u16(u16) visit_u32(u32)
        visit_u64(u64) visit_u128(u128) visit_f32(f32) visit_f64(f64) visit_char(char) visit_bytes(&[u8]) visit_borrowed_bytes(&'de [u8])
        visit_byte_buf(Vec<u8>)
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<V::Value, E> {
        match self.field(value) {
            Some(field) => self.inner.visit_borrowed_str(field),
            None => self.inner.visit_str(value),
        }
    }

    fn visit_borrowed_str<E: Error>(self, value: &'de str) -> Result<V::Value, E> {
        let value = self.field(value).unwrap_or(value);
        self.inner.visit_borrowed_str(value)
    }

    fn visit_string<E: Error>(self, value: String) -> Result<V::Value, E> {
        match self.field(&value) {
            Some(field) => self.inner.visit_borrowed_str(field),
            None => self.inner.visit_string(value),
        }
    }

    fn visit_none<E: Error>(self) -> Result<V::Value, E> {
        self.inner.visit_none()
    }

    fn visit_unit<E: Error>(self) -> Result<V::Value, E> {
        self.inner.visit_unit()
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<V::Value, D::Error> {
        self.inner.visit_some(AnyCase::within(deserializer, self.merge))
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, deserializer: D) -> Result<V::Value, D::Error> {
        self.inner.visit_newtype_struct(AnyCase::within(deserializer, self.merge))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, access: A) -> Result<V::Value, A::Error> {
        self.inner.visit_seq(AnyCase::within(access, self.merge))
    }

    fn visit_map<A: MapAccess<'de>>(self, access: A) -> Result<V::Value, A::Error> {
        if !self.merge || self.fields.is_empty() {
            return self.inner.visit_map(AnyCase { inner: access, fields: self.fields, merge: self.merge });
        }
        let entries = self.merged(access)?;
        let access = MapDeserializer::<_, serde_json::Error>::new(entries.into_iter());
        self.inner.visit_map(AnyCase::within(access, true)).map_err(Error::custom)
    }

    // The specification's enumerations are words.
    fn visit_enum<A: EnumAccess<'de>>(self, access: A) -> Result<V::Value, A::Error> {
        self.inner.visit_enum(access)
    }
}

impl<'de, A: SeqAccess<'de>> SeqAccess<'de> for AnyCase<A> {
    type Error = A::Error;

    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, A::Error> {
        self.inner.next_element_seed(AnyCase::within(seed, self.merge))
    }

    fn size_hint(&self) -> Option<usize> {
        self.inner.size_hint()
    }
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for AnyCase<A> {
    type Error = A::Error;

    fn next_key_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, A::Error> {
        self.inner.next_key_seed(AnyCase { inner: seed, fields: self.fields, merge: self.merge })
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, A::Error> {
        self.inner.next_value_seed(AnyCase::within(seed, self.merge))
    }

    fn size_hint(&self) -> Option<usize> {
        self.inner.size_hint()
    }
}

impl<'de, S: DeserializeSeed<'de>> DeserializeSeed<'de> for AnyCase<S> {
    type Value = S::Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<S::Value, D::Error> {
        self.inner.deserialize(AnyCase { inner: deserializer, fields: self.fields, merge: self.merge })
    }
}

#[cfg(test)]
mod tests {
    use crate::spec::{Resources, Spec};

    #[test]
    fn names_of_fields_have_no_case() {
        let spec = Spec::parse(
            br#"{"OCIVERSION": "1.0.0", "Root": {"Path": "r", "readOnly": true},
                "process": {"Args": ["x"], "nonewprivileges": true, "CONSOLESIZE": {"Width": 3},
                            "rlimits": [{"Type": "RLIMIT_NOFILE", "HARD": 5, "soft": 4}], "User": {"additionalgids": [7]}},
                "mounts": [{"Destination": "/x", "OPTIONS": ["ro"]}], "annotations": {"Key": "a", "key": "b"},
                "linux": {"maskedpaths": ["/m"], "uidmappings": [{"hostid": 1, "containerId": 2, "SIZE": 3}],
                          "resources": {"hugepageLimits": [{"pagesize": "2MB", "limit": 5}], "blockio": {"weight": 10}},
                          "seccomp": {"defaultaction": "SCMP_ACT_ERRNO", "syscalls": [{"NAMES": ["read"], "action": "SCMP_ACT_ALLOW"}]}}}"#,
        )
        .unwrap();
        assert_eq!(spec.oci_version, "1.0.0");
        assert!(spec.root_is_read_only());
        let process = spec.process.unwrap();
        assert!(process.no_new_privileges && process.args == ["x"] && process.user.additional_gids == [7]);
        assert_eq!((process.console_size.unwrap().width, process.rlimits[0].hard()), (3, 5));
        assert_eq!(spec.mounts[0].options().as_deref(), Some(&["ro".to_owned()][..]));
        assert_eq!(spec.linux.masked_paths, ["/m"]);
        assert_eq!((spec.linux.uid_mappings[0].host_id(), spec.linux.uid_mappings[0].container_id()), (1, 2));
        assert_eq!((spec.linux.resources.hugepage_limits[0].page_size.as_str(), spec.linux.resources.block_io.weight), ("2MB", Some(10)));
        assert_eq!(spec.linux.seccomp.unwrap().syscalls().as_ref().unwrap()[0].names(), &["read"]);
        // Keys of a map are the user's own.
        assert_eq!((spec.annotations["Key"].as_str(), spec.annotations["key"].as_str()), ("a", "b"));
    }

    #[test]
    fn a_resource_of_an_update_has_no_case() {
        let got: Resources = super::from_slice(br#"{"CPU": {"Shares": 5}, "unified": {"Memory.max": "1"}}"#).unwrap();
        assert_eq!((got.cpu.shares, got.unified.keys().next().unwrap().as_str()), (Some(5), "Memory.max"));
        assert!(super::from_slice::<Resources>(b"{} x").is_err());
    }

    #[test]
    fn of_a_field_that_is_there_twice_the_last_one_counts() {
        let text =
            br#"{"resources": {"cpu": {"shares": 3, "quota": 7}, "CPU": {"SHARES": 5}}, "maskedPaths": ["/a"], "maskedpaths": ["/b"]}"#;
        let linux: crate::spec::Linux = super::from_slice(text).unwrap();
        assert_eq!((linux.resources.cpu.shares, linux.resources.cpu.quota), (Some(5), Some(7)));
        assert_eq!(linux.masked_paths, ["/b"]);
        let spec = Spec::parse(br#"{"hostname": "a", "HostName": "b", "annotations": {"K": "1", "k": "2"}}"#).unwrap();
        assert_eq!((spec.hostname.as_str(), spec.annotations.len()), ("b", 2));
        assert!(Spec::parse(br#"{"hostname": "a", "hostname": 5}"#).is_err());
    }

    #[test]
    fn a_wrong_value_is_named_by_its_field() {
        let error = Spec::parse(br#"{"process": {"USER": {"Uid": "x"}}}"#).unwrap_err().to_string();
        assert!(error.starts_with("process.user.uid: "), "{error}");
    }
}
