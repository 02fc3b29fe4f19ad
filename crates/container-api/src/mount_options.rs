//! How a user writes mounts: `--volume` and `--mount`.
//!
//! All of it is bytes to types: nothing is looked up. Paths may hold any byte but NUL; one with a
//! colon or a comma is given to `--mount`, a comma within quotes (as in CSV, `""` is one quote).

use crate::escape::escape_bytes;
use crate::mounts::{IdRange, MountKind, MountOptions};
use crate::types::{ByteString, Tmpfs};
use crate::{ApiError, Result};

/// How much of a wrong word is shown.
const SHOWN: usize = 120;
/// Most ranges of an `idmap=`.
const MAX_RANGES: usize = 64;

/// What one flag asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    /// A bind mount, whose source may be relative, or a volume.
    Mount(MountOptions),
    /// A memory file system.
    Tmpfs(Tmpfs),
}

fn wrong(flag: &str, text: &[u8], why: impl std::fmt::Display) -> ApiError {
    let shown = escape_bytes(&text[..text.len().min(SHOWN)]);
    let more = if text.len() > SHOWN { "…" } else { "" };
    ApiError::invalid(format!("{flag} {shown}{more}: {why}"))
}

/// `-v HOST:GUEST[:OPTION,…]`, `-v NAME:GUEST[:OPTION,…]`, `-v GUEST`.
pub fn volume(text: &[u8]) -> Result<MountOptions> {
    let wrong = |why: &str| wrong("--volume", text, why);
    let parts: Vec<&[u8]> = text.split(|byte| *byte == b':').collect();
    let (source, destination, options) = match parts[..] {
        [destination] => (&b""[..], destination, &b""[..]),
        [source, destination] => (source, destination, &b""[..]),
        [source, destination, options] => (source, destination, options),
        _ => return Err(wrong("too many colons: a path that has one is given to --mount")),
    };
    if parts.len() > 1 && source.is_empty() {
        return Err(wrong("nothing is before the first colon"));
    }
    check_destination(destination).map_err(wrong)?;
    let kind = match source.contains(&b'/') || matches!(source, b"." | b"..") {
        true => MountKind::Bind,
        false => MountKind::Volume,
    };
    let mut mount = MountOptions {
        kind,
        source: ByteString(source.to_vec()),
        destination: ByteString(destination.to_vec()),
        ..MountOptions::default()
    };
    for option in options.split(|byte| *byte == b',').filter(|option| !option.is_empty()) {
        match option {
            b"ro" => mount.read_only = true,
            b"rw" => mount.read_only = false,
            b"nocopy" if kind == MountKind::Volume => mount.no_copy = true,
            _ => return Err(wrong("the options are ro, rw and, of volumes, nocopy")),
        }
    }
    Ok(mount)
}

/// `--mount type=bind|volume|tmpfs,source=…,target=…[,…]`.
pub fn mount(text: &[u8]) -> Result<Asked> {
    let wrong = |why: String| wrong("--mount", text, why);
    let fields = fields(text).map_err(|why| wrong(why.into()))?;
    let mut kind = None;
    let mut source = None;
    let mut target = None;
    let mut rest = Vec::new();
    for field in &fields {
        let (key, value) = match field.iter().position(|byte| *byte == b'=') {
            Some(at) => (&field[..at], Some(&field[at + 1..])),
            None => (&field[..], None),
        };
        let key = String::from_utf8_lossy(key).to_ascii_lowercase();
        let place = match &*key {
            "type" => &mut kind,
            "source" | "src" => &mut source,
            "target" | "destination" | "dst" => &mut target,
            _ => {
                rest.push((key, value));
                continue;
            }
        };
        let value = value.ok_or_else(|| wrong(format!("{key} has no value")))?;
        if place.replace(value).is_some() {
            return Err(wrong(format!("two of {key}")));
        }
    }
    let target = target.ok_or_else(|| wrong("target is missing".into()))?;
    check_destination(target).map_err(|why| wrong(why.into()))?;
    match kind.unwrap_or(b"volume") {
        b"tmpfs" if source.is_some() => Err(wrong("a tmpfs has no source".into())),
        b"tmpfs" => tmpfs(target, &rest).map_err(wrong).map(Asked::Tmpfs),
        b"bind" => {
            let source = source.filter(|source| !source.is_empty());
            let source = source.ok_or_else(|| wrong("source is missing".into()))?;
            options(MountKind::Bind, source, target, &rest).map_err(wrong).map(Asked::Mount)
        }
        b"volume" => {
            let source = source.unwrap_or_default();
            if source.contains(&b'/') {
                return Err(wrong("a volume's name has no '/': type=bind mounts a path".into()));
            }
            options(MountKind::Volume, source, target, &rest).map_err(wrong).map(Asked::Mount)
        }
        _ => Err(wrong("type is bind, volume or tmpfs".into())),
    }
}

