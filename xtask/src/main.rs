//! What the Makefile's targets do: build, guest kernel, demo, tests, benchmarks.
//!
//! `cargo xtask` without arguments lists the commands. Everything is made below
//! cargo's target directory, and only made again when its inputs changed.

mod apt;
mod args;
mod bench;
mod build;
mod debian;
mod demo;
mod dependencies;
#[cfg(feature = "documents")]
mod documents;
mod fuzz;
mod graph;
mod host;
mod install;
mod kernel;
mod kvm;
mod lint;
mod slim;
mod soak;
mod stamp;
mod surface;
mod test;
mod unsafety;
mod variant;
mod workspace;

use std::process::ExitCode;

use anyhow::{Result, bail};

use crate::args::Args;
use crate::workspace::Workspace;

const USAGE: &str = "\
cargo xtask COMMAND
  build                      release binaries and the guest kernel
  guest                      the guest's static init alone
  kernel                     the guest kernel bundle alone
  slim-kernel [--kvm]        a guest kernel of our own configuration, from source
  image                      the demo's image alone
  demo                       build, make the image, run it
  variant                    QEMU and guest kernel of the backports, for tests
  test [--qemu DIR] [--kernel DIR] [--start cold|template|spare|all] [NAME…]
                             unit and end-to-end tests
  test-kvm                   the KVM path, inside an emulated machine with SVM
  test-host [--shell] [NAME…]
                             what needs a whole host (systemd), in an emulated one
  soak [--moments N] [--seed N] [NAME…]
                             every process killed at many moments
  bench [NAME…] [--rounds N]  the benchmarks; plot draws docs/start.svg
  install --prefix DIR [--destdir DIR], uninstall
  lint                       rustfmt, clippy, the crate graph, dependencies, counts of unsafe
  dependencies               licences, sources and bans of deny.toml, without the network
  fuzz [--seconds N] [TARGET…]
                             builds and runs the fuzz targets, ten minutes each
  unsafe                     the counts of unsafe, into docs/security.md
  surface                    what a guest's programs reach, into docs/security.md
  graph                      check the crate graph against the design";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let mut args = Args::from_env();
    let workspace = Workspace::find()?;
    let Some(command) = args.next_word() else {
        println!("{USAGE}");
        return Ok(());
    };
    match command.as_str() {
        "build" => build::all(&workspace, args.finish()?),
        "guest" => build::guest(&workspace, args.finish()?).map(drop),
        "kernel" => kernel::bundle(&workspace, args.finish()?).map(drop),
        "slim-kernel" => {
            let kvm = args.flag("--kvm");
            args.finish()?;
            slim::make(&workspace, kvm)
        }
        "image" => {
            args.finish()?;
            for archive in [debian::image(&workspace)?, debian::programs(&workspace)?] {
                println!("{}", archive.display());
            }
            Ok(())
        }
        "demo" => demo::run_demo(&workspace, args.finish()?),
        "variant" => variant::prepare(&workspace, args.finish()?),
        "test" => test::run(&workspace, &test::Options::parse(args)?),
        "soak" => soak::run(&workspace, args),
        "test-kvm" => kvm::test(&workspace, args.finish()?),
        "test-host" => host::test(&workspace, &host::Options::parse(args)?),
        "bench" => bench::run(&workspace, args),
        "install" => install::install(&workspace, &install::Options::parse(args)?),
        "uninstall" => install::uninstall(&workspace, &install::Options::parse(args)?),
        #[cfg(feature = "documents")]
        "documents" => documents::write(args),
        "lint" => lint::run(&workspace, args.finish()?),
        "surface" => surface::write(&workspace, args.finish()?),
        "dependencies" => dependencies::check(&workspace, args.finish()?),
        "fuzz" => fuzz::fuzz(&workspace, &fuzz::Options::parse(args)?),
        "unsafe" => unsafety::write(&workspace, args.finish()?),
        "graph" => graph::check(&workspace, args.finish()?),
        other => bail!("unknown command {other:?}\n{USAGE}"),
    }
}
