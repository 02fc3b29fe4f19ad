//! A registry of our own that serves one OCI layout and misbehaves on request: it wants
//! tokens, cuts connections, lies about bytes. A real registry does none of that when
//! asked to.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;

/// How it misbehaves.
#[derive(Clone, Copy, Debug, Default)]
pub struct Manners {
    /// Asks for a bearer token, which its own `/token` gives to everyone.
    pub wants_token: bool,
    /// Cuts the connection after that many bytes of a blob, once for each blob.
    pub cuts_after: Option<usize>,
    /// Stops after that many bytes of a blob and says no more, without closing the connection.
    pub stalls_after: Option<usize>,
    /// Sends less of a blob than it says it will, every time.
    pub falls_short: bool,
    /// Sends more of a blob than there is.
    pub goes_on: bool,
    /// Flips a bit in every layer.
    pub corrupts: bool,
    /// Answers requests for blobs by redirecting them to another path.
    pub redirects: bool,
}

/// A request that was seen.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Its path.
    pub path: String,
    /// Its `Range` header.
    pub range: Option<String>,
    /// Whether it had a token.
    pub token: bool,
}

/// The registry. It ends when dropped.
pub struct Serve {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    layout: PathBuf,
    manners: Manners,
    address: SocketAddr,
    seen: Mutex<Vec<Seen>>,
    cut: Mutex<BTreeSet<String>>,
    ended: AtomicBool,
}

impl Serve {
    /// Serves the image in the folder `layout` under any name and tag.
    pub fn start(layout: &Path, manners: Manners) -> Self {
        crate::isolation::isolate();
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("bind");
        let address = listener.local_addr().expect("the address of a listener");
        let shared = Arc::new(Shared {
            layout: layout.to_owned(),
            manners,
            address,
            seen: Mutex::default(),
            cut: Mutex::default(),
            ended: AtomicBool::new(false),
        });
        let accepting = Arc::clone(&shared);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if accepting.ended.load(Ordering::Relaxed) {
                    break;
                }
                let shared = Arc::clone(&accepting);
                std::thread::spawn(move || shared.serve(stream));
            }
        });
        Self { address, shared }
    }

    /// The full reference of `name` in it.
    pub fn reference(&self, name: &str) -> String {
        format!("{}/{name}", self.address)
    }

    /// The requests so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.shared.seen.lock().expect("no panic").clone()
    }
}

impl Drop for Serve {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect_timeout(&self.address, Duration::from_secs(1));
    }
}

impl Shared {
    /// Answers one connection's requests until it closes.
    fn serve(&self, stream: TcpStream) -> Option<()> {
        stream.set_read_timeout(Some(Duration::from_secs(30))).ok()?;
        let mut reader = BufReader::new(stream.try_clone().ok()?);
        let mut stream = stream;
        loop {
            let seen = read_request(&mut reader)?;
            self.seen.lock().expect("no panic").push(seen.clone());
            self.answer(&seen, &mut stream)?;
        }
    }