type Options<'a> = [(String, Option<&'a [u8]>)];

fn options(
    kind: MountKind,
    source: &[u8],
    target: &[u8],
    rest: &Options,
) -> std::result::Result<MountOptions, String> {
    let mut mount = MountOptions {
        kind,
        source: ByteString(source.to_vec()),
        destination: ByteString(target.to_vec()),
        ..MountOptions::default()
    };
    let bind = kind == MountKind::Bind;
    for (key, value) in rest {
        match &**key {
            "readonly" | "ro" => mount.read_only = truth(key, *value)?,
            "rw" => mount.read_only = !truth(key, *value)?,
            "volume-nocopy" if !bind => mount.no_copy = truth(key, *value)?,
            "dangerous" if bind => mount.dangerous = truth(key, *value)?,
            "notify" if bind => mount.notify = Some(truth(key, *value)?),
            "uid" if bind => mount.uid = Some(number(key, *value, 10)?),
            "gid" if bind => mount.gid = Some(number(key, *value, 10)?),
            "idmap" if bind => mount.idmap = ranges(*value)?,
            _ => return Err(format!("{} is not known here", escape_bytes(key.as_bytes()))),
        }
    }
    owners(&mount)?;
    Ok(mount)
}

/// `[u|g]GUEST:HOST:COUNT;…`: of users, of groups, or of both.
fn ranges(value: Option<&[u8]>) -> std::result::Result<Vec<IdRange>, String> {
    let wrong = || {
        "idmap is GUEST:HOST:COUNT, several between ';', with u or g before GUEST for \
                    users or groups alone"
            .to_owned()
    };
    let range = |text: &str| {
        let (kind, numbers) = match text.as_bytes().first()? {
            b'u' | b'g' => text.split_at(1),
            _ => ("", text),
        };
        let parts: Vec<&str> = numbers.split(':').collect();
        let [guest, host, count] = parts[..] else { return None };
        let number = |text: &str| number("", Some(text.as_bytes()), 10).ok();
        Some(IdRange {
            users: kind != "g",
            groups: kind != "u",
            guest: number(guest)?,
            host: number(host)?,
            count: number(count)?,
        })
    };
    let text = value.and_then(|value| std::str::from_utf8(value).ok()).ok_or_else(wrong)?;
    text.split(';').map(|text| range(text).ok_or_else(wrong)).collect()
}

fn owners(mount: &MountOptions) -> std::result::Result<(), String> {
    let MountOptions { uid, gid, idmap, .. } = mount;
    if uid.is_some_and(|id| id == u32::MAX) || gid.is_some_and(|id| id == u32::MAX) {
        return Err(format!("{} is not an id", u32::MAX));
    }
    if !idmap.is_empty() && (uid.is_some() || gid.is_some()) {
        return Err("idmap stands instead of uid and gid".into());
    }
    if idmap.len() > MAX_RANGES {
        return Err(format!("idmap has more than {MAX_RANGES} ranges"));
    }
    let fits = |start: u32, count: u32| start.checked_add(count).is_some();
    if !idmap.iter().all(|r| r.count > 0 && fits(r.guest, r.count) && fits(r.host, r.count)) {
        return Err(format!("a range of idmap is empty, or goes beyond {}", u32::MAX));
    }
    let overlap = |a: u32, b: u32, one: &IdRange, other: &IdRange| {
        a < b.saturating_add(other.count) && b < a.saturating_add(one.count)
    };
    for (at, one) in idmap.iter().enumerate() {
        let others = idmap[..at].iter();
        let mut others = others.filter(|o| (o.users && one.users) || (o.groups && one.groups));
        if others.any(|o| overlap(one.guest, o.guest, one, o) || overlap(one.host, o.host, one, o))
        {
            return Err("two ranges of idmap overlap".into());
        }
    }
    Ok(())
}

