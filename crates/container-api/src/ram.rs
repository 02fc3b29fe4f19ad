//! The RAM of a template in a file: as long as the RAM, mostly holes.
//!
//! Its digest is over what is not zero, so that neither copying nor checking a VM of many GiB
//! takes longer than what its guest has touched.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};
use sha2::{Digest, Sha256};

/// Zeros are told apart, and left out, in units of this many bytes.
const PAGE: usize = 4096;
/// Bytes read at once, a multiple of [`PAGE`].
const CHUNK: usize = 1 << 20;
/// What a digest begins with.
const PREFIX: &str = "sparse-sha256:";

static ZEROS: [u8; PAGE] = [0; PAGE];

/// The digest of a RAM file, and the number of its bytes that are not holes.
pub fn digest(file: &File) -> io::Result<(String, u64)> {
    digest_while(file, |_, _| Ok(()))
}

/// Copies a RAM file into an empty one, which becomes as long; pages of zeros become holes.
pub fn copy(from: &File, to: &File) -> io::Result<()> {
    to.set_len(from.metadata()?.len())?;
    walk(from, |at, pages| to.write_all_at(pages, at))
}

/// [`copy`]; the answer is that of [`digest`] for both.
pub fn copy_and_digest(from: &File, to: &File) -> io::Result<(String, u64)> {
    to.set_len(from.metadata()?.len())?;
    digest_while(from, |at, pages| to.write_all_at(pages, at))
}

fn digest_while(
    file: &File,
    mut found: impl FnMut(u64, &[u8]) -> io::Result<()>,
) -> io::Result<(String, u64)> {
    let mut hasher = Sha256::new();
    let mut bytes = 0;
    walk(file, |at, pages| {
        for (at, page) in (at..).step_by(PAGE).zip(pages.chunks(PAGE)) {
            hasher.update(at.to_le_bytes());
            hasher.update(page);
        }
        bytes += pages.len() as u64;
        found(at, pages)
    })?;
    hasher.update(file.metadata()?.len().to_le_bytes());
    Ok((format!("{PREFIX}{}", hex(&hasher.finalize())), bytes))
}

/// Hands every run of pages that are not zero to `found`, in order.
fn walk(file: &File, mut found: impl FnMut(u64, &[u8]) -> io::Result<()>) -> io::Result<()> {
    let len = file.metadata()?.len();
    let mut buffer = vec![0; CHUNK];
    let mut at = 0;
    while let Some(data) = next_data(file, at, len)? {
        // A page that begins in a hole belongs to what follows.
        at = data - data % PAGE as u64;
        let n = read_at(file, &mut buffer, at, len)?;
        let mut run = 0..0;
        for start in (0..n).step_by(PAGE) {
            let page = &buffer[start..n.min(start + PAGE)];
            if *page == ZEROS[..page.len()] {
                continue;
            }
            if run.end != start {
                found(at + run.start as u64, &buffer[run.clone()])?;
                run.start = start;
            }
            run.end = start + page.len();
        }
        found(at + run.start as u64, &buffer[run])?;
        at += n as u64;
    }
    Ok(())
}

fn next_data(file: &File, at: u64, len: u64) -> io::Result<Option<u64>> {
    if at >= len {
        return Ok(None);
    }
    let at = i64::try_from(at).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    match lseek(file.as_fd(), at, Whence::SeekData) {
        Ok(found) => Ok(Some(found as u64).filter(|found| *found < len)),
        // A hole to the end.
        Err(Errno::ENXIO) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn read_at(file: &File, buffer: &mut [u8], at: u64, len: u64) -> io::Result<usize> {
    let wanted = buffer.len().min((len - at) as usize);
    file.read_exact_at(&mut buffer[..wanted], at)?;
    Ok(wanted)
}

/// SHA-256 of a whole small file, in hex.
pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn a_copy_has_the_holes_and_the_digest() {
        let (from, to) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        from.set_len(64 << 20).unwrap();
        for (at, bytes) in [(5, &b"a"[..]), (3 << 20, &[7; 9000]), ((64 << 20) - 1, b"z")] {
            from.write_all_at(bytes, at).unwrap();
        }
        // Zeros that are written are as good as holes.
        from.write_all_at(&[0; 1 << 20], 10 << 20).unwrap();
        let (copied, bytes) = copy_and_digest(&from, &to).unwrap();
        assert_eq!(bytes, 5 * 4096);
        assert_eq!(digest(&from).unwrap(), (copied.clone(), bytes));
        assert_eq!(digest(&to).unwrap(), (copied.clone(), bytes));
        assert!(to.metadata().unwrap().blocks() * 512 < 1 << 20);
        let mut byte = [0];
        to.read_exact_at(&mut byte, (3 << 20) + 8999).unwrap();
        assert_eq!((byte[0], to.metadata().unwrap().len()), (7, 64 << 20));
        to.write_all_at(b"b", 5).unwrap();
        assert_ne!(digest(&to).unwrap().0, copied);
    }

    #[test]
    fn length_and_place_count() {
        let file = tempfile::tempfile().unwrap();
        let empty = digest(&file).unwrap();
        file.set_len(4096).unwrap();
        let page = digest(&file).unwrap();
        assert_ne!(empty, page);
        file.set_len(8192).unwrap();
        file.write_all_at(b"x", 0).unwrap();
        let first = digest(&file).unwrap().0;
        file.write_all_at(b"\0", 0).unwrap();
        file.write_all_at(b"x", 4096).unwrap();
        assert_ne!(digest(&file).unwrap().0, first);
        assert_eq!(sha256(b""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    }
}
