//! Running `nft` in the calling thread's namespace.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use container_api::error::{ApiError, ErrorCode, Result};

use super::namespace::failed;

/// A program of the host's, also where a user's `PATH` leaves the administrator's folders out.
pub(super) fn find(program: &str, package: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from))
        .filter(|folder| folder.is_absolute())
        .map(|folder| folder.join(program))
        .find(|file| rustix::fs::access(file, rustix::fs::Access::EXEC_OK).is_ok())
        .ok_or_else(|| {
            let message = format!(
                "networks need {program}: install the package {package} \
                 (`--network none` does without)"
            );
            ApiError::new(ErrorCode::Unavailable, message)
        })
}

/// Changes rules: all of it or nothing.
pub(super) fn apply(nft: &Path, rules: &str) -> Result<()> {
    run(nft, &["-f", "-"], rules).map(drop)
}

/// Names of the tables of a family.
pub(super) fn tables(nft: &Path, family: &str) -> Result<Vec<String>> {
    let listed: serde_json::Value = parse(&run(nft, &["-j", "list", "tables", family], "")?)?;
    let entries = listed["nftables"].as_array().map(Vec::as_slice).unwrap_or_default();
    let names = entries.iter().filter_map(|entry| entry["table"]["name"].as_str());
    Ok(names.map(str::to_owned).collect())
}

/// What there is, in JSON; `null` where there is no such table.
pub(super) fn list(nft: &Path, family: &str, table: &str) -> Result<serde_json::Value> {
    if !tables(nft, family)?.iter().any(|name| name == table) {
        return Ok(serde_json::Value::Null);
    }
    parse(&run(nft, &["-j", "list", "table", family, table], "")?)
}

/// A table of both families, as [`list`] shows them, from one run.
pub(super) fn both(nft: &Path, table: &str) -> Result<[serde_json::Value; 2]> {
    let all = parse(&run(nft, &["-j", "list", "ruleset"], "")?)?;
    let entries = all["nftables"].as_array().map(Vec::as_slice).unwrap_or_default();
    Ok(["bridge", "inet"].map(|family| {
        let ours = |entry: &&serde_json::Value| {
            let mut things = entry.as_object().into_iter().flat_map(|entry| entry.values());
            things.any(|thing| thing["family"] == family && thing["table"] == table)
        };
        serde_json::json!({ "nftables": entries.iter().filter(ours).collect::<Vec<_>>() })
    }))
}

fn parse(text: &[u8]) -> Result<serde_json::Value> {
    serde_json::from_slice(text)
        .map_err(|error| ApiError::internal(format!("nft has listed what is no JSON: {error}")))
}

fn run(nft: &Path, arguments: &[&str], input: &str) -> Result<Vec<u8>> {
    let mut child = Command::new(nft)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .env_clear()
        .spawn()
        .map_err(failed("cannot start nft"))?;
    // It reads all of its input before it says a word.
    let written = child.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output().map_err(failed("cannot wait for nft"))?;
    if output.status.success() {
        return written.map(|()| output.stdout).map_err(failed("cannot write to nft"));
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let line = said.lines().next().unwrap_or("it gave no reason");
    tracing::warn!(rules = input, said = %said, "nft refused rules");
    Err(ApiError::internal(format!("nft refused the rules: {line}")))
}
