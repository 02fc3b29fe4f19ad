//! Messages of an SSH agent: which ones may pass. No I/O.

use base64::Engine;
use base64::prelude::BASE64_STANDARD_NO_PAD;
use sha2::{Digest, Sha256};

/// Longest message in bytes, without its length: what OpenSSH's agent takes.
pub const MAX_MESSAGE: usize = 256 << 10;

/// `SSH_AGENT_FAILURE`.
pub const FAILURE: u8 = 5;
const REQUEST_IDENTITIES: u8 = 11;
const IDENTITIES_ANSWER: u8 = 12;
const SIGN_REQUEST: u8 = 13;
const SIGN_RESPONSE: u8 = 14;

/// What a container may ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request<'a> {
    /// The list of keys.
    Identities,
    /// A signature.
    Sign {
        /// The public key whose private one is to sign.
        key: &'a [u8],
    },
}

/// Takes a request apart; its frame is off already.
pub fn request(message: &[u8]) -> Result<Request<'_>, &'static str> {
    match message.split_first() {
        Some((&REQUEST_IDENTITIES, [])) => Ok(Request::Identities),
        Some((&SIGN_REQUEST, content)) => {
            let malformed = "a malformed request to sign";
            let (key, content) = string(content).ok_or(malformed)?;
            let (_data, flags) = string(content).ok_or(malformed)?;
            match flags.len() == 4 && !key.is_empty() {
                true => Ok(Request::Sign { key }),
                false => Err(malformed),
            }
        }
        Some(_) => Err("not a request to list keys or to sign"),
        None => Err("an empty request"),
    }
}

/// Whether an agent's answer is one to this request.
pub fn answers(request: &Request<'_>, answer: &[u8]) -> bool {
    match (request, answer.first()) {
        (Request::Identities, Some(&IDENTITIES_ANSWER))
        | (Request::Sign { .. }, Some(&SIGN_RESPONSE)) => answer.len() > 1,
        _ => false,
    }
}

/// A message with its length before it.
pub fn frame(message: &[u8]) -> Vec<u8> {
    let mut bytes = (message.len() as u32).to_be_bytes().to_vec();
    bytes.extend_from_slice(message);
    bytes
}

/// Takes the first message off, if it is there as a whole.
pub fn split(input: &mut Vec<u8>) -> Result<Option<Vec<u8>>, &'static str> {
    let Some(length) = input.first_chunk() else { return Ok(None) };
    let length = u32::from_be_bytes(*length) as usize;
    if length == 0 || length > MAX_MESSAGE {
        return Err("a message of a length that can't be");
    }
    if input.len() < 4 + length {
        return Ok(None);
    }
    let rest = input.split_off(4 + length);
    let mut message = std::mem::replace(input, rest);
    message.drain(..4);
    Ok(Some(message))
}

/// As `ssh-add -l` shows it.
pub fn fingerprint(key: &[u8]) -> String {
    format!("SHA256:{}", BASE64_STANDARD_NO_PAD.encode(Sha256::digest(key)))
}

fn string(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk()?;
    rest.split_at_checked(u32::from_be_bytes(*length) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sign(key: &[u8], data: &[u8], flags: &[u8]) -> Vec<u8> {
        [&[SIGN_REQUEST][..], &frame(key), &frame(data), flags].concat()
    }

    #[test]
    fn lists_and_signatures_pass_and_nothing_else() {
        assert_eq!(request(&[REQUEST_IDENTITIES]), Ok(Request::Identities));
        assert_eq!(request(&sign(b"k", b"d", &[0; 4])), Ok(Request::Sign { key: b"k" }));
        for kind in (0..=255).filter(|kind| ![REQUEST_IDENTITIES, SIGN_REQUEST].contains(kind)) {
            let mut other = sign(b"k", b"d", &[0; 4]);
            other[0] = kind;
            request(&other).unwrap_err();
            request(&[kind]).unwrap_err();
        }
        let wrong = [
            sign(b"k", b"d", &[0; 3]),
            sign(b"k", b"d", &[0; 5]),
            sign(b"", b"d", &[0; 4]),
            vec![SIGN_REQUEST],
            vec![SIGN_REQUEST, 255, 255, 255, 255, 0],
            vec![REQUEST_IDENTITIES, 0],
            Vec::new(),
        ];
        for wrong in &wrong {
            request(wrong).unwrap_err();
        }
        let keys = Request::Identities;
        assert!(answers(&keys, &[IDENTITIES_ANSWER, 0, 0, 0, 0]));
        for answer in [&[][..], &[FAILURE], &[IDENTITIES_ANSWER], &[SIGN_RESPONSE, 0]] {
            assert!(!answers(&keys, answer));
        }
    }

    #[test]
    fn a_fingerprint_is_that_of_ssh_add() {
        // `printf key | openssl dgst -sha256 -binary | base64`
        assert_eq!(fingerprint(b"key"), "SHA256:LHDhK3oGRvkiefQnx7OOczTY5Tic/xZ6HcMOc/gmtoM");
    }

    proptest! {
        #[test]
        fn messages_survive_any_cutting(
            messages in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..40), 0..5),
            cut in 0usize..200,
        ) {
            let bytes: Vec<u8> = messages.iter().flat_map(|message| frame(message)).collect();
            let cut = cut.min(bytes.len());
            let (mut input, mut seen) = (Vec::new(), Vec::new());
            for part in [&bytes[..cut], &bytes[cut..]] {
                input.extend_from_slice(part);
                while let Some(message) = split(&mut input).unwrap() {
                    seen.push(message);
                }
            }
            prop_assert_eq!(seen, messages);
            prop_assert!(input.is_empty());
        }

        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(Request::Sign { key }) = request(&bytes) {
                prop_assert!(bytes.len() >= key.len() + 13);
            }
            let mut input = bytes;
            while let Ok(Some(message)) = split(&mut input) {
                prop_assert!(!message.is_empty());
            }
        }
    }
}
