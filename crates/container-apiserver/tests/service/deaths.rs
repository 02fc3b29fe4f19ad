//! Deaths of every process, at every moment.

use std::time::{Duration, Instant};

use container_api::apiserver::{QUICK, Request, SLOW};
use container_api::paths::container_files as names;
use container_api::types::Status;
use container_api::{ApiError, ErrorCode};
use rustix::process::Signal;

use crate::installation::{Installation, alive, kill, options, wait_until};

#[tokio::test]
async fn containers_outlive_the_service() {
    let it = Installation::started();
    for (id, behaviour) in [("runs", "sleep"), ("ends", "sleep"), ("rests", "sleep")] {
        it.create(id, behaviour).await.unwrap();
    }
    it.start("runs").await.unwrap();
    it.start("ends").await.unwrap();
    let before = it.inspect("runs").await.unwrap();
    let ends = it.inspect("ends").await.unwrap().runtime_pid.unwrap();
    it.kill_service();
    assert!(alive(before.runtime_pid.unwrap()));
    kill(ends, Signal::KILL);
    wait_until("the helper is gone", || !alive(ends));
    it.start_service();
    let after = it.inspect("runs").await.unwrap();
    assert_eq!((after.status, after.runtime_pid), (Status::Running, before.runtime_pid));
    assert_eq!(it.inspect("rests").await.unwrap().status, Status::Created);
    let ended = it.inspect("ends").await.unwrap();
    assert_eq!(ended.status, Status::Stopped);
    assert!(ended.exit.unwrap().reason.contains("while no service ran"));
    let (exit, stopped) = tokio::join!(it.wait("runs"), it.stop("runs"));
    stopped.unwrap();
    assert_eq!(exit.unwrap().exit_code, 143);
}

#[tokio::test]
async fn a_helper_that_is_stopped_loses_nothing() {
    let it = Installation::started();
    it.create("ab", "sleep").await.unwrap();
    it.start("ab").await.unwrap();
    let pid = it.inspect("ab").await.unwrap().runtime_pid.unwrap();
    kill(pid, Signal::STOP);
    it.kill_service();
    it.start_service();
    let now = it.inspect("ab").await.unwrap();
    assert_eq!((now.status, now.runtime_pid), (Status::Running, Some(pid)));
    kill(pid, Signal::CONT);
    it.stop("ab").await.unwrap();
}

#[tokio::test]
async fn a_dead_helper_becomes_an_exit_record() {
    let it = Installation::started();
    it.create("ab", "sleep").await.unwrap();
    it.start("ab").await.unwrap();
    let end = Instant::now() + Duration::from_secs(5);
    let (helper, hypervisor) = loop {
        let now = it.inspect("ab").await.unwrap();
        if let Some(hypervisor) = now.hypervisor_pid {
            break (now.runtime_pid.unwrap(), hypervisor);
        }
        assert!(Instant::now() < end, "the hypervisor's id is never told");
    };
    kill(helper, Signal::KILL);
    let exit = it.wait("ab").await.unwrap();
    assert_eq!(exit.exit_code, 125);
    assert!(exit.reason.contains("killed by SIGKILL"), "{}", exit.reason);
    wait_until("the hypervisor is gone", || !alive(hypervisor));
    it.start("ab").await.expect("it can be started again");
}

#[tokio::test]
async fn a_start_that_the_service_did_not_survive_never_happened() {
    let it = Installation::started();
    it.create("ab", "slow").await.unwrap();
    let request = Request::Start {
        id: "ab".into(),
        stdio: Default::default(),
        size: None,
        trace: false,
        ssh_agent: None,
    };
    let mut client = it.client();
    let start = client.call::<()>(&request, &[], Some(SLOW));
    let die = async {
        while it.inspect("ab").await.unwrap().status != Status::Starting {}
        let helper = it.inspect("ab").await.unwrap().runtime_pid.unwrap();
        it.kill_service();
        helper
    };
    let (started, helper) = tokio::join!(start, die);
    assert_eq!(started.unwrap_err().code, ErrorCode::Disconnected);
    it.start_service();
    wait_until("the helper is gone", || !alive(helper));
    let end = Instant::now() + Duration::from_secs(5);
    while it.inspect("ab").await.unwrap().status != Status::Created {
        assert!(Instant::now() < end);
    }
}

