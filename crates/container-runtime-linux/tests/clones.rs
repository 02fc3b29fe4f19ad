//! Containers whose VMs were not booted for them: restored from a template, or taken from a spare.

#[expect(dead_code, reason = "other tests of this crate use the rest")]
mod harness;
#[expect(dead_code, reason = "other tests of this crate use the rest")]
mod support;

use std::fs;
use std::os::fd::AsFd;
use std::time::Instant;

use container_api::ErrorCode;
use container_api::runtime::{Request, TemplateFiles, Usage};
use container_api::types::{Resources, Stdio, VmOrigin};
use harness::{LIMIT, NONE, Run, Way, config, output_pipe, process, read_all, template};

const STDOUT: Stdio = Stdio { stdin: false, stdout: true, stderr: false };

/// Runs a script to its end; its output.
async fn output(run: &mut Run) -> String {
    let (out, end) = output_pipe();
    let began = Instant::now();
    run.start(STDOUT, vec![end]).await.unwrap();
    eprintln!("started: {:?}", began.elapsed());
    let out = String::from_utf8(read_all(out).await).unwrap();
    assert_eq!(run.left().await.exit_code, 0, "{}", run.log());
    out
}

#[tokio::test]
async fn clones_have_their_own_disks_and_leave_the_template_alone() {
    let script = "cat /mark 2>/dev/null; echo $HOSTNAME > /mark; cat /mark; \
                  cat /proc/sys/kernel/random/uuid; head -c 3000000 /dev/zero > /big";
    let template = template::of(config("").resources).await;
    let mut uuids = Vec::new();
    for (way, origin) in [
        (Way::Template, VmOrigin::Template),
        (Way::Spare, VmOrigin::Spare),
        (Way::Spare, VmOrigin::Spare),
        (Way::Template, VmOrigin::Template),
    ] {
        let mut config = config(script);
        config.hostname = format!("host{}", uuids.len());
        let mut run = Run::begin(way, config).await;
        assert_eq!(run.state().await.vm_origin.unwrap_or(origin), origin);
        let out = output(&mut run).await;
        let lines: Vec<_> = out.lines().collect();
        let [mark, uuid] = lines[..] else { panic!("{out}") };
        assert_eq!(mark, format!("host{}", uuids.len()));
        assert!(!uuids.contains(&uuid.to_owned()), "a clone has a sibling's randomness");
        uuids.push(uuid.to_owned());
        let upper = run.directory.path().join("upper.img");
        harness::tool("/usr/sbin/e2fsck", &["-fn", upper.to_str().unwrap()]);
    }
    assert_eq!(template.digest().0, template.manifest.ram_digest);
}

#[tokio::test]
async fn a_template_that_is_damaged_costs_a_boot() {
    use std::io::Write;
    let template = template::of(config("").resources).await;
    let directory = tempfile::tempdir().unwrap();
    harness::disks(directory.path());
    let state = directory.path().join("state");
    let mut bytes = fs::read(template.files().state).unwrap();
    let middle = bytes.len() / 2;
    bytes.truncate(middle);
    fs::File::create(&state).unwrap().write_all(&bytes).unwrap();
    let config = config("echo booted");
    let mut spec = harness::spec(config.resources).await;
    spec.image_disk = directory.path().join(harness::IMAGE);
    spec.upper_disk = directory.path().join("upper.img");
    spec.template = Some(TemplateFiles { state, ..template.files() });
    harness::write_json(directory.path().join("config.json"), &config);
    harness::write_json(directory.path().join("vm.json"), &spec);
    let helper = harness::helper("run", directory.path());
    let mut run = Run { directory, helper };
    assert_eq!(output(&mut run).await, "booted\n");
    assert!(run.log().contains("can't be restored"), "{}", run.log());
}

