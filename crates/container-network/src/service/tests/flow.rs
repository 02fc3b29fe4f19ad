//! From a request to what the kernel and the processes are told, and back to nothing.

use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use container_api::ErrorCode;
use container_api::audit::observed;
use container_api::network::{
    Attach, ContainerNetwork, CreateNetwork, DnsRequest, Egress, HostAccess, Mode, NetworkChoice,
    Protocol, PublishPort,
};
use tokio::time::timeout;

use super::fake::{World, service};
use crate::service::core::Core;
use crate::service::state::locked;
use crate::wire::{Pin, Side};

fn on(networks: &[&str]) -> ContainerNetwork {
    let choice =
        |name: &&str| NetworkChoice { network: (*name).into(), ..NetworkChoice::default() };
    ContainerNetwork {
        networks: networks.iter().map(choice).collect(),
        ..ContainerNetwork::default()
    }
}

fn attach(container: &str, options: ContainerNetwork) -> Attach {
    Attach { container: container.into(), hostname: container.into(), options, parked: None }
}

fn publish(host_port: u16, count: u16) -> PublishPort {
    PublishPort {
        host_address: None,
        host_port,
        container_port: 80,
        count,
        protocol: Protocol::Tcp,
    }
}

fn create(name: &str) -> CreateNetwork {
    CreateNetwork { name: name.into(), ..CreateNetwork::default() }
}

fn state(core: &Core<World>) -> (usize, usize) {
    (locked(&core.state).attached.len(), core.records.attached().unwrap().len())
}

#[tokio::test]
async fn a_container_comes_and_goes() {
    let (world, directory) = (World::default(), tempfile::tempdir().unwrap());
    let core = service(&world, directory.path()).await;
    core.create(&CreateNetwork { mode: Some(Mode::HostOnly), ..create("inner") }).unwrap();
    let mut options = on(&["inner", "default"]);
    options.networks[0].aliases = vec!["Shop".into()];
    options.published_ports = vec![publish(0, 20)];
    options.host_access = HostAccess::Ports(vec![5432]);
    let (attached, taps) = core.attach(attach("web", options)).await.unwrap();
    assert_eq!((taps.len(), attached.ports.len()), (2, 40));
    assert_eq!(attached.attachments[1].ipv4_address.to_string(), "198.18.64.2/24");
    let routes: Vec<bool> = attached.attachments.iter().map(|a| a.default_route).collect();
    assert_eq!(routes, [false, true], "the first network that leads out");
    assert_eq!(attached.nameservers, ["198.18.64.1".parse::<std::net::IpAddr>().unwrap()]);
    assert!(attached.host_access && attached.domain.as_deref() == Some("test"));
    let resolver = locked(&world.resolvers)["inner"].clone();
    assert_eq!(resolver.containers[0].names, ["web", "shop"]);
    assert!(resolver.upstreams.is_empty());
    assert_eq!(locked(&world.resolvers)["default"].upstreams.len(), 1);
    // 40 published ports, and four sockets a network for the host's: more than a message holds.
    let forwarder = locked(&world.forwarders)["web"].clone();
    assert_eq!(forwarder.routes.len(), 48);
    let inside: Vec<_> =
        forwarder.routes.iter().filter(|route| route.listens == Side::Container).collect();
    // On two networks, in both families: TCP may want that port, UDP can want no other.
    assert_eq!(inside.len(), 8);
    assert!(inside.iter().all(|route| match route.protocol {
        Protocol::Tcp => route.ports == [5432] && route.target.port() == 0,
        Protocol::Udp => route.target.port() == 5432,
    }));
    assert_eq!(locked(&world.redirects).len(), 2);
    let listed = core.list(&["inner".into()]).await.unwrap();
    assert_eq!((listed[0].state.as_str(), listed[0].attachments.len()), ("running", 1));
    assert_eq!(listed[0].dropped.len(), 2, "rules and resolver");
    let error = core.delete(&["inner".into()], &[]).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::InUse);
    core.detach("web").await.unwrap();
    core.detach("web").await.unwrap();
    // On two networks: what was denied on both is told once.
    let told = observed::waiting(&directory.path().join("observed")).unwrap();
    let [(_, Some(told))] = told.as_slice() else { panic!("{told:?}") };
    assert_eq!((told.subject.as_str(), told.counts["spoofed"]), ("web", 6));
    assert!(world.is_empty() && state(&core) == (0, 0));
    assert!(locked(&world.resolvers)["inner"].containers.is_empty());
    core.delete(&["inner".into()], &[]).await.unwrap();
    assert!(!locked(&world.resolvers).contains_key("inner"));
}

