//! Users and groups by the container's own `/etc/passwd` and `/etc/group`,
//! with the rules that Docker has. Both files are hostile: a line that makes no
//! sense is skipped.

use crate::failure::Failure;
use vminitd_protocol::message::ErrorCode::BadUser;
use vminitd_protocol::message::User;

/// Largest user or group number, as Docker takes it.
const MAX_ID: u32 = i32::MAX as u32;
/// Most supplementary groups; the kernel's own limit is the same.
const MAX_GROUPS: usize = 65536;

/// As whom a process runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// User number.
    pub uid: u32,
    /// Group number.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Home directory; `/` when the user has none.
    pub home: Vec<u8>,
}

struct Account<'a> {
    name: &'a [u8],
    uid: u32,
    gid: u32,
    home: &'a [u8],
}

/// Resolves `name`, `uid`, `name:group`, `uid:gid`, and what overrides them.
pub fn resolve(user: &User, passwd: &[u8], group: &[u8]) -> Result<Identity, Failure> {
    let (mut user_part, mut group_part) = match user.name.split_once(':') {
        Some((user, group)) => (user.to_owned(), group.to_owned()),
        None => (user.name.clone(), String::new()),
    };
    if let Some(uid) = user.uid {
        user_part = uid.to_string();
    }
    if let Some(gid) = user.gid {
        group_part = gid.to_string();
    }
    if user_part.is_empty() {
        user_part = "0".to_owned();
    }

    let account = find_account(&user_part, passwd);
    let (uid, mut gid) = match (&account, user_part.parse::<u32>()) {
        (Some(account), _) => (account.uid, account.gid),
        (None, Ok(uid)) if uid <= MAX_ID => (uid, 0),
        _ => return Err(unknown("user", &user_part, "/etc/passwd")),
    };
    let mut groups = Vec::new();
    if !group_part.is_empty() {
        gid = find_group(&group_part, group)?;
    } else if let Some(account) = &account {
        groups = member_of(account.name, group);
    }
    // A set-gid program must not shed a group that files deny access to
    // (CVE-2022-36109).
    groups.retain(|group| *group != gid);
    groups.insert(0, gid);
    groups.extend(user.additional_gids.iter().filter(|gid| **gid <= MAX_ID));
    groups.truncate(MAX_GROUPS);
    let home = account.map_or(&b"/"[..], |a| if a.home.is_empty() { b"/" } else { a.home });
    Ok(Identity { uid, gid, groups, home: home.to_vec() })
}

fn unknown(kind: &str, name: &str, file: &str) -> Failure {
    Failure::new(BadUser, format!("{kind} {name:?} is not in the container's {file}"))
}

fn find_account<'a>(wanted: &str, passwd: &'a [u8]) -> Option<Account<'a>> {
    let number = wanted.parse().ok();
    lines(passwd).find_map(|line| {
        let mut fields = line.split(|b| *b == b':');
        let name = fields.next()?;
        let uid = id(fields.nth(1)?)?;
        let gid = id(fields.next()?)?;
        let home = fields.nth(1).unwrap_or_default();
        let home = if home.contains(&0) { &[] } else { home };
        let matches = name == wanted.as_bytes() || number == Some(uid);
        matches.then_some(Account { name, uid, gid, home })
    })
}

fn find_group(wanted: &str, group: &[u8]) -> Result<u32, Failure> {
    let number = wanted.parse::<u32>().ok();
    let found = lines(group).find_map(|line| {
        let (name, gid, _) = group_fields(line)?;
        (name == wanted.as_bytes() || number == Some(gid)).then_some(gid)
    });
    found
        .or(number.filter(|gid| *gid <= MAX_ID))
        .ok_or_else(|| unknown("group", wanted, "/etc/group"))
}

fn member_of(user: &[u8], group: &[u8]) -> Vec<u32> {
    let groups = lines(group).filter_map(|line| {
        let (_, gid, members) = group_fields(line)?;
        members.split(|b| *b == b',').any(|member| member == user).then_some(gid)
    });
    groups.take(MAX_GROUPS).collect()
}

fn group_fields(line: &[u8]) -> Option<(&[u8], u32, &[u8])> {
    let mut fields = line.split(|b| *b == b':');
    let name = fields.next()?;
    let gid = id(fields.nth(1)?)?;
    Some((name, gid, fields.next().unwrap_or_default()))
}

fn lines(file: &[u8]) -> impl Iterator<Item = &[u8]> {
    file.split(|b| *b == b'\n').map(<[u8]>::trim_ascii).filter(|line| !line.is_empty())
}

fn id(field: &[u8]) -> Option<u32> {
    std::str::from_utf8(field).ok()?.parse().ok().filter(|id| *id <= MAX_ID)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PASSWD: &[u8] =
        b"root:x:0:0:root:/root:/bin/sh\nbad line\nweb:x:33:34:w:/srv/www:/bin/false\n\
        nohome:x:40:40:::\nhuge:x:99999999999:1::/:\n";
    const GROUP: &[u8] = b"root:x:0:\nweb:x:34:\nstaff:x:50:root,web\nlog:x:51:web\nbroken\n";

    fn name(name: &str) -> Result<Identity, Failure> {
        resolve(&User { name: name.into(), ..User::default() }, PASSWD, GROUP)
    }

    fn identity(uid: u32, gid: u32, groups: &[u32], home: &str) -> Identity {
        Identity { uid, gid, groups: groups.to_vec(), home: home.as_bytes().to_vec() }
    }

    #[test]
    fn names_and_numbers() {
        assert_eq!(name(""), Ok(identity(0, 0, &[0, 50], "/root")));
        assert_eq!(name("web"), Ok(identity(33, 34, &[34, 50, 51], "/srv/www")));
        assert_eq!(name("33"), Ok(identity(33, 34, &[34, 50, 51], "/srv/www")));
        assert_eq!(name("1000"), Ok(identity(1000, 0, &[0], "/")));
        assert_eq!(name("web:staff"), Ok(identity(33, 50, &[50], "/srv/www")));
        assert_eq!(name("1000:1001"), Ok(identity(1000, 1001, &[1001], "/")));
        assert_eq!(name(":log"), Ok(identity(0, 51, &[51], "/root")));
        assert_eq!(name("nohome"), Ok(identity(40, 40, &[40], "/")));
    }

    #[test]
    fn unknown_ones_are_named() {
        for bad in ["nobody", "web:nogroup", "4294967295", "-1", "huge"] {
            assert_eq!(name(bad).unwrap_err().code, BadUser, "{bad}");
        }
    }

    #[test]
    fn overrides_win() {
        let user = User {
            name: "web".into(),
            uid: Some(0),
            gid: Some(7),
            additional_gids: vec![8, u32::MAX],
        };
        assert_eq!(resolve(&user, PASSWD, GROUP), Ok(identity(0, 7, &[7, 8], "/root")));
    }

    proptest! {
        #[test]
        fn hostile_files_never_panic(
            user in ".{0,20}",
            passwd in proptest::collection::vec(prop_oneof![Just(b':'), Just(b'\n'), any::<u8>()], 0..300),
        ) {
            let _ = resolve(&User { name: user, ..User::default() }, &passwd, &passwd);
        }
    }
}
