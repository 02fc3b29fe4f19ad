//! Seccomp profiles: read, and made programs for the guest's kernel.

#![no_main]

use container_api::seccomp::{Profile, Seccomp};
use container_runtime_linux::seccomp::compile;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(profile) = Profile::parse(data) else { return };
    let text = serde_json::to_vec(&profile).expect("a profile can be written");
    if let Ok(again) = Profile::parse(&text) {
        assert_eq!(again, profile);
    }
    let seccomp = Seccomp::Profile { profile: Box::new(profile) };
    for capabilities in [&[][..], &["CAP_SYS_ADMIN".to_owned()]] {
        if let Ok(program) = compile(&seccomp, capabilities) {
            assert!(program.len() % 8 == 0 && program.len() <= 8 * 4096);
        }
    }
});
