//! A user's home directory from a passwd(5) that comes in pieces: the child does not allocate.

/// Longer ones are passed over: they are no path that could be entered.
pub const HOME_MAX: usize = 4096;

/// The fields of a line that matter: `name:password:uid:gid:comment:home:shell`.
const UID: usize = 2;
const HOME: usize = 5;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Number {
    Missing,
    Is(u32),
    Bad,
}

impl Number {
    /// The number with one more digit.
    fn and(self, byte: u8) -> Self {
        let so_far = match self {
            Self::Missing => 0,
            Self::Is(number) => number,
            Self::Bad => return Self::Bad,
        };
        let digit = byte.is_ascii_digit().then(|| u32::from(byte - b'0'));
        let next = digit.and_then(|digit| so_far.checked_mul(10)?.checked_add(digit));
        next.map_or(Self::Bad, Self::Is)
    }
}

/// Looks for the first line of a user.
pub struct Search {
    uid: u32,
    field: usize,
    /// The user id of the line, as far as it has come.
    found: Number,
    home: [u8; HOME_MAX],
    length: usize,
    done: bool,
}

impl Search {
    pub fn new(uid: u32) -> Self {
        Self { uid, field: 0, found: Number::Missing, home: [0; HOME_MAX], length: 0, done: false }
    }

    /// Takes the next piece. True once the line has been found: no more need be taken.
    pub fn take(&mut self, piece: &[u8]) -> bool {
        for &byte in piece {
            match byte {
                b'\n' => self.end_of_line(),
                b':' => self.field += 1,
                _ if self.field == UID => self.found = self.found.and(byte),
                _ if self.field == HOME => {
                    if let Some(place) = self.home.get_mut(self.length) {
                        *place = byte;
                    }
                    self.length = self.length.saturating_add(1);
                }
                _ => {}
            }
            if self.done {
                return true;
            }
        }
        false
    }

    /// A line is complete, the last one perhaps without a newline.
    pub fn end_of_line(&mut self) {
        let usable = self.length > 0 && self.length <= HOME_MAX;
        if self.field >= HOME && usable && self.found == Number::Is(self.uid) {
            self.done = true;
            return;
        }
        (self.field, self.found, self.length) = (0, Number::Missing, 0);
    }

    /// The home directory, if the line was found.
    pub fn home(&self) -> Option<&[u8]> {
        if self.done { self.home.get(..self.length) } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn home(uid: u32, text: &[u8], piece: usize) -> Option<String> {
        let mut search = Search::new(uid);
        if !text.chunks(piece).any(|piece| search.take(piece)) {
            search.end_of_line();
        }
        search.home().map(|home| String::from_utf8(home.to_vec()).unwrap())
    }

    #[test]
    fn the_first_usable_line_of_the_user_counts_however_it_is_cut() {
        let text =
            b"# :x:7\nroot:x:0:0:root:/root:/bin/sh\n\nshort:x:7\nempty:x:7:7:::/bin/sh\nbad:x:7x:7::/bad:\nbig:x:4294967303:7::/big:\n\
            seven:x:7:7:a,b:/home/seven:/bin/sh\nagain:x:7:7::/again:\nlast:x:8:8::/last";
        for piece in [1, 2, 3, 7, 64, 4096] {
            assert_eq!(home(0, text, piece).as_deref(), Some("/root"));
            assert_eq!(home(7, text, piece).as_deref(), Some("/home/seven"));
            assert_eq!(home(8, text, piece).as_deref(), Some("/last"));
            assert_eq!(home(9, text, piece), None);
        }
    }

    #[test]
    fn a_home_that_is_too_long_is_passed_over() {
        let text = format!("x:x:1:1::/{}:/bin/sh\ny:x:1:1::/y:", "a".repeat(HOME_MAX));
        assert_eq!(home(1, text.as_bytes(), 100).as_deref(), Some("/y"));
        let text = format!("x:x:1:1::/{}:/bin/sh", "a".repeat(HOME_MAX - 1));
        assert_eq!(home(1, text.as_bytes(), 100).map(|home| home.len()), Some(HOME_MAX));
    }
}
