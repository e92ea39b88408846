//! The D-Bus wire format (D-Bus specification, "Message Protocol"), as far as systemd's manager needs it, in the machine's own byte order.

use crate::error::{Error, ErrorKind, Result};

/// Both bounds of the specification are 64 MiB and more; no answer of the manager's that is read here has more than a few hundred bytes.
pub(super) const MESSAGE_MAX: usize = 1 << 20;
/// What precedes the header's fields.
pub(super) const FIXED: usize = 16;

const ENDIAN: u8 = if cfg!(target_endian = "little") { b'l' } else { b'B' };
const PROTOCOL: u8 = 1;
/// How deep a signature may nest (D-Bus specification, "Valid Signatures").
const DEPTH_MAX: usize = 32;

/// A value of one of the types that systemd's properties have.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs, reason = "each is the D-Bus type of its name")]
pub enum Value {
    Bool(bool),
    Byte(u8),
    Int16(i16),
    Uint16(u16),
    Int32(i32),
    Uint32(u32),
    Int64(i64),
    Uint64(u64),
    Double(f64),
    Text(String),
    Bytes(Vec<u8>),
    Uint32s(Vec<u32>),
    Texts(Vec<String>),
    /// `a(ss)`.
    Pairs(Vec<(String, String)>),
}

impl Value {
    pub(super) fn signature(&self) -> &'static str {
        match self {
            Self::Bool(_) => "b",
            Self::Byte(_) => "y",
            Self::Int16(_) => "n",
            Self::Uint16(_) => "q",
            Self::Int32(_) => "i",
            Self::Uint32(_) => "u",
            Self::Int64(_) => "x",
            Self::Uint64(_) => "t",
            Self::Double(_) => "d",
            Self::Text(_) => "s",
            Self::Bytes(_) => "ay",
            Self::Uint32s(_) => "au",
            Self::Texts(_) => "as",
            Self::Pairs(_) => "a(ss)",
        }
    }
}

/// A property of a unit.
pub type Property = (String, Value);

/// Writes values one after the other. Alignment counts from where it began, which must be at a multiple of eight.
#[derive(Debug, Default)]
pub(super) struct Writer(Vec<u8>);

impl Writer {
    pub fn finish(self) -> Vec<u8> {
        self.0
    }

    fn align(&mut self, to: usize) {
        self.0.resize(self.0.len().next_multiple_of(to), 0);
    }

    pub fn uint32(&mut self, value: u32) {
        self.align(4);
        self.0.extend(value.to_ne_bytes());
    }

    fn wide(&mut self, bytes: [u8; 8]) {
        self.align(8);
        self.0.extend(bytes);
    }

    pub fn text(&mut self, text: &str) {
        self.uint32(text.len() as u32);
        self.0.extend(text.as_bytes());
        self.0.push(0);
    }

    fn signature(&mut self, signature: &str) {
        self.0.push(signature.len() as u8);
        self.0.extend(signature.as_bytes());
        self.0.push(0);
    }

    fn array(&mut self, align: usize, items: impl FnOnce(&mut Self)) {
        self.uint32(0);
        let length = self.0.len() - 4;
        self.align(align);
        let start = self.0.len();
        items(self);
        let bytes = ((self.0.len() - start) as u32).to_ne_bytes();
        self.0[length..length + 4].copy_from_slice(&bytes);
    }

    pub fn variant(&mut self, value: &Value) {
        self.signature(value.signature());
        match value {
            Value::Bool(value) => self.uint32((*value).into()),
            Value::Byte(value) => self.0.push(*value),
            Value::Int16(value) => self.short(value.to_ne_bytes()),
            Value::Uint16(value) => self.short(value.to_ne_bytes()),
            Value::Int32(value) => self.uint32(value.cast_unsigned()),
            Value::Uint32(value) => self.uint32(*value),
            Value::Int64(value) => self.wide(value.to_ne_bytes()),
            Value::Uint64(value) => self.wide(value.to_ne_bytes()),
            Value::Double(value) => self.wide(value.to_ne_bytes()),
            Value::Text(value) => self.text(value),
            Value::Bytes(bytes) => self.array(1, |writer| writer.0.extend(bytes)),
            Value::Uint32s(numbers) => self.array(4, |writer| numbers.iter().for_each(|number| writer.uint32(*number))),
            Value::Texts(texts) => self.array(4, |writer| texts.iter().for_each(|text| writer.text(text))),
            Value::Pairs(pairs) => self.array(8, |writer| {
                for (first, second) in pairs {
                    writer.align(8);
                    writer.text(first);
                    writer.text(second);
                }
            }),
        }
    }

    fn short(&mut self, bytes: [u8; 2]) {
        self.align(2);
        self.0.extend(bytes);
    }

