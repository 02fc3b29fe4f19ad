use super::*;
use proptest::prelude::*;
use std::collections::HashMap;

/// Moves at most `max` queued bytes from one side to the other.
fn pump(from: &mut Mux, to: &mut Mux, max: usize) -> bool {
    let bytes = from.transmit();
    let bytes = bytes[..bytes.len().min(max)].to_vec();
    from.transmitted(bytes.len());
    to.receive(&bytes).unwrap();
    !bytes.is_empty()
}

fn pair(streams: &[(u32, Direction)]) -> (Mux, Mux) {
    let (mut host, mut guest) = (Mux::new(Side::Host), Mux::new(Side::Guest));
    for (id, direction) in streams {
        host.open(*id, *direction).unwrap();
        guest.open(*id, *direction).unwrap();
    }
    (host, guest)
}

#[test]
fn host_waits_for_the_guest_to_open() {
    let (mut host, mut guest) = (Mux::new(Side::Host), Mux::new(Side::Guest));
    host.open(1, Direction::ToGuest).unwrap();
    assert_eq!(host.write(1, b"early"), 0);
    guest.open(1, Direction::ToGuest).unwrap();
    pump(&mut guest, &mut host, usize::MAX);
    assert_eq!(host.write(1, b"now"), 3);
    host.finish(1);
    pump(&mut host, &mut guest, usize::MAX);
    assert_eq!(guest.readable(1), b"now");
    assert!(!guest.receive_ended(1));
    guest.consume(1, 3);
    assert!(guest.receive_ended(1));
    assert!(host.send_closed(1));
}

#[test]
fn a_blocked_stream_blocks_no_other() {
    let (mut host, mut guest) = pair(&[(1, Direction::ToHost), (2, Direction::ToHost)]);
    let mut sent = 0;
    loop {
        let n = guest.write(1, &[7; 5000]);
        sent += n;
        if !pump(&mut guest, &mut host, usize::MAX) {
            break;
        }
    }
    assert_eq!(sent, STREAM_WINDOW);
    assert_eq!(guest.write(2, b"still"), 5);
    pump(&mut guest, &mut host, usize::MAX);
    assert_eq!(host.readable(2), b"still");
}

#[test]
fn reset_ends_both_ways() {
    let (mut host, mut guest) = pair(&[(9, Direction::Both)]);
    pump(&mut guest, &mut host, usize::MAX);
    assert_eq!(host.write(9, b"x"), 1);
    guest.reset(9);
    pump(&mut guest, &mut host, usize::MAX);
    assert!(host.send_closed(9) && host.receive_ended(9));
    pump(&mut host, &mut guest, usize::MAX);
    assert_eq!(guest.readable(9), b"");
}

#[test]
fn misuse_is_told() {
    let (mut host, _) = pair(&[(1, Direction::ToHost)]);
    assert_eq!(host.open(1, Direction::Both), Err(MuxError::InUse { stream: 1 }));
    let grant = Header::new(Kind::Credit, 1, u32::MAX).encode();
    host.receive(&grant).unwrap();
    host.open(2, Direction::ToGuest).unwrap();
    let grant = Header::new(Kind::Credit, 2, u32::MAX).encode();
    let error = host.receive(&grant).unwrap_err();
    assert_eq!(error, MuxError::TooMuchCredit { stream: 2, len: u32::MAX });
}

#[test]
fn data_beyond_the_credit_is_an_error() {
    let (mut host, _) = pair(&[(1, Direction::ToHost)]);
    let chunk = vec![0; MAX_BULK_CHUNK];
    let header = Header::new(Kind::Data, 1, MAX_BULK_CHUNK as u32).encode();
    for _ in 0..STREAM_WINDOW / MAX_BULK_CHUNK {
        host.receive(&header).unwrap();
        host.receive(&chunk).unwrap();
    }
    assert!(matches!(host.receive(&header), Err(MuxError::NoCredit { stream: 1, .. })));
}

