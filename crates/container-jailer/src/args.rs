//! The command line: parsed without side effects, refused when anything is
//! unknown or out of range.

use std::ffi::{CString, OsString};
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

use crate::error::Error;

/// Descriptor numbers end here, below every system's ceiling of open files.
const MAX_FD: RawFd = 1 << 16;

/// Printed by `--help`.
pub const HELP: &str = "\
Usage: container-jailer [OPTIONS] -- PROGRAM [ARGUMENT...]

Builds a jail (user, mount, pid, net, ipc, uts and cgroup namespaces, read-only
root, no capabilities, no_new_privs, landlock, seccomp) and executes PROGRAM in it.

  --check                  build the jail, execute nothing, exit 0
  --status-fd N            report `pid N` or `error STEP: TEXT` there (default: stderr)
  --parent PID             fail unless PID is this process's parent; the program
                           dies with it
  --host-uid N             uid outside the jail (required for root; else one's own)
  --host-gid N             gid outside the jail (likewise)
  --bind SOURCE TARGET     file, bound read-only at TARGET in the jail's root
  --share FD SOURCE        file, given as descriptor FD on a read-only mount
  --send FD                only open the --share files (or directories), send their
                           descriptors over the socket FD in order, and exit
  --keep FD                descriptor to keep; all others but 0, 1, 2 are closed
  --tap FD                 make a tap in the jail's network namespace, as descriptor FD
  --notify FD              send a seccomp listener over the socket FD: for fallocate,
                           and for openat with O_RDWR
  --kvm                    bind /dev/kvm
  --small-pages            no transparent huge pages: memory is held as it is touched
  --limit NAME=VALUE       nofile, nproc, fsize, data, memlock (bytes or count)
  --env NAME=VALUE         environment of PROGRAM (otherwise empty)
  --allow-missing LAYER    pid, net, ipc, uts, cgroup, landlock or seccomp
";

/// A parsed command line.
#[derive(Debug, PartialEq)]
pub enum Parsed {
    /// `--help`.
    Help,
    /// A jail to build.
    Run(Box<Args>),
}

/// A file that appears in the jail's root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bind {
    pub source: PathBuf,
    /// Absolute, without `.` and `..`.
    pub target: PathBuf,
}

/// A file that the program gets as a descriptor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Share {
    pub fd: RawFd,
    pub source: PathBuf,
}

/// A part of the jail that a host may lack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layer {
    Pid,
    Net,
    Ipc,
    Uts,
    Cgroup,
    Landlock,
    Seccomp,
}

impl Layer {
    const ALL: [Layer; 7] = [
        Layer::Pid,
        Layer::Net,
        Layer::Ipc,
        Layer::Uts,
        Layer::Cgroup,
        Layer::Landlock,
        Layer::Seccomp,
    ];

    /// The word on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Layer::Pid => "pid",
            Layer::Net => "net",
            Layer::Ipc => "ipc",
            Layer::Uts => "uts",
            Layer::Cgroup => "cgroup",
            Layer::Landlock => "landlock",
            Layer::Seccomp => "seccomp",
        }
    }
}

/// A resource limit that can be set from outside. Core dumps are always off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    Nofile,
    Nproc,
    Fsize,
    Data,
    Memlock,
}

/// Everything the jail needs to know.
#[derive(Debug, Clone, PartialEq)]
pub struct Args {
    pub check: bool,
    pub status_fd: RawFd,
    pub parent: Option<u32>,
    pub host_uid: Option<u32>,
    pub host_gid: Option<u32>,
    pub binds: Vec<Bind>,
    pub shares: Vec<Share>,
    pub send: Option<RawFd>,
    pub keep: Vec<RawFd>,
    pub tap: Option<RawFd>,
    pub notify: Option<RawFd>,
    pub kvm: bool,
    pub small_pages: bool,
    pub limits: Vec<(Limit, u64)>,
    pub env: Vec<CString>,
    pub allow_missing: Vec<Layer>,
    /// Program and its arguments; the program is a path inside the jail.
    pub command: Vec<CString>,
}

impl Args {
    fn new() -> Args {
        Args {
            check: false,
            status_fd: 2,
            parent: None,
            host_uid: None,
            host_gid: None,
            binds: Vec::new(),
            shares: Vec::new(),
            send: None,
            keep: Vec::new(),
            tap: None,
            notify: None,
            kvm: false,
            small_pages: false,
            limits: Vec::new(),
            env: Vec::new(),
            allow_missing: Vec::new(),
            command: Vec::new(),
        }
    }

