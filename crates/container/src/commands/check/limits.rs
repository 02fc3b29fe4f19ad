//! Whether limits hold, and whether memory comes back: the host measures itself where it can.

use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdout};
use tokio::time::{Instant, timeout};

use super::answers::{self, MEMORY, PROCESSES};
use super::guest::{self, PROCESS_LIMIT};
use super::image::PROGRAM;
use super::stage::{STEP, Stage};
use super::{Row, Verdict};

const AREA: &str = "limits";
const PROCESSOR: &str = "processors are limited";
const RETURNED: &str = "memory comes back to the host";

/// Threads that spin in a container with one processor, and for how many seconds.
const SPIN: [&str; 2] = ["4", "6"];
/// For how long the host looks, once they do.
const LOOK: Duration = Duration::from_secs(2);
/// What the hypervisor may use for a container with one processor: the emulator has threads of its
/// own beside the processor's.
const MOST_PROCESSORS: f64 = 1.6;
/// Below, the host was too busy to tell.
const LEAST_PROCESSORS: f64 = 0.5;

/// MiB that are taken and given back, and how much of it has to come back.
const TAKEN_MIB: u64 = 96;
const BACK_MIB: u64 = 64;
/// How long that may take: the guest tells its host in seconds.
const RETURN: Duration = Duration::from_secs(40);
/// Between two looks.
const PERIOD: Duration = Duration::from_millis(500);

/// What a process takes that should not be there to be taken.
const TOO_MUCH_MIB: &str = "512";

/// The rows that are no attempts of the probe's, when there is no container.
pub fn not_run(why: &str) -> Vec<Row> {
    [PROCESSOR, RETURNED].map(|check| Row::not_run(AREA, check, why.to_owned())).into()
}

/// As many processes as there can be.
pub async fn processes(stage: &Stage<'_>, name: &str) -> Vec<Row> {
    let said = guest::exec(stage, name, &["processes"]).await;
    let count = said.as_ref().ok().and_then(|text| {
        text.lines().find_map(|line| line.strip_prefix("processes ")?.parse::<u32>().ok())
    });
    let mut rows = answers::rows(PROCESSES, &said, &[]);
    for row in &mut rows {
        row.evidence = format!("{}, limit {PROCESS_LIMIT}", row.evidence);
        if row.result == Verdict::Pass && count.is_none_or(|count| count > PROCESS_LIMIT) {
            row.result = Verdict::Fail;
        }
    }
    rows
}

/// More memory than there may be; then the container still answers.
pub async fn memory(stage: &Stage<'_>, name: &str) -> Vec<Row> {
    let said = guest::exec(stage, name, &["exhaust", TOO_MUCH_MIB]).await;
    let mut rows = answers::rows(MEMORY, &said, &[]);
    if said.is_ok()
        && let Err(why) = guest::exec(stage, name, &["sleep", "0"]).await
    {
        for row in &mut rows {
            row.result = Verdict::Fail;
            row.evidence =
                format!("{}; the container does not answer any more: {why}", row.evidence);
        }
    }
    rows
}

/// More threads than processors; the host counts what the hypervisor uses.
pub async fn processors(stage: &Stage<'_>, name: &str) -> Row {
    match used(stage, name).await {
        Err(why) => Row::not_run(AREA, PROCESSOR, why),
        Ok(used) => processor_row(used),
    }
}

fn processor_row(used: f64) -> Row {
    let evidence =
        format!("{} busy threads used {used:.2} processors of the host, limit 1", SPIN[0]);
    if used < LEAST_PROCESSORS {
        return Row::not_run(AREA, PROCESSOR, format!("{evidence}: too little to tell"));
    }
    Row::of(AREA, PROCESSOR, if used <= MOST_PROCESSORS { Ok(evidence) } else { Err(evidence) })
}

async fn used(stage: &Stage<'_>, name: &str) -> Result<f64, String> {
    let pid = hypervisor(stage, name).await?;
    let mut child = stage.spawn(&["exec", name, PROGRAM, "spin", SPIN[0], SPIN[1]])?;
    let mut lines = Lines::of(&mut child)?;
    lines.expect("spinning").await?;
    let (began, before) = (Instant::now(), processor_time(pid)?);
    // A measurement by the host's clock: what a guest says comes late when it is busy.
    tokio::time::sleep(LOOK).await;
    let (took, after) = (began.elapsed(), processor_time(pid)?);
    lines.expect("done").await?;
    let _ = timeout(STEP, child.wait()).await;
    Ok(after.saturating_sub(before).as_secs_f64() / took.as_secs_f64().max(0.001))
}

