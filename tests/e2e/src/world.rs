//! A host, an internet and a neighbour on the host's LAN, each a network namespace of its own:
//! no packet of a test leaves them. The whole service runs in the host's.
//!
//! ```text
//! internet ── 198.51.100.0/24, 2001:db8:1::/64 ── host ── 10.99.0.0/24, 2001:db8:99::/64 ── neighbour
//! 203.0.113.0/24, 2001:db8:113::/64,
//! the metadata addresses
//! ```
//! A plain user makes all of it in a user namespace.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::command::{Cmd, Running};
use crate::processes::is_root;
use crate::wait_for;

/// A server on the internet.
pub const SERVER: &str = "203.0.113.10";
/// The same over IPv6.
pub const SERVER_V6: &str = "2001:db8:113::10";
/// The host's name server.
pub const NAMESERVER: &str = "203.0.113.53";
/// The host on its LAN.
pub const LAN: &str = "10.99.0.1";
/// Addresses at which clouds tell their guests secrets.
pub const METADATA: [&str; 4] =
    ["169.254.169.254", "168.63.129.16", "100.100.100.200", "fd00:ec2::254"];

/// Everything; gone on drop.
pub struct World {
    /// Where the service runs.
    pub host: Place,
    /// Everything beyond the host's uplink.
    pub internet: Place,
    /// Another machine on the host's LAN.
    pub neighbour: Place,
    folder: tempfile::TempDir,
}

/// A network namespace, and a mount namespace with a `/etc/resolv.conf` and a `/dev/net/tun` of
/// its own.
pub struct Place {
    holder: Child,
}

impl Place {
    fn new(folder: &Path) -> Place {
        // Whoever may open the tap device here is the test's own business. One that a thread of this
        // process has mounted before is gone from its folder, and nothing can be mounted on it.
        let script = format!(
            "set -e; mount --make-rprivate /; \
             mount --bind {0}/resolv.conf \"$(readlink -f /etc/resolv.conf)\"; \
             if mknod -m 666 {0}/tun$$ c 10 200 2>/dev/null; then \
             umount /dev/net/tun 2>/dev/null || :; mount --bind {0}/tun$$ /dev/net/tun; fi; \
             ip link set lo up; echo ready; exec sleep infinity",
            folder.display()
        );
        let mut unshare = Command::new("unshare");
        if !is_root() {
            unshare.args(["--user", "--map-root-user"]);
        }
        unshare.args(["--net", "--mount", "sh", "-c", &script]);
        unshare.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut holder = unshare.spawn().expect("unshare");
        let mut said = [0; 6];
        use std::io::Read;
        let stdout = holder.stdout.as_mut().expect("piped");
        stdout.read_exact(&mut said).expect("a namespace");
        Place { holder }
    }

    /// The process that holds it.
    pub fn pid(&self) -> u32 {
        self.holder.id()
    }

    /// The words before a command that is to run there.
    pub fn prefix(&self) -> Vec<String> {
        let mut words = vec!["nsenter".to_owned(), format!("--target={}", self.pid())];
        if !is_root() {
            words.extend(["--user", "--preserve-credentials"].map(str::to_owned));
        }
        words.extend(["--net", "--mount", "--"].map(str::to_owned));
        words
    }

    /// A command there.
    pub fn command(&self, program: &str) -> Cmd {
        let prefix = self.prefix();
        Cmd::new(&prefix[0]).args(&prefix[1..]).arg(program)
    }

    /// A line for the shell there, which must succeed.
    #[track_caller]
    pub fn sh(&self, line: &str) -> String {
        self.command("sh").args(["-ec", line]).run().ok().text()
    }

    /// A web server there at `address` (`1.2.3.4:80`, `[::1]:80`) that says `text`.
    pub fn serve(&self, address: &str, text: &str) -> Server {
        let folder = tempfile::Builder::new().prefix("container-www-").tempdir().expect("tempdir");
        std::fs::write(folder.path().join("index.html"), format!("{text}\n")).expect("a page");
        let server = self
            .command("busybox")
            .args(["httpd", "-f", "-p", address, "-h"])
            .arg(folder.path())
            .spawn();
        wait_for("a web server", Duration::from_secs(60), || {
            self.sh("ss -Hltn").contains(&format!("{address} ")).then_some(())
        });
        Server { _server: server, _folder: folder }
    }

