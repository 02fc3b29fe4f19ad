//! What an image says and what the user says, made one configuration (Docker's rules).

use std::collections::HashMap;

use container_api::apiserver::{CreateOptions, ProcessOptions};
use container_api::config::{ContainerDefaults, parse_size};
use container_api::escape::escape;
use container_api::images::{ImageConfig, Unpacked};
use container_api::types::{
    ByteString, ContainerConfig, ImageDescription, ProcessConfig, RestartPolicy, SSH_AUTH_SOCK,
    Timestamp, User,
};
use container_api::{ApiError, Result};

use crate::validate::{self, capability, mount, name, signal};

/// `PATH` of a container whose image sets none.
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Set with a terminal when nobody else sets it.
const DEFAULT_TERM: &str = "TERM=xterm";
/// Size of `/dev/shm` in bytes when none is asked for.
const DEFAULT_SHM: u64 = 64 << 20;
/// Smallest one: a page.
const MIN_SHM: u64 = 4 << 10;
/// What ends a container whose image does not say.
const DEFAULT_STOP_SIGNAL: &str = "SIGTERM";
/// Most bytes of all labels together.
const MAX_LABELS: usize = 1 << 20;

/// Everything about `options` that is wrong without knowing the image.
pub fn check(options: &CreateOptions, defaults: &ContainerDefaults) -> Result<()> {
    if let Some(given) = &options.name {
        name::check(given)?;
    }
    if options.image.reference.is_empty() {
        return Err(ApiError::invalid("the image's name is empty"));
    }
    if let Some(platform) = &options.image.platform {
        validate::resources::check_platform(platform)?;
    }
    resources(options, defaults)?;
    validate::process::check_environment(&options.process.environment)?;
    validate::resources::check_rlimits(&options.process.rlimits)?;
    mount::check_tmpfs(&options.tmpfs)?;
    mount::check_places(options)?;
    mount::check_paths("masked path", options.masked_paths.as_deref().unwrap_or_default())?;
    mount::check_paths("read-only path", options.readonly_paths.as_deref().unwrap_or_default())?;
    capability::resolve(&options.cap_add, &options.cap_drop)?;
    options.security.seccomp.check()?;
    if let Some(stop) = &options.stop_signal {
        signal::parse(stop)?;
    }
    if let Some(directory) = &options.process.working_directory {
        mount::check_path("working directory", directory.as_bytes())?;
    }
    if options.shm_size.is_some_and(|size| size < MIN_SHM) {
        return Err(ApiError::invalid(format!("--shm-size is below {MIN_SHM} bytes")));
    }
    if options.auto_remove && options.restart != RestartPolicy::No {
        return Err(ApiError::invalid("--rm and --restart exclude each other"));
    }
    if options.auto_remove && options.restart_memory.is_some() {
        return Err(ApiError::invalid("--rm and --restart-memory exclude each other"));
    }
    validate::network::resolve(options)?;
    validate::network::check_sockets(&options.publish_sockets)?;
    let labels: usize = options.labels.iter().map(|(k, v)| k.len() + v.len()).sum();
    if labels > MAX_LABELS || options.labels.contains_key("") {
        return Err(ApiError::invalid(format!(
            "labels need a name each, and at most {MAX_LABELS} bytes together"
        )));
    }
    Ok(())
}

/// What a container gets that asks for nothing.
pub fn default_resources(defaults: &ContainerDefaults) -> Result<container_api::types::Resources> {
    resources(&CreateOptions::default(), defaults)
}

/// What a container gets that asks so.
///
/// # Errors
/// `InvalidArgument` for what no VM can have here.
pub fn resources(
    options: &CreateOptions,
    defaults: &ContainerDefaults,
) -> Result<container_api::types::Resources> {
    let memory = match options.memory_in_bytes {
        Some(bytes) => bytes,
        None => parse_size(&defaults.memory).map_err(|e| e.context("container.memory"))?,
    };
    validate::resources::Host::this().check(options.cpus.unwrap_or(defaults.cpus), memory)
}

