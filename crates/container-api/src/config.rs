//! `config.toml`: one struct a table, every key optional, unknown keys refused.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use ipnet::{IpNet, Ipv4Net};
use serde::{Deserialize, Serialize};

use crate::network::{DEFAULT_NETWORK, Mode};
use crate::network_options::is_name;
use crate::types::MemoryShare;
use crate::{ApiError, Result};

/// The whole file. See [`crate::paths::config_file`] for where it lies.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The audit trail.
    pub audit: AuditConfig,
    /// Defaults for new containers.
    pub container: ContainerDefaults,
    /// Names of containers.
    pub dns: DnsConfig,
    /// The guest kernel.
    pub kernel: KernelConfig,
    /// Logs of containers.
    pub log: LogConfig,
    /// Networks.
    pub network: NetworkDefaults,
    /// What all containers may have together.
    pub limits: LimitsConfig,
    /// Image references and registries.
    pub registry: RegistryConfig,
    /// The hypervisor.
    pub runtime: RuntimeConfig,
    /// The jail.
    pub security: SecurityConfig,
}

/// `[audit]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AuditConfig {
    /// Size at which a file is followed by the next (`16m`).
    pub max_size: String,
    /// Files kept, the current one included.
    pub max_files: u32,
    /// A file to which heads are added; best where the service's user can't change it afterwards.
    pub anchor: Option<PathBuf>,
    /// Seconds between two heads, while there is something new.
    pub anchor_seconds: u64,
    /// Whether the system's log gets heads too.
    pub syslog: bool,
}

impl Default for AuditConfig {
    fn default() -> Self {
        AuditConfig {
            max_size: "16m".into(),
            max_files: 16,
            anchor: None,
            anchor_seconds: 60,
            syslog: true,
        }
    }
}

/// `[container]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ContainerDefaults {
    /// Virtual CPUs.
    pub cpus: u32,
    /// RAM of the VM, as `-m` takes it (`1g`).
    pub memory: String,
}

impl Default for ContainerDefaults {
    fn default() -> Self {
        ContainerDefaults { cpus: 2, memory: "1g".into() }
    }
}

/// `[kernel]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KernelConfig {
    /// A kernel bundle's directory, in place of the prepared one.
    pub path: Option<PathBuf>,
}

/// `[log]`: rotation of a container's output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogConfig {
    /// Size at which a file is rotated (`16m`).
    pub max_size: String,
    /// Files kept, the current one included.
    pub max_files: u32,
}

impl Default for LogConfig {
    fn default() -> Self {
        LogConfig { max_size: "16m".into(), max_files: 3 }
    }
}

/// `[dns]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DnsConfig {
    /// Containers' names also resolve below this domain.
    pub domain: Option<String>,
}

/// `[network]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NetworkDefaults {
    /// The network of a container that names none; `none`: it has none.
    pub default: String,
    /// Where a network leads that was made without a word on it, the default one too.
    pub mode: Mode,
    /// Where a port is published that names no address of the host.
    pub publish_address: Vec<IpAddr>,
    /// Prefixes from which networks get their subnets: an IPv4 /24 and an IPv6 /64 each. Without
    /// an IPv6 prefix a random one of `fd00::/8` is used.
    pub pool: Vec<IpNet>,
}

impl Default for NetworkDefaults {
    fn default() -> Self {
        NetworkDefaults {
            default: DEFAULT_NETWORK.into(),
            mode: Mode::default(),
            publish_address: vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()],
            pool: vec![IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(192, 168, 64, 0), 18))],
        }
    }
}

/// `[limits]`: what containers may have together; unset: no limit but the host's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LimitsConfig {
    /// Containers that run at once.
    pub containers: Option<u32>,
    /// Virtual CPUs of all that run.
    pub cpus: Option<u32>,
    /// Memory of all that run (`16g`): the sum of their `--memory`.
    pub memory: Option<String>,
    /// Disk that containers and volumes take on the host (`100g`): once it is reached, nothing is
    /// created or started until something is removed.
    pub disk: Option<String>,
    /// From when on a container's memory is logged (`95:1m`): percent of its limit, and how long.
    pub memory_warning: Option<String>,
    /// Processes and threads in each container; also what one gets that asks for no number.
    pub processes: Option<u64>,
}

