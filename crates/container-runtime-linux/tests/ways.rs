//! The ways in which a VM comes to be a container's, with a guest and a hypervisor of the test's
//! own: restored, booted, booted again, taken from a spare, and what a template is made with.

#[expect(dead_code, reason = "other tests use the rest")]
mod fake;

use std::cell::RefCell;
use std::fs;
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use container_api::paths::template_files;
use container_api::runtime::{INIT_PROCESS, Phase, Request, State, TemplateManifest, Usage};
use container_api::types::{ExitRecord, Resources, Stdio, VmOrigin};
use container_api::varlink::Client;
use container_api::{ApiError, ErrorCode, ram, socket};
use container_runtime_linux::helper::{self, serve_container};
use container_runtime_linux::hypervisor::Disk;
use container_runtime_linux::process::Rest;
use container_runtime_linux::timeline::Timeline;
use container_runtime_linux::{spare, template};
use fake::world::{self, LIMIT, PATIENCE};
use fake::{Birth, Deeds, Fake, Mishap, Vices};
use tempfile::TempDir;
use tokio::sync::mpsc::UnboundedSender;
use tokio::task::JoinHandle;

const NONE: Stdio = Stdio { stdin: false, stdout: false, stderr: false };
const START: Request = Request::Start { stdio: NONE, size: None, trace: false };
const WELL: Vices = Vices { swap: None, mount: false, warm_up: false };

fn on_local<F: Future>(test: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, test)
}

/// A helper under test.
struct Helper {
    directory: TempDir,
    task: JoinHandle<anyhow::Result<Vec<Rest>>>,
    mishaps: UnboundedSender<Mishap>,
    deeds: Rc<RefCell<Deeds>>,
}

impl Helper {
    async fn container(template: bool, births: &[Birth], vices: Vices) -> Helper {
        let directory = tempfile::tempdir().unwrap();
        let spec = world::spec(directory.path(), template);
        world::write_container(directory.path(), &world::config(), &spec);
        let container = helper::container(directory.path(), spec.clone(), Timeline::new(0));
        let (container, blueprint) = (container.unwrap(), world::blueprint(spec));
        let (hypervisor, mishaps) = Fake::new(births, vices);
        let deeds = hypervisor.deeds.clone();
        let task = tokio::task::spawn_local(async move {
            serve_container(&container, &hypervisor, blueprint, PATIENCE).await
        });
        world::socket_there(directory.path(), &task).await;
        Helper { directory, task, mishaps, deeds }
    }

    async fn spare(vices: Vices) -> Helper {
        let directory = tempfile::tempdir().unwrap();
        let blueprint = world::blueprint(world::spec(directory.path(), true));
        let (hypervisor, mishaps) = Fake::new(&[], vices);
        let deeds = hypervisor.deeds.clone();
        let home = spare::Home {
            directory: directory.path().to_owned(),
            lock: Some(container_runtime_linux::directory::lock(directory.path()).unwrap()),
            log: None,
            images: Some(world::images(directory.path())),
        };
        let task = tokio::task::spawn_local(async move {
            spare::serve(home, &hypervisor, blueprint, PATIENCE).await
        });
        world::socket_there(directory.path(), &task).await;
        Helper { directory, task, mishaps, deeds }
    }

    /// A directory of a container that this spare fits.
    fn heir(&self) -> TempDir {
        let directory = tempfile::tempdir().unwrap();
        let mut spec = world::spec(directory.path(), true);
        let own = self.directory.path();
        let files = spec.template.as_mut().unwrap();
        (files.ram, files.state) = (own.join("ram"), own.join("state"));
        spec.image_disk = self.directory.path().join("image");
        fs::write(&spec.image_disk, "image").unwrap();
        let mut config = world::config();
        config.resources.memory_in_bytes = 128 << 20;
        world::write_container(directory.path(), &config, &spec);
        directory
    }

