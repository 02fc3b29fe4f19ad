//! Sockets between host and container: `--publish-socket` and `--ssh`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use e2e::{Cmd, Installation, Running, tools, wait_for};

const SOON: Duration = Duration::from_secs(60);

fn installed() -> Installation {
    let it = Installation::new();
    it.load(&tools::image().unwrap());
    it
}

#[test]
fn a_socket_of_the_container_lies_on_the_host() {
    let it = installed();
    let socket = it.scratch().join("app.sock");
    let publish = format!("{}:/tmp/app.sock", socket.display());
    let run = ["run", "-d", "--name", "app", "--network", "none", "--publish-socket", &publish];
    let serve = ["tools", "socat", "UNIX-LISTEN:/tmp/app.sock,fork", "EXEC:cat"];
    it.run([&run[..], &serve].concat()).ok();
    let ask = || {
        let connect = format!("UNIX-CONNECT:{}", socket.display());
        Cmd::new("socat").args(["-t", "5", "-"]).arg(connect).stdin("hello\n").run().text()
    };
    wait_for("an answer", SOON, || (ask() == "hello").then_some(()));
    let mode = std::fs::metadata(&socket).unwrap();
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(mode.permissions().mode() & 0o077, 0, "nobody else's");
    // Two of one place can't be.
    let second = ["run", "-d", "--network", "none", "--publish-socket", &publish];
    it.run([&second[..], &["tools", "sleep", "1000"]].concat()).fails(125, "app.sock");
    assert_eq!(ask(), "hello", "the first one has it still");
    it.run(["stop", "-t", "0", "app"]).ok();
    assert!(!socket.exists());
    let file = it.scratch().join("file");
    std::fs::write(&file, "mine").unwrap();
    let publish = format!("{}:/x", file.display());
    it.run(["run", "--rm", "--network", "none", "--publish-socket", &publish, "tools", "true"])
        .fails(125, "file");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "mine");
}

/// An SSH agent with one key.
struct Agent {
    socket: PathBuf,
    _process: Running,
}

impl Agent {
    fn start(folder: &Path, name: &str) -> Agent {
        let (socket, key) = (folder.join(format!("{name}.sock")), folder.join(name));
        let process = Cmd::new("ssh-agent").args(["-D", "-a"]).arg(&socket).spawn();
        wait_for("an agent", SOON, || socket.exists().then_some(()));
        let make = Cmd::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-C", name, "-f"]);
        make.arg(&key).run().ok();
        Cmd::new("ssh-add").arg("-q").arg(&key).env("SSH_AUTH_SOCK", &socket).run().ok();
        Agent { socket, _process: process }
    }

    fn keys(&self) -> String {
        Cmd::new("ssh-add").arg("-l").env("SSH_AUTH_SOCK", &self.socket).run().text()
    }
}

#[test]
fn the_users_agent_signs_and_does_nothing_else() {
    let it = installed();
    let (one, two) = (Agent::start(it.scratch(), "one"), Agent::start(it.scratch(), "two"));
    let container = |agent: &Agent, args: &[&str]| {
        it.container(args.iter()).env("SSH_AUTH_SOCK", &agent.socket).run()
    };
    let run = ["run", "-d", "--name", "box", "--network", "none", "--ssh", "tools"];
    container(&one, &[&run[..], &["sleep", "10000"]].concat()).ok();
    let keys = container(&one, &["exec", "box", "ssh-add", "-l"]).ok().text();
    assert_eq!(keys, one.keys());
    let public = std::fs::read(it.scratch().join("one.pub")).unwrap();
    let sign = "cat > /key.pub; echo text > /text; ssh-keygen -q -Y sign -n file -f /key.pub /text; \
                cat /text.sig";
    let signature = it
        .container(["exec", "-i", "box", "sh", "-ec", sign])
        .stdin(public)
        .env("SSH_AUTH_SOCK", &one.socket)
        .run()
        .ok()
        .text();
    assert!(signature.starts_with("-----BEGIN SSH SIGNATURE-----"), "{signature}");
    // Nothing that changes the agent.
    for line in
        ["ssh-add -D", "ssh-add -t 5 /tmp/key", "ssh-keygen -q -t ed25519 -N '' -f /tmp/key"]
    {
        container(&one, &["exec", "box", "sh", "-c", line]);
    }
    container(&one, &["exec", "box", "ssh-add", "/tmp/key"]).code(1);
    assert_eq!(one.keys().lines().count(), 1, "{}", one.keys());
    // Both are in the audit trail.
    let fingerprint = one.keys().split_whitespace().nth(1).unwrap().to_owned();
    wait_for("signature and refusal in the trail", SOON, || {
        let list = ["system", "audit", "list", "--subject", "box", "--format", "json"];
        let rows = it.run(list).ok().json();
        let seen = rows.as_array().unwrap().iter().filter(|row| row["what"] == "sshAgent");
        let seen: Vec<_> = seen.cloned().collect();
        let count =
            |what: &str| seen.iter().filter_map(|r| r["counts"][what].as_u64()).sum::<u64>();
        let key = seen.iter().any(|row| row["details"].to_string().contains(&fingerprint));
        (count("signed") == 1 && count("refused") >= 2 && key).then_some(())
    });
    it.run(["system", "audit", "verify"]).ok().has("intact");
    // Another agent, as after a new login.
    let keys = container(&two, &["exec", "box", "ssh-add", "-l"]).ok().text();
    assert_eq!(keys, two.keys());
    // Without an agent the container runs all the same.
    it.container(["run", "--rm", "--network", "none", "--ssh", "tools", "true"])
        .env_remove("SSH_AUTH_SOCK")
        .run()
        .ok();
    // Without being asked for it is not there.
    container(&one, &["run", "--rm", "--network", "none", "tools", "ssh-add", "-l"]).code(2);
}
