//! The few arguments that the commands take, without a parser crate: `cargo xtask`
//! is compiled before anything else, so it stays small.

use anyhow::{Context, Result, bail};

/// The words after `cargo xtask`.
pub struct Args {
    words: Vec<String>,
}

impl Args {
    /// The words of this process.
    pub fn from_env() -> Self {
        Self { words: std::env::args().skip(1).collect() }
    }

    /// Takes the first word.
    pub fn next_word(&mut self) -> Option<String> {
        (!self.words.is_empty()).then(|| self.words.remove(0))
    }

    /// Takes `NAME VALUE` out, wherever it stands; an empty value counts as absent.
    pub fn value(&mut self, name: &str) -> Result<Option<String>> {
        let Some(at) = self.words.iter().position(|word| word == name) else {
            return Ok(None);
        };
        self.words.remove(at);
        if at >= self.words.len() {
            bail!("{name} needs a value");
        }
        Ok(Some(self.words.remove(at)).filter(|value| !value.is_empty()))
    }

    /// Takes `NAME` out, wherever it stands; whether it was there.
    pub fn flag(&mut self, name: &str) -> bool {
        let at = self.words.iter().position(|word| word == name);
        at.map(|at| self.words.remove(at)).is_some()
    }

    /// Takes `NAME VALUE` out and fails when it is absent.
    pub fn required(&mut self, name: &str) -> Result<String> {
        self.value(name)?.with_context(|| format!("{name} is missing"))
    }

    /// The words that are left.
    pub fn rest(self) -> Vec<String> {
        self.words
    }

    /// Fails when a word is left.
    pub fn finish(self) -> Result<()> {
        match self.words.first() {
            Some(word) => bail!("unexpected argument {word:?}"),
            None => Ok(()),
        }
    }
}
