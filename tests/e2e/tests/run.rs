//! `container run` without a terminal: what the program is given, what comes back.

use std::time::Duration;

use e2e::{DEADLINE, Image, Installation, Layer, busybox, sha256_hex};
use rustix::process::Signal;
use serde_json::json;

#[test]
fn exit_codes_are_the_programs_own_or_dockers() {
    let it = Installation::with_busybox();
    it.run(["run", "--rm", "busybox", "true"]).code(0);
    it.run(["run", "--rm", "busybox", "sh", "-c", "exit 42"]).code(42);
    it.run(["run", "--rm", "busybox", "sh", "-c", "sh -c 'kill -TERM $$'; exit $?"]).code(143);
    it.run(["run", "--rm", "busybox", "/etc/not-executable"]).fails(126, "not-executable");
    it.run(["run", "--rm", "busybox", "no-such-program"]).fails(127, "no-such-program");
    it.run(["list", "--all", "--quiet"]).ok().prints("");

    // The same in a container that runs, where no VM has to boot.
    it.run(["run", "-d", "--name", "box", "busybox", "sleep", "1000"]).ok();
    it.run(["exec", "box", "false"]).code(1);
    it.run(["exec", "box", "sh", "-c", "exit 255"]).code(255);
    it.run(["exec", "box", "sh", "-c", "kill -KILL $$"]).code(137);
    it.run(["exec", "box", "/etc/not-executable"]).fails(126, "not-executable");
    it.run(["exec", "box", "/no/such"]).fails(127, "/no/such");
    it.run(["exec", "box", "/etc"]).code(126);
}

#[test]
fn the_images_configuration_is_honoured_and_flags_override_it() {
    let it = Installation::new();
    it.load(&configured_image());

    it.run(["run", "--rm", "configured"])
        .ok()
        .prints("entry: from-cmd\nuser 1000 groups 1001 10\nfolder /srv/deep\nVAR=image");
    it.run([
        "run",
        "--rm",
        "-e",
        "VAR=flag",
        "-e",
        "EMPTY=",
        "--workdir",
        "/tmp",
        "--user",
        "daemon",
        "configured",
        "from-flag",
    ])
    .ok()
    .prints("entry: from-flag\nuser 1 groups 1\nfolder /tmp\nVAR=flag");
    it.run(["run", "--rm", "--entrypoint", "/bin/echo", "configured", "only", "this"])
        .ok()
        .prints("only this");
}

/// An image whose entry point prints what it was given.
fn configured_image() -> Image {
    let script = "#!/bin/sh\n\
        echo \"entry: $*\"\n\
        echo \"user $(id -u) groups $(id -G)\"\n\
        echo \"folder $(pwd)\"\n\
        echo \"VAR=$VAR\"\n";
    let layer = Layer::build(|entries| {
        entries.file("entry.sh", 0o755, script.as_bytes());
    });
    let config = json!({
        "Env": ["PATH=/bin", "VAR=image"],
        "Entrypoint": ["/entry.sh"],
        "Cmd": ["from-cmd"],
        "User": "app",
        "WorkingDir": "/srv/deep",
        "StopSignal": "SIGUSR1",
        "Volumes": {"/data": {}},
    });
    let layers = vec![busybox::layer().expect("busybox"), layer];
    Image::new("docker.io/library/configured:latest", layers, config)
}

#[test]
fn environment_files_users_and_folders() {
    let it = Installation::with_busybox();
    let file = it.scratch().join("env");
    std::fs::write(&file, "# a comment\n\nFROM_FILE=a b \"c\"\nVAR=file\nHOST_VAR\n").unwrap();
    it.run(["run", "-d", "--name", "box", "-e", "BASE=1", "busybox", "sleep", "1000"]).ok();

    let show = "echo $FROM_FILE,$VAR,$HOST_VAR,$BASE";
    it.container(["exec", "--env-file"])
        .arg(&file)
        .args(["-e", "VAR=flag", "box", "sh", "-c", show])
        .env("HOST_VAR", "of the host")
        .run()
        .ok()
        .prints("a b \"c\",flag,of the host,1");
    let who = "echo $(id -u):$(id -g):$(id -G):$HOME";
    let exec = |flags: &[&str]| {
        it.container(["exec"]).args(flags).args(["box", "sh", "-c", who]).run().ok().text()
    };
    assert_eq!(exec(&[]), "0:0:0:/root");
    assert_eq!(exec(&["-u", "app"]), "1000:1001:1001 10:/home/app");
    assert_eq!(exec(&["-u", "1000"]), "1000:1001:1001 10:/home/app");
    assert_eq!(exec(&["-u", "app:daemon"]).split(':').nth(1), Some("1"));
    assert_eq!(exec(&["-u", "4242:77"]).rsplit_once(':').unwrap().0, "4242:77:77");
    assert!(exec(&["--uid", "7", "--gid", "8"]).starts_with("7:8:"));
    it.run(["exec", "-u", "nobody-here", "box", "true"]).fails(125, "nobody-here");
    it.run(["exec", "-w", "/tmp", "box", "pwd"]).ok().prints("/tmp");
}

