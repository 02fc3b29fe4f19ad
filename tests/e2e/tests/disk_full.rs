//! A full host disk under the app root: who writes sees it, nobody else suffers, and it is over
//! when there is space again.

use std::path::PathBuf;
use std::process::Command;

use e2e::serve::{Manners, Serve};
use e2e::{Image, Installation, Layer, Output, busybox, processes};
use rustix::process::Signal;

/// What the small disk holds.
const DISK: &str = "size=64m,mode=755";
/// What is given back in the end, in bytes.
const BALLAST: u64 = 24 << 20;

/// An installation whose app root is a file system of its own, which is small.
struct Small {
    it: Installation,
    _mount: Mount,
}

/// Unmounted after the installation is gone, with what then remains of its folder.
struct Mount(PathBuf);

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
        let _ = self.0.parent().map(std::fs::remove_dir_all);
    }
}

impl Small {
    fn new() -> Small {
        assert!(processes::is_root(), "this mounts a file system, hence root runs it");
        // The first step makes a mount namespace for this test.
        let it = Installation::without_mode();
        let root = it.app_root().to_owned();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", DISK, "tmpfs"]).arg(&root);
        assert!(mount.status().expect("run mount").success(), "mount a small disk");
        it.configure("runtime.template = false\nruntime.spare = 0\n");
        it.load(&busybox::image().expect("the busybox image"));
        Small { it, _mount: Mount(root) }
    }

    fn exec(&self, container: &str, script: &str) -> Output {
        self.it.run(["exec", container, "sh", "-c", script])
    }

    fn ballast(&self) -> PathBuf {
        self.it.app_root().join("ballast")
    }

    /// Takes space that is given back later.
    fn load_ballast(&self) {
        let file = std::fs::File::create(self.ballast()).expect("the ballast");
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, BALLAST)
            .expect("the ballast");
    }

    /// Takes all the space that is left; the same file.
    fn fill(&self) {
        use std::io::Write;
        let mut file = std::fs::File::create(self.ballast()).expect("the ballast");
        for block in [1 << 20, 4096, 1] {
            while file.write_all(&vec![1; block]).is_ok() {}
        }
    }

    fn empty(&self) {
        std::fs::remove_file(self.ballast()).expect("remove the ballast");
    }
}

