use super::*;
use proptest::prelude::*;
use std::fs;
use std::io::Cursor;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;

const PLAIN: Packing = Packing { xattr: |_| false, layer: false, leave_out: &[] };
const RULES: Rules =
    Rules { owner: Owner::Caller, special_bits: false, devices: false, xattr: |_| false };

fn directory(path: &Path) -> OwnedFd {
    fs::File::open(path).unwrap().into()
}

fn bytes(path: &Path) -> &[u8] {
    use std::os::unix::ffi::OsStrExt;
    path.as_os_str().as_bytes()
}

fn pack(path: &Path) -> (Vec<u8>, Source) {
    let mut out = Vec::new();
    let (parent, name, source) = View::Host.source(bytes(path), false).unwrap();
    pack_path(&mut out, parent.as_fd(), &name, b".", PLAIN).unwrap();
    (out, source)
}

fn unpack(archive: &[u8], place: Place) -> Result<Unpacked> {
    Unpacker::new(place, RULES).run(&mut TarReader::new(Cursor::new(archive)), None)
}

fn copy(from: &Path, to: &str) -> Result<Unpacked> {
    let (archive, source) = pack(from);
    unpack(&archive, View::Host.destination(to.as_bytes(), &source)?)
}

#[test]
fn a_tree_comes_back_as_it_was() {
    let here = tempfile::tempdir().unwrap();
    let from = here.path().join("from");
    let long = "a long name ".repeat(12);
    fs::create_dir_all(from.join(&long).join("inner")).unwrap();
    fs::write(from.join("file"), vec![7; 1000]).unwrap();
    fs::write(from.join(&long).join("new\nline \u{202e}"), b"x").unwrap();
    fs::hard_link(from.join("file"), from.join("other name")).unwrap();
    symlink("/nowhere/".repeat(20), from.join("link")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        from.join("pipe"),
        rustix::fs::FileType::Fifo,
        0o640.into(),
        0,
    )
    .unwrap();
    fs::set_permissions(from.join("file"), fs::Permissions::from_mode(0o4751)).unwrap();
    fs::set_permissions(from.join(&long), fs::Permissions::from_mode(0o500)).unwrap();
    let before = |name: &str| fs::symlink_metadata(from.join(name)).unwrap();
    copy(&from, here.path().join("to").to_str().unwrap()).unwrap();
    let to = here.path().join("to");
    let after = |name: &str| fs::symlink_metadata(to.join(name)).unwrap();
    assert_eq!(after("file").mode() & 0o7777, 0o751, "no set-id bit comes along");
    assert_eq!(after("file").ino(), after("other name").ino());
    assert_eq!(fs::read(to.join("file")).unwrap(), vec![7; 1000]);
    assert_eq!(fs::read_link(to.join("link")).unwrap(), fs::read_link(from.join("link")).unwrap());
    assert!(after("pipe").file_type().is_fifo());
    for name in ["file", "link", "pipe", &long, ""] {
        let times = |m: fs::Metadata| (m.mtime(), m.mtime_nsec());
        assert_eq!(times(after(name)), times(before(name)), "{name}");
    }
    assert_eq!(after(&long).mode() & 0o777, 0o500);
    fs::set_permissions(from.join(&long), fs::Permissions::from_mode(0o700)).unwrap();
    fs::set_permissions(to.join(&long), fs::Permissions::from_mode(0o700)).unwrap();
}

/// Docker's table, source by destination; what is there afterwards, or a refusal.
#[test]
fn destinations_are_docker_s() {
    let table = [
        ("file", "new", Some("new")),
        ("file", "new/", None),
        ("file", "missing/new", None),
        ("file", "there", Some("there")),
        ("file", "there/", None),
        ("file", "dir", Some("dir/file")),
        ("file", "dir/.", Some("dir/file")),
        ("file", "to-dir", Some("dir/file")),
        ("file", "to-there", Some("there")),
        ("file", "to-new", Some("new")),
        ("file", "dir/holder", None),
        ("tree", "new", Some("new/leaf")),
        ("tree", "new/", Some("new/leaf")),
        ("tree/", "new", Some("new/leaf")),
        ("tree/.", "new", Some("new/leaf")),
        ("tree", "missing/new", None),
        ("tree", "there", None),
        ("tree/.", "there", None),
        ("tree", "dir", Some("dir/tree/leaf")),
        ("tree/", "dir", Some("dir/tree/leaf")),
        ("tree/.", "dir", Some("dir/leaf")),
        ("tree/.", "dir/", Some("dir/leaf")),
    ];
    for (source, destination, expected) in table {
        let here = tempfile::tempdir().unwrap();
        let path = |name: &str| here.path().join(name);
        fs::create_dir_all(path("tree")).unwrap();
        fs::create_dir_all(path("dir/holder/file")).unwrap();
        fs::write(path("tree/leaf"), b"new").unwrap();
        fs::write(path("file"), b"new").unwrap();
        fs::write(path("there"), b"old").unwrap();
        symlink("dir", path("to-dir")).unwrap();
        symlink("there", path("to-there")).unwrap();
        symlink("new", path("to-new")).unwrap();
        // `join` would take a `/.` away.
        let at = |name: &str| format!("{}/{name}", here.path().display());
        let outcome = copy(Path::new(&at(source)), &at(destination));
        let what = format!("{source} to {destination}: {outcome:?}");
        match expected {
            Some(file) => assert_eq!(fs::read(path(file)).unwrap(), b"new", "{what}"),
            None => assert!(outcome.is_err(), "{what}"),
        }
    }
}

