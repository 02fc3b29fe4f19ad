use super::*;
use proptest::prelude::*;

fn port(text: &str) -> (Option<String>, u16, u16, u16, Protocol) {
    let p = publish(text).unwrap_or_else(|e| panic!("{e}"));
    let address = p.host_address.map(|address| address.to_string());
    (address, p.host_port, p.container_port, p.count, p.protocol)
}

#[test]
fn networks() {
    let choice =
        network("web,mac=02:00:00:00:00:01,mtu=1400,ip=10.0.0.5,ip=fd00::5,alias=DB,alias=db-2")
            .unwrap();
    assert_eq!(choice.network, "web");
    assert_eq!(choice.mac_address.unwrap().to_string(), "02:00:00:00:00:01");
    assert_eq!(choice.mtu, Some(1400));
    assert_eq!(choice.addresses.len(), 2);
    assert_eq!(choice.aliases, ["db", "db-2"]);
    assert_eq!(network("none").unwrap().network, "none");
    for wrong in [
        "",
        ",mtu=1400",
        "a b",
        "-x",
        "a,mtu",
        "a,mtu=1279",
        "a,mtu=65536",
        "a,mac=1",
        "a,mac=02:00:00:00:00:01,mac=02:00:00:00:00:02",
        "a,ip=10.0.0.0/8",
        "a,ip=1.1.1.1,ip=1.1.1.2",
        "a,alias=",
        "a,alias=x y",
        "a,what=1",
        &"n".repeat(300),
    ] {
        let error = network(wrong).expect_err(wrong);
        assert!(error.message.starts_with("--network") && error.message.len() < 250, "{error}");
    }
}

#[test]
fn ports() {
    let tcp = Protocol::Tcp;
    assert_eq!(port("8080:80"), (None, 8080, 80, 1, tcp));
    assert_eq!(port("80"), (None, 0, 80, 1, tcp));
    assert_eq!(port("0:80/udp"), (None, 0, 80, 1, Protocol::Udp));
    assert_eq!(port("127.0.0.1:8080:80"), (Some("127.0.0.1".into()), 8080, 80, 1, tcp));
    assert_eq!(port("127.0.0.1::80"), (Some("127.0.0.1".into()), 0, 80, 1, tcp));
    assert_eq!(port("[::1]:8080:80/tcp"), (Some("::1".into()), 8080, 80, 1, tcp));
    assert_eq!(port("[::]:8000-8009:80-89"), (Some("::".into()), 8000, 80, 10, tcp));
    assert_eq!(port("8000-8001"), (None, 0, 8000, 2, tcp));
    assert_eq!(port("1-65535").3, 65535);
    assert_eq!(port("0:8000-8001"), (None, 0, 8000, 2, tcp));
    for wrong in [
        "",
        ":",
        "80:",
        ":0",
        "8080:0",
        "x:80",
        "80:x",
        "70000:80",
        "+80:80",
        "80:80/sctp",
        "80:80/",
        "1-2:80",
        "0-1:80-81",
        "2-1:80-81",
        "::1:80:80",
        "[127.0.0.1]:80:80",
        "[::1]80:80",
        "[::1:80",
        "localhost:80:80",
        "1.2.3.4:5:6:7",
        "0-65535",
    ] {
        publish(wrong).expect_err(wrong);
    }
    assert_eq!(exposed("53/udp").unwrap().protocol, Protocol::Udp);
    exposed("1:53").unwrap_err();
}

