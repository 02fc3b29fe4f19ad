//! What keeps a container in: what its processes are held by, as the kernel tells it, and what of
//! the host it was given.

use serde::{Deserialize, Serialize};

use crate::network::{BoundPort, Egress, HostAccess};
use crate::types::{Accelerator, ByteString, PublishSocket};

/// A container's posture.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Posture {
    /// What runs its guest's code, while a VM exists.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accelerator: Option<Accelerator>,
    /// It may run virtual machines.
    pub virtualization: bool,
    /// The layers around its hypervisor, while that lives.
    pub jail: Vec<Layer>,
    /// Layers that the configuration let be missing when its VM was started.
    pub allowed_missing: Vec<String>,
    /// The hypervisor's control groups (`/proc/PID/cgroup`), one line each.
    pub cgroups: Vec<String>,
    /// What of the host's files it sees.
    pub mounts: Vec<Exposed>,
    /// Whom it reaches, and who reaches it.
    pub network: Reach,
}

/// One layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Layer {
    /// Its name; as `[security] allow_missing` has it, where it is one of those.
    pub name: String,
    /// Whether it is there.
    pub state: LayerState,
    /// What was read, in one line.
    pub evidence: String,
}

/// Whether a layer is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum LayerState {
    /// The kernel says so.
    Held,
    /// The kernel says that it is not.
    Missing,
    /// The same, or not to be read, and the configuration lets it be missing.
    AllowedMissing,
    /// It can't be read. Without it the hypervisor would not have been started.
    Unread,
}

/// A bind mount or a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Exposed {
    /// The host's path, or the volume's name.
    pub source: ByteString,
    /// The container's path.
    pub destination: ByteString,
    /// It can't be changed from the container.
    pub read_only: bool,
}

/// Ways over the network and sockets.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Reach {
    /// Its networks.
    pub networks: Vec<String>,
    /// Its own egress rules; `None`: what its networks allow.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub egress: Option<Egress>,
    /// What of the host it may reach.
    pub host_access: HostAccess,
    /// Ports of the host that lead to it.
    pub published_ports: Vec<BoundPort>,
    /// Sockets of the host that lead to it.
    pub published_sockets: Vec<PublishSocket>,
    /// The user's SSH agent signs for it.
    pub ssh: bool,
}
