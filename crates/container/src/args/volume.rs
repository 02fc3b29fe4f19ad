//! `volume …`.

use clap::{Args, Subcommand};
use container_api::mounts::VolumeOptions;
use container_api::{ApiError, Result, config};

use super::{Format, values};

/// `volume …`.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Make a volume
    Create(Create),
    /// Delete volumes
    #[command(visible_alias = "rm")]
    Delete(Delete),
    /// Delete all volumes that no container has
    Prune,
    /// List volumes
    #[command(visible_alias = "ls")]
    List(List),
    /// Show everything about volumes, as JSON
    Inspect(Inspect),
}

/// `volume create`.
#[derive(Clone, Debug, Default, Args)]
pub struct Create {
    /// How much it can hold (suffix K, M, G) [default: 64G, of which only what is used takes room]
    #[arg(short, long = "size", value_name = "SIZE")]
    pub size: Option<String>,
    /// Add a label (key[=value])
    #[arg(long, value_name = "LABEL")]
    pub label: Vec<String>,
    /// size=SIZE, journal=ordered|writeback|journal[:SIZE], type=block
    #[arg(long = "opt", value_name = "OPTION")]
    pub options: Vec<String>,
    /// The volume's name
    pub name: String,
}

impl Create {
    /// The typed request.
    pub fn request(&self) -> Result<VolumeOptions> {
        if self.name.is_empty() {
            return Err(ApiError::invalid("the volume's name is empty"));
        }
        let size = self.size.as_deref().map(config::parse_size).transpose();
        Ok(VolumeOptions {
            name: self.name.clone(),
            size_in_bytes: size.map_err(|error| error.context("--size"))?,
            labels: values::labels(&self.label)?,
            options: values::labels(&self.options)?,
        })
    }
}

/// `volume delete`.
#[derive(Clone, Debug, Args)]
pub struct Delete {
    /// Delete all volumes that no container has
    #[arg(short, long)]
    pub all: bool,
    /// The volumes
    #[arg(value_name = "NAMES")]
    pub names: Vec<String>,
}

/// `volume list`.
#[derive(Clone, Debug, Args)]
pub struct List {
    /// Form of the output
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
    /// Print names alone
    #[arg(short, long)]
    pub quiet: bool,
}

/// `volume inspect`.
#[derive(Clone, Debug, Args)]
pub struct Inspect {
    /// The volumes
    #[arg(value_name = "NAMES", required = true)]
    pub names: Vec<String>,
}
