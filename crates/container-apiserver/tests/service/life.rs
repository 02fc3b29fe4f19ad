//! Containers from creation to removal, and what is refused on the way.

use std::io::Read;
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;

use container_api::ErrorCode;
use container_api::apiserver::{
    ProcessOptions, PrunedContainers, QUICK, Request, SLOW, SystemStatus,
};
use container_api::images::{self, Progress, Removed};
use container_api::types::{ExitRecord, Status, Stdio};

use crate::installation::{Installation, alive, options, wait_until};

#[tokio::test]
async fn a_container_lives_and_ends() {
    let it = Installation::started();
    let created = it.create("web", "exit=3").await.unwrap();
    assert_eq!(created.id, "web");
    assert!(it.progress.load(Ordering::Relaxed) > 0, "progress is relayed");
    assert_eq!(it.inspect("web").await.unwrap().status, Status::Created);
    assert_eq!(it.create("web", "sleep").await.unwrap_err().code, ErrorCode::AlreadyExists);
    let waiting = it.wait("web");
    let (exit, started) = tokio::join!(waiting, it.start("web"));
    started.unwrap();
    assert_eq!(exit.unwrap().exit_code, 3);
    assert_eq!(it.wait("web").await.unwrap().exit_code, 3);
    let snapshot = it.inspect("we").await.unwrap();
    assert_eq!(snapshot.status, Status::Stopped);
    assert!(snapshot.started_date.is_some());
    it.start("web").await.expect("an ended container starts again");
    it.wait("web").await.unwrap();
    it.delete("web", false).await.unwrap();
    assert_eq!(it.inspect("web").await.unwrap_err().code, ErrorCode::NotFound);
    assert!(it.directories().is_empty());
}

#[tokio::test]
async fn a_running_container_is_used_and_protected() {
    let it = Installation::started();
    it.create("app", "sleep").await.unwrap();
    let (mut reader, writer) = std::io::pipe().unwrap();
    let (input, _keep) = std::io::pipe().unwrap();
    let stdio = Stdio { stdin: true, stdout: true, stderr: false };
    let start =
        Request::Start { id: "app".into(), stdio, size: None, trace: false, ssh_agent: None };
    let fds = [input.as_fd(), writer.as_fd()];
    it.client().call::<()>(&start, &fds, Some(SLOW)).await.unwrap();
    drop(writer);
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert_eq!(text, "hello\n", "the descriptors reach the helper");

    let error = it.start("app").await.unwrap_err();
    assert_eq!(
        (error.code, error.message.as_str()),
        (ErrorCode::InvalidState, "container 'app' is running")
    );
    let error = it.delete("app", false).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::InvalidState);
    assert!(error.message.contains("--force"), "{error}");

    let process = ProcessOptions { arguments: vec!["/bin/id".into()], ..Default::default() };
    let stdio = Stdio { stdout: true, ..Stdio::default() };
    let exec = Request::Exec { id: "app".into(), process, stdio, size: None, ssh_agent: None };
    let (mut reader, writer) = std::io::pipe().unwrap();
    let name: String = it.client().call(&exec, &[writer.as_fd()], Some(QUICK)).await.unwrap();
    drop(writer);
    text.clear();
    reader.read_to_string(&mut text).unwrap();
    assert_eq!(text, "/bin/id");
    let exit: ExitRecord = it.client().wait("app", Some(name)).await.unwrap();
    assert_eq!(exit.exit_code, 5);

    it.stop("app").await.unwrap();
    it.stop("app").await.expect("stopping a stopped one is no error");
    let snapshot = it.inspect("app").await.unwrap();
    assert_eq!((snapshot.status, snapshot.exit.unwrap().signal), (Status::Stopped, Some(15)));
    let late = Request::Exec {
        id: "app".into(),
        process: ProcessOptions { arguments: vec!["x".into()], ..Default::default() },
        stdio: Stdio::default(),
        size: None,
        ssh_agent: None,
    };
    let error = it.client().call::<String>(&late, &[], Some(QUICK)).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::InvalidState);
}

#[tokio::test]
async fn a_container_that_removes_itself_still_says_how_it_ended() {
    let it = Installation::started();
    let mut wanted = options("once", "exit=9");
    wanted.auto_remove = true;
    let create = Request::Create(Box::new(wanted));
    it.client().call_with_progress::<serde_json::Value>(&create, &[], |_| {}).await.unwrap();
    it.start("once").await.unwrap();
    assert_eq!(it.wait("once").await.unwrap().exit_code, 9);
    assert_eq!(it.wait("once").await.unwrap().exit_code, 9);
    assert!(it.status().await.is_empty());
    wait_until("its files are gone", || it.directories().is_empty());
}

#[tokio::test]
async fn a_program_that_is_not_there_is_told() {
    let it = Installation::started();
    it.create("bad", "refuse").await.unwrap();
    assert_eq!(it.start("bad").await.unwrap_err().code, ErrorCode::ProgramNotFound);
    let snapshot = it.inspect("bad").await.unwrap();
    assert_eq!((snapshot.status, snapshot.exit.unwrap().exit_code), (Status::Stopped, 127));
    it.create("dies", "die").await.unwrap();
    let error = it.start("dies").await.unwrap_err();
    assert!(error.message.contains("killed by SIGKILL"), "{error}");
}

