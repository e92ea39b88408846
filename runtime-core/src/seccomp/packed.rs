//! A table of numbers and names as one string of bytes, made by the compiler.
//!
//! The crate's own tables are lists of pointers: a position-independent program has to relocate each of them whenever it starts, five thousand
//! for all architectures, in memory that is its own from then on.

/// The bytes of one entry besides its name: the number in little endian, and the length of the name.
const HEADER: usize = 3;

/// Writes entries one after the other; with no room to write to it only measures.
pub(super) struct Packer<const SIZE: usize> {
    pub bytes: [u8; SIZE],
    pub length: usize,
}

impl<const SIZE: usize> Packer<SIZE> {
    pub const fn new() -> Self {
        Self { bytes: [0; SIZE], length: 0 }
    }

    /// `r#` is Rust's mark of a name that is also one of its keywords.
    pub const fn add(mut self, nr: u32, name: &str) -> Self {
        let name = match name.as_bytes() {
            [b'r', b'#', name @ ..] => name,
            name => name,
        };
        if SIZE > 0 {
            let [low, high, _, _] = nr.to_le_bytes();
            self.bytes[self.length] = low;
            self.bytes[self.length + 1] = high;
            self.bytes[self.length + 2] = name.len() as u8;
            let mut at = 0;
            while at < name.len() {
                self.bytes[self.length + HEADER + at] = name[at];
                at += 1;
            }
        }
        self.length += HEADER + name.len();
        self
    }
}

/// The packed table of an architecture of the `syscalls` crate, whose numbers begin at `$first`.
macro_rules! packed {
    ($table:ident, $first:expr) => {{
        const fn pack<const SIZE: usize>() -> Packer<SIZE> {
            let mut packer = Packer::new();
            let mut nr = $first;
            while nr <= $table::Sysno::last().id() as u32 {
                if let Some(call) = $table::Sysno::new(nr as usize) {
                    packer = packer.add(nr, call.name());
                }
                nr += 1;
            }
            packer
        }
        const LENGTH: usize = pack::<0>().length;
        static PACKED: [u8; LENGTH] = pack::<LENGTH>().bytes;
        &PACKED[..]
    }};
}
pub(super) use packed;

/// The numbers and names of a packed table.
pub(super) fn entries(mut packed: &'static [u8]) -> impl Iterator<Item = (u32, &'static str)> {
    std::iter::from_fn(move || {
        let (&[low, high, length], rest) = packed.split_first_chunk::<HEADER>()?;
        let (name, rest) = rest.split_at_checked(usize::from(length))?;
        packed = rest;
        Some((u32::from(u16::from_le_bytes([low, high])), std::str::from_utf8(name).ok()?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use syscalls::{mips64, x86_64};

    #[test]
    fn a_packed_table_has_every_entry_of_the_crates() {
        let packed: Vec<_> = entries(packed!(x86_64, 0)).collect();
        let all = (0..=x86_64::Sysno::last().id() as u32).filter_map(|nr| Some((nr, x86_64::Sysno::new(nr as usize)?.name())));
        assert_eq!(packed, all.collect::<Vec<_>>());
        assert!(packed.contains(&(59, "execve")) && packed.len() > 350);
        let first = entries(packed!(mips64, 5000)).next();
        assert_eq!(first, Some((5000, "read")));
    }

    #[test]
    fn marks_of_keywords_are_left_out() {
        let packer = Packer::<16>::new().add(3, "r#break").add(300, "x");
        assert_eq!(packer.bytes[..packer.length], [3, 0, 5, b'b', b'r', b'e', b'a', b'k', 44, 1, 1, b'x']);
    }
}