    /// What a web server says, once it does.
    #[track_caller]
    pub fn fetch(&self, url: &str) -> String {
        wait_for(url, Duration::from_secs(60), || {
            let curl = self.command("curl").args(["-sS", "-g", "--max-time", "5", url]).run();
            (curl.code == Some(0)).then(|| curl.text())
        })
    }

    /// Watches for packets there that `filter` (`pcap-filter(7)`) describes.
    pub fn watch(&self, filter: &str) -> Watch {
        let mut tcpdump = self
            .command("tcpdump")
            .args(["-n", "-l", "-i", "any", "--immediate-mode", filter])
            .spawn();
        tcpdump.wait_for_stderr("listening on", Duration::from_secs(60));
        Watch { tcpdump }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// A web server.
pub struct Server {
    _server: Running,
    _folder: tempfile::TempDir,
}

/// Packets that are watched for.
pub struct Watch {
    tcpdump: Running,
}

impl Watch {
    /// What has been seen so far, a line each.
    #[track_caller]
    pub fn seen(self) -> String {
        self.tcpdump.signal(rustix::process::Signal::INT);
        self.tcpdump.wait(Duration::from_secs(60)).text()
    }
}

impl Default for World {
    fn default() -> Self {
        Self::new()
    }
}

impl World {
    /// Makes it.
    pub fn new() -> World {
        let folder =
            tempfile::Builder::new().prefix("container-world-").tempdir().expect("tempdir");
        open(folder.path());
        std::fs::write(folder.path().join("resolv.conf"), format!("nameserver {NAMESERVER}\n"))
            .expect("resolv.conf");
        let [host, internet, neighbour] = [(); 3].map(|()| Place::new(folder.path()));
        let world = World { host, internet, neighbour, folder };
        world.join(&world.internet, "uplink", "198.51.100", "2001:db8:1");
        world.join(&world.neighbour, "lan", "10.99.0", "2001:db8:99");
        for address in [SERVER, NAMESERVER].iter().chain(&METADATA) {
            world.internet.sh(&format!("ip address add {address} dev lo"));
        }
        world.internet.sh(&format!("ip address add {SERVER_V6} dev lo"));
        world.host.sh("ip route add default via 198.51.100.1; \
             ip -6 route add default via 2001:db8:1::1");
        wait_for("addresses that are nobody else's", Duration::from_secs(60), || {
            world.host.sh("ip -6 address show tentative").is_empty().then_some(())
        });
        world
    }

    /// Joins a place to the host: the host has address 2 on its uplink, 1 on its LAN.
    fn join(&self, other: &Place, name: &str, v4: &str, v6: &str) {
        let (ours, theirs) = if name == "uplink" { (2, 1) } else { (1, 2) };
        self.host.sh(&format!(
            "ip link add {name} type veth peer name eth0 netns {}; \
             ip address add {v4}.{ours}/24 dev {name}; \
             ip address add {v6}::{ours}/64 dev {name} nodad; ip link set {name} up",
            other.pid()
        ));
        other.sh(&format!(
            "ip address add {v4}.{theirs}/24 dev eth0; \
             ip address add {v6}::{theirs}/64 dev eth0 nodad; ip link set eth0 up"
        ));
    }

    /// A name server of the host's, with dnsmasq's options.
    pub fn name_server(&self, options: &[&str]) -> Running {
        let server = self
            .internet
            .command("dnsmasq")
            .args(["--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts"])
            .args(["--bind-interfaces", "--pid-file=", "--user=root"])
            .arg(format!("--listen-address={NAMESERVER}"))
            .args(options)
            .spawn();
        wait_for("the name server", Duration::from_secs(60), || {
            let sockets = self.internet.sh("ss -Hlun");
            sockets.contains(&format!("{NAMESERVER}:53")).then_some(())
        });
        server
    }

    /// Links, addresses, routes and rules of the host: what the product must leave as it was.
    pub fn host_state(&self) -> String {
        self.host.sh(
            "ip -o link | sed 's/@.*//'; ip -o address | sed 's/valid_lft.*//'; ip route; \
             ip -6 route; nft list ruleset; cat /proc/sys/net/ipv4/ip_forward; \
             cat /proc/sys/net/ipv6/conf/all/forwarding",
        )
    }

    /// A folder for the test's own files.
    pub fn folder(&self) -> PathBuf {
        self.folder.path().to_owned()
    }
}

/// For every user.
fn open(folder: &Path) {
    use std::os::unix::fs::PermissionsExt;
    let everyone = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(folder, everyone).expect("open a folder");
}