#[test]
fn a_root_is_never_left() {
    let here = tempfile::tempdir().unwrap();
    let root = here.path().join("root");
    fs::create_dir(&root).unwrap();
    fs::write(here.path().join("secret"), b"s").unwrap();
    fs::create_dir(root.join("inside")).unwrap();
    symlink("../../secret", root.join("up")).unwrap();
    symlink("/", root.join("top")).unwrap();
    let root_fd = directory(&root);
    let view = View::Root(root_fd.as_fd());
    view.source(b"/up", true).unwrap_err();
    view.source(b"/../secret", false).unwrap_err();
    let (_, _, source) = view.source(b"/top/inside", true).unwrap();
    assert!(source.directory);
    let file = Source { name: b"x".to_vec(), directory: false };
    let place = view.destination(b"/top/../../inside", &file).unwrap();
    let mut archive = write::header(&Entry::new(".", Kind::File));
    archive.extend([0; 1024]);
    unpack(&archive, place).unwrap();
    assert!(root.join("inside/x").exists());
    // What the link means below the root.
    let mut archive = write::header(&Entry::new(".", Kind::File));
    archive.extend([0; 1024]);
    unpack(&archive, view.destination(b"/up", &file).unwrap()).unwrap();
    assert!(root.join("secret").exists());
    assert_eq!(fs::read(here.path().join("secret")).unwrap(), b"s");
}

/// Archives that try to lead out, by links they made, links that were there, and dots.
#[test]
fn hostile_archives_stay_inside() {
    let entry = |path: &str, kind, link: &str| {
        let mut entry = Entry::new(path, kind);
        entry.link = link.as_bytes().to_vec();
        write::header(&entry)
    };
    let attacks = [
        vec![entry("../out", Kind::File, "")],
        vec![entry("a/../../out", Kind::File, "")],
        vec![entry("l", Kind::Symlink, ".."), entry("l/out", Kind::File, "")],
        vec![entry("l", Kind::Symlink, ".."), entry("l/out", Kind::Directory, "")],
        vec![entry("l", Kind::Symlink, ".."), entry("h", Kind::HardLink, "l/secret")],
        vec![entry("h", Kind::HardLink, "../secret")],
        vec![entry("there/out", Kind::File, "")],
        vec![entry("there", Kind::Directory, ""), entry("there/out", Kind::File, "")],
    ];
    for attack in attacks {
        let here = tempfile::tempdir().unwrap();
        let base = here.path().join("base");
        fs::create_dir(&base).unwrap();
        symlink("..", base.join("there")).unwrap();
        fs::write(here.path().join("secret"), b"s").unwrap();
        let mut archive = attack.concat();
        archive.extend([0; 1024]);
        let place = View::Host.existing(bytes(&base)).unwrap();
        let outcome = unpack(&archive, place);
        assert!(outcome.is_err(), "{attack:?}");
        assert!(!here.path().join("out").exists());
        assert!(!base.join("h").exists());
    }
    // A link that is there is replaced, not written through.
    let here = tempfile::tempdir().unwrap();
    fs::write(here.path().join("secret"), b"s").unwrap();
    fs::create_dir(here.path().join("base")).unwrap();
    symlink("../secret", here.path().join("base/f")).unwrap();
    let mut archive = entry("f", Kind::File, "");
    archive.extend([0; 1024]);
    let place = View::Host.existing(bytes(&here.path().join("base"))).unwrap();
    unpack(&archive, place).unwrap();
    assert_eq!(fs::read(here.path().join("secret")).unwrap(), b"s");
    assert!(here.path().join("base/f").symlink_metadata().unwrap().is_file());
}

