//! Processes are killed at moments that a seed decides, while containers are created, started, run,
//! stopped and deleted and images pulled. After each: nothing is lost, leaked or untrue.
//!
//! `CONTAINER_TEST_FAULTS` says how many moments each test has, `CONTAINER_TEST_SEED` which;
//! `make soak` sets both.

use std::time::{Duration, Instant};

use e2e::faults::{Random, Victim};
use e2e::serve::{Manners, Serve};
use e2e::{Installation, Layer, busybox};

/// Moments of a test, when nothing is said.
const MOMENTS: u64 = 9;
/// The seed, when nothing is said.
const SEED: u64 = 20_260_101;

fn number(variable: &str, or: u64) -> u64 {
    let given = std::env::var(variable).ok();
    given.map_or(or, |text| text.parse().unwrap_or_else(|_| panic!("{variable}={text}")))
}

/// Where the container under test is, as far as its user was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    Absent,
    Idle,
    Running,
}

/// What a user does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Pull,
    Create,
    Start,
    Exec,
    Stop,
    Delete,
}

impl Step {
    /// What can be done, and is worth a fault of `victim`: what runs a container is not there
    /// before it starts.
    fn possible(known: Known, victim: Victim) -> &'static [Step] {
        let of_a_container =
            victim.is_of_a_vm() || matches!(victim, Victim::Resolver | Victim::Forwarder);
        match known {
            Known::Absent if of_a_container => &[],
            Known::Idle if of_a_container => &[Step::Start],
            Known::Absent => &[Step::Create, Step::Create, Step::Pull],
            Known::Idle => &[Step::Start, Step::Start, Step::Start, Step::Delete],
            Known::Running => &[Step::Exec, Step::Exec, Step::Stop],
        }
    }

    /// About as long as it takes: a fault comes before it is over, or just after.
    fn length(self) -> Duration {
        Duration::from_millis(match self {
            Step::Pull => 400,
            Step::Create | Step::Delete => 150,
            Step::Exec => 300,
            Step::Stop => 500,
            Step::Start => 1800,
        })
    }
}

/// The one container that things happen to, and what was promised of it.
struct Story {
    it: Installation,
    random: Random,
    registry: Serve,
    known: Known,
    /// Lines that the container has written and synced, as its user was told.
    lines: Vec<u64>,
    /// Lines that it was told to write.
    writes: u64,
    pulls: u64,
    /// Processes that were killed.
    kills: u64,
    mount: String,
}

const SUBJECT: &str = "subject";
/// One that never starts: nothing may happen to it.
const BYSTANDER: &str = "bystander";

impl Story {
    fn new(seed: u64) -> Story {
        let it = Installation::without_mode();
        it.load(&busybox::image().expect("the busybox image"));
        let layers = vec![
            busybox::layer().expect("a layer"),
            Layer::build(|entries| _ = entries.file("noise", 0o644, &noise(2 << 20))),
        ];
        let served = it.scratch().join("served");
        std::fs::create_dir(&served).expect("a folder");
        let image = e2e::Image::new("served:1", layers, serde_json::json!({}));
        image.write_layout(&served).expect("a layout");
        let registry = Serve::start(&served, Manners::default());
        let shared = it.scratch().join("shared");
        std::fs::create_dir(&shared).expect("a folder");
        let mount = format!("{}:/mnt", shared.display());
        it.run(["volume", "create", "data"]).ok();
        it.run(["create", "--name", BYSTANDER, "busybox", "true"]).ok();
        let (known, lines, writes, pulls) = (Known::Absent, Vec::new(), 0, 0);
        Story {
            it,
            random: Random::new(seed),
            registry,
            known,
            lines,
            writes,
            pulls,
            kills: 0,
            mount,
        }
    }

    /// The command line of a step.
    fn words(&self, step: Step) -> Vec<String> {
        let words: &[&str] = match step {
            Step::Pull => &["image", "pull"],
            Step::Create => &["create", "--name", SUBJECT, "-v", "data:/data", "-p", "0:80", "-v"],
            Step::Start => &["start", SUBJECT],
            Step::Exec => &["exec", SUBJECT, "sh", "-c"],
            Step::Stop => &["stop", "-t", "0", SUBJECT],
            Step::Delete => &["delete", SUBJECT],
        };
        let mut words: Vec<String> = words.iter().map(ToString::to_string).collect();
        let more = match step {
            Step::Pull => vec![self.registry.reference(&format!("served:{}", self.pulls))],
            Step::Create => {
                let more = [self.mount.as_str(), "busybox", "sleep", "100000"];
                more.map(str::to_owned).to_vec()
            }
            Step::Exec => {
                vec![format!("echo {} >>/data/lines; sync", self.writes)]
            }
            _ => Vec::new(),
        };
        words.extend(more);
        words
    }

