//! Commands about the services and the guest kernel.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use container_api::images::KernelSource;
use container_api::{ApiError, Result, network_options};

use super::audit::Audit;
use super::{Format, ProgressKind};

/// `system …`.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Start the services
    Start(Start),
    /// Stop the containers and the services
    Stop,
    /// Show whether the services run, and with what
    Status(Formatted),
    /// Show the versions of the command line and the service
    Version(Formatted),
    /// Show the services' logs
    Logs(Logs),
    /// Read and check the trail of what was done
    #[command(subcommand)]
    Audit(Audit),
    /// Attack the running installation, and show what held
    Check(Check),
    /// Show what images, containers, templates and spares take
    Df(Formatted),
    /// Remove templates and spares that no container uses; they are made again when needed
    Prune(Prune),
    /// Manage the guest kernel
    #[command(subcommand)]
    Kernel(Kernel),
    /// Make containers' names known to this host, below a domain
    #[command(subcommand)]
    Dns(Dns),
}

/// `system start`.
#[derive(Clone, Debug, Args)]
pub struct Start {
    /// The same as --app-root
    #[arg(short = 'a', value_name = "DIR", hide = true)]
    pub root: Option<PathBuf>,
    /// Become the service and stay in the foreground (for systemd)
    #[arg(long)]
    pub foreground: bool,
    /// Seconds that the service may take to start
    #[arg(long, value_name = "SECONDS", default_value_t = 20,
          value_parser = clap::value_parser!(u32).range(1..=3600))]
    pub timeout: u32,
}

/// Commands with `--format` alone.
#[derive(Clone, Debug, Args)]
pub struct Formatted {
    /// Form of the output
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
}

/// `system check`.
#[derive(Clone, Debug, Args)]
pub struct Check {
    /// Attack the installation from within and from outside [the default]
    #[arg(long)]
    pub security: bool,
    /// Compare what is there with what is recorded
    #[arg(long)]
    pub state: bool,
    /// With --state: read every blob of images too, and compare its digest
    #[arg(long, requires = "state")]
    pub deep: bool,
    /// Form of the output
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
    /// A container: explain in words what keeps it in
    #[arg(value_name = "ID", conflicts_with_all = ["security", "state"])]
    pub id: Option<String>,
}

/// `system prune`.
#[derive(Clone, Debug, Args)]
pub struct Prune {
    /// Do not ask first
    #[arg(short, long)]
    pub force: bool,
}

/// `system logs`.
#[derive(Clone, Debug, Args)]
pub struct Logs {
    /// Go on with what is logged from now on
    #[arg(short, long)]
    pub follow: bool,
    /// How far to look back (m, h, d)
    #[arg(long, value_name = "LAST", default_value = "5m", value_parser = humantime::parse_duration)]
    pub last: Duration,
    /// Only lines of which this is true (process == "container-apiserver" AND level == error)
    #[arg(long, value_name = "PREDICATE")]
    pub predicate: Option<String>,
    /// Lines of the level info and above [the default]
    #[arg(long)]
    pub info: bool,
    /// Lines of all levels that the services write, also with --info
    #[arg(long)]
    pub debug: bool,
    /// Send the lines to an OpenTelemetry collector instead of showing them (http://localhost:4318)
    #[arg(long, value_name = "URL")]
    pub otlp: Option<String>,
}

/// `system dns …`.
#[derive(Clone, Debug, Subcommand)]
pub enum Dns {
    /// Make containers' names resolve below a domain on this host
    Create(DnsCreate),
    /// Forget a domain
    #[command(visible_alias = "rm")]
    Delete(DnsDelete),
    /// List domains
    #[command(visible_alias = "ls")]
    List(DnsList),
}

/// `system dns create`.
#[derive(Clone, Debug, Args)]
pub struct DnsCreate {
    /// An address that stands for this host's loopback, as the domain does, in containers with --host-access
    #[arg(long, value_name = "IP")]
    pub localhost: Option<Ipv4Addr>,
    /// The domain
    pub domain: String,
}

impl DnsCreate {
    /// The domain, checked.
    pub fn domain(&self) -> Result<String> {
        network_options::domain("the domain", &self.domain)
    }
}

/// `system dns delete`.
#[derive(Clone, Debug, Args)]
pub struct DnsDelete {
    /// The domain
    pub domain: String,
}

impl DnsDelete {
    /// The domain, checked.
    pub fn domain(&self) -> Result<String> {
        network_options::domain("the domain", &self.domain)
    }
}

