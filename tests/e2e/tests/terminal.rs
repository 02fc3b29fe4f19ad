//! `-t`: a terminal that resizes, interrupts, detaches, and is left as it was found.

use std::process::Command;

use e2e::{DEADLINE, Installation, Terminal};
use rustix::termios::{LocalModes, Termios};

/// `container ARGS…` on a terminal of 30 rows and 90 columns.
fn on_terminal(it: &Installation, args: &[&str]) -> Terminal {
    let mut command = Command::new(it.binaries().join("container"));
    command.args(args).env("CONTAINER_APP_ROOT", it.app_root()).env("TERM", "xterm");
    Terminal::start(command, 30, 90)
}

fn is_cooked(modes: &Termios) -> bool {
    modes.local_modes.contains(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG)
}

#[test]
fn a_shell_on_a_terminal() {
    let it = Installation::with_busybox();
    let mut terminal = on_terminal(&it, &["run", "--rm", "-it", "--name", "box", "busybox"]);
    terminal.expect("# ", DEADLINE);
    assert!(!is_cooked(&terminal.modes()), "the terminal is raw while the program runs");
    terminal.write(b"stty size; tty; echo TERM is $TERM\n");
    terminal.expect("30 90", DEADLINE);
    terminal.expect("/dev/", DEADLINE);
    terminal.expect("TERM is xterm", DEADLINE);

    // The new size arrives.
    terminal.resize(44, 133);
    terminal.write(b"until [ \"$(stty size)\" = '44 133' ]; do :; done; echo resized $((1 + 1))\n");
    terminal.expect("resized 2", DEADLINE);

    // Ctrl-C ends the program in the foreground, not the shell. The program itself says that it is
    // there: before, the keys would be the shell's.
    terminal.write(b"sh -c 'echo sleep$((1 + 1)); exec sleep 1000'\n");
    terminal.expect("sleep2", DEADLINE);
    terminal.write(b"\x03");
    terminal.write(b"echo still $((40 + 2))\n");
    terminal.expect("still 42", DEADLINE);
    terminal.write(b"exit 6\n");
    assert_eq!(terminal.wait(DEADLINE), 6);
    assert!(is_cooked(&terminal.modes()), "the terminal is as it was");
}

#[test]
fn detaching_leaves_the_container_and_restores_the_terminal() {
    let it = Installation::with_busybox();
    let mut terminal = on_terminal(&it, &["run", "-it", "--name", "box", "busybox"]);
    terminal.expect("# ", DEADLINE);
    terminal.write(b"\x10\x11");
    assert_eq!(terminal.wait(DEADLINE), 0);
    assert!(is_cooked(&terminal.modes()));
    assert_eq!(it.status("box").as_deref(), Some("running"));

    // Exec has a terminal too; its end is not the container's.
    let mut terminal = on_terminal(&it, &["exec", "-it", "box", "sh"]);
    terminal.expect("# ", DEADLINE);
    terminal.write(b"exit 3\n");
    assert_eq!(terminal.wait(DEADLINE), 3);
    it.run(["exec", "box", "true"]).ok();

    // Killed in the middle, by the service's end: the terminal is restored all the same.
    let mut terminal = on_terminal(&it, &["exec", "-it", "box", "sh"]);
    terminal.expect("# ", DEADLINE);
    it.run(["kill", "box"]).ok();
    assert_ne!(terminal.wait(DEADLINE), 0);
    assert!(is_cooked(&terminal.modes()));
}

#[test]
fn without_a_terminal_t_still_gives_the_program_one() {
    let it = Installation::with_busybox();
    it.run(["run", "-d", "-t", "--name", "box", "busybox", "sh", "-c", "tty; sleep 1000"]).ok();
    e2e::wait_for("the program's terminal", DEADLINE, || {
        it.run(["logs", "box"]).text().contains("/dev/").then_some(())
    });
}
