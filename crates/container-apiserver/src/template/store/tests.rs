use super::*;
use crate::template::disk::tests::{made, shape};

fn templates(directory: &std::path::Path, max: usize) -> Templates {
    let root = AppRoot::resolve(Some(directory)).unwrap();
    std::fs::create_dir_all(root.templates()).unwrap();
    let mut config = Config::default();
    config.runtime.templates_max = max;
    Templates::new(&root, &config)
}

fn add(templates: &Templates, key: &str) {
    let path = made(templates.root(), key);
    disk::commit(templates.root(), &path, key).unwrap();
    templates.made(disk::read(&templates.root().join(key)).unwrap());
}

fn keys(templates: &Templates) -> Vec<String> {
    templates.statuses().into_iter().filter(|s| s.state == "ready").map(|s| s.id).collect()
}

#[tokio::test]
async fn the_one_unused_for_longest_goes() {
    let directory = tempfile::tempdir().unwrap();
    let templates = templates(directory.path(), 2);
    for key in ["a", "b"] {
        add(&templates, key);
        std::thread::sleep(Duration::from_millis(1100));
    }
    let held = templates.acquire(&shape("a")).await.unwrap();
    add(&templates, "c");
    assert_eq!(keys(&templates), ["a", "c"], "b was unused for longest");
    add(&templates, "d");
    assert_eq!(keys(&templates), ["a", "d"], "a start is about to use a");
    assert!(held.files.state.exists());
    drop(held);
    assert_eq!(templates.prune(&["d".into()]).0, 1);
    assert_eq!(keys(&templates), ["d"]);
    assert!(!templates.root().join("a").exists());
}

#[tokio::test]
async fn one_is_checked_when_its_files_have_changed() {
    let directory = tempfile::tempdir().unwrap();
    let templates = templates(directory.path(), 2);
    assert!(templates.acquire(&shape("a")).await.is_none());
    add(&templates, "a");
    let wanted = shape("a");
    let checked = || templates.inner().known["a"].checked;
    assert!(checked().is_none());
    let (one, two) = tokio::join!(templates.acquire(&wanted), templates.acquire(&wanted));
    assert_eq!(one.unwrap().files, two.unwrap().files);
    let first = checked().unwrap();
    templates.check_all();
    // What another has written in its place is as good.
    let ram = templates.files("a").ram;
    let copy = ram.with_file_name("copy");
    std::fs::copy(&ram, &copy).unwrap();
    std::fs::rename(&copy, &ram).unwrap();
    assert!(templates.acquire(&wanted).await.is_some());
    assert_ne!(checked().unwrap(), first);
    for part in ["ram", "state"] {
        std::fs::write(templates.root().join("a").join(part), "?").unwrap();
        assert!(templates.acquire(&wanted).await.is_none(), "{part}");
        assert!(!templates.root().join("a").exists(), "{part}");
        add(&templates, "a");
    }
    templates.check_all();
    assert!(checked().is_some());
    std::fs::write(templates.root().join("a/state"), "?").unwrap();
    templates.inner().known.get_mut("a").unwrap().checked = None;
    templates.check_all();
    assert!(!templates.is_ready("a") && !templates.root().join("a").exists());
}

#[test]
fn a_failure_is_not_repeated_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let templates = templates(directory.path(), 2);
    let kernel = Kernel::at("/nonexistent".as_ref());
    for _ in 0..2 {
        templates.want(&shape("a"), &kernel);
    }
    let (making, _) = templates.next().unwrap();
    assert!(templates.next().is_none(), "wanted once");
    templates.want(&making, &kernel);
    assert!(templates.next().is_none(), "being made");
    templates.failed(&making, "no luck".into());
    templates.want(&making, &kernel);
    assert!(templates.next().is_none(), "in its pause");
    assert_eq!(templates.statuses()[0].state, "no luck");
}
