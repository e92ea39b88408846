//! A program on a terminal that the test holds the other end of.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags, open};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use crate::command::{code, readable, signal, wait_for};
use crate::{Result, fail};

/// The master side and the program on the slave side.
pub struct Pty {
    master: File,
    child: Child,
    seen: String,
}

impl Pty {
    /// Starts `command` with all three standard streams on a new terminal of this size.
    pub fn spawn(command: &mut Command, rows: u16, columns: u16) -> Result<Pty> {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        grantpt(&master)?;
        unlockpt(&master)?;
        let slave: OwnedFd = open(ptsname(&master, Vec::new())?, OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty())?;
        resize(&master, rows, columns)?;
        command.stdin(slave.try_clone()?).stdout(slave.try_clone()?).stderr(slave);
        let child = command.spawn()?;
        // The Command keeps the slave open, which would hide the end of the program.
        command.stdin(std::process::Stdio::null()).stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
        Ok(Pty { master: File::from(master), child, seen: String::new() })
    }

    /// Types `text`.
    pub fn send(&mut self, text: &str) -> Result<()> {
        Ok(self.master.write_all(text.as_bytes())?)
    }

    /// Changes the size and tells the program, as a terminal emulator does.
    pub fn resize(&mut self, rows: u16, columns: u16) -> Result<()> {
        resize(&self.master, rows, columns)?;
        signal(self.child.id(), rustix::process::Signal::WINCH)
    }

    /// Reads until `text` was shown, and answers all that was shown up to now.
    pub fn expect(&mut self, text: &str, limit: Duration) -> Result<&str> {
        let end = Instant::now() + limit;
        while !self.seen.contains(text) {
            if !self.read_some(end.saturating_duration_since(Instant::now()))? {
                fail!("the terminal did not show {text:?}, but {:?}", self.seen);
            }
        }
        Ok(&self.seen)
    }

    /// Reads to the end of the program and answers what was shown and its exit code.
    pub fn finish(mut self, limit: Duration) -> Result<(String, i32)> {
        let end = Instant::now() + limit;
        while self.read_some(end.saturating_duration_since(Instant::now()))? {}
        match wait_for(&mut self.child, end.saturating_duration_since(Instant::now()).max(Duration::from_secs(1)))? {
            Some(status) => Ok((self.seen, code(status))),
            None => {
                self.child.kill()?;
                self.child.wait()?;
                fail!("the program on the terminal did not end in {limit:?}; it showed {:?}", self.seen)
            }
        }
    }

    /// Ends the program, as closing a terminal window does.
    pub fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// False at the end of the program (EIO: the last slave is closed) or of the time.
    fn read_some(&mut self, limit: Duration) -> Result<bool> {
        if !readable(&self.master, limit)? {
            return Ok(false);
        }
        let mut bytes = [0; 4096];
        match self.master.read(&mut bytes) {
            Ok(0) => Ok(false),
            Ok(n) => {
                self.seen.push_str(&String::from_utf8_lossy(&bytes[..n]));
                Ok(true)
            }
            Err(e) if e.raw_os_error() == Some(libc::EIO) => Ok(false),
            Err(e) => Err(e.into()),
        }
    }
}

fn resize(master: &impl AsFd, rows: u16, columns: u16) -> Result<()> {
    Ok(tcsetwinsize(master, Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 })?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_sees_a_terminal_of_the_size() {
        let mut pty = Pty::spawn(Command::new("sh").args(["-c", "stty size; read line; echo got $line; exit 4"]), 33, 77).unwrap();
        pty.expect("33 77", Duration::from_secs(5)).unwrap();
        pty.send("word\n").unwrap();
        let (seen, code) = pty.finish(Duration::from_secs(5)).unwrap();
        assert!(seen.contains("got word"), "{seen}");
        assert_eq!(code, 4);
    }
}
