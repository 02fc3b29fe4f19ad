//! Random requests and mishaps in random order, against a guest without a VM: whatever happens,
//! there is one exit record, every call is answered, and the helper goes.

mod fake;

use std::time::Duration;

use container_api::ErrorCode;
use container_api::runtime::{INIT_PROCESS, Phase, Request, State, Usage};
use container_api::types::{ExitRecord, ProcessConfig, Resources, Stdio};
use container_runtime_linux::helper::{self, serve_container};
use container_runtime_linux::process::Rest;
use container_runtime_linux::spare;
use container_runtime_linux::timeline::Timeline;
use fake::world::{self, LIMIT, PATIENCE};
use fake::{Birth, Fake, Mishap, Vices};
use proptest::prelude::*;
use tokio::sync::mpsc::UnboundedSender;
use tokio::task::JoinHandle;

const NONE: Stdio = Stdio { stdin: false, stdout: false, stderr: false };

#[derive(Clone, Debug)]
enum Op {
    Start,
    State,
    Exec,
    Attach,
    Signal(i32),
    Stats,
    Update(u32),
    WarmUp,
    Adopt,
    Stop,
    Abort,
    Mishap(Mishap),
    Pause(u64),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => Just(Op::Start),
        1 => Just(Op::State),
        4 => Just(Op::Exec),
        2 => Just(Op::Attach),
        1 => prop::sample::select(vec![9, 15, 0, 99]).prop_map(Op::Signal),
        2 => Just(Op::Stats),
        2 => prop::sample::select(vec![1, 128, 256, 257]).prop_map(Op::Update),
        2 => Just(Op::WarmUp),
        2 => Just(Op::Adopt),
        1 => Just(Op::Stop),
        1 => Just(Op::Abort),
        1 => prop::sample::select(vec![
            Mishap::Killed, Mishap::Hangs, Mishap::Babbles, Mishap::Exits, Mishap::ExitsBabbling,
            Mishap::OutOfMemory,
        ]).prop_map(Op::Mishap),
        3 => (0u64..20).prop_map(Op::Pause),
    ]
}

fn birth() -> impl Strategy<Value = Birth> {
    prop_oneof![
        8 => Just(Birth::Well),
        1 => Just(Birth::Fails),
        1 => Just(Birth::Hangs),
        1 => Just(Birth::Panics),
        1 => Just(Birth::Dies),
    ]
}

/// A story: how the VMs come to be, and what happens then.
#[derive(Clone, Debug)]
struct Story {
    template: bool,
    births: Vec<Birth>,
    ops: Vec<Op>,
}

fn story() -> impl Strategy<Value = Story> {
    let births = proptest::collection::vec(birth(), 0..3);
    let ops = proptest::collection::vec(op(), 0..12);
    (any::<bool>(), births, ops).prop_map(|(template, births, ops)| Story { template, births, ops })
}

struct World {
    /// The container's.
    directory: tempfile::TempDir,
    /// The spare's, until it was taken.
    spare: Option<tempfile::TempDir>,
    execs: usize,
}

impl World {
    async fn call<R: serde::de::DeserializeOwned>(
        &self,
        request: Request,
    ) -> Option<Result<R, ErrorCode>> {
        let directory = self.spare.as_ref().unwrap_or(&self.directory);
        world::call(directory.path(), request).await
    }

