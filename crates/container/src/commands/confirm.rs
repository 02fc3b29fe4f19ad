//! A question to the user.

use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::AsFd;

use crate::attach::signals::Signals;
use crate::failure::{Failure, Outcome};

/// Longest answer that is read, in bytes.
const MAX_ANSWER: usize = 256;

/// Asks on the terminal; without one the answer is no. A signal ends the command.
pub async fn confirm(question: &str, signals: &mut Signals) -> Outcome<bool> {
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return Ok(false);
    }
    let asked = write!(io::stderr(), "{question} [y/N] ");
    asked.map_err(|e| Failure::io("asking", e))?;
    // Byte by byte and unbuffered: what comes behind the line is the program's.
    let answer = tokio::task::spawn_blocking(|| {
        let mut terminal = File::from(io::stdin().as_fd().try_clone_to_owned()?);
        let (mut line, mut byte) = (Vec::new(), [0]);
        while line.len() < MAX_ANSWER && terminal.read(&mut byte)? == 1 && byte != *b"\n" {
            line.extend(byte);
        }
        Ok::<_, io::Error>(is_yes(&line))
    });
    tokio::select! {
        answer = answer => match answer {
            Ok(answer) => answer.map_err(|e| Failure::io("reading the answer", e)),
            Err(error) => Err(Failure::io("reading the answer", io::Error::other(error))),
        },
        signal = signals.next() => Err(Failure::interrupted(signal)),
    }
}

fn is_yes(line: &[u8]) -> bool {
    let line = line.trim_ascii().to_ascii_lowercase();
    line == b"y" || line == b"yes"
}

#[cfg(test)]
mod tests {
    #[test]
    fn anything_but_yes_is_no() {
        for (line, yes) in [("y", true), (" YES\r", true), ("", false), ("n", false), ("yy", false)]
        {
            assert_eq!(super::is_yes(line.as_bytes()), yes, "{line:?}");
        }
    }
}
