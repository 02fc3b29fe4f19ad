//! Copies of files into a container and out of it, as tar streams. Each is carried out by a child
//! of PID 1 that is one of the guest's processes: it has streams, it can be signalled, and its end
//! is told by [`super::Happening::ProcessExited`]: 0, or 1 with one line on its standard error.

use super::{MountSpec, Stdio};

/// See [`super::Call::Archive`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct Archive {
    /// As in [`super::ProcessSpec`].
    #[prost(string, tag = "1")]
    pub process: String,
    /// Its streams; there is no terminal.
    #[prost(message, optional, tag = "2")]
    pub stdio: Option<Stdio>,
    /// What to do.
    #[prost(oneof = "ArchiveWork", tags = "3, 4, 5, 6, 7")]
    pub work: Option<ArchiveWork>,
    /// Where no container runs: the disks among its mounts, which are mounted for reading and
    /// writing files as for its first process.
    #[prost(message, repeated, tag = "8")]
    pub mounts: Vec<MountSpec>,
}

/// What an archive call does.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum ArchiveWork {
    /// Files to standard output, as the container sees them.
    #[prost(message, tag = "3")]
    Read(ReadArchive),
    /// Files from standard input, where the container sees them.
    #[prost(message, tag = "4")]
    Write(WriteArchive),
    /// The joined root to standard output, without what is mounted in it.
    #[prost(message, tag = "5")]
    Export(ExportRoot),
    /// What differs from the image to standard output: for each change `A`, `C` or `D`, its path,
    /// and a zero byte.
    #[prost(message, tag = "6")]
    Diff(DiffRoot),
    /// What differs from the image to standard output, as a layer of an image.
    #[prost(message, tag = "7")]
    Layer(LayerOfRoot),
}

/// See [`ArchiveWork::Read`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct ReadArchive {
    /// What to read; relative to the root. With `/` or `/.` at its end a directory.
    #[prost(bytes = "vec", tag = "1")]
    pub path: Vec<u8>,
    /// A link at its end is followed.
    #[prost(bool, tag = "2")]
    pub follow_link: bool,
    /// The first entry is named as the path's last name, not `.`.
    #[prost(bool, tag = "3")]
    pub named: bool,
}

/// See [`ArchiveWork::Write`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct WriteArchive {
    /// Where to; relative to the root.
    #[prost(bytes = "vec", tag = "1")]
    pub path: Vec<u8>,
    /// The path is a directory that is there, and the entries have names of their own. Else the
    /// first is `.`, and Docker's rules say where it goes.
    #[prost(bool, tag = "2")]
    pub named: bool,
    /// The source's last name, for a destination that is a directory; empty: what is in the source
    /// goes right into it.
    #[prost(bytes = "vec", tag = "3")]
    pub name: Vec<u8>,
    /// Owners are those of the archive, not root.
    #[prost(bool, tag = "4")]
    pub keep_owner: bool,
}

/// See [`ArchiveWork::Export`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct ExportRoot {}

/// See [`ArchiveWork::Diff`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct DiffRoot {}

/// See [`ArchiveWork::Layer`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct LayerOfRoot {
    /// The container stands still meanwhile.
    #[prost(bool, tag = "1")]
    pub pause: bool,
}
