//! Spare VMs: when they are made, taken, given up.

use container_api::apiserver::{PrunedSystem, QUICK, Request, SystemStatus};
use container_api::types::{DiskUsage, Status, VmOrigin};
use rustix::process::Signal;

use crate::installation::{Installation, alive, kill, options, wait_until};

fn ready(count: usize) -> impl Fn(&SystemStatus) -> bool {
    move |status| {
        status.spares.len() == count && status.spares.iter().all(|spare| spare.state == "ready")
    }
}

/// Process ids of helpers that are spares.
fn spares(it: &Installation) -> Vec<i32> {
    let needle = format!("spare\0{}", it.root.spares().display());
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if String::from_utf8_lossy(&line).contains(&needle) && alive(pid) {
            found.push(pid);
        }
    }
    found
}

fn being_made(it: &Installation, status: &SystemStatus) -> bool {
    status.spares.iter().any(|spare| spare.state == "being made") && !spares(it).is_empty()
}

async fn with_spare(it: &Installation) {
    it.run(options("warm", "sleep")).await;
    it.until_status("a spare is ready", ready(1)).await;
}

#[tokio::test]
async fn one_is_kept_of_a_shape_in_use_and_used_once() {
    let it = Installation::started();
    with_spare(&it).await;
    let spare = spares(&it)[0];
    it.create("web", "sleep").await.unwrap();
    it.start("web").await.unwrap();
    let web = it.inspect("web").await.unwrap();
    assert_eq!((web.vm_origin, web.runtime_pid), (Some(VmOrigin::Spare), Some(spare)));
    assert!(web.hypervisor_pid.is_some());
    it.until_status("the next one is ready", ready(1)).await;
    assert_ne!(spares(&it), [spare]);
    assert_eq!(it.list(&it.root.spares()).len(), 1, "the taken one's directory is gone");
    // It is a container's like any other, also for the next service.
    it.kill_service();
    let left = spares(&it);
    it.start_service();
    let web = it.inspect("web").await.unwrap();
    assert_eq!((web.status, web.runtime_pid), (Status::Running, Some(spare)));
    assert_eq!(web.vm_origin, Some(VmOrigin::Spare));
    wait_until("spares survive nothing", || left.iter().all(|pid| *pid == spare || !alive(*pid)));
    assert!(it.list(&it.root.spares()).is_empty());
    it.stop("web").await.unwrap();
    wait_until("its process ends", || !alive(spare));
    assert_eq!(it.inspect("web").await.unwrap().exit.unwrap().signal, Some(15));
    it.start("web").await.expect("it can be started again");
}

#[tokio::test]
async fn one_that_fails_is_no_failure_of_the_start() {
    let it = Installation::started();
    for (n, behaviour) in ["refuse", "die"].into_iter().enumerate() {
        with_spare(&it).await;
        let spare = spares(&it)[0];
        it.tell("spare", behaviour);
        let origin = it.run(options(&format!("c{n}"), "sleep")).await;
        assert_eq!(origin, VmOrigin::Template, "{behaviour}");
        assert!(!alive(spare));
        it.tell("spare", "");
        it.until_status("the next one is ready", ready(1)).await;
    }
    // It is adopted, but nothing comes of it.
    let origin = it.run(options("c2", "no-restore")).await;
    assert_ne!(origin, VmOrigin::Spare);
    // Killed while it waits.
    it.create("c3", "sleep").await.unwrap();
    it.run(options("warm", "sleep")).await;
    it.until_status("a spare is ready", |status| {
        status.spares.len() == 1 || {
            status.templates.iter().any(|template| template.state != "ready")
        }
    })
    .await;
    for pid in spares(&it) {
        kill(pid, Signal::KILL);
    }
    it.start("c3").await.unwrap();
    assert_ne!(it.inspect("c3").await.unwrap().vm_origin, Some(VmOrigin::Spare));
}

#[tokio::test]
async fn they_are_given_up_when_nobody_uses_their_shape() {
    let it = Installation::configured("[runtime]\nspare_idle_seconds = 1\n");
    with_spare(&it).await;
    let spare = spares(&it)[0];
    it.until_status("it is given up", ready(0)).await;
    wait_until("it has ended", || !alive(spare));
    assert!(it.list(&it.root.spares()).is_empty());
    with_spare(&it).await;
}

#[tokio::test]
async fn so_many_as_wanted_are_kept_from_the_start_on() {
    let config = "[container]\nmemory = '128m'\n[runtime]\nspare = 2\nspare_idle_seconds = 1\n";
    let it = Installation::configured(config);
    it.until_status("two are ready", ready(2)).await;
    tokio::time::sleep(std::time::Duration::from_millis(1500)).await;
    it.until_status("they stay", ready(2)).await;
    assert_eq!(it.run(options("c0", "sleep")).await, VmOrigin::Spare);
    it.until_status("there are two again", ready(2)).await;
    let all = spares(&it);
    let end = Request::Shutdown { stop_containers: true, timeout_ms: 1000 };
    let asked = std::time::Instant::now();
    it.client().call::<()>(&end, &[], Some(QUICK)).await.unwrap();
    assert!(all.iter().all(|pid| !alive(*pid)), "they end before the answer");
    assert!(asked.elapsed().as_millis() < 1000, "{:?}", asked.elapsed());
    assert!(it.list(&it.root.spares()).is_empty());
}

