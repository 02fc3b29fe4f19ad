//! `container-probe`: the attacker of `container system check`.
//!
//! One static program, so that it runs where nothing else is: as the only file of an image, as
//! the only program of a jail, as the init of a guest, and as another user of the host. It tries
//! what should be impossible and prints, for each attempt, one line:
//!
//! ```text
//! KEY \t held|open|skipped \t what was seen
//! ```
//!
//! It judges by what the system answers, never by where it believes to be. Whoever reads the
//! lines has to expect lies: a guest may be broken.

mod agent;
mod guest;
mod jail;
mod knock;
mod load;
mod report;
mod sys;

use std::ffi::OsString;
use std::process::ExitCode;

const USAGE: &str = "\
Usage: container-probe guest [--read-only PATH] [--host ADDR:PORT]... [--foreign ADDR:PORT]...
       container-probe defaults
       container-probe jail [--out N] [--fds N,N..] [--own N] [--shared N] [--tap N] [--pid N]... [--file PATH]...
           [--abstract NAME]
       container-probe knock PATH...
       container-probe serve PORT SECONDS
       container-probe memory MIB
       container-probe exhaust MIB
       container-probe processes
       container-probe spin THREADS SECONDS
       container-probe sleep SECONDS

Not for direct use: container system check calls it.
";

/// The exit code of a wrong command line, and of attempts that could not be made.
const OURS: u8 = 125;

fn main() -> ExitCode {
    let mut words = std::env::args_os().skip(1);
    // The kernel starts its init without a word.
    if std::process::id() == 1 && std::env::args_os().len() <= 1 && agent::is_wanted() {
        agent::run();
    }
    let command = words.next().unwrap_or_default();
    let words: Vec<OsString> = words.collect();
    let done = match command.to_str().unwrap_or_default() {
        "guest" => guest::attack(&words),
        "defaults" => guest::defaults(),
        "jail" => jail::attack(&words),
        "knock" => knock::knock(&words),
        "serve" => load::serve(&words),
        "memory" => load::memory(&words),
        "exhaust" => load::exhaust(&words),
        "processes" => load::processes(),
        "spin" => load::spin(&words),
        "sleep" => load::sleep(&words),
        "--help" | "-h" => {
            print!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        _ => Err("no such command".to_owned()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("container-probe: {error}");
            ExitCode::from(OURS)
        }
    }
}
