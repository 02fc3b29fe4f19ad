//! The host's half of the protocol, blocking, for one thread.

use crate::vm::{Files, Vm};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use prost::Message;
use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::time::{Duration, Instant, SystemTime};
use vminitd_protocol::frame::{self, Decoder};
use vminitd_protocol::handshake::{HostHandshake, Port};
use vminitd_protocol::message::*;
use vminitd_protocol::mux::{Direction, Mux, Side};

const LIMIT: Duration = Duration::from_secs(120);

pub struct Client {
    pub vm: Vm,
    decoder: Decoder,
    pub mux: Mux,
    next_id: u64,
    next_stream: u32,
    responses: HashMap<u64, Reply>,
    pub exits: HashMap<String, ProcessExited>,
    pub ooms: Vec<OutOfMemory>,
    /// What came on each stream.
    pub output: HashMap<u32, Vec<u8>>,
    /// What is to be sent on a stream; finished when `None` follows.
    pub input: HashMap<u32, (Vec<u8>, usize, bool)>,
}

fn connect(port: Port, stream: &mut std::os::unix::net::UnixStream) -> Vec<u8> {
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    let mut handshake = HostHandshake::new(port, [port as u8 + 1; 16]);
    stream.write_all(&handshake.hello()).unwrap();
    let mut buffer = [0; 4096];
    loop {
        let n = stream.read(&mut buffer).expect("handshake in time");
        assert!(n > 0, "QEMU closed the port");
        if let Some(at) = handshake.receive(&buffer[..n]).unwrap() {
            return buffer[at..n].to_vec();
        }
    }
}

impl Client {
    pub fn boot(files: &Files) -> Client {
        Self::boot_with(files, 256)
    }

    pub fn boot_with(files: &Files, memory_mib: u32) -> Client {
        Self::greet(Vm::boot(files, memory_mib))
    }

    /// Shakes hands with the guest of a VM.
    pub fn greet(mut vm: Vm) -> Client {
        let rest = connect(Port::Agent, &mut vm.agent);
        println!("       boot to handshake: {:?}", vm.started.elapsed());
        let mut mux = Mux::new(Side::Host);
        mux.receive(&connect(Port::Bulk, &mut vm.bulk)).unwrap();
        let mut decoder = Decoder::new();
        decoder.feed(&rest);
        vm.agent.set_nonblocking(true).unwrap();
        vm.bulk.set_nonblocking(true).unwrap();
        Client {
            vm,
            decoder,
            mux,
            next_id: 0,
            next_stream: 0,
            responses: HashMap::new(),
            exits: HashMap::new(),
            ooms: Vec::new(),
            output: HashMap::new(),
            input: HashMap::new(),
        }
    }

    /// Shakes hands again on the same ports, as a new host would.
    pub fn connect_again(&mut self) {
        for port in [&self.vm.agent, &self.vm.bulk] {
            port.set_nonblocking(false).unwrap();
        }
        let rest = connect(Port::Agent, &mut self.vm.agent);
        self.mux = Mux::new(Side::Host);
        self.mux.receive(&connect(Port::Bulk, &mut self.vm.bulk)).unwrap();
        self.decoder = Decoder::new();
        self.decoder.feed(&rest);
        for port in [&self.vm.agent, &self.vm.bulk] {
            port.set_nonblocking(true).unwrap();
        }
    }

    /// A guest with its root mounted.
    pub fn rooted(files: &Files) -> Client {
        let mut client = Client::boot(files);
        client.root();
        client
    }

    pub fn set_up(&mut self, sysctls: Vec<Sysctl>) {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        let wall_clock_ns = now.as_nanos() as u64;
        self.done(Call::Setup(Setup { entropy: vec![7; 64], wall_clock_ns, sysctls }));
    }

    pub fn root(&mut self) {
        self.set_up(vec![]);
        let (image_serial, upper_serial) = ("image".into(), "upper".into());
        let root = MountRoot { image_serial, upper_serial, ..MountRoot::default() };
        self.done(Call::MountRoot(root));
    }

    pub fn send(&mut self, call: Call) -> u64 {
        self.next_id += 1;
        let bytes = frame::encode(&Request { id: self.next_id, call: Some(call) }).unwrap();
        self.send_raw(&bytes);
        self.next_id
    }

    pub fn send_raw(&mut self, bytes: &[u8]) {
        self.vm.agent.set_nonblocking(false).unwrap();
        self.vm.agent.write_all(bytes).unwrap();
        self.vm.agent.set_nonblocking(true).unwrap();
    }

    pub fn has_response(&self, id: u64) -> bool {
        self.responses.contains_key(&id)
    }

    pub fn call(&mut self, call: Call) -> Reply {
        let id = self.send(call);
        self.until(|client| client.responses.contains_key(&id));
        self.responses.remove(&id).unwrap()
    }

