//! Kernel files, packages and archives.

#![no_main]

use std::io::{Seek, SeekFrom, Write};

use container_images::kernel::{self, Source};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((kind, data)) = data.split_first() else { return };
    let directory = tempfile::tempdir().expect("a temporary directory");
    let mut file = tempfile::tempfile().expect("a temporary file");
    file.write_all(data).and_then(|()| file.seek(SeekFrom::Start(0))).expect("it can be written");
    let name = "k".to_owned();
    let source = match kind % 3 {
        0 => Source::Binary { name, file },
        1 => Source::Tar { name, file, member: None },
        _ => Source::Debs(vec![(name, file)]),
    };
    let init = std::env::current_exe().expect("a program");
    let _ = kernel::make(&directory.path().join("out"), source, &init, "amd64", "fuzz");
});