#[test]
fn odd_arguments_arrive_byte_for_byte() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    let it = Installation::with_busybox();
    it.run(["run", "-d", "--name", "box", "busybox", "sleep", "1000"]).ok();
    let odd = b"two\nlines \xff\xfe 'quoted' \"twice\" $HOME \\ \x1b[31m";
    let output =
        it.container(["exec", "box", "printf", "%s"]).arg(OsStr::from_bytes(odd)).run().ok();
    assert_eq!(output.stdout, odd);
    it.run(["exec", "box", "printf", "[%s]", "", "-x", "--", "--name"])
        .ok()
        .prints("[][-x][--][--name]");

    let mut many = it.container(["exec"]);
    for number in 0..10_000 {
        many = many.arg("-e").arg(format!("VARIABLE_{number}=value of {number}"));
    }
    let output = many.args(["box", "sh", "-c", "env | grep -c ^VARIABLE_"]).run().ok();
    assert_eq!(output.text(), "10000");
}

#[test]
fn pipes_are_binary_safe_both_ways_and_close_by_halves() {
    let it = Installation::with_busybox();
    it.run(["run", "-d", "--name", "box", "busybox", "sleep", "1000"]).ok();

    let bytes = pseudo_random(8 << 20);
    let digest = sha256_hex(&bytes);
    let output = it.container(["exec", "-i", "box", "cat"]).stdin(bytes).run().ok();
    assert_eq!(sha256_hex(&output.stdout), digest);

    // The end of the input reaches the program, which then still writes.
    it.container(["exec", "-i", "box", "sh", "-c", "wc -c; echo after; echo other >&2"])
        .stdin("12345")
        .run()
        .ok()
        .prints("5\nafter");
    // Without -i there is no input at all.
    it.container(["exec", "box", "cat"]).stdin("unseen").run().ok().prints("");
    // Output and errors stay apart.
    let output = it.run(["exec", "box", "sh", "-c", "echo out; echo err >&2"]).ok();
    assert_eq!((output.text().as_str(), output.errors().trim()), ("out", "err"));
    // A program that does not read its input ends all the same.
    it.container(["exec", "-i", "box", "true"]).stdin(vec![0; 4 << 20]).run().ok();
    // A reader that goes away ends the writer.
    let script = format!(
        "CONTAINER_APP_ROOT={} {} exec box yes | head -n 1",
        it.app_root().display(),
        it.binaries().join("container").display()
    );
    e2e::Cmd::new("sh").args(["-c", &script]).run().ok().prints("y");
}

#[test]
fn the_first_process_has_pipes_too() {
    let it = Installation::with_busybox();
    let bytes = pseudo_random(1 << 20);
    let output =
        it.container(["run", "--rm", "-i", "busybox", "cat"]).stdin(bytes.clone()).run().ok();
    assert!(output.stdout == bytes, "{} of {} bytes", output.stdout.len(), bytes.len());
}

