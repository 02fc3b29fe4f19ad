//! `cargo xtask surface`: the list of what a guest's programs can reach, in `docs/security.md`.

use anyhow::{Context, Result};
use e2e::surface;

use crate::workspace::{Workspace, step};

/// Starts a container with the prepared kernel and writes what it sees into the document.
pub fn write(workspace: &Workspace, (): ()) -> Result<()> {
    let list = surface::list();
    let path = workspace.root.join("docs/security.md");
    let text =
        std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let fresh = surface::replaced(&text, &list)?;
    std::fs::write(&path, fresh).with_context(|| format!("write {}", path.display()))?;
    step(format!("written: {}", path.display()));
    Ok(())
}
