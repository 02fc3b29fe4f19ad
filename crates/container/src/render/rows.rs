//! The rows of each table.

use container_api::images::{ImageDetails, ImageSummary};
use container_api::mounts::Volume;
use container_api::network::{DnsDomain, Network};
use container_api::types::ContainerSnapshot;

use super::{moment, size, table};

/// `list`.
pub fn containers(containers: &[ContainerSnapshot], domain: &str) -> String {
    let rows: Vec<_> = containers
        .iter()
        .map(|container| {
            let c = &container.configuration;
            let addresses: Vec<String> =
                container.networks.iter().map(|n| n.ipv4_address.to_string()).collect();
            [
                c.id.clone(),
                short_reference(&c.image.reference, domain),
                c.platform.os.clone(),
                c.platform.architecture.clone(),
                container.status.to_string(),
                addresses.join(","),
                c.resources.cpus.to_string(),
                format!("{} MB", c.resources.memory_in_bytes >> 20),
                container.started_date.map(moment).unwrap_or_default(),
            ]
        })
        .collect();
    let headings = ["ID", "IMAGE", "OS", "ARCH", "STATE", "IP", "CPUS", "MEMORY", "STARTED"];
    table(headings, &rows)
}

/// `network list`.
pub fn networks(networks: &[Network]) -> String {
    let rows: Vec<_> = networks
        .iter()
        .map(|network| {
            let c = &network.configuration;
            let mode = match c.isolated {
                true => format!("{},isolated", c.mode),
                false => c.mode.to_string(),
            };
            [
                network.id.clone(),
                network.state.clone(),
                c.ipv4_subnet.to_string(),
                c.ipv6_subnet.to_string(),
                mode,
                network.attachments.len().to_string(),
            ]
        })
        .collect();
    table(["NETWORK", "STATE", "SUBNET", "SUBNET V6", "MODE", "CONTAINERS"], &rows)
}

/// `volume list`.
pub fn volumes(volumes: &[Volume]) -> String {
    let rows: Vec<_> = volumes
        .iter()
        .map(|volume| {
            let options: Vec<String> =
                volume.options.iter().map(|(key, value)| format!("{key}={value}")).collect();
            [
                volume.name.clone(),
                if volume.anonymous { "anonymous" } else { "named" }.to_owned(),
                volume.format.clone(),
                volume.size_in_bytes.map(size).unwrap_or_default(),
                size(volume.allocated_in_bytes),
                options.join(","),
            ]
        })
        .collect();
    table(["NAME", "TYPE", "FORMAT", "SIZE", "USED", "OPTIONS"], &rows)
}

/// `system dns list`.
pub fn domains(domains: &[DnsDomain]) -> String {
    let rows: Vec<_> = domains
        .iter()
        .map(|domain| {
            let text = |value: Option<String>| value.unwrap_or_default();
            [
                domain.domain.clone(),
                text(domain.server.map(|server| server.to_string())),
                text(domain.localhost.map(|address| address.to_string())),
                text(domain.installed.as_ref().map(|path| path.display().to_string())),
            ]
        })
        .collect();
    table(["DOMAIN", "SERVER", "LOCALHOST", "INSTALLED"], &rows)
}

/// `image list`.
pub fn images(images: &[ImageSummary], domain: &str) -> String {
    let rows: Vec<_> = images
        .iter()
        .map(|image| {
            let (name, tag) = name_and_tag(&image.reference, domain);
            [name, tag, short_digest(&image.descriptor.digest)]
        })
        .collect();
    table(["NAME", "TAG", "DIGEST"], &rows)
}

/// `image list --verbose`: a row for each platform that is here.
pub fn images_verbose(images: &[(ImageSummary, ImageDetails)], domain: &str) -> String {
    let rows: Vec<_> = images
        .iter()
        .flat_map(|(summary, details)| {
            details.variants.iter().map(move |variant| {
                let (name, tag) = name_and_tag(&summary.reference, domain);
                let created = variant.config.get("created").and_then(serde_json::Value::as_str);
                [
                    name,
                    tag,
                    short_digest(&summary.descriptor.digest),
                    variant.platform.os.clone(),
                    variant.platform.architecture.clone(),
                    variant.platform.variant.clone().unwrap_or_default(),
                    size(variant.size),
                    created.unwrap_or_default().to_owned(),
                    short_digest(&variant.digest),
                ]
            })
        })
        .collect();
    let headings = [
        "NAME",
        "TAG",
        "INDEX DIGEST",
        "OS",
        "ARCH",
        "VARIANT",
        "SIZE",
        "CREATED",
        "MANIFEST DIGEST",
    ];
    table(headings, &rows)
}

/// A reference without what every reference of the default registry `domain` has.
pub fn short_reference(reference: &str, domain: &str) -> String {
    let Some(rest) = reference.strip_prefix(domain).and_then(|r| r.strip_prefix('/')) else {
        return reference.to_owned();
    };
    let rest = match rest.strip_prefix("library/") {
        Some(name) if domain == "docker.io" => name,
        _ => rest,
    };
    rest.to_owned()
}

