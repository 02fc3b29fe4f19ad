//! The guest's half.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;

use container_runtime_linux::hypervisor::VmExit;
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{Notify, OwnedMutexGuard, mpsc};
use vminitd_protocol::frame::{self, Decoder};
use vminitd_protocol::handshake::{GuestHandshake, Port};
use vminitd_protocol::message::{
    self, BootLog, Call, Done, ErrorCode, Event, GuestBody, GuestMessage, Happening, OutOfMemory,
    Pong, ProcessExited, ProcessSpec, Reply, Request, Response, Started, Stats,
};
use vminitd_protocol::mux::{Direction, Mux, Side};

use super::{Deeds, Mishap, Vices, killed};

/// What makes this guest differ from others.
pub struct Nature {
    pub vices: Vices,
    pub deeds: Rc<RefCell<Deeds>>,
    pub memory: Rc<Cell<u64>>,
}

/// As in the protocol's drawing.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Booted,
    Ready,
    Rooted,
    Running,
    Stopped,
}

/// Everything of a process that the guest has to know.
struct Streams {
    outputs: Vec<u32>,
}

struct Guest {
    nature: Nature,
    state: State,
    agent: UnixStream,
    mux: Rc<RefCell<Mux>>,
    queued: Rc<Notify>,
    alive: BTreeSet<String>,
}

async fn welcome(stream: &mut UnixStream, port: Port) -> Option<Vec<u8>> {
    let mut handshake = GuestHandshake::new(port);
    let mut buffer = [0; 512];
    loop {
        let n = stream.read(&mut buffer).await.ok().filter(|n| *n > 0)?;
        if let Some(hello) = handshake.receive(&buffer[..n]) {
            stream.write_all(b"stale bytes of a former host").await.ok()?;
            stream.write_all(&hello.welcome).await.ok()?;
            return Some(buffer[hello.consumed..n].to_vec());
        }
    }
}

/// Lives until it is told to power off or suffers a mishap.
pub async fn live(
    mut agent: UnixStream,
    mut bulk: UnixStream,
    mut mishaps: OwnedMutexGuard<mpsc::UnboundedReceiver<Mishap>>,
    nature: Nature,
) -> VmExit {
    let shaken = async {
        welcome(&mut bulk, Port::Bulk).await?;
        welcome(&mut agent, Port::Agent).await
    };
    let rest = tokio::select! {
        rest = shaken => rest,
        Some(_) = mishaps.recv() => return killed(),
    };
    let Some(rest) = rest else { return killed() };
    let mux = Rc::new(RefCell::new(Mux::new(Side::Guest)));
    let queued = Rc::new(Notify::new());
    tokio::task::spawn_local(carry(bulk, mux.clone(), queued.clone()));
    let state = State::Booted;
    let mut guest = Guest { nature, state, agent, mux, queued, alive: BTreeSet::new() };
    let mut decoder = Decoder::new();
    decoder.feed(&rest);
    let mut buffer = [0; 4096];
    loop {
        while let Some(frame) = decoder.next_frame().unwrap() {
            let request = Request::decode(frame).unwrap();
            if guest.answer(request).await {
                return VmExit {
                    code: Some(0),
                    reason: Some("guest-shutdown".into()),
                    ..VmExit::default()
                };
            }
        }
        tokio::select! {
            n = guest.agent.read(&mut buffer) => match n {
                Ok(n) if n > 0 => decoder.feed(&buffer[..n]),
                _ => return killed(),
            },
            Some(mishap) = mishaps.recv() => match mishap {
                Mishap::Killed => return killed(),
                Mishap::Babbles => drop(guest.agent.write_all(&[0xff; 64]).await),
                Mishap::Hangs => {
                    drop(guest);
                    std::future::pending::<()>().await;
                    return killed();
                }
                Mishap::Exits => guest.end("init", 3, 0).await,
                Mishap::OutOfMemory => guest.out_of_memory().await,
                Mishap::ExitsBabbling => {
                    guest.end("init", 3, 0).await;
                    drop(guest.agent.write_all(&[0xff; 64]).await);
                }
            },
        }
    }
}

/// Moves the streams' bytes; input is consumed and forgotten.
async fn carry(mut bulk: UnixStream, mux: Rc<RefCell<Mux>>, queued: Rc<Notify>) {
    let mut buffer = [0; 4096];
    loop {
        let out = mux.borrow().transmit().to_vec();
        if !out.is_empty() {
            if bulk.write_all(&out).await.is_err() {
                return;
            }
            mux.borrow_mut().transmitted(out.len());
        }
        tokio::select! {
            n = bulk.read(&mut buffer) => match n {
                Ok(n) if n > 0 => mux.borrow_mut().receive(&buffer[..n]).unwrap(),
                _ => return,
            },
            () = queued.notified() => {}
        }
    }
}

