//! Taps that wait for a network, with the VMs that have them.
//!
//! ```text
//!             park                         unpark
//! (nothing) ───────► in the namespace of ─────────► a network's
//!                    the likely network,
//!                    or of none
//! ```
//! A move between namespaces takes the kernel 20 ms, so a tap waits where it is likely needed. It
//! is down and on no bridge there.

use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Mutex;

use container_api::error::{ApiError, Result};
use container_api::network::DEFAULT_NETWORK;
use netlink_packet_route::link::LinkAttribute;
use tokio::sync::{Mutex as AsyncMutex, OnceCell};

use super::namespace::{self, Worker, failed};
use super::netlink::{self, Netlink};
use super::{Engine, lock, network, tap};

/// Taps that wait, and where.
#[derive(Default)]
pub(super) struct Parking {
    /// Lives in a namespace that is no network's.
    own: OnceCell<Worker<Netlink>>,
    /// The network in whose namespace a tap is; `None`: in the one above.
    taps: Mutex<BTreeMap<String, Option<String>>>,
    /// One of them is moved at a time.
    moving: AsyncMutex<()>,
}

impl Parking {
    /// The taps that wait.
    pub(super) fn waiting(&self) -> Vec<String> {
        lock(&self.taps).keys().cloned().collect()
    }

    /// Those that do in one place.
    fn at(&self, place: Option<&str>) -> Vec<String> {
        let taps = lock(&self.taps);
        let here = taps.iter().filter(|(_, waits)| waits.as_deref() == place);
        here.map(|(name, _)| name.clone()).collect()
    }

    async fn worker(&self) -> Result<&Worker<Netlink>> {
        let start = || {
            Worker::start("parking", None, || {
                network::settings()?;
                Netlink::open().map_err(failed("cannot configure the taps that wait"))
            })
        };
        self.own.get_or_try_init(start).await
    }
}

impl Engine {
    /// A tap on no network, with the name to ask for it by. It will most likely be wanted on
    /// `likely`, else on the default network.
    pub async fn park(&self, likely: &str) -> Result<(String, OwnedFd)> {
        let parking = &self.inner.parking;
        let place = [likely, DEFAULT_NETWORK]
            .into_iter()
            .find_map(|network| Some((network.to_owned(), self.inner.worker(network).ok()?)));
        let make = |netlink: &mut Netlink, known: Vec<String>| {
            let links = netlink.links().map_err(failed("cannot list the taps that wait"))?;
            let gone: Vec<String> =
                known.into_iter().filter(|tap| !links.iter().any(|l| l.name == *tap)).collect();
            let name = tap::name()?;
            let descriptor = tap::make(&name)?;
            Ok((name, descriptor, gone))
        };
        let known = parking.at(place.as_ref().map(|(network, _)| network.as_str()));
        let (place, (name, descriptor, gone)) = match place {
            Some((network, worker)) => {
                let made = worker.run(move |there| make(&mut there.netlink, known)).await?;
                (Some(network), made)
            }
            None => (None, parking.worker().await?.run(move |there| make(there, known)).await?),
        };
        let mut taps = lock(&parking.taps);
        // Those whose VMs ended without asking for a network.
        taps.retain(|name, _| !gone.contains(name));
        taps.insert(name.clone(), place);
        Ok((name, descriptor))
    }

    /// Moves a tap that waits to a network's namespace. One that an earlier service made may be
    /// there.
    pub(super) async fn unpark(&self, tap: &str, network: &str) -> Result<()> {
        let _guard = self.inner.parking.moving.lock().await;
        let place = lock(&self.inner.parking.taps).remove(tap);
        let place = place.unwrap_or_else(|| Some(network.to_owned()));
        match place.as_deref() == Some(network) {
            true => Ok(()),
            false => self.send(tap, place.as_deref(), Some(network)).await,
        }
    }

    /// Moves a tap from the namespace of one place to that of another.
    async fn send(&self, tap: &str, from: Option<&str>, to: Option<&str>) -> Result<()> {
        let to = match to {
            Some(network) => self.handles(network)?.network,
            None => {
                let worker = self.inner.parking.worker().await?;
                worker.run(|_| namespace::current_network()).await?
            }
        };
        let name = tap.to_owned();
        match from {
            Some(from) => {
                // What was in the namespace of a network that is down has gone with it.
                let worker = self.inner.worker(from).map_err(|_| gone(tap))?;
                worker.run(move |there| move_tap(&mut there.netlink, &name, &to)).await
            }
            None => {
                let worker = self.inner.parking.worker().await?;
                worker.run(move |there| move_tap(there, &name, &to)).await
            }
        }
    }

    /// Brings the taps that wait nowhere to the network that they are likely for.
    pub(super) async fn gather(&self) {
        self.move_waiting(None, Some(DEFAULT_NETWORK)).await;
    }

    /// Takes the taps that wait out of the namespace of a network that is about to go.
    pub(super) async fn clear_taps(&self, network: &str) {
        self.move_waiting(Some(network), None).await;
    }

    /// Moves the taps that wait in one place to another.
    async fn move_waiting(&self, from: Option<&str>, to: Option<&str>) {
        let parking = &self.inner.parking;
        for name in parking.at(from) {
            let _guard = parking.moving.lock().await;
            if lock(&parking.taps).get(&name).map(Option::as_deref) != Some(from) {
                continue; // wanted meanwhile
            }
            let moved = self.send(&name, from, to).await;
            let mut taps = lock(&parking.taps);
            // Else its descriptor was closed.
            if moved.is_ok() {
                taps.insert(name, to.map(str::to_owned));
            } else {
                taps.remove(&name);
            }
        }
    }
}

/// Moves a tap to its network's namespace.
fn move_tap(there: &mut Netlink, tap: &str, namespace: &OwnedFd) -> Result<()> {
    let link = there.link(tap).map_err(failed(format!("cannot find tap {tap}")))?;
    let index = link.ok_or_else(|| gone(tap))?.index;
    let to = LinkAttribute::NetNsFd(namespace.as_raw_fd());
    let moved = there.apply(vec![netlink::set_link(index, vec![to])]);
    moved.map_err(failed(format!("cannot move tap {tap} to its network")))
}

fn gone(tap: &str) -> ApiError {
    ApiError::not_found(format!("tap {tap} is gone"))
}
