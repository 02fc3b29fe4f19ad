//! A bounded, streaming reader: ustar, GNU's long names, pax.

use std::io::Read;

use crate::entry::{BLOCK, Entry, Kind, Time, XATTR};
use crate::write::checksum;
use crate::{ArchiveError, Result};

/// Longest pax header and longest long name, in bytes.
const MAX_EXTENSION: u64 = 1 << 20;
/// Longest path.
const MAX_PATH: usize = 4096;

/// Reads entries, and the data of each.
#[derive(Debug)]
pub struct TarReader<R> {
    inner: R,
    left: u64,
    padding: u64,
}

/// What the headers before an entry's own say of it.
#[derive(Default)]
struct Extensions {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    uid: Option<u32>,
    gid: Option<u32>,
    size: Option<u64>,
    mtime: Option<Time>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl<R: Read> TarReader<R> {
    /// Reads from `inner`.
    pub fn new(inner: R) -> Self {
        TarReader { inner, left: 0, padding: 0 }
    }

    /// The next entry, past what is left of the last one's data; `None` at the end.
    ///
    /// # Errors
    /// A stream that is no archive, or ends too early.
    pub fn next_entry(&mut self) -> Result<Option<Entry>> {
        let mut extensions = Extensions::default();
        loop {
            self.skip()?;
            let Some(block) = self.block()? else { return Ok(None) };
            if block.iter().all(|b| *b == 0) {
                return Ok(None);
            }
            if number(&block[148..156])? != checksum(&block) {
                return Err(ArchiveError::Damaged("a header's checksum is wrong"));
            }
            let size = number(&block[124..136])?;
            match block[156] {
                b'x' | b'X' => extensions.pax(&self.extension(size)?)?,
                b'L' => extensions.path = Some(self.text(size)?),
                b'K' => extensions.link = Some(self.text(size)?),
                b'g' | b'V' => self.set_data(size),
                flag => {
                    let entry = entry(&block, kind(flag)?, extensions)?;
                    let data = if entry.kind == Kind::File { entry.size } else { 0 };
                    self.set_data(data);
                    return Ok(Some(entry));
                }
            }
        }
    }

    /// Reads data of the current entry; 0 bytes when there is no more.
    ///
    /// # Errors
    /// A stream that fails or ends too early.
    pub fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        if most == 0 {
            return Ok(0);
        }
        let n = self.some(&mut buffer[..most])?;
        if n == 0 {
            return Err(ArchiveError::Damaged("it ends within a file"));
        }
        self.left -= n as u64;
        Ok(n)
    }

    /// Reads what follows the archive, so that its writer is not cut off.
    pub fn drain(&mut self) {
        let mut waste = [0; 8192];
        while self.some(&mut waste).is_ok_and(|n| n > 0) {}
    }

    fn set_data(&mut self, size: u64) {
        self.left = size;
        self.padding = size.wrapping_neg() % BLOCK as u64;
    }

    fn skip(&mut self) -> Result<()> {
        let mut waste = [0; 4096];
        while self.read(&mut waste)? > 0 {}
        self.left = std::mem::take(&mut self.padding);
        while self.read(&mut waste)? > 0 {}
        Ok(())
    }

    fn some(&mut self, buffer: &mut [u8]) -> Result<usize> {
        loop {
            match self.inner.read(buffer) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                other => return other.map_err(ArchiveError::Stream),
            }
        }
    }

    fn block(&mut self) -> Result<Option<[u8; BLOCK]>> {
        let (mut block, mut filled) = ([0; BLOCK], 0);
        while filled < BLOCK {
            match self.some(&mut block[filled..])? {
                0 if filled == 0 => return Ok(None),
                0 => return Err(ArchiveError::Damaged("it ends within a header")),
                n => filled += n,
            }
        }
        Ok(Some(block))
    }

    fn extension(&mut self, size: u64) -> Result<Vec<u8>> {
        if size > MAX_EXTENSION {
            return Err(ArchiveError::Damaged("an extension header is too long"));
        }
        self.set_data(size);
        let (mut all, mut piece) = (Vec::new(), [0; 4096]);
        loop {
            match self.read(&mut piece)? {
                0 => return Ok(all),
                n => all.extend_from_slice(&piece[..n]),
            }
        }
    }

    fn text(&mut self, size: u64) -> Result<Vec<u8>> {
        let mut text = self.extension(size)?;
        let end = text.iter().position(|b| *b == 0).unwrap_or(text.len());
        text.truncate(end);
        Ok(text)
    }
}

impl Extensions {
    fn pax(&mut self, mut rest: &[u8]) -> Result<()> {
        const BAD: ArchiveError = ArchiveError::Damaged("a pax header makes no sense");
        while !rest.is_empty() {
            let blank = rest.iter().take(20).position(|b| *b == b' ').ok_or(BAD)?;
            let len = decimal(&rest[..blank]).and_then(|n| usize::try_from(n).ok()).ok_or(BAD)?;
            let record = rest.get(blank + 1..len).ok_or(BAD)?.strip_suffix(b"\n").ok_or(BAD)?;
            rest = &rest[len..];
            let at = record.iter().position(|b| *b == b'=').ok_or(BAD)?;
            let (key, value) = (&record[..at], &record[at + 1..]);
            let id = || decimal(value).and_then(|n| u32::try_from(n).ok()).ok_or(BAD);
            match key {
                b"path" => self.path = Some(value.to_vec()),
                b"linkpath" => self.link = Some(value.to_vec()),
                b"uid" => self.uid = Some(id()?),
                b"gid" => self.gid = Some(id()?),
                b"size" => self.size = Some(decimal(value).ok_or(BAD)?),
                b"mtime" => self.mtime = Some(time(value).ok_or(BAD)?),
                _ if key.starts_with(b"GNU.sparse.") => return Err(sparse()),
                _ => {
                    if let Some(name) = key.strip_prefix(XATTR) {
                        self.xattrs.push((name.to_vec(), value.to_vec()));
                    }
                }
            }
        }
        Ok(())
    }
}

