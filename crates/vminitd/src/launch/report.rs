//! How a child tells PID 1 why its program doesn't run: one write to a pipe,
//! shorter than a pipe's atomic limit.

use crate::failure::Failure;
use vminitd_protocol::message::ErrorCode;

/// Longest report in bytes; `PIPE_BUF` makes it one piece.
pub const MAX_LEN: usize = 4096;

/// A failure as bytes, its message cut where it is too long.
pub fn encode(failure: &Failure) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(MAX_LEN);
    bytes.extend_from_slice(&(failure.code as i32).to_le_bytes());
    bytes.extend_from_slice(&failure.errno.to_le_bytes());
    let room = MAX_LEN - bytes.len();
    let mut end = failure.message.len().min(room);
    while !failure.message.is_char_boundary(end) {
        end -= 1;
    }
    bytes.extend_from_slice(&failure.message.as_bytes()[..end]);
    bytes
}

/// What [`encode`] wrote.
pub fn decode(bytes: &[u8]) -> Failure {
    let word = |at: usize| {
        bytes.get(at..at + 4).map_or(0, |b| i32::from_le_bytes(b.try_into().expect("4 bytes")))
    };
    let message = String::from_utf8_lossy(bytes.get(8..).unwrap_or_default()).into_owned();
    Failure {
        code: ErrorCode::try_from(word(0)).unwrap_or(ErrorCode::Internal),
        errno: word(4),
        message,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn round_trip(errno in any::<i32>(), message in ".{0,3000}") {
            let failure = Failure { code: ErrorCode::BadUser, errno, message };
            let bytes = encode(&failure);
            prop_assert!(bytes.len() <= MAX_LEN);
            let back = decode(&bytes);
            prop_assert_eq!(back.errno, failure.errno);
            prop_assert!(failure.message.starts_with(&back.message));
        }

        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..50)) {
            decode(&bytes);
        }
    }
}
