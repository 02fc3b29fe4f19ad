//! All tests: the crates' own, then end to end with the release binaries.
//!
//! VMs start in three ways (booted, from a template, from a spare). The suite runs once as the
//! product is configured, and a part of it in each of the ways that this leaves to chance;
//! `--start all` runs all of it in all ways.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};
use e2e::start_mode;

use crate::args::Args;
use crate::workspace::{self, Workspace, step};
use crate::{build, debian};

/// The ways that a VM starts.
const WAYS: [&str; 3] = ["cold", "template", "spare"];

/// The test programs that show most of what a way of starting may break.
const PART: [&str; 4] = ["lifecycle", "run", "terminal", "volumes"];

/// What the end-to-end tests run with, when it is not the machine's own.
pub struct Options {
    qemu: Option<PathBuf>,
    kernel: Option<PathBuf>,
    start: Option<String>,
    filters: Vec<String>,
}

impl Options {
    /// `--qemu DIR`, `--kernel DIR`, `--start cold|template|spare|all`; other words are names of
    /// tests.
    pub fn parse(mut args: Args) -> Result<Self> {
        let start = args.value("--start")?;
        if let Some(start) = &start
            && start != "all"
            && !WAYS.contains(&start.as_str())
        {
            bail!("--start {start}: it may be {} or all", WAYS.join(", "));
        }
        let mut folder = |name: &str| -> Result<Option<PathBuf>> {
            let Some(given) = args.value(name)? else { return Ok(None) };
            std::fs::canonicalize(&given).map(Some).with_context(|| format!("{name} {given}"))
        };
        let (qemu, kernel) = (folder("--qemu")?, folder("--kernel")?);
        Ok(Self { qemu, kernel, start, filters: args.rest() })
    }
}

/// Builds what the tests run, then runs them.
pub fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    build::all(workspace, ())?;
    let debian = debian::image(workspace)?;
    let programs = debian::programs(workspace)?;
    let tests = Tests { workspace, options, debian, programs };
    match options.start.as_deref() {
        None => {
            tests.run("tests", "", &["--workspace"])?;
            if options.filters.is_empty() {
                tests.documentation()?;
                let part = PART.map(|program| ["--test", program]).concat();
                let part = [&["--package", "e2e"], &part[..]].concat();
                for way in &WAYS[1..] {
                    tests.run(&format!("a part of the tests, start: {way}"), way, &part)?;
                }
            }
            Ok(())
        }
        Some(start) => {
            WAYS.iter().filter(|way| start == "all" || **way == start).try_for_each(|way| {
                tests.run(&format!("tests, start: {way}"), way, &["--package", "e2e"])
            })
        }
    }
}

struct Tests<'a> {
    workspace: &'a Workspace,
    options: &'a Options,
    debian: PathBuf,
    programs: PathBuf,
}

impl Tests<'_> {
    fn run(&self, title: &str, way: &str, which: &[&str]) -> Result<()> {
        step(title);
        let mut tests = self.command(which);
        tests.args(&self.options.filters);
        tests.env("CONTAINER_TEST_BIN_DIR", self.workspace.release());
        tests.env("CONTAINER_TEST_DEBIAN", &self.debian);
        tests.env("CONTAINER_TEST_PROGRAMS", &self.programs);
        tests.env(start_mode::VARIABLE, way);
        if let Some(qemu) = &self.options.qemu {
            tests.env("CONTAINER_TEST_QEMU", qemu);
        }
        if let Some(kernel) = &self.options.kernel {
            tests.env("CONTAINER_TEST_KERNEL", kernel);
        }
        workspace::run(&mut tests)
    }

    /// nextest gives every test a deadline of its own, so a hung one is named; without it the
    /// harness's deadlines inside the tests remain.
    fn command(&self, which: &[&str]) -> Command {
        let mut tests = self.workspace.cargo();
        if has_nextest(self.workspace) {
            tests.args(["nextest", "run", "--no-fail-fast"]).args(which);
        } else {
            tests.args(["test", "--no-fail-fast"]).args(which);
            if !which.contains(&"--test") {
                tests.args(["--lib", "--bins", "--tests"]);
            }
        }
        tests
    }

    fn documentation(&self) -> Result<()> {
        step("documentation examples");
        workspace::run(self.workspace.cargo().args(["test", "--quiet", "--workspace", "--doc"]))
    }
}

fn has_nextest(workspace: &Workspace) -> bool {
    workspace
        .cargo()
        .args(["nextest", "--version"])
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}