fn name_and_tag(reference: &str, domain: &str) -> (String, String) {
    let short = short_reference(reference, domain);
    let (named, digest) = match short.split_once('@') {
        Some((named, digest)) => (named, Some(digest)),
        None => (&*short, None),
    };
    // A colon before a slash belongs to a port.
    let (name, tag) = match named.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, tag),
        _ => (named, ""),
    };
    let tag = match digest {
        Some(digest) if tag.is_empty() => digest,
        _ => tag,
    };
    (name.to_owned(), tag.to_owned())
}

fn short_digest(digest: &str) -> String {
    let hex = digest.split_once(':').map_or(digest, |(_, hex)| hex);
    match hex.char_indices().nth(24) {
        Some((end, _)) => format!("{}...", &hex[..end]),
        None => hex.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use container_api::types::Descriptor;
    use serde_json::json;

    #[test]
    fn references_are_split_and_shortened() {
        let split = |r| name_and_tag(r, "docker.io");
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        assert_eq!(split("docker.io/library/debian:12"), pair("debian", "12"));
        assert_eq!(split("docker.io/me/app:1"), pair("me/app", "1"));
        assert_eq!(split("localhost:5000/app:1"), pair("localhost:5000/app", "1"));
        assert_eq!(split("localhost:5000/app@sha256:ab"), pair("localhost:5000/app", "sha256:ab"));
        assert_eq!(short_reference("ghcr.io/x:1", "ghcr.io"), "x:1");
    }

    #[test]
    fn image_table() {
        let image = ImageSummary {
            reference: "docker.io/library/debian:latest".into(),
            descriptor: Descriptor {
                media_type: String::new(),
                digest: format!("sha256:{}", "0123456789abcdef".repeat(4)),
                size: 1,
            },
            platforms: vec![],
            created: None,
            size: 0,
        };
        let expected = "\
NAME    TAG     DIGEST
debian  latest  0123456789abcdef01234567...
";
        assert_eq!(images(&[image], "docker.io"), expected);
    }

    #[test]
    fn network_table() {
        let network: Network = serde_json::from_value(json!({
            "id": "back", "state": "created", "configuration": {
                "id": "back", "mode": "host-only", "ipv4Subnet": "10.5.0.0/24",
                "ipv4Gateway": "10.5.0.1", "ipv6Subnet": "fd05::/64", "ipv6Gateway": "fd05::1",
                "isolated": true, "mtu": 1500, "egress": "allow", "hostAccess": "denied",
                "labels": {}, "creationDate": "2026-01-02T03:04:05Z",
            },
        }))
        .unwrap();
        let expected = "\
NETWORK  STATE    SUBNET       SUBNET V6  MODE                CONTAINERS
back     created  10.5.0.0/24  fd05::/64  host-only,isolated  0
";
        assert_eq!(networks(&[network]), expected);
    }

    #[test]
    fn container_table() {
        let snapshot: ContainerSnapshot = serde_json::from_value(json!({
            "configuration": {
                "id": "web", "image": {"reference": "docker.io/library/debian:12",
                "descriptor": {"mediaType": "", "digest": "sha256:0", "size": 1}},
                "platform": {"os": "linux", "architecture": "amd64"},
                "initProcess": {"executable": "sh", "arguments": [], "environment": [],
                    "workingDirectory": "/", "terminal": false, "interactive": false,
                    "user": {"id": {"uid": 0, "gid": 0}}, "supplementalGroups": [], "rlimits": []},
                "resources": {"cpus": 2, "memoryInBytes": 1 << 30}, "hostname": "web",
                "labels": {}, "readOnly": false, "tmpfs": [], "shmSize": 1, "useInit": false,
                "capabilities": [], "maskedPaths": [], "readonlyPaths": [],
                "stopSignal": "SIGTERM", "imageVolumes": [], "autoRemove": false,
                "creationDate": "2026-01-02T03:04:05Z", "runtimeHandler": "container-runtime-linux",
            },
            "status": "running", "startedDate": "2026-01-02T03:04:06.5Z",
            "networks": [{
                "container": "web", "network": "default", "hostname": "web",
                "ipv4Address": "192.168.64.2/24", "ipv4Gateway": "192.168.64.1",
                "ipv6Address": "fd00::2/64", "ipv6Gateway": "fd00::1", "defaultRoute": true,
                "macAddress": "02:00:00:00:00:01", "mtu": 1500,
            }],
        }))
        .unwrap();
        let expected = "\
ID   IMAGE      OS     ARCH   STATE    IP               CPUS  MEMORY   STARTED
web  debian:12  linux  amd64  running  192.168.64.2/24  2     1024 MB  2026-01-02T03:04:06Z
";
        assert_eq!(containers(&[snapshot], "docker.io"), expected);
    }
}
