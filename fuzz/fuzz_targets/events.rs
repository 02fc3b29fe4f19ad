//! What the file server of bind mounts, which a guest may have broken, says of changed files.

#![no_main]

use container_runtime_linux::file_events::Messages;
use libfuzzer_sys::fuzz_target;
use vminitd_protocol::MAX_FILE_PATH;

// The first byte says how the bytes are cut.
fuzz_target!(|data: &[u8]| {
    let Some((piece, data)) = data.split_first() else { return };
    let mut messages = Messages::default();
    for piece in data.chunks(usize::from(*piece) + 1) {
        messages.feed(piece);
        loop {
            match messages.take() {
                Ok(Some(event)) => {
                    for path in [&event.path, &event.to] {
                        assert!(path.len() <= MAX_FILE_PATH && !path.contains(&0));
                        assert!(!path.starts_with(b"/"));
                    }
                }
                Ok(None) => break,
                Err(_) => return,
            }
        }
    }
});
