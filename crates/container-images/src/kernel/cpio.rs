//! A writer of cpio archives in the form that the kernel unpacks (`newc`), deterministic: every
//! entry belongs to root and has no time.

use std::io::{self, Write};

const S_IFREG: u32 = 0o100_000;
const S_IFDIR: u32 = 0o040_000;
const S_IFCHR: u32 = 0o020_000;

/// Writes entries; [`CpioWriter::finish`] ends the archive.
#[derive(Debug)]
pub(super) struct CpioWriter<W: Write> {
    out: W,
    inode: u32,
}

struct Header<'a> {
    name: &'a str,
    mode: u32,
    links: u32,
    size: usize,
    device: (u32, u32),
}

impl<W: Write> CpioWriter<W> {
    pub(super) fn new(out: W) -> Self {
        CpioWriter { out, inode: 0 }
    }

    /// A directory, `0755`.
    pub(super) fn directory(&mut self, name: &str) -> io::Result<()> {
        let mode = S_IFDIR | 0o755;
        self.entry(Header { name, mode, links: 2, size: 0, device: (0, 0) }, &[])
    }

    /// A file with permission bits `mode`.
    pub(super) fn file(&mut self, name: &str, mode: u32, content: &[u8]) -> io::Result<()> {
        let mode = S_IFREG | mode;
        let size = content.len();
        self.entry(Header { name, mode, links: 1, size, device: (0, 0) }, content)
    }

    /// A character device, `0600`.
    pub(super) fn device(&mut self, name: &str, major: u32, minor: u32) -> io::Result<()> {
        let mode = S_IFCHR | 0o600;
        self.entry(Header { name, mode, links: 1, size: 0, device: (major, minor) }, &[])
    }

    /// Ends the archive and gives the writer back.
    pub(super) fn finish(mut self) -> io::Result<W> {
        self.inode = u32::MAX;
        let (name, mode) = ("TRAILER!!!", 0);
        self.entry(Header { name, mode, links: 1, size: 0, device: (0, 0) }, &[])?;
        Ok(self.out)
    }

    fn entry(&mut self, header: Header<'_>, content: &[u8]) -> io::Result<()> {
        self.inode = self.inode.wrapping_add(1);
        let size = u32::try_from(header.size)
            .map_err(|_| io::Error::new(io::ErrorKind::FileTooLarge, "above 4 GiB in a cpio"))?;
        let fields = [
            self.inode,
            header.mode,
            0, // owner
            0, // group
            header.links,
            0, // time
            size,
            0, // device that the file lay on
            0,
            header.device.0,
            header.device.1,
            header.name.len() as u32 + 1,
            0, // checksum, not used in this form
        ];
        write!(self.out, "070701")?;
        for field in fields {
            write!(self.out, "{field:08X}")?;
        }
        self.out.write_all(header.name.as_bytes())?;
        // The header has 110 bytes; name and content each end at a multiple of four.
        let end = 110 + header.name.len();
        self.out.write_all(&[0; 4][..1 + (3 - end % 4)])?;
        self.out.write_all(content)?;
        self.out.write_all(&[0; 4][..content.len().next_multiple_of(4) - content.len()])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn busybox_reads_it() {
        let mut cpio = CpioWriter::new(Vec::new());
        cpio.directory("dev").unwrap();
        cpio.device("dev/console", 5, 1).unwrap();
        for (name, content) in [("a", "x"), ("ab", "xy"), ("abc", "xyz"), ("abcd", "wxyz")] {
            cpio.file(name, 0o755, content.as_bytes()).unwrap();
        }
        let archive = cpio.finish().unwrap();
        let mut child = Command::new("busybox")
            .args(["cpio", "-tv"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("busybox is installed");
        child.stdin.take().unwrap().write_all(&archive).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success());
        let text = String::from_utf8(output.stdout).unwrap();
        let names: Vec<&str> = text.lines().filter_map(|l| l.split_whitespace().last()).collect();
        assert_eq!(names, ["dev", "dev/console", "a", "ab", "abc", "abcd"], "{text}");
        assert!(text.contains("crw------- 0/0") || text.contains("crw-------"), "{text}");
    }
}
