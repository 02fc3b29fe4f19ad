//! `container-runtime-linux run DIRECTORY` runs one container in its VM; `spare` makes a VM that
//! waits to become a container's, `template` what VMs are restored from, and `probe` says what this
//! host can run VMs with.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use container_api::config::AcceleratorChoice;
use container_api::trace::now_ns;
use container_runtime_linux::hypervisor::attacker::{self, Attack};
use container_runtime_linux::{helper, report, spare, tap, template};

const USAGE: &str = "\
Usage: container-runtime-linux run DIRECTORY [--taps N]
       container-runtime-linux spare DIRECTORY [--taps N]
       container-runtime-linux template DIRECTORY
       container-runtime-linux probe [--accelerator auto|kvm|tcg] [--qemu PATH]
           [--qemu-libraries DIRECTORY]... [--qemu-data DIRECTORY]
           [--allow-missing LAYER]... [--jail-uid UID]
       container-runtime-linux attack PROBE --own FILE --shared FILE [--kvm yes|no]
           [--allow-missing LAYER]... [--pid PID]... [--file PATH]... [--abstract NAME]

The taps of the VM's network interfaces are descriptors 3 and up.

Not for direct use: container-apiserver calls it.
";

fn main() -> ExitCode {
    let began_ns = now_ns();
    match run(std::env::args_os().skip(1), began_ns) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("container-runtime-linux: {error:#}");
            ExitCode::from(125)
        }
    }
}

fn run(mut words: impl Iterator<Item = OsString>, began_ns: u64) -> Result<()> {
    match words.next().as_deref().and_then(|w| w.to_str()) {
        Some("run") => {
            let (directory, taps) = directory_and_taps(words).context("run")?;
            helper::run(&directory, taps, began_ns)
        }
        Some("spare") => {
            let (directory, taps) = directory_and_taps(words).context("spare")?;
            spare::run(&directory, taps)
        }
        Some("template") => template::make(&directory(words).context("template")?),
        Some("probe") => probe(words),
        Some("attack") => attack(words),
        Some("--help" | "-h" | "help") => {
            print!("{USAGE}");
            Ok(())
        }
        Some("--version" | "-V") => {
            println!("container-runtime-linux {}", env!("CARGO_PKG_VERSION"));
            Ok(())
        }
        _ => bail!("no such command\n{USAGE}"),
    }
}

/// A directory, and the taps that `--taps` counts.
fn directory_and_taps(
    mut words: impl Iterator<Item = OsString>,
) -> Result<(PathBuf, Vec<OwnedFd>)> {
    let path = words.next().context("no directory")?;
    let count = match words.next() {
        None => 0,
        Some(word) if word == "--taps" => {
            let count = words.next().context("--taps needs a number")?;
            let count = count.to_str().and_then(|count| count.parse().ok());
            count.context("--taps needs a number")?
        }
        Some(word) => bail!("unknown argument {}", word.to_string_lossy()),
    };
    if let Some(word) = words.next() {
        bail!("unknown argument {}", word.to_string_lossy());
    }
    Ok((path.into(), tap::inherited(count)?))
}

/// One argument.
fn directory(mut words: impl Iterator<Item = OsString>) -> Result<PathBuf> {
    let directory = words.next().context("no directory")?;
    match words.next() {
        None => Ok(directory.into()),
        Some(word) => bail!("unknown argument {}", word.to_string_lossy()),
    }
}

fn probe(mut words: impl Iterator<Item = OsString>) -> Result<()> {
    let mut options = report::Options::default();
    while let Some(word) = words.next() {
        let option = word.to_string_lossy().into_owned();
        let value = words.next().with_context(|| format!("{option} needs a value"))?;
        let text = || value.to_str().with_context(|| format!("{option}: not UTF-8"));
        match option.as_str() {
            "--accelerator" => {
                options.wish = text()?.parse::<AcceleratorChoice>().map_err(anyhow::Error::msg)?;
            }
            "--qemu" => options.qemu = Some(value.into()),
            "--qemu-libraries" => options.libraries.push(value.into()),
            "--qemu-data" => options.data = Some(value.into()),
            "--allow-missing" => options.allow_missing.push(text()?.to_owned()),
            "--jail-uid" => options.jail_uid = text()?.parse().context("--jail-uid")?,
            _ => bail!("probe: unknown option {option}"),
        }
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let report = runtime.block_on(report::make(options))?;
    println!("{}", serde_json::to_string(&report)?);
    Ok(())
}

/// Puts the probe where a hypervisor would be, and prints what it says.
fn attack(mut words: impl Iterator<Item = OsString>) -> Result<()> {
    let probe = PathBuf::from(words.next().context("attack: no probe")?);
    let mut attack = Attack { probe, ..Attack::default() };
    let mut allow_missing = Vec::new();
    while let Some(word) = words.next() {
        let option = word.to_string_lossy().into_owned();
        let value = words.next().with_context(|| format!("{option} needs a value"))?;
        let text = || value.to_str().with_context(|| format!("{option}: not UTF-8"));
        match option.as_str() {
            "--own" => attack.own = value.into(),
            "--shared" => attack.shared = value.into(),
            "--kvm" => match text()? {
                "yes" => attack.kvm = true,
                "no" => attack.kvm = false,
                other => bail!("--kvm is yes or no, not {other}"),
            },
            "--allow-missing" => allow_missing.push(text()?.to_owned()),
            "--pid" => attack.processes.push(text()?.parse().context("--pid")?),
            "--file" => attack.files.push(value.into()),
            "--abstract" => attack.name = Some(text()?.to_owned()),
            _ => bail!("attack: unknown option {option}"),
        }
    }
    let jail = helper::jail(allow_missing, report::PROBE_UID)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let said = runtime.block_on(attacker::attack(&jail, &attack))?;
    std::io::Write::write_all(&mut std::io::stdout(), &said)?;
    Ok(())
}
