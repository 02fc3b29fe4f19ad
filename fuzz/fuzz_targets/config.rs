//! The configuration file.

#![no_main]

use container_api::config::{Config, parse_size};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    let _ = parse_size(&text);
    match Config::parse(&text) {
        // What is accepted can be used without a further look.
        Ok(config) => {
            assert!(config.container.cpus > 0 && config.log.max_files > 0);
            parse_size(&config.container.memory).expect("it was checked");
            parse_size(&config.audit.max_size).expect("it was checked");
            config.limits.memory_in_bytes().expect("it was checked");
            config.limits.disk_in_bytes().expect("it was checked");
        }
        Err(error) => assert!(!error.message.contains('\n'), "one line: {error}"),
    }
});
