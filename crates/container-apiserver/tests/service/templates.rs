//! Templates: when they are made, used, given up.

use std::os::unix::fs::FileExt;
use std::time::Duration;

use container_api::apiserver::{CreateOptions, PrunedSystem, QUICK, Request, SystemStatus};
use container_api::types::VmOrigin;
use rustix::process::Signal;

use crate::installation::{Installation, alive, kill, options, wait_until};

const NO_SPARES: &str = "[runtime]\nspare = 0\n";

fn sized(id: &str, mib: u64) -> CreateOptions {
    CreateOptions { memory_in_bytes: Some(mib << 20), ..options(id, "sleep") }
}

fn ready(count: usize) -> impl Fn(&SystemStatus) -> bool {
    move |status| {
        let ready = status.templates.iter().filter(|template| template.state == "ready");
        ready.count() == count && status.templates.len() == count
    }
}

#[tokio::test]
async fn one_is_made_once_however_many_start() {
    let it = Installation::configured(NO_SPARES);
    let starts = (0..8).map(|i| it.run(options(&format!("c{i}"), "sleep")));
    let mut tasks = Vec::new();
    for start in starts {
        tasks.push(Box::pin(start));
    }
    for task in tasks {
        assert_eq!(task.await, VmOrigin::Cold);
    }
    let status = it.until_status("the template is ready", ready(1)).await;
    assert_eq!(it.made(), [1024]);
    assert_eq!(it.run(options("again", "sleep")).await, VmOrigin::Template);
    let key = &status.templates[0].id;
    let mut files = it.list(&it.root.templates().join(key));
    files.sort();
    assert_eq!(files, ["ram", "shape.json", "state", "template.json"]);
    // Another service finds it.
    it.kill_service();
    it.start_service();
    assert_eq!(it.run(options("later", "sleep")).await, VmOrigin::Template);
    assert_eq!(it.made(), [1024]);
}

#[tokio::test]
async fn starts_at_once_share_the_making() {
    let it = Installation::configured(NO_SPARES);
    for i in 0..6 {
        it.create(&format!("c{i}"), "sleep").await.unwrap();
    }
    let ids = ["c0", "c1", "c2", "c3", "c4", "c5"];
    let (a, b, c, d, e, f) = tokio::join!(
        it.start(ids[0]),
        it.start(ids[1]),
        it.start(ids[2]),
        it.start(ids[3]),
        it.start(ids[4]),
        it.start(ids[5]),
    );
    for started in [a, b, c, d, e, f] {
        started.unwrap();
    }
    it.until_status("the template is ready", ready(1)).await;
    assert_eq!(it.made(), [1024]);
}

#[tokio::test]
async fn a_damaged_one_is_not_used_and_made_again() {
    let it = Installation::configured(NO_SPARES);
    it.run(options("first", "sleep")).await;
    let status = it.until_status("the template is ready", ready(1)).await;
    let directory = it.root.templates().join(&status.templates[0].id);
    for (n, part) in ["ram", "state", "template.json"].into_iter().enumerate() {
        // The first time while the service runs, which sees that the file has changed.
        if n > 0 {
            it.kill_service();
        }
        let file = std::fs::File::options().write(true).open(directory.join(part)).unwrap();
        file.write_all_at(b"?", 0).unwrap();
        drop(file);
        if n > 0 {
            it.start_service();
        }
        assert_eq!(it.run(options(&format!("c{n}"), "sleep")).await, VmOrigin::Cold, "{part}");
        it.until_status("it is made again", ready(1)).await;
        assert_eq!(it.made().len(), n + 2, "{part}");
        assert_eq!(it.run(options(&format!("d{n}"), "sleep")).await, VmOrigin::Template);
    }
    std::fs::write(directory.join("state"), "other").unwrap();
    assert_eq!(it.run(options("last", "sleep")).await, VmOrigin::Cold);
    it.until_status("it is made again", ready(1)).await;
    // One that nobody uses is found by the check at the service's start.
    it.kill_service();
    let file = std::fs::File::options().write(true).open(directory.join("ram")).unwrap();
    file.write_all_at(b"?", 1 << 20).unwrap();
    it.start_service();
    it.until_status("it is removed", ready(0)).await;
    assert!(!directory.exists());
}

