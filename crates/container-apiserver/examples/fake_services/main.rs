//! Stand-ins for `container-images`, `container-network` and `container-runtime-linux`, for the tests: real processes
//! on real sockets, without images and VMs. What a container does stands in its label `fake`:
//! `exit=N`, `sleep` (the default), `refuse`, `die`, `slow` (never boots), `deaf` (ignores stops),
//! `no-restore` (its VM boots or is not). What makers of templates and spares do stands in files
//! beside the programs' directory ([`control`]).

mod helper;
mod images;
mod network;
mod spare;
mod template;

use std::path::Path;
use std::sync::Arc;

use anyhow::{Result, bail};
use container_api::runtime::ProbeReport;
use container_api::socket;
use container_api::types::Accelerator;
use container_api::varlink::{Service, serve};
use tokio::net::UnixListener;

#[tokio::main(flavor = "current_thread")]
async fn main() -> std::process::ExitCode {
    match run().await {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("fake: {error:#}");
            std::process::ExitCode::from(125)
        }
    }
}

async fn run() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["run", directory] => helper::Helper::run(Path::new(directory), 0).await,
        ["run", directory, "--taps", taps] => {
            helper::Helper::run(Path::new(directory), taps.parse()?).await
        }
        ["spare", directory] => spare::run(Path::new(directory), 0).await,
        ["spare", directory, "--taps", taps] => {
            spare::run(Path::new(directory), taps.parse()?).await
        }
        ["template", directory] => template::make(Path::new(directory)),
        ["probe", ..] => probe(),
        ["serve", "--app-root", root] if is_called("container-network") => {
            network::serve(Path::new(root)).await
        }
        ["serve", "--app-root", root] => images::serve(Path::new(root)).await,
        _ => bail!("unexpected arguments {words:?}"),
    }
}

fn is_called(name: &str) -> bool {
    std::env::current_exe().is_ok_and(|program| program.ends_with(name))
}

/// What the taps are that this process has inherited: the names of their files.
fn inherited_taps(count: usize) -> Result<Vec<String>> {
    let name = |fd: usize| -> Result<String> {
        let target = std::fs::read_link(format!("/proc/self/fd/{}", fd + 3))?;
        let target = target.to_string_lossy().into_owned();
        let name = target.strip_prefix("/memfd:").unwrap_or(&target);
        Ok(name.strip_suffix(" (deleted)").unwrap_or(name).to_owned())
    };
    (0..count).map(name).collect()
}

/// What the test wants of `what`: the text of the file `fake-WHAT` in the installation.
fn control(what: &str) -> String {
    let program = std::env::current_exe().unwrap_or_default();
    let file = program.with_file_name(format!("../fake-{what}"));
    std::fs::read_to_string(file).unwrap_or_default()
}

fn probe() -> Result<()> {
    let report = ProbeReport {
        accelerator: Accelerator::Tcg,
        accelerator_reason: "fake".into(),
        hypervisor: serde_json::json!({}),
        hypervisor_version: "0".into(),
        problem: None,
        template_identity: format!("fake{}", control("identity")),
        tap: false,
        nesting: None,
    };
    println!("{}", serde_json::to_string(&report)?);
    Ok(())
}

async fn listen<S: Service>(directory: &Path, name: &str, service: Arc<S>) -> Result<()> {
    let listener = UnixListener::from_std(socket::bind(directory, name)?)?;
    loop {
        let stream = listener.accept().await?.0.into_std()?;
        tokio::spawn(serve(service.clone(), stream));
    }
}
