//! The 512-byte header block.

use super::fault::Fault;
use super::number;

pub(super) const BLOCK: usize = 512;

/// A header block whose checksum is right.
pub(super) struct Header {
    block: [u8; BLOCK],
}

impl Header {
    /// `None` for a block of zeros, which marks the end of an archive.
    pub(super) fn parse(block: [u8; BLOCK]) -> Result<Option<Self>, Fault> {
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let header = Self { block };
        let stored = number::field(&block[148..156]).ok_or(Fault::Checksum)?;
        // The checksum's own field counts as spaces. Some old writers summed signed bytes.
        let own: i64 = block[148..156].iter().map(|byte| i64::from(*byte)).sum();
        let own_signed: i64 = block[148..156].iter().map(|byte| i64::from(*byte as i8)).sum();
        let spaces = 8 * i64::from(b' ');
        let sum = block.iter().map(|byte| i64::from(*byte)).sum::<i64>() - own + spaces;
        let signed =
            block.iter().map(|byte| i64::from(*byte as i8)).sum::<i64>() - own_signed + spaces;
        if stored == sum || stored == signed { Ok(Some(header)) } else { Err(Fault::Checksum) }
    }

    pub(super) fn type_flag(&self) -> u8 {
        self.block[156]
    }

    /// Name, after the ustar prefix where there is one.
    pub(super) fn path(&self) -> Vec<u8> {
        let name = until_nul(&self.block[..100]);
        let prefix = if self.is_ustar() { until_nul(&self.block[345..500]) } else { b"" };
        if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
    }

    pub(super) fn link(&self) -> Vec<u8> {
        until_nul(&self.block[157..257]).to_vec()
    }

    pub(super) fn mode(&self) -> Result<u16, Fault> {
        // Some writers store the file type's bits too.
        let mode = self.number(100, 8, "mode")?;
        Ok((mode & 0o7777) as u16)
    }

    pub(super) fn uid(&self) -> Result<u32, Fault> {
        u32::try_from(self.number(108, 8, "uid")?).map_err(|_| Fault::Number("uid"))
    }

    pub(super) fn gid(&self) -> Result<u32, Fault> {
        u32::try_from(self.number(116, 8, "gid")?).map_err(|_| Fault::Number("gid"))
    }

    pub(super) fn size(&self) -> Result<u64, Fault> {
        u64::try_from(self.number(124, 12, "size")?).map_err(|_| Fault::Number("size"))
    }

    pub(super) fn mtime(&self) -> Result<i64, Fault> {
        self.number(136, 12, "mtime")
    }

    /// Major and minor device number.
    pub(super) fn device(&self) -> Result<(u64, u64), Fault> {
        let part = |start, name| {
            u64::try_from(self.number(start, 8, name)?).map_err(|_| Fault::Number(name))
        };
        Ok((part(329, "devmajor")?, part(337, "devminor")?))
    }

    /// The four segments of an old GNU sparse header.
    pub(super) fn sparse_segments(&self) -> &[u8] {
        &self.block[386..482]
    }

    pub(super) fn sparse_is_extended(&self) -> bool {
        self.block[482] != 0
    }

    pub(super) fn sparse_real_size(&self) -> Result<u64, Fault> {
        u64::try_from(self.number(483, 12, "realsize")?).map_err(|_| Fault::Number("realsize"))
    }

    fn is_ustar(&self) -> bool {
        // GNU's magic is `ustar  `; it keeps times where the prefix would be.
        &self.block[257..263] == b"ustar\0"
    }

    fn number(&self, start: usize, len: usize, name: &'static str) -> Result<i64, Fault> {
        number::field(&self.block[start..start + len]).ok_or(Fault::Number(name))
    }
}

fn until_nul(bytes: &[u8]) -> &[u8] {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    &bytes[..end]
}
