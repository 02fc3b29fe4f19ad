//! Commands about images.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::container::{Fetch, PlatformArgs};
use super::{Format, ProgressKind};

/// `image …`.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// List images
    #[command(visible_alias = "ls")]
    List(List),
    /// Fetch an image from a registry
    Pull(Pull),
    /// Write images to a tar archive
    Save(Save),
    /// Read images from a tar archive
    Load(Load),
    /// Give an image another name
    Tag(Tag),
    /// Delete images
    #[command(visible_alias = "rm")]
    Delete(Delete),
    /// Delete images that nothing needs
    Prune(Prune),
    /// Show everything about images, as JSON
    Inspect(Inspect),
}

/// `image list`.
#[derive(Clone, Debug, Args)]
pub struct List {
    /// Form of the output
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
    /// Print names alone
    #[arg(short, long, conflicts_with = "verbose")]
    pub quiet: bool,
    /// Show digests, platforms, sizes and times
    #[arg(short, long)]
    pub verbose: bool,
}

/// `image pull`.
#[derive(Clone, Debug, Args)]
pub struct Pull {
    /// Which platform.
    #[command(flatten)]
    pub platform: PlatformArgs,
    /// How.
    #[command(flatten)]
    pub fetch: Fetch,
    /// The image
    #[arg(value_name = "REFERENCE")]
    pub reference: String,
}

/// `image save`.
#[derive(Clone, Debug, Args)]
pub struct Save {
    /// Which platform.
    #[command(flatten)]
    pub platform: PlatformArgs,
    /// File to write; - or nothing is standard output
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// How to show progress, on standard error
    #[arg(long, value_enum, default_value_t, value_name = "TYPE")]
    pub progress: ProgressKind,
    /// The images
    #[arg(value_name = "REFERENCES", required = true)]
    pub references: Vec<String>,
}

/// `image load`.
#[derive(Clone, Debug, Args)]
pub struct Load {
    /// File to read; - or nothing is standard input
    #[arg(short, long, value_name = "FILE")]
    pub input: Option<PathBuf>,
    /// Name for an image that brings none
    #[arg(long, value_name = "REFERENCE")]
    pub name: Option<String>,
    /// How to show progress, on standard error
    #[arg(long, value_enum, default_value_t, value_name = "TYPE")]
    pub progress: ProgressKind,
}

/// `image tag`.
#[derive(Clone, Debug, Args)]
pub struct Tag {
    /// An image
    pub source: String,
    /// Its new name
    pub target: String,
}

/// `image delete`.
#[derive(Clone, Debug, Args)]
pub struct Delete {
    /// Delete all images
    #[arg(short, long)]
    pub all: bool,
    /// An image that is missing is no error
    #[arg(short, long)]
    pub force: bool,
    /// The images
    pub images: Vec<String>,
}

/// `image prune`.
#[derive(Clone, Debug, Args)]
pub struct Prune {
    /// Delete all images that no container uses, not only nameless ones
    #[arg(short, long)]
    pub all: bool,
}

/// `image inspect`.
#[derive(Clone, Debug, Args)]
pub struct Inspect {
    /// The images
    #[arg(required = true)]
    pub images: Vec<String>,
}
