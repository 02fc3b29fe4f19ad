//! What a kernel was configured with.

use super::decompress::decompress;

/// Longest configuration in bytes, decompressed.
const MAX_CONFIG: u64 = 4 << 20;
/// What an embedded configuration stands between (`kernel/configs.c`).
const MARKS: [&[u8]; 2] = [b"IKCFG_ST", b"IKCFG_ED"];

/// The configuration that a kernel with `CONFIG_IKCONFIG` has in itself.
pub(super) fn embedded(kernel: &[u8]) -> Option<Vec<u8>> {
    let mut rest = kernel;
    let mut skip = |mark: &[u8]| {
        let at = rest.windows(mark.len()).position(|window| window == mark)?;
        let (before, after) = rest.split_at(at);
        rest = &after[mark.len()..];
        Some(before)
    };
    skip(MARKS[0])?;
    let packed = skip(MARKS[1])?;
    decompress("the kernel's configuration", packed, MAX_CONFIG).ok()?
}

/// Whether KVM is built in, for a vendor's CPU where it comes in parts.
pub(super) fn has_kvm(config: &[u8]) -> bool {
    let is_set = |name: &str| config.split(|b| *b == b'\n').any(|line| line == name.as_bytes());
    let parts = ["CONFIG_KVM_INTEL=y", "CONFIG_KVM_AMD=y", "CONFIG_ARM64=y"];
    is_set("CONFIG_KVM=y") && parts.into_iter().any(is_set)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn an_embedded_configuration_is_found() {
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        packed.write_all(b"CONFIG_KVM=y\nCONFIG_KVM_AMD=y\n").unwrap();
        let packed = packed.finish().unwrap();
        let kernel = [b"\x7fELF code ", MARKS[0], &packed, MARKS[1], b" more"].concat();
        assert!(has_kvm(&embedded(&kernel).unwrap()));
        assert_eq!(embedded(b"IKCFG_ST IKCFG_E"), None);
        assert_eq!(embedded(b"nothing"), None);
        let broken = [MARKS[0], &packed[..packed.len() / 2], MARKS[1]].concat();
        assert_eq!(embedded(&broken), None);
    }

    #[test]
    fn kvm_needs_a_vendor() {
        assert!(!has_kvm(b"CONFIG_KVM=y\n"));
        assert!(!has_kvm(b"CONFIG_KVM=m\nCONFIG_KVM_AMD=m\n"));
        assert!(!has_kvm(b"# CONFIG_KVM is not set\nCONFIG_KVM_AMD=y\n"));
        assert!(has_kvm(b"CONFIG_KVM=y\nCONFIG_ARM64=y\n"));
    }

    proptest::proptest! {
        #[test]
        fn never_panics(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..500)) {
            let _ = embedded(&[MARKS[0], &bytes, MARKS[1]].concat());
            let _ = embedded(&bytes);
        }
    }
}
