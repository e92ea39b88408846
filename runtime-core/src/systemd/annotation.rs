//! Properties that annotations give (`org.systemd.property.*`, as in runc and crun): values in the text form of GVariant, strictly read.

use std::collections::HashMap;

use super::wire::{Property, Value};
use crate::error::{Context, Error, Result};

/// What they begin with.
pub const PREFIX: &str = "org.systemd.property.";
const MICROSECONDS: u64 = 1_000_000;
/// What decides where the container is and what keeps it there is not for annotations to say.
const OWN: [&str; 9] =
    ["PIDs", "Slice", "Delegate", "DelegateControllers", "DelegateSubgroup", "DevicePolicy", "DeviceAllow", "User", "ControlGroup"];

/// The properties among `annotations`, in the order of their names.
///
/// # Errors
/// `InvalidArgument`, naming the annotation.
pub fn properties(annotations: &HashMap<String, String>) -> Result<Vec<Property>> {
    let mut given: Vec<(&str, &str)> =
        annotations.iter().filter_map(|(key, value)| Some((key.strip_prefix(PREFIX)?, value.as_str()))).collect();
    given.sort_unstable();
    given.into_iter().map(|(name, value)| property(name, value).context(|| format!("annotations[{PREFIX}{name:?}]"))).collect()
}

fn property(name: &str, text: &str) -> Result<Property> {
    if name.len() < 3 || !name.bytes().all(|byte| byte.is_ascii_alphabetic()) {
        return Err(Error::invalid("a property's name is three letters or more, and nothing else"));
    }
    if OWN.contains(&name) {
        return Err(Error::invalid("this property is the runtime's own"));
    }
    let value = parse(text.trim())?;
    match name.strip_suffix("Sec").filter(|stem| stem.ends_with(|last: char| last.is_ascii_lowercase())) {
        // systemd.unit(5) has the name in seconds, the bus has it in microseconds.
        Some(stem) => Ok((format!("{stem}USec"), Value::Uint64(microseconds(&value)?))),
        None => Ok((name.to_owned(), value)),
    }
}

fn microseconds(seconds: &Value) -> Result<u64> {
    let whole = match *seconds {
        Value::Byte(value) => Some(value.into()),
        Value::Int16(value) => u64::try_from(value).ok(),
        Value::Uint16(value) => Some(value.into()),
        Value::Int32(value) => u64::try_from(value).ok(),
        Value::Uint32(value) => Some(value.into()),
        Value::Int64(value) => u64::try_from(value).ok(),
        Value::Uint64(value) => Some(value),
        Value::Double(value) if (0.0..1e12).contains(&value) => return Ok((value * MICROSECONDS as f64) as u64),
        _ => None,
    };
    whole.and_then(|seconds| seconds.checked_mul(MICROSECONDS)).ok_or_else(|| Error::invalid("not a number of seconds"))
}

/// One value: `true`, `'text'`, `7` (an int32), `2.5`, `uint64 7`, `['a', 'b']`, `[uint32 1, 2]`.
fn parse(text: &str) -> Result<Value> {
    if let Some(items) = text.strip_prefix('[') {
        return array(items.strip_suffix(']').ok_or_else(|| not_a_value(text))?);
    }
    if text.starts_with(['\'', '"']) {
        let (value, rest) = string(text)?;
        return if rest.is_empty() { Ok(Value::Text(value)) } else { Err(not_a_value(text)) };
    }
    match text {
        "true" => return Ok(Value::Bool(true)),
        "false" => return Ok(Value::Bool(false)),
        _ => {}
    }
    let (kind, number) = text.split_once(' ').unwrap_or((if text.contains('.') { "double" } else { "int32" }, text));
    let number = number.trim();
    let value = match kind {
        "byte" => number.parse().ok().map(Value::Byte),
        "int16" => number.parse().ok().map(Value::Int16),
        "uint16" => number.parse().ok().map(Value::Uint16),
        "int32" => number.parse().ok().map(Value::Int32),
        "uint32" => number.parse().ok().map(Value::Uint32),
        "int64" => number.parse().ok().map(Value::Int64),
        "uint64" => number.parse().ok().map(Value::Uint64),
        "double" => number.parse().ok().filter(|value: &f64| value.is_finite()).map(Value::Double),
        _ => None,
    };
    value.ok_or_else(|| not_a_value(text))
}

fn not_a_value(text: &str) -> Error {
    Error::invalid(format!("{text:?} is not a value such as true, 'text', uint64 7 or ['a', 'b']"))
}

