//! Commands about containers.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use clap::{ArgAction, Args, ValueEnum};
use container_api::apiserver::CreateOptions;
use container_api::images::{self, Pull};
use container_api::{ApiError, Result, config};

use super::later::Later;
use super::network::ContainerArgs;
use super::process::Process;
use super::{Format, ProgressKind, mount, security, values};

/// `--scheme`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Scheme {
    /// HTTP for local registries, else HTTPS.
    #[default]
    Auto,
    /// Plain HTTP.
    Http,
    /// HTTPS.
    Https,
}

impl From<Scheme> for images::Scheme {
    fn from(scheme: Scheme) -> Self {
        match scheme {
            Scheme::Auto => images::Scheme::Auto,
            Scheme::Http => images::Scheme::Http,
            Scheme::Https => images::Scheme::Https,
        }
    }
}

/// Which platform of an image.
#[derive(Clone, Debug, Default, Args)]
pub struct PlatformArgs {
    /// Architecture, when the image has several [default: the host's]
    #[arg(short, long, value_name = "ARCH")]
    pub arch: Option<String>,
    /// Operating system, when the image has several [default: linux]
    #[arg(long, value_name = "OS")]
    pub os: Option<String>,
    /// Platform (os/arch[/variant]); wins over --os and --arch
    #[arg(long, value_name = "PLATFORM")]
    pub platform: Option<String>,
}

impl PlatformArgs {
    /// The platform asked for, if any.
    pub fn get(&self) -> Result<Option<container_api::types::Platform>> {
        values::platform(self.platform.as_deref(), self.os.as_deref(), self.arch.as_deref())
    }
}

/// How an image comes here.
#[derive(Clone, Debug, Default, Args)]
pub struct Fetch {
    /// How to speak to the registry
    #[arg(long, value_enum, default_value_t, help_heading = "Registry options")]
    pub scheme: Scheme,
    /// How to show progress, on standard error
    #[arg(
        long,
        value_enum,
        default_value_t,
        value_name = "TYPE",
        help_heading = "Progress options"
    )]
    pub progress: ProgressKind,
    /// Layers fetched at once
    #[arg(long, value_name = "N", help_heading = "Registry options",
          value_parser = clap::value_parser!(u32).range(1..=64))]
    pub max_concurrent_downloads: Option<u32>,
}