    /// `a(sv)`.
    pub fn properties(&mut self, properties: &[Property]) {
        self.array(8, |writer| {
            for (name, value) in properties {
                writer.align(8);
                writer.text(name);
                writer.variant(value);
            }
        });
    }

    /// `a(sa(sv))` with nothing in it: what StartTransientUnit calls `aux`.
    pub fn nothing_auxiliary(&mut self) {
        self.array(8, |_| {});
    }
}

/// What a message is (D-Bus specification, "Message Types").
pub(super) mod kind {
    pub const CALL: u8 = 1;
    pub const ERROR: u8 = 3;
    pub const SIGNAL: u8 = 4;
}

/// Codes of header fields (D-Bus specification, "Header Fields").
mod field {
    pub const PATH: u8 = 1;
    pub const INTERFACE: u8 = 2;
    pub const MEMBER: u8 = 3;
    pub const ERROR_NAME: u8 = 4;
    pub const REPLY_SERIAL: u8 = 5;
    pub const DESTINATION: u8 = 6;
    pub const SIGNATURE: u8 = 8;
}

/// A method call, without its serial.
#[derive(Debug)]
pub struct Call {
    pub(super) destination: &'static str,
    pub(super) path: &'static str,
    pub(super) interface: &'static str,
    pub(super) member: &'static str,
    pub(super) signature: &'static str,
    pub(super) body: Vec<u8>,
    /// Whether the answer is the path of a job, whose end is what is waited for.
    pub(super) job: bool,
}

impl Call {
    pub(super) fn encode(&self, serial: u32) -> Vec<u8> {
        let mut writer = Writer(vec![ENDIAN, kind::CALL, 0, PROTOCOL]);
        writer.uint32(self.body.len() as u32);
        writer.uint32(serial);
        writer.array(8, |writer| {
            let fields = [
                (field::PATH, "o", self.path),
                (field::INTERFACE, "s", self.interface),
                (field::MEMBER, "s", self.member),
                (field::DESTINATION, "s", self.destination),
            ];
            for (code, signature, text) in fields {
                writer.align(8);
                writer.0.push(code);
                writer.signature(signature);
                writer.text(text);
            }
            if !self.signature.is_empty() {
                writer.align(8);
                writer.0.push(field::SIGNATURE);
                writer.signature("g");
                writer.signature(self.signature);
            }
        });
        writer.align(8);
        writer.0.extend(&self.body);
        writer.0
    }
}

/// What came from the other side, as far as it is looked at.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Message {
    pub kind: u8,
    pub reply_serial: u32,
    pub path: String,
    pub interface: String,
    pub member: String,
    pub error_name: String,
    pub signature: String,
    pub body: Vec<u8>,
}

/// How long the message is that begins with `bytes`; `None` while that cannot be told.
pub(super) fn length(bytes: &[u8]) -> Result<Option<usize>> {
    let Some(fixed) = bytes.first_chunk::<FIXED>() else { return Ok(None) };
    if fixed[0] != ENDIAN || fixed[3] != PROTOCOL {
        return Err(malformed("byte order or version"));
    }
    let number = |at: usize| u32::from_ne_bytes([fixed[at], fixed[at + 1], fixed[at + 2], fixed[at + 3]]) as usize;
    let (body, fields) = (number(4), number(12));
    if body > MESSAGE_MAX || fields > MESSAGE_MAX {
        return Err(malformed("a message that is too long"));
    }
    Ok(Some((FIXED + fields).next_multiple_of(8) + body))
}

impl Message {
    /// Reads one whole message: `bytes` is of the length that [`length`] told.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let mut reader = Reader { bytes, at: 4 };
        let body_length = reader.uint32()? as usize;
        let mut message = Self { kind: bytes[1], ..Self::default() };
        reader.uint32()?;
        let end = reader.uint32()? as usize + FIXED;
        while reader.at < end {
            reader.align(8)?;
            let code = reader.byte()?;
            let signature = reader.signature()?;
            match (code, signature) {
                (field::PATH, "o") => message.path = reader.text()?.to_owned(),
                (field::INTERFACE, "s") => message.interface = reader.text()?.to_owned(),
                (field::MEMBER, "s") => message.member = reader.text()?.to_owned(),
                (field::ERROR_NAME, "s") => message.error_name = reader.text()?.to_owned(),
                (field::REPLY_SERIAL, "u") => message.reply_serial = reader.uint32()?,
                (field::SIGNATURE, "g") => message.signature = reader.signature()?.to_owned(),
                (_, other) => reader.skip(other, 0).map(drop)?,
            }
        }
        reader.align(8)?;
        let body = bytes.get(reader.at..).filter(|body| body.len() == body_length);
        message.body = body.ok_or_else(|| malformed("a body of another length"))?.to_owned();
        Ok(message)
    }

    /// The values of the body, if it is of this type.
    pub fn read(&self, signature: &str) -> Result<Reader<'_>> {
        if self.signature != signature {
            return Err(malformed(&format!("an answer of type {:?} in place of {signature:?}", self.signature)));
        }
        Ok(Reader { bytes: &self.body, at: 0 })
    }
}

