//! The forwarder as a process between two network namespaces.

mod datagrams;
mod harness;
mod host_access;
mod load;
mod process;
mod streams;