    /// The numbers at which this program puts descriptors of its own making.
    pub fn placed(&self) -> impl Iterator<Item = RawFd> {
        self.shares.iter().map(|share| share.fd).chain(self.tap)
    }

    /// Whether the caller accepts a jail without this layer.
    pub fn may_miss(&self, layer: Layer) -> bool {
        self.allow_missing.contains(&layer)
    }

    /// The error for a missing layer, or nothing where it may be missing.
    pub fn missing(&self, layer: Layer, reason: impl ToString) -> Result<(), Error> {
        if self.may_miss(layer) {
            return Ok(());
        }
        Err(Error::MissingLayer { layer: layer.name(), reason: reason.to_string() })
    }
}

/// Parses the arguments after the program's own name.
pub fn parse(words: impl Iterator<Item = OsString>) -> Result<Parsed, Error> {
    let mut words = Words { words };
    let mut args = Args::new();
    while let Some(word) = words.words.next() {
        let Some(option) = word.to_str() else {
            return Err(usage(format!("unknown option {word:?}")));
        };
        match option {
            "--help" | "-h" => return Ok(Parsed::Help),
            "--check" => args.check = true,
            "--kvm" => args.kvm = true,
            "--small-pages" => args.small_pages = true,
            "--status-fd" => args.status_fd = words.descriptor(option)?,
            "--parent" => args.parent = Some(words.number(option)?),
            "--host-uid" => args.host_uid = Some(words.unprivileged(option)?),
            "--host-gid" => args.host_gid = Some(words.unprivileged(option)?),
            "--bind" => args
                .binds
                .push(Bind { source: words.absolute(option)?, target: words.absolute(option)? }),
            "--share" => args
                .shares
                .push(Share { fd: words.descriptor(option)?, source: words.absolute(option)? }),
            "--send" => args.send = Some(words.descriptor(option)?),
            "--keep" => args.keep.push(words.descriptor(option)?),
            "--tap" => args.tap = Some(words.descriptor(option)?),
            "--notify" => args.notify = Some(words.descriptor(option)?),
            "--limit" => args.limits.push(words.limit(option)?),
            "--env" => args.env.push(words.environment(option)?),
            "--allow-missing" => args.allow_missing.push(words.layer(option)?),
            "--" => {
                args.command = words.rest()?;
                break;
            }
            _ => return Err(usage(format!("unknown option {option:?}"))),
        }
    }
    validate(&args)?;
    Ok(Parsed::Run(Box::new(args)))
}

fn validate(args: &Args) -> Result<(), Error> {
    if args.command.is_empty() && !args.check && args.send.is_none() {
        return Err(usage("no program after `--`"));
    }
    let mut numbers: Vec<RawFd> = args.shares.iter().map(|share| share.fd).collect();
    numbers.extend(&args.keep);
    numbers.extend(args.send);
    numbers.extend(args.tap);
    numbers.extend(args.notify);
    numbers.push(args.status_fd);
    numbers.sort_unstable();
    if numbers.windows(2).any(|pair| pair[0] == pair[1]) {
        return Err(usage("a descriptor number is used twice"));
    }
    if args.placed().any(|fd| fd < 3) {
        return Err(usage("descriptors 0, 1 and 2 are kept for stdio"));
    }
    Ok(())
}

fn usage(text: impl Into<String>) -> Error {
    Error::Usage(text.into())
}

struct Words<I> {
    words: I,
}

impl<I: Iterator<Item = OsString>> Words<I> {
    fn value(&mut self, option: &str) -> Result<OsString, Error> {
        self.words.next().ok_or_else(|| usage(format!("{option}: a value is missing")))
    }

    fn number<T: std::str::FromStr>(&mut self, option: &str) -> Result<T, Error> {
        let value = self.value(option)?;
        value
            .to_str()
            .and_then(|text| text.parse().ok())
            .ok_or_else(|| usage(format!("{option}: {value:?} is not a valid number")))
    }

    fn descriptor(&mut self, option: &str) -> Result<RawFd, Error> {
        let fd: RawFd = self.number(option)?;
        if (0..MAX_FD).contains(&fd) {
            return Ok(fd);
        }
        Err(usage(format!("{option}: descriptor {fd} is out of range")))
    }

