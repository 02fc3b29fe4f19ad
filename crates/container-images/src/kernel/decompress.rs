//! Decompression of kernel payloads and modules in memory, bounded.

use std::io::Read;

use super::error::{KernelError, Result};

/// Memory that the xz decoder may use, in bytes: kernels use dictionaries of up to 128 MiB.
const XZ_MEMORY: u64 = 256 << 20;
/// Largest zstd window, as a power of two: the kernel compresses itself with `--ultra -22`.
const ZSTD_WINDOW_LOG: u32 = 27;
/// Bytes that one block of the LZ4 legacy frame decompresses to at most.
const LZ4_BLOCK: usize = 8 << 20;

/// How bytes are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Compression {
    /// Not, or not in a way that we know.
    None,
    /// RFC 1952.
    Gzip,
    /// The .xz container, with its BCJ filters.
    Xz,
    /// The .lzma container that came before it.
    Lzma,
    /// RFC 8878.
    Zstd,
    /// `lz4 -l`: what the kernel's build uses.
    Lz4Legacy,
    /// Known, but not read.
    Unsupported(&'static str),
}

impl Compression {
    /// What `bytes` begin with.
    pub(super) fn of(bytes: &[u8]) -> Compression {
        const MAGICS: [(&[u8], Compression); 8] = [
            (b"\x1f\x8b", Compression::Gzip),
            (b"\xfd7zXZ\0", Compression::Xz),
            (b"\x5d\0\0", Compression::Lzma),
            (b"\x28\xb5\x2f\xfd", Compression::Zstd),
            (b"\x02\x21\x4c\x18", Compression::Lz4Legacy),
            (b"\x04\x22\x4d\x18", Compression::Unsupported("LZ4 frame compression")),
            (b"BZh", Compression::Unsupported("bzip2 compression")),
            (b"\x89LZO", Compression::Unsupported("LZO compression")),
        ];
        let known = MAGICS.iter().find(|(magic, _)| bytes.starts_with(magic));
        known.map_or(Compression::None, |(_, compression)| *compression)
    }
}

/// The decompressed form of `bytes`, at most `limit` bytes; `None` when they are not compressed.
/// What follows the first stream is ignored: the kernel's build appends the size there.
pub(super) fn decompress(what: &str, bytes: &[u8], limit: u64) -> Result<Option<Vec<u8>>> {
    let wrong =
        |e: std::io::Error| KernelError::malformed(what, format!("truncated or damaged: {e}"));
    let out = match Compression::of(bytes) {
        Compression::None => return Ok(None),
        Compression::Unsupported(name) => return Err(KernelError::unsupported(what, name)),
        Compression::Lz4Legacy => lz4_legacy(what, bytes, limit)?,
        Compression::Gzip => bounded(what, flate2::bufread::GzDecoder::new(bytes), limit)?,
        Compression::Xz => {
            let stream = liblzma::stream::Stream::new_stream_decoder(XZ_MEMORY, 0)
                .map_err(|e| wrong(e.into()))?;
            bounded(what, liblzma::bufread::XzDecoder::new_stream(bytes, stream), limit)?
        }
        Compression::Lzma => {
            let stream = liblzma::stream::Stream::new_lzma_decoder(XZ_MEMORY)
                .map_err(|e| wrong(e.into()))?;
            bounded(what, liblzma::bufread::XzDecoder::new_stream(bytes, stream), limit)?
        }
        Compression::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(bytes).map_err(wrong)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG).map_err(wrong)?;
            bounded(what, decoder.single_frame(), limit)?
        }
    };
    Ok(Some(out))
}

fn bounded(what: &str, reader: impl Read, limit: u64) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    let read = reader.take(limit + 1).read_to_end(&mut out);
    read.map_err(|e| KernelError::malformed(what, format!("truncated or damaged: {e}")))?;
    if out.len() as u64 > limit { Err(too_large(what, limit)) } else { Ok(out) }
}

fn too_large(what: &str, limit: u64) -> KernelError {
    KernelError::malformed(what, format!("decompresses to more than {} MiB", limit >> 20))
}

/// The LZ4 legacy frame: a magic, then blocks, each after its compressed size. The kernel's build
/// appends the decompressed size of the whole: four bytes that are no block.
fn lz4_legacy(what: &str, bytes: &[u8], limit: u64) -> Result<Vec<u8>> {
    let wrong = || KernelError::malformed(what, "truncated or damaged LZ4 data");
    let magic = &bytes[..4];
    let mut rest = &bytes[4..];
    let mut out = Vec::new();
    let mut block = vec![0; LZ4_BLOCK];
    while rest.len() > 4 {
        if rest.starts_with(magic) {
            rest = &rest[4..];
            continue;
        }
        let (size, data) = rest.split_at(4);
        let size = u32::from_le_bytes(size.try_into().map_err(|_| wrong())?) as usize;
        if size == 0 {
            break;
        }
        let compressed = data.get(..size).ok_or_else(wrong)?;
        let len = lz4_flex::block::decompress_into(compressed, &mut block).map_err(|_| wrong())?;
        if (out.len() + len) as u64 > limit {
            return Err(too_large(what, limit));
        }
        out.extend_from_slice(&block[..len]);
        rest = &data[size..];
    }
    if out.is_empty() { Err(wrong()) } else { Ok(out) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    const LIMIT: u64 = 1 << 20;

    fn lz4(data: &[u8]) -> Vec<u8> {
        // One literal-only sequence: token, length bytes, literals.
        let mut block = vec![0xf0];
        let mut left = data.len() - 15;
        while left >= 255 {
            block.push(255);
            left -= 255;
        }
        block.push(left as u8);
        block.extend_from_slice(data);
        let mut out = b"\x02\x21\x4c\x18".to_vec();
        out.extend((block.len() as u32).to_le_bytes());
        out.extend(block);
        out
    }

    fn samples(data: &[u8]) -> Vec<Vec<u8>> {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(data).unwrap();
        vec![
            gzip.finish().unwrap(),
            zstd::encode_all(data, 3).unwrap(),
            liblzma::encode_all(data, 3).unwrap(),
            lz4(data),
        ]
    }

    #[test]
    fn each_form_with_an_appended_size() {
        let data = b"kernel ".repeat(5000);
        for mut sample in samples(&data) {
            assert_eq!(decompress("x", &sample, LIMIT).unwrap().unwrap(), data);
            sample.extend((data.len() as u32).to_le_bytes());
            assert_eq!(decompress("x", &sample, LIMIT).unwrap().unwrap(), data);
        }
        assert_eq!(decompress("x", &data, LIMIT).unwrap(), None);
    }

    #[test]
    fn truncation_and_bombs_are_refused() {
        let data = b"kernel ".repeat(5000);
        for sample in samples(&data) {
            decompress("x", &sample[..sample.len() / 2], LIMIT).unwrap_err();
            let error = decompress("x", &sample, 100).unwrap_err().to_string();
            assert!(error.contains("more than"), "{error}");
        }
    }

    proptest::proptest! {
        #[test]
        fn never_panics(kind in 0usize..8, rest: Vec<u8>) {
            let magics: [&[u8]; 8] = [b"\x1f\x8b", b"\xfd7zXZ\0", b"\x5d\0\0", b"\x28\xb5\x2f\xfd",
                b"\x02\x21\x4c\x18", b"\x04\x22\x4d\x18", b"BZh", b""];
            let _ = decompress("x", &[magics[kind], &rest].concat(), LIMIT);
        }
    }
}