    async fn waits(&self) {
        while self.state().await.phase != Phase::Ready {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    async fn warms_up(&self) {
        self.waits().await;
        self.call::<()>(Request::WarmUp).await.unwrap();
    }

    /// The spare becomes the container in a directory of its own.
    async fn adopt(mut self) -> Helper {
        self.waits().await;
        let heir = self.heir();
        let directory = heir.path().to_owned();
        self.call::<()>(Request::Adopt { directory, taps: 0 }).await.unwrap();
        self.directory = heir;
        self
    }

    async fn call<R: serde::de::DeserializeOwned>(&self, request: Request) -> Result<R, ApiError> {
        let stream = socket::connect(self.directory.path(), "runtime.sock").unwrap();
        Client::new(stream).unwrap().call(&request, &[], Some(LIMIT)).await
    }

    async fn state(&self) -> State {
        self.call(Request::State).await.unwrap()
    }

    /// Starts and ends the program; the record and how the VM came to be.
    async fn run(self) -> (ExitRecord, VmOrigin) {
        self.call::<()>(START).await.unwrap();
        let origin = self.state().await.vm_origin.unwrap();
        self.mishaps.send(Mishap::Exits).unwrap();
        (self.end().await, origin)
    }

    async fn end(self) -> ExitRecord {
        let ended = tokio::time::timeout(LIMIT, self.task).await.expect("the helper goes");
        assert!(ended.unwrap().unwrap().is_empty());
        assert!(!self.directory.path().join("runtime.sock").exists());
        world::left(self.directory.path())
    }
}

#[test]
fn a_template_is_restored_and_a_bad_one_costs_a_boot() {
    on_local(async {
        for (births, restored, origin) in [
            (&[][..], &[true][..], VmOrigin::Template),
            (&[Birth::Fails], &[true, false], VmOrigin::Cold),
            (&[Birth::Hangs], &[true, false], VmOrigin::Cold),
            (&[Birth::Dies], &[true, false], VmOrigin::Cold),
            (&[Birth::Hangs, Birth::Panics], &[true, false, false], VmOrigin::Cold),
        ] {
            let helper = Helper::container(true, births, WELL).await;
            let deeds = helper.deeds.clone();
            let (record, came) = helper.run().await;
            assert_eq!((record.exit_code, came), (3, origin), "{births:?}");
            assert_eq!(deeds.borrow().restored, restored, "{births:?}");
        }
    });
}

#[test]
fn a_boot_that_hangs_or_panics_is_repeated_once() {
    on_local(async {
        for birth in [Birth::Hangs, Birth::Panics] {
            let helper = Helper::container(false, &[birth], WELL).await;
            let log = helper.directory.path().join("boot.log");
            helper.call::<()>(START).await.unwrap();
            let text = fs::read_to_string(log).unwrap();
            assert_eq!(text.matches("booting").count(), 2, "{text}");
            helper.mishaps.send(Mishap::Exits).unwrap();
            assert_eq!(helper.end().await.exit_code, 3);
        }
        for (births, words) in [
            (&[Birth::Hangs, Birth::Hangs][..], "did not boot within"),
            (&[Birth::Panics, Birth::Panics], "guest kernel panic: double fault"),
            (&[Birth::Hangs, Birth::Dies], "hypervisor killed by SIGKILL"),
            (&[Birth::Dies], "hypervisor killed by SIGKILL"),
            (&[Birth::Fails], "no such VM"),
        ] {
            let helper = Helper::container(false, births, WELL).await;
            let deeds = helper.deeds.clone();
            let error = helper.call::<()>(START).await.unwrap_err();
            assert_eq!(error.code, ErrorCode::Unavailable);
            let record = helper.end().await;
            assert!(record.reason.contains(words), "{births:?}: {record:?}");
            assert_eq!(error.message, record.reason);
            assert_eq!(deeds.borrow().restored.len(), births.len());
        }
    });
}

#[test]
fn a_spare_becomes_a_container() {
    on_local(async {
        becomes_a_container(Helper::spare(WELL).await).await;
        let helper = Helper::spare(WELL).await;
        let before = helper.deeds.borrow().calls.len();
        helper.warms_up().await;
        assert!(helper.deeds.borrow().calls[before..].contains(&"start"));
        let again = helper.call::<()>(Request::WarmUp).await.unwrap_err();
        assert_eq!(again.code, ErrorCode::InvalidState);
        becomes_a_container(helper).await;
    });
}

async fn becomes_a_container(helper: Helper) {
    helper.waits().await;
    let state = helper.state().await;
    assert_eq!((state.vm_origin, state.hypervisor_pid), (Some(VmOrigin::Spare), Some(4242)));
    let usage: Usage = helper.call(Request::Stats).await.unwrap();
    assert!(usage.host_memory_bytes > 1 << 20 && usage.host_cpu_usec == 5000, "{usage:?}");
    let refused = helper.call::<()>(START).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::InvalidState);
    assert!(refused.message.contains("spare"), "{refused}");
    let before = helper.deeds.borrow().calls.len();

    let spares = helper.directory.path().to_owned();
    let helper = helper.adopt().await;
    helper.call::<()>(START).await.unwrap();
    assert!(!spares.join("runtime.sock").exists());
    assert!(container_runtime_linux::directory::lock(helper.directory.path()).is_err());
    for late in [Request::Adopt { directory: spares, taps: 0 }, Request::WarmUp] {
        let error = helper.call::<()>(late).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::InvalidState);
    }
    {
        let deeds = helper.deeds.borrow();
        assert_eq!(deeds.restored, [true]);
        assert_eq!(deeds.swapped, [(Disk::Image, true), (Disk::Upper, true)]);
        let own = deeds.calls[before..].iter().filter(|name| !name.is_empty());
        assert_eq!(own.copied().collect::<Vec<_>>(), ["setup", "mount", "start"]);
    }
    let (mishaps, state) = (helper.mishaps.clone(), helper.state().await);
    assert_eq!((state.phase, state.vm_origin), (Phase::Running, Some(VmOrigin::Spare)));
    mishaps.send(Mishap::Exits).unwrap();
    assert_eq!(helper.end().await.exit_code, 3);
}