impl LimitsConfig {
    /// `memory` in bytes.
    pub fn memory_in_bytes(&self) -> Result<Option<u64>> {
        size(self.memory.as_ref(), "limits.memory")
    }

    /// `memory_warning`, or the usual one.
    pub fn memory_warning(&self) -> Result<MemoryShare> {
        let usual = MemoryShare { percent: 95, seconds: 60 };
        let given = self.memory_warning.as_ref().map(|text| text.parse());
        given
            .unwrap_or(Ok(usual))
            .map_err(|e: String| ApiError::invalid(e).context("limits.memory_warning"))
    }

    /// `disk` in bytes.
    pub fn disk_in_bytes(&self) -> Result<Option<u64>> {
        size(self.disk.as_ref(), "limits.disk")
    }

    fn check(&self) -> Result<()> {
        let none = [self.containers, self.cpus].contains(&Some(0)) || self.processes == Some(0);
        if none || self.memory_in_bytes()? == Some(0) || self.disk_in_bytes()? == Some(0) {
            return Err(ApiError::invalid("a limit of 0 would let nothing run: leave it out"));
        }
        self.memory_warning()?;
        Ok(())
    }
}

fn size(text: Option<&String>, name: &str) -> Result<Option<u64>> {
    text.map(|text| parse_size(text).map_err(|e| e.context(name))).transpose()
}

/// `[registry]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RegistryConfig {
    /// The registry of names without one.
    pub domain: String,
    /// Registries (`host[:port]`) that are spoken to over plain HTTP. Loopback ones always are.
    pub insecure: Vec<String>,
}

impl Default for RegistryConfig {
    fn default() -> Self {
        RegistryConfig { domain: "docker.io".into(), insecure: Vec::new() }
    }
}

/// `[runtime]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RuntimeConfig {
    /// Whether VMs are restored from templates, which are made as shapes are used.
    pub template: bool,
    /// Most templates kept; the one unused for longest goes.
    pub templates_max: usize,
    /// Most disk that templates may take (`2g`).
    pub templates_size: String,
    /// Spares of the default shape that are kept from the start on; 0: no spares at all; unset:
    /// one of every shape in use.
    pub spare: Option<u32>,
    /// Seconds without a start after which a shape's spare is given up.
    pub spare_idle_seconds: u64,
    /// What runs guest code.
    pub accelerator: AcceleratorChoice,
    /// The QEMU program, in place of the one in `PATH`.
    pub qemu: Option<PathBuf>,
    /// Where that QEMU's libraries are, when not in the system's places.
    pub qemu_libraries: Vec<PathBuf>,
    /// Where that QEMU's firmware is, when not where it looks by itself.
    pub qemu_data: Option<PathBuf>,
}

impl Default for RuntimeConfig {
    fn default() -> Self {
        RuntimeConfig {
            template: true,
            templates_max: 8,
            templates_size: "2g".into(),
            spare: None,
            spare_idle_seconds: 600,
            accelerator: AcceleratorChoice::default(),
            qemu: None,
            qemu_libraries: Vec::new(),
            qemu_data: None,
        }
    }
}

/// `[runtime] accelerator`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AcceleratorChoice {
    /// KVM when it is proved to work, else emulation.
    #[default]
    Auto,
    /// KVM or nothing.
    Kvm,
    /// Emulation.
    Tcg,
}

impl AcceleratorChoice {
    /// Its name in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            AcceleratorChoice::Auto => "auto",
            AcceleratorChoice::Kvm => "kvm",
            AcceleratorChoice::Tcg => "tcg",
        }
    }
}

impl std::str::FromStr for AcceleratorChoice {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<AcceleratorChoice, String> {
        let all = [AcceleratorChoice::Auto, AcceleratorChoice::Kvm, AcceleratorChoice::Tcg];
        let named = all.into_iter().find(|choice| choice.name() == text);
        named.ok_or_else(|| format!("{text:?} is not auto, kvm or tcg"))
    }
}

/// Most spares of one shape: each holds some 30 MiB for as long as it waits.
const MAX_SPARES: u32 = 64;

