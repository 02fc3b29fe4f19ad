//! A bounded, streaming reader of tar archives.
//!
//! Understands v7, ustar, GNU (long names, base-256 numbers, sparse files) and pax (paths, sizes,
//! times, owners, extended attributes, sparse files 0.0 to 1.0). Nothing is allocated on the word
//! of a header: extension data is read into buffers that grow with the bytes that really come,
//! up to a limit.

mod entry;
mod fault;
mod header;
mod number;
mod pax;
mod sparse;

use std::io::{self, Read};

pub use self::entry::{Entry, EntryKind, Segment, Timestamp};
pub(crate) use self::fault::shown;
pub use self::fault::{Fault, TarError};
use self::header::{BLOCK, Header};
use self::pax::Pax;
use self::sparse::{MapBuilder, OLD_SEGMENT};
use crate::Limits;

/// Segments in one extension block of an old GNU sparse header.
const OLD_EXTENSION_SEGMENTS: usize = 21;
/// Bytes of one line of a sparse map 1.0: a decimal number.
const MAP_LINE_MAX: usize = 20;

/// Reads entries and their data from a decompressed tar stream.
#[derive(Debug)]
pub struct TarReader<R> {
    inner: R,
    limits: Limits,
    offset: u64,
    /// Stored bytes of the current entry that are still to come.
    remaining: u64,
    /// Zeros after them, up to the next block.
    padding: u64,
}

/// Extension headers seen before an entry.
#[derive(Default)]
struct Extensions {
    pax: Pax,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
    any: bool,
}

impl<R: Read> TarReader<R> {
    /// Reads from `inner`, within `limits`.
    pub fn new(inner: R, limits: Limits) -> Self {
        Self { inner, limits, offset: 0, remaining: 0, padding: 0 }
    }

    /// Bytes of the stream read so far.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Stored bytes of the current entry that are still to be read.
    pub fn remaining(&self) -> u64 {
        self.remaining
    }

