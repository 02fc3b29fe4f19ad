//! `cargo xtask fuzz`: builds the targets of `fuzz/` and runs them, one after the other.
//!
//! This needs no nightly toolchain and no cargo-fuzz: what that passes to the compiler stands here.
//! Dependencies are instrumented too, so the build has a folder of its own.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::args::Args;
use crate::workspace::{ARCH, Workspace, run, step};

/// Coverage for libFuzzer, and AddressSanitizer: as cargo-fuzz sets them. Overflows of integers end
/// a run, as they would end a debug build.
const FLAGS: &str = "--cfg fuzzing -Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares \
    -Zsanitizer=address -Cdebug-assertions -Coverflow-checks";

/// What to fuzz.
pub struct Options {
    /// Of each target.
    seconds: u32,
    /// Which; none: all.
    targets: Vec<String>,
}

impl Options {
    /// Parses the arguments.
    pub fn parse(mut args: Args) -> Result<Options> {
        let seconds = match args.value("--seconds")? {
            Some(text) => text.parse().with_context(|| format!("--seconds {text:?}"))?,
            None => 600,
        };
        Ok(Options { seconds, targets: args.rest() })
    }
}

/// Builds and runs.
pub fn fuzz(workspace: &Workspace, options: &Options) -> Result<()> {
    let place = workspace.root.join("fuzz");
    let all = targets(&place)?;
    if let Some(unknown) = options.targets.iter().find(|name| !all.contains(*name)) {
        bail!("there is no fuzz target {unknown}; there are {}", all.join(", "));
    }
    let wanted = if options.targets.is_empty() { &all } else { &options.targets };
    let target = workspace.target.join("fuzz");
    let triple = format!("{ARCH}-unknown-linux-gnu");
    step(format!("building {} fuzz targets", wanted.len()));
    let mut build = workspace.cargo();
    build.env("RUSTC_BOOTSTRAP", "1").env("RUSTFLAGS", FLAGS).env("CARGO_TARGET_DIR", &target);
    build.args(["build", "--release", "--target", &triple, "--manifest-path"]);
    build.arg(place.join("Cargo.toml"));
    build.args(wanted.iter().flat_map(|name| ["--bin", name]));
    run(&mut build)?;
    for name in wanted {
        step(format!("{name}: {} s", options.seconds));
        let (corpus, found) = (place.join("corpus").join(name), place.join("artifacts").join(name));
        for folder in [&corpus, &found] {
            std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        }
        let mut command = Command::new(target.join(&triple).join("release").join(name));
        command.arg(corpus).arg(place.join("seeds").join(name));
        command.arg(format!("-max_total_time={}", options.seconds));
        command.arg(format!("-max_len={}", max_len(name)));
        command.arg(format!("-artifact_prefix={}/", found.display()));
        command.args(["-print_final_stats=1", "-timeout=20", "-rss_limit_mb=2500"]);
        run(&mut command)?;
    }
    Ok(())
}

/// By their sources' names.
fn targets(place: &std::path::Path) -> Result<Vec<String>> {
    let folder: PathBuf = place.join("fuzz_targets");
    let mut names = Vec::new();
    for entry in std::fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        let stem = path.file_stem().and_then(|stem| stem.to_str());
        names.extend(stem.map(str::to_owned));
    }
    names.sort();
    Ok(names)
}

/// Longest input in bytes: images and archives are long, options are not.
fn max_len(target: &str) -> u32 {
    match target {
        "layers" | "erofs" | "kernel" => 65_536,
        "copy" | "seccomp" | "frames" => 16_384,
        _ => 4096,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_has_seeds_and_is_in_the_manifest() {
        let place = Workspace::find().unwrap().root.join("fuzz");
        let manifest = std::fs::read_to_string(place.join("Cargo.toml")).unwrap();
        let found = targets(&place).unwrap();
        assert!(found.len() >= 15, "{found:?}");
        for name in found {
            assert!(manifest.contains(&format!("name = \"{name}\"")), "{name}");
            assert!(std::fs::read_dir(place.join("seeds").join(&name)).unwrap().count() > 0);
        }
    }
}
