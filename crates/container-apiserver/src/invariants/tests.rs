//! Each violation is found where it is made, and named.

use std::fs;
use std::path::Path;

use container_api::paths::container_files as names;
use container_api::types::{Status, Timestamp};

use super::*;
use crate::container::Container;
use crate::directory::{self, Staged};
use crate::engine::tests::engine;
use crate::lifecycle::Life;
use crate::store::Record;
use crate::store::tests::{config, image};

/// A container with its row and directory.
fn add(engine: &Engine, id: &str) -> Arc<Container> {
    let root = &engine.root;
    let disk = root.path().join(image().disk);
    fs::create_dir_all(disk.parent().unwrap()).unwrap();
    fs::write(&disk, "").unwrap();
    let empty = root.path().join("empty");
    fs::write(&empty, "upper").unwrap();
    let record = Record { config: config(id), image: image(), life: Life::new(), runtime: None };
    Staged::build(root, &record.config, &record.image, &empty).unwrap().commit().unwrap();
    engine.store.put(&record).unwrap();
    engine.add(Container::new(record))
}

fn remove(path: &Path) {
    if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }.unwrap();
}

/// That `look` finds nothing, then this one line while `made` is there, then nothing again.
fn finds(
    look: impl Fn() -> Result<Findings>,
    line: &str,
    make: impl FnOnce(),
    unmake: impl FnOnce(),
) {
    assert_eq!(look().unwrap().violations, [""; 0], "before {line}");
    make();
    let found = look().unwrap().violations;
    assert_eq!(found, [line]);
    unmake();
    assert_eq!(look().unwrap().violations, [""; 0], "after {line}");
}

#[tokio::test]
async fn rows_and_directories_are_compared() {
    let directory = tempfile::tempdir().unwrap();
    let engine = engine(directory.path());
    let web = add(&engine, "web");
    let path = engine.directory(&web);
    let look = || containers::recorded(&engine);
    let record = web.record();
    finds(
        look,
        "container 'web' has no row in state.db",
        || engine.store.remove("web", None).unwrap(),
        || engine.store.put(&record).unwrap(),
    );
    let stranger = Record { config: config("db"), ..record.clone() };
    finds(
        look,
        "container 'db' has a row, and is not known",
        || engine.store.put(&stranger).unwrap(),
        || engine.store.remove("db", None).unwrap(),
    );
    let odd = engine.root.container("odd\n");
    finds(
        look,
        "directory containers/odd\\n is no container's",
        || fs::create_dir(&odd).unwrap(),
        || remove(&odd),
    );
    let disk = path.join(names::UPPER);
    let resize = |len| fs::File::options().write(true).open(&disk).unwrap().set_len(len).unwrap();
    finds(
        look,
        "the disk of container 'web' is 7 bytes long",
        || resize(7),
        || resize(container_api::paths::DISK_LEN),
    );
    let other = Life { started: Some(Timestamp::now()), status: Status::Running, exit: None };
    finds(
        look,
        "container 'web' is recorded as running, and is created",
        || engine.store.put_life("web", &other, None).unwrap(),
        || engine.store.put_life("web", &record.life, None).unwrap(),
    );
    let text = fs::read(path.join(names::CONFIG)).unwrap();
    let renamed = String::from_utf8(text.clone()).unwrap().replace("\"web\"", "\"wob\"");
    finds(
        look,
        "container 'web' is another one in its directory",
        || fs::write(path.join(names::CONFIG), renamed).unwrap(),
        || fs::write(path.join(names::CONFIG), text).unwrap(),
    );
    let image = engine.root.path().join(&record.image.disk);
    finds(
        look,
        "the disk of the image of container 'web' is gone",
        || remove(&image),
        || fs::write(&image, "").unwrap(),
    );
}

#[tokio::test]
async fn a_state_without_a_vm_is_untrue() {
    let directory = tempfile::tempdir().unwrap();
    let engine = engine(directory.path());
    let web = add(&engine, "web");
    finds(
        || containers::states(&engine),
        "container 'web' is running, and has no VM",
        || web.update(|live| live.life.status = Status::Running),
        || web.update(|live| live.life.status = Status::Created),
    );
}

#[tokio::test]
async fn what_is_half_made_has_a_maker() {
    let directory = tempfile::tempdir().unwrap();
    let engine = engine(directory.path());
    let web = add(&engine, "web");
    let path = engine.directory(&web);
    let root = &engine.root;
    let over = "was left by an operation that is over";
    for (made, shown) in [
        (root.containers().join(".new-a-b-17-0"), "containers/.new-a-b-17-0"),
        (root.containers().join(".gone-0-17"), "containers/.gone-0-17"),
        (root.volumes().join(".new-data-17-0"), "volumes/.new-data-17-0"),
        (root.templates().join(".new-key-17-0"), "templates/.new-key-17-0"),
        (path.join(".vm.json"), "containers/web/.vm.json"),
    ] {
        let line = format!("{shown} {over}");
        let look = || files::finished(&engine);
        finds(look, &line, || fs::create_dir(&made).unwrap(), || remove(&made));
    }
    let socket = path.join(names::SOCKET);
    finds(
        || files::finished(&engine),
        "socket containers/web/runtime.sock has no owner",
        || fs::write(&socket, "").unwrap(),
        || remove(&socket),
    );
    let _reservation = engine.reserve("a-b").unwrap();
    fs::create_dir(root.containers().join(".new-a-b-17-0")).unwrap();
    assert_eq!(files::finished(&engine).unwrap().violations, [""; 0]);
}

