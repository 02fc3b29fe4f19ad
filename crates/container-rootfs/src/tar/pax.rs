//! pax extended headers: `length key=value\n` records.

use super::entry::Timestamp;
use super::fault::Fault;
use super::number;

const SCHILY_XATTR: &[u8] = b"SCHILY.xattr.";
const LIBARCHIVE_XATTR: &[u8] = b"LIBARCHIVE.xattr.";

/// What one extended header says about the next entry.
#[derive(Debug, Default)]
pub(super) struct Pax {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) mtime: Option<Timestamp>,
    pub(super) dev_major: Option<u64>,
    pub(super) dev_minor: Option<u64>,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(super) sparse: PaxSparse,
}

/// GNU's sparse extensions, formats 0.0, 0.1 and 1.0.
#[derive(Debug, Default)]
pub(super) struct PaxSparse {
    pub(super) major: Option<u64>,
    pub(super) minor: Option<u64>,
    pub(super) name: Option<Vec<u8>>,
    pub(super) real_size: Option<u64>,
    /// Offsets and lengths in turn, of formats 0.0 and 0.1.
    pub(super) numbers: Vec<u64>,
}

impl Pax {
    /// Later records replace earlier ones; an empty value takes a record back.
    pub(super) fn parse(mut rest: &[u8]) -> Result<Self, Fault> {
        let mut pax = Self::default();
        while !rest.is_empty() {
            let (record, after) = split_record(rest)?;
            let equals = record.iter().position(|byte| *byte == b'=').ok_or(Fault::PaxRecord)?;
            pax.set(&record[..equals], &record[equals + 1..])?;
            rest = after;
        }
        Ok(pax)
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> Result<(), Fault> {
        match key {
            b"path" => self.path = name(value)?,
            b"linkpath" => self.link = name(value)?,
            b"size" => self.size = decimal(value, "size")?,
            b"uid" => self.uid = id(value, "uid")?,
            b"gid" => self.gid = id(value, "gid")?,
            b"mtime" => self.mtime = time(value)?,
            b"SCHILY.devmajor" => self.dev_major = decimal(value, "SCHILY.devmajor")?,
            b"SCHILY.devminor" => self.dev_minor = decimal(value, "SCHILY.devminor")?,
            _ => {
                if let Some(name) = key.strip_prefix(SCHILY_XATTR) {
                    self.set_xattr(name.to_vec(), value.to_vec())?;
                } else if let Some(encoded) = key.strip_prefix(LIBARCHIVE_XATTR) {
                    let invalid = Fault::PaxValue("LIBARCHIVE.xattr");
                    let name = percent_decoded(encoded).ok_or(invalid.clone())?;
                    let value = base64_decoded(value).ok_or(invalid)?;
                    // The same attribute in both notations: SCHILY's is the exact one.
                    if !self.xattrs.iter().any(|(known, _)| *known == name) {
                        self.set_xattr(name, value)?;
                    }
                } else if let Some(key) = key.strip_prefix(b"GNU.sparse.") {
                    self.sparse.set(key, value)?;
                }
            }
        }
        Ok(())
    }

    fn set_xattr(&mut self, name: Vec<u8>, value: Vec<u8>) -> Result<(), Fault> {
        if name.is_empty() || name.contains(&0) {
            return Err(Fault::PaxValue("SCHILY.xattr"));
        }
        if let Some(known) = self.xattrs.iter_mut().find(|(known, _)| *known == name) {
            known.1 = value;
        } else if self.xattrs.len() >= MAX_XATTRS {
            return Err(Fault::limit("extended attributes", MAX_XATTRS as u64));
        } else {
            self.xattrs.push((name, value));
        }
        Ok(())
    }
}

/// Attributes of one entry.
const MAX_XATTRS: usize = 1000;

impl PaxSparse {
    fn set(&mut self, key: &[u8], value: &[u8]) -> Result<(), Fault> {
        match key {
            b"major" => self.major = decimal(value, "GNU.sparse.major")?,
            b"minor" => self.minor = decimal(value, "GNU.sparse.minor")?,
            b"name" => self.name = name(value)?,
            b"size" | b"realsize" => self.real_size = decimal(value, "GNU.sparse.realsize")?,
            b"offset" | b"numbytes" => {
                // 0.0 repeats the two keys, in this order.
                if (key == b"offset") != self.numbers.len().is_multiple_of(2) {
                    return Err(Fault::SparseMap);
                }
                self.numbers.push(number::decimal(value).ok_or(Fault::SparseMap)?);
            }
            b"map" => {
                self.numbers = value
                    .split(|byte| *byte == b',')
                    .map(|part| number::decimal(part).ok_or(Fault::SparseMap))
                    .collect::<Result<_, _>>()?;
            }
            _ => {}
        }
        Ok(())
    }
}

/// The record that `bytes` begin with, without its length and newline, and what follows it.
fn split_record(bytes: &[u8]) -> Result<(&[u8], &[u8]), Fault> {
    let digits = bytes.iter().take(20).position(|byte| *byte == b' ').ok_or(Fault::PaxRecord)?;
    let len = number::decimal(&bytes[..digits])
        .and_then(|len| usize::try_from(len).ok())
        .filter(|len| *len <= bytes.len() && *len > digits + 1)
        .ok_or(Fault::PaxRecord)?;
    let (record, rest) = bytes.split_at(len);
    let record = record[digits + 1..].strip_suffix(b"\n").ok_or(Fault::PaxRecord)?;
    Ok((record, rest))
}

fn name(value: &[u8]) -> Result<Option<Vec<u8>>, Fault> {
    if value.contains(&0) {
        return Err(Fault::NulInName);
    }
    Ok((!value.is_empty()).then(|| value.to_vec()))
}

fn decimal(value: &[u8], key: &'static str) -> Result<Option<u64>, Fault> {
    if value.is_empty() {
        return Ok(None);
    }
    number::decimal(value).map(Some).ok_or(Fault::PaxValue(key))
}

fn id(value: &[u8], key: &'static str) -> Result<Option<u32>, Fault> {
    decimal(value, key)?.map(|id| u32::try_from(id).map_err(|_| Fault::PaxValue(key))).transpose()
}

fn time(value: &[u8]) -> Result<Option<Timestamp>, Fault> {
    if value.is_empty() {
        return Ok(None);
    }
    let (seconds, nanos) = number::time(value).ok_or(Fault::PaxValue("mtime"))?;
    Ok(Some(Timestamp { seconds, nanos }))
}

fn percent_decoded(text: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, after)) = rest.split_first() {
        if *first == b'%' {
            let hex = std::str::from_utf8(after.get(..2)?).ok()?;
            out.push(u8::from_str_radix(hex, 16).ok()?);
            rest = &after[2..];
        } else {
            out.push(*first);
            rest = after;
        }
    }
    Some(out)
}

