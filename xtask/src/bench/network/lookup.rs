//! How long the resolver of a network takes for a container's name, from the guest's packet to the
//! answer, by the clock of the network's bridge: the guest's own time is the emulator's.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{NETWORK, Site};
use crate::bench::Bench;
use crate::bench::figure::{Figure, Promise};

const SOON: Duration = Duration::from_secs(30);

/// One container asks for another.
pub fn lookup(bench: &Bench<'_>) -> Result<Vec<Figure>> {
    let site = Site::new("");
    for name in ["asking", "asked"] {
        site.it
            .run(["run", "-d", "--name", name, "--network", NETWORK, "busybox", "sleep", "100000"])
            .ok();
    }
    let namespace = namespace(&site)?;
    // In the namespace of the network; the files are this one's.
    let mut capture = e2e::Cmd::new("nsenter")
        .arg(format!("--net={namespace}"))
        .args(["tcpdump", "-n", "-tt", "-l", "--time-stamp-precision=nano", "--immediate-mode"])
        .args(["-i", "br0", "udp port 53"])
        .spawn();
    capture.wait_for_stderr("listening on", SOON);
    let script = format!(
        "for i in $(seq {}); do busybox nslookup -type=a asked >/dev/null; done",
        bench.rounds * 3
    );
    site.it.run(["exec", "asking", "sh", "-c", &script]).ok();
    capture.interrupt();
    let text = capture.wait(SOON).text();
    let took = times(&text);
    ensure!(took.len() >= bench.rounds, "too few answers were seen: {text}");
    let name = "name of a container, from question to answer at the resolver";
    Ok(vec![Figure::new(name, "ms", took, Promise::AtMost(1.0))])
}

/// The network's namespace, by the path of a thread that lives in it.
fn namespace(site: &Site) -> Result<String> {
    let host = std::fs::read_link(format!("/proc/{}/ns/net", site.world.host.pid()))
        .context("the host's namespace")?;
    let service = site.it.process("container-network").pid;
    let tasks = std::fs::read_dir(format!("/proc/{service}/task")).context("its threads")?;
    for task in tasks.flatten() {
        let path = task.path().join("ns/net");
        if std::fs::read_link(&path).is_ok_and(|other| other != host)
            && has_network(&path.to_string_lossy(), &site.address("asked"))
        {
            return Ok(path.to_string_lossy().into_owned());
        }
    }
    anyhow::bail!("no thread of the service is in the network's namespace")
}

/// Whether a container's address is reached over this namespace's bridge.
fn has_network(namespace: &str, address: &str) -> bool {
    let route = e2e::Cmd::new("nsenter")
        .arg(format!("--net={namespace}"))
        .args(["ip", "route", "get", address])
        .run();
    route.text().contains("dev br0")
}

/// Milliseconds between each question and its answer, in what tcpdump prints:
/// `1700000000.123456789 IP 10.0.0.2.5353 > 10.0.0.1.53: 2+ A? asked. (23)`.
fn times(text: &str) -> Vec<f64> {
    let mut asked = BTreeMap::new();
    let mut took = Vec::new();
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [at, "IP", from, ">", to, id, ..] = words[..] else { continue };
        // As an integer: what is left of a second's billionth in a float is too coarse.
        let Ok(at) = at.replace('.', "").parse::<u64>() else { continue };
        let id: String = id.chars().take_while(char::is_ascii_digit).collect();
        let (to, is_question) = (to.trim_end_matches(':'), to.ends_with(".53:"));
        match is_question {
            true => drop(asked.insert((from.to_owned(), id), at)),
            false => {
                if let Some(begin) = asked.remove(&(to.to_owned(), id)) {
                    took.push((at - begin) as f64 / 1e6);
                }
            }
        }
    }
    took
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_and_its_answer_are_matched() {
        let text = "\
1700000000.000000100 IP 10.0.0.2.4000 > 10.0.0.1.53: 2+ A? asked. (23)
1700000000.000001100 IP 10.0.0.2.4001 > 10.0.0.1.53: 2+ A? asked. (23)
1700000000.000020100 IP 10.0.0.1.53 > 10.0.0.2.4000: 2 1/0/0 A 10.0.0.3 (44)
nonsense
1700000000.000041100 IP 10.0.0.1.53 > 10.0.0.2.4001: 2 1/0/0 A 10.0.0.3 (44)
";
        assert_eq!(times(text), [0.02, 0.04]);
    }
}
