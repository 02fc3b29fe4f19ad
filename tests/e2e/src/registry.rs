//! A real registry (the distribution's `docker-registry`) on loopback, with storage of
//! its own.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use crate::command::{Cmd, Output};
use crate::wait_for;

/// A running registry, stopped on drop.
pub struct Registry {
    child: Child,
    address: SocketAddr,
    folder: TempDir,
}

impl Registry {
    /// Starts one without authentication.
    pub fn start() -> Self {
        Self::launch(|_| String::new())
    }

    /// Starts one that speaks HTTPS, with a certificate for its address from an authority
    /// that nobody trusts yet: [`Registry::authority`].
    pub fn with_tls() -> Self {
        Self::launch(|folder| {
            make_certificates(folder);
            let file = |name: &str| folder.join(name).display().to_string();
            let (certificate, key) = (file("cert.pem"), file("key.pem"));
            format!(", tls: {{certificate: {certificate}, key: {key}}}")
        })
    }

    /// The certificate (PEM) of the authority of [`Registry::with_tls`].
    pub fn authority(&self) -> std::path::PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// `http`: what its `http` configuration has beside the address.
    fn launch(http: impl FnOnce(&Path) -> String) -> Self {
        crate::isolation::isolate();
        let folder = tempfile::Builder::new().prefix("registry-").tempdir().expect("tempdir");
        let address = free_address();
        let http = http(folder.path());
        let config = format!(
            "version: 0.1\nlog: {{level: warn}}\n\
             storage: {{filesystem: {{rootdirectory: {}}}, delete: {{enabled: true}}}}\n\
             http: {{addr: '{address}'{http}}}\n",
            folder.path().join("data").display(),
        );
        let file = folder.path().join("config.yml");
        std::fs::write(&file, config).expect("write the registry's configuration");
        let log = std::fs::File::create(folder.path().join("log")).expect("create the log");
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("clone a descriptor"))
            .stderr(log)
            .spawn()
            .expect("run docker-registry (package docker-registry)");
        let registry = Self { child, address, folder };
        wait_for("the registry", Duration::from_secs(20), || {
            TcpStream::connect_timeout(&address, Duration::from_secs(1)).ok()
        });
        registry
    }

    /// Host and port.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The full reference of `name` in it.
    pub fn reference(&self, name: &str) -> String {
        format!("{}/{name}", self.address)
    }

    /// Its folder: storage and log.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Pushes with skopeo, from any source that skopeo names.
    #[track_caller]
    pub fn push(&self, source: &str, name: &str) -> Output {
        skopeo(["copy", "--all", "--dest-tls-verify=false", source])
            .arg(format!("docker://{}", self.reference(name)))
            .run()
            .ok()
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An authority (`ca.pem`) and a server's certificate for 127.0.0.1 (`cert.pem`, `key.pem`).
fn make_certificates(folder: &Path) {
    let openssl = |args: &str| {
        Cmd::new("openssl").args(args.split_whitespace()).current_dir(folder).run().ok();
    };
    openssl("req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.pem -days 2 -subj /CN=test");
    openssl("req -newkey rsa:2048 -nodes -keyout key.pem -out request.pem -subj /CN=registry");
    std::fs::write(folder.join("names"), "subjectAltName=IP:127.0.0.1\n").expect("write names");
    openssl(
        "x509 -req -in request.pem -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 \
         -extfile names -out cert.pem",
    );
}

/// `skopeo ARGS…`, taking any image without a signature policy.
pub fn skopeo<'a>(args: impl IntoIterator<Item = &'a str>) -> Cmd {
    Cmd::new("skopeo").arg("--insecure-policy").args(args)
}

/// An address on loopback that nobody uses now.
pub fn free_address() -> SocketAddr {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("bind");
    listener.local_addr().expect("the address of a listener")
}
