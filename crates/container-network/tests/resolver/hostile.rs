//! Askers that mean harm.

use std::io::{Read, Write};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;

use crate::harness::{Asker, Outside, Resolver, addresses, config, packet, until};

#[test]
fn malformed_packets_harm_nobody() {
    let mut resolver = Resolver::with(&config(&[]));
    let asker = Asker::new(resolver.address, 2);
    let good = packet("db.", RecordType::A);
    let mut packets: Vec<Vec<u8>> = (0..good.len()).map(|n| good[..n].to_vec()).collect();
    for at in 0..good.len() {
        for value in [0, 0x3f, 0xc0, 0xff] {
            let mut damaged = good.clone();
            damaged[at] = value;
            packets.push(damaged);
        }
    }
    // A name that points to itself, and one that points ahead.
    for to in [12, 13, 40] {
        packets.push([&good[..12], &[0xc0, to, 0, 1, 0, 1]].concat());
    }
    // As many labels as fit, and more.
    packets.push([&good[..12], &[1u8, b'a'].repeat(200), &[0, 0, 1, 0, 1]].concat());
    packets.push(vec![0; 65_000]);
    packets.push([good.as_slice(), &[0xff; 60_000]].concat());
    for packet in &packets {
        asker.send(packet);
    }
    assert!(resolver.lives());
    // Answers to what could be answered came first.
    let other = Asker::new(resolver.address, 3);
    assert_eq!(addresses(&other.ask("db.", RecordType::A).unwrap()).len(), 1);
}

#[test]
fn a_flood_of_one_container_does_not_stop_another() {
    let outside = Outside::start(|_| Vec::new());
    let resolver = Resolver::with(&config(&[outside.address]));
    let (stop, sent) = (AtomicBool::new(false), AtomicUsize::new(0));
    let mut took = Vec::new();
    let asked = std::thread::scope(|scope| {
        scope.spawn(|| {
            let flood = Asker::new(resolver.address, 2);
            while !stop.load(Ordering::Relaxed) {
                // Some that would be asked for outside, and some that would be known.
                let n = sent.fetch_add(2, Ordering::Relaxed);
                flood.send(&packet(&format!("n{n}.example."), RecordType::A));
                flood.send(&packet("db.", RecordType::A));
            }
        });
        let asker = Asker::new(resolver.address, 3);
        let mut asked = 0;
        while took.len() < 300 || sent.load(Ordering::Relaxed) < 100_000 {
            let start = Instant::now();
            // The kernel may drop what comes to a full queue: a client asks again.
            until("an answer", || {
                asked += 1;
                asker.send(&packet("web.", RecordType::A));
                asker.receive(Duration::from_secs(1))
            });
            took.push(start.elapsed());
        }
        stop.store(true, Ordering::Relaxed);
        asked
    });
    took.sort();
    let median = took[took.len() / 2];
    let answered = took.len();
    println!(
        "within a flood of {sent:?} packets: median {median:?}, {answered} of {asked} answered"
    );
    // Bounded outside too: a container's share at a time.
    // One question may meet a queue that is still full: a client asks again.
    let late = Asker::new(resolver.address, 2);
    until("the share comes back", || {
        late.send(&packet("late.example.", RecordType::A));
        let reply = late.receive(Duration::from_secs(2))?;
        (reply.metadata.response_code == ResponseCode::ServFail).then_some(())
    });
}

#[test]
fn connections_are_bounded_and_idle_ones_end() {
    let resolver = Resolver::with(&config(&[]));
    let mut open: Vec<_> = (0..40).map(|_| resolver.tcp(2)).collect();
    // A container's share, and the rest is closed at once.
    let mut closed = 0;
    for stream in &mut open {
        stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        closed += usize::from(matches!(stream.read(&mut [0; 1]), Ok(0)));
        if closed == 24 {
            break;
        }
    }
    assert_eq!(closed, 24);
    assert_eq!(resolver.ask_tcp(3, &packet("db.", RecordType::A)).unwrap().answers.len(), 1);
    // Half a message, and none that follows.
    let last = open.first_mut().unwrap();
    last.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    last.write_all(&[0, 50, 1, 2, 3]).unwrap();
    assert!(matches!(last.read(&mut [0; 1]), Ok(0) | Err(_)));
    until("the share comes back", || resolver.ask_tcp(2, &packet("db.", RecordType::A)).ok());
}
