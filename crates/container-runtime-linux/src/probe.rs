//! Which accelerator VMs of this host use, and what QEMU there is.
//!
//! A `/dev/kvm` that opens proves nothing: inside a VM whose host emulates
//! every guest instruction it opens, makes VMs, and never boots one. So KVM is
//! chosen only after guest code was timed ([`kvm`]).
//!
//! `container-runtime-linux probe` prints a [`Report`]; the service keeps it
//! and hands the QEMU part to every VM.

mod identity;
mod kvm;
mod nesting;

use std::time::Duration;

use container_api::config::AcceleratorChoice;
use serde::{Deserialize, Serialize};

use crate::hypervisor::{Accelerator, Jail, QemuInstall, Source, check_tap, install};

pub use kvm::Proof;

/// KVM is used only where guest code is at most this many times slower than
/// the same code on the host.
pub const MAX_SLOWDOWN: f64 = 4.0;

/// The longest that the proof may take.
pub const PROOF_DEADLINE: Duration = Duration::from_millis(100);

/// An accelerator, and why it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Choice {
    /// What VMs use.
    pub accelerator: Accelerator,
    /// One sentence for `container system status`.
    pub reason: String,
}

/// What `probe` prints, as one JSON object.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// `kvm` or `tcg`; absent when the configuration's wish can't be met.
    pub accelerator: Option<Accelerator>,
    /// Why that one, or why none.
    pub accelerator_reason: String,
    /// QEMU with all its files and features; absent when there is none.
    pub qemu: Option<QemuInstall>,
    /// Why there is no QEMU, or why its jail can't be made.
    pub qemu_error: Option<String>,
    /// See [`container_api::runtime::ProbeReport::template_identity`]; empty
    /// where no VM can run.
    pub template_identity: String,
    /// Whether a jail can make a tap here.
    pub tap: bool,
    /// Why VMs can't run VMs themselves, one line each.
    pub nesting: Vec<String>,
}

/// Probes the accelerator and QEMU. Failures are part of the report.
pub async fn report(wish: AcceleratorChoice, qemu: &Source, jail: &Jail) -> Report {
    let choice = choose(wish);
    let (qemu, qemu_error) = match install::discover(qemu, jail).await {
        Ok(install) => (Some(install), None),
        Err(error) => (None, Some(format!("{:#}", anyhow::Error::from(error)))),
    };
    let choice = match choice {
        Ok(choice) => respect(wish, choice, qemu.as_ref()),
        Err(reason) => Err(reason),
    };
    let (accelerator, accelerator_reason) = match choice {
        Ok(choice) => (Some(choice.accelerator), choice.reason),
        Err(reason) => (None, reason),
    };
    let template_identity = match (&qemu, accelerator) {
        (Some(qemu), Some(accelerator)) => identity::of(qemu, accelerator),
        _ => String::new(),
    };
    let tap = match check_tap(jail).await {
        Ok(()) => true,
        Err(error) => {
            tracing::debug!(%error, "VMs have no network card");
            false
        }
    };
    let nesting = nesting::obstacles(accelerator);
    Report { accelerator, accelerator_reason, qemu, qemu_error, template_identity, tap, nesting }
}

/// KVM needs a QEMU that was built with it.
fn respect(
    wish: AcceleratorChoice,
    choice: Choice,
    qemu: Option<&QemuInstall>,
) -> Result<Choice, String> {
    let lacks = qemu.is_some_and(|qemu| !qemu.features.kvm);
    match choice.accelerator {
        Accelerator::Kvm if lacks => fall_back(wish, "this QEMU was built without KVM".into()),
        _ => Ok(choice),
    }
}

/// Chooses by proof. The error says why KVM, which was asked for, can't be
/// used.
pub fn choose(wish: AcceleratorChoice) -> Result<Choice, String> {
    if wish == AcceleratorChoice::Tcg {
        return Ok(Choice {
            accelerator: Accelerator::Tcg,
            reason: "emulation, as configured".into(),
        });
    }
    match judge(wish, kvm::prove(PROOF_DEADLINE)) {
        Ok(reason) => Ok(Choice { accelerator: Accelerator::Kvm, reason }),
        Err(reason) => fall_back(wish, reason),
    }
}

fn fall_back(wish: AcceleratorChoice, reason: String) -> Result<Choice, String> {
    match wish {
        AcceleratorChoice::Kvm => Err(format!("KVM can't be used: {reason}")),
        AcceleratorChoice::Auto | AcceleratorChoice::Tcg => {
            Ok(Choice { accelerator: Accelerator::Tcg, reason: format!("KVM not used: {reason}") })
        }
    }
}

/// Why KVM is used, or why not.
fn judge(wish: AcceleratorChoice, proof: Result<Proof, kvm::Failure>) -> Result<String, String> {
    match proof {
        Ok(Proof { host, guest }) => {
            let slowdown = guest.as_secs_f64() / host.as_secs_f64().max(1e-9);
            if slowdown <= MAX_SLOWDOWN {
                return Ok(format!(
                    "guest code ran at {slowdown:.1} × the host's time (limit {MAX_SLOWDOWN} ×)"
                ));
            }
            let measured = format!("guest code ran {slowdown:.0} × slower than the host's");
            match wish {
                AcceleratorChoice::Kvm => Ok(format!("as configured; {measured}")),
                _ => Err(format!("{measured} (limit {MAX_SLOWDOWN} ×)")),
            }
        }
        Err(kvm::Failure::TooSlow { host: Some(host) }) => Err(format!(
            "guest code ran more than {:.0} × slower than the host's (limit {MAX_SLOWDOWN} ×)",
            kvm::guest_limit(host, PROOF_DEADLINE).as_secs_f64() / host.as_secs_f64().max(1e-9)
        )),
        Err(failure) => Err(failure.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proof(host_us: u64, guest_us: u64) -> Result<Proof, kvm::Failure> {
        Ok(Proof { host: Duration::from_micros(host_us), guest: Duration::from_micros(guest_us) })
    }

    #[test]
    fn four_times_is_the_limit() {
        assert!(judge(AcceleratorChoice::Auto, proof(300, 1190)).is_ok());
        let slow = judge(AcceleratorChoice::Auto, proof(300, 1_060_000)).expect_err("slow");
        assert_eq!(slow, "guest code ran 3533 × slower than the host's (limit 4 ×)");
        assert!(judge(AcceleratorChoice::Kvm, proof(300, 3000)).is_ok());
    }

    #[test]
    fn a_failed_proof_falls_back_only_when_it_may() {
        let failure = || Err(kvm::Failure::TooSlow { host: Some(Duration::from_micros(300)) });
        let reason = judge(AcceleratorChoice::Auto, failure()).expect_err("too slow");
        assert!(reason.contains("more than 333 ×"), "{reason}");
        assert!(fall_back(AcceleratorChoice::Kvm, reason.clone()).is_err());
        assert_eq!(
            fall_back(AcceleratorChoice::Auto, reason).map(|choice| choice.accelerator),
            Ok(Accelerator::Tcg)
        );
    }

    #[test]
    fn the_proof_keeps_its_deadline() {
        let began = std::time::Instant::now();
        let choice = choose(AcceleratorChoice::Auto).expect("auto always finds one");
        assert!(!choice.reason.is_empty());
        println!("{}", choice.reason);
        // Twice, since the process also has to be made and reaped.
        assert!(began.elapsed() < 2 * PROOF_DEADLINE + Duration::from_secs(1));
    }
}
