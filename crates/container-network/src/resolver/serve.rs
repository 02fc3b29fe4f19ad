//! The sockets at which questions come in.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use container_api::{ApiError, Result};
use nix::sys::socket::{SockType, getsockopt, sockopt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::answer::{Begun, Resolver};
use super::message::MAX_MESSAGE;
use super::names::Asker;

/// The most TCP connections of all askers.
const CONNECTIONS: usize = 512;
/// The most of the host's.
const HOST_CONNECTIONS: usize = 64;
/// How long a connection may stay silent, or take for a message.
const IDLE: Duration = Duration::from_secs(10);
/// How much is waiting to be read at most, so that one container's flood doesn't crowd out the rest
/// while we read and drop it.
const RECEIVE_BUFFER: usize = 4 << 20;

/// A socket that was handed over.
#[derive(Debug)]
pub enum Socket {
    /// Packets.
    Udp(UdpSocket),
    /// Connections.
    Tcp(TcpListener),
}

impl Socket {
    /// Takes one over; must be called within a tokio runtime.
    pub fn new(socket: OwnedFd) -> Result<Socket> {
        let failed = |e: std::io::Error| ApiError::from(e).context("a socket for questions");
        let kind = getsockopt(&socket, sockopt::SockType).map_err(|e| failed(e.into()))?;
        if kind == SockType::Stream {
            let listener = std::net::TcpListener::from(socket);
            listener.set_nonblocking(true).map_err(failed)?;
            return TcpListener::from_std(listener).map(Socket::Tcp).map_err(failed);
        }
        // As far as the host's limit allows it.
        let _ = nix::sys::socket::setsockopt(&socket, sockopt::RcvBuf, &RECEIVE_BUFFER);
        let socket = std::net::UdpSocket::from(socket);
        socket.set_nonblocking(true).map_err(failed)?;
        UdpSocket::from_std(socket).map(Socket::Udp).map_err(failed)
    }

    /// Answers until the process ends.
    pub fn serve(self, resolver: Arc<Resolver>) {
        match self {
            Socket::Udp(socket) => drop(tokio::spawn(packets(Arc::new(socket), resolver))),
            Socket::Tcp(listener) => drop(tokio::spawn(connections(listener, resolver))),
        }
    }
}

async fn packets(socket: Arc<UdpSocket>, resolver: Arc<Resolver>) {
    // One byte more than the longest packet of sense; longer ones are cut, and malformed then.
    let mut buffer = vec![0; 4097];
    loop {
        let (n, from) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(error) => {
                // An answer that could not be delivered, as a rule.
                tracing::debug!(%error, "receiving a question");
                tokio::time::sleep(Duration::from_millis(1)).await;
                continue;
            }
        };
        match resolver.begin(&buffer[..n], from.ip(), false) {
            Begun::Dropped => {}
            // One that the socket doesn't take now is lost, as packets are.
            Begun::Answered(answer) => drop(socket.try_send_to(&answer, from)),
            Begun::Pending(pending) => {
                let (socket, resolver) = (socket.clone(), resolver.clone());
                tokio::spawn(async move {
                    let answer = resolver.finish(pending, false).await;
                    if let Err(error) = socket.send_to(&answer, from).await {
                        tracing::debug!(%error, "answering");
                    }
                });
            }
        }
    }
}

async fn connections(listener: TcpListener, resolver: Arc<Resolver>) {
    let all = Arc::new(Semaphore::new(CONNECTIONS));
    let of_host = Arc::new(Semaphore::new(HOST_CONNECTIONS));
    loop {
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::debug!(%error, "accepting a connection");
                tokio::time::sleep(Duration::from_millis(10)).await;
                continue;
            }
        };
        let share = match resolver.asker(from.ip()) {
            Some(Asker::Host) => of_host.clone(),
            Some(Asker::Container(known)) => known.guest.connections.clone(),
            None => continue,
        };
        let permits = (all.clone().try_acquire_owned(), share.try_acquire_owned());
        if let (Ok(all), Ok(own)) = permits {
            let resolver = resolver.clone();
            tokio::spawn(async move {
                let _permits = (all, own);
                if let Err(error) = conversation(stream, from, &resolver).await {
                    tracing::debug!(%error, "a connection ended");
                }
            });
        }
    }
}

async fn conversation(
    mut stream: TcpStream,
    from: SocketAddr,
    resolver: &Resolver,
) -> std::io::Result<()> {
    let mut buffer = Vec::new();
    loop {
        let Ok(length) = timeout(IDLE, stream.read_u16()).await else { return Ok(()) };
        buffer.resize(usize::from(length?), 0);
        timeout(IDLE, stream.read_exact(&mut buffer)).await??;
        let mut answer = match resolver.begin(&buffer, from.ip(), true) {
            Begun::Dropped => return Ok(()),
            Begun::Answered(answer) => answer,
            Begun::Pending(pending) => resolver.finish(pending, true).await,
        };
        answer.truncate(MAX_MESSAGE);
        let length = (answer.len() as u16).to_be_bytes();
        answer.splice(..0, length);
        timeout(IDLE, stream.write_all(&answer)).await??;
    }
}