#[test]
fn changes_are_told_as_docker_tells_them() {
    let here = tempfile::tempdir().unwrap();
    let path = |name: &str| here.path().join(name);
    for name in ["lower/etc", "lower/usr", "upper/etc", "upper/usr/new", "upper/proc"] {
        fs::create_dir_all(path(name)).unwrap();
    }
    fs::write(path("lower/usr/file"), b"").unwrap();
    fs::write(path("upper/usr/file"), b"1").unwrap();
    fs::write(path("upper/usr/new/x"), b"1").unwrap();
    fs::write(path("upper/etc/hosts"), b"").unwrap();
    let mut out = Vec::new();
    let (upper, lower) = (directory(&path("upper")), directory(&path("lower")));
    diff(&mut out, upper.as_fd(), lower.as_fd(), &["proc", "etc/hosts"]).unwrap();
    let lines: Vec<String> = records(&out)
        .iter()
        .map(|c| format!("{} {}", c.kind as char, String::from_utf8_lossy(&c.path)))
        .collect();
    assert_eq!(lines, ["C /usr", "C /usr/file", "A /usr/new", "A /usr/new/x"]);
}

fn entries() -> impl Strategy<Value = Entry> {
    let name = prop::sample::select(vec!["a", "b", "a/b", "..", "l/x", "/a", "./b/../c", "l", ""]);
    let kind = prop::sample::select(vec![
        Kind::File,
        Kind::Directory,
        Kind::Symlink,
        Kind::HardLink,
        Kind::Fifo,
    ]);
    let link = prop::sample::select(vec!["..", "/", "a", "../secret", "l/secret", "."]);
    (name, kind, link, any::<u32>(), any::<i32>(), 0..1_000_000_000u32).prop_map(
        |(name, kind, link, mode, seconds, nanoseconds)| {
            let mut entry = Entry::new(name, kind);
            if matches!(kind, Kind::Symlink | Kind::HardLink) {
                entry.link = link.as_bytes().to_vec();
            }
            entry.mode = mode & 0o7777;
            entry.mtime = Time { seconds: seconds.into(), nanoseconds };
            entry
        },
    )
}

proptest! {
    #[test]
    fn headers_come_back(
        mut entry in entries(),
        path in proptest::collection::vec(1u8..=255, 1..300),
        uid in any::<u32>(),
        value in proptest::collection::vec(any::<u8>(), 0..50),
    ) {
        prop_assume!(path.last() != Some(&b'/'));
        entry.path = path;
        entry.uid = uid;
        entry.xattrs = vec![(b"user.x".to_vec(), value)];
        let bytes = write::header(&entry);
        let mut back = TarReader::new(Cursor::new(bytes)).next_entry().unwrap().unwrap();
        if entry.kind == Kind::Directory {
            prop_assert_eq!(back.path.pop(), Some(b'/'));
        }
        prop_assert_eq!(back, entry);
    }

    #[test]
    fn any_order_of_entries_stays_inside(all in proptest::collection::vec(entries(), 0..12)) {
        let here = tempfile::tempdir().unwrap();
        let base = here.path().join("base");
        fs::create_dir(&base).unwrap();
        fs::write(here.path().join("secret"), b"s").unwrap();
        let before = fs::metadata(here.path().join("secret")).unwrap();
        for entry in all {
            let mut archive = write::header(&entry);
            archive.extend([0; 1024]);
            let _ = unpack(&archive, View::Host.existing(bytes(&base)).unwrap());
        }
        let after = fs::metadata(here.path().join("secret")).unwrap();
        prop_assert_eq!((before.nlink(), before.mode()), (after.nlink(), after.mode()));
        prop_assert_eq!(before.mtime_nsec(), after.mtime_nsec());
        let names = fs::read_dir(here.path()).unwrap().count();
        prop_assert_eq!(names, 2);
        for entry in fs::read_dir(&base).unwrap().flatten() {
            // Never through a link: it may lead to the root of this host.
            if entry.file_type().is_ok_and(|kind| !kind.is_symlink()) {
                let _ = fs::set_permissions(entry.path(), fs::Permissions::from_mode(0o700));
            }
        }
    }

    #[test]
    fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
        let mut reader = TarReader::new(Cursor::new(bytes));
        while let Ok(Some(_)) = reader.next_entry() {}
    }
}
