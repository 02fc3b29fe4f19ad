//! A plugin for QEMU's translator (<https://www.qemu.org/docs/master/devel/tcg-plugins.html>) that
//! forgets translated code, and gives its memory back, when the helper asks.
//!
//! QEMU translates each piece of the guest's code once and keeps the result, some 25 to 40 MiB for
//! one that has started a container. Nothing makes it shrink, though an idle guest needs a
//! hundredth of that, and what is missing is translated again when it runs again.
//!
//! ```text
//! helper: counter += 1 ──► the next processor that wakes sees it ──► reset: QEMU stops all
//! processors, forgets all translations ──► released: madvise(MADV_DONTNEED), malloc_trim
//! ```
//! The counter is in a page that the helper shares (`page=FD`, closed here once it is mapped), so
//! that looking costs no system call. No translation and no execution is watched; code runs as it
//! does without a plugin.

mod maps;

use std::ffi::{CStr, c_char, c_int, c_void};
use std::num::NonZeroUsize;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};

use nix::libc;
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap};

use maps::Range;

/// How QEMU names a plugin.
type Id = u64;
type ProcessorCallback = extern "C" fn(Id, u32);
type Callback = extern "C" fn(Id);

/// What of QEMU's interface is used, looked up when the plugin is loaded: nothing else links to it,
/// so that tests do without a QEMU.
struct Host {
    register_vcpu_resume: unsafe extern "C" fn(Id, ProcessorCallback),
    reset: unsafe extern "C" fn(Id, Callback),
    counter: &'static AtomicU32,
    cache_len: usize,
}

static HOST: OnceLock<Host> = OnceLock::new();
/// The counter as it was at the last trim.
static SEEN: AtomicU32 = AtomicU32::new(0);

/// The interface's version that QEMU asks for: 1 up to QEMU 8.2, at least 2 later. What is used
/// here is the same in all.
#[unsafe(no_mangle)]
pub static qemu_plugin_version: AtomicI32 = AtomicI32::new(1);

/// Runs when the library is loaded, before QEMU reads the version.
#[used]
#[unsafe(link_section = ".init_array")]
static LOADED: extern "C" fn() = choose_version;

extern "C" fn choose_version() {
    // It came with version 2.
    if symbol(c"qemu_plugin_num_vcpus").is_some() {
        qemu_plugin_version.store(2, Ordering::Relaxed);
    }
}

/// Called by QEMU at its start with the words of its `-plugin` option. Without `page=FD` nothing is
/// done: this QEMU takes plugins. Returns 0, or 1 with a line on stderr.
///
/// # Safety
/// `argv` must have `argc` strings.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qemu_plugin_install(
    id: Id,
    _info: *const c_void,
    argc: c_int,
    argv: *const *const c_char,
) -> c_int {
    let words = (0..usize::try_from(argc).unwrap_or(0)).map(|index| {
        // SAFETY: the caller's promise.
        unsafe { CStr::from_ptr(*argv.add(index)) }.to_str().unwrap_or_default()
    });
    match install(id, words) {
        Ok(()) => 0,
        Err(reason) => {
            eprintln!("container-trim: {reason}");
            1
        }
    }
}

fn install<'a>(id: Id, words: impl Iterator<Item = &'a str>) -> Result<(), String> {
    let (mut page, mut cache_len) = (None, None);
    for word in words {
        let wrong = || format!("unknown argument {word:?}");
        match word.split_once('=').ok_or_else(wrong)? {
            ("page", number) => page = Some(number.parse().map_err(|_| wrong())?),
            ("cache", bytes) => cache_len = Some(bytes.parse().map_err(|_| wrong())?),
            _ => return Err(wrong()),
        }
    }
    let (page, cache_len) = match (page, cache_len) {
        (None, None) => return Ok(()),
        (Some(page), Some(len)) => (page, len),
        _ => return Err("page=FD and cache=BYTES belong together".into()),
    };
    let host = Host {
        // SAFETY: QEMU's declarations, the same in all versions of its interface.
        register_vcpu_resume: unsafe {
            std::mem::transmute::<NonNull<c_void>, unsafe extern "C" fn(Id, ProcessorCallback)>(
                needed(c"qemu_plugin_register_vcpu_resume_cb")?,
            )
        },
        // SAFETY: as above.
        reset: unsafe {
            std::mem::transmute::<NonNull<c_void>, unsafe extern "C" fn(Id, Callback)>(needed(
                c"qemu_plugin_reset",
            )?)
        },
        counter: map(page)?,
        cache_len,
    };
    SEEN.store(host.counter.load(Ordering::Relaxed), Ordering::Relaxed);
    let host = HOST.get_or_init(|| host);
    // SAFETY: QEMU gave the id, and keeps this library loaded.
    unsafe { (host.register_vcpu_resume)(id, resumed) };
    Ok(())
}

