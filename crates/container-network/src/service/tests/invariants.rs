//! What differs between the records, the kernel and the processes is said.

use container_api::network::{Attach, ContainerNetwork, NetworkChoice, Protocol, PublishPort};

use super::fake::{World, service};
use crate::service::core::Core;
use crate::service::state::locked;

fn web() -> Attach {
    let port = PublishPort {
        host_address: None,
        host_port: 0,
        container_port: 80,
        count: 1,
        protocol: Protocol::Tcp,
    };
    let choice = NetworkChoice { network: "default".into(), ..NetworkChoice::default() };
    let options = ContainerNetwork {
        networks: vec![choice],
        published_ports: vec![port],
        ..ContainerNetwork::default()
    };
    Attach { container: "web".into(), hostname: "web".into(), options, parked: None }
}

async fn found(core: &Core<World>, alive: &[&str]) -> Vec<String> {
    let alive: Vec<String> = alive.iter().map(ToString::to_string).collect();
    let findings = core.check_state(&alive).await.unwrap();
    assert!(findings.looked_at > 0);
    findings.violations
}

#[tokio::test]
async fn what_differs_is_said() {
    let (world, directory) = (World::default(), tempfile::tempdir().unwrap());
    let core = service(&world, directory.path()).await;
    assert_eq!(found(&core, &[]).await, [""; 0]);
    let (attached, _) = core.attach(web()).await.unwrap();
    assert_eq!(found(&core, &["web"]).await, [""; 0]);
    let leased = "198.18.64.2 leased to container 'web', which has no VM";
    assert_eq!(found(&core, &["other"]).await, [leased]);

    // What the kernel has.
    let port = locked(&world.networks).get_mut("default").unwrap().remove("web").unwrap();
    let no_tap = "container 'web' has no tap on network 'default'";
    assert_eq!(found(&core, &["web"]).await, [no_tap]);
    let mut other = port.clone();
    other.attachment.ipv4_address = "198.18.64.9/24".parse().unwrap();
    locked(&world.networks).get_mut("default").unwrap().insert("web".into(), other);
    let rules = "the rules of tap tap of web on network 'default' are not for container 'web'";
    assert_eq!(found(&core, &["web"]).await, [rules]);
    locked(&world.networks).get_mut("default").unwrap().insert("web".into(), port.clone());

    // What is on the disk.
    let file = directory.path().join("attachments/web.json");
    let text = std::fs::read(&file).unwrap();
    std::fs::remove_file(&file).unwrap();
    std::fs::write(directory.path().join("attachments/.new-web.json"), "{").unwrap();
    std::fs::write(directory.path().join("run/forward-gone.sock"), "").unwrap();
    let lines = found(&core, &["web"]).await;
    assert_eq!(lines.len(), 3, "{lines:?}");
    assert!(lines[0].contains("the record of container 'web' is not on the disk"), "{lines:?}");
    assert!(lines[1].contains("was not finished"), "{lines:?}");
    assert_eq!(lines[2], "socket networks/run/forward-gone.sock has no owner");
    std::fs::write(&file, text).unwrap();
    std::fs::remove_file(directory.path().join("attachments/.new-web.json")).unwrap();
    std::fs::remove_file(directory.path().join("run/forward-gone.sock")).unwrap();

    // What runs.
    let forwarder = locked(&core.forwarders).remove("web").unwrap();
    let lines = found(&core, &["web"]).await;
    assert_eq!(lines[0], "the ports of container 'web' have no forwarder");
    locked(&core.forwarders).insert("web".into(), forwarder);
    core.detach("web").await.unwrap();
    assert_eq!(found(&core, &[]).await, [""; 0]);
    locked(&world.networks).get_mut("default").unwrap().insert("web".into(), port);
    let lines = found(&core, &[]).await;
    assert!(lines[0].ends_with("is of container 'web', which is not on it"), "{lines:?}");
    assert_eq!(attached.ports.len(), 2);
}
