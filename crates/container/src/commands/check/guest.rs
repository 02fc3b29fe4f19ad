//! From inside VMs: the attacker, root with all capabilities and no filter, and the plain one,
//! which asks for nothing and has limits.

use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::time::Duration;

use super::answers::{self, DEFAULTS, GUEST, MEMORY, NETWORK, PROCESSES};
use super::image::PROGRAM;
use super::limits;
use super::stage::{Stage, word};
use super::{Row, Verdict};

/// The port on which the plain container listens in its own network.
const PORT: u16 = 8000;
/// Seconds after which the containers end by themselves, should nobody end them.
const LIFE: &str = "300";
/// RAM of each.
const MEMORY_OF_EACH: &str = "192m";
/// Processes of the plain one.
pub const PROCESS_LIMIT: u32 = 32;
/// What the host's file behind the read-only mount holds.
const CANARY: &[u8] = b"canary\n";
/// Most addresses of the host that are tried.
const MOST_ADDRESSES: usize = 16;

/// Containers to attack from.
pub struct Guests {
    /// Root with everything.
    pub attacker: String,
    /// With the defaults.
    pub plain: String,
    /// The folder behind the attacker's read-only mount.
    read_only: PathBuf,
    /// Why they have no network, if so.
    no_network: Option<String>,
}

/// Starts both, each on a network of its own where networks can be made.
pub async fn start(stage: &Stage<'_>) -> Result<Guests, String> {
    let canary = stage.file("read-only/canary", CANARY, 0o666)?;
    let read_only = canary.parent().map(PathBuf::from).unwrap_or_default();
    let network = stage.name("net");
    let made = stage.container(&["network", "create", &network]).await?.ok();
    let mut no_network = made.err();
    let (attacker, plain) = (stage.name("attacker"), stage.name("plain"));
    let mount = format!("{}:/read-only:ro", read_only.display());
    let attack = ["--cap-add", "ALL", "--security-opt", "seccomp=unconfined", "--volume", &mount];
    let limit = PROCESS_LIMIT.to_string();
    let limits = ["--pids-limit", &limit];
    if no_network.is_none() {
        no_network = run(stage, &plain, &network, &limits).await.err();
    }
    if no_network.is_none() {
        no_network = run(stage, &attacker, "default", &attack).await.err();
    }
    // Whatever of it runs is not both.
    if no_network.is_some() {
        for name in [&plain, &attacker] {
            stage.container(&["delete", "--force", name]).await?;
        }
        run(stage, &plain, "none", &limits).await?;
        run(stage, &attacker, "none", &attack).await?;
    }
    Ok(Guests { attacker, plain, read_only, no_network })
}

async fn run(stage: &Stage<'_>, name: &str, network: &str, more: &[&str]) -> Result<(), String> {
    let mut words = vec!["run", "--detach", "--rm", "--name", name, "--network", network];
    words.extend(["--cpus", "1", "--memory", MEMORY_OF_EACH]);
    words.extend(more);
    let (image, port) = (stage.image(), PORT.to_string());
    words.extend([image.as_str(), "serve", &port, LIFE]);
    stage.container(&words).await?.ok().map(drop)
}

/// All attacks from within; after each kind the host looks at what it can see itself.
pub async fn attacks(stage: &Stage<'_>, guests: &Result<Guests, String>) -> Vec<Row> {
    let guests = match guests {
        Ok(guests) => guests,
        Err(why) => {
            let all = [GUEST, NETWORK, DEFAULTS, PROCESSES, MEMORY];
            let said = Err(why.clone());
            let mut rows: Vec<Row> =
                all.into_iter().flat_map(|attempts| answers::rows(attempts, &said, &[])).collect();
            rows.extend(limits::not_run(why));
            return rows;
        }
    };
    let mut rows = from_the_attacker(stage, guests).await;
    let said = exec(stage, &guests.plain, &["defaults"]).await;
    rows.extend(answers::rows(DEFAULTS, &said, &[]));
    rows.extend(limits::processes(stage, &guests.plain).await);
    rows.push(limits::processors(stage, &guests.plain).await);
    rows.push(limits::memory_returned(stage, &guests.plain).await);
    rows.extend(limits::memory(stage, &guests.plain).await);
    rows
}

