//! The programs in C that benchmarks run, in guests and on the host.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use super::Bench;
use crate::workspace::{make_dir, run};

/// Compiles `source` to a static program of that name, in the folder of the benchmarks.
pub fn compiled(bench: &Bench<'_>, name: &str, source: &str) -> Result<PathBuf> {
    let folder = bench.workspace.target.join("bench");
    make_dir(&folder)?;
    let text = folder.join(format!("{name}.c"));
    std::fs::write(&text, source).with_context(|| format!("write {}", text.display()))?;
    let program = folder.join(name);
    run(Command::new("gcc").args(["-Os", "-static", "-o"]).arg(&program).arg(&text))?;
    Ok(program)
}
