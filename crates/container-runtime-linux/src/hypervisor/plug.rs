//! Devices that a running VM gets, each in one of its root ports.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::{Map, Value, json};

use super::devices;
use super::error::Error;
use super::qmp_commands as qmp;
use super::running::{OwnRam, Running};
use super::{ExtraNic, REQUEST_DEADLINE};

/// The longest serial number of a virtio disk, in bytes.
const MAX_SERIAL: usize = 20;
/// The longest tag of a virtio-fs, in bytes.
const MAX_TAG: usize = 36;

/// Which root ports are taken. One whose device was refused stays so.
#[derive(Debug)]
pub struct Plugs {
    all: u32,
    taken: AtomicU32,
}

impl Plugs {
    /// Ports that are all free.
    pub fn new(all: u32) -> Plugs {
        Plugs { all, taken: AtomicU32::new(0) }
    }

    /// The number of the next free port.
    fn next(&self) -> Result<u32, Error> {
        let taken = self.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |taken| {
            (taken < self.all).then_some(taken + 1)
        });
        taken.map(|taken| taken + 1).map_err(|_| {
            Error::Config(format!("this VM takes {} devices while it runs, and no more", self.all))
        })
    }
}

/// Plugs a disk.
pub async fn disk(vm: &Running, serial: &str, file: OwnedFd, read_only: bool) -> Result<(), Error> {
    check_name("serial number", serial, MAX_SERIAL)?;
    let port = vm.plugs.next()?;
    let node = format!("plug-{port}");
    let file = vm.add_file(file, read_only).await?;
    let top = devices::top_node(&node, &file.name, read_only);
    if let Err(error) = vm.request(&qmp::BlockdevAdd(top)).await {
        let _ = vm.remove_file(file).await;
        return Err(error);
    }
    let properties = devices::disk_properties(&node, serial, read_only);
    if let Err(error) = vm.request(&device(devices::DISK_DRIVER, port, properties)).await {
        let _ = vm.request(&qmp::BlockdevDel { node_name: node }).await;
        let _ = vm.remove_file(file).await;
        return Err(error);
    }
    Ok(())
}

/// Plugs the file system of a vhost-user server.
pub async fn share(vm: &Running, tag: &str, server: OwnedFd) -> Result<(), Error> {
    check_name("tag", tag, MAX_TAG)?;
    if vm.ram != OwnRam::Shared {
        let reason = "a shared directory needs a VM whose RAM the file server can map";
        return Err(Error::Config(reason.into()));
    }
    let port = vm.plugs.next()?;
    let id = format!("share-{port}");
    let name = qmp::GetFd { fdname: id.clone() };
    vm.qmp.execute_with(&name, Some(server.as_fd()), REQUEST_DEADLINE).await?;
    let address = json!({ "type": "fd", "data": { "str": id } });
    let backend = json!({ "type": "socket", "data": { "addr": address, "server": false } });
    if let Err(error) = vm.request(&qmp::ChardevAdd { id: id.clone(), backend }).await {
        let _ = vm.request(&qmp::CloseFd { fdname: id }).await;
        return Err(error);
    }
    let properties =
        vec![("chardev", json!(id)), ("id", json!(format!("{id}-fs"))), ("tag", json!(tag))];
    if let Err(error) = vm.request(&device("vhost-user-fs-pci", port, properties)).await {
        let _ = vm.request(&qmp::ChardevRemove { id }).await;
        return Err(error);
    }
    Ok(())
}

/// Plugs a network card.
pub async fn nic(vm: &Running, nic: ExtraNic) -> Result<(), Error> {
    let port = vm.plugs.next()?;
    let id = format!("net-{port}");
    let name = qmp::GetFd { fdname: id.clone() };
    vm.qmp.execute_with(&name, Some(nic.tap.as_fd()), REQUEST_DEADLINE).await?;
    if let Err(error) = vm.request(&qmp::NetdevAdd(devices::tap(&id, &id))).await {
        let _ = vm.request(&qmp::CloseFd { fdname: id }).await;
        return Err(error);
    }
    let properties = devices::nic_properties(&format!("{id}-nic"), &id, Some(nic.mac));
    if let Err(error) = vm.request(&device(devices::NIC_DRIVER, port, properties)).await {
        let _ = vm.request(&qmp::NetdevDel { id }).await;
        return Err(error);
    }
    Ok(())
}

fn device(driver: &str, port: u32, properties: Vec<(&'static str, Value)>) -> qmp::DeviceAdd {
    let mut all = Map::new();
    all.insert("driver".into(), driver.into());
    all.insert("bus".into(), devices::root_port(port).into());
    all.extend(properties.into_iter().map(|(name, value)| (name.to_owned(), value)));
    qmp::DeviceAdd(all)
}

fn check_name(what: &str, name: &str, limit: usize) -> Result<(), Error> {
    let plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    if plain && !name.is_empty() && name.len() <= limit {
        return Ok(());
    }
    Err(Error::Config(format!(
        "the {what} {name:?} of a device has other than 1 to {limit} letters, digits and dashes"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_port_is_given_once() {
        let plugs = Plugs::new(4);
        for port in 1..=4 {
            assert_eq!(plugs.next().expect("a port"), port);
        }
        for _ in 0..3 {
            assert!(matches!(plugs.next(), Err(Error::Config(_))));
        }
    }

    #[test]
    fn names_hold_nothing_that_qemu_could_read_otherwise() {
        for name in ["", "a,b", "a=b", "a b", "\u{e4}", &"x".repeat(21)] {
            assert!(check_name("serial number", name, MAX_SERIAL).is_err(), "{name}");
        }
        check_name("serial number", "volume-1", MAX_SERIAL).expect("a name");
    }
}
