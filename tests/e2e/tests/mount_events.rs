//! What the host changes in a bind mount raises events in the container.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use e2e::command::Running;
use e2e::{Installation, debian};

/// How long anything may take to be seen; the tests wait for the event, not for this.
const LIMIT: Duration = Duration::from_secs(120);

/// Watches the directories given, and those made in them. Prints flags and path of each event.
const WATCHER: &str = r#"
use strict;
$| = 1;
my ($init, $add) = `uname -m` =~ /x86_64/ ? (294, 254) : (26, 27);
my %names = (2 => "MODIFY", 4 => "ATTRIB", 8 => "CLOSE_WRITE", 0x40 => "MOVED_FROM",
    0x80 => "MOVED_TO", 0x100 => "CREATE", 0x200 => "DELETE", 0x400 => "DELETE_SELF",
    0x800 => "MOVE_SELF");
my ($mask, %paths) = (0);
$mask += $_ for keys %names;
my $fd = syscall($init, 0);
open(my $events, "<&=", $fd) or die "inotify: $!";
sub add {
    my $path = "$_[0]";
    my $watch = syscall($add, $fd, $path, $mask);
    return print "ERROR $path $!\n" if $watch < 0;
    $paths{$watch} = $path;
}
add($_) for @ARGV;
print "READY\n";
while (sysread($events, my $data, 65536)) {
    while (length $data) {
        my ($watch, $bits, $cookie, $size) = unpack("iIII", $data);
        my $name = substr($data, 16, $size);
        $name =~ s/\0+$//;
        $data = substr($data, 16 + $size);
        my $path = ($paths{$watch} // "?") . ($name ne "" ? "/$name" : "");
        for my $bit (sort { $a <=> $b } keys %names) {
            print "$names{$bit} $path;\n" if $bits & $bit;
        }
        if ($bits & 0x40000000 && $bits & 0x100) {
            add($path);
            print "WATCHED $path;\n";
        }
    }
}
"#;

/// A container named `box` that watches `paths`, with these mounts.
fn watcher(it: &Installation, mounts: &[String], paths: &[&str]) -> Running {
    let mut command = it.container(["run", "--rm", "--name", "box", "--network", "none"]);
    for mount in mounts {
        command = command.args(["--mount", mount]);
    }
    let command = command.args([debian::NAME, "perl", "-e", WATCHER]).args(paths);
    let mut running = command.spawn();
    running.wait_for_stdout("READY", LIMIT);
    running
}

fn mount(directory: &Path, target: &str) -> String {
    format!("type=bind,source={},target={target},notify", directory.display())
}

/// Ends the container; answers all that the watcher has printed.
fn printed(it: &Installation, running: Running) -> String {
    it.run(["kill", "box"]).ok();
    running.wait(LIMIT).text()
}

#[test]
fn a_watcher_sees_what_the_host_changes() {
    let it = Installation::with_busybox();
    it.load_debian();
    let here = tempfile::tempdir().unwrap();
    let at = |name: &str| here.path().join(name);
    for name in ["a", "ro", "out"] {
        fs::create_dir(at(name)).unwrap();
    }
    fs::create_dir(at("a/sub")).unwrap();
    for name in
        ["a/old", "a/gone", "a/target", "a/leaves", "a/sub/deep", "out/comes", "ro/file", "single"]
    {
        fs::write(at(name), "one\n").unwrap();
    }
    let mut read_only = mount(&at("ro"), "/ro");
    read_only.push_str(",readonly");
    let mounts = [mount(&at("a"), "/a"), read_only, mount(&at("single"), "/single")];
    let paths = ["/a", "/a/sub", "/a/old", "/a/gone", "/a/target", "/ro", "/single"];
    let mut watcher = watcher(&it, &mounts, &paths);
    let mut sees = |events: &[&str]| {
        for event in events {
            watcher.wait_for_stdout(&format!("{event};"), LIMIT);
        }
    };

    fs::write(at("a/old"), "two\n").unwrap();
    sees(&["MODIFY /a/old", "CLOSE_WRITE /a/old"]);
    fs::write(at("a/sub/deep"), "two\n").unwrap();
    sees(&["MODIFY /a/sub/deep", "CLOSE_WRITE /a/sub/deep"]);
    fs::write(at("a/new"), "new\n").unwrap();
    sees(&["CREATE /a/new", "MODIFY /a/new", "CLOSE_WRITE /a/new"]);
    fs::set_permissions(at("a/new"), fs::Permissions::from_mode(0o600)).unwrap();
    sees(&["ATTRIB /a/new"]);
    fs::remove_file(at("a/gone")).unwrap();
    sees(&["DELETE /a/gone", "DELETE_SELF /a/gone"]);

    // A directory that is made, and what is made in it.
    fs::create_dir(at("a/made")).unwrap();
    sees(&["CREATE /a/made", "WATCHED /a/made"]);
    fs::write(at("a/made/file"), "x").unwrap();
    sees(&["CREATE /a/made/file", "CLOSE_WRITE /a/made/file"]);
    fs::create_dir_all(at("a/made/x/y")).unwrap();
    fs::write(at("a/made/x/y/z"), "x").unwrap();
    sees(&["CREATE /a/made/x"]);

    // Renames: within, as an editor replaces a file, from elsewhere, and to there.
    fs::rename(at("a/new"), at("a/renamed")).unwrap();
    sees(&["MOVED_FROM /a/new", "MOVED_TO /a/renamed"]);
    fs::write(at("a/target.tmp"), "two\n").unwrap();
    fs::rename(at("a/target.tmp"), at("a/target")).unwrap();
    sees(&["MOVED_TO /a/target", "DELETE_SELF /a/target"]);
    fs::rename(at("out/comes"), at("a/comes")).unwrap();
    sees(&["MOVED_TO /a/comes"]);
    fs::rename(at("a/leaves"), at("out/leaves")).unwrap();
    sees(&["MOVED_FROM /a/leaves"]);
    fs::rename(at("a/made"), at("a/moved")).unwrap();
    sees(&["MOVED_FROM /a/made", "MOVED_TO /a/moved"]);
    fs::remove_dir_all(at("a/moved")).unwrap();
    sees(&["DELETE /a/moved"]);

    // A mount that can't be written, and one of a single file.
    let before = fs::metadata(at("ro/file")).unwrap().modified().unwrap();
    fs::write(at("ro/file"), "two\n").unwrap();
    fs::write(at("ro/new"), "two\n").unwrap();
    sees(&["MODIFY /ro/file", "CLOSE_WRITE /ro/file", "CREATE /ro/new"]);
    fs::write(at("single"), "two\n").unwrap();
    sees(&["MODIFY /single", "CLOSE_WRITE /single"]);

    // The container sees the files as they are, and the host's are as the host made them.
    let script = "cat /a/old /a/target /a/comes /a/renamed /ro/new /single; ls /a /ro; \
                  touch /ro/x 2>/dev/null || echo refused";
    it.run(["exec", "box", "sh", "-c", script]).ok().prints(
        "two\ntwo\none\nnew\ntwo\ntwo\n/a:\ncomes\nold\nrenamed\nsub\ntarget\n\n/ro:\nfile\nnew\nrefused",
    );
    let mut names: Vec<_> =
        fs::read_dir(at("a")).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["comes", "old", "renamed", "sub", "target"]);
    assert!(fs::metadata(at("ro/file")).unwrap().modified().unwrap() > before);
    let age = fs::metadata(at("a/target")).unwrap().modified().unwrap().elapsed();
    assert!(age.is_ok_and(|age| age < LIMIT * 20), "a token became a time");
}

