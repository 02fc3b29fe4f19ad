//! rustfmt, clippy, the crate graph, dependencies and counts over the whole workspace; warnings are
//! errors.

use anyhow::Result;

use crate::workspace::{self, Workspace, step};
use crate::{dependencies, graph, unsafety};

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
    graph::check(workspace, ())?;
    step("dependencies");
    dependencies::check(workspace, ())?;
    step("unsafe");
    unsafety::check(workspace, ())
}
