//! The whole service with its processes, in the host and the internet that the engine's tests make:
//! as root there, and as a user without capabilities.

#[allow(dead_code)]
#[path = "../engine/guest.rs"]
mod guest;
#[allow(dead_code)]
#[path = "../engine/world.rs"]
mod world;

mod cases;
mod installation;

use std::process::ExitCode;

/// All cases by name.
const CASES: &[(&str, world::Case)] = &[
    ("a_service_may_die", cases::a_service_may_die),
    ("processes_may_die", cases::processes_may_die),
    ("requests_are_refused", cases::requests_are_refused),
    ("names_on_the_host", cases::names_on_the_host),
    ("figures", cases::figures),
];

fn main() -> ExitCode {
    world::main(CASES)
}
