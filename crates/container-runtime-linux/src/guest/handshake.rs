//! The handshake over a socket.

use std::io::{self, Read};

use tokio::net::UnixStream;
use vminitd_protocol::handshake::{HostHandshake, NONCE_LEN, Port};

use super::GuestError;

/// `N` bytes from the kernel's random number generator.
pub fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// Finds the guest on a port; returns the bytes that came behind its welcome.
pub async fn shake_hands(stream: &UnixStream, port: Port) -> Result<Vec<u8>, GuestError> {
    let lost = |e: io::Error| GuestError::Lost(e.to_string());
    let mut handshake = HostHandshake::new(port, random::<NONCE_LEN>().map_err(lost)?);
    let mut hello = &handshake.hello()[..];
    while !hello.is_empty() {
        stream.writable().await.map_err(lost)?;
        match stream.try_write(hello) {
            Ok(n) => hello = &hello[n..],
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(lost(e)),
        }
    }
    let mut buffer = [0; 1024];
    loop {
        stream.readable().await.map_err(lost)?;
        match stream.try_read(&mut buffer) {
            Ok(0) => return Err(GuestError::Lost("it was closed".into())),
            Ok(n) => {
                if let Some(consumed) = handshake.receive(&buffer[..n])? {
                    return Ok(buffer[consumed..n].to_vec());
                }
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(lost(e)),
        }
    }
}
