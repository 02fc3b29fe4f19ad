//! Kernel images: whatever a distribution ships, made into what boots fastest.
//!
//! On x86_64 that is the uncompressed ELF file inside a bzImage, entered through its PVH note: an
//! emulated machine saves the time to decompress it. On aarch64 it is the uncompressed `Image`.

use super::decompress::decompress;
use super::elf::Elf;
use super::error::{KernelError, Result};

/// Largest kernel file that is read, in bytes, and largest that one decompresses to.
pub(super) const MAX_KERNEL: u64 = 512 << 20;

const EM_X86_64: u16 = 62;
const EM_AARCH64: u16 = 183;
/// The note that says where a PVH boot enters (`XEN_ELFNOTE_PHYS32_ENTRY`).
const PVH_NOTE: u32 = 18;
/// The first boot protocol that says where the payload is.
const PAYLOAD_PROTOCOL: u16 = 0x0208;

/// A kernel that QEMU's `-kernel` takes.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct KernelImage {
    /// The file.
    pub bytes: Vec<u8>,
    /// `uname -r`, when the image tells.
    pub version: Option<String>,
}

/// Makes a bootable image for `architecture` (Go's name) of the kernel file `bytes`; `name` is for
/// messages.
pub(super) fn bootable(name: &str, bytes: Vec<u8>, architecture: &str) -> Result<KernelImage> {
    let image = if let Some(setup) = Setup::find(&bytes) {
        from_bzimage(name, &bytes, &setup, architecture)?
    } else {
        let bytes = match efi_zboot_payload(name, &bytes)? {
            Some(payload) => payload,
            None => bytes,
        };
        let bytes = decompress(name, &bytes, MAX_KERNEL)?.unwrap_or(bytes);
        check_uncompressed(name, &bytes, architecture)?;
        KernelImage { version: banner_version(&bytes), bytes }
    };
    Ok(image)
}

fn check_uncompressed(name: &str, bytes: &[u8], architecture: &str) -> Result<()> {
    let arm_image = bytes.get(56..60) == Some(b"ARM\x64");
    let found = match Elf::new(bytes) {
        Some(elf) => match elf.machine() {
            EM_X86_64 => "amd64".to_owned(),
            EM_AARCH64 => "arm64".to_owned(),
            other => format!("ELF machine {other}"),
        },
        None if arm_image => "arm64".to_owned(),
        None if bytes.starts_with(b"\x7fELF") => "a 32-bit or big-endian machine".to_owned(),
        None => return Err(KernelError::malformed(name, "not a kernel image")),
    };
    if found != architecture {
        return Err(KernelError::Architecture { found, wanted: architecture.into() });
    }
    match Elf::new(bytes) {
        Some(elf) if !elf.is_complete() => Err(KernelError::malformed(name, "truncated")),
        Some(_) if architecture == "arm64" => {
            Err(KernelError::unsupported(name, "an ELF kernel on arm64 (use Image)"))
        }
        Some(elf) if !elf.has_note(b"Xen", PVH_NOTE) => {
            Err(KernelError::unsupported(name, "a kernel without PVH entry (CONFIG_PVH)"))
        }
        None if arm_image_is_truncated(bytes) => Err(KernelError::malformed(name, "truncated")),
        _ => Ok(()),
    }
}

/// An arm64 Image says its size in memory, its `.bss` included: the file can't be much shorter.
fn arm_image_is_truncated(bytes: &[u8]) -> bool {
    let size = bytes.get(16..24).and_then(|b| b.try_into().ok()).map(u64::from_le_bytes);
    size.is_some_and(|size| size != 0 && (bytes.len() as u64) < size / 2)
}

/// The setup header of a bzImage (Documentation/arch/x86/boot.rst).
struct Setup {
    protocol: u16,
    is_64_bit: bool,
    /// Where protected-mode code begins.
    start: usize,
    /// Of protected-mode code, in bytes.
    len: usize,
    payload_offset: usize,
    payload_len: usize,
    version: Option<String>,
}

impl Setup {
    fn find(bytes: &[u8]) -> Option<Setup> {
        let u16_at = |at: usize| Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
        let u32_at = |at: usize| {
            let raw: [u8; 4] = bytes.get(at..at + 4)?.try_into().ok()?;
            Some(u32::from_le_bytes(raw) as usize)
        };
        if bytes.get(0x202..0x206)? != b"HdrS" || u16_at(0x1fe)? != 0xaa55 {
            return None;
        }
        let sectors = match bytes[0x1f1] {
            0 => 4,
            n => n as usize,
        };
        let text = bytes.get(u16_at(0x20e)? as usize + 0x200..).unwrap_or_default();
        Some(Setup {
            protocol: u16_at(0x206)?,
            is_64_bit: u16_at(0x236)? & 1 != 0,
            start: (sectors + 1) * 512,
            len: u32_at(0x1f4)? * 16,
            payload_offset: u32_at(0x248)?,
            payload_len: u32_at(0x24c)?,
            version: version_word(text),
        })
    }
}

