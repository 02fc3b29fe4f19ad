//! Networks: when they are asked for, taken back, and what a service that dies changes.

use container_api::apiserver::{Created, QUICK, Request};
use container_api::network::{self, DEFAULT_NETWORK, NO_NETWORK};
use container_api::network_options::{network as choice, publish};
use container_api::runtime::VmSpec;
use container_api::types::{ContainerStats, Status, VmOrigin};
use container_api::{ErrorCode, Result};
use rustix::process::Signal;

use crate::installation::{Installation, alive, kill, options, wait_until};

/// What the network service was asked, in order.
fn asked(it: &Installation) -> Vec<String> {
    let text = std::fs::read_to_string(it.path("network-log")).unwrap_or_default();
    text.lines().map(String::from).collect()
}

fn asked_last(it: &Installation, line: &str) -> bool {
    asked(it).last().is_some_and(|last| last == line)
}

/// The processes that are network services of this installation.
fn services(it: &Installation) -> Vec<i32> {
    let needle = it.path("bin/container-network").display().to_string();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if line.starts_with(needle.as_bytes()) && alive(pid) {
            found.push(pid);
        }
    }
    found
}

async fn create(it: &Installation, id: &str, networks: &[&str]) -> Result<Created> {
    create_with(it, id, networks, &[], "sleep").await
}

async fn create_with(
    it: &Installation,
    id: &str,
    networks: &[&str],
    ports: &[&str],
    behaviour: &str,
) -> Result<Created> {
    let mut options = options(id, behaviour);
    options.network.networks = networks.iter().map(|text| choice(text).unwrap()).collect();
    options.network.published_ports = ports.iter().map(|text| publish(text).unwrap()).collect();
    let request = Request::Create(Box::new(options));
    it.client().call_with_progress(&request, &[], |_| {}).await
}

fn spec(it: &Installation, id: &str) -> VmSpec {
    let text = std::fs::read(it.root.container(id).join("vm.json")).unwrap();
    serde_json::from_slice(&text).unwrap()
}

fn taps(it: &Installation, id: &str) -> String {
    std::fs::read_to_string(it.root.container(id).join("taps")).unwrap()
}

async fn networks(it: &Installation, request: network::Request) -> Result<serde_json::Value> {
    it.client().call(&Request::Networks(request), &[], Some(QUICK)).await
}

#[tokio::test]
async fn a_container_is_attached_before_its_vm_and_detached_after_it() {
    let it = Installation::started();
    create_with(&it, "web", &["a,alias=w", "b"], &["8080:80"], "sleep").await.unwrap();
    it.start("web").await.unwrap();
    assert_eq!(taps(&it, "web"), "tap-2 tap-3");
    let told = spec(&it, "web").network.unwrap();
    assert_eq!((told.interfaces.len(), told.interfaces[1].gateways.len()), (2, 0));
    assert!(told.hosts.contains("192.168.64.2\tweb.test web\n"), "{}", told.hosts);
    assert_eq!(told.resolv_conf.as_deref(), Some("nameserver 192.168.64.1\nsearch test\n"));
    let web = it.inspect("web").await.unwrap();
    assert_eq!(web.networks[0].ipv4_address.to_string(), "192.168.64.2/24");
    assert_eq!((web.networks.len(), web.ports[0].container_port), (2, 80));
    let stats = Request::Stats { ids: vec!["web".into()] };
    let rows: Vec<ContainerStats> = it.client().call(&stats, &[], Some(QUICK)).await.unwrap();
    assert_eq!((rows[0].network_rx_bytes, rows[0].network_tx_bytes), (Some(5), Some(7)));
    it.stop("web").await.unwrap();
    wait_until("it is detached", || asked_last(&it, "detach web"));
    assert!(it.inspect("web").await.unwrap().networks.is_empty());
    assert_eq!(asked(&it), ["serve", "attach web -", "detach web"]);
    it.start("web").await.expect("it can be started again");
}

