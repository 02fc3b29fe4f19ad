//! `--virtualization`: whether a container may run virtual machines of its own.
//!
//! ```text
//! accelerator can nest? ──► guest kernel has KVM? ──► [security] virtualization ──► granted
//!      └────── no ─────────────────┴── all reasons at once   deny │ ask, unconfirmed
//!                                                                 ▼
//!                                                             refused
//! ```
//! Asked when a container is created and at each of its starts: host, kernel and configuration
//! may have changed.

use container_api::apiserver::CreateOptions;
use container_api::config::VirtualizationPolicy;
use container_api::runtime::ProbeReport;
use container_api::{ApiError, ErrorCode, Result};

use crate::container::Container;
use crate::engine::Engine;
use crate::kernel::Kernel;

/// The first line of every refusal.
const REFUSAL: &str = "unsupported: nested virtualization is not supported on the platform";

impl Engine {
    /// Checks what a new container asks for; a kernel file of its own is looked at by
    /// [`check_kernel`] once there is a bundle of it.
    pub async fn check_virtualization(
        &self,
        options: &CreateOptions,
        kernel_file: bool,
    ) -> Result<()> {
        if !options.virtualization {
            return Ok(());
        }
        let report = self.probe.usable().await?;
        let own = options.kernel.as_deref();
        let kernel = (!kernel_file).then(|| self.kernel(own)).transpose()?;
        let policy = self.config.security.virtualization;
        decide(policy, options.virtualization_confirmed, &report, kernel.as_ref())
    }

    /// Checks again what was granted when the container was created.
    pub async fn still_virtualized(&self, container: &Container) -> Result<()> {
        if !container.config.virtualization {
            return Ok(());
        }
        let report = self.probe.usable().await?;
        let kernel = self.kernel(container.config.kernel.as_deref())?;
        decide(self.config.security.virtualization, true, &report, Some(&kernel))
    }
}

/// Whether a container may have this kernel that wants to run virtual machines.
pub fn check_kernel(kernel: &Kernel) -> Result<()> {
    match without_kvm(kernel) {
        None => Ok(()),
        Some(reason) => Err(refusal(ErrorCode::Unsupported, &[reason])),
    }
}

fn decide(
    policy: VirtualizationPolicy,
    confirmed: bool,
    report: &ProbeReport,
    kernel: Option<&Kernel>,
) -> Result<()> {
    let mut reasons = match &report.nesting {
        Some(obstacles) => obstacles.clone(),
        None => vec!["nobody has looked whether VMs can run VMs on this host".into()],
    };
    reasons.extend(kernel.and_then(without_kvm));
    if policy == VirtualizationPolicy::Deny {
        reasons.push("the configuration denies it ([security] virtualization = \"deny\")".into());
    }
    if !reasons.is_empty() {
        return Err(refusal(ErrorCode::Unsupported, &reasons));
    }
    if policy == VirtualizationPolicy::Ask && !confirmed {
        let reason = "it has to be confirmed on a terminal, or allowed by the configuration \
                      ([security] virtualization = \"allow\")";
        return Err(refusal(ErrorCode::ConfirmationRequired, &[reason.into()]));
    }
    Ok(())
}

fn without_kvm(kernel: &Kernel) -> Option<String> {
    (!kernel.virtualization)
        .then(|| format!("the guest kernel at {} has no CONFIG_KVM", kernel.directory.display()))
}

fn refusal(code: ErrorCode, reasons: &[String]) -> ApiError {
    let lines: Vec<&str> =
        [REFUSAL].into_iter().chain(reasons.iter().map(String::as_str)).collect();
    ApiError::new(code, lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use VirtualizationPolicy::{Allow, Ask, Deny};
    use container_api::types::Accelerator;

    fn report(nesting: Option<&[&str]>) -> ProbeReport {
        ProbeReport {
            accelerator: Accelerator::Kvm,
            accelerator_reason: String::new(),
            hypervisor: serde_json::Value::Null,
            hypervisor_version: String::new(),
            problem: None,
            template_identity: String::new(),
            nesting: nesting.map(|lines| lines.iter().map(|line| (*line).to_owned()).collect()),
            tap: true,
        }
    }

    fn kernel(virtualization: bool) -> Kernel {
        Kernel { virtualization, ..Kernel::at("/bundle".as_ref()) }
    }

    #[test]
    fn granted_only_when_all_holds() {
        let (good, kvm) = (report(Some(&[])), kernel(true));
        decide(Allow, false, &good, Some(&kvm)).unwrap();
        decide(Ask, true, &good, Some(&kvm)).unwrap();
        decide(Allow, false, &good, None).unwrap();
        let unconfirmed = decide(Ask, false, &good, Some(&kvm)).unwrap_err();
        assert_eq!(unconfirmed.code, ErrorCode::ConfirmationRequired);
        let bad = report(Some(&["no VMX", "old"]));
        let refused = [
            (decide(Deny, true, &good, Some(&kvm)), "deny"),
            (decide(Allow, true, &report(None), Some(&kvm)), "nobody has looked"),
            (decide(Allow, true, &bad, Some(&kvm)), "no VMX\nold"),
            (decide(Allow, true, &good, Some(&kernel(false))), "/bundle has no CONFIG_KVM"),
            // Nobody is asked for what can't be.
            (decide(Ask, false, &bad, Some(&kernel(false))), "old\nthe guest kernel"),
            (check_kernel(&kernel(false)), "CONFIG_KVM"),
        ];
        for (result, reason) in refused {
            let error = result.unwrap_err();
            assert_eq!(error.code, ErrorCode::Unsupported, "{reason}");
            assert_eq!(error.message.lines().next(), Some(REFUSAL));
            assert!(error.message.contains(reason), "{error}");
        }
    }
}
