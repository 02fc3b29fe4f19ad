//! rustfmt, clippy and the crate graph over the whole workspace; warnings are errors.

use anyhow::Result;

use crate::graph;
use crate::workspace::{self, Workspace, step};

/// Formats are checked, never written.
pub fn run(workspace: &Workspace, (): ()) -> Result<()> {
    step("rustfmt");
    workspace::run(workspace.cargo().args(["fmt", "--all", "--check"]))?;
    step("clippy");
    workspace::run(workspace.cargo().args([
        "clippy",
        "--quiet",
        "--workspace",
        "--all-targets",
        "--",
        "--deny",
        "warnings",
    ]))?;
    step("crate graph");
    graph::check(workspace, ())
}
