//! Hostile agents: VMs whose init is the probe. Each may end its own container, with a reason, and
//! nothing else.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use container_api::images::{BUNDLE_INITRAMFS, BUNDLE_KERNEL};

use super::Row;
use super::guest::{self, Guests};
use super::image;
use super::stage::{Stage, word};

const AREA: &str = "agent";

/// How each behaves, by the probe's word for it, and its row.
const CONDUCTS: [(&str, &str); 3] = [
    ("garbage", "one that sends garbage ends alone"),
    ("lies", "one that lies about lengths ends alone"),
    ("floods", "one that floods ends alone"),
];

/// A boot may take a minute until it is given up.
const LIMIT: Duration = Duration::from_secs(100);

/// RAM of each.
const MEMORY: &str = "128m";

/// What the probe says on its guest's console.
const MARK: &str = "container-probe: a hostile agent";

/// How each of them ended.
pub struct Ends([Result<String, Trouble>; 3]);

/// All of them at once.
pub async fn attack(stage: &Stage<'_>) -> Ends {
    let ends = tokio::join!(
        ended(stage, CONDUCTS[0].0),
        ended(stage, CONDUCTS[1].0),
        ended(stage, CONDUCTS[2].0),
    );
    Ends([ends.0, ends.1, ends.2])
}

/// The rows, once they are gone: another container has to be there still.
pub async fn rows(stage: &Stage<'_>, ends: Ends, guests: Option<&Guests>) -> Vec<Row> {
    let others = match guests {
        None => Err("no other container runs that could be watched".to_owned()),
        Some(guests) => guest::exec(stage, &guests.attacker, &["sleep", "0"]).await,
    };
    let row = |(_, check): (&str, &'static str), end| match (end, &others) {
        (Err(Trouble::Before(why)), _) => Row::not_run(AREA, check, why),
        (Err(Trouble::After(why)), _) => Row::of(AREA, check, Err(why)),
        (Ok(_), Err(why)) if guests.is_none() => Row::not_run(AREA, check, why.clone()),
        (Ok(_), Err(why)) => {
            Row::of(AREA, check, Err(format!("another container does not answer: {why}")))
        }
        (Ok(evidence), Ok(_)) => Row::of(AREA, check, Ok(evidence)),
    };
    ends.0.into_iter().zip(CONDUCTS).map(|(end, conduct)| row(conduct, end)).collect()
}

enum Trouble {
    /// There was no agent yet.
    Before(String),
    /// It did what it may not.
    After(String),
}

/// Starts a container with that agent: it has to fail, with a reason, and its VM has to be gone.
async fn ended(stage: &Stage<'_>, conduct: &str) -> Result<String, Trouble> {
    let bundle = bundle(stage, conduct).await.map_err(Trouble::Before)?;
    let (name, image) = (stage.name(conduct), stage.image());
    let mut words = vec!["run", "--name", &name, "--network", "none", "--cpus", "1"];
    words.extend(["--memory", MEMORY, "--kernel", &bundle, &image, "sleep", "0"]);
    let command = stage.command(&words).map_err(Trouble::Before)?;
    let said = stage.run(command, LIMIT).await.map_err(Trouble::After)?;
    // Without it something else has ended the start, a limit for one.
    let console = stage.container(&["logs", "--boot", &name]).await.map_err(Trouble::After)?;
    if !console.output.contains(MARK) {
        return Err(Trouble::Before(format!("no hostile agent came to run: {}", said.complaint)));
    }
    if said.code != Some(125) {
        let code = said.code.map_or("a signal".to_owned(), |code| code.to_string());
        return Err(Trouble::After(format!("the start ended with {code}, not with 125")));
    }
    match stage.inspect(&name).await.map_err(Trouble::After)?.hypervisor_pid {
        Some(_) => Err(Trouble::After("its VM is still there".into())),
        None => Ok(said.complaint),
    }
}

/// The installation's kernel with an initramfs whose init is the probe.
async fn bundle(stage: &Stage<'_>, conduct: &str) -> Result<String, String> {
    let kernel = stage.status().await?.kernel_path.ok_or("there is no guest kernel")?;
    let read = |path: &Path| std::fs::read(path).map_err(|e| format!("{}: {e}", path.display()));
    let original = read(&kernel.join(BUNDLE_INITRAMFS))?;
    let probe = read(&stage.probe)?;
    let made = image::initramfs(original, &probe, conduct).map_err(|e| e.to_string())?;
    let file = stage.file(&format!("{conduct}/{BUNDLE_INITRAMFS}"), &made, 0o644)?;
    let folder = file.parent().unwrap_or(stage.folder()).to_owned();
    symlink(kernel.join(BUNDLE_KERNEL), folder.join(BUNDLE_KERNEL))
        .map_err(|e| format!("{}: {e}", folder.display()))?;
    Ok(word(folder))
}
