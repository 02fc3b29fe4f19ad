//! A hostile agent: the init of a guest in place of `vminitd`.
//!
//! `/conduct`, one word in the initramfs, says how it behaves: `garbage` never speaks the
//! protocol, `lies` does the handshake and then announces lengths that it doesn't keep, `floods`
//! does the handshake and repeats a message that nobody asked for. After [`MOST_BYTES`] each is
//! silent: the host has to notice that, too.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use nix::libc;

use crate::sys;

/// What the host's first words begin with, and what an agent's answer begins with
/// (`vminitd-protocol`, handshake), but for the port's letter.
const HELLO: &[u8; 6] = b"\xC7\xF1vmH-";
const WELCOME: &[u8; 6] = b"\xC7\xF1vmG-";
/// What it says on the console; the check looks for it.
const MARK: &str = "container-probe: a hostile agent";
/// Bytes that are sent on a port.
const MOST_BYTES: usize = 32 << 20;
/// Bytes of either: these, the port's letter and 255, the generation, the nonce.
const HELLO_LEN: usize = 28;

/// The file that says how it behaves.
const CONDUCT: &str = "/conduct";

/// Whether this is the initramfs of a hostile agent.
pub fn is_wanted() -> bool {
    Path::new(CONDUCT).exists()
}

/// Never returns: the host has to end it.
pub fn run() -> ! {
    for (kind, place) in [("devtmpfs", "/dev"), ("sysfs", "/sys"), ("proc", "/proc")] {
        let _ = fs::create_dir(place);
        let _ = sys::mount(kind, Path::new(place), kind, 0);
    }
    let conduct = fs::read_to_string(CONDUCT).unwrap_or_default();
    insert_modules();
    println!("{MARK}: {}", conduct.trim());
    loop {
        for (name, path) in ports() {
            let conduct = conduct.trim().to_owned();
            if let Ok(port) = OpenOptions::new().read(true).write(true).open(&path) {
                println!("container-probe: port {name}");
                thread::spawn(move || misbehave(port, &conduct));
            }
        }
        // A port that is open already refuses.
        thread::sleep(Duration::from_millis(200));
    }
}

/// Those that every boot inserts, so that there are ports.
fn insert_modules() {
    let list = fs::read_to_string("/modules.list").unwrap_or_default();
    for path in list.lines() {
        let Ok(file) = File::open(path) else { continue };
        let none = CString::default();
        // SAFETY: a descriptor that is open and a string that ends.
        unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), none.as_ptr(), 0) };
    }
}

/// The ports that the host has made, by their names.
fn ports() -> Vec<(String, PathBuf)> {
    let entries = fs::read_dir("/sys/class/virtio-ports").into_iter().flatten().flatten();
    let named = entries.filter_map(|entry| {
        let name = fs::read_to_string(entry.path().join("name")).ok()?;
        Some((name.trim().to_owned(), Path::new("/dev").join(entry.file_name())))
    });
    named.filter(|(name, _)| !name.is_empty()).collect()
}

fn misbehave(mut port: File, conduct: &str) {
    if conduct != "garbage" && !shake_hands(&mut port) {
        return;
    }
    let mut bytes = Vec::new();
    match conduct {
        // A length beyond every limit, then one that is never filled.
        "lies" => {
            bytes.extend_from_slice(&u32::MAX.to_le_bytes());
            bytes.extend_from_slice(&[0xff; 4096]);
        }
        // A message of one field that no version knows.
        "floods" => bytes.extend_from_slice(&[3, 0, 0, 0, 0x98, 0x3f, 1]),
        _ => bytes.extend((0..65_536_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8)),
    }
    let bytes = bytes.repeat(65_536_usize.div_ceil(bytes.len()));
    for _ in 0..MOST_BYTES / bytes.len() {
        if port.write_all(&bytes).is_err() {
            return;
        }
    }
    // Open, and silent.
    loop {
        thread::park();
    }
}

/// Answers the host's hello as an agent would.
fn shake_hands(port: &mut File) -> bool {
    let mut hello = [0; HELLO_LEN];
    while port.read_exact(&mut hello[..1]).is_err() {
        // Nobody is at the other end yet.
        thread::sleep(Duration::from_millis(20));
    }
    if port.read_exact(&mut hello[1..]).is_err() || !hello.starts_with(HELLO) {
        return false;
    }
    hello[..WELCOME.len()].copy_from_slice(WELCOME);
    port.write_all(&hello).is_ok()
}
