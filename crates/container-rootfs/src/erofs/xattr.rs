//! Extended attributes beside an inode.

use super::format::BLOCK;
use crate::limits::Limits;
use crate::tar::{Fault, shown};
use crate::tree::Xattrs;

pub(super) const IBODY_HEADER: u64 = 12;
pub(super) const ENTRY_HEADER: u64 = 4;
const NAME_MAX: usize = 255;
const VALUE_MAX: usize = u16::MAX as usize;

/// Prefixes with their index; the name's rest is stored. The two of POSIX ACLs are whole names.
pub(super) const PREFIXES: [(u8, &[u8]); 5] = [
    (1, b"user."),
    (2, b"system.posix_acl_access"),
    (3, b"system.posix_acl_default"),
    (4, b"trusted."),
    (6, b"security."),
];

/// Attributes that steer overlayfs. The image becomes a lower layer of an overlay: its contents
/// must not tell the overlay where to look.
const OVERLAY: [&[u8]; 2] = [b"trusted.overlay.", b"user.overlay."];

/// Index and rest of a name that EROFS can store.
fn split(name: &[u8]) -> Option<(u8, &[u8])> {
    PREFIXES.iter().find_map(|(index, prefix)| {
        let rest = name.strip_prefix(*prefix)?;
        let whole = matches!(*index, 2 | 3);
        (rest.is_empty() == whole).then_some((*index, rest))
    })
}

/// The attributes that are kept: those of the five kinds that Linux has, but for overlayfs's own.
pub(crate) fn storable(
    xattrs: &[(Vec<u8>, Vec<u8>)],
    limits: &Limits,
) -> Result<Option<Xattrs>, Fault> {
    let mut kept = Vec::new();
    for (name, value) in xattrs {
        let Some((_, rest)) = split(name) else { continue };
        if OVERLAY.iter().any(|prefix| name.starts_with(prefix)) {
            continue;
        }
        if rest.len() > NAME_MAX || value.len() > VALUE_MAX {
            return Err(Fault::Xattr(shown(name)));
        }
        kept.push((name.clone().into_boxed_slice(), value.clone().into_boxed_slice()));
    }
    if kept.is_empty() {
        return Ok(None);
    }
    kept.sort();
    let kept: Xattrs = kept.into();
    if stored_size(Some(&kept)) > limits.max_inode_xattr_bytes as u64 {
        let max = limits.max_inode_xattr_bytes as u64;
        return Err(Fault::limit("bytes of extended attributes", max));
    }
    Ok(Some(kept))
}

/// Bytes that the attributes take behind the inode.
pub(crate) fn stored_size(xattrs: Option<&Xattrs>) -> u64 {
    let Some(xattrs) = xattrs else { return 0 };
    let entries = xattrs.iter().filter_map(|(name, value)| {
        let (_, rest) = split(name)?;
        Some((ENTRY_HEADER + (rest.len() + value.len()) as u64).next_multiple_of(4))
    });
    IBODY_HEADER + entries.sum::<u64>()
}

/// The inode's field for attributes of `stored` bytes.
pub(super) fn inode_count(stored: u64) -> u16 {
    if stored == 0 { 0 } else { ((stored - IBODY_HEADER) / 4 + 1) as u16 }
}

pub(super) fn encode(xattrs: &Xattrs, out: &mut Vec<u8>) {
    out.extend([0; IBODY_HEADER as usize]);
    for (name, value) in xattrs {
        let Some((index, rest)) = split(name) else { continue };
        out.extend([rest.len() as u8, index]);
        out.extend((value.len() as u16).to_le_bytes());
        out.extend(rest);
        out.extend(value.iter());
        // The inode is at a multiple of 32, so the vector's length tells the alignment only
        // within this entry.
        let unpadded = ENTRY_HEADER as usize + rest.len() + value.len();
        out.resize(out.len() + unpadded.next_multiple_of(4) - unpadded, 0);
    }
}

// What an inode's field can count must exceed what the limits can allow.
const _: () = assert!(IBODY_HEADER + 4 * (u16::MAX as u64 - 1) > 60 * BLOCK);

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(names: &[&str]) -> Vec<(Vec<u8>, Vec<u8>)> {
        names.iter().map(|name| (name.as_bytes().to_vec(), b"value".to_vec())).collect()
    }

    #[test]
    fn keeps_linux_attributes_only() {
        let names = ["user.b", "com.apple.x", "trusted.overlay.opaque", "security.capability"];
        let more = ["system.posix_acl_access", "system.posix_acl_access2", "user.", "user.a"];
        let all = [pairs(&names), pairs(&more)].concat();
        let kept = storable(&all, &Limits::default()).unwrap().unwrap();
        let names: Vec<_> = kept.iter().map(|(name, _)| name.escape_ascii().to_string()).collect();
        let expected = ["security.capability", "system.posix_acl_access", "user.a", "user.b"];
        assert_eq!(names, expected);
        let mut out = Vec::new();
        encode(&kept, &mut out);
        assert_eq!(out.len() as u64, stored_size(Some(&kept)));
    }

    #[test]
    fn bounds() {
        let limits = Limits::default();
        let huge = vec![(b"user.a".to_vec(), vec![0; 65536])];
        assert!(matches!(storable(&huge, &limits), Err(Fault::Xattr(_))));
        let many: Vec<_> = (0..3).map(|n| (format!("user.{n}").into(), vec![0; 60000])).collect();
        assert!(matches!(storable(&many, &limits), Err(Fault::Limit { .. })));
    }
}
