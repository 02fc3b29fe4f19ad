//! What is served, as arguments.

use std::ffi::OsString;
use std::os::fd::RawFd;
use std::path::PathBuf;

use crate::Result;
use crate::owners::Owners;

/// Words for each share.
const WORDS: usize = 6;

/// A directory or file to be served.
#[derive(Debug, PartialEq, Eq)]
pub struct Share {
    /// Where it is.
    pub source: PathBuf,
    /// `st_dev` and `st_ino` of what was checked.
    pub identity: (u64, u64),
    /// A directory; else a regular file.
    pub directory: bool,
    /// Nothing may be changed.
    pub read_only: bool,
    /// The guest is told what the host changes.
    pub notify: bool,
    /// Whom its files belong to.
    pub owners: Owners,
}

/// The arguments.
#[derive(Debug, PartialEq, Eq)]
pub struct Args {
    /// A listening socket.
    pub socket: RawFd,
    /// Directories that are empty in every share.
    pub hidden: Vec<PathBuf>,
    /// Share i is served at `/i`.
    pub shares: Vec<Share>,
}

/// Reads the arguments.
pub fn parse(words: impl Iterator<Item = OsString>) -> Result<Args> {
    let mut words = words.fuse();
    let socket = words.next().and_then(|word| word.to_str()?.parse().ok());
    let socket = socket.filter(|fd| *fd > 2).ok_or("the first argument is no socket's number")?;
    let hidden = words.by_ref().take_while(|word| word != "--").map(PathBuf::from).collect();
    let words: Vec<OsString> = words.collect();
    if words.is_empty() || !words.len().is_multiple_of(WORDS) {
        return Err("each share is SOURCE DEVICE INODE d|f rw|ro[,notify] OWNERS".into());
    }
    let shares = words.chunks(WORDS).map(share).collect::<Result<_>>()?;
    Ok(Args { socket, hidden, shares })
}

fn share(words: &[OsString]) -> Result<Share> {
    let source = PathBuf::from(&words[0]);
    let number = |word: &OsString| word.to_str().and_then(|word| word.parse().ok());
    let either = |word: &OsString, yes: &str, no: &str| match word.to_str() {
        Some(word) if word == yes => Some(true),
        Some(word) if word == no => Some(false),
        _ => None,
    };
    let (mode, notify) = match words[4].to_str().and_then(|word| word.strip_suffix(",notify")) {
        Some(mode) => (OsString::from(mode), true),
        None => (words[4].clone(), false),
    };
    let mode = &mode;
    let parsed = || {
        Some(Share {
            source: source.is_absolute().then(|| source.clone())?,
            identity: (number(&words[1])?, number(&words[2])?),
            directory: either(&words[3], "d", "f")?,
            read_only: either(mode, "ro", "rw")?,
            notify,
            owners: Owners::parse(words[5].to_str()?)?,
        })
    };
    parsed().ok_or_else(|| format!("not a share: {words:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn words(text: &str) -> impl Iterator<Item = OsString> {
        text.split(' ').map(OsString::from).collect::<Vec<_>>().into_iter()
    }

    #[test]
    fn shares_and_what_is_hidden() {
        let args = parse(words("5 /h -- /a 1 2 d ro - /b 3 4 f rw uid=7")).unwrap();
        assert_eq!((args.socket, args.hidden), (5, vec![PathBuf::from("/h")]));
        let facts = |share: &Share| (share.identity, share.directory, share.read_only);
        assert_eq!(
            args.shares.iter().map(facts).collect::<Vec<_>>(),
            [((1, 2), true, true), ((3, 4), false, false)]
        );
        assert_eq!(args.shares[1].owners.uid, Some(7));
        let notified = parse(words("5 -- /a 1 2 d ro,notify - /b 3 4 f rw -")).unwrap();
        assert_eq!(notified.shares.iter().map(|s| s.notify).collect::<Vec<_>>(), [true, false]);
        assert!(notified.shares[0].read_only);
        for bad in [
            "",
            "1 -- /a 1 2 d ro -",
            "5 --",
            "5 -- a 1 2 d ro -",
            "5 -- /a 1 2 d ro",
            "5 -- /a 1 2 d notify -",
            "5 -- /a 1 2 x ro -",
            "5 -- /a 1 2 d ro uid",
        ] {
            parse(words(bad)).unwrap_err();
        }
    }

    proptest! {
        #[test]
        fn arguments_never_panic(words: Vec<String>) {
            let _ = parse(words.into_iter().map(OsString::from));
        }
    }
}