fn sparse() -> ArchiveError {
    ArchiveError::Refused("a sparse file is in the archive: make it without --sparse".into())
}

fn kind(flag: u8) -> Result<Kind> {
    Ok(match flag {
        b'0' | 0 | b'7' => Kind::File,
        b'1' => Kind::HardLink,
        b'2' => Kind::Symlink,
        b'3' => Kind::CharDevice,
        b'4' => Kind::BlockDevice,
        b'5' => Kind::Directory,
        b'6' => Kind::Fifo,
        b'S' => return Err(sparse()),
        _ => return Err(ArchiveError::Damaged("an entry is of no known kind")),
    })
}

fn entry(block: &[u8; BLOCK], mut kind: Kind, extensions: Extensions) -> Result<Entry> {
    let text = |range: std::ops::Range<usize>| {
        let field = &block[range];
        field[..field.iter().position(|b| *b == 0).unwrap_or(field.len())].to_vec()
    };
    let id = |range: std::ops::Range<usize>| number(&block[range]).map(|n| n as u32);
    let path = extensions.path.unwrap_or_else(|| {
        let (name, prefix) = (text(0..100), text(345..500));
        let posix = &block[257..263] == b"ustar\0" && !prefix.is_empty();
        if posix { [prefix, vec![b'/'], name].concat() } else { name }
    });
    let link = extensions.link.unwrap_or_else(|| text(157..257));
    if path.len() > MAX_PATH || link.len() > MAX_PATH {
        return Err(ArchiveError::Damaged("a name is too long"));
    }
    if path.contains(&0) || link.contains(&0) {
        return Err(ArchiveError::Damaged("a zero byte is in a name"));
    }
    if kind == Kind::File && path.last() == Some(&b'/') {
        // From before directories had a kind.
        kind = Kind::Directory;
    }
    let seconds = number(&block[136..148])?;
    let device = |range| if kind_is_device(kind) { id(range) } else { Ok(0) };
    Ok(Entry {
        kind,
        link,
        mode: (number(&block[100..108])? & 0o7777) as u32,
        uid: extensions.uid.map_or_else(|| id(108..116), Ok)?,
        gid: extensions.gid.map_or_else(|| id(116..124), Ok)?,
        size: extensions.size.map_or_else(|| number(&block[124..136]), Ok)?,
        mtime: extensions.mtime.unwrap_or(Time { seconds: seconds as i64, nanoseconds: 0 }),
        device: (device(329..337)?, device(337..345)?),
        xattrs: extensions.xattrs,
        path,
    })
}

fn kind_is_device(kind: Kind) -> bool {
    matches!(kind, Kind::CharDevice | Kind::BlockDevice)
}

/// Octal text, or binary with the first bit set.
fn number(field: &[u8]) -> Result<u64> {
    const BAD: ArchiveError = ArchiveError::Damaged("a number in a header makes no sense");
    if field[0] & 0x80 != 0 {
        // Negative ones are times before 1970 only.
        let negative = field[0] == 0xff;
        let low = field[field.len() - 8.min(field.len() - 1)..].iter();
        let start = if negative { u64::MAX } else { 0 };
        return Ok(low.fold(start, |n, b| (n << 8) | u64::from(*b)));
    }
    let digits = field.iter().skip_while(|b| **b == b' ');
    let mut value = 0u64;
    for digit in digits.take_while(|b| !matches!(**b, b' ' | 0)) {
        if !(b'0'..=b'7').contains(digit) {
            return Err(BAD);
        }
        value = value.checked_mul(8).ok_or(BAD)? + u64::from(digit - b'0');
    }
    Ok(value)
}

fn decimal(text: &[u8]) -> Option<u64> {
    if !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// `[-]SECONDS[.FRACTION]`.
fn time(text: &[u8]) -> Option<Time> {
    let (negative, text) = text.strip_prefix(b"-").map_or((false, text), |rest| (true, rest));
    let mut parts = text.splitn(2, |b| *b == b'.');
    let seconds = i64::try_from(decimal(parts.next()?)?).ok()?;
    let mut nanoseconds = 0;
    for place in 0..9 {
        let digit = text.iter().skip_while(|b| **b != b'.').nth(place + 1).copied().unwrap_or(b'0');
        nanoseconds = nanoseconds * 10 + u32::from(digit.checked_sub(b'0').filter(|d| *d < 10)?);
    }
    Some(match (negative, nanoseconds) {
        (false, nanoseconds) => Time { seconds, nanoseconds },
        (true, 0) => Time { seconds: -seconds, nanoseconds: 0 },
        (true, rest) => Time { seconds: -seconds - 1, nanoseconds: 1_000_000_000 - rest },
    })
}