#[test]
fn what_fails_in_an_adoption_is_the_containers_end() {
    on_local(async {
        for (vices, words) in [
            (Vices { swap: Some(Disk::Image), ..WELL }, "did not take the container's disks"),
            (Vices { swap: Some(Disk::Upper), ..WELL }, "did not take the container's disks"),
        ] {
            let helper = Helper::spare(vices).await.adopt().await;
            let error = helper.call::<()>(START).await.unwrap_err();
            assert_eq!(error.code, ErrorCode::Unavailable);
            let record = helper.end().await;
            assert!(record.reason.contains(words), "{record:?}");
            assert_eq!((record.exit_code, error.message), (125, record.reason));
        }
    });
}

#[test]
fn a_root_that_is_not_mounted_is_why_nothing_starts() {
    on_local(async {
        let helper = Helper::container(false, &[], Vices { mount: true, ..WELL }).await;
        let error = helper.call::<()>(START).await.unwrap_err();
        assert_eq!(error.message, "the guest could not be set up: no file system");
        assert_eq!(helper.end().await.reason, error.message);
    });
}

#[test]
fn a_spare_that_is_of_no_use_ends() {
    on_local(async {
        let helper = Helper::spare(Vices { warm_up: true, ..WELL }).await;
        helper.waits().await;
        let error = helper.call::<()>(Request::WarmUp).await.unwrap_err();
        let record = helper.end().await;
        assert_eq!((error.code, &error.message), (ErrorCode::Unavailable, &record.reason));
        assert!(record.reason.contains("throwaway container's program"), "{record:?}");

        let helper = Helper::spare(WELL).await;
        helper.waits().await;
        helper.mishaps.send(Mishap::Killed).unwrap();
        assert_eq!(helper.end().await.reason, "hypervisor killed by SIGKILL");

        let helper = Helper::spare(WELL).await;
        helper.waits().await;
        helper.call::<()>(Request::Abort).await.unwrap();
        assert_eq!(helper.end().await.reason, "the spare was given up");

        let helper = Helper::spare(WELL).await;
        helper.waits().await;
        let heir = helper.heir();
        let mut spec = world::spec(heir.path(), true);
        spec.resources.cpus = 2;
        world::write_container(heir.path(), &world::config(), &spec);
        let directory = heir.path().to_owned();
        let error = helper.call::<()>(Request::Adopt { directory, taps: 0 }).await.unwrap_err();
        assert!(error.message.contains("another shape"), "{error}");
        assert!(!heir.path().join("exit.json").exists());
        assert!(helper.task.await.unwrap().is_err());
    });
}

