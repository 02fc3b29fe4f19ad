//! Moves bytes between the mux and the processes' pipes and terminals, and
//! tells of an exit once the output is out.
//!
//! A process that has ended is drained until nothing is left or the last writer
//! is gone: a background child that holds the stream open doesn't delay the
//! exit, and nothing that was written before it is lost.

use super::Server;
use super::bulk::Bulk;
use super::processes::{Channel, Phase, Process};
use nix::errno::Errno;
use nix::unistd::{read, write};
use vminitd_protocol::MAX_BULK_CHUNK;
use vminitd_protocol::message::{Happening, ProcessExited};

/// Chunks per stream and turn.
const CHUNKS: usize = 4;
/// Queued bytes that are worth a write to the port before reading on.
const FLUSH_AT: usize = 64 << 10;

impl Server {
    /// One turn for every stream. Returns whether there may be more to move.
    pub(super) fn pump(&mut self) -> bool {
        let mut more = false;
        for (_, process) in self.processes.iter_mut() {
            more |= pump_input(process, &mut self.bulk);
            let exited = matches!(process.phase, Phase::Exited(_));
            for output in &mut process.outputs {
                more |= pump_output(output, &mut self.bulk, exited);
            }
        }
        more
    }

    /// Tells of the exits whose output is out, and forgets the processes.
    pub(super) fn finish_processes(&mut self) {
        for slot in self.processes.slots() {
            let Some(process) = self.processes.get_mut(slot) else { continue };
            let Phase::Exited(exit) = process.phase else { continue };
            if process.outputs.iter().any(Option::is_some) {
                continue;
            }
            let Some(process) = self.processes.remove(slot) else { continue };
            if let Some(input) = &process.input {
                self.bulk.mux.reset(input.stream);
            }
            self.agent.event(Happening::ProcessExited(ProcessExited {
                process: process.name,
                exit_code: exit.code,
                signal: exit.signal,
                out_of_memory: exit.out_of_memory,
                exited_at_ns: exit.at_ns,
            }));
        }
    }
}

/// Host to process.
fn pump_input(process: &mut Process, bulk: &mut Bulk) -> bool {
    let Some(input) = &mut process.input else { return false };
    let mux = &mut bulk.mux;
    for _ in 0..CHUNKS {
        if mux.receive_ended(input.stream) {
            // A terminal stays open for the output; a pipe's reader sees the end.
            if process.terminal.is_none() {
                mux.close(input.stream);
            }
            process.input = None;
            return false;
        }
        let bytes = mux.readable(input.stream);
        if bytes.is_empty() || !input.ready {
            return false;
        }
        match write(&input.fd, bytes) {
            Ok(n) => mux.consume(input.stream, n),
            Err(Errno::EAGAIN) => input.ready = false,
            Err(Errno::EINTR) => {}
            Err(_) => {
                // The reader is gone. A terminal's stream is its output as well.
                if process.terminal.is_none() {
                    mux.reset(input.stream);
                }
                process.input = None;
                return false;
            }
        }
    }
    true
}

/// Process to host.
fn pump_output(output: &mut Option<Channel>, bulk: &mut Bulk, exited: bool) -> bool {
    let Some(channel) = output else { return false };
    for _ in 0..CHUNKS {
        if !channel.ready {
            if exited {
                end(output, bulk);
            }
            return false;
        }
        let result = if bulk.mux.send_closed(channel.stream) {
            // The host wants no more; the process must not wait for it.
            let mut waste = [0u8; 4096];
            read(&channel.fd, &mut waste)
        } else if bulk.mux.send_capacity(channel.stream) == 0 {
            let _ = bulk.flush();
            if bulk.mux.send_capacity(channel.stream) == 0 {
                return false;
            }
            continue;
        } else {
            let fd = &channel.fd;
            bulk.mux.fill(channel.stream, MAX_BULK_CHUNK, |room| read(fd, room))
        };
        match result {
            // The end; a terminal says it by EIO.
            Ok(0) | Err(Errno::EIO) => {
                end(output, bulk);
                return false;
            }
            Ok(_) if bulk.mux.queued() >= FLUSH_AT => drop(bulk.flush()),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => channel.ready = false,
            Err(_) => {
                end(output, bulk);
                return false;
            }
        }
    }
    true
}

fn end(output: &mut Option<Channel>, bulk: &mut Bulk) {
    if let Some(channel) = output.take() {
        bulk.mux.finish(channel.stream);
        bulk.mux.close(channel.stream);
    }
}
