//! What is given to `--publish`, `--publish-socket`, `--network`, `--egress`, `--host-access` and
//! `--dns`.

#![no_main]

use container_api::network_options as options;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    if let Ok(ports) = options::publish(&text) {
        let last = |first: u16| u32::from(first) + u32::from(ports.count) - 1;
        assert!(ports.count > 0 && ports.container_port > 0);
        assert!(last(ports.container_port) <= 65_535);
        assert!(ports.host_port == 0 || last(ports.host_port) <= 65_535);
    }
    if let Ok(ports) = options::exposed(&text) {
        assert_eq!((ports.host_address, ports.host_port), (None, 0));
    }
    if let Ok(socket) = options::publish_socket(&text) {
        assert!(socket.host_path.is_absolute() && socket.container_path.starts_with('/'));
    }
    if let Ok(choice) = options::network(&text) {
        assert!(options::is_name(&choice.network), "{:?}", choice.network);
    }
    let lines: Vec<&str> = text.split('\n').collect();
    let _ = options::egress(&lines);
    let _ = options::host_access(&[Some(&*text)]);
    let _ = options::nameserver(&text);
    let _ = options::dns_option(&text);
    if let Ok(domain) = options::domain("--dns-domain", &text) {
        assert!(!domain.contains(char::is_whitespace) && !domain.contains('\0'));
    }
});
