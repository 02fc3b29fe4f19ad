//! What the host changes in shared files, on its way from the file server to the guest.
//!
//! ```text
//! file server ── messages ──► here ── at most one request at a time ──► vminitd
//! ```
//! The file server bounds how much is on its way. A guest may have broken it: its messages are
//! bounded, and only names of files within the shares, which it has in any case.

use std::time::Duration;

use container_api::runtime::SHARE_TAG;
use tokio::io::{AsyncRead, AsyncReadExt};
use vminitd_protocol::message::{Call, ErrorCode, FileEvent, FileEventKind, RaiseFileEvents};
use vminitd_protocol::{MAX_FILE_EVENT_BYTES, MAX_FILE_EVENTS, MAX_FILE_PATH, REQUEST_TIMEOUT};

use crate::container::Container;
use crate::guest::GuestError;
use crate::state::State;

/// Bytes of a message before its paths, without the length before it.
const HEAD: usize = 18;
/// Longest message.
const MAX_MESSAGE: usize = HEAD + 2 * MAX_FILE_PATH;
/// How long a guest that is behind is left alone.
const BEHIND: Duration = Duration::from_millis(100);

/// Bits of a message's changes.
mod change {
    pub const CREATED: u32 = 1;
    pub const MODIFIED: u32 = 1 << 1;
    pub const CLOSED: u32 = 1 << 2;
    pub const ATTRIBUTES: u32 = 1 << 3;
    pub const DELETED: u32 = 1 << 4;
    pub const MOVED: u32 = 1 << 5;
    pub const MOVED_IN: u32 = 1 << 6;
    pub const MOVED_OUT: u32 = 1 << 7;
}

/// Messages as they arrive, in pieces.
#[derive(Debug, Default)]
pub struct Messages {
    bytes: Vec<u8>,
    done: usize,
}

/// The file server sends what is no message.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the file server's message makes no sense")]
pub struct Nonsense;

impl Messages {
    /// Adds what has arrived.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.bytes.drain(..self.done);
        self.done = 0;
        self.bytes.extend_from_slice(bytes);
    }

    /// The next one, if it is here whole.
    ///
    /// # Errors
    /// When it makes no sense: nothing after it does.
    pub fn take(&mut self) -> Result<Option<FileEvent>, Nonsense> {
        let Some((length, rest)) = self.bytes[self.done..].split_first_chunk() else {
            return Ok(None);
        };
        let length = u32::from_le_bytes(*length) as usize;
        if !(HEAD..=MAX_MESSAGE).contains(&length) {
            return Err(Nonsense);
        }
        let Some(message) = rest.get(..length) else { return Ok(None) };
        let event = decode(message).ok_or(Nonsense)?;
        self.done += 4 + length;
        Ok(Some(event))
    }
}

fn decode(message: &[u8]) -> Option<FileEvent> {
    let (token, rest) = message.split_first_chunk()?;
    let (changes, rest) = rest.split_first_chunk()?;
    let (file_type, rest) = rest.split_first_chunk()?;
    let (length, paths) = rest.split_first_chunk()?;
    let (path, to) = paths.split_at_checked(u16::from_le_bytes(*length).into())?;
    let changes = u32::from_le_bytes(*changes);
    let has = |bit| changes & bit != 0;
    let kinds = [
        (change::CREATED, FileEventKind::Created),
        (change::DELETED, FileEventKind::Deleted),
        (change::MOVED, FileEventKind::Moved),
        (change::MOVED_IN, FileEventKind::MovedIn),
        (change::MOVED_OUT, FileEventKind::MovedOut),
    ];
    let kind = kinds.into_iter().find(|(bit, _)| has(*bit));
    let event = FileEvent {
        token: u64::from_le_bytes(*token),
        kind: kind.map_or(FileEventKind::Unspecified, |(_, kind)| kind) as i32,
        modified: has(change::MODIFIED),
        closed: has(change::CLOSED),
        attributes: has(change::ATTRIBUTES),
        file_type: u32::from_le_bytes(*file_type),
        path: path.to_vec(),
        to: to.to_vec(),
    };
    event.has_valid_paths().then_some(event)
}

