//! `copy`, `export`, `diff`, `commit`, `rename`.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use clap::Args;
use container_api::archive::{ArchiveWork, CommitOptions};
use container_api::types::ByteString;
use container_api::{ApiError, Result};

/// `copy`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
CONTAINER:PATH is in a container, running or not; PATH is here; - is a tar stream. \
A path here with a colon is written ./PATH. Directories are copied whole: SRC/. copies what is in one.")]
pub struct Copy {
    /// Keep owners (into a container always; here only as root)
    #[arg(short, long)]
    pub archive: bool,
    /// Follow a symbolic link that SRC is
    #[arg(short = 'L', long)]
    pub follow_link: bool,
    /// Say nothing of a copy that went well
    #[arg(short, long)]
    pub quiet: bool,
    /// CONTAINER:PATH, PATH or -
    #[arg(value_name = "SRC")]
    pub source: OsString,
    /// PATH, CONTAINER:PATH or -
    #[arg(value_name = "DEST")]
    pub destination: OsString,
}

/// One end of a copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// In a container.
    Container(String, Vec<u8>),
    /// A path of the caller's.
    Host(Vec<u8>),
    /// Standard input or output.
    Stream,
}

/// What is to be copied where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// Into a container.
    In {
        /// A host's path, or a stream.
        from: End,
        /// Which container.
        id: String,
        /// Where in it.
        path: Vec<u8>,
    },
    /// Out of a container.
    Out {
        /// Which container.
        id: String,
        /// Where in it.
        path: Vec<u8>,
        /// A host's path, or a stream.
        to: End,
    },
}

/// As Docker tells them apart: what begins with `/` or `.` is no container.
fn end(text: &OsStr) -> Result<End> {
    let bytes = text.as_bytes();
    if bytes == b"-" {
        return Ok(End::Stream);
    }
    if bytes.is_empty() {
        return Err(ApiError::invalid("a path is empty"));
    }
    let colon = bytes.iter().position(|b| *b == b':').filter(|_| !matches!(bytes[0], b'/' | b'.'));
    match colon {
        None => Ok(End::Host(bytes.to_vec())),
        Some(at) => {
            let id = String::from_utf8_lossy(&bytes[..at]).into_owned();
            match (id.is_empty(), bytes[at + 1..].is_empty()) {
                (false, false) => Ok(End::Container(id, bytes[at + 1..].to_vec())),
                _ => Err(ApiError::invalid("CONTAINER:PATH needs a container and a path")),
            }
        }
    }
}

impl Copy {
    /// Which way it goes.
    pub fn route(&self) -> Result<Route> {
        match (end(&self.source)?, end(&self.destination)?) {
            (End::Container(..), End::Container(..)) => Err(ApiError::invalid(
                "copying between containers is not possible: use 'container cp A:PATH - | \
                 container cp - B:PATH'",
            )),
            (End::Container(id, path), to) => Ok(Route::Out { id, path, to }),
            (from, End::Container(id, path)) => Ok(Route::In { from, id, path }),
            _ => Err(ApiError::invalid("SRC or DEST is in a container: CONTAINER:PATH")),
        }
    }

    /// What the guest does for a way out.
    pub fn read(&self, path: &[u8], named: bool) -> ArchiveWork {
        let path = ByteString(path.to_vec());
        ArchiveWork::Read { path, follow_link: self.follow_link, named }
    }

    /// What the guest does for a way in; without a `name` the entries have their own.
    pub fn write(&self, path: &[u8], name: Option<Vec<u8>>) -> ArchiveWork {
        ArchiveWork::Write {
            path: ByteString(path.to_vec()),
            named: name.is_none(),
            keep_owner: self.archive || name.is_none(),
            name: ByteString(name.unwrap_or_default()),
        }
    }
}

/// `export`.
#[derive(Clone, Debug, Args)]
pub struct Export {
    /// Write to a file instead of standard output
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Container ID
    #[arg(value_name = "CONTAINER")]
    pub id: String,
}

/// `diff`.
#[derive(Clone, Debug, Args)]
pub struct Diff {
    /// Container ID
    #[arg(value_name = "CONTAINER")]
    pub id: String,
}

/// `commit`.
#[derive(Clone, Debug, Args)]
pub struct Commit {
    /// Who made it
    #[arg(short, long, value_name = "AUTHOR")]
    pub author: Option<String>,
    /// Change the image's configuration, as a Dockerfile's instruction does (CMD, ENTRYPOINT, ENV,
    /// EXPOSE, LABEL, STOPSIGNAL, USER, VOLUME, WORKDIR)
    #[arg(short, long, value_name = "CHANGE")]
    pub change: Vec<String>,
    /// What was done
    #[arg(short, long, value_name = "MESSAGE")]
    pub message: Option<String>,
    /// Let a running container stand still meanwhile
    #[arg(short, long, num_args = 0..=1, require_equals = true, default_value_t = true,
          default_missing_value = "true", action = clap::ArgAction::Set)]
    pub pause: bool,
    /// Container ID
    #[arg(value_name = "CONTAINER")]
    pub id: String,
    /// The new image's name
    #[arg(value_name = "NAME[:TAG]")]
    pub name: String,
}

impl Commit {
    /// As the service takes it.
    pub fn options(&self) -> CommitOptions {
        CommitOptions {
            name: Some(self.name.clone()),
            author: self.author.clone(),
            message: self.message.clone(),
            changes: self.change.clone(),
            pause: self.pause,
        }
    }
}

/// `rename`.
#[derive(Clone, Debug, Args)]
pub struct Rename {
    /// Container ID
    #[arg(value_name = "CONTAINER")]
    pub id: String,
    /// What it is called from then on
    #[arg(value_name = "NEW")]
    pub name: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_told_apart_as_docker_does() {
        let inside = |id: &str, path: &str| End::Container(id.into(), path.into());
        let here = |path: &str| End::Host(path.into());
        for (text, expected) in [
            ("-", End::Stream),
            ("web:/etc", inside("web", "/etc")),
            ("web:etc:x", inside("web", "etc:x")),
            ("file", here("file")),
            ("./a:b", here("./a:b")),
            ("/a:b", here("/a:b")),
            ("../a:b", here("../a:b")),
        ] {
            assert_eq!(end(OsStr::new(text)).unwrap(), expected, "{text}");
        }
        for wrong in ["", ":/x", "web:"] {
            end(OsStr::new(wrong)).unwrap_err();
        }
    }

    #[test]
    fn one_end_is_in_a_container() {
        let route = |source: &str, destination: &str| {
            let copy = Copy {
                archive: false,
                follow_link: false,
                quiet: false,
                source: source.into(),
                destination: destination.into(),
            };
            copy.route()
        };
        assert!(matches!(route("a:/x", "y"), Ok(Route::Out { to: End::Host(_), .. })));
        assert!(matches!(route("a:/x", "-"), Ok(Route::Out { to: End::Stream, .. })));
        assert!(matches!(route("-", "a:/x"), Ok(Route::In { from: End::Stream, .. })));
        for (source, destination) in [("a:/x", "b:/y"), ("x", "y"), ("-", "-"), ("x", "-")] {
            route(source, destination).unwrap_err();
        }
    }
}
