use super::*;
use container_api::types::{Descriptor, Platform};
use proptest::prelude::*;

fn image(config: ImageConfig) -> Unpacked {
    Unpacked {
        reference: "docker.io/library/x:latest".into(),
        descriptor: Descriptor { media_type: "m".into(), digest: "sha256:0".into(), size: 1 },
        manifest_digest: "sha256:1".into(),
        platform: Platform::host(),
        disk: "/disk".into(),
        config,
    }
}

fn options(arguments: &[&str], entrypoint: Option<&str>) -> CreateOptions {
    let mut options = CreateOptions::default();
    options.image.reference = "x".into();
    options.process.arguments = arguments.iter().map(|a| (*a).into()).collect();
    options.entrypoint = entrypoint.map(Into::into);
    options
}

fn command(options: &CreateOptions, entrypoint: &[&str], cmd: &[&str]) -> Result<Vec<String>> {
    let own = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect();
    let config =
        ImageConfig { entrypoint: own(entrypoint), cmd: own(cmd), ..ImageConfig::default() };
    let process = init_process(options, &config)?;
    let all = std::iter::once(&process.executable).chain(&process.arguments);
    Ok(all.map(|word| word.to_string_lossy().into_owned()).collect())
}

#[test]
fn entrypoint_and_command_as_docker() {
    let run = |arguments: &[&str], entrypoint| {
        command(&options(arguments, entrypoint), &["/e", "x"], &["c"])
    };
    assert_eq!(run(&[], None).unwrap(), ["/e", "x", "c"]);
    assert_eq!(run(&["a"], None).unwrap(), ["/e", "x", "a"]);
    assert_eq!(run(&[], Some("/o")).unwrap(), ["/o"]);
    assert_eq!(run(&["a"], Some("/o")).unwrap(), ["/o", "a"]);
    assert_eq!(run(&["a"], Some("")).unwrap(), ["a"]);
    assert!(run(&[], Some("")).unwrap_err().message.contains("no command"));
    assert!(command(&options(&[], None), &[], &[]).is_err());
}

#[test]
fn environment_user_and_directory() {
    let mut options = options(&["a"], None);
    options.process.environment = vec!["B=2".into(), "PATH=/x".into(), "B=3".into()];
    options.process.terminal = true;
    let config = ImageConfig {
        env: vec!["A=1".into(), "B=1".into(), "broken".into(), "=broken".into()],
        user: Some("app".into()),
        working_dir: Some("srv".into()),
        stop_signal: Some("3".into()),
        volumes: vec!["/data\n".into()],
        ..ImageConfig::default()
    };
    let (made, warnings) =
        configure("web_1".into(), &options, &image(config), &ContainerDefaults::default()).unwrap();
    let expected: Vec<ByteString> =
        ["PATH=/x", "A=1", "B=3", "TERM=xterm"].map(ByteString::from).into();
    assert_eq!(made.init_process.environment, expected);
    assert_eq!(made.init_process.user, User::Raw { user_string: "app".into() });
    assert_eq!(made.init_process.working_directory, "/srv".into());
    assert_eq!((made.stop_signal.as_str(), made.hostname.as_str()), ("SIGQUIT", "web-1"));
    assert!(warnings.is_empty() && made.image_volumes == ["/data\n"], "{warnings:?}");
    assert_eq!(made.shm_size, 64 << 20);

    let exec = ProcessOptions {
        arguments: vec!["id".into()],
        environment: vec!["A=9".into()],
        gid: Some(7),
        ..ProcessOptions::default()
    };
    let process = exec_process(&made, &exec).unwrap();
    assert_eq!(process.environment[1], "A=9".into());
    assert_eq!(process.user, made.init_process.user);
    assert_eq!(process.supplemental_groups, [7]);
    exec_process(&made, &ProcessOptions::default()).unwrap_err();
}

#[test]
fn who_a_process_runs_as() {
    let asked = |user: Option<&str>, uid, gid| ProcessOptions {
        user: user.map(Into::into),
        uid,
        gid,
        ..ProcessOptions::default()
    };
    let raw = |text: &str| User::Raw { user_string: text.into() };
    assert_eq!(user(&asked(Some("a:b"), Some(1), None), raw("x")), (raw("a:b"), vec![]));
    assert_eq!(
        user(&asked(None, Some(1), Some(2)), raw("x")),
        (User::Id { uid: 1, gid: 2 }, vec![])
    );
    assert_eq!(user(&asked(None, Some(1), None), raw("x")), (raw("1"), vec![]));
    assert_eq!(user(&asked(None, None, Some(2)), raw("x")), (raw("x"), vec![2]));
}

#[test]
fn wrong_options_are_told() {
    type Change = fn(&mut CreateOptions);
    let wrong: [(Change, &str); 12] = [
        (|o| o.name = Some("a b".into()), "invalid container name"),
        (|o| o.image.reference.clear(), "image's name is empty"),
        (|o| o.image.platform = Platform::parse("riscv64"), "does not run"),
        (|o| o.memory_in_bytes = Some(5), "below"),
        (|o| o.cpus = Some(100_000), "CPUs"),
        (|o| o.process.environment = vec!["x".into()], "NAME=value"),
        (|o| o.cap_add = vec!["CAP_X".into()], "unknown capability"),
        (|o| o.stop_signal = Some("SIGX".into()), "unknown signal"),
        (|o| o.process.working_directory = Some("x".into()), "absolute"),
        (|o| o.masked_paths = Some(vec!["x".into()]), "masked path"),
        (|o| o.shm_size = Some(1), "--shm-size"),
        (|o| _ = o.labels.insert(String::new(), "v".into()), "labels"),
    ];
    check(&options(&[], None), &ContainerDefaults::default()).unwrap();
    for (change, expected) in wrong {
        let mut options = options(&[], None);
        change(&mut options);
        let error = check(&options, &ContainerDefaults::default()).unwrap_err();
        assert!(error.message.contains(expected), "{error}");
    }
}

#[test]
fn an_unknown_stop_signal_of_an_image_is_a_warning() {
    let config = ImageConfig { stop_signal: Some("SIGWHAT".into()), ..ImageConfig::default() };
    let (made, warnings) =
        configure("ab".into(), &options(&["a"], None), &image(config), &Default::default())
            .unwrap();
    assert_eq!((made.stop_signal.as_str(), warnings.len()), ("SIGTERM", 1));
}

proptest! {
    #[test]
    fn later_variables_win(names in prop::collection::vec("[A-C]", 0..20)) {
        let environment_given: Vec<ByteString> =
            names.iter().enumerate().map(|(i, n)| format!("{n}={i}").into()).collect();
        let asked = ProcessOptions { environment: environment_given, ..Default::default() };
        let joined = environment(&[], &[], &asked);
        for name in ["A", "B", "C"] {
            let last = names.iter().rposition(|n| n == name);
            let found: Vec<_> = joined
                .iter()
                .filter(|v| v.to_string_lossy().starts_with(&format!("{name}=")))
                .collect();
            prop_assert_eq!(found.len(), usize::from(last.is_some()));
            if let Some(last) = last {
                prop_assert_eq!(found[0], &format!("{name}={last}").into());
            }
        }
    }
}
