//! The signals that we receive while a program runs for us.

use std::io;
use std::task::Poll;

use nix::libc;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Signals that are the program's, when it has no terminal of its own.
const FORWARDED: &[i32] = &[
    libc::SIGHUP,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGALRM,
    libc::SIGTERM,
];

/// Signals that end a command.
const ENDING: &[i32] = &[libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM];

/// Signals taken from their default action, for the rest of the process's life.
#[derive(Debug)]
pub struct Signals(Vec<(i32, Signal)>);

impl Signals {
    /// Those that a program is sent.
    pub fn forwarded() -> io::Result<Signals> {
        Self::of(FORWARDED)
    }

    /// Those that end a command.
    pub fn ending() -> io::Result<Signals> {
        Self::of(ENDING)
    }

    fn of(numbers: &[i32]) -> io::Result<Signals> {
        let take = |&number: &i32| Ok((number, signal(SignalKind::from_raw(number))?));
        numbers.iter().map(take).collect::<io::Result<_>>().map(Signals)
    }

    /// The next signal.
    pub async fn next(&mut self) -> i32 {
        std::future::poll_fn(|context| {
            for (number, signal) in &mut self.0 {
                if signal.poll_recv(context).is_ready() {
                    return Poll::Ready(*number);
                }
            }
            Poll::Pending
        })
        .await
    }
}

/// Whether a signal is a user's wish to end.
pub fn asks_to_end(signal: i32) -> bool {
    matches!(signal, libc::SIGINT | libc::SIGTERM)
}

/// The signal's name (`SIGTERM`).
pub fn name(signal: i32) -> String {
    match nix::sys::signal::Signal::try_from(signal) {
        Ok(signal) => signal.as_str().to_owned(),
        Err(_) => signal.to_string(),
    }
}
