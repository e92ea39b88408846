//! Every field of a message is set, to the value of the field of the same name.

use std::collections::BTreeMap;
use std::fmt::Debug;

use proto::protobuf::MessageFull;
use proto::protobuf::reflect::{MessageRef, ReflectFieldRef, ReflectValueRef};
use runtime_core::cgroup::stats::{v1, v2};

use super::*;

/// Fields of the messages that no cgroup file has.
const NOT_OF_A_CGROUP: &[&str] = &["network", "cgroup_stats"];

/// A value in which no two fields are equal and none is the default.
pub(super) trait Fill {
    fn fill(next: &mut u32) -> Self;
}

fn count(next: &mut u32) -> u32 {
    *next += 1;
    *next
}

impl Fill for u32 {
    fn fill(next: &mut u32) -> Self {
        count(next)
    }
}

impl Fill for u64 {
    /// Above 32 bits, so that nothing narrows it unseen.
    fn fill(next: &mut u32) -> Self {
        (1 << 40) + Self::from(count(next))
    }
}

impl Fill for f64 {
    fn fill(next: &mut u32) -> Self {
        Self::from(count(next)) + 0.5
    }
}

impl Fill for String {
    fn fill(next: &mut u32) -> Self {
        format!("text {}", count(next))
    }
}

impl<T: Fill> Fill for Option<T> {
    fn fill(next: &mut u32) -> Self {
        Some(T::fill(next))
    }
}

impl<T: Fill> Fill for Vec<T> {
    fn fill(next: &mut u32) -> Self {
        vec![T::fill(next), T::fill(next)]
    }
}

/// Value to field name, from the lines `name: value,` of the pretty debug form; an element of a list is under the list's name.
fn fields_of_source(source: &impl Debug) -> BTreeMap<String, String> {
    let (mut fields, mut list) = (BTreeMap::new(), String::new());
    for line in format!("{source:#?}").lines().map(str::trim) {
        let (name, value) = line.split_once(": ").unwrap_or((&list, line));
        let value = value.trim_end_matches(',');
        if value == "[" {
            list = name.to_owned();
        } else if value.starts_with(|c: char| c == '"' || c.is_ascii_digit()) {
            assert_eq!(fields.insert(value.to_owned(), name.to_owned()), None, "{value} is there twice");
        }
    }
    fields
}

fn fields_of_message(message: &MessageRef<'_>, into: &mut BTreeMap<String, String>) {
    for field in message.descriptor_dyn().fields().filter(|field| !NOT_OF_A_CGROUP.contains(&field.name())) {
        let mut leaf = |value: ReflectValueRef<'_>| match value {
            ReflectValueRef::Message(inner) => fields_of_message(&inner, into),
            scalar => {
                let text = match scalar {
                    ReflectValueRef::U32(number) => number.to_string(),
                    ReflectValueRef::U64(number) => number.to_string(),
                    ReflectValueRef::F64(number) => number.to_string(),
                    ReflectValueRef::String(text) => format!("{text:?}"),
                    other => panic!("{}: a value of an unknown kind: {other:?}", field.full_name()),
                };
                assert_eq!(into.insert(text.clone(), field.name().to_owned()), None, "{text} is there twice");
            }
        };
        assert!(field.is_repeated() || field.has_field(&**message), "{} is not set", field.full_name());
        match field.get_reflect(&**message) {
            ReflectFieldRef::Optional(value) => leaf(value.value().unwrap()),
            ReflectFieldRef::Repeated(list) => {
                assert_eq!(list.len(), 2, "{}", field.full_name());
                list.into_iter().for_each(leaf);
            }
            ReflectFieldRef::Map(_) => panic!("{}: neither message has a map", field.full_name()),
        }
    }
}

fn check<M: MessageFull>(source: &impl Debug, any: &Any) {
    assert_eq!(any.type_url, M::descriptor().full_name());
    let message = M::parse_from_bytes(&any.value).unwrap();
    let mut fields = BTreeMap::new();
    fields_of_message(&MessageRef::new(&message), &mut fields);
    assert_eq!(fields, fields_of_source(source));
}

#[test]
fn every_field_of_version_1_is_carried_over() {
    let metrics = v1::Metrics::fill(&mut 0);
    let any = encode(&Stats::V1(Box::new(metrics.clone())), None).unwrap();
    assert_eq!(any.type_url, "io.containerd.cgroups.v1.Metrics");
    check::<proto::cgroups::metrics::Metrics>(&metrics, &any);
}

#[test]
fn every_field_of_version_2_is_carried_over() {
    let metrics = v2::Metrics::fill(&mut 0);
    let any = encode(&Stats::V2(Box::new(metrics.clone())), None).unwrap();
    assert_eq!(any.type_url, "io.containerd.cgroups.v2.Metrics");
    check::<proto::cgroups_v2::metrics::Metrics>(&metrics, &any);
}

#[test]
fn what_was_not_read_stays_absent() {
    for stats in [Stats::V1(Box::default()), Stats::V2(Box::default())] {
        assert!(encode(&stats, None).unwrap().value.is_empty());
    }
}
