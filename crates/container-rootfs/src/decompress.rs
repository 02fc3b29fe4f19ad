//! Layers as they are stored: gzip, zstd or plain, told apart by their first bytes.

use std::io::{self, BufRead, BufReader, Cursor, Read};

const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// A skippable zstd frame begins with one of sixteen values: `5? 2a 4d 18`.
const ZSTD_SKIPPABLE: [u8; 3] = [0x2a, 0x4d, 0x18];
/// The largest zstd window that is accepted, as a power of two: 128 MiB, zstd's own default.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;
const INPUT_BUFFER: usize = 256 << 10;

/// How a stream is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Not compressed.
    None,
    /// gzip, any number of members.
    Gzip,
    /// zstd, any number of frames.
    Zstd,
}

impl Compression {
    /// The compression that a stream beginning with `prefix` (four bytes or more) has.
    pub fn of(prefix: &[u8]) -> Self {
        let skippable = prefix.first().is_some_and(|byte| byte & 0xf0 == 0x50)
            && prefix.get(1..).is_some_and(|rest| rest.starts_with(&ZSTD_SKIPPABLE));
        if prefix.starts_with(&GZIP_MAGIC) {
            Self::Gzip
        } else if prefix.starts_with(&ZSTD_MAGIC) || skippable {
            Self::Zstd
        } else {
            Self::None
        }
    }
}

type Source<R> = BufReader<io::Chain<Cursor<Vec<u8>>, R>>;

enum Inner<R: Read> {
    Plain(Source<R>),
    Gzip(Box<flate2::bufread::MultiGzDecoder<Source<R>>>),
    Zstd(Box<zstd::stream::read::Decoder<'static, Source<R>>>),
}

/// A reader of the decompressed bytes of a gzip, zstd or plain stream.
///
/// The memory used doesn't depend on the stream beyond a zstd window of at most 128 MiB. What it
/// yields is not bounded; the consumer's limits are.
pub struct Decompressor<R: Read> {
    inner: Inner<R>,
    compression: Compression,
}

impl<R: Read> Decompressor<R> {
    /// Looks at the first bytes of `reader` and decompresses accordingly.
    ///
    /// # Errors
    /// When `reader` fails, or the zstd decoder can't be set up.
    pub fn detect(mut reader: R) -> io::Result<Self> {
        let mut prefix = Vec::with_capacity(4);
        (&mut reader).take(4).read_to_end(&mut prefix)?;
        let compression = Compression::of(&prefix);
        Self::with_source(
            BufReader::with_capacity(INPUT_BUFFER, Cursor::new(prefix).chain(reader)),
            compression,
        )
    }

    /// Decompresses `reader`, whose compression is known.
    ///
    /// # Errors
    /// When the zstd decoder can't be set up.
    pub fn new(reader: R, compression: Compression) -> io::Result<Self> {
        let source = Cursor::new(Vec::new()).chain(reader);
        Self::with_source(BufReader::with_capacity(INPUT_BUFFER, source), compression)
    }

    fn with_source(source: Source<R>, compression: Compression) -> io::Result<Self> {
        let inner = match compression {
            Compression::None => Inner::Plain(source),
            Compression::Gzip => {
                Inner::Gzip(Box::new(flate2::bufread::MultiGzDecoder::new(source)))
            }
            Compression::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(source)?;
                decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
                Inner::Zstd(Box::new(decoder))
            }
        };
        Ok(Self { inner, compression })
    }

    /// How the stream is compressed.
    pub fn compression(&self) -> Compression {
        self.compression
    }

    /// Reads what is left of the compressed stream after the decompressed end and says whether
    /// there was anything, so that digests over the stored bytes become complete.
    ///
    /// # Errors
    /// When the underlying reader fails.
    pub fn drain_source(&mut self) -> io::Result<bool> {
        let source = match &mut self.inner {
            Inner::Plain(source) => source,
            Inner::Gzip(decoder) => decoder.get_mut(),
            Inner::Zstd(decoder) => decoder.get_mut(),
        };
        let mut any = false;
        loop {
            let len = source.fill_buf()?.len();
            if len == 0 {
                return Ok(any);
            }
            any = true;
            source.consume(len);
        }
    }
}

impl<R: Read> Read for Decompressor<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match &mut self.inner {
            Inner::Plain(source) => source.read(buf),
            Inner::Gzip(decoder) => decoder.read(buf),
            Inner::Zstd(decoder) => decoder.read(buf),
        }
    }
}

impl<R: Read> std::fmt::Debug for Decompressor<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Decompressor").field("compression", &self.compression).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn gzip(data: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    fn read_all(bytes: &[u8]) -> io::Result<(Compression, Vec<u8>)> {
        let mut decompressor = Decompressor::detect(bytes)?;
        let mut out = Vec::new();
        decompressor.read_to_end(&mut out)?;
        Ok((decompressor.compression(), out))
    }

    #[test]
    fn detects_each_compression_and_empty_input() {
        let data = b"some bytes that are not a tar".repeat(100);
        let zstd = zstd::encode_all(&data[..], 1).unwrap();
        assert_eq!(read_all(&gzip(&data)).unwrap(), (Compression::Gzip, data.clone()));
        assert_eq!(read_all(&zstd).unwrap(), (Compression::Zstd, data.clone()));
        assert_eq!(read_all(&data).unwrap(), (Compression::None, data));
        assert_eq!(read_all(b"").unwrap(), (Compression::None, Vec::new()));
        assert_eq!(read_all(b"\x1f").unwrap(), (Compression::None, vec![0x1f]));
    }

    #[test]
    fn reads_all_members_and_frames() {
        let two = [gzip(b"one "), gzip(b"two")].concat();
        assert_eq!(read_all(&two).unwrap().1, b"one two");
        let two =
            [zstd::encode_all(&b"one "[..], 1).unwrap(), zstd::encode_all(&b"two"[..], 1).unwrap()];
        assert_eq!(read_all(&two.concat()).unwrap().1, b"one two");
        let skippable = [&b"\x50\x2a\x4d\x18\x02\0\0\0xx"[..], &two[1]].concat();
        assert_eq!(read_all(&skippable).unwrap(), (Compression::Zstd, b"two".to_vec()));
    }

    #[test]
    fn refuses_truncated_streams() {
        let data = b"0123456789".repeat(1000);
        let zipped = gzip(&data);
        assert!(read_all(&zipped[..zipped.len() - 5]).is_err());
        let zstd = zstd::encode_all(&data[..], 1).unwrap();
        assert!(read_all(&zstd[..zstd.len() - 5]).is_err());
    }
}