#[tokio::test]
async fn a_start_waits_for_the_one_that_is_being_made() {
    let it = Installation::started();
    it.tell("spare", "slow");
    it.run(options("warm", "sleep")).await;
    it.until_status("one is being made", |status| being_made(&it, status)).await;
    let mended = async {
        while it.inspect("c0").await.is_ok_and(|c0| c0.status != Status::Starting) {
            tokio::task::yield_now().await;
        }
        it.tell("spare", "");
    };
    let (origin, ()) = tokio::join!(it.run(options("c0", "sleep")), mended);
    assert_eq!(origin, VmOrigin::Spare);
    // The next one is restored at once, and starts follow each other without a pause.
    for name in ["c1", "c2", "c3"] {
        assert_eq!(it.run(options(name, "sleep")).await, VmOrigin::Spare);
    }
    it.until_status("the last one is warm", ready(1)).await;
}

#[tokio::test]
async fn one_that_does_not_get_warm_is_ended() {
    let it = Installation::started();
    it.tell("spare", "cold");
    it.run(options("warm", "sleep")).await;
    it.until_status("one is there", |status| status.spares.len() == 1).await;
    it.until_status("it is ended", |status| status.spares.is_empty()).await;
    wait_until("its process ends", || spares(&it).is_empty());
    assert!(it.list(&it.root.spares()).is_empty());
    it.tell("spare", "");
    it.until_status("another one gets warm", ready(1)).await;
}

#[tokio::test]
async fn a_slow_one_is_ended_with_the_service() {
    let it = Installation::started();
    it.tell("spare", "slow");
    it.run(options("warm", "sleep")).await;
    let being_made = |status: &SystemStatus| being_made(&it, status);
    it.until_status("one is being made", being_made).await;
    it.kill_service();
    let left = spares(&it);
    it.start_service();
    wait_until("it is ended", || left.iter().all(|pid| !alive(*pid)));
    it.run(options("c1", "sleep")).await;
    it.until_status("one is being made", being_made).await;
    let service = it.service_pid();
    kill(service, Signal::TERM);
    wait_until("all end", || !alive(service) && spares(&it).is_empty());
}

#[tokio::test]
async fn a_changed_kernel_gives_them_up() {
    let it = Installation::configured("[runtime]\nspare_idle_seconds = 20\n");
    with_spare(&it).await;
    let spare = spares(&it)[0];
    std::fs::write(it.path("share/container/kernel/initramfs.cpio"), "another").unwrap();
    assert_eq!(it.run(options("c0", "sleep")).await, VmOrigin::Cold);
    wait_until("it is given up", || !alive(spare));
    it.until_status("one of the new kernel is ready", ready(1)).await;
    assert_eq!(it.run(options("c1", "sleep")).await, VmOrigin::Spare);
}

#[tokio::test]
async fn they_are_shown_and_pruned() {
    let it = Installation::started();
    with_spare(&it).await;
    let usage: DiskUsage = it.client().call(&Request::DiskUsage, &[], Some(QUICK)).await.unwrap();
    assert_eq!((usage.spares.total, usage.templates.total, usage.templates.active), (1, 1, 1));
    assert!(usage.spares.memory_in_bytes > 0 && usage.spares.size_in_bytes > 0);
    assert_eq!((usage.templates.memory_in_bytes, usage.templates.size_in_bytes > 0), (0, true));
    let spare = spares(&it)[0];
    let pruned: PrunedSystem =
        it.client().call(&Request::PruneSystem, &[], Some(QUICK)).await.unwrap();
    assert_eq!((pruned.spares, pruned.templates), (1, 1));
    assert!(!alive(spare) && it.list(&it.root.spares()).is_empty());
    assert!(it.list(&it.root.templates()).is_empty());
}

#[tokio::test]
async fn two_starts_take_one_spare() {
    let it = Installation::started();
    with_spare(&it).await;
    for id in ["a0", "b0"] {
        it.create(id, "sleep").await.unwrap();
    }
    let (a, b) = tokio::join!(it.start("a0"), it.start("b0"));
    a.unwrap();
    b.unwrap();
    let a = it.inspect("a0").await.unwrap();
    let b = it.inspect("b0").await.unwrap();
    assert_ne!(a.runtime_pid, b.runtime_pid);
    let mut origins = [a.vm_origin.unwrap(), b.vm_origin.unwrap()];
    origins.sort_by_key(|origin| *origin == VmOrigin::Spare);
    assert_eq!(origins, [VmOrigin::Template, VmOrigin::Spare]);
}