/// A quoted string and what follows it.
fn string(text: &str) -> Result<(String, &str)> {
    let mut characters = text.char_indices();
    let quote = characters.next().map(|(_, quote)| quote).filter(|quote| matches!(quote, '\'' | '"')).ok_or_else(|| not_a_value(text))?;
    let mut value = String::new();
    while let Some((at, character)) = characters.next() {
        match character {
            '\\' => match characters.next() {
                Some((_, escaped @ ('\\' | '\'' | '"'))) => value.push(escaped),
                _ => return Err(not_a_value(text)),
            },
            _ if character == quote => return Ok((value, text[at + 1..].trim_start())),
            _ if character.is_control() => return Err(not_a_value(text)),
            _ => value.push(character),
        }
    }
    Err(not_a_value(text))
}

fn array(items: &str) -> Result<Value> {
    let mut rest = items.trim();
    if let Some(numbers) = rest.strip_prefix("uint32 ") {
        let numbers = numbers.split(',').map(|number| number.trim().parse().map_err(|_| not_a_value(number)));
        return numbers.collect::<Result<_>>().map(Value::Uint32s);
    }
    let mut texts = Vec::new();
    while !rest.is_empty() {
        let (text, after) = string(rest)?;
        texts.push(text);
        rest = match after.strip_prefix(',') {
            Some(next) if !next.trim().is_empty() => next.trim_start(),
            None if after.is_empty() => after,
            _ => return Err(not_a_value(items)),
        };
    }
    Ok(Value::Texts(texts))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;
    use proptest::prelude::*;

    fn one(name: &str, value: &str) -> Result<Property> {
        let annotations = HashMap::from([(format!("{PREFIX}{name}"), value.to_owned()), ("other".to_owned(), "x".to_owned())]);
        properties(&annotations).map(|mut list| list.remove(0))
    }

    #[test]
    fn values_are_read_as_runc_reads_them() {
        let text = |text: &str| text.to_owned();
        for (given, value) in [
            ("true", Value::Bool(true)),
            ("'in\\'active'", Value::Text(text("in'active"))),
            ("\"x\"", Value::Text(text("x"))),
            ("7", Value::Int32(7)),
            ("uint64 18446744073709551615", Value::Uint64(u64::MAX)),
            ("byte 255", Value::Byte(255)),
            ("int16 -1", Value::Int16(-1)),
            ("2.5", Value::Double(2.5)),
            ("['a.service', \"b\"]", Value::Texts(vec![text("a.service"), text("b")])),
            ("[]", Value::Texts(Vec::new())),
            ("[uint32 1, 2]", Value::Uint32s(vec![1, 2])),
        ] {
            assert_eq!(one("Name", given).unwrap(), (text("Name"), value), "{given}");
        }
    }

    #[test]
    fn seconds_become_microseconds() {
        assert_eq!(one("TimeoutStopSec", "uint64 3").unwrap(), ("TimeoutStopUSec".to_owned(), Value::Uint64(3_000_000)));
        assert_eq!(one("TimeoutStopSec", "1.5").unwrap().1, Value::Uint64(1_500_000));
        assert_eq!(one("TimeoutStopUSec", "uint64 3").unwrap(), ("TimeoutStopUSec".to_owned(), Value::Uint64(3)));
        for wrong in ["'3'", "-1", "uint64 18446744073709551615"] {
            assert!(one("TimeoutStopSec", wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_is_no_value_is_refused_by_the_name_of_the_annotation() {
        for (name, value) in [
            ("Na", "true"),
            ("Na1e", "true"),
            ("Na me", "true"),
            ("PIDs", "[uint32 1]"),
            ("Slice", "'system.slice'"),
            ("Name", ""),
            ("Name", "yes"),
            ("Name", "byte 256"),
            ("Name", "int32 99999999999"),
            ("Name", "'open"),
            ("Name", "'a' 'b'"),
            ("Name", "'a\nb'"),
            ("Name", "['a',]"),
            ("Name", "['a' 'b']"),
            ("Name", "[1, 2]"),
            ("Name", "double nan"),
            ("Name", "@as []"),
        ] {
            let error = one(name, value).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{name} {value}");
            assert!(error.to_string().starts_with("annotations[org.systemd.property."), "{error}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_value_or_an_error(text in "(\\[|\\]|'|\"|\\\\|,| |uint64 |[0-9a-z]|\\PC){0,12}") {
            let _ = one("Name", &text);
        }
    }
}
