//! Memory that is a service's own, with twenty containers running.

use anyhow::{Result, ensure};
use e2e::Installation;
use e2e::processes::{self, Process};

use super::Bench;
use super::figure::{Figure, Promise};

/// Containers that run at once.
const CONTAINERS: usize = 20;

/// Private memory of the helpers and of the apiserver.
pub fn memory(_: &Bench<'_>) -> Result<Vec<Figure>> {
    let it = Installation::with_busybox();
    for number in 0..CONTAINERS {
        let name = format!("box-{number}");
        it.run(["run", "-d", "-m", "256m", "-c", "1", "--name", &name, "busybox", "sleep", "9999"])
            .ok();
    }
    let mib = |processes: &[Process]| -> Vec<f64> {
        processes
            .iter()
            .filter_map(|process| processes::private_kib(process.pid))
            .map(|kib| kib as f64 / 1024.0)
            .collect()
    };
    let helpers = mib(&it.helpers());
    ensure!(helpers.len() == CONTAINERS, "{} of {CONTAINERS} helpers run", helpers.len());
    let apiserver = mib(&[it.process("container-apiserver")]);
    let qemus = mib(&it.qemus());
    let figure = |name: &str, ours, promise| Figure::new(name, "MiB", ours, promise);
    Ok(vec![
        figure("helper, private memory", helpers, Promise::AtMost(5.0)),
        figure("apiserver with 20 containers, private memory", apiserver, Promise::AtMost(25.0)),
        figure("QEMU of a 256 MiB container, private memory", qemus, Promise::Stated),
    ])
}