/// The configuration of a new container, and what the user should be told about it.
pub fn configure(
    id: String,
    options: &CreateOptions,
    image: &Unpacked,
    defaults: &ContainerDefaults,
) -> Result<(ContainerConfig, Vec<String>)> {
    validate::resources::check_platform(&image.platform)?;
    let mut warnings = Vec::new();
    let init_process = init_process(options, &image.config)?;
    validate::process::check(&init_process)?;
    let mut network = validate::network::resolve(options)?;
    if options.publish_all && !image.config.exposed_ports.is_empty() {
        validate::network::publish_all(&mut network, &image.config.exposed_ports, &mut warnings)?;
    }
    let config = ContainerConfig {
        hostname: name::hostname(&id),
        id,
        image: ImageDescription {
            reference: image.reference.clone(),
            descriptor: image.descriptor.clone(),
        },
        platform: image.platform.clone(),
        init_process,
        resources: resources(options, defaults)?,
        labels: options.labels.clone(),
        read_only: options.read_only,
        tmpfs: options.tmpfs.clone(),
        mounts: Vec::new(),
        pids_limit: options.pids_limit,
        restart_memory: options.restart_memory,
        shm_size: options.shm_size.unwrap_or(DEFAULT_SHM),
        use_init: options.use_init,
        capabilities: capability::resolve(&options.cap_add, &options.cap_drop)?,
        security: options.security.clone(),
        masked_paths: own_or(&options.masked_paths, &mount::DEFAULT_MASKED),
        readonly_paths: own_or(&options.readonly_paths, &mount::DEFAULT_READONLY),
        stop_signal: stop_signal(options, &image.config, &mut warnings)?,
        kernel: options.kernel.clone(),
        image_volumes: image.config.volumes.clone(),
        virtualization: options.virtualization,
        auto_remove: options.auto_remove,
        restart: options.restart,
        creation_date: Timestamp::now(),
        runtime_handler: "container-runtime-linux".into(),
        network,
        published_sockets: options.publish_sockets.clone(),
        ssh: options.ssh,
    };
    Ok((config, warnings))
}

fn own_or(given: &Option<Vec<String>>, defaults: &[&str]) -> Vec<String> {
    given.clone().unwrap_or_else(|| defaults.iter().map(|s| (*s).to_owned()).collect())
}

fn stop_signal(
    options: &CreateOptions,
    image: &ImageConfig,
    warnings: &mut Vec<String>,
) -> Result<String> {
    if let Some(given) = &options.stop_signal {
        return Ok(signal::name(signal::parse(given)?));
    }
    match image.stop_signal.as_deref().filter(|text| !text.is_empty()) {
        None => Ok(DEFAULT_STOP_SIGNAL.into()),
        Some(text) => Ok(signal::parse(text).map(signal::name).unwrap_or_else(|_| {
            warnings.push(format!(
                "the image's stop signal '{}' is unknown: {DEFAULT_STOP_SIGNAL} is used",
                escape(text)
            ));
            DEFAULT_STOP_SIGNAL.into()
        })),
    }
}