/// `[security]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SecurityConfig {
    /// Layers of the jail that may be missing on this host (`landlock`).
    pub allow_missing: Vec<String>,
    /// Who may have `--virtualization`.
    pub virtualization: VirtualizationPolicy,
}

/// `[security] virtualization`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VirtualizationPolicy {
    /// Nobody.
    Deny,
    /// Whoever confirms it on a terminal.
    #[default]
    Ask,
    /// Everybody.
    Allow,
}

impl Config {
    /// Reads the file; a missing one means the defaults.
    pub fn load(path: &Path) -> Result<Config> {
        match std::fs::read_to_string(path) {
            Ok(text) => Self::parse(&text).map_err(|e| e.context(path.display())),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Config::default()),
            Err(e) => Err(ApiError::from(e).context(path.display())),
        }
    }

    /// Parses the file's text.
    pub fn parse(text: &str) -> Result<Config> {
        let one_line = |e: toml::de::Error| e.to_string().lines().collect::<Vec<_>>().join(" ");
        let config: Config = toml::from_str(text).map_err(|e| ApiError::invalid(one_line(e)))?;
        config.audit.check()?;
        parse_size(&config.container.memory).map_err(|e| e.context("container.memory"))?;
        parse_size(&config.log.max_size).map_err(|e| e.context("log.max_size"))?;
        parse_size(&config.runtime.templates_size)
            .map_err(|e| e.context("runtime.templates_size"))?;
        if config.runtime.spare.is_some_and(|spares| spares > MAX_SPARES) {
            return Err(ApiError::invalid(format!("runtime.spare must be at most {MAX_SPARES}")));
        }
        if config.container.cpus == 0 || config.log.max_files == 0 {
            return Err(ApiError::invalid("container.cpus and log.max_files must be at least 1"));
        }
        config.network.check()?;
        config.limits.check()?;
        Ok(config)
    }
}

impl AuditConfig {
    fn check(&self) -> Result<()> {
        parse_size(&self.max_size).map_err(|e| e.context("audit.max_size"))?;
        if self.max_files == 0 || self.anchor_seconds == 0 {
            let message = "audit.max_files and audit.anchor_seconds must be at least 1";
            return Err(ApiError::invalid(message));
        }
        match &self.anchor {
            Some(anchor) if !anchor.is_absolute() => {
                Err(ApiError::invalid("audit.anchor must be an absolute path"))
            }
            _ => Ok(()),
        }
    }
}

impl NetworkDefaults {
    fn check(&self) -> Result<()> {
        if !is_name(&self.default) {
            return Err(ApiError::invalid("network.default is no network's name"));
        }
        if self.publish_address.is_empty() {
            return Err(ApiError::invalid("network.publish_address names no address"));
        }
        let v4 = |net: &&IpNet| matches!(net, IpNet::V4(net) if net.prefix_len() <= 24);
        let v6 = |net: &&IpNet| matches!(net, IpNet::V6(net) if net.prefix_len() <= 64);
        if let Some(net) = self.pool.iter().find(|net| net.network() != net.addr()) {
            let message = format!("network.pool: {net} has host bits: {} is meant", net.trunc());
            return Err(ApiError::invalid(message));
        }
        if let Some(net) = self.pool.iter().find(|net| !v4(net) && !v6(net)) {
            let message = format!("network.pool: {net} is smaller than an IPv4 /24 or IPv6 /64");
            return Err(ApiError::invalid(message));
        }
        if !self.pool.iter().any(|net| v4(&net)) {
            return Err(ApiError::invalid("network.pool has no IPv4 prefix"));
        }
        Ok(())
    }
}

