//! The service: requests, plans, records, and the processes that carry traffic.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod allocate;
mod attach;
mod capabilities;
mod carrier;
mod check;
mod core;
mod denied;
mod dns;
mod forwarder;
mod invariants;
mod kernel;
mod names;
mod networks;
mod pins;
mod ports;
mod records;
mod requests;
mod residents;
mod restore;
mod routes;
mod serve;
pub mod start;
mod state;
mod subnet;
#[cfg(test)]
mod tests;
mod upstream;

/// Networks of containers. Started by container-apiserver; not meant to be run by hand.
#[derive(Parser)]
#[command(name = "container-network", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve an installation's networks until SIGTERM.
    Serve(serve::Arguments),
    /// Answer a network's questions for names. Started by the service.
    Resolver(start::Arguments),
    /// Forward a container's ports. Started by the service.
    Forward(start::Arguments),
}

/// The program: the service, or one of the processes that carry traffic.
pub fn main() -> ExitCode {
    let command = Arguments::parse().command;
    log();
    let result = match command {
        Command::Serve(arguments) => serve::run(&arguments),
        Command::Resolver(arguments) => start::take(arguments).and_then(crate::resolver::run),
        Command::Forward(arguments) => start::take(arguments).and_then(crate::forward::run),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "ended");
            ExitCode::FAILURE
        }
    }
}

/// One JSON object a line on standard error, which whoever started this keeps as a log.
fn log() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("CONTAINER_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .json()
        // A line that can't be written must not become one on a standard error that may be as full:
        // that would end the service.
        .log_internal_errors(false)
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
}
