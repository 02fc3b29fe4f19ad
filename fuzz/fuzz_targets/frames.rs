//! Bytes of a guest's two ports: control frames with their messages, and streams.

#![no_main]

use libfuzzer_sys::fuzz_target;
use prost::Message;
use vminitd_protocol::frame::Decoder;
use vminitd_protocol::message::{GuestMessage, Request};
use vminitd_protocol::mux::{Direction, Mux, Side};
use vminitd_protocol::{MAX_CONTROL_FRAME, STREAM_WINDOW};

/// Streams that are open on the host's side.
const STREAMS: [(u32, Direction); 3] =
    [(1, Direction::Both), (2, Direction::ToHost), (3, Direction::ToGuest)];

fn control(bytes: &[u8], piece: usize) {
    let mut decoder = Decoder::new();
    for piece in bytes.chunks(piece) {
        decoder.feed(piece);
        loop {
            match decoder.next_frame() {
                Ok(Some(frame)) => {
                    if let Ok(message) = GuestMessage::decode(frame) {
                        let again = GuestMessage::decode(&*message.encode_to_vec());
                        assert_eq!(again.ok(), Some(message));
                    }
                    let _ = Request::decode(frame);
                }
                Ok(None) => break,
                Err(_) => return,
            }
        }
        assert!(decoder.buffered() <= MAX_CONTROL_FRAME + 4);
    }
}

fn streams(bytes: &[u8], piece: usize, side: Side) {
    let mut mux = Mux::new(side);
    for (number, direction) in STREAMS {
        mux.open(number, direction).expect("it is new");
    }
    for (turn, piece) in bytes.chunks(piece).enumerate() {
        if mux.receive(piece).is_err() {
            return;
        }
        let stream = STREAMS[turn % STREAMS.len()].0;
        let held = mux.readable(stream).len();
        assert!(held <= STREAM_WINDOW, "{held} bytes without credit");
        mux.consume(stream, held / 2);
        let room = mux.send_capacity(stream);
        assert!(mux.write(stream, &vec![7; room]) <= room);
        let queued = mux.transmit().len();
        mux.transmitted(queued);
    }
}

// The first byte says which port and side, the second how the bytes are cut.
fuzz_target!(|data: &[u8]| {
    let [kind, piece, data @ ..] = data else { return };
    let piece = usize::from(*piece) + 1;
    match kind % 3 {
        0 => control(data, piece),
        1 => streams(data, piece, Side::Host),
        _ => streams(data, piece, Side::Guest),
    }
});
