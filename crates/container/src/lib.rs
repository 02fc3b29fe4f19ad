//! The command line: parse without side effects, call the service, render.
//!
//! ```text
//! args ──► typed requests ──► session (connects, starts the service) ──► commands
//!                                              attach (streams, terminal, signals) ◄─┤
//!                                render, progress, trace, failure (the edge) ◄──────┘
//! ```

use std::process::ExitCode;

use clap::error::ErrorKind;

mod args;
mod attach;
mod commands;
mod credentials;
mod failure;
pub mod predicate;
mod progress;
mod render;
mod session;
mod trace;

pub use args::cli;

use failure::{Failure, Outcome};

/// Parses the process's arguments, runs the command, and gives its exit code.
pub fn main() -> ExitCode {
    let begun_ns = container_api::trace::now_ns();
    let code = match args::parse(std::env::args_os().collect()) {
        Ok(cli) => run(cli, begun_ns).unwrap_or_else(Failure::report),
        Err(error) => refuse(&error),
    };
    ExitCode::from(code)
}

fn run(cli: args::Cli, begun_ns: u64) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::io("starting", e))?;
    let outcome = runtime.block_on(commands::run(cli, begun_ns));
    // Calls on the side may still wait for an answer that nobody needs.
    runtime.shutdown_background();
    outcome
}

/// Help and version are no errors; everything else is one line and our exit code.
fn refuse(error: &clap::Error) -> u8 {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            let shown = failure::print(&error.render().to_string());
            shown.err().map_or(0, Failure::report)
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            eprint!("{}", error.render());
            failure::OURS
        }
        _ => {
            let words: Vec<String> =
                std::env::args_os().skip(1).map(|w| w.to_string_lossy().into_owned()).collect();
            Failure::Error(failure::usage(error, &words)).report()
        }
    }
}
