//! Random trees through tar and EROFS and back.

use std::collections::BTreeMap;

use container_rootfs::FileKind;
use proptest::prelude::*;

use crate::support::{Attrs, Image, Layer, build};

#[derive(Debug, Clone)]
enum Thing {
    Dir,
    File(Vec<u8>),
    Symlink(String),
    Fifo,
}

#[derive(Debug, Clone)]
struct Item {
    path: Vec<String>,
    thing: Thing,
    attrs: (u32, u64, u64, u64),
    xattrs: BTreeMap<String, Vec<u8>>,
}

fn things() -> impl Strategy<Value = Thing> {
    let sizes = prop_oneof![0usize..20, 2000usize..2100, 4000usize..4200, 0usize..20_000];
    prop_oneof![
        2 => Just(Thing::Dir),
        4 => (sizes, any::<u8>())
            .prop_map(|(len, seed)| Thing::File((0..len).map(|i| (i as u8) ^ seed).collect())),
        1 => "[a-z/.]{1,90}".prop_map(Thing::Symlink),
        1 => Just(Thing::Fifo),
    ]
}

fn items() -> impl Strategy<Value = Item> {
    let path = proptest::collection::vec("[a-c!-]{1,3}", 1..4);
    let attrs = (0u32..0o10000, 0u64..200_000, 0u64..200_000, 1_000u64..1_003);
    let xattrs = proptest::collection::btree_map(
        "(user|trusted|security)\\.[a-z]{1,20}",
        proptest::collection::vec(any::<u8>(), 0..60),
        0..3,
    );
    (path, things(), attrs, xattrs).prop_map(|(path, thing, attrs, xattrs)| Item {
        path,
        thing,
        attrs,
        xattrs,
    })
}

/// What the tree holds after all items: like a file system, without links on paths.
fn model(items: &[Item]) -> BTreeMap<String, Option<Item>> {
    let mut tree: BTreeMap<String, Option<Item>> = BTreeMap::new();
    let remove_below = |tree: &mut BTreeMap<String, Option<Item>>, path: &str| {
        tree.retain(|known, _| !known.starts_with(&format!("{path}/")));
    };
    for item in items {
        for end in 1..item.path.len() {
            let parent = item.path[..end].join("/");
            let known = tree.get(&parent);
            let is_dir = known.is_some_and(|known| {
                known.as_ref().is_none_or(|item| matches!(item.thing, Thing::Dir))
            });
            if !is_dir {
                tree.insert(parent, None);
            }
        }
        let path = item.path.join("/");
        if !matches!(item.thing, Thing::Dir) {
            remove_below(&mut tree, &path);
        }
        tree.insert(path, Some(item.clone()));
    }
    tree
}

fn layer(items: &[Item]) -> Vec<u8> {
    let add = |layer: Layer, item: &Item| {
        let keys: Vec<_> = item
            .xattrs
            .iter()
            .map(|(name, value)| (format!("SCHILY.xattr.{name}"), value))
            .collect();
        let records: Vec<_> = keys.iter().map(|(key, value)| (&**key, &***value)).collect();
        let layer = if records.is_empty() { layer } else { layer.pax(&records) };
        let (mode, uid, gid, mtime) = item.attrs;
        let attrs = Attrs { mode, uid, gid, mtime };
        let path = item.path.join("/");
        match &item.thing {
            Thing::Dir => layer.entry(b'5', &path, "", attrs, b""),
            Thing::File(data) => layer.entry(b'0', &path, "", attrs, data),
            Thing::Symlink(target) => layer.entry(b'2', &path, target, attrs, b""),
            Thing::Fifo => layer.entry(b'6', &path, "", attrs, b""),
        }
    };
    items.iter().fold(Layer::new(), add).bytes()
}

/// Items that would go through a symbolic link: another test's matter.
fn without_paths_through_links(items: Vec<Item>) -> Vec<Item> {
    let mut kept: Vec<Item> = Vec::new();
    for item in items {
        let through = (1..item.path.len()).any(|end| {
            let parent = item.path[..end].join("/");
            matches!(model(&kept).get(&parent), Some(Some(Item { thing: Thing::Symlink(_), .. })))
        });
        if !through {
            kept.push(item);
        }
    }
    kept
}

fn check(image: &Image, tree: &BTreeMap<String, Option<Item>>) {
    let paths: Vec<_> = image.list().into_keys().collect();
    assert_eq!(paths, tree.keys().cloned().collect::<Vec<_>>());
    for (path, item) in tree {
        let inode = image.inode(path);
        let Some(item) = item else {
            assert_eq!((inode.kind, inode.mode), (FileKind::Directory, 0o755));
            continue;
        };
        let (mode, uid, gid, mtime) = item.attrs;
        assert_eq!(u32::from(inode.mode), mode);
        assert_eq!((u64::from(inode.uid), u64::from(inode.gid)), (uid, gid));
        assert_eq!(inode.mtime.seconds as u64, mtime);
        let xattrs: BTreeMap<_, _> = image.reader.xattrs(&inode).unwrap().into_iter().collect();
        let expected =
            item.xattrs.iter().map(|(name, value)| (name.clone().into_bytes(), value.clone()));
        assert_eq!(xattrs, expected.collect());
        match &item.thing {
            Thing::Dir => assert_eq!(inode.kind, FileKind::Directory),
            Thing::File(data) => assert!(image.read(path) == *data),
            Thing::Symlink(target) => {
                assert_eq!(image.reader.read_link(&inode).unwrap(), target.as_bytes());
            }
            Thing::Fifo => assert_eq!(inode.kind, FileKind::Fifo),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn what_goes_in_comes_out(
        items in proptest::collection::vec(items(), 0..60),
        split in any::<proptest::sample::Index>(),
    ) {
        let items = without_paths_through_links(items);
        let (lower, upper) = items.split_at(split.index(items.len() + 1));
        let image = build(&[layer(lower), layer(upper)]);
        check(&image, &model(&items));
    }
}
