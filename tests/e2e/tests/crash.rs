//! A database that is killed at any moment: what it acknowledged is there afterwards, whole.
//!
//! ```text
//! host                                container
//! transactions on stdin ────────────► sqlite3: COMMIT, then the number on stdout
//! numbers on stdout ◄──────────────── one database on a volume (write-ahead log), one on the
//! kill -9 of QEMU, the helper, the    container's own disk (rollback journal)
//! program in turn ─► start again ───► says what it finds, and goes on
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::time::Duration;

use e2e::{DEADLINE, Installation, Output, debian, processes, wait_for};
use rustix::process::Signal;

/// Databases: the schema's name in the session, and its file.
const DATABASES: [(&str, &str); 2] = [("main", "/data/db"), ("own", "/var/lib/own.db")];
/// More transactions than are made before a kill.
const TRANSACTIONS: u64 = 2000;
/// Rounds of the ordinary suite.
const ROUNDS: u64 = 5;
/// Rounds of the long test.
const SOAK_ROUNDS: u64 = 50;

/// What is killed.
const VICTIMS: [&str; 3] = ["hypervisor", "helper", "program"];

/// Numbers that look random and are the same in every run (SplitMix64).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit
    }
}

/// Has sqlite3 say something at once: what it prints by itself stays in a buffer.
fn say(expression: &str) -> String {
    format!("SELECT writefile('/dev/stdout', {expression} || char(10));\n")
}

/// Opens both databases, and says what is in them.
fn look() -> String {
    let mut script = String::from(".bail on\n.output /dev/null\n");
    let (_, own) = DATABASES[1];
    let _ = writeln!(script, "ATTACH '{own}' AS own;");
    script += "PRAGMA main.journal_mode=WAL; PRAGMA own.journal_mode=DELETE;\n";
    for (name, _) in DATABASES {
        // Less does not sync the directory in which the rollback journal was removed.
        let _ = writeln!(script, "PRAGMA {name}.synchronous=EXTRA;");
        let _ =
            writeln!(script, "CREATE TABLE IF NOT EXISTS {name}.pair(n INTEGER, half INTEGER);");
        let check = format!("pragma_integrity_check('pair', '{name}')");
        let check = format!("(SELECT group_concat(integrity_check) FROM {check})");
        script += &say(&format!("'check {name} ' || {check}"));
        let whole = format!("SELECT n FROM {name}.pair GROUP BY n HAVING count(*) = 2");
        let found = format!("ifnull((SELECT group_concat(n, ' ') FROM ({whole})), '')");
        script += &say(&format!("'found {name} ' || {found}"));
        let torn = format!("SELECT n FROM {name}.pair GROUP BY n HAVING count(*) <> 2");
        script += &say(&format!("'torn {name} ' || (SELECT count(*) FROM ({torn}))"));
    }
    script
}

/// Transactions of two rows each, acknowledged one by one.
fn transactions(from: u64) -> String {
    let mut script = String::new();
    for n in from..from + TRANSACTIONS {
        for (name, _) in DATABASES {
            let insert = |half| format!("INSERT INTO {name}.pair VALUES({n}, {half});");
            let _ = writeln!(script, "BEGIN; {} {} COMMIT;", insert(0), insert(1));
            script += &say(&format!("'done {name} {n}'"));
        }
    }
    script
}

/// What sessions have said, by database.
#[derive(Default)]
struct Ledger {
    acknowledged: BTreeMap<String, BTreeSet<u64>>,
    next: u64,
}

impl Ledger {
    /// Reads a session's output: it must find all that was acknowledged before it. How many it
    /// has found in each.
    fn take(&mut self, output: &Output) -> Vec<usize> {
        let text = output.text();
        let mut lines: Vec<&str> = text.lines().collect();
        if !String::from_utf8_lossy(&output.stdout).ends_with('\n') {
            lines.pop();
        }
        let mut counts = Vec::new();
        for (name, file) in DATABASES {
            let said = |what: &str| {
                let prefix = format!("{what} {name} ");
                let found = lines.iter().find_map(|line| line.strip_prefix(&prefix));
                found.unwrap_or_else(|| panic!("{file} said nothing of '{what}': {output:?}"))
            };
            assert_eq!((said("check"), said("torn")), ("ok", "0"), "{file}");
            let found: BTreeSet<u64> =
                said("found").split_whitespace().map(|n| n.parse().expect("a number")).collect();
            let before = self.acknowledged.entry(name.to_owned()).or_default();
            let lost: Vec<&u64> = before.difference(&found).collect();
            assert!(lost.is_empty(), "{file} lost {lost:?} of {}", before.len());
            counts.push(found.len());
            let done = format!("done {name} ");
            before.extend(
                lines.iter().filter_map(|line| line.strip_prefix(&done)?.parse::<u64>().ok()),
            );
            let last = before.last().max(found.last()).copied().unwrap_or(0);
            // One that was not acknowledged may be there as well.
            self.next = self.next.max(last + 2);
        }
        counts
    }
}

/// Ends what runs in a container's name.
fn kill(it: &Installation, victim: &str) {
    match victim {
        "program" => drop(it.run(["kill", "-s", "KILL", "db"]).ok()),
        "helper" => it.helpers().iter().for_each(|one| processes::kill(one.pid, Signal::KILL)),
        _ => it.qemus().iter().for_each(|one| processes::kill(one.pid, Signal::KILL)),
    }
}

fn survives(rounds: u64, seed: u64) {
    let it = Installation::without_mode();
    it.load_debian();
    let create = ["create", "-i", "--name", "db", "-v", "data:/data", debian::NAME];
    it.container(create).args(["sqlite3", "-batch", DATABASES[0].1]).run().ok();
    let mut numbers = Numbers(seed);
    let mut ledger = Ledger::default();
    for round in 0..rounds {
        let victim = VICTIMS[(round % 3) as usize];
        let acknowledged = 1 + numbers.below(20);
        let later = Duration::from_micros(numbers.below(20_000));
        let mut session = it.container(["start", "-a", "-i", "db"]).spawn();
        let mut input = session.stdin.take().expect("its input");
        let script = look() + &transactions(ledger.next);
        let feeder = std::thread::spawn(move || {
            // It is killed before it has read everything.
            let _ = std::io::Write::write_all(&mut input, script.as_bytes());
        });
        let last = format!("done own {}\n", ledger.next + acknowledged - 1);
        session.wait_for_stdout(&last, DEADLINE);
        // Anywhere in the next transaction.
        std::thread::sleep(later);
        kill(&it, victim);
        let output = session.wait(DEADLINE);
        feeder.join().expect("the feeder");
        assert_ne!(output.code, Some(0), "the {victim} was killed: {output:?}");
        wait_for("the container's end", DEADLINE, || {
            (it.status("db").as_deref() == Some("stopped")).then_some(())
        });
        ledger.take(&output);
    }
    let counts = ledger.take(&it.container(["start", "-a", "-i", "db"]).stdin(look()).run().ok());
    let acknowledged: Vec<usize> = ledger.acknowledged.values().map(BTreeSet::len).collect();
    println!("{rounds} rounds, seed {seed}: {acknowledged:?} acknowledged, {counts:?} found");
    assert!(acknowledged.iter().all(|count| *count as u64 >= rounds));
}

#[test]
fn a_database_keeps_what_it_acknowledged() {
    survives(ROUNDS, 1);
}

#[test]
#[ignore = "50 rounds take minutes: `make soak` runs it"]
fn soak_a_database_keeps_what_it_acknowledged() {
    survives(SOAK_ROUNDS, 2);
}
