//! Networks: what a container asks of them, and commands about them.

use std::collections::BTreeMap;

use clap::{Args, Subcommand};
use container_api::apiserver::CreateOptions;
use container_api::escape::escape;
use container_api::network::{ContainerNetwork, CreateNetwork, DnsOptions, HostAccess, Mode};
use container_api::network_options as options;
use container_api::{ApiError, Result};
use ipnet::{Ipv4Net, Ipv6Net};

use super::{Format, values};

/// `--host-access` without ports.
const ALL: &str = "all";

/// Networks, ports, names and sockets of a container.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Network options")]
pub struct ContainerArgs {
    /// Join a network (name[,mac=…][,mtu=…][,ip=…][,alias=…]), or none [default: default]
    #[arg(long, value_name = "NETWORK")]
    pub network: Vec<String>,
    /// Publish a port ([host-ip:]host-port[-range]:port[-range][/tcp|udp]; port 0: any)
    #[arg(short, long, value_name = "SPEC")]
    pub publish: Vec<String>,
    /// Publish every port that the image exposes, on any free one
    #[arg(short = 'P', long)]
    pub publish_all: bool,
    /// Show a socket of the container on the host (host-path:container-path)
    #[arg(long, value_name = "SPEC")]
    pub publish_socket: Vec<String>,
    /// Let the container use your SSH agent, for its keys' signatures alone
    #[arg(long)]
    pub ssh: bool,
    /// Which rules apply.
    #[command(flatten)]
    pub rules: Rules,
    /// Address of a name server, in place of the networks'
    #[arg(long, value_name = "IP")]
    pub dns: Vec<String>,
    /// Domain of the container's own name
    #[arg(long, value_name = "DOMAIN")]
    pub dns_domain: Option<String>,
    /// Option of the resolver (such as ndots:2)
    #[arg(long, value_name = "OPTION")]
    pub dns_option: Vec<String>,
    /// Domain in which short names are looked for
    #[arg(long, value_name = "DOMAIN")]
    pub dns_search: Vec<String>,
    /// Leave the image's /etc/resolv.conf alone
    #[arg(long, conflicts_with_all = ["dns", "dns_domain", "dns_option", "dns_search"])]
    pub no_dns: bool,
}

/// What may be reached.
#[derive(Clone, Debug, Default, Args)]
pub struct Rules {
    /// What may be reached outside: deny, allow, or allow=HOST[:PORT]|CIDR[:PORT]
    #[arg(long, value_name = "RULE")]
    pub egress: Vec<String>,
    /// Let host.container.internal lead to ports of the host [=PORT,…]
    #[arg(long, value_name = "PORTS", num_args = 0..=1, require_equals = true,
          default_missing_value = ALL)]
    pub host_access: Vec<String>,
}

impl Rules {
    fn host_access(&self) -> Result<HostAccess> {
        let values = self.host_access.iter().map(|text| Some(text).filter(|text| *text != ALL));
        options::host_access(&values.collect::<Vec<_>>())
    }
}

impl ContainerArgs {
    /// Puts what is asked for into `create`.
    pub fn apply(&self, create: &mut CreateOptions) -> Result<()> {
        let all = |texts: &[String], parse: fn(&str) -> Result<String>| {
            texts.iter().map(|text| parse(text)).collect::<Result<Vec<_>>>()
        };
        let dns = DnsOptions {
            nameservers: self
                .dns
                .iter()
                .map(|text| options::nameserver(text))
                .collect::<Result<_>>()?,
            domain: self
                .dns_domain
                .as_deref()
                .map(|text| options::domain("--dns-domain", text))
                .transpose()?,
            search: all(&self.dns_search, |text| options::domain("--dns-search", text))?,
            options: all(&self.dns_option, options::dns_option)?,
            none: self.no_dns,
        };
        create.network = ContainerNetwork {
            networks: self
                .network
                .iter()
                .map(|text| options::network(text))
                .collect::<Result<_>>()?,
            published_ports: self
                .publish
                .iter()
                .map(|text| options::publish(text))
                .collect::<Result<_>>()?,
            dns,
            egress: options::egress(&self.rules.egress)?,
            host_access: self.rules.host_access()?,
        };
        create.publish_all = self.publish_all;
        create.publish_sockets = self
            .publish_socket
            .iter()
            .map(|text| options::publish_socket(text))
            .collect::<Result<_>>()?;
        create.ssh = self.ssh;
        Ok(())
    }
}

