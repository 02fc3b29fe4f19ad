//! The devices of every VM, as data. The same list in the same order in each
//! that is a template or comes from one, so that a VM's state fits another's
//! devices.

use container_api::network::Mac;

use super::install::Features;

/// Places for devices that are plugged into a running VM. An emulated guest
/// that boots needs some 70 ms for all of them, so VMs have none that neither
/// are to be a template nor come from one.
pub const ROOT_PORTS: u32 = 4;

/// The id of a place, from 1 on.
pub fn root_port(number: u32) -> String {
    format!("port{number}")
}

/// A disk of the VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disk {
    /// The image's EROFS file, read-only.
    Image,
    /// The container's own ext4 file.
    Upper,
    /// Of a block volume, which is put behind it while the VM runs; empty without.
    FirstSlot,
    /// One more.
    SecondSlot,
}

impl Disk {
    /// Those with files from the beginning, in device order.
    pub const OWN: [Disk; 2] = [Disk::Image, Disk::Upper];
    /// Those of block volumes, in device order after these. A volume behind one costs a start next
    /// to nothing; one that is plugged costs an emulated guest 150 ms.
    pub const SLOTS: [Disk; 2] = [Disk::FirstSlot, Disk::SecondSlot];

    /// Block node, device id and serial number.
    pub fn name(self) -> &'static str {
        match self {
            Disk::Image => "image",
            Disk::Upper => "upper",
            Disk::FirstSlot => "slot-0",
            Disk::SecondSlot => "slot-1",
        }
    }

    /// Its place among all.
    pub fn index(self) -> usize {
        self as usize
    }

    /// Whether the guest can't write to it.
    pub fn read_only(self) -> bool {
        self == Disk::Image
    }

    /// The number of its first file node, and of that one's descriptor set.
    pub fn first_number(self) -> u32 {
        self as u32 + 1
    }

    /// Whether it has a file from the beginning.
    pub fn has_file(self) -> bool {
        Disk::OWN.contains(&self)
    }
}

/// The slots of a VM with this many places for devices: those without have neither.
pub fn slots(root_ports: u32) -> &'static [Disk] {
    if root_ports > 0 { &Disk::SLOTS } else { &[] }
}

/// A virtio-serial port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Port {
    /// Control messages.
    Agent,
    /// Streams.
    Bulk,
}

impl Port {
    /// All ports in device order; the first has number 1.
    pub const ALL: [Port; 2] = [Port::Agent, Port::Bulk];

    /// Chardev id, device id and the name that the guest sees.
    pub fn name(self) -> &'static str {
        match self {
            Port::Agent => "agent",
            Port::Bulk => "bulk",
        }
    }
}

/// One `-device`, with every property spelled out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// The value of `-device`.
    pub argument: String,
}

/// The id of the host side of the `number`th NIC, from 0 on.
pub fn netdev(number: usize) -> String {
    format!("net{number}")
}

/// The balloon's id.
pub const BALLOON: &str = "balloon";

/// All devices in order: PCI addresses follow from it.
///
/// `more_nics` are for a VM without `root_ports`, which shares its devices with no other.
pub fn devices(features: &Features, nic: bool, more_nics: &[Mac], root_ports: u32) -> Vec<Device> {
    let mut devices = vec!["virtio-serial-pci,id=serial,max_ports=4".to_owned()];
    for (index, port) in Port::ALL.into_iter().enumerate() {
        let (name, number) = (port.name(), index + 1);
        devices.push(format!(
            "virtserialport,bus=serial.0,nr={number},chardev={name},id={name},name={name}"
        ));
    }
    for disk in Disk::OWN.iter().chain(slots(root_ports)) {
        let name = disk.name();
        devices.push(argument(DISK_DRIVER, disk_properties(name, name, disk.read_only())));
    }
    let mut balloon = format!("virtio-balloon-pci,id={BALLOON}");
    if features.free_page_reporting {
        balloon.push_str(",free-page-reporting=on");
    }
    devices.push(balloon);
    if nic {
        devices.push(argument(NIC_DRIVER, nic_properties("nic", &netdev(0), None)));
    }
    for (number, mac) in (1..).zip(more_nics) {
        let id = format!("nic{number}");
        devices.push(argument(NIC_DRIVER, nic_properties(&id, &netdev(number), Some(*mac))));
    }
    devices.extend(
        (1..=root_ports).map(|port| {
            format!("pcie-root-port,id={},chassis={port},slot={port}", root_port(port))
        }),
    );
    devices.into_iter().map(|argument| Device { argument }).collect()
}

/// The device of every NIC.
pub const NIC_DRIVER: &str = "virtio-net-pci";

/// The queue of commands to a NIC, and what needs it. A guest that gives one spins until QEMU's
/// main thread answers, which swaps disks meanwhile, and setting a network up takes some twenty.
/// Without them the NIC takes every frame; the bridge gives it its own alone.
const NO_NIC_COMMANDS: [&str; 7] = [
    "ctrl_vq",
    "ctrl_rx",
    "ctrl_rx_extra",
    "ctrl_vlan",
    "ctrl_mac_addr",
    "ctrl_guest_offloads",
    "guest_announce",
];