#[tokio::test]
async fn nothing_is_half_made() {
    let (world, directory) = (World::default(), tempfile::tempdir().unwrap());
    let core = service(&world, directory.path()).await;
    let options = || {
        let mut options = on(&["default"]);
        options.published_ports = vec![publish(0, 1)];
        options.host_access = HostAccess::All;
        options
    };
    for failing in ["create", "spawn", "configure", "attach", "forward", "redirect"] {
        world.fail(failing);
        let error = core.attach(attach("web", options())).await.unwrap_err();
        assert!(error.message.contains(failing), "{failing}: {error}");
        assert!(world.is_empty() && state(&core) == (0, 0), "after {failing}");
    }
    core.attach(attach("web", options())).await.unwrap();
    // The caller has not heard of it, and asks again.
    core.attach(attach("web", options())).await.unwrap();
    assert_eq!(state(&core), (1, 1));
    core.reconcile(&[]).await.unwrap();
    assert!(world.is_empty() && locked(&world.networks).is_empty());
}

#[tokio::test]
async fn a_port_in_use_is_refused_before_anything_is_done() {
    let (world, directory) = (World::default(), tempfile::tempdir().unwrap());
    let core = service(&world, directory.path()).await;
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut options = on(&["default"]);
    options.published_ports = vec![publish(taken.local_addr().unwrap().port(), 1)];
    let error = core.attach(attach("web", options)).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::AlreadyExists);
    assert!(error.message.contains("is in use"), "{error}");
    assert!(locked(&world.networks).is_empty() && state(&core) == (0, 0));
}

#[tokio::test]
async fn wrong_names_and_addresses_are_refused() {
    let (world, directory) = (World::default(), tempfile::tempdir().unwrap());
    let core = service(&world, directory.path()).await;
    core.attach(attach("web", on(&["default"]))).await.unwrap();
    let mut options = on(&["default"]);
    options.networks[0].aliases = vec!["WEB".into()];
    let error = core.attach(attach("db", options.clone())).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::AlreadyExists);
    assert!(error.message.contains("name 'web' on network 'default' is container 'web''s"));
    options.networks[0].aliases.clear();
    options.networks[0].addresses = vec!["198.18.64.2".parse().unwrap()];
    let error = core.attach(attach("db", options)).await.unwrap_err();
    assert!(error.message.contains("198.18.64.2 on network 'default'"), "{error}");
    for id in ["", "../x", ".x", &"x".repeat(129)] {
        core.attach(attach(id, on(&["default"]))).await.unwrap_err();
    }
    assert_eq!(state(&core), (1, 1));
    for (wrong, reason) in [
        (create("default"), "already exists"),
        (create("none"), "no network"),
        (create(&"n".repeat(300)), "invalid network name"),
        (
            CreateNetwork { subnet: Some("198.18.64.128/25".parse().unwrap()), ..create("x") },
            "overlaps",
        ),
        (
            CreateNetwork { subnet: Some("10.1.1.1/24".parse().unwrap()), ..create("x") },
            "host bits",
        ),
        (CreateNetwork { mtu: Some(100), ..create("x") }, "mtu 100"),
    ] {
        let error = core.create(&wrong).unwrap_err();
        assert!(error.message.contains(reason), "{error}");
    }
    assert_eq!(core.list(&[]).await.unwrap().len(), 1);
    let error = core.delete(&["default".into()], &[]).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::InvalidArgument);
    core.create(&create("a")).unwrap();
    core.create(&create("b")).unwrap();
    let error = core.delete(&["a".into(), "lost".into()], &[]).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::NotFound);
    let error = core.delete(&["a".into(), "b".into()], &["b".into()]).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::InUse);
    assert_eq!(core.list(&[]).await.unwrap().len(), 3, "all or none");
    assert_eq!(core.prune(&["b".into()]).await.unwrap(), ["a"]);
}

