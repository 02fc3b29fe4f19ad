//! Whom the files of a share belong to, in the container and on the host.
//!
//! ```text
//!                     container          host
//! as they are         n           ◄───►  n              (a user's server: its own ids)
//! uid=N               N           ◄───►  who shares
//!                     root         ───►  who shares
//!                     nobody      ◄───   N
//! idmap=G:H:C         G … G+C-1   ◄───►  H … H+C-1      else EPERM, and nobody
//! ```
//! Who shares is the user; as root, the owner of what is shared.

use std::collections::BTreeMap;

use virtiofsd::soft_idmap::cmdline::IdMap;

use crate::Result;
use crate::ids::{Identities, Ids};

/// Whom a file belongs to in the container that nobody there owns.
const NOBODY: u32 = 65_534;
/// The kernel's "no id": the end of all of them.
const END: u32 = u32::MAX;

/// Ids of a container and of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// `u`, `g`; else both.
    pub kind: Option<char>,
    /// The first in the container.
    pub guest: u32,
    /// The first on the host.
    pub host: u32,
    /// How many.
    pub count: u32,
}

/// What was asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Owners {
    /// Who the sharing user is in the container.
    pub uid: Option<u32>,
    /// Who its group is.
    pub gid: Option<u32>,
    /// All ids that there are.
    pub ranges: Vec<Range>,
}

/// How the library is told, of users and of groups. The default is: as they are.
#[derive(Clone, Debug, Default)]
pub struct Maps(pub Vec<IdMap>, pub Vec<IdMap>);

impl Owners {
    /// Reads `-`, `uid=N,gid=N`, or `idmap=[u|g]GUEST:HOST:COUNT;…`.
    pub fn parse(word: &str) -> Option<Owners> {
        let mut owners = Owners::default();
        for part in word.split(',').filter(|_| word != "-") {
            match part.split_once('=')? {
                ("uid", id) => owners.uid = Some(id.parse().ok()?),
                ("gid", id) => owners.gid = Some(id.parse().ok()?),
                ("idmap", ranges) => {
                    owners.ranges = ranges.split(';').map(range).collect::<Option<_>>()?;
                }
                _ => return None,
            }
        }
        Some(owners)
    }

    /// What the server does, where the share belongs to `owner` and `group` of the host.
    pub fn maps(&self, host: &Identities, owner: u32, group: u32) -> Result<Maps> {
        if !self.ranges.is_empty() {
            let of = |kind| self.ranges.iter().filter(move |r| r.kind.is_none_or(|k| k == kind));
            let (users, groups) = (of('u').copied(), of('g').copied());
            return Ok(Maps(
                ranges(users, &host.users, host)?,
                ranges(groups, &host.groups, host)?,
            ));
        }
        // A user is root in its namespace.
        let (owner, group) = if host.root { (owner, group) } else { (0, 0) };
        let one = |id: Option<u32>, owner| id.map_or_else(Vec::new, |id| single(id, owner));
        Ok(Maps(one(self.uid, owner), one(self.gid, group)))
    }
}

fn range(text: &str) -> Option<Range> {
    let kind = text.chars().next().filter(|kind| matches!(kind, 'u' | 'g'));
    let numbers = kind.map_or(Some(text), |kind| text.strip_prefix(kind))?;
    let numbers = numbers.split(':').map(str::parse).collect::<std::result::Result<Vec<u32>, _>>();
    let [guest, host, count] = numbers.ok()?[..] else { return None };
    let whole =
        count > 0 && guest.checked_add(count).is_some() && host.checked_add(count).is_some();
    whole.then_some(Range { kind, guest, host, count })
}

/// `guest` is `owner`, and so is the container's root.
fn single(guest: u32, owner: u32) -> Vec<IdMap> {
    let mut maps = vec![IdMap::Bidirectional { guest, host: owner, count: 1 }];
    if guest != owner {
        maps.push(IdMap::SquashHost { from_host: guest, to_guest: NOBODY, count: 1 });
    }
    if guest != 0 && owner != 0 {
        maps.push(IdMap::SquashGuest { from_guest: 0, to_host: owner, count: 1 });
    }
    maps
}