/// Checks whom a mount's files are said to belong to.
///
/// # Errors
/// `InvalidArgument` for what is no id, or said twice.
pub fn check_owners(mount: &MountOptions) -> Result<()> {
    let shown = escape_bytes(mount.destination.as_bytes());
    owners(mount).map_err(|why| ApiError::invalid(format!("the mount at {shown}: {why}")))
}

fn tmpfs(target: &[u8], rest: &Options) -> std::result::Result<Tmpfs, String> {
    let destination = std::str::from_utf8(target);
    let destination = destination.map_err(|_| "the target of a tmpfs is not UTF-8".to_owned())?;
    let mut options = Vec::new();
    for (key, value) in rest {
        match &**key {
            "readonly" | "ro" => options.extend(truth(key, *value)?.then(|| "ro".to_owned())),
            "tmpfs-size" | "size" => {
                let size = value.and_then(|value| std::str::from_utf8(value).ok());
                let size = size.ok_or_else(|| format!("{key} has no size"))?;
                options.push(format!("size={size}"));
            }
            "tmpfs-mode" | "mode" => options.push(format!("mode={:o}", number(key, *value, 8)?)),
            "uid" | "gid" => options.push(format!("{key}={}", number(key, *value, 10)?)),
            _ => return Err(format!("{} is not known here", escape_bytes(key.as_bytes()))),
        }
    }
    Ok(Tmpfs { destination: destination.to_owned(), options })
}

fn truth(key: &str, value: Option<&[u8]>) -> std::result::Result<bool, String> {
    match value {
        None | Some(b"true" | b"1") => Ok(true),
        Some(b"false" | b"0") => Ok(false),
        Some(_) => Err(format!("{key} is true or false")),
    }
}

fn number(key: &str, value: Option<&[u8]>, radix: u32) -> std::result::Result<u32, String> {
    let value = value.and_then(|value| std::str::from_utf8(value).ok());
    let digits = value.filter(|value| value.bytes().all(|byte| byte.is_ascii_digit()));
    let number = digits.and_then(|digits| u32::from_str_radix(digits, radix).ok());
    number.ok_or_else(|| format!("{key} is a number"))
}

fn check_destination(path: &[u8]) -> std::result::Result<(), &'static str> {
    match path {
        [] => Err("the path in the container is missing"),
        [b'/', ..] if path.contains(&0) => Err("a path can't hold a NUL byte"),
        [b'/', ..] => Ok(()),
        _ => Err("the path in the container is not absolute"),
    }
}

