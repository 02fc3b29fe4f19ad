//! A whole start, `run --rm IMAGE true`, against podman's: from a spare, back to back, from a
//! template, with and without a terminal.
//!
//! The two sides take turns by blocks, so that what one does after its start (a new spare) is paid
//! by its own next start and by nobody else's.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::{Installation, Terminal, busybox};

use super::Bench;
use super::figure::{Figure, Promise, median, quantile};
use super::podman::{self, Podman};
use super::ready::{self, Rest};
use crate::debian;
use crate::workspace::{make_dir, step};

/// How starts follow each other.
struct Way {
    name: &'static str,
    config: &'static str,
    /// Between the beginnings of two starts.
    pace: Duration,
    /// Starts on one side before the other has its turn.
    block: usize,
    /// All starts of a side, for ten rounds.
    starts: usize,
    /// Times podman's.
    bound: f64,
    network: bool,
}

const SECOND: Duration = Duration::from_secs(1);

const WAYS: &[Way] = &[
    Way {
        name: "with a spare, one start a second",
        config: "runtime.spare = 1\n",
        pace: SECOND,
        block: 10,
        starts: 60,
        bound: 0.4,
        network: true,
    },
    Way {
        name: "200 back to back",
        config: "runtime.spare = 1\n",
        pace: Duration::ZERO,
        block: 50,
        starts: 200,
        bound: 0.9,
        network: true,
    },
    Way {
        name: "from a template, no spares",
        config: "runtime.spare = 0\n",
        pace: Duration::ZERO,
        block: 1,
        starts: 40,
        bound: 1.0,
        network: true,
    },
];

/// podman takes half its time without one; our VM has its isolated NIC all the same.
const NO_NETWORK: Way = Way {
    name: "with a spare, one start a second, podman --network none",
    config: "runtime.spare = 1\n",
    pace: SECOND,
    block: 10,
    starts: 60,
    bound: 0.8,
    network: false,
};

/// What is started.
struct Subject {
    image: &'static str,
    shown: &'static str,
    terminal: bool,
}

const SUBJECTS: &[Subject] = &[
    Subject { image: busybox::NAME, shown: "busybox", terminal: false },
    Subject { image: "debian-python", shown: "Debian", terminal: false },
    Subject { image: busybox::NAME, shown: "busybox -it", terminal: true },
];

/// All ways of all subjects.
pub fn start(bench: &Bench<'_>) -> Result<Vec<Figure>> {
    of(bench, WAYS, &[NO_NETWORK])
}

/// Of all subjects: one start after another, from spares and templates.
pub fn back_to_back(bench: &Bench<'_>) -> Result<Vec<Figure>> {
    of(bench, &WAYS[1..2], &[])
}

/// Of all subjects: without spares.
pub fn from_template(bench: &Bench<'_>) -> Result<Vec<Figure>> {
    of(bench, &WAYS[2..], &[])
}

/// All subjects in `ways`, the first of them also in `more`.
fn of(bench: &Bench<'_>, ways: &[Way], more: &[Way]) -> Result<Vec<Figure>> {
    let podman = Podman::prepare(bench.workspace)?;
    let debian = debian::image(bench.workspace)?;
    podman.import(&busybox_tar(bench)?, busybox::NAME)?;
    podman.import(&debian.with_file_name("full.tar"), "debian-python")?;
    let mut figures = Vec::new();
    for subject in SUBJECTS {
        for way in ways {
            figures.extend(compare(bench, &podman, &debian, subject, way)?);
        }
    }
    for way in more {
        figures.extend(compare(bench, &podman, &debian, &SUBJECTS[0], way)?);
    }
    Ok(figures)
}

fn busybox_tar(bench: &Bench<'_>) -> Result<PathBuf> {
    let folder = bench.workspace.target.join("bench");
    make_dir(&folder)?;
    let tar = folder.join("busybox.tar");
    let layer = busybox::layer()?;
    let mut file = std::fs::File::create(&tar).context("create busybox.tar")?;
    std::io::copy(&mut layer.open()?, &mut file).context("write busybox.tar")?;
    Ok(tar)
}

