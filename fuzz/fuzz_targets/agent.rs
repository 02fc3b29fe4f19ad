//! What a container says to the user's SSH agent.

#![no_main]

use container_runtime_linux::sockets::agent::filter::{
    MAX_MESSAGE, Request, answers, frame, request, split,
};
use libfuzzer_sys::fuzz_target;

// The first byte says how the bytes are cut.
fuzz_target!(|data: &[u8]| {
    let Some((piece, data)) = data.split_first() else { return };
    let mut input = Vec::new();
    for piece in data.chunks(usize::from(*piece) + 1) {
        input.extend_from_slice(piece);
        loop {
            match split(&mut input) {
                Ok(Some(message)) => {
                    assert!((1..=MAX_MESSAGE).contains(&message.len()));
                    match request(&message) {
                        // Nothing else gets through: 11 and 13 are the two kinds that may.
                        Ok(Request::Identities) => assert_eq!(message, [11]),
                        Ok(Request::Sign { key }) => {
                            assert!(message[0] == 13 && !key.is_empty());
                            let asked = Request::Sign { key };
                            assert!(!answers(&asked, &message));
                        }
                        Err(_) => {}
                    }
                    assert_eq!(split(&mut frame(&message)), Ok(Some(message)));
                }
                Ok(None) => break,
                Err(_) => return,
            }
        }
        assert!(input.len() <= MAX_MESSAGE + 4 + 256);
    }
});