/// Something that QEMU, which loaded this library, exports.
fn symbol(name: &CStr) -> Option<NonNull<c_void>> {
    // SAFETY: looks a name up.
    NonNull::new(unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) })
}

fn needed(name: &CStr) -> Result<NonNull<c_void>, String> {
    symbol(name).ok_or_else(|| format!("this QEMU has no {}", name.to_string_lossy()))
}

/// Maps the helper's page, for ever, and closes its descriptor.
fn map(page: RawFd) -> Result<&'static AtomicU32, String> {
    // SAFETY: the number is in QEMU's own command line for this library alone.
    let page = unsafe { OwnedFd::from_raw_fd(page) };
    let len = NonZeroUsize::MIN;
    // SAFETY: a new mapping, at an address of the kernel's choice.
    let mapped = unsafe { mmap(None, len, ProtFlags::PROT_READ, MapFlags::MAP_SHARED, &page, 0) };
    let mapped = mapped.map_err(|errno| format!("mapping the counter: {errno}"))?;
    // SAFETY: it begins a page, is never unmapped, and others write it atomically, by pwrite.
    Ok(unsafe { mapped.cast::<AtomicU32>().as_ref() })
}

/// A processor of the guest's wakes, on its own thread.
extern "C" fn resumed(id: Id, _processor: u32) {
    let Some(host) = HOST.get() else { return };
    let counter = host.counter.load(Ordering::Relaxed);
    if SEEN.swap(counter, Ordering::Relaxed) != counter {
        // SAFETY: QEMU gave the id. What this asks for is done before the processor runs on.
        unsafe { (host.reset)(id, released) };
    }
}

/// All processors stand still and nothing is translated.
extern "C" fn released(id: Id) {
    let Some(host) = HOST.get() else { return };
    match std::fs::read_to_string("/proc/self/maps") {
        Ok(maps) => maps::translated(&maps, host.cache_len).into_iter().for_each(give_back),
        Err(error) => eprintln!("container-trim: reading /proc/self/maps: {error}"),
    }
    // SAFETY: gives back what malloc holds and nobody uses.
    unsafe { libc::malloc_trim(0) };
    // A reset forgets this, too. SAFETY: QEMU gave the id.
    unsafe { (host.register_vcpu_resume)(id, resumed) };
}

fn give_back(range: Range) {
    let Some(start) = NonNull::new(std::ptr::with_exposed_provenance_mut::<c_void>(range.start))
    else {
        return;
    };
    // SAFETY: memory of QEMU's cache for code, in which nothing is code any more; it is written
    // before it runs again.
    if let Err(errno) = unsafe { madvise(start, range.len(), MmapAdvise::MADV_DONTNEED) } {
        eprintln!("container-trim: madvise: {errno}");
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::IntoRawFd;
    use std::os::unix::fs::FileExt;

    use nix::sys::memfd::{MFdFlags, memfd_create};

    use super::*;

    #[test]
    fn a_counter_is_seen_through_its_page() {
        let page = File::from(memfd_create(c"page", MFdFlags::MFD_CLOEXEC).expect("a page"));
        page.set_len(4096).expect("its length");
        let theirs = page.try_clone().expect("a second one").into_raw_fd();
        let counter = map(theirs).expect("a counter");
        assert_eq!(counter.load(Ordering::Relaxed), 0);
        page.write_all_at(&7_u32.to_ne_bytes(), 0).expect("a new count");
        assert_eq!(counter.load(Ordering::Relaxed), 7);
    }

    #[test]
    fn arguments_are_exact() {
        install(1, [].into_iter()).expect("nothing to do");
        for words in [vec!["page=3"], vec!["page"], vec!["page=x", "cache=1"], vec!["more=1"]] {
            assert!(install(1, words.iter().copied()).is_err(), "{words:?}");
        }
        // No QEMU has loaded this.
        let error = install(1, ["page=0", "cache=1"].into_iter()).expect_err("no QEMU");
        assert!(error.contains("qemu_plugin_register_vcpu_resume_cb"), "{error}");
    }
}