#[tokio::test]
async fn what_a_crash_leaves_is_put_right() {
    let it = Installation::started();
    for id in ["kept", "rowless", "dirless", "broken"] {
        it.create(id, "sleep").await.unwrap();
    }
    it.kill_service();
    let containers = it.root.containers();
    std::fs::create_dir(containers.join(".new-half")).unwrap();
    std::fs::create_dir(containers.join(".gone-0-1")).unwrap();
    std::fs::remove_dir_all(containers.join("dirless")).unwrap();
    // A power cut took the last moments of the database, and a file.
    std::fs::remove_file(it.root.database()).unwrap();
    for suffix in ["db-wal", "db-shm"] {
        let _ = std::fs::remove_file(it.root.database().with_extension(suffix));
    }
    std::fs::write(containers.join("broken").join(names::CONFIG), "{").unwrap();
    it.start_service();
    let expected = ["kept", "rowless"].map(|id| (id.to_owned(), Status::Created));
    assert_eq!(it.status().await, expected.clone().into());
    it.start("rowless").await.unwrap();
    it.stop("rowless").await.unwrap();
    wait_until("leftovers are gone", || {
        it.directories().iter().all(|name| !name.starts_with(".new") && !name.starts_with(".gone"))
    });
    // A database that is no database.
    it.kill_service();
    std::fs::write(it.root.database(), "x".repeat(10_000)).unwrap();
    it.start_service();
    let mut expected: std::collections::BTreeMap<_, _> = expected.into();
    expected.insert("rowless".into(), Status::Stopped);
    // Its helper may have been on its way out when the service was killed.
    let end = Instant::now() + Duration::from_secs(5);
    while it.status().await != expected {
        assert!(Instant::now() < end, "{:?}", it.status().await);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn another_boot_means_that_nothing_runs() {
    let it = Installation::started();
    it.create("ab", "sleep").await.unwrap();
    let mut once = options("once", "sleep");
    once.auto_remove = true;
    let create = Request::Create(Box::new(once));
    it.client().call_with_progress::<serde_json::Value>(&create, &[], |_| {}).await.unwrap();
    let mut helpers = Vec::new();
    for id in ["ab", "once"] {
        it.start(id).await.unwrap();
        helpers.push(it.inspect(id).await.unwrap().runtime_pid.unwrap());
    }
    it.kill_service();
    for helper in helpers {
        kill(helper, Signal::KILL);
        wait_until("the helper is gone", || !alive(helper));
    }
    let database = rusqlite::Connection::open(it.root.database()).unwrap();
    // Our own process has the id that the helper had before the power cut.
    database
        .execute(
            "UPDATE container SET runtime = json_set(runtime, '$.bootId', 'other',
             '$.process.pid', ?1)",
            [std::process::id()],
        )
        .unwrap();
    drop(database);
    it.start_service();
    let ab = it.inspect("ab").await.unwrap();
    assert_eq!(ab.status, Status::Stopped);
    assert_eq!(ab.exit.unwrap().reason, "the host went down while it ran");
    assert_eq!(it.inspect("once").await.unwrap_err().code, ErrorCode::NotFound);
}

#[tokio::test]
async fn one_service_per_app_root_and_an_orderly_end() {
    let it = Installation::started();
    let (code, error) = it.try_start_service();
    assert_eq!(code, 125);
    assert!(error.contains(&format!("already runs (pid {})", it.service_pid())), "{error}");
    for id in ["one", "two"] {
        it.create(id, "sleep").await.unwrap();
        it.start(id).await.unwrap();
    }
    let helper = it.inspect("one").await.unwrap().runtime_pid.unwrap();
    let service = it.service_pid();
    kill(service, Signal::TERM);
    wait_until("the service ends", || !alive(service));
    assert!(alive(helper), "containers outlive an orderly end");
    it.start_service();
    let service = it.service_pid();
    let end = Request::Shutdown { stop_containers: true, timeout_ms: 1000 };
    it.client().call::<()>(&end, &[], Some(QUICK)).await.unwrap();
    wait_until("everything ends", || !alive(service) && !alive(helper));
    it.start_service();
    assert_eq!(it.inspect("two").await.unwrap().status, Status::Stopped);
}

#[tokio::test]
async fn the_image_service_is_started_again() {
    let it = Installation::started();
    // One that is known is not asked for again.
    let create = async |id: &str, image: &str| {
        let mut wanted = options(id, "sleep");
        wanted.image.reference = image.into();
        let create = Request::Create(Box::new(wanted));
        it.client().call_with_progress::<serde_json::Value>(&create, &[], |_| {}).await.unwrap();
    };
    create("ab", "one").await;
    let find = || {
        let needle = format!("serve\0--app-root\0{}", it.root.path().display());
        let pids = std::fs::read_dir("/proc").unwrap().flatten();
        pids.filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok()).find(|pid| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).contains(&needle)
        })
    };
    let pid = find().unwrap();
    kill(pid, Signal::KILL);
    wait_until("it is gone", || !alive(pid));
    create("cd", "two").await;
    // One that a former service has left is used again.
    let pid = find().unwrap();
    it.kill_service();
    it.start_service();
    create("ef", "three").await;
    assert_eq!(find(), Some(pid));
}

#[tokio::test]
async fn a_start_that_hangs_is_ended_by_force() {
    let it = Installation::started();
    it.create("ab", "slow").await.unwrap();
    let delete = async {
        while it.inspect("ab").await.unwrap().status != Status::Starting {}
        it.delete("ab", true).await
    };
    let (started, deleted) = tokio::join!(it.start("ab"), delete);
    let error: ApiError = started.unwrap_err();
    assert_ne!(error.code, ErrorCode::Timeout, "{error}");
    deleted.unwrap();
    assert!(it.directories().iter().all(|name| name != "ab"));
}
