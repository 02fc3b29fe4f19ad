//! The engine against a kernel: in a host, an internet and neighbours that the test makes.
//!
//! ```text
//! this process ── one per case, in namespaces of its own ── another, where the engine works
//!   runner          world: "the host" and "the internet"        case
//! ```
//! Each case runs in two ways: with the capabilities of root in "the host", and without any, as a
//! user has it. It needs neither root nor a network: without root, "root" is that of a user
//! namespace. No packet leaves the machine.

mod attacks;
mod cases;
mod guest;
mod packet;
mod world;

use std::process::ExitCode;

/// All cases by name.
const CASES: &[(&str, world::Case)] = &[
    ("carries", cases::carries),
    ("the_host_is_closed", cases::the_host_is_closed),
    ("metadata_is_closed", cases::metadata_is_closed),
    ("egress_rules_hold", cases::egress_rules_hold),
    ("internal_networks_let_nothing_out", cases::internal),
    ("isolated_networks", cases::isolated),
    ("other_networks_are_closed", cases::other_networks),
    ("host_access_is_redirected", cases::host_access),
    ("parked_taps_move", cases::parked),
    ("attach_is_all_or_nothing", cases::undo),
    ("neighbours_see_no_forbidden_frame", attacks::neighbours),
    ("storms_stop_nobody", attacks::storms),
    ("connections_are_counted", attacks::connections),
    ("survivors_are_taken_over", cases::takeover),
    ("lost_networks_come_up_anew", cases::lost),
    ("nothing_is_left", cases::nothing_is_left),
    ("lan_neighbours_reach_nothing", cases::lan),
    ("figures", cases::figures),
];

fn main() -> ExitCode {
    world::main(CASES)
}