/// Passes messages on until the file server or the container ends.
pub async fn forward(container: &Container, mut server: impl AsyncRead + Unpin) {
    let mut messages = Messages::default();
    let mut buffer = vec![0; 8 << 10];
    let mut first = true;
    loop {
        let len = match server.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(len) => len,
        };
        messages.feed(&buffer[..len]);
        if std::mem::take(&mut first) {
            // There is nobody before who could hear of it, and no request for it.
            let early = [State::Ready, State::Starting];
            let booting = |state: &State| matches!(state, State::Booting { .. });
            container.state_where(|state| !booting(state) && !early.contains(state)).await;
        }
        loop {
            match batch(&mut messages) {
                Ok(events) if events.is_empty() => break,
                Ok(events) => {
                    if !raise(container, events).await {
                        return;
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "host changes raise no more events");
                    return;
                }
            }
        }
    }
}

/// As many as one request holds.
fn batch(messages: &mut Messages) -> Result<Vec<FileEvent>, Nonsense> {
    let (mut events, mut room) = (Vec::new(), MAX_FILE_EVENT_BYTES);
    while events.len() < MAX_FILE_EVENTS && room >= 2 * MAX_FILE_PATH {
        let Some(event) = messages.take()? else { break };
        room -= event.path.len() + event.to.len();
        events.push(event);
    }
    Ok(events)
}

/// Whether more may follow.
async fn raise(container: &Container, events: Vec<FileEvent>) -> bool {
    let Ok(guest) = container.guest() else { return false };
    let request = RaiseFileEvents { tag: SHARE_TAG.into(), events };
    loop {
        let call = Call::RaiseFileEvents(request.clone());
        match guest.control.command(call, REQUEST_TIMEOUT).await {
            Ok(()) => return true,
            Err(GuestError::Refused(error)) if error.code() == ErrorCode::Exhausted => {
                tokio::time::sleep(BEHIND).await;
            }
            // The program has ended.
            Err(GuestError::Refused(error)) if error.code() == ErrorCode::InvalidState => {
                return false;
            }
            Err(error @ GuestError::Refused(_)) => {
                tracing::warn!(%error, "host changes raised no events");
                return true;
            }
            Err(error) => {
                tracing::debug!(%error, "host changes raise no more events");
                return false;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MOVED: &[u8] = b"\x19\0\0\0\x02\x01\0\0\0\0\0\0\x20\0\0\0\0\x80\0\0\x03\x000/a1/bc";

    #[test]
    fn messages_arrive_in_pieces() {
        let mut messages = Messages::default();
        let mut found = Vec::new();
        for byte in [MOVED, MOVED].concat() {
            messages.feed(&[byte]);
            found.extend(messages.take().unwrap());
        }
        assert_eq!(found.len(), 2);
        let event = &found[1];
        assert_eq!((event.kind(), event.token), (FileEventKind::Moved, 0x0102));
        assert_eq!((&event.path[..], &event.to[..]), (&b"0/a"[..], &b"1/bc"[..]));
        assert_eq!(event.file_type, 0o100_000);
        assert!(!event.modified && !event.closed && !event.attributes);
    }

    #[test]
    fn a_request_is_bounded() {
        let mut messages = Messages::default();
        messages.feed(&MOVED.repeat(MAX_FILE_EVENTS + 1));
        assert_eq!(batch(&mut messages).unwrap().len(), MAX_FILE_EVENTS);
        assert_eq!(batch(&mut messages).unwrap().len(), 1);
        assert_eq!(batch(&mut messages).unwrap(), []);
    }

    #[test]
    fn nonsense_ends_it() {
        for bytes in [
            &b"\0\0\0\0"[..],
            b"\xff\xff\xff\xff",
            b"\x12\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x05\0",
        ] {
            let mut messages = Messages::default();
            messages.feed(bytes);
            assert_eq!(messages.take(), Err(Nonsense), "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn whatever_comes_is_bounded(pieces: Vec<Vec<u8>>) {
            let mut messages = Messages::default();
            for piece in pieces {
                messages.feed(&piece);
                while let Ok(Some(event)) = messages.take() {
                    prop_assert!(event.path.len() <= MAX_FILE_PATH);
                }
            }
        }
    }
}
