//! The lines that are printed, and the words that are read.

use std::ffi::OsString;
use std::io::{self, Write};

/// What came of an attempt.
pub enum Answer {
    /// It was refused.
    Held(String),
    /// It succeeded.
    Open(String),
    /// It could not be made.
    Skipped(String),
}

impl Answer {
    /// Held when nothing got through; else what did.
    pub fn of(through: Vec<String>, held: impl Into<String>) -> Answer {
        match through.is_empty() {
            true => Answer::Held(held.into()),
            false => Answer::Open(through.join("; ")),
        }
    }
}

/// Prints the line of an attempt. A reader that is gone ends the program.
pub fn tell(key: &str, answer: Answer) {
    let (word, text) = match answer {
        Answer::Held(text) => ("held", text),
        Answer::Open(text) => ("open", text),
        Answer::Skipped(text) => ("skipped", text),
    };
    let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    say(&format!("{key}\t{word}\t{text}"));
}

/// Prints a line at once.
pub fn say(line: &str) {
    let mut out = io::stdout().lock();
    if writeln!(out, "{line}").and_then(|()| out.flush()).is_err() {
        std::process::exit(1);
    }
}

/// Words of a command line in pairs: an option and its value.
pub fn options(words: &[OsString]) -> Result<Vec<(&str, &OsString)>, String> {
    words
        .chunks(2)
        .map(|pair| match pair {
            [name, value] => Ok((name.to_str().unwrap_or_default(), value)),
            _ => Err("an option without a value".to_owned()),
        })
        .collect()
}

/// A number of a command line.
pub fn number<T: std::str::FromStr>(word: Option<&OsString>) -> Result<T, String> {
    let number = word.and_then(|word| word.to_str()).and_then(|word| word.parse().ok());
    number.ok_or_else(|| "a number is missing".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_got_through_is_told() {
        assert!(matches!(Answer::of(vec![], "all"), Answer::Held(text) if text == "all"));
        let open = Answer::of(vec!["a".into(), "b".into()], "all");
        assert!(matches!(open, Answer::Open(text) if text == "a; b"));
    }

    #[test]
    fn options_come_in_pairs() {
        let words = ["--a", "1", "--b", "2"].map(OsString::from);
        let pairs = options(&words).unwrap();
        assert_eq!(pairs.len(), 2);
        assert_eq!(number::<u16>(Some(pairs[1].1)).unwrap(), 2);
        options(&words[..3]).unwrap_err();
        number::<u16>(None).unwrap_err();
    }
}
