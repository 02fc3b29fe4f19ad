//! Headers: ustar, with a pax header before it for what does not fit.

use crate::entry::{BLOCK, Entry, Kind, XATTR};

/// The headers of an entry.
pub fn header(entry: &Entry) -> Vec<u8> {
    let mut pax = Vec::new();
    let mut path = entry.path.clone();
    if entry.kind == Kind::Directory && path.last() != Some(&b'/') {
        path.push(b'/');
    }
    let mut numbers = |key: &[u8], value: u64, most: u64| {
        if value > most {
            record(&mut pax, key, value.to_string().as_bytes());
        }
        value.min(most)
    };
    let uid = numbers(b"uid", entry.uid.into(), 0o7_777_777);
    let gid = numbers(b"gid", entry.gid.into(), 0o7_777_777);
    let size = numbers(b"size", entry.size, 0o77_777_777_777);
    let seconds = u64::try_from(entry.mtime.seconds).unwrap_or(0).min(0o77_777_777_777);
    if entry.mtime.nanoseconds != 0 || i64::try_from(seconds) != Ok(entry.mtime.seconds) {
        record(&mut pax, b"mtime", time(entry).as_bytes());
    }
    if path.len() > 100 {
        record(&mut pax, b"path", &path);
    }
    if entry.link.len() > 100 {
        record(&mut pax, b"linkpath", &entry.link);
    }
    for (key, value) in &entry.xattrs {
        record(&mut pax, &[XATTR, key].concat(), value);
    }
    let mut out = Vec::with_capacity(BLOCK);
    if !pax.is_empty() {
        let block = Block { flag: b'x', size: pax.len() as u64, ..Block::default() };
        out.extend_from_slice(&block.encode());
        out.extend_from_slice(&pax);
        pad(&mut out);
    }
    let block = Block {
        name: &path,
        link: &entry.link,
        flag: flag(entry.kind),
        mode: entry.mode & 0o7777,
        uid,
        gid,
        size,
        seconds,
        device: entry.device,
    };
    out.extend_from_slice(&block.encode());
    out
}

fn time(entry: &Entry) -> String {
    let (mut seconds, mut rest) = (entry.mtime.seconds, entry.mtime.nanoseconds);
    let sign = if seconds < 0 { "-" } else { "" };
    // Before 1970 the fraction counts away from the second, in text.
    if seconds < 0 && rest > 0 {
        (seconds, rest) = (seconds + 1, 1_000_000_000 - rest);
    }
    format!("{sign}{}.{rest:09}", seconds.unsigned_abs())
}

fn flag(kind: Kind) -> u8 {
    match kind {
        Kind::File => b'0',
        Kind::HardLink => b'1',
        Kind::Symlink => b'2',
        Kind::CharDevice => b'3',
        Kind::BlockDevice => b'4',
        Kind::Directory => b'5',
        Kind::Fifo => b'6',
    }
}

/// `LENGTH KEY=VALUE`, where the length counts itself.
fn record(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut len = rest + 1;
    while len != rest + len.to_string().len() {
        len = rest + len.to_string().len();
    }
    out.extend_from_slice(len.to_string().as_bytes());
    out.push(b' ');
    out.extend_from_slice(key);
    out.push(b'=');
    out.extend_from_slice(value);
    out.push(b'\n');
}

/// Fills the last block.
pub fn pad(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(BLOCK), 0);
}

#[derive(Default)]
struct Block<'a> {
    name: &'a [u8],
    link: &'a [u8],
    flag: u8,
    mode: u32,
    uid: u64,
    gid: u64,
    size: u64,
    seconds: u64,
    device: (u32, u32),
}

impl Block<'_> {
    fn encode(&self) -> [u8; BLOCK] {
        let mut block = [0; BLOCK];
        let mut text = |at: usize, most: usize, value: &[u8]| {
            let len = value.len().min(most);
            block[at..at + len].copy_from_slice(&value[..len]);
        };
        text(0, 100, self.name);
        text(157, 100, self.link);
        text(257, 8, b"ustar\x0000");
        let mut octal = |at: usize, digits: usize, value: u64| {
            text(at, digits, format!("{value:0digits$o}").as_bytes());
        };
        octal(100, 7, self.mode.into());
        octal(108, 7, self.uid);
        octal(116, 7, self.gid);
        octal(124, 11, self.size);
        octal(136, 11, self.seconds);
        octal(329, 7, self.device.0.into());
        octal(337, 7, self.device.1.into());
        block[156] = self.flag;
        let sum = checksum(&block);
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        block
    }
}

/// The sum of a header's bytes, its own field counted as blanks.
pub fn checksum(block: &[u8; BLOCK]) -> u64 {
    let own = 148..156;
    let byte = |(at, byte): (usize, &u8)| u64::from(if own.contains(&at) { b' ' } else { *byte });
    block.iter().enumerate().map(byte).sum()
}
