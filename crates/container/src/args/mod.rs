//! What the command line accepts: parsed without touching anything.
//!
//! One module per command group. `clap` gives structs of words; each group turns them into the
//! typed requests of [`container_api`], again without side effects, so that both steps are tested
//! as tables.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};

pub mod audit;
pub mod container;
pub mod copy;
pub mod environment;
pub mod image;
pub mod later;
pub mod mount;
pub mod network;
pub mod process;
pub mod security;
pub mod system;
#[cfg(test)]
mod tests;
pub mod values;
pub mod volume;

/// The whole command line.
#[derive(Debug, Parser)]
#[command(
    name = "container",
    version,
    about = "Run OCI containers, each in its own lightweight Linux virtual machine",
    disable_help_subcommand = true,
    infer_long_args = false,
    max_term_width = 100
)]
pub struct Cli {
    /// Options of every command.
    #[command(flatten)]
    pub global: Global,
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

/// Options that every command takes, before or after its name.
#[derive(Clone, Debug, Args)]
pub struct Global {
    /// Directory of the installation to speak to [env: CONTAINER_APP_ROOT]
    #[arg(long, global = true, value_name = "DIR", help_heading = "Global options")]
    pub app_root: Option<PathBuf>,
    /// Say what is done, and how long it took
    #[arg(long, global = true, help_heading = "Global options")]
    pub debug: bool,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a container
    Run(Box<container::Run>),
    /// Create a container without starting it
    Create(Box<container::Create>),
    /// Start a container
    Start(container::Start),
    /// Stop containers: a signal, then SIGKILL
    Stop(container::Stop),
    /// Stop containers and start them again
    Restart(container::Restart),
    /// Send a signal to containers
    Kill(container::Kill),
    /// Delete containers
    #[command(visible_alias = "rm")]
    Delete(container::Delete),
    /// List containers
    #[command(visible_alias = "ls")]
    List(container::List),
    /// Run another command in a running container
    Exec(container::Exec),
    /// Show what a container has printed
    Logs(container::Logs),
    /// Show everything about containers, as JSON
    Inspect(container::Ids),
    /// Copy files into a container, or out of it
    #[command(visible_alias = "cp")]
    Copy(copy::Copy),
    /// Write a container's files as one tar archive
    Export(copy::Export),
    /// Show which files a container has changed
    Diff(copy::Diff),
    /// Make an image of a container
    Commit(copy::Commit),
    /// Give a container another ID
    Rename(copy::Rename),
    /// Delete all stopped containers
    Prune,
    /// Show what running containers use, again and again
    Stats(container::Stats),
    /// Change the limits of running containers
    Update(container::Update),
    /// Wait for containers to end, and print their exit codes
    Wait(container::Ids),
    /// Manage images
    #[command(subcommand, visible_alias = "i")]
    Image(image::Command),
    /// Manage networks
    #[command(subcommand, visible_alias = "n")]
    Network(network::Command),
    /// Manage volumes
    #[command(subcommand, visible_alias = "v")]
    Volume(volume::Command),
    /// Manage the services and the guest kernel
    #[command(subcommand, visible_alias = "s")]
    System(system::Command),
}

/// `--format`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Columns for people.
    #[default]
    Table,
    /// JSON, one line.
    Json,
    /// YAML.
    Yaml,
    /// TOML.
    Toml,
}

/// `--progress`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum ProgressKind {
    /// A bar when standard error is a terminal, else nothing.
    #[default]
    Auto,
    /// Nothing.
    None,
    /// Lines, for logs.
    Plain,
    /// A bar.
    Ansi,
    /// A bar with colours.
    Color,
}

/// Parses a whole command line. The word behind `--virtualization` is its value when it is `true`
/// or `false`; else it is the image, as behind other flags.
pub fn parse(mut words: Vec<OsString>) -> Result<Cli, clap::Error> {
    let parsed = Cli::try_parse_from(&words);
    let create = match &parsed {
        Ok(Cli { command: Command::Run(run), .. }) => &run.create,
        Ok(Cli { command: Command::Create(create), .. }) => create,
        _ => return parsed,
    };
    // The image and what follows stand at the end, as they were given.
    let at = words.len() - create.words.len();
    let is_value = words[at] == "true" || words[at] == "false";
    if !is_value || words[at - 1] != "--virtualization" {
        return parsed;
    }
    let value = words.remove(at);
    words[at - 1].push("=");
    words[at - 1].push(value);
    Cli::try_parse_from(&words)
}

/// The parser, for man pages and shell completions.
pub fn cli() -> clap::Command {
    Cli::command()
}
