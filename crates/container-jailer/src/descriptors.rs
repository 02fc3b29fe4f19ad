//! Which descriptors the program gets: those that were named.

use std::os::fd::{AsRawFd, BorrowedFd, IntoRawFd, OwnedFd, RawFd};

use nix::libc;
use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};

use crate::args::Args;
use crate::at;
use crate::error::{Error, Step};
use crate::process::last_errno;

fn kept(args: &Args) -> Vec<RawFd> {
    let mut kept = vec![0, 1, 2, args.status_fd];
    kept.extend(&args.keep);
    kept.extend(args.send);
    kept.extend(args.notify);
    kept.sort_unstable();
    kept.dedup();
    kept
}

/// Closes every descriptor that was not named.
pub fn close_all_but(args: &Args) -> Result<(), Error> {
    let kept = kept(args);
    for fd in &kept {
        // SAFETY: F_GETFD reads a flag of a number that may be closed.
        if unsafe { libc::fcntl(*fd, libc::F_GETFD) } < 0 {
            return Err(refused(format!("descriptor {fd} is not open")));
        }
    }
    let mut from = 0u32;
    for until in kept.iter().map(|fd| *fd as u32).chain([u32::MAX]) {
        if from < until {
            let last = if until == u32::MAX { until } else { until - 1 };
            // SAFETY: nothing in this program owns a descriptor yet; those
            // that are named stay open.
            if unsafe { libc::syscall(libc::SYS_close_range, from, last, 0) } < 0 {
                return Err(at(Step::Descriptors)(last_errno()));
            }
        }
        from = until.saturating_add(1);
    }
    for fd in &args.keep {
        set_flags(*fd, 0)?;
    }
    Ok(())
}

/// A directory descriptor would be a way out of the jail's root.
pub fn refuse_directories(args: &Args) -> Result<(), Error> {
    for fd in kept(args) {
        // SAFETY: checked to be open above and closed by nobody.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        let stat = rustix::fs::fstat(fd).map_err(at(Step::Descriptors))?;
        if rustix::fs::FileType::from_raw_mode(stat.st_mode).is_dir() {
            return Err(refused(format!("descriptor {} is a directory", fd.as_raw_fd())));
        }
    }
    Ok(())
}

/// Fills the numbers at which descriptors will be placed, so that no other of
/// this program lands on one of them. Must come before it opens any.
pub fn reserve_numbers(args: &Args) -> Result<(), Error> {
    for number in args.placed() {
        place(0, number, "reserve")?;
    }
    Ok(())
}

/// Puts a copy of `from` at the number `to`, kept over the exec.
pub fn place(from: RawFd, to: RawFd, what: &str) -> Result<(), Error> {
    // SAFETY: `to` is a reserved number that no owner in this program holds.
    if unsafe { libc::dup2(from, to) } < 0 {
        return Err(Error::system(Step::Share, what, last_errno()));
    }
    Ok(())
}

/// The status descriptor must not outlive the exec.
pub fn set_close_on_exec(fd: RawFd) -> Result<(), Error> {
    if fd <= 2 {
        return Ok(());
    }
    set_flags(fd, libc::FD_CLOEXEC)
}

fn set_flags(fd: RawFd, flags: libc::c_int) -> Result<(), Error> {
    // SAFETY: sets a flag of a descriptor that is open.
    if unsafe { libc::fcntl(fd, libc::F_SETFD, flags) } < 0 {
        return Err(at(Step::Descriptors)(last_errno()));
    }
    Ok(())
}

fn refused(what: String) -> Error {
    Error::Refused { step: Step::Descriptors, what }
}

/// Moves an owned descriptor to a reserved number.
pub fn place_owned(fd: OwnedFd, to: RawFd, what: &str) -> Result<(), Error> {
    let from = fd.into_raw_fd();
    let placed = place(from, to, what);
    // SAFETY: taken out of its owner above; closed once, here.
    unsafe { libc::close(from) };
    placed
}

/// A pipe whose ends close on exec.
pub fn pipe() -> Result<(OwnedFd, OwnedFd), Error> {
    rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(at(Step::UidMap))
}

/// Closes the copy that a forked child has of a descriptor of its parent.
pub fn close_copy(fd: RawFd) {
    // SAFETY: the child ends by `exit_now`, so the owner that the number came
    // from never runs there.
    unsafe { libc::close(fd) };
}

/// Sends the shared descriptors in one message of one byte.
pub fn send_shared(args: &Args, socket: RawFd) -> Result<(), Error> {
    // SAFETY: all numbers are open: checked at the start, or placed since.
    let borrow = |fd: RawFd| unsafe { BorrowedFd::borrow_raw(fd) };
    let files: Vec<BorrowedFd<'_>> = args.shares.iter().map(|share| borrow(share.fd)).collect();
    send(&files, borrow(socket)).map_err(|errno| Error::system(Step::Share, "send", errno))
}

/// Sends descriptors in one message of one byte.
pub fn send(files: &[BorrowedFd<'_>], socket: BorrowedFd<'_>) -> Result<(), Errno> {
    let mut space = vec![std::mem::MaybeUninit::uninit(); 64 * (files.len() + 1)];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(files)) {
        return Err(Errno::TOOBIG);
    }
    let data = [std::io::IoSlice::new(b"x")];
    rustix::net::sendmsg(socket, &data, &mut control, SendFlags::NOSIGNAL).map(drop)
}
