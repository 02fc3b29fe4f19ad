//! Each target, over each of its seeds and over changes of it that are the same at every run.

use std::path::Path;

// The targets ask for the fuzzer's macro by this name.
extern crate self as libfuzzer_sys;

macro_rules! targets {
    ($($name:ident $path:literal $changes:literal)*) => {
        $(
            // `no_main` is for the fuzzer's own build.
            #[allow(unused_attributes)]
            #[path = $path]
            mod $name;
        )*

        /// One test a target.
        mod replayed {
            $(
                #[test]
                fn $name() {
                    super::replay(stringify!($name), $changes, super::$name::run);
                }
            )*
        }
    };
}

// With each the number of changes of a seed: some targets write files.
targets! {
    agent "../../../fuzz/fuzz_targets/agent.rs" 2000
    config "../../../fuzz/fuzz_targets/config.rs" 500
    copy "../../../fuzz/fuzz_targets/copy.rs" 50
    dns "../../../fuzz/fuzz_targets/dns.rs" 200
    documents "../../../fuzz/fuzz_targets/documents.rs" 1000
    erofs "../../../fuzz/fuzz_targets/erofs.rs" 20
    events "../../../fuzz/fuzz_targets/events.rs" 2000
    frames "../../../fuzz/fuzz_targets/frames.rs" 1000
    kernel "../../../fuzz/fuzz_targets/kernel.rs" 20
    layers "../../../fuzz/fuzz_targets/layers.rs" 5
    mounts "../../../fuzz/fuzz_targets/mounts.rs" 2000
    predicate "../../../fuzz/fuzz_targets/predicate.rs" 2000
    publish "../../../fuzz/fuzz_targets/publish.rs" 2000
    requests "../../../fuzz/fuzz_targets/requests.rs" 1000
    seccomp "../../../fuzz/fuzz_targets/seccomp.rs" 200
}

/// Makes a target's body a function. Below the targets, which name it by its path.
#[macro_export]
macro_rules! fuzz_target {
    (|$data:ident: &[u8]| $body:block) => {
        pub fn run($data: &[u8]) $body
    };
}

fn replay(target: &str, changes: u32, run: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds").join(target);
    let mut files: Vec<_> = std::fs::read_dir(&folder)
        .expect("seeds")
        .map(|entry| entry.expect("a seed").path())
        .collect();
    files.sort();
    assert!(!files.is_empty(), "{} has no seeds", folder.display());
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for file in files {
        let seed = std::fs::read(&file).expect("a seed");
        run(&seed);
        for _ in 0..changes {
            run(&changed(&seed, &mut random));
        }
    }
}

/// A copy with a few bytes changed, removed or repeated.
fn changed(seed: &[u8], random: &mut Random) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for _ in 0..=random.below(4) {
        if bytes.is_empty() {
            return bytes;
        }
        let at = random.below(bytes.len());
        match random.below(5) {
            0 => bytes[at] ^= 1 << random.below(8),
            1 => bytes[at] = [0, 1, 0x7f, 0x80, 0xff, b'/', b'.', b'"'][random.below(8)],
            2 => bytes.truncate(at),
            3 => _ = bytes.drain(at..bytes.len().min(at + 1 + random.below(8))),
            _ => {
                let part = bytes[at..bytes.len().min(at + 1 + random.below(32))].to_vec();
                bytes.splice(at..at, part);
            }
        }
    }
    bytes
}

/// xorshift: the same at every run.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % end as u64) as usize
    }
}
