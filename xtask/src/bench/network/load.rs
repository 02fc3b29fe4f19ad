//! A published port under load: ApacheBench on the host, a web server in the container.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use e2e::{busybox, wait_for};

use super::{NETWORK, Site};
use crate::bench::Bench;
use crate::bench::figure::{Figure, Promise};
use crate::workspace::{run, step};

/// What only this benchmark needs.
const PACKAGE: &str = "apache2-utils";
const CONCURRENT: usize = 32;

/// Requests, each a connection of its own.
pub fn load(bench: &Bench<'_>) -> Result<Vec<Figure>> {
    prepare()?;
    let site = Site::new("");
    let script = "mkdir /www; echo page >/www/index.html; exec busybox httpd -f -p 80 -h /www";
    let options = ["run", "-d", "--name", "web", "--network", NETWORK, "-p", "8080:80"];
    site.it.run([&options[..], &[busybox::NAME, "sh", "-c", script]].concat()).ok();
    let url = "http://127.0.0.1:8080/";
    wait_for("a web server", std::time::Duration::from_secs(30), || {
        let curl = site.world.host.command("curl").args(["-sf", url]).run();
        (curl.code == Some(0)).then_some(())
    });
    let requests = bench.rounds * 100;
    let output = site
        .world
        .host
        .command("ab")
        .args(["-q", "-s", "60", "-n", &requests.to_string(), "-c", &CONCURRENT.to_string(), url])
        .deadline(std::time::Duration::from_secs(600))
        .run();
    ensure!(output.code == Some(0), "ab: {}", output.errors());
    let text = output.text();
    let value = |name: &str| -> Result<f64> {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let word = line.and_then(|line| line.split_whitespace().next());
        word.and_then(|word| word.parse().ok()).with_context(|| format!("ab says no {name}"))
    };
    let complete = value("Complete requests")?;
    // A line of its own only where there are some.
    let bad = value("Failed requests")? + value("Non-2xx responses").unwrap_or(0.0);
    let failed = bad + (requests as f64 - complete);
    let name = format!("{requests} requests to a published port, {CONCURRENT} at once");
    Ok(vec![
        Figure::new(format!("{name}: failed"), "", vec![failed], Promise::AtMost(0.0)),
        Figure::new(name, "/s", vec![value("Requests per second")?], Promise::Stated),
    ])
}

fn prepare() -> Result<()> {
    let quiet = || Stdio::null();
    let there = Command::new("ab").arg("-V").stdout(quiet()).stderr(quiet()).status();
    if there.is_ok_and(|status| status.success()) {
        return Ok(());
    }
    step(format!("this benchmark's peer is missing: installing {PACKAGE}"));
    run(Command::new("apt-get").args(["update", "-q"]))?;
    run(Command::new("apt-get")
        .args(["install", "-q", "-y", "--no-install-recommends", PACKAGE])
        .env("DEBIAN_FRONTEND", "noninteractive"))
}