#[test]
fn egress_rules() {
    let only = |texts: &[&str]| match egress(texts).unwrap().unwrap() {
        Egress::Only(targets) => targets,
        Egress::Allow => panic!("everything is allowed"),
    };
    assert_eq!(egress::<&str>(&[]).unwrap(), None);
    assert_eq!(egress(&["allow"]).unwrap(), Some(Egress::Allow));
    assert!(only(&["deny"]).is_empty());
    let targets = only(&[
        "deny",
        "allow=Example.COM.",
        "allow=*.example.com:443",
        "allow=10.0.0.0/8",
        "allow=192.0.2.7:53",
        "allow=[fd00::/8]:443",
        "allow=2001:db8::1",
        "allow=example.com",
    ]);
    let shown: Vec<String> = targets
        .iter()
        .map(|target| match target {
            Target::Host { name, port } => format!("{name} {port:?}"),
            Target::Cidr { net, port } => format!("{net} {port:?}"),
        })
        .collect();
    assert_eq!(
        shown,
        [
            "example.com None",
            "*.example.com Some(443)",
            "10.0.0.0/8 None",
            "192.0.2.7/32 Some(53)",
            "fd00::/8 Some(443)",
            "2001:db8::1/128 None",
        ]
    );
    for wrong in [
        &["open"] as &[&str],
        &["allow", "deny"],
        &["allow", "allow=a"],
        &["allow="],
        &["allow=*"],
        &["allow=a.*.b"],
        &["allow=10.0.0.1/8"],
        &["allow=10.0.0"],
        &["allow=10.0.0.256"],
        &["allow=a:0"],
        &["allow=a:x"],
        &["allow=[fd00::/8"],
        &["allow=[10.0.0.0/8]:1"],
        &["allow=fd00::/8:443"],
        &["allow=a b"],
        &[&format!("allow={}", "a.".repeat(150))],
    ] {
        egress(wrong).expect_err(wrong[0]);
    }
}

#[test]
fn access_to_the_host() {
    let all: [Option<&str>; 0] = [];
    assert_eq!(host_access(&all).unwrap(), HostAccess::Denied);
    assert_eq!(host_access(&[None::<&str>]).unwrap(), HostAccess::All);
    assert_eq!(host_access(&[Some("80,22"), Some("80")]).unwrap(), HostAccess::Ports(vec![22, 80]));
    for wrong in ["", "0", "80,", "x", "65536", "+1"] {
        host_access(&[Some(wrong)]).expect_err(wrong);
    }
}

#[test]
fn names_of_domains() {
    assert_eq!(domain("--dns-domain", "Test.Example.").unwrap(), "test.example");
    for wrong in ["", ".", "a..b", "-a", "a-", "a b", &"a".repeat(64), &"a.".repeat(200)] {
        domain("--dns-search", wrong).expect_err(wrong);
    }
    assert_eq!(nameserver("1.1.1.1").unwrap().to_string(), "1.1.1.1");
    for wrong in ["", "a", "0.0.0.0", "::", "224.0.0.1", "fe80::1"] {
        nameserver(wrong).expect_err(wrong);
    }
    assert_eq!(dns_option("ndots:2").unwrap(), "ndots:2");
    for wrong in ["", "a b", "a\nnameserver", &"x".repeat(64)] {
        dns_option(wrong).expect_err(wrong);
    }
}

#[test]
fn sockets() {
    let socket = publish_socket("/run/a.sock:/b.sock").unwrap();
    assert_eq!(socket.host_path, Path::new("/run/a.sock"));
    assert_eq!(socket.container_path, "/b.sock");
    assert!(publish_socket("a:/b").unwrap().host_path.is_absolute());
    for wrong in ["", "/a", ":/b", "/a:b", "/a:/b/", "/a:/b:c", &format!("/a:/{}", "b".repeat(107))]
    {
        publish_socket(wrong).expect_err(wrong);
    }
}

proptest! {
    #[test]
    fn never_panics(text: String) {
        let _ = (network(&text), publish(&text), exposed(&text), egress(&[&text]));
        let _ = (egress(&[format!("allow={text}")]), host_access(&[Some(&text)]));
        let _ = (nameserver(&text), domain("--x", &text), dns_option(&text));
        let _ = publish_socket(&text);
    }

    #[test]
    fn a_published_port_means_what_it_says(
        text in r"(\[::1\]:|1\.2\.3\.4:)?([0-9]{1,5}(-[0-9]{1,5})?)?:[0-9]{1,5}(-[0-9]{1,5})?(/(tcp|udp))?"
    ) {
        if let Ok(p) = publish(&text) {
            prop_assert!(p.count >= 1 && p.container_port >= 1);
            prop_assert!(p.container_port.checked_add(p.count - 1).is_some());
            prop_assert!(p.host_port == 0 || p.host_port.checked_add(p.count - 1).is_some());
        }
    }

    #[test]
    fn allowed_names_are_names(text in r"[a-zA-Z0-9*.:\[\]/-]{0,40}") {
        if let Ok(Some(Egress::Only(targets))) = egress(&[format!("allow={text}")]) {
            for target in targets {
                if let Target::Host { name, .. } = target {
                    prop_assert!(is_domain(name.strip_prefix("*.").unwrap_or(&name)));
                    prop_assert!(name.parse::<IpAddr>().is_err());
                }
            }
        }
    }
}