#[tokio::test]
async fn without_a_network_the_service_is_not_even_started() {
    let it = Installation::started();
    create(&it, "c1", &[NO_NETWORK]).await.unwrap();
    it.start("c1").await.unwrap();
    assert_eq!((taps(&it, "c1"), spec(&it, "c1").network), (String::new(), None));
    let end = Request::Shutdown { stop_containers: true, timeout_ms: 1000 };
    it.client().call::<()>(&end, &[], Some(QUICK)).await.unwrap();
    assert!(asked(&it).is_empty());
}

#[tokio::test]
async fn what_is_wrong_is_found_before_anything_is_made() {
    let it = Installation::started();
    let error = create(&it, "web", &["no-such"]).await.unwrap_err();
    assert_eq!((error.code, &*error.message), (ErrorCode::NotFound, "no network 'no-such'"));
    let error = create_with(&it, "web", &[NO_NETWORK], &["80:80"], "sleep").await.unwrap_err();
    assert_eq!(error.code, ErrorCode::InvalidArgument);
    assert!(it.directories().is_empty());
    // A port that is in use: no VM, and the container is as it was.
    create_with(&it, "web", &["a"], &["80:80"], "sleep").await.unwrap();
    it.tell("network", "refuse");
    let error = it.start("web").await.unwrap_err();
    assert_eq!((error.code, &*error.message), (ErrorCode::InUse, "port 80 is in use"));
    assert_eq!(it.inspect("web").await.unwrap().status, Status::Created);
    assert!(!it.root.container("web").join("taps").exists());
    it.tell("network", "");
    it.start("web").await.unwrap();
}

#[tokio::test]
async fn a_spare_has_a_tap_that_is_put_on_the_network() {
    let it = Installation::started();
    let run = async |id: &str, networks: &[&str]| {
        create(&it, id, networks).await.unwrap();
        it.start(id).await.unwrap();
        it.inspect(id).await.unwrap().vm_origin
    };
    let ready = async |parks: usize| {
        it.until_status("a spare is ready", |s| {
            s.spares.len() == 1
                && s.spares[0].state == "ready"
                && asked(&it).iter().filter(|line| *line == "park").count() == parks
        })
        .await
    };
    run("c0", &["a"]).await;
    ready(1).await;
    assert_eq!(run("c1", &["a", "b"]).await, Some(VmOrigin::Spare));
    assert_eq!(taps(&it, "c1"), "parked-0");
    assert_eq!(spec(&it, "c1").network.unwrap().interfaces.len(), 2);
    // Refused: no other VM is tried, and the spare waits on.
    ready(2).await;
    it.tell("network", "refuse");
    create(&it, "c2", &["a"]).await.unwrap();
    assert_eq!(it.start("c2").await.unwrap_err().code, ErrorCode::InUse);
    // The service doesn't know its tap any more: another VM is used.
    it.tell("network", "forget");
    it.start("c2").await.unwrap();
    assert_eq!(it.inspect("c2").await.unwrap().vm_origin, Some(VmOrigin::Template));
    it.tell("network", "");
    // An adoption that fails takes the attachment back before the next one.
    ready(3).await;
    it.tell("spare", "refuse");
    assert_eq!(run("c3", &["a"]).await, Some(VmOrigin::Template));
    let all = asked(&it);
    let about = |line: &&String| line.ends_with("c3") || line.contains("attach c3 ");
    let about: Vec<&String> = all.iter().filter(about).collect();
    assert_eq!(about, ["attach c3 parked-0", "detach c3", "attach c3 -"]);
}

#[tokio::test]
async fn a_service_that_dies_is_followed_by_one_that_knows_who_lives() {
    let it = Installation::started();
    for id in ["c1", "c2"] {
        create(&it, id, &["a"]).await.unwrap();
        it.start(id).await.unwrap();
    }
    let before = services(&it);
    assert_eq!(before.len(), 1);
    kill(before[0], Signal::KILL);
    wait_until("another one is told", || asked_last(&it, "reconcile c1,c2"));
    assert_ne!(services(&it), before);
    // In the midst of an attachment: asked once more, of the next one.
    create(&it, "c3", &["a"]).await.unwrap();
    it.tell("network", "die");
    it.start("c3").await.unwrap_err();
    it.tell("network", "");
    assert_eq!(it.inspect("c3").await.unwrap().status, Status::Created);
    it.start("c3").await.unwrap();
    wait_until("another one is told", || {
        asked(&it).iter().any(|line| line == "reconcile c1,c2" || line == "reconcile c1,c2,c3")
    });
}

