//! The guest's network cards.

/// Sets up the guest's NICs; one that is not named is down and has no address.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ConfigureNetwork {
    /// In the order of their names, `eth0` first: the NIC that the VM was made with, whatever its
    /// hardware address was; then those that have their hardware addresses already, which may
    /// still be on their way.
    #[prost(message, repeated, tag = "1")]
    pub interfaces: Vec<Interface>,
}

/// One NIC.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Interface {
    /// Hardware address, 6 bytes, unicast.
    #[prost(bytes = "vec", tag = "1")]
    pub mac: Vec<u8>,
    /// MTU in bytes.
    #[prost(uint32, tag = "2")]
    pub mtu: u32,
    /// Addresses, used at once: without detection of duplicates.
    #[prost(message, repeated, tag = "3")]
    pub addresses: Vec<Address>,
    /// Where default routes lead, 4 or 16 bytes, at most one of a family.
    #[prost(bytes = "vec", repeated, tag = "4")]
    pub gateways: Vec<Vec<u8>>,
}

/// An address with its prefix.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Address {
    /// 4 bytes (IPv4) or 16 (IPv6), in network order.
    #[prost(bytes = "vec", tag = "1")]
    pub ip: Vec<u8>,
    /// How many of its bits name the network.
    #[prost(uint32, tag = "2")]
    pub prefix_len: u32,
}