impl Guest {
    /// True when the guest powers off.
    async fn answer(&mut self, Request { id, call }: Request) -> bool {
        let call = call.expect("a call");
        let off = matches!(call, Call::Shutdown(_));
        let mut end = None;
        let reply = self.reply(call, &mut end).await.unwrap_or_else(Reply::Error);
        self.send(GuestBody::Response(Response { id, reply: Some(reply) })).await;
        if let Some((name, code, signal)) = end {
            self.end(&name, code, signal).await;
        }
        off
    }

    /// Does what is legal in its state; `end` is the process that ends with it.
    async fn reply(
        &mut self,
        call: Call,
        end: &mut Option<(String, u32, u32)>,
    ) -> Result<Reply, message::Error> {
        use State::*;
        let done = Ok(Reply::Done(Done {}));
        let refused = |code, text: &str| Err(message::Error::new(code, text));
        let (name, next) = match (&call, self.state) {
            (Call::Setup(_), Booted | Ready) => ("setup", Ready),
            (Call::MountRoot(_), Ready) if self.nature.vices.mount => {
                return refused(ErrorCode::Mount, "no file system");
            }
            (Call::MountRoot(_), Ready) => ("mount", Rooted),
            (Call::StartContainer(_), Rooted) => ("start", Running),
            (Call::UnmountRoot(_), Rooted | Stopped) => ("unmount", Ready),
            (Call::LoadDrivers(_), state) if state != Booted => ("drivers", state),
            (Call::Update(_), Running) => ("update", Running),
            (Call::ConfigureNetwork(_), state @ (Ready | Rooted)) => ("network", state),
            (Call::Setup(_) | Call::MountRoot(_), _)
            | (Call::StartContainer(_) | Call::UnmountRoot(_), _)
            | (Call::LoadDrivers(_) | Call::Update(_) | Call::ConfigureNetwork(_), _) => {
                return refused(ErrorCode::InvalidState, "not legal in this state");
            }
            (_, state) => ("", state),
        };
        self.state = next;
        self.nature.deeds.borrow_mut().calls.push(name);
        match call {
            Call::StartContainer(start) => {
                let name = self.open(&start.process).await;
                if start.process.args[0] == b"/warm-up" {
                    let code = if self.nature.vices.warm_up { 1 } else { 0 };
                    *end = Some((name.clone(), code, 0));
                }
                self.alive.insert(name);
                Ok(Reply::Started(Started { pid: 2 }))
            }
            Call::Exec(spec) => {
                let name = self.open(&spec).await;
                *end = Some((name, 0, 0));
                Ok(Reply::Started(Started { pid: 3 }))
            }
            Call::Signal(signal) if self.alive.contains(&signal.process) => {
                *end = Some((signal.process, 128 + signal.signal, signal.signal));
                done
            }
            Call::Signal(_) => refused(ErrorCode::NoSuchProcess, "no such process"),
            Call::Stats(_) => Ok(Reply::Stats(Stats { pids: 1, ..Stats::default() })),
            Call::Ping(_) => {
                let memory_bytes = self.nature.memory.get();
                Ok(Reply::Pong(Pong { memory_bytes, ..Pong::default() }))
            }
            Call::BootLog(_) => Ok(Reply::BootLog(BootLog { text: b"kernel log\n".to_vec() })),
            _ => done,
        }
    }

    async fn out_of_memory(&mut self) {
        let oom = OutOfMemory {
            kernel_message: "Killed process 7 (eater)".into(),
            kills: 1,
            process: "eater".into(),
            pid: 7,
            limit_bytes: 1 << 20,
            ..OutOfMemory::default()
        };
        let happening = Some(Happening::OutOfMemory(oom));
        self.send(GuestBody::Event(Event { happening })).await;
    }

    async fn open(&mut self, spec: &ProcessSpec) -> String {
        let stdio = spec.stdio.unwrap_or_default();
        let streams = Streams { outputs: stdio.stdout.into_iter().chain(stdio.stderr).collect() };
        let mut mux = self.mux.borrow_mut();
        if let Some(terminal) = stdio.terminal {
            mux.open(terminal, Direction::Both).unwrap();
            mux.finish(terminal);
        }
        if let Some(stdin) = stdio.stdin {
            mux.open(stdin, Direction::ToGuest).unwrap();
        }
        for stream in streams.outputs {
            mux.open(stream, Direction::ToHost).unwrap();
            mux.write(stream, b"hello\n");
            mux.finish(stream);
        }
        drop(mux);
        self.queued.notify_one();
        spec.process.clone()
    }

    async fn end(&mut self, process: &str, exit_code: u32, signal: u32) {
        if process == "init" {
            if !self.alive.remove("init") {
                return;
            }
            self.state = State::Stopped;
        }
        let exited = ProcessExited {
            process: process.into(),
            exit_code,
            signal,
            ..ProcessExited::default()
        };
        let happening = Some(Happening::ProcessExited(exited));
        self.send(GuestBody::Event(Event { happening })).await;
    }

    async fn send(&mut self, body: GuestBody) {
        let bytes = frame::encode(&GuestMessage { body: Some(body) }).unwrap();
        let _ = self.agent.write_all(&bytes).await;
    }
}