fn from_bzimage(
    name: &str,
    bytes: &[u8],
    setup: &Setup,
    architecture: &str,
) -> Result<KernelImage> {
    let found = if setup.is_64_bit { "amd64" } else { "386" };
    if found != architecture {
        let (found, wanted) = (found.into(), architecture.into());
        return Err(KernelError::Architecture { found, wanted });
    }
    if setup.protocol < PAYLOAD_PROTOCOL {
        return Err(KernelError::unsupported(name, "a boot protocol older than 2.08"));
    }
    let truncated = || KernelError::malformed(name, "truncated");
    let code = bytes.get(setup.start..).ok_or_else(truncated)?;
    // The size in the header counts whole paragraphs of 16 bytes.
    if code.len() + 15 < setup.len {
        return Err(truncated());
    }
    let payload = setup
        .payload_offset
        .checked_add(setup.payload_len)
        .and_then(|end| code.get(setup.payload_offset..end))
        .ok_or_else(truncated)?;
    let what = format!("{name} (payload)");
    let kernel = decompress(&what, payload, MAX_KERNEL)?.unwrap_or_else(|| payload.to_vec());
    let elf = Elf::new(&kernel)
        .ok_or_else(|| KernelError::malformed(&what, "neither compressed nor an ELF file"))?;
    if elf.machine() != EM_X86_64 || !elf.is_complete() {
        return Err(KernelError::malformed(&what, "truncated or not for x86_64"));
    }
    let version = setup.version.clone().or_else(|| banner_version(&kernel));
    // Without a PVH entry the bzImage itself is what boots, only slower.
    let has_entry = elf.has_note(b"Xen", PVH_NOTE);
    Ok(KernelImage { bytes: if has_entry { kernel } else { bytes.to_vec() }, version })
}

/// The compressed kernel inside an EFI application that decompresses itself
/// (drivers/firmware/efi/libstub/zboot-header.S).
fn efi_zboot_payload(name: &str, bytes: &[u8]) -> Result<Option<Vec<u8>>> {
    if !bytes.starts_with(b"MZ") || bytes.get(4..8) != Some(b"zimg") {
        return Ok(None);
    }
    let word = |at: usize| {
        let raw = bytes.get(at..at + 4).and_then(|b| b.try_into().ok());
        raw.map(|raw| u32::from_le_bytes(raw) as usize)
    };
    let payload = word(8)
        .zip(word(12))
        .and_then(|(offset, len)| bytes.get(offset..offset.checked_add(len)?))
        .ok_or_else(|| KernelError::malformed(name, "truncated"))?;
    Ok(Some(payload.to_vec()))
}

/// The version in the banner that every uncompressed kernel holds.
fn banner_version(bytes: &[u8]) -> Option<String> {
    const BANNER: &[u8] = b"Linux version ";
    let mut rest = bytes;
    while let Some(at) = find(rest, BANNER) {
        rest = &rest[at + BANNER.len()..];
        if let Some(version) = version_word(rest) {
            return Some(version);
        }
    }
    None
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    let first = *needle.first()?;
    let mut from = 0;
    while let Some(at) = haystack.get(from..)?.iter().position(|b| *b == first) {
        let at = from + at;
        if haystack[at..].starts_with(needle) {
            return Some(at);
        }
        from = at + 1;
    }
    None
}

/// A leading `uname -r`, up to white space or NUL.
fn version_word(bytes: &[u8]) -> Option<String> {
    let end = bytes.iter().take(128).position(|b| b.is_ascii_whitespace() || *b == 0)?;
    let word = std::str::from_utf8(&bytes[..end]).ok()?;
    is_version(word).then(|| word.to_owned())
}

/// Whether `text` looks like what `uname -r` prints; such a text is also safe as a file's name.
pub(super) fn is_version(text: &str) -> bool {
    text.len() <= 64
        && text.starts_with(|c: char| c.is_ascii_digit())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._+~-".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        assert_eq!(version_word(b"6.1.0-9-cloud-amd64 (x@y) #1").unwrap(), "6.1.0-9-cloud-amd64");
        assert_eq!(version_word(b"%s (x"), None);
        assert_eq!(version_word(b"6.1/../.. "), None);
        let text = b"..Linux version %s\0Linux version 6.12.1 (gcc)";
        assert_eq!(banner_version(text).unwrap(), "6.12.1");
    }

    #[test]
    fn garbage_and_other_machines_are_refused() {
        let error = bootable("k", b"#!/bin/sh".to_vec(), "amd64").unwrap_err();
        assert_eq!(error.to_string(), "k: not a kernel image");
        let mut image = vec![0; 64];
        image[56..60].copy_from_slice(b"ARM\x64");
        let error = bootable("k", image.clone(), "amd64").unwrap_err().to_string();
        assert!(error.contains("wrong architecture: the kernel is for arm64"), "{error}");
        assert_eq!(bootable("k", image.clone(), "arm64").unwrap().bytes, image);
        let exe = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let error = bootable("k", exe, "amd64").unwrap_err().to_string();
        assert!(error.contains("PVH"), "{error}");
    }

    proptest::proptest! {
        #[test]
        fn never_panics(mut bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..2000)) {
            let _ = bootable("k", bytes.clone(), "amd64");
            if bytes.len() > 0x250 {
                bytes[0x202..0x206].copy_from_slice(b"HdrS");
                bytes[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
                bytes[0x236] |= 1;
                bytes[0x207] = 2;
                bytes[0x24a..0x24c].fill(0);
                bytes[0x24e..0x250].fill(0);
                let _ = bootable("k", bytes, "amd64");
            }
        }
    }
}