    async fn apply(&mut self, op: Op, mishaps: &UnboundedSender<Mishap>) {
        let process_id = format!("exec-{}", self.execs);
        let process = ProcessConfig { executable: "y".into(), ..ProcessConfig::default() };
        match op {
            Op::Start => {
                let start = Request::Start { stdio: NONE, size: None, trace: false };
                let outcome = self.call::<()>(start).await;
                assert!(self.spare.is_none() || outcome != Some(Ok(())), "a spare is started");
            }
            Op::State => {
                let state = self.call::<State>(Request::State).await;
                if let Some(state) = state {
                    let state = state.expect("always admitted");
                    assert!(state.exit.is_none() || state.phase != Phase::Running);
                    assert!(self.spare.is_none() || state.started_date.is_none());
                }
            }
            Op::Exec => {
                self.execs += 1;
                let id = process_id.clone();
                let exec = Request::Exec { process_id: id, process, stdio: NONE, size: None };
                if let Some(Ok(())) = self.call::<()>(exec).await {
                    let wait = Request::Wait { process_id };
                    if let Some(record) = self.call::<ExitRecord>(wait).await {
                        record.expect("a started exec has a record");
                    }
                }
            }
            Op::Attach => self.shrug(Request::Attach { stdio: NONE }).await,
            Op::Signal(signal) => {
                let process_id = INIT_PROCESS.into();
                self.shrug(Request::Signal { process_id, signal }).await;
            }
            Op::Stats => {
                if let Some(stats) = self.call::<Usage>(Request::Stats).await {
                    assert!(stats.is_err() || stats.is_ok_and(|stats| stats.pids <= 1));
                }
            }
            Op::Update(mib) => self.update(u64::from(mib) << 20).await,
            Op::WarmUp => self.shrug(Request::WarmUp).await,
            Op::Adopt => self.adopt().await,
            Op::Stop => {
                let stop = Request::Stop { signal: 15, timeout_ms: 500 };
                if let Some(record) = self.call::<ExitRecord>(stop).await {
                    assert_eq!(record.expect("stop is always admitted"), self.left());
                }
            }
            Op::Abort => self.shrug(Request::Abort).await,
            Op::Mishap(mishap) => drop(mishaps.send(mishap)),
            Op::Pause(ms) => tokio::time::sleep(Duration::from_millis(ms)).await,
        }
    }

    /// Within the shape or not; what was admitted is what is told.
    async fn update(&self, memory_in_bytes: u64) {
        let resources = Resources { cpus: 1, memory_in_bytes };
        match self.call::<()>(Request::Update { resources }).await {
            Some(Ok(())) => {
                assert!((6 << 20..=256 << 20).contains(&memory_in_bytes));
                if let Some(Ok(state)) = self.call::<State>(Request::State).await {
                    assert_eq!(state.resources, Some(resources));
                }
            }
            Some(Err(code)) => assert_ne!(code, ErrorCode::Internal),
            None => {}
        }
    }

    async fn adopt(&mut self) {
        let directory = self.directory.path().to_owned();
        let outcome = self.call::<()>(Request::Adopt { directory, taps: 0 }).await;
        if let Some(Ok(())) = outcome {
            // Gone already when the container was.
            assert!(self.spare.take().is_some(), "a container was adopted");
        }
    }

    /// A call whose refusal is as good as its success.
    async fn shrug(&self, request: Request) {
        let _: Option<Result<(), ErrorCode>> = self.call(request).await;
    }

    fn left(&self) -> ExitRecord {
        world::left(self.spare.as_ref().unwrap_or(&self.directory).path())
    }

    /// Everything that happens, and the end.
    async fn play(
        mut self,
        ops: Vec<Op>,
        mishaps: UnboundedSender<Mishap>,
        helper: JoinHandle<Vec<Rest>>,
    ) -> ExitRecord {
        let home = self.spare.as_ref().unwrap_or(&self.directory);
        world::socket_there(home.path(), &helper).await;
        for op in ops {
            self.apply(op, &mishaps).await;
        }
        self.apply(Op::Stop, &mishaps).await;
        let rests = tokio::time::timeout(LIMIT, helper).await.expect("the helper goes").unwrap();
        assert!(rests.is_empty());
        let record = self.left();
        assert!(!record.reason.is_empty() && !record.reason.contains('\n'), "{record:?}");
        assert!(!self.directory.path().join("runtime.sock").exists());
        // Of a container that never was there is nothing.
        assert_eq!(self.spare.is_none(), self.directory.path().join("exit.json").exists());
        record
    }
}

async fn play(story: Story) -> ExitRecord {
    let directory = tempfile::tempdir().unwrap();
    let spec = world::spec(directory.path(), story.template);
    world::write_container(directory.path(), &world::config(), &spec);
    let container = helper::container(directory.path(), spec.clone(), Timeline::new(0)).unwrap();
    let blueprint = world::blueprint(spec);
    let (hypervisor, mishaps) = Fake::new(&story.births, Vices::default());
    let helper = tokio::task::spawn_local(async move {
        serve_container(&container, &hypervisor, blueprint, PATIENCE).await.unwrap()
    });
    World { directory, spare: None, execs: 0 }.play(story.ops, mishaps, helper).await
}

