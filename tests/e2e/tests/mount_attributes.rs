//! Extended attributes of bind mounts: users' pass, the kernel's stay out.

use std::ffi::CStr;
use std::fs;
use std::path::Path;

use e2e::{Installation, debian};
use rustix::fs::{XattrFlags, getxattr, listxattr, setxattr};
use rustix::io::Errno;

fn attribute(path: &Path, name: &str) -> Result<Vec<u8>, Errno> {
    let mut value = [0; 256];
    let len = getxattr(path, name, &mut value[..])?;
    Ok(value[..len].to_vec())
}

fn names(path: &Path) -> Vec<String> {
    let mut list = [0; 1024];
    let len = listxattr(path, &mut list[..]).unwrap();
    let names = list[..len].split_inclusive(|byte| *byte == 0);
    let mut names: Vec<_> = names
        .map(|name| CStr::from_bytes_with_nul(name).unwrap().to_str().unwrap().to_owned())
        .collect();
    names.sort();
    names
}

/// `cap_net_raw+ep`, as the kernel stores it.
const CAPABILITY: &[u8] = &[1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

const SCRIPT: &str = r#"
import errno, os, subprocess, sys
def refused(call, *arguments):
    try:
        call(*arguments)
        return "worked"
    except OSError as error:
        return errno.errorcode[error.errno]
set, get, remove, list = os.setxattr, os.getxattr, os.removexattr, os.listxattr
print(get("/rw/file", "user.host"), list("/rw/file"))
set("/rw/file", "user.guest", b"\x00value")
set("/rw", "user.directory", b"d")
set("/rw/file", "user.gone", b"x")
remove("/rw/file", "user.gone")
print(refused(set, "/rw/file", "user.host", b"x", os.XATTR_CREATE), refused(get, "/rw/file", "user.none"))
capability = b"\x01\0\0\x02\0\x20" + 14 * b"\0"
for name in ("security.capability", "security.selinux", "trusted.x", "system.posix_acl_access"):
    print(name, refused(set, "/rw/file", name, capability), refused(get, "/rw/file", name))
print(refused(set, "/ro/file", "user.x", b"x"), refused(remove, "/ro/file", "user.host"), list("/ro/file"))
# A program whose file has capabilities on the host, and copies with all attributes.
print(subprocess.run(["/rw/true"]).returncode)
for command in (["cp", "-a", "/rw/file", "/rw/copy"], ["cp", "-a", "/tmp/file", "/rw/from-root"]):
    open("/tmp/file", "w").close()
    set("/tmp/file", "trusted.x", b"x")
    set("/tmp/file", "user.y", b"y")
    done = subprocess.run(command, capture_output=True, text=True)
    print(done.returncode, done.stdout, done.stderr)
tar = "tar --xattrs -C /rw -cf - file | tar --xattrs -C /tmp -xf - && tar --xattrs -C /tmp -cf - file | tar --xattrs --xattrs-include='*' -C /rw -xf -"
done = subprocess.run(["sh", "-c", tar], capture_output=True, text=True)
print(done.returncode, done.stdout, done.stderr)
print(get("/rw/file", "user.guest"))
# A stranger to the file changes nothing, the owner of a file does, and writes.
sys.stdout.flush()
child = os.fork()
if child == 0:
    os.setgid(1000)
    os.setuid(1000)
    print(refused(set, "/rw/file", "user.x", b"x"))
    with open("/rw/open/mine", "w") as file:
        file.write("text")
    set("/rw/open/mine", "user.x", b"x")
    sys.stdout.flush()
    os._exit(0)
os.waitpid(child, 0)
"#;

#[test]
fn users_attributes_pass_and_the_kernels_do_not() {
    let it = Installation::with_busybox();
    it.load_debian();
    let here = tempfile::tempdir().unwrap();
    let at = |name: &str| here.path().join(name);
    for directory in ["ro", "rw", "rw/open"] {
        fs::create_dir(at(directory)).unwrap();
    }
    std::os::unix::fs::chown(at("rw/open"), Some(1000), Some(1000)).unwrap();
    for file in ["ro/file", "rw/file"] {
        fs::write(at(file), "text").unwrap();
        setxattr(at(file), "user.host", b"host", XattrFlags::empty()).unwrap();
        setxattr(at(file), "trusted.host", b"host", XattrFlags::empty()).unwrap();
    }
    fs::copy("/bin/true", at("rw/true")).unwrap();
    setxattr(at("rw/true"), "security.capability", CAPABILITY, XattrFlags::empty()).unwrap();

    let mount = |name: &str, mode: &str| format!("{}:/{name}:{mode}", at(name).display());
    it.container(["run", "--rm", "--network", "none", "--cap-add", "ALL"])
        .args(["-v", &mount("ro", "ro"), "-v", &mount("rw", "rw")])
        .args([debian::NAME, "python3", "-c", SCRIPT])
        .run()
        .ok()
        .prints(
            "b'host' ['user.host']\n\
             EEXIST ENODATA\n\
             security.capability ENOTSUP ENOTSUP\n\
             security.selinux ENOTSUP ENOTSUP\n\
             trusted.x ENOTSUP ENOTSUP\n\
             system.posix_acl_access ENOTSUP ENOTSUP\n\
             EROFS EROFS ['user.host']\n\
             0\n\
             0  \n\
             0  \n\
             0  \n\
             b'\\x00value'\n\
             EACCES",
        );
    assert_eq!(attribute(&at("rw/file"), "user.guest").unwrap(), b"\0value");
    assert_eq!(attribute(&at("rw"), "user.directory").unwrap(), b"d");
    assert_eq!(attribute(&at("rw/copy"), "user.host").unwrap(), b"host");
    assert_eq!(names(&at("rw/from-root")), ["user.y"]);
    assert_eq!(names(&at("rw/open/mine")), ["user.x"]);
    assert_eq!(fs::read_to_string(at("rw/open/mine")).unwrap(), "text");
    assert_eq!(attribute(&at("rw/true"), "security.capability").unwrap(), CAPABILITY);
    assert_eq!(names(&at("ro/file")), ["trusted.host", "user.host"]);
    assert!(attribute(&at("rw/file"), "user.gone").is_err());
}