#[test]
fn what_the_container_changes_is_not_told_twice() {
    let it = Installation::with_busybox();
    it.load_debian();
    let here = tempfile::tempdir().unwrap();
    fs::write(here.path().join("kept"), "1").unwrap();
    let mut watcher = watcher(&it, &[mount(here.path(), "/a")], &["/a"]);
    let script = "echo x > /a/own; chmod 600 /a/own; mv /a/own /a/other; rm /a/other; \
                  echo more >> /a/kept; mkdir /a/sub; rmdir /a/sub";
    it.run(["exec", "box", "sh", "-c", script]).ok();
    // What was to follow from that would come before this.
    fs::write(here.path().join("end"), "").unwrap();
    watcher.wait_for_stdout("CREATE /a/end;", LIMIT);
    fs::write(here.path().join("kept"), "host").unwrap();
    let text = {
        watcher.wait_for_stdout("CLOSE_WRITE /a/end;", LIMIT);
        fs::write(here.path().join("last"), "").unwrap();
        watcher.wait_for_stdout("CLOSE_WRITE /a/last;", LIMIT);
        printed(&it, watcher)
    };
    let count = |event: &str| text.lines().filter(|line| *line == event).count();
    for event in [
        "CREATE /a/own;",
        "MODIFY /a/own;",
        "CLOSE_WRITE /a/own;",
        "ATTRIB /a/own;",
        "MOVED_FROM /a/own;",
        "MOVED_TO /a/other;",
        "DELETE /a/other;",
        "CREATE /a/sub;",
        "DELETE /a/sub;",
    ] {
        assert_eq!(count(event), 1, "{event}\n{text}");
    }
    // Once by the container, once by the host.
    assert_eq!(count("CLOSE_WRITE /a/kept;"), 2, "{text}");
}

