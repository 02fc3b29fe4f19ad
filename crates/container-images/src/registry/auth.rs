//! How a registry wants to be asked: Basic, or Bearer with a token from elsewhere
//! (distribution's token specification).

use container_api::ErrorCode;
use reqwest::Url;
use reqwest::header::HeaderValue;
use serde::Deserialize;

use super::session::{Failure, STALL, Session, read_bounded};

/// Largest token answer in bytes.
const MAX_TOKEN: usize = 1 << 20;
/// The user name that says that the password is an identity token.
const TOKEN_USER: &str = "<token>";
const CLIENT: &str = "container";

/// What `WWW-Authenticate` asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    Basic,
    Bearer { realm: String, service: Option<String>, scope: Option<String> },
}

impl Challenge {
    /// The first challenge that we can answer, Bearer before Basic.
    pub fn of<'a>(headers: impl IntoIterator<Item = &'a HeaderValue>) -> Option<Challenge> {
        let found: Vec<Challenge> =
            headers.into_iter().filter_map(|h| Challenge::parse(h.to_str().ok()?)).collect();
        found.iter().find(|c| **c != Challenge::Basic).or(found.first()).cloned()
    }

    fn parse(text: &str) -> Option<Challenge> {
        let (scheme, rest) = text.trim().split_once(' ').unwrap_or((text.trim(), ""));
        if scheme.eq_ignore_ascii_case("basic") {
            return Some(Challenge::Basic);
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let (mut realm, mut service, mut scope) = (None, None, None);
        for (key, value) in parameters(rest) {
            match key.to_ascii_lowercase().as_str() {
                "realm" => realm = Some(value),
                "service" => service = Some(value),
                "scope" => scope = Some(value),
                _ => {}
            }
        }
        Some(Challenge::Bearer { realm: realm?, service, scope })
    }
}

/// `key="value", key=value …`; quoted values may hold commas and escaped characters.
fn parameters(text: &str) -> Vec<(String, String)> {
    let mut out = Vec::new();
    let mut chars = text.chars().peekable();
    loop {
        while chars.next_if(|c| *c == ',' || c.is_whitespace()).is_some() {}
        let mut key = String::new();
        while let Some(c) = chars.next_if(|c| *c != '=' && *c != ',') {
            key.push(c);
        }
        if chars.next_if_eq(&'=').is_none() {
            match chars.peek() {
                Some(_) => continue,
                None => return out,
            }
        }
        let mut value = String::new();
        if chars.next_if_eq(&'"').is_some() {
            while let Some(c) = chars.next() {
                match c {
                    '"' => break,
                    '\\' => value.extend(chars.next()),
                    c => value.push(c),
                }
            }
        } else {
            while let Some(c) = chars.next_if(|c| *c != ',') {
                value.push(c);
            }
        }
        out.push((key.trim().to_owned(), value.trim().to_owned()));
    }
}

#[derive(Deserialize)]
struct Token {
    #[serde(default)]
    token: String,
    #[serde(default)]
    access_token: String,
}

impl Session {
    /// The `Authorization` that answers `challenge`.
    pub(super) async fn authorize(&self, challenge: &Challenge) -> Result<HeaderValue, Failure> {
        match challenge {
            Challenge::Basic => self.basic().ok_or_else(|| {
                let problem = "the registry wants a user name and password";
                self.error("logging in", problem, ErrorCode::PermissionDenied).into()
            }),
            Challenge::Bearer { realm, service, scope } => {
                let token = self.token(realm, service.as_deref(), scope.as_deref()).await?;
                self.header("Bearer ", &token)
            }
        }
    }

    fn basic(&self) -> Option<HeaderValue> {
        let credentials = self.credentials.as_ref()?;
        let joined = format!("{}:{}", credentials.username, credentials.password);
        self.header("Basic ", &base64(joined.as_bytes())).ok()
    }

    fn header(&self, scheme: &str, value: &str) -> Result<HeaderValue, Failure> {
        let mut header = HeaderValue::try_from(format!("{scheme}{value}")).map_err(|_| {
            self.error("logging in", "the token holds odd characters", ErrorCode::InvalidData)
        })?;
        header.set_sensitive(true);
        Ok(header)
    }

