//! Man pages and shell completions, rendered from the command's own parser. Behind the
//! feature `documents`, since it compiles the whole command into xtask.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap_complete::Shell;

use crate::args::Args;
use crate::workspace::make_dir;

/// Writes both below the prefix given as the only argument.
pub fn write(args: Args) -> Result<()> {
    let prefix = PathBuf::from(args.rest().pop().context("the prefix is missing")?);
    let mut command = container::cli().version(env!("CARGO_PKG_VERSION"));
    let folder = prefix.join("share/man/man1");
    make_dir(&folder)?;
    clap_mangen::generate_to(command.clone(), &folder).context("write the man pages")?;
    for (shell, path) in [
        (Shell::Bash, "share/bash-completion/completions/container"),
        (Shell::Zsh, "share/zsh/site-functions/_container"),
        (Shell::Fish, "share/fish/vendor_completions.d/container.fish"),
    ] {
        completion(shell, &mut command, &prefix.join(path))?;
    }
    Ok(())
}

fn completion(shell: Shell, command: &mut clap::Command, path: &Path) -> Result<()> {
    make_dir(path.parent().context("a completion without a folder")?)?;
    let mut script = Vec::new();
    clap_complete::generate(shell, command, "container", &mut script);
    std::fs::write(path, script).with_context(|| format!("write {}", path.display()))
}