    /// One step, in the middle of which `victim` is killed; then everything is looked at.
    fn moment(&mut self, number: u64, victim: Victim) {
        if Step::possible(self.known, victim).is_empty() {
            let words = self.words(Step::Create);
            self.it.run(&words).ok();
            self.known = Known::Idle;
        }
        let step = *self.random.one_of(Step::possible(self.known, victim));
        let delay = self.random.within(step.length());
        let words = self.words(step);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let (output, killed) = self.it.run_with_fault(&words, victim, delay, &mut self.random);
        let context =
            format!("moment {number}: {victim:?} ({killed:?}) after {delay:?} of {step:?}");
        eprintln!("{context}: {:?}", output.code.ok_or(output.signal));
        self.kills += u64::from(killed.is_some());
        if victim != Victim::CommandLine {
            assert!(output.code.is_some(), "{context}: {output:?}");
            let errors = output.errors();
            assert!(!errors.contains("panicked"), "{context}: {output:?}");
        }
        let promised = output.code == Some(0);
        self.it.comes_to_rest(&context);
        self.look(step, promised, victim, &context);
    }

    /// What was promised holds; what was not is as it was before, or done.
    fn look(&mut self, step: Step, promised: bool, victim: Victim, context: &str) {
        let status = self.it.status(SUBJECT);
        let is = match status.as_deref() {
            None => Known::Absent,
            Some("created" | "stopped") => Known::Idle,
            Some("running") => Known::Running,
            other => panic!("{context}: at rest, it is {other:?}"),
        };
        let after = match step {
            Step::Create | Step::Stop => Known::Idle,
            Step::Delete => Known::Absent,
            Step::Start => Known::Running,
            Step::Pull | Step::Exec => self.known,
        };
        // A program ends with what it runs in, and that is no lie.
        let fell = victim.is_of_a_vm() && is == Known::Idle && after == Known::Running;
        let may_be_as_before = !promised && is == self.known;
        assert!(
            is == after || may_be_as_before || fell || (!promised && is == Known::Idle),
            "{context}: it was {:?}, should be {after:?}, and is {is:?}",
            self.known
        );
        match step {
            Step::Exec => {
                self.lines.extend(promised.then_some(self.writes));
                self.writes += 1;
            }
            Step::Pull => {
                let names = self.it.run(["image", "list", "--quiet"]).ok().text();
                let name = self.registry.reference(&format!("served:{}", self.pulls));
                assert!(!promised || names.contains(&name), "{context}: {name} is not in {names}");
                self.pulls += 1;
            }
            _ => {}
        }
        self.known = is;
        assert_eq!(self.it.status(BYSTANDER).as_deref(), Some("created"), "{context}");
    }

    /// In the end all that was promised is there. Says how many processes were killed.
    fn end(mut self) -> u64 {
        if self.known == Known::Absent {
            let words = self.words(Step::Create);
            self.it.run(&words).ok();
        }
        if self.known != Known::Running {
            self.it.run(["start", SUBJECT]).ok();
        }
        let kept =
            self.it.run(["exec", SUBJECT, "sh", "-c", "cat /data/lines || true"]).ok().text();
        for line in std::mem::take(&mut self.lines) {
            assert!(kept.lines().any(|kept| *kept == line.to_string()), "{line} is lost: {kept}");
        }
        self.it.run(["delete", "--force", SUBJECT]).ok();
        self.it.comes_to_rest("everything");
        self.it.run(["system", "check", "--state", "--deep"]).ok();
        self.kills
    }
}

fn noise(len: usize) -> Vec<u8> {
    let mut random = Random::new(len as u64);
    (0..len).map(|_| random.below(256) as u8).collect()
}

/// Moments that each of `victims` is killed at.
fn faults(name: &str, victims: &[Victim]) {
    let moments = number("CONTAINER_TEST_FAULTS", MOMENTS);
    let seed = number("CONTAINER_TEST_SEED", SEED) ^ name.len() as u64;
    eprintln!("{name}: {moments} moments of seed {seed}");
    let begun = Instant::now();
    let mut story = Story::new(seed);
    for moment in 0..moments {
        story.moment(moment, victims[(moment % victims.len() as u64) as usize]);
    }
    let kills = story.end();
    eprintln!("{name}: {kills} kills at {moments} moments took {:?}", begun.elapsed());
    assert!(kills * 2 > moments, "{kills} of {moments} moments had a victim");
}

#[test]
fn services_may_be_killed_at_any_moment() {
    faults("services", &[Victim::Apiserver, Victim::Images, Victim::Network]);
}

#[test]
fn what_runs_a_container_may_be_killed_at_any_moment() {
    faults("machines", &[Victim::Helper, Victim::Hypervisor, Victim::FileServer]);
}

#[test]
fn what_carries_traffic_and_who_asks_may_be_killed_at_any_moment() {
    faults("others", &[Victim::Resolver, Victim::Forwarder, Victim::CommandLine]);
}
