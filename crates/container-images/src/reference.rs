//! Image references: `[registry/]path[:tag][@digest]`, as Docker reads them.

use std::fmt;

use crate::digest::Digest;
use crate::error::{Error, Result};

/// Docker's own registry, where names of one word belong to `library/`.
const DOCKER: &str = "docker.io";
/// The host that serves it.
const DOCKER_HOST: &str = "registry-1.docker.io";
/// Longest name (registry and path), as Docker has it.
const MAX_NAME: usize = 255;
const MAX_TAG: usize = 128;

/// A complete reference.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    domain: String,
    path: String,
    version: Version,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Version {
    Tag(String),
    Digest(Digest),
}

impl Reference {
    /// Parses `text`; a name without a registry belongs to `default_domain`. Without tag and digest
    /// the tag is `latest`; a tag beside a digest says nothing and is dropped.
    pub fn parse(text: &str, default_domain: &str) -> Result<Reference> {
        let wrong = |problem| Error::Reference { text: text.to_owned(), problem };
        if text.is_empty() {
            return Err(wrong("it is empty"));
        }
        let (rest, digest) = match text.split_once('@') {
            None => (text, None),
            Some((rest, digest)) => {
                let digest = digest
                    .parse()
                    .map_err(|_| wrong("the digest must be sha256:<64 hex digits>"))?;
                (rest, Some(digest))
            }
        };
        let (name, tag) = match rest.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
            _ => (rest, None),
        };
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(wrong("the tag may have letters, digits and _.- only (128 at most)"));
        }
        let (domain, path) = split_domain(name, default_domain);
        if !is_domain(&domain) {
            return Err(wrong("the registry is not a host name with optional port"));
        }
        if path.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(wrong("the name must be lower-case"));
        }
        if !path.split('/').all(is_component) {
            return Err(wrong(
                "the name may have lower-case letters, digits, single separators ._- and / only",
            ));
        }
        if domain.len() + 1 + path.len() > MAX_NAME {
            return Err(wrong("the name is longer than 255 characters"));
        }
        let version = match (digest, tag) {
            (Some(digest), _) => Version::Digest(digest),
            (None, tag) => Version::Tag(tag.unwrap_or("latest").to_owned()),
        };
        Ok(Reference { domain, path, version })
    }

    /// The registry as it is written in the reference.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// The host (and port) that serves it.
    pub fn host(&self) -> &str {
        if self.domain == DOCKER { DOCKER_HOST } else { &self.domain }
    }

    /// The repository in the registry.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The tag, when it is not a digest that the reference names.
    pub fn tag(&self) -> Option<&str> {
        match &self.version {
            Version::Tag(tag) => Some(tag),
            Version::Digest(_) => None,
        }
    }

    /// The digest that the reference names.
    pub fn digest(&self) -> Option<Digest> {
        match &self.version {
            Version::Tag(_) => None,
            Version::Digest(digest) => Some(*digest),
        }
    }

    /// Tag or digest as the distribution protocol wants it in a manifest's address.
    pub fn version(&self) -> String {
        match &self.version {
            Version::Tag(tag) => tag.clone(),
            Version::Digest(digest) => digest.to_string(),
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let separator = if self.tag().is_some() { ':' } else { '@' };
        write!(f, "{}/{}{separator}{}", self.domain, self.path, self.version())
    }
}

/// The first component is a registry when it can't be a word of a path: with a dot, a port, an
/// upper-case letter, or `localhost`.
fn split_domain(name: &str, default_domain: &str) -> (String, String) {
    let names_registry = |first: &str| {
        first == "localhost"
            || first.contains(['.', ':'])
            || first.bytes().any(|b| b.is_ascii_uppercase())
    };
    let (domain, path) = match name.split_once('/') {
        Some((first, rest)) if names_registry(first) => (first, rest),
        _ => (default_domain, name),
    };
    let domain = if domain == "index.docker.io" { DOCKER } else { domain };
    let path = match domain == DOCKER && !path.contains('/') {
        true => format!("library/{path}"),
        false => path.to_owned(),
    };
    (domain.to_owned(), path)
}

fn is_tag(tag: &str) -> bool {
    tag.len() <= MAX_TAG
        && tag.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric() || b == b'_')
        && tag.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
}

/// Lower-case words with one `.`, one or two `_`, or any number of `-` between them.
fn is_component(component: &str) -> bool {
    let word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = component.as_bytes();
    if !bytes.first().is_some_and(|b| word(*b)) || !bytes.last().is_some_and(|b| word(*b)) {
        return false;
    }
    bytes.split(|b| word(*b)).all(|separator| {
        matches!(separator, [] | [b'.'] | [b'_'] | [b'_', b'_'])
            || separator.iter().all(|b| *b == b'-')
    })
}

fn is_domain(domain: &str) -> bool {
    let (host, port) = match domain.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (domain, None),
    };
    let label = |l: &str| {
        !l.is_empty()
            && !l.starts_with('-')
            && !l.ends_with('-')
            && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    let host_fits = match host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => host.split('.').all(label),
    };
    host_fits
        && port.is_none_or(|p| p.bytes().all(|b| b.is_ascii_digit()) && p.parse::<u16>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parsed(text: &str) -> String {
        Reference::parse(text, DOCKER).unwrap().to_string()
    }

    #[test]
    fn normal_forms() {
        let digest = Digest::of(b"");
        for (text, full) in [
            ("debian", "docker.io/library/debian:latest"),
            ("debian:12", "docker.io/library/debian:12"),
            ("index.docker.io/debian", "docker.io/library/debian:latest"),
            ("user/app", "docker.io/user/app:latest"),
            ("localhost/x", "localhost/x:latest"),
            ("localhost:5000/x", "localhost:5000/x:latest"),
            ("localhost:5000/x:y", "localhost:5000/x:y"),
            ("[::1]:5000/x", "[::1]:5000/x:latest"),
            ("Host/x", "Host/x:latest"),
            ("quay.io/a/b__c/d---e:V1", "quay.io/a/b__c/d---e:V1"),
        ] {
            assert_eq!(parsed(text), full);
        }
        assert_eq!(parsed(&format!("a:1@{digest}")), format!("docker.io/library/a@{digest}"));
        let other = Reference::parse("debian", "registry.example:444").unwrap();
        assert_eq!(other.to_string(), "registry.example:444/debian:latest");
    }

    #[test]
    fn what_is_refused() {
        let long = "a".repeat(300);
        for text in [
            "",
            ":",
            "@",
            "a:",
            "a@sha256:00",
            "Debian",
            "a//b",
            "a/",
            "/a",
            "-a",
            "a___b",
            "a..b",
            "a b",
            "a:b c",
            "a\n",
            "http://a",
            "a.b:x/c",
            "[x]/c",
            "\u{202e}a",
            "a.-b.c/d",
            &long,
        ] {
            let error = Reference::parse(text, DOCKER).unwrap_err().to_string();
            assert!(!error.contains(['\n', '\u{202e}']), "{error}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(text: String, domain: String) {
            let _ = Reference::parse(&text, &domain);
        }

        #[test]
        fn normal_forms_are_fixed_points(text in "([a-zA-Z0-9.-]{1,8}(:[0-9]{1,5})?/)?[a-z0-9._/-]{1,20}(:[A-Za-z0-9._-]{1,9})?") {
            if let Ok(reference) = Reference::parse(&text, DOCKER) {
                let again = Reference::parse(&reference.to_string(), "other.example").unwrap();
                prop_assert_eq!(again, reference);
            }
        }
    }
}
