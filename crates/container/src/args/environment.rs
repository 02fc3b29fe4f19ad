//! `--env` and `--env-file`.

use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use container_api::escape::escape_bytes;
use container_api::types::ByteString;
use container_api::{ApiError, Result};

/// Longest environment file in bytes.
const MAX_FILE: u64 = 16 << 20;

/// The variables of `--env-file`s and then those of `--env`, which win. A name alone takes the
/// host's value, found with `host`, and is left out when there is none.
pub fn collect(
    files: &[impl AsRef<Path>],
    variables: &[OsString],
    host: impl Fn(&OsStr) -> Option<OsString>,
) -> Result<Vec<ByteString>> {
    let mut all = Vec::new();
    for file in files {
        let file = file.as_ref();
        let shown = escape_bytes(file.as_os_str().as_bytes());
        let bytes = read(file).map_err(|e| ApiError::from(e).context(&shown))?;
        all.extend(parse_file(&bytes, &host).map_err(|e| e.context(&shown))?);
    }
    for variable in variables {
        let bytes = variable.as_bytes();
        let one = one(bytes, &host)
            .map_err(|why| ApiError::invalid(format!("--env {}: {why}", escape_bytes(bytes))))?;
        all.extend(one);
    }
    Ok(all)
}

fn read(file: &Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    std::fs::File::open(file)?.take(MAX_FILE + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(std::io::Error::new(
            std::io::ErrorKind::FileTooLarge,
            format!("longer than {} MiB", MAX_FILE >> 20),
        ));
    }
    Ok(bytes)
}

/// One variable a line; blank lines and those that begin with `#` say nothing. Values are taken as
/// they stand, quotes and spaces included (Docker's rules).
fn parse_file(bytes: &[u8], host: &impl Fn(&OsStr) -> Option<OsString>) -> Result<Vec<ByteString>> {
    let mut all = Vec::new();
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    for (index, line) in bytes.split(|b| *b == b'\n').enumerate() {
        let line = line.strip_suffix(b"\r").unwrap_or(line).trim_ascii_start();
        if line.is_empty() || line.starts_with(b"#") {
            continue;
        }
        let variable = one(line, host).map_err(|why| {
            ApiError::invalid(format!("line {}: {why}: {}", index + 1, escape_bytes(line)))
        })?;
        all.extend(variable);
    }
    Ok(all)
}

fn one(
    bytes: &[u8],
    host: &impl Fn(&OsStr) -> Option<OsString>,
) -> std::result::Result<Option<ByteString>, &'static str> {
    let name = bytes.split(|b| *b == b'=').next().unwrap_or_default();
    if name.is_empty() {
        return Err("a variable without a name");
    }
    if name.iter().any(u8::is_ascii_whitespace) {
        return Err("a name with a space");
    }
    if bytes.contains(&0) {
        return Err("a variable with a zero byte");
    }
    if name.len() < bytes.len() {
        return Ok(Some(ByteString(bytes.to_vec())));
    }
    Ok(host(OsStr::from_bytes(name)).map(|value| {
        let mut whole = name.to_vec();
        whole.push(b'=');
        whole.extend(value.into_vec());
        ByteString(whole)
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn host(name: &OsStr) -> Option<OsString> {
        (name == "HOME").then(|| "/home/me".into())
    }

    fn file(text: &[u8]) -> Result<Vec<String>> {
        let parsed = parse_file(text, &host)?;
        Ok(parsed.iter().map(|v| v.to_string_lossy().into_owned()).collect())
    }

    #[test]
    fn files() {
        let text = b"\xef\xbb\xbf# a comment\n\nA=1\r\n  B=two words # and no comment\nC=\nHOME\nMISSING\nQ=\"x\"";
        let expected = ["A=1", "B=two words # and no comment", "C=", "HOME=/home/me", "Q=\"x\""];
        assert_eq!(file(text).unwrap(), expected);
    }

    #[test]
    fn the_line_that_is_wrong_is_named() {
        let error = file(b"A=1\n=2\n").unwrap_err();
        assert_eq!(error.message, "line 2: a variable without a name: =2");
        assert!(file(b"A B=1").unwrap_err().message.starts_with("line 1: a name with a space"));
    }

    #[test]
    fn variables_may_hold_any_byte_and_newlines() {
        let odd = OsString::from_vec(b"X=\xff\n=".to_vec());
        let all = collect(&[] as &[&Path], &[odd, "HOME".into(), "NOPE".into()], host).unwrap();
        assert_eq!(all, [ByteString(b"X=\xff\n=".to_vec()), "HOME=/home/me".into()]);
        collect(&[] as &[&Path], &["=x".into()], host).unwrap_err();
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = collect(&["/nonexistent/env"], &[], host).unwrap_err();
        assert!(error.message.starts_with("/nonexistent/env: "), "{error}");
    }

    proptest! {
        #[test]
        fn never_panics(bytes: Vec<u8>) {
            let _ = parse_file(&bytes, &host);
        }
    }
}
