//! Writing blobs.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::PathBuf;

use tempfile::NamedTempFile;

use super::{Lease, sync_directory};
use crate::digest::{Digest, Hasher};
use crate::error::{Error, Result, io_error};

/// A blob whose digest becomes known while it is written. Dropping it removes it.
#[derive(Debug)]
pub struct Ingest<'a> {
    lease: &'a Lease,
    file: NamedTempFile,
    hasher: Hasher,
    len: u64,
}

impl Lease {
    /// Begins a blob.
    pub fn ingest(&self) -> Result<Ingest<'_>> {
        let directory = self.store.ingests();
        let file = tempfile::Builder::new()
            .prefix("tmp-")
            .tempfile_in(&directory)
            .map_err(io_error("creating a file in", &directory))?;
        Ok(Ingest { lease: self, file, hasher: Hasher::default(), len: 0 })
    }

    /// Stores a small blob.
    pub fn put(&self, bytes: &[u8]) -> Result<Digest> {
        let digest = Digest::of(bytes);
        self.hold(digest);
        if self.store.has(digest, Some(bytes.len() as u64)) {
            return Ok(digest);
        }
        let mut ingest = self.ingest()?;
        ingest.append(bytes)?;
        Ok(ingest.commit()?.0)
    }

    /// Opens the partial blob of `digest`, with the bytes of an earlier try.
    ///
    /// One at a time for a digest: the caller sees to it.
    pub fn partial(&self, digest: Digest) -> Result<Partial<'_>> {
        self.hold(digest);
        let path = self.store.ingests().join(format!("sha256-{}.part", digest.hex()));
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let mut file = options.open(&path).map_err(io_error("opening", &path))?;
        let mut hasher = Hasher::default();
        let mut buffer = vec![0; 256 << 10];
        let mut len = 0;
        loop {
            match file.read(&mut buffer).map_err(io_error("reading", &path))? {
                0 => break,
                n => {
                    hasher.update(&buffer[..n]);
                    len += n as u64;
                }
            }
        }
        Ok(Partial { lease: self, digest, path, file, hasher, len })
    }

    fn adopt(&self, digest: Digest, path: PathBuf) -> Result<()> {
        let target = self.store.blob(digest);
        let failed = |e| io_error("storing", &target)(e);
        let existed = target.exists();
        fs::rename(&path, &target).map_err(failed)?;
        sync_directory(&self.store.blobs())?;
        if !existed {
            self.brought(digest);
        }
        Ok(())
    }
}

impl Ingest<'_> {
    /// Writes more of it.
    pub fn append(&mut self, bytes: &[u8]) -> Result<()> {
        self.hasher.update(bytes);
        self.len += bytes.len() as u64;
        let path = self.file.path().to_owned();
        self.file.as_file_mut().write_all(bytes).map_err(io_error("writing", path))
    }

    /// Makes it a blob and says which, and how long it is.
    pub fn commit(self) -> Result<(Digest, u64)> {
        let Ingest { lease, file, hasher, len } = self;
        let digest = hasher.finish();
        lease.hold(digest);
        if lease.store.has(digest, Some(len)) {
            return Ok((digest, len));
        }
        let failed = |e| io_error("writing", file.path())(e);
        file.as_file().sync_all().map_err(failed)?;
        file.as_file().set_permissions(fs::Permissions::from_mode(0o600)).map_err(failed)?;
        let path = file.into_temp_path();
        lease.adopt(digest, path.to_path_buf())?;
        // The file is no longer there under this name.
        let _ = path.keep();
        Ok((digest, len))
    }
}

/// A blob whose digest is known and that may come in several tries. Dropping it keeps what came.
#[derive(Debug)]
pub struct Partial<'a> {
    lease: &'a Lease,
    digest: Digest,
    path: PathBuf,
    file: File,
    hasher: Hasher,
    len: u64,
}

impl Partial<'_> {
    /// Bytes that are here.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether nothing is here yet.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Writes more of it.
    pub fn append(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(io_error("writing", &self.path))?;
        self.hasher.update(bytes);
        self.len += bytes.len() as u64;
        Ok(())
    }

    /// Begins again.
    pub fn restart(&mut self) -> Result<()> {
        let restart = |file: &mut File| -> io::Result<()> {
            file.set_len(0)?;
            io::Seek::rewind(file)
        };
        restart(&mut self.file).map_err(io_error("truncating", &self.path))?;
        self.hasher = Hasher::default();
        self.len = 0;
        Ok(())
    }

    /// Whether it is the blob that it should become.
    pub fn fits(&self) -> bool {
        self.hasher.clone().finish() == self.digest
    }

    /// Verifies it and makes it a blob. What does not fit its digest is removed.
    pub fn commit(self, what: &str) -> Result<()> {
        let actual = self.hasher.finish();
        if actual != self.digest {
            fs::remove_file(&self.path).map_err(io_error("removing", &self.path))?;
            let what = container_api::escape::escape(what).into_owned();
            return Err(Error::Digest { what, expected: self.digest, actual });
        }
        self.file.sync_all().map_err(io_error("writing", &self.path))?;
        self.lease.adopt(self.digest, self.path)
    }
}
