//! Who we are at a registry: Docker's `config.json` and its credential helpers.
//!
//! Secrets are never printed, logged or written; what a helper says is bounded in size and time.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use base64::Engine;
use container_api::images::Credentials;
use container_api::{ApiError, Result};
use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Docker Hub's names and the key that Docker uses for all of them.
const HUB: [&str; 3] = ["docker.io", "index.docker.io", "registry-1.docker.io"];
const HUB_KEY: &str = "https://index.docker.io/v1/";
/// The user name that says that a secret is an identity token (the helpers' protocol).
const TOKEN: &str = "<token>";
/// How long a helper may take.
const HELPER: Duration = Duration::from_secs(20);
/// Most bytes of the file, and of what a helper says.
const MAX: u64 = 1 << 20;

/// The part of `config.json` that is about registries.
#[derive(Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct DockerConfig {
    auths: BTreeMap<String, Auth>,
    cred_helpers: BTreeMap<String, String>,
    creds_store: String,
}

#[derive(Clone, Default, Deserialize)]
#[serde(default)]
struct Auth {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
}

/// Where credentials for one registry are.
#[derive(Clone, PartialEq, Eq)]
pub enum Source {
    /// Nowhere: anonymous.
    None,
    /// In the file.
    Stored(Credentials),
    /// A helper knows: the program and the server's key.
    Helper(String, String),
}

/// Finds where the credentials for `reference`'s registry are. `domain` is the registry of
/// references that name none.
pub fn find(reference: &str, domain: &str) -> Result<Source> {
    let Some(path) = config_path() else { return Ok(Source::None) };
    let text = match std::fs::read(&path) {
        Ok(text) if text.len() as u64 <= MAX => text,
        Ok(_) => return Err(ApiError::invalid(format!("{}: too long", path.display()))),
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(Source::None);
        }
        Err(e) => return Err(ApiError::from(e).context(path.display())),
    };
    // serde's message may quote a secret.
    let config: DockerConfig = serde_json::from_slice(&text).map_err(|e| {
        let place = format!("line {}, column {}", e.line(), e.column());
        ApiError::invalid(format!("{}: not Docker's format ({place})", path.display()))
    })?;
    lookup(&config, registry(reference, domain))
}

fn config_path() -> Option<PathBuf> {
    let own = std::env::var_os("DOCKER_CONFIG").filter(|v| !v.is_empty()).map(PathBuf::from);
    let folder = own.or_else(|| Some(std::env::home_dir()?.join(".docker")))?;
    Some(folder.join("config.json"))
}

/// The registry (`host[:port]`) of a reference: its first part when that can't be a name.
fn registry<'a>(reference: &'a str, domain: &'a str) -> &'a str {
    match reference.split_once('/') {
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => host,
        _ => domain,
    }
}

/// A key of `auths` without scheme and path.
fn host_of(key: &str) -> &str {
    let rest = key.strip_prefix("https://").or(key.strip_prefix("http://")).unwrap_or(key);
    rest.split('/').next().unwrap_or_default()
}

fn lookup(config: &DockerConfig, registry: &str) -> Result<Source> {
    let is_hub = HUB.contains(&registry);
    let key = if is_hub { HUB_KEY } else { registry };
    let helper = config.cred_helpers.get(key).or_else(|| config.cred_helpers.get(registry));
    let store = Some(&config.creds_store).filter(|store| !store.is_empty());
    if let Some(helper) = helper.or(store) {
        return Ok(Source::Helper(helper.clone(), key.to_owned()));
    }
    let same = |candidate: &str| {
        let host = host_of(candidate);
        host == registry || (is_hub && HUB.contains(&host))
    };
    let exact = config.auths.get(key);
    let auth = exact.or_else(|| config.auths.iter().find(|(k, _)| same(k)).map(|(_, a)| a));
    match auth {
        None => Ok(Source::None),
        Some(auth) => {
            decode(auth).map(|found| found.map_or(Source::None, Source::Stored)).ok_or_else(|| {
                ApiError::invalid(format!("Docker's login for {registry} is malformed"))
            })
        }
    }
}

/// `Some(None)`: an empty entry, as Docker leaves them for its stores.
fn decode(auth: &Auth) -> Option<Option<Credentials>> {
    let credentials = |username: &str, password: &str| {
        Some(Some(Credentials { username: username.into(), password: password.into() }))
    };
    if !auth.identitytoken.is_empty() {
        return credentials(TOKEN, &auth.identitytoken);
    }
    if auth.auth.is_empty() {
        return match auth.username.is_empty() {
            true => Some(None),
            false => credentials(&auth.username, &auth.password),
        };
    }
    let bytes = base64::engine::general_purpose::STANDARD.decode(auth.auth.trim()).ok()?;
    let text = String::from_utf8(bytes).ok()?;
    let (username, password) = text.split_once(':')?;
    credentials(username, password.trim_end_matches('\0'))
}

