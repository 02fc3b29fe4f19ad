//! Bytes as the tar stream of a hostile guest, unpacked here by the rules of `container cp`.

#![no_main]

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use container_archive::{Owner, Rules, TarReader, Unpacker, View};
use libfuzzer_sys::fuzz_target;

const RULES: Rules = Rules {
    owner: Owner::Caller,
    special_bits: false,
    devices: false,
    xattr: |name| name.starts_with(b"user."),
};

/// Makes the checksums of all headers right, so that damage gets past them.
fn mend(bytes: &mut [u8]) {
    for block in bytes.chunks_exact_mut(512) {
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
}

fuzz_target!(|data: &[u8]| {
    let mut data = data.to_vec();
    mend(&mut data);
    let here = tempfile::tempdir().expect("a directory");
    let base = here.path().join("base");
    fs::create_dir(&base).expect("a directory");
    fs::write(here.path().join("secret"), b"s").expect("a file");
    symlink("..", base.join("up")).expect("a link");
    let before = fs::metadata(here.path().join("secret")).expect("it is there");
    let place = View::Host.existing(base.as_os_str().as_bytes()).expect("it is there");
    let _ = Unpacker::new(place, RULES).run(&mut TarReader::new(&data[..]), None);
    let after = fs::metadata(here.path().join("secret")).expect("it is still there");
    let facts = |m: &fs::Metadata| (m.len(), m.mode(), m.nlink(), m.mtime_nsec());
    assert_eq!(facts(&before), facts(&after));
    assert_eq!(fs::read_dir(here.path()).expect("it is there").count(), 2);
    // What an archive has made unreadable must be removable.
    let _ = fs::set_permissions(&base, fs::Permissions::from_mode(0o700));
});