/// What a container is made of.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Management options")]
pub struct Management {
    /// Which platform.
    #[command(flatten)]
    pub platform: PlatformArgs,
    /// Number of CPUs of the virtual machine
    #[arg(short, long, value_name = "CPUS", help_heading = "Resource options")]
    pub cpus: Option<String>,
    /// Memory of the virtual machine (in MiB steps; suffix K, M, G, T or P)
    #[arg(short, long, value_name = "MEMORY", help_heading = "Resource options")]
    pub memory: Option<String>,
    /// Most processes and threads (-1: as many as the configuration allows)
    #[arg(
        long,
        value_name = "NUMBER",
        allow_negative_numbers = true,
        help_heading = "Resource options"
    )]
    pub pids_limit: Option<i64>,
    /// Size of /dev/shm
    #[arg(long, value_name = "SIZE", help_heading = "Resource options")]
    pub shm_size: Option<String>,
    /// Add a capability (CAP_NAME, or ALL)
    #[arg(long, value_name = "CAP")]
    pub cap_add: Vec<String>,
    /// Drop a capability (CAP_NAME, or ALL)
    #[arg(long, value_name = "CAP")]
    pub cap_drop: Vec<String>,
    /// Confine it otherwise (seccomp=FILE, seccomp=unconfined, no-new-privileges[=true|false])
    #[arg(long, value_name = "OPTION")]
    pub security_opt: Vec<String>,
    /// Write the container's ID to a file that does not exist yet
    #[arg(long, value_name = "FILE")]
    pub cidfile: Option<PathBuf>,
    /// Override the image's entry point
    #[arg(long, value_name = "CMD")]
    pub entrypoint: Option<OsString>,
    /// Run a small init that forwards signals and reaps processes
    #[arg(long)]
    pub init: bool,
    /// Use another guest kernel: a kernel file, or a bundle's directory
    #[arg(short, long, value_name = "PATH")]
    pub kernel: Option<PathBuf>,
    /// Add a label (key[=value])
    #[arg(short, long, value_name = "LABEL")]
    pub label: Vec<String>,
    /// Hide a path from the container, in place of the usual ones
    #[arg(long, value_name = "PATH")]
    pub masked_path: Vec<String>,
    /// The container's name, which is its ID
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Make the root file system read-only
    #[arg(long)]
    pub read_only: bool,
    /// Make a path read-only, in place of the usual ones
    #[arg(long, value_name = "PATH")]
    pub read_only_path: Vec<String>,
    /// Delete the container when it has ended
    #[arg(long = "rm", visible_alias = "remove")]
    pub remove: bool,
    /// Start it again when it ends (no, on-failure[:N], always, unless-stopped)
    #[arg(long, value_name = "POLICY", default_value = "no")]
    pub restart: String,
    /// Restart it when it holds so much of its memory limit for so long (90:60s)
    #[arg(long, value_name = "PERCENT:DURATION")]
    pub restart_memory: Option<String>,
    /// Signal that `stop` sends [default: the image's, or SIGTERM]
    #[arg(long, value_name = "SIGNAL")]
    pub stop_signal: Option<String>,
    /// Mount a memory file system (path[:option,...])
    #[arg(long, value_name = "TMPFS")]
    pub tmpfs: Vec<String>,
    /// Mount a path of the host, or a volume (PATH:TARGET[:ro], NAME:TARGET[:ro], TARGET)
    #[arg(short, long, value_name = "SPEC")]
    pub volume: Vec<OsString>,
    /// Mount (type=bind|volume|tmpfs,source=SOURCE,target=TARGET[,readonly][,...])
    #[arg(long, value_name = "SPEC")]
    pub mount: Vec<OsString>,
    /// Let it run virtual machines of its own ([=]true or [=]false)
    #[arg(long, value_name = "BOOL", action = ArgAction::Set, default_value_t = false,
          num_args = 0..=1, require_equals = true, default_missing_value = "true",
          hide_default_value = true, hide_possible_values = true)]
    pub virtualization: bool,
    /// Known, but not built yet.
    #[command(flatten)]
    pub later: Later,
    /// Networks.
    #[command(flatten)]
    pub network: ContainerArgs,
}

/// `run`.
#[derive(Clone, Debug, Args)]
pub struct Run {
    /// Print the container's ID and leave it running
    #[arg(short, long, help_heading = "Management options")]
    pub detach: bool,
    /// Write where the time goes to a file (Chrome trace-event JSON)
    #[arg(long, value_name = "FILE", help_heading = "Management options")]
    pub trace: Option<PathBuf>,
    /// The rest.
    #[command(flatten)]
    pub create: Create,
}

/// `create`.
#[derive(Clone, Debug, Args)]
pub struct Create {
    /// The process.
    #[command(flatten)]
    pub process: Process,
    /// The container.
    #[command(flatten)]
    pub management: Management,
    /// The image's way here.
    #[command(flatten)]
    pub fetch: Fetch,
    /// The image, then the command and its arguments, in place of the image's.
    // One list, so that the first `--` after the image is the program's as well.
    #[arg(value_names = ["IMAGE", "ARGUMENTS"], num_args = 1.., required = true,
          trailing_var_arg = true, help = "The image, and a command in place of the image's own")]
    pub words: Vec<OsString>,
}