/// Asks a helper for the credentials of `server` (protocol: docker-credential-helpers, `get`).
pub async fn ask(helper: &str, server: &str) -> Result<Option<Credentials>> {
    let program = format!("docker-credential-{helper}");
    let failed = |why: String| ApiError::invalid(format!("{program} for {server}: {why}"));
    if helper.contains('/') {
        return Err(failed("a name with a slash".into()));
    }
    let talk = async {
        let mut child = tokio::process::Command::new(&program)
            .arg("get")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            // It may answer without having read.
            let _ = stdin.write_all(server.as_bytes()).await;
        }
        let mut said = Vec::new();
        if let Some(stdout) = child.stdout.take() {
            stdout.take(MAX).read_to_end(&mut said).await?;
        }
        io::Result::Ok((child.wait().await?, said))
    };
    let (status, said) = tokio::time::timeout(HELPER, talk)
        .await
        .map_err(|_| failed(format!("no answer within {} s", HELPER.as_secs())))?
        .map_err(|e| failed(e.to_string()))?;
    if !status.success() {
        let said = String::from_utf8_lossy(&said);
        // The protocol's one error that is none.
        return match said.trim().starts_with("credentials not found") {
            true => Ok(None),
            false => Err(failed(status.to_string())),
        };
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Answer {
        username: String,
        secret: String,
    }
    let answer: Answer = serde_json::from_slice(&said)
        .map_err(|_| failed("its answer is not what the protocol says".into()))?;
    Ok(Some(Credentials { username: answer.username, password: answer.secret }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> DockerConfig {
        serde_json::from_str(text).unwrap()
    }

    fn stored(config: &DockerConfig, reference: &str) -> Option<(String, String)> {
        match lookup(config, registry(reference, "docker.io")).unwrap() {
            Source::Stored(c) => Some((c.username, c.password)),
            _ => None,
        }
    }

    #[test]
    fn registries_of_references() {
        assert_eq!(registry("debian", "docker.io"), "docker.io");
        assert_eq!(registry("me/app:1", "docker.io"), "docker.io");
        assert_eq!(registry("localhost/app", "docker.io"), "localhost");
        assert_eq!(registry("[::1]:5000/app", "docker.io"), "[::1]:5000");
        assert_eq!(registry("ghcr.io/me/app@sha256:0", "docker.io"), "ghcr.io");
    }

    #[test]
    fn stored_logins() {
        let config = config(
            r#"{"auths": {
                "https://index.docker.io/v1/": {"auth": "bWU6cGE6c3M="},
                "http://localhost:5000": {"username": "u", "password": "p"},
                "ghcr.io": {"auth": "eDp5", "identitytoken": "tok"},
                "empty.io": {}
            }, "HttpHeaders": {"x": "y"}}"#,
        );
        let pair = |a: &str, b: &str| Some((a.to_owned(), b.to_owned()));
        assert_eq!(stored(&config, "debian"), pair("me", "pa:ss"));
        assert_eq!(stored(&config, "index.docker.io/debian"), pair("me", "pa:ss"));
        assert_eq!(stored(&config, "localhost:5000/app"), pair("u", "p"));
        assert_eq!(stored(&config, "ghcr.io/app"), pair(TOKEN, "tok"));
        assert_eq!(stored(&config, "empty.io/app"), None);
        assert_eq!(stored(&config, "elsewhere.io/app"), None);
    }

    #[test]
    fn helpers_come_before_the_store_and_the_file() {
        let config = config(
            r#"{"auths": {"ghcr.io": {"auth": "eDp5"}}, "credsStore": "pass",
                "credHelpers": {"ghcr.io": "gh"}}"#,
        );
        let source = |registry| lookup(&config, registry).unwrap();
        assert!(source("ghcr.io") == Source::Helper("gh".into(), "ghcr.io".into()));
        assert!(source("docker.io") == Source::Helper("pass".into(), HUB_KEY.into()));
    }

    #[test]
    fn a_malformed_login_is_not_shown() {
        let config = config(r#"{"auths": {"ghcr.io": {"auth": "c2VjcmV0"}}}"#);
        let error = lookup(&config, "ghcr.io").err().unwrap();
        assert_eq!(error.message, "Docker's login for ghcr.io is malformed");
    }
}
