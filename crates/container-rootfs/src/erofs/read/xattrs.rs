//! Extended attributes.

use super::bytes::Bytes;
use super::inode::Inode;
use super::{ErofsReader, ReadAt, ReadError};
use crate::erofs::xattr::{ENTRY_HEADER, IBODY_HEADER, PREFIXES};

/// A full name and a value.
type Xattr = (Vec<u8>, Vec<u8>);

impl<S: ReadAt> ErofsReader<S> {
    /// The extended attributes of an inode: full names and values, as stored. Attributes of
    /// unknown kinds are passed over.
    ///
    /// # Errors
    /// When the image fails or is damaged.
    pub fn xattrs(&self, inode: &Inode) -> Result<Vec<Xattr>, ReadError> {
        let mut out = Vec::new();
        if inode.xattr_len == 0 {
            return Ok(out);
        }
        // At most 256 KiB: the inode counts them in 16 bits.
        let mut body = vec![0; inode.xattr_len as usize];
        self.fill(&mut body, inode.xattr_start, inode.nid)?;
        let shared = usize::from(Bytes(&body).u8(4));
        let inline = IBODY_HEADER as usize + 4 * shared;
        for index in 0..shared {
            let id = u64::from(Bytes(&body).u32(IBODY_HEADER as usize + 4 * index));
            out.extend(self.shared_xattr(inode, id)?);
        }
        let mut rest = body.get(inline..).ok_or(inode.corrupt("attributes"))?;
        while rest.len() >= ENTRY_HEADER as usize {
            let len = entry_len(rest);
            let entry = rest.get(..len).ok_or(inode.corrupt("attributes"))?;
            out.extend(decode(entry));
            rest = rest.get(len.next_multiple_of(4)..).unwrap_or(&[]);
        }
        Ok(out)
    }

    fn shared_xattr(&self, inode: &Inode, id: u64) -> Result<Option<Xattr>, ReadError> {
        let start = self.xattr_start + 4 * id;
        let mut header = [0; ENTRY_HEADER as usize];
        self.fill(&mut header, start, inode.nid)?;
        let mut entry = vec![0; entry_len(&header)];
        self.fill(&mut entry, start, inode.nid)?;
        Ok(decode(&entry))
    }
}

/// Bytes of the entry that `bytes` begin with, without padding.
fn entry_len(bytes: &[u8]) -> usize {
    let fields = Bytes(bytes);
    ENTRY_HEADER as usize + usize::from(fields.u8(0)) + usize::from(fields.u16(2))
}

fn decode(entry: &[u8]) -> Option<Xattr> {
    let fields = Bytes(entry);
    let index = fields.u8(1);
    let (_, prefix) = PREFIXES.iter().find(|(known, _)| *known == index)?;
    let (name, value) = entry.get(ENTRY_HEADER as usize..)?.split_at(usize::from(fields.u8(0)));
    Some(([prefix, name].concat(), value.to_vec()))
}
