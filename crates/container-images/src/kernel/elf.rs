//! The little of 64-bit little-endian ELF that a kernel and its modules need.

/// A view of an ELF file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Elf<'a> {
    bytes: &'a [u8],
}

/// Most headers of one kind that are looked at. Modules built with a section for each function
/// have thousands.
const MAX_HEADERS: usize = 65_535;

impl<'a> Elf<'a> {
    /// A view of `bytes` when they begin like a 64-bit little-endian ELF file.
    pub(super) fn new(bytes: &'a [u8]) -> Option<Elf<'a>> {
        (bytes.len() >= 64 && bytes.starts_with(b"\x7fELF\x02\x01")).then_some(Elf { bytes })
    }

    fn u16(&self, at: usize) -> Option<u16> {
        let raw = self.bytes.get(at..at.checked_add(2)?)?;
        Some(u16::from_le_bytes(raw.try_into().ok()?))
    }

    fn u32(&self, at: usize) -> Option<u32> {
        let raw = self.bytes.get(at..at.checked_add(4)?)?;
        Some(u32::from_le_bytes(raw.try_into().ok()?))
    }

    fn u64(&self, at: usize) -> Option<usize> {
        let raw = self.bytes.get(at..at.checked_add(8)?)?;
        usize::try_from(u64::from_le_bytes(raw.try_into().ok()?)).ok()
    }

    fn slice(&self, offset: usize, len: usize) -> Option<&'a [u8]> {
        self.bytes.get(offset..offset.checked_add(len)?)
    }

    /// `e_machine`.
    pub(super) fn machine(&self) -> u16 {
        self.u16(18).unwrap_or(0)
    }

    /// Whether every program header's content is in the file.
    pub(super) fn is_complete(&self) -> bool {
        let mut any = false;
        for (offset, header) in self.program_headers() {
            any = true;
            let size = self.u64(header + 32);
            if size.and_then(|size| self.slice(offset, size)).is_none() {
                return false;
            }
        }
        any
    }

    /// Offsets of contents and of the headers themselves.
    fn program_headers(&self) -> impl Iterator<Item = (usize, usize)> {
        let count = self.u16(56).unwrap_or(0) as usize;
        let (start, size) = (self.u64(32).unwrap_or(0), self.u16(54).unwrap_or(0) as usize);
        (0..count).map_while(move |i| {
            let header = start.checked_add(i * size)?;
            self.slice(header, 56)?;
            Some((self.u64(header + 8)?, header))
        })
    }

    /// Whether a note of this name and type is in one of the note segments.
    pub(super) fn has_note(&self, name: &[u8], kind: u32) -> bool {
        const PT_NOTE: u32 = 4;
        self.program_headers()
            .filter(|(_, header)| self.u32(*header) == Some(PT_NOTE))
            .filter_map(|(offset, header)| self.slice(offset, self.u64(header + 32)?))
            .any(|notes| notes_have(notes, name, kind))
    }

    /// The content of the first section called `name`.
    pub(super) fn section(&self, name: &[u8]) -> Option<&'a [u8]> {
        let start = self.u64(40)?;
        let size = self.u16(58)? as usize;
        let count = (self.u16(60)? as usize).min(MAX_HEADERS);
        let header = |index: usize| start.checked_add(index.checked_mul(size)?);
        let content = |header: usize| self.slice(self.u64(header + 24)?, self.u64(header + 32)?);
        let names = content(header(self.u16(62)? as usize)?)?;
        for index in 0..count {
            let at = header(index)?;
            self.slice(at, 64)?;
            let own = names.get(self.u32(at)? as usize..)?;
            if own.strip_prefix(name).is_some_and(|rest| rest.first() == Some(&0)) {
                return content(at);
            }
        }
        None
    }
}

fn notes_have(mut notes: &[u8], name: &[u8], kind: u32) -> bool {
    let word = |bytes: &[u8], at: usize| {
        bytes.get(at..at + 4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
    };
    let padded = |len: u32| (len as usize).checked_next_multiple_of(4);
    while let (Some(name_len), Some(len), Some(own)) =
        (word(notes, 0), word(notes, 4), word(notes, 8))
    {
        let own_name = notes.get(12..12 + name_len as usize).unwrap_or_default();
        if own == kind && own_name.strip_suffix(b"\0") == Some(name) {
            return true;
        }
        let next =
            padded(name_len).zip(padded(len)).and_then(|(a, b)| a.checked_add(b)?.checked_add(12));
        match next.and_then(|next| notes.get(next..)) {
            Some(rest) => notes = rest,
            None => return false,
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_sections_and_segments_of_a_real_program() {
        let bytes = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let elf = Elf::new(&bytes).unwrap();
        assert!(elf.is_complete());
        assert!(elf.section(b".text").unwrap().len() > 1000);
        assert!(elf.section(b".tex").is_none());
        // NT_GNU_ABI_TAG, which the toolchain puts into every program.
        assert!(elf.has_note(b"GNU", 1) || elf.has_note(b"GNU", 3));
        assert!(!elf.has_note(b"Xen", 18));
        assert!(!Elf::new(&bytes[..4096]).unwrap().is_complete());
    }

    proptest::proptest! {
        #[test]
        fn never_panics(rest in proptest::collection::vec(proptest::num::u8::ANY, 58..400), name: Vec<u8>) {
            let bytes = [b"\x7fELF\x02\x01", &rest[..]].concat();
            let elf = Elf::new(&bytes).unwrap();
            elf.section(&name);
            elf.has_note(&name, 18);
            elf.is_complete();
            notes_have(&rest, &name, 1);
        }
    }
}