async fn from_the_attacker(stage: &Stage<'_>, guests: &Guests) -> Vec<Row> {
    let mut words = vec!["guest".to_owned(), "--read-only".into(), "/read-only".into()];
    let listener = listen();
    let mut no_network = guests.no_network.clone();
    if no_network.is_none() {
        match targets(stage, guests, listener.as_ref()).await {
            Ok(more) => words.extend(more),
            Err(why) => no_network = Some(why),
        }
    }
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let said = exec(stage, &guests.attacker, &words).await;
    drop(listener);
    let mut rows = answers::rows(GUEST, &said, &[]);
    if let Err(change) = unchanged(guests) {
        let mount = rows.iter_mut().find(|row| row.area == "mounts");
        if let Some(row) = mount {
            (row.result, row.evidence) = (Verdict::Fail, change);
        }
    }
    let network = match no_network {
        Some(why) => Err(format!("no network to attack from: {why}")),
        None => said,
    };
    rows.extend(answers::rows(NETWORK, &network, &[]));
    rows
}

/// Runs the probe in a container.
pub async fn exec(stage: &Stage<'_>, name: &str, words: &[&str]) -> Result<String, String> {
    let words = [&["exec", name, PROGRAM][..], words].concat();
    stage.container(&words).await?.ok()
}

/// What the host sees behind the read-only mount, whatever the guest said.
fn unchanged(guests: &Guests) -> Result<(), String> {
    let names: Vec<_> = std::fs::read_dir(&guests.read_only)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| word(entry.file_name()))
        .collect();
    let content = std::fs::read(guests.read_only.join("canary")).unwrap_or_default();
    match names == ["canary"] && content == CANARY {
        true => Ok(()),
        false => Err(format!("the host's folder was changed: it holds {}", names.join(", "))),
    }
}

/// A socket of the host that answers at all of its addresses.
fn listen() -> Option<TcpListener> {
    TcpListener::bind("[::]:0").or_else(|_| TcpListener::bind("0.0.0.0:0")).ok()
}

/// What the attacker shall try to reach, as words of the probe's.
async fn targets(
    stage: &Stage<'_>,
    guests: &Guests,
    listener: Option<&TcpListener>,
) -> Result<Vec<String>, String> {
    let attacker = stage.inspect(&guests.attacker).await?;
    let plain = stage.inspect(&guests.plain).await?;
    let mut words = Vec::new();
    let port = listener.and_then(|listener| listener.local_addr().ok()).map(|at| at.port());
    if let Some(port) = port {
        let own: Vec<_> =
            addresses().into_iter().filter(|ip| answers_at((*ip, port).into())).collect();
        let gateways = attacker
            .networks
            .iter()
            .flat_map(|nic| [IpAddr::V4(nic.ipv4_gateway), IpAddr::V6(nic.ipv6_gateway)]);
        for ip in own.into_iter().chain(gateways).take(MOST_ADDRESSES) {
            words.extend(["--host".to_owned(), SocketAddr::new(ip, port).to_string()]);
        }
    }
    for nic in &plain.networks {
        for ip in [IpAddr::V4(nic.ipv4_address.addr()), IpAddr::V6(nic.ipv6_address.addr())] {
            words.extend(["--foreign".to_owned(), SocketAddr::new(ip, PORT).to_string()]);
        }
    }
    Ok(words)
}

/// The host's own addresses, but those that mean something else in a container.
fn addresses() -> Vec<IpAddr> {
    let mut found: Vec<IpAddr> = Vec::new();
    for interface in nix::ifaddrs::getifaddrs().into_iter().flatten() {
        let Some(address) = interface.address else { continue };
        let ip = match (address.as_sockaddr_in(), address.as_sockaddr_in6()) {
            (Some(v4), _) => IpAddr::V4(v4.ip()),
            (_, Some(v6)) if !v6.ip().is_unicast_link_local() => IpAddr::V6(v6.ip()),
            _ => continue,
        };
        if !ip.is_loopback() && !found.contains(&ip) {
            found.push(ip);
        }
    }
    found
}

/// So that an attempt that fails says something.
fn answers_at(address: SocketAddr) -> bool {
    TcpStream::connect_timeout(&address, Duration::from_millis(500)).is_ok()
}
