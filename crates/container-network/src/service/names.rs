//! Names of networks, containers in a resolver, and domains.

use std::borrow::Cow;

use container_api::escape::escape;
use container_api::network::{MAX_NAME, NO_NETWORK};
use container_api::{ApiError, Result};

/// Longest name of the domain name system in bytes.
const MAX_DOMAIN: usize = 253;
/// Names that are not a container's to have.
const RESERVED: [&str; 3] = ["localhost", "host.container.internal", "host.docker.internal"];

/// A text for a message: escaped, and cut where it is long.
pub fn shown(text: &str) -> Cow<'_, str> {
    const MOST: usize = 80;
    match text.char_indices().nth(MOST) {
        None => escape(text),
        Some((end, _)) => Cow::Owned(format!("{}…", escape(&text[..end]))),
    }
}

/// Checks a network's name.
pub fn check_network(name: &str) -> Result<()> {
    if name == NO_NETWORK {
        return Err(ApiError::invalid("'none' means no network and can't be one's name"));
    }
    let legal = |b: u8| b.is_ascii_alphanumeric() || b"_.-".contains(&b);
    let first = name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
    if first && name.len() <= MAX_NAME && name.bytes().all(legal) {
        return Ok(());
    }
    Err(ApiError::invalid(format!(
        "invalid network name '{}': 1 to {MAX_NAME} of a-z A-Z 0-9 _ . -, the first a letter or \
         digit",
        shown(name)
    )))
}

/// Checks an alias and gives it in lower case.
pub fn check_alias(name: &str) -> Result<String> {
    let lower = name.to_ascii_lowercase();
    if lower.len() > MAX_NAME || !is_domain(&lower) {
        return Err(ApiError::invalid(format!(
            "invalid alias '{}': 1 to {MAX_NAME} of a-z 0-9 _ . -, a letter or digit first and last",
            shown(name)
        )));
    }
    if RESERVED.contains(&lower.as_str()) || lower.ends_with(".localhost") {
        return Err(ApiError::invalid(format!("'{lower}' can't be an alias: it is the host's")));
    }
    Ok(lower)
}

/// Checks a domain and gives it in lower case, without the last dot.
pub fn check_domain(name: &str) -> Result<String> {
    let lower = name.to_ascii_lowercase();
    let lower = lower.strip_suffix('.').unwrap_or(&lower);
    match is_domain(lower) {
        true => Ok(lower.to_owned()),
        false => Err(ApiError::invalid(format!(
            "invalid domain '{}': labels of at most {MAX_NAME} of a-z 0-9 _ - with dots between",
            shown(name)
        ))),
    }
}

/// Whether these are labels with dots between, in lower case.
pub fn is_domain(name: &str) -> bool {
    let edge = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_alphanumeric() || *b == b'_');
    let label = |label: &str| {
        let bytes = label.as_bytes();
        let legal =
            |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'_' || *b == b'-';
        bytes.len() <= MAX_NAME
            && edge(bytes.first())
            && edge(bytes.last())
            && bytes.iter().all(legal)
    };
    name.len() <= MAX_DOMAIN && name.split('.').all(label)
}

/// The name as a resolver may know it; `None`: no question can ask for it, or it is the host's.
pub fn resolvable(name: &str) -> Option<String> {
    let lower = name.to_ascii_lowercase();
    let known = is_domain(&lower) && !RESERVED.contains(&lower.as_str());
    known.then_some(lower)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn networks() {
        for good in ["default", "a", "9", "A.b-c_d", &"n".repeat(63)] {
            check_network(good).unwrap();
        }
        for bad in ["", "none", "-a", ".a", "a/b", "a b", "ä", "a\n", "..", &"n".repeat(300)] {
            let error = check_network(bad).unwrap_err();
            assert!(!error.message.contains('\n') && error.message.len() < 300, "{error}");
        }
    }

    #[test]
    fn aliases_and_domains() {
        assert_eq!(check_alias("DB.Local").unwrap(), "db.local");
        for bad in ["", "a..b", "-a", "a-", "localhost", "Host.Docker.Internal", "x.localhost"] {
            check_alias(bad).unwrap_err();
        }
        check_alias(&"a".repeat(64)).unwrap_err();
        assert_eq!(check_domain("Test.").unwrap(), "test");
        for bad in ["", ".", "a.", "a b", "*.a"].iter().filter(|bad| **bad != "a.") {
            check_domain(bad).unwrap_err();
        }
        check_domain(&vec!["a".repeat(63); 4].join(".")).unwrap_err();
    }

    proptest! {
        #[test]
        fn never_panics(text: String) {
            let _ = (check_network(&text), check_alias(&text), check_domain(&text));
            let _ = (resolvable(&text), shown(&text));
        }
    }
}
