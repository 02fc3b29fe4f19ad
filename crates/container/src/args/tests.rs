//! Command lines, and what they mean.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStringExt;

use clap::Parser;
use container_api::ErrorCode;
use container_api::apiserver::CreateOptions;
use container_api::images::Scheme;
use container_api::network::{Egress, HostAccess, Mode};
use container_api::types::ByteString;

use super::network::Command as Network;
use super::system::{Command as System, Dns};
use super::{Cli, Command, Format, ProgressKind, cli};

fn parse(words: &str) -> Cli {
    Cli::try_parse_from(words.split_whitespace()).unwrap_or_else(|e| panic!("{words}: {e}"))
}

fn refused(words: &str) -> String {
    let words: Vec<String> = words.split_whitespace().map(String::from).collect();
    let error = Cli::try_parse_from(&words).expect_err("accepted");
    crate::failure::usage(&error, &words[1..]).message
}

fn system(words: &str) -> System {
    match parse(words).command {
        Command::System(command) => command,
        other => panic!("{other:?}"),
    }
}

fn no_host(_: &OsStr) -> Option<OsString> {
    None
}

fn create(words: &str) -> container_api::Result<CreateOptions> {
    match parse(words).command {
        Command::Run(run) => run.create.options(no_host),
        Command::Create(create) => create.options(no_host),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_parser_is_sound() {
    cli().debug_assert();
}

#[test]
fn run_with_everything() {
    let options = create(
        "container run -d -it -e A=1 --env B=2 -w /w -u app:wheel --gid 5 --name n --rm \
         --entrypoint /e -c 3 -m 512m -l a=b --label c --read-only --tmpfs /t:size=1m \
         --shm-size 64m --ulimit nofile=5:6 --init --cap-add NET_ADMIN --cap-drop ALL \
         --masked-path /m --read-only-path /r -a arm64 --os linux -k /k --progress none \
         --stop-signal QUIT --scheme http --max-concurrent-downloads 2 img:1 cmd -x --rm",
    )
    .unwrap();
    let process = &options.process;
    assert_eq!(process.arguments, ["cmd".into(), "-x".into(), "--rm".into()]);
    assert_eq!(process.environment, ["A=1".into(), "B=2".into()]);
    assert_eq!(process.working_directory, Some("/w".into()));
    assert!(process.terminal && process.interactive);
    assert_eq!((process.user.as_deref(), process.gid), (Some("app:wheel"), Some(5)));
    assert_eq!((process.rlimits[0].soft, process.rlimits[0].hard), (5, 6));
    assert_eq!(options.image.reference, "img:1");
    assert_eq!(options.image.scheme, Scheme::Http);
    assert_eq!(options.image.max_concurrent_downloads, Some(2));
    assert_eq!(options.image.platform.as_ref().unwrap().to_string(), "linux/arm64");
    assert_eq!((options.cpus, options.memory_in_bytes), (Some(3), Some(512 << 20)));
    assert_eq!(options.entrypoint, Some("/e".into()));
    assert_eq!(options.name.as_deref(), Some("n"));
    assert_eq!(options.shm_size, Some(64 << 20));
    assert_eq!(options.labels.len(), 2);
    assert_eq!(options.masked_paths, Some(vec!["/m".into()]));
    assert_eq!(options.readonly_paths, Some(vec!["/r".into()]));
    assert_eq!((&*options.cap_add[0], &*options.cap_drop[0]), ("NET_ADMIN", "ALL"));
    assert_eq!(options.stop_signal.as_deref(), Some("QUIT"));
    assert_eq!(options.kernel.as_deref(), Some("/k".as_ref()));
    assert!(options.auto_remove && options.read_only && options.use_init);
    assert_eq!(options.tmpfs[0].options, ["size=1m"]);
}

#[test]
fn what_is_not_said_is_left_to_the_image() {
    let options = create("container create img").unwrap();
    let expected = CreateOptions {
        image: container_api::images::Pull { reference: "img".into(), ..Default::default() },
        ..Default::default()
    };
    assert_eq!(options, expected);
    assert_eq!(create("container run --entrypoint= img").unwrap().entrypoint, Some("".into()));
    assert!(create("container run --remove img").unwrap().auto_remove);
    let cwd = create("container run --cwd /x img").unwrap();
    assert_eq!(cwd.process.working_directory, Some("/x".into()));
}

#[test]
fn what_is_asked_of_networks() {
    let options = create(
        "container run --network web,alias=db --network back,mtu=1400 -p 8080:80 \
         --publish [::1]:53:53/udp -P --egress allow=example.com:443 --egress deny \
         --host-access=22,80 --dns 9.9.9.9 --dns-domain corp --dns-search a --dns-search b \
         --dns-option ndots:2 --publish-socket /run/x:/y --ssh img cmd",
    )
    .unwrap();
    let network = &options.network;
    assert_eq!(network.networks.len(), 2);
    assert_eq!((&*network.networks[0].aliases[0], network.networks[1].mtu), ("db", Some(1400)));
    assert_eq!(network.published_ports.len(), 2);
    assert!(options.publish_all && options.ssh);
    let Some(Egress::Only(targets)) = &network.egress else { panic!() };
    assert_eq!(targets.len(), 1);
    assert_eq!(network.host_access, HostAccess::Ports(vec![22, 80]));
    assert_eq!((network.dns.nameservers.len(), network.dns.search.len()), (1, 2));
    assert_eq!((network.dns.domain.as_deref(), network.dns.options.len()), (Some("corp"), 1));
    assert_eq!(options.publish_sockets[0].container_path, "/y");
    assert_eq!(options.process.arguments, ["cmd".into()]);
    let all = create("container run --host-access img").unwrap();
    assert_eq!(all.network.host_access, HostAccess::All);
    assert_eq!(all.image.reference, "img", "ports need '='");
    assert!(create("container run --no-dns img").unwrap().network.dns.none);
    let none = create("container run --network none img").unwrap();
    assert_eq!(none.network.networks[0].network, "none");
}

#[test]
fn networks_are_made() {
    let made = |words: &str| {
        let Command::Network(Network::Create(create)) =
            parse(&format!("container network create {words}")).command
        else {
            panic!()
        };
        create.request()
    };
    let wanted = made(
        "--internal --subnet 10.5.0.0/24 --subnet-v6 fd05::/64 --label a=b --option isolated \
         --option mtu=1400 --egress deny --host-access back",
    )
    .unwrap();
    assert_eq!((&*wanted.name, wanted.mode), ("back", Some(Mode::HostOnly)));
    assert_eq!(wanted.subnet.unwrap().to_string(), "10.5.0.0/24");
    assert_eq!(wanted.subnet_v6.unwrap().to_string(), "fd05::/64");
    assert!(wanted.isolated && wanted.labels["a"] == "b" && wanted.mtu == Some(1400));
    assert_eq!(wanted.egress, Egress::Only(vec![]));
    assert_eq!(wanted.host_access, HostAccess::All);
    assert_eq!(made("x").unwrap().mode, None);
    assert_eq!(made("--option mode=nat x").unwrap().mode, Some(Mode::Nat));
    for wrong in [
        "-- -x",
        "--subnet 10.0.0.0 x",
        "--subnet fd00::/64 x",
        "--subnet-v6 10.0.0.0/8 x",
        "--option what x",
        "--option mtu=9 x",
        "--option isolated --option isolated=false x",
        "--internal --option mode=nat x",
        "--label =x x",
    ] {
        made(wrong).expect_err(wrong);
    }
    assert!(made(&"n".repeat(300)).unwrap_err().message.len() < 200);
    let Command::Network(Network::Delete(delete)) = parse("container n rm a b").command else {
        panic!()
    };
    assert_eq!(delete.names, ["a", "b"]);
    let System::Dns(Dns::Create(dns)) =
        system("container system dns create --localhost 203.0.113.1 Test.")
    else {
        panic!()
    };
    assert_eq!((dns.domain().unwrap(), dns.localhost.is_some()), ("test".into(), true));
}

#[test]
fn words_after_the_image_are_the_programs() {
    let options = create("container run img -- -d --app-root /x").unwrap();
    assert_eq!(options.process.arguments.len(), 4);
    let cli = parse("container exec c ls --help");
    let Command::Exec(exec) = cli.command else { panic!() };
    let (id, arguments) = exec.target().unwrap();
    assert_eq!((&*id, arguments), ("c", &["ls".into(), "--help".into()] as &[OsString]));
}

#[test]
fn bytes_pass_unchanged() {
    let odd = OsString::from_vec(b"a\xff\nb".to_vec());
    let words = ["container".into(), "run".into(), "img".into(), odd];
    let Command::Run(run) = Cli::try_parse_from(words).unwrap().command else { panic!() };
    let options = run.create.options(no_host).unwrap();
    assert_eq!(options.process.arguments, [ByteString(b"a\xff\nb".to_vec())]);
}

#[test]
fn the_value_of_virtualization_may_be_the_next_word() {
    for (words, wanted, arguments) in [
        ("run img a", false, 1),
        ("run --virtualization img true", true, 1),
        ("run --virtualization true img a b", true, 2),
        ("create --virtualization false img a b", false, 2),
        ("run --virtualization=true true false", true, 1),
        ("run --virtualization=false img --virtualization true", false, 2),
        ("run --rm --virtualization -t img true", true, 1),
        ("run img --virtualization true", false, 2),
    ] {
        let line = format!("container {words}");
        let parsed = super::parse(line.split_whitespace().map(OsString::from).collect());
        let create = match parsed.unwrap_or_else(|e| panic!("{words}: {e}")).command {
            Command::Run(run) => run.create,
            Command::Create(create) => *create,
            other => panic!("{other:?}"),
        };
        let options = create.options(no_host).unwrap();
        let found = (options.virtualization, options.process.arguments.len());
        assert_eq!(found, (wanted, arguments), "{words}");
    }
    for wrong in ["run --virtualization=maybe img", "run --virtualization true"] {
        let line = format!("container {wrong}");
        super::parse(line.split_whitespace().map(OsString::from).collect()).expect_err(wrong);
    }
}

#[test]
fn flags_of_later_parts_are_refused_by_name() {
    for flag in ["--rosetta", "--init-image x", "--runtime x", "--privileged"] {
        let error = create(&format!("container run {flag} img")).unwrap_err();
        assert_eq!(error.code, ErrorCode::Unsupported, "{flag}");
        assert!(error.message.ends_with("is not supported yet"), "{flag}: {error}");
    }
    assert_eq!(refused("container build ."), "'container build' is not supported yet");
    let push = refused("container image push x");
    assert_eq!(push, "'container image push' is not supported yet");
}

#[test]
fn wrong_values_are_refused() {
    for words in [
        "-c 0",
        "-c 1.5",
        "-m lots",
        "-m 0",
        "--shm-size x",
        "--ulimit nofile",
        "--tmpfs rel",
        "-l =x",
        "-e =x",
        "--platform linux/",
        "--env-file /nonexistent",
        "-u a --uid 1",
        "--network a,b",
        "-p x",
        "--egress some",
        "--host-access=",
        "--dns x",
        "--dns-domain .",
        "--publish-socket x",
    ] {
        create(&format!("container run {words} img")).expect_err(words);
    }
}

#[test]
fn wrong_usage_is_one_line() {
    for words in [
        "container run",
        "container nonsense",
        "container run --nonsense img",
        "container logs -n x c",
        "container exec c",
        "container wait",
        "container update a",
        "container update -m 64m",
        "container create --trace x img",
        "container list --format xml",
        "container stop -t -5 c",
        "container run --progress loud img",
        "container image inspect",
        "container network create",
        "container network inspect",
        "container run --no-dns --dns 1.1.1.1 img",
        "container system dns create",
        "container system logs --last soon",
    ] {
        let line = refused(words);
        assert!(!line.contains('\n') && line.ends_with("(see --help)"), "{words}: {line}");
        assert!(!line.starts_with("error"), "{words}: {line}");
    }
}

#[test]
fn global_options_stand_anywhere() {
    for words in [
        "container --app-root /x list",
        "container list --app-root /x",
        "container image --app-root=/x list",
        "container run --app-root /x img",
        "container system kernel set --app-root /x --recommended",
    ] {
        assert_eq!(parse(words).global.app_root.as_deref(), Some("/x".as_ref()), "{words}");
    }
    assert!(parse("container image list --debug").global.debug);
}

#[test]
fn other_commands() {
    let Command::Stop(stop) = parse("container stop -t 0 -s INT a b").command else { panic!() };
    assert_eq!((stop.time, stop.signal.as_deref(), stop.ids.len()), (0, Some("INT"), 2));
    let Command::Stop(stop) = parse("container stop --all").command else { panic!() };
    assert_eq!((stop.all, stop.time), (true, 5));
    let Command::Kill(kill) = parse("container kill a").command else { panic!() };
    assert_eq!(kill.signal, "KILL");
    let Command::List(list) = parse("container ls -aq --format yaml").command else { panic!() };
    assert_eq!((list.all, list.quiet, list.format), (true, true, Format::Yaml));
    let Command::Logs(logs) = parse("container logs -f -n 5 --boot a").command else { panic!() };
    assert!(logs.follow && logs.boot && logs.lines.is_some());
    let Command::Delete(delete) = parse("container rm -f a").command else { panic!() };
    assert!(delete.force && !delete.all);
    let Command::Start(start) = parse("container start -ai a").command else { panic!() };
    assert!(start.attach && start.interactive);
    assert!(start.trace.is_none());
    let Command::Run(run) = parse("container run --rm --trace t.json img --trace").command else {
        panic!()
    };
    assert_eq!(run.trace.as_deref(), Some("t.json".as_ref()));
    let Command::Stats(stats) = parse("container stats --no-stream --format json a").command else {
        panic!()
    };
    assert!(stats.no_stream && stats.format == Format::Json && stats.ids == ["a"]);
    let Command::Update(update) = parse("container update -m 64m -c 2 a b").command else {
        panic!()
    };
    assert_eq!(update.limits().unwrap(), (Some(2), Some(64 << 20)));
    let Command::Update(update) = parse("container update -m 0 a").command else { panic!() };
    update.limits().unwrap_err();
    let System::Prune(prune) = system("container system prune -f") else { panic!() };
    assert!(prune.force);
    let System::Df(df) = system("container s df --format toml") else { panic!() };
    assert_eq!(df.format, Format::Toml);
    let Command::Image(super::image::Command::Load(load)) =
        parse("container image load -i x --progress plain").command
    else {
        panic!()
    };
    assert_eq!(load.progress, ProgressKind::Plain);
}
