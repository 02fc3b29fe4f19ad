use super::*;
use crate::engine::tests::engine;
use crate::lifecycle::{Event, Life};
use crate::store::Record;
use crate::store::tests::{config, image};
use container_api::output_log::{LogLimits, LogWriter, OutputStream};
use container_api::types::Timestamp;
use std::io::Read;

struct Scene {
    _directory: tempfile::TempDir,
    engine: Arc<Engine>,
    container: Arc<Container>,
}

fn scene() -> Scene {
    let directory = tempfile::tempdir().unwrap();
    let engine = engine(directory.path());
    let record = Record { config: config("ab"), image: image(), life: Life::new(), runtime: None };
    let container = engine.add(Container::new(record));
    std::fs::create_dir(engine.directory(&container)).unwrap();
    Scene { _directory: directory, engine, container }
}

impl Scene {
    fn writer(&self) -> LogWriter {
        let limits = LogLimits { max_size: 1 << 20, max_files: 3 };
        let path = self.engine.directory(&self.container).join(names::OUTPUT);
        LogWriter::open(&path, limits).unwrap()
    }

    async fn read(&self, wanted: Wanted) -> (String, String) {
        let (mut out, out_writer) = io::pipe().unwrap();
        let (mut err, err_writer) = io::pipe().unwrap();
        let fds = vec![out_writer.into(), err_writer.into()];
        self.engine.logs(&self.container, wanted, fds).await.unwrap();
        let mut texts = (String::new(), String::new());
        out.read_to_string(&mut texts.0).unwrap();
        err.read_to_string(&mut texts.1).unwrap();
        texts
    }
}

const PLAIN: Wanted = Wanted { follow: false, tail: None, boot: false };

#[tokio::test]
async fn output_goes_to_its_stream() {
    let scene = scene();
    assert_eq!(scene.read(PLAIN).await, (String::new(), String::new()));
    let mut writer = scene.writer();
    for i in 0..3 {
        let line = format!("line {i}\n");
        writer.write(OutputStream::Stdout, line.as_bytes(), Timestamp::now()).unwrap();
    }
    writer.write(OutputStream::Stderr, b"bad\n", Timestamp::now()).unwrap();
    let (out, err) = scene.read(PLAIN).await;
    assert_eq!((out.as_str(), err.as_str()), ("line 0\nline 1\nline 2\n", "bad\n"));
    let (out, err) = scene.read(Wanted { tail: Some(2), ..PLAIN }).await;
    assert_eq!((out.as_str(), err.as_str()), ("line 2\n", "bad\n"));
}

#[tokio::test]
async fn following_ends_with_the_container() {
    let scene = scene();
    scene.container.update(|live| live.life.apply(Event::Launch));
    let mut writer = scene.writer();
    let write = async {
        for i in 0..5 {
            writer
                .write(OutputStream::Stdout, format!("{i}").as_bytes(), Timestamp::now())
                .unwrap();
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
        writer.finish(Timestamp::now()).unwrap();
        let exit = crate::watch::lost("test");
        scene.container.update(|live| live.life.apply(Event::Ended(exit)));
    };
    let read = scene.read(Wanted { follow: true, ..PLAIN });
    let limit = Duration::from_secs(10);
    let ((), (out, _)) =
        tokio::time::timeout(limit, async { tokio::join!(write, read) }).await.unwrap();
    assert_eq!(out, "01234");
}

#[tokio::test]
async fn a_reader_that_goes_away_or_is_stuck_holds_nobody() {
    let scene = scene();
    scene.container.update(|live| live.life.apply(Event::Launch));
    let follow = Wanted { follow: true, ..PLAIN };
    let limit = Duration::from_secs(5);
    // Gone while nothing is written.
    let (reader, writer) = io::pipe().unwrap();
    let fds = vec![writer.try_clone().unwrap().into(), writer.into()];
    let logs = scene.engine.logs(&scene.container, follow, fds);
    drop(reader);
    tokio::time::timeout(limit, logs).await.unwrap().unwrap();
    // Stuck with a full pipe: dropping the call ends the thread, which closes its end.
    let mut log = scene.writer();
    for _ in 0..20 {
        log.write(OutputStream::Stdout, &[b'x'; 32 << 10], Timestamp::now()).unwrap();
    }
    let (mut reader, writer) = io::pipe().unwrap();
    let fds = vec![writer.try_clone().unwrap().into(), writer.into()];
    let logs = scene.engine.logs(&scene.container, follow, fds);
    tokio::time::timeout(Duration::from_millis(200), logs).await.unwrap_err();
    let rest = tokio::task::spawn_blocking(move || {
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).map(|_| bytes.len())
    });
    let read = tokio::time::timeout(limit, rest).await.unwrap().unwrap().unwrap();
    assert!(read < 640 << 10, "{read}");
}

#[tokio::test]
async fn the_console_is_made_safe() {
    let scene = scene();
    let path = scene.engine.directory(&scene.container).join(names::BOOT_LOG);
    std::fs::write(&path, "one\r\n\u{1b}[31mtwo\tx\r\nthree").unwrap();
    let boot = Wanted { boot: true, ..PLAIN };
    assert_eq!(scene.read(boot).await.0, "one\n\\u{1b}[31mtwo\tx\nthree\n");
    assert_eq!(scene.read(Wanted { tail: Some(1), ..boot }).await.0, "three\n");
    assert_eq!(scene.read(Wanted { tail: Some(2), ..boot }).await.0.lines().count(), 2);
    assert_eq!(scene.read(Wanted { tail: Some(0), ..boot }).await.0, "");
    assert_eq!(scene.read(Wanted { tail: Some(9), ..boot }).await.0.lines().count(), 3);
}