    fn answer(&self, seen: &Seen, stream: &mut TcpStream) -> Option<()> {
        let path = seen.path.split('?').next().unwrap_or_default();
        if path == "/token" {
            return respond(stream, "200 OK", "application/json", "", br#"{"token":"let-me-in"}"#);
        }
        if self.manners.wants_token && !seen.token && !path.starts_with("/elsewhere/") {
            let challenge = format!(
                "WWW-Authenticate: Bearer realm=\"http://{}/token\",service=\"test\",\
                 scope=\"repository:any:pull\"\r\n",
                self.address
            );
            return respond(stream, "401 Unauthorized", "application/json", &challenge, b"{}");
        }
        if path == "/v2/" || path == "/v2" {
            return respond(stream, "200 OK", "application/json", "", b"{}");
        }
        if let Some((_, reference)) = path.rsplit_once("/manifests/") {
            return self.manifest(reference, stream);
        }
        if let Some((_, digest)) = path.rsplit_once("/blobs/") {
            if self.manners.redirects && !path.starts_with("/elsewhere/") {
                let to = format!("Location: http://{}/elsewhere{path}\r\n", self.address);
                return respond(stream, "307 Temporary Redirect", "text/plain", &to, b"");
            }
            return self.blob(digest, seen, stream);
        }
        respond(stream, "404 Not Found", "text/plain", "", b"")
    }

    fn manifest(&self, reference: &str, stream: &mut TcpStream) -> Option<()> {
        let digest = match reference.strip_prefix("sha256:") {
            Some(hex) => hex.to_owned(),
            None => self.top_digest()?,
        };
        let Ok(bytes) = std::fs::read(self.layout.join("blobs/sha256").join(&digest)) else {
            return respond(stream, "404 Not Found", "text/plain", "", b"");
        };
        let value: Value = serde_json::from_slice(&bytes).ok()?;
        let kind = value["mediaType"].as_str().unwrap_or("application/json").to_owned();
        let header = format!("Docker-Content-Digest: sha256:{digest}\r\n");
        respond(stream, "200 OK", &kind, &header, &bytes)
    }

    fn top_digest(&self) -> Option<String> {
        let index = std::fs::read(self.layout.join("index.json")).ok()?;
        let index: Value = serde_json::from_slice(&index).ok()?;
        let digest = index["manifests"][0]["digest"].as_str()?;
        Some(digest.strip_prefix("sha256:")?.to_owned())
    }

    fn blob(&self, digest: &str, seen: &Seen, stream: &mut TcpStream) -> Option<()> {
        let hex = digest.strip_prefix("sha256:")?;
        let Ok(mut bytes) = std::fs::read(self.layout.join("blobs/sha256").join(hex)) else {
            return respond(stream, "404 Not Found", "text/plain", "", b"");
        };
        if self.manners.corrupts && bytes.len() > 4096 {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
        }
        let start = seen.range.as_deref().and_then(|range| {
            range.strip_prefix("bytes=")?.split('-').next()?.parse::<usize>().ok()
        });
        let start = start.filter(|start| *start < bytes.len());
        let (status, more) = match start {
            Some(start) => (
                "206 Partial Content",
                format!("Content-Range: bytes {start}-{}/{}\r\n", bytes.len() - 1, bytes.len()),
            ),
            None => ("200 OK", String::new()),
        };
        let body = &bytes[start.unwrap_or(0)..];
        let stall = self.manners.stalls_after.filter(|limit| *limit < body.len());
        if let Some(limit) = stall {
            head(stream, status, "application/octet-stream", &more, body.len())?;
            stream.write_all(&body[..limit]).ok()?;
            // Until the caller gives up, or the test is over.
            while !self.ended.load(Ordering::Relaxed) && !is_closed(stream) {
                std::thread::sleep(Duration::from_millis(20));
            }
            return None;
        }
        if self.manners.falls_short && body.len() > 1 {
            head(stream, status, "application/octet-stream", &more, body.len())?;
            stream.write_all(&body[..body.len() / 2]).ok()?;
            let _ = stream.shutdown(std::net::Shutdown::Both);
            return None;
        }
        if self.manners.goes_on {
            let longer = [body, &[0; 4096]].concat();
            return respond(stream, status, "application/octet-stream", &more, &longer);
        }
        let cut = self.manners.cuts_after.filter(|limit| {
            *limit < body.len() && self.cut.lock().expect("no panic").insert(digest.to_owned())
        });
        if let Some(limit) = cut {
            head(stream, status, "application/octet-stream", &more, body.len())?;
            stream.write_all(&body[..limit]).ok()?;
            let _ = stream.shutdown(std::net::Shutdown::Both);
            return None;
        }
        respond(stream, status, "application/octet-stream", &more, body)
    }
}

/// Whether the other side has closed the connection.
fn is_closed(stream: &TcpStream) -> bool {
    let mut byte = [0];
    stream.set_nonblocking(true).is_err() || matches!(stream.peek(&mut byte), Ok(0))
}

fn read_request(reader: &mut BufReader<TcpStream>) -> Option<Seen> {
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|read| *read > 0)?;
    let path = line.split(' ').nth(1)?.to_owned();
    let mut seen = Seen { path, range: None, token: false };
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).ok().filter(|read| *read > 0)?;
        let header = header.trim_end();
        if header.is_empty() {
            return Some(seen);
        }
        let (name, value) = header.split_once(':')?;
        match name.to_ascii_lowercase().as_str() {
            "range" => seen.range = Some(value.trim().to_owned()),
            "authorization" => seen.token = value.trim() == "Bearer let-me-in",
            _ => {}
        }
    }
}

fn head(stream: &mut TcpStream, status: &str, kind: &str, more: &str, length: usize) -> Option<()> {
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n{more}\r\n"
    );
    stream.write_all(head.as_bytes()).ok()
}

fn respond(
    stream: &mut TcpStream,
    status: &str,
    kind: &str,
    more: &str,
    body: &[u8],
) -> Option<()> {
    head(stream, status, kind, more, body.len())?;
    stream.write_all(body).ok()
}