/// `tar c | container run -i … tar x`, byte for byte. 64 MiB unless
/// `CONTAINER_TEST_STREAM_MIB` says more.
#[test]
fn a_tar_stream_arrives_whole() {
    let mib = std::env::var("CONTAINER_TEST_STREAM_MIB")
        .map_or(64, |value| value.parse::<usize>().expect("a number of MiB"));
    let it = Installation::with_busybox();
    let folder = it.scratch().join("data");
    std::fs::create_dir(&folder).unwrap();
    let block = pseudo_random(1 << 20);
    let mut file = std::fs::File::create(folder.join("large")).unwrap();
    let mut whole = Vec::new();
    for number in 0..mib {
        let mut block = block.clone();
        block[..8].copy_from_slice(&(number as u64).to_le_bytes());
        std::io::Write::write_all(&mut file, &block).unwrap();
        whole.extend_from_slice(&block);
    }
    let digest = sha256_hex(&whole);
    drop(whole);
    let container = format!(
        "CONTAINER_APP_ROOT={} {}",
        it.app_root().display(),
        it.binaries().join("container").display()
    );
    let script = format!(
        "set -e; {container} run -d --name box busybox sleep 10000 >/dev/null
         tar c -C {data} large | {container} exec -i -w /tmp box tar x
         {container} exec -w /tmp box sha256sum large
         {container} exec -w /tmp box tar c large | tar x -O | sha256sum",
        data = folder.display(),
    );
    let deadline = DEADLINE + Duration::from_secs(mib as u64);
    let output =
        e2e::Cmd::new("bash").args(["-o", "pipefail", "-c", &script]).deadline(deadline).run().ok();
    let digests: Vec<String> = output
        .text()
        .lines()
        .filter_map(|line| line.split_whitespace().next().map(str::to_owned))
        .collect();
    assert_eq!(digests, [digest.clone(), digest]);
}

#[test]
fn signals_are_forwarded_to_the_program() {
    let it = Installation::with_busybox();
    let script = "trap 'echo got term; exit 7' TERM; trap 'echo got int; exit 8' INT; \
                  trap 'echo got usr1' USR1; echo ready; while :; do sleep 0.1; done";
    let mut running = it.container(["run", "--rm", "busybox", "sh", "-c", script]).spawn();
    running.wait_for_stdout("ready", DEADLINE);
    running.signal(Signal::USR1);
    running.wait_for_stdout("got usr1", DEADLINE);
    running.signal(Signal::TERM);
    running.wait(DEADLINE).code(7).has("got term");

    let mut running = it.container(["run", "--rm", "busybox", "sh", "-c", script]).spawn();
    running.wait_for_stdout("ready", DEADLINE);
    running.signal(Signal::INT);
    running.wait(DEADLINE).code(8).has("got int");
}

#[test]
fn names_labels_cidfile_and_detaching() {
    let it = Installation::with_busybox();
    let cidfile = it.scratch().join("cid");
    let output = it
        .container(["run", "-d", "--name", "named", "-l", "a=b", "--label", "c", "--cidfile"])
        .arg(&cidfile)
        .args(["busybox", "sh", "-c", "echo seen; exit 3"])
        .run()
        .ok();
    assert_eq!(output.text(), "named");
    assert_eq!(std::fs::read_to_string(&cidfile).unwrap().trim(), "named");
    it.run(["wait", "named"]).ok().prints("3");
    it.run(["logs", "named"]).ok().prints("seen");
    let shown = it.inspect("named");
    assert_eq!(shown["configuration"]["labels"], json!({"a": "b", "c": ""}));
    assert_eq!(shown["status"], "stopped");
    assert_eq!(shown["exit"]["exitCode"], 3);
    // A file that is there already is not overwritten.
    it.container(["run", "-d", "--name", "other", "--cidfile"])
        .arg(&cidfile)
        .args(["busybox", "true"])
        .run()
        .fails(125, "cid");
    assert_eq!(it.status("other"), None);
}

#[test]
fn an_init_reaps_orphans_and_forwards_signals() {
    let it = Installation::with_busybox();
    let script = "(sleep 0.1 & exec true) ; sleep 0.5; ps -o pid,stat,comm; cat /proc/1/comm";
    let output = it.run(["run", "--rm", "--init", "busybox", "sh", "-c", script]).ok();
    let text = output.text();
    assert!(!text.contains(" Z "), "a zombie stays: {text}");
    assert_ne!(text.lines().last(), Some("sh"), "the init is the first process");
    it.run(["run", "--rm", "--init", "busybox", "sh", "-c", "exit 9"]).code(9);
}

/// The same bytes in every run, of every value, without repeating soon.
fn pseudo_random(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}
