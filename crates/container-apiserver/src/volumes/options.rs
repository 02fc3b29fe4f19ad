//! What a volume is to be like, checked.

use container_api::config::parse_size;
use container_api::escape::escape;
use container_api::images::{FormatVolume, JournalMode};
use container_api::mounts::{VolumeKind, VolumeOptions};
use container_api::paths::DISK_LEN;
use container_api::types::Timestamp;
use container_api::{ApiError, ErrorCode, Result};

use super::Record;
use crate::validate::name;

/// Smallest block volume in bytes.
const MIN_SIZE: u64 = 16 << 20;
/// Journals in MiB that the writer can make.
const JOURNAL_MIB: std::ops::RangeInclusive<u64> = 4..=128;
/// The longest journal in MiB of a volume that asks for none.
const DEFAULT_JOURNAL_MIB: u64 = 32;
/// Most bytes of all labels together.
const MAX_LABELS: usize = 64 << 10;

/// Checks a volume's name: `^[a-zA-Z0-9][a-zA-Z0-9_.-]+$`, as a container's.
pub fn check_name(name: &str) -> Result<()> {
    name::check(name).map_err(|_| {
        let shown: String = name.chars().take(name::MAX_LEN).collect();
        ApiError::invalid(format!(
            "invalid volume name '{}': 2 to {} of a-z A-Z 0-9 _ . -, the first a letter or digit",
            escape(&shown),
            name::MAX_LEN
        ))
    })
}

/// The record of what is asked for, and what to make its disk by.
pub fn record(asked: &VolumeOptions) -> Result<(Record, Option<FormatVolume>)> {
    let anonymous = asked.name.is_empty();
    let name = if anonymous { name::random()? } else { asked.name.clone() };
    check_name(&name)?;
    let labels: usize = asked.labels.iter().map(|(key, value)| key.len() + value.len()).sum();
    if labels > MAX_LABELS || asked.labels.contains_key("") {
        let message = format!("labels need a name each, and at most {MAX_LABELS} bytes together");
        return Err(ApiError::invalid(message));
    }
    let (mut kind, mut size, mut journal) = (VolumeKind::Block, asked.size_in_bytes, None);
    for (key, value) in &asked.options {
        match (key.as_str(), value.as_str()) {
            ("type", "block") => kind = VolumeKind::Block,
            ("type", "shared") => kind = VolumeKind::Shared,
            ("type", _) => return Err(wrong(key, value, "block and shared are known")),
            ("size", text) => {
                let bytes = parse_size(text).map_err(|e| e.context("--opt size"))?;
                if size.is_some_and(|size| size != bytes) {
                    return Err(ApiError::invalid("--size and --opt size differ"));
                }
                size = Some(bytes);
            }
            ("journal", text) => journal = Some(parse_journal(text)?),
            _ => return Err(wrong(key, value, "size, journal and type are known")),
        }
    }
    let format = match kind {
        VolumeKind::Block => Some(format(size.unwrap_or(DISK_LEN), journal)?),
        VolumeKind::Shared if size.is_some() || journal.is_some() => {
            let message = "a shared volume is a directory: it has neither a size nor a journal";
            return Err(ApiError::invalid(message));
        }
        VolumeKind::Shared => None,
    };
    let record = Record {
        name,
        kind,
        size_in_bytes: format.map(|format| format.size_in_bytes),
        labels: asked.labels.clone(),
        options: asked.options.clone(),
        anonymous,
        creation_date: Timestamp::now(),
    };
    Ok((record, format))
}

fn wrong(key: &str, value: &str, known: &str) -> ApiError {
    ApiError::invalid(format!("--opt {}={}: {known}", escape(key), escape(value)))
}

/// `ordered|writeback|journal[:SIZE]`: the mode, and the journal's length in MiB.
fn parse_journal(text: &str) -> Result<(JournalMode, Option<u64>)> {
    let (mode, size) = text.split_once(':').map_or((text, None), |(m, size)| (m, Some(size)));
    let mode = match mode {
        "ordered" => JournalMode::Ordered,
        "writeback" => JournalMode::Writeback,
        "journal" => JournalMode::Journal,
        _ => return Err(wrong("journal", text, "ordered, writeback and journal are known")),
    };
    let mib = |text: &str| {
        let bytes = parse_size(text).map_err(|e| e.context("--opt journal"))?;
        let mib = bytes.div_ceil(1 << 20);
        match JOURNAL_MIB.contains(&mib) {
            true => Ok(mib),
            false => Err(wrong("journal", text, "a journal has 4 to 128 MiB")),
        }
    };
    Ok((mode, size.map(mib).transpose()?))
}

pub fn format(size: u64, journal: Option<(JournalMode, Option<u64>)>) -> Result<FormatVolume> {
    if size > DISK_LEN {
        return Err(ApiError::new(
            ErrorCode::Unsupported,
            format!("a volume of {size} bytes: at most {} GiB are possible", DISK_LEN >> 30),
        ));
    }
    let (mode, mib) = journal.unwrap_or_default();
    let mib = mib.unwrap_or((size >> 25).clamp(*JOURNAL_MIB.start(), DEFAULT_JOURNAL_MIB));
    // The tables of a file system this small have 2 MiB, and there should be room.
    let least = MIN_SIZE.max((mib + 8) << 20);
    if size < least {
        let least = least >> 20;
        let message = format!("a volume of {size} bytes: with its journal it needs {least} MiB");
        return Err(ApiError::invalid(message));
    }
    let mut uuid = [0; 16];
    let filled = rustix::rand::getrandom(&mut uuid, rustix::rand::GetRandomFlags::empty())
        .map_err(std::io::Error::from)?;
    debug_assert_eq!(filled, uuid.len());
    let journal_mib = u32::try_from(mib).unwrap_or(u32::MAX);
    Ok(FormatVolume { size_in_bytes: size, journal_mib, journal: mode, uuid })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn asked(options: &[(&str, &str)]) -> Result<(Record, Option<FormatVolume>)> {
        let options = options.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
        record(&VolumeOptions { name: "data".into(), options, ..VolumeOptions::default() })
    }

    #[test]
    fn what_can_be_made_is_made_and_the_rest_refused() {
        let (record, format) = asked(&[]).unwrap();
        let format = format.unwrap();
        assert_eq!((record.size_in_bytes, format.journal_mib), (Some(DISK_LEN), 32));
        let (_, format) = asked(&[("size", "16m")]).unwrap();
        assert_eq!(format.unwrap().journal_mib, 4);
        let (_, format) = asked(&[("size", "1g"), ("journal", "journal:64m")]).unwrap();
        let format = format.unwrap();
        assert_eq!((format.journal, format.journal_mib), (JournalMode::Journal, 64));
        let (record, format) = asked(&[("type", "shared")]).unwrap();
        assert_eq!((record.kind, format), (VolumeKind::Shared, None));
        for bad in [
            &[("size", "65g")][..],
            &[("size", "1m")],
            &[("size", "20m"), ("journal", "ordered:64m")],
            &[("journal", "none")],
            &[("journal", "ordered:1k")],
            &[("journal", "ordered:1g")],
            &[("type", "tape")],
            &[("type", "shared"), ("size", "1g")],
            &[("colour", "red")],
        ] {
            asked(bad).unwrap_err();
        }
        let anonymous = super::record(&VolumeOptions::default()).unwrap().0;
        assert!(anonymous.anonymous && anonymous.name.len() == 36);
    }

    proptest! {
        #[test]
        fn options_never_panic(key in "size|journal|type", value: String) {
            let _ = asked(&[(&key, &value)]);
        }
    }
}
