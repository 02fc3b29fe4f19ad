//! A kernel's archive from a URL.

use std::path::Path;
use std::sync::Arc;

use container_api::ErrorCode;
use container_api::escape::escape;

use crate::error::{Error, Result};
use crate::kernel::Spooled;
use crate::meter::Meter;
use crate::registry::Transfer;

/// Fetches `url` into a nameless file in `directory`. The caller verifies its digest.
pub(crate) async fn fetch(url: &str, directory: &Path, meter: &Arc<Meter>) -> Result<Spooled> {
    meter.begin("Fetching kernel", 0, 0);
    let shown = escape(url).into_owned();
    let failed = |problem: String, code| Error::Registry {
        registry: shown.clone(),
        operation: "fetching the kernel".into(),
        problem,
        code,
    };
    let mut transfer =
        Transfer::start(url).await.map_err(|problem| failed(problem, ErrorCode::Unavailable))?;
    meter.begin("Fetching kernel", transfer.total.unwrap_or(0), 1);
    let (chunks, inbox) = std::sync::mpsc::sync_channel::<bytes::Bytes>(16);
    let (directory, name) = (directory.to_owned(), url.to_owned());
    let writer = tokio::task::spawn_blocking(move || {
        Spooled::new(&directory, &name, ChunkReader { inbox, current: bytes::Bytes::new() })
    });
    let received = loop {
        match transfer.next().await {
            Ok(None) => break Ok(()),
            Err(problem) => break Err(failed(problem, ErrorCode::Disconnected)),
            Ok(Some(chunk)) => {
                meter.advance(chunk.len() as u64);
                let (chunks, sent) = (chunks.clone(), chunk);
                // The writer may wait for its disk; this thread must not.
                let handed = tokio::task::spawn_blocking(move || chunks.send(sent)).await;
                if !matches!(handed, Ok(Ok(()))) {
                    break Ok(());
                }
            }
        }
    };
    drop(chunks);
    let spooled = writer.await.map_err(|e| Error::Internal(format!("writing a file: {e}")))?;
    received?;
    Ok(spooled?)
}

/// What comes through a channel, as a reader.
struct ChunkReader {
    inbox: std::sync::mpsc::Receiver<bytes::Bytes>,
    current: bytes::Bytes,
}

impl std::io::Read for ChunkReader {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        while self.current.is_empty() {
            match self.inbox.recv() {
                Ok(chunk) => self.current = chunk,
                Err(_) => return Ok(0),
            }
        }
        let n = buf.len().min(self.current.len());
        buf[..n].copy_from_slice(&self.current.split_to(n));
        Ok(n)
    }
}
