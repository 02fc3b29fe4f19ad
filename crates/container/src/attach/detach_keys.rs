//! The keys that leave a terminal session: Ctrl-P, Ctrl-Q.
//!
//! ```text
//!        other byte: pass it           Ctrl-P: pass the held one, hold this one
//!        ┌───────┐                     ┌───────┐
//!        ▼       │      Ctrl-P         ▼       │
//!       idle ────┴──────────────────► held ────┘
//!        ▲                             │  │
//!        └── other byte: pass both ────┘  └── Ctrl-Q ──► detached
//! ```

const CTRL_P: u8 = 0x10;
const CTRL_Q: u8 = 0x11;

/// Looks for the keys in what is typed. A Ctrl-P is held back until the next key shows what it was
/// meant for, as Docker does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DetachKeys {
    held: bool,
}

impl DetachKeys {
    /// Appends what the program is to read of `typed` to `out`; true when the keys were found, and
    /// what follows them is dropped.
    pub fn feed(&mut self, typed: &[u8], out: &mut Vec<u8>) -> bool {
        for &byte in typed {
            if self.held && byte == CTRL_Q {
                return true;
            }
            if self.held {
                out.push(CTRL_P);
            }
            self.held = byte == CTRL_P;
            if !self.held {
                out.push(byte);
            }
        }
        false
    }

    /// What is held back when the input ends.
    pub fn rest(self) -> &'static [u8] {
        if self.held { &[CTRL_P] } else { &[] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn feed(chunks: &[&[u8]]) -> (Vec<u8>, bool) {
        let (mut keys, mut out) = (DetachKeys::default(), Vec::new());
        for chunk in chunks {
            if keys.feed(chunk, &mut out) {
                return (out, true);
            }
        }
        out.extend(keys.rest());
        (out, false)
    }

    #[test]
    fn the_keys_are_found_across_reads() {
        assert_eq!(feed(&[b"ab\x10", b"\x11cd"]), (b"ab".to_vec(), true));
        assert_eq!(feed(&[b"\x10\x10\x11"]), (b"\x10".to_vec(), true));
        assert_eq!(feed(&[b"\x10x\x11"]), (b"\x10x\x11".to_vec(), false));
        assert_eq!(feed(&[b"\x11\x10"]), (b"\x11\x10".to_vec(), false));
    }

    proptest! {
        #[test]
        fn nothing_is_lost_or_added(
            bytes in proptest::collection::vec(prop_oneof![Just(CTRL_P), Just(CTRL_Q), any::<u8>()], 0..64),
            cuts in proptest::collection::vec(0usize..64, 0..8),
        ) {
            let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c.min(bytes.len())).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let chunks: Vec<&[u8]> = cuts.windows(2).map(|w| &bytes[w[0]..w[1]]).collect();
            let expected = bytes.windows(2).position(|w| w == [CTRL_P, CTRL_Q]);
            let (out, detached) = feed(&chunks);
            prop_assert_eq!(detached, expected.is_some());
            prop_assert_eq!(out, &bytes[..expected.unwrap_or(bytes.len())]);
        }
    }
}
