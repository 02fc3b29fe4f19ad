//! `stats`, `update`, `system df`, traces.

use std::io::{Read, Seek};
use std::os::fd::AsFd;

use container_api::ErrorCode;
use container_api::apiserver::{Created, QUICK, Request, SLOW};
use container_api::network::NO_NETWORK;
use container_api::network_options::network;
use container_api::trace::Span;
use container_api::types::{ContainerStats, DiskUsage, Resources, Stdio};

use crate::installation::{Installation, options};

fn update(id: &str, cpus: Option<u32>, mib: Option<u64>) -> Request {
    Request::Update { id: id.into(), cpus, memory_in_bytes: mib.map(|mib| mib << 20) }
}

#[tokio::test]
async fn stats_are_of_running_containers() {
    let it = Installation::started();
    for id in ["one", "two", "rests"] {
        let mut wanted = options(id, "sleep");
        wanted.network.networks = vec![network(NO_NETWORK).unwrap()];
        let request = Request::Create(Box::new(wanted));
        it.client().call_with_progress::<Created>(&request, &[], |_| {}).await.unwrap();
    }
    it.start("one").await.unwrap();
    it.start("two").await.unwrap();
    let stats = async |ids: &[&str]| {
        let ids = ids.iter().map(|id| (*id).to_owned()).collect();
        it.client().call::<Vec<ContainerStats>>(&Request::Stats { ids }, &[], Some(QUICK)).await
    };
    let all = stats(&[]).await.unwrap();
    let ids: Vec<_> = all.iter().map(|row| row.id.as_str()).collect();
    assert_eq!(ids, ["one", "two"]);
    assert_eq!((all[0].num_processes, all[0].memory_limit_bytes), (3, 1 << 30));
    assert!(all[0].sampled_at_ns > 0 && all[0].network_rx_bytes.is_none());
    assert_eq!(stats(&["tw"]).await.unwrap()[0].id, "two");
    assert_eq!(stats(&["rests"]).await.unwrap_err().code, ErrorCode::InvalidState);
    assert_eq!(stats(&["none"]).await.unwrap_err().code, ErrorCode::NotFound);
}

#[tokio::test]
async fn limits_are_changed_until_the_container_ends() {
    let it = Installation::started();
    it.create("app", "sleep").await.unwrap();
    let call = async |request: Request| it.client().call::<()>(&request, &[], Some(QUICK)).await;
    let error = call(update("app", None, Some(512))).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::InvalidState);
    it.start("app").await.unwrap();
    assert_eq!(it.inspect("app").await.unwrap().current_resources, None);
    call(update("app", None, Some(512))).await.unwrap();
    call(update("app", Some(1), None)).await.unwrap();
    for wrong in [
        update("app", None, None),
        update("app", Some(0), None),
        update("app", None, Some(1)),
        update("app", None, Some(2048)),
    ] {
        assert_eq!(call(wrong).await.unwrap_err().code, ErrorCode::InvalidArgument);
    }
    let changed = Some(Resources { cpus: 1, memory_in_bytes: 512 << 20 });
    it.kill_service();
    it.start_service();
    let app = it.inspect("app").await.unwrap();
    assert_eq!(app.current_resources, changed);
    assert_eq!(app.configuration.resources.memory_in_bytes, 1 << 30);
    it.stop("app").await.unwrap();
    it.start("app").await.unwrap();
    assert_eq!(it.inspect("app").await.unwrap().current_resources, None);
}

#[tokio::test]
async fn disk_usage_counts_blocks() {
    let it = Installation::configured("[runtime]\nspare = 0\n");
    for id in ["runs", "rests"] {
        it.create(id, "sleep").await.unwrap();
    }
    it.start("runs").await.unwrap();
    let usage: DiskUsage = it.client().call(&Request::DiskUsage, &[], Some(QUICK)).await.unwrap();
    let of = usage.containers;
    assert_eq!((of.total, of.active), (2, 1));
    assert!(of.size_in_bytes > 200_000 && of.size_in_bytes < 64 << 20, "{of:?}");
    assert!(of.reclaimable > 100_000 && of.reclaimable < of.size_in_bytes, "{of:?}");
    let of = usage.images;
    assert_eq!((of.total, of.active, of.size_in_bytes, of.reclaimable), (2, 1, 300, 40));
}

#[tokio::test]
async fn a_trace_is_told_by_all() {
    let it = Installation::started();
    it.create("app", "exit=0").await.unwrap();
    let mut file = tempfile::tempfile().unwrap();
    let stdio = Stdio { stdout: true, ..Stdio::default() };
    let (_reader, writer) = std::io::pipe().unwrap();
    let start =
        Request::Start { id: "app".into(), stdio, size: None, trace: true, ssh_agent: None };
    let fds = [writer.as_fd(), file.as_fd()];
    it.client().call::<()>(&start, &fds, Some(SLOW)).await.unwrap();
    let missing = it.client().call::<()>(&start, &fds[..1], Some(SLOW)).await.unwrap_err();
    assert_eq!(missing.code, ErrorCode::InvalidArgument);
    let mut text = String::new();
    file.rewind().unwrap();
    file.read_to_string(&mut text).unwrap();
    let spans: Vec<Span> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let names: Vec<_> = spans.iter().map(|span| span.name.as_str()).collect();
    for name in ["image", "container's directory", "plan", "helper launched", "start"] {
        assert!(names.contains(&name), "{names:?}");
    }
    assert!(spans.iter().any(|span| span.process == "fake"), "the helper has the descriptor");
    assert!(spans.iter().all(|span| span.begin_ns <= span.end_ns));
}
