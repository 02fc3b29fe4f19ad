//! Commands about the audit trail.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

use super::Format;

/// `system audit …`.
#[derive(Clone, Debug, Subcommand)]
pub enum Audit {
    /// Show what was done: who asked, what was decided, what came of it
    #[command(visible_alias = "ls")]
    List(List),
    /// Show records as they are written, a line each
    Follow,
    /// Print the number and digest of the last record, to be kept elsewhere
    Head,
    /// Check that no record was edited, removed, added or moved
    Verify(Verify),
}

/// `system audit list`.
#[derive(Clone, Debug, Args)]
pub struct List {
    /// Only the last operations
    #[arg(short = 'n', long, value_name = "N")]
    pub number: Option<usize>,
    /// How far to look back (m, h, d)
    #[arg(long, value_name = "LAST", value_parser = humantime::parse_duration)]
    pub last: Option<Duration>,
    /// Only operations on this container, image, network or volume
    #[arg(long, value_name = "NAME")]
    pub subject: Option<String>,
    /// Form of the output
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
}

/// `system audit verify`.
#[derive(Clone, Debug, Args)]
pub struct Verify {
    /// A head that `system audit head` has printed, which the trail must hold
    #[arg(long, value_name = "HEAD")]
    pub head: Vec<String>,
    /// A file of heads, beside the configured one
    #[arg(long, value_name = "FILE")]
    pub anchor: Vec<PathBuf>,
}
