//! Names of containers.

use container_api::escape::escape;
use container_api::{ApiError, Result};

/// Longest name in bytes: a directory of that name and its temporary forms must fit.
pub const MAX_LEN: usize = 128;
/// Longest host name in bytes (`sethostname(2)` takes 64; DNS labels end at 63).
const MAX_HOSTNAME: usize = 63;

/// Checks a container's name: `^[a-zA-Z0-9][a-zA-Z0-9_.-]+$`, at most [`MAX_LEN`] bytes.
pub fn check(name: &str) -> Result<()> {
    let legal = |b: u8| b.is_ascii_alphanumeric() || b"_.-".contains(&b);
    let first = name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
    if first && name.len() >= 2 && name.len() <= MAX_LEN && name.bytes().all(legal) {
        return Ok(());
    }
    let shown: String = name.chars().take(MAX_LEN).collect();
    Err(ApiError::invalid(format!(
        "invalid container name '{}': 2 to {MAX_LEN} of a-z A-Z 0-9 _ . -, the first a letter or digit",
        escape(&shown)
    )))
}

/// A host name made from a container's name: its first 63 bytes, `-` for what may not be in one.
pub fn hostname(id: &str) -> String {
    let text: String = id
        .chars()
        .take(MAX_HOSTNAME)
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .collect();
    text.trim_end_matches('-').to_owned()
}

/// A random UUID (RFC 9562, version 4), lower case.
pub fn random() -> std::io::Result<String> {
    let mut bytes = [0u8; 16];
    let n = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    if n < bytes.len() {
        return Err(std::io::Error::other("getrandom gave too few bytes"));
    }
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let mut text = String::with_capacity(36);
    for (i, byte) in bytes.iter().enumerate() {
        if matches!(i, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.push_str(&format!("{byte:02x}"));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names() {
        for good in ["ab", "web-1", "A.b_c", &"x".repeat(128), &random().unwrap()] {
            check(good).unwrap();
        }
        for bad in ["", "a", "-ab", ".ab", "a/b", "a b", "..", "ä0", "a\nb", &"x".repeat(129)] {
            let error = check(bad).unwrap_err();
            assert!(!error.message.contains('\n'), "{error}");
        }
    }

    #[test]
    fn random_names_are_version_4() {
        let (a, b) = (random().unwrap(), random().unwrap());
        assert_ne!(a, b);
        assert_eq!((a.len(), a.as_bytes()[14]), (36, b'4'));
    }

    proptest! {
        #[test]
        fn host_names_are_legal(id in "[a-zA-Z0-9][a-zA-Z0-9_.-]{1,127}") {
            check(&id).unwrap();
            let name = hostname(&id);
            prop_assert!(!name.is_empty() && name.len() <= 63);
            prop_assert!(!name.starts_with('-') && !name.ends_with('-'));
        }
    }
}