/// `network …`.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Make a network
    Create(Create),
    /// Delete networks
    #[command(visible_alias = "rm")]
    Delete(Delete),
    /// Delete all networks that no container uses
    Prune,
    /// List networks
    #[command(visible_alias = "ls")]
    List(List),
    /// Show everything about networks, as JSON
    Inspect(Inspect),
}

/// `network create`.
#[derive(Clone, Debug, Default, Args)]
pub struct Create {
    /// Let nothing out; published ports answer
    #[arg(long)]
    pub internal: bool,
    /// IPv4 addresses [default: a free /24]
    #[arg(long, value_name = "CIDR")]
    pub subnet: Option<String>,
    /// IPv6 addresses [default: a free /64]
    #[arg(long, value_name = "CIDR")]
    pub subnet_v6: Option<String>,
    /// Add a label (key[=value])
    #[arg(long, value_name = "LABEL")]
    pub label: Vec<String>,
    /// isolated, mtu=BYTES, mode=nat|host-only
    #[arg(long = "option", visible_alias = "opt", value_name = "OPTION")]
    pub options: Vec<String>,
    /// Which rules apply to all its containers.
    #[command(flatten)]
    pub rules: Rules,
    /// The network's name
    pub name: String,
}

impl Create {
    /// The typed request.
    pub fn request(&self) -> Result<CreateNetwork> {
        if !options::is_name(&self.name) {
            let shown: String = self.name.chars().take(80).collect();
            let message = format!(
                "'{}' is not a name: 1 to 63 of a-z A-Z 0-9 _ . -, the first a letter or digit",
                escape(&shown)
            );
            return Err(ApiError::invalid(message));
        }
        let mut network = CreateNetwork {
            name: self.name.clone(),
            mode: self.internal.then_some(Mode::HostOnly),
            subnet: self.subnet.as_deref().map(subnet::<Ipv4Net>("--subnet")).transpose()?,
            subnet_v6: self
                .subnet_v6
                .as_deref()
                .map(subnet::<Ipv6Net>("--subnet-v6"))
                .transpose()?,
            labels: values::labels(&self.label)?,
            egress: options::egress(&self.rules.egress)?.unwrap_or_default(),
            host_access: self.rules.host_access()?,
            ..CreateNetwork::default()
        };
        for (key, value) in pairs(&self.options)? {
            let wrong = |why: String| ApiError::invalid(format!("--option {}: {why}", escape(key)));
            match (key, value) {
                ("isolated", "" | "true") => network.isolated = true,
                ("isolated", "false") => network.isolated = false,
                ("mtu", text) => network.mtu = Some(options::mtu(text).map_err(wrong)?),
                ("mode", "nat") if !self.internal => network.mode = Some(Mode::Nat),
                ("mode", "host-only") => network.mode = Some(Mode::HostOnly),
                ("mode", "nat") => return Err(wrong("--internal lets nothing out".into())),
                _ => {
                    let known = "isolated, mtu=BYTES and mode=nat|host-only are known";
                    return Err(wrong(known.into()));
                }
            }
        }
        Ok(network)
    }
}

/// Each option once, without its value where it has none.
fn pairs(texts: &[String]) -> Result<BTreeMap<&str, &str>> {
    let mut pairs = BTreeMap::new();
    for text in texts {
        let (key, value) = text.split_once('=').unwrap_or((text, ""));
        if pairs.insert(key, value).is_some() {
            return Err(ApiError::invalid(format!("--option {} is given twice", escape(key))));
        }
    }
    Ok(pairs)
}

fn subnet<N: std::str::FromStr>(flag: &'static str) -> impl Fn(&str) -> Result<N> {
    move |text| {
        text.parse().map_err(|_| {
            let shown: String = text.chars().take(80).collect();
            let message = format!(
                "{flag} {}: not a subnet (such as 10.5.0.0/24 or fd05::/64)",
                escape(&shown)
            );
            ApiError::invalid(message)
        })
    }
}

/// `network delete`.
#[derive(Clone, Debug, Args)]
pub struct Delete {
    /// Delete all networks but the default one
    #[arg(short, long)]
    pub all: bool,
    /// The networks
    #[arg(value_name = "NETWORKS")]
    pub names: Vec<String>,
}

/// `network list`.
#[derive(Clone, Debug, Args)]
pub struct List {
    /// Form of the output
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
    /// Print names alone
    #[arg(short, long)]
    pub quiet: bool,
}

/// `network inspect`.
#[derive(Clone, Debug, Args)]
pub struct Inspect {
    /// The networks
    #[arg(value_name = "NETWORKS", required = true)]
    pub names: Vec<String>,
}