/// What a NIC on `netdev` is like; the first has its address from the guest.
pub fn nic_properties(
    id: &str,
    netdev: &str,
    mac: Option<Mac>,
) -> Vec<(&'static str, serde_json::Value)> {
    let mac = mac.map(|mac| ("mac", mac.to_string().into()));
    // Without an option ROM: nobody boots from it.
    let fixed = [("id", id.into()), ("netdev", netdev.into()), ("romfile", "".into())];
    let off = NO_NIC_COMMANDS.map(|feature| (feature, false.into()));
    fixed.into_iter().chain(off).chain(mac).collect()
}

/// The host side of a NIC, on a tap that QEMU knows as `fd`, as QAPI's `Netdev`.
pub fn tap(id: &str, fd: &str) -> serde_json::Value {
    serde_json::json!({ "type": "tap", "id": id, "fd": fd, "vhost": false })
}

/// A `-device` of a driver with properties.
fn argument(driver: &str, properties: Vec<(&'static str, serde_json::Value)>) -> String {
    let properties = properties.iter().map(|(key, value)| format!(",{key}={}", word(value)));
    format!("{driver}{}", properties.collect::<String>())
}

/// The device of every disk.
pub const DISK_DRIVER: &str = "virtio-blk-pci";

/// What the device of a disk on the block node `node` is like.
pub fn disk_properties(
    node: &str,
    serial: &str,
    read_only: bool,
) -> Vec<(&'static str, serde_json::Value)> {
    let text = |text: &str| serde_json::Value::from(text);
    let mut properties = vec![
        ("drive", text(node)),
        ("id", text(&format!("{node}-disk"))),
        ("serial", text(serial)),
        // Errors go to the guest: by default QEMU pauses the whole VM on a full host disk.
        ("rerror", text("report")),
        ("werror", text("report")),
    ];
    if !read_only {
        properties.extend([("discard", true.into()), ("write-zeroes", true.into())]);
    }
    properties
}

/// A property's value on the command line.
fn word(value: &serde_json::Value) -> &str {
    match value {
        serde_json::Value::Bool(true) => "on",
        serde_json::Value::Bool(false) => "off",
        other => other.as_str().unwrap_or_default(),
    }
}

/// The `file` node of a disk over a descriptor set, as QAPI's
/// `BlockdevOptions`. What QEMU assumes anyway is left out: it reads its
/// monitor a byte at a time, and a container waits for that.
pub fn file_node(node: &str, fdset: u32, read_only: bool) -> serde_json::Value {
    let mut options = serde_json::json!({
        "driver": "file",
        "node-name": node,
        "filename": format!("/dev/fdset/{fdset}"),
        // Read-only files are shared, the others have one owner that the
        // helper guarantees; no lock file service is needed.
        "locking": "off",
    });
    set_access(&mut options, read_only);
    options
}

/// The `file` node of a disk that has no file yet: as long as all, and zeros.
pub fn empty_node(node: &str) -> serde_json::Value {
    serde_json::json!({
        "driver": "null-co",
        "node-name": node,
        "size": super::DISK_LEN,
        "read-zeroes": true,
    })
}

/// The node that the device sits on; its `file` can be replaced.
pub fn top_node(node: &str, file_node: &str, read_only: bool) -> serde_json::Value {
    let mut options = serde_json::json!({
        "driver": "raw",
        "node-name": node,
        "file": file_node,
    });
    set_access(&mut options, read_only);
    options
}

fn set_access(options: &mut serde_json::Value, read_only: bool) {
    match read_only {
        true => options["read-only"] = true.into(),
        // Space that the guest frees goes back to the host.
        false => options["discard"] = "unmap".into(),
    }
}

/// The name of a file node: of the number that no other one of the VM has.
pub fn file_node_name(number: u32) -> String {
    format!("f{number}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_device_has_a_distinct_id() {
        let mut ids: Vec<String> = devices(&Features::default(), true, &[Mac([2; 6])], ROOT_PORTS)
            .iter()
            .map(|device| {
                let id = device.argument.split(',').find(|p| p.starts_with("id="));
                id.expect("an id").to_owned()
            })
            .collect();
        let count = ids.len();
        ids.sort();
        ids.dedup();
        assert_eq!(ids.len(), count);
    }

    #[test]
    fn all_but_the_image_can_be_written() {
        let all = [&Disk::OWN[..], &Disk::SLOTS].concat();
        for (index, disk) in all.into_iter().enumerate() {
            assert_eq!(disk.read_only(), disk == Disk::Image);
            assert_eq!((disk.index(), disk.has_file()), (index, index < 2));
        }
        assert_eq!((slots(0).len(), slots(ROOT_PORTS).len()), (0, 2));
        for read_only in [false, true] {
            for node in [file_node("n", 1, read_only), top_node("n", "f", read_only)] {
                assert_eq!(node["read-only"].as_bool().unwrap_or(false), read_only);
                assert_eq!(node["discard"] == "unmap", !read_only);
            }
        }
    }
}
