//! Finding and executing the program.

use super::environment;
use crate::failure::Failure;
use crate::sys;
use nix::errno::Errno;
use std::ffi::CString;
use std::fs;
use std::path::Path;
use vminitd_protocol::message::ErrorCode::{
    CommandNotFound, Exhausted, InvalidRequest, NotExecutable,
};

/// Executes; comes back with the reason when that fails.
pub fn exec(args: &[Vec<u8>], env: Vec<Vec<u8>>) -> Failure {
    let Some(program) = args.first() else {
        return Failure::new(InvalidRequest, "no program is given");
    };
    let shown = String::from_utf8_lossy(program).into_owned();
    let path = environment::value(&env, b"PATH").unwrap_or(environment::DEFAULT_PATH).to_vec();
    let strings = |list: &[Vec<u8>]| -> Result<Vec<CString>, _> {
        list.iter().map(|bytes| CString::new(bytes.as_slice())).collect()
    };
    let (Ok(args), Ok(env)) = (strings(args), strings(&env)) else {
        return Failure::new(InvalidRequest, "a NUL byte in an argument or a variable");
    };
    let mut worst = Errno::ENOENT;
    for candidate in candidates(program, &path) {
        let Ok(candidate) = CString::new(candidate) else { continue };
        let errno = sys::execve(&candidate, &args, &env);
        match errno {
            Errno::ENOENT | Errno::ENOTDIR if !exists(&candidate) => {}
            // Something is there: a later directory may still have the true one.
            Errno::EACCES => worst = errno,
            _ => return failure(&shown, &candidate, errno),
        }
    }
    if worst == Errno::EACCES {
        let found = candidates(program, &path).into_iter().find_map(|c| {
            let c = CString::new(c).ok()?;
            exists(&c).then_some(c)
        });
        return failure(&shown, &found.unwrap_or_default(), worst);
    }
    let place =
        if program.contains(&b'/') { "in the container" } else { "in the container's PATH" };
    Failure {
        code: CommandNotFound,
        errno: Errno::ENOENT as i32,
        message: format!("find program {shown:?} {place}"),
    }
}

/// Paths to try, in order.
fn candidates(program: &[u8], path: &[u8]) -> Vec<Vec<u8>> {
    if program.is_empty() {
        return Vec::new();
    }
    if program.contains(&b'/') {
        return vec![program.to_vec()];
    }
    let dirs = path.split(|b| *b == b':');
    dirs.map(|dir| {
        let dir = if dir.is_empty() { b"." } else { dir };
        [dir, b"/", program].concat()
    })
    .collect()
}

fn exists(path: &CString) -> bool {
    nix::sys::stat::stat(path.as_c_str()).is_ok()
}

fn failure(shown: &str, path: &CString, errno: Errno) -> Failure {
    let at = path.to_string_lossy();
    let (code, message) = match errno {
        Errno::ENOENT | Errno::ENOTDIR => {
            (CommandNotFound, format!("run {shown:?}: the interpreter of {at:?} is missing"))
        }
        Errno::EACCES if fs::metadata(Path::new(&*at)).is_ok_and(|meta| meta.is_dir()) => {
            (NotExecutable, format!("run {shown:?}: {at:?} is a directory"))
        }
        Errno::ENOEXEC => (NotExecutable, format!("run {shown:?}: {at:?} is no program")),
        Errno::ENOMEM | Errno::EAGAIN => (Exhausted, format!("run {shown:?}")),
        _ => (NotExecutable, format!("run {shown:?}")),
    };
    Failure { code, errno: errno as i32, message }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn path_is_searched_in_order() {
        let list = candidates(b"sh", b"/a::/b");
        assert_eq!(list, [b"/a/sh".to_vec(), b"./sh".to_vec(), b"/b/sh".to_vec()]);
        assert_eq!(candidates(b"./x/sh", b"/a"), [b"./x/sh".to_vec()]);
        assert!(candidates(b"", b"/a").is_empty());
    }

    fn run(program: &str, path: &str) -> Failure {
        exec(&[program.as_bytes().to_vec()], vec![format!("PATH={path}").into_bytes()])
    }

    #[test]
    fn failures_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        let write = |name: &str, content: &str, mode: u32| {
            fs::write(at(name), content).unwrap();
            fs::set_permissions(at(name), fs::Permissions::from_mode(mode)).unwrap();
        };
        write("data", "no program", 0o755);
        write("plain", "#!/bin/sh\n", 0o644);
        write("lost", "#!/does/not/exist\n", 0o755);
        fs::create_dir(at("dir")).unwrap();
        let path = dir.path().to_str().unwrap();

        assert_eq!(run("absent", path).code, CommandNotFound);
        assert_eq!(run(&at("absent"), path).code, CommandNotFound);
        assert_eq!(run("", path).code, CommandNotFound);
        assert_eq!(run("data", path).code, NotExecutable);
        assert_eq!(run("plain", path).code, NotExecutable);
        assert!(run(&at("dir"), path).message.contains("is a directory"));
        assert!(run("lost", path).message.contains("interpreter"));
        assert_eq!(run(&at("plain/x"), path).code, CommandNotFound);
    }
}
