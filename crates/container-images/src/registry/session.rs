//! One registry and repository: requests, their errors, their repetition.

use std::time::Duration;

use container_api::ErrorCode;
use container_api::config::RegistryConfig;
use container_api::escape::{escape, escape_bytes};
use container_api::images::{Credentials, Pull, Scheme};
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use reqwest::{Response, StatusCode};

use super::auth::Challenge;
use crate::error::{Error, Result};
use crate::reference::Reference;

/// Longest time to a connection, names and TLS included.
const CONNECT: Duration = Duration::from_secs(8);
/// Longest silence of a connection.
pub(super) const STALL: Duration = Duration::from_secs(30);
/// Tries of one request.
pub(super) const TRIES: u32 = 5;
/// Longest pause that a registry can ask for.
const MAX_PAUSE: Duration = Duration::from_secs(10);
/// Bytes of an error's body that are read, and characters that are shown.
const MAX_ERROR_BODY: usize = 64 << 10;
const MAX_ERROR_TEXT: usize = 200;

/// A failure, and whether trying again may help.
#[derive(Debug)]
pub(super) struct Failure {
    pub error: Box<Error>,
    pub transient: bool,
    pub pause: Option<Duration>,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure { error: error.into(), transient: false, pause: None }
    }
}

/// What is known about one pull's registry.
#[derive(Debug)]
pub(super) struct Session {
    http: reqwest::Client,
    base: String,
    pub registry: String,
    pub repository: String,
    pub credentials: Option<Credentials>,
    authorization: tokio::sync::Mutex<Option<HeaderValue>>,
}

impl Session {
    pub fn new(reference: &Reference, request: &Pull, config: &RegistryConfig) -> Result<Session> {
        let host = reference.host();
        let plain = match request.scheme {
            Scheme::Http => true,
            Scheme::Https => false,
            Scheme::Auto => {
                is_loopback(host) || config.insecure.iter().any(|i| i == reference.domain())
            }
        };
        Ok(Session {
            http: http_client(plain, is_loopback(host))
                .map_err(|e| Error::Internal(format!("setting up HTTP: {}", chain(&e))))?,
            base: format!("{}://{host}", if plain { "http" } else { "https" }),
            registry: reference.domain().to_owned(),
            repository: reference.path().to_owned(),
            credentials: request.credentials.clone(),
            authorization: tokio::sync::Mutex::new(None),
        })
    }

    pub fn is_secure(&self) -> bool {
        self.base.starts_with("https:")
    }

    pub fn http(&self) -> &reqwest::Client {
        &self.http
    }

    pub fn error(&self, operation: &str, problem: impl AsRef<str>, code: ErrorCode) -> Error {
        Error::Registry {
            registry: escape(&self.registry).into_owned(),
            operation: escape(operation).into_owned(),
            problem: escape(problem.as_ref()).into_owned(),
            code,
        }
    }

    pub fn transport(&self, operation: &str, error: reqwest::Error) -> Failure {
        let error = error.without_url();
        let code = match error.is_timeout() {
            true => ErrorCode::Timeout,
            false => ErrorCode::Unavailable,
        };
        let transient = !error.is_builder() && !error.is_redirect();
        Failure { error: self.error(operation, chain(&error), code).into(), transient, pause: None }
    }

    /// One GET below `/v2/<repository>/`, authenticated when the registry wants that. The answer is
    /// a success, or one of `also`.
    pub async fn get(
        &self,
        operation: &str,
        path: &str,
        headers: HeaderMap,
        also: &[StatusCode],
    ) -> std::result::Result<Response, Failure> {
        let url = format!("{}/v2/{}/{path}", self.base, self.repository);
        for last in [false, true] {
            let mut headers = headers.clone();
            let used = self.authorization.lock().await.clone();
            if let Some(value) = &used {
                headers.insert(AUTHORIZATION, value.clone());
            }
            let sent = tokio::time::timeout(STALL, self.http.get(&url).headers(headers).send());
            let response = match sent.await {
                Ok(result) => result.map_err(|e| self.transport(operation, e))?,
                Err(_) => return Err(self.stalled(operation)),
            };
            let status = response.status();
            if status.is_success() || also.contains(&status) {
                return Ok(response);
            }
            if status == StatusCode::UNAUTHORIZED && !last {
                let challenge = Challenge::of(response.headers().get_all(WWW_AUTHENTICATE));
                if let Some(challenge) = challenge {
                    self.authenticate(&challenge, used).await?;
                    continue;
                }
            }
            return Err(self.refusal(operation, response).await);
        }
        Err(self.error(operation, "not authorised", ErrorCode::PermissionDenied).into())
    }

    /// Renews the authorization, unless another request has done so since `used` was taken.
    async fn authenticate(
        &self,
        challenge: &Challenge,
        used: Option<HeaderValue>,
    ) -> std::result::Result<(), Failure> {
        let mut current = self.authorization.lock().await;
        if *current == used {
            *current = Some(self.authorize(challenge).await?);
        }
        Ok(())
    }

    pub fn stalled(&self, operation: &str) -> Failure {
        let problem = format!("silent for {} s", STALL.as_secs());
        let error = self.error(operation, problem, ErrorCode::Timeout);
        Failure { error: error.into(), transient: true, pause: None }
    }