#[tokio::test]
async fn networks_outlive_the_service_and_go_with_the_last_container() {
    let it = Installation::started();
    create(&it, "c1", &["a"]).await.unwrap();
    create(&it, "c2", &["a"]).await.unwrap();
    it.start("c1").await.unwrap();
    it.start("c2").await.unwrap();
    it.kill_service();
    // Ends while nobody looks.
    let pid = it.root.container("c2").join("runtime.lock");
    let pid: i32 = std::fs::read_to_string(pid).unwrap().trim().parse().unwrap();
    kill(pid, Signal::KILL);
    wait_until("it has ended", || !alive(pid));
    it.start_service();
    wait_until("who lives is told", || asked_last(&it, "reconcile c1"));
    assert_eq!(it.inspect("c1").await.unwrap().networks.len(), 1, "it is known from before");
    // The service alone.
    let end = |stop_containers| Request::Shutdown { stop_containers, timeout_ms: 1000 };
    let pid = it.service_pid();
    it.client().call::<()>(&end(false), &[], Some(QUICK)).await.unwrap();
    assert!(asked_last(&it, "shutdown false"), "{:?}", asked(&it));
    wait_until("it has ended", || !alive(pid));
    it.start_service();
    wait_until("who lives is told", || asked_last(&it, "reconcile c1"));
    it.client().call::<()>(&end(true), &[], Some(QUICK)).await.unwrap();
    let all = asked(&it);
    assert!(all.ends_with(&["detach c1".into(), "shutdown true".into()]), "{all:?}");
    assert!(services(&it).is_empty());
}

#[tokio::test]
async fn a_network_in_use_stays() {
    let it = Installation::started();
    create(&it, "web", &["a"]).await.unwrap();
    let delete = |name: &str| network::Request::Delete { names: vec![name.into()], in_use: vec![] };
    let error = networks(&it, delete("a")).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::InUse);
    assert!(error.message.contains("'web'"), "{error}");
    networks(&it, delete("b")).await.unwrap();
    assert!(asked_last(&it, "delete b a"));
    let kept = networks(&it, network::Request::Prune { in_use: vec![] }).await.unwrap();
    assert_eq!(kept, serde_json::json!(["a"]));
    it.delete("web", false).await.unwrap();
    networks(&it, delete("a")).await.unwrap();
    // What belongs to this service is not for others to ask.
    let detach = network::Request::Detach { container: "web".into() };
    assert_eq!(networks(&it, detach).await.unwrap_err().code, ErrorCode::PermissionDenied);
    let shutdown = network::Request::Shutdown { remove: true };
    assert_eq!(networks(&it, shutdown).await.unwrap_err().code, ErrorCode::PermissionDenied);
}

#[tokio::test]
async fn one_that_removes_itself_makes_room_for_its_successor() {
    let it = Installation::started();
    for _ in 0..5 {
        let mut wanted = options("once", "exit=3");
        wanted.auto_remove = true;
        wanted.network.networks = vec![choice(DEFAULT_NETWORK).unwrap()];
        let request = Request::Create(Box::new(wanted));
        it.client().call_with_progress::<Created>(&request, &[], |_| {}).await.unwrap();
        it.start("once").await.unwrap();
        assert_eq!(it.wait("once").await.unwrap().exit_code, 3);
        wait_until("its name is free", || it.directories().is_empty());
    }
    wait_until("all are detached", || asked_last(&it, "detach once"));
    let all = asked(&it);
    let lines: Vec<&String> = all.iter().filter(|line| line.contains("once")).collect();
    for pair in lines.chunks(2) {
        assert!(pair[0].starts_with("attach") && pair[1].starts_with("detach"), "{lines:?}");
    }
}