#[tokio::test]
async fn limits_change_in_a_clone() {
    let mut config = config("while :; do sleep 1; done");
    config.resources = Resources { cpus: 1, memory_in_bytes: 256 << 20 };
    let mut run = Run::begin(Way::Spare, config).await;
    run.start(NONE, vec![]).await.unwrap();
    let update = |mib: u64| {
        let resources = Resources { cpus: 1, memory_in_bytes: mib << 20 };
        Request::Update { resources }
    };
    let error = run.call::<()>(update(512), vec![]).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::InvalidArgument, "{error}");
    run.call::<()>(update(32), vec![]).await.unwrap();
    let usage: Usage = run.call(Request::Stats, vec![]).await.unwrap();
    eprintln!("{usage:?}");
    assert_eq!(usage.memory_limit_bytes, 32 << 20);
    assert!(usage.host_memory_bytes > 5 << 20 && usage.host_cpu_usec > 0, "{usage:?}");
    let id = "eater";
    run.exec(id, process("exec tail /dev/zero"), NONE, vec![]).await.unwrap();
    let record = run.wait(id).await.unwrap();
    assert!(record.out_of_memory, "{record:?}");
    assert_eq!(record.reason, "out of memory (limit 32 MiB): killed tail");
    let kills = run.state().await.out_of_memory_kills;
    assert_eq!((kills[0].process.as_str(), kills[0].limit_in_bytes), ("tail", 32 << 20));
    let record = run.stop(100).await;
    assert_eq!(record.out_of_memory_kills, kills);
    run.left().await;
}

/// Prints where the time of a start from a spare goes.
#[tokio::test]
#[ignore = "a measurement"]
async fn timeline() {
    for way in [Way::Spare, Way::Spare, Way::Spare, Way::Template] {
        let mut config = config("");
        config.init_process.executable = "/bin/true".into();
        config.init_process.arguments.clear();
        config.auto_remove = true;
        let mut run = Run::begin(way, config).await;
        let file = tempfile::NamedTempFile::new().unwrap();
        let append = fs::File::options().append(true).open(file.path()).unwrap();
        let start = Request::Start { stdio: NONE, size: None, trace: true };
        let began = Instant::now();
        let mut client = run.client().await;
        client.call::<_, ()>(&start, &[append.as_fd()], Some(LIMIT)).await.unwrap();
        eprintln!("{way:?}: started {:?}", began.elapsed());
        run.wait("init").await.unwrap();
        eprintln!("ended {:?}", began.elapsed());
        run.left().await;
        let text = fs::read_to_string(file.path()).unwrap();
        let mut spans: Vec<container_api::trace::Span> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        spans.sort_by_key(|span| span.begin_ns);
        let first = spans[0].begin_ns;
        for span in spans {
            let ms = |ns: u64| ns as f64 / 1e6;
            let (at, took) = (ms(span.begin_ns - first), ms(span.end_ns - span.begin_ns));
            eprintln!("  {at:8.2} {took:8.2}  {}", span.name);
        }
    }
}

/// Prints what an idle container from a spare holds of the host's memory, as seconds go by.
#[tokio::test]
#[ignore = "a measurement"]
async fn memory() {
    for way in [Way::Spare, Way::Template] {
        let mut run = Run::begin(way, config("exec sleep 1000")).await;
        run.start(NONE, vec![]).await.unwrap();
        for second in 0..10 {
            let usage: Usage = run.call(Request::Stats, vec![]).await.unwrap();
            let kib = usage.host_memory_bytes >> 10;
            eprintln!("{way:?}: {second} s: {kib} KiB, guest's CPU {} us", usage.cpu_usec);
            tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        }
        let helper = fs::read_to_string(format!("/proc/{}/smaps_rollup", run.helper.id())).unwrap();
        let pid = run.state().await.hypervisor_pid.unwrap();
        let qemu = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
        for (name, text) in [("helper", helper), ("QEMU", qemu)] {
            let line = text.lines().find(|line| line.starts_with("Anonymous:"));
            eprintln!("{name}: {}", line.unwrap());
        }
        for (region, kib) in regions(pid) {
            eprintln!("  {kib:8} KiB {region}");
        }
        run.stop(0).await;
        run.left().await;
    }
}

/// The regions of a process that have a mebibyte of their own or more, in KiB.
fn regions(pid: i32) -> Vec<(String, u64)> {
    let smaps = fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap();
    let mut region = String::new();
    let mut found = Vec::new();
    for line in smaps.lines() {
        let words: Vec<_> = line.split_whitespace().collect();
        match words[..] {
            ["Anonymous:", kib, "kB"] => found.push((region.clone(), kib.parse().unwrap())),
            [first, ..] if first.ends_with(':') => {}
            _ => region = line.to_owned(),
        }
    }
    found.retain(|(_, kib)| *kib >= 1 << 10);
    found
}