#[tokio::test]
async fn other_kernels_and_hypervisors_need_other_ones() {
    let it = Installation::configured(NO_SPARES);
    it.run(options("first", "sleep")).await;
    let first = it.until_status("the template is ready", ready(1)).await.templates[0].id.clone();
    std::fs::write(it.path("share/container/kernel/vmlinux"), "another").unwrap();
    assert_eq!(it.run(options("second", "sleep")).await, VmOrigin::Cold);
    let second = it
        .until_status("the old one goes, the new one comes", |status| {
            ready(1)(status) && status.templates[0].id != first
        })
        .await;
    assert_eq!(it.run(options("third", "sleep")).await, VmOrigin::Template);
    it.kill_service();
    it.tell("identity", "another");
    it.start_service();
    it.until_status("that of another QEMU goes", ready(0)).await;
    assert!(!it.root.templates().join(&second.templates[0].id).exists());
    assert_eq!(it.run(options("fourth", "sleep")).await, VmOrigin::Cold);
}

#[tokio::test]
async fn the_one_unused_for_longest_goes() {
    let it = Installation::configured("[runtime]\nspare = 0\ntemplates_max = 2\n");
    for (n, mib) in [128, 512].into_iter().enumerate() {
        it.run(sized(&format!("c{mib}"), mib)).await;
        it.until_status("it is ready", ready(n + 1)).await;
        tokio::time::sleep(Duration::from_millis(1100)).await;
    }
    assert_eq!(it.run(sized("again", 128)).await, VmOrigin::Template);
    it.create("keeps", "sleep").await.unwrap();
    it.run(sized("c2048", 2048)).await;
    let sizes = |status: &SystemStatus| {
        let sizes = status.templates.iter().map(|t| t.resources.memory_in_bytes >> 20);
        let mut sizes: Vec<u64> = sizes.collect();
        sizes.sort();
        sizes
    };
    it.until_status("the oldest is gone", |status| {
        ready(2)(status) && sizes(status) == [128, 2048]
    })
    .await;
    it.kill_service();
    it.configure("[runtime]\nspare = 0\ntemplates_size = \"1k\"\n");
    it.start_service();
    it.run(sized("c300", 300)).await;
    let status = it
        .until_status("none fits", |status| {
            status.templates.iter().any(|t| t.state.contains("templates_size"))
        })
        .await;
    assert_eq!(status.templates.len(), 1, "{status:?}");
    assert!(it.list(&it.root.templates()).is_empty());
}

#[tokio::test]
async fn a_larger_one_serves_until_the_exact_one_is_made() {
    let it = Installation::configured(NO_SPARES);
    it.run(sized("c512", 512)).await;
    it.until_status("it is ready", ready(1)).await;
    assert_eq!(it.run(sized("c300", 300)).await, VmOrigin::Template);
    it.until_status("the exact one is made", ready(2)).await;
    assert_eq!(it.run(sized("c200", 128)).await, VmOrigin::Cold, "more than twice is too much");
    it.until_status("it is made", ready(3)).await;
    assert_eq!(it.made(), [512, 300, 128]);
}

