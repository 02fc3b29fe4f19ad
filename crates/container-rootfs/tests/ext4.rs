//! The empty ext4, checked by e2fsck.

use std::os::unix::fs::MetadataExt;
use std::process::Command;
use std::time::Instant;

use container_rootfs::ext4::{JournalMode, Params, write_empty};

fn check(file: &tempfile::NamedTempFile) {
    let output = Command::new("e2fsck")
        .args(["-f", "-n"])
        .arg(file.path())
        .env("PATH", format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default()))
        .output()
        .expect("e2fsck (package e2fsprogs) runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn e2fsck_finds_nothing_at_any_size() {
    let base = Params { uuid: *b"0123456789abcdef", created: 1_700_000_000, ..Params::default() };
    let sizes = [
        (64 << 30, base),
        (64 << 30, Params { inodes_per_group: 16384, journal_mib: 64, ..base }),
        (10 << 30, Params { journal_mib: 128, ..base }),
        // A last group with one block, one without a whole number of blocks.
        ((2 << 30) + 4096, base),
        ((1 << 30) + 5000, base),
        (100 << 20, Params { journal_mib: 4, ..base }),
        (1 << 42, Params { inodes_per_group: 16, ..base }),
        // As volumes are.
        (64 << 30, Params { directories: &["data"], stop_on_errors: true, ..base }),
        (16 << 20, Params { directories: &["data"], journal_mib: 4, ..base }),
        (1 << 30, Params { directories: &[], journal_mode: JournalMode::Data, ..base }),
        (1 << 30, Params { directories: &["a", "b", "c", "d"], ..base }),
    ];
    for (len, params) in sizes {
        let file = tempfile::NamedTempFile::new().unwrap();
        write_empty(file.as_file(), len, &params).unwrap();
        assert_eq!(file.as_file().metadata().unwrap().len(), len / 4096 * 4096);
        check(&file);
    }
}

#[test]
fn little_is_written_and_soon() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let start = Instant::now();
    write_empty(file.as_file(), 64 << 30, &Params::default()).unwrap();
    let took = start.elapsed();
    let allocated = file.as_file().metadata().unwrap().blocks() * 512;
    assert!(allocated <= 256 << 10, "{allocated} bytes");
    assert!(took.as_millis() < 500, "{took:?}");
}

#[test]
fn what_the_file_held_is_gone() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), vec![0xff; 8 << 20]).unwrap();
    write_empty(file.as_file(), 1 << 30, &Params::default()).unwrap();
    check(&file);
}