#[test]
fn limits_change_within_the_shape() {
    on_local(async {
        let helper = Helper::spare(WELL).await.adopt().await;
        helper.call::<()>(START).await.unwrap();
        let limited = |mib: u64, cpus| Resources { cpus, memory_in_bytes: mib << 20 };
        let update = |mib, cpus| Request::Update { resources: limited(mib, cpus) };
        assert_eq!(helper.state().await.resources, Some(limited(128, 1)));
        helper.call::<()>(update(64, 1)).await.unwrap();
        assert_eq!(helper.state().await.resources, Some(limited(64, 1)));
        let usage: Usage = helper.call(Request::Stats).await.unwrap();
        assert_eq!((usage.memory_limit_bytes, usage.pids), (64 << 20, 1));
        helper.call::<()>(update(256, 1)).await.unwrap();
        for (mib, cpus, words) in [(257, 1, "6 to 256 MiB"), (64, 2, "1 to 1")] {
            let error = helper.call::<()>(update(mib, cpus)).await.unwrap_err();
            assert_eq!(error.code, ErrorCode::InvalidArgument);
            assert!(error.message.contains(words), "{error}");
        }
        // 64 MiB of the guest's own and 4 MiB for the list of 256 MiB's pages.
        assert_eq!(helper.deeds.borrow().balloon, [132 << 20, 256 << 20]);
        assert_eq!(helper.state().await.resources, Some(limited(256, 1)));
        helper.mishaps.send(Mishap::Exits).unwrap();
        helper.end().await;
    });
}

#[test]
fn kills_for_want_of_memory_are_told_and_recorded() {
    on_local(async {
        let helper = Helper::container(false, &[], WELL).await;
        helper.call::<()>(START).await.unwrap();
        helper.mishaps.send(Mishap::OutOfMemory).unwrap();
        while helper.state().await.out_of_memory_kills.is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        helper.mishaps.send(Mishap::Exits).unwrap();
        let waited = helper.call::<ExitRecord>(Request::Wait { process_id: INIT_PROCESS.into() });
        let waited = waited.await.unwrap();
        let record = helper.end().await;
        assert_eq!(record, waited);
        let [kill] = &record.out_of_memory_kills[..] else { panic!("{record:?}") };
        assert_eq!((kill.process.as_str(), kill.pid), ("eater", Some(7)));
        assert_eq!(kill.limit_in_bytes, 1 << 20);
        assert!(!record.out_of_memory, "the program itself was not killed");
    });
}

#[test]
fn a_trace_has_the_phases() {
    use std::os::fd::AsFd;
    on_local(async {
        let helper = Helper::spare(WELL).await.adopt().await;
        let file = tempfile::NamedTempFile::new().unwrap();
        let append = fs::File::options().append(true).open(file.path()).unwrap();
        let stream = socket::connect(helper.directory.path(), "runtime.sock").unwrap();
        let start = Request::Start { stdio: NONE, size: None, trace: true };
        let mut client = Client::new(stream).unwrap();
        client.call::<_, ()>(&start, &[append.as_fd()], Some(LIMIT)).await.unwrap();
        helper.mishaps.send(Mishap::Exits).unwrap();
        helper.end().await;
        let text = fs::read_to_string(file.path()).unwrap();
        for name in [
            "adopted",
            "disks swapped",
            "guest set up",
            "root mounted",
            "program started",
            "program ran",
            "output delivered",
            "VM gone",
        ] {
            assert_eq!(text.matches(&format!("\"{name}\"")).count(), 1, "{name}: {text}");
        }
    });
}

#[test]
fn a_template_is_made_or_not_at_all() {
    on_local(async {
        for (vices, made) in [(WELL, true), (Vices { warm_up: true, ..WELL }, false)] {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path();
            let (hypervisor, _mishaps) = Fake::new(&[], vices);
            let spec = world::spec(path, false);
            let outcome =
                template::make_with(&hypervisor, path, spec, world::jail(), PATIENCE).await;
            assert_eq!(outcome.is_ok(), made, "{outcome:?}");
            assert!(!path.join("upper.img").exists());
            let manifest = path.join(template_files::MANIFEST);
            assert_eq!(manifest.exists(), made);
            if !made {
                continue;
            }
            let manifest: TemplateManifest =
                serde_json::from_slice(&fs::read(manifest).unwrap()).unwrap();
            let file = fs::File::open(path.join(template_files::RAM)).unwrap();
            assert_eq!(ram::digest(&file).unwrap().0, manifest.ram_digest);
            assert_eq!(file.metadata().unwrap().len(), manifest.ram_len);
            let state = fs::read(path.join(template_files::STATE)).unwrap();
            assert_eq!((&state[..], manifest.state_digest), (&b"state"[..], ram::sha256(b"state")));
            assert_eq!(hypervisor.deeds.borrow().balloon, [128 << 20, 256 << 20]);
        }
    });
}