    async fn token(
        &self,
        realm: &str,
        service: Option<&str>,
        scope: Option<&str>,
    ) -> Result<String, Failure> {
        let operation = "fetching a token";
        let wrong = |problem: &str| self.error(operation, problem, ErrorCode::InvalidData);
        let mut url = Url::parse(realm).map_err(|_| wrong("the realm is no address"))?;
        // A secure registry must not send passwords over an open line.
        if !matches!(url.scheme(), "https") && (self.is_secure() || url.scheme() != "http") {
            return Err(wrong("the realm is not https").into());
        }
        let own_scope = format!("repository:{}:pull", self.repository);
        let mut fields = vec![("scope", scope.unwrap_or(&own_scope))];
        fields.extend(service.map(|s| ("service", s)));
        let identity = self.credentials.as_ref().filter(|c| c.username == TOKEN_USER);
        let request = match identity {
            Some(credentials) => {
                fields.push(("grant_type", "refresh_token"));
                fields.push(("refresh_token", &credentials.password));
                fields.push(("client_id", CLIENT));
                self.http()
                    .post(url)
                    .header("content-type", "application/x-www-form-urlencoded")
                    .body(form(&fields))
            }
            None => {
                url.query_pairs_mut().extend_pairs(&fields);
                match self.basic() {
                    Some(basic) => self.http().get(url).header("authorization", basic),
                    None => self.http().get(url),
                }
            }
        };
        let answer = tokio::time::timeout(STALL, request.send()).await;
        let response = answer
            .map_err(|_| self.stalled(operation))?
            .map_err(|e| self.transport(operation, e))?;
        if !response.status().is_success() {
            return Err(self.refusal(operation, response).await);
        }
        let body = tokio::time::timeout(STALL, read_bounded(response, MAX_TOKEN)).await;
        let body = body.ok().flatten().ok_or_else(|| wrong("the answer is cut or too large"))?;
        let token: Token =
            serde_json::from_slice(&body).map_err(|_| wrong("the answer holds no token"))?;
        let token = if token.token.is_empty() { token.access_token } else { token.token };
        if token.is_empty() { Err(wrong("the answer holds no token").into()) } else { Ok(token) }
    }
}

/// `application/x-www-form-urlencoded`.
fn form(fields: &[(&str, &str)]) -> String {
    // A query has the same form; the address is not used.
    let mut url = Url::parse("http://form").expect("a constant address parses");
    url.query_pairs_mut().extend_pairs(fields);
    url.query().unwrap_or_default().to_owned()
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for chunk in bytes.chunks(3) {
        let group =
            chunk.iter().fold(0u32, |sum, b| sum << 8 | u32::from(*b)) << (8 * (3 - chunk.len()));
        for digit in 0..4 {
            match digit <= chunk.len() {
                true => out.push(DIGITS[(group >> (18 - 6 * digit)) as usize & 63] as char),
                false => out.push('='),
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges() {
        let text =
            r#"Bearer realm="https://auth.x/token",service="a, b",scope="repository:x:pull""#;
        let Some(Challenge::Bearer { realm, service, scope }) = Challenge::parse(text) else {
            panic!("not parsed")
        };
        assert_eq!(realm, "https://auth.x/token");
        assert_eq!(service.as_deref(), Some("a, b"));
        assert_eq!(scope.as_deref(), Some("repository:x:pull"));
        assert_eq!(Challenge::parse("basic realm=x"), Some(Challenge::Basic));
        assert_eq!(Challenge::parse("Digest x"), None);
        assert_eq!(Challenge::parse("Bearer service=x"), None);
        let both = [HeaderValue::from_static("Basic"), HeaderValue::from_static("Bearer realm=x")];
        assert!(matches!(Challenge::of(&both), Some(Challenge::Bearer { .. })));
    }

    #[test]
    fn base64_pads() {
        for (text, encoded) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("user:p\u{e4}ss", "dXNlcjpww6Rzcw=="),
        ] {
            assert_eq!(base64(text.as_bytes()), encoded);
        }
    }

    proptest::proptest! {
        #[test]
        fn never_panics_nor_hangs(text: String) {
            let _ = Challenge::parse(&format!("Bearer {text}"));
            let _ = parameters(&text);
        }
    }
}
