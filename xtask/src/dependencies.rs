//! `cargo xtask dependencies`: licences, sources and bans of all dependencies, by the rules of
//! `deny.toml`, without the network. It understands the part of cargo-deny's rules that the file
//! uses and refuses any other: what is not looked at must not look as if it were.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::workspace::{Workspace, output};

/// The rules that are understood: where in the file, and the values that may stand there (none:
/// any).
const KNOWN: &[(&str, &[&str])] = &[
    ("graph.targets", &[]),
    ("licenses.allow", &[]),
    ("licenses.exceptions", &[]),
    ("bans.multiple-versions", &["warn"]),
    ("bans.wildcards", &["deny"]),
    ("bans.allow-wildcard-paths", &["true"]),
    ("sources.unknown-registry", &["deny"]),
    ("sources.unknown-git", &["deny"]),
];
/// The one registry, as cargo names it whatever mirror it asks.
const REGISTRY: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// Fails with every dependency that the rules forbid.
pub fn check(workspace: &Workspace, (): ()) -> Result<()> {
    let path = workspace.root.join("deny.toml");
    let text =
        std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let rules = Rules::parse(&text).context("deny.toml")?;
    let mut command = workspace.cargo();
    command.args(["metadata", "--format-version", "1", "--locked"]);
    for target in &rules.targets {
        command.args(["--filter-platform", target]);
    }
    let metadata: Value = serde_json::from_str(&output(&mut command)?).context("cargo metadata")?;
    let found = Found::of(&metadata, &rules);
    if found.packages == 0 {
        bail!("cargo metadata names no dependencies");
    }
    if !found.wrong.is_empty() {
        bail!("dependencies against deny.toml:\n  {}", found.wrong.join("\n  "));
    }
    println!(
        "{} packages: licences, sources and versions are as deny.toml wants them; {} are there in \
         several versions",
        found.packages, found.several
    );
    Ok(())
}

/// What `deny.toml` says.
struct Rules {
    targets: Vec<String>,
    allow: BTreeSet<String>,
    /// What single packages may have beside that.
    exceptions: BTreeMap<String, BTreeSet<String>>,
}

impl Rules {
    fn parse(text: &str) -> Result<Rules> {
        let file: toml::Table = text.parse()?;
        let mut values = BTreeMap::new();
        for (table, rules) in &file {
            let rules = rules.as_table().with_context(|| format!("{table} is no table"))?;
            for (key, value) in rules {
                values.insert(format!("{table}.{key}"), value);
            }
        }
        for (rule, value) in &values {
            let known = KNOWN.iter().find(|(name, _)| name == rule);
            let (_, may) = known.with_context(|| format!("the rule {rule} is not understood"))?;
            let is = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            if !may.is_empty() && !may.contains(&is.as_str()) {
                bail!("{rule} = {value}: only {} is understood", may.join(", "));
            }
        }
        if let Some((missing, _)) = KNOWN.iter().find(|(name, _)| !values.contains_key(*name)) {
            bail!("the rule {missing} is missing");
        }
        let exceptions = values["licenses.exceptions"].as_array().context("no list")?;
        let exceptions = exceptions.iter().map(|exception| {
            let package = exception["crate"].as_str().context("an exception for a crate")?;
            Ok((package.to_owned(), texts(&exception["allow"])?.into_iter().collect()))
        });
        Ok(Rules {
            targets: texts(values["graph.targets"]).context("graph.targets")?,
            allow: texts(values["licenses.allow"]).context("licenses.allow")?.into_iter().collect(),
            exceptions: exceptions.collect::<Result<_>>().context("licenses.exceptions")?,
        })
    }

    /// Whether a package may have its licence.
    fn allow(&self, package: &str, licence: &str) -> Result<bool> {
        let own = self.exceptions.get(package);
        let own = own.map_or(Ok(false), |own: &BTreeSet<String>| allowed(licence, own))?;
        Ok(own || allowed(licence, &self.allow)?)
    }
}

fn texts(list: &toml::Value) -> Result<Vec<String>> {
    let items = list.as_array().context("it is no list")?;
    let text = |item: &toml::Value| item.as_str().map(str::to_owned);
    items.iter().map(|item| text(item).context("it has no texts")).collect()
}

/// What there is, and what of it is wrong.
#[derive(Default)]
struct Found {
    packages: usize,
    several: usize,
    wrong: Vec<String>,
}

impl Found {
    fn of(metadata: &Value, rules: &Rules) -> Found {
        let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
        let nodes = list(&metadata["resolve"]["nodes"]);
        let used: BTreeSet<&str> = nodes.iter().filter_map(|node| node["id"].as_str()).collect();
        let mut found = Found::default();
        let mut versions: BTreeMap<String, usize> = BTreeMap::new();
        for package in list(&metadata["packages"]) {
            if !package["id"].as_str().is_some_and(|id| used.contains(id)) {
                continue;
            }
            let name = package["name"].as_str().unwrap_or("?");
            let shown = format!("{name} {}", package["version"].as_str().unwrap_or("?"));
            match package["source"].as_str() {
                // One of ours.
                None => {
                    let any = |d: &&Value| d["req"] == "*" && d["path"].is_null();
                    for dependency in list(&package["dependencies"]).iter().filter(any) {
                        found.wrong.push(format!("{name} takes any {}", dependency["name"]));
                    }
                }
                Some(REGISTRY) => {}
                Some(other) => found.wrong.push(format!("{shown} comes from {other}")),
            }
            found.packages += 1;
            *versions.entry(name.to_owned()).or_default() += 1;
            let licence = package["license"].as_str().unwrap_or_default();
            match rules.allow(name, licence) {
                Ok(true) => {}
                Ok(false) => found.wrong.push(format!("{shown} has the licence {licence:?}")),
                Err(error) => found.wrong.push(format!("{shown}: {error:#}")),
            }
        }
        found.several = versions.values().filter(|count| **count > 1).count();
        found
    }
}