    fn unprivileged(&mut self, option: &str) -> Result<u32, Error> {
        match self.number(option)? {
            0 | u32::MAX => Err(usage(format!("{option}: must be an unprivileged id"))),
            id => Ok(id),
        }
    }

    fn absolute(&mut self, option: &str) -> Result<PathBuf, Error> {
        let path = PathBuf::from(self.value(option)?);
        if is_plain_absolute(&path) {
            return Ok(path);
        }
        Err(usage(format!("{option}: {path:?} is not an absolute path without `.` and `..`")))
    }

    fn limit(&mut self, option: &str) -> Result<(Limit, u64), Error> {
        let value = self.value(option)?;
        let text = value.to_str().unwrap_or_default();
        let parsed = text.split_once('=').and_then(|(name, amount)| {
            let limit = match name {
                "nofile" => Limit::Nofile,
                "nproc" => Limit::Nproc,
                "fsize" => Limit::Fsize,
                "data" => Limit::Data,
                "memlock" => Limit::Memlock,
                _ => return None,
            };
            Some((limit, amount.parse().ok()?))
        });
        parsed.ok_or_else(|| usage(format!("{option}: {value:?} is not NAME=VALUE")))
    }

    fn environment(&mut self, option: &str) -> Result<CString, Error> {
        let value = self.value(option)?.into_vec();
        if !value.contains(&b'=') {
            return Err(usage(format!("{option}: not NAME=VALUE")));
        }
        CString::new(value).map_err(|_| usage(format!("{option}: holds a NUL byte")))
    }

    fn layer(&mut self, option: &str) -> Result<Layer, Error> {
        let value = self.value(option)?;
        Layer::ALL
            .into_iter()
            .find(|layer| value == layer.name())
            .ok_or_else(|| usage(format!("{option}: {value:?} is not a layer")))
    }

    fn rest(&mut self) -> Result<Vec<CString>, Error> {
        self.words
            .by_ref()
            .map(|word| CString::new(word.into_vec()).map_err(|_| usage("argument with NUL")))
            .collect()
    }
}

fn is_plain_absolute(path: &Path) -> bool {
    path.is_absolute()
        && path.file_name().is_some()
        && path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse_words(words: &[&str]) -> Result<Parsed, Error> {
        parse(words.iter().map(OsString::from))
    }

    #[test]
    fn reads_a_whole_command_line() {
        let line = "--status-fd 5 --host-uid 7 --bind /a /b/c --share 9 /k --keep 8 --kvm --tap 6 \
                    --limit nofile=64 --allow-missing landlock --env A=b -- /b/c -x";
        let words: Vec<&str> = line.split_whitespace().collect();
        let Ok(Parsed::Run(args)) = parse_words(&words) else {
            panic!("not parsed");
        };
        assert_eq!(args.status_fd, 5);
        assert_eq!(args.host_uid, Some(7));
        assert_eq!(args.binds[0].target, Path::new("/b/c"));
        assert_eq!(args.shares[0].fd, 9);
        assert_eq!(args.tap, Some(6));
        assert_eq!(args.limits, [(Limit::Nofile, 64)]);
        assert!(args.may_miss(Layer::Landlock) && !args.may_miss(Layer::Seccomp));
        assert_eq!(args.command.len(), 2);
    }

    #[test]
    fn refuses_what_is_not_safe_or_not_known() {
        for line in [
            "-- ",
            "--bind /a ../b -- /x",
            "--bind /a /b/../c -- /x",
            "--bind / / -- /x",
            "--host-uid 0 -- /x",
            "--host-uid 4294967295 -- /x",
            "--keep 7 --share 7 /k -- /x",
            "--share 2 /k -- /x",
            "--tap 2 -- /x",
            "--tap 8 --keep 8 -- /x",
            "--keep 100000 -- /x",
            "--limit cpu=1 -- /x",
            "--allow-missing user -- /x",
            "--allow-missing mount -- /x",
            "--env A -- /x",
            "--bogus -- /x",
        ] {
            let words: Vec<&str> = line.split_whitespace().collect();
            assert!(matches!(parse_words(&words), Err(Error::Usage(_))), "{line}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(words in proptest::collection::vec(".{0,12}", 0..12)) {
            let _ = parse(words.into_iter().map(OsString::from));
        }
    }
}