/// `system dns list`.
#[derive(Clone, Debug, Args)]
pub struct DnsList {
    /// Form of the output
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
    /// Print domains alone
    #[arg(short, long)]
    pub quiet: bool,
}

/// `system kernel …`.
#[derive(Clone, Debug, Subcommand)]
pub enum Kernel {
    /// Install a guest kernel and make it the default
    Set(KernelSet),
}

/// `system kernel set`.
#[derive(Clone, Debug, Default, Args)]
pub struct KernelSet {
    /// Architecture of the kernel [default: the host's]
    #[arg(long, value_name = "ARCH")]
    pub arch: Option<String>,
    /// A kernel with everything built in; with --tar, its path in the archive
    #[arg(long, value_name = "PATH")]
    pub binary: Option<PathBuf>,
    /// SHA-256 that the file must have (sha256:HEX)
    #[arg(long, value_name = "DIGEST")]
    pub digest: Option<String>,
    /// Replace a kernel of the same name
    #[arg(long)]
    pub force: bool,
    /// Install the distribution's own kernel; wins over all other flags
    #[arg(long)]
    pub recommended: bool,
    /// A tar archive with kernel and modules: a file or an http(s) address
    #[arg(long, value_name = "PATH|URL")]
    pub tar: Option<String>,
    /// How to show progress, on standard error
    #[arg(long, value_enum, default_value_t, value_name = "TYPE")]
    pub progress: ProgressKind,
}

/// Where `kernel set` finds the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KernelFrom {
    /// The distribution's package.
    Recommended,
    /// A file here.
    File(KernelSource, PathBuf),
    /// A tar elsewhere.
    Url(String),
}

impl KernelSet {
    /// The one source that the flags name.
    pub fn source(&self) -> Result<KernelFrom> {
        if self.recommended {
            return Ok(KernelFrom::Recommended);
        }
        if let Some(digest) = &self.digest {
            let hex = digest.strip_prefix("sha256:").unwrap_or_default();
            if hex.len() != 64 || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(ApiError::invalid("--digest must be sha256: and 64 hex digits"));
            }
        }
        match (&self.tar, &self.binary) {
            (Some(tar), _) if tar.starts_with("http://") || tar.starts_with("https://") => {
                if self.digest.is_none() {
                    return Err(ApiError::invalid("--tar with an address needs --digest"));
                }
                Ok(KernelFrom::Url(tar.clone()))
            }
            (Some(tar), _) => Ok(KernelFrom::File(KernelSource::Tar, tar.into())),
            (None, Some(binary)) => Ok(KernelFrom::File(KernelSource::Binary, binary.clone())),
            (None, None) => {
                Err(ApiError::invalid("one of --recommended, --binary and --tar is needed"))
            }
        }
    }

    /// The kernel's path within a tar.
    pub fn member(&self) -> Option<String> {
        self.tar.as_ref()?;
        self.binary.as_ref().map(|path| path.to_string_lossy().into_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_has_one_source() {
        let set = KernelSet::default();
        set.source().unwrap_err();
        let set = KernelSet { recommended: true, tar: Some("x".into()), ..KernelSet::default() };
        assert_eq!(set.source().unwrap(), KernelFrom::Recommended);
        let set = KernelSet {
            tar: Some("x.tar".into()),
            binary: Some("boot/vmlinuz".into()),
            ..KernelSet::default()
        };
        assert_eq!(set.source().unwrap(), KernelFrom::File(KernelSource::Tar, "x.tar".into()));
        assert_eq!(set.member().as_deref(), Some("boot/vmlinuz"));
    }

    #[test]
    fn an_address_needs_a_digest_of_the_right_form() {
        let set = |digest: Option<String>| KernelSet {
            tar: Some("https://x/k.tar".into()),
            digest,
            ..Default::default()
        };
        set(None).source().unwrap_err();
        set(Some("md5:1".into())).source().unwrap_err();
        set(Some(format!("sha256:{}", "a".repeat(64)))).source().unwrap();
    }

    #[test]
    fn a_check_is_of_an_installation_or_of_one_container() {
        use clap::Parser;
        let parse = |words: &str| crate::args::Cli::try_parse_from(words.split_whitespace());
        for words in ["", " --security", " --state --deep", " --security --state", " box"] {
            parse(&format!("container system check{words}")).unwrap();
        }
        for words in ["--security box", "--state box", "--deep", "box other"] {
            parse(&format!("container system check {words}")).unwrap_err();
        }
    }
}