fn malformed(what: &str) -> Error {
    Error::new(ErrorKind::Internal, format!("D-Bus: {what}"))
}

/// Reads values one after the other.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        let end =
            self.at.checked_add(count).filter(|end| *end <= self.bytes.len()).ok_or_else(|| malformed("a message that is cut off"))?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn align(&mut self, to: usize) -> Result<()> {
        let padding = self.at.next_multiple_of(to) - self.at;
        self.take(padding).map(drop)
    }

    fn byte(&mut self) -> Result<u8> {
        self.take(1).map(|bytes| bytes[0])
    }

    pub fn uint32(&mut self) -> Result<u32> {
        self.align(4)?;
        let bytes = self.take(4)?;
        Ok(u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    /// A string or an object path.
    pub fn text(&mut self) -> Result<&'a str> {
        let length = self.uint32()? as usize;
        self.terminated(length)
    }

    pub fn signature(&mut self) -> Result<&'a str> {
        let length = self.byte()?.into();
        self.terminated(length)
    }

    fn terminated(&mut self, length: usize) -> Result<&'a str> {
        let bytes = self.take(length)?;
        if self.byte()? != 0 {
            return Err(malformed("a string without an end"));
        }
        std::str::from_utf8(bytes).map_err(|_| malformed("a string that is not UTF-8"))
    }

    /// Passes over one complete value of the type that `signature` begins with: what follows of the signature.
    fn skip<'s>(&mut self, signature: &'s str, depth: usize) -> Result<&'s str> {
        let kind = *signature.as_bytes().first().ok_or_else(|| malformed("a signature that is cut off"))?;
        if depth > DEPTH_MAX {
            return Err(malformed("a signature that nests too deep"));
        }
        let rest = signature.get(1..).unwrap_or_default();
        match kind {
            b'y' => self.byte().map(drop)?,
            b'n' | b'q' => self.align(2).and_then(|()| self.take(2)).map(drop)?,
            b'b' | b'i' | b'u' | b'h' => self.uint32().map(drop)?,
            b'x' | b't' | b'd' => self.align(8).and_then(|()| self.take(8)).map(drop)?,
            b's' | b'o' => self.text().map(drop)?,
            b'g' => self.signature().map(drop)?,
            b'v' => {
                let inner = self.signature()?;
                self.skip(inner, depth + 1)?;
            }
            _ => return Err(malformed(&format!("a header field of type {signature:?}"))),
        }
        Ok(rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn call(body: Vec<u8>, signature: &'static str) -> Call {
        Call { destination: "org.x", path: "/org/x", interface: "org.x.I", member: "Do", signature, body, job: false }
    }

    #[test]
    fn a_call_is_laid_out_as_the_specification_says() {
        let mut body = Writer::default();
        body.text("a");
        body.properties(&[("N".to_owned(), Value::Uint64(7))]);
        let bytes = call(body.finish(), "sa(sv)").encode(3);
        assert_eq!(length(&bytes).unwrap(), Some(bytes.len()));
        let message = Message::decode(&bytes).unwrap();
        assert_eq!((message.kind, message.path.as_str(), message.member.as_str()), (1, "/org/x", "Do"));
        let expected = [
            &[1, 0, 0, 0, b'a', 0, 0, 0][..],
            // The array's length counts from the first element, which is at a multiple of eight.
            &[24, 0, 0, 0, 0, 0, 0, 0],
            &[1, 0, 0, 0, b'N', 0, 1, b't', 0, 0, 0, 0, 0, 0, 0, 0],
            &[7, 0, 0, 0, 0, 0, 0, 0],
        ];
        if cfg!(target_endian = "little") {
            assert_eq!(message.body, expected.concat());
        }
    }

    #[test]
    fn an_answer_of_another_type_is_an_error() {
        let message = Message { signature: "s".to_owned(), ..Message::default() };
        assert!(message.read("o").unwrap_err().to_string().contains("\"s\" in place of \"o\""));
    }

    #[test]
    fn what_claims_to_be_endless_is_refused() {
        let mut bytes = call(Vec::new(), "").encode(1);
        bytes[4..8].copy_from_slice(&u32::MAX.to_ne_bytes());
        assert!(length(&bytes).is_err());
    }

    proptest! {
        #[test]
        fn junk_is_an_error_and_no_panic(mut junk in proptest::collection::vec(any::<u8>(), 16..200), cut in 0usize..100) {
            let _ = Message::decode(&junk);
            let valid = call(vec![1, 2, 3], "ay").encode(9);
            let keep = cut.min(valid.len());
            junk.splice(0..0, valid[..keep].iter().copied());
            let _ = length(&junk).map(|_| Message::decode(&junk));
        }
    }
}