#[tokio::test]
async fn directories_of_others_are_found() {
    let directory = tempfile::tempdir().unwrap();
    let engine = engine(directory.path());
    let root = &engine.root;
    for (made, line) in [
        (root.templates().join("abc"), "templates/abc is not known"),
        (root.spares().join("abc"), "spares/abc is no spare's"),
    ] {
        let look = || kept::templates(&engine);
        finds(look, line, || fs::create_dir(&made).unwrap(), || remove(&made));
    }
    let made = root.volumes().join("abc");
    let look = || kept::volumes(&engine);
    finds(look, "volumes/abc is no volume", || fs::create_dir(&made).unwrap(), || remove(&made));
}

#[tokio::test]
async fn a_process_that_nobody_knows_is_found() {
    use std::os::unix::process::CommandExt;
    let directory = tempfile::tempdir().unwrap();
    let engine = engine(directory.path());
    let seen = async || processes::known(&engine).await.unwrap().violations;
    assert_eq!(seen().await, [""; 0]);
    // By its words, and by a file that it has open.
    let program = directory.path().join("container-stray");
    fs::copy("/bin/sleep", &program).unwrap();
    let mut stray = std::process::Command::new(&program).arg0("sleep").arg("100").spawn().unwrap();
    let found = seen().await;
    let pid = stray.id();
    stray.kill().unwrap();
    stray.wait().unwrap();
    assert_eq!(found, [""; 0], "its words name nothing of ours, and it has nothing open");
    let open = fs::File::open(engine.root.lock()).or_else(|_| fs::File::create(engine.root.lock()));
    let mut stray = std::process::Command::new(&program)
        .arg0("sleep")
        .arg("100")
        .stdin(open.unwrap())
        .spawn()
        .unwrap();
    let found = seen().await;
    let line = format!("process {} (container-stray) belongs to nothing that is known", stray.id());
    stray.kill().unwrap();
    stray.wait().unwrap();
    assert_eq!(found, [line]);
    assert_ne!(pid, stray.id());
    assert_eq!(seen().await, [""; 0]);
}

#[test]
fn only_what_stays_the_same_is_believed() {
    let findings = |lines: &[&str]| Findings {
        violations: lines.iter().map(ToString::to_string).collect(),
        ..Findings::default()
    };
    let again =
        Checked { invariant: Invariant::Files, findings: findings(&["b", "c"]), not_run: None };
    let confirmed = confirmed(findings(&["a", "b"]), again);
    assert_eq!(confirmed.findings.violations, ["b"]);
}

#[tokio::test]
async fn what_could_not_be_written_is_written_later() {
    let directory = tempfile::tempdir().unwrap();
    let engine = engine(directory.path());
    let web = add(&engine, "web");
    let other = rusqlite::Connection::open(engine.root.database()).unwrap();
    let rename = |sql| other.execute_batch(sql).unwrap();
    rename("ALTER TABLE container RENAME TO away");
    web.update(|live| live.life.status = Status::Stopped);
    engine.write_down(&web);
    rename("ALTER TABLE away RENAME TO container");
    let line = "container 'web' is recorded as created, and is stopped";
    assert_eq!(containers::recorded(&engine).unwrap().violations, [line]);
    engine.write_again();
    assert_eq!(containers::recorded(&engine).unwrap().violations, [""; 0]);
}

#[tokio::test]
async fn a_start_of_the_service_sets_right_what_it_finds() {
    let directory = tempfile::tempdir().unwrap();
    let former = engine(directory.path());
    let web = add(&former, "web");
    let path = former.directory(&web);
    // Killed in the middle of a rename, its helper before that.
    directory::write_json(&path, names::CONFIG, &config("other")).unwrap();
    fs::write(path.join(names::SOCKET), "").unwrap();
    fs::create_dir(former.root.containers().join(".new-other-17-0")).unwrap();
    drop((former, web));
    let now = engine(directory.path());
    crate::reconcile::reconcile(&now).await.unwrap();
    let (config, _) = directory::read(&path).unwrap();
    assert_eq!(config.id, "web");
    assert_eq!(containers::recorded(&now).unwrap().violations, [""; 0]);
    while !files::finished(&now).unwrap().violations.is_empty() {
        // Leftovers are removed in the background.
        tokio::task::yield_now().await;
    }
}