#[tokio::test]
async fn many_at_once_get_addresses_of_their_own() {
    let (world, directory) = (World::default(), tempfile::tempdir().unwrap());
    let core = service(&world, directory.path()).await;
    let tasks: Vec<_> = (0..50)
        .map(|n| {
            let core = core.clone();
            tokio::spawn(async move {
                core.attach(attach(&format!("c{n}"), on(&["default"]))).await.map(drop)
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap().unwrap();
    }
    assert_eq!(locked(&world.networks)["default"].len(), 50);
    assert_eq!(locked(&world.resolvers)["default"].containers.len(), 50);
}

#[tokio::test]
async fn a_new_service_takes_over() {
    let (world, directory) = (World::default(), tempfile::tempdir().unwrap());
    let core = service(&world, directory.path()).await;
    core.create(&create("other")).unwrap();
    let mut options = on(&["default", "other"]);
    options.published_ports = vec![publish(0, 1)];
    options.host_access = HostAccess::All;
    let (attached, _) = core.attach(attach("web", options)).await.unwrap();
    core.attach(attach("gone", on(&["other"]))).await.unwrap();
    drop(core);
    // One VM has ended meanwhile, and its tap with it; one container's forwarder runs for nobody.
    locked(&world.networks).get_mut("other").unwrap().remove("gone");
    locked(&world.redirects).clear();
    let core = service(&world, directory.path()).await;
    assert_eq!(state(&core), (1, 1));
    assert_eq!(locked(&world.redirects).len(), 2);
    assert_eq!(locked(&world.resolvers)["other"].containers.len(), 1);
    let listed = core.list(&[]).await.unwrap();
    assert!(listed.iter().all(|network| network.state == "running"));
    let free = core.attach(attach("new", on(&["default"]))).await.unwrap().0;
    assert_ne!(free.attachments[0].ipv4_address, attached.attachments[0].ipv4_address);
    core.remove_all().await.unwrap();
    assert!(world.is_empty() && locked(&world.resolvers).is_empty());
    let left = std::fs::read_dir(directory.path().join("run")).unwrap().count();
    assert_eq!((left, state(&core)), (0, (0, 0)));
}

#[tokio::test]
async fn pins_reach_the_engine_and_are_confirmed() {
    let (world, directory) = (World::default(), tempfile::tempdir().unwrap());
    let pin = Pin {
        sequence: 7,
        container: "web".into(),
        name: "example.com".into(),
        addresses: vec!["192.0.2.7".parse().unwrap()],
        ports: vec![443],
        seconds: 60,
    };
    locked(&world.announce).push(pin.clone());
    let core = service(&world, directory.path()).await;
    let mut options = on(&["default"]);
    options.egress = Some(Egress::Only(vec![]));
    core.attach(attach("web", options)).await.unwrap();
    timeout(Duration::from_secs(10), world.confirmed.notified()).await.unwrap();
    assert_eq!(*locked(&world.pinned), [pin]);
    assert_eq!(locked(&world.networks)["default"]["web"].egress.len(), 2);
}

#[tokio::test]
async fn parked_taps_are_used_and_bring_the_default_network_up() {
    let (world, directory) = (World::default(), tempfile::tempdir().unwrap());
    let core = service(&world, directory.path()).await;
    let (parked, _tap) = core.park().await.unwrap();
    let net = locked(&core.state).network("default").unwrap();
    let up = async {
        while !locked(&net.activity).up {
            tokio::task::yield_now().await;
        }
    };
    timeout(Duration::from_secs(10), up).await.unwrap();
    core.tidy(Duration::ZERO).await;
    assert!(locked(&net.activity).up, "a VM waits for it");
    let mut request = attach("web", on(&["default"]));
    request.parked = Some(parked.tap.clone());
    let (_, taps) = core.attach(request).await.unwrap();
    assert!(taps.is_empty());
    assert_eq!(locked(&world.networks)["default"]["web"].tap, Some(parked.tap));
}

#[tokio::test]
async fn a_vm_that_waits_will_likely_want_the_network_that_was_joined_last() {
    let (world, directory) = (World::default(), tempfile::tempdir().unwrap());
    let core = service(&world, directory.path()).await;
    assert_eq!(core.park().await.unwrap().0.tap, "spare1-default");
    for name in ["app", "other"] {
        core.create(&create(name)).unwrap();
        core.attach(attach(name, on(&[name, "default"]))).await.unwrap();
        core.detach(name).await.unwrap();
    }
    assert_eq!(core.park().await.unwrap().0.tap, "spare2-other");
    core.tidy(Duration::ZERO).await;
    let up = |name| locked(&locked(&core.state).network(name).unwrap().activity).up;
    assert_eq!(["default", "other", "app"].map(up), [true, true, false]);
    core.delete(&["other".to_owned()], &[]).await.unwrap();
    core.tidy(Duration::ZERO).await;
}

#[tokio::test]
async fn domains_of_the_host() {
    let (world, directory) = (World::default(), tempfile::tempdir().unwrap());
    let core = service(&world, directory.path()).await;
    let make = |domain: &str| DnsRequest::Create { domain: domain.into(), localhost: None };
    core.dns(make("bad domain")).await.unwrap_err();
    core.dns(make("Lab")).await.unwrap();
    assert_eq!(core.dns(make("lab.")).await.unwrap_err().code, ErrorCode::AlreadyExists);
    let domain = locked(&core.state).domains[0].clone();
    assert!(domain.installed.is_none() && domain.advice.unwrap().contains("lab"));
    std::fs::create_dir(directory.path().join("resolved")).unwrap();
    let localhost = Some("203.0.113.1".parse().unwrap());
    core.dns(DnsRequest::Create { domain: "here.lab".into(), localhost }).await.unwrap();
    let file = locked(&core.state).domains.iter().find_map(|d| d.installed.clone()).unwrap();
    assert!(std::fs::read_to_string(&file).unwrap().contains("Domains=~here.lab"));
    core.attach(attach("web", on(&["default"]))).await.unwrap();
    let told = locked(&world.resolvers)["~host"].clone();
    assert_eq!(told.host_domains, ["here.lab", "lab"]);
    assert_eq!((told.host_names.len(), told.containers.len()), (1, 1));
    assert_eq!(locked(&world.resolvers)["default"].host_names, ["here.lab"]);
    let core: Arc<_> = service(&world, directory.path()).await;
    core.dns(DnsRequest::Delete { domain: "here.lab".into() }).await.unwrap();
    assert!(!file.exists());
    core.dns(DnsRequest::Delete { domain: "here.lab".into() }).await.unwrap_err();
    core.dns(DnsRequest::Delete { domain: "lab".into() }).await.unwrap();
    assert!(!locked(&world.resolvers).contains_key("~host"));
}

#[tokio::test]
async fn the_default_network_moves_out_of_the_way_and_others_say_so() {
    let (world, directory) = (World::default(), tempfile::tempdir().unwrap());
    let core = service(&world, directory.path()).await;
    let subnet = || locked(&core.state).network("default").unwrap().config.ipv4_subnet;
    let first = subnet();
    let other = core.create(&create("other")).unwrap().configuration;
    let v6 = locked(&core.state).network("default").unwrap().config.ipv6_subnet;
    *locked(&world.taken) = vec![first.into(), other.ipv4_subnet.into()];
    let (attached, _) = core.attach(attach("web", on(&["default"]))).await.unwrap();
    let moved = subnet();
    assert!(moved != first && moved != other.ipv4_subnet, "{moved}");
    assert!(moved.contains(&attached.attachments[0].ipv4_address.addr()));
    assert_eq!(attached.attachments[0].ipv4_gateway, crate::service::subnet::gateway_v4(moved));
    let kept = core.records.networks().unwrap();
    assert!(kept.iter().any(|config| config.id == "default" && config.ipv4_subnet == moved));
    // While somebody is on it, it stays.
    locked(&world.taken).push(moved.into());
    core.attach(attach("second", on(&["default"]))).await.unwrap();
    assert_eq!(subnet(), moved);
    // Somebody may have chosen the subnet of another.
    let error = core.attach(attach("third", on(&["other"]))).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::AlreadyExists);
    assert_eq!(state(&core), (2, 2), "nothing is half made");
    // The IPv6 subnet moves with the IPv4 one when nobody knows which of them is taken.
    assert_ne!(locked(&core.state).network("default").unwrap().config.ipv6_subnet, v6);
    for container in ["web", "second"] {
        core.detach(container).await.unwrap();
    }
    core.remove_all().await.unwrap();
    locked(&world.taken).clear();
    let parked = core.park().await;
    parked.unwrap();
    core.attach(attach("again", on(&["default"]))).await.unwrap();
    assert_eq!(subnet(), moved, "it stays where it is free");
}
