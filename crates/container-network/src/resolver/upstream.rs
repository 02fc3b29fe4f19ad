//! The servers that are asked for names outside.
//!
//! Each question goes out from a socket and a port of its own with an identifier of its own, and
//! the same question is asked once at a time: whoever wants to forge an answer guesses both, once.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hickory_proto::op::{Message, ResponseCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::{OnceCell, Semaphore};
use tokio::time::timeout;

use super::cache::{Answer, Cache, Key};
use super::{locked, message};

/// How long a server may take, the first time and the second.
const ROUNDS: [Duration; 2] = [Duration::from_millis(1500), Duration::from_secs(3)];
/// How long all of them may take together.
const DEADLINE: Duration = Duration::from_millis(4800);
/// The most questions outside at a time: a descriptor each.
pub const OUTSTANDING: usize = 900;
/// The most servers that are asked.
const SERVERS: usize = 4;
/// The longest packet over UDP that is looked at; more than was offered ever needs.
const PACKET: usize = 4096;

type Flight = Arc<OnceCell<Option<Arc<Answer>>>>;

/// The servers, what they have said, and what they are being asked.
#[derive(Debug)]
pub struct Upstream {
    servers: Mutex<Arc<[SocketAddr]>>,
    /// The one that answered last.
    preferred: AtomicUsize,
    cache: Mutex<Cache>,
    flights: Mutex<HashMap<Key, Flight>>,
    outstanding: Semaphore,
}

impl Default for Upstream {
    fn default() -> Upstream {
        Upstream {
            servers: Mutex::new(Arc::from([])),
            preferred: AtomicUsize::new(0),
            cache: Mutex::default(),
            flights: Mutex::default(),
            outstanding: Semaphore::new(OUTSTANDING),
        }
    }
}

/// What came of asking one server.
enum Outcome {
    Answered(Arc<Answer>),
    /// It doesn't know what EDNS is.
    Baffled,
    Failed,
}

impl Upstream {
    /// Asks these from now on. Others may say something else: what is kept is forgotten.
    pub fn set_servers(&self, servers: &[SocketAddr]) {
        let servers = &servers[..servers.len().min(SERVERS)];
        let mut current = locked(&self.servers);
        if **current != *servers {
            *current = servers.into();
            self.preferred.store(0, Ordering::Relaxed);
            locked(&self.cache).clear();
            locked(&self.flights).clear();
        }
    }

    /// What is known already.
    pub fn cached(&self, key: &Key) -> Option<Arc<Answer>> {
        locked(&self.cache).get(key)
    }

    /// Asks; `None`: no server answered.
    pub async fn ask(&self, key: &Key) -> Option<Arc<Answer>> {
        if let Some(answer) = self.cached(key) {
            return Some(answer);
        }
        let flight = locked(&self.flights).entry(key.clone()).or_default().clone();
        let answer = flight.get_or_init(|| self.ask_all(key)).await.clone();
        let mut flights = locked(&self.flights);
        if flights.get(key).is_some_and(|current| Arc::ptr_eq(current, &flight)) {
            flights.remove(key);
            if let Some(answer) = &answer {
                locked(&self.cache).put(key.clone(), answer.clone());
            }
        }
        answer
    }

    async fn ask_all(&self, key: &Key) -> Option<Arc<Answer>> {
        let _permit = self.outstanding.try_acquire().ok()?;
        timeout(DEADLINE, self.rounds(key)).await.ok().flatten()
    }

    async fn rounds(&self, key: &Key) -> Option<Arc<Answer>> {
        let servers = locked(&self.servers).clone();
        let first = self.preferred.load(Ordering::Relaxed);
        for patience in ROUNDS {
            for n in 0..servers.len() {
                let at = (first + n) % servers.len();
                let mut outcome = ask_one(servers[at], key, true, patience).await;
                if let Outcome::Baffled = outcome {
                    outcome = ask_one(servers[at], key, false, patience).await;
                }
                if let Outcome::Answered(answer) = outcome {
                    self.preferred.store(at, Ordering::Relaxed);
                    return Some(answer);
                }
            }
        }
        None
    }
}

async fn ask_one(server: SocketAddr, key: &Key, edns: bool, patience: Duration) -> Outcome {
    let exchange = async {
        match over_udp(server, key, edns).await {
            Ok((message, _)) if message.metadata.truncation => over_tcp(server, key, edns).await,
            other => other,
        }
    };
    let (message, bytes) = match timeout(patience, exchange).await {
        Ok(Ok(answered)) => answered,
        Ok(Err(error)) => {
            tracing::debug!(%server, %error, "asking outside");
            return Outcome::Failed;
        }
        Err(_) => return Outcome::Failed,
    };
    let code = message.metadata.response_code;
    match Answer::new(message, bytes) {
        Some(answer) => Outcome::Answered(Arc::new(answer)),
        None if edns && matches!(code, ResponseCode::FormErr | ResponseCode::NotImp) => {
            Outcome::Baffled
        }
        None => Outcome::Failed,
    }
}

fn question(key: &Key, edns: bool) -> io::Result<(u16, Vec<u8>)> {
    let mut id = [0; 2];
    rustix::rand::getrandom(&mut id, rustix::rand::GetRandomFlags::empty())?;
    let id = u16::from_ne_bytes(id);
    message::question(id, &key.name, key.kind, edns.then_some(key.dnssec))
        .map(|packet| (id, packet))
        .ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

async fn over_udp(server: SocketAddr, key: &Key, edns: bool) -> io::Result<(Message, usize)> {
    let any: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    // From here on nobody else's packets come in.
    socket.connect(server).await?;
    let (id, packet) = question(key, edns)?;
    socket.send(&packet).await?;
    let mut buffer = vec![0; PACKET];
    loop {
        let n = socket.recv(&mut buffer).await?;
        // What is not the answer is a guess, or late: the answer may still come.
        if let Some(message) = message::answer(&buffer[..n], id, &key.name, key.kind) {
            return Ok((message, n));
        }
    }
}

async fn over_tcp(server: SocketAddr, key: &Key, edns: bool) -> io::Result<(Message, usize)> {
    let mut stream = TcpStream::connect(server).await?;
    let (id, packet) = question(key, edns)?;
    let length = u16::try_from(packet.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    stream.write_all(&[&length.to_be_bytes(), packet.as_slice()].concat()).await?;
    let length = usize::from(stream.read_u16().await?);
    let mut buffer = vec![0; length];
    stream.read_exact(&mut buffer).await?;
    let message = message::answer(&buffer, id, &key.name, key.kind);
    let message = message.filter(|message| !message.metadata.truncation);
    message.map(|message| (message, length)).ok_or_else(|| io::ErrorKind::InvalidData.into())
}
