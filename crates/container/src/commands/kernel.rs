//! `system kernel set`.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use container_api::apiserver::Request;
use container_api::escape::escape;
use container_api::images::{self, InstallKernel, KernelBundle, KernelSource};
use container_api::types::{Accelerator, Platform};
use container_api::{ApiError, ErrorCode, Result};
use tokio::process::Command;

use super::with_progress;
use crate::args::system::{KernelFrom, KernelSet};
use crate::attach::signals::Signals;
use crate::failure::{Failure, Outcome, print_line};
use crate::session::Session;

/// How long the distribution's tools may take to answer, and to download.
const ASK: Duration = Duration::from_secs(60);
const DOWNLOAD: Duration = Duration::from_secs(15 * 60);

/// Installs a kernel and prints its version.
pub async fn set(session: &Session, args: &KernelSet) -> Outcome {
    let source = args.source()?;
    check_architecture(args.arch.as_deref())?;
    let mut signals = Signals::ending().map_err(|e| Failure::io("taking signals", e))?;
    let install = |kind, name: String, url| InstallKernel {
        kind,
        digest: args.digest.as_ref().map(|digest| digest.to_ascii_lowercase()),
        force: args.force,
        name,
        url,
        member: args.member(),
    };
    // Holds the downloads until they are installed.
    let mut folder = None;
    let (install, files) = match source {
        KernelFrom::Url(url) => (install(KernelSource::Tar, url.clone(), Some(url)), Vec::new()),
        KernelFrom::File(kind, path) => {
            let file = File::open(&path).map_err(|e| Failure::io(path.display(), e))?;
            if file.metadata().is_ok_and(|m| m.is_dir()) {
                let message = format!("{}: a directory is not a kernel", path.display());
                return Err(ApiError::invalid(message).into());
            }
            (install(kind, file_name(&path), None), vec![file])
        }
        KernelFrom::Recommended => {
            let place = tempfile::tempdir().map_err(|e| Failure::io("a place to download", e))?;
            let download = download(session, place.path());
            let (name, files) = tokio::select! {
                done = download => done?,
                signal = signals.next() => return Err(Failure::interrupted(signal)),
            };
            folder = Some(place);
            let request = InstallKernel {
                force: true,
                digest: None,
                member: None,
                ..install(KernelSource::Deb, name, None)
            };
            (request, files)
        }
    };
    let mut client = session.connect_or_start().await?;
    let fds: Vec<_> = files.iter().map(AsFd::as_fd).collect();
    let request = Request::Images(images::Request::InstallKernel(install));
    let bundle: KernelBundle =
        with_progress(&mut client, &request, &fds, args.progress, &mut signals).await?;
    drop(folder);
    print_line(&format!("Installed kernel {} ({})", bundle.version, bundle.source))?;
    let status = client.status().await?;
    if status.accelerator == Some(Accelerator::Tcg)
        && crashes_under(&status.hypervisor_version, &bundle.version)
    {
        eprintln!(
            "Warning: kernel {} dies in a third of its boots under the emulation of {}: use 6.1, \
             a newer QEMU, or a host with KVM",
            escape(&bundle.version),
            escape(&status.hypervisor_version),
        );
    }
    Ok(0)
}

/// Whether a kernel newer than 6.1 meets QEMU 7's emulation, which double-faults in it right
/// after `cmpxchg16b` (measured with 6.12 on 7.2; 6.12 on 10.0 and 6.1 on 7.2 are sound).
fn crashes_under(hypervisor: &str, kernel: &str) -> bool {
    let numbers = |text: &str| -> Vec<u32> {
        text.split(['.', '-']).map_while(|part| part.parse().ok()).collect()
    };
    let qemu = numbers(hypervisor.strip_prefix("QEMU ").unwrap_or(hypervisor));
    qemu.first() == Some(&7) && numbers(kernel).as_slice() > [6, 1, u32::MAX].as_slice()
}