impl Create {
    /// The typed request, without credentials. Reads the environment files, and the host's
    /// variables with `host`.
    pub fn options(&self, host: impl Fn(&OsStr) -> Option<OsString>) -> Result<CreateOptions> {
        let m = &self.management;
        m.later.refuse()?;
        let (image, arguments) = first_word(&self.words, "the image's name")?;
        let list = |paths: &Vec<String>| (!paths.is_empty()).then(|| paths.clone());
        let kernel = m.kernel.as_ref().map(std::path::absolute).transpose();
        let size = |text: &String| config::parse_size(text).map_err(|e| e.context("--shm-size"));
        let (mounts, memory) = mount::all(&m.volume, &m.mount)?;
        let tmpfs = m.tmpfs.iter().map(|text| values::tmpfs(text));
        let tmpfs = tmpfs.chain(memory.into_iter().map(Ok)).collect::<Result<_>>()?;
        let mut options = CreateOptions {
            image: Pull {
                reference: image,
                platform: m.platform.get()?,
                scheme: self.fetch.scheme.into(),
                max_concurrent_downloads: self.fetch.max_concurrent_downloads,
                credentials: None,
            },
            name: m.name.clone(),
            process: self.process.options(arguments, host)?,
            entrypoint: m.entrypoint.as_deref().map(Into::into),
            cpus: m.cpus.as_deref().map(values::cpus).transpose()?,
            memory_in_bytes: m.memory.as_deref().map(values::memory).transpose()?,
            pids_limit: m.pids_limit.map(values::pids).transpose()?.flatten(),
            labels: values::labels(&m.label)?,
            read_only: m.read_only,
            tmpfs,
            mounts,
            shm_size: m.shm_size.as_ref().map(size).transpose()?,
            use_init: m.init,
            cap_add: m.cap_add.clone(),
            cap_drop: m.cap_drop.clone(),
            security: security::options(&m.security_opt)?,
            masked_paths: list(&m.masked_path),
            readonly_paths: list(&m.read_only_path),
            stop_signal: m.stop_signal.clone(),
            kernel: kernel.map_err(|e| ApiError::from(e).context("--kernel"))?,
            virtualization: m.virtualization,
            auto_remove: m.remove,
            restart: m
                .restart
                .parse()
                .map_err(|e: String| ApiError::invalid(e).context("--restart"))?,
            restart_memory: m
                .restart_memory
                .as_ref()
                .map(|text| text.parse())
                .transpose()
                .map_err(|e: String| ApiError::invalid(e).context("--restart-memory"))?,
            ..CreateOptions::default()
        };
        m.network.apply(&mut options)?;
        Ok(options)
    }
}

/// `start`.
#[derive(Clone, Debug, Args)]
pub struct Start {
    /// Attach to its output, and end with its exit code
    #[arg(short, long)]
    pub attach: bool,
    /// Attach to its input too
    #[arg(short, long)]
    pub interactive: bool,
    /// Write where the time goes to a file (Chrome trace-event JSON)
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,
    /// The container
    #[arg(value_name = "CONTAINER-ID")]
    pub id: String,
}

/// `stop`.
#[derive(Clone, Debug, Args)]
pub struct Stop {
    /// Stop all running containers
    #[arg(short, long)]
    pub all: bool,
    /// Signal to send [default: the container's own]
    #[arg(short, long, value_name = "SIGNAL")]
    pub signal: Option<String>,
    /// Seconds to wait before killing
    #[arg(short, long, value_name = "TIME", default_value_t = 5,
          value_parser = clap::value_parser!(u32).range(..=86_400))]
    pub time: u32,
    /// The containers
    #[arg(value_name = "CONTAINER-IDS")]
    pub ids: Vec<String>,
}

/// `restart`.
#[derive(Clone, Debug, Args)]
pub struct Restart {
    /// Signal to send [default: the container's own]
    #[arg(short, long, value_name = "SIGNAL")]
    pub signal: Option<String>,
    /// Seconds to wait before killing
    #[arg(short, long, value_name = "TIME", default_value_t = 5,
          value_parser = clap::value_parser!(u32).range(..=86_400))]
    pub time: u32,
    /// The containers
    #[arg(value_name = "CONTAINER-IDS", required = true)]
    pub ids: Vec<String>,
}

/// `kill`.
#[derive(Clone, Debug, Args)]
pub struct Kill {
    /// Signal all running containers
    #[arg(short, long)]
    pub all: bool,
    /// Signal to send
    #[arg(short, long, value_name = "SIGNAL", default_value = "KILL")]
    pub signal: String,
    /// The containers
    #[arg(value_name = "CONTAINER-IDS")]
    pub ids: Vec<String>,
}