/// Milliseconds of the starts that went well, and how many did not.
#[derive(Default)]
struct Side {
    samples: Vec<f64>,
    failures: usize,
}

impl Side {
    fn block(&mut self, way: &Way, subject: &Subject, command: impl Fn() -> Command) -> Result<()> {
        for _ in 0..way.block {
            let begin = Instant::now();
            let (took, code) = timed(command(), subject.terminal)?;
            match code {
                Some(0) => self.samples.push(took),
                _ => self.failures += 1,
            }
            std::thread::sleep(way.pace.saturating_sub(begin.elapsed()));
        }
        Ok(())
    }

    /// How much longer than the median the slowest hundredth takes.
    fn tail(&self) -> f64 {
        quantile(&self.samples, 0.99) / median(&self.samples)
    }
}

fn compare(
    bench: &Bench<'_>,
    podman: &Podman,
    debian: &std::path::Path,
    subject: &Subject,
    way: &Way,
) -> Result<Vec<Figure>> {
    step(format!("{}, {}", subject.shown, way.name));
    let it = Installation::new();
    it.configure(way.config);
    match subject.image {
        busybox::NAME => it.load(&busybox::image()?),
        _ => it.load_archive(debian),
    }
    let terminal: &[&str] = if subject.terminal { &["-it"] } else { &[] };
    let ours = || {
        let mut command = Command::new(it.binaries().join("container"));
        command.env("CONTAINER_APP_ROOT", it.app_root()).args(["run", "--rm"]);
        command.args(terminal).args([subject.image, "true"]);
        command
    };
    let network: &[&str] = if way.network { &[] } else { &["--network", "none"] };
    let theirs = || {
        let mut command = podman.command(&["run", "--rm"]);
        command.args(network).args(terminal).args([subject.image, "true"]);
        command
    };
    let spare = way.config.contains("spare = 1");
    ready::template(&it, subject.image)?;
    for _ in 0..3 {
        timed(ours(), subject.terminal)?;
        timed(theirs(), subject.terminal)?;
    }
    ready::rest(&it, spare)?;
    let before = Rest::of(&it);
    let (mut our, mut their) = (Side::default(), Side::default());
    let starts = (way.starts * bench.rounds / 10).max(way.block);
    while our.samples.len() + our.failures < starts {
        our.block(way, subject, ours)?;
        ready::rest(&it, spare)?;
        their.block(way, subject, theirs)?;
    }
    let left = Rest::of(&it).more_than(&before);
    ensure!(!our.samples.is_empty() && !their.samples.is_empty(), "no start went well");
    let name = format!("`run --rm` {}, {}", subject.shown, way.name);
    let (our_tail, their_tail) = (our.tail(), their.tail());
    let count = |what: &str, number: usize| {
        let name = format!("{name}: {what}");
        Figure::new(name, "", vec![number as f64], Promise::AtMost(0.0))
    };
    Ok(vec![
        count("failures", our.failures),
        count("left behind", left),
        Figure::new(
            format!("{name}: slowest 1 % / median"),
            "×",
            vec![our_tail],
            Promise::AtMost(3.0),
        )
        .against(podman::NAME, vec![their_tail]),
        Figure::new(name, "ms", our.samples, Promise::Ratio(way.bound))
            .against(podman::NAME, their.samples),
    ])
}

/// Milliseconds from the start to the end, and the exit code.
pub fn timed(mut command: Command, terminal: bool) -> Result<(f64, Option<i32>)> {
    let begin = Instant::now();
    let code = if terminal {
        Some(Terminal::start(command, 24, 80).end())
    } else {
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command.status().context("run a start")?.code()
    };
    Ok((begin.elapsed().as_secs_f64() * 1e3, code))
}