/// Fields between commas, as in CSV. One that begins with a quote ends with the next one.
fn fields(text: &[u8]) -> std::result::Result<Vec<Vec<u8>>, &'static str> {
    let mut all = Vec::new();
    let mut rest = text;
    loop {
        let mut field = Vec::new();
        if let Some(mut quoted) = rest.strip_prefix(b"\"") {
            loop {
                match quoted {
                    [b'"', b'"', after @ ..] => {
                        field.push(b'"');
                        quoted = after;
                    }
                    [b'"', after @ ..] => {
                        rest = after;
                        break;
                    }
                    [byte, after @ ..] => {
                        field.push(*byte);
                        quoted = after;
                    }
                    [] => return Err("a quote is not closed"),
                }
            }
        } else {
            let end = rest.iter().position(|byte| *byte == b',').unwrap_or(rest.len());
            field.extend_from_slice(&rest[..end]);
            rest = &rest[end..];
        }
        if field.is_empty() {
            return Err("a field is empty");
        }
        all.push(field);
        match rest {
            [] => return Ok(all),
            [b',', after @ ..] => rest = after,
            _ => return Err("a quote ends within a field: a field is quoted whole"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bind(text: &[u8]) -> MountOptions {
        match mount(text).unwrap() {
            Asked::Mount(mount) => mount,
            Asked::Tmpfs(tmpfs) => panic!("{tmpfs:?}"),
        }
    }

    #[test]
    fn volumes_are_told_from_paths() {
        let kind = |text: &str| volume(text.as_bytes()).unwrap().kind;
        for path in ["/a:/b", "./a:/b", "a/b:/c", ".:/b", "..:/b"] {
            assert_eq!(kind(path), MountKind::Bind, "{path}");
        }
        for name in ["a:/b", "/b", "a.b:/c"] {
            assert_eq!(kind(name), MountKind::Volume, "{name}");
        }
        let read_only = volume(b"/a:/b:ro").unwrap();
        assert!(read_only.read_only && !volume(b"/a:/b:ro,rw").unwrap().read_only);
        assert!(volume(b"a:/b:nocopy").unwrap().no_copy);
        assert_eq!(volume(b"/\xff\n:/b").unwrap().source.0, b"/\xff\n");
        for bad in ["", ":/b", "/a:", "/a:b", "/a:/b:z", "/a:/b:/c:d", "a:/b:ro:x", "/a:/b:nocopy"]
        {
            volume(bad.as_bytes()).unwrap_err();
        }
    }

    #[test]
    fn mounts_by_names_of_fields() {
        let mount = bind(b"type=bind,src=/a:b,dst=/c,ro,dangerous,uid=5");
        assert_eq!(
            (mount.source.0.as_slice(), mount.destination.0.as_slice()),
            (&b"/a:b"[..], &b"/c"[..])
        );
        assert!(mount.read_only && mount.dangerous && mount.uid == Some(5));
        assert_eq!(bind(b"type=bind,\"source=/a,\"\"b\",target=/c").source.0, b"/a,\"b");
        assert_eq!(bind(b"target=/c").kind, MountKind::Volume);
        assert!(!bind(b"source=v,target=/c,readonly=false,volume-nocopy").read_only);
        let tmpfs = super::mount(b"type=tmpfs,target=/t,tmpfs-size=64m,tmpfs-mode=1770").unwrap();
        let options = vec!["size=64m".to_owned(), "mode=1770".to_owned()];
        assert_eq!(tmpfs, Asked::Tmpfs(Tmpfs { destination: "/t".into(), options }));
        for bad in [
            "",
            "type=bind,target=/a",
            "type=bind,source=/a",
            "type=bind,source=/a,target=b",
            "type=x,target=/a",
            "type=tmpfs,source=a,target=/a",
            "type=bind,source=/a,target=/b,target=/c",
            "type=bind,source=/a,target=/b,wat",
            "type=bind,source=/a,target=/b,ro=maybe",
            "type=bind,source=/a,target=/b,uid=-1",
            "type=bind,source=/a,target=/b,uid=4294967295",
            "type=bind,source=/a,target=/b,idmap",
            "type=bind,source=/a,target=/b,idmap=",
            "type=bind,source=/a,target=/b,idmap=0:1",
            "type=bind,source=/a,target=/b,idmap=x0:1:1",
            "type=bind,source=/a,target=/b,idmap=0:1:0",
            "type=bind,source=/a,target=/b,idmap=0:4294967295:1",
            "type=bind,source=/a,target=/b,idmap=0:1000:5;4:2000:1",
            "type=bind,source=/a,target=/b,idmap=0:1000:5;9:1004:1",
            "type=bind,source=/a,target=/b,idmap=0:1:1,uid=5",
            "type=bind,\"source=/a,target=/b",
            "type=bind,\"source=/a\"x,target=/b",
            "source=a/b,target=/c",
            "source=a,target=/c,dangerous",
        ] {
            super::mount(bad.as_bytes()).unwrap_err();
        }
    }

    #[test]
    fn events_are_wished_for() {
        for (text, wish) in [("notify", Some(true)), ("notify=false", Some(false))] {
            let text = format!("type=bind,source=/a,target=/b,readonly,{text}");
            assert_eq!(bind(text.as_bytes()).notify, wish);
        }
        assert_eq!(bind(b"type=bind,source=/a,target=/b").notify, None);
        mount(b"type=volume,source=a,target=/b,notify").unwrap_err();
    }

    #[test]
    fn owners_are_mapped() {
        let mount = bind(b"type=bind,source=/a,target=/b,idmap=0:1000:1;u5:7:2;g5:7:2");
        let range =
            |users, groups, guest, host, count| IdRange { users, groups, guest, host, count };
        assert_eq!(
            mount.idmap,
            [
                range(true, true, 0, 1000, 1),
                range(true, false, 5, 7, 2),
                range(false, true, 5, 7, 2)
            ]
        );
        check_owners(&mount).unwrap();
        check_owners(&MountOptions { uid: Some(1), ..mount }).unwrap_err();
    }

    proptest! {
        #[test]
        fn never_panics(text: Vec<u8>) {
            let _ = (volume(&text), mount(&text));
        }

        #[test]
        fn any_path_can_be_quoted(path in "[^\0]{1,40}") {
            let quoted = format!("type=bind,\"source=/{}\",target=/c", path.replace('"', "\"\""));
            prop_assert_eq!(bind(quoted.as_bytes()).source.0, format!("/{path}").into_bytes());
        }
    }
}