    /// What an unsuccessful answer means.
    pub async fn refusal(&self, operation: &str, response: Response) -> Failure {
        let status = response.status();
        let transient = status.is_server_error()
            || status == StatusCode::TOO_MANY_REQUESTS
            || status == StatusCode::REQUEST_TIMEOUT;
        let pause = response
            .headers()
            .get(RETRY_AFTER)
            .and_then(|v| v.to_str().ok()?.parse().ok())
            .map(|seconds| Duration::from_secs(seconds).min(MAX_PAUSE));
        let code = match status {
            StatusCode::NOT_FOUND => ErrorCode::NotFound,
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => ErrorCode::PermissionDenied,
            _ => ErrorCode::Unavailable,
        };
        let said = tokio::time::timeout(STALL, error_text(response)).await.unwrap_or_default();
        let reason = status.canonical_reason().unwrap_or("failure");
        let problem = match said.is_empty() {
            true => format!("{} {reason}", status.as_u16()),
            false => format!("{} {reason}: {said}", status.as_u16()),
        };
        Failure { error: self.error(operation, problem, code).into(), transient, pause }
    }

    /// Repeats `request` while its failures are transient, with growing pauses.
    pub async fn retry<T, F>(&self, tries: u32, mut request: impl FnMut() -> F) -> Result<T>
    where
        F: Future<Output = std::result::Result<T, Failure>>,
    {
        let mut tried = 1;
        loop {
            match request().await {
                Ok(value) => return Ok(value),
                Err(failure) if failure.transient && tried < tries => {
                    tracing::warn!(error = %failure.error, tried, "registry request failed");
                    tokio::time::sleep(failure.pause.unwrap_or(back_off(tried))).await;
                    tried += 1;
                }
                Err(failure) => return Err(*failure.error),
            }
        }
    }
}

/// 0.25, 0.5, 1, 2, 4 … at most 4 s.
pub(super) fn back_off(tried: u32) -> Duration {
    Duration::from_millis(250) * 2u32.pow(tried.clamp(1, 5) - 1)
}

pub(super) fn http_client(plain: bool, loopback: bool) -> reqwest::Result<reqwest::Client> {
    // An error says that another provider is there already, which serves as well.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let builder = || {
        let builder = reqwest::Client::builder()
            .user_agent(concat!("container/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT)
            .read_timeout(STALL)
            .redirect(reqwest::redirect::Policy::custom(follow));
        // As Go's programs do: a proxy has no way to our own loopback.
        if loopback { builder.no_proxy() } else { builder }
    };
    match builder().build() {
        // A host without any certificates can still speak plain HTTP.
        Err(_) if plain => builder().tls_certs_only([]).build(),
        other => other,
    }
}

/// Follows redirects, but never from HTTPS to HTTP.
fn follow(attempt: reqwest::redirect::Attempt<'_>) -> reqwest::redirect::Action {
    let was_secure = attempt.previous().last().is_some_and(|url| url.scheme() == "https");
    if attempt.previous().len() > 10 {
        attempt.error("too many redirects")
    } else if was_secure && attempt.url().scheme() != "https" {
        attempt.error("a redirect from https to http")
    } else {
        attempt.follow()
    }
}

/// Whether `host[:port]` is this machine.
pub(super) fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[').and_then(|h| h.split_once(']')) {
        Some((address, _)) => address,
        None => host.split(':').next().unwrap_or(host),
    };
    name == "localhost"
        || name.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// An error and its sources, in one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        let own = inner.to_string();
        if !text.contains(&own) {
            text = format!("{text}: {own}");
        }
        source = inner.source();
    }
    text
}

/// The message in an error's body, shortened.
async fn error_text(response: Response) -> String {
    #[derive(serde::Deserialize)]
    struct Body {
        errors: Vec<Item>,
    }
    #[derive(serde::Deserialize)]
    struct Item {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let bytes = read_bounded(response, MAX_ERROR_BODY).await.unwrap_or_default();
    let text = match serde_json::from_slice::<Body>(&bytes) {
        Ok(body) => body.errors.into_iter().next().map(|e| match e.message.is_empty() {
            true => e.code,
            false => e.message,
        }),
        Err(_) => None,
    };
    let text: String = text.unwrap_or_default().chars().take(MAX_ERROR_TEXT).collect();
    escape_bytes(text.as_bytes())
}

/// A body of at most `limit` bytes; `None` when it is longer or fails.
pub(super) async fn read_bounded(mut response: Response, limit: usize) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await.ok()? {
        if bytes.len() + chunk.len() > limit {
            return None;
        }
        bytes.extend_from_slice(&chunk);
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback() {
        for host in ["localhost", "localhost:5000", "127.0.0.1:1", "127.8.9.1", "[::1]:5000"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in ["example.com", "localhost.example", "10.0.0.1:5000", "[fe80::1]"] {
            assert!(!is_loopback(host), "{host}");
        }
    }

    #[test]
    fn pauses_of_a_request_stay_below_the_first_contact() {
        let sum: Duration = (1..TRIES).map(back_off).sum();
        assert!(sum < Duration::from_secs(10), "{sum:?}");
    }
}