fn init_process(options: &CreateOptions, image: &ImageConfig) -> Result<ProcessConfig> {
    let asked = &options.process;
    let words = |list: &[String]| list.iter().map(|s| s.as_str().into()).collect::<Vec<_>>();
    let mut command: Vec<ByteString> = match &options.entrypoint {
        Some(program) if program.as_bytes().is_empty() => Vec::new(),
        Some(program) => vec![program.clone()],
        None => words(&image.entrypoint),
    };
    match asked.arguments.is_empty() {
        false => command.extend(asked.arguments.iter().cloned()),
        // An entrypoint of the user's makes the image's arguments meaningless.
        true if options.entrypoint.is_none() => command.extend(words(&image.cmd)),
        true => {}
    }
    let mut command = command.into_iter();
    let executable =
        command.next().ok_or_else(|| ApiError::invalid("no command: the image names none"))?;
    let image_directory = image.working_dir.as_deref().filter(|dir| !dir.is_empty());
    let working_directory = match (&asked.working_directory, image_directory) {
        (Some(given), _) => given.clone(),
        (None, Some(dir)) if dir.starts_with('/') => dir.into(),
        (None, Some(dir)) => format!("/{dir}").into(),
        (None, None) => "/".into(),
    };
    let image_environment: Vec<ByteString> =
        image.env.iter().filter(|v| v.find('=') > Some(0)).map(|v| v.as_str().into()).collect();
    let image_user = image.user.clone().filter(|user| !user.is_empty());
    let default_user =
        image_user.map_or_else(User::default, |user_string| User::Raw { user_string });
    let (user, supplemental_groups) = user(asked, default_user);
    let mut first: Vec<ByteString> = vec![DEFAULT_PATH.into()];
    first.extend(options.ssh.then(|| format!("SSH_AUTH_SOCK={SSH_AUTH_SOCK}").as_str().into()));
    Ok(ProcessConfig {
        executable,
        arguments: command.collect(),
        environment: environment(&first, &image_environment, asked),
        working_directory,
        terminal: asked.terminal,
        interactive: asked.interactive,
        user,
        supplemental_groups,
        rlimits: asked.rlimits.clone(),
    })
}

/// The process that `exec` starts, with what it does not say taken from the container.
pub fn exec_process(config: &ContainerConfig, asked: &ProcessOptions) -> Result<ProcessConfig> {
    let init = &config.init_process;
    validate::process::check_environment(&asked.environment)?;
    let mut command = asked.arguments.iter().cloned();
    let executable = command.next().ok_or_else(|| ApiError::invalid("no command to execute"))?;
    let (user, groups) = user(asked, init.user.clone());
    let process = ProcessConfig {
        executable,
        arguments: command.collect(),
        environment: environment(&[], &init.environment, asked),
        working_directory: asked
            .working_directory
            .clone()
            .unwrap_or_else(|| init.working_directory.clone()),
        terminal: asked.terminal,
        interactive: asked.interactive,
        user,
        supplemental_groups: if groups.is_empty() {
            init.supplemental_groups.clone()
        } else {
            groups
        },
        rlimits: match asked.rlimits.is_empty() {
            true => init.rlimits.clone(),
            false => asked.rlimits.clone(),
        },
    };
    validate::process::check(&process)?;
    Ok(process)
}

/// `--user` wins; `--uid` and `--gid` together are numbers; `--uid` alone takes its groups from the
/// image; `--gid` alone adds a group.
fn user(asked: &ProcessOptions, default: User) -> (User, Vec<u32>) {
    let named = asked.user.clone().filter(|user| !user.is_empty());
    match (named, asked.uid, asked.gid) {
        (Some(user_string), _, _) => (User::Raw { user_string }, Vec::new()),
        (None, Some(uid), Some(gid)) => (User::Id { uid, gid }, Vec::new()),
        (None, Some(uid), None) => (User::Raw { user_string: uid.to_string() }, Vec::new()),
        (None, None, Some(gid)) => (default, vec![gid]),
        (None, None, None) => (default, Vec::new()),
    }
}

/// Joins variables; a later one of the same name takes the earlier one's place.
fn environment(
    first: &[ByteString],
    second: &[ByteString],
    asked: &ProcessOptions,
) -> Vec<ByteString> {
    let mut places: HashMap<Vec<u8>, usize> = HashMap::new();
    let mut result: Vec<ByteString> = Vec::new();
    for variable in first.iter().chain(second).chain(&asked.environment) {
        let name = variable.as_bytes().split(|b| *b == b'=').next().unwrap_or_default();
        match places.get(name) {
            Some(place) => result[*place] = variable.clone(),
            None => {
                places.insert(name.to_owned(), result.len());
                result.push(variable.clone());
            }
        }
    }
    if asked.terminal && !places.contains_key(b"TERM".as_slice()) {
        result.push(DEFAULT_TERM.into());
    }
    result
}

#[cfg(test)]
mod tests;