/// Only these.
fn ranges(
    ranges: impl Iterator<Item = Range>,
    ids: &Ids,
    identities: &Identities,
) -> Result<Vec<IdMap>> {
    let mut maps = Vec::new();
    let (mut guests, mut hosts) = (BTreeMap::new(), BTreeMap::new());
    for Range { guest, host, count, .. } in ranges {
        let inner = ids.inner(host, count).ok_or_else(|| {
            let last = host.saturating_add(count - 1);
            let advice = identities.advice.as_ref().map(|advice| format!(" ({advice})"));
            format!(
                "idmap: the ids {host} to {last} of the host are neither yours nor in your range{}",
                advice.unwrap_or_default()
            )
        })?;
        maps.push(IdMap::Bidirectional { guest, host: inner, count });
        guests.insert(guest, count);
        hosts.insert(inner, count);
    }
    let forbid = |(from_guest, count)| IdMap::ForbidGuest { from_guest, count };
    let hide = |(from_host, count)| IdMap::SquashHost { from_host, to_guest: NOBODY, count };
    maps.extend(between(&guests).into_iter().map(forbid));
    maps.extend(between(&hosts).into_iter().map(hide));
    Ok(maps)
}

/// What is not in any of the ranges, by their beginnings.
fn between(ranges: &BTreeMap<u32, u32>) -> Vec<(u32, u32)> {
    let mut gaps = Vec::new();
    let mut from = 0;
    for (start, count) in ranges.iter().map(|(start, count)| (*start, *count)).chain([(END, 0)]) {
        if start > from {
            gaps.push((from, start - from));
        }
        from = from.max(start.saturating_add(count));
    }
    gaps
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use virtiofsd::soft_idmap::{self, GuestUid, HostUid, Id};

    fn compiled(word: &str, owner: u32) -> soft_idmap::IdMap<GuestUid, HostUid> {
        let maps = Owners::parse(word).unwrap().maps(&Identities::everybody(), owner, owner);
        soft_idmap::IdMap::try_from(maps.unwrap().0).unwrap()
    }

    #[test]
    fn the_sharing_user_is_another_in_the_container() {
        for (owner, word) in [(1500, "uid=1000"), (0, "uid=1000"), (1000, "uid=1000"), (7, "uid=0")]
        {
            let map = compiled(word, owner);
            let id: u32 = word[4..].parse().unwrap();
            let host = |guest: u32| map.map_guest(guest.into()).unwrap().into_inner();
            let guest = |host: u32| map.map_host(host.into()).unwrap().into_inner();
            assert_eq!((host(id), guest(owner)), (owner, id), "{word} {owner}");
            // Root writes files of the sharing user too.
            assert_eq!(host(0), owner, "{word} {owner}");
            assert_eq!((host(33), guest(33)), (33, 33));
            assert_eq!(guest(id), if owner == id { id } else { NOBODY }, "{word} {owner}");
        }
    }

    #[test]
    fn only_what_is_in_a_range() {
        let map = compiled("idmap=0:1000:1;1:100000:65536;g0:5:1", 0);
        let host = |guest: u32| map.map_guest(guest.into()).ok().map(Id::into_inner);
        let guest = |host: u32| map.map_host(host.into()).unwrap().into_inner();
        assert_eq!(
            (host(0), host(1), host(65_536), host(65_537)),
            (Some(1000), Some(100_000), Some(165_535), None)
        );
        assert_eq!((guest(1000), guest(100_001), guest(0), guest(999)), (0, 2, NOBODY, NOBODY));
        assert_eq!(host(END - 1), None);
    }

    #[test]
    fn a_user_maps_what_it_has() {
        let it = Identities { root: false, ..Identities::everybody() };
        let Maps(users, _) = Owners::parse("uid=5").unwrap().maps(&it, 1000, 1000).unwrap();
        let map = soft_idmap::IdMap::<GuestUid, HostUid>::try_from(users).unwrap();
        assert_eq!(map.map_guest(5.into()).unwrap().into_inner(), 0);
    }

    #[test]
    fn words() {
        assert_eq!(Owners::parse("-"), Some(Owners::default()));
        assert_eq!(Owners::parse("uid=1,gid=2").unwrap().gid, Some(2));
        for bad in [
            "",
            "uid",
            "uid=x",
            "idmap=",
            "idmap=1:2",
            "idmap=0:0:0",
            "idmap=5:4294967295:1",
            "wat=1",
        ] {
            assert_eq!(Owners::parse(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(word: String, owner: u32) {
            if let Some(owners) = Owners::parse(&word) {
                let _ = owners.maps(&Identities::everybody(), owner, owner);
            }
        }

        #[test]
        fn any_id_is_taken(id in 0..END, owner in 0..END) {
            compiled(&format!("uid={id}"), owner);
        }
    }
}
