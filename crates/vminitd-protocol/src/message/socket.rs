//! Unix sockets between container and host. Each connection is a stream on the bulk port that goes
//! both ways; the end of a direction is an EOF frame.

/// A socket in the container on which the guest listens for the host.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ListenSocket {
    /// Absolute path in the container; its directories are made when missing.
    #[prost(bytes = "vec", tag = "1")]
    pub path: Vec<u8>,
}

/// Connects to a socket on which a program of the container listens.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ConnectSocket {
    /// Absolute path in the container, at most [`crate::MAX_SOCKET_PATH`] bytes.
    #[prost(bytes = "vec", tag = "1")]
    pub path: Vec<u8>,
    /// The connection's stream, which the host has opened. The guest opens it when it is connected.
    #[prost(uint32, tag = "2")]
    pub stream: u32,
}

/// Takes a connection that [`SocketConnected`] has told of.
#[derive(Clone, PartialEq, prost::Message)]
pub struct AcceptSocket {
    /// Which one.
    #[prost(uint64, tag = "1")]
    pub connection: u64,
    /// Its stream, which the host has opened.
    #[prost(uint32, tag = "2")]
    pub stream: u32,
}

/// See [`super::Happening::SocketConnected`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct SocketConnected {
    /// Which of [`super::ContainerSpec::sockets`], from 0.
    #[prost(uint32, tag = "1")]
    pub socket: u32,
    /// What to call the connection by; never used again.
    #[prost(uint64, tag = "2")]
    pub connection: u64,
}
