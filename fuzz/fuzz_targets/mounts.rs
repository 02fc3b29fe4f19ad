//! What is given to `--volume` and `--mount`.

#![no_main]

use container_api::mount_options::{Asked, mount, volume};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let asked = [volume(data).map(Asked::Mount), mount(data)];
    for asked in asked.into_iter().flatten() {
        let destination = match asked {
            Asked::Mount(mount) => mount.destination.0,
            Asked::Tmpfs(tmpfs) => tmpfs.destination.into_bytes(),
        };
        assert!(destination.starts_with(b"/") && !destination.contains(&0));
    }
});
