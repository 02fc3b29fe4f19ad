//! A client's descriptor, read and written without blocking.

use std::io;
use std::os::fd::OwnedFd;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// One end of a pipe or a socket; or a file or device that is always ready.
#[derive(Debug)]
pub enum Descriptor {
    /// Waited for with epoll.
    Polled(AsyncFd<OwnedFd>),
    /// epoll refuses it, because it never waits.
    Ready(OwnedFd),
}

impl Descriptor {
    /// Takes a descriptor over. Pipes and sockets are private ends made by the command line: no
    /// other process minds that they don't block.
    ///
    /// # Errors
    /// Those of the system.
    pub fn new(fd: OwnedFd) -> io::Result<Descriptor> {
        let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
        let both = Interest::READABLE | Interest::WRITABLE;
        // SAFETY: an `OwnedFd` is one open descriptor, the same until it is dropped.
        match unsafe { AsyncFd::register_with_interest(fd, both) } {
            Ok(polled) => {
                fcntl(polled.get_ref(), FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
                Ok(Descriptor::Polled(polled))
            }
            Err(refused) => match refused.into_parts() {
                (fd, e) if e.raw_os_error() == Some(Errno::EPERM as i32) => {
                    Ok(Descriptor::Ready(fd))
                }
                (_, e) => Err(e),
            },
        }
    }

    /// Runs `read` when there is something to read, until it does not say `WouldBlock`.
    ///
    /// # Errors
    /// Those of `read` and of the system.
    pub async fn read_with<T>(
        &self,
        mut read: impl FnMut(&OwnedFd) -> io::Result<T>,
    ) -> io::Result<T> {
        match self {
            Descriptor::Polled(fd) => fd.async_io(Interest::READABLE, read).await,
            Descriptor::Ready(fd) => {
                tokio::task::yield_now().await;
                read(fd)
            }
        }
    }

    /// Runs `write` when there is room, until it does not say `WouldBlock`.
    ///
    /// # Errors
    /// Those of `write` and of the system.
    pub async fn write_with<T>(
        &self,
        mut write: impl FnMut(&OwnedFd) -> io::Result<T>,
    ) -> io::Result<T> {
        match self {
            Descriptor::Polled(fd) => fd.async_io(Interest::WRITABLE, write).await,
            Descriptor::Ready(fd) => {
                tokio::task::yield_now().await;
                write(fd)
            }
        }
    }

    /// Another descriptor of the same end.
    ///
    /// # Errors
    /// Those of the system.
    pub fn duplicate(&self) -> io::Result<OwnedFd> {
        match self {
            Descriptor::Polled(fd) => fd.get_ref().try_clone(),
            Descriptor::Ready(fd) => fd.try_clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn files_and_pipes_both_work() {
        let abc = |fd: &OwnedFd| Ok(nix::unistd::write(fd, b"abc")?);
        let null = std::fs::OpenOptions::new().write(true).open("/dev/null").unwrap();
        let null = Descriptor::new(null.into()).unwrap();
        assert!(matches!(null, Descriptor::Ready(_)));
        assert_eq!(null.write_with(abc).await.unwrap(), 3);
        let (read, write) = nix::unistd::pipe().unwrap();
        let write = Descriptor::new(write).unwrap();
        let read = Descriptor::new(read).unwrap();
        assert_eq!(write.write_with(abc).await.unwrap(), 3);
        let mut buffer = [0; 8];
        let n = read.read_with(|fd| Ok(nix::unistd::read(fd, &mut buffer)?)).await.unwrap();
        assert_eq!(&buffer[..n], b"abc");
    }
}