/// Bytes of a size such as `512`, `64k`, `1.5g`, `2GiB`: units are powers of 1024, in either case.
pub fn parse_size(text: &str) -> Result<u64> {
    let wrong = || {
        ApiError::invalid(format!(
            "'{}' is not a size (such as 512m or 2g)",
            crate::escape::escape(text)
        ))
    };
    let lower = text.trim().to_ascii_lowercase();
    let digits = lower.bytes().take_while(|b| b.is_ascii_digit() || *b == b'.').count();
    let (number, unit) = lower.split_at(digits);
    let shift = match unit.trim_start() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        "p" | "pb" | "pib" => 50,
        _ => return Err(wrong()),
    };
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(1 << shift).ok_or_else(wrong);
    }
    let value = number.parse::<f64>().map_err(|_| wrong())? * (1u64 << shift) as f64;
    if value.is_finite() && value < 2f64.powi(63) { Ok(value as u64) } else { Err(wrong()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes() {
        assert_eq!(parse_size("512").unwrap(), 512);
        assert_eq!(parse_size("64k").unwrap(), 64 << 10);
        assert_eq!(parse_size("1.5G").unwrap(), 3 << 29);
        assert_eq!(parse_size("2 MiB").unwrap(), 2 << 20);
        for wrong in ["", "m", "-1", "1x", "99999999p", "1.2.3g", "nan"] {
            parse_size(wrong).unwrap_err();
        }
    }

    #[test]
    fn the_empty_file_is_the_default_and_unknown_keys_are_refused() {
        assert_eq!(Config::parse("").unwrap(), Config::default());
        let error = Config::parse("[runtime]\nacelerator = 'kvm'").unwrap_err();
        assert!(error.message.contains("acelerator") && !error.message.contains('\n'), "{error}");
        assert_eq!(
            Config::parse("[runtime]\naccelerator = 'tcg'").unwrap().runtime.accelerator,
            AcceleratorChoice::Tcg
        );
        Config::parse("[container]\nmemory = 'lots'").unwrap_err();
        Config::parse("[runtime]\nspare = 64").unwrap();
        Config::parse("[runtime]\nspare = 65").unwrap_err();
        let policy = |text: &str| Config::parse(text).map(|c| c.security.virtualization);
        assert_eq!(policy("").unwrap(), VirtualizationPolicy::Ask);
        let allowed = policy("[security]\nvirtualization = 'allow'").unwrap();
        assert_eq!(allowed, VirtualizationPolicy::Allow);
        policy("[security]\nvirtualization = true").unwrap_err();
    }

    #[test]
    fn limits() {
        let text = "[limits]\ncontainers = 3\nmemory = '2g'\nprocesses = 100\n";
        let limits = Config::parse(text).unwrap().limits;
        assert_eq!(
            (limits.containers, limits.memory_in_bytes().unwrap()),
            (Some(3), Some(2 << 30))
        );
        assert_eq!((limits.processes, limits.disk_in_bytes().unwrap()), (Some(100), None));
        assert_eq!(limits.memory_warning().unwrap(), "95%:1m".parse().unwrap());
        for wrong in [
            "memory_warning = '90'",
            "memory_warning = '101:1m'",
            "containers = 0",
            "memory = '0'",
            "disk = 'much'",
            "cpus = -1",
            "cpu = 1",
        ] {
            assert!(Config::parse(&format!("[limits]\n{wrong}")).is_err(), "{wrong}");
        }
    }

    #[test]
    fn networks() {
        let text = "[network]\nmode = 'host-only'\npublish_address = ['0.0.0.0']\n\
                    pool = ['10.64.0.0/12', 'fd12:3456::/48']\n[dns]\ndomain = 'test'";
        let config = Config::parse(text).unwrap();
        assert_eq!(config.network.mode, Mode::HostOnly);
        assert_eq!(config.network.pool.len(), 2);
        assert_eq!(config.network.default, "default");
        let config = Config::parse("[network]\ndefault = 'none'").unwrap();
        assert_eq!(config.network.default, "none");
        for wrong in [
            "mode = 'bridge'",
            "publish_address = []",
            "publish_address = ['localhost']",
            "default = ''",
            "default = '-x'",
            "pool = []",
            "pool = ['fd00::/48']",
            "pool = ['10.0.0.0/25']",
            "pool = ['10.0.0.1/16']",
        ] {
            let text = format!("[network]\n{wrong}");
            Config::parse(&text).expect_err(wrong);
        }
    }

    proptest! {
        #[test]
        fn never_panics(text: String) {
            let _ = Config::parse(&text);
            let _ = parse_size(&text);
        }
    }
}
