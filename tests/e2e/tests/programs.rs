//! Real programs that keep data: PostgreSQL on a volume whose VM is killed, git in a directory of
//! the host.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use e2e::{DEADLINE, Installation, debian, processes, wait_for};
use rustix::process::Signal;

/// Makes a database cluster where there is none, and serves it.
const SERVE: &str = "\
    bin=$(echo /usr/lib/postgresql/*/bin) data=/var/lib/postgresql/own\n\
    [ -e $data/ready ] || \
        { $bin/initdb -k -A trust -D $data >/dev/null && sync && touch $data/ready; } || exit 9\n\
    exec $bin/postgres -D $data -k /tmp -c listen_addresses=";
/// Transactions that are begun; the VM is killed before most of them.
const TRANSACTIONS: u64 = 5000;
/// How many are acknowledged before that.
const ACKNOWLEDGED: u64 = 40;

/// The end of a psql call, whose answers come line by line.
const PSQL: [&str; 8] =
    ["stdbuf", "-oL", "psql", "-qAtX", "-h/tmp", "-vON_ERROR_STOP=1", "-Upostgres", "postgres"];

fn sql(it: &Installation, script: &str) -> String {
    let psql = it.container(["exec", "-i", "db"]).args(PSQL).stdin(script).run();
    psql.ok().text()
}

fn wait_for_postgres(it: &Installation) {
    wait_for("PostgreSQL to answer", DEADLINE, || {
        let asked = it.container(["exec", "-i", "db"]).args(PSQL).stdin("SELECT 'here';\n").run();
        (asked.text() == "here").then_some(())
    });
}

#[test]
fn postgresql_keeps_what_it_committed() {
    let it = Installation::new();
    it.load_programs();
    // The volume is filled with the image's directory, which the database's user owns.
    let volume = "pg:/var/lib/postgresql";
    it.container(["run", "-d", "--name", "db", "--user", "postgres", "-v", volume])
        .args([debian::PROGRAMS, "sh", "-c", SERVE])
        .run()
        .ok();
    wait_for_postgres(&it);
    sql(&it, "CREATE TABLE pair(n bigint, half int);\n");
    let mut script = String::new();
    for n in 0..TRANSACTIONS {
        let insert = |half| format!("INSERT INTO pair VALUES ({n}, {half});");
        let _ = writeln!(script, "BEGIN; {} {} COMMIT;\n\\echo done {n}", insert(0), insert(1));
    }
    let mut session = it.container(["exec", "-i", "db"]).args(PSQL).spawn();
    let mut input = session.stdin.take().expect("its input");
    let feeder = std::thread::spawn(move || {
        // It is killed before it has read everything.
        let _ = std::io::Write::write_all(&mut input, script.as_bytes());
    });
    session.wait_for_stdout(&format!("done {ACKNOWLEDGED}\n"), DEADLINE);
    it.qemus().iter().for_each(|one| processes::kill(one.pid, Signal::KILL));
    let output = session.wait(DEADLINE);
    feeder.join().expect("the feeder");
    wait_for("the container's end", DEADLINE, || {
        (it.status("db").as_deref() == Some("stopped")).then_some(())
    });
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    // The last line may be a part of one.
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let acknowledged: BTreeSet<u64> =
        whole.lines().filter_map(|line| line.strip_prefix("done ")?.parse().ok()).collect();
    assert!((ACKNOWLEDGED..TRANSACTIONS).contains(&(acknowledged.len() as u64)), "{output:?}");

    it.run(["start", "db"]).ok();
    wait_for_postgres(&it);
    let torn = "SELECT count(*) FROM (SELECT FROM pair GROUP BY n HAVING count(*) <> 2) AS torn;\n";
    assert_eq!(sql(&it, torn), "0");
    let found = sql(&it, "SELECT DISTINCT n FROM pair ORDER BY n;\n");
    let found: BTreeSet<u64> = found.lines().map(|n| n.parse().expect("a number")).collect();
    let lost: Vec<&u64> = acknowledged.difference(&found).collect();
    assert!(lost.is_empty(), "lost {lost:?} of {}", acknowledged.len());
    sql(&it, "VACUUM FULL pair;\n");
    it.run(["stop", "db"]).ok();
}

/// All files below a directory.
fn files(directory: &Path) -> Vec<fs::Metadata> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).expect("a directory").flatten() {
        let meta = entry.path().symlink_metadata().expect("its attributes");
        if meta.is_dir() {
            found.extend(files(&entry.path()));
        }
        found.push(meta);
    }
    found
}

#[test]
fn git_works_in_a_directory_of_the_host() {
    let it = Installation::new();
    it.load_programs();
    let source = it.scratch().join("source");
    fs::create_dir(&source).expect("a directory");
    let mount = format!("{}:/source", source.display());
    let sh = |script: &str| {
        let command = it.container(["run", "--rm", "-v", &mount, "-w", "/source"]);
        command.args([debian::PROGRAMS, "sh", "-ec", script]).run()
    };
    let work = "\
        git config --global user.name us; git config --global user.email us@example.org\n\
        git init -q -b main origin; cd origin\n\
        for n in $(seq 150); do echo $n >file-$n; done; mkdir sub; ln -s ../file-1 sub/link\n\
        git add .; git commit -qm first; git status --porcelain\n\
        cd ..; git clone -q origin clone; cd clone; echo two >>file-2; git commit -qam second\n\
        git push -q origin HEAD:second; git gc -q; git fsck --full --strict\n\
        git log --oneline | wc -l; git status --porcelain | wc -l";
    sh(work).ok().prints("2\n0");

    // Whoever runs the container owns what it has made.
    let all = files(&source);
    assert!(all.len() > 300, "{} files", all.len());
    let own = rustix::process::geteuid().as_raw();
    assert!(all.iter().all(|meta| meta.uid() == own));
    assert_eq!(fs::read_to_string(source.join("clone/file-2")).expect("a file"), "2\ntwo\n");
    let link = fs::read_link(source.join("clone/sub/link")).expect("a link");
    assert_eq!(link, Path::new("../file-1"));

    // It sees what the host changes, and the host what it restores.
    let changed = source.join("clone/file-3");
    fs::write(&changed, "changed by the host\n").expect("written");
    fs::remove_file(source.join("clone/file-4")).expect("removed");
    let look = "cd clone; git status --porcelain; git checkout -q .; git status --porcelain\n\
                git -C ../origin log --oneline second | wc -l";
    sh(look).ok().prints(" M file-3\n D file-4\n2");
    assert_eq!(fs::read_to_string(&changed).expect("a file"), "3\n");
}
