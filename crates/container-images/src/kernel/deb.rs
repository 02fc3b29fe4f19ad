//! Debian packages: an ar archive whose `data.tar.*` member holds the files.

use std::io::{self, BufReader, Read, Seek, SeekFrom};

use super::error::{KernelError, Result, io_error};

/// Bytes of an ar member's header.
const HEADER: usize = 60;
/// Members that are looked at: a package has three, or four with a signature.
const MAX_MEMBERS: usize = 16;
/// Memory that the xz decoder may use, in bytes.
const XZ_MEMORY: u64 = 256 << 20;

/// Opens the package's file archive, decompressed.
pub(super) fn data(name: &str, mut file: impl Read + Seek + 'static) -> Result<Box<dyn Read>> {
    let read = |e| io_error("reading", name)(e);
    let mut magic = [0; 8];
    file.read_exact(&mut magic).map_err(read)?;
    if &magic != b"!<arch>\n" {
        return Err(KernelError::malformed(name, "not a Debian package"));
    }
    for _ in 0..MAX_MEMBERS {
        let mut header = [0; HEADER];
        match file.read_exact(&mut header) {
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => break,
            other => other.map_err(read)?,
        }
        let (member, size) = parse_header(&header)
            .ok_or_else(|| KernelError::malformed(name, "damaged ar header"))?;
        if let Some(extension) = member.strip_prefix("data.tar") {
            return decompressed(name, extension, file.take(size));
        }
        let step = i64::try_from(size + size % 2)
            .map_err(|_| KernelError::malformed(name, "damaged ar header"))?;
        file.seek(SeekFrom::Current(step)).map_err(read)?;
    }
    Err(KernelError::malformed(name, "no data.tar in the package"))
}

fn parse_header(header: &[u8; HEADER]) -> Option<(&str, u64)> {
    let member = std::str::from_utf8(&header[..16]).ok()?.trim_end().trim_end_matches('/');
    let size = std::str::from_utf8(&header[48..58]).ok()?.trim_end().parse().ok()?;
    (&header[58..] == b"`\n").then_some((member, size))
}

fn decompressed(name: &str, extension: &str, member: impl Read + 'static) -> Result<Box<dyn Read>> {
    let known = ["", ".gz", ".xz", ".zst"];
    if !known.contains(&extension) {
        return Err(KernelError::unsupported(name, "this compression of data.tar"));
    }
    stream(name, member)
}

/// The decompressed bytes of a stream that may be gzip, zstd, xz or plain.
pub(super) fn stream(name: &str, mut source: impl Read + 'static) -> Result<Box<dyn Read>> {
    let read = |e| io_error("reading", name)(e);
    let mut prefix = Vec::new();
    (&mut source).take(6).read_to_end(&mut prefix).map_err(read)?;
    let is_xz = prefix.starts_with(b"\xfd7zXZ\0");
    let whole = io::Cursor::new(prefix).chain(source);
    if is_xz {
        let decoder =
            liblzma::stream::Stream::new_stream_decoder(XZ_MEMORY, liblzma::stream::CONCATENATED)
                .map_err(|e| read(e.into()))?;
        let whole = BufReader::with_capacity(256 << 10, whole);
        return Ok(Box::new(liblzma::bufread::XzDecoder::new_stream(whole, decoder)));
    }
    Ok(Box::new(container_rootfs::Decompressor::detect(whole).map_err(read)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    fn member(name: &str, content: &[u8]) -> Vec<u8> {
        let mut out =
            format!("{name:<16}{:<12}{:<6}{:<6}{:<8}{:<10}`\n", 0, 0, 0, 644, content.len())
                .into_bytes();
        out.extend_from_slice(content);
        out.resize(out.len().next_multiple_of(2), b'\n');
        out
    }

    fn package(data_name: &str, content: &[u8]) -> Vec<u8> {
        [
            b"!<arch>\n".to_vec(),
            member("debian-binary", b"2.0\n"),
            member("control.tar", b"odd"),
            member(data_name, content),
        ]
        .concat()
    }

    #[test]
    fn finds_and_decompresses_the_data() {
        for (extension, content) in [
            ("", b"plain tar".to_vec()),
            (".xz", liblzma::encode_all(&b"plain tar"[..], 1).unwrap()),
            (".zst", zstd::encode_all(&b"plain tar"[..], 1).unwrap()),
        ] {
            let package = package(&format!("data.tar{extension}"), &content);
            let mut out = Vec::new();
            data("p", Cursor::new(package)).unwrap().read_to_end(&mut out).unwrap();
            assert_eq!(out, b"plain tar");
        }
    }

    #[test]
    fn refuses_what_is_no_package() {
        assert!(data("p", Cursor::new(b"hello world".to_vec())).is_err());
        assert!(data("p", Cursor::new(package("other", b""))).is_err());
        assert!(data("p", Cursor::new(package("data.tar.bz2", b""))).is_err());
    }

    proptest::proptest! {
        #[test]
        fn never_panics(bytes: Vec<u8>) {
            let bytes = [b"!<arch>\n".to_vec(), bytes].concat();
            let _ = data("p", Cursor::new(bytes)).map(|mut r| r.read_to_end(&mut Vec::new()));
        }
    }
}
