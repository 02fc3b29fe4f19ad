//! Stamps: what an output was made from, so that it is made again only when needed.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

/// The inputs of one output, written beside it once it is complete.
pub struct Stamp {
    path: PathBuf,
    wanted: String,
}

impl Stamp {
    /// A stamp kept at `path`.
    pub fn new(path: PathBuf) -> Self {
        Self { path, wanted: String::new() }
    }

    /// Adds a word that the output depends on.
    pub fn word(mut self, name: &str, value: &str) -> Self {
        self.wanted.push_str(&format!("{name} {value}\n"));
        self
    }

    /// Adds a file, by its content.
    pub fn file(self, name: &str, path: &Path) -> Result<Self> {
        let digest = file_digest(path)?;
        Ok(self.word(name, &digest))
    }

    /// Whether the output was made from these inputs.
    pub fn is_current(&self) -> bool {
        std::fs::read_to_string(&self.path).is_ok_and(|found| found == self.wanted)
    }

    /// Records that it was.
    pub fn write(&self) -> Result<()> {
        std::fs::write(&self.path, &self.wanted)
            .with_context(|| format!("write {}", self.path.display()))
    }
}

/// SHA-256 of a file, in hex.
pub fn file_digest(path: &Path) -> Result<String> {
    let mut file = std::fs::File::open(path).with_context(|| format!("open {}", path.display()))?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 18];
    loop {
        let read = std::io::Read::read(&mut file, &mut buffer)
            .with_context(|| format!("read {}", path.display()))?;
        if read == 0 {
            break;
        }
        hasher.update(&buffer[..read]);
    }
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}
