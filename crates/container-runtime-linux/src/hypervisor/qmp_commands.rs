//! The QMP commands in use, with the fields of their answers that are read.

use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::qmp::Command;

/// What commands without a result return.
#[derive(Debug, Deserialize)]
pub struct Nothing {}

macro_rules! commands {
    ($($(#[$doc:meta])* $name:ident { $($field:ident : $type:ty),* } = $wire:literal -> $answer:ty;)*) => {
        $(
            $(#[$doc])*
            #[derive(Debug, Serialize)]
            #[serde(rename_all = "kebab-case")]
            pub struct $name { $(pub $field: $type),* }

            impl Command for $name {
                const NAME: &'static str = $wire;
                type Answer = $answer;
            }
        )*
    };
}

commands! {
    /// Leaves the negotiation mode.
    Capabilities {} = "qmp_capabilities" -> Nothing;
    /// Runs the guest.
    Cont {} = "cont" -> Nothing;
    /// Pauses the guest.
    Stop {} = "stop" -> Nothing;
    /// Ends QEMU.
    Quit {} = "quit" -> Nothing;
    /// Puts the descriptor beside the command into a set.
    AddFd { fdset_id: u32 } = "add-fd" -> IgnoredAny;
    /// Closes a set's descriptors.
    RemoveFd { fdset_id: u32 } = "remove-fd" -> Nothing;
    /// Changes the options of nodes, among them what they sit on.
    BlockdevReopen { options: Vec<Value> } = "blockdev-reopen" -> Nothing;
    /// Removes a node that nothing uses.
    BlockdevDel { node_name: String } = "blockdev-del" -> Nothing;
    /// How much of its RAM the guest may have, in bytes.
    Balloon { value: u64 } = "balloon" -> Nothing;
    /// Adds a connection to something outside.
    ChardevAdd { id: String, backend: Value } = "chardev-add" -> IgnoredAny;
    /// Removes one that nothing uses.
    ChardevRemove { id: String } = "chardev-remove" -> Nothing;
    /// Removes a network's host side that nothing uses.
    NetdevDel { id: String } = "netdev_del" -> Nothing;
    /// Turns features of the migration stream on.
    MigrateSetCapabilities { capabilities: Vec<Value> } = "migrate-set-capabilities" -> Nothing;
    /// Parameters of the migration.
    MigrateSetParameters { announce_rounds: u32 } = "migrate-set-parameters" -> Nothing;
    /// Writes the VM's state.
    Migrate { uri: String } = "migrate" -> Nothing;
    /// Reads a VM's state.
    MigrateIncoming { uri: String } = "migrate-incoming" -> Nothing;
    /// Why it failed.
    QueryMigrate {} = "query-migrate" -> Migration;
    /// Names the descriptor beside the command.
    GetFd { fdname: String } = "getfd" -> Nothing;
    /// Forgets it.
    CloseFd { fdname: String } = "closefd" -> Nothing;
    /// QEMU's version, to be shown.
    QueryVersion {} = "query-version" -> Version;
    /// Machine types.
    QueryMachines {} = "query-machines" -> Vec<Machine>;
    /// What a migration stream can do.
    QueryMigrateCapabilities {} = "query-migrate-capabilities" -> Vec<MigrateCapability>;
    /// The properties of an object type.
    QomListProperties { typename: String } = "qom-list-properties" -> Vec<Property>;
    /// The properties of a device type.
    DeviceListProperties { typename: String } = "device-list-properties" -> Vec<Property>;
}

/// Adds a node; its arguments are the node's options themselves.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub struct BlockdevAdd(pub Value);

impl Command for BlockdevAdd {
    const NAME: &'static str = "blockdev-add";
    type Answer = Nothing;
}

/// Adds a network's host side; its arguments are its options themselves.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub struct NetdevAdd(pub Value);

impl Command for NetdevAdd {
    const NAME: &'static str = "netdev_add";
    type Answer = Nothing;
}

/// Plugs a device; its arguments are the device's properties themselves.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub struct DeviceAdd(pub serde_json::Map<String, Value>);

impl Command for DeviceAdd {
    const NAME: &'static str = "device_add";
    type Answer = Nothing;
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Migration {
    pub error_desc: Option<String>,
}

#[derive(Debug, Deserialize)]
pub struct Version {
    pub qemu: Triple,
}

#[derive(Debug, Deserialize)]
pub struct Triple {
    pub major: u32,
    pub minor: u32,
    pub micro: u32,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Machine {
    pub name: String,
    pub alias: Option<String>,
    pub cpu_max: u32,
}

#[derive(Debug, Deserialize)]
pub struct MigrateCapability {
    pub capability: String,
}

#[derive(Debug, Deserialize)]
pub struct Property {
    pub name: String,
}