async fn hypervisor(stage: &Stage<'_>, name: &str) -> Result<i32, String> {
    let container = stage.inspect(name).await?;
    container.hypervisor_pid.ok_or_else(|| "the service names no hypervisor".into())
}

/// Processor time of a process (`/proc/PID/stat`, fields 14 and 15).
fn processor_time(pid: i32) -> Result<Duration, String> {
    let path = format!("/proc/{pid}/stat");
    let stat = std::fs::read_to_string(&path).map_err(|e| format!("{path}: {e}"))?;
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    let field = |number: usize| -> Option<u64> {
        fields.split_ascii_whitespace().nth(number - 3)?.parse().ok()
    };
    let ticks = field(14).zip(field(15)).map(|(user, system)| user + system);
    // The kernel counts in hundredths of a second for whoever reads this file.
    ticks.map(|ticks| Duration::from_millis(ticks * 10)).ok_or_else(|| format!("{path}: malformed"))
}

/// Takes memory in the container, gives it back, and waits until the host has it again.
pub async fn memory_returned(stage: &Stage<'_>, name: &str) -> Row {
    match returned(stage, name).await {
        Err(why) => Row::not_run(AREA, RETURNED, why),
        Ok([held, after]) => returned_row(held, after),
    }
}

fn returned_row(held: u64, after: u64) -> Row {
    let back = held.saturating_sub(after) >> 20;
    let evidence = format!(
        "{back} of {TAKEN_MIB} MiB came back: the VM held {} MiB, then {} MiB",
        held >> 20,
        after >> 20
    );
    Row::of(AREA, RETURNED, if back >= BACK_MIB { Ok(evidence) } else { Err(evidence) })
}

async fn returned(stage: &Stage<'_>, name: &str) -> Result<[u64; 2], String> {
    let before = host_memory(stage, name).await?;
    let mib = TAKEN_MIB.to_string();
    let mut child = stage.spawn(&["exec", "--interactive", name, PROGRAM, "memory", &mib])?;
    let mut input = child.stdin.take().ok_or("no input")?;
    let mut lines = Lines::of(&mut child)?;
    lines.expect("held").await?;
    let held = host_memory(stage, name).await?;
    if held < before + ((TAKEN_MIB / 2) << 20) {
        return Err(format!("{TAKEN_MIB} MiB taken in the VM did not show on the host"));
    }
    input.write_all(b"\n").await.map_err(|e| e.to_string())?;
    lines.expect("freed").await?;
    let end = Instant::now() + RETURN;
    loop {
        let after = host_memory(stage, name).await?;
        if after + (BACK_MIB << 20) <= held || Instant::now() > end {
            return Ok([held, after]);
        }
        tokio::time::sleep(PERIOD).await;
    }
}

/// Bytes of the host's memory that the container's VM holds.
async fn host_memory(stage: &Stage<'_>, name: &str) -> Result<u64, String> {
    let stats = stage.json(&["stats", "--no-stream", "--format", "json", name]).await?;
    stats[0]["hostMemoryBytes"].as_u64().ok_or_else(|| "stats tell no hostMemoryBytes".into())
}

/// What a program says, line by line.
struct Lines(tokio::io::Lines<BufReader<ChildStdout>>);

impl Lines {
    fn of(child: &mut Child) -> Result<Lines, String> {
        let output = child.stdout.take().ok_or("no output")?;
        Ok(Lines(BufReader::new(output).lines()))
    }

    /// Waits for a line that begins so.
    async fn expect(&mut self, word: &str) -> Result<(), String> {
        let wait = async {
            loop {
                match self.0.next_line().await {
                    Ok(Some(line)) if line.starts_with(word) => return Ok(()),
                    Ok(Some(_)) => {}
                    Ok(None) => return Err(format!("the probe ended before it said {word:?}")),
                    Err(error) => return Err(error.to_string()),
                }
            }
        };
        timeout(STEP, wait).await.map_err(|_| format!("the probe did not say {word:?}"))?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_that_does_not_hold_is_red() {
        assert_eq!(processor_row(1.05).result, Verdict::Pass);
        assert_eq!(processor_row(3.9).result, Verdict::Fail);
        assert_eq!(processor_row(0.01).result, Verdict::NotRun);
        assert_eq!(returned_row(200 << 20, 110 << 20).result, Verdict::Pass);
        assert_eq!(returned_row(200 << 20, 190 << 20).result, Verdict::Fail);
        assert_eq!(returned_row(200 << 20, 210 << 20).result, Verdict::Fail);
    }

    #[test]
    fn this_process_takes_time() {
        let pid = i32::try_from(std::process::id()).unwrap();
        processor_time(pid).unwrap();
        processor_time(-1).unwrap_err();
    }
}
