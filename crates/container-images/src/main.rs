//! `container-images`: the service, and the commands that make kernel bundles.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};
use container_api::config::Config;
use container_api::paths::AppRoot;
use container_api::types::Platform;
use container_images::kernel::{self, Source};
use tracing_subscriber::EnvFilter;

/// Images and guest kernels for container. Started by container-apiserver and by set-up; not meant
/// to be run by hand.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve an installation's images until SIGTERM.
    Serve {
        /// The installation's directory.
        #[arg(long)]
        app_root: PathBuf,
        /// The configuration file, in place of the installation's or the user's.
        #[arg(long)]
        config: Option<PathBuf>,
        /// A layer of the sandbox that may be missing (landlock).
        #[arg(long)]
        allow_missing: Vec<String>,
    },
    /// Make a kernel bundle from packages, an archive or a kernel file.
    KernelBundle(KernelBundle),
    /// Build a bundle's initramfs again, with another guest init.
    KernelInitramfs {
        /// The bundle's directory.
        #[arg(long)]
        bundle: PathBuf,
        /// The guest's init program (vminitd).
        #[arg(long)]
        init: PathBuf,
    },
}

#[derive(clap::Args)]
struct KernelBundle {
    /// The directory to make; one that is there is replaced.
    #[arg(long)]
    output: PathBuf,
    /// The guest's init program (vminitd).
    #[arg(long)]
    init: PathBuf,
    /// A Debian package; kernel and modules may come in several.
    #[arg(long, group = "from")]
    deb: Vec<PathBuf>,
    /// A tar archive with boot/vmlinuz-* and lib/modules, or with a kernel that needs no modules.
    #[arg(long, group = "from")]
    tar: Option<PathBuf>,
    /// A kernel file that needs no modules.
    #[arg(long, group = "from")]
    binary: Option<PathBuf>,
    /// The kernel's path in the tar archive.
    #[arg(long, requires = "tar")]
    member: Option<String>,
    /// What to note as the source; default: the files' names.
    #[arg(long)]
    source: Option<String>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(arguments.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Serve { app_root, config, allow_missing } => {
            serve(&app_root, config, &allow_missing)
        }
        Command::KernelBundle(arguments) => kernel_bundle(arguments),
        Command::KernelInitramfs { bundle, init } => {
            kernel::rebuild_initramfs(&bundle, &init)?;
            Ok(())
        }
    }
}

fn serve(app_root: &Path, config: Option<PathBuf>, allow_missing: &[String]) -> anyhow::Result<()> {
    // One JSON object a line on standard error, which the apiserver keeps as the service's log.
    tracing_subscriber::fmt()
        .json()
        // A line that can't be written must not become one on a standard error that may be as full:
        // that would end the service.
        .log_internal_errors(false)
        .with_env_filter(
            EnvFilter::try_from_env("CONTAINER_LOG").unwrap_or_else(|_| EnvFilter::new("info")),
        )
        .with_writer(std::io::stderr)
        .init();
    let root = AppRoot::resolve(Some(app_root))?;
    let config = match config {
        Some(config) => config,
        None => container_api::paths::config_file(&root)?,
    };
    let config = Config::load(&config)?;
    container_images::serve::serve(&root, &config, allow_missing)?;
    Ok(())
}

fn kernel_bundle(arguments: KernelBundle) -> anyhow::Result<()> {
    let KernelBundle { output, init, deb, tar, binary, member, source } = arguments;
    let files: Vec<&Path> = deb.iter().chain(&tar).chain(&binary).map(PathBuf::as_path).collect();
    let name =
        source.unwrap_or_else(|| files.iter().map(|f| base_name(f)).collect::<Vec<_>>().join(" "));
    let source = match (tar, binary) {
        (Some(tar), _) => Source::Tar { name: base_name(&tar), file: open(&tar)?, member },
        (_, Some(binary)) => Source::Binary { name: base_name(&binary), file: open(&binary)? },
        _ if deb.is_empty() => anyhow::bail!("one of --deb, --tar and --binary is needed"),
        _ => Source::Debs(
            deb.iter().map(|d| Ok((base_name(d), open(d)?))).collect::<anyhow::Result<_>>()?,
        ),
    };
    let bundle = kernel::make(&output, source, &init, &Platform::host().architecture, &name)?;
    println!("kernel {} in {}", bundle.version, output.display());
    Ok(())
}

fn open(path: &Path) -> anyhow::Result<File> {
    File::open(path).with_context(|| format!("opening {}", path.display()))
}

fn base_name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}