    pub fn done(&mut self, call: Call) {
        let reply = self.call(call);
        assert_eq!(reply, Reply::Done(Done {}));
    }

    pub fn started(&mut self, call: Call) {
        let reply = self.call(call);
        assert!(matches!(reply, Reply::Started(_)), "{reply:?}");
    }

    pub fn error(&mut self, call: Call) -> Error {
        match self.call(call) {
            Reply::Error(error) => error,
            other => panic!("no error: {other:?}"),
        }
    }

    pub fn exit(&mut self, process: &str) -> ProcessExited {
        self.until(|client| client.exits.contains_key(process));
        self.exits.remove(process).unwrap()
    }

    /// Opens streams and fills them into a process.
    pub fn streams(&mut self, process: &mut ProcessSpec) -> Stdio {
        let mut stream = |way| {
            self.next_stream += 1;
            self.mux.open(self.next_stream, way).unwrap();
            if way != Direction::ToGuest {
                self.output.insert(self.next_stream, Vec::new());
            }
            Some(self.next_stream)
        };
        let stdio = if process.terminal.is_some() {
            Stdio { terminal: stream(Direction::Both), ..Stdio::default() }
        } else {
            Stdio {
                stdin: stream(Direction::ToGuest),
                stdout: stream(Direction::ToHost),
                stderr: stream(Direction::ToHost),
                terminal: None,
            }
        };
        process.stdio = Some(stdio);
        stdio
    }

    pub fn write(&mut self, stream: u32, data: &[u8], finish: bool) {
        self.input.insert(stream, (data.to_vec(), 0, finish));
    }

    pub fn ended(&self, stream: u32) -> bool {
        self.mux.receive_ended(stream)
    }

    /// Moves bytes until the condition holds.
    pub fn until(&mut self, condition: impl Fn(&Client) -> bool) {
        let deadline = Instant::now() + LIMIT;
        while !condition(self) {
            assert!(Instant::now() < deadline, "condition not met in time");
            let moved = self.step();
            if !moved && !condition(self) {
                let mut events = PollFlags::POLLIN;
                if self.mux.queued() > 0 {
                    events |= PollFlags::POLLOUT;
                }
                let mut fds = [
                    PollFd::new(self.vm.agent.as_fd(), PollFlags::POLLIN),
                    PollFd::new(self.vm.bulk.as_fd(), events),
                ];
                poll(&mut fds, PollTimeout::from(1000u16)).unwrap();
            }
        }
    }

    fn step(&mut self) -> bool {
        let mut moved = false;
        let mut buffer = vec![0; 256 << 10];
        match self.vm.agent.read(&mut buffer) {
            Ok(0) => {}
            Ok(n) => {
                moved = true;
                self.decoder.feed(&buffer[..n]);
            }
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
        while let Some(bytes) = self.decoder.next_frame().unwrap() {
            let message = GuestMessage::decode(bytes).unwrap();
            match message.body.unwrap() {
                GuestBody::Response(response) => {
                    self.responses.insert(response.id, response.reply.unwrap());
                }
                GuestBody::Event(event) => match event.happening.unwrap() {
                    Happening::ProcessExited(exit) => {
                        self.exits.insert(exit.process.clone(), exit);
                    }
                    Happening::OutOfMemory(oom) => self.ooms.push(oom),
                    Happening::SocketConnected(_) => {}
                },
            }
        }
        match self.vm.bulk.read(&mut buffer) {
            Ok(n) => {
                moved |= n > 0;
                self.mux.receive(&buffer[..n]).unwrap();
            }
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
        for (stream, output) in &mut self.output {
            loop {
                let bytes = self.mux.readable(*stream);
                if bytes.is_empty() {
                    break;
                }
                output.extend_from_slice(bytes);
                let n = bytes.len();
                self.mux.consume(*stream, n);
                moved = true;
            }
        }
        for (stream, (data, at, finish)) in &mut self.input {
            let n = self.mux.write(*stream, &data[*at..]);
            *at += n;
            moved |= n > 0;
            if *finish && *at == data.len() {
                self.mux.finish(*stream);
                *finish = false;
            }
        }
        while self.mux.queued() > 0 {
            match self.vm.bulk.write(self.mux.transmit()) {
                Ok(n) => {
                    self.mux.transmitted(n);
                    moved = true;
                }
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::WouldBlock);
                    break;
                }
            }
        }
        moved
    }

    /// Shuts the guest down and waits for power-off.
    pub fn shut_down(mut self) {
        let at = Instant::now();
        self.done(Call::Shutdown(Shutdown {}));
        let done = at.elapsed();
        self.vm.wait();
        println!("       shutdown: done {done:?}, off {:?}", at.elapsed());
    }
}