/// Standard base64, padding optional.
fn base64_decoded(text: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len() / 4 * 3 + 3);
    let (mut bits, mut count) = (0u32, 0);
    for byte in text.iter().take_while(|byte| **byte != b'=') {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            out.push((bits >> count) as u8);
            bits &= (1 << count) - 1;
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn records_are_read_and_unknown_keys_passed_over() {
        let text = b"16 path=a/b/c=d\n12 uid=1000\n19 mtime=-1.500001\n10 x.y=zz\n";
        let pax = Pax::parse(text).unwrap();
        assert_eq!(pax.path.as_deref(), Some(&b"a/b/c=d"[..]));
        assert_eq!(pax.uid, Some(1000));
        assert_eq!(pax.mtime, Some(Timestamp { seconds: -2, nanos: 499_999_000 }));
    }

    #[test]
    fn attributes_in_both_notations() {
        let text = b"28 SCHILY.xattr.user.a=\x00=\n\x01\n\
            34 LIBARCHIVE.xattr.user.%61=eHl6\n34 LIBARCHIVE.xattr.user.%62=eHl6\n";
        let pax = Pax::parse(text).unwrap();
        let expected = vec![
            (b"user.a".to_vec(), b"\x00=\n\x01".to_vec()),
            (b"user.b".to_vec(), b"xyz".to_vec()),
        ];
        assert_eq!(pax.xattrs, expected);
    }

    #[test]
    fn malformed_records_are_refused() {
        let bad: [&[u8]; 9] = [
            b"5 a=b",
            b"99 a=b\n",
            b"6 abc\n",
            b"0 a=b\n",
            b"2 \n",
            b" a=b\n",
            b"18446744073709551616 a=b\n",
            b"12 uid=-100\n",
            b"13 path=a\0bc\n",
        ];
        for text in bad {
            assert!(Pax::parse(text).is_err(), "{}", text.escape_ascii());
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Pax::parse(&bytes);
        }
    }
}
