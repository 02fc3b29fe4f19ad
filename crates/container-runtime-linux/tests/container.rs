//! Containers in real VMs. `CONTAINER_TEST_WAY` says how they get them: by a boot, or from a
//! `template` or a `spare`.

mod harness;
#[expect(dead_code, reason = "other tests of this crate use the rest")]
mod support;

use std::fs;
use std::io::{Read, Write};
use std::time::{Duration, Instant};

use container_api::ErrorCode;
use container_api::output_log::OutputStream;
use container_api::runtime::{INIT_PROCESS, Phase, Request};
use container_api::types::{Stdio, TerminalSize};
use harness::{
    LIMIT, NONE, OUT, PIPE, Run, config, disks, input_pipe, output_pipe, process, read_all, tool,
};

#[tokio::test]
async fn a_program_runs_to_its_end() {
    let mut run = Run::boot(config("echo out; echo err >&2; exit 7")).await;
    let (out, out_end) = output_pipe();
    let (err, err_end) = output_pipe();
    run.start(OUT, vec![out_end, err_end]).await.unwrap();
    let record = run.wait(INIT_PROCESS).await.unwrap();
    assert_eq!((record.exit_code, record.reason.as_str()), (7, "exited"), "{}", run.log());
    assert_eq!(read_all(out).await, b"out\n");
    assert_eq!(read_all(err).await, b"err\n");
    assert_eq!(run.left().await, record);
    assert_eq!(run.logged(OutputStream::Stdout), b"out\n");
    assert_eq!(run.logged(OutputStream::Stderr), b"err\n");
    let boot = fs::read_to_string(run.directory.path().join("boot.log")).unwrap();
    assert!(boot.contains("Linux version"), "{boot}");
    tool("/usr/sbin/e2fsck", &["-fn", run.directory.path().join("upper.img").to_str().unwrap()]);
}

#[tokio::test]
async fn a_program_that_is_not_there_is_127_and_one_that_is_none_126() {
    for (program, code, exit) in [
        ("nothing", ErrorCode::ProgramNotFound, 127),
        ("/bin/garbage", ErrorCode::ProgramNotExecutable, 126),
    ] {
        let mut config = config("");
        config.init_process.executable = program.into();
        config.init_process.arguments.clear();
        config.auto_remove = true;
        let mut run = Run::boot(config).await;
        let error = run.start(NONE, vec![]).await.unwrap_err();
        assert_eq!(error.code, code, "{error}");
        assert!(!error.message.contains('\n'));
        let record = run.left().await;
        assert_eq!(record.exit_code, exit, "{record:?}");
    }
}

#[tokio::test]
async fn programs_beside_the_first_one() {
    let mut run = Run::boot(config("trap '' TERM; while :; do sleep 1; done")).await;
    run.start(NONE, vec![]).await.unwrap();
    assert_eq!(run.state().await.phase, Phase::Running);
    let again = run.start(NONE, vec![]).await.unwrap_err();
    assert_eq!(again.code, ErrorCode::InvalidState);

    run.exec("ok", process("exit 3"), NONE, vec![]).await.unwrap();
    assert_eq!(run.wait("ok").await.unwrap().exit_code, 3);
    assert_eq!(run.wait("ok").await.unwrap().exit_code, 3, "a late waiter is told too");
    assert_eq!(run.wait("nobody").await.unwrap_err().code, ErrorCode::NotFound);
    let mut missing = process("");
    missing.executable = "nothing".into();
    let error = run.exec("missing", missing, NONE, vec![]).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::ProgramNotFound);

    blocked_reader(&run).await;
    bytes_both_ways(&run).await;
    gone_client(&run).await;
    terminal(&run).await;
    fast_execs(&run).await;
    let memory = private_kib(run.helper.id());
    eprintln!("helper: {memory} KiB private");
    // The promise is an optimized helper's.
    let limit = if cfg!(debug_assertions) { 8 << 10 } else { 5 << 10 };
    assert!(memory <= limit, "the helper has {memory} KiB of its own");

    let record = run.stop(300).await;
    assert_eq!((record.exit_code, record.signal), (137, Some(9)), "{record:?}");
    assert_eq!(run.left().await, record);
}

