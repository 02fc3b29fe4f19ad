//! `cargo xtask unsafe`: how much `unsafe` each crate has, in `docs/security.md`. Clippy sees to it
//! that each place says why it is sound (`undocumented_unsafe_blocks`); `lint` fails when the table
//! is not what the sources say.

use std::fmt::Write;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::workspace::{Workspace, step};

/// What surrounds the table in the document.
const BEGIN: &str = "<!-- cargo xtask unsafe -->\n";
const END: &str = "<!-- end of unsafe -->";
const DOCUMENT: &str = "docs/security.md";

/// Writes the table.
pub fn write(workspace: &Workspace, (): ()) -> Result<()> {
    let (text, fresh) = both(workspace)?;
    if text != fresh {
        std::fs::write(workspace.root.join(DOCUMENT), fresh).context(DOCUMENT)?;
        step(format!("written: {DOCUMENT}"));
    }
    Ok(())
}

/// Fails when the table is old.
pub fn check(workspace: &Workspace, (): ()) -> Result<()> {
    let (text, fresh) = both(workspace)?;
    if text != fresh {
        bail!("{DOCUMENT} does not have the counts of today: run `cargo xtask unsafe`");
    }
    println!("{DOCUMENT} has the counts of unsafe");
    Ok(())
}

fn both(workspace: &Workspace) -> Result<(String, String)> {
    let text = std::fs::read_to_string(workspace.root.join(DOCUMENT)).context(DOCUMENT)?;
    let table = table(&workspace.root.join("crates"))?;
    let fresh = replaced(&text, &table)?;
    Ok((text, fresh))
}

fn replaced(text: &str, table: &str) -> Result<String> {
    let (before, rest) = text.split_once(BEGIN).with_context(|| format!("no {BEGIN:?}"))?;
    let (_, after) = rest.split_once(END).with_context(|| format!("no {END:?}"))?;
    Ok(format!("{before}{BEGIN}{table}{END}{after}"))
}

fn table(crates: &Path) -> Result<String> {
    let mut text = "| crate | `unsafe` | in |\n|---|---|---|\n".to_owned();
    let mut all = Count::default();
    for name in sorted(crates)? {
        let mut count = Count::default();
        add(&crates.join(&name).join("src"), &mut count)?;
        let Count { places, files } = count;
        let _ = writeln!(text, "| `{name}` | {places} | {files} files |");
        all = Count { places: all.places + places, files: all.files + files };
    }
    let _ = writeln!(text, "| together | {} | {} files |", all.places, all.files);
    Ok(text)
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Count {
    places: usize,
    files: usize,
}

fn sorted(folder: &Path) -> Result<Vec<String>> {
    let entries = std::fs::read_dir(folder).with_context(|| format!("{}", folder.display()))?;
    let mut names = Vec::new();
    for entry in entries {
        names.push(entry?.file_name().into_string().ok().context("a name of UTF-8")?);
    }
    names.sort();
    Ok(names)
}

fn add(folder: &Path, count: &mut Count) -> Result<()> {
    for name in sorted(folder)? {
        let path = folder.join(&name);
        if path.is_dir() {
            add(&path, count)?;
        } else if name.ends_with(".rs") {
            let text = std::fs::read_to_string(&path).context(name)?;
            let found = places(&text);
            count.places += found;
            count.files += usize::from(found > 0);
        }
    }
    Ok(())
}

/// Blocks, functions, implementations and attributes that are `unsafe`, beyond comments. A text that
/// has the word counts too: there is none in these sources.
fn places(text: &str) -> usize {
    let code = text.lines().map(|line| line.split("//").next().unwrap_or_default());
    let word = |c: char| c.is_alphanumeric() || c == '_';
    code.map(|line| line.split(|c: char| !word(c)).filter(|w| *w == "unsafe").count()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_counted_and_comments_are_not() {
        let text = "// unsafe\nunsafe fn a() {}\n    let b = unsafe { c() }; // unsafe\n\
                    #[unsafe(no_mangle)]\nlet unsafe_d = not_unsafe;\n/// An unsafe one.\n";
        assert_eq!(places(text), 3);
    }

    #[test]
    fn the_table_is_put_between_its_marks() {
        let text = format!("a\n{BEGIN}old\n{END}\nb\n");
        let fresh = replaced(&text, "new\n").unwrap();
        assert_eq!(fresh, format!("a\n{BEGIN}new\n{END}\nb\n"));
        assert!(replaced("nothing", "new").is_err());
    }
}