#[test]
fn a_flood_of_changes_is_bounded_and_the_container_goes_on() {
    let it = Installation::with_busybox();
    it.load_debian();
    let here = tempfile::tempdir().unwrap();
    let mut watcher = watcher(&it, &[mount(here.path(), "/a")], &["/a"]);
    for number in 0..3_000 {
        fs::write(here.path().join(format!("file-{number}")), "x").unwrap();
    }
    it.run(["exec", "box", "true"]).ok();
    // Events go on, whatever was left out.
    let began = Instant::now();
    let mut seen = false;
    for number in 0.. {
        fs::write(here.path().join(format!("mark-{number}")), "x").unwrap();
        let marks = it.run(["logs", "box"]).ok().text();
        seen = marks.contains("CLOSE_WRITE /a/mark-");
        if seen || began.elapsed() > LIMIT * 2 {
            break;
        }
    }
    assert!(seen, "no event after a flood");
    it.run(["exec", "box", "sh", "-c", "ls /a | grep -c file-"]).ok().prints("3000");
    assert!(watcher.is_running());
    printed(&it, watcher);
}

/// What a container's root does while the host changes the same names.
const HOSTILE: &str = r#"
import os, subprocess
MOUNT = """my $mount = `uname -m` =~ /x86_64/ ? 165 : 40;
my ($tag, $place, $kind) = ("container", "/whole", "virtiofs");
exit(syscall($mount, $tag, $place, $kind, 0, 0) != 0)"""
ANNOUNCER = 0xfffefd01
def attempt(call, *arguments, **more):
    try:
        call(*arguments, **more)
        return True
    except OSError:
        return False
def round(number):
    for place in ("/ro", "/rw"):
        name = f"{place}/churn-{number % 8}"
        attempt(os.mknod, name)
        attempt(os.utime, name, (1, 0x1234567))
        attempt(os.rename, name, name + ".x")
        attempt(os.unlink, name + ".x")
        attempt(os.mkdir, f"{place}/.elsewhere")
        attempt(os.rename, f"{place}/.elsewhere", f"{place}/.other")
        attempt(os.rmdir, f"{place}/.other")
for number in range(200):
    round(number)
print("root", flush=True)
# The file system itself, with the root that only the guest's init uses.
os.mkdir("/whole")
if subprocess.run(["perl", "-e", MOUNT]).returncode == 0:
    attempt(os.utime, "/whole", (1, 0x1234567))
    attempt(os.mknod, "/whole/.elsewhere")
    attempt(os.rename, "/whole/1/kept", "/whole/.elsewhere")
    for number in range(50):
        attempt(os.unlink, f"/whole/0/churn-{number % 8}")
    print("whole", os.path.isdir("/whole/0"), flush=True)
# As the announcer's user.
child = os.fork()
if child == 0:
    os.setgroups([])
    os.setgid(ANNOUNCER)
    os.setuid(ANNOUNCER)
    for number in range(50):
        round(number)
    for name in ("/rw/kept", "/ro/kept"):
        attempt(os.unlink, name)
        attempt(os.truncate, name, 0)
        attempt(os.utime, name, (1, 1))
        attempt(os.rename, name, name + ".x")
    os._exit(0)
os.waitpid(child, 0)
print("done", flush=True)
"#;

#[test]
fn a_hostile_guest_gains_nothing_by_the_announcers_requests() {
    let it = Installation::with_busybox();
    it.load_debian();
    let here = tempfile::tempdir().unwrap();
    let at = |name: &str| here.path().join(name);
    for directory in ["ro", "rw"] {
        fs::create_dir(at(directory)).unwrap();
        fs::write(at(directory).join("kept"), "kept\n").unwrap();
        fs::set_permissions(at(directory).join("kept"), fs::Permissions::from_mode(0o600)).unwrap();
    }
    let facts = |name: &str| {
        let found = fs::metadata(at(name)).unwrap();
        let text = fs::read_to_string(at(name)).unwrap();
        (found.ino(), found.mtime_nsec(), found.mtime(), found.ctime_nsec(), found.nlink(), text)
    };
    let before = (facts("ro/kept"), facts("rw/kept"));
    let mut read_only = mount(&at("ro"), "/ro");
    read_only.push_str(",readonly");
    let mut container = it
        .container(["run", "--rm", "--name", "box", "--network", "none", "--cap-add", "ALL"])
        .args(["--mount", &read_only, "--mount", &mount(&at("rw"), "/rw")])
        .args([debian::NAME, "python3", "-c", HOSTILE])
        .spawn();
    // The host makes and removes the names, so that there is always something to announce.
    let mut number = 0;
    while container.is_running() {
        let name = format!("ro/churn-{}", number % 8);
        let _ = fs::write(at(&name), format!("{number}"));
        let _ = fs::rename(at(&name), at("ro/moved"));
        let _ = fs::remove_file(at("ro/moved"));
        number += 1;
        // No more than a busy build does.
        std::thread::sleep(Duration::from_millis(2));
    }
    container.wait(LIMIT).ok().has("whole True").has("done");
    assert_eq!(before, (facts("ro/kept"), facts("rw/kept")));
    // In the read-only directory there is what the host made, and nothing else.
    fs::write(at("ro/last"), "last\n").unwrap();
    let mut names: Vec<_> =
        fs::read_dir(at("ro")).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["kept", "last"]);
}
