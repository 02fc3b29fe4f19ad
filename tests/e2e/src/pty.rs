//! A terminal for the commands that want one, with a person's end in the test's hands.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use rustix::fs::OFlags;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Termios, Winsize, tcgetattr, tcsetwinsize};

/// A command on a terminal.
pub struct Terminal {
    master: File,
    slave: File,
    child: Child,
    chunks: Receiver<Vec<u8>>,
    /// Everything shown so far.
    pub shown: Vec<u8>,
}

impl Terminal {
    /// Starts `command` on a new terminal of that many rows and columns.
    pub fn start(mut command: Command, rows: u16, columns: u16) -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)
            .expect("open a terminal");
        grantpt(&master).expect("grant a terminal");
        unlockpt(&master).expect("unlock a terminal");
        let name = ptsname(&master, Vec::new()).expect("the terminal's name");
        let path = std::path::Path::new(name.to_str().expect("a name in ASCII"));
        // A test that leads a session would become the terminal's owner by opening it.
        let slave = File::options()
            .read(true)
            .write(true)
            .custom_flags(OFlags::NOCTTY.bits() as i32)
            .open(path)
            .expect("open the terminal's end");
        let master = File::from(master);
        set_size(&master, rows, columns);
        let end = || Stdio::from(slave.try_clone().expect("clone a descriptor"));
        command.stdin(end()).stdout(end()).stderr(end());
        // SAFETY: only setsid and an ioctl run between fork and exec; both are
        // async-signal-safe and touch no memory of the parent.
        unsafe {
            command.pre_exec(|| {
                rustix::process::setsid()?;
                rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())?;
                Ok(())
            });
        }
        let child = command.spawn().expect("run a command on a terminal");
        let chunks = read_in_thread(master.try_clone().expect("clone a descriptor"));
        Self { master, slave, child, chunks, shown: Vec::new() }
    }

    /// Types.
    pub fn write(&mut self, keys: &[u8]) {
        self.master.write_all(keys).expect("type");
    }

    /// Makes the window another size.
    pub fn resize(&self, rows: u16, columns: u16) {
        set_size(&self.master, rows, columns);
    }

    /// The terminal's modes, as the command has left them.
    pub fn modes(&self) -> Termios {
        tcgetattr(&self.slave).expect("the terminal's modes")
    }

    /// The command's process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until `text` was shown, and forgets what was shown up to its end.
    #[track_caller]
    pub fn expect(&mut self, text: &str, deadline: Duration) {
        let end = Instant::now() + deadline;
        loop {
            if let Some(at) = find(&self.shown, text.as_bytes()) {
                self.shown.drain(..at + text.len());
                return;
            }
            let left = end.saturating_duration_since(Instant::now());
            match self.chunks.recv_timeout(left) {
                Ok(chunk) => self.shown.extend_from_slice(&chunk),
                Err(error) => panic!(
                    "no {text:?} within {deadline:?} ({error}); shown: {:?}",
                    String::from_utf8_lossy(&self.shown)
                ),
            }
        }
    }

    /// Waits for the command's end and returns its exit code.
    #[track_caller]
    pub fn wait(&mut self, deadline: Duration) -> i32 {
        let end = Instant::now() + deadline;
        loop {
            if let Some(status) = self.child.try_wait().expect("wait for a child") {
                while let Ok(chunk) = self.chunks.recv_timeout(Duration::from_millis(50)) {
                    self.shown.extend_from_slice(&chunk);
                }
                return status.code().unwrap_or(-1);
            }
            assert!(
                Instant::now() < end,
                "the command on the terminal did not end within {deadline:?}; shown: {:?}",
                String::from_utf8_lossy(&self.shown)
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Terminal {
    /// Waits for the command's end without a deadline or a pause, for measurements.
    pub fn end(&mut self) -> i32 {
        self.child.wait().ok().and_then(|status| status.code()).unwrap_or(-1)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn set_size(terminal: &File, rows: u16, columns: u16) {
    let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(terminal, size).expect("set the terminal's size");
}

fn read_in_thread(mut from: File) -> Receiver<Vec<u8>> {
    let (sender, chunks) = mpsc::channel();
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(read @ 1..) = from.read(&mut buffer) {
            if sender.send(buffer[..read].to_vec()).is_err() {
                break;
            }
        }
    });
    chunks
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_on_a_terminal_sees_it_and_its_size() {
        let mut command = Command::new("sh");
        command.args(["-c", "tty && stty size && read line && echo got $line"]);
        let mut terminal = Terminal::start(command, 33, 101);
        terminal.expect("/dev/pts/", Duration::from_secs(5));
        terminal.expect("33 101", Duration::from_secs(5));
        terminal.write(b"word\n");
        terminal.expect("got word", Duration::from_secs(5));
        assert_eq!(terminal.wait(Duration::from_secs(5)), 0);
    }
}