/// A client that reads nothing stops its own program and nothing else.
async fn blocked_reader(run: &Run) {
    let (stuck, end) = output_pipe();
    let out = Stdio { stdin: false, stdout: true, stderr: false };
    run.exec("stuck", process("yes"), out, vec![end]).await.unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    let (out_read, end) = output_pipe();
    run.exec("other", process("echo hello"), out, vec![end]).await.unwrap();
    assert_eq!(read_all(out_read).await, b"hello\n");
    assert_eq!(run.wait("other").await.unwrap().exit_code, 0);
    // Its client goes: the program learns of it, as with a pipe.
    drop(stuck);
    run.call::<()>(Request::Signal { process_id: "stuck".into(), signal: 9 }, vec![]).await.ok();
    let record = run.wait("stuck").await.unwrap();
    assert!(record.signal.is_some() || record.exit_code != 0, "{record:?}");
}

/// Megabytes through `cat`, byte for byte, ended by the end of the input.
async fn bytes_both_ways(run: &Run) {
    let len: usize = std::env::var("CONTAINER_TEST_MIB").map_or(16, |n| n.parse().unwrap()) << 20;
    let data: Vec<u8> =
        (0..len).map(|i| (i as u32).wrapping_mul(2_654_435_761).to_le_bytes()[3]).collect();
    let (mut stdin, stdin_end) = input_pipe();
    let (stdout, stdout_end) = output_pipe();
    let mut cat = process("cat");
    cat.interactive = true;
    run.exec("cat", cat, PIPE, vec![stdin_end, stdout_end]).await.unwrap();
    let began = Instant::now();
    let sent = data.clone();
    let writer = tokio::task::spawn_blocking(move || stdin.write_all(&sent).unwrap());
    let got = read_all(stdout).await;
    writer.await.unwrap();
    let mib = len as f64 / f64::from(1 << 20);
    eprintln!("cat: {:.1} MiB/s", mib / began.elapsed().as_secs_f64());
    assert!(got == data, "{} of {} bytes", got.len(), data.len());
    assert_eq!(run.wait("cat").await.unwrap().exit_code, 0);
}

/// A client that goes away does not end the program; a closed input ends the client's writing.
async fn gone_client(run: &Run) {
    let (stdout, stdout_end) = output_pipe();
    let out = Stdio { stdin: false, stdout: true, stderr: false };
    run.exec("alone", process("sleep 1; exit 5"), out, vec![stdout_end]).await.unwrap();
    drop(stdout);
    assert_eq!(run.wait("alone").await.unwrap().exit_code, 5);
    let (mut stdin, stdin_end) = input_pipe();
    let mut head = process("exec 0<&-; sleep 1");
    head.interactive = true;
    let input = Stdio { stdin: true, stdout: false, stderr: false };
    run.exec("deaf", head, input, vec![stdin_end]).await.unwrap();
    let writer = tokio::task::spawn_blocking(move || {
        let error = std::iter::repeat_with(|| stdin.write_all(&[0; 4096])).find_map(Result::err);
        error.map(|e| e.kind())
    });
    let kind = tokio::time::timeout(LIMIT, writer).await.unwrap().unwrap();
    assert_eq!(kind, Some(std::io::ErrorKind::BrokenPipe));
    assert_eq!(run.wait("deaf").await.unwrap().exit_code, 0);
}

/// A terminal: size, resize, and a detach that leaves it.
async fn terminal(run: &Run) {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let mut shell =
        process("stty size; read line; stty size; echo got $line; read line; sleep 100");
    (shell.terminal, shell.interactive) = (true, true);
    let request = Request::Exec {
        process_id: "tty".into(),
        process: shell,
        stdio: Stdio { stdin: true, stdout: false, stderr: false },
        size: Some(TerminalSize { rows: 11, columns: 22 }),
    };
    run.call::<()>(request, vec![theirs.into()]).await.unwrap();
    ours.set_read_timeout(Some(LIMIT)).unwrap();
    let mut ours = ours;
    let mut seen = String::new();
    let mut until = |ours: &mut std::os::unix::net::UnixStream, text: &str| {
        let mut buffer = [0; 256];
        while !seen.contains(text) {
            let n = ours.read(&mut buffer).unwrap();
            assert!(n > 0, "{seen}");
            seen.push_str(&String::from_utf8_lossy(&buffer[..n]));
        }
    };
    until(&mut ours, "11 22");
    let size = TerminalSize { rows: 33, columns: 44 };
    run.call::<()>(Request::Resize { process_id: "tty".into(), size }, vec![]).await.unwrap();
    ours.write_all(b"hi\n").unwrap();
    until(&mut ours, "33 44");
    until(&mut ours, "got hi");
    drop(ours);
    tokio::time::sleep(Duration::from_millis(300)).await;
    let signal = Request::Signal { process_id: "tty".into(), signal: 9 };
    run.call::<()>(signal, vec![]).await.expect("it still runs after the detach");
    assert_eq!(run.wait("tty").await.unwrap().signal, Some(9));
}