/// A virtual machine has the host's architecture.
fn check_architecture(arch: Option<&str>) -> Result<()> {
    let host = Platform::host();
    let Some(arch) = arch else { return Ok(()) };
    match Platform::parse(arch) {
        Some(p) if p.os == host.os && p.architecture == host.architecture => Ok(()),
        _ => {
            let message =
                format!("--arch {arch}: this host runs {} kernels only", host.architecture);
            Err(ApiError::new(ErrorCode::Unsupported, message))
        }
    }
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

/// Downloads the distribution's kernel package, and those with its modules, without installing
/// them. Debian has a kernel for virtual machines (`cloud`), Ubuntu another (`virtual`).
async fn download(session: &Session, folder: &Path) -> Result<(String, Vec<File>)> {
    let arch = Platform::host().architecture;
    let candidates = [format!("linux-image-cloud-{arch}"), "linux-image-virtual".to_owned()];
    let mut packages = Vec::new();
    for meta in &candidates {
        packages = kernel_packages(meta).await?;
        if !packages.is_empty() {
            break;
        }
    }
    let Some(name) = packages.first().cloned() else {
        let message = "this system's package sources have neither linux-image-cloud-* nor \
                       linux-image-virtual: use --binary or --tar ('apt-get update' may help)";
        return Err(ApiError::new(ErrorCode::Unavailable, message));
    };
    session.debug(format_args!("downloading {}", packages.join(" ")));
    let mut arguments =
        vec!["-q".to_owned(), "-o".into(), "APT::Sandbox::User=".into(), "download".into()];
    arguments.extend(packages);
    output("apt-get", &arguments, folder, DOWNLOAD).await?;
    let mut paths: Vec<PathBuf> = std::fs::read_dir(folder)?
        .map(|entry| entry.map(|e| e.path()))
        .collect::<std::io::Result<_>>()?;
    paths.retain(|path| path.extension().is_some_and(|e| e == "deb"));
    // The kernel before its modules.
    paths.sort_by_key(|path| (!file_name(path).starts_with("linux-image"), path.clone()));
    let files = paths.iter().map(File::open).collect::<std::io::Result<_>>()?;
    Ok((name, files))
}

/// The packages that `meta` depends on and that hold a kernel or its modules, the kernel first.
/// None when there is no such package.
async fn kernel_packages(meta: &str) -> Result<Vec<String>> {
    let mut found = Vec::new();
    let mut open = vec![meta.to_owned()];
    while let Some(package) = open.pop() {
        let arguments = ["depends".to_owned(), package];
        let Ok(text) = output("apt-cache", &arguments, Path::new("/"), ASK).await else { continue };
        for name in dependencies(&text) {
            if is_kernel(name) && !found.iter().any(|known| known == name) {
                found.push(name.to_owned());
                open.push(name.to_owned());
            }
        }
        if found.len() > 8 {
            break;
        }
    }
    Ok(found)
}

fn dependencies(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter_map(|line| line.trim().trim_start_matches('|').strip_prefix("Depends: "))
}

fn is_kernel(package: &str) -> bool {
    let wanted = ["linux-image-", "linux-modules-"];
    let versioned = package.bytes().any(|b| b.is_ascii_digit());
    wanted.iter().any(|prefix| package.starts_with(prefix))
        && versioned
        && !package.starts_with("linux-modules-extra-")
}

/// What a program of the distribution prints.
async fn output(
    program: &str,
    arguments: &[String],
    folder: &Path,
    deadline: Duration,
) -> Result<String> {
    let failed = |why: String| {
        ApiError::new(ErrorCode::Unavailable, format!("{program} {}: {why}", arguments.join(" ")))
    };
    let run = Command::new(program)
        .args(arguments)
        .current_dir(folder)
        .env("LC_ALL", "C.UTF-8")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(deadline, run)
        .await
        .map_err(|_| failed(format!("not done within {} s", deadline.as_secs())))?
        .map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => failed(
                "there is no such program: --recommended needs Debian's or Ubuntu's packages; \
                 use --binary or --tar here"
                    .into(),
            ),
            _ => failed(e.to_string()),
        })?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let last = said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
        return Err(failed(format!("{} {last}", output.status)));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_of_kernel_packages() {
        let debian = "linux-image-cloud-amd64\n  Depends: linux-image-6.1.0-40-cloud-amd64\n";
        let named: Vec<_> = dependencies(debian).filter(|name| is_kernel(name)).collect();
        assert_eq!(named, ["linux-image-6.1.0-40-cloud-amd64"]);
        let ubuntu = "linux-image-6.8.0-31-generic\n |Depends: <linux-initramfs-tool>\n  \
                      Depends: linux-modules-6.8.0-31-generic\n  Depends: kmod\n";
        let named: Vec<_> = dependencies(ubuntu).filter(|name| is_kernel(name)).collect();
        assert_eq!(named, ["linux-modules-6.8.0-31-generic"]);
    }

    #[test]
    fn kernels_that_crash_under_an_old_emulation() {
        assert!(crashes_under("QEMU 7.2.22", "6.12.57+deb12-cloud-amd64"));
        assert!(!crashes_under("QEMU 7.2.22", "6.1.0-56-cloud-amd64"));
        assert!(!crashes_under("QEMU 10.0.2", "6.12.57+deb12-cloud-amd64"));
        assert!(!crashes_under("", "unknown"));
    }

    #[test]
    fn kernels_of_other_machines_are_refused() {
        check_architecture(None).unwrap();
        check_architecture(Some(&Platform::host().architecture)).unwrap();
        check_architecture(Some("riscv64")).unwrap_err();
    }
}
