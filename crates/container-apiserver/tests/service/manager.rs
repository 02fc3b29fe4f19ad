//! Under a service manager, and with a configuration that is wrong.

use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use container_api::{apiserver, socket};
use rustix::process::Signal;

use crate::installation::{Installation, kill};

#[tokio::test]
async fn a_service_manager_passes_the_socket_and_is_told() {
    let it = Installation::new();
    std::fs::DirBuilder::new().mode(0o700).create(it.root.path()).unwrap();
    let listener = socket::bind(it.root.path(), apiserver::SOCKET).unwrap();
    // A client may come before the service.
    let mut client = it.client();
    let notify = it.path("notify");
    let told = UnixDatagram::bind(&notify).unwrap();
    told.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut service = it.managed(listener, &notify);
    assert!(client.list().await.unwrap().is_empty());
    let mut word = [0; 64];
    let n = told.recv(&mut word).unwrap();
    assert_eq!(&word[..n], b"READY=1");
    it.create("ab", "exit=0").await.unwrap();
    kill(service.id() as i32, Signal::TERM);
    let n = told.recv(&mut word).unwrap();
    assert_eq!(&word[..n], b"STOPPING=1");
    assert!(service.wait().unwrap().success());
    assert!(it.root.path().join(apiserver::SOCKET).exists(), "it is the manager's");
}

#[test]
fn a_service_that_cannot_start_says_why_in_one_line() {
    let it = Installation::new();
    std::fs::DirBuilder::new().mode(0o700).create(it.root.path()).unwrap();
    let config = it.root.path().join("config.toml");
    std::fs::write(&config, "[runtime]\naccelerator = 'warp'\n").unwrap();
    let (code, error) = it.try_start_service();
    assert_eq!((code, error.trim().lines().count()), (125, 1), "{error}");
    assert!(error.contains("config.toml") && error.contains("warp"), "{error}");
    std::fs::remove_file(&config).unwrap();
    let mode = std::fs::Permissions::from_mode(0o777);
    std::fs::set_permissions(it.root.path(), mode).unwrap();
    let (code, error) = it.try_start_service();
    assert_eq!(code, 125);
    assert!(error.contains("others can write"), "{error}");
}