fn private_kib(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let private = text.lines().filter(|line| line.starts_with("Private_"));
    private.map(|line| line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()).sum()
}

async fn fast_execs(run: &Run) {
    let mut times = Vec::new();
    for i in 0..15 {
        let began = Instant::now();
        let mut config = process("");
        config.executable = "/bin/true".into();
        config.arguments.clear();
        let id = format!("true-{i}");
        run.exec(&id, config, NONE, vec![]).await.unwrap();
        assert_eq!(run.wait(&id).await.unwrap().exit_code, 0);
        times.push(began.elapsed());
    }
    times.sort();
    eprintln!("exec true: median {:?}, worst {:?}", times[7], times[14]);
}

#[tokio::test]
async fn a_dead_hypervisor_becomes_a_record_with_a_reason() {
    let mut run = Run::boot(config("sleep 1000")).await;
    run.start(NONE, vec![]).await.unwrap();
    let pid = run.state().await.hypervisor_pid.unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL).unwrap();
    let began = Instant::now();
    let record = run.left().await;
    assert_eq!(record.exit_code, 125);
    assert_eq!(record.reason, "hypervisor killed by SIGKILL");
    eprintln!("QEMU killed → helper gone: {:?}", began.elapsed());
}

#[tokio::test]
async fn a_dead_helper_takes_its_vm_along() {
    let mut run = Run::boot(config("sleep 1000")).await;
    run.start(NONE, vec![]).await.unwrap();
    let pid = run.state().await.hypervisor_pid.unwrap();
    run.helper.kill().unwrap();
    run.helper.wait().unwrap();
    let began = Instant::now();
    // A zombie has no resources; who reaps it is not ours to say.
    let alive = || {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.starts_with(" Z"))
    };
    while alive() {
        assert!(began.elapsed() < Duration::from_secs(1), "QEMU stays");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(!run.directory.path().join("exit.json").exists());
}

#[tokio::test]
async fn a_guest_panic_becomes_a_record_with_a_reason() {
    let mut config = config("mount -o remount,rw /proc/sys; echo c > /proc/sysrq-trigger; sleep 9");
    config.capabilities = vec!["ALL".into()];
    let mut run = Run::boot(config).await;
    // The panic may come before the answer.
    let _ = run.start(NONE, vec![]).await;
    let record = run.left().await;
    assert_eq!(record.exit_code, 125, "{record:?}");
    assert!(record.reason.starts_with("guest kernel panic: sysrq"), "{}", record.reason);
}

#[tokio::test]
async fn a_machine_that_hangs_is_ended_with_its_container() {
    let mut run = Run::boot(config("sleep 1000")).await;
    run.start(NONE, vec![]).await.unwrap();
    let pid = nix::unistd::Pid::from_raw(run.state().await.hypervisor_pid.unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::SIGSTOP).unwrap();
    let record = run.stop(100).await;
    assert_eq!(record.exit_code, 137, "{record:?}");
    assert!(record.reason.contains("with its VM"), "{record:?}");
    assert_eq!(run.left().await, record);
}

#[tokio::test]
async fn memory_that_runs_out_is_the_reason() {
    let mut run = Run::boot(config("exec tail /dev/zero")).await;
    run.start(NONE, vec![]).await.unwrap();
    let record = run.left().await;
    assert_eq!((record.exit_code, record.out_of_memory), (137, true), "{record:?}");
    assert_eq!(record.reason, "out of memory (limit 256 MiB): killed tail");
}

#[tokio::test]
async fn ends_that_come_early() {
    let mut run = Run::boot(config("true")).await;
    run.call::<()>(Request::Abort, vec![]).await.unwrap();
    assert_eq!(run.left().await.exit_code, 125);

    let mut run = Run::boot(config("true")).await;
    assert_eq!(run.stop(10_000).await.exit_code, 137);
    run.left().await;

    let mut small = config("true");
    small.resources.memory_in_bytes = 32 << 20;
    let mut run = Run::boot(small).await;
    let error = run.start(NONE, vec![]).await.unwrap_err();
    assert!(error.message.contains("32 MiB"), "{error}");
    assert_eq!(run.left().await.exit_code, 125);
}