async fn play_spare(story: Story) -> ExitRecord {
    let (directory, home) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let own = world::spec(home.path(), true);
    let mut spec = world::spec(directory.path(), true);
    spec.template = own.template.clone();
    // A container without a template is of another shape.
    if !story.template {
        spec.template = None;
    }
    std::fs::write(directory.path().join("image"), "image").unwrap();
    spec.image_disk = directory.path().join("image");
    world::write_container(directory.path(), &world::config(), &spec);
    let blueprint = world::blueprint(own);
    let (hypervisor, mishaps) = Fake::new(&story.births, Vices::default());
    let at = spare::Home {
        directory: home.path().to_owned(),
        lock: None,
        log: None,
        images: Some(world::images(directory.path())),
    };
    let helper = tokio::task::spawn_local(async move {
        // A container that does not fit is an error, of which the process makes a record.
        let place = at.directory.clone();
        spare::serve(at, &hypervisor, blueprint, PATIENCE).await.unwrap_or_else(|error| {
            helper::give_reason(&place, &error);
            Vec::new()
        })
    });
    World { directory, spare: Some(home), execs: 0 }.play(story.ops, mishaps, helper).await
}

/// Runs cases side by side: most of their time is spent waiting.
fn all(stories: Vec<(bool, Story)>) -> Vec<ExitRecord> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async {
        let plays = stories.into_iter().map(|(spare, story)| match spare {
            true => tokio::task::spawn_local(play_spare(story)),
            false => tokio::task::spawn_local(play(story)),
        });
        let mut records = Vec::new();
        for play in plays.collect::<Vec<_>>() {
            records.push(play.await.unwrap());
        }
        records
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 5, max_shrink_iters: 20, max_shrink_time: 60_000, ..ProptestConfig::default() })]

    #[test]
    fn every_story_ends_well(
        stories in proptest::collection::vec((any::<bool>(), story()), 24..=24)
    ) {
        prop_assert_eq!(all(stories).len(), 24);
    }
}

#[test]
fn a_spare_that_does_not_fit_is_gone_when_that_is_told() {
    let ops = vec![Op::Pause(100), Op::Adopt, Op::Stop];
    let story = Story { template: false, births: Vec::new(), ops };
    let records = all(vec![(true, story.clone()), (true, story.clone()), (true, story)]);
    for record in records {
        assert!(record.reason.contains("another shape"), "{record:?}");
    }
}

#[test]
fn stories_in_order() {
    let story = |births: &[Birth], ops: Vec<Op>| {
        (false, Story { template: false, births: births.to_vec(), ops })
    };
    let (exits, pause) = (Op::Mishap(Mishap::Exits), Op::Pause(100));
    let records = all(vec![
        story(&[], vec![Op::Start, Op::Exec, Op::Stats, Op::State, exits, pause.clone()]),
        story(&[Birth::Fails], vec![Op::Start]),
        story(&[], vec![Op::Start, Op::Mishap(Mishap::Hangs), Op::Pause(3000)]),
        story(&[], vec![Op::Start, Op::Mishap(Mishap::Babbles), Op::Exec, Op::Pause(3000)]),
        story(&[], vec![Op::Start, Op::Mishap(Mishap::Killed), pause]),
        story(&[], vec![Op::Start, Op::Mishap(Mishap::ExitsBabbling), Op::Pause(3000)]),
        story(&[], vec![Op::Start, Op::Stop]),
        story(&[], vec![Op::Abort]),
    ]);
    let told = records.iter().map(|r| (r.exit_code, r.reason.as_str())).collect::<Vec<_>>();
    assert_eq!(
        told,
        [
            (3, "exited"),
            (125, "no such VM"),
            (125, "the guest's channel was lost: it was closed"),
            (
                125,
                "the guest's channel was lost: control frame of 4294967295 bytes, 8388608 are allowed"
            ),
            (125, "hypervisor killed by SIGKILL"),
            (3, "exited"),
            (143, "killed by SIGTERM"),
            (125, "the start was cancelled"),
        ]
    );
}