    /// Goes on to the next entry, past what is left of the current one's data. `None` at the end
    /// of the archive: two blocks of zeros, or the stream's end between two entries.
    ///
    /// # Errors
    /// A malformed or unsupported header, a bound of the limits, or a stream that fails or ends
    /// early.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, TarError> {
        let mut extensions = Extensions::default();
        loop {
            self.skip_data()?;
            let offset = self.offset;
            let header = match self.next_header(offset)? {
                Some(header) => header,
                None if extensions.any => return Err(at(offset)(Fault::DanglingExtension)),
                None => return Ok(None),
            };
            let size = header.size().map_err(at(offset))?;
            match header.type_flag() {
                b'x' | b'X' => {
                    let bytes = self.extension_data(size, self.limits.max_pax_bytes, offset)?;
                    extensions.pax = Pax::parse(&bytes).map_err(at(offset))?;
                    extensions.any = true;
                }
                b'L' => {
                    extensions.long_name = Some(self.long_name(size, offset)?);
                    extensions.any = true;
                }
                b'K' => {
                    extensions.long_link = Some(self.long_name(size, offset)?);
                    extensions.any = true;
                }
                // Global headers hold comments; nobody applies them to layers. V is a volume's
                // label.
                b'g' | b'V' if size > self.limits.max_pax_bytes => {
                    let max = self.limits.max_pax_bytes;
                    return Err(at(offset)(Fault::limit("bytes in an extension header", max)));
                }
                b'g' | b'V' => self.set_data(size, offset)?,
                _ => return self.entry(&header, size, extensions, offset).map(Some),
            }
        }
    }

    /// Reads stored data of the current entry, 0 bytes when there is no more.
    ///
    /// # Errors
    /// A stream that fails, or ends before the entry does.
    pub fn read_data(&mut self, buf: &mut [u8]) -> Result<usize, TarError> {
        let len = usize::try_from(self.remaining).unwrap_or(usize::MAX).min(buf.len());
        if len == 0 {
            return Ok(0);
        }
        let read = self.read_some(&mut buf[..len])?;
        if read == 0 {
            return Err(TarError::Truncated { offset: self.offset });
        }
        self.remaining -= read as u64;
        Ok(read)
    }

    /// Fills `buf` with stored data of the current entry.
    pub(crate) fn read_data_exact(&mut self, buf: &mut [u8]) -> Result<(), TarError> {
        let mut filled = 0;
        while filled < buf.len() {
            match self.read_data(&mut buf[filled..])? {
                0 => return Err(TarError::Truncated { offset: self.offset }),
                read => filled += read,
            }
        }
        Ok(())
    }

    /// Reads some of what follows the archive's end, 0 bytes when there is no more, so that
    /// digests over the stream become complete.
    ///
    /// # Errors
    /// A stream that fails or exceeds the limit of a layer.
    pub fn read_rest(&mut self, buf: &mut [u8]) -> Result<usize, TarError> {
        self.read_some(buf)
    }

    fn entry(
        &mut self,
        header: &Header,
        size: u64,
        extensions: Extensions,
        offset: u64,
    ) -> Result<Entry, TarError> {
        let Extensions { mut pax, long_name, long_link, .. } = extensions;
        let path = match (pax.sparse.name.take(), pax.path.take(), long_name) {
            (Some(name), _, _) | (None, Some(name), _) | (None, None, Some(name)) => name,
            (None, None, None) => header.path(),
        };
        if path.is_empty() {
            return Err(at(offset)(Fault::EmptyName));
        }
        let fault = |source| TarError::Entry { entry: shown(&path), offset, source };
        let link = pax.link.take().or(long_link).unwrap_or_else(|| header.link());
        let stored = pax.size.unwrap_or(size);
        let kind = match self.kind(header, &mut pax, stored, link, &path, offset) {
            Ok(kind) => kind,
            Err(Flaw::Fault(source)) => return Err(fault(source)),
            Err(Flaw::Tar(error)) => return Err(error),
        };
        let mtime = match pax.mtime {
            Some(mtime) => mtime,
            None => Timestamp { seconds: header.mtime().map_err(fault)?, nanos: 0 },
        };
        Ok(Entry {
            offset,
            kind,
            mode: header.mode().map_err(fault)?,
            uid: pax.uid.map_or_else(|| header.uid(), Ok).map_err(fault)?,
            gid: pax.gid.map_or_else(|| header.gid(), Ok).map_err(fault)?,
            mtime,
            xattrs: pax.xattrs,
            path,
        })
    }

    fn kind(
        &mut self,
        header: &Header,
        pax: &mut Pax,
        stored: u64,
        link: Vec<u8>,
        path: &[u8],
        offset: u64,
    ) -> Result<EntryKind, Flaw> {
        let device = || -> Result<(u64, u64), Fault> {
            let (major, minor) = header.device()?;
            Ok((pax.dev_major.unwrap_or(major), pax.dev_minor.unwrap_or(minor)))
        };
        // Only files have data: a size that other types claim is ignored, as Go's reader does.
        let kind = match header.type_flag() {
            0 if path.ends_with(b"/") => EntryKind::Directory,
            0 | b'0' | b'7' | b'S' => return self.file(header, pax, stored, offset),
            b'1' | b'2' if link.is_empty() => return Err(Fault::EmptyName.into()),
            b'1' => EntryKind::HardLink(link),
            b'2' => EntryKind::Symlink(link),
            b'3' => device().map(|(major, minor)| EntryKind::CharDevice(major, minor))?,
            b'4' => device().map(|(major, minor)| EntryKind::BlockDevice(major, minor))?,
            b'5' => EntryKind::Directory,
            b'6' => EntryKind::Fifo,
            other => return Err(Fault::Type(other).into()),
        };
        Ok(kind)
    }

    fn file(
        &mut self,
        header: &Header,
        pax: &mut Pax,
        stored: u64,
        offset: u64,
    ) -> Result<EntryKind, Flaw> {
        let sparse = std::mem::take(&mut pax.sparse);
        let (size, segments) = if header.type_flag() == b'S' {
            let map = self.old_map(header)?;
            self.set_data(stored, offset)?;
            let size = header.sparse_real_size()?;
            (size, Some(map.finish(size, stored)?))
        } else if sparse.major == Some(1) && sparse.minor == Some(0) {
            self.set_data(stored, offset)?;
            let map = self.leading_map()?;
            let size = sparse.real_size.ok_or(Fault::SparseMap)?;
            (size, Some(map.finish(size, self.remaining)?))
        } else if sparse.major.is_some_and(|major| major != 0) {
            return Err(Fault::PaxValue("GNU.sparse.major").into());
        } else if let Some(size) = sparse.real_size {
            let mut map = MapBuilder::new(self.limits.max_sparse_segments);
            for pair in sparse.numbers.chunks(2) {
                let [offset, len] = pair else { return Err(Fault::SparseMap.into()) };
                map.push(*offset, *len)?;
            }
            self.set_data(stored, offset)?;
            (size, Some(map.finish(size, stored)?))
        } else {
            self.set_data(stored, offset)?;
            (stored, None)
        };
        if size > self.limits.max_file_bytes {
            return Err(Fault::limit("bytes in a file", self.limits.max_file_bytes).into());
        }
        Ok(EntryKind::File { size, segments })
    }

    /// The segments in an old GNU sparse header and the extension blocks after it.
    fn old_map(&mut self, header: &Header) -> Result<MapBuilder, Flaw> {
        let mut map = MapBuilder::new(self.limits.max_sparse_segments);
        map.push_old(header.sparse_segments())?;
        let mut extended = header.sparse_is_extended();
        let mut blocks = 0;
        while extended {
            blocks += 1;
            if blocks > self.limits.max_sparse_segments {
                return Err(Fault::limit(
                    "sparse segments",
                    self.limits.max_sparse_segments as u64,
                )
                .into());
            }
            let mut block = [0; BLOCK];
            self.read_exact(&mut block)?;
            map.push_old(&block[..OLD_EXTENSION_SEGMENTS * OLD_SEGMENT])?;
            extended = block[OLD_EXTENSION_SEGMENTS * OLD_SEGMENT] != 0;
        }
        Ok(map)
    }

    /// The map of format 1.0: decimal lines before the data, padded to a block.
    fn leading_map(&mut self) -> Result<MapBuilder, Flaw> {
        let mut lines = MapLines { block: [0; BLOCK], position: BLOCK };
        let mut map = MapBuilder::new(self.limits.max_sparse_segments);
        let count = lines.next(self)?;
        // Zero-length segments aren't kept, so their number needs a bound of its own.
        if count > self.limits.max_sparse_segments as u64 {
            return Err(
                Fault::limit("sparse segments", self.limits.max_sparse_segments as u64).into()
            );
        }
        for _ in 0..count {
            let offset = lines.next(self)?;
            map.push(offset, lines.next(self)?)?;
        }
        Ok(map)
    }

    fn next_header(&mut self, offset: u64) -> Result<Option<Header>, TarError> {
        for _ in 0..2 {
            let mut block = [0; BLOCK];
            if !self.read_block_or_end(&mut block)? {
                return Ok(None);
            }
            match Header::parse(block).map_err(at(offset))? {
                Some(header) => return Ok(Some(header)),
                None => continue,
            }
        }
        Ok(None)
    }

    /// Data of an extension header, which is read as it comes and never beyond `max`.
    fn extension_data(&mut self, size: u64, max: u64, offset: u64) -> Result<Vec<u8>, TarError> {
        if size > max {
            return Err(at(offset)(Fault::limit("bytes in an extension header", max)));
        }
        self.set_data(size, offset)?;
        let mut bytes = Vec::new();
        let mut chunk = [0; 4096];
        loop {
            match self.read_data(&mut chunk)? {
                0 => return Ok(bytes),
                read => bytes.extend_from_slice(&chunk[..read]),
            }
        }
    }

    fn long_name(&mut self, size: u64, offset: u64) -> Result<Vec<u8>, TarError> {
        // One byte for the NUL that ends it.
        let max = self.limits.max_path_bytes as u64 + 1;
        let mut name = self.extension_data(size, max, offset)?;
        let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
        name.truncate(end);
        Ok(name)
    }

    fn set_data(&mut self, stored: u64, offset: u64) -> Result<(), TarError> {
        let max = self.limits.max_layer_bytes;
        if stored > max {
            return Err(at(offset)(Fault::limit("bytes in a layer", max)));
        }
        self.remaining = stored;
        self.padding = stored.next_multiple_of(BLOCK as u64) - stored;
        Ok(())
    }

    fn skip_data(&mut self) -> Result<(), TarError> {
        let mut buf = [0; 16 << 10];
        while self.read_data(&mut buf)? > 0 {}
        let mut padding = std::mem::take(&mut self.padding) as usize;
        while padding > 0 {
            match self.read_some(&mut buf[..padding])? {
                // Writers that never close the archive leave the last entry unpadded (umoci's
                // insert does); Go's reader takes it, and no content is missing.
                0 => return Ok(()),
                read => padding -= read,
            }
        }
        Ok(())
    }

    /// False when the stream ends before the block begins.
    fn read_block_or_end(&mut self, block: &mut [u8; BLOCK]) -> Result<bool, TarError> {
        let read = self.read_some(block)?;
        if read == 0 {
            return Ok(false);
        }
        self.read_exact(&mut block[read..])?;
        Ok(true)
    }

    fn read_exact(&mut self, mut buf: &mut [u8]) -> Result<(), TarError> {
        while !buf.is_empty() {
            match self.read_some(buf)? {
                0 => return Err(TarError::Truncated { offset: self.offset }),
                read => buf = &mut buf[read..],
            }
        }
        Ok(())
    }

    fn read_some(&mut self, buf: &mut [u8]) -> Result<usize, TarError> {
        loop {
            match self.inner.read(buf) {
                Ok(read) => {
                    self.offset += read as u64;
                    let max = self.limits.max_layer_bytes;
                    if self.offset > max {
                        return Err(at(self.offset)(Fault::limit("bytes in a layer", max)));
                    }
                    return Ok(read);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // What decompressors say about a stream that is cut off.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    return Err(TarError::Truncated { offset: self.offset });
                }
                Err(source) => return Err(TarError::Read { offset: self.offset, source }),
            }
        }
    }
}

/// The lines of a sparse map 1.0.
struct MapLines {
    block: [u8; BLOCK],
    position: usize,
}

impl MapLines {
    fn next<R: Read>(&mut self, reader: &mut TarReader<R>) -> Result<u64, Flaw> {
        let mut line = [0; MAP_LINE_MAX];
        let mut len = 0;
        loop {
            if self.position == BLOCK {
                reader.read_data_exact(&mut self.block)?;
                self.position = 0;
            }
            let byte = self.block[self.position];
            self.position += 1;
            if byte == b'\n' {
                return Ok(number::decimal(&line[..len]).ok_or(Fault::SparseMap)?);
            }
            *line.get_mut(len).ok_or(Fault::SparseMap)? = byte;
            len += 1;
        }
    }
}

/// A fault of an entry whose name is added by the caller, or an error that is complete.
enum Flaw {
    Fault(Fault),
    Tar(TarError),
}

impl From<Fault> for Flaw {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

impl From<TarError> for Flaw {
    fn from(error: TarError) -> Self {
        Self::Tar(error)
    }
}

fn at(offset: u64) -> impl Fn(Fault) -> TarError {
    move |source| TarError::Header { offset, source }
}
