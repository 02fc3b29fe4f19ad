//! Contents of the directories: one block each.

use super::{BLOCK, Params, ROOT_INODE};

const TYPE_DIRECTORY: u8 = 2;
/// Bytes of an entry before its name.
const HEADER: usize = 8;

/// The blocks of the root and of its directories, in this order.
pub(super) fn encode(params: &Params) -> Vec<u8> {
    let mut out = Vec::new();
    let dots = [(ROOT_INODE, "."), (ROOT_INODE, "..")];
    encode_block(&dots.into_iter().chain(params.directories()).collect::<Vec<_>>(), &mut out);
    for (number, _) in params.directories() {
        encode_block(&[(number, "."), (ROOT_INODE, "..")], &mut out);
    }
    out
}

fn encode_block(entries: &[(u32, &str)], out: &mut Vec<u8>) {
    let end = out.len() + BLOCK as usize;
    for (index, (number, name)) in entries.iter().enumerate() {
        let last = index + 1 == entries.len();
        let len = if last { end - out.len() } else { (HEADER + name.len()).next_multiple_of(4) };
        let next = out.len() + len;
        out.extend(number.to_le_bytes());
        out.extend((len as u16).to_le_bytes());
        out.extend([name.len() as u8, TYPE_DIRECTORY]);
        out.extend(name.as_bytes());
        out.resize(next, 0);
    }
}