#[test]
fn a_new_hello_is_seen_between_frames() {
    let (mut host, mut guest) = pair(&[(1, Direction::ToGuest)]);
    pump(&mut guest, &mut host, usize::MAX);
    host.write(1, b"abc");
    let mut bytes = host.transmit().to_vec();
    let end = bytes.len();
    bytes.extend_from_slice(
        &crate::handshake::HostHandshake::new(crate::handshake::Port::Bulk, [0; 16]).hello(),
    );
    assert_eq!(guest.receive(&bytes), Err(MuxError::NewHandshake { consumed: end }));
}

#[derive(Clone, Debug)]
enum Op {
    Write(bool, u32, usize),
    Pump(bool, usize),
    Consume(bool, u32, usize),
    Finish(bool, u32),
}

fn op() -> impl Strategy<Value = Op> {
    let id = 1u32..4;
    prop_oneof![
        4 => (any::<bool>(), id.clone(), 1usize..100_000).prop_map(|(h, s, n)| Op::Write(h, s, n)),
        6 => (any::<bool>(), 1usize..100_000).prop_map(|(h, n)| Op::Pump(h, n)),
        4 => (any::<bool>(), id.clone(), 1usize..100_000).prop_map(|(h, s, n)| Op::Consume(h, s, n)),
        1 => (any::<bool>(), id).prop_map(|(h, s)| Op::Finish(h, s)),
    ]
}

/// Both sides, and per (from host, stream) what was written and what was read.
struct World {
    host: Mux,
    guest: Mux,
    written: HashMap<(bool, u32), Vec<u8>>,
    read: HashMap<(bool, u32), Vec<u8>>,
    next: u8,
}

impl World {
    fn side(&mut self, host: bool) -> &mut Mux {
        if host { &mut self.host } else { &mut self.guest }
    }

    fn pump(&mut self, from_host: bool, max: usize) -> bool {
        if from_host {
            pump(&mut self.host, &mut self.guest, max)
        } else {
            pump(&mut self.guest, &mut self.host, max)
        }
    }

    fn consume(&mut self, host: bool, id: u32, max: usize) -> bool {
        let side = self.side(host);
        let bytes = side.readable(id);
        let bytes = bytes[..bytes.len().min(max)].to_vec();
        side.consume(id, bytes.len());
        self.read.entry((!host, id)).or_default().extend_from_slice(&bytes);
        !bytes.is_empty()
    }

    fn run(&mut self, op: Op) {
        match op {
            Op::Write(host, id, n) => {
                self.next = self.next.wrapping_add(1);
                let data = vec![self.next; n];
                let n = self.side(host).write(id, &data);
                self.written.entry((host, id)).or_default().extend_from_slice(&data[..n]);
            }
            Op::Pump(host, n) => {
                self.pump(host, n);
            }
            Op::Consume(host, id, n) => {
                self.consume(host, id, n);
            }
            Op::Finish(host, id) => self.side(host).finish(id),
        }
        assert!(self.host.out.len() < 4 * OUT_LIMIT && self.guest.out.len() < 4 * OUT_LIMIT);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_byte_arrives_in_order(ops in proptest::collection::vec(op(), 0..200)) {
        let both = Direction::Both;
        let (host, guest) = pair(&[(1, both), (2, both), (3, both)]);
        let mut world =
            World { host, guest, written: HashMap::new(), read: HashMap::new(), next: 0 };
        for op in ops {
            world.run(op);
        }
        let mut moving = true;
        while moving {
            moving = false;
            for host in [true, false] {
                moving |= world.pump(host, usize::MAX);
                for id in 1..4 {
                    moving |= world.consume(host, id, usize::MAX);
                }
            }
        }
        world.written.retain(|_, bytes| !bytes.is_empty());
        world.read.retain(|_, bytes| !bytes.is_empty());
        prop_assert!(world.written == world.read);
    }

    #[test]
    fn garbage_never_panics(
        bytes in proptest::collection::vec(prop_oneof![0u8..5, any::<u8>()], 0..3000),
        step in 1usize..200,
    ) {
        let mut host = Mux::new(Side::Host);
        host.open(0, Direction::Both).unwrap();
        host.open(1, Direction::ToHost).unwrap();
        for chunk in bytes.chunks(step) {
            if host.receive(chunk).is_err() {
                break;
            }
            prop_assert!(host.readable(0).len() <= STREAM_WINDOW);
        }
    }
}
