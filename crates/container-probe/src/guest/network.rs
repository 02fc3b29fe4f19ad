//! What a container's network may not lead to.

use std::fs;
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

use crate::report::{Answer, tell};

/// How long a connection may take that should not come about; many are tried at once.
const PATIENCE: Duration = Duration::from_secs(3);

/// Where clouds tell secrets, on the ports at which they do.
const METADATA: [&str; 4] =
    ["169.254.169.254:80", "168.63.129.16:80", "100.100.100.200:80", "[fd00:ec2::254]:80"];

/// Tries them all, at once.
pub fn attack(host: &[SocketAddr], foreign: &[SocketAddr]) {
    if let Err(why) = answers() {
        for key in ["host-addresses", "metadata", "other-network"] {
            tell(key, Answer::Skipped(why.clone()));
        }
        return;
    }
    let metadata: Vec<SocketAddr> = METADATA.iter().filter_map(|text| text.parse().ok()).collect();
    for (key, what, targets) in [
        ("host-addresses", "of the host", host),
        ("metadata", "of metadata services", &metadata),
        ("other-network", "in another network", foreign),
    ] {
        if targets.is_empty() {
            tell(key, Answer::Skipped("there is no address to try".into()));
            continue;
        }
        tell(
            key,
            Answer::of(reached(targets), format!("{} addresses {what} unreached", targets.len())),
        );
    }
}

/// Which of them accept a connection.
fn reached(targets: &[SocketAddr]) -> Vec<String> {
    let attempts: Vec<_> = targets
        .iter()
        .copied()
        .map(|to| (to, thread::spawn(move || TcpStream::connect_timeout(&to, PATIENCE).is_ok())))
        .collect();
    let done = attempts.into_iter().filter_map(|(to, attempt)| {
        attempt.join().unwrap_or(false).then(|| format!("{to} answers"))
    });
    done.collect()
}

/// Whether this network works at all: the resolver at its gateway answers. Without that nothing
/// could be reached, and nothing would be shown.
fn answers() -> Result<(), String> {
    let text = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let server: Option<IpAddr> =
        text.lines().find_map(|line| line.strip_prefix("nameserver")?.trim().parse().ok());
    let server = server.ok_or("the container's network has no resolver")?;
    let failed = |e: std::io::Error| format!("the resolver {server}: {e}");
    let any = if server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any).map_err(failed)?;
    socket.set_read_timeout(Some(PATIENCE)).map_err(failed)?;
    // One question: the address of "localhost".
    let question =
        b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x09localhost\x00\x00\x01\x00\x01";
    for _ in 0..3 {
        socket.send_to(question, (server, 53)).map_err(failed)?;
        let mut answer = [0; 512];
        if socket
            .recv_from(&mut answer)
            .is_ok_and(|(len, _)| len > 2 && answer[..2] == question[..2])
        {
            return Ok(());
        }
    }
    Err(format!("the resolver {server} does not answer, so nothing could be reached anyway"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn who_answers_is_found() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let open = listener.local_addr().unwrap();
        assert_eq!(reached(&[open]), [format!("{open} answers")]);
        drop(listener);
        assert!(reached(&[open]).is_empty());
    }
}