#[tokio::test]
async fn a_maker_that_fails_is_not_started_again_at_once() {
    let it = Installation::configured(NO_SPARES);
    it.tell("template", "fail");
    it.run(options("first", "sleep")).await;
    let failed = |status: &SystemStatus| {
        status.templates.len() == 1 && status.templates[0].state.contains("no luck\\u{1b}")
    };
    it.until_status("the reason is told", failed).await;
    for i in 0..3 {
        assert_eq!(it.run(options(&format!("c{i}"), "sleep")).await, VmOrigin::Cold);
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(it.made().len(), 1);
    assert!(it.list(&it.root.templates()).is_empty(), "nothing is left of it");
}

#[tokio::test]
async fn a_template_that_can_not_be_restored_goes() {
    let it = Installation::configured(NO_SPARES);
    it.run(options("first", "sleep")).await;
    it.until_status("it is ready", ready(1)).await;
    let mut wanted = options("second", "sleep");
    wanted.labels.insert("fake".into(), "no-restore".into());
    assert_eq!(it.run(wanted).await, VmOrigin::Cold);
    it.until_status("it is gone", |status| {
        status.templates.iter().all(|template| template.state.contains("restored"))
    })
    .await;
    assert!(it.list(&it.root.templates()).is_empty());
}

#[tokio::test]
async fn deaths_of_makers_and_services_leave_nothing() {
    let it = Installation::configured(NO_SPARES);
    it.tell("template", "hang");
    it.run(options("first", "sleep")).await;
    wait_until("a maker works", || !it.makers().is_empty());
    let maker = it.makers()[0];
    kill(maker, Signal::KILL);
    it.until_status("its end is told", |status| {
        status.templates.iter().any(|t| t.state.contains("ended early"))
    })
    .await;
    assert!(it.list(&it.root.templates()).is_empty());
    // The service dies while one is made.
    it.kill_service();
    it.start_service();
    it.run(options("second", "sleep")).await;
    wait_until("a maker works", || it.makers().len() == 2);
    let unfinished = it.list(&it.root.templates());
    assert!(unfinished[0].starts_with(".new-"), "{unfinished:?}");
    it.kill_service();
    wait_until("the maker ends with its service", || !alive(it.makers()[1]));
    it.tell("template", "");
    it.start_service();
    wait_until("the unfinished one is removed", || it.list(&it.root.templates()).is_empty());
    it.run(options("third", "sleep")).await;
    it.until_status("it is made", ready(1)).await;
    // The service ends in order while one is made.
    it.tell("template", "hang");
    it.run(sized("fourth", 300)).await;
    wait_until("a maker works", || it.makers().len() == 4);
    let service = it.service_pid();
    kill(service, Signal::TERM);
    wait_until("both end", || !alive(service) && !alive(it.makers()[3]));
    assert_eq!(it.list(&it.root.templates()).len(), 1);
}

#[tokio::test]
async fn prune_removes_what_no_vm_uses() {
    let it = Installation::configured(NO_SPARES);
    for (n, mib) in [300, 128].into_iter().enumerate() {
        it.run(sized(&format!("c{mib}"), mib)).await;
        it.until_status("it is ready", ready(n + 1)).await;
    }
    let create = Request::Create(Box::new(sized("user", 128)));
    it.client().call_with_progress::<serde_json::Value>(&create, &[], |_| {}).await.unwrap();
    it.start("user").await.unwrap();
    let prune = async || -> PrunedSystem {
        it.client().call(&Request::PruneSystem, &[], Some(QUICK)).await.unwrap()
    };
    let pruned = prune().await;
    assert_eq!((pruned.templates, pruned.spares), (1, 0));
    assert!(pruned.reclaimed > 0);
    // Also a new service knows what the VM comes from.
    it.kill_service();
    it.start_service();
    assert_eq!(prune().await.templates, 0);
    assert_eq!(it.inspect("user").await.unwrap().vm_origin, Some(VmOrigin::Template));
    it.delete("user", true).await.unwrap();
    assert_eq!(prune().await.templates, 1);
}

#[tokio::test]
async fn templates_can_be_switched_off() {
    let it = Installation::configured("[runtime]\ntemplate = false\n");
    for id in ["a0", "b0"] {
        assert_eq!(it.run(options(id, "sleep")).await, VmOrigin::Cold);
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    let status = it.client().status().await.unwrap();
    assert!(status.templates.is_empty() && status.spares.is_empty() && it.made().is_empty());
}
