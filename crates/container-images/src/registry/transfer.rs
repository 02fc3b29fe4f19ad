//! A plain download, outside the distribution protocol.

use std::time::Duration;

use bytes::Bytes;
use reqwest::{Response, Url};

use super::session::{STALL, chain, http_client, is_loopback};

/// Longest time to the answer's head.
const FIRST_ANSWER: Duration = Duration::from_secs(18);

/// A download that is under way. Errors are texts to show.
#[derive(Debug)]
pub struct Transfer {
    response: Response,
    /// Bytes in all, when the server tells.
    pub total: Option<u64>,
}

impl Transfer {
    /// Asks for `url` (`http:` or `https:`).
    pub async fn start(url: &str) -> Result<Transfer, String> {
        let url = Url::parse(url).map_err(|e| format!("not a URL: {e}"))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err("only http: and https: are understood".into());
        }
        let loopback = url.host_str().is_some_and(is_loopback);
        let http = http_client(url.scheme() == "http", loopback).map_err(|e| chain(&e))?;
        let response = tokio::time::timeout(FIRST_ANSWER, http.get(url).send())
            .await
            .map_err(|_| format!("no answer within {} s", FIRST_ANSWER.as_secs()))?
            .and_then(Response::error_for_status)
            .map_err(|e| chain(&e.without_url()))?;
        let total = response.content_length();
        Ok(Transfer { response, total })
    }

    /// The next bytes; `None` at the end.
    pub async fn next(&mut self) -> Result<Option<Bytes>, String> {
        match tokio::time::timeout(STALL, self.response.chunk()).await {
            Err(_) => Err(format!("silent for {} s", STALL.as_secs())),
            Ok(Err(error)) => Err(chain(&error.without_url())),
            Ok(Ok(chunk)) => Ok(chunk),
        }
    }
}