/// Whether a licence expression (SPDX, annex D; `/` is its older `OR`) can be met by what is
/// allowed.
fn allowed(expression: &str, allow: &BTreeSet<String>) -> Result<bool> {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut rest = words.as_slice();
    let met = either(&mut rest, allow)?;
    match rest {
        [] => Ok(met),
        [word, ..] => bail!("the licence {expression:?} makes no sense at {word:?}"),
    }
}

fn either(rest: &mut &[&str], allow: &BTreeSet<String>) -> Result<bool> {
    let mut met = both(rest, allow)?;
    while let ["OR", more @ ..] = *rest {
        *rest = more;
        met |= both(rest, allow)?;
    }
    Ok(met)
}

fn both(rest: &mut &[&str], allow: &BTreeSet<String>) -> Result<bool> {
    let mut met = one(rest, allow)?;
    while let ["AND", more @ ..] = *rest {
        *rest = more;
        met &= one(rest, allow)?;
    }
    Ok(met)
}

fn one(rest: &mut &[&str], allow: &BTreeSet<String>) -> Result<bool> {
    match *rest {
        ["(", more @ ..] => {
            *rest = more;
            let met = either(rest, allow)?;
            match *rest {
                [")", more @ ..] => *rest = more,
                _ => bail!("a ')' is missing"),
            }
            Ok(met)
        }
        [licence, "WITH", exception, more @ ..] => {
            *rest = more;
            Ok(allow.contains(&format!("{licence} WITH {exception}")))
        }
        [] | ["OR" | "AND" | "WITH" | ")", ..] => bail!("no licence is named"),
        [licence, more @ ..] => {
            *rest = more;
            Ok(allow.contains(*licence))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const FILE: &str = include_str!("../../deny.toml");

    #[test]
    fn licence_expressions_are_met_or_not() {
        let allow: BTreeSet<String> =
            ["MIT", "Apache-2.0", "Apache-2.0 WITH LLVM-exception"].map(String::from).into();
        let met = |text: &str| allowed(text, &allow).ok();
        for (text, wanted) in [
            ("MIT", Some(true)),
            ("GPL-3.0", Some(false)),
            ("GPL-3.0 OR MIT", Some(true)),
            ("GPL-3.0/MIT", Some(true)),
            ("GPL-3.0 AND MIT", Some(false)),
            ("GPL-3.0 AND MIT OR Apache-2.0", Some(true)),
            ("(MIT OR GPL-3.0) AND Apache-2.0 WITH LLVM-exception", Some(true)),
            ("MIT AND (GPL-3.0 OR GPL-2.0 WITH LLVM-exception)", Some(false)),
            ("MIT WITH LLVM-exception", Some(false)),
            ("", None),
            ("MIT OR", None),
            ("(MIT", None),
            ("MIT Apache-2.0", None),
        ] {
            assert_eq!(met(text), wanted, "{text}");
        }
    }

    #[test]
    fn rules_that_are_not_understood_are_refused() {
        Rules::parse(FILE).unwrap();
        for (from, to) in [
            ("unknown-git = \"deny\"", "unknown-git = \"allow\""),
            ("unknown-git = \"deny\"", ""),
            ("[bans]", "[bans]\ndeny = [\"openssl\"]"),
            ("[graph]", "[advisories]\nyanked = \"deny\"\n[graph]"),
        ] {
            assert!(FILE.contains(from));
            assert!(Rules::parse(&FILE.replace(from, to)).is_err(), "{to}");
        }
    }

    #[test]
    fn what_is_forbidden_is_found() {
        let rules = Rules::parse(FILE).unwrap();
        let package = |id: &str, source: Value, licence: &str, dependencies: Value| {
            json!({"id": id, "name": id, "version": "1.0.0", "source": source,
                   "license": licence, "dependencies": dependencies})
        };
        let metadata = json!({
            "resolve": {"nodes": [{"id": "a"}, {"id": "b"}, {"id": "c"}, {"id": "d"},
                                  {"id": "container-trim"}]},
            "packages": [
                package("a", Value::Null, "MIT", json!([
                    {"name": "b", "req": "*", "path": null},
                    {"name": "z", "req": "*", "path": "/z"},
                ])),
                package("b", json!(REGISTRY), "GPL-3.0", json!([])),
                package("c", json!("git+https://example.com/c"), "MIT", json!([])),
                package("d", json!(REGISTRY), "", json!([])),
                // An exception.
                package("container-trim", Value::Null, "GPL-2.0-or-later", json!([])),
                // Not used on any target.
                package("e", json!("git+https://example.com/e"), "", json!([])),
            ],
        });
        let found = Found::of(&metadata, &rules);
        assert_eq!((found.packages, found.wrong.len()), (5, 4), "{:?}", found.wrong);
    }
}
