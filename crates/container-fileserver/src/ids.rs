//! Which ids of the host the server can be: all of them as root; as a user the user's own, and
//! those of the user's ranges in `/etc/subuid` and `/etc/subgid`.
//!
//! ```text
//! first process ──fork──► mapper (in the user's own namespace)
//!      │ makes a user namespace        waits
//!      │ a byte ─────────────────────► newuidmap, newgidmap: set-user-id programs that read the
//!      │ ◄──────────────── its end     files, hence know what the user may have
//!      └ maps what is missing to the user alone
//! ```
//! In the namespace the user is root, and the ranges follow from 1 on.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::fcntl::OFlag;
use nix::sched::{CloneFlags, unshare};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Pid, getegid, geteuid, getpid};

use crate::{Result, at, jail};

/// Most ranges of a kind: more than a kernel takes are of no use.
const MAX_RANGES: usize = 64;
/// Where distributions have the programs that map.
const FOLDERS: [&str; 3] = ["/usr/bin", "/bin", "/usr/local/bin"];

/// Consecutive ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// As the server sees them.
    pub inner: u32,
    /// On the host.
    pub outer: u32,
    /// How many.
    pub count: u32,
}

/// The ids of one kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ids(Vec<Range>);

impl Ids {
    fn all() -> Ids {
        Ids(vec![Range { inner: 0, outer: 0, count: u32::MAX }])
    }

    fn alone(id: u32) -> Ids {
        Ids(vec![Range { inner: 0, outer: id, count: 1 }])
    }

    /// The user, and ranges behind it.
    fn with(id: u32, ranges: &[(u32, u32)]) -> Ids {
        let mut ids = Ids::alone(id);
        let mut inner = 1u32;
        for (outer, count) in ranges.iter().take(MAX_RANGES) {
            let Some(next) = inner.checked_add(*count) else { break };
            ids.0.push(Range { inner, outer: *outer, count: *count });
            inner = next;
        }
        ids
    }

    /// Whether the server can give a file to it; the id is the server's.
    pub fn has(&self, inner: u32) -> bool {
        self.0.iter().any(|range| inner.checked_sub(range.inner).is_some_and(|n| n < range.count))
    }

    /// As the server sees `count` ids of the host.
    pub fn inner(&self, outer: u32, count: u32) -> Option<u32> {
        self.0.iter().find_map(|range| {
            let offset = outer.checked_sub(range.outer)?;
            (offset.checked_add(count)? <= range.count).then(|| range.inner + offset)
        })
    }

    fn arguments(&self) -> impl Iterator<Item = String> {
        self.0.iter().flat_map(|r| [r.inner, r.outer, r.count]).map(|number| number.to_string())
    }
}

/// What the server can be.
#[derive(Debug)]
pub struct Identities {
    /// Users.
    pub users: Ids,
    /// Groups.
    pub groups: Ids,
    /// Whether this is root's server, which is everybody.
    pub root: bool,
    /// How a user gets more, in one line.
    pub advice: Option<String>,
}

impl Identities {
    /// Root's.
    pub fn everybody() -> Identities {
        Identities { users: Ids::all(), groups: Ids::all(), root: true, advice: None }
    }
}

/// Enters a user namespace in which root is the caller.
pub fn enter_user_namespace() -> Result<Identities> {
    let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
    let name = nix::unistd::User::from_uid(geteuid()).ok().flatten().map(|user| user.name);
    let name = name.unwrap_or_else(|| uid.to_string());
    let users = Ids::with(uid, &ranges_of("/etc/subuid", &name, uid));
    let groups = Ids::with(gid, &ranges_of("/etc/subgid", &name, uid));
    let programs = ["newuidmap", "newgidmap"].map(find);
    let mut advice = None;
    let mapper = match &programs {
        _ if users.0.len() < 2 || groups.0.len() < 2 => {
            advice = Some(format!(
                "{name} has no range of ids in /etc/subuid and /etc/subgid: \
                 usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {name}"
            ));
            None
        }
        [Some(user), Some(group)] => Some(Mapper::fork([(user, &users), (group, &groups)])?),
        _ => {
            advice = Some("newuidmap and newgidmap are not installed (package uidmap)".into());
            None
        }
    };
    unshare(CloneFlags::CLONE_NEWUSER).map_err(at("make a user namespace"))?;
    let write =
        |file: &str, text: String| fs::write(format!("/proc/self/{file}"), text).map_err(at(file));
    // Without this a group that a file denies something could be left.
    write("setgroups", "deny".into())?;
    let mapped = mapper.map_or(Ok([false; 2]), Mapper::map)?;
    if advice.is_none() && mapped != [true; 2] {
        advice = Some("newuidmap or newgidmap has failed, as it says above".into());
    }
    let finish = |file: &str, id, ids, mapped| match mapped {
        true => Ok(ids),
        false => write(file, format!("0 {id} 1\n")).map(|()| Ids::alone(id)),
    };
    let users = finish("uid_map", uid, users, mapped[0])?;
    let groups = finish("gid_map", gid, groups, mapped[1])?;
    Ok(Identities { users, groups, root: false, advice })
}

