//! The probe's report in the words of the other services.

use std::path::PathBuf;

use anyhow::Result;
use container_api::config::AcceleratorChoice;
use container_api::runtime::ProbeReport;

use crate::helper;
use crate::hypervisor::{Accelerator, Source};
use crate::probe;

/// Host uid of the probe's own jails when root probes; VMs have ids of their own.
pub const PROBE_UID: u32 = 999_999_999;

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Options {
    /// The accelerator of the configuration.
    pub wish: AcceleratorChoice,
    /// A QEMU in place of the one in `PATH`.
    pub qemu: Option<PathBuf>,
    /// Where its libraries are, beside the usual places.
    pub libraries: Vec<PathBuf>,
    /// Where its firmware is, if not in its prefix.
    pub data: Option<PathBuf>,
    /// Layers of the jail that may be missing.
    pub allow_missing: Vec<String>,
    /// Uid of the jail outside, when root asks.
    pub jail_uid: u32,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            wish: AcceleratorChoice::Auto,
            qemu: None,
            libraries: Vec::new(),
            data: None,
            allow_missing: Vec::new(),
            jail_uid: PROBE_UID,
        }
    }
}

/// Probes this host.
///
/// # Errors
/// When the jailer is not installed; everything else is part of the report.
pub async fn make(options: Options) -> Result<ProbeReport> {
    let jail = helper::jail(options.allow_missing, options.jail_uid)?;
    let source = Source { binary: options.qemu, libraries: options.libraries, data: options.data };
    let report = probe::report(options.wish, &source, &jail).await;
    let problem = match (&report.qemu_error, report.accelerator) {
        (Some(error), _) => Some(error.clone()),
        (None, None) => Some(report.accelerator_reason.clone()),
        (None, Some(_)) => None,
    };
    let version = report.qemu.as_ref().map(|qemu| format!("QEMU {}", qemu.version));
    Ok(ProbeReport {
        accelerator: report.accelerator.unwrap_or(Accelerator::Tcg),
        accelerator_reason: report.accelerator_reason,
        hypervisor: serde_json::to_value(&report.qemu)?,
        hypervisor_version: version.unwrap_or_default(),
        problem,
        template_identity: report.template_identity,
        tap: report.tap,
        nesting: Some(report.nesting),
    })
}
