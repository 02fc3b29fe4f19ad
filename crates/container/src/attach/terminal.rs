//! The user's terminal: its size, and raw mode that ends whatever happens.

use std::fs::File;
use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, Once, PoisonError};

use container_api::types::TerminalSize;
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};

/// The terminal that is in raw mode, and how it was before. Global, so that a panic restores it.
static RAW: Mutex<Option<(OwnedFd, Termios)>> = Mutex::new(None);

/// Raw mode, while this lives.
#[derive(Debug)]
pub struct RawMode(());

impl RawMode {
    /// Puts the terminal of `fd` into raw mode.
    pub fn enter(fd: BorrowedFd<'_>) -> io::Result<RawMode> {
        static HOOK: Once = Once::new();
        HOOK.call_once(|| {
            let before = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |panic| {
                restore();
                before(panic);
            }));
        });
        let before = tcgetattr(fd)?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        let kept = fd.try_clone_to_owned()?;
        *RAW.lock().unwrap_or_else(PoisonError::into_inner) = Some((kept, before));
        if let Err(error) = tcsetattr(fd, SetArg::TCSANOW, &raw) {
            restore();
            return Err(error.into());
        }
        Ok(RawMode(()))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore();
    }
}

fn restore() {
    let taken = RAW.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some((fd, before)) = taken {
        // Ours to restore even from the background, without being stopped for it.
        let _ = with_ttou_blocked(|| tcsetattr(&fd, SetArg::TCSANOW, &before));
    }
}

fn with_ttou_blocked<T>(work: impl FnOnce() -> T) -> T {
    use nix::sys::signal::{SigSet, SigmaskHow, Signal, pthread_sigmask};
    let mut set = SigSet::empty();
    set.add(Signal::SIGTTOU);
    let mut old = SigSet::empty();
    let blocked = pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&set), Some(&mut old)).is_ok();
    let result = work();
    if blocked {
        let _ = pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&old), None);
    }
    result
}

/// The size of the user's terminal: of standard output, else input, else error output, else the
/// controlling terminal. `None` when none is one, or it does not say.
pub fn size() -> Option<TerminalSize> {
    let (input, output, error) = (io::stdin(), io::stdout(), io::stderr());
    [output.as_fd(), input.as_fd(), error.as_fd()]
        .into_iter()
        .find_map(size_of)
        .or_else(|| size_of(File::open("/dev/tty").ok()?.as_fd()))
}

fn size_of(fd: BorrowedFd<'_>) -> Option<TerminalSize> {
    use std::os::fd::AsRawFd;
    nix::ioctl_read_bad!(get_window_size, nix::libc::TIOCGWINSZ, nix::libc::winsize);
    if !fd.is_terminal() {
        return None;
    }
    let mut size = nix::libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the descriptor is open, and the kernel fills one `winsize` that we own.
    unsafe { get_window_size(fd.as_raw_fd(), &mut size) }.ok()?;
    let size = TerminalSize { rows: size.ws_row, columns: size.ws_col };
    (size.rows > 0 && size.columns > 0).then_some(size)
}
