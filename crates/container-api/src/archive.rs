//! Copies of files into containers and out of them: what is asked for, for `cp`, `export`, `diff`
//! and `commit`. The bytes go over descriptors that come with the request.

use serde::{Deserialize, Serialize};

use crate::types::ByteString;

/// What a copy does. Its standard streams are the tar stream, and one line for what went wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum ArchiveWork {
    /// Files to standard output, as the container sees them.
    Read {
        /// What to read; relative to the root. With `/` or `/.` at its end a directory.
        path: ByteString,
        /// A link at its end is followed.
        follow_link: bool,
        /// The first entry is named as the path's last name, not `.`.
        named: bool,
    },
    /// Files from standard input, where the container sees them.
    Write {
        /// Where to; relative to the root.
        path: ByteString,
        /// The path is a directory that is there, and the entries have names of their own. Else
        /// the first is `.`, and Docker's rules say where it goes.
        named: bool,
        /// The source's last name; empty: what is in the source goes right into a directory.
        name: ByteString,
        /// Owners are those of the archive, not root.
        keep_owner: bool,
    },
    /// The joined root to standard output, without what is mounted in it.
    Export,
    /// What differs from the image to standard output: a letter (`A`, `C`, `D`), a path and a zero
    /// byte for each change.
    Diff,
    /// What differs from the image to standard output, as a layer of an image.
    Layer {
        /// The container stands still meanwhile.
        pause: bool,
    },
}

impl ArchiveWork {
    /// Whether the container is another one afterwards.
    pub fn changes(&self) -> bool {
        matches!(self, ArchiveWork::Write { .. })
    }

    /// A word for it.
    pub fn name(&self) -> &'static str {
        match self {
            ArchiveWork::Read { .. } => "copy from",
            ArchiveWork::Write { .. } => "copy to",
            ArchiveWork::Export => "export",
            ArchiveWork::Diff => "diff",
            ArchiveWork::Layer { .. } => "commit",
        }
    }
}

/// How a container becomes an image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CommitOptions {
    /// The new image's name; `None`: it is known by its digest.
    pub name: Option<String>,
    /// `--author`.
    pub author: Option<String>,
    /// `--message`.
    pub message: Option<String>,
    /// `--change`, as given: `CMD …`, `ENV NAME=value` and so on.
    pub changes: Vec<String>,
    /// The container stands still meanwhile.
    pub pause: bool,
}