#[tokio::test]
async fn logs_are_read_and_containers_pruned() {
    let it = Installation::started();
    for id in ["one", "two"] {
        it.create(id, "exit=0").await.unwrap();
        it.start(id).await.unwrap();
        it.wait(id).await.unwrap();
    }
    it.create("fresh", "sleep").await.unwrap();
    for (boot, expected) in [(false, "hello\n"), (true, "booted\n")] {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let logs = Request::Logs { id: "one".into(), follow: true, tail: None, boot };
        let fds = [writer.as_fd(), writer.as_fd()];
        it.client().call::<()>(&logs, &fds, Some(QUICK)).await.unwrap();
        drop(writer);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, expected);
    }
    let pruned: PrunedContainers =
        it.client().call(&Request::Prune, &[], Some(QUICK)).await.unwrap();
    assert_eq!(pruned.ids, ["one", "two"]);
    assert!(pruned.reclaimed > 100_000, "{pruned:?}");
    assert_eq!(it.status().await.into_keys().collect::<Vec<_>>(), ["fresh"]);
}

#[tokio::test]
async fn images_are_relayed_with_what_is_in_use() {
    let it = Installation::started();
    it.create("user", "sleep").await.unwrap();
    let delete = images::Request::Delete {
        references: vec!["debian".into()],
        all: false,
        force: false,
        in_use: vec!["forged".into()],
    };
    let removed: Removed =
        it.client().call(&Request::Images(delete), &[], Some(QUICK)).await.unwrap();
    assert_eq!(removed.kept_in_use, ["sha256:debian", "sha256:manifest-debian"]);
    let (mut reader, writer) = std::io::pipe().unwrap();
    let save = images::Request::Save { references: vec![], platform: None };
    it.client().call::<()>(&Request::Images(save), &[writer.as_fd()], Some(QUICK)).await.unwrap();
    drop(writer);
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert_eq!(text, "archive");
}

#[tokio::test]
async fn a_caller_that_leaves_cancels_a_create() {
    let it = Installation::started();
    let mut wanted = options("never", "sleep");
    wanted.image.reference = "slow".into();
    let request = Request::Create(Box::new(wanted));
    let mut client = it.client();
    let (told, mut first) = tokio::sync::mpsc::unbounded_channel();
    let create = client.call_with_progress::<serde_json::Value>(&request, &[], |p: Progress| {
        let _ = told.send(p);
    });
    tokio::select! {
        created = create => panic!("{created:?}"),
        _ = first.recv() => {}
    }
    drop(client);
    wait_until("the pull is cancelled", || it.path("root/images/cancelled").exists());
    assert!(it.directories().is_empty());
    it.create("never", "sleep").await.expect("the name is free again");
}

#[tokio::test]
async fn a_caller_that_leaves_gives_a_start_up() {
    let it = Installation::started();
    it.create("boots", "slow").await.unwrap();
    let request = Request::Start {
        id: "boots".into(),
        stdio: Stdio::default(),
        size: None,
        trace: false,
        ssh_agent: None,
    };
    let mut client = it.client();
    let start = client.call::<()>(&request, &[], None);
    let starting = async {
        while it.inspect("boots").await.unwrap().status != Status::Starting {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        it.inspect("boots").await.unwrap().runtime_pid.unwrap()
    };
    let pid = tokio::select! {
        started = start => panic!("{started:?}"),
        pid = starting => pid,
    };
    drop(client);
    wait_until("the helper is gone", || !alive(pid));
    let end = std::time::Instant::now() + std::time::Duration::from_secs(5);
    while it.inspect("boots").await.unwrap().status != Status::Created {
        assert!(std::time::Instant::now() < end);
    }
}

#[tokio::test]
async fn bad_requests_change_nothing() {
    let it = Installation::started();
    let mut missing = options("ab", "sleep");
    missing.image.reference = "missing".into();
    let mut tiny = options("ab", "sleep");
    tiny.memory_in_bytes = Some(1 << 20);
    let odd = options("a/b", "sleep");
    let mut kernel = options("ab", "sleep");
    kernel.kernel = Some("/nonexistent".into());
    for (wrong, code) in [
        (missing, ErrorCode::NotFound),
        (tiny, ErrorCode::InvalidArgument),
        (odd, ErrorCode::InvalidArgument),
        (kernel, ErrorCode::Unavailable),
    ] {
        let request = Request::Create(Box::new(wrong));
        let error = it
            .client()
            .call_with_progress::<serde_json::Value>(&request, &[], |_| {})
            .await
            .unwrap_err();
        assert_eq!(error.code, code, "{error}");
        assert!(!error.message.contains('\n'));
    }
    assert!(it.directories().is_empty() && it.status().await.is_empty());
    it.create("ab", "sleep").await.unwrap();
    std::fs::remove_file(it.path("share/container/kernel/vmlinux")).unwrap();
    let error = it.start("ab").await.unwrap_err();
    assert!(error.message.contains("kernel set --recommended"), "{error}");
    assert_eq!(it.inspect("ab").await.unwrap().status, Status::Created);
    let status: SystemStatus = it.client().status().await.unwrap();
    assert_eq!(status.problems.len(), 1, "{status:?}");
}

#[tokio::test]
async fn twenty_containers_cost_little_memory() {
    let it = Installation::started();
    for i in 0..20 {
        let id = format!("c{i:02}");
        it.create(&id, "sleep").await.unwrap();
        it.start(&id).await.unwrap();
    }
    assert_eq!(it.client().status().await.unwrap().running_containers, 20);
    let rollup = format!("/proc/{}/smaps_rollup", it.service_pid());
    let rollup = std::fs::read_to_string(rollup).unwrap();
    let kib: u64 = rollup
        .lines()
        .filter(|line| line.starts_with("Private_"))
        .map(|line| line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap())
        .sum();
    println!("private memory with 20 containers: {kib} KiB");
    assert!(kib < 25 << 10, "{rollup}");
}