/// `delete`.
#[derive(Clone, Debug, Args)]
pub struct Delete {
    /// Delete all containers
    #[arg(short, long)]
    pub all: bool,
    /// Delete containers even if they run
    #[arg(short, long)]
    pub force: bool,
    /// The containers
    #[arg(value_name = "CONTAINER-IDS")]
    pub ids: Vec<String>,
}

/// `list`.
#[derive(Clone, Debug, Args)]
pub struct List {
    /// Show containers that do not run too
    #[arg(short, long)]
    pub all: bool,
    /// Form of the output
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
    /// Print IDs alone
    #[arg(short, long)]
    pub quiet: bool,
}

/// `stats`.
#[derive(Clone, Debug, Args)]
pub struct Stats {
    /// Form of the output; all but the table show one moment
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
    /// Show one moment and end
    #[arg(long)]
    pub no_stream: bool,
    /// The containers [default: all that run]
    #[arg(value_name = "CONTAINER-IDS")]
    pub ids: Vec<String>,
}

/// `update`.
#[derive(Clone, Debug, Args)]
pub struct Update {
    /// Number of CPUs that the container may use
    #[arg(short, long, value_name = "CPUS", required_unless_present = "memory")]
    pub cpus: Option<String>,
    /// Memory that the container may use (in MiB steps; suffix K, M, G, T or P)
    #[arg(short, long, value_name = "MEMORY")]
    pub memory: Option<String>,
    /// The containers
    #[arg(value_name = "CONTAINER-IDS", required = true)]
    pub ids: Vec<String>,
}

impl Update {
    /// The CPUs and the bytes of memory that are asked for.
    pub fn limits(&self) -> Result<(Option<u32>, Option<u64>)> {
        let cpus = self.cpus.as_deref().map(values::cpus).transpose()?;
        Ok((cpus, self.memory.as_deref().map(values::memory).transpose()?))
    }
}

/// `exec`.
#[derive(Clone, Debug, Args)]
pub struct Exec {
    /// Leave the process running
    #[arg(short, long)]
    pub detach: bool,
    /// The process.
    #[command(flatten)]
    pub process: Process,
    /// The container, then the command and its arguments.
    #[arg(value_names = ["CONTAINER-ID", "ARGUMENTS"], num_args = 2.., required = true,
          trailing_var_arg = true, help = "The container, and the command to run in it")]
    pub words: Vec<OsString>,
}

impl Exec {
    /// The container, and the command with its arguments.
    pub fn target(&self) -> Result<(String, &[OsString])> {
        first_word(&self.words, "the container's ID")
    }
}

/// The first word, which must be text, and those after it.
fn first_word<'a>(words: &'a [OsString], what: &str) -> Result<(String, &'a [OsString])> {
    let (first, rest) = words.split_first().ok_or_else(|| ApiError::invalid("no arguments"))?;
    match first.to_str() {
        Some(first) => Ok((first.to_owned(), rest)),
        None => Err(ApiError::invalid(format!("{what} is not UTF-8"))),
    }
}

/// `logs`.
#[derive(Clone, Debug, Args)]
pub struct Logs {
    /// Show the virtual machine's boot log instead
    #[arg(long)]
    pub boot: bool,
    /// Go on until the container ends
    #[arg(short, long)]
    pub follow: bool,
    /// Only the last lines [default: all]
    #[arg(short = 'n', long = "tail", value_name = "N", value_parser = tail)]
    pub lines: Option<Tail>,
    /// The container
    #[arg(value_name = "CONTAINER-ID")]
    pub id: String,
}

/// How many lines from the end; `None` is all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tail(pub Option<u64>);

fn tail(text: &str) -> std::result::Result<Tail, String> {
    match text {
        "all" => Ok(Tail(None)),
        number => number.parse().map(|n| Tail(Some(n))).map_err(|_| "not a number".into()),
    }
}

/// Commands that take containers and nothing else.
#[derive(Clone, Debug, Args)]
pub struct Ids {
    /// The containers
    #[arg(value_name = "CONTAINER-IDS", required = true)]
    pub ids: Vec<String>,
}
