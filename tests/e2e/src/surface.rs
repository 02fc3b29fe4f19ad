//! What of a guest a program in it can reach: devices, modules, channels; listed by a script that
//! runs in a container, for `docs/security.md`.

use anyhow::{Context, Result};

use crate::Installation;

/// Prints a line for each.
const SCRIPT: &str = include_str!("../assets/surface.sh");

/// What the list stands between in the document.
const BEGIN: &str = "<!-- cargo xtask surface -->\n```text\n";
const END: &str = "```\n<!-- end -->\n";

/// The list of a container with the defaults and without a network, in a VM that boots.
pub fn list() -> String {
    let it = Installation::with_config("runtime.template = false\nruntime.spare = 0\n");
    let run = ["run", "--rm", "--cpus", "1", "--memory", "256m", "--network", "none"];
    let said = it.run([&run[..], &["busybox", "sh", "-c", SCRIPT]].concat());
    said.ok().text() + "\n"
}

/// The list in the text of the document.
///
/// # Errors
/// When its marks are not there.
pub fn documented(text: &str) -> Result<&str> {
    let (_, rest) = text.split_once(BEGIN).context("docs/security.md has no list to fill")?;
    Ok(rest.split_once(END).context("the list in docs/security.md has no end")?.0)
}

/// The text of the document with another list.
///
/// # Errors
/// When its marks are not there.
pub fn replaced(text: &str, list: &str) -> Result<String> {
    let old = format!("{BEGIN}{}{END}", documented(text)?);
    Ok(text.replacen(&old, &format!("{BEGIN}{list}{END}"), 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_takes_anothers_place() {
        let text = format!("a\n{BEGIN}old\n{END}b\n");
        assert_eq!(documented(&text).unwrap(), "old\n");
        assert_eq!(replaced(&text, "new\n").unwrap(), format!("a\n{BEGIN}new\n{END}b\n"));
        documented("nothing").unwrap_err();
    }
}