/// Maps the ids of its parent from outside.
struct Mapper {
    pid: Pid,
    begin: OwnedFd,
}

impl Mapper {
    fn fork(programs: [(&std::path::PathBuf, &Ids); 2]) -> Result<Mapper> {
        let (end, begin) = nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(at("make a pipe"))?;
        let parent = getpid();
        let Some(pid) = jail::fork()? else {
            drop(begin);
            let _ = jail::die_with_parent();
            let mut byte = [0];
            if !matches!(fs::File::from(end).read(&mut byte), Ok(1)) {
                std::process::exit(0);
            }
            let mapped = programs.map(|(program, ids)| run(program, parent, ids));
            std::process::exit(i32::from(mapped[0]) | i32::from(mapped[1]) << 1)
        };
        Ok(Mapper { pid, begin })
    }

    /// Which of users and groups it has mapped.
    fn map(self) -> Result<[bool; 2]> {
        fs::File::from(self.begin).write_all(&[1]).map_err(at("begin to map ids"))?;
        match waitpid(self.pid, None).map_err(at("wait for the mapping of ids"))? {
            WaitStatus::Exited(_, code) => Ok([code & 1 != 0, code & 2 != 0]),
            other => Err(format!("the mapping of ids ended: {other:?}")),
        }
    }
}

fn run(program: &Path, target: Pid, ids: &Ids) -> bool {
    let mut command = Command::new(program);
    command.arg(target.to_string()).args(ids.arguments());
    // What it says is said by this process.
    let status = command.env_clear().stdin(Stdio::null()).stdout(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

fn find(program: &str) -> Option<std::path::PathBuf> {
    FOLDERS.iter().map(|folder| Path::new(folder).join(program)).find(|path| path.is_file())
}

/// The ranges that a file gives to a user, each its first id and how many; none when it is missing.
fn ranges_of(file: &str, name: &str, uid: u32) -> Vec<(u32, u32)> {
    ranges(&fs::read_to_string(file).unwrap_or_default(), name, uid)
}

fn ranges(text: &str, name: &str, uid: u32) -> Vec<(u32, u32)> {
    let uid = uid.to_string();
    let range = |line: &str| {
        let [owner, start, count] = line.split(':').collect::<Vec<_>>()[..] else { return None };
        let (start, count): (u32, u32) = (start.trim().parse().ok()?, count.trim().parse().ok()?);
        let whole = count > 0 && start.checked_add(count).is_some();
        ((owner == name || owner == uid) && whole).then_some((start, count))
    };
    text.lines().filter_map(range).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ranges_of_a_user() {
        let text = "a:100000:65536\nb:7:1\n1000:300000:10\n#a:1:1\na:x:1\na:5:0\na:4294967295:9";
        assert_eq!(ranges(text, "a", 1000), [(100_000, 65_536), (300_000, 10)]);
        assert_eq!(ranges(text, "c", 5), []);
        let ids = Ids::with(1000, &ranges(text, "a", 1000));
        assert_eq!((ids.inner(1000, 1), ids.inner(100_004, 2)), (Some(0), Some(5)));
        assert_eq!((ids.inner(300_009, 1), ids.inner(300_009, 2)), (Some(65_546), None));
        assert!(ids.has(0) && ids.has(65_546) && !ids.has(65_547));
        let words: Vec<_> = ids.arguments().take(6).collect();
        assert_eq!(words, ["0", "1000", "1", "1", "100000", "65536"]);
        assert_eq!(Ids::all().inner(77, 5), Some(77));
    }

    proptest! {
        #[test]
        fn never_panics(text: String, name: String, uid: u32, outer: u32, count: u32) {
            let ids = Ids::with(uid, &ranges(&text, &name, uid));
            let _ = (ids.inner(outer, count), ids.has(outer));
        }
    }
}
