//! What a container is held to: memory, processes, processors.

use std::ffi::OsString;
use std::io::{self, BufRead};
use std::net::{Ipv4Addr, TcpListener};
use std::thread;
use std::time::{Duration, Instant};

use nix::libc;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};

use crate::report::{Answer, number, say, tell};

/// Bytes that are taken at once.
const PIECE: usize = 4 << 20;
/// Processes beyond which nobody counts.
const MOST_PROCESSES: usize = 4096;

/// `serve PORT SECONDS`: listens, so that others can try to reach it, and ends by itself.
pub fn serve(words: &[OsString]) -> Result<(), String> {
    let port: u16 = number(words.first())?;
    let seconds: u64 = number(words.get(1))?;
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).map_err(|e| e.to_string())?;
    thread::spawn(move || {
        // A connection is all there is to know.
        for connection in listener.incoming() {
            drop(connection);
        }
    });
    say("listening");
    thread::sleep(Duration::from_secs(seconds));
    Ok(())
}

/// `sleep SECONDS`: is there, to be attacked.
pub fn sleep(words: &[OsString]) -> Result<(), String> {
    thread::sleep(Duration::from_secs(number(words.first())?));
    Ok(())
}

/// `memory MIB`: takes so much, says so, and gives it back at the next line of its input.
pub fn memory(words: &[OsString]) -> Result<(), String> {
    let bytes = number::<usize>(words.first())? << 20;
    let held = vec![1_u8; bytes];
    say(&format!("held {}", std::hint::black_box(&held).len()));
    wait_for_line();
    drop(held);
    say("freed");
    wait_for_line();
    Ok(())
}

fn wait_for_line() {
    let _ = io::stdin().lock().read_line(&mut String::new());
}

/// `exhaust MIB`: a child takes more than there may be.
pub fn exhaust(words: &[OsString]) -> Result<(), String> {
    let bytes = number::<usize>(words.first())? << 20;
    let answer = match in_child(|| {
        // In pieces, so that it is not the size of one that is refused.
        let mut held: Vec<Vec<u8>> = Vec::new();
        while held.len() * PIECE < bytes {
            held.push(vec![1; PIECE]);
        }
        std::hint::black_box(&held);
        0
    })? {
        WaitStatus::Signaled(_, signal, _) => {
            Answer::Held(format!("a process that took {} MiB ended by {signal}", bytes >> 20))
        }
        WaitStatus::Exited(_, 0) => Answer::Open(format!("a process took {} MiB", bytes >> 20)),
        other => Answer::Skipped(format!("{other:?}")),
    };
    tell("memory-limit", answer);
    Ok(())
}

/// `processes`: as many as there can be.
pub fn processes() -> Result<(), String> {
    // The children wait until this program closes its end of the pipe.
    let mut ends = [0; 2];
    // SAFETY: writes two descriptors into an array of two.
    if unsafe { libc::pipe(ends.as_mut_ptr()) } < 0 {
        return Err("no pipe".into());
    }
    let mut children = Vec::new();
    let refused = loop {
        if children.len() >= MOST_PROCESSES {
            break None;
        }
        // SAFETY: the child calls what is allowed between fork and its end: two calls.
        match unsafe { fork() } {
            Ok(ForkResult::Child) => {
                // SAFETY: reads until the writing end closes, with this program's own end closed.
                unsafe {
                    libc::close(ends[1]);
                    libc::read(ends[0], (&raw mut ends[1]).cast(), 1);
                    libc::_exit(0)
                }
            }
            Ok(ForkResult::Parent { child }) => children.push(child),
            Err(errno) => break Some(errno),
        }
    };
    // SAFETY: this program's own descriptor; the children's reads end.
    unsafe { libc::close(ends[1]) };
    for child in &children {
        let _ = waitpid(*child, None);
    }
    say(&format!("processes {}", children.len()));
    tell(
        "process-limit",
        match refused {
            Some(errno) => Answer::Held(format!("fork after {} more: {errno}", children.len())),
            None => Answer::Open(format!("{} processes and no end", children.len())),
        },
    );
    Ok(())
}

/// `spin THREADS SECONDS`: takes all the processor time that there is.
pub fn spin(words: &[OsString]) -> Result<(), String> {
    let threads: usize = number(words.first())?;
    let end = Instant::now() + Duration::from_secs(number(words.get(1))?);
    let busy = move || {
        let mut number = 1_u64;
        while Instant::now() < end {
            for _ in 0..100_000 {
                number = std::hint::black_box(number.wrapping_mul(3));
            }
        }
    };
    say("spinning");
    let running: Vec<_> = (0..threads).map(|_| thread::spawn(busy)).collect();
    for thread in running {
        let _ = thread.join();
    }
    say("done");
    Ok(())
}

/// What becomes of `work` in a process of its own.
fn in_child(work: impl FnOnce() -> i32) -> Result<WaitStatus, String> {
    // SAFETY: this program has one thread, so the child may go on running all of its code.
    match unsafe { fork() } {
        Ok(ForkResult::Child) => {
            let code = work();
            // SAFETY: ends the process.
            unsafe { libc::_exit(code) }
        }
        Ok(ForkResult::Parent { child }) => waitpid(child, None).map_err(|e| e.to_string()),
        Err(error) => Err(error.to_string()),
    }
}