/// An image that is served, with a layer that does not compress.
fn served(folder: &std::path::Path) -> Serve {
    std::fs::create_dir(folder).expect("a folder");
    let noise: Vec<u8> =
        (0..2 << 20).map(|n: u32| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let layers = vec![Layer::build(|entries| _ = entries.file("noise", 0o644, &noise))];
    let image = Image::new("served:1", layers, serde_json::json!({}));
    image.write_layout(folder).expect("a layout");
    Serve::start(folder, Manners::default())
}

/// It was refused in one line that says why.
#[track_caller]
fn is_refused(output: &Output) {
    assert_eq!(output.code, Some(125), "{output:?}");
    assert_eq!(output.errors().trim_end().lines().count(), 1, "{output:?}");
    assert!(output.errors().to_lowercase().contains("no space left"), "{output:?}");
}

#[test]
fn a_full_disk_is_told_to_who_writes_and_is_over_when_there_is_space() {
    let small = Small::new();
    let it = &small.it;
    small.load_ballast();
    let count = "n=0; while n=$((n + 1)); do echo $n >/dev/shm/n; usleep 100000; done";
    let run = |name: &str, more: &[&str]| {
        let run = it.container(["run", "-d", "--name", name]).args(more);
        run.args(["busybox", "sh", "-c", count]).run().ok();
    };
    run("volume", &["-v", "data:/data"]);
    run("own", &[]);
    run("other", &[]);
    for (container, directory) in [("volume", "/data"), ("own", "/srv")] {
        let keep = format!("mkdir -p {directory}; echo kept >{directory}/kept; sync");
        small.exec(container, &keep).ok();
    }
    // More than there is: the guests do not know that before they write. Both at once, as nothing
    // can be begun on a full disk.
    let fill = |container: &str, directory: &str| {
        let fill = format!("dd if=/dev/zero of={directory}/big bs=1M count=96 conv=fsync");
        let full = small.exec(container, &fill);
        let said = full.errors();
        let known = ["I/O error", "Input/output error", "No space left", "Read-only file system"];
        let told = said.contains("/big") && known.iter().any(|text| said.contains(text));
        assert!(full.code != Some(0) && told, "{full:?}");
    };
    std::thread::scope(|scope| {
        let fills = [("volume", "/data"), ("own", "/srv")];
        let fills =
            fills.map(|(container, directory)| scope.spawn(move || fill(container, directory)));
        for one in fills {
            one.join().expect("a full disk");
        }
    });

    // All go on, and what would be done without a record of it is refused.
    for container in ["volume", "own", "other"] {
        assert_eq!(it.status(container).as_deref(), Some("running"));
    }
    for refused in [&["volume", "create", "more"][..], &["create", "busybox"]] {
        it.run(refused).fails(125, "No space left");
    }

    // There is space again: whoever kept away from the disk goes on, the others start again.
    std::fs::remove_file(small.ballast()).expect("remove the ballast");
    let other = "[ $(cat /dev/shm/n) -gt 1 ] && echo here >/file && sync && cat /file";
    small.exec("other", other).ok().prints("here");
    for (container, directory) in [("volume", "/data"), ("own", "/srv")] {
        it.run(["stop", "-t", "0", container]).ok();
        it.run(["start", container]).ok();
        let go_on = format!(
            "cat {directory}/kept; rm -f {directory}/big; \
             dd if=/dev/zero of={directory}/more bs=1M count=4 conv=fsync 2>/dev/null && echo on"
        );
        small.exec(container, &go_on).ok().prints("kept\non");
    }
    it.run(["volume", "create", "more"]).ok();
}

/// The service finds no space for a byte: what would be done is refused with the reason, nothing is
/// lost or left, also when the service dies meanwhile, and all works when there is space again.
#[test]
fn every_operation_may_find_the_disk_full() {
    let small = Small::new();
    let it = &small.it;
    let server = served(&it.scratch().join("served"));
    let pulled = server.reference("served:1");
    for name in ["data", "spare"] {
        it.run(["volume", "create", name]).ok();
    }
    let first = ["create", "--name", "first", "-v", "data:/data", "busybox", "sleep", "100000"];
    it.run(first).ok();
    it.run(["create", "--name", "second", "busybox", "sleep", "100000"]).ok();
    it.run(["create", "--name", "gone", "busybox", "true"]).ok();
    it.run(["start", "first"]).ok();
    small.exec("first", "echo kept >/data/kept; sync").ok();
    let new: [&[&str]; 6] = [
        &["create", "--name", "third", "busybox", "true"],
        &["run", "--name", "third", "busybox", "true"],
        &["image", "pull", &pulled],
        &["commit", "first", "committed"],
        &["volume", "create", "more"],
        &["network", "create", "more"],
    ];
    // These may find what little they need in blocks that are begun.
    let little: [&[&str]; 3] =
        [&["start", "second"], &["image", "tag", "busybox", "other"], &["exec", "first", "true"]];
    small.fill();
    for words in new {
        is_refused(&it.run(words));
    }
    for words in little {
        let output = it.run(words);
        if output.code != Some(0) {
            is_refused(&output);
        }
    }
    // What only reads goes on, and what frees something.
    it.run(["list", "--all"]).ok().has("first").has("second");
    it.run(["volume", "list"]).ok().has("data");
    it.run(["image", "list"]).ok().has("busybox");
    it.run(["delete", "gone"]).ok();
    it.run(["volume", "delete", "spare"]).ok();
    small.fill();
    processes::kill(it.apiserver_pid(), Signal::KILL);
    for words in new.into_iter().chain(little) {
        let output = it.run(words);
        let done = output.code == Some(0) && little.contains(&words);
        assert!(done || output.code == Some(125), "{output:?}");
        assert!(!output.errors().contains("panicked"), "{output:?}");
    }
    small.empty();
    it.comes_to_rest("a full disk");
    assert_eq!(it.status("first").as_deref(), Some("running"));
    for name in ["third", "gone"] {
        assert_eq!(it.status(name), None);
    }
    for name in ["first", "second"] {
        it.run(["stop", "-t", "0", name]).ok();
        it.run(["start", name]).ok();
    }
    small.exec("first", "cat /data/kept").ok().prints("kept");
    small.exec("second", "true").ok();
    for words in [&["image", "pull", &pulled][..], &["volume", "create", "more"]] {
        it.run(words).ok();
    }
    it.run(["system", "check", "--state", "--deep"]).ok();
    it.run(["system", "audit", "verify"]).ok();
}