#[tokio::test]
async fn a_slow_client_gets_the_last_byte() {
    let mut config = config("head -c 400000 /dev/zero; exit 4");
    config.auto_remove = true;
    let mut run = Run::boot(config).await;
    let (mut out, end) = output_pipe();
    let stdio = Stdio { stdin: false, stdout: true, stderr: false };
    run.start(stdio, vec![end]).await.unwrap();
    let mut all = Vec::new();
    while all.len() < 200_000 {
        let mut chunk = [0; 4000];
        let n = out.read(&mut chunk).unwrap();
        all.extend_from_slice(&chunk[..n]);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    tokio::time::sleep(Duration::from_secs(8)).await;
    all.extend(read_all(out).await);
    assert_eq!(all.len(), 400_000);
    assert_eq!(run.left().await.exit_code, 4);
}

#[tokio::test]
async fn a_helper_that_is_told_to_end_stops_its_program() {
    let mut run =
        Run::boot(config("trap 'exit 9' TERM; echo ready; while :; do sleep 1; done")).await;
    let (out, end) = output_pipe();
    let stdio = Stdio { stdin: false, stdout: true, stderr: false };
    run.start(stdio, vec![end]).await.unwrap();
    let mut out = out;
    out.read_exact(&mut [0; 6]).unwrap();
    let pid = nix::unistd::Pid::from_raw(run.helper.id() as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::SIGTERM).unwrap();
    assert_eq!(run.left().await.exit_code, 9);
}

/// Prints the throughput of each direction alone; `CONTAINER_TEST_MIB` says how much goes.
#[tokio::test]
#[ignore = "a measurement"]
async fn throughput() {
    let run = Run::boot(config("sleep 1000")).await;
    run.start(NONE, vec![]).await.unwrap();
    let mib: usize = std::env::var("CONTAINER_TEST_MIB").map_or(64, |n| n.parse().unwrap());
    let rate = |began: Instant| mib as f64 / began.elapsed().as_secs_f64();
    let hypervisor = run.state().await.hypervisor_pid.unwrap();
    let used = || (cpu_seconds(run.helper.id() as i32), cpu_seconds(hypervisor));
    for i in 0..3 {
        eprintln!("processor seconds of helper and hypervisor: {:?}", used());
        let (stdout, end) = output_pipe();
        let out = Stdio { stdin: false, stdout: true, stderr: false };
        let script = format!("exec dd if=/dev/zero bs=64k count={}", mib * 16);
        let began = Instant::now();
        run.exec(&format!("out{i}"), process(&script), out, vec![end]).await.unwrap();
        assert_eq!(read_all(stdout).await.len(), mib << 20);
        eprintln!("stdout: {:.1} MiB/s", rate(began));

        let (mut stdin, end) = input_pipe();
        let mut sink = process("exec dd of=/dev/null bs=64k");
        sink.interactive = true;
        let input = Stdio { stdin: true, stdout: false, stderr: false };
        let began = Instant::now();
        run.exec(&format!("in{i}"), sink, input, vec![end]).await.unwrap();
        let data = vec![0; mib << 20];
        tokio::task::spawn_blocking(move || stdin.write_all(&data).unwrap()).await.unwrap();
        assert_eq!(run.wait(&format!("in{i}")).await.unwrap().exit_code, 0);
        eprintln!("stdin: {:.1} MiB/s", rate(began));
    }
}

/// Seconds of processor time that a process has used.
fn cpu_seconds(pid: i32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, rest) = stat.rsplit_once(')').unwrap();
    let ticks = rest.split_whitespace().skip(11).take(2).map(|t| t.parse::<f64>().unwrap());
    ticks.sum::<f64>() / 100.0
}

/// Prints how long each step of a start and an end takes.
#[tokio::test]
#[ignore = "a measurement"]
async fn timeline() {
    for remove in [true, false] {
        let mut config = config("");
        config.init_process.executable = "/bin/true".into();
        config.init_process.arguments.clear();
        config.auto_remove = remove;
        let directory = tempfile::tempdir().unwrap();
        disks(directory.path());
        let began = Instant::now();
        let mut run = Run::boot_in(directory, config).await;
        run.start(NONE, vec![]).await.unwrap();
        eprintln!("remove {remove}: started {:?}", began.elapsed());
        run.wait(INIT_PROCESS).await.unwrap();
        eprintln!("ended {:?}", began.elapsed());
        run.left().await;
        eprintln!("gone {:?}\n{}", began.elapsed(), run.log());
    }
}
