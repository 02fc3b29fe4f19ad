//! Memory and disk: what runs out is told, what is freed goes back to the host.

use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use e2e::{DEADLINE, Installation, processes, wait_for};

/// A program that takes a little more each time: what asks for all at once may be refused instead.
const GROW: [&str; 2] = ["awk", "BEGIN { s = sprintf(\"%4096s\", \"\"); for (;;) a[i++] = s }"];

#[test]
fn a_container_out_of_memory_says_so() {
    let it = Installation::with_busybox();
    let output =
        it.container(["run", "--name", "box", "-m", "128m", "busybox"]).args(GROW).run().code(137);
    assert!(output.errors().contains("out of memory"), "{output:?}");
    let about = it.inspect("box");
    assert_eq!(about["exit"]["outOfMemory"], true, "{about}");
    let reason = about["exit"]["reason"].as_str().unwrap_or_default().to_owned();
    assert!(reason.contains("out of memory"), "{about}");
    let kills = about["outOfMemoryKills"].as_array().expect("kills").clone();
    let last = kills.last().expect("one");
    assert_eq!(last["process"], "awk", "{about}");
    let limit = last["limitInBytes"].as_u64().expect("a limit");
    assert!(limit > 32 << 20 && limit <= 128 << 20, "{about}");
    let date = last["date"].as_str().expect("a date");
    let started = about["startedDate"].as_str().expect("a date");
    assert!(started <= date, "{about}");
}

#[test]
fn a_child_killed_for_want_of_memory_is_told_while_the_container_goes_on() {
    let it = Installation::with_busybox();
    it.run(["run", "-d", "--name", "box", "-m", "128m", "busybox", "sleep", "1000"]).ok();
    it.container(["exec", "box"]).args(GROW).run().code(137);
    let kill = wait_for("the kill", DEADLINE, || {
        let about = it.inspect("box");
        about["outOfMemoryKills"].as_array()?.last().cloned()
    });
    assert_eq!(kill["process"], "awk", "{kill}");
    assert_eq!(it.status("box").as_deref(), Some("running"));
    it.run(["stop", "-t", "0", "box"]).ok();
    assert_ne!(it.inspect("box")["exit"]["outOfMemory"], true);
}

#[test]
fn freed_blocks_of_the_disk_go_back() {
    let it = Installation::with_busybox();
    it.run(["run", "-d", "--name", "box", "busybox", "sleep", "1000"]).ok();
    let upper = it.container_dir("box").join("upper.img");
    let kib = || std::fs::metadata(&upper).expect("the disk").blocks() / 2;
    let before = kib();
    it.run(["exec", "box", "sh", "-c", "dd if=/dev/urandom of=/root/f bs=1M count=64 && sync"])
        .ok();
    let full = kib();
    assert!(full >= before + (60 << 10), "{before} KiB, then {full}");
    it.run(["exec", "box", "sh", "-c", "rm /root/f && sync"]).ok();
    wait_for("the freed blocks", DEADLINE, || (kib() < before + (8 << 10)).then_some(()));
    // What is left is whole.
    it.run(["exec", "box", "sh", "-c", "echo here >/root/g && sync && cat /root/g"])
        .ok()
        .prints("here");
}

#[test]
fn an_idle_vm_forgets_its_translations_and_goes_on() {
    let it = Installation::with_busybox();
    it.run(["run", "-d", "--name", "box", "busybox", "sleep", "1000"]).ok();
    let about = it.inspect("box");
    let pid = u32::try_from(about["hypervisorPid"].as_u64().expect("a process")).unwrap();
    let sum = ["exec", "box", "sh", "-c", "seq 20000 | sort -r | md5sum"];
    let first = it.run(sum).ok();
    let mut most = 0;
    // Nothing else of an idle VM falls by so much: the balloon gives free memory back sooner.
    wait_for("the translations' memory", Duration::from_secs(120), || {
        let own = processes::own_kib(pid)?;
        most = most.max(own);
        (own + (12 << 10) < most).then_some(())
    });
    assert_eq!(it.run(sum).ok().text(), first.text());
    assert_eq!(it.status("box").as_deref(), Some("running"));
}

#[test]
fn freed_memory_goes_back_and_siblings_keep_theirs() {
    let it = Installation::with_busybox();
    it.run(["run", "--rm", "busybox", "true"]).ok();
    // What is in memory alone, and a program that goes on reading its own pages.
    let keep = "dd if=/dev/urandom of=/dev/shm/f bs=1M count=32 2>/dev/null; \
                sha256sum /dev/shm/f >/tmp/sum; sleep 1000";
    it.run(["run", "-d", "--name", "sibling", "busybox", "sh", "-c", keep]).ok();
    it.run(["run", "-d", "--name", "box", "busybox", "sleep", "1000"]).ok();
    wait_for("the sibling's sum", DEADLINE, || {
        (it.run(["exec", "sibling", "test", "-s", "/tmp/sum"]).code == Some(0)).then_some(())
    });
    let about = it.inspect("box");
    println!("the VM: {}", about["vmOrigin"]);
    let pid = u32::try_from(about["hypervisorPid"].as_u64().expect("a process")).unwrap();
    // A VM that booted loads its balloon's driver late.
    std::thread::sleep(Duration::from_secs(4));
    let before = processes::ram_kib(pid).expect("the VM's memory");
    let peak = processes::peak_ram_kib(pid, || {
        it.run(["exec", "box", "dd", "if=/dev/zero", "of=/dev/null", "bs=512M", "count=1"]).ok();
    });
    // Some of it was the VM's already: what its boot has freed goes back as slowly as the host is busy.
    assert!(peak > before + (400 << 10), "{before} KiB, at most {peak}");
    let allowed = before + (peak - before) / 20;
    wait_for("95 % of the memory", Duration::from_secs(20), || {
        (processes::ram_kib(pid)? <= allowed).then_some(())
    });
    it.run(["exec", "sibling", "sha256sum", "-c", "/tmp/sum"]).ok();
    it.run(["exec", "box", "sh", "-c", "echo fine | md5sum"]).ok();
    // A new clone finds the template as it was.
    it.run(["run", "--rm", "busybox", "echo", "fine"]).ok().prints("fine");
}
